"""A whole agent on fakes: real threads, loop, files and socket; kernel, packet filter and etcd in memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.cluster import put_network
from helpers.eventually import eventually
from helpers.model import kernel, network

from overlaynet.config import AgentConfig, parse
from overlaynet.reconcile import ServiceDoors
from overlaynet.store.memory import MemoryStore
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_kernel import FakeKernel
from overlaynet_agent import metrics, wire
from overlaynet_agent.api import Server
from overlaynet_agent.loop import Loop, Stop


def configured(where: Path, number: int = 1, **sections: Any) -> AgentConfig:
    """Settings of host `number` that keep all files below `where`."""
    paths = {"run": f"{where}/run", "state": f"{where}/state", "subnet_file": f"{where}/flannel/subnet.env"}
    document = {"node": {"name": f"node-{number}", "interface": "eth0"}, "paths": paths}
    return parse({**document, **sections}, "test")


@dataclass
class Agent:
    """One agent; `start` and `stop` as the service would."""

    config: AgentConfig
    store: MemoryStore
    kernel: FakeKernel
    rules: FakeFirewall
    doors: ServiceDoors = field(default_factory=ServiceDoors)
    loop: Loop = field(init=False)
    server: Server = field(init=False)
    thread: threading.Thread = field(init=False)

    def start(self) -> Agent:
        self.loop = wire.loop(
            self.config,
            self.kernel,  # type: ignore[arg-type]
            self.store,  # type: ignore[arg-type]
            self.rules,  # type: ignore[arg-type]
            doors=self.doors,
        )
        self.server = Server(
            self.config.paths.socket, self.loop, self.rules, lambda: metrics.exposition(self.loop, self.rules)
        )
        for one in (*self.loop.threads, self.server):
            one.start()
        self.thread = threading.Thread(target=self.loop.run, name="loop", daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        """Every thread must end."""
        self.loop.inbox.put(Stop())
        self.thread.join(10)
        for one in (self.server, *reversed(self.loop.threads)):
            one.stop()
        assert not self.thread.is_alive()

    def restart(self) -> Agent:
        self.stop()
        return Agent(self.config, self.store, self.kernel, self.rules, self.doors).start()

    def get(self, path: str) -> dict[str, Any]:
        return self.ask("GET", path)[1]

    def status(self) -> dict[str, Any]:
        return self.get("/v1/status")

    def until_ready(self) -> Agent:
        eventually(lambda: self.ask("GET", "/v1/ready")[0] == 200)
        return self

    def until_state(self, word: str) -> Agent:
        eventually(lambda: self.get("/v1/ready")["state"] == word)
        return self

    def ask(
        self, method: str, path: str, body: object = None, fds: Sequence[int] = ()
    ) -> tuple[int, dict[str, Any]]:
        """One request on a connection of its own; status and document."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        return self.send(head.encode() + content, fds)

    def send(self, request: bytes, fds: Sequence[int] = ()) -> tuple[int, dict[str, Any]]:
        with self.connect() as connection:
            connection.settimeout(20)
            sent = socket.send_fds(connection, [request], list(fds)) if fds else 0
            if request[sent:]:
                connection.sendall(request[sent:])
            return read_answer(connection)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.config.paths.socket))
        return connection

    def attach(self, name: str, **more: Any) -> tuple[int, dict[str, Any]]:
        with descriptors() as pair:
            return self.ask("POST", "/v1/containers", {"name": name, **more}, pair)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def descriptors() -> Iterator[tuple[int, int]]:
    """Two descriptors to pass; the kernel in memory does not look at them."""
    a, b = socket.socketpair()
    with a, b:
        yield a.fileno(), b.fileno()


@contextlib.contextmanager
def hanging(loop: Loop) -> Iterator[None]:
    """For the length of the block the loop is at one request, and does nothing else."""
    begun, over = threading.Event(), threading.Event()

    def hang(_: Loop) -> None:
        begun.set()
        over.wait(60)

    asking = threading.Thread(target=loop.call, args=(hang,))
    asking.start()
    try:
        assert begun.wait(20)
        yield
    finally:
        over.set()
        asking.join(20)


def agent(where: Path, number: int = 1, store: MemoryStore | None = None, **sections: Any) -> Agent:
    """An agent, not started, over a store that has a network config."""
    if store is None:
        store = MemoryStore()
        put_network(store, network(count=199))
    return Agent(configured(where, number, **sections), store, kernel(number), FakeFirewall())
