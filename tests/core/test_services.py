"""How a host serves services: the endpoints it uses, the frontends it has, and what all of them share."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.model import KEYS, endpoint_slice, lease, local, network, node, pod, service, stored, subnet

from overlaynet.core import plan
from overlaynet.core.endpoints import ServiceEndpoint
from overlaynet.core.plan import Desired
from overlaynet.core.services import COMMON, Fronts, port_policy, service_source
from overlaynet.core.view import View
from overlaynet.model import CLUSTER, LOCAL, ServiceOptions, ServicePort, Settings, Stored
from overlaynet.state import Endpoint, ServicesPolicy, Sysctl

pytestmark = pytest.mark.unit

VIP = ip_address("10.112.0.10")
PUBLIC = ip_address("192.168.50.1")
OPTIONS = ServiceOptions(node_ips=(PUBLIC,))

# --- which endpoints ------------------------------------------------------------------------------


def ep(word: str, number: int) -> ServiceEndpoint:
    """``a:rs``: on node a, ready and serving; ``b:st@east``: with a hint for that zone; ``#`` for a node."""
    text, _, for_nodes = word.partition("#")
    text, _, for_zones = text.partition("@")
    host, _, has = text.partition(":")
    at = Endpoint(ip_address(f"10.244.1.{number}"), 8080)
    hints = [tuple(some.split(",")) if some else () for some in (for_zones, for_nodes)]
    return ServiceEndpoint(at, host, "r" in has, "s" in has, "t" in has, *hints)


def planned(words: str, fronts: Fronts | None = None, **changes):
    """How node a in zone east serves endpoints 1, 2, …; answers those of both policies by number."""
    endpoints = [ep(word, n) for n, word in enumerate(words.split(), 1)]
    asked = service(**changes)
    has = fronts or Fronts((VIP,), node_port=30080 if asked.type == "NodePort" else 0)
    return port_policy(asked, asked.ports[0], has, endpoints, "a", "east")


def numbers(endpoints) -> list[int]:
    return [int(one.ip) & 255 for one in endpoints]


@pytest.mark.parametrize(
    ("words", "cluster", "local_", "usable"),
    [
        pytest.param("", [], [], False, id="none"),
        pytest.param("a:rs b:rs", [1, 2], [1], True, id="ready"),
        pytest.param("b:rs", [1], [], True, id="ready-elsewhere"),
        pytest.param("a:s b:s", [], [], False, id="serving-but-not-ready"),
        pytest.param("a:t b:t", [], [], False, id="terminating-and-silent"),
        pytest.param("a:rs b:st", [1], [1], True, id="terminating-beside-a-ready-one"),
        pytest.param("a:st b:rs", [2], [1], True, id="local-fallback-stands-alone"),
        pytest.param("a:st b:st", [1, 2], [1], True, id="all-terminating"),
        pytest.param("b:st", [1], [], True, id="terminating-elsewhere"),
        pytest.param("a:r", [1], [1], True, id="published-though-not-ready"),
    ],
)
def test_endpoints_of_the_two_policies(words, cluster, local_, usable):
    policy = planned(words, type="NodePort", external_policy=LOCAL)
    assert (numbers(policy.cluster), numbers(policy.local), policy.usable) == (cluster, local_, usable)


@pytest.mark.parametrize(
    ("words", "cluster"),
    [
        pytest.param("a:rs@east b:rs@west", [1], id="same-zone"),
        pytest.param("a:rs@east,west b:rs@west", [1], id="several-zones"),
        pytest.param("a:rs@east b:rs", [1, 2], id="one-without-hints-switches-it-off"),
        pytest.param("a:rs@east b:st", [1], id="hints-of-what-is-not-ready-do-not-count"),
        pytest.param("a:rs@west b:rs@west", [1, 2], id="none-for-this-zone"),
        pytest.param("a:rs@east#a b:rs@east#b", [1], id="node-before-zone"),
        pytest.param("b:rs@east#b c:rs@west#c", [1], id="no-endpoint-for-this-node-so-by-zone"),
        pytest.param("a:rs#a b:rs@east", [1, 2], id="node-hints-on-some-zones-on-others"),
        pytest.param("a:rs@east#a b:rs@east", [1, 2], id="node-hints-on-some-so-by-zone"),
        pytest.param("a:st@west b:st@west", [1, 2], id="fallback-forgets-topology"),
    ],
)
def test_topology(words, cluster):
    assert numbers(planned(words).cluster) == cluster


def test_topology_says_nothing_about_local_endpoints():
    assert numbers(planned("a:rs@west b:rs@east", internal_policy=LOCAL).local) == [1]


@pytest.mark.parametrize(
    ("changes", "fronts", "uses"),
    [
        pytest.param({}, Fronts((VIP,)), "cluster", id="cluster"),
        pytest.param({"internal_policy": LOCAL}, Fronts((VIP,)), "local", id="internal-local"),
        pytest.param(
            {"internal_policy": LOCAL, "type": "NodePort"},
            Fronts((VIP,), node_port=1),
            "cluster local",
            id="internal-local-with-a-nodePort",
        ),
        pytest.param(
            {"external_policy": LOCAL, "type": "NodePort"},
            Fronts((VIP,), node_port=1),
            "cluster local",
            id="external-local-keeps-the-short-circuit",
        ),
        pytest.param(
            {"external_policy": LOCAL}, Fronts((VIP,)), "cluster", id="external-local-means-nothing-here"
        ),
        pytest.param(
            {"external_policy": LOCAL, "external_ips": (PUBLIC,)},
            Fronts((VIP,), (PUBLIC,)),
            "cluster local",
            id="external-local-with-externalIPs",
        ),
    ],
)
def test_policy_decides_which_sets_are_used(changes, fronts, uses):
    policy = planned("a:rs", fronts, **changes)
    assert " ".join(word for word in ("cluster", "local") if getattr(policy, word)) == uses


def test_flows_may_stay_with_whatever_still_serves():
    policy = planned("a:rs b:s b:st b:t a:r")
    assert sorted(int(one.ip) & 255 for one in policy.serving) == [1, 2, 3, 5]


def test_local_ready_counts_addresses_and_only_ready_ones():
    assert planned("a:rs a:rs a:st b:rs").local_ready == 2


# --- whole hosts ----------------------------------------------------------------------------------


def whole(*records, own=(), settings: Settings | None = None, **changes) -> Desired:
    items = [record if isinstance(record, Stored) else stored(record) for record in records]
    items += [stored(network()), stored(lease(1))]
    if settings:
        items.append(stored(settings, key=KEYS.settings))
    host = local(1, **{"services": OPTIONS, **changes})
    return plan.desired(View.of(items, KEYS), host, lease(1), own)


def policies(desired: Desired) -> dict:
    return {name: p for name, p in desired.policies.items() if name.startswith("service")}


def test_host_without_services_has_nothing_more_than_before():
    bare = whole(services=None)
    assert whole().policies == bare.policies
    assert whole(service(cluster_ips=())).objects == bare.objects


def test_host_that_serves_none_plans_none():
    assert policies(whole(service(), services=None)) == {}


def test_service_becomes_a_policy_for_each_port_and_one_for_all():
    ports = (ServicePort(80, name="http", target=8080), ServicePort(53, "UDP", "dns"))
    desired = whole(service(ports=ports), pod(2, 2))
    assert sorted(policies(desired)) == [
        "service default/web:dns/udp",
        "service default/web:http/tcp",
        "services",
    ]
    assert str(desired.policies["service default/web:http/tcp"].cluster[0]) == "10.244.2.2:8080"
    overlay = (ip_network("10.244.0.0/16"),)
    assert desired.policies["services"] == ServicesPolicy(
        (ip_network("10.112.0.0/16"),), node_ips=(PUBLIC,), local_sources=overlay, overlay=overlay
    )
    assert desired.slices[service_source("default/web")].objects == {}
    assert list(desired.slices[COMMON].policies) == ["services"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"cluster_ips": ()}, id="headless"),
        pytest.param({"labels": {"service.kubernetes.io/headless": ""}}, id="labelled-headless"),
        pytest.param({"labels": {"service.kubernetes.io/service-proxy-name": "x"}}, id="another-proxy's"),
        pytest.param({"ports": ()}, id="without-ports"),
    ],
)
def test_service_that_has_no_rules(changes):
    desired = whole(service(**changes), pod(2, 2))
    assert (policies(desired), desired.slices.get(COMMON)) == ({}, None)


@pytest.mark.parametrize(
    ("detect", "sources", "device"),
    [
        pytest.param("cluster-cidr", (ip_network("10.244.0.0/16"),), "", id="cluster-cidr"),
        pytest.param("node-cidr", (subnet(1),), "", id="node-cidr"),
        pytest.param("bridge", (), "cni0", id="bridge"),
        pytest.param("none", (), "", id="none"),
    ],
)
def test_how_a_container_is_told(detect, sources, device):
    policy = whole(service(), services=replace(OPTIONS, local_detect=detect)).policies["services"]
    assert (policy.local_sources, policy.local_device) == (sources, device)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, {"net/bridge/bridge-nf-call-iptables"}, id="bridge-of-ours"),
        pytest.param({"bridge_mode": "external"}, set(), id="somebody-else's-bridge"),
        pytest.param(
            {"services": replace(OPTIONS, localhost_node_ports=True)},
            {
                "net/bridge/bridge-nf-call-iptables",
                "net/ipv4/conf/cni0/route_localnet",
                "net/ipv4/conf/flannel.1/route_localnet",
            },
            id="nodePorts-on-localhost",
        ),
    ],
)
def test_sysctls_come_with_the_first_service(changes, expected):
    with_, without = (whole(*some, own=[pod(1, 2)], **changes) for some in ((service(),), ()))
    extra = with_.objects.keys() - without.objects.keys()
    assert {with_.objects[key].name for key in extra} == expected
    assert all(isinstance(with_.objects[key], Sysctl) for key in extra)


def test_virtual_ip_outside_of_the_service_network_is_a_stray():
    far = service("far", cluster_ips=(ip_address("10.96.0.5"),))
    desired = whole(service(), far)
    assert desired.policies["services"].strays == (ip_address("10.96.0.5"),)
    moved = whole(service(), far, settings=Settings(service_network=ip_network("10.96.0.0/16")))
    assert moved.policies["services"].strays == (VIP,)


# --- own containers -------------------------------------------------------------------------------


def cluster_of(desired: Desired, name: str = "service default/web/tcp") -> list[str]:
    return [str(one) for one in desired.policies[name].cluster]


def test_own_containers_are_known_from_here_and_not_from_the_store():
    desired = whole(service(), pod(1, 2), pod(2, 2), own=[pod(1, 3)])
    assert cluster_of(desired) == ["10.244.1.3:8080", "10.244.2.2:8080"]


def test_own_container_with_an_address_of_another_host_is_no_endpoint():
    assert cluster_of(whole(service(), own=[pod(7, 2, node="node-1")])) == []


def test_zone_of_a_node_makes_hints():
    desired = whole(
        service(distribution="PreferClose"),
        pod(2, 2),
        pod(3, 2),
        node(2, zone="east"),
        node(3, zone="west"),
        zone="west",
    )
    assert cluster_of(desired) == ["10.244.3.2:8080"]


def test_slice_joins_its_service_by_name():
    desired = whole(
        service(selector={}), endpoint_slice("x", "web", "10.9.0.1"), endpoint_slice("y", "db", "10.9.0.2")
    )
    assert cluster_of(desired) == ["10.9.0.1:8080"]


# --- frontends that two want ----------------------------------------------------------------------


def problems(desired: Desired) -> list[str]:
    return [p.message + " | " + p.evidence for some in desired.services.problems.values() for p in some]


@pytest.mark.parametrize("revisions", [(10, 20), (20, 10)])
def test_virtual_ip_that_two_services_want_goes_to_the_older(revisions):
    names = ("web", "web2")
    items = [
        Stored(KEYS.service(f"default/{n}"), service(n), r, 99) for n, r in zip(names, revisions, strict=True)
    ]
    desired = whole(*items)
    older, younger = sorted(names, key=dict(zip(names, revisions, strict=True)).__getitem__)
    assert list(policies(desired)) == [f"service default/{older}/tcp", "services"]
    (text,) = problems(desired)
    assert f"default/{younger} is not served on {VIP}:80/tcp: service default/{older} has it" in text
    assert "spec.clusterIPs[0]" in text


def test_loser_of_a_node_port_keeps_its_virtual_ip():
    ports = (ServicePort(80, target=8080, node_port=30080),)
    one = Stored(KEYS.service("default/a"), service("a", type="NodePort", ports=ports), 1, 1)
    two = service("b", type="NodePort", ports=ports, cluster_ips=(ip_address("10.112.0.11"),))
    desired = whole(one, Stored(KEYS.service("default/b"), two, 2, 2))
    assert [desired.policies[f"service default/{n}/tcp"].node_port for n in "ab"] == [30080, 0]
    assert "spec.ports[0].nodePort" in problems(desired)[0]


def test_same_number_with_another_protocol_is_another_frontend():
    udp = service("dns", ports=(ServicePort(80, "UDP"),))
    assert problems(whole(service(), udp)) == []


def test_health_check_port_is_a_frontend_of_its_own():
    balanced = {"type": "LoadBalancer", "external_policy": LOCAL, "health_check_node_port": 32000}
    one = Stored(KEYS.service("default/a"), service("a", **balanced), 1, 1)
    two = service("b", cluster_ips=(ip_address("10.112.0.11"),), **balanced)
    desired = whole(one, Stored(KEYS.service("default/b"), two, 2, 2))
    ports = [desired.policies[f"service default/{n}/tcp"].health_check_node_port for n in "ab"]
    assert ports == [32000, 0]
    assert "spec.healthCheckNodePort" in problems(desired)[0]
    plain = service("c", health_check_node_port=32000, external_policy=CLUSTER)
    assert whole(plain).policies["service default/c/tcp"].health_check_node_port == 0
