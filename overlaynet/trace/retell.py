"""A path told as it was seen: predicted hops with captured headers, and hops that nobody predicted.

Where a hop was seen the captured headers win, and what changed there is worked out anew from them; the reasons
(DNAT, routed, …) are the prediction's. Where it was not seen, the prediction stands. Sightings that no hop
explains are inserted by time, but for repetitions at points of the path itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from overlaynet.trace.align import Course, Step
from overlaynet.trace.causes import machine
from overlaynet.trace.join import Followed, Sighting
from overlaynet.trace.model import Change, Count, Evidence, Headers, Hop, Point, Prediction, Tap, Why, World


@dataclass(frozen=True, slots=True)
class Clock:
    """Times since the first sighting. `host`: the only machine whose stamps compare with it; None: all do."""

    world: World
    start_ns: int | None
    host: str | None = None

    @classmethod
    def of(cls, world: World, sightings: Sequence[Sighting], *, one: bool) -> Clock:
        stamped = [(s.t_ns, s.point.place) for s in sightings if s.t_ns is not None]
        if not stamped:
            return cls(world, None)
        start, place = min(stamped)
        return cls(world, start, None if one else machine(world, place))

    def t_us(self, sighting: Sighting) -> float | None:
        if self.start_ns is None or sighting.t_ns is None:
            return None
        if self.host is not None and machine(self.world, sighting.point.place) != self.host:
            return None
        return (sighting.t_ns - self.start_ns) / 1_000


def retold(world: World, course: Course, evidence: Evidence, clock: Clock) -> tuple[Hop, ...]:
    """The hops of one direction."""
    taps = {tap.point: tap for tap in evidence.taps}
    hops: list[Hop] = []
    before: Hop | None = None
    for step in course.steps:
        hop = _seen(step, taps.get(step.hop.point), clock)
        hops.append(replace(hop, changes=_changes(before, step, hop), why=_counted(hop, evidence.counts)))
        before = hop
    others = [stray for stray in course.strays if stray.point not in course.points]
    return tuple(_inserted(hops, [_unexpected(world, stray, clock) for stray in others]))


def retold_guards(
    world: World, prediction: Prediction, evidence: Evidence, followed: Followed, clock: Clock
) -> tuple[Hop, ...]:
    """Every guard point: where the packet was seen, or that it was not."""
    taps = {tap.point: tap for tap in evidence.taps}
    found: list[Hop] = []
    for point in prediction.guards:
        here = [s for s in (*followed.forward, *followed.reply) if s.point == point]
        found += [_unexpected(world, s, clock) for s in here] or [
            _quiet(world, prediction, point, taps.get(point))
        ]
    return tuple(found)


def _seen(step: Step, tap: Tap | None, clock: Clock) -> Hop:
    sighting = step.sighting
    if sighting is None:
        return replace(step.hop, seen=_silence(tap))
    frame = sighting.frame
    return replace(
        step.hop,
        inner=frame.packet,
        outer=frame.outer if frame.vni is not None else None,
        vni=frame.vni,
        seen=True,
        t_us=clock.t_us(sighting),
        note=step.hop.note if sighting.complete else f"{sighting.fragments} fragments, which are not all",
    )


def _silence(tap: Tap | None) -> bool | None:
    """False if it was listened for in vain; None if nobody can say."""
    return False if tap is not None and tap.is_witness else None


def _unexpected(world: World, sighting: Sighting, clock: Clock) -> Hop:
    frame, place = sighting.frame, world.places.get(sighting.point.place)
    return Hop(
        place=sighting.point.place,
        iface=sighting.point.iface,
        direction=sighting.direction,
        inner=frame.packet,
        outer=frame.outer if frame.vni is not None else None,
        vni=frame.vni,
        host=place.host if place else None,
        netns=place.netns if place else None,
        predicted=False,
        seen=True,
        t_us=clock.t_us(sighting),
    )


def _quiet(world: World, prediction: Prediction, point: Point, tap: Tap | None) -> Hop:
    asked, place = prediction.question, world.places.get(point.place)
    inner = Headers(None, None, asked.src, asked.dst, asked.protocol, asked.src_port, asked.dst_port)
    return Hop(
        place=point.place,
        iface=point.iface,
        direction="in",
        inner=inner,
        host=place.host if place else None,
        netns=place.netns if place else None,
        predicted=False,
        seen=_silence(tap),
        note="" if tap is not None and tap.is_witness else "no witness",
    )


def _inserted(hops: Sequence[Hop], others: Iterable[Hop]) -> list[Hop]:
    """Hops nobody predicted, each behind the last one that was seen no later."""
    told = list(hops)
    for other in others:
        place = len(told)
        if other.t_us is not None:
            earlier = [i for i, hop in enumerate(told) if hop.t_us is not None and hop.t_us <= other.t_us]
            place = earlier[-1] + 1 if earlier else 0
        told.insert(place, other)
    return told


# --- changes --------------------------------------------------------------------------------------

_FIELDS = ("src_mac", "dst_mac", "src", "dst", "src_port", "dst_port", "ttl")


def _changes(before: Hop | None, step: Step, hop: Hop) -> tuple[Change, ...]:
    """What changed from the hop before: as captured where both were seen, else as predicted."""
    predicted = step.hop.changes
    if before is None or not before.seen or not hop.seen:
        return predicted
    reasons = {change.field: change.reason for change in predicted}
    return tuple(_differing(before, hop, reasons, predicted))


def _differing(
    before: Hop, hop: Hop, reasons: Mapping[str, str], predicted: Iterable[Change]
) -> Iterator[Change]:
    for name in _FIELDS:
        was, now = getattr(before.inner, name), getattr(hop.inner, name)
        if was != now and None not in (was, now):
            yield Change(name, str(was), str(now), reasons.get(name, ""))
    if (before.outer is None) != (hop.outer is None):
        yield Change("encapsulation", _wrapping(before), _wrapping(hop), reasons.get("encapsulation", ""))
    yield from (change for change in predicted if change.field in ("length", "fragments"))


def _wrapping(hop: Hop) -> str | None:
    return f"vxlan {hop.vni} {hop.outer.src} → {hop.outer.dst}" if hop.outer else None


def _counted(hop: Hop, counts: Iterable[Count]) -> tuple[Why, ...]:
    """The hop's reasons, those that are rules with what they counted."""
    grown = {(count.host, count.text): count.packets for count in counts}
    return tuple(
        why._replace(packets=grown.get((hop.place, why.text), why.packets)) if why.object == "rule" else why
        for why in hop.why
    )
