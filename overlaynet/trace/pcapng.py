"""Captures of many points in one file that Wireshark opens: pcapng.

A pcapng file is a row of blocks: a Section Header, an Interface Description for every point ("node-1:eth0"), an
Enhanced Packet for every frame, and an Interface Statistics at the end that tells how many frames were dropped.
Each block is its type, its length, its content and its length once more; options follow the fixed part of the
content, each a code, a length and a value filled up to four bytes (draft-ietf-opsawg-pcapng sections 3 and 4).

Here times are nanoseconds, directions are in `epb_flags`, and what is known of a frame is its comment, which
Wireshark lists beside the frame. scapy's own writer lacks nanoseconds, descriptions and statistics.

A time of 0 stands for one that is not known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from overlaynet.trace.model import Captured, Direction, Point

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LINKTYPE_ETHERNET = 1
_SECTION_LENGTH_UNKNOWN = -1
_END_OF_OPTIONS, _COMMENT, _APPLICATION = 0, 1, 4
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9
_FLAGS = 2
_RECEIVED, _DROPPED = 4, 5
_NANOSECONDS, _MICROSECONDS = 9, 6
"""Values of `if_tsresol`: a negative power of ten. Microseconds where a file says nothing."""
_POWER_OF_TWO = 0x80
_DIRECTIONS: Mapping[Direction, int] = {"in": 1, "out": 2}
_DIRECTION_BITS = 3
_FRAME_BYTES = 12
"""Type and both lengths of a block."""


class Interface(NamedTuple):
    """A point, as a file describes it. `received`, `dropped`: frames, None if the file does not say."""

    point: Point
    description: str = ""
    received: int | None = None
    dropped: int | None = None


class Packet(NamedTuple):
    """A frame, and what is said about it."""

    captured: Captured
    comments: tuple[str, ...] = ()


class Capture(NamedTuple):
    """All that a file holds. `application` wrote it."""

    application: str
    interfaces: tuple[Interface, ...]
    packets: tuple[Packet, ...]


# --- writing --------------------------------------------------------------------------------------


class Writer:
    """Writes a capture as it comes. `points`: what each point is, in words; `snap`: bytes kept of a frame at
    most, 0 for all."""

    def __init__(self, file: BinaryIO, points: Mapping[Point, str], *, application: str, snap: int = 0) -> None:
        self._file = file
        self._numbers = {point: number for number, point in enumerate(points)}
        head = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, _SECTION_LENGTH_UNKNOWN)
        self._block(_SECTION, head, (_APPLICATION, application.encode()))
        for point, description in points.items():
            self._block(
                _INTERFACE,
                struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, snap),
                (_NAME, str(point).encode()),
                (_DESCRIPTION, description.encode()),
                (_RESOLUTION, bytes([_NANOSECONDS])),
            )

    def frame(self, captured: Captured, *comments: str) -> None:
        """Write one frame of a point that was named at the beginning (KeyError for another)."""
        number, data = self._numbers[captured.point], captured.data
        head = struct.pack("<III", number, *_halves(captured.t_ns)) + struct.pack(
            "<II", len(data), captured.length
        )
        flags = struct.pack("<I", _DIRECTIONS[captured.direction])
        said = [(_COMMENT, comment.encode()) for comment in comments]
        self._block(_PACKET, head + _padded(data), *said, (_FLAGS, flags))

    def statistics(self, point: Point, received: int | None, dropped: int | None, t_ns: int | None) -> None:
        """Write how many frames came to a point, and how many the kernel had no room for, until `t_ns`."""
        counts = ((_RECEIVED, received), (_DROPPED, dropped))
        said = [(code, struct.pack("<Q", count)) for code, count in counts if count is not None]
        self._block(_STATISTICS, struct.pack("<III", self._numbers[point], *_halves(t_ns)), *said)

    def _block(self, kind: int, fixed: bytes, *options: tuple[int, bytes]) -> None:
        said = b"".join(_option(code, value) for code, value in options if value)
        content = fixed + said + (_option(_END_OF_OPTIONS, b"") if said else b"")
        length = struct.pack("<I", len(content) + _FRAME_BYTES)
        self._file.write(struct.pack("<I", kind) + length + content + length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)


def _halves(t_ns: int | None) -> tuple[int, int]:
    return divmod(t_ns or 0, 1 << 32)


# --- reading --------------------------------------------------------------------------------------


def read(octets: bytes) -> Capture:
    """Read a capture of Ethernet frames. Blocks and options of other kinds are passed over. Raises ValueError
    for what is no pcapng file, or damaged, or has an interface without a name."""
    try:
        return _Reader(octets).capture()
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"this pcapng file is damaged: {error}") from None


class _Reader:
    """What was read so far, of one section after the other."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._order = "<"
        self._application = ""
        self._interfaces: list[Interface] = []
        self._resolutions: list[int] = []
        self._first = 0
        """Number of the section's first interface."""
        self._packets: list[Packet] = []

    def capture(self) -> Capture:
        read_block = {
            _SECTION: self._section,
            _INTERFACE: self._interface,
            _PACKET: self._packet,
            _STATISTICS: self._statistics,
        }
        for kind, content in self._blocks():
            if kind in read_block:
                read_block[kind](content)
        return Capture(self._application, tuple(self._interfaces), tuple(self._packets))

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        place = 0
        while place < len(self._octets) or not place:
            kind = self._unpack("I", self._octets[place : place + 4])[0]
            if kind == _SECTION:
                self._order = _byte_order(self._octets[place + 8 : place + 12])
            elif not place:
                raise ValueError("this is no pcapng file")
            length = self._unpack("I", self._octets[place + 4 : place + 8])[0]
            block = self._octets[place : place + length]
            if length < _FRAME_BYTES or length % 4 or len(block) < length or block[4:8] != block[-4:]:
                raise ValueError(f"this pcapng file is damaged at byte {place}")
            yield kind, block[8:-4]
            place += length

    def _section(self, content: bytes) -> None:
        major = self._unpack("H", content[4:6])[0]
        if major != 1:
            raise ValueError(f"this pcapng file is of version {major}, not 1")
        self._first = len(self._interfaces)
        self._application = _text(self._options(content[16:]), _APPLICATION)

    def _interface(self, content: bytes) -> None:
        options = self._options(content[8:])
        place, _, iface = _text(options, _NAME).partition(":")
        resolution = options.get(_RESOLUTION, [bytes([_MICROSECONDS])])[0][0]
        link = self._unpack("H", content[:2])[0]
        if not iface or link != _LINKTYPE_ETHERNET or resolution & _POWER_OF_TWO:
            raise ValueError(f"interface {len(self._interfaces)} of this pcapng file is none of a lab's points")
        self._interfaces.append(Interface(Point(place, iface), _text(options, _DESCRIPTION)))
        self._resolutions.append(resolution)

    def _packet(self, content: bytes) -> None:
        number, high, low, kept, length = self._unpack("IIIII", content[:20])
        number, t_ns = self._known(number), self._time(number, high, low)
        data = content[20 : 20 + kept]
        if len(data) < kept:
            raise ValueError(f"frame {len(self._packets)} of this pcapng file is damaged")
        options = self._options(content[20 + kept + -kept % 4 :])
        flags = self._unpack("I", options[_FLAGS][0])[0] if _FLAGS in options else 0
        direction: Direction = "out" if flags & _DIRECTION_BITS == _DIRECTIONS["out"] else "in"
        comments = tuple(value.decode() for value in options.get(_COMMENT, ()))
        point = self._interfaces[number].point
        self._packets.append(Packet(Captured(point, t_ns or None, direction, data, length), comments))

    def _statistics(self, content: bytes) -> None:
        number = self._known(self._unpack("I", content[:4])[0])
        options = self._options(content[12:])
        received, dropped = (
            self._unpack("Q", options[code][0])[0] if code in options else None
            for code in (_RECEIVED, _DROPPED)
        )
        self._interfaces[number] = self._interfaces[number]._replace(received=received, dropped=dropped)

    def _known(self, number: int) -> int:
        """An interface's number in the file, by that in its section."""
        if number >= len(self._interfaces) - self._first:
            raise ValueError(f"this pcapng file has no interface {number}")
        return self._first + number

    def _time(self, number: int, high: int, low: int) -> int:
        units = high << 32 | low
        return int(units * 10**_NANOSECONDS // 10 ** self._resolutions[self._first + number])

    def _options(self, octets: bytes) -> dict[int, list[bytes]]:
        """Values by code, in order."""
        found: dict[int, list[bytes]] = {}
        place = 0
        while place < len(octets):
            code, length = self._unpack("HH", octets[place : place + 4])
            if code == _END_OF_OPTIONS:
                break
            value = octets[place + 4 : place + 4 + length]
            if len(value) < length:
                raise ValueError("this pcapng file is damaged: an option is longer than its block")
            found.setdefault(code, []).append(value)
            place += 4 + length + -length % 4
        return found

    def _unpack(self, layout: str, octets: bytes) -> tuple[Any, ...]:
        return struct.unpack(self._order + layout, octets)


def _byte_order(magic: bytes) -> str:
    for order in "<>":
        if magic == struct.pack(f"{order}I", _BYTE_ORDER_MAGIC):
            return order
    raise ValueError("this is no pcapng file")


def _text(options: Mapping[int, Iterable[bytes]], code: int) -> str:
    return next(iter(options.get(code, ())), b"").decode()
