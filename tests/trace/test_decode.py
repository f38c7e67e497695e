"""Decoding of captured frames, on frames put together octet by octet."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from overlaynet.addr import Mac
from overlaynet.trace.decode import Frame, Headers, decode

pytestmark = pytest.mark.unit

MACS = Mac("02:00:00:00:00:02"), Mac("02:00:00:00:00:01")


def ethernet(payload: bytes, kind: int = 0x0800) -> bytes:
    return MACS[0].packed + MACS[1].packed + struct.pack("!H", kind) + payload


def ipv4(src: str, dst: str, protocol: int, payload: bytes, ttl: int = 64) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, ttl, protocol, 0)
    return head + socket.inet_aton(src) + socket.inet_aton(dst) + payload


def udp(sport: int, dport: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


PING = ethernet(ipv4("10.244.1.2", "10.244.2.2", 1, b"\x08\x00" + bytes(6), ttl=63))


def vxlan(vni: int, inner: bytes, port: int = 8472) -> bytes:
    header = b"\x08\x00\x00\x00" + struct.pack("!I", vni << 8)
    return ethernet(ipv4("192.168.50.11", "192.168.50.12", 17, udp(40_000, port, header + inner)))


def test_vxlan_is_opened_on_linux_port() -> None:
    frame = decode(vxlan(1, PING))
    assert frame.vni == 1
    assert (frame.outer.src, frame.outer.dst) == (ip_address("192.168.50.11"), ip_address("192.168.50.12"))
    assert (frame.outer.dst_port, frame.outer.length) == (8472, len(PING) + 50)
    assert frame.inner == Headers(
        src_mac=MACS[1], dst_mac=MACS[0], src=ip_address("10.244.1.2"), dst=ip_address("10.244.2.2"),
        protocol="icmp", ttl=63, ip_id=7, src_port=None, dst_port=None, length=len(PING),
    )  # fmt: skip


def test_vni_has_24_bits() -> None:
    assert decode(vxlan(0xABCDEF, PING)).vni == 0xABCDEF


@pytest.mark.parametrize("port", [4789, 8472, 6081])
def test_port_is_the_callers(port: int) -> None:
    assert decode(vxlan(5, PING, port), vxlan_port=port).vni == 5
    assert decode(vxlan(5, PING, port), vxlan_port=port + 1).inner is None


def test_tunnel_with_a_stump_inside_has_no_inner_headers() -> None:
    frame = decode(vxlan(1, PING[:10]))
    assert (frame.vni, frame.inner) == (1, None)


@pytest.mark.parametrize(
    ("frame", "protocol"),
    [
        pytest.param(PING, "icmp", id="icmp"),
        pytest.param(ethernet(ipv4("10.0.0.1", "10.0.0.2", 17, udp(1, 2, b""))), "udp", id="udp"),
        pytest.param(ethernet(ipv4("10.0.0.1", "10.0.0.2", 132, bytes(12))), "132", id="sctp-by-number"),
        pytest.param(ethernet(b"", 0x88B5), "0x88b5", id="other-ethertype"),
    ],
)
def test_protocol_is_named(frame: bytes, protocol: str) -> None:
    found = decode(frame)
    assert found == Frame(found.outer)
    assert found.outer.protocol == protocol


def test_stump_is_refused() -> None:
    with pytest.raises(ValueError, match="13 bytes"):
        decode(bytes(13))
