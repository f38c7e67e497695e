"""What captured packets prove about a tunnel, without a network."""

from __future__ import annotations

from functools import partial

import pytest
from helpers import frames
from helpers.captures import NODE_1, NODE_2, WEB_1, WEB_3, captured, ping, seen

from overlaynet.proof.verify.isolation import Scene, _asks_nobody, _claimed, _stays_inside

pytestmark = pytest.mark.unit

SCENE = Scene(
    {"node-1": "web-1", "node-2": "web-3"},
    {"node-1": "node-1:eth0", "node-2": "node-2:eth0"},
    {"node-1": "node-1:flannel.1", "node-2": "node-2:flannel.1"},
    8472,
)
TUNNELLED = seen("node-1:eth0", frames.vxlan(NODE_1, NODE_2, ping(63)))
ENTERS = seen("node-1:flannel.1", ping(63))
NAKED = seen("node-1:eth0", ping(63))
ASKS = seen("node-1:flannel.1", frames.arp(WEB_1, WEB_3), kind=0x0806)
FLOODS = seen("node-1:eth0", frames.arp(NODE_1, WEB_3), kind=0x0806)
HOSTS_ASK = seen("node-1:eth0", frames.arp(NODE_1, NODE_2), kind=0x0806)


def check(claim, *packets, **tap):
    here = captured(*packets, points="node-1:eth0 node-1:flannel.1", **tap)
    return _claimed("x:node-1", "node-1", "underlay", partial(claim, SCENE, here, "node-1"))


@pytest.mark.parametrize(
    ("claim", "packets", "verdict"),
    [
        (_stays_inside, [TUNNELLED, ENTERS], "pass"),
        (_stays_inside, [TUNNELLED, NAKED], "fail"),
        (_stays_inside, [ENTERS], "inconclusive"),
        (_asks_nobody, [TUNNELLED, ENTERS], "pass"),
        (_asks_nobody, [TUNNELLED, ENTERS, HOSTS_ASK], "pass"),
        (_asks_nobody, [ENTERS, ASKS], "fail"),
        (_asks_nobody, [ENTERS, FLOODS], "fail"),
        (_asks_nobody, [TUNNELLED], "inconclusive"),
    ],
)
def test_packets_prove(claim, packets: list, verdict: str) -> None:
    found = check(claim, *packets)
    assert found.verdict == verdict
    assert found.reason == {"pass": None, "fail": "x", "inconclusive": "not_watched"}[verdict]
    assert bool(found.evidence) == (verdict != "pass")


@pytest.mark.parametrize("claim", [_stays_inside, _asks_nobody])
def test_silence_that_nobody_watched_proves_nothing(claim) -> None:
    found = check(claim, TUNNELLED, ENTERS, dropped=1)
    assert (found.verdict, found.reason) == ("inconclusive", "not_watched")
    assert "the kernel dropped 1 frames" in found.evidence


def test_evidence_shows_the_packet() -> None:
    found = check(_stays_inside, TUNNELLED, NAKED)
    assert found.note.startswith("1 packet is 'src web-1 and dst web-3 and not tunnelled' at node-1:eth0")
    assert f"{WEB_1} > {WEB_3} icmp echo request" in found.evidence
