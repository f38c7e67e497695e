"""Where a packet was: hosts side by side, a packet going down in one and up in another.

Each host is a box, with its containers' boxes inside it, and between hosts is the underlay. Interfaces of one
kind stand at one height in every host: containers on top, then the host's end of the cable, the bridge, the
tunnel's device, the wire at the bottom. So a packet between two hosts draws a U, and both ends of a tunnel are
level. Where the way turns inside one host (two containers of one bridge, a packet that a host passes on) the
host has two columns.

The way is a rail along the cards. Where a packet was lost the rail is broken, with a cross; cards beyond have
dashed edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeAlias

from overlaynet.trace.model import OUTSIDE
from overlaynet.trace.render.cards import CARD_WIDTH, WAGON_HEIGHT, Card, card, pipe, train, train_width
from overlaynet.trace.render.drawing import Box, Circle, Line, Polygon, Rectangle, Shape, Text
from overlaynet.trace.render.layers import layers
from overlaynet.trace.render.measure import fit
from overlaynet.trace.render.story import Step
from overlaynet.trace.render.text import plain
from overlaynet.trace.render.words import Role, flow_parts

RAIL = 24.0
"""Pixels between a card and the edge of its column, on the rail's side."""
SIDE = 10.0
COLUMN = CARD_WIDTH + RAIL + SIDE
LANE_INSET, LANE_HEAD = 8.0, 30.0
CONTAINER_HEAD, CONTAINER_INSET = 20.0, 6.0
TURN = 18.0
"""Room between two columns of one host, for the way that turns there."""
UNDERLAY = 176.0
UNDERLAY_ABOVE, UNDERLAY_BELOW = 54.0, 66.0
UNDERLAY_HEIGHT = UNDERLAY_BELOW + 26.0
ROW_GAP = 28.0
END_ROOM = 24.0
"""Room above and below the cards for the cross of a way that ends at one of them."""
DOT = 4.5
CROSS = 11.0


@dataclass(slots=True)
class Column:
    """Cards below one another. `right`: the rail is on their right side."""

    cards: list[Card]
    right: bool
    x: float = 0.0

    @property
    def rail(self) -> float:
        return self.x + (SIDE + CARD_WIDTH + RAIL / 2 if self.right else RAIL / 2)

    @property
    def card_x(self) -> float:
        return self.x + (SIDE if self.right else RAIL)


@dataclass(slots=True)
class Lane:
    """A host, or another machine, with its columns. `stray`: the packet must not be seen here."""

    name: str
    columns: list[Column]
    stray: bool = False
    x: float = 0.0
    top: float = 0.0

    @property
    def cards(self) -> list[Card]:
        return [one for column in self.columns for one in column.cards]

    @property
    def head(self) -> float:
        """Room above its first card: for the name, and for a way that turns over the cards' tops."""
        turns = any(not one.right and other.right for one, other in pairwise(self.columns))
        return LANE_HEAD + (ROW_GAP if turns else 0.0)

    @property
    def ends_below(self) -> bool:
        """Whether a way that ends at its last card goes on below it: where it comes from above."""
        *before, last = self.columns
        from_above = bool(before) and not before[-1].right and len(last.cards) == 1
        return last.right or from_above

    @property
    def width(self) -> float:
        return len(self.columns) * (COLUMN + TURN) - TURN + 2 * LANE_INSET


@dataclass(slots=True)
class Spot:
    """Where a card is."""

    card: Card
    column: Column
    lane: Lane
    y: float

    @property
    def axis(self) -> float:
        return self.y + self.card.axis


@dataclass(slots=True)
class Lanes:
    """A laid out way. `broken`: number of steps before the break."""

    lanes: list[Lane]
    spots: list[Spot]
    bottom: float
    width: float
    broken: int | None


def lay_out(steps: Sequence[Step], top: float, broken: int | None = None) -> Lanes:
    """Give each step its place, with the upper edge of all at `top`."""
    expected = [step for step in steps if step.state != "unexpected"]
    strays = [step for step in steps if step.state == "unexpected"]
    ahead = None if broken is None else sum(step.state != "unexpected" for step in steps[:broken])
    lanes = [*_lanes(expected), *_stray_lanes(strays)]
    ends = lanes[len(_lanes(expected)) - 1] if expected and ahead == len(expected) else None
    width = _side_by_side(lanes)
    above, below = (END_ROOM * (ends is not None and ends.ends_below is is_below) for is_below in (False, True))
    rows, bottom = _rows(lanes, top + above)
    for lane in lanes:
        first = min(one.step.role for one in lane.cards)
        lane.top = rows[first] - lane.head - above - (CONTAINER_HEAD if first is Role.CONTAINER else 0.0)
    spots = [
        Spot(one, column, lane, rows[one.step.role])
        for lane in lanes
        for column in lane.columns
        for one in column.cards
    ]
    return Lanes(lanes, spots, bottom + below, width, ahead)


def _side_by_side(lanes: Sequence[Lane]) -> float:
    """Put lanes and columns from left to right; how wide all are together."""
    x = 0.0
    for lane in lanes:
        lane.x = x
        for number, column in enumerate(lane.columns):
            column.x = x + LANE_INSET + number * (COLUMN + TURN)
        x += lane.width + UNDERLAY
    return max(0.0, x - UNDERLAY)


def _lanes(steps: Sequence[Step]) -> list[Lane]:
    groups = [(name, list(group)) for name, group in groupby(steps, key=lambda step: step.lane)]
    last = len(groups) - 1
    return [
        Lane(name, list(_columns(group, came=number > 0, leaves=number < last)))
        for number, (name, group) in enumerate(groups)
    ]


def _stray_lanes(steps: Sequence[Step]) -> list[Lane]:
    groups = groupby(steps, key=lambda step: step.lane)
    return [
        Lane(name, list(_columns(list(group), came=True, leaves=False)), stray=True) for name, group in groups
    ]


def _columns(steps: Sequence[Step], *, came: bool, leaves: bool) -> Iterator[Column]:
    """Split where the way turns. Down has its rail on the right, towards what comes next."""
    runs = _runs(steps)
    for number, run in enumerate(runs):
        if len(run) > 1:
            right = run[0].role < run[-1].role
        else:
            right = not (number == 0 and came) and (leaves or number < len(runs) - 1 or len(runs) == 1)
        yield Column([card(step) for step in run], right)


def _runs(steps: Sequence[Step]) -> list[list[Step]]:
    """Runs of steps that only go down or only go up."""
    runs: list[list[Step]] = []
    way = 0
    for step in steps:
        if runs:
            turn = (step.role > runs[-1][-1].role) - (step.role < runs[-1][-1].role)
            if turn != 0 and way in (0, turn):
                runs[-1].append(step)
                way = turn
                continue
        runs.append([step])
        way = 0
    return runs


def _rows(lanes: Sequence[Lane], top: float) -> tuple[dict[Role, float], float]:
    """The upper edge of each kind's row, and the lower edge of all."""
    heights: dict[Role, float] = {}
    for one in (one for lane in lanes for one in lane.cards):
        least = UNDERLAY_HEIGHT if one.step.role is Role.WIRE else 0.0
        heights[one.step.role] = max(heights.get(one.step.role, least), one.height)
    rows, y = {}, top + max((lane.head for lane in lanes), default=LANE_HEAD)
    for role in sorted(heights):
        inset = (CONTAINER_HEAD, CONTAINER_INSET) if role is Role.CONTAINER else (0.0, 0.0)
        rows[role] = y + inset[0]
        y = rows[role] + heights[role] + inset[1] + ROW_GAP
    return rows, y - ROW_GAP + 14


# --- boxes ----------------------------------------------------------------------------------------


def draw(lanes: Lanes, words: str = "lost here") -> Iterator[Shape]:
    """Boxes first, then the way, then the cards upon it. `words`: what stands at the break."""
    for lane in lanes.lanes:
        yield from _lane(lane, lanes)
    for spot in lanes.spots:
        if spot.card.step.role is Role.CONTAINER:
            yield from _container(spot)
    yield from _way(lanes, words)
    for spot in lanes.spots:
        yield spot.card.at(spot.column.card_x, spot.y)
        yield from _dot(spot)


def _lane(lane: Lane, lanes: Lanes) -> Iterator[Shape]:
    top = lane.top
    yield Rectangle(Box(lane.x, top, lane.width, lanes.bottom - top), "host", 8)
    kind = "outside the cluster" if lane.name == OUTSIDE else "host"
    words, colour = ("! must not be seen here", "bad") if lane.stray else (kind, "quiet")
    right = Text(lane.x + lane.width - 12, top + 20, words, 11, colour, bold=lane.stray, anchor="end")
    name = plain(lane.name)
    short = fit(name, lane.width - 36 - right.width, 14, bold=True)
    yield Text(lane.x + 12, top + 20, short, 14, bold=True, whole=name)
    yield right


def _container(spot: Spot) -> Iterator[Shape]:
    x, y = spot.column.card_x, spot.y
    height = spot.card.height + CONTAINER_HEAD + CONTAINER_INSET
    yield Rectangle(Box(x - 5, y - CONTAINER_HEAD, CARD_WIDTH + 10, height), "container", 7)
    name = plain(spot.card.step.hop.place)
    yield Text(x + 4, y - 6, fit(name, CARD_WIDTH - 80, 12, bold=True), 12, bold=True, whole=name)
    yield Text(x + CARD_WIDTH - 4, y - 6, "container", 11, "quiet", anchor="end")


def _dot(spot: Spot) -> Iterator[Shape]:
    state, column = spot.card.step.state, spot.column
    edge = column.card_x + (CARD_WIDTH if column.right else 0.0)
    known = {"spared": "unlooked"}.get(state, state if state in ("missing", "unexpected", "unlooked") else "")
    yield Line(((column.rail, spot.axis), (edge, spot.axis)), "line")
    yield Circle(column.rail, spot.axis, DOT, f"dot-{known}" if known else "dot")


# --- the way --------------------------------------------------------------------------------------

Points: TypeAlias = tuple[tuple[float, float], ...]
_RAILS = {"missing": "rail-missing", "unlooked": "rail-unlooked"}


def _way(lanes: Lanes, words: str) -> Iterator[Shape]:
    spots = [spot for spot in lanes.spots if not spot.lane.stray]
    for number, (one, other) in enumerate(pairwise(spots), 1):
        yield from _link(one, other, words if number == lanes.broken else "")
    if spots and lanes.broken == len(spots):
        yield from _end(spots[-1], words)


def _link(one: Spot, other: Spot, broken: str) -> Iterator[Shape]:
    """The way from a card to the next, broken if there are words for that."""
    look = _RAILS.get(other.card.step.state, "rail")
    if one.lane is not other.lane:
        yield from _crossing(one, other, look, broken)
        return
    points = _points(one, other)
    yield Line(points, look)
    if not broken:
        yield from _arrow(points, look)
    elif one.column is other.column:
        yield from _cross(one.column, (_lower(one, other) + _upper(one, other)) / 2, broken)
    else:
        x, y = (points[0][0] + points[-1][0]) / 2, max(one.axis, other.axis)
        yield from _cross_mark(x, y)
        yield Text(x, max(one.y + one.card.height, other.y + other.card.height) + 13, broken, 11, "bad",
                   bold=True, anchor="middle")  # fmt: skip


def _lower(one: Spot, other: Spot) -> float:
    """The lower edge of the upper card."""
    return min(one.y + one.card.height, other.y + other.card.height)


def _upper(one: Spot, other: Spot) -> float:
    """The upper edge of the lower card."""
    return max(one.y, other.y)


def _points(one: Spot, other: Spot) -> Points:
    start, end = (one.column.rail, one.axis), (other.column.rail, other.axis)
    if one.column is other.column:
        return start, end
    if one.column.right and not other.column.right:
        middle = (start[0] + end[0]) / 2
        return (start, end) if start[1] == end[1] else (start, (middle, start[1]), (middle, end[1]), end)
    over = min(one.y, other.y) - 13
    return start, (start[0], over), (end[0], over), end


def _arrow(points: Points, look: str) -> Iterator[Shape]:
    """A head in the middle of the last stretch, or at its end where that is level."""
    (x1, y1), (x2, y2) = points[-2:]
    if look != "rail":
        return
    if x1 == x2:
        way, y = (1 if y2 > y1 else -1), (y1 + y2) / 2
        yield Polygon(((x1 - 5, y - 4 * way), (x1 + 5, y - 4 * way), (x1, y + 5 * way)), "arrow")
    else:
        way, x = (1 if x2 > x1 else -1), x2 - (DOT + 6) * (1 if x2 > x1 else -1)
        yield Polygon(((x - 4 * way, y2 - 5), (x - 4 * way, y2 + 5), (x + 5 * way, y2)), "arrow")


def _cross(column: Column, y: float, words: str) -> Iterator[Shape]:
    """The mark of a break on a column's rail, with its words on the cards' side."""
    yield from _cross_mark(column.rail, y)
    if column.right:
        yield Text(column.rail - CROSS - 7, y + 4, words, 11, "bad", bold=True, anchor="end")
    else:
        yield Text(column.rail + CROSS + 7, y + 4, words, 11, "bad", bold=True)


def _cross_mark(x: float, y: float) -> Iterator[Shape]:
    arm = CROSS / 2.2
    yield Circle(x, y, CROSS, "cross")
    yield Line(((x - arm, y - arm), (x + arm, y + arm)), "cross")
    yield Line(((x - arm, y + arm), (x + arm, y - arm)), "cross")


def _end(spot: Spot, words: str) -> Iterator[Shape]:
    """A way that ends at a card."""
    head = CONTAINER_HEAD if spot.card.step.role is Role.CONTAINER else 0.0
    y = spot.y + spot.card.height + 16 if spot.lane.ends_below else spot.y - head - 15
    yield Line(((spot.column.rail, spot.axis), (spot.column.rail, y)), "rail-missing")
    yield from _cross(spot.column, y, words)


# --- between hosts --------------------------------------------------------------------------------


def _crossing(one: Spot, other: Spot, look: str, broken: str) -> Iterator[Shape]:
    """From a machine to the next: the underlay, and in it the tunnel as a pipe, or the bare packet."""
    left, right = one.lane.x + one.lane.width, other.lane.x
    y, middle = one.axis, (left + right) / 2
    points = _points(one, other)
    box = Box(left + 6, y - UNDERLAY_ABOVE, right - left - 12, UNDERLAY_ABOVE + UNDERLAY_BELOW)
    yield Rectangle(box, "underlay", 4)
    yield Text(middle, y - 39, "underlay", 11, "quiet", anchor="middle")
    yield Line(points, look)
    if one.card.step.hop.outer is not None:
        yield from _tunnel(one, left + 14, right - 14, y, broken)
    if broken:
        yield from _cross_mark(middle, y)
        yield Text(middle, y - 22, broken, 11, "bad", bold=True, anchor="middle")
    else:
        yield from _arrow(points, look)
    colour = "quiet" if one.card.step.state == "missing" else "ink"
    for number, words in enumerate(_underlay_words(one)):
        short = fit(words, right - left - 20, 10.5, mono=True)
        yield Text(middle, y + 31 + 14 * number, short, 10.5, colour, mono=True, anchor="middle", whole=words)


def _tunnel(one: Spot, left: float, right: float, y: float, broken: str) -> Iterator[Shape]:
    """The pipe with the inner headers in it; broken off, or only outlined if the packet never came here."""
    step, height, middle = one.card.step, WAGON_HEIGHT + 8, (left + right) / 2
    if broken:
        yield pipe(left, y - height / 2, middle - left - CROSS - 6, height)
        return
    missing = step.state == "missing"
    yield pipe(left, y - height / 2, right - left, height, missing=missing)
    vni = step.hop.vni
    words = "VXLAN tunnel" if vni is None else f"VXLAN tunnel, vni {vni}"
    colour = "quiet" if missing else "ink"
    yield Text(middle, y - 22, fit(words, right - left, 11), 11, colour, anchor="middle")
    inside = [layer._replace(changed=False) for layer in layers(step.hop) if not layer.outer]
    length = train_width(inside)
    if not missing and length <= right - left - height / 2:
        yield from train(inside, middle - length / 2, y - WAGON_HEIGHT / 2)


def _underlay_words(spot: Spot) -> list[str]:
    """The addresses that the underlay sees."""
    hop = spot.card.step.hop
    headers = hop.outer or hop.inner
    length = f"{headers.length} bytes of IP" if headers.length is not None else ""
    ends = [f"{flow_parts(headers.src, None)} →", flow_parts(headers.dst, None)]
    return [plain(words) for words in (*ends, length) if words]
