"""Why does a container need a gateway, and NAT to leave?

The learner lets red out step by step: a default route, forwarding, masquerade. The check then takes away the
last two, one at a time, to see how far a packet gets without each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overlaynet.lessons import Board, Lesson, Prediction, Stage, last_seen
from overlaynet.proof import Packets, icmp

NODE = "node-1"
WAY = ["red:eth0", "node-1:cni0", "node-1:eth0", "outside:eth0"]
BACK = ["outside:eth0", "node-1:eth0", "node-1:cni0", "red:eth0"]
NAT = ("iptables", "-w", "-t", "nat")
SILENCE_S = 0.3
"""How long an answer is waited for that does not come."""


def start(stage: Stage) -> None:
    """What the agent has done for containers that leave is undone, and it is not there to do it again."""
    stage.break_("agent", NODE)
    for name in ("red", "blue"):
        stage.run(name, "ip", "route", "delete", "default")
    stage.run(NODE, "sysctl", "-q", "net.ipv4.ip_forward=0")
    stage.run(NODE, *NAT, "-F", "POSTROUTING")
    stage.run(NODE, *NAT, "-F", "OVL-POSTROUTING")
    stage.run(NODE, *NAT, "-X", "OVL-POSTROUTING")


def check(stage: Stage, board: Board) -> None:
    node, red = str(stage.net.address_of(NODE)), str(stage.net.address_of("red"))
    packets = _ping(stage)
    with board.claim("red knows a gateway: a packet for outside leaves it"):
        packets.at("red:eth0").expect(icmp("echo-request", dst="outside"))
    with board.claim("node-1 forwards it: it leaves by eth0, with a TTL of one less"):
        here = packets.path(WAY[:3], icmp("echo-request", dst="outside"))
        here.falls("ttl", by=1, between=("node-1:cni0", "node-1:eth0"))
    with board.claim("outside sees node-1 as the sender, and nothing of red"):
        request = packets.path(WAY, icmp("echo-request", dst="outside"))
        request.turns("src", red, node, between=("node-1:cni0", "node-1:eth0"))
        packets.at("node-1:eth0", "outside:eth0").never("host red")
    with board.claim("the answer is for node-1, which gives it back to red"):
        answer = packets.path(BACK, icmp("echo-reply", src="outside"))
        answer.turns("dst", node, red, between=("node-1:eth0", "node-1:cni0"))
    with board.claim("node-1's conntrack remembers who it was"):
        entries = [one.text for one in stage.net.trace("red", "outside").connections if one.place == NODE]
        assert any(f"src={red} " in entry and f"dst={node} " in entry for entry in entries), entries
    with board.claim("blue, a neighbour of red, sees red itself"):
        with stage.net.capture(["blue:eth0"]) as near:
            sent = stage.net.send("red", "blue")
        near.of(sent).expect(icmp("echo-request", src="red"))
    board.measured(
        "ttl",
        theory=64 - 2,
        captured=request.at("outside:eth0").outer.ttl,
        because="node-1 is a router now and takes one, and the underlay's router takes another",
    )
    board.measured(
        "source",
        theory=node,
        captured=request.at("outside:eth0").outer.src,
        because="masquerade puts the address of the interface by which a packet leaves in place of its source",
    )
    with stage.broken("forwarding", NODE):
        stays = _ping(stage, SILENCE_S)
    board.measured(
        "no-forwarding",
        theory="node-1:cni0",
        captured=_last(stays),
        because="red hands it to its gateway, and a host that is no router drops what is not for itself",
    )
    with _no_masquerade(stage, red):
        leaves = _ping(stage, SILENCE_S)
    with board.claim("without masquerade nothing of the answer comes to node-1"):
        leaves.at("outside:eth0").outgoing.expect(icmp("echo-reply", dst=red))
        leaves.at("node-1:eth0").never(icmp("echo-reply"))
    board.measured(
        "no-masquerade",
        theory="outside:eth0",
        captured=_last(leaves),
        because="routers look at the destination alone; it is the answer, to red's address, that is lost",
    )


def _ping(stage: Stage, wait_s: float = 1.0) -> Packets:
    """What is seen of one ping from red to outside."""
    with stage.net.capture(WAY) as packets:
        sent = stage.net.send("red", "outside", wait_s=wait_s)
    return packets.of(sent)


def _last(packets: Packets) -> str:
    """The last point of its way that red's packet is seen at."""
    return last_seen(packets, WAY, icmp("echo-request"))


@contextmanager
def _no_masquerade(stage: Stage, source: str) -> Iterator[None]:
    """For the length of the block, whatever rules there are."""
    rule = ["POSTROUTING", "-s", source, "-j", "ACCEPT"]
    stage.run(NODE, *NAT, "-I", *rule)
    try:
        yield
    finally:
        stage.run(NODE, *NAT, "-D", *rule)


LESSON = Lesson(
    question="Why does a container need a gateway, and NAT to leave?",
    predictions=(
        Prediction("ttl", "red sends with TTL 64. With which TTL does outside receive it?"),
        Prediction("source", "Which source address does outside see?", "address"),
        Prediction(
            "no-forwarding", "node-1 does not forward: at which interface is red's packet seen last?", "point"
        ),
        Prediction("no-masquerade", "It forwards and does not masquerade: where is it seen last now?", "point"),
    ),
    hints=(
        "Three things are missing, in three tables: `ip route` in red, `sysctl net.ipv4.ip_forward` on node-1, "
        "and `iptables -t nat -S POSTROUTING` there. `overlaynet explain red outside` names the first of them.",
        "The gateway has to be on red's own network: it is node-1's address on the bridge cni0. The rule "
        "belongs at the end of the way, in POSTROUTING of the table nat, and is called MASQUERADE. It must "
        "leave alone what red sends to blue: that passes the same chain, as bridges show their frames to "
        "iptables here (net.bridge.bridge-nf-call-iptables).",
        "In red: `ip route add default via 10.244.1.1`. On node-1: `sysctl -w net.ipv4.ip_forward=1`, then "
        "`iptables -t nat -A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j …` with the target that the "
        "second hint names.",
    ),
    start=start,
    check=check,
    minutes=15,
    memory_mb=20,
    disk_mb=130,
)
