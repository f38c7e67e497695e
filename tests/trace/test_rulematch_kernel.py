"""Whether each single condition holds is what the kernel says by its counters.

Every chain of the router has a rule for every condition, without a target: the kernel counts the packets for
which it holds and goes on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import pytest
from helpers.answering import PATIENCE_S
from helpers.filter_net import (
    ADDRESSES,
    CLIENT,
    CLIENT_IP,
    CLIENT_MAC,
    GUARDS,
    ROUTER,
    SERVER,
    SERVER_IP,
    SERVER_TOO,
    Arrival,
    FilterNet,
    Probe,
    filter_net,
)
from helpers.filter_path import OWN, R1, R2, Router
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns
from helpers.service_net import run

from overlaynet.firewall.readback import parse as read
from overlaynet.state import RuleSet
from overlaynet.trace.netfilter import Packet, traverse
from overlaynet.trace.rulematch import Doubt, Here, holds
from overlaynet.trace.ruletarget import carry_out
from overlaynet.trace.rulewords import parse

pytestmark = [pytest.mark.kernel, requires_netns]

HOOKS: Mapping[str, Sequence[str]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
NEGATED = (
    "-s 10.9.1.2/32", "-d 10.9.2.0/24", "-d 10.9.2.2/255.0.255.255", "-p tcp", "-p udp", "-p icmp", "-p 132",
    "-f", "-p tcp -m tcp {} --dport 80", "-p tcp -m tcp {} --dport 70:90", "-p tcp -m tcp {} --sport 20000:",
    "-p udp -m udp {} --dport 0:79", "-p udp -m udp {} --sport 20001",
    "-p tcp -m multiport {} --dports 22,80,8000:9000", "-p udp -m multiport {} --sports 20001,20002",
    "-p tcp -m multiport {} --ports 20000", "-p tcp -m tcp {} --tcp-flags SYN,ACK SYN",
    "-p tcp -m tcp {} --syn", "-p tcp -m tcp {} --tcp-flags ALL NONE",
    "-p tcp -m tcp {} --tcp-flags ALL SYN,FIN", "-p icmp -m icmp {} --icmp-type 8",
    "-p icmp -m icmp {} --icmp-type echo-reply", "-p icmp -m icmp {} --icmp-type 8/1", "-m mark {} --mark 0",
    "-m mark {} --mark 0x1/0x3", "-m connmark {} --mark 0x20", "-m connmark {} --mark 0x0/0xf",
    "-m state {} --state NEW", "-m conntrack {} --ctstate NEW",
    "-m conntrack {} --ctstate ESTABLISHED,RELATED", "-m conntrack {} --ctstate INVALID",
    "-m conntrack {} --ctstate UNTRACKED", "-m conntrack {} --ctstate DNAT",
    "-m conntrack {} --ctstate NEW,SNAT", "-m conntrack {} --ctstatus SEEN_REPLY",
    "-m conntrack {} --ctstatus NONE", "-m conntrack {} --ctstatus CONFIRMED", "-m conntrack {} --ctproto udp",
    "-m conntrack {} --ctorigsrc 10.9.1.2", "-m conntrack {} --ctorigdst 10.9.2.2",
    "-m conntrack {} --ctorigsrcport 20000:20001", "-m conntrack {} --ctorigdstport 80",
    "-m conntrack {} --ctreplsrc 10.9.2.3", "-m conntrack {} --ctrepldst 10.9.1.0/24",
    "-m conntrack {} --ctreplsrcport 8080", "-m conntrack {} --ctrepldstport 20000",
    "-m addrtype {} --src-type LOCAL", "-m addrtype {} --dst-type LOCAL", "-m addrtype {} --dst-type UNICAST",
    "-m addrtype {} --dst-type BROADCAST,MULTICAST", "-m physdev {} --physdev-in r1",
    "-m physdev {} --physdev-is-bridged", "-m physdev {} --physdev-is-in",
    "-m statistic --mode random {} --probability 1", "-m statistic --mode random {} --probability 0",
    "-m statistic --mode nth {} --every 1 --packet 0", "-m length {} --length 32:45",
    "-m length {} --length 44", "-m ttl {} --ttl-eq 64", "-m iprange {} --src-range 10.9.1.2-10.9.1.9",
    "-m iprange {} --dst-range 10.9.2.3", "-m pkttype {} --pkt-type unicast",
    "-m pkttype {} --pkt-type multicast",
    "-m hashlimit {} --hashlimit-upto 5000/second --hashlimit-burst 5000 --hashlimit-name NAME",
)  # fmt: skip
"""`{}` is where a negation goes; without it, in front."""
PLAIN = (
    "-m conntrack --ctdir ORIGINAL", "-m conntrack --ctdir REPLY",
    "-m conntrack --ctstate INVALID --ctproto 132", "-m conntrack --ctstate UNTRACKED ! --ctorigsrc 10.9.1.2",
    "-m ttl --ttl-lt 64", "-m ttl --ttl-gt 63", "-m recent --name seen --set",
    "-m limit --limit 5000/second --limit-burst 5000",
    "-m hashlimit --hashlimit-above 5000/second --hashlimit-burst 5000 --hashlimit-name bNAME",
    "-m comment --comment \"a \\\"quoted\\\" -j DROP\"", "-m comment --comment -j",
)  # fmt: skip
BY_HOOK = {
    "PREROUTING": ("-i r1", "-i r+", "-i lo", "-m addrtype {} --dst-type LOCAL --limit-iface-in",
                   f"-m mac {{}} --mac-source {CLIENT_MAC}"),
    "INPUT": ("-i r1", "-m addrtype {} --dst-type LOCAL --limit-iface-in",
              f"-m mac {{}} --mac-source {CLIENT_MAC}"),
    "FORWARD": ("-i r1", "-o r2", "-o r+", "-o lo"),
    "OUTPUT": ("-o r2", "-o lo", "-m addrtype {} --src-type LOCAL --limit-iface-out"),
    "POSTROUTING": ("-o r2", "-o lo", "-m addrtype {} --src-type LOCAL --limit-iface-out",
                    "-m addrtype {} --src-type UNICAST --limit-iface-out", "-m owner {} --uid-owner 0"),
}  # fmt: skip
SITUATIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "plain": {},
    "marked": {
        "raw": ["-A PREROUTING -j MARK --set-mark 0x1"],
        "mangle": ["-A PREROUTING -j CONNMARK --set-mark 0x20"],
    },
    "translated": {
        "nat": [
            "-A PREROUTING -p tcp -d 10.9.2.2 -j DNAT --to-destination 10.9.2.3:8080",
            "-A OUTPUT -p udp -j DNAT --to-destination 10.9.2.3:8080",
            "-A POSTROUTING -s 10.9.1.0/24 -j SNAT --to-source 10.9.2.1",
        ]
    },
    "not-followed": {"raw": ["-A PREROUTING -j CT --notrack", "-A OUTPUT -j CT --notrack"]},
}
"""What is done to all packets before anything is asked, by table."""
FEW = [
    Probe(CLIENT, CLIENT_IP, SERVER_IP, "tcp", 20_000, 80),
    Probe(CLIENT, CLIENT_IP, SERVER_IP, "udp", 20_001, 53),
    Probe(CLIENT, CLIENT_IP, SERVER_TOO, "icmp", 20_002, 0, padding=12),
    Probe(CLIENT, CLIENT_IP, SERVER_IP, "tcp", 20_003, 8080, "SF", ttl=20),
    Probe(CLIENT, CLIENT_IP, SERVER_IP, "tcp", 20_004, 80, ""),
    Probe(CLIENT, CLIENT_IP, R1, "udp", 20_005, 80),
    Probe(CLIENT, CLIENT_IP, R2, "tcp", 20_006, 80),
    Probe(ROUTER, R2, SERVER_IP, "udp", 20_007, 80),
    Probe(ROUTER, R2, SERVER_IP, "tcp", 20_008, 80),
    Probe(ROUTER, R1, R1, "icmp", 20_009, 0),
]


def conditions(table: str, hook: str) -> Iterator[str]:
    for text in (*NEGATED, *BY_HOOK[hook]):
        for sign in ("", "! "):
            asked = text.replace("{} ", sign, 1) if "{} " in text else sign + text
            yield asked.replace("NAME", f"{hook[:3]}{table[0]}{len(sign)}")
    for text in PLAIN:
        yield text.replace("NAME", f"{hook[:3]}{table[0]}")


def ruleset(first: Mapping[str, Sequence[str]]) -> str:
    lines = ["*nat", *first.get("nat", []), "COMMIT"]
    for table, hooks in HOOKS.items():
        lines += [
            f"*{table}",
            *(f"-A {hook} {guard}" for hook in hooks for guard in GUARDS),
            *first.get(table, []),
        ]
        lines += [f"-A {hook} {text}" for hook in hooks for text in conditions(table, hook)]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


Place = tuple[str, str, int]
"""Table, chain and position of a rule."""


def counted(before: RuleSet, after: RuleSet) -> set[Place]:
    return {
        (*key, position)
        for key, lines in before.chains.items()
        if key[0] in HOOKS
        for position, (old, new) in enumerate(zip(lines, after.chains[key], strict=True), 1)
        if new.packets > old.packets
    }


def said(rules: RuleSet, visits: Sequence[tuple[str, Packet]]) -> tuple[set[Place], set[Place]]:
    """Where a packet with these visits is counted, and where that cannot be told."""
    hold: set[Place] = set()
    doubtful: set[Place] = set()
    for hook, packet in visits:
        for table in (table for table, hooks in HOOKS.items() if hook in hooks):
            if (table, hook) == ("filter", "OUTPUT"):
                (translated,) = traverse(rules, hook, packet, OWN, tables=["nat"])
                packet = translated.packet
            here = Here(hook, OWN, ADDRESSES, followed=table != "raw" or packet.in_dev == "lo")
            for position, line in enumerate(rules.chains[table, hook], 1):
                rule = parse(line.text)
                answer = holds(rule, packet, here)
                if isinstance(answer, Doubt) and answer.kind != "rate":
                    doubtful.add((table, hook, position))
                elif answer is True or (isinstance(answer, Doubt) and answer.usual):
                    hold.add((table, hook, position))
                    if rule.target is not None:
                        (packet,) = carry_out(rule, packet, here).packets
    return hold, doubtful


@pytest.fixture(scope="module", params=["legacy", "nft"])
def net(request: pytest.FixtureRequest) -> Iterator[FilterNet]:
    with filter_net(request.param) as made:
        yield made


@pytest.mark.parametrize("situation", SITUATIONS)
def test_conditions_hold_for_the_packets_that_the_kernel_counts(net: FilterNet, situation: str):
    net.load(ruleset(SITUATIONS[situation]))
    rules = net.read()
    asked = set()
    for probe in FEW:
        router = Router(rules)
        ((end, _),) = router.ends(probe)
        seen = assert_counted(net, rules, probe, router)
        asked |= {hook for hook, _ in router.visits}
        if isinstance(seen, Arrival) and seen.place == SERVER and seen.src_port and end.packet.state == "NEW":
            assert seen.dst_port is not None
            flags = "SA" if probe.protocol == "tcp" else ""
            reply = Probe(SERVER, seen.dst, seen.src, probe.protocol, seen.dst_port, seen.src_port, flags)
            back = Router(rules)
            back.ends_of_answer(reply, end)
            assert_counted(net, rules, reply, back)
    assert asked == set(HOOKS["mangle"])


def assert_counted(net: FilterNet, rules: RuleSet, probe: Probe, router: Router) -> object:
    before = net.read()
    (seen,) = net.send([probe])
    found = counted(before, net.read())
    hold, doubtful = said(rules, router.visits)
    wrong = {place: rules.chains[place[:2]][place[2] - 1].text for place in (found ^ hold) - doubtful}
    assert {place: text for place, text in wrong.items() if text not in GUARDS} == {}, (
        probe,
        found & wrong.keys(),
    )
    return seen


# --- on a bridge --------------------------------------------------------------------------------------

PORTS_OF_BRIDGE = tuple(
    f"-m physdev {sign}{option}"
    for option in (
        "--physdev-in p1", "--physdev-in p+", "--physdev-in p2", "--physdev-out p2", "--physdev-out p1",
        "--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged",
    )
    for sign in ("", "! ")
)  # fmt: skip
BRIDGE_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "POSTROUTING")
ON_BRIDGE = """\
link add br0 type bridge
link add p1 type veth peer name eth0 netns {one}
link add p2 type veth peer name eth0 netns {two}
link set p1 master br0 up
link set p2 master br0 up
address add 10.9.3.1/24 dev br0
link set br0 up
"""
PHYSICAL = {
    "bridged": {"PREROUTING": ("p1", None), "FORWARD": ("p1", "p2"), "POSTROUTING": ("p1", "p2")},
    "for-the-host": {"PREROUTING": ("p1", None), "INPUT": ("p1", None)},
    "from-the-host": {"POSTROUTING": (None, None)},
}
"""By hook, the ports that a packet came in by and leaves by."""


@pytest.fixture(params=["legacy", "nft"])
def bridge(request: pytest.FixtureRequest) -> Iterator[tuple[str, Mapping[str, PrivateNetns]]]:
    with private_netns() as host, private_netns() as one, private_netns() as two:
        with host.entered():
            run(["ip", "-batch", "-"], ON_BRIDGE.format(one=one.path, two=two.path))
            run(["sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1"])
        for netns, address in (one, "10.9.3.2/24"), (two, "10.9.3.3/24"):
            netns.run(f"ip address add {address} dev eth0")
            netns.run("ip link set eth0 up")
        yield request.param, {"host": host, "one": one, "two": two}


@pytest.mark.parametrize(
    ("way", "sender", "receiver", "address"),
    [
        ("bridged", "one", "two", "10.9.3.3"),
        ("for-the-host", "one", "host", "10.9.3.1"),
        ("from-the-host", "host", "two", "10.9.3.3"),
    ],
)
def test_ports_of_a_bridge_are_those_that_the_kernel_counts(
    bridge: tuple[str, Mapping[str, PrivateNetns]], way: str, sender: str, receiver: str, address: str
):
    flavour, places = bridge
    lines = [f"-A {hook} -p udp {text}" for hook in BRIDGE_HOOKS for text in PORTS_OF_BRIDGE]
    with places["host"].entered():
        run([f"iptables-{flavour}-restore"], "\n".join(["*mangle", *lines, "COMMIT", ""]))
    with places[receiver].entered(), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as ear:
        ear.bind((address, 9))
        ear.settimeout(PATIENCE_S)
        with places[sender].entered(), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as mouth:
            mouth.sendto(b"x", (address, 9))
        ear.recv(1)
    with places["host"].entered():
        rules = read(run([f"iptables-{flavour}-save", "-c"]), flavour)
    for hook in BRIDGE_HOOKS:
        found = {line.text for line in rules.chains["mangle", hook] if line.packets}
        if hook not in PHYSICAL[way]:
            assert not found
            continue
        physin, physout = PHYSICAL[way][hook]
        packet = Packet(CLIENT_IP, SERVER_IP, "udp", 1, 9, physin=physin, physout=physout)
        every = {line.text for line in rules.chains["mangle", hook]}
        assert found == {text for text in every if holds(parse(text), packet, Here(hook))}
        assert len(every) == len(PORTS_OF_BRIDGE)
