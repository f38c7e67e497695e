"""healthCheckNodePort: the port by which a load balancer asks whether this host has endpoints of a service.

One HTTP server on the node's addresses for all services that have such a port, with kube-proxy's answer
(pkg/proxy/healthcheck): 200 while at least one ready endpoint is here and the agent is well, else 503, whatever
is asked for. Endpoints that are terminating do not count, although packets still reach them: so a load balancer
turns away in time.

It has a thread of its own, and one selector for all ports and connections. Whoever can reach the port may be
slow or many: a connection has a deadline, and beyond a number of them the oldest one is closed.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.errors import EnvironmentProblem, OverlayError
from overlaynet.state import Policy, ServicePortPolicy

log = logging.getLogger("overlaynet.healthports")

MAX_CONNECTIONS = 128
MAX_REQUEST_BYTES = 8 * 1024
CONNECTION_S = 5.0
BIND_AGAIN_S = 5.0
"""Between attempts to listen at a port that somebody else has."""


class Where(NamedTuple):
    """An address and port to listen at; None: every address of this host."""

    ip: IPAddress | None
    port: int


class Told(NamedTuple):
    """What is said of a service (``namespace/name``) at its port."""

    service: str
    local_ready: int


def wanted(policies: Mapping[str, Policy], ips: Collection[IPAddress] | None) -> dict[Where, Told]:
    """Where to listen, and what to say there. Of two services with one port the first by name has it."""
    found: dict[Where, Told] = {}
    ports = [policy for policy in policies.values() if isinstance(policy, ServicePortPolicy)]
    asked = [policy for policy in ports if policy.health_check_node_port]
    for policy in sorted(asked, key=lambda policy: policy.service):
        for ip in [None] if ips is None else ips:
            where = Where(ip, policy.health_check_node_port)
            found.setdefault(where, Told(policy.service, policy.local_ready))
    return found


@dataclass(slots=True, eq=False)
class Connection:
    """A client at one of our ports, and what it has sent so far."""

    where: Where
    ends: float
    received: bytes = b""


class HealthPorts:
    """The server. `healthy` is called from its thread."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._told: Mapping[Where, Told] = {}
        self._refused: dict[Where, OSError] = {}
        self._listeners: dict[Where, socket.socket] = {}
        self._connections: dict[socket.socket, Connection] = {}
        self._bind_again = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="health-ports", daemon=True)

    def follow(self, told: Mapping[Where, Told]) -> None:
        """Listen there and nowhere else, and say this. For one thread, which never waits."""
        if told != self._told:
            self._told = dict(told)
            self._wake[1].send(b".")

    def problems(self) -> list[OverlayError]:
        """Ports that cannot be had."""
        told, refused = self._told, list(self._refused.items())
        return [_refusal(where, told[where], why) for where, why in refused if where in told]

    def start(self) -> None:
        self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake[0], selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Once is enough, and twice is no mistake."""
        if self._stopped:
            return
        self._stopped = True
        self._wake[1].send(b".")
        self._thread.join(timeout=10)
        for end in self._wake:  # here, for the thread may end before it is woken
            end.close()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._turn()
            except Exception:
                log.exception("health ports failed: this is a bug")
                time.sleep(1.0)
        for each in (*self._connections, *self._listeners.values()):
            each.close()
        self._selector.close()

    def _turn(self) -> None:
        told, now = self._told, time.monotonic()
        self._listen(told, now)
        self._expire(now)
        for key, _ in self._selector.select(self._pause_s(now)):
            found = key.fileobj
            assert isinstance(found, socket.socket)
            if found is self._wake[0]:
                found.recv(4096)
            elif found in self._connections:
                self._hear(found, self._connections[found])
            elif isinstance(key.data, Where):
                self._accept(found, key.data)

    def _pause_s(self, now: float) -> float | None:
        ends = [connection.ends for connection in self._connections.values()]
        due = min([*ends, self._bind_again] if self._refused else ends, default=None)
        return None if due is None else max(0.0, due - now)

    def _listen(self, told: Mapping[Where, Told], now: float) -> None:
        """Level-triggered, like all else: close what is not wanted, open what is."""
        for where in [where for where in self._listeners if where not in told]:
            self._drop(self._listeners.pop(where))
        for where in [where for where in self._refused if where not in told]:
            del self._refused[where]
        missing = [where for where in told if where not in self._listeners]
        if now < self._bind_again:
            missing = [where for where in missing if where not in self._refused]
        for where in missing:
            self._open(where, told[where], now)

    def _open(self, where: Where, told: Told, now: float) -> None:
        family = socket.AF_INET6 if where.ip is not None and where.ip.version == 6 else socket.AF_INET
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("" if where.ip is None else str(where.ip), where.port))
            listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            listener.close()
            if where not in self._refused:
                log.warning("port refused service=%s port=%d error=%s", told.service, where.port, error)
            self._refused[where], self._bind_again = error, now + BIND_AGAIN_S
            return
        self._refused.pop(where, None)
        listener.setblocking(False)
        self._listeners[where] = listener
        self._selector.register(listener, selectors.EVENT_READ, where)

    def _accept(self, listener: socket.socket, where: Where) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._close(next(iter(self._connections)))
        connection.setblocking(False)
        self._connections[connection] = Connection(where, time.monotonic() + CONNECTION_S)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, client: socket.socket, connection: Connection) -> None:
        """Answer as soon as the request's head is there. The answer fits any socket's buffer: no wait."""
        try:
            more = client.recv(MAX_REQUEST_BYTES)
            connection.received += more
            if b"\r\n\r\n" in connection.received or b"\n\n" in connection.received:
                client.send(self._answer(connection))
            elif more and len(connection.received) < MAX_REQUEST_BYTES:
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(client)

    def _answer(self, connection: Connection) -> bytes:
        healthy, told = self._healthy(), self._told.get(connection.where, Told("/", 0))
        namespace, _, name = told.service.partition("/")
        document = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": told.local_ready,
            "serviceProxyHealthy": healthy,
        }
        status = HTTPStatus.OK if healthy and told.local_ready else HTTPStatus.SERVICE_UNAVAILABLE
        body = b"" if connection.received.startswith(b"HEAD ") else json.dumps(document).encode() + b"\n"
        head = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
            f"X-Load-Balancing-Endpoint-Weight: {told.local_ready}",
            *([f"Content-Length: {len(body)}"] if body else []),
            "Connection: close",
        ]
        return "\r\n".join([*head, "", ""]).encode() + body

    def _expire(self, now: float) -> None:
        for client in [client for client, one in self._connections.items() if one.ends <= now]:
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        del self._connections[client]
        self._drop(client)

    def _drop(self, one: socket.socket) -> None:
        self._selector.unregister(one)
        one.close()


def _refusal(where: Where, told: Told, why: OSError) -> EnvironmentProblem:
    ip = "every address" if where.ip is None else str(where.ip)
    return EnvironmentProblem(
        f"the health check port {where.port} of service {told.service} cannot be listened at",
        evidence=f"{ip}: {why}",
        next=[f"ss -ltnp 'sport = :{where.port}'"],
    )
