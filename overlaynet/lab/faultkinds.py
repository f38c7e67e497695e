"""The kinds of fault, and what each would change: decided by looking, before anything is touched. Pure.

A kind turns the words it was asked for with into a `Damage`. It asks the `Ground` what there is, refuses a
target that is not there and names those that are, and touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import product
from typing import NamedTuple, TypeVar

from overlaynet.addr import MIN_MTU_BYTES, IPAddress, IPNetwork, Mac, vtep_address
from overlaynet.core.jsonstate import key_text
from overlaynet.core.ownership import owned
from overlaynet.core.workload import host_device
from overlaynet.errors import EnvironmentProblem, NotFound, UsageError
from overlaynet.firewall.chains import is_any_instances, probability, quoted
from overlaynet.firewall.compare import hooks_in
from overlaynet.lab.converge import (
    ETCD,
    OUTSIDE_PLACE,
    agent_of,
    command_of,
    helper_of,
)
from overlaynet.lab.faultground import Ground
from overlaynet.lab.faultrecords import MTU, UP, Damage, Edit, Entry, Held, LinkChange, rule_change
from overlaynet.lab.topology import Host
from overlaynet.state import (
    KERNEL_PROTOCOL,
    MAIN_TABLE,
    Fdb,
    KernelState,
    Key,
    Kind,
    LinkInfo,
    Neigh,
    Object,
    Route,
    RuleSet,
    Sysctl,
    describe,
)

T = TypeVar("T")

NOBODYS_MAC = Mac.parse("02:00:00:00:00:99")
"""A MAC that no device of a lab has: theirs hold their addresses."""
LOCAL_TABLE = 255
MAX_MTU = 65_535
FORWARDING = "net/ipv4/ip_forward"
STRICT = "1"
"""rp_filter: a packet must come in where its answer would go out (ip-sysctl.rst, RFC 3704 section 2.2)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. `words`: the target; `wrong`: replace instead of delete, by `to` if that is given;
    `target`: DROP or REJECT for a rule to put in; `ident`: the id that the fault will have."""

    words: tuple[str, ...]
    wrong: bool = False
    to: str | None = None
    target: str | None = None
    ident: str = "f1"

    @property
    def replaces(self) -> bool:
        return self.wrong or self.to is not None


class FaultKind(NamedTuple):
    """`usage` are the words of its target, `counts` how many of them there may be; `replaces`, `inserts`: it
    takes --wrong and --to, --drop and --reject."""

    usage: str
    counts: tuple[int, ...]
    what: str
    example: str
    plan: Callable[[Ground, Request], Damage]
    replaces: bool = False
    inserts: bool = False


def plan(ground: Ground, kind: str, request: Request) -> Damage:
    """What this fault would do. Raises UsageError, NotFound, EnvironmentProblem, KernelError, FirewallError."""
    found = KINDS.get(kind)
    if found is None:
        raise UsageError(
            f"there is no kind of fault {kind!r}",
            evidence="kinds: " + ", ".join(KINDS),
            next=["overlaynet break --list"],
        )
    if (reason := ground.barred.get(kind)) is not None:
        raise UsageError(
            f"{kind} cannot be broken in lab {ground.topology.name}",
            evidence=reason,
            next=["overlaynet break --list"],
        )
    if request.replaces and not found.replaces:
        raise _misused(kind, "--wrong and --to are for " + ", ".join(k for k, v in KINDS.items() if v.replaces))
    if request.target and not found.inserts:
        raise _misused(kind, "--drop and --reject are for rule")
    if len(request.words) not in found.counts:
        raise _misused(kind, f"{len(request.words)} words: {' '.join(request.words) or 'none'}")
    return found.plan(ground, request)


def _misused(kind: str, evidence: str) -> UsageError:
    usage = f"overlaynet break {kind} {KINDS[kind].usage}".rstrip()
    return UsageError(f"not understood; it is: {usage}", evidence=evidence, next=[KINDS[kind].example])


def conflict(new: Damage, old: Damage) -> str | None:
    """What both are about; None if they do not get in each other's way. In a place that is dead nothing else
    can be broken, and a place where something else is broken must not die."""
    if same := sorted(set(new.touches) & set(old.touches)):
        return same[0]
    dead = {*new.kills, *old.kills}
    return next(iter(sorted(dead & new.places & old.places)), None)


# --- names ----------------------------------------------------------------------------------------


def _hosts(ground: Ground) -> dict[str, Host]:
    return {host.name: host for host in ground.topology.hosts}


def _place(ground: Ground, name: str, among: Iterable[str], what: str) -> str:
    known = list(among)
    if name in known:
        return name
    raise NotFound(
        f"there is no {what} {name!r} in lab {ground.topology.name}",
        evidence=f"{what}s: " + (", ".join(known) or "none"),
        next=["overlaynet status", "overlaynet break --list"],
    )


def _host(ground: Ground, name: str) -> str:
    return _place(ground, name, _hosts(ground), "host")


def _anywhere(ground: Ground, name: str) -> str:
    return _place(ground, name, ground.places, "place")


def _host_of(ground: Ground, place: str) -> str | None:
    """The host that a place belongs to; None for the lab's own namespaces."""
    if place in _hosts(ground):
        return place
    return next((c.host for c in ground.topology.containers if c.name == place), None)


def _host_meant(ground: Ground, point: str) -> str | None:
    """The host whose interface or cable this is."""
    return _host_of(ground, point.partition(":")[0])


def _link(ground: Ground, place: str, device: str) -> LinkInfo:
    links = ground.look(place).links
    if device not in links:
        raise NotFound(
            f"there is no interface {device!r} in {place}",
            evidence="interfaces: " + ", ".join(sorted(links)),
            next=[f"overlaynet exec {place} -- ip -br link"],
        )
    return links[device]


def _point(ground: Ground, text: str) -> tuple[str, str]:
    """A place and its interface: as it is said, of a container `eth0`, of all else where its cable is."""
    name, colon, device = text.partition(":")
    place = _anywhere(ground, name)
    if colon:
        return place, device
    if place in {c.name for c in ground.topology.containers}:
        return place, "eth0"
    if (cable := ground.cable(place)) is None:
        raise UsageError(f"which interface of {place}?", next=[f"overlaynet exec {place} -- ip -br link"])
    return cable


def _address(ground: Ground, name: str) -> IPAddress:
    """The address of a container, host, or of etcd or outside; or the one that is written there."""
    if (known := ground.address(name)) is not None:
        return known
    if ips := ground.ips(name):
        return ips[0]
    try:
        return ip_address(name)
    except ValueError:
        named = [*_hosts(ground), *(c.name for c in ground.topology.containers)]
        raise NotFound(
            f"{name!r} is no address, and no host or wired container of lab {ground.topology.name}",
            evidence="hosts and containers: " + ", ".join(named),
            next=["overlaynet get containers"],
        ) from None


def _one(found: Sequence[T], what: str, name: str, there: Iterable[Object], command: str) -> T:
    """The first of them. Raises NotFound with what there is."""
    if not found:
        listed = "\n".join(describe(obj) for obj in there) or "none"
        raise NotFound(f"there is no {what} for {name!r}", evidence=listed, next=[command])
    return found[0]


# --- links ----------------------------------------------------------------------------------------


def _plan_link(ground: Ground, request: Request) -> Damage:
    place, device = _point(ground, request.words[0])
    link = _link(ground, place, device)
    if not link.up:
        raise UsageError(f"{place}:{device} is down already", next=[f"overlaynet exec {place} -- ip link"])
    return Damage(
        object=f"link {device} of {place}",
        touches=(f"{place} link {device}",),
        host=_host_meant(ground, request.words[0]),
        links=(LinkChange(place, device, UP, 1, 0),),
        entries=tuple(_lost(ground, place, {device})),
        holds=_hold_link(ground, place, link),
    )


def _lost(ground: Ground, place: str, devices: set[str]) -> Iterable[Entry]:
    """What the kernel forgets when these go down and does not bring back: routes, but for its own, and
    permanent neighbours (fib_disable_ip and neigh_ifdown in net/). Addresses of IPv4 stay."""
    kernel = ground.look(place)
    ours = _ours(ground, place, kernel)
    for route in kernel.routes:
        if route.dev in devices and route.table != LOCAL_TABLE and route.protocol != KERNEL_PROTOCOL:
            yield Entry(place, route, None, route.key in ours)
    for neigh in kernel.neighs:
        if neigh.dev in devices and neigh.state == "permanent":
            yield Entry(place, neigh, None, neigh.key in ours)


def _ours(ground: Ground, place: str, kernel: KernelState) -> frozenset[Key]:
    """What a host's agent looks after. In a container nobody does, though the agent has put it there."""
    return frozenset(obj.key for obj in owned(kernel, ())) if place in _hosts(ground) else frozenset()


def _hold_link(ground: Ground, place: str, link: LinkInfo) -> tuple[Held, ...]:
    if place not in _hosts(ground) or link.tag is None:
        return ()
    return (Held(place, Kind.PORT if link.type == "veth" else Kind.LINK, link.name),)


def _plan_mtu(ground: Ground, request: Request) -> Damage:
    text, wanted = request.words
    if not wanted.isdecimal() or not MIN_MTU_BYTES[4] <= int(wanted) <= MAX_MTU:
        raise UsageError(f"{wanted!r} is no MTU", evidence=f"it is from {MIN_MTU_BYTES[4]} to {MAX_MTU} bytes")
    place, device = _point(ground, text)
    link = _link(ground, place, device)
    ends = [(place, link), *_other_end(ground, text)]
    if all(end.mtu == int(wanted) for _, end in ends):
        raise UsageError(f"the MTU of {place}:{device} is {wanted} already")
    return Damage(
        object=f"mtu {link.mtu} of {device} of {place}",
        touches=tuple(f"{where} link {end.name}" for where, end in ends),
        host=_host_meant(ground, text),
        links=tuple(LinkChange(where, end.name, MTU, end.mtu, int(wanted)) for where, end in ends),
        holds=_hold_link(ground, place, link) if link.type != "veth" else (),
    )


def _other_end(ground: Ground, text: str) -> Iterable[tuple[str, LinkInfo]]:
    """Of a container's cable, meant as a whole, the end at its host: an end takes no frame that is larger than
    its own MTU (__dev_forward_skb), and the sender would be told by its own interface."""
    container = next((c for c in ground.topology.containers if c.name == text), None)
    if container is not None:
        device = host_device(f"{container.namespace}/{container.name}")
        links = ground.look(container.host).links
        if device in links:
            yield container.host, links[device]


# --- hosts and processes --------------------------------------------------------------------------


def _plan_node(ground: Ground, request: Request) -> Damage:
    host = _host(ground, request.words[0])
    containers = ground.topology.containers_on(host)
    cable = ground.cable(host)
    assert cable is not None
    links = ground.look(host).links.values()
    devices = {link.name for link in links if link.up and link.type != "loopback" and link.name != "eth0"}
    commands = [command_of(c.name) for c in containers if c.command]
    helpers = [helper_of(c.name) for c in containers if c.needs_helper]
    return Damage(
        object=f"host {host}",
        touches=(f"{cable[0]} link {cable[1]}", agent_of(host)),
        host=host,
        links=(
            LinkChange(*cable, UP, 1, 0),
            *(LinkChange(host, device, UP, 1, 0) for device in sorted(devices)),
        ),
        entries=tuple(_lost(ground, host, devices)),
        kills=(host, *(c.name for c in containers)),
        ends=(*helpers, agent_of(host), *commands),
    )


def _plan_server(ground: Ground, request: Request) -> Damage:
    serving = {c.name: c for c in ground.topology.containers if c.command}
    name = _place(ground, request.words[0], serving, "container with a command")
    return Damage(f"command of {name}", (command_of(name),), serving[name].host, ends=(command_of(name),))


def _plan_agent(ground: Ground, request: Request) -> Damage:
    host = _host(ground, request.words[0])
    return Damage(f"agent of {host}", (agent_of(host),), host, ends=(agent_of(host),))


def _plan_etcd(ground: Ground, request: Request) -> Damage:
    return Damage(ETCD, (ETCD,), ends=(ETCD,))


# --- routes, neighbours, forwarding entries -------------------------------------------------------


def _plan_route(ground: Ground, request: Request) -> Damage:
    place, name = _anywhere(ground, request.words[0]), request.words[1]
    kernel = ground.look(place)
    routes = [r for r in kernel.routes if r.table == MAIN_TABLE and r.type == "unicast" and r.dst.version == 4]
    exact, inside = _destination(ground, name)
    fitting = [r for r in routes if r.dst == exact or (inside is not None and inside in r.dst)]
    fitting.sort(key=lambda r: (-r.dst.prefixlen, r.metric))
    route = _one(fitting, f"route in {place}", name, routes, f"overlaynet exec {place} -- ip route")
    return _plan_entry(ground, place, kernel, route, _detour(ground, route, request))


def _destination(ground: Ground, name: str) -> tuple[IPNetwork | None, IPAddress | None]:
    """A network whose own route is meant, or an address whose best route is."""
    if name in _hosts(ground):
        return ground.subnet(name), None
    try:
        network = ip_network("0.0.0.0/0" if name == "default" else name)
    except ValueError:
        return None, _address(ground, name)
    return (network, None) if "/" in name or name == "default" else (network, network.network_address)


def _detour(ground: Ground, route: Route, request: Request) -> Route | None:
    """The route with another next hop."""
    if not request.replaces:
        return None
    if request.to is not None:
        return route._replace(via=_other_hop(ground, route, request.to))
    if route.via is None:
        raise UsageError(
            f"{describe(route)} has no next hop that could be a wrong one",
            next=[f"overlaynet break route {' '.join(request.words)} --to ADDR"],
        )
    within = ground.is_underlay(route.via)
    return route._replace(via=ground.nobody() if within else route.dst.broadcast_address - 1)


def _other_hop(ground: Ground, route: Route, name: str) -> IPAddress:
    """Of a host its VXLAN device's address for a route that leads there now, else the underlay's."""
    if name in _hosts(ground) and route.via is not None and not ground.is_underlay(route.via):
        return vtep_address(ground.subnet(name))
    return _address(ground, name)


def _plan_neigh(ground: Ground, request: Request) -> Damage:
    place, name = _anywhere(ground, request.words[0]), request.words[1]
    kernel = ground.look(place)
    entries = [n for n in kernel.neighs if n.state not in ("noarp", "failed", "incomplete")]
    meant = _next_hops(ground, name)
    fitting = [entry for ip in meant for entry in entries if entry.ip == ip]
    entry = _one(fitting, f"neighbour in {place}", name, entries, f"overlaynet exec {place} -- ip neigh")
    if entry.state == "permanent" or request.replaces:
        return _plan_entry(ground, place, kernel, entry, _stranger(entry, request))
    raise UsageError(
        f"the kernel has found {entry.ip} by itself, and would again",
        evidence=describe(entry),
        next=[f"overlaynet break neigh {' '.join(request.words)} --wrong"],
    )


def _next_hops(ground: Ground, name: str) -> list[IPAddress]:
    """What a host is to its peers: the address of its VXLAN device, and that of its underlay interface."""
    if name in _hosts(ground):
        return [vtep_address(ground.subnet(name)), _address(ground, name)]
    return [_address(ground, name)]


def _stranger(entry: Neigh, request: Request) -> Neigh | None:
    """The entry with a wrong MAC, and so that the kernel does not correct it."""
    if not request.replaces:
        return None
    mac = NOBODYS_MAC if request.to is None else _parsed(Mac.parse, request.to, "MAC")
    return entry._replace(mac=mac, state="permanent")


def _plan_fdb(ground: Ground, request: Request) -> Damage:
    host, name = _host(ground, request.words[0]), request.words[1]
    kernel, peers = ground.look(host), _hosts(ground)
    entries = [entry for entry in kernel.fdb if entry.dst is not None]
    if name in peers:
        fitting = [entry for entry in entries if entry.mac == ground.vtep_mac(name)]
        fitting = fitting or [entry for entry in entries if entry.dst == ground.address(name)]
    else:
        mac = _parsed(Mac.parse, name, "host or MAC")
        fitting = [entry for entry in entries if entry.mac == mac]
    entry = _one(fitting, f"forwarding entry on {host}", name, entries, f"overlaynet get fdb {host}")
    elsewhere = ground.nobody() if request.to is None else _address(ground, request.to)
    return _plan_entry(ground, host, kernel, entry, entry._replace(dst=elsewhere) if request.replaces else None)


def _parsed(parse: Callable[[str], T], text: str, what: str) -> T:
    try:
        return parse(text)
    except ValueError:
        raise UsageError(f"{text!r} is no {what}", next=["overlaynet break --list"]) from None


def _plan_entry(
    ground: Ground, place: str, kernel: KernelState, before: Route | Neigh | Fdb, after: Object | None
) -> Damage:
    if after == before:
        raise UsageError(f"it is so already: {describe(before)}")
    is_ours = before.key in _ours(ground, place, kernel)
    kind, key = str(before.key[0]), key_text(before.key)
    found_by_kernel = isinstance(before, Neigh) and before.state != "permanent"
    return Damage(
        object=describe(before),
        touches=(f"{place} {kind} {key}",),
        host=_host_of(ground, place),
        entries=(Entry(place, None if found_by_kernel else before, after, is_ours),),
        holds=(Held(place, kind, key),) if is_ours else (),
    )


# --- settings -------------------------------------------------------------------------------------


def _plan_forwarding(ground: Ground, request: Request) -> Damage:
    return _plan_sysctl(ground, _host(ground, request.words[0]), FORWARDING, "0")


def _plan_rp_filter(ground: Ground, request: Request) -> Damage:
    host, device = _host(ground, request.words[0]), request.words[1]
    _link(ground, host, device)
    return _plan_sysctl(ground, host, f"net/ipv4/conf/{device}/rp_filter", STRICT)


def _plan_sysctl(ground: Ground, host: str, name: str, value: str) -> Damage:
    before = _setting(ground, host, name)
    if before == value:
        raise UsageError(f"{name} of {host} is {value} already")
    return Damage(
        object=f"sysctl {name} = {before}",
        touches=(f"{host} sysctl {name}",),
        host=host,
        entries=(Entry(host, Sysctl(name, before), Sysctl(name, value)),),
        holds=(Held(host, Kind.SYSCTL, name),),
    )


def _setting(ground: Ground, place: str, name: str) -> str:
    value = ground.look(place, [name]).sysctls.get(name)
    if value is None:
        raise EnvironmentProblem(f"{place} has no setting {name}", next=["modprobe br_netfilter"])
    return value


# --- rules ----------------------------------------------------------------------------------------


def _plan_rule(ground: Ground, request: Request) -> Damage:
    host, *rest = request.words
    rules = ground.rules(_host(ground, host))
    if request.target:
        if len(rest) != 2:
            raise _misused("rule", "--drop and --reject take a host, a source and a destination")
        return _plan_insertion(ground, host, request, rest)
    if len(rest) == 1:
        return _plan_service_rules(host, rules, rest[0])
    if len(rest) != 3:
        raise _misused("rule", " ".join(request.words))
    return _plan_deletion(host, rules, *rest)


def _comment(ground: Ground, ident: str) -> str:
    return f"-m comment --comment {quoted(f'fault {ident} of lab {ground.topology.name}')}"


def _foreign_rule(ground: Ground, target: str, between: Sequence[str], *comment: str) -> str:
    ends = [
        f"-{flag} {_network(ground, name)}" for flag, name in zip("sd", between, strict=True) if name != "any"
    ]
    how = " --reject-with icmp-port-unreachable" if target == "REJECT" else ""
    return " ".join([*ends, *comment, f"-j {target}{how}"])


def _network(ground: Ground, name: str) -> IPNetwork:
    return _parsed(ip_network, name, "network") if "/" in name else ip_network(_address(ground, name))


def _plan_insertion(ground: Ground, host: str, request: Request, between: Sequence[str]) -> Damage:
    assert request.target is not None
    text = _foreign_rule(ground, request.target, between, _comment(ground, request.ident))
    what = f"rule filter FORWARD {_foreign_rule(ground, request.target, between)}"
    return Damage(
        object=what,
        touches=(f"{host} {what}",),
        host=host,
        edits=(Edit(host, rule_change("filter", "FORWARD", [text], [])),),
    )


def _plan_service_rules(host: str, rules: RuleSet, name: str) -> Damage:
    """The rules by which a service's virtual IPs are known."""
    kind, _, service = name.partition("/")
    service = service if "/" in service else f"default/{service}"
    key = ("nat", "OVL-SERVICES")
    have = [line.text for line in rules.chains.get(key, ())]
    words = (f"overlaynet: {service} ", f"overlaynet: {service}:")
    gone = [text for text in have if any(word in text for word in words)]
    if kind != "svc" or not gone:
        raise NotFound(
            f"{host} has no rule for {name!r} in table nat chain OVL-SERVICES",
            evidence="\n".join(have) or "no rules",
            next=[f"overlaynet get rules {host}", "overlaynet get services"],
        )
    return _plan_rules_gone(host, key, have, gone, f"rules for {service} in nat OVL-SERVICES")


def _plan_deletion(host: str, rules: RuleSet, table: str, chain: str, position: str) -> Damage:
    lines = rules.chains.get((table, chain))
    if lines is None:
        known = sorted(f"{t} {c}" for (t, c), found in rules.chains.items() if found)
        raise NotFound(
            f"{host} has no chain {chain} in table {table}",
            evidence="chains with rules: " + ", ".join(known),
            next=[f"overlaynet get rules {host}"],
        )
    texts = [line.text for line in lines]
    if not position.isdecimal() or not 1 <= int(position) <= len(texts):
        raise NotFound(
            f"{host} has no rule {position} in table {table} chain {chain}",
            evidence="\n".join(f"{n} {text}" for n, text in enumerate(texts, 1)) or "no rules",
            next=[f"overlaynet get rules {host}"],
        )
    text = texts[int(position) - 1]
    ours = texts if is_any_instances(chain) else list(hooks_in(lines))
    if text not in ours:
        raise UsageError(
            f"rule {position} of {chain} is not ours", evidence=text, next=["overlaynet get rules"]
        )
    return _plan_rules_gone(host, (table, chain), ours, [text], f"rule {table} {chain} {position}: {text}")


def _plan_rules_gone(
    host: str, key: tuple[str, str], ours: Sequence[str], gone: Sequence[str], what: str
) -> Damage:
    """A hold is of a whole chain, so two faults in one are one too many."""
    left = [text for text in ours if text not in gone]
    return Damage(
        object=what,
        touches=(f"{host} rules {' '.join(key)}",),
        host=host,
        edits=(Edit(host, rule_change(*key, left, ours), owned=True),),
        holds=(Held(host, "rule", " ".join(key)),),
    )


# --- between hosts --------------------------------------------------------------------------------


def _plan_loss(ground: Ground, request: Request) -> Damage:
    first, *peer, percent = request.words
    _host(ground, first)
    try:
        share = float(percent.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"{percent!r} is no loss", evidence="it is above 0 and at most 100 percent")
    others = [_end(ground, peer[0])] if peer else [name for name in _hosts(ground) if name != first]
    match = f"{probability(share)} " if share < 1 else ""
    return _plan_between(ground, request, [first], others, match, f"{share:.0%} loss")


def _plan_partition(ground: Ground, request: Request) -> Damage:
    some, others = ([_end(ground, name) for name in dict.fromkeys(word.split(","))] for word in request.words)
    return _plan_between(ground, request, some, others, "", "partition")


def _end(ground: Ground, name: str) -> str:
    own = [ETCD, OUTSIDE_PLACE] if ground.topology.outside else [ETCD]
    return _place(ground, name, [*_hosts(ground), *own], "host")


def _plan_between(
    ground: Ground, request: Request, some: Sequence[str], others: Sequence[str], match: str, what: str
) -> Damage:
    """Packets between the two sides are thrown away, both ways, as far as `match` matches."""
    pairs = list(product(some, others))
    if not pairs or any(a == b for a, b in pairs):
        raise UsageError("two sides are wanted, of different hosts", evidence=" ".join(request.words))
    return replace(
        ground.barrier(some, others, match, _comment(ground, request.ident)),
        object=f"{what} between {','.join(some)} and {','.join(others)}",
        touches=tuple(f"underlay between {a} and {b}" for a, b in (sorted(pair) for pair in pairs)),
    )


KINDS: Mapping[str, FaultKind] = {
    "link": FaultKind(
        "HOST|CONTAINER|PLACE:IFACE", (1,),
        "Unplug a host's cable, or take an interface down.",
        "overlaynet break link node-2", _plan_link,
    ),
    "mtu": FaultKind(
        "HOST|CONTAINER|PLACE:IFACE BYTES", (2,),
        "Change an MTU: an interface's, or what a cable carries.",
        "overlaynet break mtu web-1 1500", _plan_mtu,
    ),
    "node": FaultKind(
        "HOST", (1,),
        "A host dies, with its containers and without a word.",
        "overlaynet break node node-2", _plan_node,
    ),
    "server": FaultKind(
        "CONTAINER", (1,),
        "Kill what a container serves with.",
        "overlaynet break server web-1", _plan_server,
    ),
    "agent": FaultKind(
        "HOST", (1,),
        "Kill a host's agent.",
        "overlaynet break agent node-2", _plan_agent,
    ),
    "etcd": FaultKind(
        "", (0,),
        "Kill etcd.",
        "overlaynet break etcd --for 30s", _plan_etcd,
    ),
    "route": FaultKind(
        "PLACE DST|HOST|CONTAINER", (2,),
        "Delete a route, or give it a wrong next hop.",
        "overlaynet break route node-1 node-2", _plan_route, replaces=True,
    ),
    "neigh": FaultKind(
        "PLACE IP|HOST|CONTAINER", (2,),
        "Delete a neighbour, or give it a wrong MAC.",
        "overlaynet break neigh node-1 node-2 --wrong", _plan_neigh, replaces=True,
    ),
    "fdb": FaultKind(
        "HOST MAC|HOST", (2,),
        "Delete a VXLAN forwarding entry, or let it lead to nobody.",
        "overlaynet break fdb node-1 node-2 --wrong", _plan_fdb, replaces=True,
    ),
    "rule": FaultKind(
        "HOST TABLE CHAIN POSITION | HOST svc/NAME | HOST SRC DST --drop|--reject", (2, 3, 4),
        "Delete a rule of ours, or put a foreign one in front.",
        "overlaynet break rule node-1 web-1 web-3 --drop", _plan_rule, inserts=True,
    ),
    "forwarding": FaultKind(
        "HOST", (1,),
        "Switch IP forwarding off.",
        "overlaynet break forwarding node-1", _plan_forwarding,
    ),
    "rp_filter": FaultKind(
        "HOST IFACE", (2,),
        "Refuse what comes in where its answer would not go out.",
        "overlaynet break rp_filter node-1 flannel.1", _plan_rp_filter,
    ),
    "loss": FaultKind(
        "HOST [HOST] PERCENT", (2, 3),
        "Lose packets between a host and the others, or one other.",
        "overlaynet break loss node-1 node-2 30", _plan_loss,
    ),
    "partition": FaultKind(
        "HOSTS HOSTS", (2,),
        "Let no packet pass between hosts, or between hosts and etcd.",
        "overlaynet break partition node-1 node-2,node-3", _plan_partition,
    ),
}  # fmt: skip
