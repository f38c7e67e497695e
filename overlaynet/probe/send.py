"""One packet from inside a namespace, and what comes back for it.

The sender is a real socket, so the packet is what an application's would be: a TCP connect, a UDP datagram, an
ICMP echo request. Every answer is told apart, as they point at different faults: somebody spoke ("syn-ack",
"udp", "echo-reply"), somebody refused ("rst", "icmp port-unreachable"), nobody said anything (no answer), or
the sender's own kernel would not send (`error`).

ICMP errors are read from the socket's error queue (ip(7), IP_RECVERR): the kernel puts one there only if it
quotes a packet of this socket. For TCP that is so since Linux 5.10; older ones tell a rejected connect from a
refused one by the error number alone, or not at all.

Each try has its own socket and, unless one is asked for, its own port, and each datagram and echo is filled
with a cookie of the try: eight bytes again and again, so that every fragment begins with it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from overlaynet.errors import UsageError
from overlaynet.probe import icmp
from overlaynet.probe.job import member, netns
from overlaynet.probe.sockets import open_socket

COOKIE_BYTES = 8
"""By which a datagram is known wherever it is seen, so none is sent with less."""
CATCH_UP_S = 0.5
"""For reading what has come in time, behind whatever else has come."""
BURST_INTERVAL_S = 0.002
NO_VXLAN = bytes(8)
"""A VXLAN header without the flag that says there is a VNI: whoever receives it drops it (RFC 7348, 5)."""

_IP_MTU_DISCOVER, _IP_RECVERR, _IP_MTU = 10, 11, 14
_PMTUDISC = {True: 2, False: 0}  # IP_PMTUDISC_DO, IP_PMTUDISC_DONT
_TCP_SYNCNT = 7
_EXTENDED_ERROR = struct.Struct("=IBBBxII")
"""struct sock_extended_err: errno, origin, type, code, info, data."""
_ORIGIN_ICMP = 2
_ANCILLARY_BYTES = 512
_MOST_BYTES = 65_535
_SILENCE = frozenset({errno.ETIMEDOUT, errno.EINPROGRESS, errno.EAGAIN})


class Packet(NamedTuple):
    """What is sent. `src_port`: of ICMP the identifier; `size`: bytes of payload; `df` None: as Linux does."""

    netns: str | None
    protocol: str
    src: str
    dst: str
    src_port: int | None
    dst_port: int
    size: int
    df: bool | None


class Answer(NamedTuple):
    """What came of a try: in words, or why it could not be sent."""

    answer: str = ""
    error: str = ""

    def __bool__(self) -> bool:
        return bool(self.answer or self.error)


class Try(NamedTuple):
    """One packet. `said` is given what is waiting at the socket, until that is an answer."""

    sock: socket.socket
    send: Callable[[], None]
    said: Callable[[], Answer]
    wait_for: int
    src_port: int


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "protocol", "src", "dst", "src_port", "dst_port", "size", "df", "tries",
    "interval_s", "wait_s", "cookie"}``: try after try, until one is answered or refused.

    Raises UsageError, NotFound, NotPermitted or KernelError; after those nothing was sent."""
    packet, cookie = _packet(job), _cookie(job)
    wait_s, interval_s = member(job, "wait_s", float, 1.0), member(job, "interval_s", float, 0.0)
    tries: list[dict[str, Any]] = []
    for number in range(1, member(job, "tries", int, 1) + 1):
        due = time.monotonic() + interval_s
        tries.append(_try(packet, number, _cookie_of(cookie, number), wait_s))
        if tries[-1]["answer"] or tries[-1]["error"]:
            break
        time.sleep(max(0.0, due - time.monotonic()))
    return {"kind": "Sent", "tries": tries}


def burst(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "dst", "port", "count", "cookie"}``: so many UDP datagrams to that port, which hold
    `NO_VXLAN` and the cookie, and as many echo requests with the cookie. Nothing is waited for.

    Answers how many of each this kernel sent, and why not all. Raises as `run`."""
    name, dst, cookie = netns(job), _ipv4(job, "dst"), _cookie(job)
    port, ident = member(job, "port", int), _random_ident()
    sent, trouble = [0, 0], ""
    with (
        open_socket(name, socket.AF_INET, socket.SOCK_DGRAM, 0) as udp,
        open_socket(name, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw,
    ):
        for number in range(1, member(job, "count", int) + 1):
            echo = icmp.request(ident, number, cookie, COOKIE_BYTES)
            for which, (sock, data) in enumerate(((udp, NO_VXLAN + cookie), (raw, echo))):
                try:
                    sock.sendto(data, (dst, port if sock is udp else 0))
                    sent[which] += 1
                except OSError as error:
                    trouble = trouble or _words(error, dst)
            time.sleep(BURST_INTERVAL_S)
    return {"kind": "Burst", "udp": sent[0], "icmp": sent[1], "error": trouble}


# --- the job --------------------------------------------------------------------------------------


def _packet(job: Mapping[str, Any]) -> Packet:
    protocol = member(job, "protocol", str)
    if protocol not in _OPEN:
        raise UsageError(f"no packet of {protocol!r} can be sent", evidence=", ".join(_OPEN))
    return Packet(
        netns=netns(job),
        protocol=protocol,
        src=_ipv4(job, "src"),
        dst=_ipv4(job, "dst"),
        src_port=None if job.get("src_port") is None else member(job, "src_port", int),
        dst_port=member(job, "dst_port", int, 0),
        size=max(COOKIE_BYTES, member(job, "size", int, 0)),
        df=None if job.get("df") is None else member(job, "df", bool),
    )


def _ipv4(job: Mapping[str, Any], name: str) -> str:
    text = member(job, name, str)
    try:
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text))
    except OSError:
        raise UsageError(f"the job's {name!r} must be an IPv4 address", evidence=f"it is {text!r}") from None


def _cookie(job: Mapping[str, Any]) -> bytes:
    text = member(job, "cookie", str)
    try:
        cookie = bytes.fromhex(text)
    except ValueError:
        cookie = b""
    if len(cookie) != COOKIE_BYTES:
        raise UsageError("the job's 'cookie' must be 16 hexadecimal digits", evidence=f"it is {text!r}")
    return cookie


def _cookie_of(cookie: bytes, number: int) -> bytes:
    """The cookie of one try: different for each, and the first is the job's own."""
    return ((int.from_bytes(cookie, "big") + number - 1) % (1 << 64)).to_bytes(COOKIE_BYTES, "big")


def _filled(cookie: bytes, size: int) -> bytes:
    return (cookie * (size // COOKIE_BYTES + 1))[:size]


def _random_ident() -> int:
    return int.from_bytes(os.urandom(2), "big")


# --- one try --------------------------------------------------------------------------------------


def _try(packet: Packet, number: int, cookie: bytes, wait_s: float) -> dict[str, Any]:
    kind, protocol, begin = _OPEN[packet.protocol]
    with open_socket(packet.netns, socket.AF_INET, kind, protocol) as sock:
        found = {"number": number, "cookie": cookie.hex(), "src_port": packet.src_port, "t_ns": None}
        took_s: float | None = None
        try:
            _prepare(sock, packet)
            attempt = begin(sock, packet, number, cookie)
            found |= {"src_port": attempt.src_port, "t_ns": time.time_ns()}
            start = time.monotonic()
            attempt.send()
            answer = _await(attempt, packet, start + wait_s)
            took_s = time.monotonic() - start
        except OSError as error:
            answer = _refused_locally(sock, error, packet)
    rtt_us = round(took_s * 1e6, 1) if answer.answer and took_s is not None else None
    return {**found, "answer": answer.answer, "error": answer.error, "rtt_us": rtt_us}


def _prepare(sock: socket.socket, packet: Packet) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    if packet.df is not None:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC[packet.df])
    port = 0 if packet.protocol == "icmp" else packet.src_port or 0
    sock.bind((packet.src, port))


def _tcp(sock: socket.socket, packet: Packet, number: int, cookie: bytes) -> Try:
    """A connect. It is closed in order, with nothing sent, as by whoever looks whether a port is open."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, 1)

    def send() -> None:
        with_error = sock.connect_ex((packet.dst, packet.dst_port))
        if with_error not in (0, errno.EINPROGRESS):
            raise OSError(with_error, os.strerror(with_error))

    def said() -> Answer:
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number == 0:
            return Answer("syn-ack")
        if number == errno.ECONNREFUSED:
            return Answer("rst")
        raise OSError(number, os.strerror(number))

    return Try(sock, send, said, select.POLLOUT, sock.getsockname()[1])


def _udp(sock: socket.socket, packet: Packet, number: int, cookie: bytes) -> Try:
    sock.connect((packet.dst, packet.dst_port))

    def said() -> Answer:
        sock.recv(_MOST_BYTES)
        return Answer("udp")

    data = _filled(cookie, packet.size)
    return Try(sock, lambda: _send(sock, data), said, select.POLLIN, sock.getsockname()[1])


def _icmp(sock: socket.socket, packet: Packet, number: int, cookie: bytes) -> Try:
    """The socket is given every ICMP message from that address; one counts that returns all we sent."""
    ident = _random_ident() if packet.src_port is None else packet.src_port
    sock.connect((packet.dst, 0))

    def said() -> Answer:
        reply = icmp.parse(sock.recv(_MOST_BYTES))
        return Answer("echo-reply") if reply == icmp.Reply(ident, number, cookie) else Answer()

    data = icmp.request(ident, number, _filled(cookie, packet.size), packet.size)
    return Try(sock, lambda: _send(sock, data), said, select.POLLIN, ident)


_OPEN: Mapping[str, tuple[int, int, Callable[[socket.socket, Packet, int, bytes], Try]]] = {
    "tcp": (socket.SOCK_STREAM, 0, _tcp),
    "udp": (socket.SOCK_DGRAM, 0, _udp),
    "icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP, _icmp),
}


def _send(sock: socket.socket, data: bytes) -> None:
    sock.send(data)


def _await(attempt: Try, packet: Packet, deadline: float) -> Answer:
    """The first answer until then. Where the machine was busy, it may have come in time and be read late.

    Raises OSError for what the own kernel says."""
    poll = select.poll()
    poll.register(attempt.sock, attempt.wait_for)
    while True:
        left_s = deadline - time.monotonic()
        ready = poll.poll(max(left_s, 0) * 1000)
        for _ in ready:
            found = _from_error_queue(attempt, packet) or _said(attempt, packet)
            if found:
                return found
        if left_s <= (-CATCH_UP_S if ready else 0):
            return Answer()


def _said(attempt: Try, packet: Packet) -> Answer:
    """An error that came just now is in the queue as well, but for TCP's own."""
    try:
        return attempt.said()
    except OSError as error:
        found = _from_error_queue(attempt, packet)
        if found or packet.protocol != "tcp" or error.errno in _SILENCE:
            return found
        raise


def _from_error_queue(attempt: Try, packet: Packet) -> Answer:
    """The first ICMP error that is about this packet."""
    while True:
        try:
            quoted, ancillary, _, _ = attempt.sock.recvmsg(_MOST_BYTES, _ANCILLARY_BYTES, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return Answer()
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR) and _is_ours(attempt, packet, quoted):
                return _icmp_error(data)


def _is_ours(attempt: Try, packet: Packet, quoted: bytes) -> bool:
    """A raw socket is told of every echo request to that address, by whomever."""
    return packet.protocol != "icmp" or quoted[4:6] == attempt.src_port.to_bytes(2, "big")


def _icmp_error(data: bytes) -> Answer:
    number, origin, kind, code, _, _ = _EXTENDED_ERROR.unpack_from(data)
    if origin != _ORIGIN_ICMP:
        raise OSError(number, os.strerror(number))
    return Answer("icmp " + icmp.NAMES.get((kind, code), f"type {kind} code {code}"))


# --- refusals of the own kernel -------------------------------------------------------------------


def _refused_locally(sock: socket.socket, error: OSError, packet: Packet) -> Answer:
    if error.errno in _SILENCE:
        return Answer()
    if error.errno == errno.EMSGSIZE:
        mtu = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return Answer(error=f"larger than the MTU of {mtu} bytes, and not to be fragmented (EMSGSIZE)")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        where = f"{packet.src}:{packet.src_port}" if packet.src_port else packet.src
        return Answer(error=f"it cannot be sent from {where}: {_words(error, packet.dst)}")
    return Answer(error=_words(error, packet.dst))


def _words(error: OSError, dst: str) -> str:
    known = {
        errno.ENETUNREACH: f"its own kernel has no route to {dst}",
        errno.EHOSTUNREACH: f"its own kernel cannot reach {dst}",
        errno.EPERM: "a rule of its own kernel, for what it sends itself, drops it",
        errno.EACCES: f"a route of its own kernel prohibits packets to {dst}",
    }
    text = known.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"{text} ({errno.errorcode.get(error.errno or 0, error.errno)})"
