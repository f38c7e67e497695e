"""Lesson 7, how a service chooses and remembers."""

from __future__ import annotations

from math import comb

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning

from overlaynet.lessons.catalogue import find

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

PORTS = 2000
CALL_FROM_EACH_PORT = f"""
import socket, sys
for server in sys.argv[1:]:
    for _ in range({PORTS}):
        socket.create_connection((server, 80)).close()
"""


@pytest.fixture(scope="module")
def learner():
    with learning("balancing") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property)


def test_connection_is_known_again_where_conntrack_gives_it_another_port(learner: Learner):
    """The lab was reset by the test before. From each port of red there was a call to each server, and node-1
    remembers it for two minutes."""
    learner.runs(learner.solution)
    servers = [one["ips"][0] for one in learner.asks("get", "containers")["items"] if one["name"] != "red"]
    learner.runs(f"""
        overlaynet exec red -- sysctl -q 'net.ipv4.ip_local_port_range=40001 {40_000 + PORTS}'
        overlaynet exec red -- python3 -c '{CALL_FROM_EACH_PORT}' {" ".join(servers)}
        overlaynet exec red -- sysctl -q net.ipv4.tcp_tw_reuse=1""")
    assert learner.checks(code=0)["verdict"] == "proved"
    learner.types("lab", "reset", "balancing")


def test_last_rule_that_takes_the_rest_is_not_fair_yet(learner: Learner):
    """The lab was reset by the test before. Shares are 3/9, 2/9 and 4/9 now; all calls are answered."""
    on, _, third, *_ = (line for line in learner.solution.splitlines() if line.startswith("on"))
    learner.runs(f"{on}\n{third}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "a fair choice is outside of these bounds once in 1000000 checks" in claims[1]["evidence"]


def test_fair_choice_alone_does_not_remember(learner: Learner):
    on, second, *_ = (line for line in learner.solution.splitlines() if line.startswith("on"))
    learner.runs(f"{on}\n{second}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "pass", "fail"]
    assert sum(map(int, claims[-1]["evidence"].replace(",", "").split()[1::2])) == 20


def test_bounds_are_wrong_once_in_a_million_times_and_no_wider_than_that():
    fair = find("balancing").lesson.check.__globals__["fair"]
    for calls, servers in ((30, 3), (200, 2), (1500, 3)):
        low, high = fair(calls, servers, 10**6)

        def outside(low: int, high: int, calls: int = calls, servers: int = servers) -> int:
            inside = sum(comb(calls, k) * (servers - 1) ** (calls - k) for k in range(low, high + 1))
            return servers * (servers**calls - inside) * 10**6

        assert outside(low, high) <= servers**calls
        assert outside(low + 1, high - 1) > servers**calls
