"""What stands around the lanes of a drawing: headline and verdict, the answer's way, why, the MTU, a legend.

Each function draws one section below `y`, as wide as the drawing, and answers with its shapes and with where
the next one may begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from overlaynet.trace.model import Hop
from overlaynet.trace.render.cards import badge, describe, layers_of, train, train_width
from overlaynet.trace.render.drawing import Box, Circle, Group, Line, Polygon, Rectangle, Shape, Text
from overlaynet.trace.render.layers import ETHERNET_BYTES, IP_BYTES, UDP_BYTES, VXLAN_BYTES, Layer
from overlaynet.trace.render.measure import fit, width, wrapped
from overlaynet.trace.render.palette import layer_colour
from overlaynet.trace.render.story import Step, Story
from overlaynet.trace.render.text import plain
from overlaynet.trace.render.words import Role

Section: TypeAlias = tuple[list[Shape], float]
SMALL, NORMAL, MONO_SIZE = 11.0, 12.0, 10.5
LINE = 16.0
_LABEL = 76.0


def headline(story: Story, x: float, y: float, room: float) -> Section:
    """Who asks whom, in large letters; the verdict; how the packet was known."""
    names = " → ".join(part.partition(" ")[0] for part in story.title)
    shapes: list[Shape] = [Text(x, y + 22, fit(names, room, 22, bold=True), 22, bold=True, whole=names)]
    whole = " → ".join(story.title)
    shapes.append(Text(x, y + 43, fit(whole, room, NORMAL), NORMAL, "quiet", whole=whole))
    chip = width(story.word, 14, bold=True) + 24
    shapes += [
        Rectangle(Box(x, y + 54, chip, 26), story.tone, 5),
        Text(x + chip / 2, y + 72, story.word, 14, "on-verdict", bold=True, anchor="middle"),
    ]
    lines = wrapped(story.summary, room - chip - 14, 13, lines=3, bold=True)
    shapes += [Text(x + chip + 14, y + 72 + 18 * n, line, 13, bold=True) for n, line in enumerate(lines)]
    y += 72 + 18 * max(1, len(lines))
    tag = fit(story.tag, room, SMALL)
    shapes.append(Text(x, y + 10, tag, SMALL, "quiet", whole=story.tag))
    return shapes, y + 26


def verdict_lines(story: Story, x: float, y: float, room: float) -> Section:
    """Expected, seen, cause, what to type: in a frame."""
    if not story.lines:
        return [], y
    shapes: list[Shape] = []
    colour = "unsure" if story.tone == "unsure" else "bad"
    top, inner = y, room - _LABEL - 32
    y += 10
    for label, text in story.lines:
        mono = label in ("try", "then")
        size = MONO_SIZE + 0.5 if mono else NORMAL
        lines = wrapped(text, inner, size, lines=4, mono=mono) or [""]
        shapes.append(Text(x + 14, y + 12, label, NORMAL, colour, bold=True))
        shapes += [
            Text(x + 14 + _LABEL, y + 12 + LINE * n, line, size, mono=mono) for n, line in enumerate(lines)
        ]
        y += LINE * len(lines) + 3
    return [Rectangle(Box(x, top, room, y + 8 - top), f"{colour}-outline", 6), *shapes], y + 24


def title(words: str, x: float, y: float, room: float) -> Section:
    return [Text(x, y + 14, fit(words, room, 14, bold=True), 14, bold=True, whole=words)], y + 24


# --- the answer -----------------------------------------------------------------------------------

CHIP_HEIGHT = 22.0


def reply(story: Story, x: float, y: float, room: float) -> Section:
    """The way back, as a row of interfaces."""
    if not story.reply:
        return [], y
    seen = sum(step.state in ("seen", "unexpected") for step in story.reply)
    count = f"{len(story.reply)} hops" if story.foretold else f"{seen} of {len(story.reply)} hops seen"
    shapes, y = title(plain(f"The answer: {story.answer}, {count}"), x, y, room)
    left, lane = x, ""
    for step in story.reply:
        chip = _chip(step, room)
        head = _lane_head(step, lane, room)
        need = chip.width + (head.width + 8 if head else 0) + 14
        if left > x and left + need > x + room:
            left, y = x, y + CHIP_HEIGHT + 8
        if left > x:
            shapes.append(_little_arrow(left - 12, y + CHIP_HEIGHT / 2, step))
        if head:
            shapes.append(Text(left, y + 15, head.text, SMALL, "quiet", bold=True))
            left += head.width + 6
        shapes.append(_drawn(chip, step, left, y))
        left += chip.width + 16
        lane = step.lane
    return shapes, y + CHIP_HEIGHT + 20


class _Words(NamedTuple):
    text: str
    width: float


def _lane_head(step: Step, lane: str, room: float) -> _Words | None:
    if step.lane == lane:
        return None
    text = fit(plain(f"{step.lane}:"), room / 3, SMALL, bold=True)
    return _Words(text, width(text, SMALL, bold=True))


def _chip(step: Step, room: float) -> _Words:
    hop = step.hop
    name = f"{hop.place} {hop.iface}" if step.role is Role.CONTAINER else hop.iface
    time = f"  {hop.t_us:.0f} µs" if hop.t_us is not None else ""
    sign = {"missing": "✗ ", "unexpected": "! ", "unlooked": "? "}.get(step.state, "")
    text = fit(plain(f"{sign}{name}{time}"), room / 2, SMALL)
    return _Words(text, width(text, SMALL) + 16 + (20 if step.mark is not None else 0))


def _drawn(chip: _Words, step: Step, x: float, y: float) -> Shape:
    looks = {"missing": "card-missing", "unexpected": "card-unexpected", "unlooked": "card-unlooked"}
    shapes: list[Shape] = [
        Rectangle(Box(x, y, chip.width, CHIP_HEIGHT), looks.get(step.state, "card"), CHIP_HEIGHT / 2)
    ]
    left = x + 8
    if step.mark is not None:
        shapes += badge(step.mark, x + 12, y + CHIP_HEIGHT / 2)
        left += 20
    return Group(describe(step), (*shapes, Text(left, y + 15, chip.text, SMALL)))


def _little_arrow(x: float, y: float, step: Step) -> Shape:
    look = "dot-missing" if step.state == "missing" else "arrow"
    return Polygon(((x, y - 3.5), (x, y + 3.5), (x + 7, y)), look)


# --- why ------------------------------------------------------------------------------------------


def reasons(story: Story, x: float, y: float, room: float) -> Section:
    """The entry behind each number, and the command that shows it."""
    known = story.marked
    if not known:
        return [], y
    shapes, y = title("Why it goes this way", x, y, room)
    for step in known:
        more, y = _reason(step, x, y, room)
        shapes += more
    return shapes, y + 10


def _reason(step: Step, x: float, y: float, room: float) -> Section:
    assert step.mark is not None
    kind, text, command = entry(step)
    left = x + 22 + 70
    shapes = badge(step.mark, x + 8, y + 8)
    shapes.append(Text(x + 22, y + 12, fit(kind, 64, NORMAL, bold=True), NORMAL, bold=True, whole=kind))
    lines = wrapped(text, x + room - left, NORMAL, lines=2) or [""]
    shapes += [Text(left, y + 12 + LINE * n, line, NORMAL, whole=text) for n, line in enumerate(lines)]
    y += LINE * len(lines)
    short = fit(command, x + room - left, MONO_SIZE, mono=True)
    shapes.append(Text(left, y + 11, short, MONO_SIZE, "quiet", mono=True, whole=command))
    return shapes, y + LINE + 5


def entry(step: Step) -> tuple[str, str, str]:
    """What kind of entry decided, the entry, and where to see it; or what happened, and where."""
    why = step.why
    if why is None:
        return "change", step.told, plain(f"{step.hop.point}: {step.who}")
    kind = plain(why.object)
    grown = f" (counter +{why.packets})" if why.packets is not None else ""
    wanted = f" — wanted by {why.source.kind} {why.source.name}" if why.source else ""
    text = f"{why.text.removeprefix(f'{kind} ')}{grown}{wanted}"
    return kind, plain(text), plain(f"{step.hop.place}$ {why.command}")


def notes(story: Story, x: float, y: float, room: float) -> Section:
    """What else was said, and what conntrack remembers."""
    said = [("note", text) for text in story.notes] + [("conntrack", text) for text in story.connections]
    shapes: list[Shape] = []
    for label, text in said:
        shapes.append(Text(x, y + 12, label, NORMAL, "quiet", bold=True))
        lines = wrapped(text, room - _LABEL, NORMAL, lines=3) or [""]
        shapes += [Text(x + _LABEL, y + 12 + LINE * n, line, NORMAL) for n, line in enumerate(lines)]
        y += LINE * len(lines) + 3
    return shapes, y + (10 if said else 0)


# --- the MTU --------------------------------------------------------------------------------------

BAR_HEIGHT = 34.0
HEADER_WIDTH = 96.0


class Budget(NamedTuple):
    """What a tunnel needs of each packet on the underlay, in bytes. `mtu`: the underlay's; `room`: the largest
    packet of a container; `packet`: the traced one. What is not known is None."""

    outer_ip: int
    mtu: int | None
    room: int | None
    packet: int | None

    @property
    def overhead(self) -> int:
        return self.outer_ip + UDP_BYTES + VXLAN_BYTES + ETHERNET_BYTES


def budget(story: Story) -> Budget | None:
    """Of the first tunnel on the way, or of the one that a packet was too big for."""
    for step in story.forward:
        outer, inner = step.hop.outer, step.hop.inner
        if outer is not None and outer.src is not None:
            found = Budget(IP_BYTES[outer.src.version], step.hop.mtu, None, inner.length)
            return found if found.mtu is None else found._replace(room=found.mtu - found.overhead)
    if story.limit is None or not story.forward:
        return None
    return Budget(IP_BYTES[4], None, story.limit, story.forward[-1].hop.inner.length)


def mtu_bar(story: Story, x: float, y: float, room: float) -> Section:
    """How the underlay's MTU is shared between tunnel and container."""
    found = budget(story)
    if found is None:
        return [], y
    shapes, y = title("What the tunnel costs", x, y, room)
    headers = (
        ("ip", f"{found.outer_ip} IP"), ("udp", f"{UDP_BYTES} UDP"),
        ("vxlan", f"{VXLAN_BYTES} VXLAN"), ("eth", f"{ETHERNET_BYTES} Ethernet"),
    )  # fmt: skip
    left = x
    for kind, words in headers:
        shapes += _segment(kind, words, Box(left, y, HEADER_WIDTH, BAR_HEIGHT))
        left += HEADER_WIDTH
    inner = _inner_words(found)
    shapes += _segment("data", inner, Box(left, y, x + room - left, BAR_HEIGHT))
    y += BAR_HEIGHT + 6
    shapes.append(Line(((x, y), (x, y + 6), (x + room, y + 6), (x + room, y)), "line"))
    words = _sum_words(found)
    shapes.append(
        Text(x + room / 2, y + 22, fit(words, room, NORMAL), NORMAL, "quiet", anchor="middle", whole=words)
    )
    return shapes, y + 42


def _segment(kind: str, words: str, box: Box) -> Iterator[Shape]:
    yield Rectangle(box, "layer", 2, fill=layer_colour(kind))
    text = fit(words, box.width - 8, NORMAL, bold=True)
    yield Text(box.x + box.width / 2, box.y + 22, text, NORMAL, bold=True, anchor="middle", whole=words)


def _inner_words(found: Budget) -> str:
    this = "" if found.packet is None else f"this packet: {found.packet} bytes"
    if found.room is None:
        return this or "the container's packet"
    if found.packet is not None and found.packet > found.room:
        return f"the container's packet: at most {found.room} bytes; {this}, too big"
    return f"the container's packet: at most {found.room} bytes" + (f"; {this}" if this else "")


def _sum_words(found: Budget) -> str:
    headers = f"{found.outer_ip} + {UDP_BYTES} + {VXLAN_BYTES} + {ETHERNET_BYTES}"
    if found.mtu is not None:
        return f"{headers} + {found.room} = {found.mtu} bytes: the underlay's MTU (not to scale)"
    inner = found.packet if found.room is None else found.room
    if inner is None:
        return f"{headers} = {found.overhead} bytes more on the underlay (not to scale)"
    return f"{headers} + {inner} = {found.overhead + inner} bytes on the underlay (not to scale)"


# --- the legend -----------------------------------------------------------------------------------

_LEGEND = {
    "eth": "one cable's addresses (MACs)",
    "arp": "who has this address?",
    "ip": "from machine to machine",
    "tcp": "the connection: ports",
    "udp": "ports, no connection",
    "icmp": "ping, and errors",
    "vxlan": "which tunnel (VNI)",
    "data": "what is said",
}


def legend(story: Story, x: float, y: float, room: float) -> Section:
    """What the coloured boxes are, of those that there are."""
    there = {layer.kind for step in story.forward for layer in layers_of(step)}
    entries = [(Layer(kind, ""), words) for kind, words in _LEGEND.items() if kind in there]
    entries.append((Layer("ip", "", changed=True), "hatched foot: changed here"))
    shapes: list[Shape] = []
    left = x
    for layer, words in entries:
        car = train_width([layer])
        need = car + 6 + width(words, SMALL) + 18
        if left > x and left + need > x + room:
            left, y = x, y + 28
        shapes += train([layer], left, y)
        shapes.append(Text(left + car + 6, y + 15, words, SMALL, "quiet"))
        left += need
    return shapes, y + 40


def guards(hops: Sequence[Hop], x: float, y: float, room: float) -> Section:
    """Points where it must not appear."""
    if not hops:
        return [], y
    seen = [plain(hop.point) for hop in hops if hop.seen]
    names = ", ".join(plain(hop.point) for hop in hops)
    words = (
        f"seen where it must not be: {', '.join(seen)}" if seen else f"not seen where it must not be: {names}"
    )
    lines = wrapped(words, room - 18, NORMAL, lines=2)
    dot = Circle(x + 5, y + 8, 4, "dot-unexpected" if seen else "dot")
    return [dot, *(Text(x + 18, y + 12 + LINE * n, line, NORMAL) for n, line in enumerate(lines))], (
        y + LINE * len(lines) + 8
    )
