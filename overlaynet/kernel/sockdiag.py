"""Sockets that take packets from anybody, by netlink (sock_diag(7)).

/proc/net/tcp tells the same, but for it the kernel walks its whole table of connections, of all namespaces, for
milliseconds; and it does not tell whether a socket of IPv6 takes IPv4 as well (ipv6(7), IPV6_V6ONLY).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import Struct
from typing import TypeAlias

from overlaynet.addr import IPAddress, address
from overlaynet.errors import KernelError
from overlaynet.kernel import parse, wire
from overlaynet.kernel.handle import Rtnl

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
PROTOCOLS = {"tcp": 6, "udp": 17}
STATE = {"tcp": 1 << 10, "udp": 1 << 7}
"""TCP_LISTEN; TCP_CLOSE, which is that of a datagram socket without a peer (include/net/tcp_states.h)."""
INET_DIAG_SKV6ONLY = 11
_REQUEST = Struct("=BBBBI48x")
"""struct inet_diag_req_v2: family, protocol, extensions, padding, states, and no socket in particular."""
_MESSAGE = Struct(">B3xHH16s48x")
"""struct inet_diag_msg: family, source port, destination port, source address, and more."""

Local: TypeAlias = tuple[IPAddress | None, int]
"""Address and port; None: any address, of both families."""


def listening(protocol: str) -> Iterator[Local]:
    """TCP sockets that listen, or UDP sockets without a peer, in the calling thread's network namespace. Raises
    KernelError, where the kernel does not answer such questions."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    except OSError as error:
        raise KernelError("a look at its sockets", error.errno or 0) from error
    with Rtnl(sock) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, PROTOCOLS[protocol], 0, 0, STATE[protocol])
            for answer in diag.dump(wire.message(SOCK_DIAG_BY_FAMILY, wire.NLM_F_DUMP, request)):
                yield _local(answer)


def _local(answer: parse.Answer) -> Local:
    buffer, start, end = answer
    family, port, _, octets = _MESSAGE.unpack_from(buffer, start)
    if family == socket.AF_INET:
        octets = octets[:4]
    only_ipv6 = parse.attributes(buffer, start + _MESSAGE.size, end).get(INET_DIAG_SKV6ONLY) == b"\1"
    return local(octets, only_ipv6=only_ipv6), port


def local(octets: bytes, *, only_ipv6: bool = False) -> IPAddress | None:
    """An address that a socket is bound to. One of IPv4 may be mapped into IPv6 (RFC 4291, 2.5.5.2)."""
    if not any(octets) and not only_ipv6:
        return None
    return address(octets[12:] if octets[:12] == b"\0" * 10 + b"\xff\xff" else octets)
