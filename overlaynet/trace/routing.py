"""Where one namespace's kernel sends a packet: by its rules, tables, neighbours and forwarding entries.

A lookup goes through the policy rules in order of priority, and through the table that each one names. In a
table the longest prefix wins, of equal prefixes the smallest metric; a route whose device does not fit is
passed over, also for a shorter prefix (net/ipv4/fib_trie.c, fib_table_lookup). The first table that has an
answer decides.

    0      from all lookup local      this host's own addresses
    …      what somebody added        `KernelState.rules`
    32766  from all lookup main
    32767  from all lookup default

A packet that comes in is looked up twice, the second time the other way round: if its source would not be
reached by any device (rp_filter 2), or not by the one it came by (1), or is our own address, it is thrown
away without a word (net/ipv4/fib_frontend.c, fib_validate_source).

IPv4 only. What cannot be decided is said in `Found.unread` and never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import NamedTuple

from overlaynet.addr import IPAddress, IPNetwork, Mac
from overlaynet.state import MAIN_TABLE, Fdb, IpRule, KernelState, LinkInfo, Neigh, Route

LOCAL_TABLE, DEFAULT_TABLE = 255, 253
TABLES = {"local": LOCAL_TABLE, "main": MAIN_TABLE, "default": DEFAULT_TABLE}
LOOPBACK = "lo"
NO_MAC = Mac("00:00:00:00:00:00")
"""A VXLAN device's entry for whatever has no entry of its own."""
USABLE = frozenset({"permanent", "noarp", "reachable", "stale", "delay", "probe"})
"""States in which a neighbour's MAC is used, if need be while asking again (net/core/neighbour.c)."""

OF_NAMESPACE = (
    "net/ipv4/ip_forward",
    "net/ipv4/ip_default_ttl",
    "net/ipv4/icmp_echo_ignore_all",
    "net/bridge/bridge-nf-call-iptables",
)
OF_DEVICE = (
    "forwarding",
    "rp_filter",
    "accept_local",
    "route_localnet",
    "src_valid_mark",
    "ignore_routes_with_linkdown",
)


def settings(devices: Iterable[str]) -> tuple[str, ...]:
    """The sysctls that decide where packets go in a namespace with these devices."""
    of_devices = [f"net/ipv4/conf/{dev}/{word}" for dev in ("all", *devices) for word in OF_DEVICE]
    return (*OF_NAMESPACE, *of_devices)


# --- sysctls --------------------------------------------------------------------------------------


def number(kernel: KernelState, name: str, default: int = 0) -> int:
    """A setting's value; the default where it was not read or is no number."""
    value = kernel.sysctls.get(name)
    return int(value) if value is not None and value.lstrip("-").isdigit() else default


def of_device(kernel: KernelState, dev: str, word: str) -> int:
    return number(kernel, f"net/ipv4/conf/{dev}/{word}")


def either(kernel: KernelState, dev: str, word: str) -> int:
    """The larger of the device's value and that for all devices: how the kernel reads rp_filter, and settings
    that may be switched on in either place (include/linux/inetdevice.h)."""
    return max(of_device(kernel, dev, word), of_device(kernel, "all", word))


def forwards(kernel: KernelState, dev: str) -> bool:
    """Whether what comes in by this device may go on to elsewhere. Where the device's own setting was not read,
    what holds for the namespace, from which new devices have it."""
    name = f"net/ipv4/conf/{dev}/forwarding"
    return number(kernel, name if kernel.sysctls.get(name) is not None else "net/ipv4/ip_forward") != 0


# --- lookup ---------------------------------------------------------------------------------------


class Query(NamedTuple):
    """What is looked up. `iif` is the device it came in by, "lo" for what is sent here; `oif` the only one it
    may leave by, if that is fixed."""

    dst: IPAddress
    src: IPAddress | None = None
    iif: str = LOOPBACK
    oif: str | None = None
    mark: int = 0
    protocol: str = ""
    src_port: int | None = None
    dst_port: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer. `kind`: "unicast", "local", "blackhole", "unreachable", "prohibit", or "none" if no table
    has any. `rule`: that of policy routing which led there, None for one of the kernel's own."""

    kind: str
    route: Route | None = None
    rule: IpRule | None = None
    unread: tuple[str, ...] = ()

    @property
    def dev(self) -> str | None:
        return self.route.dev if self.route else None

    def next_hop(self, dst: IPAddress) -> IPAddress:
        return self.route.via if self.route and self.route.via else dst


NOTHING = Found("none")
_FIRST = IpRule(0, "from all lookup local")
_LAST = (IpRule(32766, "from all lookup main"), IpRule(32767, "from all lookup default"))


def lookup(kernel: KernelState, query: Query) -> Found:
    """By all rules."""
    added = [rule for rule in kernel.rules if not rule.text.startswith("inet6")]
    rules = [_FIRST, *sorted([*added, *_LAST], key=lambda rule: rule.priority)]
    doubts: tuple[str, ...] = ()
    at = 0
    while at < len(rules):
        rule = rules[at]
        at += 1
        words = _rule_words(rule.text)
        applies = words.applies(query)
        if applies is None:
            doubts += (f"ip rule {rule.priority}: {rule.text}: cannot be decided",)
        elif applies and words.action == "goto":
            at = next((i for i, r in enumerate(rules) if i >= at and r.priority >= words.number), len(rules))
        elif applies:
            found = _by_action(kernel, query, words)
            if found is not None:
                return replace(found, rule=rule if rule in added else None, unread=doubts + found.unread)
    return replace(NOTHING, unread=doubts)


def _by_action(kernel: KernelState, query: Query, words: _RuleWords) -> Found | None:
    """None: the next rule decides."""
    match words.action:
        case "lookup":
            return in_table(kernel, query, words.number)
        case "nop":
            return None
        case "unreachable":  # no route, as a rule says it; a route of that type speaks of the host
            return NOTHING
        case refusal:
            return Found(refusal)


def in_table(kernel: KernelState, query: Query, table: int) -> Found | None:
    """What one table says; None if nothing."""
    fitting = [r for r in kernel.routes if r.table == table and query.dst in r.dst]
    for route in sorted(fitting, key=lambda r: (-r.dst.prefixlen, r.metric)):
        if route.type == "throw":
            return None
        if route.type in ("blackhole", "unreachable", "prohibit"):
            return Found(route.type, route)
        if route.type not in ("unicast", "local"):
            return Found("none", route, unread=(f"route {route.dst} of type {route.type}",))
        if route.dev is None:
            return Found("none", route, unread=(f"route {route.dst} has several next hops",))
        if _is_usable(kernel, route, query):
            return Found(route.type, route)
    return None


def _is_usable(kernel: KernelState, route: Route, query: Query) -> bool:
    link = kernel.links.get(route.dev or "")
    if link is None or (query.oif and route.dev != query.oif) or not link.up:
        return route.type == "local" and link is not None and not query.oif
    return link.running or not of_device(kernel, link.name, "ignore_routes_with_linkdown")


# --- policy rules ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RuleWords:
    """A rule of policy routing, taken apart. `strange`: words of it are not known here."""

    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    iif: str | None = None
    oif: str | None = None
    mark: tuple[int, int] | None = None
    protocol: str | None = None
    src_ports: tuple[int, int] | None = None
    dst_ports: tuple[int, int] | None = None
    negated: bool = False
    strange: bool = False
    action: str = "nop"
    number: int = 0

    def applies(self, query: Query) -> bool | None:
        """None where that cannot be said."""
        if self.strange:
            return None
        answers = list(self._answers(query))
        if False in answers:
            return self.negated
        return None if None in answers else not self.negated

    def _answers(self, query: Query) -> Iterator[bool | None]:
        if self.src:
            yield query.src is not None and query.src in self.src
        if self.dst:
            yield query.dst in self.dst
        if self.iif:
            yield query.iif == self.iif
        if self.oif:
            yield query.oif == self.oif
        if self.mark:
            value, mask = self.mark
            yield query.mark & mask == value & mask
        if self.protocol:
            yield query.protocol == self.protocol
        for wanted, port in ((self.src_ports, query.src_port), (self.dst_ports, query.dst_port)):
            if wanted:
                yield None if port is None else wanted[0] <= port <= wanted[1]


_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp"}


def _rule_words(text: str) -> _RuleWords:
    """From the words of `ip rule`, as `kernel.parse` writes them."""
    words = iter(text.split())
    rule = _RuleWords()
    for word in words:
        if word == "not":
            rule = replace(rule, negated=True)
        elif word in ("nop", "blackhole", "unreachable", "prohibit"):
            rule = replace(rule, action=word)
        else:
            rule = _with_value(rule, word, next(words, ""))
    return rule


def _with_value(rule: _RuleWords, word: str, value: str) -> _RuleWords:
    match word:
        case "from":
            return replace(rule, src=_selector(value))
        case "to":
            return replace(rule, dst=_selector(value))
        case "iif":
            return replace(rule, iif=value)
        case "oif":
            return replace(rule, oif=value)
        case "fwmark":
            mark, _, mask = value.partition("/")
            return replace(rule, mark=(int(mark, 0), int(mask or "0xffffffff", 0)))
        case "ipproto":
            return replace(rule, protocol=_PROTOCOLS.get(value, value))
        case "sport":
            return replace(rule, src_ports=_range(value))
        case "dport":
            return replace(rule, dst_ports=_range(value))
        case "lookup":
            return replace(rule, action="lookup", number=TABLES.get(value) or int(value))
        case "goto":
            return replace(rule, action="goto", number=int(value))
        case _:
            return replace(rule, strange=True)


def _selector(text: str) -> IPNetwork | None:
    return None if text == "all" else ip_network(text, strict=False)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


# --- what is sent from here -----------------------------------------------------------------------


def output(kernel: KernelState, query: Query) -> Found:
    """The way of a packet that is sent here. To one of our own addresses it is loopback. A packet that may only
    leave by one device is sent there even without a route, as if everybody was on that link
    (net/ipv4/route.c, ip_route_output_key_hash_rcu)."""
    found = lookup(kernel, query)
    if found.kind == "local":
        return replace(found, route=found.route and found.route._replace(dev=LOOPBACK, via=None))
    if found.kind == "none" and query.oif and not found.unread:
        on_link = IPv4Network(f"{query.dst}/32")
        return Found("unicast", Route(on_link, query.oif, protocol=0, scope="link"), unread=found.unread)
    return found


def source_for(kernel: KernelState, found: Found, dst: IPAddress) -> IPAddress | None:
    """The source that a packet gets which has none yet."""
    route = found.route
    if found.kind == "local":
        return dst
    if route is None or route.dev is None:
        return None
    return route.prefsrc or address_on(kernel, route.dev, found.next_hop(dst))


def address_on(kernel: KernelState, dev: str, towards: IPAddress) -> IPAddress | None:
    """The address of a device that suits this neighbour: one of the same network, else the first. One of
    another device where this has none (net/ipv4/devinet.c, inet_select_addr)."""
    mine = [a.interface for a in kernel.addresses if a.dev == dev and a.interface.version == 4]
    same = next((a.ip for a in mine if towards in a.network), None)
    others = (a.interface.ip for a in kernel.addresses if a.interface.version == 4 and a.dev != LOOPBACK)
    return same or (mine[0].ip if mine else next(others, None))


# --- what comes in --------------------------------------------------------------------------------


class Refused(NamedTuple):
    """Why an incoming packet's addresses are not believed. `word`: "rp_filter" or "martian"; `back`: the way
    back to its source, if that was looked up."""

    word: str
    why: str
    back: Found | None = None


def source_refused(kernel: KernelState, query: Query, out: str = LOOPBACK) -> Refused | None:
    """Whether the source of a packet is believed that came in by `query.iif` and would go on by `out`."""
    src, dev = query.src, query.iif
    if src is None or dev == LOOPBACK:
        return None
    if src.is_multicast or src == IPv4Address("255.255.255.255"):
        return Refused("martian", f"{src} cannot be a source")
    if (src.is_loopback or query.dst.is_loopback) and not either(kernel, dev, "route_localnet"):
        return Refused("martian", f"127.0.0.0/8 may not come in by {dev}: route_localnet is 0")
    return _reversed(kernel, query, out, either(kernel, dev, "rp_filter"))


def _reversed(kernel: KernelState, query: Query, out: str, rp_filter: int) -> Refused | None:
    assert query.src is not None
    dev, mark = query.iif, query.mark if either(kernel, query.iif, "src_valid_mark") else 0
    back = Query(query.src, query.dst, out, None, mark, query.protocol, query.dst_port, query.src_port)
    if not rp_filter and not kernel.rules:
        own = any(a.interface.ip == query.src for a in kernel.addresses)
        if own and not either(kernel, dev, "accept_local"):
            return Refused("martian", f"{query.src} is this host's own address, and comes in by {dev}")
        return None
    found = lookup(kernel, back)
    if found.kind not in ("unicast", "local"):
        return Refused("rp_filter", f"there is no way back to {query.src}", found) if rp_filter else None
    if found.kind == "local" and not either(kernel, dev, "accept_local"):
        return Refused("martian", f"{query.src} is this host's own address, and comes in by {dev}")
    if rp_filter == 1 and found.dev != dev:
        why = f"the way back to {query.src} is {found.dev}, and it came in by {dev}"
        return Refused("rp_filter", why, found)
    return None


# --- neighbours and forwarding entries ------------------------------------------------------------


def neighbour(kernel: KernelState, dev: str, ip: IPAddress) -> Neigh | None:
    return next((n for n in kernel.neighs if n.dev == dev and n.ip == ip), None)


def is_usable(neigh: Neigh | None) -> bool:
    return neigh is not None and neigh.mac is not None and neigh.state in USABLE


def tunnels(kernel: KernelState, dev: str, mac: Mac) -> tuple[Fdb, ...]:
    """A VXLAN device's entries for a MAC, or else those for whatever has none."""
    table = [entry for entry in kernel.fdb if entry.dev == dev and entry.master is None and entry.dst]
    exact = tuple(entry for entry in table if entry.mac == mac)
    return exact or tuple(entry for entry in table if entry.mac == NO_MAC)


def ports(kernel: KernelState, bridge: str) -> list[LinkInfo]:
    return [link for link in kernel.links.values() if link.master == bridge]


def is_bridges_own(kernel: KernelState, bridge: str, mac: Mac | None) -> bool:
    """Whether a frame to this MAC goes up to the bridge's own stack: it is the bridge's, or a port's."""
    own = [kernel.links[bridge], *ports(kernel, bridge)]
    if any(link.mac == mac for link in own):
        return True
    return any(e.mac == mac and e.master == bridge and e.state == "permanent" for e in kernel.fdb)


def bridge_entry(kernel: KernelState, bridge: str, mac: Mac | None) -> Fdb | None:
    """Behind which port a MAC is."""
    names = {link.name for link in ports(kernel, bridge)}
    return next((e for e in kernel.fdb if e.mac == mac and e.master == bridge and e.dev in names), None)


def vxlan_devices(kernel: KernelState) -> Sequence[LinkInfo]:
    return [link for link in kernel.links.values() if link.vxlan is not None]
