"""Setting aside what is right must never change what a look finds."""

from __future__ import annotations

import pytest
from helpers.model import KEYS, add_veth, kernel, lease, local, network, stored, vtep_mac, workload
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core import plan
from overlaynet.core.view import View
from overlaynet.errors import OverlayError
from overlaynet.model import Vtep
from overlaynet.reconcile import Reconciler
from overlaynet.state import Change, Fdb, Key, Kind, Neigh, Object, Op, Route, kind_of
from overlaynet.testing.fake_kernel import FakeKernel

pytestmark = pytest.mark.unit

NETWORKS = network().networks
PEERS = st.dictionaries(st.integers(2, 5), st.integers(0, 2))
"""Peers by number, and which MAC each has: two peers may well have the same."""
CONTAINERS = st.sets(st.integers(2, 3))

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), PEERS, CONTAINERS, st.sampled_from([8472, 8473])),
        st.tuples(st.just("tamper"), st.integers(0, 99), st.sampled_from(["drop", "alter", "rival"])),
        st.tuples(st.just("fail"), st.sampled_from(sorted(Kind))),
        st.tuples(st.just("look")),
        st.tuples(st.just("follow")),
    ),
    max_size=12,
)


def planned(peers: dict[int, int], containers: set[int], port: int) -> dict[Key, Object]:
    """A plan made anew: equal objects, and none the same."""
    own = lease(1)
    others = [lease(number, vteps=(Vtep(4, 1, vtep_mac(90 + mac)),)) for number, mac in peers.items()]
    items = [stored(network(port=port)), stored(own), *map(stored, others)]
    return plan.desired(View.of(items, KEYS), local(1), own, [workload(1, n) for n in containers]).objects


def entries(fake: FakeKernel) -> list[Object]:
    seen = fake.observe()
    return [*seen.neighs, *seen.fdb, *seen.routes, *(seen.addresses)]


def altered(obj: Object) -> Object:
    match obj:
        case Neigh():
            return obj._replace(mac=vtep_mac(200))
        case Fdb(dst=dst) if dst is not None:
            return obj._replace(dst=dst + 1)
        case Route():
            return obj._replace(via=None, onlink=False)
    return obj


def tamper(fake: FakeKernel, number: int, how: str) -> None:
    there = entries(fake)
    obj = there[number % len(there)]
    change = Change(Op.DROP, obj) if how == "drop" else Change(Op.PUT, altered(obj))
    if how == "rival" and isinstance(obj, Route):
        change = Change(Op.PUT, obj._replace(metric=obj.metric + 1))
    try:
        fake.tamper(change)
    except OverlayError:
        return  # the kernel would not have it


@given(STEPS)
def test_a_look_finds_what_a_fresh_one_finds(steps):
    fake = kernel(1)
    for number in (2, 3):
        add_veth(fake, workload(1, number))
    reconciler, want = Reconciler(fake), planned({2: 0, 3: 1}, {2}, 8472)
    reconciler.look(want, NETWORKS)
    for step in steps:
        match step:
            case ["want", peers, containers, port]:
                before, want = want, planned(peers, containers, port)
                reconciler.follow([*before, *want], want, NETWORKS)
            case ["tamper", number, how]:
                tamper(fake, number, how)
            case ["fail", kind]:
                fake.fail_next(kind, 1)
            case ["look"]:
                reconciler.look(want, NETWORKS)
            case ["follow"]:
                reconciler.follow(list(want), want, NETWORKS)
        fresh = Reconciler(fake)
        assert set(reconciler.observe(want, NETWORKS)) == set(fresh.observe(want, NETWORKS))
        assert reconciler.cache == fresh.cache
        assert reconciler.refused == fresh.refused


def test_what_is_right_is_not_compared_again():
    fake, want = kernel(1), planned({2: 0}, set(), 8472)
    reconciler = Reconciler(fake)
    reconciler.look(want, NETWORKS)
    reconciler.look(want, NETWORKS)
    rest, seen = reconciler.settled.rest(want, fake.observe())
    assert {kind_of(key) for key in rest} & {Kind.NEIGH, Kind.FDB, Kind.ROUTE} == set()
    assert seen.neighs == seen.fdb == ()


def test_entries_of_a_device_that_must_be_made_anew_are_put_again_until_it_is():
    fake, want = kernel(1), planned({2: 0}, set(), 8472)
    reconciler = Reconciler(fake)
    reconciler.look(want, NETWORKS)
    reconciler.look(want, NETWORKS)
    there = fake.links["flannel.1"]
    assert there.vxlan is not None
    fake.links["flannel.1"] = there._replace(vxlan=there.vxlan._replace(vni=7))
    fake.fail_next(Kind.LINK, 16)
    for _ in range(2):
        changes = reconciler.look(want, NETWORKS).changes
        assert {Kind.LINK, Kind.NEIGH, Kind.FDB, Kind.ROUTE} <= {kind_of(c.obj.key) for c in changes}
    assert reconciler.look(want, NETWORKS).changes == ()
