"""Lesson 5, hosts that share a subnet."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning, pinging

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("host-gw") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, pinging("blue"), pinging("green"))


def test_host_that_did_not_take_it_still_answers_in_a_tunnel(learner: Learner):
    """The lab was reset by the test before."""
    learner.runs(learner.solution.replace("network apply", "network apply node-1"))
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "192.168.50.12 > 192.168.50.11 vxlan 1 [10.244.2.2 > 10.244.1.2" in claims[1]["evidence"]


def test_host_gw_for_all_loses_the_host_behind_the_router(learner: Learner):
    learner.runs(
        learner.solution.replace('"vxlan"', '"host-gw"').replace("network apply", "network apply node-1 node-2")
    )
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert "the packet is not seen at green:eth0" in claims[2]["evidence"]
