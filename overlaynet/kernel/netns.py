"""Network namespaces: making them, naming them, and doing something inside one.

A namespace lives as long as something holds it: a process, an open descriptor, or a bind mount of its
file in /proc. iproute2 names one by such a mount at /run/netns/NAME (ip-netns(8)); the same is done
here, so what this module makes `ip netns` shows, and the other way round. /run/netns is made a shared
mount, so that the name is seen, and can be removed, from other mount namespaces.

Being inside a namespace is a property of a *thread*. `entered` moves the calling thread and brings it
back; a socket keeps the namespace it was opened in, which is why `socket_in` is usually all one needs.

Making one and entering need CAP_SYS_ADMIN over the user namespace that owns it; naming needs it over
the mount namespace. All of that exists inside `unshare -Urnm`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from overlaynet.errors import KernelError, NotFound, NotPermitted, OverlayError
from overlaynet.kernel import libc

RUN = Path("/run/netns")
"""Where iproute2 keeps names (its NETNS_RUN_DIR)."""

LABS = "ovl"
"""What the names of all labs' namespaces begin with."""

Target: TypeAlias = str | os.PathLike[str] | int
"""A namespace: a name, a path (anything with a ``/``), or an open descriptor."""

CLONE_NEWNET = 0x4000_0000
CLONE_FLAGS = {
    "cgroup": 0x0200_0000,
    "ipc": 0x0800_0000,
    "mnt": 0x0002_0000,
    "net": CLONE_NEWNET,
    "pid": 0x2000_0000,
    "user": 0x1000_0000,
    "uts": 0x0400_0000,
}
"""Kinds of namespace, by their names in /proc/PID/ns (sched.h)."""
_OWN = "/proc/thread-self/ns/net"


def new() -> int:
    """A namespace without a name; returns the descriptor that keeps it alive, the caller's to close.

    A thread of its own makes it, so the calling thread never leaves where it is, whatever fails.
    """
    made: list[int | OSError] = []

    def make() -> None:
        try:
            libc.call("unshare", CLONE_NEWNET)
            made.append(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    _in_thread(make)
    (result,) = made
    if isinstance(result, OSError):
        raise _failed("a new network namespace", result) from result
    return result


def create(name: str) -> None:
    """A namespace called `name`. Raises KernelError (EEXIST) if there is one, NotPermitted."""
    try:
        with _run_directory():
            _create(name)
    except OSError as error:
        raise _failed(f"network namespace {name}", error) from error


def delete(name: str) -> None:
    """Take the name away; the namespace itself ends with its last user. No such name is no error."""
    target = path(name)
    try:
        with suppress(FileNotFoundError):
            _unmount(target)
            target.unlink()
    except OSError as error:
        raise _failed(f"removal of network namespace {name}", error) from error


def names() -> list[str]:
    """Every named namespace, sorted."""
    try:
        return sorted(entry.name for entry in RUN.iterdir() if exists(entry.name))
    except FileNotFoundError:
        return []


def of_lab(lab: str, place: str) -> str:
    """``ovl-default-node-1``: what `ip netns list` shows of a place in a lab."""
    return f"{LABS}-{lab}-{place}"


def path(name: str) -> Path:
    """Where a namespace of that name is, whether or not it exists."""
    return RUN / name


def exists(name: str) -> bool:
    """Whether the name leads to a namespace; a plain file left by a crash does not."""
    try:
        return path(name).stat().st_dev != RUN.stat().st_dev
    except OSError:
        return False


@contextmanager
def entered(target: Target) -> Iterator[None]:
    """Inside the block the calling thread, and every child it starts, is in that namespace.

    Other threads stay where they are. Raises NotFound, NotPermitted, KernelError.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(target)
        try:
            yield
        finally:
            _setns(home, "the way back from a network namespace")
    finally:
        os.close(home)


def stay(target: Target, kind: str = "net") -> None:
    """Move the calling thread into a namespace of that kind, and leave it there. Raises as `entered`.

    A user namespace is entered only by a process of one thread; a PID namespace is that of its children."""
    _enter(target, CLONE_FLAGS[kind])


def socket_in(target: Target, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that was opened in that namespace and works there from anywhere."""
    with entered(target):
        return socket.socket(family, kind, protocol)


def can_make_and_enter() -> bool:
    """Whether this process could make a namespace and come back from it, found out by trying."""
    worked: list[bool] = []

    def attempt() -> None:
        with suppress(OSError), open(_OWN, "rb") as home:  # noqa: PTH123 (a descriptor is what is needed)
            libc.call("unshare", CLONE_NEWNET)
            libc.call("setns", home.fileno(), CLONE_NEWNET)
            worked.append(True)

    _in_thread(attempt)
    return bool(worked)


# --- steps ----------------------------------------------------------------------------------------


def _create(name: str) -> None:
    target = path(name)
    if exists(name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    try:
        fd = new()
        try:
            libc.mount(f"/proc/self/fd/{fd}", target, libc.MS_BIND)
        finally:
            os.close(fd)
    except BaseException:
        target.unlink()
        raise


@contextmanager
def _run_directory() -> Iterator[None]:
    """/run/netns, there, shared, and locked against iproute2 and others of us."""
    RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _share()
        yield
    finally:
        os.close(lock)


def _share() -> None:
    """Make /run/netns a shared mount; it has to be a mount first."""
    try:
        libc.mount("", RUN, libc.MS_SHARED | libc.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        libc.mount(str(RUN), RUN, libc.MS_BIND | libc.MS_REC)
        libc.mount("", RUN, libc.MS_SHARED | libc.MS_REC)


def _enter(target: Target, flag: int = CLONE_NEWNET) -> None:
    if isinstance(target, int):
        _setns(target, f"namespace of descriptor {target}", flag)
        return
    where = path(target) if isinstance(target, str) and "/" not in target else Path(target)
    try:
        fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no network namespace {target}",
            evidence=f"{where} does not exist",
            next=["ip netns list"],
        ) from error
    except OSError as error:
        raise _failed(f"network namespace {target}", error) from error
    try:
        _setns(fd, f"network namespace {target}", flag)
    finally:
        os.close(fd)


def _setns(fd: int, what: str, flag: int = CLONE_NEWNET) -> None:
    try:
        libc.call("setns", fd, flag)
    except OSError as error:
        raise _failed(what, error) from error


def _in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, name="netns")
    thread.start()
    thread.join()


def _failed(what: str, error: OSError) -> OverlayError:
    number = error.errno or errno.EIO
    if number not in (errno.EPERM, errno.EACCES):
        return KernelError(what, number)
    return NotPermitted(
        f"no permission for {what}",
        evidence=f"{error.strerror}; it takes CAP_SYS_ADMIN",
        next=["run as root, or inside: unshare -Urnm"],
    )


def _unmount(target: Path) -> None:
    """Nothing mounted there (EINVAL) is what was wanted."""
    try:
        libc.call("umount2", os.fsencode(target), libc.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
