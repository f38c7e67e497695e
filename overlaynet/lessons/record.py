"""What a learner did, on disk: one file for each learner, `lessons/LEARNER.json`, beside the durable files of
labs.

It outlives labs and reboots, and `overlaynet lab report` is made from it. Predictions are kept in the order in
which they were made, since the first one is what was believed before anything was seen. What was captured for
each is kept as well: a lesson that is started again would else forget how right that was.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overlaynet.errors import EnvironmentProblem
from overlaynet.lab.paths import Paths
from overlaynet.lessons.board import PROVED
from overlaynet.lessons.lesson import HINTS
from overlaynet.store.disk import write_atomically

_SCORE = {"seed", "verdict", "looks", "faults"}
_ODD = re.compile(r"[^-.\w]")


@dataclass(slots=True)
class Progress:
    """One learner in one lesson. Times are UTC, ISO 8601; None where it did not happen. `last` is the
    document of the last check; `captured` has of each predicted value what a check found first, since another
    seed may make it another. `seeds`: where something is left to chance, what the last check of each seed told
    until it was proved."""

    started_at: str | None = None
    proved_at: str | None = None
    starts: int = 0
    checks: int = 0
    hints: int = 0
    predictions: dict[str, list[str]] = field(default_factory=dict)
    captured: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    last: Mapping[str, Any] | None = None

    def begin(self) -> None:
        """Take down that the lesson was started."""
        self.starts += 1
        self.started_at = self.started_at or now()

    def hint(self) -> int:
        """Take down that one more hint was asked for; the last one again is none. Answers which it is."""
        self.hints = min(self.hints + 1, HINTS)
        return self.hints

    def note(self, checked: Mapping[str, Any]) -> None:
        """Take down what a check found: its document (`classroom.Checked`)."""
        self.checks += 1
        self.last = checked
        for answer in checked["predictions"]:
            if answer["captured"] is not None:
                self.captured.setdefault(answer["name"], answer)
        seed = str(checked.get("seed"))
        if checked.keys() >= _SCORE and self.seeds.get(seed, {}).get("verdict") != PROVED:
            self.seeds[seed] = {name: checked[name] for name in sorted(_SCORE)}
        if checked["verdict"] == PROVED:
            self.proved_at = self.proved_at or now()

    def predict(self, given: Mapping[str, str]) -> None:
        """Take down predictions; the same one again is none."""
        for name, value in given.items():
            told = self.predictions.setdefault(name, [])
            if not told or told[-1] != value:
                told.append(value)

    def predicted(self, names: Sequence[str]) -> dict[str, str]:
        """The latest of each, of those that were made."""
        return {name: self.predictions[name][-1] for name in names if self.predictions.get(name)}


@dataclass(slots=True)
class Record:
    """All of one learner."""

    learner: str
    lessons: dict[str, Progress] = field(default_factory=dict)

    def of(self, lesson: str) -> Progress:
        return self.lessons.setdefault(lesson, Progress())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def learner() -> str:
    """Who is learning: whoever typed `sudo`, else the user. Bytes that are no text are marked as such."""
    return os.fsencode(os.environ.get("SUDO_USER") or _user()).decode(errors="replace")


def _user() -> str:
    """The name of uid 0 in a user namespace is not that of whoever made it."""
    try:
        return os.environ.get("USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def file_of(name: str, paths: Paths) -> Path:
    """Where a learner's record is. No character of a name leads out of its folder, and no two names share a
    file: odd characters stand there as their numbers."""
    safe = _ODD.sub(lambda odd: "".join(f"%{byte:02X}" for byte in odd[0].encode()), name)
    return paths.mine.state_root / "lessons" / f"{safe}.json"


def load(paths: Paths, name: str | None = None) -> Record:
    """A learner's record, empty if nothing was done yet. Raises EnvironmentProblem if it cannot be read."""
    name = name or learner()
    file = file_of(name, paths)
    try:
        document = json.loads(file.read_text("utf-8"))
        lessons = {key: _progress(value) for key, value in document["lessons"].items()}
    except FileNotFoundError:
        return Record(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EnvironmentProblem(
            f"what {name} did so far cannot be read",
            evidence=f"{file}: {type(error).__name__}: {error}",
            next=[f"mv {file} {file}.damaged"],
        ) from error
    return Record(name, lessons)


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "started_at": (str, type(None)),
    "proved_at": (str, type(None)),
    "starts": (int,),
    "checks": (int,),
    "hints": (int,),
    "predictions": (dict,),
    "captured": (dict,),
    "seeds": (dict,),
    "last": (dict, type(None)),
}


def _progress(value: Mapping[str, Any]) -> Progress:
    """Members that are unknown here are a newer version's, and no reason to refuse the rest. Raises
    TypeError."""
    if not isinstance(value, dict):
        raise TypeError(f"a lesson is {value!r:.60}")
    known = {name: value[name] for name in (f.name for f in fields(Progress)) if name in value}
    for name, member in known.items():
        if not isinstance(member, _PLAIN[name]):
            raise TypeError(f"{name} is {member!r:.60}")
    told = known.get("predictions", {}).values()
    if not all(isinstance(values, list) and all(isinstance(v, str) for v in values) for values in told):
        raise TypeError("predictions are lists of texts")
    return Progress(**known)


@contextmanager
def changing(paths: Paths) -> Iterator[Record]:
    """The learner's record, kept as the block leaves it. Another command that changes one waits for that long,
    so nothing that was done meanwhile is lost. Raises EnvironmentProblem."""
    name = learner()
    folder = file_of(name, paths).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentProblem("what was done cannot be kept", evidence=str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        record = load(paths, name)
        yield record
        save(record, paths)
    finally:
        os.close(descriptor)


def save(record: Record, paths: Paths) -> None:
    """Raises EnvironmentProblem."""
    file = file_of(record.learner, paths)
    document = {"learner": record.learner, "lessons": {k: asdict(v) for k, v in record.lessons.items()}}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n", 0o600)
    except OSError as error:
        raise EnvironmentProblem("what was done cannot be kept", evidence=f"{file}: {error}") from error
