"""User namespaces: how somebody who is not root gets a network of their own.

In a user namespace of one's own one has every capability, over that namespace and over whatever namespaces are
made inside it, and over nothing else (user_namespaces(7)). One id can be mapped without anybody's leave: one's
own; it becomes 0. To map one's own group, setgroups(2) has to be given up for good first, lest somebody drop a
group that denies them something.

iproute2 has /run/netns hard-coded, and /run is root's. So /run is a tmpfs here, in which the entries of the
real one are there by bind mount (rootlesskit calls that copy-up), with a /run/netns of its own. Mounts are
slaves of the machine's: what is mounted here is seen here alone, and what the machine unmounts is not held by
us.

Which step a kernel or a distribution refuses tells why, so a refusal names it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from overlaynet.kernel import libc, netns
from overlaynet.kernel.quiet import bring_up_loopback

KINDS = ("user", "mnt", "net")
"""What belongs together, in the order in which it is made and entered."""
RUN = Path("/run")
OWN = frozenset({"netns", "overlaynet", "xtables.lock"})
"""Entries of the real /run that are not shown: a lab has its own, or needs none."""
USER, MAP, MOUNTS, NETWORK = "user namespace", "mapping of ids", "mount namespace", "network namespace"

_LAST_THREADS_S = 1.0


class Refused(Exception):
    """A step that the kernel refused, with the errno."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(f"{step}: {os.strerror(number)}")
        self.step = step
        self.number = number


def isolate() -> None:
    """Put this process, which must have one thread, into namespaces of its own. Raises Refused."""
    own = os.geteuid(), os.getegid()
    _step(USER, lambda: _unshare("user"))
    _step(MAP, lambda: _map_ids(*own))
    _step(MOUNTS, _own_mounts)
    _step(NETWORK, _own_network)


def join(pid: int) -> None:
    """Put this process, which must have one thread, where the process `pid` is; the current directory and open
    files stay what they are. Raises OSError."""
    descriptors = [(kind, os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)) for kind in KINDS]
    with suppress(FileNotFoundError):  # it was removed: then there is no way back to it
        here = Path.cwd()
    try:
        for kind, descriptor in descriptors:
            libc.call("setns", descriptor, netns.CLONE_FLAGS[kind])
    finally:
        for _, descriptor in descriptors:
            os.close(descriptor)
    with suppress(OSError, UnboundLocalError):
        os.chdir(here)  # entering a mount namespace leads to its root


def is_alone(within_s: float = _LAST_THREADS_S) -> bool:
    """Whether this process has one thread only. One that was told to end may need a moment to be gone."""
    deadline = time.monotonic() + within_s
    while sum(1 for _ in Path("/proc/self/task").iterdir()) > 1:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


# --- steps ----------------------------------------------------------------------------------------


def _step(name: str, work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        raise Refused(name, error.errno or errno.EIO) from error


def _unshare(kind: str) -> None:
    libc.call("unshare", netns.CLONE_FLAGS[kind])


def _map_ids(uid: int, gid: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _own_mounts() -> None:
    _unshare("mnt")
    libc.mount("", Path("/"), libc.MS_SLAVE | libc.MS_REC)
    real = os.open(RUN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.mount("overlaynet", RUN, libc.MS_NOSUID | libc.MS_NODEV, "tmpfs", "mode=0755,size=16m")
        with os.scandir(f"/proc/self/fd/{real}") as entries:
            for entry in entries:
                if entry.name not in OWN:
                    with suppress(OSError):  # what we may not even bind is of no use to us
                        _show(entry)
    finally:
        os.close(real)


def _show(entry: os.DirEntry[str]) -> None:
    """An entry of the real /run, in ours. Only with all that is mounted below it, for the kernel lets nobody
    uncover what a mount hides (mount_namespaces(7))."""
    target = RUN / entry.name
    if entry.is_symlink():
        target.symlink_to(Path(entry.path).readlink())
        return
    if entry.is_dir():
        target.mkdir()
    else:
        target.touch()
    libc.mount(entry.path, target, libc.MS_BIND | libc.MS_REC)


def _own_network() -> None:
    _unshare("net")
    bring_up_loopback()
