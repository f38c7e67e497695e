"""Small servers that say who they are and whom they see, and clients that say what became of their asking.

A server answers one line: its name, the client's address and port as it sees them, and its own port. So the
answer proves which endpoint a packet was led to, and whether its source was masqueraded. A TCP server goes on
echoing what it is sent. One thread serves them all: a socket works in the network namespace in which it was
opened, wherever its owner is.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import NamedTuple

from helpers.private_netns import PrivateNetns

REFUSED = "refused"
SILENT = "silent"
DENIED = "denied"
"""EPERM, with which the kernel answers a host's own process whose packet a rule rejects."""

PATIENCE_S = 5.0
SILENCE_S = 0.3
"""How long to listen where silence is expected."""

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_WORDS = {errno.ECONNREFUSED: REFUSED, errno.EPERM: DENIED, errno.EHOSTUNREACH: "no route"}


class Answer(NamedTuple):
    """Who answered, whom it saw asking, and on which port of its own it was asked."""

    name: str
    peer: str
    peer_port: int
    port: int


class Servers:
    """Listeners in several namespaces. `listen` may be called before and while the thread runs."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="servers", daemon=True)
        self._bell, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: None)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._closing.set()
        self._bell.send(b"!")
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._bell.close()
        self._selector.close()

    def listen(self, netns: PrivateNetns, name: str, protocol: str, port: int, address: str = "") -> None:
        """Answer as `name` on a port in that namespace, on all its addresses or on one."""
        with netns.entered():
            listener = socket.socket(socket.AF_INET, KINDS[protocol])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        if protocol == "tcp":
            listener.listen(1024)
        listener.setblocking(False)
        serve = self._accept if protocol == "tcp" else self._reply
        self._selector.register(listener, selectors.EVENT_READ, lambda: serve(listener, name, port))

    def _run(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select():
                with suppress(OSError):
                    key.data()

    def _accept(self, listener: socket.socket, name: str, port: int) -> None:
        connection, peer = listener.accept()
        connection.setblocking(False)
        # First, lest a client that has gone leaves a connection that nobody closes.
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._echo(connection))
        connection.sendall(_line(name, peer, port))

    def _reply(self, listener: socket.socket, name: str, port: int) -> None:
        _, peer = listener.recvfrom(2048)
        listener.sendto(_line(name, peer, port), peer)

    def _echo(self, connection: socket.socket) -> None:
        try:
            said = connection.recv(2048)
        except OSError:
            said = b""
        if said:
            connection.sendall(said)
        else:
            self._selector.unregister(connection)
            connection.close()


@contextmanager
def servers() -> Iterator[Servers]:
    made = Servers()
    made.start()
    try:
        yield made
    finally:
        made.stop()


def _line(name: str, peer: tuple[str, int], port: int) -> bytes:
    return f"{name} {peer[0]} {peer[1]} {port}\n".encode()


def answer(line: bytes) -> Answer:
    """What a server said."""
    name, peer, peer_port, port = line.decode().split()
    return Answer(name, peer, int(peer_port), int(port))


def ask(
    protocol: str, address: str, port: int, *, source: str = "", patience_s: float = PATIENCE_S
) -> Answer | str:
    """One question from the namespace that the thread is in: the answer, or in one word why there is none."""
    with closing(socket.socket(socket.AF_INET, KINDS[protocol])) as client:
        client.settimeout(patience_s)
        try:
            if source:
                client.bind((source, 0))
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"who are you?")
            return answer(client.recv(256))
        except TimeoutError:
            return SILENT
        except OSError as error:
            return _WORDS.get(error.errno or 0, str(error))


def ask_often(asking: Iterable[Callable[[], Answer | str]]) -> list[Answer]:
    """All the answers; an AssertionError at the first question that has none."""
    found = []
    for number, question in enumerate(asking):
        said = question()
        assert isinstance(said, Answer), f"question {number}: {said}"
        found.append(said)
    return found


@contextmanager
def connected(address: str, port: int, protocol: str = "tcp") -> Iterator[socket.socket]:
    """A connected socket of the namespace that the thread is in."""
    with ExitStack() as stack:
        client = stack.enter_context(closing(socket.socket(socket.AF_INET, KINDS[protocol])))
        client.settimeout(PATIENCE_S)
        client.connect((address, port))
        yield client
