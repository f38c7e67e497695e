"""NodePorts, external addresses, load balancers': who may come in, whom endpoints see, what is refused.

The client X is outside. What comes in this way is masqueraded, so that the reply passes here again; under
external traffic policy Local it is not, and only endpoints of this host answer it.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.answering import REFUSED, SILENT, Answer
from helpers.privilege import requires_netns
from helpers.service_net import (
    ADDRESS,
    BRIDGE,
    COMMON,
    EXTERNAL,
    INGRESS,
    NODE_PORT,
    VIP,
    ServiceNet,
    node_port,
    service,
    udp,
)
from services.cases import Case, Outcome

from overlaynet.state import ServicePortPolicy

pytestmark = [pytest.mark.kernel, requires_netns]

A, A_BRIDGE = ADDRESS["A"], BRIDGE["A"]
STRANGER = "10.77.0.1"
EVERY_ADDRESS = replace(COMMON, node_ips=None)
NO_DETECTOR = replace(COMMON, local_sources=())
TWO = ("a1", "b1")
HERE_TOO = node_port(*TWO, local=("a1",), external_local=True)
ELSEWHERE = node_port("b1", external_local=True)
NOWHERE = node_port()


def external(*cluster: str, **fields: object) -> ServicePortPolicy:
    return service(*cluster, external_ips=(ip_address(EXTERNAL),), **fields)


def ingress(*cluster: str, ranges: tuple[str, ...] = (), **fields: object) -> ServicePortPolicy:
    sources = tuple(map(ip_network, ranges))
    return service(*cluster, ingress_ips=(ip_address(INGRESS),), source_ranges=sources, **fields)


def at_node(name: str, ports: tuple[ServicePortPolicy, ...], *rest: object, **more: object) -> Case:
    """A case that asks for the nodePort."""
    return Case(name, ports, *rest, **{"address": A, "port": NODE_PORT, **more})  # type: ignore[arg-type]


NODE_PORTS = (
    at_node("outside-is-masqueraded", (node_port("b1"),), "X", {"b1": "A"}),
    at_node("outside-is-masqueraded-on-the-bridge", (node_port("a1"),), "X", {"a1": A_BRIDGE}),
    at_node("outside-by-udp", (udp("b1", node_port=NODE_PORT),), "X", {"b1": "A"}, protocol="udp"),
    at_node("every-endpoint-is-used", (node_port("b1", "b2"),), "X", {"b1": "A", "b2": "A"}),
    at_node("container-is-masqueraded", (node_port("b1"),), "a2", {"b1": "A"}),
    at_node("container-reaches-itself", (node_port("a1"),), "a1", {"a1": A_BRIDGE}),
    at_node("container-elsewhere", (node_port("b1"),), "b2", {"b1": "A"}),
    at_node("endpoint-is-this-host", (node_port("A"),), "X", {"A": "X"}),
    at_node("host-itself", (node_port("b1"),), "A", {"b1": "A"}),
    at_node("other-host", (node_port("b1"),), "B", {"b1": "A"}),
    at_node("other-address-is-closed", (node_port("b1"),), "X", REFUSED, address=A_BRIDGE),
    at_node(
        "every-address",
        (node_port("b1"),),
        "X",
        {"b1": "A"},
        address=A_BRIDGE,
        common=EVERY_ADDRESS,
    ),
    at_node("primary-address-among-all", (node_port("b1"),), "X", {"b1": "A"}, common=EVERY_ADDRESS),
    at_node("loopback-is-closed", (node_port("b1"),), "A", REFUSED, address="127.0.0.1"),
    at_node("local-sees-the-client", (HERE_TOO,), "X", {"a1": "X"}, times=20),
    at_node("local-short-circuit-of-a-container", (HERE_TOO,), "a2", {"a1": "a2", "b1": "a2"}),
    at_node("local-short-circuit-of-the-host", (HERE_TOO,), "A", {"a1": A_BRIDGE, "b1": "A"}),
    at_node("local-elsewhere-container", (ELSEWHERE,), "a2", {"b1": "a2"}),
    at_node("local-elsewhere-host", (ELSEWHERE,), "A", {"b1": "A"}),
    at_node("local-elsewhere-drops-the-outside", (ELSEWHERE,), "X", SILENT),
    at_node("local-elsewhere-no-detector", (ELSEWHERE,), "a2", SILENT, common=NO_DETECTOR),
    at_node(
        "local-elsewhere-udp",
        (udp("b1", external_local=True, node_port=NODE_PORT),),
        "X",
        SILENT,
        protocol="udp",
    ),
    at_node("no-endpoints", (NOWHERE,), "X", REFUSED),
    at_node("no-endpoints-container", (NOWHERE,), "a2", REFUSED),
    at_node("no-endpoints-udp", (udp(node_port=NODE_PORT),), "X", REFUSED, protocol="udp"),
    at_node("no-endpoints-policy-local", (replace(NOWHERE, external_local=True),), "X", REFUSED),
    at_node("hosts-own-server-is-left-alone", (node_port("b1"),), "X", {"A": "X"}, port=8080),
)


def to_external(name: str, ports: tuple[ServicePortPolicy, ...], *rest: object, **more: object) -> Case:
    return Case(name, ports, *rest, **{"address": EXTERNAL, **more})  # type: ignore[arg-type]


LOCAL_EXTERNAL = external(*TWO, local=("a1",), external_local=True)
EXTERNAL_IPS = (
    to_external("outside", (external("b1"),), "X", {"b1": "A"}),
    to_external("container", (external("b1"),), "a2", {"b1": "A"}),
    to_external("host", (external("b1"),), "A", {"b1": "A"}),
    to_external("local-sees-the-client", (LOCAL_EXTERNAL,), "X", {"a1": "X"}, times=20),
    to_external("local-short-circuit-of-a-container", (LOCAL_EXTERNAL,), "a2", {"a1": "a2", "b1": "a2"}),
    to_external("local-elsewhere", (external("b1", external_local=True),), "X", SILENT),
    to_external("no-endpoints", (external(),), "X", REFUSED),
    to_external("no-endpoints-container", (external(),), "a2", REFUSED),
    to_external(
        "nodeport-is-closed-there", (external("b1", node_port=NODE_PORT),), "X", SILENT, port=NODE_PORT
    ),
    to_external("not-bound-by-internal-policy", (external("b1", internal_local=True),), "X", {"b1": "A"}),
)


def to_ingress(name: str, ports: tuple[ServicePortPolicy, ...], *rest: object, **more: object) -> Case:
    return Case(name, ports, *rest, **{"address": INGRESS, **more})  # type: ignore[arg-type]


ONLY_X = ingress("b1", ranges=("192.168.50.50/32",), node_port=NODE_PORT)
NODE_TOO = ingress("b1", ranges=("192.168.50.50/32", f"{A}/32"))
WITH_EXTERNAL = replace(ONLY_X, external_ips=(ip_address(EXTERNAL),))
LOCAL_INGRESS = ingress(*TWO, local=("a1",), external_local=True)
INGRESSES = (
    to_ingress("outside", (ingress("b1"),), "X", {"b1": "A"}),
    to_ingress("container", (ingress("b1"),), "a2", {"b1": "A"}),
    to_ingress("host", (ingress("b1"),), "A", {"b1": "A"}),
    to_ingress("local-sees-the-client", (LOCAL_INGRESS,), "X", {"a1": "X"}, times=20),
    to_ingress("local-short-circuit-of-a-container", (LOCAL_INGRESS,), "a2", {"a1": "a2", "b1": "a2"}),
    to_ingress("local-elsewhere", (ingress("b1", external_local=True),), "X", SILENT),
    to_ingress("no-endpoints", (ingress(),), "X", REFUSED),
    to_ingress("range-lets-in", (ONLY_X,), "X", {"b1": "A"}),
    to_ingress("range-keeps-out", (ONLY_X,), "X", SILENT, source=STRANGER),
    to_ingress("range-keeps-a-container-out", (ONLY_X,), "a2", SILENT),
    to_ingress("range-keeps-the-host-out", (ONLY_X,), "A", SILENT),
    to_ingress("range-lets-the-host-in", (NODE_TOO,), "A", {"b1": "A"}),
    to_ingress("range-and-no-endpoints", (ingress(ranges=("192.168.50.50/32",)),), "X", REFUSED),
    to_ingress(
        "range-does-not-bind-nodeports",
        (ONLY_X,),
        "X",
        {"b1": "A"},
        source=STRANGER,
        address=A,
        port=NODE_PORT,
    ),
    to_ingress(
        "range-does-not-bind-external-addresses",
        (WITH_EXTERNAL,),
        "X",
        {"b1": "A"},
        source=STRANGER,
        address=EXTERNAL,
    ),
    to_ingress(
        "range-does-not-bind-the-virtual-ip",
        (ONLY_X,),
        "X",
        {"b1": "A"},
        source=STRANGER,
        address=VIP,
    ),
)


@pytest.mark.parametrize("case", NODE_PORTS, ids=str)
def test_node_port(net: ServiceNet, case: Case) -> None:
    case.check(net)


@pytest.mark.parametrize("case", EXTERNAL_IPS, ids=str)
def test_external_ip(net: ServiceNet, case: Case) -> None:
    case.check(net)


@pytest.mark.parametrize("case", INGRESSES, ids=str)
def test_ingress_ip(net: ServiceNet, case: Case) -> None:
    case.check(net)


@pytest.mark.parametrize(
    ("case", "ranges"),
    [({"b1": "A"}, ("10.9.0.0/16", f"{A}/32")), (SILENT, ("10.9.0.0/16",))],
    ids=["host-in-range", "host-not-in-range"],
)
def test_host_that_has_the_ingress_address_itself(
    net: ServiceNet, case: Outcome, ranges: tuple[str, ...]
) -> None:
    """It uses that very address as source when it speaks to it."""
    net.places["A"].run(f"ip address add {INGRESS}/32 dev lo")
    try:
        to_ingress("own-address", (ingress("b1", ranges=ranges),), "A", case).check(net)
    finally:
        net.places["A"].run(f"ip address del {INGRESS}/32 dev lo")


def test_health_check_node_port_is_let_in_where_the_host_drops(net: ServiceNet) -> None:
    port = 32_000
    net.servers.listen(net.places["A"], "health", "tcp", port)
    net.serve(ingress("a1", local=("a1",), external_local=True, health_check_node_port=port))
    net.iptables("-P INPUT DROP")
    said = net.ask("X", A, port)
    assert isinstance(said, Answer)
    assert said.name == "health"
    assert net.ask("X", A, 8080, silent=True) == SILENT
