"""Heals one fault when its time is up: ``python -m overlaynet.lab.faulttimer LAB FAULT UNTIL RUN STATE``.

RUN and STATE are the two roots under which labs are, UNTIL is in seconds since 1970. This
process is started by `break`, outlives it, and is ended by `heal` and `down`. It waits with next to nothing
loaded. While another command holds the lab it tries again; a lab or a fault that is gone is none of its
business.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

AGAIN_S = 0.5
LONGEST_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Wait, heal, and answer the exit code."""
    lab, ident, until, *roots = arguments
    while (left_s := float(until) - time.time()) > 0:
        time.sleep(left_s)

    from overlaynet.lab import faults
    from overlaynet.lab.paths import Paths

    paths = Paths(*map(Path, roots))

    def heal() -> None:
        if paths.lab(lab).faults_json.exists():
            with faults.changing_faults(lab, paths) as mine:
                if ident in {fault.id for fault in mine.all}:
                    mine.heal([ident], time.time())

    return insist(heal)


def insist(heal: Callable[[], None]) -> int:
    """Try until it succeeds, less and less often; 0, or 2 if the lab is gone."""
    from overlaynet.errors import LabChoice, OverlayError

    pause_s = AGAIN_S
    while True:
        try:
            heal()
            return 0
        except LabChoice:
            return 2
        except OverlayError as error:
            sys.stderr.write(f"{error.code} {error.message}: {error.evidence}\n")
            sys.stderr.flush()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
