"""What of a kernel's state counts as ours: flannel's beside our own."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from helpers.model import KEYS, kernel, lease, local, network, stored, subnet, vtep_mac

from overlaynet.core import handing, plan
from overlaynet.core.diff import changes
from overlaynet.core.ownership import have, shadowed
from overlaynet.core.view import View
from overlaynet.model import LocalHost, NetworkConfig
from overlaynet.reconcile import Reconciler
from overlaynet.state import BOOT_PROTOCOL, Change, Key, Kind, Link, Object, Op, Route, describe
from overlaynet.testing.fake_kernel import FakeKernel

pytestmark = pytest.mark.unit

NETWORKS = (ip_network("10.244.0.0/16"),)


def wanted(
    *peers: int, config: NetworkConfig | None = None, host: LocalHost | None = None
) -> dict[Key, Object]:
    """What host 1 wants with these peers."""
    config = config or network()
    view = View.of([stored(config), *(stored(lease(n)) for n in (1, *peers))], KEYS)
    return dict(plan.desired(view, host or local(1), lease(1), ()).objects)


def flannels(*peers: int) -> FakeKernel:
    """Host 1 as flannel leaves it: its device without our mark, its routes with metric 0."""
    fake = kernel(1)
    made = [as_flannel_has_it(obj) for obj in wanted(*peers).values()]
    assert not fake.apply(changes({obj.key: obj for obj in made}, {}))
    fake.writes.clear()
    return fake


def as_flannel_has_it(obj: Object) -> Object:
    match obj:
        case Link():
            return obj._replace(tag="")
        case Route():
            return handing.as_flannels(obj)
    return obj


def words(pending: tuple[Change, ...]) -> list[str]:
    return [f"{change.op} {describe(change.obj)}" for change in pending]


def test_of_a_host_that_flannel_made_only_our_mark_is_missing():
    (mark,) = Reconciler(flannels(2, 3)).observe(wanted(2, 3), NETWORKS)
    assert isinstance(mark.obj, Link)
    assert isinstance(mark.have, Link)
    assert mark.obj._replace(tag="") == mark.have


def test_takeover_writes_the_mark_and_then_nothing():
    reconciler = Reconciler(fake := flannels(2, 3))
    routes = dict(fake.routes)
    assert reconciler.look(wanted(2, 3), NETWORKS).written == 1
    assert reconciler.look(wanted(2, 3), NETWORKS).written == 0
    assert fake.routes == routes


def test_entries_of_a_peer_that_flannel_forgot_to_remove_go():
    pending = Reconciler(flannels(2, 3)).observe(wanted(2), NETWORKS)
    assert words(pending[1:]) == [
        "drop route 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink metric 0 table 254",
        "drop fdb 02:00:00:00:00:03 dev flannel.1 dst 192.168.50.3 self permanent",
        "drop neigh 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
    ]


def test_peer_that_leaves_takes_flannels_route_with_it_and_gets_ours_when_it_returns():
    reconciler = Reconciler(fake := flannels(2))
    want = wanted(2)
    reconciler.look(want, NETWORKS)
    lasting = wanted()
    reconciler.follow(want.keys() - lasting.keys(), lasting, NETWORKS)
    assert not any(route.dst == subnet(2) for route in fake.routes.values())
    reconciler.follow(want.keys() - lasting.keys(), want, NETWORKS)
    assert [route.metric > 0 for route in fake.routes.values() if route.dst == subnet(2)] == [True]


def test_flannels_route_that_leads_wrong_is_replaced_by_ours_first():
    fake = flannels(2)
    (route,) = [r for r in fake.routes.values() if r.dst == subnet(2)]
    fake.routes[route.key] = route._replace(via=ip_address("10.244.9.0"))
    pending = Reconciler(fake).observe(wanted(2), NETWORKS)
    assert [(change.op, change.obj.metric > 0) for change in pending if isinstance(change.obj, Route)] == [
        (Op.PUT, True),
        (Op.DROP, False),
    ]


def test_device_with_another_mac_is_not_taken_over():
    fake = flannels(2)
    fake.links["flannel.1"] = fake.links["flannel.1"]._replace(mac=vtep_mac(99))
    found = have(wanted(2), fake.observe(), NETWORKS)
    assert "is not ours" in found.refused[Kind.LINK, "flannel.1"]
    assert not any(isinstance(obj, Route) for obj in found.objects.values())


def test_foreign_route_that_is_preferred_to_ours_is_told_and_left_alone():
    want, fake = wanted(2), kernel(1)
    Reconciler(fake).look(want, NETWORKS)
    foreign = Route(subnet(2), "eth0", ip_address("192.168.50.99"), protocol=BOOT_PROTOCOL)
    fake.routes[foreign.key] = foreign
    reconciler = Reconciler(fake)
    assert reconciler.observe(want, NETWORKS) == ()
    assert list(reconciler.shadowed.values()) == [
        "route 10.244.2.0/24 via 192.168.50.99 dev eth0 metric 0 table 254 is not ours, "
        "and is preferred to ours by its metric"
    ]
    assert shadowed(want, kernel(1).observe(), {}) == {}


# --- DirectRouting --------------------------------------------------------------------------------

DIRECT = network(direct_routing=True)
ON_LINK = (ip_network("192.168.50.0/25"),)


def test_peer_on_our_link_gets_a_plain_route_and_no_tunnel():
    want = wanted(2, 200, config=DIRECT, host=local(1, on_link=ON_LINK))
    routes = [describe(obj) for obj in want.values() if isinstance(obj, Route)]
    assert routes == [
        "route 10.244.2.0/24 via 192.168.50.2 dev eth0 metric 717827 table 254",
        "route 10.244.200.0/24 via 10.244.200.0 dev flannel.1 onlink metric 718025 table 254",
    ]
    assert len(want) == len(wanted(2, 200)) - 2, "no neighbour and no FDB entry"


@pytest.mark.parametrize("first", [ON_LINK, ()], ids=["link-lost", "link-found"])
def test_change_of_kind_leaves_nothing_behind(first):
    second = () if first else ON_LINK
    reconciler = Reconciler(fake := kernel(1))
    reconciler.look(wanted(2, config=DIRECT, host=local(1, on_link=first)), NETWORKS)
    after = wanted(2, config=DIRECT, host=local(1, on_link=second))
    reconciler.look(after, NETWORKS)
    fresh = Reconciler(other := kernel(1))
    fresh.look(after, NETWORKS)
    assert (fake.routes, fake.neighs, fake.fdb) == (other.routes, other.neighs, other.fdb)


# --- hand-over ------------------------------------------------------------------------------------


def test_handing_over_leaves_what_flannel_would_have_made():
    fake, want = kernel(1), wanted(2, 3)
    Reconciler(fake).look(want, NETWORKS)
    pending = handing.changes(fake.observe(), NETWORKS)
    kinds = [change.op for change in pending if isinstance(change.obj, Route)]
    assert kinds == [Op.PUT, Op.PUT, Op.DROP, Op.DROP]
    assert not fake.apply(pending)
    theirs = flannels(2, 3)
    assert (fake.routes, fake.neighs, fake.fdb) == (theirs.routes, theirs.neighs, theirs.fdb)
    assert fake.links["flannel.1"].tag is None
    assert handing.changes(fake.observe(), NETWORKS) == ()


def test_handing_over_leaves_a_foreign_route_in_our_routes_place():
    fake, want = kernel(1), wanted(2)
    Reconciler(fake).look(want, NETWORKS)
    foreign = Route(subnet(2), "eth0", ip_address("192.168.50.99"), protocol=BOOT_PROTOCOL)
    fake.routes[foreign.key] = foreign
    fake.apply(handing.changes(fake.observe(), NETWORKS))
    assert fake.routes[foreign.key] == foreign


def test_what_was_handed_over_is_taken_back_by_a_mark_alone():
    fake, want = kernel(1), wanted(2, 3)
    Reconciler(fake).look(want, NETWORKS)
    fake.apply(handing.changes(fake.observe(), NETWORKS))
    found = have(want, fake.observe([obj[1] for obj in want if obj[0] == "sysctl"]), NETWORKS)  # type: ignore[misc]
    assert len(changes(want, found.objects)) == 1
