"""Lesson 9, what happens when a node dies."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, calling, goes_through, learning

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("node-death") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, calling("10.112.0.10"))


def test_second_endpoint_alone_leaves_the_node_dead(learner: Learner):
    """The lab was reset by the test before."""
    learner.types("detach", "green")
    learner.types("attach", "green", "--label", "app=web")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "echo-reply" in claims[1]["evidence"]


def test_power_alone_does_not_survive_the_next_death(learner: Learner):
    learner.types("detach", "green")
    learner.types("attach", "green")
    learner.types("heal")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert "node-1 says OVL-415" in claims[2]["evidence"]
