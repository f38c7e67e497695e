"""Text that may stand in a picture: without control characters, and no longer than there is room for.

What is drawn comes from outside: names of interfaces, comments in other people's rules, what a program
answered. A terminal obeys control characters in it, XML forbids most of them (XML 1.0 section 2.2), and marks
that turn the writing direction make a line read as another. So each such character becomes a visible one.

A terminal counts cells, of which an East Asian wide character takes two and a combining one none (Unicode
Standard Annex 11).
"""

from __future__ import annotations

import unicodedata

ELISION = "…"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""General categories: control, format (also marks of direction), surrogates, unassigned, line ends."""

_CIRCLED_ONE, _CIRCLED = 0x2460, 20


def plain(value: object) -> str:
    """The same in one line that can do no harm; blanks of every kind become plain ones."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_harmless(character) for character in text)


def _harmless(character: str) -> str:
    if character.isspace():
        return " "
    return REPLACEMENT if unicodedata.category(character) in _HARMFUL else character


def cells(text: str) -> int:
    """Columns that it takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """At most `room` cells of it; what was cut off is marked."""
    if cells(text) <= room:
        return text
    kept = text[: max(0, room - 1)]
    while kept and cells(kept) > room - 1:
        kept = kept[:-1]
    return kept + ELISION if room > 0 else ""


def cut_middle(text: str, room: int) -> str:
    """As `cut`, but both ends stay: of a long name they tell most."""
    if cells(text) <= room or not text.isascii() or room < 5:
        return cut(text, room)
    tail = (room - 1) // 2
    return text[: room - 1 - tail] + ELISION + text[-tail:]


def pad(text: str, room: int) -> str:
    """Filled up with blanks to `room` cells, or cut."""
    short = cut(text, room)
    return short + " " * (room - cells(short))


def circled(number: int) -> str:
    """A mark that is seen among words: ① to ⑳, then (21)."""
    return chr(_CIRCLED_ONE + number - 1) if 1 <= number <= _CIRCLED else f"({number})"


def count_of(number: int, thing: str) -> str:
    """``1 hop``, ``3 hops``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
