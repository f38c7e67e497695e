"""The kernel's filter program against the same judgement written in Python, on the kernel's own machine.

A socket filter may be attached to any socket. On a pair of unix sockets it sees exactly the bytes that were
sent, so the real kernel judges arbitrary frames without a network."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.errors import UsageError
from overlaynet.probe.bpf import MAX_VALUES, WHOLE, Keep, program, read_keep
from overlaynet.probe.sockets import attach_filter

VXLAN_PORT = 8472
IPS = ["10.244.1.2", "10.244.2.2", "10.112.0.10", "192.168.50.11", "127.0.0.1"]
PORTS = [80, 8080, 40_000, VXLAN_PORT]
OTHER, ICMP, TCP, UDP = 132, 1, 6, 17


# --- frames ---------------------------------------------------------------------------------------


def ether(kind: int, payload: bytes) -> bytes:
    return bytes(12) + struct.pack("!H", kind) + payload


def ipv4(src: str, dst: str, protocol: int, payload: bytes, fragment: int = 0, options: int = 0) -> bytes:
    """`options`: their length in words; `fragment`: flags and offset as on the wire."""
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + options, 0, 20 + 4 * options + len(payload), 7, fragment, 64, protocol, 0,
        socket.inet_aton(src), socket.inet_aton(dst),
    )  # fmt: skip
    return ether(0x0800, head + b"\1" * 4 * options + payload)


def ports(src: int, dst: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", src, dst, 8 + len(payload), 0) + payload


def vxlan(inner: bytes, port: int = VXLAN_PORT, options: int = 0) -> bytes:
    payload = ports(50_000, port, b"\x08\0\0\0\0\0\1\0" + inner)
    return ipv4("192.168.50.11", "192.168.50.12", UDP, payload, options=options)


addresses = st.sampled_from(IPS)
numbers = st.sampled_from([*PORTS, 53])
fragments = st.sampled_from([0, 0, 0x4000, 0x2000, 0x2003, 0x0005, 0x1FFF])
packets = st.builds(
    ipv4,
    addresses,
    addresses,
    st.sampled_from([ICMP, TCP, UDP, OTHER]),
    st.builds(ports, numbers, numbers, st.binary(max_size=8)),
    fragments,
    st.sampled_from([0, 0, 1, 10]),
)
plain = packets | st.builds(ether, st.sampled_from([0x0806, 0x88B5, 0x86DD, 0x8100]), st.binary(max_size=30))
tunnelled = st.builds(vxlan, plain, st.sampled_from([VXLAN_PORT, 4789]), st.sampled_from([0, 3]))
frames = plain | tunnelled | st.binary(max_size=80)
cut = st.builds(lambda frame, end: frame[:end], frames, st.integers(1, 150))
keeps = st.builds(
    Keep,
    st.lists(addresses, max_size=3).map(tuple),
    st.sampled_from([None, "tcp", "udp", "icmp"]),
    st.lists(numbers, max_size=3).map(tuple),
    st.sampled_from([None, VXLAN_PORT]),
)


# --- the same in Python ---------------------------------------------------------------------------


def is_kept(keep: Keep, frame: bytes) -> bool:
    """Reading behind the end of a frame is an IndexError, and then it is not kept."""
    try:
        inner = vxlan_inner(keep, frame)
    except IndexError:
        inner = None
    try:
        return is_wanted(keep, frame) or (inner is not None and is_wanted(keep, inner))
    except IndexError:
        return False


def half(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


def is_wanted(keep: Keep, frame: bytes) -> bool:
    kind = half(frame, 12)
    if kind != 0x0800:
        return kind in (0x0806, 0x88B5)
    if keep.ips:
        src, dst = ((frame[at + 3], frame[at : at + 4]) for at in (26, 30))
        if not {socket.inet_aton(ip) for ip in keep.ips} & {src[1], dst[1]}:
            return False
    protocol = frame[23]
    if protocol == ICMP:
        return True
    if keep.protocol and protocol != {"icmp": ICMP, "tcp": TCP, "udp": UDP}[keep.protocol]:
        return False
    if not keep.ports or protocol not in (TCP, UDP) or half(frame, 20) & 0x1FFF:
        return True
    at = 14 + 4 * (frame[14] & 0x0F)
    return half(frame, at) in keep.ports or half(frame, at + 2) in keep.ports


def vxlan_inner(keep: Keep, frame: bytes) -> bytes | None:
    at = 14 + 4 * (frame[14] & 0x0F)
    is_first_udp = half(frame, 12) == 0x0800 and frame[23] == UDP and not half(frame, 20) & 0x1FFF
    if keep.vxlan_port is None or not is_first_udp or half(frame, at + 2) != keep.vxlan_port:
        return None
    return frame[at + 16 :]


# --- the kernel's judgement -----------------------------------------------------------------------


@contextmanager
def kernel(code: bytes) -> Iterator[Callable[[bytes], bytes]]:
    """What gets through this program, cut as it says."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setblocking(False)
        attach_filter(receiver, code)

        def judge(frame: bytes) -> bytes:
            sender.send(frame)
            try:
                return receiver.recv(1 << 17)
            except BlockingIOError:
                return b""

        yield judge


@pytest.mark.kernel
@given(keeps, st.lists(frames.filter(bool) | cut.filter(bool), min_size=1, max_size=20))
def test_kernel_keeps_what_is_wanted_and_nothing_else(keep, some):
    with kernel(program(keep)) as judge:
        assert [bool(judge(frame)) for frame in some] == [is_kept(keep, frame) for frame in some]


@pytest.mark.kernel
@given(frames.filter(bool), st.integers(1, 200))
def test_kept_frames_are_cut_to_the_snap_length(frame, snap):
    with kernel(program(None, snap)) as judge:
        assert judge(frame) == frame[:snap]


KEEP = Keep(("10.244.1.2", "10.244.2.2"), "tcp", (8080,), VXLAN_PORT)
FORTH = ("10.244.1.2", "10.244.2.2", TCP, ports(40_000, 8080))


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("frame", "kept"),
    [
        pytest.param(ipv4(*FORTH), True, id="the packet"),
        pytest.param(
            ipv4("10.244.2.2", "10.9.9.9", TCP, ports(8080, 1)), True, id="one address and port will do"
        ),
        pytest.param(vxlan(ipv4(*FORTH)), True, id="inside VXLAN"),
        pytest.param(vxlan(ipv4(*FORTH), options=2), True, id="behind IP options"),
        pytest.param(vxlan(ipv4(*FORTH), port=4789), False, id="inside VXLAN of others"),
        pytest.param(vxlan(vxlan(ipv4(*FORTH))), False, id="two tunnels deep"),
        pytest.param(ipv4("10.244.1.2", "10.244.2.2", TCP, ports(40_000, 80)), False, id="other ports"),
        pytest.param(ipv4("10.244.1.2", "10.244.2.2", UDP, ports(40_000, 8080)), False, id="other protocol"),
        pytest.param(ipv4("10.244.1.3", "10.244.2.3", TCP, ports(40_000, 8080)), False, id="other addresses"),
        pytest.param(ipv4("10.244.1.2", "10.1.1.1", ICMP, b"\3\4" + bytes(6)), True, id="an error"),
        pytest.param(ipv4("10.1.1.1", "10.1.1.2", ICMP, bytes(8)), False, id="somebody else's error"),
        pytest.param(
            ipv4("10.244.1.2", "10.244.2.2", TCP, b"1234", fragment=0x0003), True, id="later fragment"
        ),
        pytest.param(vxlan(ether(0x0806, bytes(28))), True, id="ARP inside VXLAN"),
        pytest.param(ether(0x86DD, bytes(40)), False, id="IPv6"),
    ],
)
def test_kernel_judges(frame, kept):
    assert is_kept(KEEP, frame) is kept
    with kernel(program(KEEP)) as judge:
        assert judge(frame) == (frame if kept else b"")


@pytest.mark.kernel
def test_many_addresses_and_ports_are_told_apart():
    keep = Keep(tuple(f"10.244.7.{n}" for n in range(MAX_VALUES)), "udp", tuple(range(MAX_VALUES)), VXLAN_PORT)
    last = f"10.244.7.{MAX_VALUES - 1}"
    with kernel(program(keep)) as judge:
        assert judge(vxlan(ipv4("10.1.1.1", last, UDP, ports(1000, MAX_VALUES - 1))))
        assert not judge(vxlan(ipv4("10.1.1.1", "10.244.7.250", UDP, ports(1000, 5))))
        assert not judge(vxlan(ipv4("10.1.1.1", last, UDP, ports(1000, MAX_VALUES))))


@pytest.mark.kernel
def test_more_addresses_than_can_be_told_apart_keep_every_one():
    keep = Keep(tuple(f"10.244.{n // 250}.{n % 250}" for n in range(MAX_VALUES + 1)), "udp", (53,))
    with kernel(program(keep)) as judge:
        assert judge(ipv4("172.16.0.1", "172.16.0.2", UDP, ports(53, 53)))
        assert not judge(ipv4("172.16.0.1", "172.16.0.2", UDP, ports(54, 54)))


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.unit
def test_keep_is_read_from_a_job():
    said = {"ips": ["10.0.0.1"], "protocol": "udp", "ports": [53], "vxlan_port": 8472}
    assert read_keep({"keep": said}) == Keep(("10.0.0.1",), "udp", (53,), 8472)
    assert read_keep({"keep": {}}) == Keep()
    assert read_keep({}) is None


@pytest.mark.unit
@pytest.mark.parametrize(
    "keep",
    [
        {"protocol": "sctp"},
        {"ips": ["fd00::1"]},
        {"ips": [7]},
        {"ports": [65536]},
        {"ports": ["http"]},
        {"ips": "x"},
    ],
)
def test_keep_that_makes_no_sense_is_refused(keep: Mapping[str, Any]):
    with pytest.raises(UsageError):
        program(read_keep({"keep": keep}))


@pytest.mark.unit
def test_without_keep_the_whole_of_every_frame_is_kept():
    assert struct.unpack("=HBBI", program(None)) == (0x06, 0, 0, WHOLE)
