"""The lessons there are: the folders `labs/NN-name/`, in order of their numbers.

A lesson's name is also that of its lab. Its code is loaded when it is first needed: a list of lessons costs
twelve short files, help costs none.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from overlaynet import data
from overlaynet.errors import NotFound
from overlaynet.lab.topology import Topology
from overlaynet.lessons import needs
from overlaynet.lessons.lesson import Lesson

_FOLDER = re.compile(r"(?P<number>\d\d)-(?P<name>[a-z]([-a-z0-9]{0,30}[a-z0-9])?)")


@dataclass(frozen=True)
class Entry:
    """One lesson where it lies."""

    number: int
    name: str
    folder: Path

    @property
    def readme(self) -> Path:
        return self.folder / "README.md"

    @cached_property
    def lesson(self) -> Lesson:
        """Runs the lesson's file: it is part of this program, not of what a learner wrote."""
        file = self.folder / "lesson.py"
        spec = importlib.util.spec_from_file_location(f"overlaynet_lesson_{self.number:02}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        lesson = module.LESSON
        assert isinstance(lesson, Lesson), f"{file} has no LESSON"
        return lesson

    @cached_property
    def unavailable(self) -> str | None:
        """Why it cannot be run on this machine, or None."""
        return needs.missing(self.lesson.needs)

    def topology(self) -> Topology:
        """Its lab. Raises TopologyError."""
        return Topology.load(self.folder / "lab.yaml", self.name)


def entries() -> list[Entry]:
    """All lessons. Raises EnvironmentProblem where this installation has none."""
    found = []
    for folder in sorted(data.path("labs").iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match and (folder / "lesson.py").exists():
            found.append(Entry(int(match["number"]), match["name"], folder))
    return found


def find(word: str) -> Entry:
    """By name, number or folder. Raises NotFound."""
    known = entries()
    for entry in known:
        if word in (entry.name, entry.folder.name) or (word.isdecimal() and int(word) == entry.number):
            return entry
    raise NotFound(
        f"there is no lesson {word!r}",
        evidence="there are " + ", ".join(f"{e.number} {e.name}" for e in known),
        next=["overlaynet lab list"],
    )
