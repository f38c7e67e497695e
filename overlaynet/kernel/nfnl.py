"""netfilter's part of netlink: connections and ipsets.

A request names a subsystem in the upper octet of its type and begins with four octets of its own: address
family, version, resource id (struct nfgenmsg; include/uapi/linux/netfilter/nfnetlink.h). Unlike rtnetlink's,
numbers in attributes are in the network's byte order. All else is as in `wire` and `handle`.

A kernel that lacks a subsystem, and cannot load it, answers every request to it with EINVAL
(net/netfilter/nfnetlink.c, nfnetlink_rcv_msg).
"""

from __future__ import annotations

import errno
import socket
from struct import Struct

from overlaynet.errors import KernelError
from overlaynet.kernel import wire
from overlaynet.kernel.handle import TIMEOUT_S, Rtnl

NETLINK_NETFILTER = 12
CONNTRACK, IPSET = 1, 6
"""Subsystems."""

NESTED = 0x8000
NETWORK_ORDER = 0x4000
"""Flags in an attribute's type."""

LACKING = frozenset({errno.EINVAL, errno.EPROTONOSUPPORT})
"""What the plainest request is answered with where the kernel has no such subsystem, or no netfilter."""

GENERIC_BYTES = 4
"""Length of struct nfgenmsg."""

_GENERIC = Struct("=BBH")
_U32 = Struct(">I")


class Nfnl(Rtnl):
    """A NETLINK_NETFILTER socket. Not for two threads at once."""

    @classmethod
    def open(cls, *, timeout_s: float = TIMEOUT_S) -> Nfnl:
        """In the calling thread's network namespace. Raises KernelError."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        except OSError as error:
            raise KernelError("a netfilter socket", error.errno or errno.EPROTONOSUPPORT) from error
        return cls(sock, timeout_s=timeout_s)


def message(subsystem: int, command: int, flags: int, family: int, attributes: bytes = b"") -> bytes:
    """A request."""
    return wire.message(subsystem << 8 | command, flags, _GENERIC.pack(family, 0, 0), attributes)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Attributes within an attribute."""
    return wire.attribute(kind | NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    return wire.attribute(kind, _U32.pack(value))
