"""What a lesson asks for, and how what was typed is read."""

from __future__ import annotations

import pytest
from helpers.classroom import lesson

from overlaynet.errors import UsageError
from overlaynet.lessons import Prediction

pytestmark = pytest.mark.unit

WORD = Prediction("word", "Who?", "word", ("agent", "kernel"))


@pytest.mark.parametrize(
    ("kind", "typed", "read"),
    [
        ("number", " 62 ", "62"),
        ("number", "+50", "50"),
        ("number", "-1", "-1"),
        ("number", "007", "7"),
        ("address", "10.244.1.2", "10.244.1.2"),
        ("address", "FD00:0::1", "fd00::1"),
        ("mac", "02-0A-F4-01-00-00", "02:0a:f4:01:00:00"),
        ("point", "node-1:flannel.1", "node-1:flannel.1"),
        ("point", "red:veth0a_b@x", "red:veth0a_b@x"),
    ],
)
def test_value_has_one_spelling(kind: str, typed: str, read: str):
    assert Prediction("it", "?", kind).read(typed) == read


def test_word_is_one_of_its_choices_in_any_letters():
    assert WORD.read(" Agent ") == "agent"
    assert (WORD.wanted, WORD.example) == ("agent or kernel", "agent|kernel")


@pytest.mark.parametrize(
    ("asked", "typed"),
    [
        (Prediction("it", "?"), "62.5"),
        (Prediction("it", "?"), "fifty"),
        (Prediction("it", "?"), ""),
        (Prediction("it", "?"), "9" * 5000),
        (Prediction("it", "?", "address"), "10.244.1"),
        (Prediction("it", "?", "address"), "10.244.1.0/24"),
        (Prediction("it", "?", "mac"), "02:0a:f4:01:00"),
        (Prediction("it", "?", "point"), "node-1"),
        (Prediction("it", "?", "point"), "node-1:a/b"),
        (Prediction("it", "?", "point"), "node-1:eth0:1"),
        (Prediction("it", "?", "point"), "node-1:\x1b[2J"),
        (Prediction("it", "?", "point"), "node-1:an-interface-too-long"),
        (WORD, "nobody"),
    ],
)
def test_what_is_none_of_the_kind_is_refused_with_what_is_wanted(asked: Prediction, typed: str):
    with pytest.raises(UsageError) as caught:
        asked.read(typed)
    assert caught.value.evidence == f"wanted: {asked.wanted}"
    assert caught.value.next == (f"overlaynet lab check --predict {asked.name}={asked.example}",)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"name": "two words"}, "cannot be"),
        ({"name": "a=b"}, "cannot be"),
        ({"kind": "colour"}, "there are number, address"),
        ({"kind": "word"}, "a word has choices"),
        ({"kind": "number", "choices": ("1", "2")}, "nothing else has"),
        ({"kind": "word", "choices": ("Agent",)}, "small letters"),
    ],
)
def test_prediction_that_nobody_could_answer_is_a_mistake_of_its_author(members: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Prediction(**{"name": "it", "question": "?", **members})


def test_lesson_without_three_hints_is_a_mistake_of_its_author():
    with pytest.raises(ValueError, match="3 hints, this one 2"):
        lesson(hints=("a", "b"))


def test_two_predictions_of_one_name_are_a_mistake_of_their_author():
    with pytest.raises(ValueError, match="ttl, ttl"):
        lesson(Prediction("ttl", "?"), Prediction("ttl", "again?"))


def test_predictions_are_read_by_name():
    asked = lesson(Prediction("ttl", "?"), Prediction("last", "?", "point"))
    assert asked.read(["ttl=62", "last=red:eth0", "ttl=63"]) == {"ttl": "63", "last": "red:eth0"}


def test_what_is_no_prediction_is_refused():
    with pytest.raises(UsageError, match="'ttl' is no prediction"):
        lesson(Prediction("ttl", "?")).read(["ttl"])


def test_unknown_prediction_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match="nothing called 'mtu'") as caught:
        lesson(Prediction("ttl", "?")).read(["mtu=1450"])
    assert caught.value.evidence == "to be predicted: ttl"
