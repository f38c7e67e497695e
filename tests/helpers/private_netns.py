"""Network namespaces without a name: they vanish with the last descriptor, whatever becomes of the test."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass(frozen=True)
class PrivateNetns:
    """A namespace, by descriptor. `path` is what `ip link set … netns` takes."""

    fd: int

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and children it starts, are in the namespace meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _check(_libc.setns(self.fd, CLONE_NEWNET))
            yield
        finally:
            _check(_libc.setns(before, CLONE_NEWNET))
            os.close(before)

    def run(self, command: str) -> str:
        """A command's output; its words are separated by blanks. Raises CalledProcessError."""
        with self.entered():
            return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@contextmanager
def private_netns() -> Iterator[PrivateNetns]:
    """A new namespace with its loopback up; the caller's thread stays where it is."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        made = PrivateNetns(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    finally:
        _check(_libc.setns(before, CLONE_NEWNET))
        os.close(before)
    try:
        made.run("ip link set lo up")
        yield made
    finally:
        os.close(made.fd)
