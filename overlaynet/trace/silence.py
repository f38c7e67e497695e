"""What it means that a packet was not seen at a point: nothing, unless somebody listened.

A *witness* is a capture that saw both of its barriers and dropped nothing (`Tap.is_witness`); so is a link that
is down, where nothing can pass. Everything else is a doubt, told in a sentence with the next command.

That a packet ends where the state says it does is shown by an answer that says so, by the refusal of the
sender's own kernel, by the counter of the rule that takes it, or by silence of witnesses where it would else
arrive. If nobody has the address that it is sent to, there is nowhere to listen: its way up to there is all
that can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overlaynet.trace import causes
from overlaynet.trace.align import Course
from overlaynet.trace.case import Case, View
from overlaynet.trace.model import DELIVERED, Path, Point, Tap


def is_silent(tap: Tap | None) -> bool:
    """Whether "not seen" there means that nothing passed."""
    return tap is not None and (tap.is_witness or causes.says_down(tap))


def doubts(case: Case, points: Iterable[Point]) -> list[str]:
    """Why the silence of these points proves nothing, a sentence each; empty if it does."""
    taps = case.taps
    return [_doubt(case, p, taps.get(p)) for p in dict.fromkeys(points) if not is_silent(taps.get(p))]


def _doubt(case: Case, point: Point, tap: Tap | None) -> str:
    if tap is None:
        return f"nobody listened at {point}; next: overlaynet status"
    if tap.error:
        return f"the capture at {point} failed: {tap.error}; next: overlaynet status"
    if tap.dropped:
        return f"the capture at {point} dropped {tap.dropped} frames; next: {case.again}"
    if tap.dropped is None:
        return f"the capture at {point} does not say whether it dropped frames; next: {case.again}"
    moment = "after" if tap.armed else "before"
    return f"the capture at {point} was not seen to work {moment} the packet was sent; next: {case.again}"


def unread_places(case: Case, course: Course) -> Iterator[str]:
    """Places on a path that could not be looked at."""
    errors = {name: node.error for name, node in case.world.nodes.items() if node.error}
    errors |= case.world.unseen
    names = (name for step in course.steps for name in (step.hop.place, case.machine(step.hop.place)))
    for name in dict.fromkeys(names):
        if name in errors:
            yield f"{name} could not be looked at: {errors[name]}; next: overlaynet status"


# --- ends -----------------------------------------------------------------------------------------


def needed(case: Case, views: Iterable[View]) -> list[Point]:
    """Points that must be silent for a packet to be lost on the way there, whichever of these it took."""
    points: list[Point] = []
    for view in views:
        points += [step.hop.point for step in view.forward.rest]
        if view.path.outcome != DELIVERED:
            points += _ears(case, view.path, case.destinations(view.path))
    return points


def end_doubts(case: Case, view: View) -> list[str]:
    """Why it is not shown that the packet ended where its path does; empty if it is."""
    path = view.path
    if _says_so(case, view, path):
        return []
    places = case.destinations(path)
    if not path.hops:
        places = places | {case.question.source}  # not even there may it be seen
    elif not places:
        return []
    return _unheard(case, view, path, places)


def reply_end_doubts(case: Case, view: View, back: Path) -> list[str]:
    """The same of an answer that the state says gets lost."""
    return _unheard(case, view, back, frozenset({case.question.source}))


def _unheard(case: Case, view: View, path: Path, places: frozenset[str]) -> list[str]:
    ears = _ears(case, path, places)
    if not ears and path.hops and path.hops[-1].place in places and _would_answer(case, view):
        ears = [path.hops[-1].point]  # between there and the socket nobody can listen
    if not ears:  # who calls itself: what left by an interface may only come back by it
        ears = [hop.point for hop in path.hops if hop.place in places and hop.direction == "out"]
    if not ears:
        who = ", ".join(sorted(places))
        return [f"nobody listened at {who} for whether it arrives all the same; next: overlaynet status"]
    return doubts(case, ears)


def _ears(case: Case, path: Path, places: frozenset[str]) -> list[Point]:
    """Taps by which a packet comes into these places, and that are not on the path itself: in them, at the
    other end of their cables, and on their hosts, if the path does not lead there anyway."""
    on_path = {hop.point for hop in path.hops}
    inside = places | ({case.machine(name) for name in places} - {point.place for point in on_path})
    taps = [tap.point for tap in case.evidence.taps if tap.point not in on_path]
    return [p for p in taps if p.place in inside or _cabled_to(case, p) in places]


def _cabled_to(case: Case, point: Point) -> str | None:
    far = case.world.cables.get(point)
    return far.place if far else None


def _would_answer(case: Case, view: View) -> bool:
    """Whether no answer means that nothing arrived: kernels answer TCP and ICMP echo."""
    return case.question.protocol in ("tcp", "icmp") and not view.answer


def _says_so(case: Case, view: View, path: Path) -> bool:
    """Whether somebody said that it ends there: the answer, the sender's kernel, the rule's counter."""
    if view.answer and view.answer == path.answer:
        return True
    if view.followed.sent.error and not view.followed.forward:
        return True
    rule = path.cause.object if path.cause else ""
    return any(count.packets > 0 and count.text and count.text in rule for count in case.evidence.counts)


def end_gap(case: Case, view: View) -> tuple[Point, Point] | None:
    """Between the last hop seen of a path that ends early, and where the packet would have been next."""
    return _gap(case, view.path, view.forward, case.destinations(view.path))


def reply_end_gap(case: Case, view: View, back: Path) -> tuple[Point, Point] | None:
    """The same of an answer."""
    return _gap(case, back, view.reply, frozenset({case.question.source}))


def _gap(case: Case, path: Path, course: Course, places: frozenset[str]) -> tuple[Point, Point] | None:
    """What comes next is the entry that stops it, else the first witness on the way to these places."""
    if course.last < 0:
        return None
    last, cause = course.steps[course.last].hop.point, path.cause
    if cause and cause.point and cause.point not in course.points:
        return last, cause.point
    copied = {stray.point for stray in course.strays}
    ears = [p for p in _ears(case, path, places) if is_silent(case.taps.get(p)) and p not in copied]
    following = next((p for p in ears if _is_card(case, p)), next(iter(ears), None))
    return (last, following) if following else None


def _is_card(case: Case, point: Point) -> bool:
    """Whether this is a host's interface to the underlay."""
    node, place = case.world.nodes.get(point.place), case.world.places.get(point.place)
    here = [a for a in place.kernel.addresses if a.dev == point.iface] if place else []
    return node is not None and any(a.interface.ip in node.underlay_ips for a in here)
