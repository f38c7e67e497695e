"""Sequence diagrams for Markdown, read back by a small part of mermaid's grammar."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers import pictures

from overlaynet.trace.model import Prediction, Trace
from overlaynet.trace.render.mermaid import mermaid, said

pytestmark = pytest.mark.unit

EVERYTHING = {**pictures.TRACES, **pictures.PREDICTIONS}
TEXT = r"(?:[^;#\n]|#\d+;)+"
STATEMENTS = [
    re.compile(pattern)
    for pattern in (
        r"sequenceDiagram",
        rf"  box {TEXT}",
        r"  end",
        rf"  participant (?P<declared>p\d+) as {TEXT}",
        rf"  (?P<one>p\d+)(?:->>|-->>|-x)(?P<other>p\d+): {TEXT}",
        rf"  Note over (?P<over>p\d+): {TEXT}",
    )
]


@pytest.fixture(params=EVERYTHING)
def what(request: pytest.FixtureRequest) -> Trace | Prediction:
    return EVERYTHING[request.param]()


def diagrams(text: str) -> list[list[str]]:
    return [block.strip("\n").split("\n") for block in re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)]


def check(lines: list[str]) -> None:
    assert lines[0] == "sequenceDiagram"
    declared: set[str] = set()
    boxes = 0
    for line in lines:
        match = next((m for m in (statement.fullmatch(line) for statement in STATEMENTS) if m), None)
        assert match is not None, line
        words = match.groupdict()
        if "declared" in words:
            assert words["declared"] not in declared
            declared.add(words["declared"])
        assert {name for key, name in words.items() if key != "declared"} <= declared
        boxes += line.startswith("  box ")
        boxes -= line == "  end"
        assert boxes in (0, 1)
    assert boxes == 0


def test_every_statement_is_one(what: Trace | Prediction):
    found = diagrams(mermaid(what))
    assert len(found) == (len(what.paths) if isinstance(what, Prediction) else 1)
    for lines in found:
        check(lines)


@pytest.mark.parametrize("name", ["vxlan", "virtual-ip", "same-host", "host-gw", "node-port"])
def test_every_hop_is_there(name: str):
    trace = pictures.TRACES[name]()
    (lines,) = diagrams(mermaid(trace))
    for hop in (*trace.forward, *trace.reply):
        assert any(f" {hop.iface} {hop.direction}: " in line for line in lines)


def test_a_loss_ends_in_a_cross_and_a_cause():
    text = mermaid(pictures.wrong_fdb())
    (lines,) = diagrams(text)
    assert lines[-1] == "  p2-xp3: ✗ lost here: outer 192.168.50.11 → 192.168.50.99"
    assert "- **cause** fdb wrong" in text
    assert "**LOST**" in text


def test_containers_are_in_the_box_of_their_host():
    (lines,) = diagrams(mermaid(pictures.vxlan()))
    assert lines[1:5] == ["  box node-1", "  participant p1 as web-1", "  participant p2 as node-1", "  end"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("eth0 in: ttl 64", "eth0 in: ttl 64"),
        ("a;b", "a#59;b"),
        ("a#b", "a#35;b"),
        ("a\nend", "a end"),
        ("<b>", "#60;b#62;"),
        ("%%{init}", "#37;#37;#123;init#125;"),
        ("", "#160;"),
    ],
)
def test_words_that_would_mean_something_are_codes(text: str, written: str):
    assert said(text) == written


def test_hostile_names():
    trace = pictures.vxlan()
    evil = "x\nend\n```\n<script>; participant p1 as y # %%"
    hop = replace(trace.forward[0], iface=evil, place=evil, note=evil)
    text = mermaid(replace(trace, forward=(hop, *trace.forward[1:]), notes=(evil,)))
    (lines,) = diagrams(text)
    check(lines)
    assert "<script" not in text
