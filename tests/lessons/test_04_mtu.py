"""Lesson 4, an MTU too large and a message dropped."""

from __future__ import annotations

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import requires_lab
from helpers.lessons import Learner, goes_through, learning, pinging

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

CLAMP = "FORWARD -o flannel.1 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
NEEDED = "OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP"

SENDS_AGAIN = """
import socket, struct, sys, time
segment = struct.pack("!HHIIBBHHH", 80, 9, 1, 1, 5 << 4, 0x10, 64000, 0, 0) + bytes(1460)
sending = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
sending.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE: whatever it is told
while True:
    sending.sendto(segment, (sys.argv[1], 0))
    time.sleep(0.01)
"""
"""Segments of an answer to red's port 9, as long as blue's interface has them."""


@pytest.fixture(scope="module")
def learner():
    with learning("mtu") as learner:
        yield learner


def test_lesson_is_proved_by_its_solution_and_by_nothing_before(learner: Learner, record_property):
    goes_through(learner, record_property, pinging("blue"))


def test_smaller_mss_in_reds_syn_is_a_solution_and_in_blues_answer_is_none(learner: Learner):
    """The lab was reset by the test before. The same rule on both hosts, one at a time."""
    learner.runs(f"overlaynet exec node-2 -- iptables -w -t mangle -A {CLAMP}")
    claims = learner.checks(code=1)["claims"]
    assert [claim["verdict"] for claim in claims] == ["pass", "fail"]
    assert "0 of 20000 bytes: timed out" in claims[1]["evidence"]
    assert "node-2:cni0        1500 bytes" in claims[1]["evidence"]
    learner.runs(f"""
        overlaynet exec node-2 -- iptables -w -t mangle -D {CLAMP}
        overlaynet exec node-1 -- iptables -w -t mangle -A {CLAMP}""")
    assert learner.checks(code=0)["verdict"] == "proved"
    learner.runs(f"overlaynet exec node-1 -- iptables -w -t mangle -D {CLAMP}")


def test_what_hangs_since_before_is_not_taken_for_the_answer(learner: Learner):
    """For minutes blue sends again what it once sent too long. Here it does so all the time, and is told of
    each, for which node-2 may send more than one ICMP error a second."""
    (red,) = learner.asks("get", "containers", "red")["items"]
    learner.runs(f"""
        overlaynet exec node-2 -- sysctl -q net.ipv4.icmp_ratelimit=0
        overlaynet exec node-1 -- iptables -w -t mangle -A {CLAMP}
        overlaynet exec blue -- python3 -c '{SENDS_AGAIN}' {red["ips"][0]} &
        trap "kill $!" EXIT
        overlaynet lab check mtu {" ".join(learner.predictions)}
        overlaynet exec node-1 -- iptables -w -t mangle -D {CLAMP}""")


def test_without_the_firewall_it_works_until_the_next_firewall(learner: Learner):
    learner.runs(f"""
        overlaynet exec node-2 -- iptables -w -D {NEEDED}
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
