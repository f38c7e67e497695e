"""How often somebody looked into a lab that asks to be found out: a line for each look, in the lab's `looks`.

Only a lab that has this file is counted in. Whoever counts appends a line, so two commands at once count two.
"""

from __future__ import annotations

import os
from contextlib import suppress

from overlaynet.lab.paths import LabPaths


def begin(paths: LabPaths) -> None:
    """From now on looks are counted, from none. Raises OSError."""
    paths.looks.write_text("", "utf-8")


def count(paths: LabPaths, verb: str) -> None:
    """One more look, where they are counted. Somebody else's lab may be looked at, and is not written to."""
    with suppress(OSError):
        descriptor = os.open(paths.looks, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{verb}\n")


def counted(paths: LabPaths) -> list[str]:
    """The verbs of all looks, in order; none where nothing is counted."""
    try:
        return paths.looks.read_text("utf-8").split()
    except FileNotFoundError:
        return []
