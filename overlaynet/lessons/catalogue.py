"""The lessons there are: the folders `labs/NN-name/`, and those of a folder of one's own, by their numbers.

A lesson's name is also that of its lab. Its code is loaded when it is first needed: a list of lessons costs
a dozen short files, help costs none.

`OVERLAYNET_LESSONS` names a folder with lessons of one's own. Their code runs with the rights of whoever types
the command, as any program does that one starts; so nothing but that person's environment says where they are.
No lab and no file does, and `sudo` forgets it unless told otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

from overlaynet import data
from overlaynet.errors import ConfigError, LessonFailed, NotFound, OverlayError
from overlaynet.lab.topology import Topology
from overlaynet.lessons import needs
from overlaynet.lessons.lesson import Lesson

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

OWN = "OVERLAYNET_LESSONS"
_FOLDER = re.compile(r"(?P<number>\d\d)-(?P<name>[a-z]([-a-z0-9]{0,30}[a-z0-9])?)")


class _Source(SourceFileLoader):
    """Leaves no compiled file beside a lesson: the folder may be another user's, or kept in git."""

    def set_data(self, path: str, data: ReadableBuffer, *, _mode: int = 0o666) -> None:
        pass


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
        """Runs the lesson's file. Raises LessonFailed."""
        name, file = f"overlaynet_lesson_{self.number:02}", self.folder / "lesson.py"
        spec = importlib.util.spec_from_file_location(name, file, loader=_Source(name, str(file)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where its dataclasses look for what their annotations mean
        with self.own_errors("file"):
            spec.loader.exec_module(module)
            lesson = getattr(module, "LESSON", None)
            if not isinstance(lesson, Lesson):
                raise TypeError(f"LESSON is no Lesson: {lesson!r:.60}")
            return lesson

    @contextmanager
    def own_errors(self, what: str) -> Iterator[None]:
        """Around the lesson's own code: what goes wrong there is no verdict on the lab, and not the learner's
        fault. Raises LessonFailed, with the last line of the lesson's that was run."""
        try:
            yield
        except OverlayError:
            raise
        except Exception as error:
            words = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
            raise LessonFailed(
                f"the {what} of lesson {self.name} is broken",
                evidence=f"{self._line_of(error)}: {words}",
            ) from error

    def _line_of(self, error: Exception) -> str:
        """``FILE:LINE``; the file alone where no line of it was run."""
        file = str(self.folder / "lesson.py")
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        return file if line is None else f"{file}:{line}"

    @cached_property
    def unavailable(self) -> str | None:
        """Why it cannot be run on this machine, or None. Raises LessonFailed."""
        with self.own_errors("file"):
            return needs.missing(self.lesson.needs)

    def topology(self) -> Topology:
        """Its lab. Raises TopologyError."""
        return Topology.load(self.folder / "lab.yaml", self.name)


def entries() -> list[Entry]:
    """All lessons. Raises EnvironmentProblem where this installation has none, ConfigError where those of one's
    own cannot be told from others."""
    found = _inside(data.path("labs"))
    if own := os.environ.get(OWN):
        found += _own(Path(own), found)
    return sorted(found, key=lambda entry: entry.number)


def _inside(folder: Path) -> list[Entry]:
    return [
        Entry(int(match["number"]), match["name"], file.parent)
        for file in sorted(folder.glob("*/lesson.py"))
        if (match := _FOLDER.fullmatch(file.parent.name))
    ]


def _own(folder: Path, taken: list[Entry]) -> list[Entry]:
    """Raises ConfigError."""
    found = _inside(folder.absolute())
    if not found:
        raise ConfigError(
            f"{OWN} names {folder}, and there is no lesson in it",
            evidence="a lesson is a folder NN-name with a file lesson.py",
            next=["docs/lessons.md tells how to write one"],
        )
    for n, entry in enumerate(found):
        for other in (*taken, *found[:n]):
            if entry.name == other.name or entry.number == other.number:
                raise ConfigError(
                    f"two lessons are called {entry.number} or {entry.name}",
                    evidence=f"{entry.folder}\n{other.folder}",
                    next=["give the folder of your own another number and name"],
                )
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
