"""Requests to rtnetlink for everything that comes in thousands, packed by hand.

A message is a header (length, type, flags, sequence number, port id), a fixed part that depends on the
type, and attributes: length, type and payload, each padded to four bytes (RFC 3549; rtnetlink(7);
include/uapi/linux/{netlink,rtnetlink,neighbour,if_addr}.h). Every message of one kind has the same
layout, so one `struct.Struct` made beforehand packs it in about a microsecond; a general encoder takes
several hundred. Integers are in the machine's byte order, addresses in the network's.

Sequence numbers are left zero: `handle.Rtnl` writes them when it sends, so a message is a plain value.

A forwarding entry travels as a neighbour of family AF_BRIDGE. NTF_SELF addresses the device's own
table (a VXLAN device's: MAC to peer), NTF_MASTER that of the bridge the device is a port of.
"""

from __future__ import annotations

import sys
from socket import AF_INET, AF_INET6
from struct import Struct

from overlaynet.addr import IPAddress, Mac
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

HEADER = Struct("=IHHII")
ATTR = Struct("=HH")
NDMSG = Struct("=BxxxiHBB")
RTMSG = Struct("=BBBBBBBBI")
IFADDRMSG = Struct("=BBBBi")
IFINFOMSG = Struct("=BxHiII")

_U32_ATTR = Struct("=HHI")
_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
_NEIGH = {v: Struct(f"=IHHIIBxxxiHBBHH{n}sHH6sxx") for v, n in WIDTH.items()}
_FDB_PEER = {v: Struct(f"=IHHIIBxxxiHBBHH6sxxHH{n}s") for v, n in WIDTH.items()}
_FDB_PLAIN = Struct("=IHHIIBxxxiHBBHH6sxx")
_ROUTE = {v: Struct(f"=IHHIIBBBBBBBBIHHIHHIHH{n}s") for v, n in WIDTH.items()}
_HOP = {v: Struct(f"=HHIHH{n}s") for v, n in WIDTH.items()}


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


# --- neighbours and forwarding entries ------------------------------------------------------------


def put_neigh(entry: Neigh, ifindex: int) -> bytes:
    """Create or replace. An entry that has no MAC (a failed one, say) is sent with zeros."""
    return _neigh(RTM_NEWNEIGH, _PUT, entry, ifindex)


def drop_neigh(entry: Neigh, ifindex: int) -> bytes:
    """The kernel finds the entry by device and address alone; the MAC is sent but not looked at."""
    return _neigh(RTM_DELNEIGH, NLM_F_REQUEST, entry, ifindex)


def _neigh(kind: int, flags: int, entry: Neigh, ifindex: int) -> bytes:
    version = entry.ip.version
    layout, width = _NEIGH[version], 4 + WIDTH[version]
    state = NUD_NUMBER[entry.state]
    fixed = (layout.size, kind, flags, 0, 0, FAMILY[version], ifindex, state, 0, 0)
    return layout.pack(*fixed, width, NDA_DST, entry.ip.packed, 10, NDA_LLADDR, _lladdr(entry.mac))


def _lladdr(mac: Mac | None) -> bytes:
    return mac.packed if mac else bytes(6)


def put_fdb(entry: Fdb, ifindex: int) -> bytes:
    """Create or replace."""
    return _fdb(RTM_NEWNEIGH, _PUT, entry, ifindex)


def drop_fdb(entry: Fdb, ifindex: int) -> bytes:
    """With a peer's address in it, only that destination of the MAC goes."""
    return _fdb(RTM_DELNEIGH, NLM_F_REQUEST, entry, ifindex)


def _fdb(kind: int, flags: int, entry: Fdb, ifindex: int) -> bytes:
    state = FDB_STATE_NUMBER[entry.state]
    dst = entry.dst
    if dst is None:
        table = NTF_MASTER if entry.master else NTF_SELF
        fixed = (_FDB_PLAIN.size, kind, flags, 0, 0, AF_BRIDGE, ifindex, state, table, 0)
        return _FDB_PLAIN.pack(*fixed, 10, NDA_LLADDR, entry.mac.packed)
    layout, width = _FDB_PEER[dst.version], 4 + WIDTH[dst.version]
    fixed = (layout.size, kind, flags, 0, 0, AF_BRIDGE, ifindex, state, NTF_SELF, 0)
    return layout.pack(*fixed, 10, NDA_LLADDR, entry.mac.packed, width, NDA_DST, dst.packed)


# --- routes ---------------------------------------------------------------------------------------


def put_route(route: Route, ifindex: int) -> bytes:
    """Create or replace; the kernel takes table, destination and metric for the same route."""
    return _route(RTM_NEWROUTE, _PUT, route, ifindex, SCOPE_NUMBER[route.scope])


def drop_route(route: Route, ifindex: int) -> bytes:
    """A metric of 0 matches any (net/ipv4/fib_semantics.c, fib_nh_match), so the rest is sent as well."""
    return _route(RTM_DELROUTE, NLM_F_REQUEST, route, ifindex, RT_SCOPE_NOWHERE)


def _route(kind: int, flags: int, route: Route, ifindex: int, scope: int) -> bytes:
    more = _route_extras(route, ifindex)
    dst = route.dst
    version = dst.version
    layout = _ROUTE[version]
    onlink = RTNH_F_ONLINK if route.onlink else 0
    table = route.table if route.table < 256 else 0
    packed = layout.pack(
        layout.size + len(more), kind, flags, 0, 0,
        FAMILY[version], dst.prefixlen, 0, 0, table, route.protocol, scope,
        ROUTE_TYPE_NUMBER[route.type], onlink,
        8, RTA_TABLE, route.table, 8, RTA_PRIORITY, route.metric,
        4 + WIDTH[version], RTA_DST, dst.network_address.packed,
    )  # fmt: skip
    return packed + more


def _route_extras(route: Route, ifindex: int) -> bytes:
    via, version = route.via, route.dst.version
    if ifindex and via is not None and via.version == version:
        more = _HOP[version].pack(8, RTA_OIF, ifindex, 4 + WIDTH[version], RTA_GATEWAY, via.packed)
    else:
        more = _u32(RTA_OIF, ifindex) if ifindex else b""
        more += _gateway(via, version) if via else b""
    if route.prefsrc is not None:
        more += attribute(RTA_PREFSRC, route.prefsrc.packed)
    return more


def _gateway(via: IPAddress, version: int) -> bytes:
    if via.version == version:
        return attribute(RTA_GATEWAY, via.packed)
    return attribute(RTA_VIA, FAMILY[via.version].to_bytes(2, sys.byteorder) + via.packed)


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


def dump_addresses() -> bytes:
    return message(RTM_GETADDR, NLM_F_DUMP, bytes(8))


def dump_neighs() -> bytes:
    return message(RTM_GETNEIGH, NLM_F_DUMP, bytes(12))


def dump_fdb() -> bytes:
    return message(RTM_GETNEIGH, NLM_F_DUMP, NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0))


def dump_routes() -> bytes:
    return message(RTM_GETROUTE, NLM_F_DUMP, bytes(12))


def dump_rules() -> bytes:
    return message(RTM_GETRULE, NLM_F_DUMP, bytes(12))


def _no_stats() -> bytes:
    """Link answers without counters, which would be most of their length (ignored before Linux 4.4)."""
    return _u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
