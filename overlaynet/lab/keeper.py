"""Keeps a user's sandbox: ``python -m overlaynet.lab.keeper ID LAB RUN STATE new|inside``.

The words are those of the sandbox's marker. It makes the namespaces (``inside``: it is in them already), says
in one line of JSON that they are there or which step was refused, and then waits to be ended. All others of
the lab join it. It holds nothing of the caller's: no terminal, no directory, no pipe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence

from overlaynet.kernel import userns
from overlaynet.lab.marker import FILE, Marker

NEW, INSIDE = "new", "inside"


def main(arguments: Sequence[str]) -> int:
    """Make the sandbox and keep it until a signal ends this process; 1 if it could not be made."""
    *words, where = arguments
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        if where != INSIDE:
            userns.isolate()
            FILE.write_text(Marker(*words).as_text(), "utf-8")
    except userns.Refused as refused:
        _say({"step": refused.step, "errno": refused.number})
        return 1
    _say({"step": None, "errno": 0})
    _let_go()
    while True:
        signal.pause()


def _say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _let_go() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
