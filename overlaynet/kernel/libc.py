"""libc's calls about namespaces and mounts, which Python 3.11 does not have."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 0x2, 0x4, 0x1000, 0x4000
MS_SLAVE, MS_SHARED = 0x8_0000, 0x10_0000
MNT_DETACH = 2


def call(function: str, *arguments: int | bytes | None) -> None:
    """A function that returns 0, or -1 and errno. Raises OSError."""
    if getattr(_libc(), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: Path, flags: int, kind: str = "none", options: str = "") -> None:
    """mount(2). `flags` is an unsigned long there; every one used here fits an int. Raises OSError."""
    call("mount", os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
