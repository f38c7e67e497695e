"""Single readiness checks, against servers that answer well, badly, slowly or not at all."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from overlaynet.model import Check, HttpCheck, Probe, TcpCheck
from overlaynet_agent.checks import MAX_ANSWER_BYTES, Result, carry_out

pytestmark = pytest.mark.fake

HERE = ip_address("127.0.0.1")
Serve = Callable[[socket.socket, int], None]


@contextmanager
def server(serve: Serve) -> Iterator[tuple[int, list[str]]]:
    """A server on this machine's loopback: its port, and the requests it got."""
    heard: list[str] = []
    with socket.socket() as listener:
        listener.bind((str(HERE), 0))
        listener.listen()

        def run() -> None:
            for number in itertools.count():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        heard.append(connection.recv(10_000).decode())
                        serve(connection, number)
                    except OSError:
                        continue

        threading.Thread(target=run, daemon=True).start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)


def answering(*answers: str) -> Serve:
    """The answers in turn, the last one again and again."""
    return lambda connection, number: connection.sendall(answers[min(number, len(answers) - 1)].encode())


def ask(check: Check, timeout_s: float = 5.0) -> Result:
    return carry_out(Probe(check, timeout_s=timeout_s), HERE, None)


def page(status: str, *headers: str) -> str:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", "body"])


@pytest.mark.parametrize(
    ("status", "passed"),
    [("200 OK", True), ("399 Odd", True), ("400 Bad", False), ("503 Busy", False), ("199 X", False)],
)
def test_http_passes_from_200_to_399(status, passed):
    with server(answering(page(status))) as (port, _):
        result = ask(HttpCheck(port, "/ok"))
    assert result.passed is passed
    assert result.detail.startswith(f"status {status[:3]}")


def test_http_asks_as_it_was_told():
    with server(answering(page("200 OK"))) as (port, heard):
        ask(HttpCheck(port, "/ok?a=b", {"host": "example.net", "X-A": "1"}))
    lines = heard[0].split("\r\n")
    assert lines[0] == "GET /ok?a=b HTTP/1.1"
    assert {"host: example.net", "X-A: 1", "Connection: close"} <= set(lines)
    assert not [line for line in lines if line.startswith("Host:")]


@pytest.mark.parametrize(
    "location", ["/there", "there", "http://127.0.0.1:{port}/there", "HTTP://127.0.0.1:{port}/there"]
)
def test_redirect_to_the_same_place_is_followed(location):
    with server(lambda c, n: turns[n](c)) as (port, heard):
        there = page("302 Found", f"Location: {location.format(port=port)}")
        turns = [lambda c: c.sendall(there.encode()), lambda c: c.sendall(page("503 Busy").encode())]
        result = ask(HttpCheck(port, "/ok"))
    assert result == Result(False, "status 503 Service Unavailable")
    assert heard[1].startswith("GET /there HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2/x", "https://127.0.0.1/x", "http://127.0.0.1:1/x", "//elsewhere/x", "http://[/", "x:y"],
)
def test_redirect_to_elsewhere_is_an_answer_and_not_followed(location):
    with server(answering(page("301 Moved", f"LOCATION: {location}"))) as (port, heard):
        assert ask(HttpCheck(port, "/ok")).passed
    assert len(heard) == 1


def test_redirects_without_end_fail():
    with server(answering(page("302 Found", "Location: /ok"))) as (port, heard):
        assert ask(HttpCheck(port, "/ok")) == Result(False, "more than 10 redirects")
    assert len(heard) == 11


@pytest.mark.parametrize("nonsense", ["", "SSH-2.0\r\n\r\n", "HTTP/1.1 20", "x" * (2 * MAX_ANSWER_BYTES)])
def test_answer_that_is_not_http_fails(nonsense):
    with server(answering(nonsense)) as (port, _):
        assert not ask(HttpCheck(port)).passed


def test_server_that_says_nothing_or_never_ends_is_given_up_at_the_deadline():
    done = threading.Event()

    def drip(connection: socket.socket, number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not done.wait(0.05):
            connection.sendall(b"X: y\r\n")

    for serve in (drip, lambda connection, number: done.wait(30)):
        done.clear()
        with server(serve) as (port, _):
            assert ask(HttpCheck(port), 0.3) == Result(False, "no answer within 0.3 s")
            done.set()


def test_tcp_passes_where_somebody_listens_and_nowhere_else():
    with server(answering("")) as (port, _):
        assert ask(TcpCheck(port)) == Result(True, f"port {port} accepts connections")
    with socket.socket() as taken:
        taken.bind((str(HERE), 0))
        assert ask(TcpCheck(taken.getsockname()[1])) == Result(False, "Connection refused")
