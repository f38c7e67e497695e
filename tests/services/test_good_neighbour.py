"""Beside other people's rules, marks and policies; and what only crafted packets can show."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest
from helpers import crafted
from helpers.answering import PATIENCE_S, REFUSED, SILENCE_S, Answer, answer, ask_often, connected
from helpers.privilege import requires_netns
from helpers.service_net import (
    ADDRESS,
    COMMON,
    EXTERNAL,
    MAC,
    NODE_PORT,
    OWN,
    VIP,
    ServiceNet,
    base,
    node_port,
    service,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from overlaynet.state import RuleSet, ServicesPolicy

pytestmark = [pytest.mark.kernel, requires_netns]

A = ADDRESS["A"]
OUR_BIT = 0x4000
THEIR_BITS = 0x10_0021
LOCALHOST = replace(COMMON, localhost_node_ports=True)


# --- FORWARD policy DROP --------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["a1", "b1", "B"], ids=["container-here", "container-elsewhere", "host"])
@pytest.mark.parametrize(
    ("client", "address", "port"),
    [("a2", VIP, 80), ("A", VIP, 80), ("X", VIP, 80), ("X", EXTERNAL, 80), ("X", A, NODE_PORT)],
    ids=["container", "host", "outside-vip", "outside-external", "outside-nodeport"],
)
def test_works_where_the_host_drops_what_it_forwards(
    net: ServiceNet, client: str, address: str, port: int, endpoint: str
) -> None:
    net.iptables("-P FORWARD DROP")
    net.serve(node_port(endpoint, external_ips=(ip_address(EXTERNAL),)))
    said = net.ask(client, address, port)
    assert isinstance(said, Answer), said
    assert said.name == endpoint


def test_policy_local_works_where_the_host_drops_what_it_forwards(net: ServiceNet) -> None:
    net.iptables("-P FORWARD DROP")
    net.serve(node_port("b1", local=("a1",), external_local=True))
    said = net.ask("X", A, NODE_PORT)
    assert isinstance(said, Answer), said
    assert (said.name, said.peer) == ("a1", ADDRESS["X"])


def test_refusal_reaches_the_client_where_the_host_drops_what_it_forwards(net: ServiceNet) -> None:
    net.iptables("-P FORWARD DROP")
    net.serve(service())
    assert net.ask("a2", VIP, 80) == REFUSED


# --- marks and foreign rules ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "address", "port"), [("a2", VIP, 80), ("X", A, NODE_PORT)], ids=["container", "nodeport"]
)
@pytest.mark.parametrize("theirs", [0, THEIR_BITS], ids=["unmarked", "marked-by-others"])
def test_marks_of_others_stay_and_ours_is_gone_when_a_packet_leaves(
    net: ServiceNet, client: str, address: str, port: int, theirs: int
) -> None:
    if theirs:
        net.iptables(f"-t mangle -A PREROUTING -j MARK --set-xmark {theirs:#x}/{theirs:#x}")
    net.serve(node_port("b1"), common=replace(COMMON, masquerade_all=True))
    with net.places["A"].entered(), crafted.marks_on("eth0") as tap:
        said = net.ask(client, address, port)
        assert isinstance(said, Answer)
        assert said.peer == A
        assert crafted.mark_of(tap, ADDRESS["b1"], 8080) == theirs


FOREIGN = (
    "-N FOREIGN",
    "-A FOREIGN -s 10.9.0.0/16 -j RETURN",
    "-A FORWARD -j FOREIGN",
    "-I INPUT -s 10.9.0.0/16 -j DROP",
    "-t nat -N KUBE-SERVICES",
    "-t nat -A KUBE-SERVICES -d 10.96.0.1/32 -j ACCEPT",
    "-t nat -I PREROUTING -j KUBE-SERVICES",
    "-t nat -A PREROUTING -d 10.9.0.1/32 -p tcp -j DNAT --to-destination 10.9.0.2",
    "-t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
    "-t mangle -A PREROUTING -s 10.9.0.0/16 -j MARK --set-xmark 0x1/0xff",
)


def foreign(rules: RuleSet) -> dict[tuple[str, str], list[str]]:
    """Every rule that is neither in a chain of ours nor a jump to one, and every policy and chain."""
    chains = {key: lines for key, lines in rules.chains.items() if not key[1].startswith("OVL-")}
    found = {key: [line.text for line in lines if "OVL-" not in line.text] for key, lines in chains.items()}
    return {key: lines for key, lines in found.items() if lines or key not in BUILT_IN}


BUILT_IN = {
    (table, chain)
    for table in ("raw", "mangle", "nat", "filter", "security")
    for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
}


def test_foreign_rules_are_as_they_were_however_services_come_and_go(net: ServiceNet) -> None:
    net.iptables(*FOREIGN)
    before = foreign(net.rules())
    assert len(before) == 7
    for ports in ((service("b1"),), (node_port("a1", "b1", affinity_s=60),), (service(),)):
        net.serve(*ports)
        assert foreign(net.rules()) == before
    net.apply(base("A"))
    assert foreign(net.rules()) == before


def ours(rules: RuleSet) -> dict[tuple[str, str], tuple[str, ...]]:
    return {key: tuple(line.text for line in lines) for key, lines in rules.chains.items() if lines}


def test_without_services_a_host_has_the_rules_it_had_before_them(net: ServiceNet) -> None:
    net.apply(base("A"))
    before = ours(net.rules())
    net.serve(node_port("a1", "b1", affinity_s=60, local=("a1",), external_local=True))
    net.apply(base("A"))
    assert ours(net.rules()) == before


# --- beside kube-proxy ------------------------------------------------------------------------------

KUBE_VIP, KUBE_PORT = "10.96.0.10", 31_000
KUBE_PROXY = f"""\
*filter
:KUBE-FORWARD - [0:0]
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 1 -j KUBE-FORWARD
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-B1 - [0:0]
-A KUBE-SERVICES -d {KUBE_VIP}/32 -p tcp -m tcp --dport 80 -j KUBE-SEP-B1
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport {KUBE_PORT} -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport {KUBE_PORT} -j KUBE-SEP-B1
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SEP-B1 -p tcp -m tcp -j DNAT --to-destination {ADDRESS["b1"]}:8080
-I PREROUTING 1 -j KUBE-SERVICES
-I OUTPUT 1 -j KUBE-SERVICES
-I POSTROUTING 1 -j KUBE-POSTROUTING
COMMIT
"""
"""Its rules for one service, in the order that it writes them; it has the same mark."""


@pytest.mark.parametrize("first", ["kube-proxy", "ours"])
def test_kube_proxys_services_and_ours_are_served_side_by_side(net: ServiceNet, first: str) -> None:
    """Both put their jumps in front; so who came last is asked first."""
    net.iptables("-P FORWARD DROP")
    steps = [lambda: net.restore(KUBE_PROXY), lambda: net.serve(node_port("b2"))]
    for step in steps if first == "ours" else reversed(steps):
        step()
    with net.places["A"].entered(), crafted.marks_on("eth0") as tap:
        asked = (("a2", VIP, 80), ("X", A, NODE_PORT), ("a2", KUBE_VIP, 80), ("X", A, KUBE_PORT))
        said = ask_often([net.asker(*question) for question in asked])
        assert [(one.name, one.peer) for one in said] == [
            ("b2", ADDRESS["a2"]),
            ("b2", A),
            ("b1", ADDRESS["a2"]),
            ("b1", A),
        ]
        assert crafted.mark_of(tap, ADDRESS["b1"], 8080) == 0


# --- INVALID --------------------------------------------------------------------------------------


NODE_CIDR = replace(COMMON, local_sources=OWN["A"])
BY_BRIDGE = replace(COMMON, local_sources=(), local_device="cni0")
NO_DETECTOR = replace(COMMON, local_sources=())

FAR = 2**30


def answered_with_reset(net: ServiceNet) -> bool:
    """Whether a client, connected through the virtual IP, ends the connection when its endpoint's host sends a
    segment that conntrack takes for none of it: one far ahead of the window. (One far behind it may be an old
    one once more, and is let pass.)"""
    with ExitStack() as stack:
        stack.enter_context(net.places["a2"].entered())
        hearing = stack.enter_context(crafted.listening(socket.IPPROTO_TCP))
        client = stack.enter_context(connected(VIP, 80))
        seen = answer(client.recv(256))
        begin = next(one for one in iter(partial(crafted.heard, hearing), None) if one.dport == seen.peer_port)
        late = IP(src=ADDRESS["b1"], dst=ADDRESS["a2"]) / TCP(sport=8080, dport=seen.peer_port, flags="PA")
        late[TCP].seq, late[TCP].ack = (begin[TCP].seq + FAR) % 2**32, begin[TCP].ack
        with net.places["b1"].entered(), crafted.listening(socket.IPPROTO_TCP, SILENCE_S) as raw:
            crafted.send(late / b"late")
            if any("R" in str(packet[TCP].flags) for packet in iter(partial(crafted.heard, raw), None)):
                return True
        client.sendall(b"still there?")
        assert client.recv(99) == b"still there?"
        return False


@pytest.mark.parametrize(
    "common", [COMMON, NODE_CIDR, BY_BRIDGE, NO_DETECTOR], ids=["cluster-cidr", "node-cidr", "bridge", "none"]
)
def test_segment_that_cannot_be_translated_back_does_not_end_a_connection(
    net: ServiceNet, common: ServicesPolicy
) -> None:
    net.serve(service("b1"), common=common)
    assert not answered_with_reset(net)


def test_where_such_segments_are_let_through_they_do(net: ServiceNet) -> None:
    net.serve(service("b1"), common=replace(COMMON, drop_invalid=False))
    assert answered_with_reset(net)


def test_packet_of_no_connection_that_others_route_through_us_is_let_through(net: ServiceNet) -> None:
    """A reset of a connection that conntrack never saw. It may have seen one direction only."""
    net.places["X"].run(f"ip route replace 10.9.0.0/16 via {A}")
    net.places["A"].run(f"ip route replace 10.9.0.0/16 via {ADDRESS['B']}")
    net.places["B"].run("ip route replace local 10.9.0.0/16 dev lo")
    net.serve(service("a1"))
    reset = IP(src=ADDRESS["X"], dst="10.9.0.1") / TCP(sport=1234, dport=4321, flags="RA", seq=7, ack=9)
    with net.places["B"].entered(), crafted.listening(socket.IPPROTO_TCP) as raw:
        with net.places["X"].entered():
            crafted.send(reset)
        assert crafted.heard(raw) is not None


# --- this host's own loopback ---------------------------------------------------------------------


@pytest.fixture
def route_localnet(net: ServiceNet) -> None:
    """As the planner wants it together with nodePorts on localhost: where endpoints are reached, here without
    a tunnel, and nowhere else."""
    for device in ("cni0", "eth0"):
        net.places["A"].run(f"sysctl -q -w net.ipv4.conf.{device}.route_localnet=1")


@pytest.mark.usefixtures("route_localnet")
@pytest.mark.parametrize(("endpoint", "peer"), [("b1", A), ("a1", "10.244.1.1")], ids=["elsewhere", "here"])
def test_node_port_on_localhost(net: ServiceNet, endpoint: str, peer: str) -> None:
    net.serve(node_port(endpoint), common=LOCALHOST)
    said = net.ask("A", "127.0.0.1", NODE_PORT)
    assert isinstance(said, Answer), said
    assert (said.name, said.peer) == (endpoint, peer)


@pytest.mark.usefixtures("route_localnet")
@pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
def test_neighbour_does_not_reach_the_loopback(net: ServiceNet, guarded: bool) -> None:
    """What route_localnet would otherwise let in (CVE-2020-8558): a frame to our MAC, a packet to 127.0.0.1."""
    net.serve(node_port("b1"), common=LOCALHOST if guarded else COMMON)
    probe = IP(src=ADDRESS["X"], dst="127.0.0.1") / UDP(sport=4000, dport=9_000) / b"who is there?"
    with net.places["A"].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 9_000))
        server.settimeout(SILENCE_S if guarded else PATIENCE_S)
        with net.places["X"].entered():
            crafted.send_frame("lan", Ether(dst=MAC["A"]) / probe)
        if guarded:
            with pytest.raises(TimeoutError):
                server.recv(99)
        else:
            assert server.recv(99) == b"who is there?"


@pytest.mark.usefixtures("route_localnet")
def test_loopback_still_speaks_to_itself(net: ServiceNet) -> None:
    net.servers.listen(net.places["A"], "loopback", "tcp", 9_001, "127.0.0.1")
    net.serve(node_port("b1"), common=LOCALHOST)
    said = net.ask("A", "127.0.0.1", 9_001)
    assert isinstance(said, Answer), said
    assert said.name == "loopback"


# --- SCTP, which has no sockets here --------------------------------------------------------------


def test_sctp_is_led_to_an_endpoint(net: ServiceNet) -> None:
    net.serve(service("b1", protocol="sctp"))
    with net.places["b1"].entered(), crafted.listening(socket.IPPROTO_SCTP) as raw:
        with net.places["a2"].entered():
            crafted.send(crafted.sctp_init(VIP, 80))
        packet = crafted.heard(raw)
    assert packet is not None
    assert (packet.src, packet.dst, packet[SCTP].dport) == (ADDRESS["a2"], ADDRESS["b1"], 8080)


def test_sctp_from_outside_is_masqueraded(net: ServiceNet) -> None:
    net.serve(node_port("b1", protocol="sctp"))
    with net.places["b1"].entered(), crafted.listening(socket.IPPROTO_SCTP) as raw:
        with net.places["X"].entered():
            crafted.send(crafted.sctp_init(A, NODE_PORT))
        packet = crafted.heard(raw)
    assert packet is not None
    assert (packet.src, packet[SCTP].dport) == (A, 8080)


def test_sctp_without_endpoints_is_refused(net: ServiceNet) -> None:
    net.serve(service(protocol="sctp"))
    with net.places["a2"].entered(), crafted.listening(socket.IPPROTO_ICMP) as raw:
        crafted.send(crafted.sctp_init(VIP, 80))
        packet = crafted.heard(raw)
    assert packet is not None
    assert (packet[ICMP].type, packet[ICMP].code) == (3, 3)


def test_protocols_of_one_port_do_not_mix(net: ServiceNet) -> None:
    net.serve(service("b1", protocol="sctp"), service("a1"))
    assert {answer.name for answer in ask_often([net.asker("a2", VIP, 80)] * 10)} == {"a1"}
    assert net.ask("a2", VIP, 81) == REFUSED
