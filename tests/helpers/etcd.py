"""A real etcd of the tests, one member or three: on loopback and a unix socket, in its own directory."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from helpers.eventually import eventually
from helpers.ports import free_port

from overlaynet.store.etcd import EtcdStore
from overlaynet.store.etcd.rpc import etcdrpc, grpc

requires_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="the etcd program is not installed")


class EtcdServer:
    """One etcd. Its data outlives `kill`, so that `start` brings the same cluster back."""

    def __init__(self, directory: Path, *, scheme: str = "http", extra: Sequence[str] = ()) -> None:
        self.directory = directory
        self.url = f"{scheme}://127.0.0.1:{free_port()}"
        self.socket = directory / "etcd.sock:0"  # etcd insists on a port, even in a socket's name
        self._extra = list(extra)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "etcd.log"
        self._said_before = 0

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "etcd was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns when it listens. A killed etcd leaves its socket behind, on which the next would fail."""
        self.socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(self._arguments(), cwd=self.directory, stdout=log, stderr=log)
        eventually(self._listens, deadline_s=60)

    def _arguments(self) -> list[str]:
        listen = self.url if self.url.startswith("https") else f"{self.url},unix://{self.socket.name}"
        arguments = ["etcd", "--name", "test", "--data-dir", str(self.directory / "data")]
        arguments += ["--listen-client-urls", listen, "--advertise-client-urls", self.url]
        return [*arguments, "--listen-peer-urls", "http://127.0.0.1:0", *self._extra]

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError("etcd ended: " + self._log.read_text()[-2000:])
        port = int(self.url.rpartition(":")[2])
        log = self._log.read_bytes()[self._said_before :]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return b"ready to serve client requests" in log
        return False

    def kill(self) -> None:
        """As a power cut would. Harmless when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def empty(self) -> None:
        """Lose the disk; call it while etcd is not running."""
        shutil.rmtree(self.directory / "data")

    def freeze(self) -> None:
        """Stop answering without closing a connection, as a hung machine does."""
        self._signal(signal.SIGSTOP)
        eventually(lambda: all(state == "T" for state in self._thread_states()))

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _thread_states(self) -> list[str]:
        """The state letter behind the command's name (proc_pid_stat(5)); stopping takes threads a moment."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [(task / "stat").read_text().rpartition(") ")[2][0] for task in tasks]

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


Member = TypeVar("Member", bound=EtcdServer)


@contextlib.contextmanager
def running_etcd(directory: Path, *, scheme: str = "http", extra: Sequence[str] = ()) -> Iterator[EtcdServer]:
    """An etcd that is ended with the block, however the block ends."""
    server = EtcdServer(directory, scheme=scheme, extra=extra)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def three_members(where: Path) -> list[EtcdServer]:
    """One cluster, not started."""
    peers = {f"m{number}": f"http://127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    together = ",".join(f"{name}={url}" for name, url in peers.items())
    made = []
    for name, url in peers.items():
        (where / name).mkdir()
        extra = ["--name", name, "--listen-peer-urls", url, "--initial-advertise-peer-urls", url]
        made.append(EtcdServer(where / name, extra=[*extra, "--initial-cluster", together]))
    return made


def leader_of(members: Sequence[Member], connect: Callable[[Sequence[str]], EtcdStore] = EtcdStore) -> Member:
    """The member that leads now. On a busy machine a leader may be late with its heartbeat, and then they are
    just choosing another."""
    return eventually(lambda: next((m for m in members if _leads(m, connect)), None), deadline_s=30)


def _leads(member: EtcdServer, connect: Callable[[Sequence[str]], EtcdStore]) -> bool:
    """False, for now, of a member that does not say in time how it is: it will be asked again."""
    store = connect([member.url])
    try:
        stub = etcdrpc.MaintenanceStub(store._connection.member.channel)
        status = stub.Status(etcdrpc.StatusRequest(), timeout=5)
    except grpc.RpcError:
        return False
    finally:
        store.close()
    return bool(status.leader == status.header.member_id)
