"""Decoding of captured frames, whole, cut off and damaged."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.frames import MACS, arp, echo, error, ethernet, ip, pieces, syn, syn_ack, udp, vxlan
from hypothesis import given
from hypothesis import strategies as st
from scapy.packet import Raw

from overlaynet.addr import Mac
from overlaynet.trace.decode import decode
from overlaynet.trace.model import Frame, Headers, Icmp, Quoted, Tcp

pytestmark = pytest.mark.unit

A, B = "10.244.1.2", "10.244.2.2"
HOSTS = "192.168.50.11", "192.168.50.12"
COOKIE = bytes.fromhex("00112233445566ff")
PING = echo(A, B, 77, COOKIE, ttl=63)
SYN = syn(A, 40_000, B, 80, isn=5)


def test_tcp_with_its_numbers() -> None:
    octets = ethernet(SYN)
    assert decode(octets) == Frame(
        Headers(
            src_mac=Mac(MACS[0]), dst_mac=Mac(MACS[1]), src=ip_address(A), dst=ip_address(B), protocol="tcp",
            src_port=40_000, dst_port=80, ttl=64, ip_id=7, length=60, df=True, tcp=Tcp(5, 0, "S"),
        ),
        length=74,
    )  # fmt: skip
    assert len(octets) == 74


@pytest.mark.parametrize("flags", ["S", "SA", "RA", "PA", "SEC"])
def test_flags_are_scapys_letters(flags: str) -> None:
    packet = decode(ethernet(syn_ack(B, 80, A, 40_000, isn=2**32 - 1, flags=flags))).packet
    assert packet.tcp == Tcp(99, 0, flags)


def test_echo_has_identifier_sequence_and_payload() -> None:
    frame = decode(ethernet(PING))
    assert frame.outer.icmp == Icmp(8, 0, id=77, seq=1)
    assert frame.payload == COOKIE


@pytest.mark.parametrize(
    ("about", "quoted"),
    [
        (SYN, Quoted(ip_address(A), ip_address(B), "tcp", 40_000, 80, 7, 5)),
        (udp(A, 1, B, 2, COOKIE), Quoted(ip_address(A), ip_address(B), "udp", 1, 2, 7, None)),
        (PING, Quoted(ip_address(A), ip_address(B), "icmp", 77, None, 7, None)),
        (ip(A, B) / Raw(b"\0" * 8), Quoted(ip_address(A), ip_address(B), "0", None, None, 7, None)),
    ],
    ids=["tcp", "udp", "echo", "other"],
)
@pytest.mark.parametrize("quote", [28, 548])
def test_error_quotes_a_packet_of_which_eight_bytes_suffice(about, quoted, quote) -> None:
    frame = decode(ethernet(error("10.244.1.1", A, about, 3, 4, quote=quote, mtu=1450)))
    assert frame.outer.icmp == Icmp(3, 4, mtu=1450, quoted=quoted)
    assert frame.payload == bytes(about)[:quote]


@pytest.mark.parametrize(("kind", "code"), [(3, 1), (3, 3), (3, 13), (11, 0), (12, 0), (5, 1)])
def test_only_fragmentation_needed_has_an_mtu(kind, code) -> None:
    icmp = decode(ethernet(error("10.244.1.1", A, SYN, kind, code))).outer.icmp
    assert icmp is not None
    assert (icmp.type, icmp.code, icmp.mtu) == (kind, code, None)
    assert icmp.quoted is not None


@pytest.mark.parametrize("cut", [0, 19])
def test_stump_of_a_quote_is_none(cut) -> None:
    assert decode(ethernet(error("10.244.1.1", A, SYN, quote=cut))).outer.icmp == Icmp(3, 3)


# --- tunnels --------------------------------------------------------------------------------------


def test_vxlan_is_opened_on_linux_port() -> None:
    octets = ethernet(vxlan(*HOSTS, PING))
    frame = decode(octets)
    assert (frame.vni, frame.length, frame.payload) == (1, len(octets), COOKIE)
    assert (frame.outer.src, frame.outer.dst) == tuple(map(ip_address, HOSTS))
    assert (frame.outer.protocol, frame.outer.dst_port, frame.outer.df) == ("udp", 8472, False)
    assert frame.packet == frame.inner
    assert frame.inner == Headers(
        src_mac=Mac(MACS[1]), dst_mac=Mac(MACS[0]), src=ip_address(A), dst=ip_address(B), protocol="icmp",
        ttl=63, ip_id=7, length=36, df=True, icmp=Icmp(8, 0, 77, 1),
    )  # fmt: skip
    assert frame.outer.length == frame.inner.length + 50


def test_vni_has_24_bits() -> None:
    assert decode(ethernet(vxlan(*HOSTS, PING, vni=0xABCDEF))).vni == 0xABCDEF


@pytest.mark.parametrize("port", [4789, 8472, 6081])
def test_port_is_the_callers(port: int) -> None:
    octets = ethernet(vxlan(*HOSTS, PING, vni=5, port=port))
    assert decode(octets, vxlan_port=port).vni == 5
    assert decode(octets, vxlan_port=port + 1).inner is None


def test_what_says_that_it_has_no_vni_is_no_vxlan() -> None:
    frame = decode(ethernet(udp(*sum(zip(HOSTS, (1, 8472), strict=True), ()), bytes(60))))
    assert (frame.vni, frame.inner, frame.payload) == (None, None, bytes(60))


def test_tunnel_with_a_stump_inside_has_no_inner_headers() -> None:
    frame = decode(ethernet(vxlan(*HOSTS, PING))[: 14 + 20 + 8 + 8 + 10])
    assert (frame.vni, frame.inner) == (1, None)


def test_tunnel_in_a_tunnel_is_opened_once() -> None:
    frame = decode(ethernet(vxlan(*HOSTS, vxlan(A, B, PING, vni=9))))
    assert frame.vni == 1
    assert frame.inner is not None
    assert (frame.inner.protocol, frame.inner.dst_port) == ("udp", 8472)


def test_first_fragment_of_a_tunnels_packet_shows_what_is_inside() -> None:
    first, second = (decode(ethernet(p)) for p in pieces(vxlan(*HOSTS, udp(A, 1, B, 2, COOKIE * 180)), 1400))
    assert first.inner is not None
    assert (first.inner.dst_port, first.outer.more_fragments) == (2, True)
    assert (second.inner, second.outer.dst_port, second.outer.offset > 0) == (None, None, True)


# --- fragments ------------------------------------------------------------------------------------


def test_fragments_have_offsets_and_only_the_first_has_ports() -> None:
    frames = [decode(ethernet(p)) for p in pieces(udp(A, 1, B, 2, COOKIE * 500, df=False))]
    assert [(f.outer.offset, f.outer.more_fragments, f.outer.src_port) for f in frames] == [
        (0, True, 1),
        (1424, True, None),
        (2848, False, None),
    ]
    assert all(f.outer.is_fragment for f in frames)
    assert b"".join(f.payload for f in frames) == COOKIE * 500


# --- cut off, odd, damaged ------------------------------------------------------------------------


def test_length_is_that_of_the_wire() -> None:
    octets = ethernet(udp(A, 1, B, 2, bytes(1400)))
    frame = decode(octets[:256], length=len(octets))
    assert (frame.length, frame.outer.length) == (len(octets), len(octets) - 14)
    assert len(frame.payload) == 256 - 14 - 20 - 8


def test_padding_of_a_short_frame_is_no_payload() -> None:
    assert decode(ethernet(PING) + bytes(10)).payload == COOKIE


def test_options_are_passed_over() -> None:
    packet = ip(A, B)
    packet.options = b"\x01\x01\x01\x01"
    assert decode(ethernet(packet / SYN["TCP"])).outer.tcp == Tcp(5, 0, "S")


@pytest.mark.parametrize(
    ("cut", "protocol", "port", "tcp"),
    [
        (14, "0x0800", None, None),
        (14 + 19, "0x0800", None, None),
        (14 + 20, "tcp", None, None),
        (14 + 20 + 8, "tcp", 80, None),
        (14 + 20 + 20, "tcp", 80, Tcp(5, 0, "S")),
    ],
)
def test_what_is_cut_off_is_none(cut, protocol, port, tcp) -> None:
    found = decode(ethernet(SYN)[:cut]).outer
    assert (found.protocol, found.dst_port, found.tcp) == (protocol, port, tcp)


def test_arp_says_who_asks_for_whom() -> None:
    found = decode(ethernet(arp(A, B), 0x0806)).outer
    assert (found.protocol, found.src, found.dst, found.ttl) == ("arp", ip_address(A), ip_address(B), None)
    assert decode(ethernet(arp(A, B), 0x0806)[:20]).outer.src is None


@pytest.mark.parametrize(
    ("octets", "protocol"),
    [
        pytest.param(ethernet(ip("10.0.0.1", "10.0.0.2") / Raw(bytes(12)))[:23], "0x0800", id="cut"),
        pytest.param(ethernet(Raw(bytes(28))), "0x0800", id="version-0"),
        pytest.param(ethernet(Raw(b""), 0x88B5), "0x88b5", id="other-ethertype"),
        pytest.param(ethernet(Raw(bytes(50)), 0x86DD), "0x86dd", id="ipv6"),
        pytest.param(ethernet(Raw(bytes(50)), 0x0026), "0x0026", id="802.3-length"),
    ],
)
def test_other_protocols_go_by_number(octets, protocol) -> None:
    found = decode(octets)
    assert (found.outer.protocol, found.outer.src) == (protocol, None)


def test_other_ip_protocols_go_by_number() -> None:
    packet = ip(A, B)
    packet.proto = 132
    assert decode(ethernet(packet / Raw(bytes(12)))).outer.protocol == "132"


def test_stump_is_refused() -> None:
    with pytest.raises(ValueError, match="13 bytes"):
        decode(bytes(13))


WHOLE = [
    ethernet(packet)
    for packet in (SYN, PING, vxlan(*HOSTS, SYN), error("10.244.1.1", A, PING), vxlan(*HOSTS, error(B, A, SYN)))
] + [ethernet(arp(A, B), 0x0806)]


@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8),
    st.integers(14, 200),
)
def test_damaged_frame_is_decoded_as_far_as_it_makes_sense(octets, errors, cut) -> None:
    damaged = bytearray(octets)
    for place, value in errors:
        damaged[place % len(damaged)] = value
    frame = decode(bytes(damaged[:cut]))
    assert frame.length == min(cut, len(octets))
    assert frame.payload in bytes(damaged[:cut])


@given(st.binary(max_size=120))
def test_garbage_raises_value_error_at_most(octets) -> None:
    if len(octets) < 14:
        with pytest.raises(ValueError):
            decode(octets)
    else:
        assert decode(octets).outer.src_mac == Mac(octets[6:12].hex(":"))
