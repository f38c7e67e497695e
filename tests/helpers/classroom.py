"""Lessons and labs in memory: two small lessons in a folder, and labs that are no more than their files.

`Lab.up`, `down` and the choice of a cluster are the only doors from lessons to labs; each is replaced here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from overlaynet.errors import LabFailed
from overlaynet.lab.paths import Paths
from overlaynet.lessons import Board, Lesson, Prediction
from overlaynet.lessons.catalogue import Entry

LAB = """\
apiVersion: overlaynet/v1
kind: Lab
name: {name}
hosts: [{{name: node-1}}, {{name: node-2}}]
containers: [{{name: red, host: node-1}}]
"""
LESSON = '''\
"""Lesson {number}."""

from overlaynet.lessons import Board, Lesson, Prediction, Stage


def start(stage: Stage) -> None:
    stage.remembered["seed"] = stage.seed
    stage.cluster.begun()


def check(stage: Stage, board: Board) -> None:
    with board.claim("it is there"):
        assert stage.remembered == {{"seed": stage.seed}}
    board.measured("ttl", theory=62, captured=62, because="two hosts route it")
    with board.claim("it is mended"):
        stage.cluster.checked()
    board.measured("last", theory="red:eth0", captured="red:eth0", because="nothing is behind it")


LESSON = Lesson(
    question="What is lesson {number}?",
    predictions=(
        Prediction("ttl", "With which TTL?"),
        Prediction("last", "Where is it seen last?", "point"),
    ),
    hints=("look", "look there", "type that"),
    start=start,
    check=check,
    minutes=5,
    memory_mb=40,
    disk_mb=70,
    needs={needs!r},
)
'''
RIGHT = ("--predict", "ttl=62", "--predict", "last=red:eth0")


def write_lesson(
    folder: Path, number: int, name: str, code: str | None = None, needs: tuple[str, ...] = ()
) -> Path:
    """A lesson's folder inside `folder`; `code` in place of its lesson.py."""
    made = folder / f"{number:02}-{name}"
    made.mkdir(parents=True)
    (made / "lab.yaml").write_text(LAB.format(name=name))
    (made / "lesson.py").write_text(code or LESSON.format(number=number, needs=needs))
    (made / "README.md").write_text(f"# {number}. {name}\n")
    return made


def entry(folder: Path, number: int = 20, name: str = "small", code: str | None = None) -> Entry:
    return Entry(number, name, write_lesson(folder, number, name, code))


def lesson(*predictions: Prediction, **members: Any) -> Lesson:
    """One that does nothing, with what a test is about."""

    def check(stage: object, board: Board) -> None:
        """Nothing is claimed."""

    return Lesson(
        **{"question": "?", "hints": ("a", "b", "c"), "check": check, "predictions": predictions} | members
    )


@dataclass
class FakeLabs:
    """Labs by name. What goes wrong in them is put into these members by the test."""

    paths: Paths
    mended: bool = False
    up_error: BaseException | None = None
    start_error: BaseException | None = None
    check_error: BaseException | None = None
    converged: bool = True
    done: list[str] = field(default_factory=list)

    def up(self, topology: Any, **settings: Any) -> SimpleNamespace:
        name = topology.name
        if self.up_error:
            raise self.up_error
        lab = self.paths.lab(name)
        for folder in (lab.run, lab.state):
            folder.mkdir(parents=True)
        lab.lab_json.write_text("{}")
        self.done.append(f"up {name}")
        return SimpleNamespace(
            converged=self.converged, waiting=() if self.converged else ("node-2: no lease",), ready_s=0.4
        )

    def down(self, name: str, paths: Paths) -> None:
        lab = paths.lab(name)
        shutil.rmtree(lab.run, ignore_errors=True)
        shutil.rmtree(lab.state, ignore_errors=True)
        self.done.append(f"down {name}")

    def cluster(self, name: str, paths: Paths) -> FakeLabs:
        if name not in paths.names():
            raise LabFailed(f"no lab {name}")
        return self

    def begun(self) -> None:
        if self.start_error:
            raise self.start_error

    def checked(self) -> None:
        if self.check_error:
            raise self.check_error
        assert self.mended, "nobody mended it\nnot even the agent"


def prediction(**members: Any) -> dict[str, Any]:
    """A prediction as a report has it."""
    return {
        **dict.fromkeys(("first", "last", "theory", "captured", "right_first")),
        "name": "ttl",
        "question": "With which TTL?",
        "because": "",
        **members,
    }


def item(lesson: str = "vxlan", **members: Any) -> dict[str, Any]:
    """A lesson as a report has it: begun by default with nothing done."""
    return {
        "number": 3,
        "lesson": lesson,
        "question": "What is inside?",
        "state": "started",
        "unavailable": None,
        "started_at": "2026-01-05T08:00:00+00:00",
        "proved_at": None,
        "starts": 1,
        "checks": 0,
        "hints": 0,
        "predictions": [],
        "verdict": None,
        "claims": [],
        "seeds": [],
        **members,
    }


def handed_in(learner: str, *items: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    """A learner's whole document."""
    return {
        "schema": "overlaynet/v1",
        "kind": "LessonReport",
        "lab": None,
        "learner": learner,
        "machine": "pc-1",
        "version": "0.1.0",
        "made_at": "2026-01-05T09:00:00+00:00",
        "proved": sum(i["state"] == "proved" for i in items),
        "items": list(items),
        **members,
    }
