"""A process that becomes a command, as `exec` and `shell` on machines have it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.fake

ENTER = [sys.executable, "-P", "-m", "overlaynet.probe", "enter"]


def test_command_meets_signals_as_a_shell_would_give_them():
    done = subprocess.run(
        [*ENTER, "-", "--", "sh", "-c", "yes | head -n 1; grep SigIgn /proc/self/status"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("y\nSigIgn:\t0000000000000000\n", "")


@pytest.mark.parametrize("words", [["-"], ["-", "--"], ["-", "true"]])
def test_words_that_name_no_command_are_refused(words):
    done = subprocess.run([*ENTER, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "usage: overlaynet-probe enter" in done.stderr


def test_program_that_is_not_there_is_told():
    done = subprocess.run([*ENTER, "-", "--", "no-such-program"], capture_output=True, text=True, check=False)
    assert (done.returncode, "no-such-program" in done.stderr) == (125, True)
