"""Lesson 2, gateway and masquerade."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning, pinging

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("gateway") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, pinging("outside"))


def test_masquerade_of_everything_hides_red_from_its_neighbour(learner: Learner):
    """The lab was reset by the test before. The rule looks right, and outside it is."""
    learner.runs(learner.solution.replace("! -d 10.244.0.0/16 ", ""))
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass"] * 5 + ["fail"]
    assert "10.244.1.1 > 10.244.1.3 icmp echo request" in claims[5]["evidence"]


def test_packet_with_red_s_own_address_gets_out_and_is_not_enough(learner: Learner):
    learner.runs("overlaynet exec node-1 -- iptables -w -t nat -F POSTROUTING")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert "outside:eth0         src 10.244.1.2" in claims[2]["evidence"]
