"""Text made harmless, and cut to cells."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.trace.render.text import cells, circled, cut, cut_middle, pad, plain

pytestmark = pytest.mark.unit


@given(st.text())
def test_plain_text_is_one_line_without_control(text: str):
    made = plain(text)
    assert len(made) == len(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in made)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("eth0", "eth0"),
        ("a\x1b[31mb", "a\N{REPLACEMENT CHARACTER}[31mb"),
        ("two\nlines", "two lines"),
        ("left\N{RIGHT-TO-LEFT OVERRIDE}right", "left\N{REPLACEMENT CHARACTER}right"),
        ("µs → ①", "µs → ①"),
    ],
)
def test_what_could_do_harm_is_made_visible(text: str, made: str):
    assert plain(text) == made


@given(st.text(), st.integers(0, 40))
def test_cut_text_fits(text: str, room: int):
    assert cells(cut(plain(text), room)) <= room
    assert cells(cut_middle(plain(text), room)) <= room
    assert cells(pad(plain(text), room)) == room


def test_wide_characters_take_two_cells_and_combining_ones_none():
    assert cells("漢字") == 4
    assert cells("e\N{COMBINING ACUTE ACCENT}") == 1


def test_both_ends_of_a_long_name_stay():
    assert cut_middle("veth3487734c933", 9) == "veth…c933"
    assert cut("veth3487734c933", 9) == "veth3487…"


def test_marks_go_beyond_what_unicode_has():
    assert [circled(n) for n in (1, 20, 21)] == ["①", "⑳", "(21)"]
