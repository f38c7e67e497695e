"""The one writer: what it writes, what it remembers, and how it tells of failures."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest
from helpers.model import KEYS, kernel, lease, local, network, stored, workload

from overlaynet.core import plan
from overlaynet.core.view import View
from overlaynet.errors import FirewallError, KernelError
from overlaynet.model import Lease
from overlaynet.reconcile import Reconciler, sync_firewall
from overlaynet.state import Change, Key, Kind, Object, Op, kind_of
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_kernel import FakeKernel

pytestmark = pytest.mark.unit

NETWORKS = network().networks


def desired(*peers: Lease, containers: Iterable[int] = ()) -> plan.Desired:
    own = lease(1)
    items = [stored(network()), stored(own), *map(stored, peers)]
    return plan.desired(View.of(items, KEYS), local(1), own, [workload(1, n) for n in containers])


def looked(want: dict[Key, Object], containers: Iterable[int] = ()) -> tuple[Reconciler, FakeKernel]:
    fake = kernel(1, [workload(1, n) for n in containers])
    reconciler = Reconciler(fake)
    assert reconciler.look(want, NETWORKS).failures == ()
    return reconciler, fake


def keys_of(want: dict[Key, Object], *kinds: Kind) -> set[Key]:
    return {key for key in want if kind_of(key) in kinds}


PEER_KINDS = (Kind.NEIGH, Kind.FDB, Kind.ROUTE)


def test_second_look_writes_nothing():
    want = desired(lease(2)).objects
    reconciler, fake = looked(want)
    writes = fake.writes.total()
    outcome = reconciler.look(want, NETWORKS)
    assert (outcome.changes, outcome.whole, fake.writes.total()) == ((), True, writes)


def test_event_is_followed_without_a_look():
    reconciler, fake = looked(desired().objects)
    looks, want = fake.looks, desired(lease(2)).objects
    outcome = reconciler.follow(keys_of(want, *PEER_KINDS), want, NETWORKS)
    assert (len(outcome.changes), outcome.written, outcome.whole) == (3, 3, False)
    assert fake.looks == looks
    assert reconciler.look(want, NETWORKS).changes == ()


def test_following_what_is_there_already_writes_nothing():
    want = desired(lease(2)).objects
    reconciler, fake = looked(want)
    writes = fake.writes.total()
    assert reconciler.follow(want, want, NETWORKS).changes == ()
    assert fake.writes.total() == writes


def test_change_of_a_link_is_a_look():
    reconciler, fake = looked(desired(lease(2)).objects, [2])
    looks, want = fake.looks, desired(lease(2), containers=[2]).objects
    outcome = reconciler.follow(keys_of(want, Kind.LINK), want, NETWORKS)
    assert outcome.whole
    assert fake.looks == looks + 1
    assert reconciler.look(want, NETWORKS).changes == ()


def test_look_mends_what_the_cache_had_wrong():
    want = desired(lease(2)).objects
    reconciler, fake = looked(want)
    fake.tamper(*(Change(Op.DROP, want[key]) for key in keys_of(want, Kind.ROUTE)))
    assert reconciler.follow(want, want, NETWORKS).changes == ()
    assert [change.obj for change in reconciler.look(want, NETWORKS).changes] == [
        want[key] for key in keys_of(want, Kind.ROUTE)
    ]


def test_one_failure_stops_nothing_else_and_is_tried_again():
    reconciler, fake = looked(desired().objects)
    want = desired(lease(2), lease(3)).objects
    fake.fail_next(Kind.NEIGH, errno.ENOBUFS)
    outcome = reconciler.follow(want, want, NETWORKS)
    (failure,) = outcome.failures
    assert isinstance(failure.error, KernelError)
    assert (len(outcome.changes), outcome.written) == (6, 5)
    assert reconciler.follow([failure.change.obj.key], want, NETWORKS).written == 1
    assert reconciler.look(want, NETWORKS).changes == ()


def test_failed_removal_is_tried_again():
    reconciler, fake = looked(desired(lease(2)).objects)
    want = desired().objects
    fake.fail_next(Kind.ROUTE, errno.ENOBUFS)
    before = reconciler.cache.keys()
    touched = set(before)
    assert len(reconciler.follow(touched, want, NETWORKS).failures) == 1
    assert [str(kind_of(c.obj.key)) for c in reconciler.follow(touched, want, NETWORKS).changes] == ["route"]


def test_peers_of_a_refused_device_are_not_written_on_it_by_events():
    fake = kernel(1)
    fake.add_device("flannel.1", type="dummy")
    reconciler, want = Reconciler(fake), desired().objects
    outcome = reconciler.look(want, NETWORKS)
    assert outcome.refused.keys() == {(Kind.LINK, "flannel.1")}
    want = desired(lease(2)).objects
    assert reconciler.follow(keys_of(want, *PEER_KINDS), want, NETWORKS).changes == ()
    assert fake.neighs == {}


def test_device_that_stands_in_the_way_no_longer_is_replaced_at_the_next_look():
    fake = kernel(1)
    fake.add_device("flannel.1", type="dummy")
    reconciler, want = Reconciler(fake), desired(lease(2)).objects
    reconciler.look(want, NETWORKS)
    fake.detach("flannel.1")
    outcome = reconciler.look(want, NETWORKS)
    assert (outcome.refused, outcome.failures) == ({}, ())
    assert fake.links["flannel.1"].type == "vxlan"


def test_kernel_that_cannot_be_read_is_an_error_and_the_cache_stays():
    reconciler, fake = looked(desired().objects)
    before = dict(reconciler.cache)
    fake.fail_next("observe", errno.EINTR)
    with pytest.raises(KernelError):
        reconciler.look(desired().objects, NETWORKS)
    assert reconciler.cache == before


def test_rules_are_written_once():
    rules, policies = FakeFirewall(), desired().policies
    assert sync_firewall(rules, policies).changes
    assert sync_firewall(rules, policies).changes == ()
    restores = rules.restores.total()
    assert sync_firewall(rules, {}).changes
    assert rules.restores.total() > restores
    assert not any(chain.startswith("OVL-") for _, chain in rules.observe().chains)


def test_refused_rules_are_an_error():
    rules = FakeFirewall()
    rules.fail(FirewallError("no"))
    with pytest.raises(FirewallError):
        sync_firewall(rules, desired().policies)
