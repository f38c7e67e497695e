"""Echo requests as bytes, and what comes back for them."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.probe import icmp

pytestmark = pytest.mark.unit

COOKIE = b"cookie!!"


def ip(
    payload: bytes, source: str = "192.0.2.1", protocol: int = 1, fragment: int = 0, options: bytes = b""
) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton("192.0.2.9") + options + payload


def message(kind: int, code: int, first: int, second: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, first, second) + body


@given(st.integers(0, 65_535), st.integers(0, 65_535), st.integers(0, 1_500))
def test_request_has_a_right_checksum_and_the_size_asked_for(ident, seq, size):
    packet = icmp.request(ident, seq, COOKIE, size)
    assert (icmp.checksum(packet), len(packet)) == (0, 8 + size)


@pytest.mark.parametrize(
    ("packet", "seen"),
    [
        (ip(message(0, 0, 7, 3, COOKIE + b"rest")), icmp.Reply(7, 3, COOKIE)),
        (ip(message(0, 0, 7, 3, COOKIE), options=bytes(4)), icmp.Reply(7, 3, COOKIE)),
        (
            ip(message(3, 1, 0, 0, ip(icmp.request(7, 3, COOKIE, 56))), "192.0.2.5"),
            icmp.Refusal(7, 3, COOKIE, "192.0.2.5", "destination host unreachable"),
        ),
        (
            ip(message(3, 4, 0, 1450, ip(icmp.request(7, 3, COOKIE, 56))), "192.0.2.5"),
            icmp.Refusal(7, 3, COOKIE, "192.0.2.5", "fragmentation needed, mtu 1450"),
        ),
        (
            ip(message(11, 0, 0, 0, ip(icmp.request(7, 3, b"", 0))), "192.0.2.5"),
            icmp.Refusal(7, 3, b"", "192.0.2.5", "time to live exceeded in transit"),
        ),
    ],
    ids=["reply", "reply behind options", "host unreachable", "fragmentation needed", "short quote"],
)
def test_answer_is_understood(packet, seen):
    assert icmp.parse(packet) == seen


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        ip(icmp.request(7, 3, COOKIE, 56)),
        ip(message(5, 1, 0, 0, ip(icmp.request(7, 3, COOKIE, 56)))),
        ip(message(3, 1, 0, 0, ip(message(0, 0, 7, 3)))),
        ip(message(3, 1, 0, 0, ip(icmp.request(7, 3, COOKIE, 56), protocol=17))),
        ip(message(0, 0, 7, 3, COOKIE), fragment=100),
    ],
    ids=["nothing", "request", "redirect", "refusal of a reply", "refusal of udp", "later fragment"],
)
def test_what_answers_no_request_is_passed_over(packet):
    assert icmp.parse(packet) is None


@given(st.binary(max_size=120))
def test_no_packet_breaks_the_parser(packet):
    assert icmp.parse(packet) is None or packet[0] >> 4 == 4
