"""A lesson as a learner goes through it, from its page alone; and its reference solution, which is nowhere
else.

`tests/lessons/solutions/NAME.sh` is typed by `sh -eu` with `overlaynet` on the PATH and the lesson's lab
chosen. Its first comment holds the right predictions: `# predict: ttl=62 overhead=50`. In a page, the line
`<!-- solved -->` divides what is typed before the lesson is solved from what is typed after.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.lab import lab_name
from helpers.transcripts import retype, sessions

from overlaynet.lab.paths import Paths
from overlaynet.lessons import record
from overlaynet.lessons.catalogue import Entry, find

ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS = ROOT / "tests" / "lessons" / "solutions"
SOLVED = "<!-- solved -->"


@dataclass
class Learner:
    """Somebody who has started one lesson and types in the clone."""

    entry: Entry
    environ: dict[str, str]

    def types(self, *words: str, code: int | None = 0) -> str:
        """`overlaynet WORDS…`; what it said on standard output. AssertionError for another exit code."""
        done = subprocess.run(
            ["overlaynet", *words],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        assert code in (None, done.returncode), f"exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def asks(self, *words: str, code: int | None = 0) -> dict[str, Any]:
        """The same with `-o json`."""
        return dict(json.loads(self.types(*words, "-o", "json", code=code)))

    def runs(self, script: str) -> None:
        """Lines of shell, each of which must succeed."""
        done = subprocess.run(
            ["sh", "-eu"], input=script, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"

    @contextmanager
    def beside(self, *commands: Sequence[str]) -> Iterator[None]:
        """red does these all the while, as in terminals that were forgotten."""
        with ExitStack() as ending:
            for command in commands:
                argv, null = ["overlaynet", "exec", "red", "--", *command], subprocess.DEVNULL
                forgotten = subprocess.Popen(argv, cwd=ROOT, env=self.environ, stdout=null, stderr=null)
                ending.callback(forgotten.wait)
                ending.callback(forgotten.terminate)
            yield

    def checks(self, *, code: int) -> dict[str, Any]:
        """The document of `lab check`, by the exit code that is expected."""
        return self.asks("lab", "check", self.entry.name, *self.predictions, code=code)

    @property
    def solution(self) -> str:
        return (SOLUTIONS / f"{self.entry.name}.sh").read_text("utf-8")

    @property
    def predictions(self) -> list[str]:
        """The right ones, as options."""
        line = next(line for line in self.solution.splitlines() if line.startswith("# predict:"))
        return [word for given in line.split()[2:] for word in ("--predict", given)]


@contextmanager
def learning(lesson: str, *options: str) -> Iterator[Learner]:
    """A learner who has just started this lesson. In the end nothing of lab and learner is left."""
    entry, name = find(lesson), lab_name("learner")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": search, "SUDO_USER": name, "OVERLAYNET_LAB": entry.name, "NO_COLOR": "1"}
    learner = Learner(entry, environ)
    learner.types("lab", "start", entry.name, *options)
    try:
        yield learner
    finally:
        learner.types("down", "-l", entry.name)
        record.file_of(name, Paths.here()).unlink(missing_ok=True)


def pinging(target: str) -> list[str]:
    """So often that each capture of a check has some."""
    return ["ping", "-q", "-i", "0.02", target]


def calling(address: str) -> list[str]:
    """The same with calls. One that is not answered is soon given up."""
    return ["sh", "-c", f"while sleep 0.05; do curl -s --max-time 0.3 http://{address}; done"]


def goes_through(
    learner: Learner, record_property: Callable[[str, object], None], *beside: Sequence[str]
) -> None:
    """All of a lesson: broken as it begins, as its page says, proved by the reference solution (whatever red
    does `beside` that), broken again by `reset`."""
    before, divider, after = learner.entry.readme.read_text("utf-8").partition(SOLVED)
    assert divider, f"{learner.entry.readme} has no {SOLVED}"
    broken = learner.checks(code=1)
    assert [claim["verdict"] for claim in broken["claims"]][-1] == "fail", broken
    retype(sessions(before), ROOT, learner.environ)
    learner.runs(learner.solution)
    with learner.beside(*beside):
        proved = learner.checks(code=0)
    assert proved["verdict"] == "proved"
    assert [answer["right"] for answer in proved["predictions"]] == [True] * len(proved["predictions"]), proved
    retype(sessions(after), ROOT, learner.environ)
    began = time.monotonic()
    learner.types("lab", "reset", learner.entry.name)
    record_property(
        f"lesson {learner.entry.number}, {learner.entry.name}: check, reset",
        f"{proved['duration_s']:4.1f} s, {time.monotonic() - began:4.1f} s",
    )
    assert learner.checks(code=1)["verdict"] == "not_yet"
