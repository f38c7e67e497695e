"""What a check writes down, and what follows from it."""

from __future__ import annotations

import pytest
from helpers.classroom import lesson

from overlaynet.errors import LabFailed, NotPermitted
from overlaynet.lessons import Board, Prediction
from overlaynet.lessons.board import INCONCLUSIVE, NOT_YET, PROVED, Claim
from overlaynet.proof.way import Inconclusive

pytestmark = pytest.mark.unit


@pytest.fixture
def board() -> Board:
    return Board(lesson(Prediction("ttl", "With which TTL?"), Prediction("size", "How long?")))


def measured(board: Board, **values: object) -> None:
    for name, value in values.items():
        board.measured(name, theory=value, captured=value, because="so it is")


def test_all_claims_and_all_values_make_a_proof(board: Board):
    with board.checking():
        with board.claim("it holds"):
            pass
        measured(board, ttl=62, size=50)
    assert board.verdict == PROVED
    assert board.claims == [Claim("it holds", "pass")]


def test_check_ends_at_the_first_claim_that_does_not_hold(board: Board):
    with board.checking():
        with board.claim("it holds"):
            raise AssertionError("no packet is icmp")
        with board.claim("never looked at"):
            pass
    assert board.claims == [Claim("it holds", "fail", "no packet is icmp")]
    assert board.verdict == NOT_YET


def test_what_is_not_there_refutes_a_claim(board: Board):
    with board.checking(), board.claim("it holds"):
        raise LabFailed("node-1 has no flannel.1", evidence="it has eth0")
    assert board.claims == [Claim("it holds", "fail", "node-1 has no flannel.1\nit has eth0")]


def test_missing_right_is_no_verdict(board: Board):
    with pytest.raises(NotPermitted), board.checking(), board.claim("it holds"):
        raise NotPermitted("captures need CAP_NET_RAW")
    assert board.claims == []


def test_silence_that_nobody_heard_is_inconclusive(board: Board):
    with board.checking(), board.claim("nothing comes"):
        raise Inconclusive("nobody listened at node-2:eth0")
    assert board.verdict == INCONCLUSIVE


def test_mistake_in_a_claim_is_not_taken_for_a_refutation(board: Board):
    with pytest.raises(KeyError), board.checking(), board.claim("it holds"):
        {}["red"]
    assert board.claims == []


def test_value_that_was_not_captured_leaves_it_unproved(board: Board):
    with board.checking():
        with board.claim("it holds"):
            pass
        measured(board, ttl=62)
    assert board.verdict == NOT_YET


def test_values_without_a_claim_prove_nothing(board: Board):
    with board.checking():
        measured(board, ttl=62, size=50)
    assert board.verdict == NOT_YET


def test_capture_that_is_not_what_theory_says_is_a_claim_that_fails(board: Board):
    with board.checking():
        board.measured("ttl", theory=62, captured=63, because="two hosts route it")
        board.measured("size", theory=50, captured=50, because="never reached")
    assert board.claims == [
        Claim("ttl is captured as theory has it", "fail", "captured: 63; theory: 62, for two hosts route it")
    ]
    assert (board.verdict, list(board.values)) == (NOT_YET, ["ttl"])


def test_capture_of_another_kind_is_not_what_theory_says_either(board: Board):
    with board.checking():
        board.measured("ttl", theory=62, captured=None, because="two hosts route it")
    assert board.claims[0].evidence.startswith("captured: None; theory: 62")


def test_answers_stand_beside_what_was_found(board: Board):
    measured(board, ttl=62)
    ttl, size = board.answers({"ttl": "64", "size": "50"})
    assert (ttl.predicted, ttl.theory, ttl.captured, ttl.right) == ("64", "62", "62", False)
    assert (size.predicted, size.captured, size.right) == ("50", None, None)
    assert ttl.as_json() == {
        "name": "ttl",
        "question": "With which TTL?",
        "predicted": "64",
        "theory": "62",
        "captured": "62",
        "right": False,
        "because": "so it is",
    }
