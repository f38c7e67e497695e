"""Lesson 4, an MTU too large and a message dropped."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

CLAMP = "FORWARD -o flannel.1 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
NEEDED = "OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP"


@pytest.fixture(scope="module")
def learner():
    with learning("mtu") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property)


def test_smaller_mss_in_reds_syn_is_a_solution_and_in_blues_answer_is_none(learner: Learner):
    """The lab was reset by the test before. The same rule on both hosts, one at a time."""
    learner.runs(f"overlaynet exec node-2 -- iptables -t mangle -A {CLAMP}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "0 of 20000 bytes: timed out" in claims[1]["evidence"]
    assert "node-2:cni0        1500 bytes" in claims[1]["evidence"]
    learner.runs(f"""
        overlaynet exec node-2 -- iptables -t mangle -D {CLAMP}
        overlaynet exec node-1 -- iptables -t mangle -A {CLAMP}""")
    assert learner.checks(code=0)["verdict"] == "proved"
    learner.runs(f"overlaynet exec node-1 -- iptables -t mangle -D {CLAMP}")


def test_without_the_firewall_it_works_until_the_next_firewall(learner: Learner):
    learner.runs(f"""
        overlaynet exec node-2 -- iptables -D {NEEDED}
        overlaynet exec red -- python3 labs/04-mtu/fetch.py blue 20000""")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert claims[1]["text"].endswith("also where nobody may say what fits")
    assert "blue:eth0          1500 bytes" in claims[1]["evidence"]


def test_smaller_than_needed_is_not_what_the_tunnel_carries(learner: Learner):
    learner.runs("overlaynet exec blue -- ip link set eth0 mtu 1400")
    claims = learner.checks(code=1)["claims"]
    assert claims[-1]["text"] == "mss is captured as theory has it"
    assert "captured: 1360; theory: 1410" in claims[-1]["evidence"]
