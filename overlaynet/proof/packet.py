"""A captured packet as a script or test sees it: where and when it passed, and what is in it.

A frame is decoded when somebody first looks into it, since most of a capture is never looked into.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from overlaynet.addr import VXLAN_OVERHEAD_BYTES
from overlaynet.model import DEFAULT_VXLAN_PORT
from overlaynet.trace.model import Captured, Direction, Frame, Headers, Point, Sent

if TYPE_CHECKING:
    from overlaynet.trace.filter import Names

ETHERNET_BYTES = 14
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
"""Types that quote a packet. NAT translates what is quoted too, so their payload does not stay the same."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where packets were captured: what names stand for, and whether all points share one clock."""

    names: Names = field(default_factory=dict)
    vxlan_port: int = DEFAULT_VXLAN_PORT
    one_clock: bool = True


@dataclass(frozen=True)
class Packet:
    """One frame at one point, in one direction: `in` is what the interface received, `out` what it sends."""

    captured: Captured
    scene: Scene = field(default_factory=Scene, repr=False, compare=False)

    @property
    def point(self) -> Point:
        return self.captured.point

    @property
    def direction(self) -> Direction:
        return self.captured.direction

    @property
    def t_ns(self) -> int | None:
        """Nanoseconds of the kernel's real-time clock, comparable within one machine."""
        return self.captured.t_ns

    @property
    def data(self) -> bytes:
        return self.captured.data

    @property
    def length(self) -> int:
        """Bytes on the wire, of which `data` may hold only the first."""
        return self.captured.length

    @cached_property
    def frame(self) -> Frame:
        """What is in it. Raises ValueError if it is no Ethernet frame."""
        from overlaynet.trace.decode import decode  # here: scapy costs 0.2 s

        return decode(self.data, self.scene.vxlan_port, self.length)

    @property
    def outer(self) -> Headers:
        return self.frame.outer

    @property
    def inner(self) -> Headers | None:
        """What is in the tunnel; None outside of one."""
        return self.frame.inner

    @property
    def innermost(self) -> Headers:
        """The container's own packet, tunnelled or not."""
        return self.frame.packet

    @property
    def headers(self) -> tuple[Headers, ...]:
        """Of each packet of the frame, the outer one first."""
        return (self.outer,) if self.inner is None else (self.outer, self.inner)

    @cached_property
    def inside(self) -> Packet | None:
        """The frame in the tunnel as a packet of its own."""
        if self.inner is None:
            return None
        overhead = VXLAN_OVERHEAD_BYTES[4]
        inside = self.captured._replace(data=self.data[overhead:], length=self.length - overhead)
        return Packet(inside, self.scene)

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What stays of a packet on its way through routers, NAT and tunnels, and another packet has not.

        The IP id (RFC 6864: it is not changed on the way), TCP's numbers and flags, an echo's sequence number
        and all payload."""
        headers, payload = self.innermost, self.frame.payload
        if headers.src is None or headers.protocol == "arp":
            return (headers.protocol, headers.src, headers.dst, payload)
        above: tuple[Any, ...] = ()
        if headers.tcp is not None:
            above = tuple(headers.tcp)
        elif headers.icmp is not None:
            above = (headers.icmp.type, headers.icmp.code, headers.icmp.seq)
            payload = b"" if headers.icmp.type in _ICMP_ERRORS else payload
        return (headers.protocol, headers.ip_id, headers.offset, headers.more_fragments, *above, payload)

    def is_of(self, sent: Sent) -> bool:
        """Whether this is what was sent, or came back for it: an answer, an error. Datagrams and echoes are
        known by their cookie, which errors quote; connections, which have no payload, by the sender's port."""
        one = self.innermost
        in_connection = one.protocol == "tcp" and sent.src_port in (one.src_port, one.dst_port)
        return in_connection or bytes.fromhex(sent.cookie) in self.data

    @cached_property
    def unchanging(self) -> bytes:
        """The innermost packet without what changes on a way without NAT: Ethernet, TTL and checksums."""
        octets = bytearray((self.inside or self).data[ETHERNET_BYTES:])
        behind = 4 * (octets[0] & 0x0F)
        # Cards, and the kernel in their place, fill in the checksums of TCP and UDP after the capture.
        above = {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6}.get(octets[9])
        for start, size in ((8, 1), (10, 2), *([(behind + above, 2)] if above is not None else [])):
            octets[start : start + size] = bytes(size)
        return bytes(octets[: int.from_bytes(octets[2:4], "big")])
