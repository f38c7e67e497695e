"""ICMP echo messages as bytes (RFC 792): build a request, and read what comes back for it. Pure.

A raw ICMP socket is given every ICMP message its namespace receives, IP header included, those for other
programs too. A request therefore carries an identifier and a cookie: a reply counts only if it returns
both. An ICMP error quotes the start of the packet it is about: at least the identifier and sequence number
(8 octets behind the IP header), from Linux hosts the cookie as well (RFC 1812 section 4.3.2.3).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 8, 11, 12
COOKIE_LEN = 8
FRAGMENTATION_NEEDED = (UNREACHABLE, 4)

_HEADER = struct.Struct("!BBHHH")

MEANINGS: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (UNREACHABLE, 0): "destination net unreachable",
        (UNREACHABLE, 1): "destination host unreachable",
        (UNREACHABLE, 2): "destination protocol unreachable",
        (UNREACHABLE, 3): "destination port unreachable",
        FRAGMENTATION_NEEDED: "fragmentation needed",
        (UNREACHABLE, 5): "source route failed",
        (UNREACHABLE, 9): "destination net administratively prohibited",
        (UNREACHABLE, 10): "destination host administratively prohibited",
        (UNREACHABLE, 13): "communication administratively prohibited",
        (TIME_EXCEEDED, 0): "time to live exceeded in transit",
        (TIME_EXCEEDED, 1): "fragment reassembly time exceeded",
        (PARAMETER_PROBLEM, 0): "parameter problem",
    }
)
"""Types and codes that tell a sender its packet got no further."""

NAMES: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (UNREACHABLE, 0): "net-unreachable",
        (UNREACHABLE, 1): "host-unreachable",
        (UNREACHABLE, 2): "proto-unreachable",
        (UNREACHABLE, 3): "port-unreachable",
        FRAGMENTATION_NEEDED: "fragmentation-needed",
        (UNREACHABLE, 5): "source-route-failed",
        (UNREACHABLE, 9): "net-prohibited",
        (UNREACHABLE, 10): "host-prohibited",
        (UNREACHABLE, 13): "admin-prohibited",
        (TIME_EXCEEDED, 0): "ttl-exceeded",
        (TIME_EXCEEDED, 1): "reassembly-timeout",
        (PARAMETER_PROBLEM, 0): "parameter-problem",
    }
)
"""The same in one word, as iptables calls them where it knows them (--reject-with icmp-…)."""


class Reply(NamedTuple):
    """Somebody answered."""

    ident: int
    seq: int
    cookie: bytes


class Refusal(NamedTuple):
    """A router or host says why a request of ours got no further. `cookie` is empty if it quotes too little."""

    ident: int
    seq: int
    cookie: bytes
    sender: str
    text: str


def request(ident: int, seq: int, cookie: bytes, size: int) -> bytes:
    """An echo request with `size` octets behind its header (the cookie first, if there is room)."""
    payload = (cookie + bytes(size))[:size]
    blank = _HEADER.pack(ECHO_REQUEST, 0, 0, ident, seq) + payload
    return _HEADER.pack(ECHO_REQUEST, 0, checksum(blank), ident, seq) + payload


def checksum(octets: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = octets + b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse(packet: bytes) -> Reply | Refusal | None:
    """Read an IPv4 packet from a raw socket; None if it is neither an echo reply nor a refusal of a request."""
    body = _behind_ip(packet)
    if len(body) < _HEADER.size:
        return None
    kind, code, _, ident, seq = _HEADER.unpack_from(body)
    if kind == ECHO_REPLY:
        return Reply(ident, seq, body[8 : 8 + COOKIE_LEN])
    if (kind, code) in MEANINGS:
        return _refusal((kind, code), socket.inet_ntoa(packet[12:16]), mtu=seq, quoted=_behind_ip(body[8:]))
    return None


def _refusal(what: tuple[int, int], sender: str, mtu: int, quoted: bytes) -> Refusal | None:
    if len(quoted) < _HEADER.size:
        return None
    kind, _, _, ident, seq = _HEADER.unpack_from(quoted)
    if kind != ECHO_REQUEST:
        return None
    more = f", mtu {mtu}" if what == FRAGMENTATION_NEEDED else ""
    return Refusal(ident, seq, quoted[8 : 8 + COOKIE_LEN], sender, MEANINGS[what] + more)


def _behind_ip(packet: bytes) -> bytes:
    """What an IPv4 header is followed by; nothing if it is not ICMP or not the first fragment."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != 1:
        return b""
    (fragment,) = struct.unpack_from("!H", packet, 6)
    return b"" if fragment & 0x1FFF else packet[(packet[0] & 0x0F) * 4 :]
