"""Undoes one machine's part of a fault when its time is up: ``python -m overlaynet.lab.machinetimer RECORD``.

It runs on that machine, as root, started by a job of its probe (`overlaynet.probe.changes`), and needs neither
the operator's machine nor anybody's clock: RECORD says when to end on the clock that counts from the machine's
start. It waits with next to nothing loaded, and insists until it has succeeded. A record that is gone by then
means that there is nothing to undo any more.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Wait, undo, and answer the exit code."""
    record = Path(arguments[0])
    document = json.loads(record.read_text("utf-8"))
    while (left_s := document["ends"] - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
        time.sleep(left_s)

    from overlaynet.lab.faultrecords import damage_of
    from overlaynet.lab.faultsite import Here
    from overlaynet.lab.faulttimer import insist
    from overlaynet.lab.mending import Hand

    def heal() -> None:
        if record.exists():
            Hand(Here(document["host"], document["namespaces"])).undo(damage_of(document["damage"]))

    code = insist(heal)
    shutil.rmtree(record.parent, ignore_errors=True)
    with suppress(OSError):
        record.parent.parent.rmdir()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
