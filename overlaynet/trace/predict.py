"""Every way a packet may go, by the state that was read: `predict`.

A packet is followed from stage to stage as Linux handles it (`stack`, `devices`, `hooks`); where chance
decides, in all directions. What arrives is answered, and the answer is followed likewise. Nothing is looked
at but the `World`, so the same world always gives the same prediction.

What is not understood (a device of a foreign type, a route over several next hops, a rule with an unknown
match) makes a path uncertain and is told in `Prediction.unread`; it is never guessed at.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from overlaynet.errors import UsageError
from overlaynet.trace import devices, stack
from overlaynet.trace.arp import is_underlay
from overlaynet.trace.blame import Blame, cause_of, detours
from overlaynet.trace.journey import (
    PORT_HEADER_BYTES,
    Arrives,
    Bridges,
    Conn,
    End,
    Enters,
    Journey,
    Layer,
    Leaves,
    Outcome,
    Sends,
    Stage,
    Stays,
    Step,
    Transmits,
)
from overlaynet.trace.model import (
    CONTAINER,
    DELIVERED,
    HOST,
    Headers,
    Hop,
    Icmp,
    Nat,
    Path,
    Place,
    Point,
    Prediction,
    Question,
    World,
)
from overlaynet.trace.reply import ECHO, judged, sent_back
from overlaynet.trace.restored import explained
from overlaynet.trace.routing import number

MAX_PATHS = 256
"""Ways of one packet that are followed; a service with more endpoints is told of as unread."""
ROUNDS = 2
"""How often a packet may come to one point the same way before it is said to go round."""


def predict(world: World, question: Question) -> Prediction:
    """Every path of the first packet of what is asked; none if its sender was not looked at. Raises UsageError
    for IPv6."""
    _check(question)
    if question.source not in world.places:
        return Prediction(question, (), (), (_unseen(world, question.source),))
    start = Step(_first(world, question), Sends(question.source))
    ends = list(_followed(world, start))
    found = explained(world, _paths(world, question, ends), _following(question))
    paths = tuple(_advised(world, path) for path in found)
    unread = list(dict.fromkeys(word for end in ends for word in end.journey.unread))
    unread += [f"{name}: {word}" for name in sorted(_visited(paths)) for word in world.places[name].unread]
    if len(ends) > MAX_PATHS:
        unread.append(f"there are more than {MAX_PATHS} ways; not all are told")
    floods = {flood for end in ends for flood in end.journey.floods}
    guards, ears = tuple(_guards(world, paths, floods)), tuple(_ears(world, question, paths))
    return Prediction(question, paths, guards, tuple(unread), ears)


def _advised(world: World, path: Path) -> Path:
    cause = path.cause.advised(world) if path.cause else None
    return replace(path, cause=cause, reply=_advised(world, path.reply) if path.reply else None)


def _paths(world: World, question: Question, ends: Sequence[End]) -> list[Path]:
    return [_path(world, question, end) for end in ends[:MAX_PATHS]]


def _following(question: Question) -> Callable[[World], list[Path]]:
    """Predicts the same question in another world."""

    def follow(world: World) -> list[Path]:
        ends = list(_followed(world, Step(_first(world, question), Sends(question.source))))
        return _paths(world, question, ends)

    return follow


def _check(question: Question) -> None:
    if question.src.version != 4 or question.dst.version != 4:
        raise UsageError(f"{question.dst} is an IPv6 address", evidence="paths are followed over IPv4 only")


def _unseen(world: World, name: str) -> str:
    return ": ".join(filter(None, (f"{name} could not be looked at", world.unseen.get(name))))


def _first(world: World, question: Question) -> Journey:
    ttl = number(world.places[question.source].kernel, "net/ipv4/ip_default_ttl", 64)
    header = PORT_HEADER_BYTES.get(question.protocol)
    headers = Headers(
        None,
        None,
        question.src,
        question.dst,
        question.protocol,
        question.src_port,
        question.dst_port,
        ttl,
        length=20 + header + question.size if header else None,
        df=question.df,
        icmp=Icmp(ECHO, 0) if question.protocol == "icmp" else None,
    )
    return Journey((Layer(headers),), tcp_flags="S" if question.protocol == "tcp" else "")


# --- following ------------------------------------------------------------------------------------


def _followed(world: World, start: Step) -> Iterator[End]:
    """To all its ends, the more probable choice first."""
    waiting = deque([start])
    found = 0
    while waiting and found <= MAX_PATHS:
        step = waiting.popleft()
        loop = _round(world, step)
        followed = [loop] if loop else list(_stage(world, step.journey, step.stage))
        found += sum(isinstance(each, End) for each in followed)
        yield from (each for each in followed if isinstance(each, End))
        waiting.extendleft(reversed([each for each in followed if isinstance(each, Step)]))


def _stage(world: World, journey: Journey, stage: Stage) -> Outcome:
    match stage:
        case Sends():
            return stack.sends(world, journey, stage)
        case Leaves():
            return stack.leaves(world, journey, stage)
        case Transmits():
            return devices.transmits(world, journey, stage)
        case Arrives():
            return devices.arrives(world, journey, stage)
        case Bridges():
            return devices.bridges(world, journey, stage)
        case Enters():
            return stack.enters(world, journey, stage)
        case Stays():
            return stack.stays(world, journey, stage)


def _round(world: World, step: Step) -> End | None:
    """The end of a packet that goes in circles."""
    if not isinstance(step.stage, Arrives):
        return None
    point = Point(step.stage.place, step.stage.dev)
    seen = Counter((hop.point, hop.direction, hop.inner.dst) for hop in step.journey.hops)
    here = seen[point, "in", step.journey.layers[0].headers.dst]
    if here < ROUNDS:
        return None
    return Blame(world, world.places[point.place]).goes_round(step.journey, point.iface)


# --- paths ----------------------------------------------------------------------------------------


def _path(world: World, question: Question, end: End) -> Path:
    reply = _reply(world, question, end) if end.answer else None
    path = _told(world, end)
    if reply is None:
        return path
    return replace(path, answer=end.answer.name if end.answer else "", reply=reply)


def _reply(world: World, question: Question, end: End) -> Path | None:
    """The answer's way. Of several ways the first that does not get there, for that is the one to know of."""
    assert end.answer is not None
    ends = [judged(world, question, back) for back in _followed(world, sent_back(end.journey, end.answer))]
    return min((_told(world, back) for back in ends), key=lambda path: path.outcome == DELIVERED, default=None)


def _told(world: World, end: End) -> Path:
    journey = end.journey
    return Path(
        end.outcome,
        tuple(_hops(world, journey)),
        None if end.outcome == DELIVERED else cause_of(world, end),
        arrived_at=end.arrived,
        nat=tuple(_nat(conn) for conn in journey.conns if conn.dnat or conn.snat),
        choices=journey.choices,
        notes=journey.notes,
        detours=tuple(detours(world, journey)) if end.outcome == DELIVERED else (),
        certain=not journey.unread,
    )


def _hops(world: World, journey: Journey) -> Iterator[Hop]:
    """With the interfaces' MTUs; what decides that it goes no further is told at the last one."""
    for position, hop in enumerate(journey.hops, 1):
        rest = journey.whys if position == len(journey.hops) else ()
        mtu = world.places[hop.place].kernel.links[hop.iface].mtu
        yield replace(hop, mtu=mtu, why=hop.why + rest)


def _nat(conn: Conn) -> Nat:
    one, other = conn.original, conn.translated
    return Nat(conn.place, *one, *other[1:])


# --- guards ---------------------------------------------------------------------------------------


def _visited(paths: Iterable[Path]) -> set[str]:
    return {hop.place for path in paths for hop in (*path.hops, *(path.reply.hops if path.reply else ()))}


def _guards(world: World, paths: Iterable[Path], floods: set[str]) -> Iterator[Point]:
    """Tunnels and underlay devices of hosts that no way leads by, and the ports of other containers on those
    that one does."""
    visited = _visited(paths)
    on_a_way = {hop.point for path in paths for p in (path, path.reply) if p for hop in p.hops}
    for place in world.places.values():
        if place.kind != HOST:
            continue
        for link in place.kernel.links.values():
            point = Point(place.name, link.name)
            if (
                point not in on_a_way
                and str(point) not in floods
                and _guards_here(world, place, link.name, visited)
            ):
                yield point


def _guards_here(world: World, place: Place, dev: str, visited: set[str]) -> bool:
    link = place.kernel.links[dev]
    if link.vxlan is not None or is_underlay(world, place, dev):
        return place.name not in visited
    return place.name in visited and link.master is not None


def _ears(world: World, question: Question, paths: Iterable[Path]) -> Iterator[Point]:
    """The devices of a container that a packet ends on the way to, on its own host: where it would be if it
    arrived all the same."""
    for path in paths:
        hosts = {hop.host for hop in path.hops}
        owners = map(world.place_of, {question.dst, *(nat.new_dst for nat in path.nat)})
        there = [p for p in owners if p and p.kind == CONTAINER and p.host in hosts]
        visited = {hop.place for hop in path.hops}
        for place in there if path.outcome != DELIVERED else ():
            cabled = (Point(place.name, dev) for dev in place.kernel.links)
            yield from (point for point in cabled if point in world.cables and place.name not in visited)
