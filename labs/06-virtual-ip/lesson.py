"""How can an address with no interface answer?

The learner is the proxy of node-1: a rule of NAT for each of two services. The check calls one on another host,
to see where the address turns and how often the rule was asked, and one on the same host, whose answer finds
back only because the bridge shows its packets to iptables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof import Packets, tcp

FAR, NEAR, PORT, TARGET_PORT = "10.112.0.10", "10.112.0.20", 80, 8080
TRIES = 5
"""Until nobody else calls at the same time: a rule's counter does not tell whose packet it was."""
BRIDGE_NF = "net.bridge.bridge-nf-call-iptables"
CALL = """
import socket, sys
call = socket.socket()
call.settimeout(2)
call.bind(("", 0))
print(call.getsockname()[1], flush=True)
call.connect((sys.argv[1], 80))
call.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
while call.recv(4096):
    pass
"""
"""It says from which port it calls, before it does."""
_SERVICE_CHAINS = re.compile(r"^:(OVL-(?:SERVICES|SVC-\w+|SEP-\w+)) ", re.MULTILINE)
_DNAT = re.compile(r"^\[(\d+):\d+\] -A .* -j DNAT ", re.MULTILINE)


def start(stage: Stage) -> None:
    """Kill the proxy, and take away what it wrote for services in table nat."""
    stage.until_served("node-1", "green", "blue")
    stage.break_("agent", "node-1")
    chains = _SERVICE_CHAINS.findall(_nat(stage))
    for chain in chains:
        stage.run("node-1", "iptables", "-w", "-t", "nat", "-F", chain)
    for chain in set(chains) - {"OVL-SERVICES"}:
        stage.run("node-1", "iptables", "-w", "-t", "nat", "-X", chain)


def check(stage: Stage, board: Board) -> None:
    with board.claim(f"red calls {FAR}, and blue answers"):
        for _ in range(TRIES):
            before = _asked(stage)
            packets = _call(stage, FAR)
            asked = _asked(stage) - before
            if asked <= 1:
                break
        call = packets.follow(tcp(dport=PORT, src="red", dst=FAR, flags="S"))
        call.require("it comes to blue", "blue:eth0" in call.points)
        packets.at("blue:eth0").expect(tcp(sport=TARGET_PORT, src="blue", dst="red", flags="SA"))
    with board.claim("on node-1, and once, the destination turns from the virtual IP to blue"):
        turn = call.turns("dst", FAR, "blue")
        call.keeps("src")
        call.require(
            "it is translated on node-1", {point.partition(":")[0] for point in turn.where} == {"node-1"}
        )
    bridge_asks = _bridge_nf(stage) == "1"
    board.measured(
        "turns",
        theory="node-1:cni0" if bridge_asks else "node-1:flannel.1",
        captured=turn.where[1],
        because="br_netfilter has the bridge call PREROUTING before it hands the packet to the host"
        if bridge_asks
        else f"with {BRIDGE_NF} at 0 PREROUTING is called by the host, behind the bridge",
    )
    with board.claim("red sees answers from the virtual IP alone"):
        packets.at("red:eth0").incoming.only(tcp(sport=PORT, src=FAR, dst="red"))
        answer = packets.at("red:eth0").incoming[0]
    board.measured(
        "reply",
        theory=FAR,
        captured=answer.innermost.src,
        because="conntrack remembers the translation and undoes it in each answer, or red would not know it",
    )
    sent = len(packets.at("red:eth0").outgoing)
    board.measured(
        "counter",
        theory=len(packets.at("red:eth0").where(tcp(dport=PORT, flags="S"))),
        captured=asked,
        because=f"of red's {sent} packets only the first, which conntrack did not know, visited table nat",
    )
    with board.claim(f"red calls {NEAR}, and green answers, on red's own host"):
        packets = _call(stage, NEAR)
        call = packets.follow(tcp(dport=PORT, src="red", dst=NEAR, flags="S"))
        call.require("it comes to green", "green:eth0" in call.points)
        packets.at("green:eth0").expect(tcp(sport=TARGET_PORT, src="green", dst="red", flags="SA"))
        packets.at("red:eth0").incoming.only(tcp(sport=PORT, src=NEAR, dst="red"))
    with board.claim(f"without {BRIDGE_NF} green answers too, and red resets it"):
        with _no_bridge_nf(stage), stage.net.capture(["red:eth0", "green:eth0"]) as packets:
            sent = stage.net.send("red", "svc/near", wait_s=0.3)
        packets = packets.of(sent)
        packets.at("green:eth0").expect(tcp(sport=TARGET_PORT, flags="SA"))
        strange = packets.at("red:eth0").incoming.expect(tcp(flags="SA"))[0]
        packets.at("red:eth0").outgoing.expect(tcp(flags="R"))
    board.measured(
        "no-bridge-nf",
        theory=stage.net.address_of("green"),
        captured=strange.innermost.src,
        because="red and green are on one bridge: the answer goes straight from port to port, past conntrack",
    )


def _call(stage: Stage, address: str) -> Packets:
    """One HTTP request from red, whatever comes of it."""
    with stage.net.capture(["red:eth0", "node-1", "green:eth0", "blue:eth0"], "tcp") as packets:
        port = int(stage.run("red", sys.executable, "-c", CALL, address, fails=True))
    return packets.where(tcp(port))


def _nat(stage: Stage) -> str:
    return stage.run("node-1", "iptables-save", "-c", "-t", "nat")


def _asked(stage: Stage) -> int:
    """How many packets met a rule with DNAT on node-1 so far."""
    return sum(map(int, _DNAT.findall(_nat(stage))))


def _bridge_nf(stage: Stage) -> str:
    return stage.run("node-1", "sysctl", "-n", BRIDGE_NF).strip()


@contextmanager
def _no_bridge_nf(stage: Stage) -> Iterator[None]:
    before = _bridge_nf(stage)
    with stage.held("node-1", "sysctl", BRIDGE_NF.replace(".", "/")):
        stage.run("node-1", "sysctl", "-w", f"{BRIDGE_NF}=0")
        try:
            yield
        finally:
            stage.run("node-1", "sysctl", "-w", f"{BRIDGE_NF}={before}")


LESSON = Lesson(
    question="How can an address with no interface answer?",
    predictions=(
        Prediction(
            "turns",
            "red calls far. At which interface of node-1 is it seen first with blue's address?",
            "point",
        ),
        Prediction("reply", "From which address does red see the answer come?", "address"),
        Prediction("counter", "By how many packets does the rule's counter grow, for one such call?"),
        Prediction(
            "no-bridge-nf",
            "bridge-nf-call-iptables is 0, and red calls near: from which address is the answer?",
            "address",
        ),
    ),
    hints=(
        "The address has to be replaced before node-1 decides whereto the packet goes. iptables(8) names the "
        "chain of table nat that a packet from a container enters first, and iptables-extensions(8) the target "
        "that replaces a destination. Undoing it in answers is not your business: conntrack does that.",
        "node-2 still has its proxy: follow its rules, `overlaynet exec node-2 -- iptables -t nat -S`, from "
        "PREROUTING to the one with DNAT. What counts is what is matched on the way, and --to-destination with "
        "the server's port. Two services, so two rules.",
        "iptables -t nat -A PREROUTING -d 10.112.0.10 -p tcp --dport 80 -j DNAT --to-destination ADDRESS:8080 "
        "on node-1, with blue's address; and such a one for 10.112.0.20, with green's.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=110,
    disk_mb=130,
)
