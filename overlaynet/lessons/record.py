"""What a learner did, on disk: one file for each learner, `lessons/LEARNER.json`, beside the durable files of
labs.

It outlives labs and reboots, and `overlaynet lab report` is made from it. Predictions are kept in the order in
which they were made, since the first one is what was believed before anything was seen.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overlaynet.errors import EnvironmentProblem
from overlaynet.lab.paths import Paths
from overlaynet.store.disk import write_atomically

_ODD = re.compile(r"[^-.\w]")


@dataclass(slots=True)
class Progress:
    """One learner in one lesson. Times are UTC, ISO 8601; None where it did not happen. `last` is the
    document of the last check."""

    started_at: str | None = None
    proved_at: str | None = None
    starts: int = 0
    checks: int = 0
    hints: int = 0
    predictions: dict[str, list[str]] = field(default_factory=dict)
    last: Mapping[str, Any] | None = None

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
    """Who is learning: whoever typed `sudo`, else the user."""
    return os.environ.get("SUDO_USER") or _user()


def _user() -> str:
    """The name of uid 0 in a user namespace is not that of whoever made it."""
    try:
        return os.environ.get("USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def file_of(name: str, paths: Paths) -> Path:
    """Where a learner's record is. No character of a name leads out of its folder."""
    return (paths.own or paths).state_root / "lessons" / f"{_ODD.sub('_', name)}.json"


def load(paths: Paths, name: str | None = None) -> Record:
    """A learner's record, empty if nothing was done yet. Raises EnvironmentProblem if it cannot be read."""
    name = name or learner()
    file = file_of(name, paths)
    try:
        document = json.loads(file.read_text("utf-8"))
        lessons = {key: Progress(**value) for key, value in document["lessons"].items()}
    except FileNotFoundError:
        return Record(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentProblem(
            f"what {name} did so far cannot be read", evidence=f"{file}: {error}", next=[f"rm {file}"]
        ) from error
    return Record(name, lessons)


def save(record: Record, paths: Paths) -> None:
    """Raises EnvironmentProblem."""
    file = file_of(record.learner, paths)
    document = {"learner": record.learner, "lessons": {k: asdict(v) for k, v in record.lessons.items()}}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n", 0o600)
    except OSError as error:
        raise EnvironmentProblem("what was done cannot be kept", evidence=f"{file}: {error}") from error
