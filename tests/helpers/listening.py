"""Listening by plain packet sockets, beside what is tested: everything that an interface shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from helpers.private_netns import PrivateNetns

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4


@dataclass
class Witnesses:
    """Sockets by (place, interface)."""

    sockets: dict[tuple[str, str], socket.socket] = field(default_factory=dict)

    def seen(self, needle: bytes) -> set[tuple[str, str, str]]:
        """Where frames with these bytes passed so far, as (place, interface, direction)."""
        found = set()
        for (place, iface), sock in self.sockets.items():
            while True:
                try:
                    data, address = sock.recvfrom(2048)
                except OSError:  # nothing more, or the interface is down
                    break
                if needle in data:
                    found.add((place, iface, "out" if address[2] == PACKET_OUTGOING else "in"))
        return found


@contextmanager
def witnesses(places: dict[str, tuple[PrivateNetns, Sequence[str]]]) -> Iterator[Witnesses]:
    """At every one of these interfaces."""
    with ExitStack() as stack:
        found = Witnesses()
        for place, (netns, ifaces) in places.items():
            for iface in ifaces:
                with netns.entered():
                    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                stack.callback(sock.close)
                sock.setblocking(False)
                sock.bind((iface, ETH_P_ALL))
                found.sockets[place, iface] = sock
        yield found


@contextmanager
def raw_sender(netns: PrivateNetns) -> Iterator[socket.socket]:
    """For frames made by hand: ``sock.sendto(frame, (iface, 0))``."""
    with netns.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        yield sock
