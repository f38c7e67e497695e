"""Can a server call itself through its own service?

red is the only endpoint of its service, so its call to it comes back to red. That takes two things of its host,
which it lacks at the start: the bridge has to send a packet out of the port that it came in by, and the packet
has to look as if somebody else had sent it. The check tries all four combinations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface

from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof import Match, Packet, Packets, icmp, same, tcp

VIP, PORT = "10.112.0.10", 80
BRIDGE = "cni0"
ENDS = ("bridge", "red", "answered")
ANSWER_S, SILENCE_S = 1.0, 0.3
"""How long an answer is waited for, and one that does not come."""


def start(stage: Stage) -> None:
    """Kill the agent, and take away what it did so that red can call itself."""
    stage.until_served("node-1", "red")
    stage.break_("agent", "node-1")
    red = str(stage.net.address_of("red"))
    stage.run("node-1", "bridge", "link", "set", "dev", _port(stage), "hairpin", "off")
    for line in stage.run("node-1", "iptables", "-w", "-t", "nat", "-S").splitlines():
        if f"-s {red}/32 " in line and line.endswith("-j OVL-MARK-MASQ"):
            _, chain, *_ = line.split()
            stage.run("node-1", "iptables", "-w", "-t", "nat", "-D", chain, "1")


def check(stage: Stage, board: Board) -> None:
    with board.claim("red's call to its own service comes back to red"):
        packets, first = _call(stage)
        call = packets.follow(first)
        call.require("it comes back to red", (call[-1].point.place, call[-1].direction) == ("red", "in"))
    with board.claim("red answers it, and is answered by its service"):
        caller = call[-1].innermost
        answer = tcp(sport=PORT, src="red", dst=caller.src, dport=caller.src_port, flags="SA")
        packets.at("red:eth0").outgoing.expect(answer)
        packets.at("red:eth0").incoming.expect(_answers(first))
    board.measured(
        "source",
        theory=_bridge_address(stage),
        captured=call[-1].innermost.src,
        because=f"masquerade takes the address of the interface that it leaves by, and that is {BRIDGE}",
    )
    board.measured(
        "ttl",
        theory=64,
        captured=call[-1].innermost.ttl,
        because="its new destination is on the bridge that it came from, so it is bridged and not routed",
    )
    with board.claim("red sees blue's calls come from blue, and blue what red sends come from red"):
        with stage.net.capture(["blue:eth0", "red:eth0"], "tcp") as packets:
            sent = stage.net.send("blue", "svc/web")
        (first, *_) = packets.of(sent).at("blue:eth0").expect(tcp(flags="S"))
        packets.where(same(first)).at("red:eth0").expect(tcp(dport=PORT, src="blue"))
        with stage.net.capture("blue", "icmp") as packets:
            sent = stage.net.send("red", "blue")
        packets.of(sent).incoming.expect(icmp("echo-request", src="red"))
    ends = {}
    for hairpin in (True, False):
        for masquerade in (True, False):
            wait_s = ANSWER_S if hairpin and masquerade else SILENCE_S
            with _only(stage, hairpin=hairpin, masquerade=masquerade):
                ends[hairpin, masquerade] = _end(*_call(stage, wait_s))
    with board.claim("of the four combinations of hairpin and masquerade exactly one works"):
        told = [f"{_words(*combination)}: {end}" for combination, end in ends.items()]
        assert [c for c, end in ends.items() if end == "answered"] == [(True, True)], "\n".join(told)
    board.measured(
        "no-hairpin",
        theory="bridge",
        captured=ends[False, True],
        because="a bridge sends nothing back to where it came from, or two of them would play tennis",
    )
    board.measured(
        "no-masquerade",
        theory="red",
        captured=ends[True, False],
        because="a packet from outside that bears red's own address as its source is taken for a forgery",
    )


def _call(stage: Stage, wait_s: float = ANSWER_S) -> tuple[Packets, Packet]:
    """What red's cable and its host see of one call from red to its own service, and that call's first packet.
    Others may call at the same time; a host that has an agent again does."""
    with stage.net.capture(["red:eth0", f"node-1:{_port(stage)}", f"node-1:{BRIDGE}"], "tcp") as packets:
        sent = stage.net.send("red", "svc/web", wait_s=wait_s)
    first = packets.at("red:eth0").outgoing.expect(tcp(sport=sent.src_port, dst=VIP, flags="S"))[0]
    return packets, first


def _answers(first: Packet) -> Match:
    """The service's answers to this call."""
    return tcp(src=VIP, sport=PORT, dport=first.innermost.src_port, flags="SA")


def _end(packets: Packets, first: Packet) -> str:
    """How far a call came: to the bridge, back to red, or to its answer. What was not seen did not pass."""
    came = packets.at("red:eth0").incoming
    if came.where(_answers(first)):
        return "answered"
    came.never(_answers(first))
    if came.where(same(first)):
        return "red"
    came.never(same(first))
    assert len(packets.follow(first)) > 1, "red's call does not come to node-1"
    return "bridge"


@contextmanager
def _only(stage: Stage, *, hairpin: bool, masquerade: bool) -> Iterator[None]:
    """Take away what is not wanted of the two, for the length of the block. Whatever masquerades red's calls to
    itself is not asked if they are accepted before."""
    port, red = _port(stage), str(stage.net.address_of("red"))
    accept = ["POSTROUTING", "-s", red, "-d", red, "-j", "ACCEPT"]
    with ExitStack() as undo:
        if not hairpin:
            undo.enter_context(stage.held("node-1", "port", port))
            stage.run("node-1", "bridge", "link", "set", "dev", port, "hairpin", "off")
            undo.callback(stage.run, "node-1", "bridge", "link", "set", "dev", port, "hairpin", "on")
        if not masquerade:
            stage.run("node-1", "iptables", "-w", "-t", "nat", "-I", *accept)
            undo.callback(stage.run, "node-1", "iptables", "-w", "-t", "nat", "-D", *accept)
        yield


def _words(hairpin: bool, masquerade: bool) -> str:
    return f"hairpin {'on' if hairpin else 'off'}, masquerade {'on' if masquerade else 'off'}"


def _port(stage: Stage) -> str:
    """The host's end of red's cable."""
    peer = stage.net.kernel("red").links["eth0"].peer
    return next(link.name for link in stage.net.kernel("node-1").links.values() if link.ifindex == peer)


def _bridge_address(stage: Stage) -> str:
    found = (a.interface for a in stage.net.kernel("node-1").addresses if a.dev == BRIDGE)
    return next(str(interface.ip) for interface in found if isinstance(interface, IPv4Interface))


LESSON = Lesson(
    question="Can a server call itself through its own service?",
    predictions=(
        Prediction("source", "When it works: from which address does red see its own call come?", "address"),
        Prediction("ttl", "red's call leaves with TTL 64. With which does it come back to red?"),
        Prediction("no-hairpin", "With masquerade but no hairpin: how far does it come?", "word", ENDS),
        Prediction("no-masquerade", "With hairpin but no masquerade: how far does it come?", "word", ENDS),
    ),
    hints=(
        "Two things are missing, and the second shows only when the first is there: the bridge does not hand "
        "red's call back to red, and what red is handed it does not answer. `overlaynet lab check` tells which "
        "of the two it is now. blue can call the service: by what does its call differ from red's?",
        "First the port: `bridge -d link show` on node-1 has a word for sending a packet back to where it came "
        "from. Then the source: what comes in by a wire and has red's own address as its source is dropped. A "
        "rule of table nat, in POSTROUTING, can give it another; blue's calls need none.",
        "On node-1: `bridge link set dev PORT hairpin on`, where PORT is the veth with red's MAC in "
        "`bridge fdb show br cni0`; and `iptables -t nat -A POSTROUTING -s RED -d RED -j MASQUERADE`, with "
        "red's address.",
    ),
    start=start,
    check=check,
    minutes=15,
    memory_mb=70,
    disk_mb=130,
)
