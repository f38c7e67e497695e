"""A packet under way, as a value: what it looks like now, where it has been, and what was decided on the way.

A packet is one layer of headers, or two while it is in a tunnel; whoever routes, filters or fragments looks at
the last layer alone. What the kernel keeps beside a packet (mark, the bridge port it came by, its connection)
is kept here too, and is lost where the kernel loses it.

Every step of the walk takes a `Journey` and gives others, or an `End`. Nothing is ever changed in place, so a
choice of several endpoints is simply several journeys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from overlaynet.addr import IPAddress
from overlaynet.state import Key, Object
from overlaynet.trace.model import (
    Cause,
    Change,
    Direction,
    Headers,
    Hop,
    Icmp,
    Place,
    Quoted,
    Why,
)

IP_HEADER_BYTES = 20
PORT_HEADER_BYTES = {"udp": 8, "icmp": 8}
VXLAN_BYTES = 50
"""Outer IPv4, UDP and VXLAN header, and the inner Ethernet header (RFC 7348 section 5)."""
ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})


class Tuple(NamedTuple):
    """What conntrack knows a packet by. Ports None: of ICMP, or not known beforehand."""

    protocol: str
    src: IPAddress
    src_port: int | None
    dst: IPAddress
    dst_port: int | None

    @property
    def inverse(self) -> Tuple:
        return Tuple(self.protocol, self.dst, self.dst_port, self.src, self.src_port)

    def fits(self, other: Tuple) -> bool:
        """Equal, but for what is not known."""
        same = (self.protocol, self.src, self.dst) == (other.protocol, other.src, other.dst)
        return same and _may_be(self.src_port, other.src_port) and _may_be(self.dst_port, other.dst_port)


def _may_be(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


@dataclass(frozen=True, slots=True)
class Conn:
    """An entry of a place's conntrack: the first packet's tuple as it came, and as it left. `mark`: the
    connection's own, None as long as no rule gave it one."""

    place: str
    original: Tuple
    translated: Tuple
    mark: int | None = None

    @property
    def dnat(self) -> bool:
        return (self.original.dst, self.original.dst_port) != (self.translated.dst, self.translated.dst_port)

    @property
    def snat(self) -> bool:
        one, other = self.original, self.translated
        return one.src != other.src or other.src_port != one.src_port


@dataclass(frozen=True, slots=True)
class Layer:
    """One IP packet. `pieces`: the largest of the fragments it travels in, in bytes, 0 for a whole one;
    `largest`: of a packet that was put together again, its largest fragment, which it will be cut into
    again."""

    headers: Headers
    pieces: int = 0
    largest: int = 0

    @property
    def shown(self) -> Headers:
        """As a capture shows it: of several fragments, the first."""
        if not self.pieces or self.headers.length is None:
            return self.headers
        first = first_fragment(self.pieces)
        return replace(self.headers, length=first, more_fragments=True)

    @property
    def count(self) -> int:
        """Of fragments; 1 for a whole packet."""
        if not self.pieces or self.headers.length is None:
            return 1
        room = first_fragment(self.pieces) - IP_HEADER_BYTES
        return -(-(self.headers.length - IP_HEADER_BYTES) // room)


def first_fragment(mtu: int) -> int:
    """Bytes of every fragment but the last: the payload is a multiple of eight (RFC 791 section 3.2)."""
    return (mtu - IP_HEADER_BYTES) // 8 * 8 + IP_HEADER_BYTES


class Deviation(NamedTuple):
    """Something that decided on the way, and is not what a host should hold there. `have` None: the wanted
    entry is missing, and something else decided in its place, or nothing."""

    place: str
    iface: str
    kind: str
    want: Object | None
    have: Object | None
    key: Key


@dataclass(frozen=True, slots=True)
class Context:
    """What the kernel keeps beside a packet while it is in one place. `port`: the bridge port it came by;
    `filtered`: the bridge has sent it through PREROUTING; `routed`: it needs no lookup, its route was found
    when it was sent; `conn`: its connection, `reply`: in whose other direction it goes; `state`: in
    iptables' words."""

    port: str | None = None
    filtered: bool = False
    routed: bool = False
    conn: Conn | None = None
    reply: bool = False
    state: str = "NEW"
    ignore_df: bool = False

    @property
    def physin(self) -> str | None:
        """The bridge port, as far as iptables knows it: only where bridged frames are sent through it."""
        return self.port if self.filtered else None


CLEAN = Context()
NO_REASONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Journey:
    """A packet under way, and its history. `layers`: the traced packet, and what wraps it."""

    layers: tuple[Layer, ...]
    vni: int | None = None
    mark: int = 0
    tcp_flags: str = ""
    context: Context = CLEAN
    hops: tuple[Hop, ...] = ()
    conns: tuple[Conn, ...] = ()
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    whys: tuple[Why, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=lambda: NO_REASONS)
    deviations: tuple[Deviation, ...] = ()
    floods: frozenset[str] = frozenset()

    # --- the packet ---------------------------------------------------------------------------

    @property
    def ip(self) -> Headers:
        """The headers that whoever handles it now looks at."""
        return self.layers[-1].headers

    @property
    def layer(self) -> Layer:
        return self.layers[-1]

    @property
    def tunnelled(self) -> bool:
        return len(self.layers) > 1

    @property
    def src(self) -> IPAddress:
        assert self.ip.src is not None
        return self.ip.src

    @property
    def dst(self) -> IPAddress:
        assert self.ip.dst is not None
        return self.ip.dst

    @property
    def tuple(self) -> Tuple:
        return Tuple(self.ip.protocol, self.src, self.ip.src_port, self.dst, self.ip.dst_port)

    @property
    def quoted(self) -> Quoted | None:
        """The packet that this one, an ICMP error, is about."""
        icmp = self.ip.icmp
        return icmp.quoted if icmp and icmp.type in ICMP_ERRORS else None

    def with_layer(self, layer: Layer) -> Journey:
        return replace(self, layers=(*self.layers[:-1], layer))

    def with_headers(self, reason: str = "", **fields: object) -> Journey:
        """With other headers, for this reason."""
        changed = {name for name, value in fields.items() if getattr(self.ip, name) != value}
        headers = replace(self.ip, **fields)  # type: ignore[arg-type]
        reasons = {**self.reasons, **dict.fromkeys(changed, reason)} if reason else self.reasons
        return replace(self.with_layer(replace(self.layer, headers=headers)), reasons=reasons)

    def with_context(self, **fields: object) -> Journey:
        return replace(self, context=replace(self.context, **fields))  # type: ignore[arg-type]

    def because(self, *whys: Why | None, **reasons: str) -> Journey:
        """With more that decided where it goes, to be told at its next hop."""
        found = tuple(why for why in whys if why is not None and why not in self.whys)
        return replace(self, whys=self.whys + found, reasons={**self.reasons, **reasons})

    def noting(self, *notes: str) -> Journey:
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))

    def doubting(self, *unread: str) -> Journey:
        """Something on the way could not be read, so from here on it is one possibility of several."""
        return replace(self, unread=tuple(dict.fromkeys((*self.unread, *unread))))

    def choosing(self, *choices: str) -> Journey:
        return replace(self, choices=self.choices + choices)

    def deviating(self, *deviations: Deviation) -> Journey:
        return replace(self, deviations=self.deviations + deviations)

    # --- history ------------------------------------------------------------------------------

    def passing(
        self, place: Place, iface: str, direction: Direction, note: str = "", *, optional: bool = False
    ) -> Journey:
        """Seen at this point. What decided since the hop before is told there."""
        inner = self.layers[0].shown
        outer = self.layers[1].shown if self.tunnelled else None
        hop = Hop(
            place.name,
            iface,
            direction,
            inner,
            outer,
            self.vni if self.tunnelled else None,
            place.host,
            place.netns,
            changes=tuple(self._changes(inner, outer)),
            why=self.whys,
            note=note,
            optional=optional,
        )
        return replace(self, hops=(*self.hops, hop), whys=(), reasons=NO_REASONS)

    def _changes(self, inner: Headers, outer: Headers | None) -> Iterator[Change]:
        if not self.hops:
            return
        last = self.hops[-1]
        for name in ("src_mac", "dst_mac", "src", "dst", "src_port", "dst_port", "ttl"):
            before, after = getattr(last.inner, name), getattr(inner, name)
            if before != after:
                yield Change(name, _text(before), _text(after), self.reasons.get(name, ""))
        if (last.outer is None) != (outer is None):
            yield Change(
                "encapsulation", _wrap(last), self._wrapping(outer), self.reasons.get("encapsulation", "")
            )
        yield from self._fragments(last)

    def _wrapping(self, outer: Headers | None) -> str | None:
        return f"vxlan {self.vni} {outer.src} → {outer.dst}" if outer else None

    def _fragments(self, last: Hop) -> Iterator[Change]:
        now = max(self.layers, key=lambda layer: layer.count)
        was = last.inner.more_fragments or (last.outer is not None and last.outer.more_fragments)
        if (now.count > 1) != was:
            reason = self.reasons.get("fragments", "")
            words = f"{now.count} of at most {first_fragment(now.pieces)} bytes" if now.count > 1 else None
            yield Change("fragments", "several" if was else None, words, reason)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _wrap(hop: Hop) -> str | None:
    return f"vxlan {hop.vni} {hop.outer.src} → {hop.outer.dst}" if hop.outer else None


# --- what comes next ------------------------------------------------------------------------------


class Sends(NamedTuple):
    """A process of the place, or its kernel, sends it."""

    place: str


class Leaves(NamedTuple):
    """It was routed: to `next_hop` by `dev`. `source`: by which device it came in, None if it was sent here."""

    place: str
    dev: str
    next_hop: IPAddress
    source: str | None = None


class Transmits(NamedTuple):
    """A whole frame is given to a device."""

    place: str
    dev: str
    next_hop: IPAddress | None = None


class Arrives(NamedTuple):
    """A device receives a frame. `addressed`: whatever MAC it has, it is for this device."""

    place: str
    dev: str
    addressed: bool = False


class Bridges(NamedTuple):
    """A bridge decides about a frame. `port` None: its own host sends it."""

    place: str
    bridge: str
    port: str | None = None


class Enters(NamedTuple):
    """The place's IP stack takes it from this device."""

    place: str
    dev: str


class Stays(NamedTuple):
    """It is addressed to the place itself."""

    place: str
    dev: str


Stage: TypeAlias = Sends | Leaves | Transmits | Arrives | Bridges | Enters | Stays


class Step(NamedTuple):
    """A journey, and what happens to it next."""

    journey: Journey
    stage: Stage


class Answer(NamedTuple):
    """A packet that goes back: sent by `place`, with these headers."""

    name: str
    place: str
    headers: Headers
    tcp_flags: str = ""


class End(NamedTuple):
    """Where a journey ends. `arrived`: whose stack took it; `answer`: what is sent back."""

    journey: Journey
    outcome: str
    cause: Cause | None = None
    arrived: str | None = None
    answer: Answer | None = None


Outcome: TypeAlias = Iterator[Step | End]


def error(kind: int, code: int, about: Headers, mtu: int | None = None) -> Icmp:
    """An ICMP error about a packet (RFC 792)."""
    assert about.src is not None
    assert about.dst is not None
    ports = (about.src_port, about.dst_port)
    return Icmp(kind, code, mtu=mtu, quoted=Quoted(about.src, about.dst, about.protocol, *ports, None, None))
