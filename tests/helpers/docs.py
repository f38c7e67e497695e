"""A page of the documentation as what it tells people to type, and where.

Commands are indented; a paragraph before them says where in bold (**At home**, **On each machine**, **On
node-3**). What stands in a fence is for a file, or for a machine that no test has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[2] / "docs"
_PLACE = re.compile(r"\*\*(At home|On each machine|On ([-a-z0-9]+))\*\*", re.IGNORECASE)


class Step(NamedTuple):
    """Commands to be typed at a place: "at home", "on each machine" or "on NAME"."""

    heading: str
    place: str
    commands: str


class Page(NamedTuple):
    steps: tuple[Step, ...]
    fences: tuple[tuple[str, str], ...]
    """Language and content."""

    def of(self, *headings: str) -> list[Step]:
        found = [step for step in self.steps if step.heading in headings]
        assert {step.heading for step in found} == set(headings)
        return found


def page(name: str) -> Page:
    text = (DOCS / name).read_text("utf-8")
    fences = tuple((kind, content) for kind, content in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S))
    steps, heading, place = [], "", ""
    for block in re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S).split("\n\n"):
        if block.startswith("    "):
            assert place, f"nobody says where to type {block}"
            steps.append(Step(heading, place, re.sub(r"^    ", "", block, flags=re.M) + "\n"))
        elif found := re.match(r"## (.*)", block.lstrip("\n")):
            heading = found[1]
        elif named := _PLACE.findall(block):
            place = named[-1][0].lower()
    return Page(tuple(steps), fences)
