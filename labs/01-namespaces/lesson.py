"""How do two namespaces on one host talk?

The learner makes two cables and plugs both into a bridge. The check plugs in a third one, of its own, to see
what the bridge sends there as well; and then has the bridge forget where blue is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof import Packets, arp, icmp
from overlaynet.state import KernelState

NODE = "node-1"
PAIR = ("red", "blue")
THIRD, THIRD_END = "third", "third-end"
WHO = ("nobody", "blue", "third", "both")


def start(stage: Stage) -> None:
    """Pull both cables and take the bridge away; nobody is there to put them back."""
    stage.break_("agent", NODE)
    for name in PAIR:
        stage.run(name, "ip", "link", "delete", "eth0")
    stage.run(NODE, "ip", "link", "delete", "cni0")


def check(stage: Stage, board: Board) -> None:
    host = stage.net.kernel(NODE)
    with board.claim("red and blue have a cable each, whose other end is on node-1"):
        ends = [_other_end(stage, name, host) for name in PAIR]
    with board.claim("both ends on node-1 are plugged into the same bridge"):
        bridge = _bridge(host, ends)
    cable = {name: f"{NODE}:{end}" for name, end in zip(PAIR, ends, strict=True)}
    with board.claim("the bridge and both ends of both cables are up"):
        places = {NODE: [bridge, *ends], **{name: ["eth0"] for name in PAIR}}
        down = [f"{place}:{name}" for place, names in places.items() for name in _down(stage, place, names)]
        assert not down, f"down: {', '.join(down)}"
    ear, eth0 = f"{NODE}:{THIRD_END}", {name: f"{name}:eth0" for name in PAIR}
    with board.claim("blue receives what red sends, and red the answer"), _third_cable(stage, bridge):
        with stage.net.capture([*eth0.values(), *cable.values(), ear, f"{NODE}:eth0"]) as packets:
            stage.run("red", "ip", "neigh", "flush", "dev", "eth0")  # it has to ask for blue's MAC
            sent = stage.net.send("red", "blue")
        packets.at(eth0["blue"]).expect(icmp("echo-request", src="red"))
        packets.at(eth0["red"]).expect(icmp("echo-reply", src="blue"))
        forgotten = _after_it_forgot(stage, bridge, [eth0["blue"], ear])
    with board.claim("it is the same packet at both ends of both cables: no router is in between"):
        way = [eth0["red"], cable["red"], cable["blue"], eth0["blue"]]
        request = packets.of(sent).path(way, icmp("echo-request", src="red"))
        for field in ("src", "dst", "src_mac", "dst_mac", "ttl"):
            request.keeps(field)
    board.measured(
        "ttl",
        theory=64,
        captured=request.at(eth0["blue"]).outer.ttl,
        because="a bridge looks at the Ethernet header alone; only a router takes one",
    )
    board.measured(
        "to-mac",
        theory="blue",
        captured=_owner(stage, bridge, str(request[0].outer.dst_mac)),
        because="they are on one network, so red asks for blue's own MAC; the bridge changes nothing",
    )
    with board.claim("the bridge has learned both MACs, each behind its own cable"):
        learned = _learned(stage, bridge)
        for name, end in zip(PAIR, ends, strict=True):
            mac = str(stage.net.mac(eth0[name]))
            assert learned.get(mac) == end, f"{mac} of {name} is behind {learned.get(mac)}, not {end}"
    with board.claim("nothing of it is on node-1's eth0"):
        packets.at(f"{NODE}:eth0").never(icmp() | arp(src="red") | arp(src="blue"))
    with board.claim("a third cable in the bridge gets red's question for blue's MAC, and not the ping"):
        packets.at(ear).expect(arp(src="red", dst="blue"))
        packets.at(ear).never(icmp("echo-request"))
    board.measured(
        "forgotten",
        theory="both",
        captured=_who_gets_it(forgotten, eth0["blue"], ear),
        because="a frame for a MAC that the bridge does not know goes out of every port but the one it came by",
    )


@contextmanager
def _third_cable(stage: Stage, bridge: str) -> Iterator[None]:
    """One more port of the bridge, for the length of the block. Nobody is at its other end."""
    port = ["up", "master", bridge, "type", "veth", "peer", "name", THIRD_END]
    stage.run(NODE, "ip", "link", "add", THIRD, *port)
    try:
        stage.run(NODE, "ip", "link", "set", THIRD_END, "up")
        stage.until(lambda: _forwards(stage, THIRD), f"the bridge takes {THIRD} for one of its ports")
        yield
    finally:
        stage.run(NODE, "ip", "link", "delete", THIRD)


def _forwards(stage: Stage, port: str) -> bool:
    """Whether a bridge uses this port. It hears of the cable's other end a moment after that is up."""
    return "state forwarding" in stage.run(NODE, "bridge", "link", "show", "dev", port)


def _other_end(stage: Stage, name: str, host: KernelState) -> str:
    """The interface of node-1 that a container's eth0 is connected with."""
    links = stage.net.kernel(name).links
    assert "eth0" in links, f"interfaces of {name}: {', '.join(links)}; of {NODE}: {', '.join(host.links)}"
    near = links["eth0"]
    assert near.type == "veth", f"eth0 of {name} is of type {near.type or 'none'}, which is no cable"
    ends = [link.name for link in host.links.values() if (link.ifindex, link.peer) == (near.peer, near.ifindex)]
    assert ends, f"the other end of {name}'s eth0 is not on {NODE}, which has {', '.join(host.links)}"
    return ends[0]


def _bridge(host: KernelState, ends: list[str]) -> str:
    """The bridge that all these are ports of."""
    masters = {end: host.links[end].master for end in ends}
    names = set(masters.values())
    said = "; ".join(f"{end}: {master or 'in no bridge'}" for end, master in masters.items())
    assert len(names) == 1, said
    name = names.pop()
    assert name is not None, said
    assert host.links[name].type == "bridge", f"{name} is of type {host.links[name].type}"
    return name


def _down(stage: Stage, place: str, names: list[str]) -> list[str]:
    """Those of its interfaces that are down."""
    links = stage.net.kernel(place).links
    return [name for name in names if not links[name].up]


def _owner(stage: Stage, bridge: str, mac: str) -> str:
    """Whose MAC this is."""
    owners = {str(stage.net.mac(f"{name}:eth0")): name for name in PAIR}
    owners[str(stage.net.mac(f"{NODE}:{bridge}"))] = "bridge"
    owners[str(stage.net.mac(f"{NODE}:eth0"))] = NODE
    return owners.get(mac, mac)


def _learned(stage: Stage, bridge: str) -> dict[str, str]:
    """The port of each MAC that the bridge knows."""
    entries = json.loads(stage.run(NODE, "bridge", "-j", "fdb", "show", "br", bridge))
    return {entry["mac"]: entry["ifname"] for entry in entries if "master" in entry}


def _after_it_forgot(stage: Stage, bridge: str, points: list[str]) -> Packets:
    """One more ping, after the bridge has forgotten what it learned, also from the capture's own frames. blue
    does not know red then: five seconds after an answer it asks on its own whether red still has that MAC."""
    with stage.net.capture(points) as packets:
        stage.run("blue", "ip", "neigh", "flush", "dev", "eth0")
        stage.run(NODE, "ip", "link", "set", bridge, "type", "bridge", "fdb_flush")
        stage.net.send("red", "blue")
    return packets


def _who_gets_it(packets: Packets, blue: str, ear: str) -> str:
    gets = [bool(packets.at(point).where(icmp("echo-request"))) for point in (blue, ear)]
    return {(False, False): "nobody", (True, False): "blue", (False, True): "third", (True, True): "both"}[
        *gets
    ]


LESSON = Lesson(
    question="How do two namespaces on one host talk?",
    predictions=(
        Prediction("ttl", "red sends with TTL 64. With which TTL does blue receive it?"),
        Prediction(
            "to-mac",
            "Whose MAC is the destination when the frame leaves red?",
            "word",
            ("blue", "bridge", "node-1"),
        ),
        Prediction(
            "forgotten",
            "A third cable is in the bridge, which forgets blue's MAC. Who gets red's next frame for it?",
            "word",
            WHO,
        ),
    ),
    hints=(
        "A cable between two namespaces is a pair of interfaces of type veth: what goes into one end comes out "
        "of the other. Make a pair on node-1 and put one end into red; the same for blue. A bridge on node-1 "
        "is the switch that the other two ends are plugged into. Look at `ip -br link` and `ip -br address` "
        "in all three after each step.",
        "Everything on node-1 begins down: the bridge, and both ends there; in red and blue eth0 does. A new "
        "interface has no address either: red gets 10.244.1.2/24, blue 10.244.1.3/24. The network namespace of "
        "red is called ovl-namespaces-red in ip-link(8)'s `netns`.",
        "On node-1: `ip link add br0 up type bridge`, then `ip link add to-red up master br0 type veth peer "
        "name eth0 netns ovl-namespaces-red`. In red: `ip address add 10.244.1.2/24 dev eth0`, then `ip link "
        "set eth0 up`. For blue it is the same with its own names and 10.244.1.3.",
    ),
    start=start,
    check=check,
    minutes=15,
    memory_mb=20,
    disk_mb=130,
)
