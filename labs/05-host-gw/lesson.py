"""What if hosts share a subnet?

Two hosts do, the third is behind the underlay's router, which knows no container. The learner finds the backend
that puts nothing in a tunnel that need not be in one. The check then leads the third host's containers past the
tunnel as well, to see where the packet ends.
"""

from __future__ import annotations

from overlaynet.lessons import Board, Lesson, Prediction, Stage, last_seen
from overlaynet.proof import Packet, arp, icmp, vxlan

ROUTER = "192.168.50.1"
FAR = "192.168.50.13"
WAY = ["red:eth0", "node-1:cni0", "node-1:flannel.1", "node-1:eth0", "node-3:eth0", "green:eth0"]
OWNERS = ("blue", "green", "node-2", "node-3", "router")


def start(stage: Stage) -> None:
    """Unplug node-3 from the underlay's bridge, and let the router lead to it: no other host is on its wire."""
    stage.run("node-3", "ip", "route", "add", ROUTER, "dev", "eth0")
    stage.run("node-3", "ip", "route", "del", "192.168.50.0/24", "dev", "eth0")
    stage.run("underlay", "ip", "link", "set", "node-3", "nomaster")
    stage.run("underlay", "ip", "route", "add", FAR, "dev", "node-3")
    for place in ("node-1", "node-2", "etcd"):
        stage.run(place, "ip", "route", "add", FAR, "via", ROUTER)
    for place in ("node-1", "node-2", "node-3", "etcd", "underlay"):
        stage.run(place, "ip", "neigh", "flush", "to", "192.168.50.0/24")
    for host in ("node-1", "node-2", "node-3"):
        stage.lab.agent(host).post("/v1/repair", {})  # has it see at once who is on its wire


def check(stage: Stage, board: Board) -> None:
    with board.claim("blue gets what red sends, and red the answer"):
        with stage.net.capture(["red:eth0", "node-1:eth0", "node-2:eth0", "blue:eth0"]) as everything:
            ping = stage.net.send("red", "blue")
        packets = everything.of(ping)
        sent = packets.at("red:eth0").expect(icmp("echo-request"))[0]
        packets.at("blue:eth0").expect(icmp("echo-request"))
        packets.at("red:eth0").expect(icmp("echo-reply"))
    with board.claim("node-1 and node-2 share a network: neither puts it in a tunnel"):
        packets.at("node-1:eth0", "node-2:eth0").never("vxlan")
        near = packets.at("node-1:eth0").expect(icmp("echo-request"))[0]
    with board.claim("green, behind the router, gets what red sends, and red the answer"):
        with stage.net.capture(["red:eth0", "node-1:cni0", "node-1:eth0", "green:eth0"]) as everything:
            ping = stage.net.send("red", "green")
        packets = everything.of(ping)
        packets.path(["red:eth0", "green:eth0"], icmp("echo-request"))
        packets.at("red:eth0").expect(icmp("echo-reply"))
    with board.claim("that is in a tunnel: the router sees the hosts' addresses alone"):
        far = packets.at("node-1:eth0").expect(vxlan(src="node-1", dst="node-3"))[0]
        packets.at("node-1:eth0").never("net 10.244.0.0/16 and not tunnelled")
    board.measured(
        "longer",
        theory=0,
        captured=near.length - sent.length,
        because="a route puts nothing in front of a packet, it only says to whom to hand it",
    )
    board.measured(
        "to-blue",
        theory="node-2",
        captured=_owner(stage, near),
        because="a route's next hop only chooses whose MAC it gets; blue's own is never seen outside of node-2",
    )
    board.measured(
        "to-green",
        theory="router",
        captured=_owner(stage, far),
        because="node-3 is on another wire: its address is in the IP header, the MAC is that of the way there",
    )
    with board.claim("past the tunnel, node-1 asks on its own wire for node-3's MAC, and nobody has it"):
        seen = _past_the_tunnel(stage)
    board.measured(
        "past-tunnel",
        theory="node-1:cni0",
        captured=seen,
        because="a next hop must be a neighbour; node-1 asks for its MAC and holds the packet",
    )


def _owner(stage: Stage, packet: Packet) -> str:
    """Whose MAC address a packet on node-1's wire is for."""
    links = {"blue": "blue", "green": "green", "node-2": "node-2", "node-3": "node-3", "router": "underlay"}
    device = {"router": "br0"}
    for owner, place in links.items():
        said = stage.run(place, "ip", "-br", "link", "show", "dev", device.get(owner, "eth0"))
        if str(packet.outer.dst_mac) in said:
            return owner
    raise AssertionError(f"nobody has the MAC address {packet.outer.dst_mac}")


def _past_the_tunnel(stage: Stage) -> str:
    """The last point that red's packet passes when node-1 sends it to green as host-gw would."""
    route = ["10.244.3.0/24", "via", FAR, "dev", "eth0", "metric", "1"]
    with stage.net.capture(WAY, dead=True) as packets:
        stage.run("node-1", "ip", "neigh", "del", FAR, "dev", "eth0", fails=True)  # it may have asked before
        stage.run("node-1", "ip", "route", "add", *route)
        try:
            ping = stage.net.send("red", "green", wait_s=0.3)
        finally:
            stage.run("node-1", "ip", "route", "del", *route)
    packets.at("node-1:eth0").expect(arp(dst=FAR))
    packets.of(ping).at("node-1:eth0", "green:eth0").never(icmp("echo-request"))
    return last_seen(packets.of(ping), WAY, icmp("echo-request"))


LESSON = Lesson(
    question="What if hosts share a subnet?",
    predictions=(
        Prediction(
            "longer", "Past the tunnel: how many bytes longer is the packet on the underlay than in red?"
        ),
        Prediction("to-blue", "Whose MAC is its destination there, on its way to blue?", "word", OWNERS),
        Prediction("to-green", "And whose, on its way to green?", "word", OWNERS),
        Prediction("past-tunnel", "Past the tunnel to green: at which interface is it seen last?", "point"),
    ),
    hints=(
        "Look at `ip route` on node-1 and on node-3 after each change of the backend. A route by host-gw names "
        "a host as next hop, and a next hop has to be on the same wire. Which pairs of hosts are?",
        "No backend fits all three pairs. flannel's vxlan can decide for each peer: by a route where the peer "
        "is on the same wire, by the tunnel where it is not. Its option is in docs/flannel.md; the "
        "configuration that the lab began with has it, off.",
        'Set the type back to "vxlan", and "DirectRouting" beside it to true, by `overlaynet network set`; '
        "then `overlaynet network apply`.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=140,
    disk_mb=130,
)
