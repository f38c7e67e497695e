"""Why do small requests work and big ones hang?

Two mistakes that do little harm alone: containers whose MTU is that of the underlay, and hosts that send no
ICMP errors. The learner heals what hangs. The check then has blue send one packet that is too long, to see who
tells it, and what becomes of the packet if nobody may.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from overlaynet.lessons import Board, Lesson, Prediction, Stage, last_seen
from overlaynet.proof import Packet, Packets, icmp, tcp, vxlan
from overlaynet.state import LinkInfo

SMALL, BIG = 100, 20_000
UNDERLAY_MTU, OVERHEAD = 1500, 14 + 20 + 8 + 8
TUNNEL_MTU = UNDERLAY_MTU - OVERHEAD
IP_AND_TCP, IP_AND_ICMP = 20 + 20, 20 + 8
"""Headers without options, in bytes."""
MANY = "65535"
"""Segments that a new interface takes at once (GSO_MAX_SEGS)."""
HOMES = {"red": "node-1", "blue": "node-2"}
WAY = ["blue:eth0", "node-2:cni0", "node-2:flannel.1", "node-2:eth0", "red:eth0"]
NEEDED = ["OUTPUT", "-p", "icmp", "--icmp-type", "fragmentation-needed", "-j"]


def start(stage: Stage) -> None:
    """No fault that `heal` knows of: both are what people set on purpose."""
    for name, host in HOMES.items():
        for place, link in _cable(stage, name):
            stage.run(place, "ip", "link", "set", link.name, "mtu", str(UNDERLAY_MTU))
        stage.run(host, "iptables", "-w", "-A", *NEEDED, "DROP")


def check(stage: Stage, board: Board) -> None:
    with _segments_as_on_a_wire(stage), _told_nothing(stage):
        small, said_small = _fetched(stage, SMALL)
        with board.claim(f"red gets an answer of {SMALL} bytes from blue"):
            assert _whole(said_small, SMALL), said_small
            small.at("node-2:flannel.1").expect(tcp(80, src="blue"))
        answer, said = _fetched(stage, BIG)
    with board.claim(f"red gets an answer of {BIG} bytes as well, also where nobody may say what fits"):
        assert _whole(said, BIG), "\n".join([said, *_longest_at_each(answer)])
    with board.claim(f"blue sends no packet that the tunnel cannot carry, of more than {TUNNEL_MTU} bytes"):
        longest = _longest(answer.at("blue:eth0").where(tcp(80, src="blue")))
        assert _ip_length(longest) <= TUNNEL_MTU, "\n".join(_longest_at_each(answer))
    tunnel = _longest(answer.at("node-2:eth0").where(vxlan(1, src="node-2", dst="node-1")))
    board.measured(
        "mss",
        theory=TUNNEL_MTU - IP_AND_TCP,
        captured=min(_mss(answer, "blue:eth0", "S"), _mss(answer, "blue:eth0", "SA")),
        because=f"a segment has an IP and a TCP header in front, and the tunnel carries {TUNNEL_MTU} bytes",
    )
    board.measured(
        "longest",
        theory=UNDERLAY_MTU,
        captured=tunnel.outer.length,
        because=f"the tunnel adds {OVERHEAD} bytes, and only then is the underlay full",
    )
    with board.claim("sent a packet that is too long, blue's host tells it so, if it may"):
        packets, long = _too_long(stage, "ACCEPT")
        message = packets.at("blue:eth0").expect(icmp("fragmentation-needed", dst="blue"))[0]
        long.at("node-2:flannel.1").never(icmp())
    board.measured(
        "told",
        theory=TUNNEL_MTU,
        captured=message.outer.icmp.mtu,
        because="it names the MTU of the device that the packet did not fit into: flannel.1",
    )
    with board.claim("with that message dropped blue hears nothing, and the packet is gone"):
        packets, long = _too_long(stage, "DROP")
        packets.at("blue:eth0").never(icmp("unreachable"))
        long.at("red:eth0").never(icmp("echo-request"))
    board.measured(
        "last",
        theory="node-2:cni0",
        captured=_last(long),
        because="node-2 finds out when it is about to give it to flannel.1, which never sees it",
    )


# --- what is asked of blue ------------------------------------------------------------------------


def _fetched(stage: Stage, size: int) -> tuple[Packets, str]:
    """Packets of one answer of so many bytes, and what the reader says of it."""
    with stage.net.capture(WAY, "tcp and host red and host blue") as packets:
        reader = [sys.executable, str(Path(__file__).with_name("fetch.py"))]
        said = stage.run("red", *reader, str(stage.net.address_of("blue")), str(size), fails=True)
    return _of_this_request(packets), said.strip()


def _of_this_request(packets: Packets) -> Packets:
    """Without what blue still sends again of an earlier answer, which red has given up but blue has not: for
    minutes, and as long as it was cut then."""
    asked = packets.at("red:eth0").where(tcp(80, src="red", flags="S"))
    return packets.where(tcp(asked[0].innermost.src_port)) if asked else packets[:0]


def _whole(said: str, size: int) -> bool:
    return said == f"{size} of {size} bytes"


def _too_long(stage: Stage, verdict: str) -> tuple[Packets, Packets]:
    """What is seen while blue sends red a packet as long as the underlay's MTU, which may not be cut, and
    node-2's message about that is let through or dropped; and what of it is that packet. What still hangs may
    have blue told a moment earlier, and then it is not sent: until all points listen nothing is let through."""
    size = UNDERLAY_MTU - IP_AND_ICMP
    with (
        _first_rule(stage, "DROP"),
        _cable_of_blue_too_long(stage),
        stage.net.capture(WAY) as packets,
        _first_rule(stage, verdict),
    ):
        wait_s = 1.0 if verdict == "ACCEPT" else 0.3
        sent = stage.net.send("blue", "red", "icmp", size=size, df=True, wait_s=wait_s)
    return packets, packets.of(sent)


# --- for the length of a block --------------------------------------------------------------------


@contextmanager
def _segments_as_on_a_wire(stage: Stage) -> Iterator[None]:
    """Without segmentation offload: on cables of software TCP hands over many segments as one, and only a
    network card would cut them."""
    for name in HOMES:
        stage.run(name, "ip", "link", "set", "eth0", "gso_max_segs", "1")
    try:
        yield
    finally:
        for name in HOMES:
            stage.run(name, "ip", "link", "set", "eth0", "gso_max_segs", MANY)


@contextmanager
def _told_nothing(stage: Stage) -> Iterator[None]:
    """Neither in the last ten minutes nor meanwhile: what hangs since before the firewall was opened is sent
    again now and then, and would have blue told just in time."""
    with _first_rule(stage, "DROP"):
        for name in HOMES:
            stage.run(name, "ip", "route", "flush", "cache")
        yield


@contextmanager
def _cable_of_blue_too_long(stage: Stage) -> Iterator[None]:
    """blue's cable has the underlay's MTU, and blue a route to red that knows of no other. What it is told
    about that route goes with the route."""
    route = [f"{stage.net.address_of('red')}/32", "via", _gateway(stage), "dev", "eth0"]
    with ExitStack() as undo:
        for place, link in _cable(stage, "blue"):
            stage.run(place, "ip", "link", "set", link.name, "mtu", str(UNDERLAY_MTU))
            undo.callback(stage.run, place, "ip", "link", "set", link.name, "mtu", str(link.mtu))
        stage.run("blue", "ip", "route", "prepend", *route)
        undo.callback(stage.run, "blue", "ip", "route", "delete", *route)
        yield


@contextmanager
def _first_rule(stage: Stage, verdict: str) -> Iterator[None]:
    """In front of whatever rules there are."""
    stage.run("node-2", "iptables", "-w", "-I", *NEEDED, verdict)
    try:
        yield
    finally:
        stage.run("node-2", "iptables", "-w", "-D", *NEEDED, verdict)


def _gateway(stage: Stage) -> str:
    return str(next(a.interface.ip for a in stage.net.kernel("node-2").addresses if a.dev == "cni0"))


def _cable(stage: Stage, name: str) -> Iterator[tuple[str, LinkInfo]]:
    """Both ends of a container's cable, each with its place."""
    near = stage.net.kernel(name).links["eth0"]
    yield name, near
    host = HOMES[name]
    for link in stage.net.kernel(host).links.values():
        if (link.ifindex, link.peer) == (near.peer, near.ifindex):
            yield host, link


# --- looking at packets ---------------------------------------------------------------------------


def _ip_length(packet: Packet) -> int:
    return packet.innermost.length or 0


def _longest(packets: Sequence[Packet]) -> Packet:
    return max(packets, key=lambda packet: packet.length)


def _longest_at_each(answer: Packets) -> Iterator[str]:
    yield "longest IP packets of blue's answer, counted without what the tunnel puts in front:"
    for point in WAY:
        lengths = map(_ip_length, answer.at(point).where(tcp(80, src="blue")))
        yield f"  {point:<18} {max(lengths, default=0)} bytes"


def _last(packets: Packets) -> str:
    """The last point of its way that blue's packet is seen at."""
    return last_seen(packets, WAY, icmp("echo-request"))


def _mss(answer: Packets, point: str, flags: str) -> int:
    """The MSS option (RFC 9293, section 3.7.1) of a SYN or SYN-ACK: kind 2, length 4, two bytes."""
    data = answer.at(point).expect(tcp(80, flags=flags))[0].data
    options = data[14 + 20 + 20 :]
    where = options.index(b"\x02\x04")
    return int.from_bytes(options[where + 2 : where + 4], "big")


LESSON = Lesson(
    question="Why do small requests work and big ones hang?",
    predictions=(
        Prediction("mss", "All works. Which MSS (bytes of a TCP segment without headers) does blue keep to?"),
        Prediction("longest", "How many bytes has the longest IP packet of an answer on the underlay then?"),
        Prediction("told", "blue sends 1500 bytes, and is told by ICMP what fits. Which MTU is it told?"),
        Prediction("last", "The same, but that message is dropped: where is blue's packet seen last?", "point"),
    ),
    hints=(
        "Compare `ip link` in blue, and of flannel.1 on node-2: one promises what the other cannot keep. Then "
        "ask `overlaynet trace blue red --size 1472`, and look at who should have said so: "
        "`iptables -nvL OUTPUT` on node-2.",
        "The firewall is somebody else's, and other networks have such ones too: heal it so that nothing too "
        "long is sent at all. Either the containers' interfaces get the MTU of flannel.1, or a host lowers the "
        "MSS that red asks for while its SYN passes: iptables has a target for it, TCPMSS.",
        "In red and blue: `ip link set eth0 mtu …`, with flannel.1's. Or on the host that red's SYN leaves, "
        "in the table mangle, before any rule accepts it: `-A FORWARD -o flannel.1 -p tcp --tcp-flags SYN,RST "
        "SYN -j TCPMSS --clamp-mss-to-pmtu`.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=100,
    disk_mb=130,
)
