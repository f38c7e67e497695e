"""A lesson gone through in a virtual machine, for one that the kernel here cannot run: by the same page and the
same reference solution, typed there by ssh."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from helpers.lessons import SOLVED, Learner
from helpers.rootless_vm import VmUser
from helpers.transcripts import Typed, compare, sessions

from overlaynet.lessons.catalogue import find


@dataclass
class DistantLearner(Learner):
    """Types as an ordinary user of a machine where this clone is installed."""

    user: VmUser

    def types(self, *words: str, code: int | None = 0) -> str:
        done = self._call(shlex.join(["overlaynet", *words]))
        assert code in (None, done.returncode), f"exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def runs(self, script: str) -> None:
        done = self._call(script)
        assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"

    def retypes(self, page: str) -> str:
        """What a part of a page says is typed, and what it says comes back. Answers all that came."""
        return "\n".join(self._retypes(typed) for typed in sessions(page))

    def _retypes(self, typed: Typed) -> str:
        came = self._call(f"{{ {typed.command}; }} 2>&1").stdout
        compare(typed, came)
        return came

    def _call(self, script: str) -> subprocess.CompletedProcess[str]:
        environ = [f"{name}={value}" for name, value in self.environ.items()]
        return self.user.types(shlex.join(["env", *environ, "sh", "-euc", script]))


@contextmanager
def learning_there(user: VmUser, lesson: str) -> Iterator[DistantLearner]:
    """A learner who has just started this lesson. In the end only the record of what was learned is left."""
    entry = find(lesson)
    learner = DistantLearner(entry, {"OVERLAYNET_LAB": entry.name, "NO_COLOR": "1"}, user)
    learner.types("lab", "start", entry.name, "--timeout", "300")
    try:
        yield learner
    finally:
        learner.types("down", "-l", entry.name)
    state = f"/home/{user.name}/.local/state/overlaynet"
    assert user.left() == [state, f"{state}/lessons", f"{state}/lessons/{user.name}.json"]


def goes_through_there(learner: DistantLearner) -> None:
    """Broken as it begins, as its page says, proved by the reference solution. A check costs an emulated
    machine ten seconds, so that it is proved is taken from what is typed by the page."""
    before, _, after = learner.entry.readme.read_text("utf-8").partition(SOLVED)
    broken = learner.checks(code=1)
    assert [claim["verdict"] for claim in broken["claims"]][-1] == "fail", broken
    learner.retypes(before)
    learner.runs(learner.solution)
    came = learner.retypes(after)
    assert re.search(r"^PROVED ", came, re.MULTILINE), came
    for prediction in learner.entry.lesson.predictions:
        assert re.search(rf"^{prediction.name} .* right$", came, re.MULTILINE), came
