"""Frames as they pass interfaces of several network namespaces, taken with AF_PACKET sockets (packet(7)).

Silence is evidence only if somebody listened. So the probe says ``{"armed": true, …}`` in a line of its
own once every socket is bound, which is the moment from which the kernel queues frames for it; it listens
until its standard input ends or the time is up, then empties every queue, and at last asks the kernel how
many frames it had to drop for want of room (PACKET_STATISTICS). A drop makes "not seen" mean nothing.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from overlaynet.errors import OverlayError, UsageError
from overlaynet.probe.job import member, netns, objects
from overlaynet.probe.sockets import (
    ETH_P_ALL,
    PACKET_OUTGOING,
    TIMESPEC,
    close_packet_sockets,
    dropped,
    packet_socket,
    stamp,
)

_LARGEST_FRAME_BYTES = 65_535 + 14
_ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size)


@dataclass(slots=True)
class _Point:
    """One interface that is listened at. `error` says why it cannot be."""

    netns: str | None
    iface: str
    sock: socket.socket | None = None
    error: str | None = None
    dropped: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {"netns": self.netns, "iface": self.iface, "error": self.error}


@dataclass(slots=True)
class _Capture:
    """A running capture. `needles`: a frame is kept if it holds any of them, or if there are none."""

    points: Sequence[_Point]
    needles: tuple[bytes, ...]
    max_frames: int
    frames: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False

    def take(self, number: int) -> bool:
        """Read one frame from a point's socket; False if none is waiting."""
        sock = self.points[number].sock
        assert sock is not None
        try:
            data, ancillary, _, address = sock.recvmsg(_LARGEST_FRAME_BYTES, _ANCILLARY_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:  # the interface went down or away
            self.points[number].error = os.strerror(error.errno or 0)
            return False
        if not self.needles or any(needle in data for needle in self.needles):
            self._keep(number, data, stamp(ancillary), outgoing=address[2] == PACKET_OUTGOING)
        return True

    def _keep(self, number: int, data: bytes, t_ns: int | None, *, outgoing: bool) -> None:
        if len(self.frames) >= self.max_frames:
            self.truncated = True
            return
        self.frames.append(
            {
                "point": number,
                "t_ns": t_ns,
                "direction": "out" if outgoing else "in",
                "data": base64.b64encode(data).decode("ascii"),
            }
        )


def run(job: Mapping[str, Any], stop_fd: int) -> dict[str, Any]:
    """Carry out ``{"points": [{netns, iface}], "contains": [hex], "seconds", "max_frames"}``.

    Ends when `stop_fd` does, or after `seconds`. Raises UsageError for a job that makes no sense; a point
    that cannot be listened at is reported in its `error`.
    """
    seconds = member(job, "seconds", float, 60.0)
    capture = _Capture(
        points=[_Point(netns(item), member(item, "iface", str)) for item in objects(job, "points")],
        needles=_needles(job),
        max_frames=member(job, "max_frames", int, 10_000),
    )
    try:
        for point in capture.points:
            _arm(point)
        _say_armed(capture.points)
        _listen(capture, stop_fd, time.monotonic() + seconds)
        return _report(capture)
    finally:
        close_packet_sockets(point.sock for point in capture.points if point.sock is not None)


def _needles(job: Mapping[str, Any]) -> tuple[bytes, ...]:
    try:
        return tuple(bytes.fromhex(text) for text in member(job, "contains", list, []))
    except (ValueError, TypeError) as error:
        raise UsageError("the job's 'contains' must be hexadecimal texts", evidence=str(error)) from None


def _arm(point: _Point) -> None:
    try:
        sock = packet_socket(point.netns)
    except OverlayError as error:
        point.error = error.message
        return
    try:
        sock.bind((point.iface, ETH_P_ALL))
    except OSError as error:
        sock.close()
        point.error = os.strerror(error.errno or 0)
    else:
        point.sock = sock


def _say_armed(points: Sequence[_Point]) -> None:
    line = {"armed": all(p.error is None for p in points), "points": [p.as_json() for p in points]}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _listen(capture: _Capture, stop_fd: int, deadline: float) -> None:
    with selectors.PollSelector() as selector:  # unlike epoll it takes a plain file for stop_fd
        selector.register(stop_fd, selectors.EVENT_READ)
        for number, point in enumerate(capture.points):
            if point.sock is not None:
                selector.register(point.sock, selectors.EVENT_READ, number)
        while (left := deadline - time.monotonic()) > 0 and not capture.truncated:
            for key, _ in selector.select(left):
                if key.data is None:
                    if not os.read(stop_fd, 4096):
                        return
                elif not capture.take(key.data) and capture.points[key.data].error:
                    selector.unregister(key.fileobj)


def _report(capture: _Capture) -> dict[str, Any]:
    for number, point in enumerate(capture.points):
        if point.sock is not None:
            while not capture.truncated and capture.take(number):
                pass
            point.dropped = dropped(point.sock)
    return {
        "kind": "Capture",
        "points": [{**point.as_json(), "dropped": point.dropped} for point in capture.points],
        "truncated": capture.truncated,
        "frames": sorted(capture.frames, key=lambda frame: frame["t_ns"] or 0),
    }
