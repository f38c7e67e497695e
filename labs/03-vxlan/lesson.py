"""What is inside a VXLAN packet, and who answers ARP when no one floods?

The learner is node-1's agent, which is dead: it takes the device, a route, a neighbour and a forwarding entry
to reach the other host. The check then takes away the last two, one at a time, to see how far a packet gets
without each.
"""

from overlaynet.lessons import Board, Lesson, Prediction, Stage, last_seen
from overlaynet.proof import arp, icmp, vxlan

OVERHEAD = 14 + 20 + 8 + 8
"""Ethernet, IP, UDP and VXLAN headers in front of the inner frame (RFC 7348, section 5), in bytes."""
WAY = ["red:eth0", "node-1:cni0", "node-1:flannel.1", "node-1:eth0", "node-2:eth0", "blue:eth0"]


def start(stage: Stage) -> None:
    stage.break_("agent", "node-1")
    stage.run("node-1", "ip", "link", "delete", "flannel.1")


def check(stage: Stage, board: Board) -> None:
    links = stage.net.kernel("node-1").links
    with board.claim("node-1 has a VXLAN device again"):
        assert any(link.vxlan for link in links.values()), "devices of node-1: " + ", ".join(links)
    with board.claim("blue receives what red sends, and red the answer"):
        with stage.net.capture(WAY, dead=True) as packets:
            ping = stage.net.send("red", "blue")
        sent = packets.of(ping).at("red:eth0").expect(icmp("echo-request"))[0]
        came = packets.of(ping).at("blue:eth0").expect(icmp("echo-request"))[0]
        packets.of(ping).at("red:eth0").expect(icmp("echo-reply"))
    with board.claim("between the hosts it is inside VXLAN 1, byte for byte but for TTL and MAC addresses"):
        tunnel = packets.at("node-1:eth0").expect(vxlan(1, src="node-1", dst="node-2", carrying=sent))[0]
        packets.at("node-2:eth0").expect(vxlan(1, carrying=sent))
    board.measured(
        "ttl",
        theory=64 - 2,
        captured=came.innermost.ttl,
        because="each of the two hosts routes it, and a router takes one",
    )
    board.measured(
        "overhead",
        theory=OVERHEAD,
        captured=tunnel.length - sent.length,
        because="Ethernet 14 + IP 20 + UDP 8 + VXLAN 8 come in front of it",
    )
    with board.claim("nobody asks for a container's or a VTEP's MAC on the underlay"):
        packets.at("node-1:eth0", "node-2:eth0").never("arp and net 10.244.0.0/16")
        packets.at("node-1:flannel.1").never(arp())
    board.measured(
        "no-neighbour",
        theory="node-1:cni0",
        captured=_last_seen(stage, "neigh"),
        because="without the VTEP's MAC node-1 cannot write the inner Ethernet header",
    )
    board.measured(
        "no-fdb",
        theory="node-1:flannel.1",
        captured=_last_seen(stage, "fdb"),
        because="the inner frame is ready, but no underlay address is known to send it to",
    )


def _last_seen(stage: Stage, kind: str) -> str:
    """The last point that red's packet passes while node-1's entry of this kind for node-2 is away."""
    with stage.broken(kind, "node-1", "node-2"), stage.net.capture(WAY) as packets:
        stage.net.send("red", "blue", wait_s=0.3)
    return last_seen(packets, WAY, icmp("echo-request"))


LESSON = Lesson(
    question="What is inside a VXLAN packet, and who answers ARP when no one floods?",
    predictions=(
        Prediction("ttl", "red sends with TTL 64. With which TTL does blue receive it?"),
        Prediction("overhead", "How many bytes longer is the packet on the underlay than in red?"),
        Prediction("no-neighbour", "At which interface is it seen last, without the neighbour?", "point"),
        Prediction("no-fdb", "At which interface is it seen last, without the forwarding entry?", "point"),
    ),
    hints=(
        "node-2 has all that node-1 lacks, the other way round: look there with `ip -d link show flannel.1`, "
        "`ip route`, `ip neigh show dev flannel.1` and `bridge fdb show dev flannel.1`.",
        "Four things, in this order: the device (VNI 1, port 8472, its own MAC, nolearning) with the address "
        "10.244.1.0/32, a route to 10.244.2.0/24 via 10.244.2.0, and for that gateway a permanent neighbour "
        "and a forwarding entry. Which MAC node-1 is to have node-2 knows: its own neighbour entry says so.",
        "ip link add flannel.1 address 02:0a:f4:01:00:00 type vxlan id 1 local 192.168.50.11 dev eth0 "
        "dstport 8472 nolearning; ip address add 10.244.1.0/32 dev flannel.1; ip link set flannel.1 up; "
        "ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink. The neighbour is "
        "`ip neigh add …`, the forwarding entry `bridge fdb append … dst 192.168.50.12`, both with the MAC "
        "of node-2's flannel.1.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=70,
    disk_mb=130,
)
