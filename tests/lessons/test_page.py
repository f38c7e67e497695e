"""Reports as pages: complete, harmless, and readable for those who do not see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from helpers.classroom import handed_in, item, prediction
from hypothesis import given, settings
from hypothesis import strategies as st

from overlaynet.errors import ReportInvalid
from overlaynet.lessons.page import class_page, learner_page
from overlaynet.lessons.report import headline, read

pytestmark = pytest.mark.unit

EVIL = "<script>alert('1')</script>&\"><img src=x onerror=1>"
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """What a browser would make of it. AssertionError where tags do not fit into each other."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def proved(**members: Any) -> dict[str, Any]:
    ttl = prediction(
        first="64", last="62", theory="62", captured="62", right_first=False, because="two hosts route it"
    )
    claim = {"text": "it is there", "verdict": "pass", "evidence": ""}
    return item(state="proved", proved_at="2026-01-05T08:20:00+00:00", checks=2, hints=1, predictions=[ttl],
                claims=[claim], **members)  # fmt: skip


def stuck(**members: Any) -> dict[str, Any]:
    claim = {"text": "blue hears it", "verdict": "fail", "evidence": "no packet is icmp\nat blue:eth0"}
    return item("mtu", number=4, question="Why?", checks=1, claims=[claim], **members)


def test_learners_page_tells_all_that_was_done():
    page = Page(learner_page(handed_in("alice", proved(), stuck(), item("drift", number=11, state=None))))
    assert page.rows[1] == [
        "3",
        "vxlanWhat is inside?",
        "✓ proved",
        "1",
        "2",
        "1",
        "0 of 1",
        "2026-01-05 08:20 UTC",
    ]
    assert page.rows[2] == ["4", "mtuWhy?", "… begun", "1", "1", "", "", ""]
    assert page.rows[5] == ["With which TTL?two hosts route it", "64", "62", "62", "62", "wrong"]
    for words in (
        "1 of 3 lessons proved",
        "pc-1, overlaynet 0.1.0",
        "FAIL blue hears it",
        "at blue:eth0",
        "not begun",
    ):
        assert words in page.text


def test_class_page_tells_who_is_where_and_what_was_believed():
    reports = [("a.json", handed_in("alice", proved(), stuck())), ("b.json", handed_in("bob", stuck(hints=3)))]
    page = Page(class_page(reports))
    heads, alice, bob, total, *believed = page.rows
    assert heads == ["learner", "3 vxlan", "4 mtu", "proved"]
    assert alice == ["alicepc-1, a.json, 2026-01-05 09:00 UTC", "✓proved0/1 h1", "…begun", "1"]
    assert bob[1:] == ["not begun", "…begunh3", "0"]
    assert total == ["proved by", "1", "0", ""]
    assert believed[1] == ["3 vxlan", "With which TTL?", "62", "64\xa0×1", "0 of 1"]


def everything(word: str) -> dict[str, Any]:
    """A document in which each text is this word."""
    asked = prediction(
        **dict.fromkeys(("name", "question", "first", "last", "theory", "captured", "because"), word)
    )
    claim = {"text": word, "verdict": "fail", "evidence": word}
    fault = {"kind": word, "place": word, "found": True}
    seeds = [{"seed": 1, "verdict": "proved", "looks": 2, "faults": [fault]}]
    done = proved(question=word, seeds=seeds) | {"predictions": [asked], "claims": [claim], "lesson": word}
    return handed_in(word, done, machine=word, version=word)


@pytest.mark.parametrize("word", [EVIL, "</style></table>", "\x1b[2J\u202e", "&lt;b&gt;"])
def test_no_text_of_a_learner_is_more_than_text(word: str):
    tame = {tag for tag, _ in Page(learner_page(everything("word"))).tags}
    tame |= {tag for tag, _ in Page(class_page([("word", everything("word"))])).tags}
    for text in (learner_page(everything(word)), class_page([(word, everything(word))])):
        page = Page(text)
        assert {tag for tag, _ in page.tags} <= tame
        assert not any(
            name.startswith("on") or name in ("src", "href") for _, attrs in page.tags for name in attrs
        )
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_page_needs_nothing_from_elsewhere_and_no_script():
    text = class_page([("a.json", handed_in("alice", proved()))])
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_tables_can_be_read_aloud():
    page = Page(class_page([("a.json", handed_in("alice", proved(), stuck()))]))
    tables = [tag for tag, _ in page.tags if tag == "table"]
    assert len(tables) == sum(tag == "caption" for tag, _ in page.tags) == 2
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    marks = [attrs for tag, attrs in page.tags if tag == "b" and attrs.get("aria-hidden")]
    assert len(marks) == sum(attrs.get("class") == "spoken" for _, attrs in page.tags) == 2


def whole() -> dict[str, Any]:
    """A document with each member that there can be."""
    seed = {
        "seed": 1,
        "verdict": "proved",
        "looks": 2,
        "faults": [{"kind": "mtu", "place": "red", "found": True}],
    }
    return handed_in("alice", proved(seeds=[seed]), stuck())


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each member of it at any depth: what it is in, and where there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(pairs):
        yield value, key
        yield from places(below)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=5), below, max_size=2),
    max_leaves=5,
)


@given(st.integers(0, sum(1 for _ in places(whole())) - 1), JSON)
@settings(max_examples=300)
def test_what_is_read_can_be_shown(tmp_path_factory: pytest.TempPathFactory, number: int, value: Any):
    """Whatever stands in place of any member: either the file is refused, or it makes a page."""
    document = whole()
    inside, key = list(places(document))[number]
    inside[key] = value
    file = tmp_path_factory.getbasetemp() / "one.json"
    file.write_text(json.dumps(document), "utf-8")
    try:
        found = read(file)
    except ReportInvalid:
        return
    Page(learner_page(found))
    Page(class_page([("one.json", found)]))
    headline([found])


def test_empty_reports_are_pages_as_well():
    assert "0 of 0 lessons proved" in Page(learner_page(handed_in("alice"))).text
    assert "2 learners" in Page(class_page([("a", handed_in("alice")), ("b", handed_in("bob"))])).text


def test_whoever_found_all_after_the_fewest_looks_comes_first():
    def score(learner: str, looks: int, *named: bool) -> dict[str, Any]:
        faults = [{"kind": "mtu", "place": "node-2", "found": found} for found in named]
        seed = {"seed": 7, "verdict": "proved" if all(named) else "not_yet", "looks": looks, "faults": faults}
        return handed_in(learner, item("mystery", number=13, seeds=[seed]))

    reports = [score("alice", 9, True), score("bob", 2, False), score("chen", 4, True)]
    rows = Page(class_page([(report["learner"], report) for report in reports])).rows
    assert rows[-4:] == [
        ["seed", "learner", "looks", "found"],
        ["7", "chen", "4", "1 of 1: mtu at node-2"],
        ["7", "alice", "9", "1 of 1: mtu at node-2"],
        ["7", "bob", "2", "0 of 1"],
    ]
    assert ["7", "4", "1 of 1: mtu at node-2"] in Page(learner_page(reports[2])).rows
