"""`python -m overlaynet.probe.helper SOCKET (--netns PATH | --pid PID)`: runs commands inside one container.

The agent has no right to enter a container, so whoever wires one with an exec probe starts this beside it. It
listens at SOCKET, goes into the container for good, and then runs what it is asked to run: a line of JSON
``{"command":[],"timeout_s":seconds}`` in, a line ``{"code","timed_out","output"}`` out (`code` null: it could
not be started).

With --pid it takes on the process's namespaces, root directory, user, groups and environment, and never has a
capability that the process could not have; not its cgroup, and no seccomp filter. With --netns it enters that
network namespace and stays who it is.

The socket is made before that, so its directory is the host's and only its owner may connect. Everything needed
is imported by then, too: there may be no Python in the container. The helper ends when its socket is taken
away or replaced, when the process ends, or when the path no longer leads to the namespace: it must not be what
keeps a container alive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overlaynet.errors import NotFound, NotPermitted, OverlayError
from overlaynet.kernel import capability, netns

LOOK_S = 1.0
"""How often it looks whether it is still needed."""
REQUEST_S = 1.0
MAX_REQUEST_BYTES = 64 * 1024
MAX_OUTPUT_BYTES = 1024
NAMESPACES = ("ipc", "uts", "net", "cgroup", "mnt", "pid", "user")
"""In the order of entering: the user namespace last, for it takes away the rights over the others."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is: user, group, groups, and the capabilities that it could ever have, as bits."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    bounds: int
    no_new_privileges: bool


class Container:
    """What is entered. Everything is opened first: once inside, no path leads back."""

    def __init__(self, where: Path, pid: int | None) -> None:
        self.environ: Mapping[str, str] = os.environ
        self._where = where
        self._pid = pid
        self._netns = _identity(where)
        self.pidfd = None if pid is None else os.pidfd_open(pid)

    def enter(self) -> None:
        """Go there, with the calling process and for good."""
        if self._pid is None:
            netns.stay(self._where, "net")
            return
        proc = Path("/proc", str(self._pid))
        who, root = _who(proc), os.open(proc / "root", os.O_PATH | os.O_CLOEXEC)
        self.environ = _environ(proc)
        different = [kind for kind in NAMESPACES if _identity(proc / "ns" / kind) != _own(kind)]
        files = {kind: os.open(proc / "ns" / kind, os.O_RDONLY | os.O_CLOEXEC) for kind in different}
        if "user" in files:
            who = _as_seen_inside(who, proc)
        for kind in different:
            if kind == "user":
                _change_root(root)
            netns.stay(files[kind], kind)
        if "user" not in files:
            _change_root(root)
        _become(who)

    def is_there(self) -> bool:
        return self._pid is not None or (self._netns is not None and _identity(self._where) == self._netns)


class Listener:
    """The socket, renamed into its place so that there is never a moment without one."""

    def __init__(self, path: Path) -> None:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        beside = f".{path.name}.{os.getpid()}"
        before = os.umask(0o177)
        try:
            # A socket's path has at most 107 bytes (unix(7)), hence the way by the descriptor.
            self.socket.bind(f"/proc/self/fd/{directory}/{beside}")
        finally:
            os.umask(before)
        self.socket.listen(8)
        self._file = os.open(beside, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        os.rename(beside, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        os.close(directory)

    def has_a_name(self) -> bool:
        """Whether the socket was neither removed nor replaced. From inside the container no path tells."""
        return os.fstat(self._file).st_nlink > 0


def main(argv: Sequence[str] | None = None) -> int:
    """Listen, enter, serve; exit 0 when no longer needed."""
    options = _parser().parse_args(argv)
    try:
        container = Container(options.netns or Path(f"/proc/{options.pid}/ns/net"), options.pid)
        listener = Listener(options.socket)
        container.enter()
    except (OverlayError, OSError) as error:
        sys.stderr.write(f"overlaynet.probe.helper: {error}\n")
        return error.exit_code if isinstance(error, OverlayError) else 3
    serve(listener, container)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m overlaynet.probe.helper", description=__doc__)
    parser.add_argument("socket", type=Path)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--netns", type=Path)
    where.add_argument("--pid", type=int)
    return parser


def serve(listener: Listener, container: Container) -> None:
    """Answer one request after the other for as long as there is somebody to serve."""
    poll = select.poll()
    poll.register(listener.socket, select.POLLIN)
    if container.pidfd is not None:
        poll.register(container.pidfd, select.POLLIN)
    while listener.has_a_name() and container.is_there():
        ready = [descriptor for descriptor, _ in poll.poll(LOOK_S * 1000)]
        if container.pidfd in ready:
            return
        if ready:
            connection, _ = listener.socket.accept()
            with connection, contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                connection.settimeout(REQUEST_S)
                connection.sendall(json.dumps(_answer(_receive(connection), container)).encode() + b"\n")


def _receive(connection: socket.socket) -> Any:
    request = b""
    while not request.endswith(b"\n") and len(request) < MAX_REQUEST_BYTES:
        more = connection.recv(MAX_REQUEST_BYTES)
        if not more:
            break
        request += more
    return json.loads(request)


def _answer(job: Any, container: Container) -> dict[str, Any]:
    command, timeout_s = job["command"], float(job["timeout_s"])
    return run([str(word) for word in command], timeout_s, container.environ)


def run(command: Sequence[str], timeout_s: float, environ: Mapping[str, str]) -> dict[str, Any]:
    """Run a command; after the deadline it is killed with all that it started in its session."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environ,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return {"code": None, "timed_out": False, "output": f"{command[0]}: {error}"}
    with process:
        output, ended = _watch(process, time.monotonic() + timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return {"code": code, "timed_out": not ended, "output": output.decode(errors="replace")}


def _watch(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """The beginning of what it says, and whether it ended in time. Others may hold its output open."""
    assert process.stdout is not None
    output, said = b"", process.stdout.fileno()
    os.set_blocking(said, False)
    pidfd = os.pidfd_open(process.pid)
    poll = select.poll()
    for descriptor in (said, pidfd):
        poll.register(descriptor, select.POLLIN)
    try:
        while (left := deadline - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poll.poll(left * 1000)]
            if said in ready:
                more = _read(said)
                output = (output + more)[:MAX_OUTPUT_BYTES]
                if not more:
                    poll.unregister(said)
            if pidfd in ready:
                return output, True
    finally:
        os.close(pidfd)
    return output, False


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, MAX_REQUEST_BYTES)
    except BlockingIOError:
        return b" "


# --- a process's ways -----------------------------------------------------------------------------


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _own(kind: str) -> tuple[int, int] | None:
    return _identity(Path("/proc/self/ns", kind))


def _who(proc: Path) -> Identity:
    try:
        text = (proc / "status").read_text()
    except OSError:
        raise NotFound(f"there is no process {proc.name}", evidence=str(proc)) from None
    words = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
    return Identity(
        uid=int(words["Uid"][1]),
        gid=int(words["Gid"][1]),
        groups=tuple(int(group) for group in words["Groups"]),
        bounds=int(words["CapBnd"][0], 16),
        no_new_privileges=words.get("NoNewPrivs") == ["1"],
    )


def _environ(proc: Path) -> dict[str, str]:
    pairs = (proc / "environ").read_bytes().split(b"\0")
    return {os.fsdecode(n): os.fsdecode(v) for n, sign, v in (pair.partition(b"=") for pair in pairs) if sign}


def _as_seen_inside(who: Identity, proc: Path) -> Identity:
    """The same by the numbers of its own user namespace (user_namespaces(7)). Groups that have none there are
    left out; raises NotPermitted for a user that has none, who could only be mistaken for another."""
    users, groups = _map(proc / "uid_map"), _map(proc / "gid_map")
    uid, gid = _seen(who.uid, users), _seen(who.gid, groups)
    if uid is None or gid is None:
        raise NotPermitted(
            f"process {proc.name} has no user in its own user namespace", evidence=f"uid {who.uid}, map {users}"
        )
    inside = tuple(number for group in who.groups if (number := _seen(group, groups)) is not None)
    return replace(who, uid=uid, gid=gid, groups=inside)


def _map(path: Path) -> list[tuple[int, int, int]]:
    rows = (line.split() for line in path.read_text().splitlines())
    return [(int(inside), int(outside), int(count)) for inside, outside, count in rows]


def _seen(number: int, table: Sequence[tuple[int, int, int]]) -> int | None:
    return next((i + number - o for i, o, count in table if o <= number < o + count), None)


def _change_root(descriptor: int) -> None:
    os.fchdir(descriptor)
    os.chroot(".")
    os.chdir("/")


def _become(who: Identity) -> None:
    """The bounds first: they can only be lowered by who still has the right to."""
    capability.limit(who.bounds, no_new_privileges=who.no_new_privileges)
    with contextlib.suppress(PermissionError):  # where a user namespace forbids it (setgroups in /proc/PID)
        os.setgroups(who.groups)
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)


if __name__ == "__main__":
    sys.exit(main())
