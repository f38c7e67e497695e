"""Captures of many points in one file."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.trace.model import Captured, Point
from overlaynet.trace.pcapng import Capture, Interface, Packet, Writer, read

pytestmark = pytest.mark.unit

ETH, FLANNEL = Point("node-1", "eth0"), Point("node-2", "flannel.1")
SENT = Captured(ETH, 1_700_000_000_123_456_789, "out", bytes(range(61)), 1514)
TAKEN = Captured(FLANNEL, 1_700_000_000_123_456_790, "in", bytes(64), 64)
SAID = ("hop 5 forward: encapsulated to 192.168.50.12", "größer als die MTU")


def written() -> bytes:
    file = BytesIO()
    writer = Writer(file, {ETH: "host node-1", FLANNEL: ""}, application="overlaynet 1.0", snap=256)
    writer.frame(SENT, *SAID)
    writer.frame(TAKEN)
    writer.statistics(ETH, 7, 0, TAKEN.t_ns)
    writer.statistics(FLANNEL, None, 3, None)
    return file.getvalue()


WRITTEN = written()


def test_everything_that_is_written_is_read() -> None:
    assert read(WRITTEN) == Capture(
        "overlaynet 1.0",
        (Interface(ETH, "host node-1", 7, 0), Interface(FLANNEL, "", None, 3)),
        (Packet(SENT, SAID), Packet(TAKEN)),
    )


def test_file_is_laid_out_as_the_specification_says() -> None:
    """draft-ietf-opsawg-pcapng: type, length and length again of every block, filled up to four bytes."""
    kinds, place = [], 0
    while place < len(WRITTEN):
        kind, length = struct.unpack_from("<II", WRITTEN, place)
        assert struct.unpack_from("<I", WRITTEN, place + length - 4)[0] == length
        assert length % 4 == 0
        kinds.append(kind)
        place += length
    assert kinds == [0x0A0D0D0A, 1, 1, 6, 6, 5, 5]
    assert WRITTEN[8:12] == struct.pack("<I", 0x1A2B3C4D)
    assert struct.pack("<HHB", 9, 1, 9) in WRITTEN
    assert struct.pack("<HHI", 2, 4, 2) in WRITTEN


captured = st.builds(
    Captured,
    st.sampled_from([ETH, FLANNEL]),
    st.none() | st.integers(1, 2**64 - 1),
    st.sampled_from(["in", "out"]),
    st.binary(max_size=70),
    st.integers(0, 2**32 - 1),
)
comments = st.lists(st.text(min_size=1, max_size=20), max_size=3).map(tuple)


@given(st.lists(st.builds(Packet, captured, comments), max_size=6), st.text(max_size=9), st.text(max_size=9))
def test_round_trip_is_exact(packets, description, application) -> None:
    file = BytesIO()
    writer = Writer(file, {ETH: description, FLANNEL: ""}, application=application)
    for packet in packets:
        writer.frame(packet.captured, *packet.comments)
    interfaces = (Interface(ETH, description), Interface(FLANNEL))
    assert read(file.getvalue()) == Capture(application, interfaces, tuple(packets))


def test_frame_of_a_point_that_was_not_named_is_refused() -> None:
    with pytest.raises(KeyError):
        Writer(BytesIO(), {ETH: ""}, application="").frame(TAKEN)


# --- files of others ------------------------------------------------------------------------------


def block(kind: int, content: bytes) -> bytes:
    length = struct.pack(">I", len(content) + 12)
    return struct.pack(">I", kind) + length + content + length


def section(major: int = 1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, major, 0, -1))


NAMED = struct.pack(">HH", 2, 10) + b"web-1:eth0\0\0"
IFACE = block(1, struct.pack(">HHI", 1, 0, 0) + NAMED)
FRAME = block(6, struct.pack(">IIIII", 0, 0, 5, 3, 9) + b"abc\0")


def test_other_byte_order_microseconds_unknown_blocks_and_several_sections_are_read() -> None:
    found = read(section() + IFACE + FRAME + block(0xBAD, b"") + section() + IFACE + FRAME)
    web = Point("web-1", "eth0")
    assert found.interfaces == (Interface(web), Interface(web))
    assert found.packets == 2 * (Packet(Captured(web, 5_000, "in", b"abc", 9)),)


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xd4\xc3\xb2\xa1" + bytes(20), id="pcap"),
        pytest.param(section(2), id="version-2"),
        pytest.param(IFACE, id="no-section"),
        pytest.param(section() + FRAME, id="no-interface"),
        pytest.param(section() + IFACE + section() + FRAME, id="interface-of-another-section"),
        pytest.param(section() + block(1, struct.pack(">HHI", 1, 0, 0)), id="interface-without-a-name"),
        pytest.param(section() + block(1, struct.pack(">HHI", 101, 0, 0) + NAMED), id="no-ethernet"),
        pytest.param(section() + IFACE[:-4] + bytes(4), id="lengths-that-differ"),
        pytest.param(section() + IFACE + block(6, struct.pack(">IIIII", 0, 0, 5, 30, 9)), id="frame-cut-off"),
        pytest.param(section() + struct.pack(">II", 1, 0), id="no-length"),
        pytest.param(WRITTEN[:-1], id="cut-off"),
    ],
)
def test_what_makes_no_sense_is_refused(octets) -> None:
    with pytest.raises(ValueError, match="pcapng"):
        read(octets)


@given(st.lists(st.tuples(st.integers(0, len(WRITTEN) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_file_raises_value_error_at_most(errors) -> None:
    damaged = bytearray(WRITTEN)
    for place, value in errors:
        damaged[place] = value
    try:
        found = read(bytes(damaged))
    except ValueError:
        return
    assert len(found.packets) <= 2
