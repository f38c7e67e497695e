"""Sets of clients with the rules that use them, in the kernel, on both variants of iptables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from helpers.eventually import eventually
from helpers.privilege import requires_netns
from helpers.service_net import COMMON, ServiceNet, base, named, run, service

from overlaynet.firewall.chains import is_ours
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.reconcile import FirewallOutcome, sync_firewall
from overlaynet.state import Policy, ServicePortPolicy

pytestmark = [pytest.mark.kernel, requires_netns]


def wanted(*ports: ServicePortPolicy) -> dict[str, Policy]:
    return {**base("A"), **named(*ports), "services": COMMON}


class HostA:
    """Host A of the net; the calling thread is in it."""

    def __init__(self, net: ServiceNet, sets: AffinitySetsAdapter) -> None:
        self.sets = sets
        self.firewall = net.firewalls["A"]

    def sync(self, want: dict[str, Policy]) -> FirewallOutcome:
        return sync_firewall(self.firewall, want, sets=self.sets)


@pytest.fixture
def host(net: ServiceNet) -> Iterator[HostA]:
    with net.places["A"].entered(), closing(AffinitySetsAdapter(is_ours)) as sets:
        yield HostA(net, sets)


def test_every_endpoint_has_a_set_with_the_services_timeout(host: HostA):
    other = service("b1", port_name="other", port=81, affinity_s=20)
    assert host.sync(wanted(service("b1", "b2", affinity_s=10), other)).settled
    assert sorted(host.sets.observe().values()) == [10, 10, 20]


def test_clients_are_known_still_after_another_round_and_a_restart(net: ServiceNet, host: HostA):
    want = wanted(service("b1", affinity_s=100))
    host.sync(want)
    (name,) = host.sets.observe()
    run(["ipset", "add", name, "192.0.2.1"])
    assert host.sync(want).changes == ()
    with closing(AffinitySetsAdapter(is_ours)) as again:
        assert sync_firewall(net.firewalls["A"], want, sets=again).changes == ()
    assert "192.0.2.1" in run(["ipset", "list", name])


def test_another_timeout_leaves_no_set_behind(host: HostA):
    host.sync(wanted(service("b1", affinity_s=10)))
    want = wanted(service("b1", affinity_s=20))
    host.sync(want)
    eventually(lambda: host.sync(want).settled)
    assert list(host.sets.observe().values()) == [20]


def test_sets_go_with_the_rules_and_others_stay(host: HostA):
    others = ["KUBE-CLUSTER-IP", "OVL-blue-SEP-A"]
    for name in others:
        run(["ipset", "create", name, "hash:ip", "timeout", "10"])
    host.sync(wanted(service("b1", "b2", affinity_s=10)))
    eventually(lambda: host.sync({}).settled)
    assert sorted(run(["ipset", "list", "-name"]).split()) == others
    for name in others:
        run(["ipset", "destroy", name])


def test_a_set_that_somebody_elses_rule_uses_is_left_and_nothing_else_suffers(net: ServiceNet, host: HostA):
    host.sync(wanted(service("b1", affinity_s=10)))
    (name,) = host.sets.observe()
    net.iptables(f"-A FORWARD -m set --match-set {name} src -j ACCEPT")
    assert not host.sync(wanted(service("b1"))).settled
    assert list(host.sets.observe()) == [name]
    net.iptables(f"-D FORWARD -m set --match-set {name} src -j ACCEPT")
    eventually(lambda: host.sync(wanted(service("b1"))).settled)
    assert host.sets.observe() == {}
