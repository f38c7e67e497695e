"""From records in etcd to real connections: what the planner makes of readiness, policies and hints is served.

Host 1 of `helpers.model` is A here and host 2 is B; their containers .2 and .3 are a1, a2, b1 and b2.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers.answering import REFUSED, SILENT, Answer
from helpers.model import KEYS, endpoint_slice, lease, local, network, node, pod, service, stored
from helpers.privilege import requires_netns
from helpers.service_net import ADDRESS, NODE_PORT, VIP, ServiceNet

from overlaynet.core import plan
from overlaynet.core.view import View
from overlaynet.model import HOST_GW, LOCAL, Port, ServiceOptions, ServicePort, SliceEndpoint, Stored, Workload

pytestmark = [pytest.mark.kernel, requires_netns]

PUBLIC = {number: (ip_address(ADDRESS[name]),) for number, name in ((1, "A"), (2, "B"))}
TERMINATING = {"ready": False, "serving": True, "terminating": True}
DEAD = {"ready": False, "serving": False, "terminating": True}
NOT_READY = {"ready": False, "serving": True}
ALL = {"a1", "a2", "b1", "b2"}

A1, A2, B1, B2 = pod(1, 2), pod(1, 3), pod(2, 2), pod(2, 3)
WEB = service()
AT_NODE = service(type="NodePort", ports=(ServicePort(80, target=8080, node_port=NODE_PORT),))
LOCAL_ONLY = replace(WEB, internal_policy=LOCAL)
EXTERNAL_LOCAL = replace(AT_NODE, external_policy=LOCAL)
BY_NAME = replace(WEB, ports=(ServicePort(80, target="web"),))
FROM_SLICE = replace(WEB, selector={})
SLICE = endpoint_slice("s", "web", ADDRESS["b1"], ADDRESS["b2"])
PUBLISHED = replace(WEB, publish_not_ready=True)
ZONES = (node(1, zone="east"), node(2, zone="west"))


def but(one: Workload, **conditions: object) -> Workload:
    return replace(one, **conditions)  # type: ignore[arg-type]


def naming(one: Workload, port: int) -> Workload:
    """With a port of its own under the name that the service asks for."""
    return replace(one, ports=(Port(port, name="web"),))


def hinted() -> object:
    """A slice that leaves b1 to the other zone."""
    found = endpoint_slice()
    ends = ((ADDRESS["a1"], "east"), (ADDRESS["b1"], "west"))
    return replace(
        found, endpoints=tuple(SliceEndpoint(ip_address(ip), for_zones=(zone,)) for ip, zone in ends)
    )


def serve(net: ServiceNet, *records: object) -> None:
    """Let A plan these, and put what comes of it in place."""
    leases = [lease(n, public_ips=PUBLIC[n], backend=HOST_GW) for n in (1, 2)]
    values = (network(backend=HOST_GW), *leases, *records)
    items = [value if isinstance(value, Stored) else stored(value) for value in values]
    own = [record for record in records if isinstance(record, Workload) and record.node == "node-1"]
    host = local(1, public_ips=PUBLIC[1], zone="east", services=ServiceOptions(node_ips=PUBLIC[1]))
    net.apply(plan.desired(View.of(items, KEYS), host, leases[0], own).policies)


def outcomes(net: ServiceNet, client: str, address: str, port: int, *, silent: bool) -> set[str]:
    """Of four endpoints one is missed by chance once in eight million times."""
    said = [net.ask(client, address, port, silent=silent) for _ in range(1 if silent else 60)]
    return {one.name if isinstance(one, Answer) else one for one in said}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param((WEB, A1, A2, B1, B2), ALL, id="all-that-are-ready"),
        pytest.param((WEB, A1, but(B1, **TERMINATING)), {"a1"}, id="terminating-beside-a-ready-one"),
        pytest.param((WEB, but(B1, **TERMINATING)), {"b1"}, id="only-terminating"),
        pytest.param((WEB, but(B1, **DEAD)), {REFUSED}, id="terminating-and-dead"),
        pytest.param((WEB, but(B1, **NOT_READY)), {REFUSED}, id="not-ready"),
        pytest.param((PUBLISHED, but(B1, **NOT_READY)), {"b1"}, id="published-anyway"),
        pytest.param((WEB,), {REFUSED}, id="none"),
        pytest.param((WEB, pod(1, 2, "db"), B1), {"b1"}, id="selected-by-label"),
        pytest.param((LOCAL_ONLY, A1, B1), {"a1"}, id="internal-local"),
        pytest.param((LOCAL_ONLY, B1), {SILENT}, id="internal-local-none-here"),
        pytest.param((LOCAL_ONLY, but(A1, **TERMINATING), B1), {"a1"}, id="internal-local-terminating-here"),
        pytest.param((LOCAL_ONLY,), {REFUSED}, id="internal-local-none-anywhere"),
        pytest.param((FROM_SLICE, SLICE), {"b1", "b2"}, id="slice"),
        pytest.param((WEB, A1, B1, SLICE), ALL - {"a2"}, id="both"),
        pytest.param((FROM_SLICE, *ZONES, hinted()), {"a1"}, id="hints-for-this-zone"),
        pytest.param((BY_NAME, naming(A1, 8080), naming(B1, 8081)), {"a1", "b1"}, id="port-by-name"),
    ],
)
def test_virtual_ip_is_answered_by(net: ServiceNet, records: tuple[object, ...], expected: set[str]) -> None:
    serve(net, *records)
    assert outcomes(net, "a2", VIP, 80, silent=expected == {SILENT}) == expected


@pytest.mark.parametrize(
    ("records", "client", "expected"),
    [
        pytest.param((AT_NODE, A1, B1), "X", {"a1", "b1"}, id="cluster"),
        pytest.param((EXTERNAL_LOCAL, A1, B1), "X", {"a1"}, id="local"),
        pytest.param((EXTERNAL_LOCAL, B1), "X", {SILENT}, id="local-none-here"),
        pytest.param((EXTERNAL_LOCAL, but(A1, **TERMINATING), B1), "X", {"a1"}, id="local-terminating-here"),
        pytest.param((EXTERNAL_LOCAL, B1), "a2", {"b1"}, id="local-container"),
        pytest.param((EXTERNAL_LOCAL, B1), "A", {"b1"}, id="local-host"),
        pytest.param((AT_NODE,), "X", {REFUSED}, id="none"),
    ],
)
def test_node_port_is_answered_by(
    net: ServiceNet, records: tuple[object, ...], client: str, expected: set[str]
) -> None:
    serve(net, *records)
    assert outcomes(net, client, ADDRESS["A"], NODE_PORT, silent=expected == {SILENT}) == expected


def test_virtual_ip_that_two_services_claim_leads_to_the_older_one(net: ServiceNet) -> None:
    younger = replace(stored(service("other")), create_revision=6)
    serve(net, younger, WEB, A1, pod(2, 2, "other"))
    assert outcomes(net, "a2", VIP, 80, silent=False) == {"a1"}
