"""Packets that no socket would send, SCTP without the kernel's, and the marks that packets leave with."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from helpers.answering import PATIENCE_S
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet

SO_MARK, SO_RCVMARK = 36, 75
"""asm-generic/socket.h; the second since Linux 5.19, and for packet sockets too."""
ETH_P_IP = 0x0800
OWN_ADDRESS = "0.0.0.0"
"""The kernel puts in the right one (raw(7))."""


def send(packet: Packet, mark: int = 0) -> None:
    """From the namespace that the thread is in; the kernel finds the way."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        raw.sendto(bytes(packet), (packet[IP].dst, 0))


def send_anyway(packet: Packet, mark: int = 0) -> None:
    """The same, where a rule may refuse it: then the kernel tells the sender, as it would any process."""
    with suppress(PermissionError):
        send(packet, mark)


def send_frame(device: str, frame: Packet) -> None:
    """Past routing, to whatever MAC the frame names."""
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as raw:
        raw.bind((device, ETH_P_IP))
        raw.send(bytes(frame))


@contextmanager
def listening(protocol: int, patience_s: float = PATIENCE_S) -> Iterator[socket.socket]:
    """A raw socket: every packet of an IP protocol that comes to the namespace the thread is in."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)) as raw:
        raw.settimeout(patience_s)
        yield raw


def heard(raw: socket.socket) -> Packet | None:
    """The next packet, or None if there is none for as long as the socket waits."""
    try:
        return IP(raw.recv(2048))
    except TimeoutError:
        return None


@contextmanager
def marks_on(device: str) -> Iterator[socket.socket]:
    """A socket that gets what the device sends and receives, with the marks that the packets leave with."""
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        tap.bind((device, 3))
        tap.settimeout(PATIENCE_S)
        yield tap


def mark_of(tap: socket.socket, destination: str, port: int) -> int:
    """The mark of the next TCP or UDP packet that leaves for there."""
    while True:
        data, more, _, _ = tap.recvmsg(2048, 256)
        packet = IP(data) if data[0] >> 4 == 4 else None
        if packet is not None and packet.dst == destination and (TCP in packet or UDP in packet):
            if packet.payload.dport != port:
                continue
            (mark,) = [value for *what, value in more if what == [socket.SOL_SOCKET, SO_MARK]]
            return int.from_bytes(mark, sys.byteorder)


def sctp_init(address: str, port: int, sport: int = 40_000) -> Packet:
    """The first packet of an association (RFC 9260 section 3.3.2)."""
    return (
        IP(src=OWN_ADDRESS, dst=address) / SCTP(sport=sport, dport=port) / SCTPChunkInit(init_tag=7, init_tsn=1)
    )
