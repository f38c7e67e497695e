"""Pages: complete, well formed, self-contained, for dark screens and for paper."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from helpers import pictures

from overlaynet.trace.model import Prediction, Trace
from overlaynet.trace.render import palette
from overlaynet.trace.render.html import html
from overlaynet.trace.render.story import trace_story

pytestmark = pytest.mark.unit

VOID = {"meta"}
EVERYTHING = {**pictures.TRACES, **pictures.PREDICTIONS}


class Page(HTMLParser):
    """Reads a page strictly: every element that opens has to close in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(params=EVERYTHING)
def what(request: pytest.FixtureRequest) -> Trace | Prediction:
    return EVERYTHING[request.param]()


def test_well_formed(what: Trace | Prediction):
    page = Page(html(what))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    named = [value for name, value in page.attributes if name == "aria-labelledby"]
    assert {one for value in named for one in value.split()} <= set(page.ids)


def test_self_contained(what: Trace | Prediction):
    text = html(what)
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_same_each_time(what: Trace | Prediction):
    assert html(what) == html(what)


@pytest.mark.parametrize("name", pictures.TRACES)
def test_everything_is_told(name: str):
    trace = pictures.TRACES[name]()
    text = Page(html(trace)).text
    story = trace_story(trace)
    assert story.word in text
    for step in story.steps:
        assert str(step.hop.point) in text
        for why in step.hop.why:
            assert " ".join(why.text.split()) in text
            assert why.command in text
            assert why.source is None or f"{why.source.kind} {why.source.name}" in text
    for line in story.lines:
        assert line.text in text
    for hop in trace.forward:
        assert str(hop.inner.src_mac) in text
    assert f"overlaynet trace --replay {trace.bundle}" in text


def test_sections_are_those_that_a_reader_looks_for():
    text = Page(html(pictures.virtual_ip())).text
    for words in (
        "Headers, hop by hop", "Rules, routes and conntrack", "Expected and seen", "How to repeat",
        "Counters that moved", "Where it must not appear",
    ):  # fmt: skip
        assert words in text
    assert "overlaynet trace web-1 svc/web --tcp 80" in text


def test_a_hop_that_was_not_seen_says_no():
    text = html(pictures.wrong_fdb())
    assert text.count('<span class="missing">no</span>') == 5


def test_each_way_has_a_heading_and_a_drawing():
    text = html(pictures.four_ways())
    assert text.count("<svg ") == 4
    assert "One of 4 ways is taken" in text


def test_no_way_at_all():
    assert "No way could be followed" in html(replace(pictures.explained(), paths=()))


def test_dark_screens_have_every_colour():
    text = html(pictures.vxlan())
    dark = text[text.index("prefers-color-scheme: dark") :]
    for name, colour in palette.COLOURS.items():
        assert f"--{name}: {colour.dark};" in dark
    used = set(re.findall(r'class="([^"]*)"', text[text.index("<svg") : text.index("</svg>")]))
    for name in {one for classes in used for one in classes.split()}:
        assert f".{name} " in dark


def test_paper_hides_nothing():
    text = html(pictures.vxlan())
    assert "@media print" in text
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert text.count("<details") == text.count("<details open>")


def test_hostile_words_are_words():
    evil = '</title><script>alert("1")</script>&amp;<img src=x onerror=y>\x00'
    trace = pictures.vxlan()
    why = replace_why(trace, evil)
    text = html(replace(why, notes=(evil,), answer=evil, bundle=evil))
    page = Page(text)
    assert not page.tags & {"script", "img"}
    assert "alert" in page.text


def replace_why(trace: Trace, evil: str) -> Trace:
    hop = trace.forward[4]
    whys = tuple(why._replace(text=evil, command=evil, key=evil) for why in hop.why)
    worse = replace(hop, why=whys, iface=evil, place=evil, note=evil)
    return replace(trace, forward=(*trace.forward[:4], worse, *trace.forward[5:]))
