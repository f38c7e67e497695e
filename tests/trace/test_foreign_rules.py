"""Packets through rules of others, as their makers write them: kube-proxy and flannel, Docker, ufw,
firewalld, Calico.

The files are what iptables-restore takes. The same packets are walked through their text and through what the
kernel makes of it in either variant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.firewall_cases import restore
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns
from helpers.service_net import run

from overlaynet.firewall.readback import parse
from overlaynet.state import RuleSet
from overlaynet.trace.netfilter import Packet, Passage, traverse

FILES = Path(__file__).parent / "foreign"
OWN = tuple(map(ip_address, ("192.168.50.11", "10.244.1.1", "172.17.0.1")))


class Case(NamedTuple):
    """A packet at a hook of a host with these rules, and what comes of it."""

    rules: str
    hook: str
    packet: Packet
    expected: frozenset[str]


def packet(src: str, dst: str, protocol: str = "tcp", dport: int | None = 80, **more: object) -> Packet:
    made = Packet(ip_address(src), ip_address(dst), protocol, 40_000, dport)
    return replace(made, **{"reverse": "same", **more})


def case(rules: str, hook: str, what: Packet, *expected: str) -> Case:
    return Case(rules, hook, what, frozenset(expected))


POD, NEAR, FAR = "10.244.1.5", "10.244.1.6", "10.244.2.2"
OUTSIDE, HOST = "203.0.113.9", "192.168.50.11"
VIA_POD = {"in_dev": "cni0"}
CASES = {
    "dns-has-two-endpoints": case(
        "kubernetes",
        "PREROUTING",
        packet(POD, "10.96.0.10", "udp", 53, **VIA_POD),
        "10.244.0.2:53",
        "10.244.0.3:53",
    ),
    "port-without-service": case("kubernetes", "PREROUTING", packet(POD, "10.96.0.10", "udp", 54), "pass"),
    "host-is-masqueraded": case(
        "kubernetes", "OUTPUT", packet(HOST, "10.96.0.20", out_dev="eth0"), "10.244.2.2:8080 mark 0x4000"
    ),
    "pod-is-not": case("kubernetes", "PREROUTING", packet(POD, "10.96.0.20", **VIA_POD), "10.244.2.2:8080"),
    "hairpin": case(
        "kubernetes", "PREROUTING", packet(FAR, "10.96.0.20", in_dev="flannel.1"), "10.244.2.2:8080 mark 0x4000"
    ),
    "external-ip": case(
        "kubernetes",
        "PREROUTING",
        packet(OUTSIDE, "203.0.113.20", in_dev="eth0"),
        "10.244.2.2:8080 mark 0x4000",
    ),
    "node-port": case(
        "kubernetes",
        "PREROUTING",
        packet(OUTSIDE, HOST, "tcp", 30080, in_dev="eth0"),
        "10.244.2.2:8080 mark 0x4000",
    ),
    "affinity": case("kubernetes", "PREROUTING", packet(POD, "10.96.0.30"), "10.244.2.7:80", "10.244.2.8:80"),
    "no-endpoints": case(
        "kubernetes", "FORWARD", packet(POD, "10.96.0.99", in_dev="cni0"), "reject icmp-port-unreachable"
    ),
    "node-port-without-endpoints": case(
        "kubernetes",
        "INPUT",
        packet(OUTSIDE, HOST, "tcp", 30099, in_dev="eth0"),
        "reject icmp-port-unreachable",
    ),
    "pods-are-forwarded": case(
        "kubernetes", "FORWARD", packet(POD, FAR, in_dev="cni0", out_dev="flannel.1"), "pass"
    ),
    "others-are-not": case("kubernetes", "FORWARD", packet(OUTSIDE, "198.51.100.1", in_dev="eth0"), "drop"),
    "marked-is-forwarded": case(
        "kubernetes", "FORWARD", packet(OUTSIDE, "198.51.100.1", mark=0x4000), "pass mark 0x4000"
    ),
    "invalid": case("kubernetes", "FORWARD", packet(POD, FAR, state="INVALID"), "drop"),
    "localnet": case("kubernetes", "INPUT", packet(OUTSIDE, "127.0.0.1", in_dev="eth0"), "drop"),
    "localnet-by-dnat": case("kubernetes", "INPUT", packet(OUTSIDE, "127.0.0.1", dnat=True), "pass"),
    "marked-is-masqueraded-and-unmarked": case(
        "kubernetes",
        "POSTROUTING",
        packet(OUTSIDE, FAR, mark=0x4000, dnat=True, out_dev="flannel.1"),
        "pass masquerade",
    ),
    "overlay-is-not-masqueraded": case(
        "kubernetes", "POSTROUTING", packet(POD, FAR, out_dev="flannel.1"), "pass"
    ),
    "leaving-the-overlay": case(
        "kubernetes", "POSTROUTING", packet(POD, OUTSIDE, out_dev="eth0"), "pass masquerade"
    ),
    "to-a-pod-here": case("kubernetes", "POSTROUTING", packet(OUTSIDE, NEAR, out_dev="cni0"), "pass"),
    "to-a-pod-elsewhere": case(
        "kubernetes", "POSTROUTING", packet(OUTSIDE, FAR, out_dev="flannel.1"), "pass masquerade"
    ),
    "published-port": case(
        "docker", "PREROUTING", packet(OUTSIDE, HOST, "tcp", 8080, in_dev="eth0"), "172.17.0.2:80"
    ),
    "published-port-from-a-container": case(
        "docker", "PREROUTING", packet("172.17.0.3", HOST, "tcp", 8080, in_dev="docker0"), "pass"
    ),
    "published-port-from-here": case(
        "docker", "OUTPUT", packet(HOST, HOST, "tcp", 8080, out_dev="lo"), "172.17.0.2:80"
    ),
    "published-port-at-loopback": case(
        "docker", "OUTPUT", packet("127.0.0.1", "127.0.0.1", "tcp", 8080), "pass"
    ),
    "to-the-published-port": case(
        "docker", "FORWARD", packet(OUTSIDE, "172.17.0.2", in_dev="eth0", out_dev="docker0"), "pass"
    ),
    "to-another-port": case(
        "docker", "FORWARD", packet(OUTSIDE, "172.17.0.2", "tcp", 81, in_dev="eth0", out_dev="docker0"), "drop"
    ),
    "who-is-not-wanted": case(
        "docker", "FORWARD", packet("203.0.113.66", "172.17.0.2", in_dev="eth0", out_dev="docker0"), "drop"
    ),
    "between-networks": case(
        "docker",
        "FORWARD",
        packet("172.17.0.2", "172.18.0.2", in_dev="docker0", out_dev="br-1a2b3c4d5e6f"),
        "drop",
    ),
    "container-goes-out": case(
        "docker", "FORWARD", packet("172.17.0.2", OUTSIDE, in_dev="docker0", out_dev="eth0"), "pass"
    ),
    "overlay-beside-docker": case(
        "docker", "FORWARD", packet(POD, FAR, in_dev="cni0", out_dev="flannel.1"), "drop"
    ),
    "container-is-masqueraded": case(
        "docker",
        "POSTROUTING",
        packet("172.17.0.2", OUTSIDE, in_dev="docker0", out_dev="eth0"),
        "pass masquerade",
    ),
    "ssh-unless-too-often": case(
        "ufw", "INPUT", packet(OUTSIDE, HOST, "tcp", 22, in_dev="eth0"), "pass", "reject icmp-port-unreachable"
    ),
    "web": case("ufw", "INPUT", packet(OUTSIDE, HOST, "tcp", 443, in_dev="eth0"), "pass"),
    "ping": case("ufw", "INPUT", packet(OUTSIDE, HOST, "icmp", None, icmp_type=8, in_dev="eth0"), "pass"),
    "vxlan": case("ufw", "INPUT", packet("192.168.50.12", HOST, "udp", 8472, in_dev="eth0"), "drop"),
    "invalid-is-denied": case("ufw", "INPUT", packet(OUTSIDE, HOST, "tcp", 443, state="INVALID"), "drop"),
    "not-for-us": case("ufw", "INPUT", packet(OUTSIDE, "198.51.100.1", "tcp", 443, in_dev="eth0"), "drop"),
    "not-forwarded": case("ufw", "FORWARD", packet(POD, FAR, in_dev="cni0", out_dev="flannel.1"), "drop"),
    "answers-are": case("ufw", "FORWARD", packet(FAR, POD, state="ESTABLISHED", reply=True), "pass"),
    "public-port": case(
        "firewalld", "INPUT", packet("192.168.50.12", HOST, "udp", 8472, in_dev="eth0"), "pass"
    ),
    "private-port": case(
        "firewalld", "INPUT", packet(OUTSIDE, HOST, "tcp", 8080, in_dev="eth0"), "reject icmp-host-prohibited"
    ),
    "trusted-device": case(
        "firewalld", "FORWARD", packet(POD, FAR, in_dev="cni0", out_dev="flannel.1"), "pass"
    ),
    "device-without-zone": case(
        "firewalld",
        "FORWARD",
        packet(FAR, POD, in_dev="flannel.1", out_dev="cni0"),
        "reject icmp-host-prohibited",
    ),
    "by-the-way-back": case("firewalld", "PREROUTING", packet(OUTSIDE, HOST, in_dev="eth0"), "pass"),
    "by-another-way": case(
        "firewalld", "PREROUTING", packet(OUTSIDE, HOST, in_dev="eth0", reverse="other"), "drop"
    ),
    "from-a-workload": case(
        "calico",
        "FORWARD",
        packet("10.0.0.2", OUTSIDE, in_dev="cali12ab34cd56e", out_dev="eth0"),
        "pass mark 0x10000",
    ),
    "forged-vxlan": case(
        "calico", "FORWARD", packet("10.0.0.2", OUTSIDE, "udp", 4789, in_dev="cali12ab34cd56e"), "drop"
    ),
    "from-nobody": case("calico", "FORWARD", packet("10.0.0.2", OUTSIDE, in_dev="cali00000000000"), "drop"),
    "by-policy-or-not": case(
        "calico",
        "FORWARD",
        packet(OUTSIDE, "10.0.0.2", out_dev="cali12ab34cd56e"),
        "pass mark 0x10000 unread",
        "drop unread",
    ),
    "against-any-policy": case(
        "calico", "FORWARD", packet(OUTSIDE, "10.0.0.2", "tcp", 81, out_dev="cali12ab34cd56e"), "drop"
    ),
}


def told(before: Packet, passage: Passage) -> str:
    after = passage.packet
    words = [passage.verdict, passage.reject_with]
    if passage.verdict == "accept":
        translated = (after.dst, after.dst_port) != (before.dst, before.dst_port)
        words = [f"{after.dst}:{after.dst_port}" if translated else "pass"]
        words += [f"mark {after.mark:#x}"] if after.mark else []
        words += ["masquerade"] if passage.masquerade else []
    return " ".join(filter(None, [*words, "unread" if passage.unread else ""]))


def check(rules: RuleSet, one: Case) -> None:
    passages = traverse(rules, one.hook, one.packet, OWN)
    assert {told(one.packet, passage) for passage in passages} == one.expected
    assert len(passages) == len(one.expected)


def text_of(name: str) -> str:
    return (FILES / f"{name}.rules").read_text()


def read(name: str) -> RuleSet:
    return parse(re.sub("^-A", "[0:0] -A", text_of(name), flags=re.MULTILINE), "legacy")


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_as_they_are_written(name: str):
    check(read(CASES[name].rules), CASES[name])


@pytest.fixture(scope="module", params=["legacy", "nft"])
def kernels(request: pytest.FixtureRequest) -> Mapping[str, RuleSet]:
    """Each file but Calico's, which asks for sets of addresses that are not there."""
    found = {}
    for name in sorted({one.rules for one in CASES.values()} - {"calico"}):
        with private_netns() as host, host.entered():
            restore(request.param, text_of(name))
            found[name] = parse(run([f"iptables-{request.param}-save", "-c"]), request.param)
    return found


@pytest.mark.kernel
@requires_netns
def test_as_the_kernel_has_them(kernels: Mapping[str, RuleSet]):
    for one in CASES.values():
        if one.rules in kernels:
            check(kernels[one.rules], one)
    assert len(kernels) == 4


@pytest.mark.kernel
@requires_netns
def test_files_are_spelt_as_iptables_save_does(kernels: Mapping[str, RuleSet]):
    for name, rules in kernels.items():
        written = {key: {line.text for line in lines} for key, lines in read(name).chains.items() if lines}
        assert {key: {line.text for line in lines} for key, lines in rules.chains.items() if lines} == written
