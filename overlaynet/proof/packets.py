"""What was captured, to be searched and to be asserted about.

    with capture(["web-1:eth0", "node-1:eth0"]) as packets:
        ...
    sent = packets.at("web-1:eth0").expect(icmp("echo-request"))[0]
    packets.at("node-1:eth0").expect(vxlan(vni=1, carrying=sent))
    packets.at("node-1:eth0").never("net 10.244.0.0/16 and not tunnelled")

Looking (`at`, `where`, `of`, `incoming`, `outgoing`, `follow`) answers packets, maybe none. Asserting
(`expect`, `never`, `only`, `path`) raises `Refuted`, which shows the packets that refute it.

Not to have seen something proves nothing unless somebody looked all the time. So whatever rests on silence
(`never`, `only`, an exact count, a path that is not seen) raises `Inconclusive` where a point was not a
witness: it could not be listened at to the end, or the kernel dropped frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import overload

from overlaynet.errors import UsageError
from overlaynet.proof.packet import Packet, Scene
from overlaynet.proof.predicates import Match, as_match
from overlaynet.proof.way import Inconclusive, Refuted, Way, line
from overlaynet.trace.filter import Filter
from overlaynet.trace.model import Point, Sent, Tap

SHOWN = 12
"""Packets that a failure shows, the refuting ones among them."""


class Packets(Sequence[Packet]):
    """Captured packets in order of time, and the points that were listened at.

    While the capture still runs (inside its `with` block) there is nothing to see: every question raises
    UsageError."""

    def __init__(
        self, packets: Iterable[Packet] | None, taps: Iterable[Tap] = (), scene: Scene | None = None
    ) -> None:
        self._all = None if packets is None else tuple(packets)
        self._taps = {tap.point: tap for tap in taps}
        self._scene = scene or Scene()

    def end(self, packets: Iterable[Packet], taps: Iterable[Tap], wanted: Filter) -> None:
        """The capture has ended, and this was captured."""
        self._all = tuple(packet for packet in packets if wanted(packet.frame))
        self._taps = {tap.point: tap for tap in taps}

    def _found(self) -> tuple[Packet, ...]:
        if self._all is None:
            raise UsageError(
                "the capture still runs", evidence="what it saw is there after the end of its with block"
            )
        return self._all

    def _narrowed(self, packets: Iterable[Packet], taps: Iterable[Tap] | None = None) -> Packets:
        return Packets(packets, self._taps.values() if taps is None else taps, self._scene)

    @overload
    def __getitem__(self, index: int) -> Packet: ...
    @overload
    def __getitem__(self, index: slice) -> Packets: ...
    def __getitem__(self, index: int | slice) -> Packet | Packets:
        found = self._found()[index]
        return found if isinstance(found, Packet) else self._narrowed(found)

    def __len__(self) -> int:
        return len(self._found())

    def __repr__(self) -> str:
        points = ", ".join(map(str, self._taps))
        return f"<{'still capturing' if self._all is None else f'{len(self)} packets'} at {points}>"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """A line for each packet, times in seconds since the first of them."""
        return [line(packet, self.start_ns) for packet in self]

    @property
    def start_ns(self) -> int:
        return next((p.t_ns for p in self._found() if p.t_ns is not None), 0)

    # --- who listened ---

    @property
    def points(self) -> list[str]:
        return [str(point) for point in self._taps]

    def tap(self, point: str) -> Tap:
        """How listening at a point went. Raises UsageError if nobody did."""
        return self._taps[self._points_like([point])[0]]

    def witness(self, point: str) -> bool:
        """Whether "not seen" at this point means that nothing passed."""
        return self.tap(point).is_witness

    @property
    def drops(self) -> int:
        """Frames that the kernel had no room for, at all points."""
        return sum(tap.dropped or 0 for tap in self._taps.values())

    def _points_like(self, patterns: Sequence[str]) -> list[Point]:
        found = [point for point in self._taps if any(fnmatchcase(str(point), p) for p in patterns)]
        for pattern in patterns:
            if not any(fnmatchcase(str(point), pattern) for point in found):
                known = ", ".join(self.points) or "nowhere"
                raise UsageError(f"nobody listened at {pattern}", evidence=f"listened at {known}")
        return found

    def _require_witnesses(self, claim: str) -> None:
        for tap in self._taps.values():
            if not tap.is_witness:
                raise Inconclusive(f"{claim}: not proved, since {_not_a_witness(tap)}")

    # --- looking ---

    def at(self, *points: str) -> Packets:
        """Those of some points: "node-1:eth0", "node-1:*". Raises UsageError if nobody listened there."""
        wanted = self._points_like(points)
        here = [p for p in self._found() if p.point in wanted]
        return self._narrowed(here, [self._taps[point] for point in wanted])

    def where(self, match: Match | str) -> Packets:
        """Those that match. Raises UsageError for a filter that makes no sense."""
        wanted = self._known(match)
        return self._narrowed(p for p in self._found() if wanted(p))

    def of(self, *sent: Sent) -> Packets:
        """What `Network.send` sent, and what came back for it: others may send at the same time."""
        return self._narrowed(p for p in self._found() if any(p.is_of(one) for one in sent))

    @property
    def incoming(self) -> Packets:
        """Those that an interface received."""
        return self._narrowed(p for p in self._found() if p.direction == "in")

    @property
    def outgoing(self) -> Packets:
        """Those that an interface sent."""
        return self._narrowed(p for p in self._found() if p.direction == "out")

    def follow(self, packet: Packet | Match | str) -> Way:
        """Every sighting of one packet, whatever NAT, routers and tunnels did to it: of the first one that
        matches, which there must be (else `Refuted`)."""
        one = packet if isinstance(packet, Packet) else self.expect(packet)[0]
        return Way((p for p in self._found() if p.identity == one.identity), self._scene.names)

    def _known(self, match: Match | str) -> Match:
        return as_match(match).known(self._scene.names)

    # --- asserting ---

    def expect(self, match: Match | str, count: int | None = None) -> Packets:
        """Those that match: at least one, or exactly `count`."""
        wanted = self._known(match)
        found = self.where(wanted)
        if count is None and not found:
            self._require_witnesses(f"no packet is {wanted}")
            raise Refuted(self._told(f"no packet is {wanted}{self._where()}", self._nearest(wanted)))
        if count is not None and len(found) != count:
            claim = f"{_are(found)} {wanted}{self._where()}, not {count}"
            if len(found) < count:
                self._require_witnesses(claim)
            raise Refuted(self._told(claim, _marked(self, found)))
        if count is not None:
            self._require_witnesses(f"exactly {count} packets are {wanted}")
        return found

    def never(self, match: Match | str) -> None:
        """No packet matches, and that is sure."""
        wanted = self._known(match)
        if found := self.where(wanted):
            raise Refuted(self._told(f"{_are(found)} {wanted}{self._where()}", _marked(self, found)))
        self._require_witnesses(f"no packet is {wanted}")

    def only(self, match: Match | str) -> Packets:
        """There are packets, and every one of them matches."""
        wanted = self._known(match)
        if not self:
            self._require_witnesses("no packet came")
            raise Refuted(f"no packet at all{self._where()}, where only {wanted} was to be")
        if others := self.where(~wanted):
            why = "; ".join(wanted.misses(others[0]))
            claim = f"{_are(others)} not {wanted}{self._where()}: {why}"
            raise Refuted(self._told(claim, _marked(self, others)))
        self._require_witnesses(f"every packet is {wanted}")
        return self

    def path(self, points: Sequence[str], match: Match | str) -> Way:
        """The first packet at the first of these points that matches comes by all of them, in this order.

        Answers its sightings, one at each. Between points of different machines, whose clocks differ, the order
        is not looked at."""
        first = self.at(points[0]).expect(match)[0]
        way = self.follow(first)
        found: list[Packet] = []
        for point in points:
            (wanted,) = self._points_like([point])
            later = (
                p for p in way if p.point == wanted and p not in found and _not_before(p, found, self._scene)
            )
            sighting = next(later, None)
            if sighting is None:
                raise self._lost(point, way, found)
            found.append(sighting)
        return Way(found, self._scene.names)

    def _lost(self, point: str, way: Way, found: Sequence[Packet]) -> AssertionError:
        seen = [p for p in way if str(p.point) == point]
        if seen:
            claim = f"the packet comes by {point} before it comes by {found[-1].point}"
        else:
            claim = f"the packet is not seen at {point}, but at {' '.join(way.points)}"
            if not self.witness(point):
                return Inconclusive(f"{claim}: not proved, since {_not_a_witness(self.tap(point))}")
        return Refuted("\n".join([claim, *way.lines()]))

    # --- telling ---

    def _where(self) -> str:
        return f" at {', '.join(self.points)}" if self._taps else ""

    def _told(self, claim: str, lines: Iterable[str]) -> str:
        return "\n".join([claim, *lines])

    def _nearest(self, wanted: Match) -> Iterator[str]:
        """The packet that misses it least, with its reasons, among the ones around it."""
        if not self:
            yield "  no packet at all was captured here"
            return
        misses = {n: wanted.misses(packet) for n, packet in enumerate(self)}
        near = min(misses, key=lambda n: len(misses[n]))
        reasons = [f"      ^ {why}" for why in misses[near]]
        yield from _around(self.lines(), {near}, after=lambda n: reasons if n == near else ())


def _are(packets: Packets) -> str:
    return "1 packet is" if len(packets) == 1 else f"{len(packets)} packets are"


def _not_before(packet: Packet, found: Sequence[Packet], scene: Scene) -> bool:
    if not found or not scene.one_clock or packet.t_ns is None or found[-1].t_ns is None:
        return True
    return packet.t_ns >= found[-1].t_ns


def _not_a_witness(tap: Tap) -> str:
    if tap.error:
        return f"{tap.point} could not be listened at: {tap.error}"
    if tap.dropped:
        return f"the kernel dropped {tap.dropped} frames at {tap.point}"
    return f"it is not known whether listening at {tap.point} began in time and went on to the end"


def _marked(packets: Packets, marked: Iterable[Packet]) -> Iterator[str]:
    ids = {id(packet) for packet in marked}
    return _around(packets.lines(), {n for n, packet in enumerate(packets) if id(packet) in ids})


def _around(
    lines: Sequence[str], marked: set[int], after: Callable[[int], Iterable[str]] = lambda n: ()
) -> Iterator[str]:
    """The marked lines and those around the first of them, as many as are shown."""
    start = max(0, min(marked, default=0) - SHOWN // 3)
    if start:
        yield f"    ({start} packets before)"
    for n, text in enumerate(lines[start : start + SHOWN], start):
        yield f"  {'>' if n in marked else ' '} {text}"
        yield from after(n)
    rest = len(lines) - start - SHOWN
    if rest > 0:
        yield f"    ({rest} packets after)"
