"""Whatever a trace or a prediction holds, each form can show it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import click
import pytest
from helpers import any_trace
from hypothesis import Phase, given, settings

from overlaynet.trace.document import explain_json, trace_json
from overlaynet.trace.model import Prediction, Trace
from overlaynet.trace.render.html import html
from overlaynet.trace.render.mermaid import mermaid
from overlaynet.trace.render.svg import sheet, svg
from overlaynet.trace.render.terminal import explain_text, trace_text
from overlaynet.trace.render.text import cells

pytestmark = pytest.mark.unit


EXAMPLES = settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
"""Shrinking such large values takes longer than a test may."""
WIDTH = 80


def check_text(styled: str) -> None:
    text = click.unstyle(styled)
    assert all(cells(line) <= WIDTH for line in text.split("\n"))
    assert not any(ord(character) < 32 and character != "\n" for character in text)


@EXAMPLES
@given(any_trace.traces)
def test_any_trace(trace: Trace):
    assert len(json.loads(json.dumps(trace_json(trace)))["forward"]) == len(trace.forward)
    check_text(trace_text(trace, WIDTH))
    check_text(trace_text(trace, WIDTH, verbose=True))
    ElementTree.fromstring(svg(trace))
    assert "</html>" in html(trace)
    assert "sequenceDiagram" in mermaid(trace)
    drawing = sheet(trace)
    assert all(drawing.box.holds(text.box) for text in drawing.texts)


@EXAMPLES
@given(any_trace.predictions)
def test_any_prediction(prediction: Prediction):
    assert len(json.loads(json.dumps(explain_json(prediction)))["paths"]) == len(prediction.paths)
    check_text(explain_text(prediction, WIDTH))
    check_text(explain_text(prediction, WIDTH, verbose=True))
    ElementTree.fromstring(svg(prediction))
    assert "</html>" in html(prediction)
    assert mermaid(prediction).count("sequenceDiagram") == len(prediction.paths)
