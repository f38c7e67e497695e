"""Listening at interfaces such that silence proves something.

That nothing was seen means that nothing passed only if the socket was alive all the while, and lost nothing. So
three things are found out about each interface:

* *armed*: a **barrier** was seen, a frame of ours that carries a fresh cookie and is sent through the interface
  itself. What passes later passes a living socket.
* *closed*: another one, sent at the end. The queue keeps the order, so whatever passed before it was read.
* *dropped*: the frames that found no room, in the kernel (PACKET_STATISTICS) or in our own memory.

A barrier must cross nothing that could be at fault. The kernel shows a frame to the packet sockets of an
interface just before it hands it to the driver (net/core/dev.c, xmit_one), so its way to us is inside the
interface. It is of the Local Experimental EtherType 0x88B5, which no stack takes, and goes from the interface's
own address to the same: a bridge or a switch does not send a frame back to where its destination is, a VXLAN
device knows no peer of that address. So it ends at the other end of the cable at the latest (a bridge that took
the address of one of its ports sends it out there). An interface that is down or without carrier passes
nothing, and says so.

The kernel turns stamping on with a delay when the first socket asks for it, and until then a frame is stamped
when it is read. Such a barrier is seen, but tells that the clock is not right yet: then it is sent again.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import fcntl
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from overlaynet.errors import OverlayError
from overlaynet.probe import bpf
from overlaynet.probe.job import member, netns, objects
from overlaynet.probe.sockets import (
    ETH_P_ALL,
    PACKET_OUTGOING,
    RECEIVE_BUFFER_BYTES,
    TIMESPEC,
    Ancillary,
    attach_filter,
    close_packet_sockets,
    dropped,
    open_socket,
    packet_socket,
    stamp,
)

BARRIER_S = 1.0
"""How long a barrier may take. It takes some microseconds; the rest is for a busy machine's scheduler."""
STAMPED_S = 0.05
"""How long right stamps are waited for."""
SETTLE_MOST_S = 1.0
"""Longest wait for an interface to fall silent: one that others use may never do."""
MAGIC = b"overlaynet barrier "
COOKIE_BYTES = 8

DOWN, UNPLUGGED = "is down", "has no carrier"
"""Errors of an interface that passes nothing, so that its silence is certain; if it was so to the end."""

_ETHER_BYTES, _LEAST_FRAME_BYTES = 14, 60
_ETHERTYPE_AT = slice(12, 14)
_BARRIER_TYPE = bpf.ETHERTYPE_BARRIER.to_bytes(2, "big")
_COOKIE_AT = slice(_ETHER_BYTES + len(MAGIC), _ETHER_BYTES + len(MAGIC) + COOKIE_BYTES)
BARRIER_BYTES = _COOKIE_AT.stop
"""A frame must not be cut shorter than this."""
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x01
_FLAGS = struct.Struct("@16sH22x")
"""struct ifreq with flags; `_POINTER` is the same with a pointer."""
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A
_POINTER = struct.Struct("@16sP16x")
_VALUE = struct.Struct("@II")
"""struct ethtool_value."""
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")
"""struct tpacket_auxdata; its second member is the length on the wire."""
_ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size) + socket.CMSG_SPACE(_AUXDATA.size)
_RETRY_S = 0.001
_IN_A_ROW = 64
"""Frames read from one queue before the others have their turn."""


class Taken(NamedTuple):
    """One frame. `point`: the number of its tap; `length`: bytes on the wire, of which `data` are the first."""

    point: int
    t_ns: int | None
    direction: str
    data: bytes
    length: int


@dataclass(slots=True)
class Tap:
    """One interface of a place, and what is known of listening there. `error`: why nothing can be told."""

    place: str
    netns: str | None
    iface: str
    error: str | None = None
    armed: bool = False
    closed: bool = False
    dropped: int | None = None
    sock: socket.socket | None = None
    mac: bytes = b""

    def opening(self) -> dict[str, Any]:
        return {"place": self.place, "iface": self.iface, "error": self.error, "armed": self.armed}

    def ending(self) -> dict[str, Any]:
        return {**self.opening(), "closed": self.closed, "dropped": self.dropped}


@dataclass(slots=True)
class _Barrier:
    """Where a tap's own frame is awaited. `t_ns`: its stamp, once it was seen."""

    cookie: bytes
    t_ns: int | None = None


@dataclass(slots=True)
class Taps:
    """Some interfaces, listened at by a thread of their own. `take` is called there with each frame, in the
    order of each queue; False: there was no room for it."""

    taps: Sequence[Tap]
    code: bytes
    snap: int
    take: Callable[[Taken], bool]
    buffer_bytes: int = RECEIVE_BUFFER_BYTES
    _refused: list[int] = field(default_factory=list)
    _injectors: dict[str | None, socket.socket] = field(default_factory=dict)
    _awaited: dict[int, _Barrier] = field(default_factory=dict)
    _seen: threading.Condition = field(default_factory=threading.Condition)
    _last_s: float = 0.0
    _wake: int = -1
    _thread: threading.Thread | None = None

    def arm(self) -> None:
        """Listen, and see a barrier at every interface that can be listened at; what is wrong with another is
        its tap's `error`. Raises OSError for a program that the kernel does not take."""
        self._refused = [0] * len(self.taps)
        for tap in self.taps:
            self._open(tap)
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._listen, name="taps", daemon=True)
        self._thread.start()
        live = self._live()
        for number in self._barriers(live, time.monotonic() + STAMPED_S):
            self.taps[number].armed = True
        for number in live:
            tap = self.taps[number]
            if not tap.armed and tap.error is None:
                tap.error = _trouble(tap) or "does not show its own frames"
        self._last_s = time.monotonic()

    def close(self, settle_s: float = 0.0) -> None:
        """Wait until nothing has come for `settle_s` seconds (since `arm`, if nothing came at all), see a
        closing barrier everywhere, read what is queued, ask for losses, and end. Not more than once."""
        self._settle(settle_s)
        for number in self._barriers(self._live(), time.monotonic()):
            self.taps[number].closed = True
        self._end_thread()
        for number, tap in enumerate(self.taps):
            if tap.sock is not None:
                while self._read(number, tap.sock):
                    pass
                tap.dropped = dropped(tap.sock) + self._refused[number]
                if tap.error in (DOWN, UNPLUGGED) and _trouble(tap) is None:
                    tap.error = "came up meanwhile"
        self.abandon()

    def abandon(self) -> None:
        """End the thread, close the sockets. Harmless if that was done."""
        self._end_thread()
        close_packet_sockets(self._injectors.values())
        self._injectors.clear()
        for tap in self.taps:
            if tap.sock is not None:
                close_packet_sockets([tap.sock])
                tap.sock = None

    def _end_thread(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
            os.close(self._wake)

    # --- opening ----------------------------------------------------------------------------------

    def _open(self, tap: Tap) -> None:
        try:
            sock = packet_socket(tap.netns, self.buffer_bytes)
            if tap.netns not in self._injectors:
                self._injectors[tap.netns] = open_socket(tap.netns, socket.AF_PACKET, socket.SOCK_RAW, 0)
        except OverlayError as error:
            tap.error = error.message
            return
        tap.sock = sock
        attach_filter(sock, self.code)
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        tap.error = _bound(tap, sock) or _trouble(tap)
        if tap.error in (DOWN, UNPLUGGED):
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # says that it is down; later it would be news
        elif tap.error is not None:
            close_packet_sockets([sock])
            tap.sock = None

    def _live(self) -> list[int]:
        return [number for number, tap in enumerate(self.taps) if tap.sock is not None and tap.error is None]

    # --- barriers ---------------------------------------------------------------------------------

    def _barriers(self, numbers: Sequence[int], stamped_until: float) -> list[int]:
        """Send one through each of these interfaces, again if its stamp is not right and there is time for it.
        Answers those where it was seen."""
        seen: set[int] = set()
        late = list(numbers)
        while late:
            sent = {number: t_ns for number in late if (t_ns := self._inject(number)) is not None}
            back = self._await(sent)
            seen |= back.keys()
            late = [number for number, t_ns in back.items() if t_ns > sent[number]]
            if time.monotonic() > stamped_until:
                break
            if late:
                time.sleep(_RETRY_S)
        return sorted(seen)

    def _inject(self, number: int) -> int | None:
        """When it was sent, in nanoseconds; None if it could not be."""
        tap, cookie = self.taps[number], os.urandom(COOKIE_BYTES)
        frame = tap.mac + tap.mac + _BARRIER_TYPE + MAGIC + cookie
        self._awaited[number] = _Barrier(cookie)
        try:
            self._injectors[tap.netns].sendto(frame.ljust(_LEAST_FRAME_BYTES, b"\0"), (tap.iface, 0))
        except OSError as error:
            tap.error = tap.error or (_went(error) if tap.armed else _words(error))
            return None
        return time.time_ns()

    def _await(self, numbers: Mapping[int, int]) -> dict[int, int]:
        """The stamps of the barriers that came back in time."""
        with self._seen:
            self._seen.wait_for(
                lambda: all(self._awaited[number].t_ns is not None for number in numbers), BARRIER_S
            )
            stamps = {number: self._awaited[number].t_ns for number in numbers}
        return {number: t_ns for number, t_ns in stamps.items() if t_ns is not None}

    def _settle(self, quiet_s: float) -> None:
        end = time.monotonic() + SETTLE_MOST_S
        while (wait_s := min(self._last_s + quiet_s, end) - time.monotonic()) > 0:
            time.sleep(wait_s)

    # --- listening --------------------------------------------------------------------------------

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for number, tap in enumerate(self.taps):
                if tap.sock is not None:
                    selector.register(tap.sock, selectors.EVENT_READ, number)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    for _ in range(_IN_A_ROW):
                        if not self._read(key.data, key.fileobj):  # type: ignore[arg-type]
                            break

    def _read(self, number: int, sock: socket.socket) -> bool:
        """One frame; False if none is waiting."""
        try:
            data, ancillary, _, address = sock.recvmsg(self.snap, _ANCILLARY_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self.taps[number].error = _went(error)  # it may come back, but what passed meanwhile is unknown
            return True
        t_ns = stamp(ancillary)
        if data[_ETHERTYPE_AT] == _BARRIER_TYPE and data.startswith(MAGIC, _ETHER_BYTES):
            self._barrier_seen(number, data, t_ns)
            return True
        direction = "out" if address[2] == PACKET_OUTGOING else "in"
        if not self.take(Taken(number, t_ns, direction, data, _length(ancillary, len(data)))):
            self._refused[number] += 1
        self._last_s = time.monotonic()
        return True

    def _barrier_seen(self, number: int, data: bytes, t_ns: int | None) -> None:
        """Those of other programs, and returned ones of ours, are passed over."""
        awaited = self._awaited.get(number)
        if awaited is not None and awaited.t_ns is None and data[_COOKIE_AT] == awaited.cookie:
            with self._seen:
                awaited.t_ns = t_ns or 0
                self._seen.notify_all()


def from_job(job: Mapping[str, Any], take: Callable[[Taken], bool]) -> Taps:
    """``{"points": [{"place", "netns", "iface"}], "keep", "snap"}``. Raises UsageError."""
    snap = max(member(job, "snap", int, bpf.WHOLE), BARRIER_BYTES)
    taps = [
        Tap(member(item, "place", str), netns(item), member(item, "iface", str))
        for item in objects(job, "points")
    ]
    return Taps(taps, bpf.program(bpf.read_keep(job), snap), snap, take)


def frame_to_json(frame: Taken) -> dict[str, Any]:
    """``{"point", "t_ns", "direction", "data": base64, "length"}``."""
    return {**frame._asdict(), "data": base64.b64encode(frame.data).decode("ascii")}


def _bound(tap: Tap, sock: socket.socket) -> str | None:
    """Begin to listen; what is in the way of that."""
    try:
        sock.bind((tap.iface, ETH_P_ALL))
        _, _, _, hardware, tap.mac = sock.getsockname()
    except OSError as error:
        return _words(error)
    return None if hardware in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK) else "carries no Ethernet frames"


def _trouble(tap: Tap) -> str | None:
    """Why an interface passes nothing (netdevice(7))."""
    assert tap.sock is not None
    try:
        answer = fcntl.ioctl(tap.sock, _SIOCGIFFLAGS, _FLAGS.pack(tap.iface.encode(), 0))
    except OSError as error:
        return _words(error)
    if not _FLAGS.unpack(answer)[1] & _IFF_UP:
        return DOWN
    return None if _has_carrier(tap.sock, tap.iface) else UNPLUGGED


def _has_carrier(sock: socket.socket, iface: str) -> bool:
    """As ethtool(8) asks the driver: the flag IFF_RUNNING may come a second later (net/core/link_watch.c). One
    that does not say is taken to have it."""
    value = ctypes.create_string_buffer(_VALUE.pack(_ETHTOOL_GLINK, 1), _VALUE.size)
    with suppress(OSError):
        fcntl.ioctl(sock, _SIOCETHTOOL, _POINTER.pack(iface.encode(), ctypes.addressof(value)))
    return bool(_VALUE.unpack(value.raw)[1])


def _words(error: OSError) -> str:
    known = {errno.ENODEV: "does not exist", errno.ENETDOWN: DOWN}
    return known.get(error.errno or 0, os.strerror(error.errno or 0))


def _went(error: OSError) -> str:
    return "went down" if error.errno == errno.ENETDOWN else _words(error)


def _length(ancillary: Ancillary, read: int) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            return int(_AUXDATA.unpack(data[: _AUXDATA.size])[1])
    return read
