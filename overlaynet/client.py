"""Talking to an agent: HTTP and JSON over its unix socket.

The agent's answers are documents; its refusals are documents too, and become the very error that the agent
raised. Descriptors travel with the first byte of a request as SCM_RIGHTS (unix(7)).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from overlaynet.config import PathConfig
from overlaynet.errors import AgentUnreachable, NotPermitted, OverlayError, from_json
from overlaynet.kernel import netns
from overlaynet.kernel.process import last_lines

TIMEOUT_S = 10.0
LOG_FILE = "agent.log"
"""Beside the socket, where no journal takes what an agent says."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a unix socket; `fds` go with the first bytes sent."""

    def __init__(self, path: Path, timeout_s: float, fds: Sequence[int] = ()) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._fds = list(fds)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def send(self, data: Any) -> None:
        if self._fds and isinstance(data, bytes | bytearray):
            if self.sock is None:
                self.connect()
            assert self.sock is not None
            sent = socket.send_fds(self.sock, [data], self._fds)
            self._fds.clear()
            data = data[sent:]
        super().send(data)


class Agent(Protocol):
    """Whoever asks an agent; see `AgentClient`, which is next to it."""

    def get(self, path: str) -> dict[str, Any]: ...

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...

    def delete(self, path: str) -> dict[str, Any]: ...

    def readiness(self) -> dict[str, Any]: ...


class AgentClient:
    """One host's agent. Every method raises AgentUnreachable if nobody answers, NotPermitted if we may not
    ask, else the agent's own error."""

    def __init__(self, socket_path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s

    def get(self, path: str) -> dict[str, Any]:
        """The document at `path`."""
        return self._call("GET", path, None, ())

    def post(self, path: str, body: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Send a document, with descriptors, which stay the caller's to close."""
        return self._call("POST", path, body, fds)

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path, None, ())

    def readiness(self) -> dict[str, Any]:
        """`/v1/ready`, whose document also comes with the status "not now"."""
        status, document = self._exchange("GET", "/v1/ready", None, ())
        if "ready" not in document:
            raise _refusal(status, document)
        return document

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, fds: Sequence[int]
    ) -> dict[str, Any]:
        status, document = self._exchange(method, path, body, fds)
        if status >= 400:
            raise _refusal(status, document)
        return document

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, fds: Sequence[int]
    ) -> tuple[int, dict[str, Any]]:
        connection = UnixConnection(self.socket_path, self.timeout_s, fds)
        text = None if body is None else json.dumps(body).encode()
        try:
            # An agent that need not read the whole request answers at once and closes: the answer counts.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = connection.getresponse()
            document = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if not isinstance(document, dict):
            raise self._unreachable(ValueError(f"an answer that is no document: {document!r:.80}"))
        return answer.status, document

    def _unreachable(self, error: Exception) -> OverlayError:
        if isinstance(error, PermissionError):
            return NotPermitted(
                f"you may not ask the agent at {self.socket_path}",
                evidence=f"{error}; it answers root and its socket's group",
                next=["run it again with sudo"],
            )
        beside = PathConfig(run=self.socket_path.parent)
        log = beside.run / LOG_FILE
        try:
            pid = beside.pid_file.read_text().strip() or "empty"
        except OSError:
            pid = "none"
        return AgentUnreachable(
            f"no agent answers at {self.socket_path}",
            evidence=f"{error}; pid file: {pid}; last log lines:\n{last_lines(log)}",
            next=["overlaynet status", f"tail {log}"],
        )


def _refusal(status: int, document: Mapping[str, Any]) -> OverlayError:
    """The agent's own error: of the same class, as far as a class can be made from its words."""
    said = document.get("error")
    if not isinstance(said, dict):
        return OverlayError(f"the agent answered with status {status}", evidence=f"{document!r:.200}")
    return from_json(said)


def wire(agent: AgentClient, body: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Have the agent wire the namespace `where`, a name or a path, as the container of that document.

    The agent needs no right to enter a namespace: whoever asks opens the namespace's file and a netlink socket
    inside it, and passes both descriptors. Raises the agent's WorkloadErrors, AgentUnreachable, NotFound,
    NotPermitted, KernelError."""
    path = netns.path(where) if isinstance(where, str) else where
    with netns.socket_in(where, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return agent.post("/v1/containers", body, [fd, netlink.fileno()])
        finally:
            os.close(fd)
