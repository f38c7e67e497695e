"""A drawing: shapes with places, and their writing as SVG.

Shapes are values, so that a layout can be checked before it is written: each text knows the box that it takes
(`Text.box`), and none may overlap another. The file is self-contained: no scripts, no fonts or images from
elsewhere (SVG 1.1, https://www.w3.org/TR/SVG11/). Everything written is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias
from xml.sax.saxutils import escape, quoteattr

from overlaynet.trace.render.measure import MONO, SANS, is_exact, width
from overlaynet.trace.render.palette import COLOURS, LOOKS, Look
from overlaynet.trace.render.text import plain

Anchor: TypeAlias = Literal["start", "middle", "end"]
ASCENT, DESCENT = 0.93, 0.24
"""Of DejaVu Sans, in ems: how far letters reach above and below their line."""


class Box(NamedTuple):
    """A rectangle: pixels from the top left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def overlaps(self, other: Box) -> bool:
        return self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom

    def holds(self, other: Box) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.right <= self.right
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `y` is the line that its letters stand on. `colour`: a name of the palette. `whole`: what
    it was before it was shortened."""

    x: float
    y: float
    text: str
    size: float = 12.0
    colour: str = "ink"
    bold: bool = False
    mono: bool = False
    anchor: Anchor = "start"
    whole: str = ""

    @property
    def width(self) -> float:
        return width(self.text, self.size, mono=self.mono, bold=self.bold)

    @property
    def box(self) -> Box:
        left = {"start": self.x, "middle": self.x - self.width / 2, "end": self.x - self.width}[self.anchor]
        return Box(left, self.y - ASCENT * self.size, self.width, (ASCENT + DESCENT) * self.size)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """`look`: a name of the palette's looks; `fill`: of a colour, instead of the look's own."""

    box: Box
    look: str
    radius: float = 0.0
    fill: str = ""


@dataclass(frozen=True, slots=True)
class Circle:
    x: float
    y: float
    radius: float
    look: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line through all of its points."""

    points: tuple[tuple[float, float], ...]
    look: str


@dataclass(frozen=True, slots=True)
class Polygon:
    points: tuple[tuple[float, float], ...]
    look: str


@dataclass(frozen=True, slots=True)
class Group:
    """Shapes that mean one thing together; `title` says what, to who hovers over it or cannot see it."""

    title: str
    shapes: tuple[Shape, ...]


Shape: TypeAlias = Text | Rectangle | Circle | Line | Polygon | Group


@dataclass(slots=True)
class Sheet:
    """A drawing in the making. `title` and `summary` are for who cannot see it."""

    title: str
    summary: str
    width: float
    height: float = 0.0
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        self.shapes += shapes

    @property
    def texts(self) -> Iterator[Text]:
        """Every text, in reading order."""
        return _texts(self.shapes)

    @property
    def box(self) -> Box:
        return Box(0, 0, self.width, self.height)


def _texts(shapes: Iterable[Shape]) -> Iterator[Text]:
    for shape in shapes:
        if isinstance(shape, Group):
            yield from _texts(shape.shapes)
        elif isinstance(shape, Text):
            yield shape


def shifted(shape: Shape, x: float, y: float) -> Shape:
    """The same shape elsewhere."""
    match shape:
        case Text():
            return Text(
                shape.x + x, shape.y + y, shape.text, shape.size, shape.colour, shape.bold, shape.mono,
                shape.anchor, shape.whole,
            )  # fmt: skip
        case Rectangle(box=box):
            return Rectangle(box._replace(x=box.x + x, y=box.y + y), shape.look, shape.radius, shape.fill)
        case Circle():
            return Circle(shape.x + x, shape.y + y, shape.radius, shape.look)
        case Line():
            return Line(tuple((a + x, b + y) for a, b in shape.points), shape.look)
        case Polygon():
            return Polygon(tuple((a + x, b + y) for a, b in shape.points), shape.look)
        case Group():
            return Group(shape.title, tuple(shifted(one, x, y) for one in shape.shapes))


# --- writing --------------------------------------------------------------------------------------


def write(sheet: Sheet, name: str = "trace") -> str:
    """The drawing as an SVG document. `name` makes its ids unique in a page with several."""
    w, h = _number(sheet.width), _number(sheet.height)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
        f'aria-labelledby="{name}-title {name}-summary" font-family={quoteattr(SANS)}>'
    )
    body = [head, f'<title id="{name}-title">{_escaped(sheet.title)}</title>']
    body.append(f'<desc id="{name}-summary">{_escaped(sheet.summary)}</desc>')
    body.append(f"<defs>{_hatch(name)}</defs>")
    body += _written((Rectangle(sheet.box, "paper"), *sheet.shapes), name)
    return "\n".join([*body, "</svg>", ""])


def _hatch(name: str) -> str:
    """Diagonal lines, for what changed: seen on paper without colours as well."""
    return (
        f'<pattern id="{name}-hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><path d="M0 0V5" {_paint(LOOKS["hatch"], "hatch")}/></pattern>'
    )


def _written(shapes: Sequence[Shape], name: str) -> Iterator[str]:
    for shape in shapes:
        match shape:
            case Group():
                yield f"<g><title>{_escaped(shape.title)}</title>"
                yield from _written(shape.shapes, name)
                yield "</g>"
            case Text():
                yield _text(shape)
            case Rectangle():
                yield _rectangle(shape, name)
            case Circle():
                at = f'cx="{_number(shape.x)}" cy="{_number(shape.y)}" r="{_number(shape.radius)}"'
                yield f"<circle {at} {_paint(LOOKS[shape.look], shape.look)}/>"
            case Line():
                yield f'<polyline points="{_points(shape.points)}" {_paint(LOOKS[shape.look], shape.look)}/>'
            case Polygon():
                yield f'<polygon points="{_points(shape.points)}" {_paint(LOOKS[shape.look], shape.look)}/>'


def _text(shape: Text) -> str:
    marks = [f'x="{_number(shape.x)}"', f'y="{_number(shape.y)}"', f'font-size="{_number(shape.size)}"']
    marks.append(f'class="t-{shape.colour}" fill="{COLOURS[shape.colour].light}"')
    if shape.anchor != "start":
        marks.append(f'text-anchor="{shape.anchor}"')
    if shape.bold:
        marks.append('font-weight="bold"')
    if shape.mono:
        marks.append(f"font-family={quoteattr(MONO)}")
    if not is_exact(shape.text):
        marks.append(f'textLength="{_number(shape.width)}" lengthAdjust="spacingAndGlyphs"')
    title = f"<title>{_escaped(shape.whole)}</title>" if shape.whole and shape.whole != shape.text else ""
    return f'<text xml:space="preserve" {" ".join(marks)}>{_escaped(shape.text)}{title}</text>'


def _rectangle(shape: Rectangle, name: str) -> str:
    box, radius = shape.box, f' rx="{_number(shape.radius)}"' if shape.radius else ""
    place = (
        f'x="{_number(box.x)}" y="{_number(box.y)}" width="{_number(box.width)}" height="{_number(box.height)}"'
    )
    if shape.look == "hatch":
        return f'<rect {place} fill="url(#{name}-hatch)"/>'
    look, kind = LOOKS[shape.look], shape.look
    if shape.fill:
        look, kind = look._replace(fill=shape.fill), f"{kind} f-{shape.fill}"
    return f"<rect {place}{radius} {_paint(look, kind)}/>"


def _paint(look: Look, kind: str) -> str:
    fill = "none" if look.fill is None else COLOURS[look.fill].light
    marks = [f'class="s-{kind}" fill="{fill}"']
    if look.stroke is not None:
        marks.append(f'stroke="{COLOURS[look.stroke].light}" stroke-width="{_number(look.width)}"')
        marks += [f'stroke-dasharray="{look.dash}"'] if look.dash else []
        marks += ['stroke-linejoin="round"'] if look.fill is None else []
    return " ".join(marks)


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float) -> str:
    """At most one digit behind the point: enough for pixels, and the same everywhere."""
    return f"{value:.1f}".removesuffix(".0")


def _escaped(text: str) -> str:
    return escape(plain(text), {'"': "&quot;"})
