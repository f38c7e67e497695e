"""A hop as a card: the interface, what is on the wire there, and what changed.

The packet is drawn as a train of its headers, the outermost in front. While it is in a tunnel the container's
own headers are inside a pipe. A header that changed since the hop before has a thick edge and a hatched foot,
so that it is seen without colours; the number beside the words leads to the entry that decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from overlaynet.trace.model import Headers
from overlaynet.trace.render.drawing import Box, Circle, Group, Rectangle, Shape, Text, shifted
from overlaynet.trace.render.layers import IP_BYTES, UDP_BYTES, Layer, layers
from overlaynet.trace.render.measure import fit, width, wrapped
from overlaynet.trace.render.palette import layer_colour
from overlaynet.trace.render.story import STATE_WORDS, State, Step
from overlaynet.trace.render.text import plain

CARD_WIDTH = 266.0
INSET = 9.0
ROOM = CARD_WIDTH - 2 * INSET
WAGON_HEIGHT, WAGON_GAP, WAGON_INSET = 22.0, 2.0, 5.0
HATCH_HEIGHT = 6.0
PIPE_INSET = 5.0
BADGE_RADIUS = 8.0
SMALL, NORMAL, MONO_SIZE = 11.0, 12.0, 10.5
LINE = 15.0
WAGON_LINE = 47.0
"""Where a card's wagons stand, from its top."""

_LOOKS: dict[State, str] = {
    "seen": "card",
    "predicted": "card",
    "missing": "card-missing",
    "unexpected": "card-unexpected",
    "unlooked": "card-unlooked",
    "spared": "card-unlooked",
}
_STATE_COLOURS: dict[State, str] = {
    "missing": "bad",
    "unexpected": "bad",
    "unlooked": "unsure",
    "spared": "quiet",
}


class Card(NamedTuple):
    """A step drawn at the origin."""

    step: Step
    height: float
    shapes: tuple[Shape, ...]

    @property
    def axis(self) -> float:
        """The middle of its wagons, from its top: where the packet's way goes by."""
        return WAGON_LINE - WAGON_HEIGHT / 2

    def at(self, x: float, y: float) -> Group:
        whole = shifted(Group(describe(self.step), self.shapes), x, y)
        assert isinstance(whole, Group)
        return whole


def card(step: Step) -> Card:
    """Lay out one step."""
    shapes = [*_head(step), *_pieces(step), *train(layers_of(step), INSET, WAGON_LINE - WAGON_HEIGHT)]
    y, told = WAGON_LINE + 6, step.told if step.mark is not None or not STATE_WORDS[step.state] else ""
    end = train_width(layers_of(step)) + INSET + 10
    if step.mark is None and told and width(told, SMALL) <= CARD_WIDTH - INSET - end:
        shapes.append(Text(end, WAGON_LINE - 7, told, SMALL, "quiet"))
        told = ""
    if not step.same:
        for line in _address_lines(step):
            shapes.append(line(y))
            y += LINE
    marked, y = _told(step, told, y)
    height = y + 5
    frame = Rectangle(Box(0, 0, CARD_WIDTH, height), _LOOKS[step.state], 5)
    return Card(step, height, (frame, *shapes, *marked))


def describe(step: Step) -> str:
    """The whole step in a sentence, for who hovers over it."""
    hop = step.hop
    parts = [f"{hop.place} {hop.iface} {hop.direction}", STATE_WORDS[step.state], step.who, step.told]
    parts += [f"{hop.t_us:.0f} µs" if hop.t_us is not None else ""]
    parts += [" ".join((layer.kind, layer.text)) for layer in layers(hop)]
    return plain("; ".join(part for part in parts if part))


# --- head -----------------------------------------------------------------------------------------


def _head(step: Step) -> list[Shape]:
    hop = step.hop
    words = STATE_WORDS[step.state] or (f"{hop.t_us:.0f} µs" if hop.t_us is not None else "")
    colour = _STATE_COLOURS.get(step.state, "quiet")
    right = Text(CARD_WIDTH - INSET, 17, words, SMALL, colour, bold=colour != "quiet", anchor="end")
    way = f" {hop.direction}"
    room = ROOM - right.width - width(way, SMALL) - 8
    whole = plain(hop.iface)
    name = Text(INSET, 17, fit(whole, room, 13, bold=True), 13, bold=True, whole=whole)
    direction = Text(name.box.right, 17, way, SMALL, "quiet")
    return [name, direction, *([right] if words else [])]


# --- the train of headers -------------------------------------------------------------------------


def layers_of(step: Step) -> tuple[Layer, ...]:
    """The headers, and the payload if there is any."""
    found = layers(step.hop)
    return (*found, Layer("data", "")) if _has_payload(step.hop.inner) else found


def _has_payload(inner: Headers) -> bool:
    if inner.protocol not in ("udp", "icmp") or inner.length is None or inner.src is None:
        return inner.offset > 0
    return inner.length > IP_BYTES[inner.src.version] + UDP_BYTES


def _pieces(step: Step) -> list[Shape]:
    """More trains behind the first: the packet comes in fragments."""
    hop = step.hop
    if not (hop.inner.is_fragment or (hop.outer is not None and hop.outer.is_fragment)):
        return []
    x, y, length = INSET, WAGON_LINE - WAGON_HEIGHT, train_width(layers_of(step))
    behind = (Rectangle(Box(x + n, y - n, length, WAGON_HEIGHT), "layer", 2, fill="box") for n in (6.0, 3.0))
    return [Group("in fragments, of which this is the first", tuple(behind))]


def train(found: Sequence[Layer], x: float, y: float) -> list[Shape]:
    """The headers from left to right; what is in a tunnel inside its pipe."""
    outer = [layer for layer in found if layer.outer]
    inner = [layer for layer in found if not layer.outer]
    shapes = list(_wagons(outer, x, y))
    if outer:
        x += _length(outer) + WAGON_GAP + PIPE_INSET
        shapes.append(pipe(x - PIPE_INSET, y - 4, _length(inner) + 2 * PIPE_INSET, WAGON_HEIGHT + 8))
    return [*shapes, *_wagons(inner, x, y)]


def train_width(found: Sequence[Layer]) -> float:
    tunnelled = any(layer.outer for layer in found)
    return _length(found) + (2 * PIPE_INSET if tunnelled else 0)


def pipe(x: float, y: float, length: float, height: float, *, missing: bool = False) -> Shape:
    """A tunnel's wall; `missing`: where nothing passed."""
    return Rectangle(Box(x, y, length, height), "card-missing" if missing else "pipe", height / 2)


def _length(found: Sequence[Layer]) -> float:
    return sum(_wagon_width(layer) + WAGON_GAP for layer in found) - (WAGON_GAP if found else 0)


def _wagon_width(layer: Layer) -> float:
    return min(width(_label(layer), 10, bold=layer.changed) + 2 * WAGON_INSET, 60.0)


def _label(layer: Layer) -> str:
    return fit(plain(layer.kind), 50.0, 10, bold=layer.changed)


def _wagons(found: Iterable[Layer], x: float, y: float) -> Iterable[Shape]:
    for layer in found:
        box = Box(x, y, _wagon_width(layer), WAGON_HEIGHT)
        look = "layer-changed" if layer.changed else "layer"
        shapes: list[Shape] = [Rectangle(box, look, 2, fill=layer_colour(layer.kind))]
        if layer.changed:
            foot = Box(x + 1, box.bottom - HATCH_HEIGHT - 1, box.width - 2, HATCH_HEIGHT)
            shapes.append(Rectangle(foot, "hatch"))
        words = Text(
            x + box.width / 2,
            y + (12 if layer.changed else 14),
            _label(layer),
            10,
            bold=layer.changed,
            anchor="middle",
        )
        changed = " (changed here)" if layer.changed else ""
        yield Group(plain(f"{layer.name}: {layer.text}{changed}"), (*shapes, words))
        x += box.width + WAGON_GAP


# --- words ----------------------------------------------------------------------------------------


class _Line(NamedTuple):
    """A line of addresses whose place is not known yet."""

    text: str
    whole: str
    colour: str

    def __call__(self, y: float) -> Text:
        return Text(INSET, y + 11, self.text, MONO_SIZE, self.colour, mono=True, whole=self.whole)


def _address_lines(step: Step) -> list[_Line]:
    """Who to whom, on two lines if one is too short."""
    colour = "quiet" if step.state == "missing" else "ink"
    source, arrow, target = step.who.partition(" → ")
    one = width(step.who, MONO_SIZE, mono=True) <= ROOM
    lines = [step.who] if one or not arrow else [f"{source} →", f"  {target}"]
    return [_Line(fit(line, ROOM, MONO_SIZE, mono=True), line, colour) for line in lines]


def _told(step: Step, told: str, y: float) -> tuple[list[Shape], float]:
    """What changed, with its number, and what it was before."""
    if step.mark is None:
        lines = wrapped(told, ROOM, SMALL, lines=2)
        return [Text(INSET, y + 11 + LINE * n, line, SMALL, "quiet") for n, line in enumerate(lines)], (
            y + LINE * len(lines)
        )
    x = INSET + 2 * BADGE_RADIUS + 5
    lines = wrapped(told, CARD_WIDTH - INSET - x, NORMAL, bold=True) or [""]
    shapes: list[Shape] = [*badge(step.mark, INSET + BADGE_RADIUS, y + 8)]
    shapes += [Text(x, y + 12 + LINE * n, line, NORMAL, bold=True) for n, line in enumerate(lines)]
    y += LINE * len(lines) + 2
    for words in _before(step):
        short = fit(words, CARD_WIDTH - INSET - x, MONO_SIZE, mono=True)
        shapes.append(Text(x, y + 10, short, MONO_SIZE, "quiet", mono=True, whole=words))
        y += LINE
    return shapes, y


def _before(step: Step) -> list[str]:
    """What translated addresses were."""
    was = {change.field: change.before for change in step.hop.changes if change.before is not None}
    words = []
    for end in ("src", "dst"):
        port = was.get(f"{end}_port")
        if end in was:
            words.append(f"{end} was {was[end]}" + (f":{port}" if port else ""))
        elif port:
            words.append(f"{end} port was {port}")
    return [plain(line) for line in words]


def badge(number: int, x: float, y: float) -> list[Shape]:
    """A number in a disc."""
    text = str(number)
    size = 10.0 if len(text) < 2 else 8.5
    return [
        Circle(x, y, BADGE_RADIUS, "badge"),
        Text(x, y + 3.5, text, size, "on-mark", bold=True, anchor="middle"),
    ]
