"""Which endpoints a service port has: by selector, by slice, in order, with conditions and hints."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.model import endpoint_slice, pod, service, workload

from overlaynet.core.endpoints import Members, ServiceEndpoint, port_endpoints
from overlaynet.core.serviceindex import selects
from overlaynet.model import EndpointSlice, Port, ServicePort, SliceEndpoint

pytestmark = pytest.mark.unit

ZONES = {"node-1": "east", "node-2": "west"}


def found(*workloads, slices=(), stale=(), of=None, port=None, here="") -> tuple[ServiceEndpoint, ...]:
    asked = of or service()
    members = Members(tuple(workloads), tuple(stale), tuple(slices))
    return port_endpoints(asked, port or asked.ports[0], members, ZONES.get, here)


def texts(endpoints) -> list[str]:
    return [str(one.at) for one in endpoints]


def conditions(one: ServiceEndpoint) -> str:
    return "".join(letter for letter, on in zip("rst", one[2:5], strict=True) if on)


# --- who is chosen --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "labels", "chosen"),
    [
        pytest.param({"app": "web"}, {"app": "web", "tier": "1"}, True, id="all-pairs-there"),
        pytest.param({"app": "web", "tier": "1"}, {"app": "web"}, False, id="one-pair-missing"),
        pytest.param({"app": "web"}, {"app": "db"}, False, id="another-value"),
        pytest.param({}, {"app": "web"}, False, id="an-empty-selector-chooses-none"),
    ],
)
def test_selector(selector, labels, chosen):
    assert selects(service(selector=selector), workload(labels=labels)) is chosen


def test_workload_of_another_namespace_is_not_chosen():
    assert not selects(service(), pod(namespace="other"))


# --- order and de-duplication ---------------------------------------------------------------------


def test_order_is_that_of_the_text_and_not_of_the_address():
    assert texts(found(pod(1, 2), pod(1, 10), pod(2, 3))) == [
        "10.244.1.10:8080",
        "10.244.1.2:8080",
        "10.244.2.3:8080",
    ]


def test_slices_and_workloads_are_joined():
    slices = [endpoint_slice("a", "web", "10.9.0.1", "10.9.0.2"), endpoint_slice("b", "web", "10.9.0.2")]
    assert texts(found(pod(1, 2), slices=slices)) == ["10.244.1.2:8080", "10.9.0.1:8080", "10.9.0.2:8080"]


def test_workloads_word_counts_before_a_slices():
    same = endpoint_slice("a", "web", "10.244.1.2", ready=False, node="node-9")
    (one,) = found(pod(1, 2), slices=[same])
    assert (one.host, one.ready) == ("node-1", True)


def test_local_copy_in_a_slice_counts_before_one_elsewhere():
    slices = [
        endpoint_slice("a", "web", "10.9.0.1", node="node-2"),
        endpoint_slice("b", "web", "10.9.0.1", node="node-1"),
    ]
    assert [one.host for one in found(slices=slices, here="node-1")] == ["node-1"]
    assert [one.host for one in found(slices=slices)] == ["node-2"]


def test_endpoint_of_the_other_family_is_left_out():
    both = pod(1, 2, ips=(ip_address("10.244.1.2"), ip_address("fd00::2")))
    assert texts(found(both)) == ["10.244.1.2:8080"]
    assert texts(found(both, of=service(cluster_ips=()))) == ["10.244.1.2:8080", "[fd00::2]:8080"]


# --- ports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "ports", "expected"),
    [
        pytest.param(ServicePort(80, target=8080), (), ["10.244.1.2:8080"], id="number"),
        pytest.param(ServicePort(80), (), ["10.244.1.2:80"], id="none-is-the-service's-own"),
        pytest.param(
            ServicePort(80, target="http"), (Port(9000, name="http"),), ["10.244.1.2:9000"], id="by-name"
        ),
        pytest.param(ServicePort(80, target="http"), (Port(9000, name="www"),), [], id="no-port-of-that-name"),
        pytest.param(
            ServicePort(53, "UDP", target="dns"),
            (Port(5300, "TCP", "dns"), Port(5301, "UDP", "dns")),
            ["10.244.1.2:5301"],
            id="name-and-protocol",
        ),
    ],
)
def test_target_port_of_a_workload(port, ports, expected):
    assert texts(found(pod(1, 2, ports=ports), port=port)) == expected


def test_named_target_may_be_another_number_on_each_endpoint():
    port = ServicePort(80, target="http")
    pods = [pod(1, 2, ports=(Port(8080, name="http"),)), pod(1, 3, ports=(Port(9090, name="http"),))]
    assert texts(found(*pods, port=port)) == ["10.244.1.2:8080", "10.244.1.3:9090"]


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        pytest.param(ServicePort(80, name="http", target=1), ["10.9.0.1:8080"], id="by-name-never-by-target"),
        pytest.param(ServicePort(53, "UDP", "dns"), ["10.9.0.1:53"], id="protocol-too"),
        pytest.param(ServicePort(53, "TCP", "dns"), [], id="of-another-protocol"),
        pytest.param(ServicePort(80), [], id="unnamed-port-of-a-slice-that-has-none"),
    ],
)
def test_port_of_a_slice(port, expected):
    ports = (Port(8080, "TCP", "http"), Port(53, "UDP", "dns"))
    one = EndpointSlice("a", "default", "web", ports, (SliceEndpoint(ip_address("10.9.0.1")),))
    assert texts(found(slices=[one], port=port)) == expected


# --- conditions and hints -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload_has", "publish", "expected"),
    [
        pytest.param({}, False, "rs", id="well"),
        pytest.param({"ready": False, "serving": False}, False, "", id="not-ready"),
        pytest.param({"ready": False, "serving": False}, True, "r", id="published-all-the-same"),
        pytest.param({"terminating": True}, False, "st", id="terminating-is-never-ready"),
        pytest.param({"terminating": True}, True, "rst", id="terminating-and-published"),
    ],
)
def test_conditions_of_a_workload(workload_has, publish, expected):
    (one,) = found(pod(1, 2, **workload_has), of=service(publish_not_ready=publish))
    assert conditions(one) == expected


@pytest.mark.parametrize(
    ("distribution", "zones", "nodes"),
    [
        pytest.param("", (), (), id="none"),
        pytest.param("PreferClose", ("east",), (), id="close"),
        pytest.param("PreferSameZone", ("east",), (), id="same-zone"),
        pytest.param("PreferSameNode", ("east",), ("node-1",), id="same-node"),
        pytest.param("PreferTheMoon", (), (), id="unknown"),
    ],
)
def test_traffic_distribution_becomes_hints(distribution, zones, nodes):
    (one,) = found(pod(1, 2), of=service(distribution=distribution))
    assert (one.for_zones, one.for_nodes) == (zones, nodes)


def test_no_hints_without_a_zone_and_none_for_what_is_not_ready():
    of = service(distribution="PreferClose")
    assert found(pod(3, 2), of=of)[0].for_zones == ()
    assert found(pod(1, 2, terminating=True), of=of)[0].for_zones == ()


def test_stale_workload_is_marked_and_gives_way_to_one_that_is_not():
    assert [one.stale for one in found(pod(1, 2), stale=[pod(2, 2)])] == [False, True]
    moved = pod(2, 9, ips=(ip_address("10.244.1.2"),))
    assert [(one.stale, one.host) for one in found(pod(1, 2), stale=[moved])] == [(False, "node-1")]
