"""Lesson 10, does the data plane need etcd."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning, pinging

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("without-etcd") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, pinging("blue"))


def test_etcd_alone_wires_nobody(learner: Learner):
    """The lab was reset by the test before."""
    learner.types("heal")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert "blue has no address" in claims[2]["evidence"]


def test_container_that_is_no_endpoint_is_not_the_one_that_waits(learner: Learner):
    learner.types("attach", "blue", "--label", "app=other")
    claims = learner.checks(code=1)["claims"]
    assert "leads them to green alone" in claims[2]["evidence"]
