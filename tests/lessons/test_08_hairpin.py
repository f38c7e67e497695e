"""Lesson 8, a server that calls itself."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.eventually import eventually
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learner():
    with learning("hairpin") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property)


def test_masquerade_alone_ends_at_the_bridge(learner: Learner):
    """The lab was reset by the test before."""
    learner.runs(
        "".join(line for line in learner.solution.splitlines(keepends=True) if "hairpin on" not in line)
    )
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["fail"]
    assert "not so: it comes back to red" in claims[0]["evidence"]


def test_masquerade_of_everything_hides_who_else_calls(learner: Learner):
    learner.runs(learner.solution.replace(" -s 10.244.1.2 -d 10.244.1.2", ""))
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert "its source is 10.244.1.1" in claims[2]["evidence"]


def test_masquerade_of_all_that_red_sends_hides_red(learner: Learner):
    """The rule of the test before is still there, and made narrower."""
    change = "overlaynet exec node-1 -- iptables -w -t nat"
    learner.runs(
        f"{change} -D POSTROUTING -j MASQUERADE\n{change} -A POSTROUTING -s 10.244.1.2 -j MASQUERADE\n"
    )
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert "its source is 10.244.1.1" in claims[2]["evidence"]


def test_agent_that_is_back_calls_red_too(learner: Learner):
    """To learn whether red is ready, five times a second. The rule of the test before goes first."""
    learner.types("exec", "node-1", "--", "iptables", "-w", "-t", "nat", "-F", "POSTROUTING")
    learner.types("heal")
    eventually(lambda: learner.types("diff"), deadline_s=20)
    assert learner.checks(code=0)["verdict"] == "proved"
