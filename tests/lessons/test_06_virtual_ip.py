"""Lesson 6, an address that no interface has."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, calling, goes_through, learning

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("virtual-ip") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, calling("10.244.1.3:8080"))


def test_one_service_of_two_is_not_enough(learner: Learner):
    """The lab was reset by the test before."""
    on, far, _ = (line for line in learner.solution.splitlines() if line.startswith("on"))
    learner.runs(f"{on}\n{far}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "pass", "fail"]
    assert "not so: it comes to green" in claims[-1]["evidence"]


def test_rule_that_keeps_the_port_leads_to_one_where_nobody_listens(learner: Learner):
    on, far, _ = (line for line in learner.solution.splitlines() if line.startswith("on"))
    learner.runs(f"{on}\n{far.replace(':8080', '').replace(' -A ', ' -I ')}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["fail"]
    assert "10.244.2.2:80 > 10.244.1.2:" in claims[0]["evidence"]
    assert " tcp RA " in claims[0]["evidence"]


def test_a_port_where_green_does_not_listen_is_no_answer_either(learner: Learner):
    on, far, near = (line for line in learner.solution.splitlines() if line.startswith("on"))
    learner.runs(f"{on}\n{far.replace(' -A ', ' -I ')}\n{near.replace(':8080', '')}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "pass", "fail"]
    assert "10.244.1.3:80 > 10.244.1.2:" in claims[-1]["evidence"]
    assert " tcp RA " in claims[-1]["evidence"]
