"""What becomes of packets to planned services: kube-proxy's consequences and its walk-throughs, as a table."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.model import KEYS, lease, local, network, pod, service, stored

from overlaynet.core import plan
from overlaynet.core.view import View
from overlaynet.model import CLUSTER, LOCAL, ServiceOptions, ServicePort
from overlaynet.trace.servicewalk import Packet, walk

pytestmark = pytest.mark.unit

PORTS = (ServicePort(80, target=8080, node_port=30080),)
BALANCED = {
    "type": "LoadBalancer",
    "external_ips": (ip_address("203.0.113.1"),),
    "ingress_ips": (ip_address("203.0.113.2"),),
    "ports": PORTS,
}
OPTIONS = ServiceOptions(node_ips=(ip_address("192.168.50.1"),))
OWN = [ip_address(text) for text in ("192.168.50.1", "10.244.1.0", "10.244.1.1", "172.16.0.1")]
SENDERS = {
    "container": ("10.244.1.9", "cni0"),
    "a1": ("10.244.1.2", "cni0"),
    "host": ("192.168.50.1", None),
    "outside": ("198.51.100.7", "eth0"),
    "elsewhere": ("10.244.2.9", "flannel.1"),
}
TARGETS = {
    "vip": ("10.112.0.10", 80),
    "external": ("203.0.113.1", 80),
    "balancer": ("203.0.113.2", 80),
    "nodeport": ("192.168.50.1", 30080),
}


def planned(*workloads, options: ServiceOptions = OPTIONS, **changes):
    """The policies of host 1 with service web over these containers."""
    records = [network(), lease(1), service(**{**BALANCED, **changes}), *workloads]
    view = View.of(map(stored, records), KEYS)
    own = [one for one in workloads if one.node == "node-1"]
    return plan.desired(view, local(1, services=options), lease(1), own).policies.values()


def becomes(policies, sender: str, target: str | tuple[str, int], protocol: str = "tcp") -> str:
    src, device = SENDERS[sender]
    dst, port = TARGETS[target] if isinstance(target, str) else target
    found = walk(policies, Packet(ip_address(src), ip_address(dst), protocol, port, device), OWN)
    words = {str(one).replace(":8080", "").removeprefix("10.244.") for one in found}
    return ", ".join(sorted(words))


A1, B1 = pod(1, 2), pod(2, 2)
DYING = {"ready": False, "terminating": True}

# --- the consequences -----------------------------------------------------------------------------

ITP, ETP = {"internal_policy": LOCAL}, {"external_policy": LOCAL}
CONSEQUENCES = [
    pytest.param([], {}, "reject", "reject", id="no-endpoint"),
    pytest.param([], ITP | ETP, "reject", "reject", id="no-endpoint-whatever-the-policies"),
    pytest.param([A1, B1], {}, "1.2, 2.2", "1.2 masqueraded, 2.2 masqueraded", id="two"),
    pytest.param([B1], ITP, "drop", "2.2 masqueraded", id="internal-local-and-none-here"),
    pytest.param([B1], ETP, "2.2", "drop", id="external-local-and-none-here"),
    pytest.param([A1, B1], ITP | ETP, "1.2", "1.2", id="local-keeps-the-client's-address"),
    pytest.param([pod(2, 2, **DYING)], {}, "2.2", "2.2 masqueraded", id="only-a-terminating-one"),
    pytest.param([pod(1, 2, **DYING), B1], {}, "2.2", "2.2 masqueraded", id="terminating-beside-a-ready-one"),
    pytest.param([pod(1, 2, **DYING), B1], ETP, "2.2", "1.2", id="terminating-here-and-ready-elsewhere"),
    pytest.param([pod(2, 2, ready=False)], {}, "reject", "reject", id="not-ready-but-serving"),
    pytest.param([pod(2, 2, **DYING, serving=False)], {}, "reject", "reject", id="terminating-and-silent"),
]


@pytest.mark.parametrize(("workloads", "changes", "internal", "external"), CONSEQUENCES)
def test_consequence(workloads, changes, internal, external):
    policies = planned(*workloads, **changes)
    assert becomes(policies, "container", "vip") == internal
    for target in ("external", "balancer", "nodeport"):
        assert becomes(policies, "outside", target) == external


# --- who is masqueraded, and who is taken where ---------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "target", "changes", "expected"),
    [
        pytest.param("container", "vip", {}, "2.2", id="container-to-vip-keeps-its-address"),
        pytest.param("host", "vip", {}, "2.2 masqueraded", id="host-to-vip"),
        pytest.param("outside", "vip", {}, "2.2 masqueraded", id="outside-to-vip"),
        pytest.param("elsewhere", "vip", {}, "2.2", id="container-elsewhere-to-vip"),
        pytest.param("outside", "nodeport", {}, "2.2 masqueraded", id="outside-to-nodePort"),
        pytest.param("host", "nodeport", {}, "2.2 masqueraded", id="host-to-its-nodePort"),
        pytest.param("container", "balancer", ETP, "2.2", id="container-short-circuit"),
        pytest.param("host", "balancer", ETP, "2.2 masqueraded", id="host-short-circuit"),
        pytest.param("host", "nodeport", ETP, "2.2 masqueraded", id="host-short-circuit-to-nodePort"),
        pytest.param("outside", "balancer", ETP, "drop", id="outside-has-no-short-circuit"),
    ],
)
def test_where_a_packet_is_taken(sender, target, changes, expected):
    assert becomes(planned(B1, **changes), sender, target) == expected


def test_endpoint_that_calls_itself_is_masqueraded():
    assert becomes(planned(A1, B1), "a1", "vip") == "1.2 masqueraded, 2.2"


@pytest.mark.parametrize(
    ("options", "masqueraded"),
    [
        pytest.param({}, {"host", "outside"}, id="cluster-cidr"),
        pytest.param({"local_detect": "node-cidr"}, {"host", "outside", "elsewhere"}, id="node-cidr"),
        pytest.param({"local_detect": "bridge"}, {"host", "outside", "elsewhere"}, id="bridge"),
        pytest.param({"local_detect": "none"}, set(), id="none"),
        pytest.param(
            {"masquerade_all": True}, {"host", "outside", "elsewhere", "container", "a1"}, id="everything"
        ),
    ],
)
def test_who_is_masqueraded_on_the_way_to_a_virtual_ip(options, masqueraded):
    policies = planned(B1, options=replace(OPTIONS, **options))
    found = {sender for sender in SENDERS if "masqueraded" in becomes(policies, sender, "vip")}
    assert found == masqueraded


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sender", "dst", "expected"),
    [
        pytest.param({}, "outside", "192.168.50.1", "2.2 masqueraded", id="primary"),
        pytest.param({}, "outside", "172.16.0.1", "pass", id="another-address-of-ours"),
        pytest.param({"node_ips": None}, "outside", "172.16.0.1", "2.2 masqueraded", id="all"),
        pytest.param({"node_ips": None}, "outside", "192.168.50.2", "pass", id="another-host's"),
        pytest.param({"node_ips": None}, "host", "127.0.0.1", "pass", id="loopback-unless-asked-for"),
        pytest.param(
            {"localhost_node_ports": True}, "host", "127.0.0.1", "2.2 masqueraded", id="loopback-asked-for"
        ),
    ],
)
def test_addresses_of_a_node_port(options, sender, dst, expected):
    assert becomes(planned(B1, options=replace(OPTIONS, **options)), sender, (dst, 30080)) == expected


def test_loopback_is_guarded_where_node_ports_are_served_there():
    policies = planned(B1, options=replace(OPTIONS, localhost_node_ports=True))
    assert becomes(policies, "outside", ("127.0.0.1", 22)) == "drop"


@pytest.mark.parametrize(
    ("sender", "target", "expected"),
    [
        pytest.param("container", ("10.112.0.10", 81), "reject", id="unused-port-of-a-vip"),
        pytest.param("host", ("10.112.77.7", 80), "reject", id="unallocated-vip"),
        pytest.param("container", ("10.96.0.5", 81), "reject", id="unused-port-of-a-stray-vip"),
        pytest.param("container", ("10.96.0.6", 80), "pass", id="beside-a-stray-vip"),
        pytest.param("container", ("203.0.113.1", 81), "pass", id="unused-port-of-an-externalIP"),
        pytest.param("container", ("10.244.2.2", 8080), "pass", id="endpoint-itself"),
    ],
)
def test_what_is_no_service(sender, target, expected):
    policies = planned(B1, cluster_ips=(ip_address("10.112.0.10"), ip_address("10.96.0.5")))
    assert becomes(policies, sender, target) == expected


def test_protocol_tells_services_apart():
    assert becomes(planned(B1), "container", "vip", "udp") == "reject"


@pytest.mark.parametrize(
    ("ranges", "sender", "target", "expected"),
    [
        pytest.param("198.51.100.0/24", "outside", "balancer", "2.2 masqueraded", id="inside"),
        pytest.param("198.51.101.0/24", "outside", "balancer", "drop", id="not-inside"),
        pytest.param("198.51.101.0/24", "outside", "nodeport", "2.2 masqueraded", id="nodePort-is-open"),
        pytest.param("198.51.101.0/24", "outside", "external", "2.2 masqueraded", id="externalIP-is-open"),
        pytest.param("198.51.101.0/24", "container", "vip", "2.2", id="vip-is-open"),
    ],
)
def test_source_ranges_bar_the_balancers_address_alone(ranges, sender, target, expected):
    assert becomes(planned(B1, source_ranges=(ip_network(ranges),)), sender, target) == expected


def test_source_ranges_without_endpoints_reject():
    barred = planned(source_ranges=(ip_network("198.51.101.0/24"),))
    assert becomes(barred, "outside", "balancer") == "reject"


def test_host_process_to_an_external_ip_without_endpoints_is_on_its_own():
    assert becomes(planned(), "host", "external") == "pass"
    assert becomes(planned(), "host", "nodeport") == "reject"


def test_host_without_services_lets_everything_pass():
    assert becomes(planned(cluster_ips=()), "container", "vip") == "pass"
    assert becomes(planned(internal_policy=CLUSTER, options=None), "container", "vip") == "pass"
