"""Whether anybody has changed rules, at the price of a few system calls.

*legacy*: the kernel keeps no counter, but tells a table's number of rules, its size in octets and where each
hook's rules begin (IPT_SO_GET_INFO, include/uapi/linux/netfilter_ipv4/ip_tables.h), without copying the rules.
An edit that keeps all of these is not seen; a full reading now and then finds it. Asking for a table that
this namespace does not have would set it up, so only those it has are asked about. In a user namespace their
list is closed, and the two that are ours to fill are taken instead: reading rules sets those up as well.

*nft*: every commit by anyone counts up one number (NFT_MSG_GETGEN, include/uapi/linux/netfilter/nf_tables.h).

Both concern the network namespace of the calling thread, and need CAP_NET_ADMIN; a raw socket CAP_NET_RAW.
Every call opens its own socket: that costs some microseconds, and needs no agreement between threads.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Mapping
from pathlib import Path
from struct import Struct

SOL_IP, SOL_IPV6 = 0, 41
SO_GET_INFO = 64
"""The same number for both families (IPT_SO_GET_INFO, IP6T_SO_GET_INFO)."""
INFO = Struct("=32sI5I5III")
"""struct ipt_getinfo: name, valid hooks, hook entries, underflows, number of rules, size in octets."""
TABLES = Path("/proc/thread-self/net/ip_tables_names"), Path("/proc/thread-self/net/ip6_tables_names")
OUR_TABLES = ("filter", "nat")

NETLINK_NETFILTER = 12
NFT_MSG_GETGEN = 10 << 8 | 16
"""Subsystem NFNL_SUBSYS_NFTABLES, message 16."""
NLM_F_REQUEST, NLMSG_ERROR = 1, 2
NFTA_GEN_ID = 1
ANSWER_S = 1.0
_REQUEST = Struct("=IHHIIBBH")
_HEADER = Struct("=IHHII")
_ATTR = Struct("=HH")
_libc = ctypes.CDLL(None, use_errno=True)


def generation(flavour: str, family: int = 4) -> object:
    """Differs once rules have changed; None where it cannot be told."""
    try:
        return _nft() if flavour == "nft" else _legacy(family)
    except OSError:
        return None


def nobody_else(flavour: str, before: object, after: object, commits: int, entries: Mapping[str, int]) -> bool:
    """Whether our own writing explains how the generation went from `before` to `after`: so many commits, by
    which each table got so many entries more. A user's chain has two entries and one for each rule."""
    if flavour == "nft":
        return isinstance(before, bytes) and isinstance(after, bytes) and _counted(before, after) == commits
    old, new = _entries(before), _entries(after)
    return bool(old) and new == {table: count + entries.get(table, 0) for table, count in old.items()}


def _counted(before: bytes, after: bytes) -> int:
    return (int.from_bytes(after, "big") - int.from_bytes(before, "big")) % (1 << 8 * len(before))


def _entries(generation: object) -> dict[str, int]:
    """The number of entries of each table."""
    infos = [INFO.unpack(table) for table in generation] if isinstance(generation, tuple) else []
    return {info[0].split(b"\0")[0].decode(): info[-2] for info in infos}


def _legacy(family: int) -> tuple[bytes, ...]:
    level, domain = (SOL_IP, socket.AF_INET) if family == 4 else (SOL_IPV6, socket.AF_INET6)
    with socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        return tuple(_info(sock.fileno(), level, table) for table in _tables(family))


def _info(descriptor: int, level: int, table: str) -> bytes:
    """The table's name goes in by the buffer that the answer comes back in, which Python's own getsockopt
    does not do. Raises OSError."""
    buffer = ctypes.create_string_buffer(table.encode(), INFO.size)
    size = ctypes.c_uint32(INFO.size)
    if _libc.getsockopt(descriptor, level, SO_GET_INFO, buffer, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), f"table {table}")
    return buffer.raw


def _tables(family: int) -> tuple[str, ...]:
    try:
        return tuple(sorted(TABLES[family != 4].read_text().split()))
    except PermissionError:
        return OUR_TABLES


def _nft() -> bytes:
    """The number itself. Without nf_tables in the kernel nobody answers, or with an error. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(ANSWER_S)
        sock.send(_REQUEST.pack(_REQUEST.size, NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0, 0, 0, 0))
        answer = sock.recv(4096)
    kind, at = _HEADER.unpack_from(answer)[1], _REQUEST.size
    while kind != NLMSG_ERROR and at + _ATTR.size <= len(answer):
        length, attribute = _ATTR.unpack_from(answer, at)
        if attribute == NFTA_GEN_ID:
            return answer[at + _ATTR.size : at + length]
        at += (length + 3) & ~3 or _ATTR.size
    raise OSError(errno.ENOTSUP, "no generation in the answer")
