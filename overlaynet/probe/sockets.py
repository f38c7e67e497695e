"""Opening a socket in a namespace, with every refusal as an error of ours; and what packet sockets share.

A packet(7) socket that is opened for protocol 0 receives nothing. It is bound last, to its interface and to all
protocols, when its filter, stamps and buffer are in place: from that moment the kernel queues frames for it.

Frames are stamped by the kernel in nanoseconds of its real-time clock (SO_TIMESTAMPNS_NEW, socket(7)),
comparable between the namespaces of one machine and not between machines.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from overlaynet.errors import EnvironmentProblem, NotPermitted
from overlaynet.kernel.netns import socket_in

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
SO_TIMESTAMPNS_NEW = 64
RECEIVE_BUFFER_BYTES = 8 << 20
TIMESPEC = struct.Struct("=qq")
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_STATISTICS = struct.Struct("=II")
_INSTRUCTION_BYTES = 8
_FPROG = struct.Struct("@HP")
"""struct sock_fprog: number of instructions, where they are."""

Ancillary: TypeAlias = Sequence[tuple[int, int, bytes]]


def open_socket(netns: str | None, family: int, kind: int, protocol: int) -> socket.socket:
    """A non-blocking socket in that namespace (None: our own). Raises NotFound, NotPermitted, KernelError
    or EnvironmentProblem."""
    try:
        if netns is None:
            sock = socket.socket(family, kind, protocol)
        else:
            sock = socket_in(netns, family, kind, protocol)
    except PermissionError as error:
        raise NotPermitted(
            "no permission to open a raw socket",
            evidence=f"{error.strerror}; it takes CAP_NET_RAW",
            next=["run as root, or inside: unshare -Urnm"],
        ) from error
    except OSError as error:
        raise EnvironmentProblem("a socket could not be opened", evidence=str(error)) from error
    sock.setblocking(False)
    return sock


def packet_socket(netns: str | None, buffer_bytes: int = RECEIVE_BUFFER_BYTES) -> socket.socket:
    """One that is to listen, with stamps and a large queue, and not bound yet. Raises as `open_socket`."""
    sock = open_socket(netns, socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1)
    enlarge(sock, buffer_bytes)
    return sock


def enlarge(sock: socket.socket, size: int) -> None:
    """A receive queue of so many bytes; beyond the system's limit where we have the privilege (socket(7))."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def attach_filter(sock: socket.socket, code: bytes) -> None:
    """A program of classic BPF (see `bpf`). Raises OSError: EINVAL for one that the kernel does not take."""
    where = ctypes.create_string_buffer(code, len(code))
    described = _FPROG.pack(len(code) // _INSTRUCTION_BYTES, ctypes.addressof(where))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def stamp(ancillary: Ancillary) -> int | None:
    """When the kernel saw the frame, in nanoseconds."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW):
            seconds, nanoseconds = TIMESPEC.unpack(data[: TIMESPEC.size])
            return int(seconds * 1_000_000_000 + nanoseconds)
    return None


def close_packet_sockets(socks: Iterable[socket.socket]) -> None:
    """Close them meanwhile. For each the kernel waits until no processor can be using it any more
    (net/packet/af_packet.c, packet_release), some ten milliseconds; at once, they share one such wait."""
    for sock in socks:
        threading.Thread(target=sock.close, name="closing").start()


def dropped(sock: socket.socket) -> int:
    """How many frames a packet socket had no room for since it was last asked (PACKET_STATISTICS)."""
    statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
    return int(_STATISTICS.unpack(statistics)[1])
