"""The client against a server of a few lines: documents, refusals, descriptors, silence."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlaynet.client import AgentClient, UnixConnection
from overlaynet.errors import AddressTaken, AgentUnreachable, KernelError, NotPermitted, NotReady, OverlayError

pytestmark = pytest.mark.fake


class Server:
    """Answers one request with what it was told, and keeps what it got."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer = b""
        self.request = b""
        self.fds: list[int] = []
        self.reads_body = True
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def replies(self, status: int, document: object) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.answer = b"HTTP/1.1 %d Word\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            self.request, self.fds, _, _ = socket.recv_fds(connection, 1, 4)
            while b"\r\n\r\n" not in self.request:
                self.request += _more(connection)
            head, _, body = self.request.partition(b"\r\n\r\n")
            length = next((int(h.split()[1]) for h in head.splitlines() if h.startswith(b"Content-Length")), 0)
            while self.reads_body and len(body) < length:
                body += _more(connection)
            self.request = head + b"\r\n\r\n" + body
            connection.sendall(self.answer)

    def close(self) -> None:
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self.path))
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                self._thread.join()
        self._thread.join()
        self._socket.close()
        for fd in self.fds:
            os.close(fd)


def _more(connection: socket.socket) -> bytes:
    """A client that has gone in the middle sends nothing for ever."""
    found = connection.recv(65536)
    if not found:
        raise EOFError("the client has gone")
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "agent.sock")
    yield made
    made.close()


@pytest.fixture
def client(tmp_path: Path) -> AgentClient:
    return AgentClient(tmp_path / "agent.sock", timeout_s=5.0)


def test_get_answers_the_document(server: Server, client: AgentClient) -> None:
    server.replies(200, {"status": "ok"})
    assert client.get("/v1/health") == {"status": "ok"}
    assert server.request.startswith(b"GET /v1/health HTTP/1.1\r\n")


def test_descriptors_arrive_with_the_first_byte(server: Server, client: AgentClient, tmp_path: Path) -> None:
    server.replies(201, {"ips": []})
    with (tmp_path / "file").open("wb") as file:
        client.post("/v1/containers", {"name": "web-1", "text": "x" * 300_000}, [file.fileno()])
        assert os.path.samestat(os.fstat(server.fds[0]), os.fstat(file.fileno()))
    assert len(json.loads(server.request.partition(b"\r\n\r\n")[2])["text"]) == 300_000


def refusal(code: str) -> dict[str, object]:
    return {"kind": "Error", "error": {"code": code, "message": "m", "evidence": "e", "next": ["n"]}}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        pytest.param(409, "OVL-702", AddressTaken, id="conflict"),
        pytest.param(503, "OVL-704", NotReady, id="not-now"),
        pytest.param(503, "OVL-500", KernelError, id="one-with-an-errno"),
        pytest.param(400, "OVL-999", OverlayError, id="unknown-code"),
    ],
)
def test_refusal_is_the_agents_own_error(
    server: Server, client: AgentClient, status: int, code: str, kind: type[OverlayError]
) -> None:
    server.replies(status, refusal(code))
    with pytest.raises(OverlayError) as caught:
        client.delete("/v1/containers/default/web-1")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.evidence, caught.value.next) == ("m", "e", ("n",))


def test_not_ready_is_a_document_and_no_error(server: Server, client: AgentClient) -> None:
    server.replies(503, {"ready": False, "state": "starting", "problems": []})
    assert client.readiness()["state"] == "starting"


@pytest.mark.parametrize("answer", [b"nonsense", b"[1]", b""])
def test_answer_that_is_no_document_is_an_unreachable_agent(
    server: Server, client: AgentClient, answer: bytes
) -> None:
    server.replies(200, answer)
    with pytest.raises(AgentUnreachable):
        client.get("/v1/status")


def test_nobody_listening_comes_with_pid_file_and_log(client: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "agent.pid").write_text("4711\n")
    (tmp_path / "agent.log").write_text("first\nthe last word\n")
    with pytest.raises(AgentUnreachable) as caught:
        client.get("/v1/status")
    assert "4711" in caught.value.evidence
    assert "the last word" in caught.value.evidence
    assert caught.value.next


def test_refused_connection_is_an_unreachable_agent(client: AgentClient, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "agent.sock"))
    callers: list[Callable[[], object]] = [
        lambda: client.get("/"),
        lambda: client.post("/", {}),
        client.readiness,
    ]
    for call in callers:
        with pytest.raises(AgentUnreachable):
            call()


def test_answer_of_an_agent_that_does_not_read_the_body_is_heard(server: Server, client: AgentClient) -> None:
    server.replies(403, {"error": {"code": "OVL-201", "message": "only root", "evidence": "uid 7", "next": []}})
    server.reads_body = False
    with pytest.raises(NotPermitted, match="only root"):
        client.post("/v1/containers", {"labels": {"long": "x" * 4_000_000}})


def test_socket_that_we_may_not_open_is_no_dead_agent(
    client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(UnixConnection, "connect", refuse)
    with pytest.raises(NotPermitted, match="you may not ask the agent"):
        client.get("/v1/status")
