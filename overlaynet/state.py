"""Outputs: what a host's kernel should hold (want) and what it does hold (have).

Every kernel object is a small tuple with a `key`: the words by which the kernel itself tells two of them
apart (a route by table, destination and metric; a neighbour by device and address; an FDB entry by
device and MAC). Want and have are both mappings from key to object, so one generic difference serves
every kind, and `satisfied` in `core/diff.py` is the only place that knows what "equal enough" means.

A host's wanted state is a sum of slices, one per lease, workload or (later) service port. Each slice
says where it comes from; that is what `overlaynet get route` shows as the source of an entry.

Firewall rules are different: what is wanted is a *policy*, neutral of any backend; `firewall/` turns
policies into chains. So one planner serves iptables and nftables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from overlaynet.addr import IPAddress, IPInterface, IPNetwork, Mac

ROUTE_PROTOCOL = 111
"""Our routes' protocol number: free in iproute2's rt_protos, and how we know a route as ours."""

KERNEL_PROTOCOL = 2
"""The kernel's own, such as the route that comes with an address (rtnetlink.h, RTPROT_KERNEL)."""
BOOT_PROTOCOL = 3
"""What a route gets whose maker names none, as flannel does (RTPROT_BOOT)."""

MAIN_TABLE = 254
TAG_PREFIX = "overlaynet"
"""Every link we make carries an alt-name with this prefix; the rest says whose it is and what for."""


def tag(what: str, instance: str = "") -> str:
    """The alt-name of a link: ``overlaynet-vxlan-1``, of another instance ``overlaynet.blue-vxlan-2``."""
    return f"{_tag_prefix(instance)}{what}"


def _tag_prefix(instance: str) -> str:
    return f"{TAG_PREFIX}.{instance}-" if instance else f"{TAG_PREFIX}-"


def visible_altnames(altnames: tuple[str, ...], instance: str) -> tuple[str, ...]:
    """Alt-names without the marks of other instances: to one instance the links of another are foreign."""
    ours, marks = _tag_prefix(instance), (f"{TAG_PREFIX}.", f"{TAG_PREFIX}-")
    return tuple(name for name in altnames if name.startswith(ours) or not name.startswith(marks))


Key: TypeAlias = tuple[object, ...]


class Kind(StrEnum):
    """Kinds of kernel object, in the order in which they are added; removal goes the other way.

    Each key begins with one, so its hash is str's own: that of Enum is a call into Python."""

    __hash__ = str.__hash__

    LINK = "link"
    SYSCTL = "sysctl"
    ADDRESS = "address"
    PORT = "port"
    NEIGH = "neigh"
    FDB = "fdb"
    ROUTE = "route"


class Vxlan(NamedTuple):
    """The attributes of a VXLAN device that cannot be changed once it exists."""

    vni: int
    port: int
    local: IPAddress
    underlay: str
    learning: bool = False


class Link(NamedTuple):
    """A link of ours: a VXLAN device or a bridge. `mac` None: whatever it has. `mtu` in bytes. `tag` empty: it
    is left to somebody else, without a mark of ours."""

    name: str
    type: str
    tag: str
    mtu: int
    mac: Mac | None = None
    vxlan: Vxlan | None = None
    up: bool = True

    @property
    def key(self) -> Key:
        return (Kind.LINK, self.name)


class Address(NamedTuple):
    """An address on a device."""

    dev: str
    interface: IPInterface

    @property
    def key(self) -> Key:
        return (Kind.ADDRESS, self.dev, self.interface)


class BridgePort(NamedTuple):
    """The host end of a container's veth as a port of a bridge. The device itself is made by attach."""

    dev: str
    master: str
    hairpin: bool = True
    up: bool = True
    mtu: int = 0

    @property
    def key(self) -> Key:
        return (Kind.PORT, self.dev)


class Neigh(NamedTuple):
    """A neighbour entry: which MAC answers for `ip` on `dev`. `state` is the kernel's NUD word."""

    dev: str
    ip: IPAddress
    mac: Mac | None
    state: str = "permanent"

    @property
    def key(self) -> Key:
        return (Kind.NEIGH, self.dev, self.ip)


class Fdb(NamedTuple):
    """A forwarding entry. On a VXLAN device `dst` is the peer's underlay address; on a bridge port
    `master` names the bridge and `dst` is None. `state`: "permanent" (VXLAN peers, and a port's own
    address), "static" (a pin on a bridge port) or "dynamic" (learned)."""

    dev: str
    mac: Mac
    dst: IPAddress | None = None
    master: str | None = None
    state: str = "permanent"

    @property
    def key(self) -> Key:
        return (Kind.FDB, self.dev, self.mac, self.master)


class Route(NamedTuple):
    """A route. `type` is "unicast", "local", "blackhole", …; `scope` "global", "link" or "host"."""

    dst: IPNetwork
    dev: str | None
    via: IPAddress | None = None
    metric: int = 0
    onlink: bool = False
    table: int = MAIN_TABLE
    protocol: int = ROUTE_PROTOCOL
    scope: str = "global"
    type: str = "unicast"
    prefsrc: IPAddress | None = None

    @property
    def key(self) -> Key:
        return (Kind.ROUTE, self.table, self.dst, self.metric)


class Sysctl(NamedTuple):
    """A kernel setting by its path below /proc/sys, e.g. ``net/ipv4/ip_forward``."""

    name: str
    value: str

    @property
    def key(self) -> Key:
        return (Kind.SYSCTL, self.name)


Object: TypeAlias = Link | Address | BridgePort | Neigh | Fdb | Route | Sysctl


def kind_of(key: Key) -> Kind:
    """What kind of object a key belongs to."""
    kind = key[0]
    assert isinstance(kind, Kind)
    return kind


# --- firewall policies ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Hide containers behind the host when they talk to anything outside the overlay."""

    overlay: tuple[IPNetwork, ...]
    own: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class ForwardAccept:
    """Let packets from and to the overlay through the FORWARD chain."""

    overlay: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class VxlanGuard:
    """Keep forged frames out: a container may not speak to a VXLAN port, and, where `peers` is not
    None, the underlay may only from those addresses. A container may name any source address, so
    `devices` are those by which container traffic enters the host: bridge and VXLAN device."""

    port: int
    overlay: tuple[IPNetwork, ...]
    peers: tuple[IPAddress, ...] | None = None
    devices: tuple[str, ...] = ()


class Endpoint(NamedTuple):
    """Where DNAT leads: one endpoint of a service port."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServicePortPolicy:
    """One port of one service, as this host serves it: the addresses that lead to it, and the endpoints that
    may answer. `protocol` in lower case, `service` is ``namespace/name``, `port_name` may be empty.

    `cluster` are the endpoints for the traffic policy Cluster, `local` those for Local; each is already
    chosen by readiness, topology and the fallback to terminating ones, and in a fixed order. `usable`: some
    endpoint anywhere may be used, if not by this host. `serving` are all that still answer, for judging
    flows that exist. `affinity_s` 0: no session affinity. `local_ready`: how many different addresses of
    ready endpoints are on this host, for `health_check_node_port`."""

    service: str
    port_name: str
    protocol: str
    port: int
    cluster_ips: tuple[IPAddress, ...] = ()
    external_ips: tuple[IPAddress, ...] = ()
    ingress_ips: tuple[IPAddress, ...] = ()
    source_ranges: tuple[IPNetwork, ...] = ()
    node_port: int = 0
    internal_local: bool = False
    external_local: bool = False
    affinity_s: int = 0
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    usable: bool = False
    serving: frozenset[Endpoint] = frozenset()
    health_check_node_port: int = 0
    local_ready: int = 0

    @property
    def name(self) -> str:
        """``namespace/name:port``, as kube-proxy calls it, or ``namespace/name`` for a port without name."""
        return f"{self.service}:{self.port_name}" if self.port_name else self.service


@dataclass(frozen=True, slots=True)
class ServicesPolicy:
    """What all services on this host share. `networks`: where virtual IPs come from; what is addressed there
    and is no port of a service is rejected, as it is at `strays`, virtual IPs outside of them. `overlay`: where
    endpoints' replies come from, on whichever host they are. The rest as in `model.ServiceOptions`."""

    networks: tuple[IPNetwork, ...]
    strays: tuple[IPAddress, ...] = ()
    node_ips: tuple[IPAddress, ...] | None = ()
    local_sources: tuple[IPNetwork, ...] = ()
    local_device: str = ""
    masquerade_all: bool = False
    localhost_node_ports: bool = False
    drop_invalid: bool = True
    overlay: tuple[IPNetwork, ...] = ()


Policy: TypeAlias = Masquerade | ForwardAccept | VxlanGuard | ServicePortPolicy | ServicesPolicy


# --- want -----------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Where a wanted object comes from: ``Source("lease", "10.244.2.0-24")``."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class HostState:
    """Kernel objects by key, and firewall policies by name."""

    objects: Mapping[Key, Object] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[Object] = (), **policies: Policy) -> HostState:
        return cls({o.key: o for o in objects}, policies)

    def __str__(self) -> str:
        """The whole host as sorted text, one object a line: what table tests compare."""
        lines = sorted(describe(o) for o in self.objects.values())
        lines += sorted(f"policy {name} {policy}" for name, policy in self.policies.items())
        return "\n".join(lines)


def describe(obj: Object) -> str:
    """One object in the words of `ip` and `bridge`, without the verb."""
    match obj:
        case Link():
            vx = obj.vxlan
            more = f" id {vx.vni} dstport {vx.port} local {vx.local} dev {vx.underlay}" if vx else ""
            mac = f" address {obj.mac}" if obj.mac else ""
            return f"link {obj.name} type {obj.type}{more}{mac} mtu {obj.mtu} {'up' if obj.up else 'down'}"
        case Address():
            return f"address {obj.interface} dev {obj.dev}"
        case BridgePort():
            return f"port {obj.dev} master {obj.master} hairpin {'on' if obj.hairpin else 'off'}"
        case Neigh():
            return f"neigh {obj.ip} lladdr {obj.mac} dev {obj.dev} nud {obj.state}"
        case Fdb():
            where = f"dst {obj.dst} self" if obj.dst else f"master {obj.master}"
            return f"fdb {obj.mac} dev {obj.dev} {where} {obj.state}"
        case Route():
            via = f" via {obj.via}" if obj.via else ""
            dev = f" dev {obj.dev}" if obj.dev else ""
            onlink = " onlink" if obj.onlink else ""
            return f"route {obj.dst}{via}{dev}{onlink} metric {obj.metric} table {obj.table}"
        case Sysctl():
            return f"sysctl {obj.name} = {obj.value}"


def show_command(obj: Object) -> str:
    """The command a person types to see this object."""
    match obj:
        case Link():
            return f"ip -d link show dev {obj.name}"
        case Address():
            return f"ip address show dev {obj.dev}"
        case BridgePort():
            return f"bridge -d link show dev {obj.dev}"
        case Neigh():
            return f"ip neigh show {obj.ip} dev {obj.dev}"
        case Fdb():
            return f"bridge fdb show dev {obj.dev}"
        case Route():
            return f"ip route show {obj.dst} table {obj.table}"
        case Sysctl():
            return f"sysctl {obj.name.replace('/', '.')}"


# --- have -----------------------------------------------------------------------------------------


class LinkInfo(NamedTuple):
    """A link as the kernel has it. `hairpin` is None where the link is no bridge port. Of a veth,
    `peer_netns` is the kernel's id of the other end's namespace, None where that is this one, and `peer` its
    ifindex there."""

    ifindex: int
    name: str
    type: str
    mac: Mac | None
    mtu: int
    up: bool
    running: bool = False
    master: str | None = None
    altnames: tuple[str, ...] = ()
    vxlan: Vxlan | None = None
    hairpin: bool | None = None
    peer_netns: int | None = None
    peer: int | None = None

    @property
    def tag(self) -> str | None:
        """Our alt-name, if it carries one."""
        marks = (f"{TAG_PREFIX}-", f"{TAG_PREFIX}.")
        return next((name for name in self.altnames if name.startswith(marks)), None)


class IpRule(NamedTuple):
    """A policy-routing rule that is not one of the kernel's three; on the path, never ours."""

    priority: int
    text: str


class LearnedMtu(NamedTuple):
    """What an ICMP error said that the way to one address carries, in bytes (RFC 1191). The kernel believes it
    for `expires_s` seconds more, of what it sends itself."""

    dst: IPAddress
    dev: str
    mtu: int
    expires_s: float


@dataclass(frozen=True, slots=True)
class KernelState:
    """Everything on a packet's path through one network namespace, ours and foreign alike. `learned` is read
    for those who explain a path, and for nobody else."""

    links: Mapping[str, LinkInfo] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()
    neighs: tuple[Neigh, ...] = ()
    fdb: tuple[Fdb, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[IpRule, ...] = ()
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    learned: tuple[LearnedMtu, ...] = ()


class Op(StrEnum):
    PUT = "put"
    DROP = "drop"


class Change(NamedTuple):
    """One write: put `obj`, replacing `have` if that is not None; or drop `obj`."""

    op: Op
    obj: Object
    have: Object | None = None

    def __str__(self) -> str:
        return f"{self.op} {describe(self.obj)}"


class RuleLine(NamedTuple):
    """One firewall rule as the kernel reports it, without its ``-A CHAIN``, and its counters."""

    text: str
    packets: int = 0
    octets: int = 0


ChainKey: TypeAlias = tuple[str, str]
"""(table, chain)"""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Every chain of every table: name, default policy ("-" for a user chain) and rules in order.
    `generation` is that of `ports.Firewall`, from just before the rules were read."""

    flavour: str
    chains: Mapping[ChainKey, tuple[RuleLine, ...]] = field(default_factory=dict)
    policies: Mapping[ChainKey, str] = field(default_factory=dict)
    generation: object = field(default=None, compare=False)


class RuleChange(NamedTuple):
    """One difference between wanted and present rules. `op`: missing, extra or changed."""

    op: str
    table: str
    chain: str
    want: tuple[str, ...] | None
    have: tuple[str, ...] | None
    source: Source


# --- connections ----------------------------------------------------------------------------------


class Flow(NamedTuple):
    """One connection that conntrack follows: the first packet's addresses and, since NAT may have changed
    them, those of the replies. `protocol` in lower case; `state` is TCP's ("SYN_SENT"), else empty;
    `replied`: packets were seen in both directions."""

    protocol: str
    src: IPAddress
    sport: int
    dst: IPAddress
    dport: int
    reply_src: IPAddress
    reply_sport: int
    reply_dst: IPAddress
    reply_dport: int
    state: str = ""
    replied: bool = True
