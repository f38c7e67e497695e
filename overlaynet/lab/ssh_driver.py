"""The driver whose hosts are machines, reached by ssh(1).

Everything on a machine is a job of its probe. One session for each machine is opened when the machine is first
asked and serves all of a command's jobs; whatever else is needed (a stream, a shell) goes through the same
connection, for ssh shares it (ControlMaster, ssh_config(5)): one exchange of keys for each machine and command.

ssh is told to be quiet, never to ask, and to give a machine up within seconds. It reads the inventory for
everything else. The remote command becomes the probe, by sudo(8) where the user is not root; ssh joins its
words by blanks and a shell on the machine parts them again, so they are quoted for that.

A machine that could not be reached is not tried again by the same driver: others are not kept waiting twice.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from overlaynet import __version__
from overlaynet.client import TIMEOUT_S
from overlaynet.errors import LabFailed, MachineUnreachable, OverlayError, UsageError
from overlaynet.kernel.netns import of_lab
from overlaynet.kernel.process import tool
from overlaynet.lab.driver import Completed
from overlaynet.lab.machine_agent import MachineAgent
from overlaynet.lab.session import ProbeSession, start
from overlaynet.lab.unreachable import INSTALL, PROBE, Reach, unreachable

CONNECT_S = 10
"""For a connection and the first line of the other side's sshd, which a busy machine takes long to say."""
ALIVE_S, ALIVE_TRIES = 2, 5
"""How often a silent machine is asked whether it is there, and how often in vain until it counts as gone: after
four seconds emulated machines were given up that only were busy."""
OPEN_S = 60.0
"""For the first answer of a probe, beyond what ssh itself waits for: an emulated machine starts Python
slowly."""
SPARE_S = 5.0
"""How much longer we wait for an answer than the probe may take for it."""
_AS_ROOT = 'test "$(id -u)" = 0 || exec sudo -n -- "$@"; exec "$@"'
_EVIDENCE_BYTES = 2000


class Ssh:
    """The command lines of one inventory. `control`: a directory that nobody else may enter, for the sockets by
    which connections are shared; short, since a socket's name has at most 107 octets (unix(7))."""

    def __init__(self, inventory: Path, *, vagrant: bool = False) -> None:
        self.inventory = inventory
        self.called = str(inventory)
        """The inventory as commands to type next name it."""
        self._vagrant = vagrant
        self.control = tempfile.mkdtemp(prefix="ovl-", dir="/tmp")

    def reach(self, host: str) -> Reach:
        return Reach(host, self.called, self._vagrant)

    def argv(self, host: str, words: Sequence[str], *, terminal: bool = False) -> list[str]:
        """The command line that runs words there as root. `terminal`: give them one. Raises ToolMissing."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT_S,
            "ServerAliveInterval": ALIVE_S,
            "ServerAliveCountMax": ALIVE_TRIES,
            "ControlMaster": "auto",
            "ControlPath": f"{self.control}/{host}",
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            "LogLevel": "ERROR" if terminal else "INFO",
        }
        told = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        command = shlex.join(["sh", "-c", _AS_ROOT, "sh", *words])
        return [tool("ssh"), "-F", str(self.inventory), *told, "-t" if terminal else "-T", "--", host, command]


class SshSession(ProbeSession):
    """A probe on a machine."""

    def __init__(self, ssh: Ssh, host: str) -> None:
        self._ssh = ssh
        # Others go through its connection: at Ctrl-C it must not end before they have.
        super().__init__(host, ssh.argv(host, [PROBE]), apart=True)

    @property
    def over(self) -> bool:
        return self._said.closed

    def hang_up(self) -> None:
        """End ssh, which takes no time; the probe then ends by itself, as its input does."""
        self._process.terminate()

    def close(self) -> None:
        self.hang_up()
        super().close()

    def _error(self, message: str, reason: str, said: str) -> OverlayError:
        return unreachable(self._ssh.reach(self._host), self._process.returncode, said, reason)


class Desk:
    """Where one machine is asked: its session, opened at the first question and again after one that failed.
    For any thread; one question at a time."""

    def __init__(self, ssh: Ssh, host: str) -> None:
        self._ssh = ssh
        self._host = host
        self._lock = threading.Lock()
        self._session: SshSession | None = None
        self._greeted = False
        self._facts: dict[str, Any] = {}
        self._error: OverlayError | None = None

    def begin(self) -> None:
        """Open the session without waiting for it. What is wrong with it is told when it is asked."""
        with self._lock, suppress(OverlayError):
            self._begun()

    def ask(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer. Raises MachineUnreachable, and the error that the probe tells of."""
        with self._lock:
            session = self._opened()
            try:
                return session.ask(job, timeout_s + SPARE_S)
            except UsageError as error:
                raise self._misunderstood(error) from error

    def facts(self) -> dict[str, Any]:
        """What the machine told of itself when it was first asked. Raises MachineUnreachable."""
        with self._lock:
            self._opened()
            return self._facts

    def drop(self) -> None:
        """End the session: whatever it was at is given up."""
        with self._lock:
            self.close()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def hang_up(self) -> None:
        """Tell the session to end, without waiting for it."""
        if self._session is not None:
            self._session.hang_up()

    def _opened(self) -> SshSession:
        """The session, once the machine has told of itself. Raises what keeps it from that, each time."""
        session = self._begun()
        if not self._greeted:
            try:
                self._facts = session.answer(CONNECT_S + OPEN_S)
            except OverlayError as error:
                self._error = error
                self.close()
                raise
            self._greeted = True
        return session

    def _misunderstood(self, error: UsageError) -> OverlayError:
        """A job that was refused: another version may not know it, and then that is what is wrong."""
        there = self._facts["version"]
        if there == __version__:
            return error
        return MachineUnreachable(
            f"{self._host} does not understand us",
            evidence=f"overlaynet is {there} there and {__version__} here; {error.message}",
            next=[INSTALL.format(host=self._host)],
        )

    def _begun(self) -> SshSession:
        if self._error is not None:
            raise self._error
        if self._session is None or self._session.over:
            session = SshSession(self._ssh, self._host)
            session.post({"op": "host"})
            self._session, self._greeted = session, False
        return self._session


class Borrowed:
    """A driver's session, as `Session` wants one: it stays when it is closed, unless something was left
    open."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._armed = False

    def ask(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one job. Raises as `Desk.ask`."""
        if job.get("op") in ("arm", "collect"):
            self._armed = job["op"] == "arm"
        return self._desk.ask(job, timeout_s)

    def close(self) -> None:
        if self._armed:
            self._desk.drop()
        self._armed = False

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SshDriver:
    """`homes` says on which machine each container is; a place that is not in it is a machine. For any
    thread."""

    def __init__(self, lab: str, inventory: Path, homes: Mapping[str, str], *, name: str = "ssh") -> None:
        self.lab = lab
        self.name = name
        self.ssh = Ssh(inventory, vagrant=name == "vagrant")
        self._homes = homes
        self._lock = threading.Lock()
        self._desks: dict[str, Desk] = {}
        self._close = weakref.finalize(self, _close_all, self._desks, self.ssh.control)

    def close(self) -> None:
        """End every session. Otherwise they end with the driver, at the latest with the program."""
        self._close()

    def netns(self, place: str) -> str | None:
        return of_lab(self.lab, place) if place in self._homes else None

    def desk(self, host: str) -> Desk:
        with self._lock:
            return self._desks.setdefault(host, Desk(self.ssh, host))

    def begin(self, hosts: Iterable[str]) -> None:
        """Open the sessions of these machines, to be asked later."""
        for host in hosts:
            self.desk(host).begin()

    def reach(self, hosts: Iterable[str]) -> dict[str, dict[str, Any] | OverlayError]:
        """What each machine tells of itself, all asked at once; an error of one is its answer."""

        def safely(host: str) -> dict[str, Any] | OverlayError:
            try:
                return self.desk(host).facts()
            except OverlayError as error:
                return error

        names = list(hosts)
        with ThreadPoolExecutor(max(1, min(16, len(names)))) as pool:
            return dict(zip(names, pool.map(safely, names), strict=True))

    def entering(
        self, host: str, netns: str | None, argv: Sequence[str], *, terminal: bool = False
    ) -> list[str]:
        """The command line that runs `argv` in a namespace of a machine, None for the machine's own."""
        return self.ssh.argv(host, [PROBE, "enter", netns or "-", "--", *argv], terminal=terminal)

    def argv_in(self, place: str, argv: Sequence[str]) -> list[str]:
        return self.entering(self._homes.get(place, place), self.netns(place), argv)

    def run(self, place: str, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Completed:
        try:
            done = subprocess.run(
                self.argv_in(place, argv), input=stdin, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LabFailed(f"{argv[0]} in {place} did not end within {timeout_s:g} s") from error
        except OSError as error:
            raise LabFailed("ssh could not be started", evidence=str(error)) from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
        return self.desk(host).ask(job, timeout_s)

    def session(self, host: str) -> Borrowed:
        return Borrowed(self.desk(host))

    def stream(self, host: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        self.desk(host).facts()
        return start(host, self.ssh.argv(host, [PROBE]), job, apart=True)  # it ends with its input

    def popen_in(self, place: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        return self.popen(self._homes.get(place, place), self.netns(place), argv)

    def popen(self, host: str, netns: str | None, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command on the caller's own terminal, if that is one. Raises LabFailed,
        MachineUnreachable."""
        self.desk(host).facts()
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        try:
            return subprocess.Popen(self.entering(host, netns, argv, terminal=terminal))
        except OSError as error:
            raise LabFailed("ssh could not be started", evidence=str(error)) from error

    def agent(self, host: str, timeout_s: float = TIMEOUT_S) -> MachineAgent:
        return MachineAgent(self.ssh.reach(host), self.desk(host).ask, timeout_s)


def _close_all(desks: Mapping[str, Desk], control: str) -> None:
    """All are told before any is waited for. What ssh has left of its sockets goes too."""
    for desk in desks.values():
        desk.hang_up()
    for desk in desks.values():
        desk.close()
    shutil.rmtree(control, ignore_errors=True)
