"""Carrying out one readiness check, with a deadline. Blocking: for a prober's thread, never for the loop.

Whatever a container answers is read with a limit in size and in time, for it may be anything. Only the
container's own address is ever asked: a redirect is followed as long as it stays there, as the kubelet does
(pkg/probe/http), and one that leads elsewhere counts as an answer like any other from 200 to 399.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from overlaynet.addr import IPAddress
from overlaynet.model import ExecCheck, HttpCheck, Probe, TcpCheck

MAX_ANSWER_BYTES = 64 * 1024
MAX_REDIRECTS = 10
HELPER_SLACK_S = 0.5
"""Beyond the command's own time: for the helper to say that it is over."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_LOCATION = re.compile(rb"\r\nlocation:[ \t]*([\x21-\x7e]+)[ \t]*\r\n", re.IGNORECASE)


class Result(NamedTuple):
    """Whether the check passed, and why, in a few words for people."""

    passed: bool
    detail: str


class Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        """Raises TimeoutError if nothing is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def carry_out(probe: Probe, ip: IPAddress, helper: Path | None) -> Result:
    """Check once. `helper`: the socket of who runs commands inside the container. Never raises OSError."""
    try:
        match probe.check:
            case TcpCheck(port):
                return _tcp(ip, port, Deadline(probe.timeout_s))
            case HttpCheck():
                return _http(probe.check, ip, Deadline(probe.timeout_s))
            case ExecCheck(command):
                return _exec(command, helper, probe.timeout_s)
    except TimeoutError:
        return Result(False, f"no answer within {probe.timeout_s:g} s")
    except OSError as error:
        return Result(False, error.strerror or str(error))


def _tcp(ip: IPAddress, port: int, deadline: Deadline) -> Result:
    socket.create_connection((str(ip), port), deadline.left_s()).close()
    return Result(True, f"port {port} accepts connections")


# --- HTTP -----------------------------------------------------------------------------------------


def _http(check: HttpCheck, ip: IPAddress, deadline: Deadline) -> Result:
    path = check.path
    for _ in range(MAX_REDIRECTS + 1):
        head = _head(_request(check, ip, path), ip, check.port, deadline)
        found, leads = _STATUS.match(head), _LOCATION.search(head)
        if found is None:
            return Result(False, "the answer is not HTTP")
        status = int(found[1])
        onward = _own_path(ip, check.port, path, leads[1].decode()) if 300 <= status < 400 and leads else None
        if onward is None:
            return Result(200 <= status < 400, _status_text(status))
        path = onward
    return Result(False, f"more than {MAX_REDIRECTS} redirects")


def _request(check: HttpCheck, ip: IPAddress, path: str) -> bytes:
    usual = {"Host": f"{_host(ip)}:{check.port}", "User-Agent": "overlaynet-probe", "Accept": "*/*"}
    given = {name.lower() for name in check.headers}
    headers = {name: text for name, text in usual.items() if name.lower() not in given} | dict(check.headers)
    lines = [f"{name}: {text}" for name, text in headers.items()]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "Connection: close", "", ""]).encode()


def _host(ip: IPAddress) -> str:
    return f"[{ip}]" if ip.version == 6 else str(ip)


def _own_path(ip: IPAddress, port: int, path: str, location: str) -> str | None:
    """Where a redirect leads on the same address and port; None if it leads elsewhere."""
    try:
        target = urlsplit(urljoin(f"http://{_host(ip)}:{port}{path}", location))
        same = target.scheme == "http" and (target.hostname, target.port or 80) == (str(ip), port)
    except ValueError:
        return None
    query = f"?{target.query}" if target.query else ""
    return (target.path or "/") + query if same else None


def _status_text(status: int) -> str:
    try:
        return f"status {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _head(request: bytes, ip: IPAddress, port: int, deadline: Deadline) -> bytes:
    with socket.create_connection((str(ip), port), deadline.left_s()) as connection:
        connection.settimeout(deadline.left_s())
        connection.sendall(request)
        return _read_until(connection, b"\r\n\r\n", deadline)


# --- commands -------------------------------------------------------------------------------------


def _exec(command: tuple[str, ...], helper: Path | None, timeout_s: float) -> Result:
    """Have the helper run it. A unix socket's path has at most 107 bytes, hence the way by a descriptor."""
    if helper is None:
        return Result(False, "nobody is there to run commands in the container")
    deadline = Deadline(timeout_s + HELPER_SLACK_S)
    directory = os.open(helper.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(deadline.left_s())
            connection.connect(f"/proc/self/fd/{directory}/{helper.name}")
            connection.sendall(json.dumps({"command": command, "timeout_s": timeout_s}).encode() + b"\n")
            answer = _read_until(connection, b"\n", deadline)
    finally:
        os.close(directory)
    return _judge(answer, timeout_s)


def _judge(answer: bytes, timeout_s: float) -> Result:
    try:
        said: Mapping[str, Any] = dict(json.loads(answer))
    except (ValueError, TypeError, RecursionError):
        return Result(False, "who runs commands in the container gave no answer")
    output = " ".join(str(said.get("output") or "").split())[:200]
    if said.get("timed_out"):
        return Result(False, f"the command did not end within {timeout_s:g} s")
    code = said.get("code")
    words = "could not be started" if code is None else f"exit {code}"
    return Result(code == 0, f"{words}: {output}" if output else words)


def _read_until(connection: socket.socket, end: bytes, deadline: Deadline) -> bytes:
    """What comes up to `end`, the end of the stream or the limit."""
    found = b""
    while end not in found and len(found) < MAX_ANSWER_BYTES:
        connection.settimeout(deadline.left_s())
        more = connection.recv(MAX_ANSWER_BYTES)
        if not more:
            break
        found += more
    return found
