"""Which endpoint answers: by chance in equal shares, or by session affinity always the same one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from itertools import islice
from math import sqrt
from unittest import mock

import pytest
from helpers.answering import Answer, ask, ask_often
from helpers.calling import calling
from helpers.eventually import eventually
from helpers.privilege import requires_netns
from helpers.service_net import (
    ADDRESS,
    CROWD,
    NODE_PORT,
    VIP,
    VIP2,
    ServiceNet,
    endpoints,
    node_port,
    service,
    udp,
)

from overlaynet.firewall.iptables import Iptables

pytestmark = [pytest.mark.kernel, requires_netns]

THREE, TWO = ("a1", "b1", "b2"), ("a1", "b1")
HOUR_S = 3_600


def by_chance(count: int, share: float) -> tuple[float, float]:
    """What an endpoint with that share of so many questions gets, within five standard deviations."""
    sigma = sqrt(count * share * (1 - share))
    return count * share - 5 * sigma, count * share + 5 * sigma


@pytest.mark.parametrize(("client", "count"), [("a2", 900), ("A", 300)])
def test_endpoints_share_connections_equally(net: ServiceNet, client: str, count: int) -> None:
    net.serve(service(*THREE))
    with net.places[client].entered():
        said = ask_often([lambda: ask("tcp", VIP, 80)] * count)
    shares = Counter(answer.name for answer in said)
    low, high = by_chance(count, 1 / 3)
    assert set(shares) == set(THREE)
    assert all(low <= number <= high for number in shares.values()), shares


def clients(count: int) -> list[str]:
    """Addresses of so many clients outside."""
    return [str(address) for address in islice(CROWD.hosts(), count)]


def clients_known(net: ServiceNet) -> int:
    """How many clients are kept to their endpoints, in all sets of A together."""
    return net.places["A"].run("ipset save").count("\nadd ")


def chosen(net: ServiceNet, sources: list[str], address: str = VIP, port: int = 80) -> dict[str, str]:
    """Which endpoint each client gets."""
    with net.places["X"].entered():
        said = {source: ask("tcp", address, port, source=source) for source in sources}
    assert all(isinstance(answer, Answer) for answer in said.values()), said
    return {source: answer.name for source, answer in said.items() if isinstance(answer, Answer)}


def test_affinity_keeps_three_hundred_clients_each_at_its_endpoint(net: ServiceNet) -> None:
    net.serve(service(*TWO, affinity_s=HOUR_S))
    sources = clients(300)
    first = chosen(net, sources)
    low, high = by_chance(300, 1 / 2)
    assert low <= Counter(first.values())["a1"] <= high
    assert chosen(net, sources) == first


def test_affinity_is_one_for_all_addresses_of_a_service(net: ServiceNet) -> None:
    net.serve(node_port(*TWO, affinity_s=HOUR_S))
    sources = clients(20)
    first = chosen(net, sources)
    assert chosen(net, sources, ADDRESS["A"], NODE_PORT) == first


def test_affinity_outlives_a_change_of_other_endpoints(net: ServiceNet) -> None:
    net.serve(service(*TWO, affinity_s=HOUR_S))
    sources = clients(20)
    first = chosen(net, sources)
    net.serve(service(*THREE, affinity_s=HOUR_S), service("b2", service="default/other", port=81))
    assert chosen(net, sources) == first


def test_affinity_to_an_endpoint_that_left_goes_to_another(net: ServiceNet) -> None:
    net.serve(service(*TWO, affinity_s=HOUR_S))
    sources = clients(20)
    chosen(net, sources)
    net.serve(service("b1", affinity_s=HOUR_S))
    assert set(chosen(net, sources).values()) == {"b1"}


def test_affinity_of_one_service_is_not_that_of_another(net: ServiceNet) -> None:
    """Else every client would get the same of both."""
    one = service(*TWO, affinity_s=HOUR_S)
    net.serve(one, replace(one, service="default/other", cluster_ips=(ip_address(VIP2),)))
    sources = clients(40)
    assert chosen(net, sources) != chosen(net, sources, VIP2)


def test_affinity_ends_when_a_client_was_away_for_its_time(net: ServiceNet) -> None:
    """Forty clients that stay away do not all meet their old endpoint again by chance."""
    net.serve(service(*TWO, affinity_s=1))
    sources = clients(40)
    first = chosen(net, sources)
    eventually(lambda: clients_known(net) == 0)
    assert chosen(net, sources) != first


def test_affinity_of_datagrams(net: ServiceNet) -> None:
    net.serve(udp(*TWO, affinity_s=HOUR_S))
    said = ask_often([net.asker("a2", VIP, 80, "udp")] * 20)
    assert len({answer.name for answer in said}) == 1


def test_affinity_under_policy_local_stays_here(net: ServiceNet) -> None:
    here = node_port(*THREE, external_local=True, affinity_s=HOUR_S)
    net.serve(replace(here, local=endpoints("a1", "a2")))
    sources = clients(20)
    first = chosen(net, sources, ADDRESS["A"], NODE_PORT)
    assert set(first.values()) == {"a1", "a2"}
    assert chosen(net, sources, ADDRESS["A"], NODE_PORT) == first


def test_affinity_without_sets_keeps_a_hundred_clients(net: ServiceNet) -> None:
    """By the match `recent`, for hosts without ipset; it remembers a hundred clients of an endpoint."""
    with mock.patch.dict(net.firewalls, A=Iptables(net.flavour, affinity="recent")):
        net.serve(service(*TWO, affinity_s=HOUR_S))
    assert net.sets["A"].observe() == {}
    sources = clients(100)
    first = chosen(net, sources)
    assert set(first.values()) == set(TWO)
    assert chosen(net, sources) == first


def test_affinity_that_is_switched_on_and_off_and_lengthened_costs_no_call_and_leaves_no_set(
    net: ServiceNet,
) -> None:
    net.serve(service(*TWO))
    timeouts = (60, HOUR_S, 0, 60, 0)
    with calling(net.places["a2"], VIP, 80) as calls:
        for affinity_s in timeouts:
            net.serve(service(*TWO, affinity_s=affinity_s))
            assert set(net.sets["A"].observe().values()) == {affinity_s} - {0}
    assert not calls.tcp.failures
