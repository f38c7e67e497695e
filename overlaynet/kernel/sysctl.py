"""Kernel settings below /proc/sys.

Which namespace's ``net/…`` one sees there depends on the thread that opens the file, not on any socket:
so these belong to the namespace the agent runs in. Writing needs CAP_NET_ADMIN over that namespace and
no other right. Several blanks or tabs between values count as one space.
"""

from __future__ import annotations

import errno
from pathlib import Path, PurePosixPath

from overlaynet.errors import KernelError
from overlaynet.kernel import modules

PROC_SYS = Path("/proc/sys")


def read(name: str) -> str | None:
    """The value; None where the setting does not exist or cannot be read."""
    try:
        return " ".join(_path(name).read_text().split())
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Raises KernelError: ENOENT for an unknown setting or a module that is not loaded, EINVAL for a value it
    will not take."""
    try:
        with _path(name).open("w") as file:
            file.write(value)
    except OSError as error:
        raise modules.explained(KernelError(f"sysctl {name} = {value}", error.errno or errno.EIO)) from error


def _path(name: str) -> Path:
    """`name` with ``/`` between its parts: a device's name may hold dots."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise KernelError(f"sysctl {name}", errno.EINVAL, "not a path below /proc/sys")
    return PROC_SYS.joinpath(*parts)
