"""A predicted path and the sightings of one packet, laid side by side: which hop is which sighting.

A sighting belongs to a hop if point and direction are the same. A point may be passed more than once, as in a
loop; then those go together whose headers agree, the earlier one first, before any that do not. What is left
over are *strays*.

Headers are compared only in what decides where a packet goes and what it says::

    compared     src dst src_port dst_port protocol, ICMP type and code, TCP's SYN, ACK, FIN and RST; in a
                 tunnel outer src and dst, and the VNI; and whether it is in a tunnel at all
    remarked on  MACs; the TTL, by how far it fell since the first sighting
    never        checksums (offloaded: wrong at every virtual hop), lengths above the MTU (GSO), the IP id, the
                 outer TTL, the outer source port

A prediction's None agrees with anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from overlaynet.trace.join import Sighting
from overlaynet.trace.model import Frame, Headers, Hop, Icmp, Point, Tcp


class Difference(NamedTuple):
    """A header that is not as predicted, as text. `field`: "dst", "outer dst", "vni", "encapsulation", …"""

    field: str
    predicted: str
    seen: str


class Step(NamedTuple):
    """A hop with its sighting, if there is one."""

    hop: Hop
    sighting: Sighting | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def is_seen(self) -> bool:
        """All of the packet: of a fragmented one, every fragment."""
        return self.sighting is not None and self.sighting.complete

    @property
    def is_owed(self) -> bool:
        """Not seen, and not one that may be unseen."""
        return not self.is_seen and not self.hop.optional

    @property
    def agrees(self) -> bool:
        return self.is_seen and not self.differences


@dataclass(frozen=True, slots=True)
class Course:
    """One direction of a path beside what was seen. `strays`: sightings that no hop explains."""

    steps: tuple[Step, ...]
    strays: tuple[Sighting, ...] = ()

    @property
    def last(self) -> int:
        """Number of the last step that was seen, -1 if none was."""
        return max((number for number, step in enumerate(self.steps) if step.is_seen), default=-1)

    @property
    def missed(self) -> tuple[Step, ...]:
        """Steps that were not seen though a later one was, and should have been."""
        return tuple(step for step in self.steps[: self.last + 1] if step.is_owed)

    @property
    def rest(self) -> tuple[Step, ...]:
        """Steps that should have been seen after the last one that was."""
        return tuple(step for step in self.steps[self.last + 1 :] if step.is_owed)

    @property
    def is_whole(self) -> bool:
        return not self.missed and not self.rest

    @property
    def agreeing(self) -> int:
        return sum(step.agrees for step in self.steps)

    @property
    def seen(self) -> int:
        return sum(step.is_seen for step in self.steps)

    @property
    def points(self) -> frozenset[Point]:
        return frozenset(step.hop.point for step in self.steps)

    @property
    def different(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.differences)


def follow(hops: Sequence[Hop], sightings: Iterable[Sighting]) -> Course:
    """Lay the sightings along the hops."""
    left = sorted(sightings, key=lambda s: s.t_ns or 0)
    found: dict[int, Sighting] = {}
    for must_agree in (True, False):
        for number, hop in enumerate(hops):
            one = None if number in found else _fitting(hop, left, must_agree)
            if one is not None:
                left.remove(one)
                found[number] = one
    return Course(tuple(_step(hop, found.get(number)) for number, hop in enumerate(hops)), tuple(left))


def _fitting(hop: Hop, sightings: Iterable[Sighting], must_agree: bool) -> Sighting | None:
    """The first sighting of this hop; one that is complete, if there is any."""
    here = [s for s in sightings if (s.point, s.direction) == (hop.point, hop.direction)]
    if must_agree:
        here = [s for s in here if s.complete and not differences(hop, s.frame)]
    return next((s for s in here if s.complete), next(iter(here), None))


def _step(hop: Hop, sighting: Sighting | None) -> Step:
    return Step(hop) if sighting is None else Step(hop, sighting, differences(hop, sighting.frame))


# --- headers --------------------------------------------------------------------------------------

_COMPARED = ("src", "dst", "src_port", "dst_port", "protocol")


def differences(hop: Hop, frame: Frame) -> tuple[Difference, ...]:
    """What decides a packet's way and differs from the prediction."""
    found = [
        *_wrapping(hop, frame),
        *_between(hop.inner, frame.packet, _COMPARED),
        *_message(hop.inner, frame.packet),
    ]
    return tuple(found)


def _wrapping(hop: Hop, frame: Frame) -> Iterator[Difference]:
    if (hop.outer is None) != (frame.vni is None):
        words = ("none", "vxlan")
        yield Difference("encapsulation", words[hop.outer is not None], words[frame.vni is not None])
    elif hop.outer is not None:
        yield from _between(hop.outer, frame.outer, ("src", "dst"), "outer ")
        if hop.vni is not None and hop.vni != frame.vni:
            yield Difference("vni", str(hop.vni), str(frame.vni))


def _between(predicted: Headers, seen: Headers, names: Iterable[str], prefix: str = "") -> Iterator[Difference]:
    for name in names:
        want, have = getattr(predicted, name), getattr(seen, name)
        if want is not None and have is not None and want != have:
            yield Difference(prefix + name, str(want), str(have))


def _message(predicted: Headers, seen: Headers) -> Iterator[Difference]:
    """What an ICMP or TCP header says."""
    if predicted.icmp and seen.icmp and predicted.icmp[:2] != seen.icmp[:2]:
        yield Difference("icmp", _numbers(predicted.icmp), _numbers(seen.icmp))
    if predicted.tcp and seen.tcp and _flags(predicted.tcp) != _flags(seen.tcp):
        yield Difference("flags", predicted.tcp.flags, seen.tcp.flags)


def _flags(tcp: Tcp) -> set[str]:
    """Without those of ECN, which the sender sets and the receiver may clear (RFC 3168)."""
    return set(tcp.flags) & set("SAFR")


def _numbers(icmp: Icmp) -> str:
    return f"type {icmp.type} code {icmp.code}"


def remarks(course: Course) -> Iterator[str]:
    """Headers that differ and decide nothing, a sentence each."""
    for step in course.steps:
        if step.sighting is None:
            continue
        predicted, seen = step.hop.outer or step.hop.inner, step.sighting.frame.outer
        for one in _between(predicted, seen, ("src_mac", "dst_mac")):
            yield f"at {step.hop.point} the {one.field} was {one.seen}, {one.predicted} was predicted"
    yield from _ttls(course)


def _ttls(course: Course) -> Iterator[str]:
    told = [(s.hop, s.hop.inner.ttl, s.sighting.frame.packet.ttl) for s in course.steps if s.sighting]
    known = [
        (hop, predicted, seen) for hop, predicted, seen in told if predicted is not None and seen is not None
    ]
    for (_, before, was), (hop, predicted, seen) in pairwise(known):
        if before - predicted != was - seen:
            yield f"at {hop.point} the TTL had fallen by {was - seen}, {before - predicted} was predicted"
