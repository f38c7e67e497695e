"""Frames told in a line."""

from __future__ import annotations

import pytest
from helpers import frames

from overlaynet.trace.decode import decode
from overlaynet.trace.summary import parts, summary

pytestmark = pytest.mark.unit

PING = frames.echo("10.244.1.2", "10.244.2.2", 7, b"x" * 16, ttl=63)
CALL = frames.syn("10.244.1.2", 40_000, "10.112.0.10", 80)


@pytest.mark.parametrize(
    ("packet", "told"),
    [
        (PING, "10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63"),
        (CALL, "10.244.1.2:40000 > 10.112.0.10:80 tcp S ttl 64"),
        (frames.udp("10.244.1.2", 5000, "10.244.1.3", 53, b"?"), "10.244.1.2:5000 > 10.244.1.3:53 udp ttl 64"),
        (
            frames.vxlan("192.168.50.11", "192.168.50.12", PING, vni=5),
            "192.168.50.11 > 192.168.50.12 vxlan 5 [10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63]",
        ),
        (
            frames.error("10.244.1.1", "10.244.1.2", CALL, 3, 4, mtu=1450),
            "10.244.1.1 > 10.244.1.2 icmp fragmentation needed mtu 1450"
            " about (10.244.1.2:40000 > 10.112.0.10:80 tcp) ttl 64",
        ),
        (frames.error("10.244.1.1", "10.244.1.2", CALL, 12, 0), "10.244.1.1 > 10.244.1.2 icmp type 12 code 0"),
    ],
    ids=["ping", "tcp", "udp", "vxlan", "frag-needed", "other-icmp"],
)
def test_packet_is_told(packet, told: str) -> None:
    assert summary(decode(frames.ethernet(packet))).startswith(told)


def test_arp_has_no_ttl() -> None:
    frame = frames.ethernet(frames.arp("10.244.1.2", "10.244.1.1"), 0x0806)
    assert summary(decode(frame)) == "10.244.1.2 > 10.244.1.1 arp"
    assert summary(decode(b"\xff" * 6 + frame[6:])) == "10.244.1.2 > 10.244.1.1 arp broadcast"


def test_later_fragment_says_where_it_belongs() -> None:
    _, second = frames.pieces(frames.udp("10.244.1.2", 5000, "10.244.2.2", 53, b"x" * 2000, df=False))
    assert summary(decode(frames.ethernet(second))) == "10.244.1.2 > 10.244.2.2 udp fragment at 1424 ttl 64"


def test_frame_that_is_no_packet_is_told_by_its_ends() -> None:
    frame = bytes.fromhex("02000000000202000000000188b5") + bytes(50)
    assert summary(decode(frame)) == "02:00:00:00:00:01 > 02:00:00:00:00:02 0x88b5"


def test_what_is_cut_off_in_a_tunnel_is_told() -> None:
    frame = frames.ethernet(frames.vxlan("192.168.50.11", "192.168.50.12", PING))
    assert parts(decode(frame[:60])) == ("192.168.50.11 > 192.168.50.12 vxlan 1", "[cut off]")
