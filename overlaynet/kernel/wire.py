"""Requests to rtnetlink for everything that comes in thousands, packed by hand.

A message is a header (length, type, flags, sequence number, port id), a fixed part that depends on the
type, and attributes: length, type and payload, each padded to four bytes (RFC 3549; rtnetlink(7);
include/uapi/linux/{netlink,rtnetlink,neighbour,if_addr}.h). The messages of one table differ in little more
than addresses: what they have in common is packed once and kept (`HEADS`), the rest is put behind it, in
about a microsecond; a general encoder takes several hundred. Integers are in the machine's byte order,
addresses in the network's.

Sequence numbers are left zero: `handle.Rtnl` writes them when it sends, so a message is a plain value.

A forwarding entry travels as a neighbour of family AF_BRIDGE. NTF_SELF addresses the device's own
table (a VXLAN device's: MAC to peer), NTF_MASTER that of the bridge the device is a port of.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from socket import AF_INET, AF_INET6
from struct import Struct

from overlaynet.addr import CACHED, IPAddress, Mac
from overlaynet.state import Address, Fdb, Neigh, Route

AF_BRIDGE = 7
FAMILY = {4: AF_INET, 6: AF_INET6}
WIDTH = {4: 4, 6: 16}
"""Octets of an address, by IP version."""

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETRULE = 34
RTM_NEWLINKPROP = 108
RTM_DELLINKPROP = 109

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP = 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

NTF_SELF, NTF_MASTER = 0x02, 0x04
NUD = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
    0x00: "none",
}
"""Neighbour states by number, in the words of `ip neigh`."""
NUD_NUMBER = {word: number for number, word in NUD.items()}
FDB_STATE_NUMBER = {"permanent": 0x80, "static": 0x40, "dynamic": 0x02}
"""What `bridge fdb` calls static and dynamic are the neighbour states noarp and reachable."""

ROUTE_TYPE = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
ROUTE_TYPE_NUMBER = {word: number for number, word in ROUTE_TYPE.items()}
SCOPE = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
SCOPE_NUMBER = {word: number for number, word in SCOPE.items()}
RT_SCOPE_NOWHERE = 255
"""In a deletion: any scope."""
RT_TABLE_LOCAL = 255
RTNH_F_ONLINK = 0x4

NDA_DST, NDA_LLADDR, NDA_VLAN, NDA_MASTER = 1, 2, 5, 9
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 15, 18
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD = 0x02
IFLA_IFNAME, IFLA_EXT_MASK = 3, 29
RTEXT_FILTER_SKIP_STATS = 0x8

HEADS = 8_192
"""Beginnings of messages kept: a few for each device and kind."""

HEADER = Struct("=IHHII")
ATTR = Struct("=HH")
NDMSG = Struct("=BxxxiHBB")
RTMSG = Struct("=BBBBBBBBI")
RTM_F_CLONED = 0x200
IFADDRMSG = Struct("=BBBBi")
IFINFOMSG = Struct("=BxHiII")

_U32 = Struct("=I")
_U32_ATTR = Struct("=HHI")
_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
_NEIGH_HEAD = Struct("=IHHIIBxxxiHBB")
_ROUTE_HEAD = Struct("=IHHIIBBBBBBBBIHHIHH")
_MAC_HEAD = ATTR.pack(10, NDA_LLADDR)
_PAD = bytes(2)
"""Behind a MAC."""
_DST_HEAD = {width: ATTR.pack(4 + width, NDA_DST) for width in WIDTH.values()}
_ROUTE_DST_HEAD = {width: ATTR.pack(4 + width, RTA_DST) for width in WIDTH.values()}
_GATEWAY_HEAD = {width: ATTR.pack(4 + width, RTA_GATEWAY) for width in WIDTH.values()}
_FAMILY = {WIDTH[version]: family for version, family in FAMILY.items()}


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTR.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, flags: int, fixed: bytes, attributes: bytes = b"") -> bytes:
    """A request of any kind; the hot ones below are packed in one piece instead."""
    return (
        HEADER.pack(16 + len(fixed) + len(attributes), kind, flags | NLM_F_REQUEST, 0, 0) + fixed + attributes
    )


def _u32(kind: int, value: int) -> bytes:
    return _U32_ATTR.pack(8, kind, value)


@lru_cache(maxsize=HEADS)
def _neigh_head(size: int, kind: int, flags: int, family: int, ifindex: int, state: int, table: int) -> bytes:
    """Message header and fixed part, for `size` octets of attributes."""
    return _NEIGH_HEAD.pack(28 + size, kind, flags, 0, 0, family, ifindex, state, table, 0)


@lru_cache(maxsize=CACHED)
def _octets(mac: Mac) -> bytes:
    """A peer's MAC is sent twice, and parsing its text takes as long as the rest of a message."""
    return mac.packed


# --- neighbours and forwarding entries ------------------------------------------------------------


def put_neigh(entry: Neigh, ifindex: int) -> bytes:
    """Create or replace. An entry that has no MAC (a failed one, say) is sent with zeros."""
    return _neigh(RTM_NEWNEIGH, _PUT, entry, ifindex)


def drop_neigh(entry: Neigh, ifindex: int) -> bytes:
    """The kernel finds the entry by device and address alone; the MAC is sent but not looked at."""
    return _neigh(RTM_DELNEIGH, NLM_F_REQUEST, entry, ifindex)


def _neigh(kind: int, flags: int, entry: Neigh, ifindex: int) -> bytes:
    _, ip, mac, state = entry
    dst = ip.packed
    width = len(dst)
    head = _neigh_head(width + 16, kind, flags, _FAMILY[width], ifindex, NUD_NUMBER[state], 0)
    return head + _DST_HEAD[width] + dst + _MAC_HEAD + (_octets(mac) if mac else bytes(6)) + _PAD


def put_fdb(entry: Fdb, ifindex: int) -> bytes:
    """Create or replace."""
    return _fdb(RTM_NEWNEIGH, _PUT, entry, ifindex)


def drop_fdb(entry: Fdb, ifindex: int) -> bytes:
    """With a peer's address in it, only that destination of the MAC goes."""
    return _fdb(RTM_DELNEIGH, NLM_F_REQUEST, entry, ifindex)


def _fdb(kind: int, flags: int, entry: Fdb, ifindex: int) -> bytes:
    _, mac, dst, master, word = entry
    state = FDB_STATE_NUMBER[word]
    if dst is None:
        table = NTF_MASTER if master else NTF_SELF
        head = _neigh_head(12, kind, flags, AF_BRIDGE, ifindex, state, table)
        return head + _MAC_HEAD + _octets(mac) + _PAD
    peer = dst.packed
    head = _neigh_head(len(peer) + 16, kind, flags, AF_BRIDGE, ifindex, state, NTF_SELF)
    return head + _MAC_HEAD + _octets(mac) + _PAD + _DST_HEAD[len(peer)] + peer


# --- routes ---------------------------------------------------------------------------------------


def put_route(route: Route, ifindex: int) -> bytes:
    """Create or replace; the kernel takes table, destination and metric for the same route."""
    return _route(RTM_NEWROUTE, _PUT, route, ifindex, SCOPE_NUMBER[route.scope])


def drop_route(route: Route, ifindex: int) -> bytes:
    """A metric of 0 matches any (net/ipv4/fib_semantics.c, fib_nh_match), so the rest is sent as well."""
    return _route(RTM_DELROUTE, NLM_F_REQUEST, route, ifindex, RT_SCOPE_NOWHERE)


def _route(kind: int, flags: int, route: Route, ifindex: int, scope: int) -> bytes:
    network, _, via, metric, onlink, table, protocol, _, word, prefsrc = route
    dst = network.network_address.packed
    width = len(dst)
    rest = _U32.pack(metric) + _ROUTE_DST_HEAD[width] + dst
    rest += _hop(via, ifindex, width)
    if prefsrc is not None:
        rest += attribute(RTA_PREFSRC, prefsrc.packed)
    family, length = _FAMILY[width], network.prefixlen
    return _route_head(len(rest), kind, flags, family, length, table, protocol, scope, word, onlink) + rest


@lru_cache(maxsize=HEADS)
def _route_head(
    size: int, kind: int, flags: int, family: int, prefixlen: int, table: int, protocol: int, scope: int,
    word: str, onlink: bool,
) -> bytes:  # fmt: skip
    """All up to the metric, for `size` octets from there on."""
    return _ROUTE_HEAD.pack(
        _ROUTE_HEAD.size + size, kind, flags, 0, 0,
        family, prefixlen, 0, 0, table if table < 256 else 0, protocol, scope,
        ROUTE_TYPE_NUMBER[word], RTNH_F_ONLINK if onlink else 0,
        8, RTA_TABLE, table, 8, RTA_PRIORITY,
    )  # fmt: skip


def _hop(via: IPAddress | None, ifindex: int, width: int) -> bytes:
    """Device and gateway; the latter may be of the other family than the destination, `width` octets long."""
    device = _device(ifindex) if ifindex else b""
    if via is None:
        return device
    gateway = via.packed
    if len(gateway) == width:
        return device + _GATEWAY_HEAD[width] + gateway
    return device + attribute(RTA_VIA, _FAMILY[len(gateway)].to_bytes(2, sys.byteorder) + gateway)


@lru_cache(maxsize=HEADS)
def _device(ifindex: int) -> bytes:
    return _u32(RTA_OIF, ifindex)


# --- addresses ------------------------------------------------------------------------------------


def put_address(address: Address, ifindex: int) -> bytes:
    """Without duplicate address detection: addresses are given out by the lease, not found by asking."""
    return _address(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, address, ifindex)


def drop_address(address: Address, ifindex: int) -> bytes:
    return _address(RTM_DELADDR, NLM_F_REQUEST, address, ifindex)


def _address(kind: int, flags: int, address: Address, ifindex: int) -> bytes:
    interface = address.interface
    packed = interface.ip.packed
    attributes = attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if interface.version == 6:
        attributes += _u32(IFA_FLAGS, IFA_F_NODAD)
    fixed = IFADDRMSG.pack(FAMILY[interface.version], interface.network.prefixlen, 0, 0, ifindex)
    return message(kind, flags, fixed, attributes)


# --- questions ------------------------------------------------------------------------------------


def get_link(name: str) -> bytes:
    """Ask for one link by name."""
    return message(RTM_GETLINK, 0, bytes(16), _no_stats() + attribute(IFLA_IFNAME, name.encode() + b"\0"))


def dump_links() -> bytes:
    return message(RTM_GETLINK, NLM_F_DUMP, bytes(16), _no_stats())


def dump_addresses(family: int = 0) -> bytes:
    """Of every family, or of one."""
    return message(RTM_GETADDR, NLM_F_DUMP, IFADDRMSG.pack(family, 0, 0, 0, 0))


def dump_neighs() -> bytes:
    return message(RTM_GETNEIGH, NLM_F_DUMP, bytes(12))


def dump_fdb() -> bytes:
    return message(RTM_GETNEIGH, NLM_F_DUMP, NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0))


def dump_routes() -> bytes:
    return message(RTM_GETROUTE, NLM_F_DUMP, bytes(12))


def dump_exceptions() -> bytes:
    """What the kernel remembers of single IPv4 addresses beside its routes (Linux 5.3, net/ipv4/fib_frontend.c,
    inet_dump_fib). A kernel that does not check strictly (before 4.20) answers with routes instead."""
    return message(RTM_GETROUTE, NLM_F_DUMP, RTMSG.pack(AF_INET, 0, 0, 0, 0, 0, 0, 0, RTM_F_CLONED))


def dump_rules() -> bytes:
    return message(RTM_GETRULE, NLM_F_DUMP, bytes(12))


def _no_stats() -> bytes:
    """Link answers without counters, which would be most of their length (ignored before Linux 4.4)."""
    return _u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
