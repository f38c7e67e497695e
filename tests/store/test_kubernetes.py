"""Kubernetes objects: what is read of them, what is refused and how it is named."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.keys import Keys
from overlaynet.errors import ObjectInvalid
from overlaynet.model import (
    LOCAL,
    Allocation,
    EndpointSlice,
    Port,
    Service,
    ServicePort,
    SliceEndpoint,
    Unreadable,
)
from overlaynet.ports import KeyValue
from overlaynet.store import codec, kubernetes
from overlaynet.store.place import dotted

pytestmark = pytest.mark.unit
KEYS = Keys()


def service(spec: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    """A Service `default/web` with a VIP and port 80; `spec` is laid over its own."""
    usual = {"clusterIP": "10.112.0.10", "selector": {"app": "web"}, "ports": [{"port": 80}]}
    made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": usual | (spec or {})}
    return made | members


def endpoint_slice(**members: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"]}],
        "ports": [{"name": "http", "port": 8080}],
    } | members


def mistakes(value: dict[str, Any]) -> dict[str, str]:
    """What is wrong with an object, by field."""
    with pytest.raises(ObjectInvalid) as caught:
        kubernetes.read(value)
    assert caught.value.exit_code == 2
    return {dotted(path): problem for path, problem in caught.value.mistakes}


def read_service(spec: dict[str, Any] | None = None, **members: Any) -> Service:
    found = kubernetes.read(service(spec, **members))
    assert isinstance(found, Service)
    return found


def read_slice(**members: Any) -> EndpointSlice:
    found = kubernetes.read(endpoint_slice(**members))
    assert isinstance(found, EndpointSlice)
    return found


# --- services -------------------------------------------------------------------------------------


def test_a_plain_service_has_the_defaults_of_kubernetes() -> None:
    assert read_service() == Service(
        name="web",
        namespace="default",
        cluster_ips=(IPv4Address("10.112.0.10"),),
        ports=(ServicePort(80, "TCP", "", 80),),
        selector={"app": "web"},
    )


def test_every_member_that_counts_is_read() -> None:
    found = read_service(
        {
            "type": "LoadBalancer",
            "clusterIP": "10.112.0.10",
            "clusterIPs": ["10.112.0.10", "fd00:10::10"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            ],
            "externalIPs": ["198.51.100.1"],
            "loadBalancerSourceRanges": [" 192.0.2.7/24 "],
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30999,
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "publishNotReadyAddresses": True,
            "trafficDistribution": "PreferClose",
        },
        status={"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}, {"ip": "203.0.113.6", "ipMode": "Proxy"}]}},
    )
    assert found.cluster_ips == (IPv4Address("10.112.0.10"), IPv6Address("fd00:10::10"))
    assert found.ports == (ServicePort(80, "TCP", "http", "web", 30080), ServicePort(53, "UDP", "dns", 5353))
    assert (found.internal_policy, found.external_policy) == (LOCAL, LOCAL)
    assert found.ingress_ips == (IPv4Address("203.0.113.5"),), "ipMode Proxy is served by the balancer alone"
    assert found.source_ranges == (IPv4Network("192.0.2.0/24"),)
    assert (found.health_check_node_port, found.affinity_s) == (30999, 60)
    assert (found.publish_not_ready, found.distribution) == (True, "PreferClose")


def test_affinity_without_a_timeout_lasts_three_hours() -> None:
    assert read_service({"sessionAffinity": "ClientIP"}).affinity_s == 10_800


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None"},
        {"clusterIP": "None", "clusterIPs": ["None"], "ports": []},
        {"type": "ExternalName", "clusterIP": "", "externalName": "db.example.net", "ports": None},
    ],
)
def test_headless_services_and_names_have_no_vip(spec: dict[str, Any]) -> None:
    assert read_service(spec).cluster_ips == ()


@pytest.mark.parametrize("name", ["headless", "service-proxy-name"])
def test_a_service_of_another_proxy_is_not_served(name: str) -> None:
    labels = {f"service.kubernetes.io/{name}": ""}
    assert read_service().served
    assert not read_service(metadata={"name": "web", "labels": labels}).served
    assert not read_service({"clusterIP": "None"}).served


def test_a_port_of_a_null_target_or_zero_node_port_is_as_if_it_said_neither() -> None:
    ports = [{"port": 80, "targetPort": None, "nodePort": 0}]
    assert read_service({"ports": ports}).ports == (ServicePort(80, "TCP", "", 80),)


WRONG = [
    ({"type": "Nodeport"}, "spec.type"),
    ({"clusterIP": "10.112.0"}, "spec.clusterIP"),
    ({"clusterIP": "127.0.0.1"}, "spec.clusterIP"),
    ({"clusterIPs": ["10.112.0.11"]}, "spec.clusterIPs"),
    ({"clusterIPs": ["10.112.0.10", "10.112.0.11"]}, "spec.clusterIPs"),
    ({"clusterIPs": ["10.112.0.10", "x"]}, "spec.clusterIPs[1]"),
    ({"clusterIP": "None", "type": "NodePort"}, "spec.clusterIP"),
    ({"clusterIP": "", "type": "ExternalName"}, "spec.externalName"),
    ({"clusterIP": "10.112.0.10", "type": "ExternalName", "externalName": "a.example"}, "spec.clusterIP"),
    ({"ports": []}, "spec.ports"),
    ({"ports": {}}, "spec.ports"),
    ({"ports": [80]}, "spec.ports[0]"),
    ({"ports": [{}]}, "spec.ports[0].port"),
    ({"ports": [{"port": "80"}]}, "spec.ports[0].port"),
    ({"ports": [{"port": True}]}, "spec.ports[0].port"),
    ({"ports": [{"port": 65536}]}, "spec.ports[0].port"),
    ({"ports": [{"port": 80, "protocol": "tcp"}]}, "spec.ports[0].protocol"),
    ({"ports": [{"port": 80, "name": "HTTP"}]}, "spec.ports[0].name"),
    ({"ports": [{"port": 80, "targetPort": "a--b"}]}, "spec.ports[0].targetPort"),
    ({"ports": [{"port": 80, "targetPort": 70000}]}, "spec.ports[0].targetPort"),
    ({"ports": [{"port": 80, "nodePort": 30080}]}, "spec.ports[0].nodePort"),
    ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 8080}]}, "spec.ports[0].nodePort"),
    ({"ports": [{"port": 80, "name": "a"}, {"port": 81}]}, "spec.ports[1].name"),
    ({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}, "spec.ports[1].name"),
    ({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}, "spec.ports[1].port"),
    ({"selector": {"app": 1}}, "spec.selector.app"),
    ({"selector": {"app": "ä"}}, "spec.selector.app"),
    ({"selector": ["app"]}, "spec.selector"),
    ({"externalIPs": ["169.254.1.1"]}, "spec.externalIPs[0]"),
    ({"loadBalancerSourceRanges": ["192.0.2.0/24"]}, "spec.loadBalancerSourceRanges"),
    ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.1"]}, "spec.loadBalancerSourceRanges[0]"),
    ({"internalTrafficPolicy": "local"}, "spec.internalTrafficPolicy"),
    ({"externalTrafficPolicy": "Local"}, "spec.externalTrafficPolicy"),
    ({"type": "LoadBalancer", "healthCheckNodePort": 30999}, "spec.healthCheckNodePort"),
    ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity"),
    ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, "spec.sessionAffinityConfig"),
    (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    ),
    ({"publishNotReadyAddresses": "yes"}, "spec.publishNotReadyAddresses"),
    ({"trafficDistribution": "Close"}, "spec.trafficDistribution"),
]


@pytest.mark.parametrize(("spec", "field"), WRONG, ids=[field + str(n) for n, (_, field) in enumerate(WRONG)])
def test_a_wrong_member_is_the_one_that_is_named(spec: dict[str, Any], field: str) -> None:
    assert list(mistakes(service(spec))) == [field]


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"apiVersion": "v2"}, "apiVersion"),
        ({"kind": "Pod"}, "kind"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "Web"}}, "metadata.name"),
        ({"metadata": {"name": "a/b"}}, "metadata.name"),
        ({"metadata": {"name": "web", "namespace": "a/b"}}, "metadata.namespace"),
        ({"metadata": {"name": "web", "labels": {"a/b/c": "x"}}}, "metadata.labels[a/b/c]"),
        ({"status": {"loadBalancer": {"ingress": [{"ip": "x"}]}}}, "status.loadBalancer.ingress[0].ip"),
    ],
)
def test_a_wrong_member_outside_of_the_spec_is_named(members: dict[str, Any], field: str) -> None:
    assert field in mistakes(service(**members))


def test_a_service_needs_a_spec() -> None:
    value = service()
    del value["spec"]
    assert "spec" in mistakes(value)


def test_all_mistakes_of_an_object_are_told_at_once() -> None:
    found = mistakes(service({"type": "x", "clusterIP": "y", "ports": [{"port": 0}, {"name": "B"}]}))
    assert {"spec.type", "spec.clusterIP", "spec.ports[0].port", "spec.ports[1].port"} <= found.keys()


# --- slices ---------------------------------------------------------------------------------------


def test_a_slice_is_read_with_conditions_hints_and_defaults() -> None:
    found = read_slice(
        endpoints=[
            {"addresses": ["10.244.1.2", "10.244.1.3"], "conditions": {"ready": None}, "nodeName": "node-1"},
            {
                "addresses": ["10.244.2.2"],
                "conditions": {"ready": False, "serving": True, "terminating": True},
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-2"}]},
            },
        ],
        ports=[{"port": 80}, {"name": "all", "port": None}],
    )
    assert found == EndpointSlice(
        name="web-1",
        namespace="default",
        service="web",
        ports=(Port(80, "TCP", ""),),
        endpoints=(
            SliceEndpoint(IPv4Address("10.244.1.2"), "node-1"),
            SliceEndpoint(IPv4Address("10.244.2.2"), None, False, True, True, ("a",), ("node-2",)),
        ),
    )


def test_a_slice_of_names_has_no_endpoints_and_one_without_label_no_service() -> None:
    found = read_slice(
        metadata={"name": "web.1"}, addressType="FQDN", endpoints=[{"addresses": ["db.example.net"]}]
    )
    assert (found.endpoints, found.service) == ((), "")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"addressType": None}, "addressType"),
        ({"addressType": "ipv4"}, "addressType"),
        ({"endpoints": [{"addresses": []}]}, "endpoints[0].addresses"),
        ({"endpoints": [{"addresses": ["fd00::1"]}]}, "endpoints[0].addresses[0]"),
        (
            {"endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": 1}}]},
            "endpoints[0].conditions.ready",
        ),
        ({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]}, "ports[1].name"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "ports[0].protocol"),
    ],
)
def test_a_wrong_member_of_a_slice_is_named(members: dict[str, Any], field: str) -> None:
    assert list(mistakes(endpoint_slice(**members))) == [field]


# --- there and back -------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
LABELS = st.dictionaries(NAMES, NAMES, max_size=2)
ADDRESSES = st.integers(1, 250).map(lambda n: IPv4Address(f"198.51.100.{n}"))


@st.composite
def services(draw: st.DrawFn) -> Service:
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    open_ = kind != "ClusterIP"
    ports = tuple(
        ServicePort(
            80 + n, draw(st.sampled_from(["TCP", "UDP", "SCTP"])), name, 80 + n, 30080 + n if open_ else 0
        )
        for n, name in enumerate(names)
    )
    local = open_ and draw(st.booleans())
    return Service(
        name=draw(NAMES),
        namespace=draw(NAMES),
        type=kind,
        cluster_ips=(IPv4Address("10.112.0.9"),),
        ports=ports,
        selector=draw(LABELS),
        labels=draw(LABELS),
        external_ips=tuple(draw(st.lists(ADDRESSES, max_size=2))),
        ingress_ips=tuple(draw(st.lists(ADDRESSES, max_size=2))),
        source_ranges=(IPv4Network("192.0.2.0/24"),) if kind == "LoadBalancer" else (),
        external_policy=LOCAL if local else "Cluster",
        affinity_s=draw(st.sampled_from([0, 1, 86_400])),
        health_check_node_port=31000 if local and kind == "LoadBalancer" else 0,
        publish_not_ready=draw(st.booleans()),
        distribution=draw(st.sampled_from(["", "PreferSameNode"])),
    )


@given(services())
def test_a_service_that_is_written_reads_the_same(value: Service) -> None:
    stored = codec.encode_object(kubernetes.service_object(value))
    assert codec.decode(KeyValue(KEYS.service(value.id), stored), KEYS).value == value


def test_a_slice_that_is_written_reads_the_same() -> None:
    value = read_slice(endpoints=[{"addresses": ["10.244.1.2"], "hints": {"forNodes": [{"name": "node-1"}]}}])
    stored = codec.encode_object(kubernetes.slice_object(value))
    assert codec.decode(KeyValue(KEYS.slice(value.id), stored), KEYS).value == value


# --- in etcd --------------------------------------------------------------------------------------


def test_a_bad_object_is_unreadable_with_every_field() -> None:
    bad = codec.encode_object(service({"ports": [{"port": 0}, {"port": 80, "name": "B"}]}))
    found = codec.decode(KeyValue(KEYS.service("default/web"), bad), KEYS).value
    assert isinstance(found, Unreadable)
    assert "spec.ports[0].port: must be from 1 to 65535, not 0" in found.reason
    assert "spec.ports[1].name" in found.reason


def test_an_object_under_the_key_of_another_is_unreadable() -> None:
    stored = codec.encode_object(service())
    assert isinstance(codec.decode(KeyValue(KEYS.service("other/web"), stored), KEYS).value, Unreadable)


def test_members_that_are_not_understood_stay_in_the_stored_bytes() -> None:
    value = service(future={"a": [1]})
    value["metadata"] = {"name": "web", "managedFields": [{"manager": "kubectl"}], "annotations": {"x": "ü"}}
    assert json.loads(codec.encode_object(value)) == value


def test_allocations_are_read_by_their_keys() -> None:
    stored = codec.encode_allocation(Allocation("default/web"))
    for key in (KEYS.vip(IPv4Address("10.112.0.10")), KEYS.node_port("UDP", 30053)):
        assert codec.decode(KeyValue(key, stored), KEYS).value == Allocation("default/web")
    for key in (KEYS.vips + "10.112", KEYS.node_ports + "icmp-1", KEYS.node_ports + "tcp-"):
        assert isinstance(codec.decode(KeyValue(key, stored), KEYS).value, Unreadable)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda c: st.lists(c) | st.dictionaries(st.text(max_size=3), c),
        max_leaves=4,
    ),
    st.data(),
)
def test_whatever_stands_where_a_member_should_be_is_refused_or_read_but_never_raises_otherwise(
    junk: Any, data: st.DataObject
) -> None:
    value = copy.deepcopy(data.draw(st.sampled_from([service(), endpoint_slice()])))
    target: Any = value
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(target[key], dict | list) or not target[key] or data.draw(st.booleans()):
            target[key] = junk
            break
        target = target[key]
    with suppress(ObjectInvalid):
        kubernetes.read(value)
