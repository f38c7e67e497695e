"""The words in which a packet's way is told: what was asked, what was seen, what is predicted, what is proved.

Everything here is a frozen value without I/O. Four steps pass these values on::

    World ──predict──► Prediction ──join with Captured frames──► sightings ──judge──► Trace
      ▲                    ▲
      state of every       Question: who sends what to whom
      namespace, read

A **place** is a network namespace that a packet can be in: a host, a container, or `outside`, a client that is
no host. A **point** is one interface of a place, written ``node-1:eth0``. A **hop** is a packet's passing of a
point in one direction, as packet(7) sockets there see it: `in` is what the interface received, before any hook
of Netfilter; `out` is what it sends, after the last one.

The cable between hosts (the *underlay*) is nobody's namespace: on real machines it cannot be looked into, so it
is not looked into here either, and what happens there is told by what the hosts on both ends see.

Headers are one type for what is predicted and for what was captured. In a prediction None says "not known
beforehand" (the port that a masquerade will choose); in a capture, that the frame has no such field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from overlaynet.addr import IPAddress, Mac
from overlaynet.state import ChainKey, KernelState, Key, Object, RuleSet, Source

Direction: TypeAlias = Literal["in", "out"]
HOST, CONTAINER, OUTSIDE = "host", "container", "outside"
"""Kinds of place."""

DELIVERED, REJECTED, DROPPED, LOST = "delivered", "rejected", "dropped", "lost"
"""Outcomes: it arrives; somebody says no to the sender; somebody throws it away on purpose; it gets nowhere."""
PROVED, WRONG_PATH, INCONCLUSIVE = "proved", "wrong_path", "inconclusive"
"""Verdicts, beside `LOST`."""

CAUSES = (
    "link_down", "node_down", "route_missing", "route_wrong", "neigh_missing", "neigh_wrong",
    "fdb_missing", "fdb_wrong", "rule_reject", "rule_drop", "rule_missing", "no_endpoints", "mtu",
    "forwarding_off", "rp_filter", "underlay_loss", "partition", "unknown",
)  # fmt: skip
"""Every `Cause.kind`."""
CERTAIN, LIKELY = "certain", "likely"


class Point(NamedTuple):
    """One interface of one place."""

    place: str
    iface: str

    def __str__(self) -> str:
        return f"{self.place}:{self.iface}"


# --- headers --------------------------------------------------------------------------------------


class Tcp(NamedTuple):
    """`flags` in scapy's letters, in its order: "S", "SA", "RA", "PA"."""

    seq: int
    ack: int
    flags: str


class Quoted(NamedTuple):
    """The packet that an ICMP error is about (RFC 792: its IP header and its first eight bytes at least).
    `src_port`: of an ICMP echo its identifier."""

    src: IPAddress
    dst: IPAddress
    protocol: str
    src_port: int | None
    dst_port: int | None
    ip_id: int | None
    tcp_seq: int | None


class Icmp(NamedTuple):
    """`mtu`: next-hop MTU in bytes, of type 3 code 4 (RFC 1191)."""

    type: int
    code: int
    id: int | None = None
    seq: int | None = None
    mtu: int | None = None
    quoted: Quoted | None = None


@dataclass(frozen=True, slots=True)
class Headers:
    """One frame's headers. `protocol`: "tcp", "udp", "icmp", "arp", or the EtherType (``0x88b5``) or IP
    protocol number as text. `length`: bytes of the IP packet by its own header. `offset`: bytes, of a
    fragment."""

    src_mac: Mac | None
    dst_mac: Mac | None
    src: IPAddress | None
    dst: IPAddress | None
    protocol: str
    src_port: int | None = None
    dst_port: int | None = None
    ttl: int | None = None
    ip_id: int | None = None
    length: int | None = None
    df: bool | None = None
    more_fragments: bool = False
    offset: int = 0
    tcp: Tcp | None = None
    icmp: Icmp | None = None

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.offset > 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame, decoded. `inner`: the one inside it, if it is VXLAN; `length`: bytes of the frame on the wire.
    `payload`: of TCP, UDP or ICMP, or of a fragment, of the innermost packet, as far as it was captured."""

    outer: Headers
    vni: int | None = None
    inner: Headers | None = None
    length: int = 0
    payload: bytes = b""

    @property
    def packet(self) -> Headers:
        """The innermost packet's headers: the container's own, tunnelled or not."""
        return self.inner or self.outer


class Captured(NamedTuple):
    """One frame as a point's socket gave it. `t_ns`: the kernel's real-time clock, comparable only within one
    machine; `length`: bytes on the wire, of which `data` may hold only the first."""

    point: Point
    t_ns: int | None
    direction: Direction
    data: bytes
    length: int


# --- the world ------------------------------------------------------------------------------------


class Listener(NamedTuple):
    """A socket that takes packets: `ip` None for any address."""

    protocol: str
    ip: IPAddress | None
    port: int


@dataclass(frozen=True, slots=True)
class Place:
    """One network namespace, as it was seen. `host`: on which host it is; a host is on itself, `outside` on
    none.

    `rules` None: they could not be read. `nft`: chains of nftables' own that iptables does not show, as
    libnftables-json(5) has them; None where there are none or no program to read them. `unread`: what on a
    packet's path could not be read or understood here, a sentence each."""

    name: str
    kind: str
    host: str | None
    netns: str | None
    kernel: KernelState
    rules: RuleSet | None = None
    nft: Mapping[str, Any] | None = None
    listening: frozenset[Listener] = frozenset()
    unread: tuple[str, ...] = ()

    def owns(self, ip: IPAddress) -> bool:
        return ip.is_loopback or any(a.interface.ip == ip for a in self.kernel.addresses)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a host should hold, by etcd: kernel objects with where each comes from; the rules of our chains and
    our hooks in built-in ones; and for each rule of ours, position by position, who asked for it."""

    objects: Mapping[Key, Object] = field(default_factory=dict)
    sources: Mapping[Key, Source] = field(default_factory=dict)
    chains: Mapping[ChainKey, tuple[str, ...]] = field(default_factory=dict)
    hooks: Mapping[ChainKey, tuple[str, ...]] = field(default_factory=dict)
    origins: Mapping[ChainKey, tuple[Source, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of a host besides its namespace. `agent`: its state, "down" if none answers, None if nobody
    asked. `live`: etcd has its node record; None: etcd could not be asked. `error`: why it could not be looked
    at; then it has no place."""

    name: str
    underlay_ips: tuple[IPAddress, ...] = ()
    agent: str | None = None
    live: bool | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A service's name with where it is taken in; for words, not for deciding."""

    id: str
    ips: tuple[IPAddress, ...]
    ports: tuple[tuple[str, int, int], ...]
    """(protocol, port, nodePort or 0)"""


@dataclass(frozen=True, slots=True)
class World:
    """All that a path is predicted from. `cables`: veth pairs whose two ends are known, both ways round.
    `wanted` lacks hosts of which etcd does not say what they should hold. `unseen`: places that could not be
    looked at, and why. `one_clock`: times of all places can be compared. `has_faults`: something is broken on
    purpose, and its agents leave it so."""

    places: Mapping[str, Place]
    cables: Mapping[Point, Point] = field(default_factory=dict)
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    services: tuple[Service, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)
    vxlan_port: int = 8472
    one_clock: bool = True
    has_faults: bool = False

    def place_of(self, ip: IPAddress) -> Place | None:
        """Who has this address (loopback ones have no owner here)."""
        if ip.is_loopback:
            return None
        return next((p for p in self.places.values() if p.owns(ip)), None)


# --- the question ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """What is sent by whom to whom. `source` is a place. `target` is as it was asked for ("web-1", "svc/web",
    "10.244.1.2"), `dst` the address that the packet is sent to.

    `src_port` None: any free one; `size`: bytes of payload; `df` None: as Linux sends it, set on what fits the
    interface (ip(7), IP_MTU_DISCOVER)."""

    source: str
    target: str
    src: IPAddress
    dst: IPAddress
    protocol: str
    src_port: int | None = None
    dst_port: int | None = None
    size: int = 0
    df: bool | None = None


# --- hops -----------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One field that differs from the hop before: ``Change("dst", "10.112.0.10", "10.244.2.2", "DNAT")``.
    Fields: src_mac dst_mac src dst src_port dst_port ttl length encapsulation fragments. Values are text."""

    field: str
    before: str | None
    after: str | None
    reason: str


class Why(NamedTuple):
    """An entry that decides that the packet comes here, or that it does not. `object`: route neigh fdb rule
    sysctl link address conntrack iprule. `key` tells it from others, `text` quotes it as the tool prints it;
    `source` None: nobody of ours asked for it; `command` shows it; `packets`: by how much its counter grew."""

    object: str
    key: str
    text: str
    source: Source | None
    command: str
    packets: int | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """A packet at a point. `inner` is the traced packet itself, `outer` what it is wrapped in, None outside of
    a tunnel. `seen` None: not looked for. `t_us`: since the first sighting, None across machines. `optional`:
    it may be seen here or not, `note` says why, and neither is wrong. `mtu`: the interface's, in bytes."""

    place: str
    iface: str
    direction: Direction
    inner: Headers
    outer: Headers | None = None
    vni: int | None = None
    host: str | None = None
    netns: str | None = None
    changes: tuple[Change, ...] = ()
    why: tuple[Why, ...] = ()
    predicted: bool = True
    seen: bool | None = None
    t_us: float | None = None
    note: str = ""
    optional: bool = False
    mtu: int | None = None

    @property
    def point(self) -> Point:
        return Point(self.place, self.iface)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a packet does not arrive, at which point, and what to type next. `object` is the entry (or the
    missing one) in the words of `ip`, `bridge` or iptables; `expected` and `found` are sentences' halves."""

    kind: str
    point: Point | None
    object: str
    expected: str
    found: str
    source: Source | None
    certainty: str
    next: tuple[str, ...]

    def advised(self, world: World) -> Cause:
        """With next steps that help in this world: what is broken on purpose is not repaired, but healed."""
        if not world.has_faults:
            return self
        steps = ("overlaynet heal" if step.startswith("overlaynet repair") else step for step in self.next)
        return replace(self, next=tuple(dict.fromkeys(steps)))


class Nat(NamedTuple):
    """One place's conntrack entry: the first packet's tuple as it came in, and the one it left with. Ports
    None: ICMP, or not known beforehand."""

    place: str
    protocol: str
    src: IPAddress
    src_port: int | None
    dst: IPAddress
    dst_port: int | None
    new_src: IPAddress
    new_src_port: int | None
    new_dst: IPAddress
    new_dst_port: int | None


@dataclass(frozen=True, slots=True)
class Path:
    """One way that a packet may go: hops in order, its end, and, of a packet that arrives, the way back.

    `answer`: what comes back, "syn-ack", "rst", "echo-reply", "udp", "icmp port-unreachable", "icmp
    fragmentation-needed", …, empty if nothing does. `arrived_at`: the place whose own stack took the packet.
    `choices`: what chance decided, a sentence each. `certain` False: something on it could not be read, so it
    is one possibility of several. `detours`: entries that lead it otherwise than wanted, though it arrives."""

    outcome: str
    hops: tuple[Hop, ...]
    cause: Cause | None = None
    answer: str = ""
    reply: Path | None = None
    arrived_at: str | None = None
    nat: tuple[Nat, ...] = ()
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    certain: bool = True
    detours: tuple[str, ...] = ()

    @property
    def out_of_sight(self) -> bool:
        """Whether it ends by leaving for where nobody can look: then nothing says that it arrives."""
        return self.outcome == DELIVERED and bool(self.hops) and self.hops[-1].direction == "out"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Every way this packet may go by the state in `World`. `guards`: points where it must not appear,
    whichever way it goes. `unread`: what could not be read, so that the answer may be wrong. `ears`: points
    of the destination, which a packet that ends before it would reach if it did not."""

    question: Question
    paths: tuple[Path, ...]
    guards: tuple[Point, ...] = ()
    unread: tuple[str, ...] = ()
    ears: tuple[Point, ...] = ()

    @property
    def outcome(self) -> str:
        """That of all paths, or the worst of them; lost where there is none."""
        worst = (LOST, DROPPED, REJECTED, DELIVERED)
        return min((path.outcome for path in self.paths), key=worst.index, default=LOST)


# --- what was captured, and what it proves --------------------------------------------------------


class Tap(NamedTuple):
    """One point's capture. `error`: why it could not be listened at, or not to the end. `armed` and `closed`:
    both barriers were seen. `dropped`: frames that the kernel had no room for."""

    point: Point
    error: str = ""
    armed: bool = False
    closed: bool = False
    dropped: int | None = None

    @property
    def is_witness(self) -> bool:
        """Whether "not seen" here means that nothing passed."""
        return not self.error and self.armed and self.closed and self.dropped == 0


class Sent(NamedTuple):
    """One packet (a try) that was sent. `cookie`: hexadecimal, in every UDP and ICMP payload of it; `src_port`:
    the port, or the identifier of an ICMP echo; `t_ns` as in `Captured`; `answer` as in `Path.answer`, empty if
    nothing came back in time; `error`: why the sender's own kernel refused."""

    number: int
    cookie: str
    src_port: int | None
    t_ns: int | None
    answer: str = ""
    error: str = ""
    rtt_us: float | None = None


class Count(NamedTuple):
    """A rule's counter before and after."""

    host: str
    table: str
    chain: str
    position: int
    text: str
    packets: int


class Connection(NamedTuple):
    """A conntrack entry that the packet left behind, in words, and the place whose table has it."""

    place: str
    text: str


class Reach(NamedTuple):
    """How the underlay between two hosts carried test packets, sent when a packet was lost there: how many of
    `sent` arrived, of UDP to the VXLAN port and of ICMP echo."""

    sender: str
    receiver: str
    sent: int
    udp_arrived: int
    icmp_arrived: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that one trace observed; with World and Question this is what a bundle holds and a replay judges.
    `after`: the state of the places once more, when the packet was not seen as predicted."""

    taps: tuple[Tap, ...]
    frames: tuple[Captured, ...]
    sent: tuple[Sent, ...]
    counts: tuple[Count, ...] = ()
    connections: tuple[Connection, ...] = ()
    reach: tuple[Reach, ...] = ()
    after: World | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """The proof, or why there is none. `answer`: what came back. `lost_between`: last point seen, first
    missing. `timing`: seconds by part. `expect`: the outcome that counts as proved."""

    id: str
    verdict: str
    question: Question
    outcome: str
    expect: str = DELIVERED
    forward: tuple[Hop, ...] = ()
    reply: tuple[Hop, ...] = ()
    guards: tuple[Hop, ...] = ()
    lost_between: tuple[Point, Point] | None = None
    cause: Cause | None = None
    answer: str = ""
    inconclusive_because: tuple[str, ...] = ()
    tag: Mapping[str, Any] = field(default_factory=dict)
    taps: tuple[Tap, ...] = ()
    counts: tuple[Count, ...] = ()
    connections: tuple[Connection, ...] = ()
    notes: tuple[str, ...] = ()
    tries: int = 1
    timing: Mapping[str, float] = field(default_factory=dict)
    bundle: str | None = None
