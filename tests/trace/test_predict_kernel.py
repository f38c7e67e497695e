"""Predictions held to the kernel: clusters, faults and packets by chance, built, sent and captured for real.

For every example a small cluster is made, some of its state is broken, the state is read and a packet
predicted; then it is sent, and every interface of every namespace is listened at. What passes must be one of
the predicted paths: the same points in the same order, the same addresses, MACs, TTLs and lengths, and nothing
else anywhere. A path that a single fault has broken must name a cause of the fault's kind.

PREDICTED_EXAMPLES=500 tries more of them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from helpers import worlds
from helpers.asked import fitting, report, source_for, watched
from helpers.packet_net import PacketNet, packet_net
from helpers.worlds import Shape, container_ip, underlay_ip, veth
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st

from overlaynet.addr import container_mac, gateway_address
from overlaynet.core.overlay import metric_of
from overlaynet.model import Service, ServicePort
from overlaynet.trace.model import Path, Prediction, Question, World
from overlaynet.trace.predict import predict

pytestmark = [pytest.mark.kernel]

VIP = "10.112.0.10"
NODE_PORT = 30_080
EXAMPLES = int(os.environ.get("PREDICTED_EXAMPLES", "20"))
STRANGER = "02:99:99:99:99:99"


def service(label: str) -> Service:
    ports = tuple(ServicePort(80, p, p.lower(), target=80, node_port=NODE_PORT) for p in ("TCP", "UDP"))
    return Service("web", "default", cluster_ips=(ip_address(VIP),), ports=ports, selector={"app": label})


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    hosts = draw(st.integers(1, 3))
    label = draw(st.sampled_from(["web", "web", "nobody", ""]))
    return Shape(
        tuple(draw(st.integers(1, 2)) for _ in range(hosts)),
        draw(st.sampled_from(["vxlan", "vxlan", "host-gw"])),
        (service(label),) if label else (),
        draw(st.booleans()),
        ports=draw(st.sampled_from([(80,), (80,), (8080,)])),
        peers_only=draw(st.booleans()),
    )


# --- faults ---------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A command at a place, and the kinds of cause that a packet's failing may have for it."""

    place: str
    command: str
    kinds: str


ASTRAY = "route_wrong route_missing neigh_missing forwarding_off rp_filter rule_reject unknown link_down mtu"
RULE = "rule_drop rule_reject rule_missing"
ON_HOST: tuple[tuple[str, str], ...] = (
    ("ip route del {subnet}", "route_missing"),
    ("ip route replace {subnet} metric {metric} via {other_ip}", ASTRAY),
    ("ip route replace {subnet} metric {metric} via {other_vtep} dev flannel.1 onlink", ASTRAY),
    ("ip route add {ip}/32 via {other_ip}", ASTRAY),
    ("ip route add {ip}/32 dev cni0", ASTRAY),
    ("ip route add {refusing} {ip}/32", "route_wrong neigh_missing"),
    ("ip route add unreachable {subnet}", "route_wrong"),
    ("ip route del default", "route_missing"),
    ("ip neigh del {vtep} dev flannel.1", "neigh_missing"),
    ("ip neigh replace {vtep} lladdr {other_vtep_mac} dev flannel.1 nud permanent", "neigh_wrong fdb_missing"),
    ("ip neigh replace {vtep} lladdr {stranger} dev flannel.1 nud permanent", "neigh_wrong"),
    ("ip neigh replace {here} lladdr {stranger} dev cni0 nud permanent", "neigh_wrong fdb_missing"),
    ("ip neigh replace {peer_ip} lladdr {other_mac} dev eth0 nud permanent", "neigh_wrong " + ASTRAY),
    ("ip neigh replace {peer_ip} lladdr {stranger} dev eth0 nud permanent", "neigh_wrong"),
    ("bridge fdb del {vtep_mac} dev flannel.1", "fdb_missing"),
    ("bridge fdb replace {vtep_mac} dev flannel.1 dst {nobody} self permanent", "fdb_wrong"),
    ("bridge fdb del {here_mac} dev {port} master", ""),
    ("ip link set {link} down", "link_down route_missing neigh_missing"),
    ("ip link set {link} mtu {mtu}", "mtu"),
    ("ip link set {link} mtu {mtu}", "mtu"),
    ("sysctl -qw net.ipv4.ip_forward=0", "forwarding_off"),
    ("sysctl -qw net.ipv4.conf.{link_setting}.forwarding=0", "forwarding_off"),
    ("sysctl -qw net.ipv4.conf.{link_setting}.rp_filter=1", "rp_filter"),
    ("sysctl -qw net.ipv4.conf.all.rp_filter=1", "rp_filter"),
    ("ip link set {port} type bridge_slave hairpin off", "rule_missing unknown"),
    ("ip rule add from {here} lookup 100", ""),
    ("ip rule add to {ip} priority 50 unreachable", "route_wrong"),
    ("ip rule add iif cni0 ipproto {protocol} priority 60 prohibit", "route_wrong"),
    ("ip rule add fwmark 0x4000/0x4000 priority 70 blackhole", "route_wrong"),
    ("ip rule add not from 10.244.0.0/16 priority 80 lookup 254", ""),
    ("iptables-nft -I {chain} -p {protocol} -j {target}", RULE),
    ("iptables-nft -I {chain} -d {ip} -j {target}", RULE),
    ("iptables-nft -A {chain} -p udp --dport {number} -j {target}", RULE),
    ("iptables-nft -I {chain} -p tcp --dport {number} -j REJECT --reject-with tcp-reset", RULE),
    ("iptables-nft -I {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j {target}", RULE),
    ("iptables-nft -P {chain} DROP", RULE),
    ("iptables-nft -I {chain} -i {link} -j {target}", RULE),
    ("iptables-nft -I FORWARD -m physdev --physdev-in {port} -j DROP", RULE),
    ("iptables-nft -t nat -I PREROUTING -p tcp --dport 80 -j DNAT --to-destination {ip}:8080", ASTRAY),
    ("iptables-nft -t nat -I OUTPUT -p udp --dport 80 -j DNAT --to-destination {ip}", ASTRAY),
    ("iptables-nft -t nat -I POSTROUTING -d {ip} -j MASQUERADE", ASTRAY),
    ("iptables-nft -t nat -I POSTROUTING -p udp -j SNAT --to-source {host_ip}", ASTRAY + " rule_missing"),
    ("iptables-nft -t nat -F POSTROUTING", "rule_missing"),
    ("iptables-nft -t nat -F PREROUTING", "rule_missing"),
    ("iptables-nft -F FORWARD", RULE),
    ("iptables-nft -t mangle -A PREROUTING -p {protocol} -j MARK --set-xmark 0x4000/0x4000", ASTRAY),
    ("iptables-nft -t raw -A PREROUTING -p {protocol} -j DROP", RULE),
)
IN_CONTAINER: tuple[tuple[str, str], ...] = (
    ("ip route del default", "route_missing"),
    ("ip link set eth0 down", "link_down route_missing"),
    ("ip link set eth0 mtu {mtu}", "mtu"),
    ("ip route add blackhole {ip}/32", "route_wrong"),
    ("iptables-nft -A INPUT -p {protocol} -j {target}", RULE),
    ("iptables-nft -A OUTPUT -p {protocol} -j {target}", RULE),
    ("ip neigh replace {gateway} lladdr {stranger} dev eth0 nud permanent", "neigh_wrong fdb_missing"),
    ("sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "rp_filter"),
)


@st.composite
def faults(draw: st.DrawFn, shape: Shape) -> Fault:
    hosts = sorted(shape.hosts)
    host = draw(st.sampled_from(hosts))
    peer = draw(st.sampled_from([h for h in hosts if h != host] or hosts))
    here = draw(st.sampled_from(shape.hosts[host]))
    words = _about(
        shape, host, here, peer, draw(st.sampled_from(shape.hosts[peer])), draw(st.sampled_from(hosts))
    )
    words |= {name: draw(st.sampled_from(values)) for name, values in _choices(here, words).items()}
    words["link_setting"] = words["link"].replace(".", "/")
    place, catalogue = draw(st.sampled_from([(host, ON_HOST)] * 4 + [(here, IN_CONTAINER)]))
    template, kinds = draw(st.sampled_from(catalogue))
    return Fault(place, template.format(**words), kinds)


def _about(shape: Shape, host: str, here: str, peer: str, there: str, other: str) -> dict[str, str]:
    """What commands on a host name: containers here and there, the peer, and some other host."""
    subnet = worlds.subnet(peer)
    named = {
        "subnet": subnet,
        "metric": metric_of(subnet),
        "vtep": subnet.network_address,
        "vtep_mac": worlds.vtep_mac(peer),
        "peer_ip": underlay_ip(peer),
        "host_ip": underlay_ip(host),
        "ip": container_ip(shape, there),
        "here": container_ip(shape, here),
        "here_mac": container_mac(container_ip(shape, here)),
        "gateway": gateway_address(worlds.subnet(host)),
        "port": veth(here),
        "other_ip": underlay_ip(other),
        "other_mac": worlds.underlay_mac(other),
        "other_vtep": worlds.subnet(other).network_address,
        "other_vtep_mac": worlds.vtep_mac(other),
        "stranger": STRANGER,
    }
    return {name: str(value) for name, value in named.items()}


def _choices(here: str, words: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        "refusing": ["blackhole", "unreachable", "prohibit", "throw"],
        "nobody": ["192.168.50.99", "192.168.50.1", words["other_ip"], "172.31.0.1"],
        "link": ["eth0", "cni0", "flannel.1", veth(here)],
        "mtu": ["576", "900", "1280", "1400", "1446", "1447", "1450", "1500"],
        "number": ["80", "8080", str(NODE_PORT), "8472"],
        "chain": ["INPUT", "FORWARD", "OUTPUT"],
        "protocol": ["tcp", "udp", "icmp"],
        "target": ["DROP", "REJECT", "REJECT --reject-with icmp-host-prohibited"],
    }


# --- questions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    shape: Shape
    faults: tuple[Fault, ...]
    source: str
    target: str
    protocol: str
    port: int
    size: int
    df: bool | None


@st.composite
def examples(draw: st.DrawFn) -> Example:
    shape = draw(shapes())
    broken = tuple(draw(faults(shape)) for _ in range(draw(st.sampled_from([1, 2, 3, 2, 1, 0]))))
    containers = [name for names in shape.hosts.values() for name in names]
    target, port = draw(_targets(shape, containers))
    return Example(
        shape,
        broken,
        draw(st.sampled_from([*containers * 3, *shape.hosts, "outside"])),
        target,
        draw(st.sampled_from(["tcp", "tcp", "udp", "udp", "icmp"])),
        port,
        draw(st.sampled_from([8, 8, 600, 1000, 1300, 1422, 1430, 1472, 1473, 3000, 5000])),
        draw(st.sampled_from([None, None, None, True, False])),
    )


@st.composite
def _targets(draw: st.DrawFn, shape: Shape, containers: list[str]) -> tuple[str, int]:
    """Containers, the virtual IP, hosts, and what is none of these."""
    addresses = [str(container_ip(shape, name)) for name in containers]
    hosts = [str(ip) for h in shape.hosts for ip in (underlay_ip(h), worlds.subnet(h)[0], worlds.subnet(h)[1])]
    strange = ["10.244.1.77", "10.244.9.9", "192.168.50.99", str(worlds.ROUTER), "203.0.113.10", "10.112.0.99"]
    vip = [VIP] if shape.services else addresses
    kind = draw(st.sampled_from([addresses] * 4 + [vip] * 3 + [hosts] * 2 + [strange]))
    ports = [80, NODE_PORT, NODE_PORT, 8472] if kind is hosts else [80, 80, 80, 8080]
    return draw(st.sampled_from(kind)), draw(st.sampled_from(ports))


def asked(world: World, example: Example) -> Question:
    dst, port = ip_address(example.target), None if example.protocol == "icmp" else example.port
    src = source_for(world, example.source, dst, example.protocol, port)
    if src is None:
        own = (a.interface.ip for a in world.places[example.source].kernel.addresses)
        src = next(ip for ip in own if not ip.is_loopback)
    return Question(
        example.source, example.target, src, dst, example.protocol, None, port, example.size, example.df
    )


# --- the test -------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """What came of an example; `problem` is empty if all is as it should be."""

    prediction: Prediction
    problem: str


def check(example: Example) -> Checked:
    with packet_net(example.shape) as net:
        well = net.observed()
        done = [fault for fault in example.faults if break_it(net, fault)]
        world = net.observed()
        question = asked(world, example)
        prediction = predict(world, question)
        if not all(path.certain for path in prediction.paths):
            return Checked(prediction, "")
        seen = watched(net, question, prediction)
        problem = "" if fitting(prediction, seen) is not None else report(question, prediction, seen)
        if not problem and len(done) == 1 and _arrives(predict(well, asked(well, example))):
            problem = "\n".join(_misnamed(prediction, done[0]))
        broken = "\n".join(f"{fault.place}: {fault.command}" for fault in done)
        return Checked(prediction, problem and f"{example.shape}\n{broken}\n{question}\n{problem}")


def break_it(net: PacketNet, fault: Fault) -> bool:
    """False: the kernel refused it, as it stands to another fault."""
    try:
        net.run(fault.place, fault.command)
    except subprocess.CalledProcessError as error:
        note(f"refused: {fault.command}: {error.stderr}")
        return False
    return True


def _ways(path: Path) -> list[Path]:
    return [path, *([path.reply] if path.reply else [])]


def _arrives(prediction: Prediction) -> bool:
    return all(way.outcome == "delivered" for path in prediction.paths for way in _ways(path))


def _misnamed(prediction: Prediction, fault: Fault) -> list[str]:
    failing = [way for path in prediction.paths for way in _ways(path) if way.outcome != "delivered"]
    return [
        f"misnamed: {way.cause}" for way in failing if way.cause is None or way.cause.kind not in fault.kinds
    ]


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(examples())
def test_what_is_captured_is_one_of_the_predicted_paths(example: Example) -> None:
    checked = check(example)
    event(f"outcome {checked.prediction.outcome}")
    assert not checked.problem, checked.problem
