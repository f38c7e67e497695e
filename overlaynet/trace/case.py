"""What is judged: one try beside one path, and what a try proves.

Which of the predicted paths a packet took is told by what was seen of it: the path with which most agrees.
Where that leaves several (an endpoint was chosen, and nothing was seen behind the choice) the answer tells,
then conntrack's entry, and at last the outcome that leaves least unexplained.

A sighting off the path is a *copy*, and no matter, if the frame is addressed to somebody else's MAC: a bridge
that does not know a MAC floods, and an interface overhears what its neighbours are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from overlaynet.addr import Mac
from overlaynet.trace import causes
from overlaynet.trace.align import Course, follow
from overlaynet.trace.causes import Scene
from overlaynet.trace.join import Followed, Sighting
from overlaynet.trace.model import (
    DELIVERED,
    Cause,
    Evidence,
    Path,
    Place,
    Point,
    Prediction,
    Question,
    Tap,
    World,
)

POSITIVE = frozenset({"syn-ack", "echo-reply", "udp"})
"""Answers that only a packet's destination gives."""


@dataclass(frozen=True, slots=True)
class Case:
    """All that stays the same from try to try. `after`: what the state read afterwards predicts, if it was."""

    world: World
    prediction: Prediction
    evidence: Evidence
    expect: str = DELIVERED
    after: Prediction | None = None

    @property
    def question(self) -> Question:
        return self.prediction.question

    @property
    def taps(self) -> Mapping[Point, Tap]:
        return {tap.point: tap for tap in self.evidence.taps}

    @property
    def scene(self) -> Scene:
        """What causes are told from."""
        return Scene(self.question, self.evidence.after or self.world, self.evidence, self.taps)

    @property
    def again(self) -> str:
        """The command that asks once more."""
        asked = self.question
        port = "" if asked.dst_port is None else f" {asked.dst_port}"
        return f"overlaynet trace {asked.source} {asked.target} --{asked.protocol}{port}"

    def machine(self, place: str) -> str:
        return causes.machine(self.world, place)

    def destinations(self, path: Path) -> frozenset[str]:
        """Places at which a packet on this path, or on another, could arrive."""
        ips = {self.question.dst, *(nat.new_dst for nat in path.nat)}
        owners = {place.name for place in map(self.world.place_of, ips) if place}
        return frozenset(owners | {p.arrived_at for p in self.prediction.paths if p.arrived_at})


@dataclass(frozen=True, slots=True)
class View:
    """One try beside one path."""

    path: Path
    followed: Followed
    forward: Course
    reply: Course

    @property
    def answer(self) -> str:
        """What came back, by the sender's socket or else by the captures."""
        if self.followed.sent.answer or not self.followed.reply:
            return self.followed.sent.answer
        return causes.answer_words(self.followed.reply[0].frame.packet)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one try proves. `outcome`: of the packet itself, whatever became of its answer."""

    verdict: str
    outcome: str
    view: View
    lost_between: tuple[Point, Point] | None = None
    cause: Cause | None = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# --- which path -----------------------------------------------------------------------------------


def chosen(case: Case, followed: Followed) -> tuple[View, tuple[View, ...]]:
    """The view that agrees best, and those with which as much of the way there agrees. There must be a path."""
    views = [_view(path, followed) for path in case.prediction.paths]
    best = max(views, key=lambda view: _agreement(case, view))
    same = (view for view in views if _sighted(case, view) == _sighted(case, best))
    return best, tuple(view for view in same if view is not best)


def _view(path: Path, followed: Followed) -> View:
    back = path.reply.hops if path.reply else ()
    return View(path, followed, follow(path.hops, followed.forward), follow(back, followed.reply))


def _sighted(case: Case, view: View) -> tuple[int, ...]:
    """How much of what was seen on the way there agrees."""
    return view.forward.agreeing, -len(astray(case.world, view.forward)), view.forward.seen


def _agreement(case: Case, view: View) -> tuple[int, ...]:
    """The more the better; the first that differs decides."""
    said = view.answer
    return (
        *_sighted(case, view),
        view.reply.agreeing,
        sum(_is_tracked(case, nat.place, str(nat.new_dst)) for nat in view.path.nat),
        int(bool(said) and said == view.path.answer),
        -len(view.forward.rest),
    )


def _is_tracked(case: Case, place: str, address: str) -> bool:
    """Whether by a conntrack entry of that place (as conntrack(8) prints it) replies come from this address."""
    texts = (c.text for c in case.evidence.connections if c.place == place)
    return any(text.rpartition(" src=")[2].split(" ")[0] == address for text in texts)


# --- off the path ---------------------------------------------------------------------------------


def astray(world: World, course: Course) -> tuple[Sighting, ...]:
    """Sightings where the path does not lead, and that are no copies."""
    off = (stray for stray in course.strays if stray.point not in course.points)
    return tuple(stray for stray in off if not is_copy(world, course, stray))


def is_copy(world: World, course: Course, stray: Sighting) -> bool:
    """Whether this frame was flooded or overheard. What cannot be told is no copy."""
    place, mac = world.places.get(stray.point.place), stray.frame.outer.dst_mac
    link = place.kernel.links.get(stray.point.iface) if place else None
    if place is None or link is None or mac is None:
        return False
    if stray.direction == "in":
        return link.master is None and link.mac is not None and link.mac != mac
    return link.master in _bridges(place, course) and _far_mac(world, stray.point) != mac


def _bridges(place: Place, course: Course) -> set[str]:
    """Bridges of a place that a path comes by."""
    here = [point.iface for point in course.points if point.place == place.name]
    masters = (place.kernel.links[name].master for name in here if name in place.kernel.links)
    return {name for name in (*here, *masters) if name}


def _far_mac(world: World, point: Point) -> Mac | None:
    """The MAC at the other end of a cable."""
    far = world.cables.get(point)
    place = world.places.get(far.place) if far else None
    link = place.kernel.links.get(far.iface) if place and far else None
    return link.mac if link else None
