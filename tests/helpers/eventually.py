"""The one place where a test waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01


def eventually(check: Callable[[], T], *, deadline_s: float = 10.0) -> T:
    """Call `check` until it neither raises AssertionError nor returns something false; answer that.

    At the deadline the last AssertionError is raised."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            found = check()
            assert found, f"still {found!r}"
            return found
        except AssertionError:
            if time.monotonic() > end:
                raise
        time.sleep(POLL_S)
