"""Lesson 11, who repairs my network."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning, pinging

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

ENTRY = ("bridge", "fdb", "append", "02:0a:f4:01:00:00", "dev", "flannel.1", "dst", "192.168.50.11")


@pytest.fixture(scope="module")
def learner():
    with learning("drift") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, pinging("outside"))


def test_repair_by_hand_is_no_repair_by_itself(learner: Learner):
    """The lab was reset by the test before."""
    learner.types("repair")
    learner.types("exec", "node-2", "--", *ENTRY)
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "no agent answers" in claims[1]["evidence"]


def test_agent_that_is_asked_to_look_away_is_not_enough(learner: Learner):
    learner.types("heal", "f1", "f2")
    claims = learner.checks(code=1)["claims"]
    assert claims[-1]["verdict"] == "fail"
    assert "node-2" in claims[-1]["evidence"]
    assert "fault f3" in claims[-1]["evidence"]
