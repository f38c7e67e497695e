"""Drawings: complete, well formed, self-contained, readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import pytest
from helpers import pictures

from overlaynet.trace.model import Prediction, Trace
from overlaynet.trace.render import palette
from overlaynet.trace.render.drawing import Box, Circle, Group, Line, Polygon, Rectangle, Shape, Sheet
from overlaynet.trace.render.lanes import draw, lay_out
from overlaynet.trace.render.measure import fit, width, wrapped
from overlaynet.trace.render.story import path_stories, trace_story
from overlaynet.trace.render.svg import sheet, svg

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
ELEMENTS = {
    "svg", "title", "desc", "defs", "pattern", "path", "g", "rect", "circle", "polyline", "polygon", "text",
}  # fmt: skip
EVERYTHING = {**pictures.TRACES, **pictures.PREDICTIONS}
LONG = "a-container-whose-name-is-32-long"[:32]


@pytest.fixture(params=EVERYTHING)
def what(request: pytest.FixtureRequest) -> Trace | Prediction:
    return EVERYTHING[request.param]()


def renamed(trace: Trace) -> Trace:
    """The same with names as long as they may be."""
    names = {name: f"{name[0]}{LONG[1:]}" for name in ("web-1", "web-3")} | {"node-2": "n" * 32}

    def one(hop):
        place, host = names.get(hop.place, hop.place), names.get(hop.host, hop.host)
        return replace(hop, place=place, host=host, iface=hop.iface.replace("cni0", "bridge-of-15-ch"))

    return replace(
        trace, forward=tuple(map(one, trace.forward)), reply=tuple(map(one, trace.reply)),
        question=replace(trace.question, source=LONG, target=f"w{LONG[1:]}"),
    )  # fmt: skip


def boxes(shapes: list[Shape] | tuple[Shape, ...]) -> Iterator[Box]:
    """Where every shape but texts is."""
    for shape in shapes:
        match shape:
            case Group():
                yield from boxes(shape.shapes)
            case Rectangle():
                yield shape.box
            case Circle(x, y, radius):
                yield Box(x - radius, y - radius, 2 * radius, 2 * radius)
            case Line(points) | Polygon(points):
                xs, ys = [p[0] for p in points], [p[1] for p in points]
                yield Box(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def check_layout(drawing: Sheet) -> None:
    texts = [text for text in drawing.texts if text.text]
    outside = [text.text for text in texts if not drawing.box.holds(text.box)]
    assert outside == []
    assert all(drawing.box.holds(box) for box in boxes(drawing.shapes))
    # A line's own leading may touch the next line's; letters may not.
    letters = [(text.text, text.box._replace(y=text.box.y + 1.5, height=text.box.height - 3)) for text in texts]
    overlapping = [(one, other) for (one, a), (other, b) in combinations(letters, 2) if a.overlaps(b)]
    assert overlapping == []


def test_texts_are_inside_and_do_not_overlap(what: Trace | Prediction):
    check_layout(sheet(what))


@pytest.mark.parametrize("name", pictures.TRACES)
def test_long_names_fit(name: str):
    drawing = sheet(renamed(pictures.TRACES[name]()))
    check_layout(drawing)


def test_what_is_shortened_keeps_its_whole_name():
    drawing = sheet(renamed(pictures.virtual_ip()))
    wholes = {text.whole for text in drawing.texts if text.whole}
    assert "n" * 32 in wholes
    assert "bridge-of-15-ch" in wholes


def test_well_formed_and_self_contained(what: Trace | Prediction):
    text = svg(what)
    root = ElementTree.fromstring(text)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= ELEMENTS
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|javascript:|\bon\w+=|href|@import|url\((?!#)", text)
    assert root.get("role") == "img"
    ids = {element.get("id") for element in root.iter()}
    assert set(root.get("aria-labelledby", "").split()) <= ids
    assert len(root.findall(f"{SVG}title")) == len(root.findall(f"{SVG}desc")) == 1


def test_the_same_each_time(what: Trace | Prediction):
    assert svg(what) == svg(what)


def words_of(what: Trace | Prediction) -> str:
    """Every word of the drawing, those for hovering as well."""
    root = ElementTree.fromstring(svg(what))
    return " ".join(" ".join(text.split()) for text in root.itertext())


@pytest.mark.parametrize("name", pictures.TRACES)
def test_every_hop_change_and_entry_is_there(name: str):
    trace = pictures.TRACES[name]()
    words = words_of(trace)
    story = trace_story(trace)
    assert story.word in words
    for step in story.steps:
        assert step.hop.iface in words
        assert f"{step.hop.place} {step.hop.iface} {step.hop.direction}" in words
        if step.mark is not None:
            assert step.told in words
        if step.why is not None:
            assert step.why.command in words


@pytest.mark.parametrize("name", ["wrong-fdb", "too-big", "rejected", "wrong-path"])
def test_the_cause_is_told(name: str):
    trace = pictures.TRACES[name]()
    words = words_of(trace)
    assert trace.cause is not None
    assert trace.cause.expected in words
    assert trace.cause.found in words
    assert " here" in words
    assert all(command in words for command in trace.cause.next)


def test_each_way_is_drawn():
    words = words_of(pictures.four_ways())
    for story in path_stories(pictures.four_ways()):
        assert story.title[-1] in words
    assert "nft is not installed on node-2" in words


def test_more_ways_than_are_drawn_are_counted():
    prediction = pictures.four_ways()
    words = words_of(replace(prediction, paths=prediction.paths * 3))
    assert "and 4 more ways" in words


def test_missing_hops_have_dashes_and_words():
    text = svg(pictures.wrong_fdb())
    assert text.count("✗ not seen") >= 5
    assert 'class="s-card-missing"' in text
    assert "stroke-dasharray" in text


def test_the_mtu_is_a_sum():
    trace = pictures.vxlan()
    known = tuple(replace(hop, mtu=1500) if hop.outer else hop for hop in trace.forward)
    words = words_of(replace(trace, forward=known))
    assert "20 + 8 + 8 + 14 + 1450 = 1500 bytes: the underlay's MTU" in words
    assert "at most 1450 bytes; this packet: 60 bytes" in words


def test_without_a_known_mtu_there_is_none():
    assert "20 + 8 + 8 + 14 + 60 = 110 bytes on the underlay" in words_of(pictures.vxlan())
    assert "underlay's MTU" not in words_of(pictures.vxlan())


def test_a_packet_that_is_too_big_is_called_so():
    trace = pictures.too_big()
    known = tuple(replace(hop, mtu=1500) if hop.outer else hop for hop in trace.forward)
    assert "at most 1450 bytes; this packet: 1500 bytes, too big" in words_of(replace(trace, forward=known))


def test_a_packet_that_never_came_into_the_tunnel_is_measured_by_its_device():
    trace = pictures.too_big()
    words = words_of(replace(trace, forward=trace.forward[:3]))
    assert "at most 1450 bytes; this packet: 1500 bytes, too big" in words
    assert "20 + 8 + 8 + 14 + 1450 = 1500 bytes on the underlay" in words


def test_what_changed_is_seen_without_colours():
    text = svg(pictures.virtual_ip())
    assert text.count("url(#trace-hatch)") > 4
    assert "IP: 10.244.1.2 → 10.244.2.2  ttl 64 id 22852 length 60 DF (changed here)" in text


def test_hostile_words_are_words():
    evil = '<script>alert("1")</script>&amp;\x00\x1b]]>'
    trace = pictures.vxlan()
    hop = replace(trace.forward[0], iface=evil, note=evil, place=evil)
    text = svg(replace(trace, forward=(hop, *trace.forward[1:]), notes=(evil,), answer=evil))
    assert "<script" not in text
    ElementTree.fromstring(text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), palette.TEXTS)
def test_every_text_has_enough_contrast(ink: str, ground: str, scheme: str):
    one, other = (getattr(palette.COLOURS[name], scheme) for name in (ink, ground))
    assert palette.contrast(one, other) >= 4.5


def test_contrast_is_that_of_wcag():
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_measuring():
    assert width("", 12) == 0
    assert width("web-1", 12) < width("web-1", 12, bold=True)
    assert width("iiii", 12, mono=True) == width("mmmm", 12, mono=True)
    assert width("漢", 10) == 11.0


def test_fitting_and_wrapping():
    assert fit("veth3487734c933", 1000, 12) == "veth3487734c933"
    short = fit("veth3487734c933", 60, 12)
    assert width(short, 12) <= 60
    assert short.startswith("veth")
    assert "…" in short
    assert fit("veth", 1, 12) == ""
    lines = wrapped("one two three four five six", 60, 12, lines=2)
    assert len(lines) == 2
    assert all(width(line, 12) <= 60 for line in lines)


def test_a_lost_answer_is_drawn_on_its_way_back():
    for trace in (pictures.lost_answer(), pictures.stray_answer()):
        words = words_of(trace)
        assert "The way back" in words
        assert words.count("lost here") == 1
    assert "The way back" not in words_of(pictures.vxlan())


def test_a_way_that_ends_where_it_comes_from_above_goes_on_below():
    """A host passes on by its wire what came by the tunnel, and it gets no further."""
    way = pictures.there()
    passed_on = replace(way[7], iface=way[5].iface)
    laid = lay_out(trace_story(replace(pictures.ended(), forward=(*way[:7], passed_on))).forward, 0.0, 8)
    last = laid.spots[-1]
    (cross,) = (s for s in draw(laid) if isinstance(s, Circle) and s.look == "cross")
    assert cross.x == last.column.rail
    assert last.y + last.card.height < cross.y - cross.radius < cross.y + cross.radius < laid.bottom
