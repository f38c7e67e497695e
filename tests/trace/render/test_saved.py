"""Real traces, in every form: none breaks, is too wide, or says what it is not."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from helpers.bundles import BUNDLES, file_of

from overlaynet.proof.saved import open_bundle, replay
from overlaynet.trace.model import PROVED, Trace
from overlaynet.trace.predict import predict
from overlaynet.trace.render.html import html
from overlaynet.trace.render.mermaid import mermaid
from overlaynet.trace.render.svg import svg
from overlaynet.trace.render.terminal import explain_text, trace_text
from overlaynet.trace.render.text import cells

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[3] / "docs"


def trace_of(name: str) -> Trace:
    return replay(open_bundle(file_of(name)), None, name)


@pytest.mark.parametrize("name", BUNDLES)
def test_text_keeps_to_its_width(name: str) -> None:
    saved, found = open_bundle(file_of(name)), trace_of(name)
    foretold = predict(saved.world, saved.question)
    for width in (60, 80, 120, 200):
        for verbose in (False, True):
            for text in (
                trace_text(found, width, verbose=verbose),
                explain_text(foretold, width, verbose=verbose),
            ):
                assert max(map(cells, click.unstyle(text).splitlines())) <= width


@pytest.mark.parametrize("name", BUNDLES)
def test_pictures_can_be_drawn(name: str) -> None:
    saved = open_bundle(file_of(name))
    for what in (trace_of(name), predict(saved.world, saved.question)):
        assert ElementTree.fromstring(svg(what)).tag == "{http://www.w3.org/2000/svg}svg"
        assert html(what).endswith("</html>\n")
        assert "sequenceDiagram" in mermaid(what)


@pytest.mark.parametrize("name", [name for name, judged in BUNDLES.items() if judged.outcome == "delivered"])
def test_what_arrived_is_not_drawn_as_lost(name: str) -> None:
    text = click.unstyle(trace_text(trace_of(name), 120))
    assert "lost here" not in text


def test_an_answer_that_would_be_lost_is_foretold_with_its_cause() -> None:
    saved = open_bundle(file_of("fdb-missing-on-the-way-back"))
    text = click.unstyle(explain_text(predict(saved.world, saved.question), 120))
    assert "answer: syn-ack, lost after 4 back" in text
    assert "fdb missing on node-2" in text


def test_where_it_is_taken_in_it_has_arrived() -> None:
    lines = click.unstyle(trace_text(trace_of("oneself"), 120)).splitlines()
    assert [line.split()[-1] for line in lines if " web-1 lo " in line] == ["B", "arrived"]


def test_who_was_not_seen_to_get_it_is_not_named() -> None:
    title = click.unstyle(trace_text(trace_of("unseen-host"), 120)).splitlines()[0]
    assert title == "web-1 10.244.1.2 (node-1) → web-3 10.244.2.2"


def test_the_readme_opens_with_a_picture_of_the_trace_that_lies_beside_it() -> None:
    saved = open_bundle(DOCS / "trace.ovltrace")
    assert (saved.question.source, saved.question.target) == ("client-1", "svc/web")
    found = replay(saved, None, "trace.ovltrace")
    assert found.verdict == PROVED
    assert (DOCS / "trace.svg").read_text() == svg(found)
    readme = (DOCS.parent / "README.md").read_text()
    picture, command = readme.index("](docs/trace.svg)"), readme.index(" trace client-1 svc/web ")
    assert picture < command < readme.index("## One minute")
