"""Processes that outlive the command which started them, and how to stop exactly those.

A process id alone names nobody for long: the kernel gives it out again. With the start time beside it
(field 22 of /proc/PID/stat, proc(5)) it does, until the machine reboots, which the boot id tells. Signals go
through a pidfd, so that even between the look at the start time and the signal nobody else can be hit.

Processes are spawned by posix_spawn: it copies no address space, takes a session of its own, and leaves no
object behind that wants to be waited for. One that ended but was not yet reaped (a zombie) counts as gone; it
is never reaped here, for it may be somebody else's child within this program.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlaynet.errors import LabFailed, ToolMissing

_PARENT_FIELD, _START_TIME_FIELD = 4, 22
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SYSTEM_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_PACKAGES = {
    "etcd": "etcd-server",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "iptables": "iptables",
    "wg": "wireguard-tools",
}


@dataclass(frozen=True, slots=True)
class Process:
    """One process for good. `start` is in clock ticks since boot."""

    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return start_time(self.pid) == self.start


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is none or it has ended."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[_START_TIME_FIELD - 3])


def parent(pid: int) -> int:
    """Who started the process, or looks after it since; 0 if there is nobody, or no such process."""
    fields = _stat(pid)
    return 0 if fields is None else int(fields[_PARENT_FIELD - 3])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on, which is the state (proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat[stat.rindex(")") + 2 :].split()


def boot_id() -> str:
    """A text that is different after each start of the machine (random(4))."""
    return _BOOT_ID.read_text().strip()


def search_path() -> str:
    """PATH, and behind it the places of bridge, iptables and sysctl, which not every ordinary user's has."""
    places = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    return os.pathsep.join(dict.fromkeys([*places, *_SYSTEM_PLACES]))


def tool(name: str) -> str:
    """The path of a program. Raises ToolMissing with the way to install it."""
    search = search_path()
    found = shutil.which(name, path=search)
    if found is None:
        package = _PACKAGES.get(name, name)
        raise ToolMissing(
            f"the program {name!r} is not installed",
            evidence=f"not found on {search}",
            next=[f"apt-get install {package}"],
        )
    return found


def spawn(argv: Sequence[str], log: Path, environ: Mapping[str, str]) -> Process:
    """Start a detached process; both outputs are appended to `log`. Raises LabFailed or ToolMissing."""
    log.parent.mkdir(parents=True, exist_ok=True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return _spawn(argv, (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o640), environ)


def spawn_into(argv: Sequence[str], descriptor: int, environ: Mapping[str, str]) -> Process:
    """The same with both outputs going to an open descriptor."""
    return _spawn(argv, (os.POSIX_SPAWN_DUP2, descriptor, 1), environ)


def _inherited() -> Iterator[int]:
    """What whoever started us left open, as a shell's ``exec 9>LOCK`` does: a process that stays would keep the
    lock taken, and the pipe from ever ending. Ours are closed by themselves (PEP 446)."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # the one by which this directory is read is gone
            if (descriptor := int(entry.name)) > 2 and os.get_inheritable(descriptor):
                yield descriptor


def _spawn(argv: Sequence[str], output: tuple[Any, ...], environ: Mapping[str, str]) -> Process:
    program = tool(argv[0])
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    actions = [nothing, output, (os.POSIX_SPAWN_DUP2, 1, 2)]
    actions += [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()]
    try:
        pid = os.posix_spawn(program, list(argv), environ, file_actions=actions, setsid=True)
    except OSError as error:
        raise LabFailed(f"{argv[0]} could not be started", evidence=str(error)) from error
    return Process(pid, start_time(pid) or 0)


def stop(processes: Iterable[Process], grace_s: float) -> None:
    """End them all: SIGTERM, and after `grace_s` seconds SIGKILL. Returns when all are gone.

    Raises LabFailed if one does not even go then."""
    open_fds = {fd: process for process in processes if (fd := _pidfd(process)) is not None}
    try:
        waiting = _signal_and_wait(open_fds, signal.SIGTERM, grace_s)
        waiting = _signal_and_wait(waiting, signal.SIGKILL, 10.0)
        if waiting:
            raise _undying(waiting.values())
    finally:
        for fd in open_fds:
            os.close(fd)


def kill(processes: Iterable[Process]) -> None:
    """End them as a power cut does: SIGKILL at once, and no chance to tidy up. Raises LabFailed."""
    open_fds = {fd: process for process in processes if (fd := _pidfd(process)) is not None}
    try:
        waiting = _signal_and_wait(open_fds, signal.SIGKILL, 10.0)
        if waiting:
            raise _undying(waiting.values())
    finally:
        for fd in open_fds:
            os.close(fd)


def _undying(processes: Iterable[Process]) -> LabFailed:
    pids = ", ".join(str(process.pid) for process in processes)
    return LabFailed(f"processes do not end: {pids}", next=[f"ps -o pid,stat,wchan,args -p {pids}"])


def _pidfd(process: Process) -> int | None:
    """A descriptor of just this process, or None if it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.alive:
        return fd
    os.close(fd)
    return None


def _signal_and_wait(waiting: Mapping[int, Process], number: int, within_s: float) -> dict[int, Process]:
    """Signal each and wait for the ends of all; answer those that are still there."""
    left = dict(waiting)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            continue  # it ended just now: its descriptor is readable
    deadline = time.monotonic() + within_s
    while left and (rest_s := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(rest_s * 1000):
            poll.unregister(fd)
            del left[fd]
    return left


def inside(namespaces: Iterable[Path]) -> list[Process]:
    """Every process, but ourselves, that lives in one of these network namespaces."""
    wanted = {identity for path in namespaces if (identity := namespace_id(path)) is not None}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            there = namespace_id(own_namespace(int(entry.name)))
            start = start_time(int(entry.name)) if there in wanted else None
            if start is not None:
                found.append(Process(int(entry.name), start))
    return found


def own_namespace(pid: int) -> Path:
    """The file that stands for a process's network namespace."""
    return Path(f"/proc/{pid}/ns/net")


def namespace_id(path: Path) -> tuple[int, int] | None:
    """Device and inode of a namespace file, which name the namespace; None if there is none to see."""
    try:
        stat = path.stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return stat.st_dev, stat.st_ino


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, for an error's evidence."""
    try:
        lines = log.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return f"{log} cannot be read"
    return "\n".join(lines[-count:]) or f"{log} is empty"
