"""Many echo requests at once, each from inside its own network namespace.

One raw ICMP socket for each namespace, one selector, one heap of due times. Nothing waits for anything
else, so a job takes as long as its slowest ping. Requests are sent between reads, never in one burst, so
that replies do not pile up in a socket's buffer.

A ping ends in one of five ways, which its result keeps apart because they point at different faults:

* enough replies: `error` is null
* ``no_reply``: the last request's time ran out and nobody said anything
* ``icmp_error``: a router or host refused it and said why
* ``send_error``: this namespace's own kernel refused to send (no route, a rule in OUTPUT)
* ``setup_error``: no socket could be opened there at all; nothing is known about the path
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import time
from collections.abc import Iterable, Mapping
from errno import errorcode
from typing import Any

from overlaynet.errors import OverlayError, UsageError
from overlaynet.probe import icmp
from overlaynet.probe.job import member, netns, objects
from overlaynet.probe.sockets import open_socket

MAX_PINGS = 65_536
"""Pings in one job: each has its own 16-bit identifier."""

_RECEIVE_BUFFER_BYTES = 1 << 20
_NEXT = 0
"""In the heap, in place of a sequence number: time to send the next request. Real ones start at 1."""


class _Ping:
    """One ping: what was asked for, and how far it has come. Times in seconds.

    A plain class: importing `dataclasses` would be much of the time a whole ping job takes to start."""

    def __init__(self, item: Mapping[str, Any], ident: int, cookie: bytes) -> None:
        self.id: Any = item.get("id")
        self.netns = netns(item)
        self.target = _ipv4(member(item, "target", str))
        self.count = member(item, "count", int, 1)
        self.enough = member(item, "enough", int, self.count)
        self.interval_s = member(item, "interval_s", float, 1.0)
        self.timeout_s = member(item, "timeout_s", float, 1.0)
        self.size = member(item, "size", int, 56)
        self.ident, self.cookie = ident, cookie
        self.sent = self.received = 0
        self.best_s: float | None = None
        self.error: str | None = None
        self.evidence: list[str] = []
        self.waiting: dict[int, float] = {}

    @property
    def done(self) -> bool:
        spent = self.sent >= self.count and not self.waiting
        return spent or self.received >= self.enough or self.error == "setup_error"

    def blame(self, error: str, evidence: str = "") -> None:
        """Note why a request failed. The first reason that says more than silence is kept as the error."""
        if self.error in (None, "no_reply"):
            self.error = error
        if evidence and evidence not in self.evidence:
            self.evidence.append(evidence)

    def result(self) -> dict[str, Any]:
        good = self.received >= self.enough
        if self.error == "no_reply":
            self.evidence = [
                f"{self.received} replies to {self.sent} requests within {self.timeout_s:g} s each"
            ]
        return {
            "id": self.id,
            "sent": self.sent,
            "received": self.received,
            "rtt_ms": None if self.best_s is None else round(self.best_s * 1000, 3),
            "error": None if good else self.error,
            "evidence": "" if good else "; ".join(self.evidence),
        }


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"pings": [{id, netns, target, count, enough, interval_s, timeout_s, size}]}``.

    `enough` replies end a ping early (default: `count`); `size` is octets of payload; `rtt_ms` is the best.
    Raises UsageError for a job that makes no sense; everything else is in the results.
    """
    pings = _read(job)
    _Loop(pings).run()
    return {"kind": "Pings", "results": [ping.result() for ping in pings]}


def _read(job: Mapping[str, Any]) -> list[_Ping]:
    items = objects(job, "pings")
    if len(items) > MAX_PINGS:
        raise UsageError(f"a job can hold {MAX_PINGS} pings", evidence=f"this one has {len(items)}")
    base = int.from_bytes(os.urandom(2), "big")
    cookie = os.urandom(icmp.COOKIE_LEN)
    return [_Ping(item, (base + n) & 0xFFFF, cookie) for n, item in enumerate(items)]


def _ipv4(text: str) -> str:
    try:
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text))
    except OSError:
        raise UsageError("only an IPv4 address can be pinged", evidence=f"target is {text!r}") from None


class _Loop:
    """Drives every ping to its end."""

    def __init__(self, pings: Iterable[_Ping]) -> None:
        self._pings = {ping.ident: ping for ping in pings}
        self._running = set(self._pings)
        self._due: list[tuple[float, int, int]] = []
        self._sockets: dict[str | None, socket.socket | OverlayError] = {}

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            try:
                self._open(selector)
                self._turn(selector)
            finally:
                for sock in self._sockets.values():
                    if isinstance(sock, socket.socket):
                        sock.close()

    def _open(self, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for ping in self._pings.values():
            if ping.netns not in self._sockets:
                self._sockets[ping.netns] = sock = _socket(ping.netns)
                if isinstance(sock, socket.socket):
                    selector.register(sock, selectors.EVENT_READ)
            heapq.heappush(self._due, (now, ping.ident, _NEXT))

    def _turn(self, selector: selectors.BaseSelector) -> None:
        while self._running:
            now = time.monotonic()
            if self._due and self._due[0][0] <= now:
                _, ident, seq = heapq.heappop(self._due)
                self._act(self._pings[ident], seq, now)
                if not self._running:
                    return  # what else is due is about pings that have ended
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else 0.0
            for key, _ in selector.select(wait):
                self._receive(key.fileobj)  # type: ignore[arg-type]

    def _act(self, ping: _Ping, seq: int, now: float) -> None:
        """A due time has come: for the next request, or for giving one up."""
        if ping.done:
            pass
        elif seq != _NEXT:
            if ping.waiting.pop(seq, None) is not None:
                ping.blame("no_reply")
        elif ping.sent < ping.count:
            self._send(ping, now)
        self._settle(ping)

    def _send(self, ping: _Ping, now: float) -> None:
        sock = self._sockets[ping.netns]
        if isinstance(sock, OverlayError):
            ping.blame("setup_error", " ".join(filter(None, [sock.message, sock.evidence])))
            return
        ping.sent += 1
        seq = ping.sent
        try:
            ping.waiting[seq] = time.monotonic()
            sock.sendto(icmp.request(ping.ident, seq, ping.cookie, ping.size), (ping.target, 0))
        except OSError as error:
            del ping.waiting[seq]
            ping.blame("send_error", _send_evidence(error))
        else:
            heapq.heappush(self._due, (now + ping.timeout_s, ping.ident, seq))
        if ping.sent < ping.count:
            heapq.heappush(self._due, (now + ping.interval_s, ping.ident, _NEXT))

    def _receive(self, sock: socket.socket) -> None:
        try:
            packet = sock.recv(65_535)
        except OSError:
            return  # an error queued by an earlier send; what it was about runs into its timeout
        seen = icmp.parse(packet)
        ping = self._pings.get(seen.ident) if seen else None
        if seen and ping and seen.seq in ping.waiting and ping.cookie.startswith(seen.cookie):
            self._note(ping, seen)

    def _note(self, ping: _Ping, seen: icmp.Reply | icmp.Refusal) -> None:
        took = time.monotonic() - ping.waiting.pop(seen.seq)
        if isinstance(seen, icmp.Reply):
            ping.received += 1
            ping.best_s = took if ping.best_s is None else min(took, ping.best_s)
        else:
            ping.blame("icmp_error", f"{seen.sender} says: {seen.text}")
        self._settle(ping)

    def _settle(self, ping: _Ping) -> None:
        if ping.done:
            self._running.discard(ping.ident)


def _socket(name: str | None) -> socket.socket | OverlayError:
    try:
        sock = open_socket(name, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except OverlayError as error:
        return error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    return sock


def _send_evidence(error: OSError) -> str:
    name = errorcode.get(error.errno or 0, str(error.errno))
    return f"this namespace's own kernel would not send it: {os.strerror(error.errno or 0)} ({name})"
