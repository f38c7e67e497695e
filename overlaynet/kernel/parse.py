"""rtnetlink's answers, as tuples of `overlaynet.state`.

Every answer comes as (buffer, start, end): the part behind the message header, to be read in place.
`attributes` reads any message, plainly. Where there can be tens of thousands, an entry shaped like a
peer's (IPv4, and the kernel's usual order of attributes) is taken apart by one prepared `struct.Struct`
that covers fixed part and attributes together, and its tuple is made without the detour over a Python
constructor; anything of another shape falls back to the plain way. What was read before is not read again
(`Known`), and addresses come out of caches.

Interface indices become names by a mapping that was read just before. An entry on a device that is not
in it is left out: its device came or went in between, and whoever observes will hear of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6
from struct import Struct, unpack_from
from typing import NamedTuple, TypeAlias, TypeVar

from overlaynet.addr import IPAddress, Mac, address, interface, mac_of, network
from overlaynet.kernel import wire
from overlaynet.state import MAIN_TABLE, Address, Fdb, IpRule, LearnedMtu, LinkInfo, Neigh, Route, Vxlan

Answer: TypeAlias = tuple[bytes, int, int]
"""A buffer, and where in it one message's payload starts and ends."""
Names: TypeAlias = Mapping[int, str]
Attributes: TypeAlias = dict[int, bytes]
T = TypeVar("T")

IFF_UP, IFF_RUNNING = 0x1, 0x40
ARPHRD = {1: "ether", 772: "loopback"}
IFLA_ADDRESS, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 4, 5, 10, 18
IFLA_LINK_NETNSID, IFLA_PROP_LIST = 37, 52
IFLA_ALT_IFNAME = 53
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 15, 17
IFLA_BRPORT_MODE = 4
RTA_METRICS, RTA_CACHEINFO, RTAX_MTU = 8, 12, 2
USER_HZ = os.sysconf("SC_CLK_TCK")
"""Ticks of a second, in which the kernel tells when an exception expires (struct rta_cacheinfo)."""
"""A bridge port's hairpin flag (include/uapi/linux/if_link.h)."""
NESTED = 0x3FFF
"""Mask that takes the flags "nested" and "network byte order" off an attribute's type."""


class Device(NamedTuple):
    """A link as it comes: other links are still numbers."""

    info: LinkInfo
    master: int
    underlay: int


def attributes(buffer: bytes, start: int, end: int) -> Attributes:
    """Attributes by type; of a repeated one, the last."""
    return dict(_walk(buffer, start, end))


def _walk(buffer: bytes, start: int, end: int) -> Iterable[tuple[int, bytes]]:
    while start + 4 <= end:
        length, kind = wire.ATTR.unpack_from(buffer, start)
        yield kind & NESTED, buffer[start + 4 : start + length]
        start += (length + 3) & ~3 or 4


def nested(found: Attributes, kind: int) -> Attributes:
    """The attributes within one; none if it is not there."""
    inner = found.get(kind, b"")
    return attributes(inner, 0, len(inner))


def _number(found: Attributes, kind: int, default: int = 0) -> int:
    return int(unpack_from("=I", found[kind])[0]) if kind in found else default


def text(octets: bytes) -> str:
    """Without the zero byte at its end."""
    return octets.rstrip(b"\0").decode(errors="replace")


# --- links ----------------------------------------------------------------------------------------


def links(answers: Iterable[Answer]) -> dict[str, LinkInfo]:
    """Links by name."""
    devices = [_device(answer) for answer in answers]
    names = {device.info.ifindex: device.info.name for device in devices}
    return {device.info.name: _named(device, names) for device in devices}


def ifindex(answer: Answer) -> int:
    """The index of one link."""
    return int(wire.IFINFOMSG.unpack_from(answer[0], answer[1])[2])


def _device(answer: Answer) -> Device:
    buffer, start, end = answer
    _, hardware, index, flags, _ = wire.IFINFOMSG.unpack_from(buffer, start)
    found = attributes(buffer, start + 16, end)
    about = nested(found, IFLA_LINKINFO)
    kind = text(about.get(IFLA_INFO_KIND, b"")) or ARPHRD.get(hardware, str(hardware))
    data = nested(about, IFLA_INFO_DATA) if kind == "vxlan" else {}
    properties = found.get(IFLA_PROP_LIST, b"")
    info = LinkInfo(
        ifindex=index,
        name=text(found[wire.IFLA_IFNAME]),
        type=kind,
        mac=_mac(found.get(IFLA_ADDRESS, b"")),
        mtu=_number(found, IFLA_MTU),
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_RUNNING),
        altnames=tuple(text(v) for k, v in _walk(properties, 0, len(properties)) if k == IFLA_ALT_IFNAME),
        vxlan=_vxlan(data) if kind == "vxlan" else None,
        hairpin=_hairpin(about),
        peer_netns=unpack_from("=i", found[IFLA_LINK_NETNSID])[0] if IFLA_LINK_NETNSID in found else None,
        peer=_number(found, IFLA_LINK) or None if kind == "veth" else None,
    )
    return Device(info, _number(found, IFLA_MASTER), _number(data, IFLA_VXLAN_LINK))


def _named(device: Device, names: Names) -> LinkInfo:
    vxlan = device.info.vxlan
    return device.info._replace(
        master=names.get(device.master),
        vxlan=vxlan and vxlan._replace(underlay=names.get(device.underlay, "")),
    )


def _vxlan(data: Attributes) -> Vxlan:
    """A device without a local address has the unspecified one here, one without underlay no name."""
    local = data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6) or bytes(4)
    port = data.get(IFLA_VXLAN_PORT, b"\0\0")
    learning = data.get(IFLA_VXLAN_LEARNING, b"\0")
    return Vxlan(
        vni=_number(data, IFLA_VXLAN_ID),
        port=int.from_bytes(port, "big"),
        local=address(local),
        underlay="",
        learning=learning != b"\0",
    )


def _hairpin(about: Attributes) -> bool | None:
    if about.get(IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") != b"bridge":
        return None
    return nested(about, IFLA_INFO_SLAVE_DATA).get(IFLA_BRPORT_MODE, b"\0") != b"\0"


def _mac(octets: bytes) -> Mac | None:
    return mac_of(octets) if len(octets) == 6 else None


# --- addresses ------------------------------------------------------------------------------------


def addresses(answers: Iterable[Answer], names: Names) -> Iterable[Address]:
    """IPv4 and IPv6 addresses; of a point-to-point one, our own end."""
    for buffer, start, end in answers:
        _, prefixlen, _, _, index = wire.IFADDRMSG.unpack_from(buffer, start)
        found = attributes(buffer, start + 8, end)
        octets = found.get(wire.IFA_LOCAL) or found.get(wire.IFA_ADDRESS)
        if octets and index in names:
            yield Address(names[index], interface(octets, prefixlen))


def own_addresses(answers: Iterable[Answer]) -> frozenset[IPAddress]:
    """The addresses alone, on whatever device."""
    found = (attributes(buffer, start + 8, end) for buffer, start, end in answers)
    octets = (each.get(wire.IFA_LOCAL) or each.get(wire.IFA_ADDRESS) for each in found)
    return frozenset(address(each) for each in octets if each)


# --- the big tables -------------------------------------------------------------------------------

_tuple = tuple.__new__
PEER_NEIGH = Struct("=BxxxiHBBHH4sHH6s")
PEER_NEIGH_SHAPE = (8, wire.NDA_DST, 10, wire.NDA_LLADDR)
"""net/core/neighbour.c, neigh_fill_info."""
PEER_FDB = Struct("=BxxxiHBBHH6sxxHH4s")
PEER_FDB_SHAPE = (10, wire.NDA_LLADDR, 8, wire.NDA_DST)
"""drivers/net/vxlan/vxlan_core.c, vxlan_fdb_info."""
PEER_ROUTE = Struct("=BBBBBBBBIHHIHH4sHHIHH4sHHI")
PEER_ROUTE_SHAPE = (
    8,
    wire.RTA_TABLE,
    8,
    wire.RTA_DST,
    8,
    wire.RTA_PRIORITY,
    8,
    wire.RTA_GATEWAY,
    8,
    wire.RTA_OIF,
)
"""net/ipv4/fib_semantics.c, fib_dump_info."""


@dataclass(slots=True)
class Known:
    """Entries shaped like a peer's that were read before, by their octets (without the counters and ages that
    follow). The next look gives the same objects again: a dictionary's answer costs a quarter of reading
    an entry, and whoever compares two looks sees at once that nothing changed. `names` are the devices
    that the entries were read for; with others all are forgotten."""

    names: Names = field(default_factory=dict)
    neighs: dict[bytes, Neigh] = field(default_factory=dict)
    fdb: dict[bytes, Fdb] = field(default_factory=dict)
    routes: dict[bytes, Route] = field(default_factory=dict)

    def use(self, names: Names) -> None:
        """From here on the devices are these."""
        if names != self.names:
            self.names = names
            for table in (self.neighs, self.fdb, self.routes):
                table.clear()


def _table(
    answers: Iterable[Answer],
    names: Names,
    known: dict[bytes, T],
    size: int,
    peer: Callable[[bytes, Names], T | None],
    other: Callable[[Answer, Names], list[T]],
) -> tuple[list[T], list[T]]:
    """Entries whose first `size` octets `peer` understands, and those that are left to `other`."""
    peers: list[T] = []
    others: list[T] = []
    append, get = peers.append, known.get
    for answer in answers:
        buffer, start, end = answer
        entry = None
        if end - start >= size:
            octets = buffer[start : start + size]
            entry = get(octets)
            if entry is None and (entry := peer(octets, names)) is not None:
                known[octets] = entry
        if entry is None:
            others += other(answer, names)
        else:
            append(entry)
    if len(known) > 2 * len(peers) + SLACK:
        known.clear()  # mostly entries that are gone
    return peers, others


SLACK = 1_024


def neighs(answers: Iterable[Answer], names: Names, known: Known | None = None) -> list[Neigh]:
    """Neighbours of both families in every state."""
    known = known or Known()
    peers, others = _table(answers, names, known.neighs, PEER_NEIGH.size, _peer_neigh, _neigh)
    return peers + others


def _peer_neigh(octets: bytes, names: Names) -> Neigh | None:
    _, index, state, _, _, len1, kind1, ip, len2, kind2, mac = PEER_NEIGH.unpack(octets)
    if (len1, kind1, len2, kind2) != PEER_NEIGH_SHAPE or index not in names or state not in wire.NUD:
        return None
    return _tuple(Neigh, (names[index], address(ip), mac_of(mac), wire.NUD[state]))


def _neigh(answer: Answer, names: Names) -> list[Neigh]:
    buffer, start, end = answer
    family, index, state, _, _ = wire.NDMSG.unpack_from(buffer, start)
    found = attributes(buffer, start + 12, end)
    if index not in names or family not in ANY or wire.NDA_DST not in found:
        return []
    mac = _mac(found.get(wire.NDA_LLADDR, b""))
    return [Neigh(names[index], address(found[wire.NDA_DST]), mac, wire.NUD.get(state, str(state)))]


def fdb(answers: Iterable[Answer], names: Names, known: Known | None = None) -> list[Fdb]:
    """Forwarding entries of VXLAN devices, bridges and whatever else keeps a table.

    A bridge holds its ports' own addresses once plainly and once for VLAN 1; here they are one entry.
    """
    known = known or Known()
    peers, others = _table(answers, names, known.fdb, PEER_FDB.size, _peer_fdb, _fdb)
    return peers + list(dict.fromkeys(others))


def _peer_fdb(octets: bytes, names: Names) -> Fdb | None:
    _, index, state, _, _, len1, kind1, mac, len2, kind2, dst = PEER_FDB.unpack(octets)
    if (len1, kind1, len2, kind2) != PEER_FDB_SHAPE or index not in names or state != FDB_PERMANENT:
        return None
    return _tuple(Fdb, (names[index], mac_of(mac), address(dst), None, "permanent"))


def _fdb(answer: Answer, names: Names) -> list[Fdb]:
    buffer, start, end = answer
    _, index, state, _, _ = wire.NDMSG.unpack_from(buffer, start)
    found = attributes(buffer, start + 12, end)
    mac = _mac(found.get(wire.NDA_LLADDR, b""))
    if index not in names or mac is None:
        return []
    dst = address(found[wire.NDA_DST]) if wire.NDA_DST in found else None
    word = "permanent" if state & 0x80 else "static" if state & 0x40 else "dynamic"
    return [Fdb(names[index], mac, dst, names.get(_number(found, wire.NDA_MASTER)), word)]


FDB_PERMANENT = wire.FDB_STATE_NUMBER["permanent"]


def routes(answers: Iterable[Answer], names: Names, known: Known | None = None) -> list[Route]:
    """Routes of every table; of the local one without the broadcast, anycast and multicast noise.

    A route over several next hops has neither device nor gateway here.
    """
    known = known or Known()
    peers, others = _table(answers, names, known.routes, PEER_ROUTE.size, _peer_route, _route)
    return peers + others


def _peer_route(octets: bytes, names: Names) -> Route | None:
    (
        _, prefixlen, _, _, _, protocol, scope, kind, flags,
        len1, kind1, table, len2, kind2, dst, len3, kind3, metric, len4, kind4, via, len5, kind5, index,
    ) = PEER_ROUTE.unpack(octets)  # fmt: skip
    shape = (len1, kind1, len2, kind2, len3, kind3, len4, kind4, len5, kind5)
    if shape != PEER_ROUTE_SHAPE or kind != UNICAST or index not in names or scope not in wire.SCOPE:
        return None
    onlink, word = flags & wire.RTNH_F_ONLINK != 0, wire.SCOPE[scope]
    subnet, dev = network(dst, prefixlen), names[index]
    fields = (subnet, dev, address(via), metric, onlink, table, protocol, word, "unicast", None)
    return _tuple(Route, fields)


def _route(answer: Answer, names: Names) -> list[Route]:
    buffer, start, end = answer
    family, prefixlen, _, _, table, protocol, scope, kind, flags = wire.RTMSG.unpack_from(buffer, start)
    found = attributes(buffer, start + 12, end)
    index, table = _number(found, wire.RTA_OIF), _number(found, wire.RTA_TABLE, table)
    noise = flags & wire.RTM_F_CLONED or (table == wire.RT_TABLE_LOCAL and kind in CAST)
    if family not in ANY or noise or (index and index not in names):
        return []
    source = found.get(wire.RTA_PREFSRC)
    route = Route(
        dst=network(found.get(wire.RTA_DST, ANY[family]), prefixlen),
        dev=None if kind in NOWHERE else names.get(index),
        via=_gateway(found),
        metric=_number(found, wire.RTA_PRIORITY),
        onlink=flags & wire.RTNH_F_ONLINK != 0,
        table=table,
        protocol=protocol,
        scope=wire.SCOPE.get(scope, str(scope)),
        type=wire.ROUTE_TYPE.get(kind, str(kind)),
        prefsrc=address(source) if source else None,
    )
    return [route]


def learned(answers: Iterable[Answer], names: Names) -> list[LearnedMtu]:
    """What exceptions of routes say of a path's MTU; the others (redirects) say nothing of it."""
    return [entry for answer in answers for entry in _learned(answer, names)]


def _learned(answer: Answer, names: Names) -> Iterable[LearnedMtu]:
    buffer, start, end = answer
    *_, flags = wire.RTMSG.unpack_from(buffer, start)
    found = attributes(buffer, start + 12, end)
    mtu, index = _number(nested(found, RTA_METRICS), RTAX_MTU), _number(found, wire.RTA_OIF)
    if flags & wire.RTM_F_CLONED and mtu and index in names and len(found.get(RTA_CACHEINFO, b"")) >= 12:
        (ticks,) = unpack_from("=i", found[RTA_CACHEINFO], 8)
        yield LearnedMtu(address(found[wire.RTA_DST]), names[index], mtu, ticks / USER_HZ)


def _gateway(found: Attributes) -> IPAddress | None:
    if wire.RTA_VIA in found:
        return address(found[wire.RTA_VIA][2:])
    return address(found[wire.RTA_GATEWAY]) if wire.RTA_GATEWAY in found else None


ANY = {int(AF_INET): bytes(4), int(AF_INET6): bytes(16)}
"""The address of a default route, which the kernel does not send."""
UNICAST = wire.ROUTE_TYPE_NUMBER["unicast"]
CAST = frozenset(wire.ROUTE_TYPE_NUMBER[word] for word in ("broadcast", "anycast", "multicast"))
"""What the kernel fills its local table with beside the host's own addresses."""
NOWHERE = frozenset(wire.ROUTE_TYPE_NUMBER[word] for word in ("blackhole", "unreachable", "prohibit", "throw"))
"""Routes that end here; IPv6 says they are on the loopback."""


# --- policy routing -------------------------------------------------------------------------------

FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK = 1, 2, 3, 4, 6, 10
FRA_TUN_ID, FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN, FRA_L3MDEV, FRA_UID_RANGE = 12, 13, 14, 19, 20
FRA_TABLE, FRA_FWMASK, FRA_OIFNAME, FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 15, 16, 17, 22, 23, 24
FIB_RULE_INVERT = 0x2
RULE_ACTION = {2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
TABLE_NAME = {253: "default", MAIN_TABLE: "main", wire.RT_TABLE_LOCAL: "local"}
KERNEL_RULES = frozenset(
    IpRule(priority, family + text)
    for family in ("", "inet6 ")
    for priority, text in (
        (0, "from all lookup local"),
        (32766, "from all lookup main"),
        (32767, "from all lookup default"),
    )
)
"""The rules that every namespace starts with."""


def rules(answers: Iterable[Answer]) -> list[IpRule]:
    """Rules that somebody made, in the words of `ip rule`; an IPv6 one begins with ``inet6``."""
    found = (_rule(answer) for answer in answers if answer[0][answer[1]] in ANY)
    return [rule for rule in found if rule not in KERNEL_RULES]


def _rule(answer: Answer) -> IpRule:
    buffer, start, end = answer
    family, dst_len, src_len, tos, table, _, _, action, flags = wire.RTMSG.unpack_from(buffer, start)
    found = attributes(buffer, start + 12, end)
    words = ["inet6"] if family == AF_INET6 else []
    words += ["not"] if flags & FIB_RULE_INVERT else []
    words += ["from", _selector(found, FRA_SRC, src_len)]
    words += ["to", _selector(found, FRA_DST, dst_len)] if FRA_DST in found else []
    words += ["tos", f"{tos:#x}"] if tos else []
    words += _conditions(found)
    words += _action(found, action, _number(found, FRA_TABLE, table))
    return IpRule(_number(found, FRA_PRIORITY), " ".join(words))


def _selector(found: Attributes, kind: int, prefixlen: int) -> str:
    return f"{address(found[kind])}/{prefixlen}" if kind in found else "all"


def _conditions(found: Attributes) -> list[str]:
    words = []
    if FRA_FWMARK in found:
        mask = _number(found, FRA_FWMASK, 0xFFFFFFFF)
        words += ["fwmark", f"{_number(found, FRA_FWMARK):#x}" + (f"/{mask:#x}" if mask != 0xFFFFFFFF else "")]
    for word, kind in (("iif", FRA_IIFNAME), ("oif", FRA_OIFNAME)):
        words += [word, text(found[kind])] if kind in found else []
    words += ["ipproto", str(found[FRA_IP_PROTO][0])] if FRA_IP_PROTO in found else []
    for word, kind in (("sport", FRA_SPORT_RANGE), ("dport", FRA_DPORT_RANGE)):
        words += [word, "-".join(map(str, unpack_from("=HH", found[kind])))] if kind in found else []
    return words + _rare_conditions(found)


def _rare_conditions(found: Attributes) -> list[str]:
    """Those of tunnels, VRFs and senders. The kernel sends the two of suppression always, -1 for none."""
    words = []
    for word, kind in (
        ("suppress_prefixlength", FRA_SUPPRESS_PREFIXLEN),
        ("suppress_ifgroup", FRA_SUPPRESS_IFGROUP),
    ):
        number = _number(found, kind, 0xFFFFFFFF)
        words += [word, str(number)] if number != 0xFFFFFFFF else []
    if FRA_UID_RANGE in found:
        words += ["uidrange", "-".join(map(str, unpack_from("=II", found[FRA_UID_RANGE])))]
    if FRA_TUN_ID in found:
        words += ["tun_id", str(int.from_bytes(found[FRA_TUN_ID], "big"))]
    return words + (["l3mdev", "1"] if any(found.get(FRA_L3MDEV, b"")) else [])


def _action(found: Attributes, action: int, table: int) -> list[str]:
    word = RULE_ACTION.get(action)
    if word is None:
        return ["lookup", TABLE_NAME.get(table, str(table))]
    return [word, str(_number(found, FRA_GOTO))] if word == "goto" else [word]
