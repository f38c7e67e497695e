"""README.md and README.zh.md: two languages, one content."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ("README.md", "README.zh.md")


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def typed(name: str) -> list[str]:
    """All lines that are indented or in a fence: commands, and what they answer."""
    found, fenced = [], False
    for line in text(name).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            found.append(line)
    return found


def links(name: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text(name))


def test_commands_and_answers_are_the_same_lines_in_the_same_order():
    differing = difflib.unified_diff(typed(ENGLISH), typed(CHINESE), ENGLISH, CHINESE, n=1, lineterm="")
    assert "\n".join(differing) == ""


def test_both_lead_to_the_same_pages_but_each_to_the_other():
    english, chinese = ({*links(name)} - {ENGLISH, CHINESE} for name in (ENGLISH, CHINESE))
    assert (english - chinese, chinese - english) == (set(), set())
    assert CHINESE in links(ENGLISH)
    assert ENGLISH in links(CHINESE)


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_links_lead_somewhere(name: str):
    files = [link.partition("#")[0] for link in links(name) if "://" not in link]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_both_have_as_many_sections_and_points():
    for mark in ("## ", "* "):
        counts = [sum(line.startswith(mark) for line in text(name).splitlines()) for name in (ENGLISH, CHINESE)]
        assert counts[0] == counts[1], f"lines that begin with {mark!r}"


@pytest.mark.parametrize("name", [CHINESE, "docs/course.zh.md"])
def test_no_chinese_paragraph_is_broken_into_lines(name: str):
    """A browser shows the break as a blank, which Chinese has none of."""
    broken = [
        below
        for above, below in itertools.pairwise(text(name).splitlines())
        if re.match(r"[一-鿿]", below) and above and not above.startswith((" ", "|", "#", "* "))
    ]
    assert broken == []
