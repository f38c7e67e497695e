"""Lesson 3, what is inside a VXLAN packet."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning, pinging

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("vxlan") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, pinging("blue"))


def test_device_without_entries_is_not_enough(learner: Learner):
    """The lab was reset by the test before."""
    device, *_ = (line for line in learner.solution.splitlines() if "link add" in line)
    learner.runs('on() { overlaynet exec node-1 -- "$@"; }\n' + device)
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "no packet is icmp echo-request" in claims[1]["evidence"]
