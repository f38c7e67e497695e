"""`overlaynet-probe enter NETNS -- COMMAND…`: this process becomes a command in a network namespace."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from overlaynet.errors import NotFound, OverlayError, UsageError
from overlaynet.kernel import netns

COULD_NOT_START = 125
HERE = "-"


def main(words: Sequence[str]) -> int:
    """Does not return if the command could be started; else the exit code, and why on standard error."""
    try:
        where, argv = _parsed(words)
        if where != HERE:
            netns.stay(where)
        _become(argv)
    except OverlayError as error:
        sys.stderr.write(
            "\n".join([f"error {error.code}: {error.message}", *error.evidence.splitlines()]) + "\n"
        )
    return COULD_NOT_START


def _parsed(words: Sequence[str]) -> tuple[str, list[str]]:
    match list(words):
        case [where, "--", program, *rest]:
            return where, [program, *rest]
    raise UsageError("usage: overlaynet-probe enter NETNS -- COMMAND...", evidence=f"given: {list(words)}")


def _become(argv: list[str]) -> None:
    """With signals as a program expects them: Python ignores these two, and exec keeps that (signal(7))."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (a command of whoever may run this as root)
    except OSError as error:
        raise NotFound(f"{argv[0]!r} could not be started", evidence=str(error)) from error
