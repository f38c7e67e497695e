"""While services change under traffic: no connection is lost, and nobody else's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.answering import REFUSED
from helpers.calling import calling
from helpers.eventually import eventually
from helpers.privilege import requires_netns
from helpers.service_net import EXTERNAL, VIP, VIP2, ServiceNet, service, udp

pytestmark = [pytest.mark.kernel, requires_netns]

ROUNDS = 8
NEIGHBOUR = service("a1", service="default/neighbour", cluster_ips=(ip_address(VIP2),))


def test_calls_never_fail_while_endpoints_change(net: ServiceNet) -> None:
    places = (("a1", "b1"), ("b1",), ("b2",), ("a1", "b1", "b2"))
    net.serve(service(*places[0]), udp(*places[0]), NEIGHBOUR)
    with calling(net.places["a2"], VIP, 80) as calls:
        for turn in range(ROUNDS):
            chosen, seen = places[turn % len(places)], len(calls.tcp)
            net.serve(service(*chosen), udp(*chosen), NEIGHBOUR)
            eventually(lambda seen=seen: len(calls.tcp) > seen + 5)
    assert not calls.tcp.failures
    assert not calls.udp.failures
    assert set(calls.tcp.names) == {"a1", "b1", "b2"}


def test_neighbours_calls_never_fail_while_a_service_comes_and_goes(net: ServiceNet) -> None:
    net.serve(NEIGHBOUR)
    with calling(net.places["a2"], VIP2, 80) as calls:
        for turn in range(ROUNDS):
            others = (service("b1"), service("b2", port_name="more", port=81)) if turn % 2 else ()
            net.serve(NEIGHBOUR, *others)
    assert not calls.tcp.failures


@pytest.mark.parametrize(
    ("client", "address"), [("a2", VIP), ("X", EXTERNAL)], ids=["cluster-ip", "external-ip"]
)
def test_calls_are_answered_or_refused_and_never_left_waiting_while_the_last_endpoint_comes_and_goes(
    net: ServiceNet, client: str, address: str
) -> None:
    external = (ip_address(EXTERNAL),)
    net.serve(service("b1", external_ips=external))
    with calling(net.places[client], address, 80) as calls:
        for turn in range(ROUNDS):
            seen = len(calls.tcp)
            net.serve(service(*(("b1",) if turn % 2 else ()), external_ips=external))
            eventually(lambda seen=seen: len(calls.tcp) > seen + 5)
    assert set(calls.tcp.failures) <= {REFUSED}
    assert calls.tcp.failures
    assert calls.tcp.names
