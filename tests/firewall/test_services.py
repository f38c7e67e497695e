"""Services as rules. What becomes of a packet is told twice, by the policies (`servicewalk`) and by the rules
rendered from them (`rulewalk`), and must be the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers import firewall_cases
from helpers.firewall_cases import (
    HERE,
    HERE_TOO,
    HOST_IP,
    LIMITED,
    OPEN,
    OVERLAY,
    SERVICE_NETWORK,
    SERVICES,
    STICKY,
    WEB,
    services,
)
from helpers.rulewalk import walk as by_rules
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.firewall.chains import CHAIN_NAME_MAX
from overlaynet.firewall.render import Renderer, render
from overlaynet.firewall.services import Affinity, short_hash
from overlaynet.state import (
    Endpoint,
    ForwardAccept,
    Masquerade,
    Policy,
    ServicePortPolicy,
    ServicesPolicy,
    Source,
)
from overlaynet.trace.servicewalk import Packet
from overlaynet.trace.servicewalk import walk as by_policies

pytestmark = pytest.mark.unit

OWN = (HOST_IP, ip_address("10.244.1.1"), ip_address("203.0.113.20"))
"""The last is a load balancer's that this host has taken."""
LOOPBACK = ip_address("127.0.0.1")
OUTSIDE, ALLOWED = ip_address("203.0.113.200"), ip_address("198.51.100.200")


def ips(*texts: str):
    return tuple(ip_address(text) for text in texts)


ENDPOINTS = (HERE, HERE_TOO, Endpoint(ip_address("10.244.2.2"), 8080), Endpoint(ip_address("10.244.3.9"), 53))
RANGES = (ip_network("198.51.100.0/24"), ip_network("192.168.50.0/24"))


@st.composite
def service_ports(draw: st.DrawFn, number: int) -> ServicePortPolicy:
    """One port as the planner may make it, with frontends of its own."""
    some = st.lists(st.sampled_from(ENDPOINTS), unique=True, max_size=3).map(
        lambda es: tuple(sorted(es, key=str))
    )
    local, others = draw(some), draw(some)
    cluster = tuple(sorted({*local, *others}, key=str))
    return ServicePortPolicy(
        f"default/web-{number}",
        draw(st.sampled_from(["", "http"])),
        draw(st.sampled_from(["tcp", "udp", "sctp"])),
        draw(st.sampled_from([80, 53])),
        cluster_ips=ips(f"10.112.0.1{number}"),
        external_ips=draw(st.sampled_from([ips(f"203.0.113.1{number}"), ()])),
        ingress_ips=draw(st.sampled_from([ips(f"203.0.113.2{number}"), ()])),
        source_ranges=draw(st.sampled_from([(), RANGES[:1], RANGES])),
        node_port=draw(st.sampled_from([30080 + number, 0])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        affinity_s=draw(st.sampled_from([0, 10])),
        cluster=cluster,
        local=local,
        usable=bool(cluster),
    )


COMMON = st.builds(
    ServicesPolicy,
    st.just((SERVICE_NETWORK,)),
    strays=st.sampled_from([(), ips("172.20.0.9")]),
    node_ips=st.sampled_from([None, (), (HOST_IP,), OWN]),
    local_sources=st.sampled_from([(), OVERLAY, (*OVERLAY, ip_network("10.5.0.0/16"))]),
    local_device=st.sampled_from(["", "cni0"]),
    masquerade_all=st.booleans(),
    localhost_node_ports=st.booleans(),
    drop_invalid=st.booleans(),
)
SOURCES = [*(e.ip for e in ENDPOINTS), *ips("10.244.1.9", "10.5.0.9"), OUTSIDE, ALLOWED]
NOBODYS = [*ips("10.112.9.9", "172.20.0.9"), OUTSIDE, HERE.ip]
"""Addresses that no service has."""


@st.composite
def packets(draw: st.DrawFn, ports: tuple[ServicePortPolicy, ...]) -> Packet:
    """Mostly to an address of a service; from a container, from outside or from this host, by any device."""
    port = draw(st.sampled_from(ports))
    balanced = (*port.external_ips, *port.ingress_ips)
    device = draw(st.sampled_from(["cni0", "flannel.1", "eth0", None, None]))
    sources = SOURCES if device else [*OWN, LOOPBACK, *balanced]
    frontend = st.sampled_from([(ip, port.port) for ip in (*port.cluster_ips, *balanced)])
    node = st.sampled_from([(ip, port.node_port or port.port) for ip in (*OWN, LOOPBACK)])
    other = st.sampled_from([(ip, 9) for ip in (*port.cluster_ips, *balanced, *NOBODYS, *OWN)])
    dst, number = draw(st.one_of(frontend, frontend, node, other))
    return Packet(
        draw(st.sampled_from(sources)), dst, draw(st.sampled_from([port.protocol, "udp"])), number, device
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Mapping[str, Policy], list[Packet]]:
    ports = (draw(service_ports(0)), draw(service_ports(1)))
    policies: Mapping[str, Policy] = {"services": draw(COMMON), **{f"service {p.name}": p for p in ports}}
    return policies, draw(st.lists(packets(ports), min_size=1, max_size=10))


@given(cases(), st.sampled_from(["ipset", "recent"]))
def test_rules_do_with_a_packet_what_the_policies_say(
    case: tuple[Mapping[str, Policy], list[Packet]], affinity: Affinity
):
    policies, sent = case
    rules = render(policies, random_fully=True, affinity=affinity)
    for packet in sent:
        assert by_rules(rules, packet, OWN) == by_policies(policies.values(), packet, OWN)


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("ns1/svc1:p80tcp", "XPGD46QRK7WJ"),
        ("default/nginxtcp", "2CMXP7HKUVJN"),
        ("ns1/svc1:p80tcp10.180.0.1:80", "SXIVWICOYRO3"),
    ],
)
def test_hash_is_how_kube_proxys_begins(text: str, beginning: str):
    assert short_hash(text) == beginning


def test_rules_of_a_service_port_name_its_service():
    rules = render(services(STICKY), random_fully=True)
    mine = {text for key, texts in rules.chains.items() for text in texts if "default/web:http" in text}
    named = {
        text
        for key, texts in rules.chains.items()
        for text, source in zip(texts, rules.origins[key], strict=True)
        if source == Source("service", "default/web")
    }
    assert mine == named != set()


def test_another_timeout_is_another_set():
    before, after = (render(services(replace(STICKY, affinity_s=s)), random_fully=True).sets for s in (10, 11))
    assert set(before.values()) == {10}
    assert set(after.values()) == {11}
    assert before.keys().isdisjoint(after)


def test_names_fit_with_the_longest_instance():
    rules = render(services(replace(LIMITED, affinity_s=1)), random_fully=True, instance="i" * 7)
    assert max(len(chain) for _, chain in rules.chains) <= CHAIN_NAME_MAX
    assert max(map(len, rules.sets)) <= 31
    assert not [text for texts in rules.chains.values() for text in texts if " OVL-S" in text]


def test_what_we_marked_is_masqueraded_before_anything_else_and_foreign_marks_are_left_to_others():
    own = Masquerade(OVERLAY, firewall_cases.OWN)
    with_services, without = (
        render(policies, random_fully=True).chains[("nat", "OVL-POSTROUTING")][0]
        for policies in ({"m": own, "services": SERVICES}, {"m": own})
    )
    assert with_services.endswith("-j OVL-MASQUERADE")
    assert without.endswith("-j RETURN")


def test_rejects_come_before_what_lets_containers_through():
    rules = render({**services(WEB), "forward": ForwardAccept(OVERLAY)}, random_fully=True)
    chains = [text.rsplit(" ", 1)[1] for text in rules.hooks[("filter", "FORWARD")]]
    assert chains == ["OVL-PROXY-FIREWALL", "OVL-EXTERNAL", "OVL-SERVICES", "OVL-FORWARD"]


def test_service_port_without_the_shared_rules_is_nothing():
    assert not render({"service": OPEN}, random_fully=True).chains


def test_unchanged_policies_are_the_same_objects_and_changed_ones_are_new():
    renderer = Renderer(random_fully=True)
    other = replace(WEB, service="default/other", cluster_ips=ips("10.112.0.11"))
    first = renderer(services(WEB, other))
    assert renderer(services(WEB, replace(other))) is first
    changed = services(replace(WEB, cluster=(HERE,)), other, shared=replace(SERVICES, strays=(OUTSIDE,)))
    second = renderer(changed)
    kept = {key for key, rules in second.chains.items() if first.chains.get(key) is rules}
    svc = short_hash("default/other:httptcp")
    assert ("nat", f"OVL-SVC-{svc}") in kept
    assert second == render(changed, random_fully=True)


@pytest.mark.parametrize(
    ("common", "dropped"),
    [
        pytest.param(
            replace(SERVICES, overlay=OVERLAY, local_sources=firewall_cases.OWN),
            ["-s 10.244.0.0/16", "-d 10.112.0.0/16"],
            id="of-the-overlay-and-the-service-network",
        ),
        pytest.param(
            replace(SERVICES, local_sources=(), local_device="cni0", strays=ips("172.20.0.9")),
            ["-i cni0", "-d 10.112.0.0/16", "-d 172.20.0.9/32"],
            id="of-a-device",
        ),
        pytest.param(replace(SERVICES, local_sources=()), [""], id="all-where-nothing-tells-containers"),
        pytest.param(replace(SERVICES, drop_invalid=False), [], id="none"),
    ],
)
def test_invalid_packets_are_dropped_where_they_may_belong_to_a_service(
    common: ServicesPolicy, dropped: list[str]
):
    texts = render({"services": common}, random_fully=True).chains[("filter", "OVL-FORWARD")]
    found = [text.partition("-m conntrack --ctstate INVALID")[0].strip() for text in texts if "INVALID" in text]
    assert found == dropped
