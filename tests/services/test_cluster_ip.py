"""What a service's virtual IP does: who answers, whom they see asking, and what is refused or met with silence.

Endpoints on the asking container's own host, or masqueraded to, see the bridge's address.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.answering import REFUSED, SILENT, Answer, ask_often, connected
from helpers.privilege import requires_netns
from helpers.service_net import BRIDGE, COMMON, OWN, VIP, VIP2, ServiceNet, service, udp
from services.cases import Case

pytestmark = [pytest.mark.kernel, requires_netns]

A_BRIDGE = BRIDGE["A"]
MASQUERADE_ALL = replace(COMMON, masquerade_all=True)
NODE_CIDR = replace(COMMON, local_sources=OWN["A"])
BY_BRIDGE = replace(COMMON, local_sources=(), local_device="cni0")
NO_DETECTOR = replace(COMMON, local_sources=())
STRAY = "203.0.113.200"

REACHED = (
    Case("container-keeps-its-address", (service("b1"),), "a2", {"b1": "a2"}),
    Case("container-keeps-its-address-on-its-own-host", (service("a1"),), "a2", {"a1": "a2"}),
    Case("container-by-udp", (udp("b1"),), "a2", {"b1": "a2"}, protocol="udp"),
    Case("every-endpoint-is-used", (service("a1", "b1", "b2"),), "a2", dict.fromkeys(("a1", "b1", "b2"), "a2")),
    Case("host-is-masqueraded", (service("b1"),), "A", {"b1": "A"}),
    Case("host-is-masqueraded-on-its-bridge", (service("a1"),), "A", {"a1": A_BRIDGE}),
    Case("host-by-udp", (udp("b1"),), "A", {"b1": "A"}, protocol="udp"),
    Case("outside-is-masqueraded", (service("b1"),), "X", {"b1": "A"}),
    Case("outside-is-masqueraded-on-the-bridge", (service("a1"),), "X", {"a1": A_BRIDGE}),
    Case("outside-by-udp", (udp("b1"),), "X", {"b1": "A"}, protocol="udp"),
    Case("container-reaches-itself", (service("a1"),), "a1", {"a1": A_BRIDGE}),
    Case("container-reaches-itself-by-udp", (udp("a1"),), "a1", {"a1": A_BRIDGE}, protocol="udp"),
    Case("endpoint-outside-the-overlay", (service("B"),), "a2", {"B": "A"}),
    Case("endpoint-is-this-host", (service("A"),), "a2", {"A": "a2"}),
    Case("masquerade-all-hides-a-container", (service("b1"),), "a2", {"b1": "A"}, common=MASQUERADE_ALL),
    Case("masquerade-all-on-the-bridge", (service("a1"),), "a2", {"a1": A_BRIDGE}, common=MASQUERADE_ALL),
    Case("own-subnet-is-local-by-node-cidr", (service("b1"),), "a2", {"b1": "a2"}, common=NODE_CIDR),
    Case("outside-is-not-local-by-node-cidr", (service("b1"),), "X", {"b1": "A"}, common=NODE_CIDR),
    Case("bridge-tells-a-container", (service("b1"),), "a2", {"b1": "a2"}, common=BY_BRIDGE),
    Case("bridge-tells-a-container-on-it", (service("a1"),), "a2", {"a1": "a2"}, common=BY_BRIDGE),
    Case("bridge-tells-the-host", (service("a1"),), "A", {"a1": A_BRIDGE}, common=BY_BRIDGE),
    Case("bridge-tells-the-outside", (service("b1"),), "X", {"b1": "A"}, common=BY_BRIDGE),
    Case("no-detector-no-masquerade", (service("a1"),), "X", {"a1": "X"}, common=NO_DETECTOR),
    Case("no-detector-no-masquerade-of-the-host", (service("a1"),), "A", {"a1": "A"}, common=NO_DETECTOR),
    Case("no-detector-still-reaches-itself", (service("a1"),), "a1", {"a1": A_BRIDGE}, common=NO_DETECTOR),
    Case("port-without-name", (service("b1", port_name=""),), "a2", {"b1": "a2"}),
    Case(
        "vip-outside-of-the-network",
        (service("b1", cluster_ips=(ip_address(STRAY),)),),
        "a2",
        {"b1": "a2"},
        STRAY,
    ),
    Case(
        "endpoint-here-is-preferred-by-policy-local",
        (service("a1", "b1", local=("a1",), internal_local=True),),
        "a2",
        {"a1": "a2"},
        times=20,
    ),
    Case(
        "host-under-policy-local",
        (service("a1", "b1", local=("a1",), internal_local=True),),
        "A",
        {"a1": A_BRIDGE},
        times=20,
    ),
)

EMPTY, EMPTY_UDP = service(), udp()
ELSEWHERE = service("b1", internal_local=True)
ELSEWHERE_UDP = udp("b1", internal_local=True)
OTHER = "10.112.0.99"
WITH_STRAY = replace(COMMON, strays=(ip_address(STRAY),))
STRAY_SERVICE = service("b1", cluster_ips=(ip_address(STRAY),))

REFUSED_ONES = (
    *(Case(f"no-endpoints-{who}", (EMPTY,), who, REFUSED) for who in ("a2", "A", "X")),
    *(Case(f"no-endpoints-udp-{who}", (EMPTY_UDP,), who, REFUSED, protocol="udp") for who in ("a2", "A", "X")),
    Case("no-endpoints-policy-local", (replace(EMPTY, internal_local=True),), "a2", REFUSED),
    *(Case(f"unused-port-{who}", (service("b1"),), who, REFUSED, port=81) for who in ("a2", "A", "X")),
    *(
        Case(f"unused-port-udp-{who}", (service("b1"),), who, REFUSED, protocol="udp")
        for who in ("a2", "A", "X")
    ),
    *(Case(f"unallocated-vip-{who}", (service("b1"),), who, REFUSED, OTHER) for who in ("a2", "A", "X")),
    Case("unallocated-vip-udp", (service("b1"),), "a2", REFUSED, OTHER, protocol="udp"),
    Case("unused-port-of-a-stray", (STRAY_SERVICE,), "a2", REFUSED, STRAY, 81, common=WITH_STRAY),
    Case("stray-without-endpoints", (replace(STRAY_SERVICE, cluster=(), usable=False),), "a2", REFUSED, STRAY),
)

SILENT_ONES = (
    *(Case(f"endpoints-elsewhere-{who}", (ELSEWHERE,), who, SILENT) for who in ("a2", "A", "X")),
    Case("endpoints-elsewhere-udp", (ELSEWHERE_UDP,), "a2", SILENT, protocol="udp"),
)


@pytest.mark.parametrize("case", REACHED, ids=str)
def test_endpoint_answers(net: ServiceNet, case: Case) -> None:
    case.check(net)


@pytest.mark.parametrize("case", REFUSED_ONES, ids=str)
def test_refused_at_once(net: ServiceNet, case: Case) -> None:
    case.check(net)


@pytest.mark.parametrize("case", SILENT_ONES, ids=str)
def test_dropped_without_a_word(net: ServiceNet, case: Case) -> None:
    case.check(net)


def test_every_endpoint_has_a_port_of_its_own(net: ServiceNet) -> None:
    net.serve(service("a1:8080", "b1:8081"))
    said = ask_often([net.asker("a2", VIP, 80)] * 20)
    assert {(answer.name, answer.port) for answer in said} == {("a1", 8080), ("b1", 8081)}


def test_two_endpoints_of_one_container_are_two(net: ServiceNet) -> None:
    net.serve(service("b1:8080", "b1:8081"))
    assert {answer.port for answer in ask_often([net.asker("a2", VIP, 80)] * 20)} == {8080, 8081}


def test_ports_and_protocols_of_one_service_lead_each_to_its_own_endpoints(net: ServiceNet) -> None:
    net.serve(
        service("a1"),
        udp("b1", port_name="http-udp"),
        service("b2:8081", port_name="admin", port=81),
        service("b1", service="default/other", cluster_ips=(ip_address(VIP2),)),
    )
    asked = ((VIP, 80, "tcp"), (VIP, 80, "udp"), (VIP, 81, "tcp"), (VIP2, 80, "tcp"))
    said = [net.ask("a2", *question) for question in asked]
    assert [(a.name, a.port) for a in said if isinstance(a, Answer)] == [
        ("a1", 8080),
        ("b1", 8080),
        ("b2", 8081),
        ("b1", 8080),
    ]


def test_each_host_serves_the_virtual_ip_to_its_own_containers(net: ServiceNet) -> None:
    common = replace(COMMON, node_ips=(ip_address("192.168.50.12"),))
    net.serve(service("a1"), on="A")
    net.serve(service("a1"), on="B", common=common)
    said = ask_often([net.asker(client, VIP, 80) for client in ("a2", "b1", "B")])
    assert [(a.name, a.peer) for a in said] == [
        ("a1", "10.244.1.3"),
        ("a1", "10.244.2.2"),
        ("a1", "192.168.50.12"),
    ]


def test_network_of_virtual_ips_may_be_any(net: ServiceNet) -> None:
    common = replace(COMMON, networks=(ip_network("10.96.0.0/16"), ip_network("10.112.0.0/16")))
    net.serve(service("b1"), common=common)
    assert net.ask("a2", "10.96.0.1", 80) == REFUSED
    assert net.ask("a2", OTHER, 80) == REFUSED


def test_established_connection_outlives_its_endpoint_in_the_rules(net: ServiceNet) -> None:
    net.serve(service("b1"))
    with net.places["a2"].entered(), connected(VIP, 80) as client:
        assert client.recv(99).startswith(b"b1 ")
        net.serve(service("b2"))
        client.sendall(b"still there?")
        assert client.recv(99) == b"still there?"
    assert {a.name for a in ask_often([net.asker("a2", VIP, 80)] * 5)} == {"b2"}


def test_removed_service_is_refused_and_others_go_on(net: ServiceNet) -> None:
    other = service("b2", service="default/other", cluster_ips=(ip_address(VIP2),))
    net.serve(service("b1"), other)
    assert isinstance(net.ask("a2", VIP, 80), Answer)
    net.serve(other)
    assert net.ask("a2", VIP, 80) == REFUSED
    assert isinstance(net.ask("a2", VIP2, 80), Answer)


def test_containers_speak_to_each_other_and_the_outside_as_before(net: ServiceNet) -> None:
    net.serve(service("b1"))
    said = ask_often([net.asker(*pair, 8080) for pair in (("a1", "10.244.1.3"), ("a1", "10.244.2.2"))])
    assert [answer.peer for answer in said] == ["10.244.1.2", "10.244.1.2"]
    outside = net.ask("a1", "192.168.50.12", 8080)
    assert isinstance(outside, Answer)
    assert outside.peer == "192.168.50.11"
