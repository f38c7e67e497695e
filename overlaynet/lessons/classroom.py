"""Starting, checking and resetting lessons: the lab of a lesson is a lab like any other, with a note in it.

`lesson.json` beside the lab's durable files says which lesson a lab belongs to, with which seed it was begun
and what its start wants its check to know. It goes with the lab, and outlives a reboot as the lab's own
record does, so that `reset` can build it again. A lab of the same name that is somebody's own is never
touched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from overlaynet.cluster.contexts import LabCluster, choose_context
from overlaynet.errors import EnvironmentProblem, LabChoice, LabFailed, LessonUnavailable, UsageError
from overlaynet.lab.lab import UP_TIMEOUT_S, Lab
from overlaynet.lab.lifecycle import down
from overlaynet.lab.paths import Paths
from overlaynet.lab.settling import Progress, silent
from overlaynet.lab.state import running_labs
from overlaynet.lessons.board import Answer, Board, Claim
from overlaynet.lessons.catalogue import Entry, entries
from overlaynet.lessons.stage import Stage
from overlaynet.store.disk import write_atomically


@dataclass(frozen=True, slots=True)
class Note:
    """Which lesson a lab is of."""

    lesson: str
    seed: int = 0
    remembered: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A lesson's lab, as the learner finds it."""

    hosts: int
    containers: int
    ready_s: float


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found. `more`: members of its document that are the lesson's own; `next`: what to type, if
    the lesson has something to say of that."""

    verdict: str
    answers: list[Answer]
    claims: list[Claim]
    duration_s: float
    more: Mapping[str, Any] = field(default_factory=dict)
    next: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "predictions": [answer.as_json() for answer in self.answers],
            "claims": [{"text": c.text, "verdict": c.verdict, "evidence": c.evidence} for c in self.claims],
            "duration_s": round(self.duration_s, 3),
            **self.more,
        }


def note_of(name: str, paths: Paths) -> Note | None:
    """The note in a lab; None for one that is no lesson's, or is not there."""
    try:
        document = json.loads((paths.lab(name).state / "lesson.json").read_text("utf-8"))
        return Note(**document)
    except (OSError, ValueError, TypeError):
        return None


def _writing_of(name: str, paths: Paths) -> tuple[int, int] | None:
    """What tells one writing of a lab's note from the next, of the same words as well; None without a note."""
    try:
        found = (paths.lab(name).state / "lesson.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def running(paths: Paths) -> list[Entry]:
    """The lessons whose labs are there."""
    names = [note.lesson for lab in running_labs(paths) if (note := note_of(lab, paths)) is not None]
    return [entry for entry in entries() if entry.name in names]


def current(paths: Paths) -> Entry:
    """The lesson that is meant where none was named. Raises LabChoice unless there is exactly one."""
    found = running(paths)
    if len(found) == 1:
        return found[0]
    raise LabChoice(
        "which lesson?" if found else "no lesson is started",
        evidence="started: " + (", ".join(entry.name for entry in found) or "none"),
        next=["overlaynet lab list", "overlaynet lab start NAME"],
    )


def start(
    entry: Entry,
    paths: Paths,
    *,
    seed: int = 0,
    timeout_s: float = UP_TIMEOUT_S,
    progress: Progress = silent,
) -> Started:
    """Build the lesson's lab and break it as the lesson says. If that fails, or the lab does not settle within
    `timeout_s`, it is taken away again.

    Raises LessonUnavailable, LessonFailed, UsageError if it is started, LabChoice if the name is taken, and
    what `up` raises."""
    if entry.unavailable is not None:
        raise LessonUnavailable(
            f"lesson {entry.name} cannot be run here", evidence=entry.unavailable, next=["overlaynet lab list"]
        )
    if entry.name in running_labs(paths):
        _refuse(entry, paths)
    topology = entry.topology()
    result = Lab.up(topology, timeout_s=timeout_s, paths=paths, progress=progress)
    try:
        if not result.converged:
            raise LabFailed(
                f"the lab did not settle within {timeout_s:g} s",
                evidence="; ".join(result.waiting),
                next=[f"overlaynet lab start {entry.name} --timeout {2 * timeout_s:g}"],
            )
        with _stage(entry, paths, Note(entry.name, seed)) as stage:
            with entry.own_errors("start"):
                entry.lesson.start(stage)
            _keep(replace(Note(entry.name, seed), remembered=stage.remembered), paths)
    except BaseException:
        down(entry.name, paths)
        raise
    return Started(len(topology.hosts), len(topology.containers), result.ready_s)


def _refuse(entry: Entry, paths: Paths) -> None:
    if note_of(entry.name, paths) is not None:
        raise UsageError(
            f"lesson {entry.name} is started",
            evidence="its lab is up",
            next=[f"overlaynet lab check {entry.name}", f"overlaynet lab reset {entry.name}"],
        )
    raise LabChoice(
        f"there is a lab {entry.name!r} of your own, and the lesson's would have that name",
        next=[f"overlaynet status -l {entry.name}", f"overlaynet down -l {entry.name}"],
    )


def reset(
    entry: Entry,
    paths: Paths,
    *,
    seed: int | None = None,
    timeout_s: float = UP_TIMEOUT_S,
    progress: Progress = silent,
) -> Started:
    """The lab as it was at the start, with the same seed unless another is given. Raises LabChoice if it is not
    started, and as `start`."""
    note = started(entry, paths)
    down(entry.name, paths)
    chosen = note.seed if seed is None else seed
    return start(entry, paths, seed=chosen, timeout_s=timeout_s, progress=progress)


def check(entry: Entry, predicted: Mapping[str, str], paths: Paths) -> Checked:
    """See how far the lesson is. What the check remembers the next one finds. Raises LabChoice if it is not
    started, LessonFailed, and what looking at a lab raises."""
    began = time.monotonic()
    writing = _writing_of(entry.name, paths)
    note = started(entry, paths)
    board = Board(entry.lesson, predicted)
    with _stage(entry, paths, note) as stage:
        with entry.own_errors("check"), board.checking():
            entry.lesson.check(stage, board)
        is_ours = _writing_of(entry.name, paths) == writing  # else it was reset meanwhile, or taken down
        if is_ours and stage.remembered != dict(note.remembered or {}):
            _keep(replace(note, remembered=stage.remembered), paths)
    took_s = time.monotonic() - began
    return Checked(board.verdict, board.answers(predicted), board.claims, took_s, board.more, board.next)


def started(entry: Entry, paths: Paths) -> Note:
    """The note in a lesson's lab. Raises LabChoice if it is not started."""
    note = note_of(entry.name, paths)
    if note is None:
        raise LabChoice(f"lesson {entry.name} is not started", next=[f"overlaynet lab start {entry.name}"])
    return note


def _stage(entry: Entry, paths: Paths, note: Note) -> Stage:
    cluster = choose_context(entry.name, paths)
    assert isinstance(cluster, LabCluster)
    return Stage(cluster, note.seed, deepcopy(dict(note.remembered or {})))


def _keep(note: Note, paths: Paths) -> None:
    file = paths.lab(note.lesson).state / "lesson.json"
    document = {"lesson": note.lesson, "seed": note.seed, "remembered": note.remembered}
    try:
        write_atomically(file, json.dumps(document) + "\n", 0o600)
    except OSError as error:
        raise EnvironmentProblem("the lesson cannot be noted", evidence=f"{file}: {error}") from error
