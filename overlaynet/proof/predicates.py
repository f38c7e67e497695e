"""What a packet can be asked to be: ``tcp(80)``, ``vxlan(vni=1, src="node-1")``, or any words of a filter.

A predicate says of a packet what about it is *not* so, and matches if that is nothing. So whoever expected a
packet in vain is shown the nearest one, with the reasons why it is another. Predicates are put together by
``&``, ``|`` and ``~``; wherever one is taken, a text will do, in the words of `overlaynet.trace.filter`.

A frame of a tunnel holds two packets. Each predicate is satisfied by one of them as a whole: ``tcp(80)`` finds
a tunnelled call, ``udp(8472)`` the tunnel itself. What is joined by ``&`` may be each about another one:
``udp(8472) & tcp(80)`` is a call in a tunnel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, TypeAlias

from overlaynet.addr import IPAddress
from overlaynet.errors import UsageError
from overlaynet.proof.packet import Packet
from overlaynet.trace import filter as filters
from overlaynet.trace.filter import Filter, Names
from overlaynet.trace.model import Headers, Icmp

Address: TypeAlias = str | IPAddress
"""An address, or the name of a container or host, which stands for all of its addresses."""

ICMP_KINDS: Mapping[str, tuple[int, int | None]] = {
    "echo-request": (8, None),
    "echo-reply": (0, None),
    "unreachable": (3, None),
    "fragmentation-needed": (3, 4),
    "port-unreachable": (3, 3),
    "time-exceeded": (11, None),
}


class Match(ABC):
    """A predicate on packets."""

    @abstractmethod
    def misses(self, packet: Packet) -> Sequence[str]:
        """What of the packet is not as this says; nothing if it matches."""

    def known(self, names: Names) -> Match:
        """The same with names looked up. Raises UsageError for a name or word that nobody knows."""
        return self

    def __call__(self, packet: Packet) -> bool:
        return not self.misses(packet)

    def __and__(self, other: Match | str) -> Match:
        return _Both(self, as_match(other))

    def __or__(self, other: Match | str) -> Match:
        return _Either(self, as_match(other))

    def __invert__(self) -> Match:
        return _Not(self)


def as_match(wanted: Match | str) -> Match:
    """A text is a filter."""
    return _Words(wanted) if isinstance(wanted, str) else wanted


@dataclass(frozen=True)
class _Words(Match):
    """A filter as it is typed at `overlaynet capture`. `filter` None: its names are not looked up yet."""

    text: str
    filter: Filter | None = None

    def __str__(self) -> str:
        return f"'{self.text}'"

    def known(self, names: Names) -> Match:
        return replace(self, filter=filters.read(self.text, names))

    def misses(self, packet: Packet) -> Sequence[str]:
        wanted = self.filter or filters.read(self.text, packet.scene.names)
        return () if wanted(packet.frame) else (f"it does not satisfy {self}",)


@dataclass(frozen=True)
class _Both(Match):
    one: Match
    other: Match

    def __str__(self) -> str:
        return f"{self.one} and {self.other}"

    def known(self, names: Names) -> Match:
        return _Both(self.one.known(names), self.other.known(names))

    def misses(self, packet: Packet) -> Sequence[str]:
        return (*self.one.misses(packet), *self.other.misses(packet))


@dataclass(frozen=True)
class _Either(Match):
    one: Match
    other: Match

    def __str__(self) -> str:
        return f"({self.one} or {self.other})"

    def known(self, names: Names) -> Match:
        return _Either(self.one.known(names), self.other.known(names))

    def misses(self, packet: Packet) -> Sequence[str]:
        return min(self.one.misses(packet), self.other.misses(packet), key=len)


@dataclass(frozen=True)
class _Not(Match):
    term: Match

    def __str__(self) -> str:
        return f"not {self.term}"

    def known(self, names: Names) -> Match:
        return _Not(self.term.known(names))

    def misses(self, packet: Packet) -> Sequence[str]:
        return () if self.term.misses(packet) else (f"it is {self.term}",)


# --- one packet's properties ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Properties(Match):
    """Fields that one packet of the frame has; None: any."""

    protocol: str | None = None
    kind: str | None = None
    port: int | None = None
    src: Address | None = None
    sport: int | None = None
    dst: Address | None = None
    dport: int | None = None
    flags: str | None = None
    seq: int | None = None
    ttl: int | None = None

    def __str__(self) -> str:
        """``tcp port 80 from web-1``"""
        values = ((word, getattr(self, name)) for name, word in _SAID.items())
        said = [f"{word} {value}".strip() for word, value in values if value is not None]
        return " ".join([self.protocol or "a packet", *said])

    def known(self, names: Names) -> Match:
        for given in (self.src, self.dst):
            addresses(given, names)
        return self

    def misses(self, packet: Packet) -> Sequence[str]:
        nearest = [one for one in packet.headers if self.protocol == one.protocol] or packet.headers
        return min((self.misses_of(one, packet.scene.names) for one in nearest), key=len)

    def misses_of(self, headers: Headers, names: Names) -> list[str]:
        if self.protocol not in (None, headers.protocol):
            return [f"it is {headers.protocol}, not {self.protocol}"]
        tcp, icmp, ports = headers.tcp, headers.icmp, (headers.src_port, headers.dst_port)
        found = [
            *_other("source is", headers.src, addresses(self.src, names)),
            *_other("source port is", headers.src_port, _one(self.sport)),
            *_other("destination is", headers.dst, addresses(self.dst, names)),
            *_other("destination port is", headers.dst_port, _one(self.dport)),
            *_other("flags are", tcp and tcp.flags, _one(self.flags)),
            *_other("sequence number is", icmp and icmp.seq, _one(self.seq)),
            *_other("TTL is", headers.ttl, _one(self.ttl)),
        ]
        if self.port not in (None, *ports):
            found.append(f"its ports are {ports[0]} and {ports[1]}, not {self.port}")
        if self.kind is not None and not _is_of_kind(icmp, self.kind):
            found.append(f"it is ICMP {icmp and (icmp.type, icmp.code)}, not {self.kind}")
        return found


_SAID = {
    "kind": "",
    "port": "port",
    "src": "from",
    "sport": "from port",
    "dst": "to",
    "dport": "to port",
    "flags": "flags",
    "seq": "number",
    "ttl": "with TTL",
}
"""How each field is told."""


def _one(value: Any) -> Collection[Any] | None:
    return None if value is None else (value,)


def _other(words: str, value: Any, wanted: Collection[Any] | None) -> list[str]:
    """The complaint that a field has another value than the wanted ones."""
    if wanted is None or value in wanted:
        return []
    return [f"its {words} {value}, not {' or '.join(sorted(map(str, wanted)))}"]


def _is_of_kind(icmp: Icmp | None, kind: str) -> bool:
    type_, code = ICMP_KINDS[kind]
    return icmp is not None and icmp.type == type_ and code in (None, icmp.code)


def addresses(given: Address | None, names: Names) -> Collection[IPAddress] | None:
    """What was typed, as addresses. Raises UsageError for a name that nobody has."""
    if given is None:
        return None
    if isinstance(given, str) and given in names:
        return names[given]
    try:
        return (ip_address(given),)
    except ValueError:
        known = ", ".join(sorted(names)) or "none"
        raise UsageError(
            f"{given!r} is no address, nor the name of a container or host", evidence=f"names: {known}"
        ) from None


def tcp(
    port: int | None = None,
    *,
    src: Address | None = None,
    dst: Address | None = None,
    sport: int | None = None,
    dport: int | None = None,
    flags: str | None = None,
    ttl: int | None = None,
) -> Match:
    """A TCP segment. `flags` are all that are set, in the order of scapy: "S", "SA", "PA", "RA"."""
    return _Properties("tcp", port=port, src=src, dst=dst, sport=sport, dport=dport, flags=flags, ttl=ttl)


def udp(
    port: int | None = None,
    *,
    src: Address | None = None,
    dst: Address | None = None,
    sport: int | None = None,
    dport: int | None = None,
    ttl: int | None = None,
) -> Match:
    """A UDP datagram."""
    return _Properties("udp", port=port, src=src, dst=dst, sport=sport, dport=dport, ttl=ttl)


def icmp(
    kind: str | None = None,
    *,
    src: Address | None = None,
    dst: Address | None = None,
    seq: int | None = None,
    ttl: int | None = None,
) -> Match:
    """An ICMP message; `kind` is one of `ICMP_KINDS`. Raises UsageError for another."""
    if kind is not None and kind not in ICMP_KINDS:
        raise UsageError(f"there is no ICMP {kind!r}", evidence="kinds: " + ", ".join(ICMP_KINDS))
    return _Properties("icmp", kind, src=src, dst=dst, seq=seq, ttl=ttl)


def arp(*, src: Address | None = None, dst: Address | None = None) -> Match:
    """A question for an Ethernet address, or its answer, by the IP addresses in it (RFC 826)."""
    return _Properties("arp", src=src, dst=dst)


@dataclass(frozen=True)
class _Same(Match):
    packet: Packet

    def __str__(self) -> str:
        return f"the packet that was at {self.packet.point}"

    def misses(self, packet: Packet) -> Sequence[str]:
        return () if packet.identity == self.packet.identity else ("it is another packet",)


def same(packet: Packet) -> Match:
    """One and the same packet, whatever NAT, routers and tunnels did to it on its way (`Packet.identity`)."""
    return _Same(packet)


# --- tunnels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vxlan(Match):
    vni: int | None
    ends: _Properties
    carrying: Packet | Match | None

    def __str__(self) -> str:
        vni = "" if self.vni is None else f" {self.vni}"
        inside = "that packet" if isinstance(self.carrying, Packet) else self.carrying
        return f"vxlan{vni}{str(self.ends).removeprefix('a packet')}" + (
            f" carrying {inside}" if self.carrying is not None else ""
        )

    def known(self, names: Names) -> Match:
        carrying = self.carrying.known(names) if isinstance(self.carrying, Match) else self.carrying
        self.ends.known(names)
        return replace(self, carrying=carrying)

    def misses(self, packet: Packet) -> Sequence[str]:
        if packet.frame.vni is None:
            return ("it is not in a tunnel",)
        ends = self.ends.misses_of(packet.outer, packet.scene.names)
        found = [*_other("VNI is", packet.frame.vni, _one(self.vni)), *ends]
        if self.carrying is not None:
            found += _carried(self.carrying, packet)
        return found


def _carried(wanted: Packet | Match, packet: Packet) -> Sequence[str]:
    inside = packet.inside
    if inside is None:
        return ("nothing whole is in the tunnel",)
    if isinstance(wanted, Match):
        return [f"inside, {why}" for why in wanted.misses(inside)]
    return changes_on_the_way(wanted, inside)


def changes_on_the_way(sent: Packet, got: Packet) -> list[str]:
    """What a router may not change, and differs. TTL and Ethernet addresses are the router's to change."""
    before, after = (_constant(one.innermost) for one in (sent, got))
    found = [f"{name} was {old} and is {after[name]}" for name, old in before.items() if old != after[name]]
    found += _other("frame's bytes are", got.length, _one((sent.inside or sent).length))
    if not found and sent.unchanging != got.unchanging:
        found.append("its content is not what was sent")
    return found


def _constant(headers: Headers) -> dict[str, Any]:
    routers = ("src_mac", "dst_mac", "ttl")
    return {name: getattr(headers, name) for name in headers.__slots__ if name not in routers}


def vxlan(
    vni: int | None = None,
    *,
    src: Address | None = None,
    dst: Address | None = None,
    carrying: Packet | Match | str | None = None,
) -> Match:
    """A VXLAN packet (RFC 7348) between these ends. `carrying` a packet: exactly that one is inside, but for
    TTL and Ethernet addresses; a predicate: one that it matches is."""
    inside = as_match(carrying) if isinstance(carrying, str) else carrying
    return _Vxlan(vni, _Properties(src=src, dst=dst), inside)
