"""From what is there to what should be: which writes, in which order, and what is never touched."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from helpers.model import KEYS, kernel, lease, local, network, stored, vtep_mac, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.core import plan
from overlaynet.core.diff import ORDER, changes, touched_changes, word
from overlaynet.core.ownership import have, owned, stray_veths
from overlaynet.core.view import View
from overlaynet.core.workload import host_device
from overlaynet.ports import Failure
from overlaynet.state import (
    Address,
    BridgePort,
    Change,
    Fdb,
    Key,
    Kind,
    Neigh,
    Object,
    Op,
    Route,
    Sysctl,
    Vxlan,
    kind_of,
)
from overlaynet.testing.fake_kernel import FakeKernel

pytestmark = pytest.mark.unit

NETWORKS = (ip_network("10.244.0.0/16"),)
VETH = host_device("default/web-2")


def wanted(peers: Iterable[int] = (), containers: Iterable[int] = (), *, net=None) -> dict[Key, Object]:
    """What host 1 wants with these peers and containers."""
    own = lease(1)
    items = [stored(net or network()), stored(own), *(stored(lease(n)) for n in peers)]
    mine = [workload(1, n) for n in containers]
    return plan.desired(View.of(items, KEYS), local(1), own, mine).objects


def pending(want: dict[Key, Object], fake: FakeKernel) -> tuple[Change, ...]:
    state = fake.observe([obj.name for obj in want.values() if isinstance(obj, Sysctl)])
    found = have(want, state, NETWORKS)
    return changes(want, found.objects, found.refused)


def converge(want: dict[Key, Object], fake: FakeKernel) -> list[Failure]:
    return fake.apply(pending(want, fake))


def host(want: dict[Key, Object] | None = None, containers: Iterable[int] = ()) -> FakeKernel:
    """Host 1's kernel, already as wanted."""
    fake = kernel(1, [workload(1, n) for n in containers])
    if want is not None:
        assert converge(want, fake) == []
    return fake


def lines(found: Iterable[Change]) -> list[str]:
    return [str(change) for change in found]


# --- making have like want ------------------------------------------------------------------------

worlds = st.tuples(st.sets(st.integers(2, 9), max_size=5), st.sets(st.integers(2, 6), max_size=3))


@given(before=worlds, after=worlds, data=st.data())
@settings(max_examples=60)
def test_writes_turn_any_host_into_the_wanted_one_and_then_there_are_none(before, after, data):
    fake = kernel(1, [workload(1, n) for n in before[1] | after[1]])
    assert converge(wanted(*before), fake) == []
    spoil(fake, data)
    want = wanted(*after)
    assert converge(want, fake) == []
    assert pending(want, fake) == ()
    ours = {obj.key: obj for obj in owned(fake.observe(), NETWORKS)}
    assert {key for key in want if kind_of(key) is not Kind.SYSCTL} <= ours.keys()
    extra = ours.keys() - want.keys()
    assert extra <= have_of_containers(before[1] - after[1])


def have_of_containers(numbers: Iterable[int]) -> set[Key]:
    """What stays of containers that nobody wants: their veths are never dropped, nor is their bridge."""
    left = {obj.key for n in numbers for obj in plan.workload_slice(workload(1, n), local(1)).objects.values()}
    return left | {(Kind.LINK, "cni0"), (Kind.ADDRESS, "cni0", ip_interface("10.244.1.1/24"))} if left else left


def spoil(fake: FakeKernel, data: st.DataObject) -> None:
    """Take some of our things away, behind our back."""
    there = [obj for obj in owned(fake.observe(), NETWORKS) if not isinstance(obj, BridgePort)]
    if there:
        gone = data.draw(st.lists(st.sampled_from(sorted(there, key=str)), max_size=4, unique=True))
        fake.tamper(*(Change(Op.DROP, obj) for obj in gone))


def test_additions_go_from_the_ground_up_and_removals_top_down_after_them():
    fake = host(wanted([2, 3], [2]), [2])
    found = pending(wanted([4], [2]), fake)
    puts = [change for change in found if change.op is Op.PUT]
    drops = [change for change in found if change.op is Op.DROP]
    ranks = [ORDER[kind_of(change.obj.key)] for change in puts]
    falling = [ORDER[kind_of(change.obj.key)] for change in drops]
    assert found == (*puts, *drops)
    assert ranks == sorted(ranks)
    assert falling == sorted(falling, reverse=True)
    assert [word(change) for change in found] == ["missing"] * 3 + ["extra"] * 6


def test_new_host_is_built_in_the_order_in_which_things_need_each_other():
    kinds = [str(kind_of(change.obj.key)) for change in pending(wanted([2], [2]), host(None, [2]))]
    assert list(dict.fromkeys(kinds)) == ["link", "sysctl", "address", "port", "neigh", "fdb", "route"]


def test_peer_that_moved_is_one_changed_fdb_entry_and_no_gap():
    fake = host(wanted([2]))
    moved = wanted([2])
    entry = Fdb("flannel.1", vtep_mac(2), ip_address("192.168.50.99"))
    moved[entry.key] = entry
    (change,) = pending(moved, fake)
    assert str(change) == "put fdb 02:00:00:00:00:02 dev flannel.1 dst 192.168.50.99 self permanent"
    assert change.have == Fdb("flannel.1", vtep_mac(2), ip_address("192.168.50.2"))
    assert word(change) == "changed"


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(network(port=4789), id="port"),
        pytest.param(network(learning=True), id="learning"),
    ],
)
def test_device_that_must_be_made_anew_gets_everything_on_it_back_at_once(net):
    fake = host(wanted([2, 3]))
    want = wanted([2, 3], net=net)
    found = pending(want, fake)
    assert {change.obj.key for change in found} == {key for key in want if "ip_forward" not in str(key)}
    assert fake.apply(found) == []
    assert pending(want, fake) == ()


def test_another_vni_takes_the_old_device_away_after_the_new_one_is_whole():
    fake = host(wanted([2]))
    want = wanted([2], net=network(vni=9))
    found = lines(pending(want, fake))
    assert found[-1].startswith("drop link flannel.1 ")
    assert not any(line.startswith("drop neigh") for line in found)
    assert converge(want, fake) == []
    assert "flannel.1" not in fake.links


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param({"mtu": 1_400}, id="mtu"),
        pytest.param({"mac": vtep_mac(77)}, id="mac"),
        pytest.param({"up": False}, id="down"),
    ],
)
def test_link_that_differs_in_what_can_be_changed_is_changed_in_place(spoilt):
    want = wanted([2])
    fake = host(want)
    index = fake.links["flannel.1"].ifindex
    fake.links["flannel.1"] = fake.links["flannel.1"]._replace(**spoilt)
    (change,) = pending(want, fake)
    assert kind_of(change.obj.key) is Kind.LINK
    assert fake.apply([change]) == []
    assert (fake.links["flannel.1"].ifindex, pending(want, fake)) == (index, ())


def test_touched_keys_alone_are_compared():
    before, after = wanted([2, 3]), wanted([2, 4])
    keys = [key for key in after if key not in before][:1]
    assert [change.obj.key for change in touched_changes(keys, after, before)] == keys


# --- what is not ours -----------------------------------------------------------------------------


def foreign_vxlan(mac: Mac | None = None) -> FakeKernel:
    fake = kernel(1)
    fake.add_device("flannel.1", type="vxlan", mac=mac or Mac.parse("02:99:99:99:99:99"), mtu=1_450)
    shape = Vxlan(1, 8472, ip_address("192.168.50.1"), "eth0")
    fake.links["flannel.1"] = fake.links["flannel.1"]._replace(vxlan=shape)
    return fake


def test_foreign_device_is_refused_by_name_with_everything_on_it():
    fake, want = foreign_vxlan(), wanted([2])
    state = fake.observe([obj.name for obj in want.values() if isinstance(obj, Sysctl)])
    found = have(want, state, NETWORKS)
    assert found.refused.keys() == {(Kind.LINK, "flannel.1")}
    assert "flannel.1 (MAC 02:99:99:99:99:99) exists and is not ours" in found.refused[(Kind.LINK, "flannel.1")]
    assert lines(pending(want, fake)) == ["put sysctl net/ipv4/ip_forward = 1"]


def test_refusal_holds_for_touched_keys_of_which_the_device_is_none():
    want, refused = wanted([2]), {(Kind.LINK, "flannel.1"): "foreign"}
    peer = [key for key in want if kind_of(key) in (Kind.NEIGH, Kind.FDB, Kind.ROUTE)]
    assert touched_changes(peer, want, {}, refused) == ()
    assert len(touched_changes(peer, want, {})) == 3


def test_container_is_not_put_into_a_refused_bridge():
    fake = host(wanted(), [2])
    fake.add_device("cni0", type="bridge", addresses=[ip_interface("172.17.0.1/16")])
    assert pending(wanted([], [2]), fake) == ()


def test_vxlan_device_with_our_mac_is_taken_over():
    fake, want = foreign_vxlan(vtep_mac(1)), wanted([2])
    index = fake.links["flannel.1"].ifindex
    assert converge(want, fake) == []
    assert fake.links["flannel.1"].tag == "overlaynet-vxlan-1"
    assert fake.links["flannel.1"].ifindex == index
    assert pending(want, fake) == ()


def adopted_bridge() -> FakeKernel:
    fake = host(wanted(), [2])
    fake.add_device("cni0", type="bridge", addresses=[ip_interface("10.244.1.1/24")])
    return fake


def test_bridge_that_holds_our_gateway_is_used_as_it_is():
    fake, want = adopted_bridge(), wanted([], [2])
    before = fake.links["cni0"]
    assert converge(want, fake) == []
    assert fake.links["cni0"] == before
    assert fake.links[VETH].master == "cni0"
    assert pending(want, fake) == ()


def test_bridge_that_we_only_used_is_not_deleted_nor_its_address():
    fake = adopted_bridge()
    converge(wanted([], [2]), fake)
    fake.detach(VETH)
    converge(wanted(), fake)
    assert "cni0" in fake.links
    assert (Kind.ADDRESS, "cni0", ip_interface("10.244.1.1/24")) in fake.addresses


def test_our_bridge_goes_with_its_last_port():
    fake = host(wanted([], [2]), [2])
    fake.detach(VETH)
    converge(wanted(), fake)
    assert "cni0" not in fake.links


def test_container_without_a_record_keeps_veth_bridge_gateway_and_pin():
    fake = host(wanted([], [2]), [2])
    assert pending(wanted(), fake) == ()
    assert stray_veths(wanted(), fake.observe()) == ["default.web-2"]


def test_bridge_with_somebody_elses_port_is_kept():
    fake = host(wanted([], [2]), [2])
    fake.detach(VETH)
    fake.add_device("tap9", type="tun")
    fake.links["tap9"] = fake.links["tap9"]._replace(master="cni0")
    converge(wanted(), fake)
    assert "cni0" in fake.links
    assert (Kind.ADDRESS, "cni0", ip_interface("10.244.1.1/24")) in fake.addresses


FOREIGN = [
    pytest.param(Route(ip_network("10.99.0.0/16"), "eth0", ip_address("192.168.50.9"), protocol=4), id="route"),
    pytest.param(
        Route(ip_network("10.244.77.0/24"), "eth0", ip_address("192.168.50.9"), protocol=16),
        id="route-into-the-overlay",
    ),
    pytest.param(
        Route(ip_network("10.99.0.0/16"), "eth0", ip_address("192.168.50.9"), table=100),
        id="our-protocol-in-another-table",
    ),
    pytest.param(Neigh("eth0", ip_address("192.168.50.9"), vtep_mac(9)), id="neighbour-elsewhere"),
    pytest.param(Neigh("flannel.1", ip_address("10.244.9.9"), vtep_mac(9), "stale"), id="learned-neighbour"),
    pytest.param(Address("eth0", ip_interface("10.244.200.1/32")), id="address-elsewhere"),
    pytest.param(Address("flannel.1", ip_interface("172.30.0.1/32")), id="address-of-another-network"),
    pytest.param(Fdb("eth0", vtep_mac(9)), id="fdb-entry-elsewhere"),
    pytest.param(Fdb("flannel.1", vtep_mac(9), ip_address("192.168.50.9"), state="dynamic"), id="learned-fdb"),
    pytest.param(Fdb(VETH, vtep_mac(9), master="cni0", state="dynamic"), id="learned-on-a-port"),
    pytest.param(Fdb(VETH, vtep_mac(9), master="cni0", state="permanent"), id="a-port's-own-address"),
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_object_is_never_dropped(foreign):
    want = wanted([2], [2])
    fake = host(want, [2])
    fake.tamper(Change(Op.PUT, foreign))
    state = fake.observe()
    assert foreign in [*state.routes, *state.neighs, *state.addresses, *state.fdb]
    assert pending(want, fake) == ()
    assert foreign not in [change.obj for change in pending({}, fake)]


OURS = [
    pytest.param(Route(ip_network("10.244.9.0/24"), "eth0", ip_address("192.168.50.9"), 9), id="route"),
    pytest.param(Neigh("flannel.1", ip_address("10.244.9.0"), vtep_mac(9)), id="neighbour"),
    pytest.param(Fdb("flannel.1", vtep_mac(9), ip_address("192.168.50.9")), id="fdb-entry"),
    pytest.param(Fdb(VETH, vtep_mac(9), master="cni0", state="static"), id="pin"),
    pytest.param(Address("flannel.1", ip_interface("10.244.9.0/32")), id="address"),
]


@pytest.mark.parametrize("stale", OURS)
def test_stale_object_of_ours_is_dropped(stale):
    want = wanted([2], [2])
    fake = host(want, [2])
    fake.tamper(Change(Op.PUT, stale))
    assert [(change.op, change.obj) for change in pending(want, fake)] == [(Op.DROP, stale)]


def test_sysctl_is_never_dropped():
    fake = host(wanted())
    assert not any(kind_of(change.obj.key) is Kind.SYSCTL for change in pending({}, fake))


def test_sysctl_that_is_right_is_not_written():
    fake = kernel(1)
    fake.sysctls["net/ipv4/ip_forward"] = "1"
    assert "put sysctl net/ipv4/ip_forward = 1" not in lines(pending(wanted(), fake))


def test_veth_of_a_container_that_is_wired_but_on_no_bridge_is_put_back():
    want = wanted([], [2])
    fake = host(want, [2])
    fake.tamper(Change(Op.DROP, BridgePort(VETH, "cni0")))
    assert {kind_of(change.obj.key) for change in pending(want, fake)} == {Kind.PORT, Kind.FDB}
