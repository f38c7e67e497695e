"""Lesson 1, two namespaces on one host."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

DIRECT = """
overlaynet exec red -- sh -ec '
    ip link add eth0 up type veth peer name eth0 netns ovl-namespaces-blue
    ip address add 10.244.1.2/24 dev eth0'
overlaynet exec blue -- sh -ec '
    ip link set eth0 up
    ip address add 10.244.1.3/24 dev eth0
    ping -c 1 10.244.1.2'
"""
"""It works, and is a cable between the two: no third could ever be reached."""

ROUTED = """
overlaynet exec node-1 -- sh -ec '
    ip link add to-red up type veth peer name eth0 netns ovl-namespaces-red
    ip link add to-blue up type veth peer name eth0 netns ovl-namespaces-blue
    ip route add 10.244.1.2 dev to-red
    ip route add 10.244.1.3 dev to-blue
    sysctl -q net.ipv4.conf.to-red.proxy_arp=1 net.ipv4.conf.to-blue.proxy_arp=1'
overlaynet exec red -- sh -ec 'ip link set eth0 up; ip address add 10.244.1.2/24 dev eth0'
overlaynet exec blue -- sh -ec '
    ip link set eth0 up
    ip address add 10.244.1.3/24 dev eth0
    ping -c 1 10.244.1.2'
"""
"""It works as well: node-1 is a router, which answers ARP for both."""


@pytest.fixture(scope="module")
def learner():
    with learning("namespaces") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property)


def test_cable_from_red_to_blue_is_no_bridge(learner: Learner):
    """The lab was reset by the test before."""
    learner.runs(DIRECT)
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["fail"]
    assert "the other end of red's eth0 is not on node-1" in claims[0]["evidence"]
    learner.runs("overlaynet exec red -- ip link delete eth0")


def test_router_is_no_bridge(learner: Learner):
    learner.runs(ROUTED)
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert claims[1]["evidence"] == "to-red: in no bridge; to-blue: in no bridge"
    learner.runs("overlaynet exec node-1 -- sh -ec 'ip link delete to-red; ip link delete to-blue'")


def test_bridge_that_is_down_is_said_to_be(learner: Learner):
    learner.runs(learner.solution + "on ip link set br0 down\n")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "pass", "fail"]
    assert claims[2]["evidence"] == "down: node-1:br0"
