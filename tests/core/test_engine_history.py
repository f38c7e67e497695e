"""What an engine does when the store is not what it was: another history, leases lost, settings changed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers.cluster import Member, codes, joined, later, put_network, settle
from helpers.model import KEYS, engine, flannel_lease, key_of, lease, local, network, stored, subnet, workload

from overlaynet.core.departures import HOLD_DOWN_S
from overlaynet.errors import Conflict, NetworkConfigInvalid, NetworkNotConfigured
from overlaynet.events import (
    Attached,
    Before,
    ClaimSubnet,
    Detached,
    HostChanged,
    NetworkTaken,
    Register,
    Relist,
    Renewed,
    Synced,
)
from overlaynet.model import Lease, Settings
from overlaynet.ports import Delete, Put
from overlaynet.state import Kind, kind_of
from overlaynet.store import codec
from overlaynet.store.memory import MemoryStore
from overlaynet_agent.storeworker import StoreWorker

pytestmark = pytest.mark.unit


def put_lease(store: MemoryStore, value: Lease, lease_id: int = 0) -> None:
    store.commit([], [Put(key_of(value), codec.encode_lease(value), lease_id)])


def with_peers(store: MemoryStore, count: int) -> Member:
    """A host beside `count` hosts of flannel's."""
    for number in range(2, count + 2):
        put_lease(store, flannel_lease(number), store.grant(86_400).lease_id)
    return joined(store)


def routed(member: Member) -> set[int]:
    """Numbers of the hosts that a route leads to."""
    routes = [obj for key, obj in member.engine.desired.objects.items() if kind_of(key) is Kind.ROUTE]
    return {n for n in range(1, 255) if any(route.dst == subnet(n) for route in routes)}


def emptied(member: Member, *, again: bool = True) -> None:
    """etcd loses everything; the watch says so, and the agent lists."""
    member.store.replace(cluster_id=2)
    if again:
        put_network(member.store, network())
    member.todo.append(Relist())
    member.settle()


# --- another history ------------------------------------------------------------------------------


def test_emptied_store_costs_no_route_and_gets_our_lease_back_first(store):
    member = with_peers(store, 4)
    later(member)
    before, member.asked = dict(member.engine.desired.objects), []
    emptied(member)
    assert member.engine.desired.objects == before
    assert [type(intent) for intent in member.asked] == [ClaimSubnet, Register]
    assert codes(member) == ["OVL-409"]
    later(member, 1.0)
    assert member.engine.confirmed
    assert [item.key for item in store.read([KEYS.subnets]).items] == [key_of(lease(1))]
    assert KEYS.node("node-1") in [item.key for item in store.read([KEYS.nodes]).items]


def test_who_writes_itself_in_again_is_known_again_and_the_others_go_when_the_time_is_over(store):
    member = with_peers(store, 4)
    emptied(member)
    put_lease(store, flannel_lease(3))
    member.settle()
    assert set(member.engine.view.stale) == {key_of(lease(n)) for n in (2, 4, 5)}
    later(member, HOLD_DOWN_S - 1)
    assert routed(member) == {2, 3, 4, 5}
    later(member, 2.0)
    assert routed(member) == {3}
    assert codes(member) == []


def test_departure_within_the_new_history_is_believed(store):
    member = with_peers(store, 6)
    emptied(member)
    for number in range(2, 7):
        put_lease(store, flannel_lease(number))
    member.settle()
    store.commit([], [Delete(key_of(lease(3)))])
    member.settle()
    assert routed(member) == {2, 4, 5, 6, 7}


def test_lower_revision_of_the_same_cluster_is_another_history(store):
    member = with_peers(store, 1)
    store.replace(cluster_id=1)
    member.todo.append(Relist())
    member.settle()
    assert routed(member) == {2}


def test_new_history_that_the_watch_found_is_doubted_though_nothing_shows_it(store):
    member = with_peers(store, 1)
    member.worker._history_ended = True
    store.commit([], [Delete(key_of(lease(2)))])
    store._watches.clear()
    member.events.clear()
    member.todo.append(Relist())
    member.settle()
    assert routed(member) == {2}


def test_subnet_of_a_stale_peer_is_given_to_nobody(store):
    small = MemoryStore()
    put_network(small, network(count=3))
    for number in (2, 3):
        put_lease(small, flannel_lease(number))
    member = joined(small)
    small.replace(cluster_id=2)
    put_network(small, network(count=3))
    put_lease(small, lease(9, subnets=(subnet(1),)))
    member.todo.append(Relist())
    later(member, 1.0)
    assert member.engine.lease is None
    assert "OVL-403" in codes(member)


# --- another history, met at a start --------------------------------------------------------------


def started_again(member: Member) -> Member:
    """The agent that runs next, into a store that does not continue what this one has left on disk."""
    before = Before((stored(member.engine.view.network), *member.engine.view.leases.values()))
    again = Member(member.store, engine(1, identity=member.engine.local.identity))
    again.worker = StoreWorker(again.store, KEYS, again.events.append, before=lambda listing: before)
    return again


def test_agent_that_starts_into_an_emptied_store_keeps_its_peers_until_the_time_is_over(store):
    again = started_again(with_peers(store, 4))
    store.replace(cluster_id=2)
    put_network(store, network(port=4789))
    put_lease(store, flannel_lease(3))
    again.settle()
    assert again.engine.confirmed
    assert again.engine.lease.value.subnets == (subnet(1),)
    assert again.engine.view.network.backend.port == 4789
    assert routed(again) == {2, 3, 4, 5}
    assert codes(again) == ["OVL-409"]
    later(again, HOLD_DOWN_S)
    assert routed(again) == {3}
    assert codes(again) == []


def test_what_was_before_plans_nothing_and_is_said_once(store):
    again = started_again(with_peers(store, 2))
    store.replace(cluster_id=2)
    again.step()
    assert [type(event) for event in again.events] == [Before, Synced]
    again.step()
    assert (again.asked, again.engine.desired.objects) == ([], {})
    again.todo.append(Relist())
    again.settle()
    put_network(store, network())
    again.settle()
    later(again, HOLD_DOWN_S)
    assert routed(again) == set()


# --- mass disappearance ---------------------------------------------------------------------------


def test_prefix_deleted_by_hand_cuts_nobody_off(store):
    member = with_peers(store, 5)
    before = dict(member.engine.desired.objects)
    store.commit([], [Delete(item.key) for item in store.read([KEYS.subnets]).items])
    later(member, 1.0)
    assert member.engine.desired.objects == before
    assert codes(member) == ["OVL-409"]
    assert member.engine.confirmed
    later(member, HOLD_DOWN_S)
    assert routed(member) == set()


def test_single_departure_acts_at_once(store):
    member = with_peers(store, 5)
    store.commit([], [Delete(key_of(lease(3)))])
    member.settle()
    assert routed(member) == {2, 4, 5, 6}


def test_unreadable_lease_that_is_deleted_then_is_gone(store):
    member = with_peers(store, 5)
    store.commit([], [Put(key_of(lease(3)), b"junk")])
    member.settle()
    assert (routed(member), codes(member)) == ({2, 3, 4, 5, 6}, ["OVL-305"])
    store.commit([], [Delete(key_of(lease(3)))])
    member.settle()
    assert (routed(member), codes(member)) == ({2, 4, 5, 6}, [])


@pytest.mark.parametrize("key", ["rubbish", "10.244.3.0", "10.244.3.0-24/x", "10.244.3.0-99"])
def test_key_that_is_no_lease_is_reported_and_removes_nobody(store, key):
    member = with_peers(store, 2)
    store.commit([], [Put(KEYS.subnets + key, b"x")])
    member.settle()
    assert (routed(member), codes(member)) == ({2, 3}, ["OVL-305"])


# --- somebody else has it now ---------------------------------------------------------------------


def test_containers_on_a_lost_subnet_are_named_and_withdrawn_until_they_are_attached_again(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    put_lease(store, lease(9, subnets=(subnet(1),)))
    later(member, 1.0)
    mine = member.engine.lease.value.subnets[0]
    assert mine != subnet(1)
    (problem,) = member.engine.problems()
    assert isinstance(problem, Conflict)
    assert "node node-9 has taken 10.244.1.0/24" in problem.message
    assert "default/web-2 10.244.1.2" in problem.evidence
    assert store.read([KEYS.workloads]).items == ()
    assert routed(member) == {1}
    member.hear(Detached("default/web-2"))
    assert codes(member) == []


def test_restarted_agent_still_knows_of_containers_on_a_lost_subnet(store):
    member = joined(store)
    member.engine.workloads = {"default/x": workload(77, 2, name="x")}
    again = Member(store, engine(1, identity=member.engine.local.identity))
    again.engine.workloads = dict(member.engine.workloads)
    again.settle()
    assert codes(again) == ["OVL-404"]


# --- live settings --------------------------------------------------------------------------------


def set_ttls(store: MemoryStore, **ttls: int) -> None:
    store.commit([], [Put(KEYS.settings, codec.encode_settings(replace(Settings(), **ttls)))])


def test_changed_times_to_live_move_records_and_lease_to_new_leases(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    set_ttls(store, node_ttl_s=40, lease_ttl_s=7200)
    later(member, 1.0)
    later(member, 1.0)
    held = store.read([KEYS.nodes, KEYS.addresses, KEYS.vteps, KEYS.workloads]).items
    assert {store.time_to_live(item.lease_id) for item in held} == {40}
    assert store.time_to_live(member.engine.lease.lease_id) == 7200
    assert member.engine.lease.value.subnets == (subnet(1),)
    revision = store.read([]).revision
    later(member)
    assert store.read([]).revision == revision


def test_lease_resumed_with_another_time_to_live_is_made_right(store):
    before = joined(store)
    again = Member(store, engine(1, identity=before.engine.local.identity))
    again.settle()
    again.hear(Renewed(again.engine.lease.lease_id, 60, 60.0))
    again.settle()
    assert store.time_to_live(again.engine.lease.lease_id) == 86_400


def test_time_that_etcd_made_longer_than_asked_is_taken_as_it_is(store):
    member = joined(store)
    member.asked = []
    member.hear(Renewed(member.engine.node_lease, 20, 20.0))
    later(member)
    assert member.asked == []


def test_reservation_has_no_time_to_live_to_change(store):
    put_lease(store, lease(1))
    member = joined(store)
    set_ttls(store, lease_ttl_s=7200)
    later(member, 1.0)
    assert member.engine.lease.lease_id == 0


# --- another address ------------------------------------------------------------------------------


def moved(member: Member, number: int) -> None:
    member.hear(HostChanged(replace(local(1), public_ips=(ip_address(f"192.168.50.{number}"),))))
    member.settle()
    later(member, 1.0)


def test_changed_address_is_claimed_published_and_the_old_claim_given_back(store):
    member, other = joined(store, 1), joined(store, 2)
    moved(member, 77)
    other.settle()
    assert [item.key for item in store.read([KEYS.addresses]).items] == [
        KEYS.address("192.168.50.2"),
        KEYS.address("192.168.50.77"),
    ]
    (fdb,) = [obj for key, obj in other.engine.desired.objects.items() if kind_of(key) is Kind.FDB]
    assert fdb.dst == ip_address("192.168.50.77")
    assert (codes(member), codes(other)) == ([], [])


def test_address_of_another_node_is_never_published(store):
    member, other = joined(store, 1), joined(store, 2)
    settle([member, other])
    moved(member, 2)
    assert codes(member) == ["OVL-404"]
    there = [codec.decode(item, KEYS).value for item in store.read([KEYS.subnets]).items]
    assert [v.public_ips for v in there] == [lease(1).public_ips, lease(2).public_ips]


def test_restart_with_another_address_gives_the_old_claim_back(store):
    before = joined(store)
    again = Member(store, engine(1, identity=before.engine.local.identity, public_ips=local(7).public_ips))
    again.settle()
    assert [item.key for item in store.read([KEYS.addresses]).items] == [KEYS.address("192.168.50.7")]


# --- another network ------------------------------------------------------------------------------


def test_offered_network_is_taken_on_command_and_the_old_lease_given_back(store):
    member = joined(store)
    put_network(store, network("10.99.0.0/16"))
    member.settle()
    assert member.engine.check_network(strand=False)
    member.hear(NetworkTaken())
    assert member.engine.lease is None
    later(member, 1.0)
    (key,) = [item.key for item in store.read([KEYS.subnets]).items]
    assert key == member.engine.lease.key
    assert key.startswith(KEYS.subnets + "10.99.")
    assert codes(member) == []


def test_change_of_the_backend_alone_keeps_the_subnet_and_its_containers(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    put_network(store, network(vni=7))
    member.settle()
    assert member.engine.check_network(strand=False)
    member.hear(NetworkTaken())
    later(member, 1.0)
    assert member.engine.lease.value.vteps[0].vni == 7
    assert (Kind.LINK, "flannel.7") in member.engine.desired.objects
    assert codes(member) == []


def test_network_that_would_strand_containers_is_refused_unless_forced(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    put_network(store, network("10.99.0.0/16"))
    member.settle()
    with pytest.raises(Conflict) as caught:
        member.engine.check_network(strand=False)
    assert "default/web-2 10.244.1.2" in caught.value.evidence
    assert member.engine.check_network(strand=True)
    member.hear(NetworkTaken())
    later(member, 1.0)
    assert codes(member) == ["OVL-404"]


def test_network_in_force_already_changes_nothing_and_none_is_refused(store):
    member = joined(store)
    assert not member.engine.check_network(strand=False)
    store.commit([], [Put(KEYS.network_config, b"{}")])
    member.settle()
    with pytest.raises(NetworkConfigInvalid):
        member.engine.check_network(strand=False)
    store.commit([], [Delete(KEYS.network_config)])
    member.settle()
    with pytest.raises(NetworkNotConfigured):
        member.engine.check_network(strand=False)


def test_second_lease_of_ours_left_by_a_crash_is_given_back_but_a_reservation_is_not(store):
    put_lease(store, lease(1, subnets=(subnet(50),)), store.grant(86_400).lease_id)
    put_lease(store, lease(1, subnets=(subnet(51),)), store.grant(86_400).lease_id)
    put_lease(store, lease(1, subnets=(subnet(52),)))
    member = joined(store)
    member.settle()
    assert [item.key for item in store.read([KEYS.subnets]).items] == [
        KEYS.lease((subnet(n),)) for n in (50, 52)
    ]
    assert codes(member) == []


# --- every write compares -------------------------------------------------------------------------


def test_container_is_not_published_under_a_node_name_that_another_has_by_now(store):
    member = joined(store)
    store.hold()
    taken = codec.encode_node(replace(member.engine._record(), node_id="somebody"))
    store.commit([], [Put(KEYS.node("node-1"), taken)])
    member.hear(Attached(workload(1, 2)))
    while member.todo:
        member.step()
    assert store.read([KEYS.workloads]).items == ()


def test_clean_stop_leaves_alone_what_another_node_holds_by_now(store):
    member = joined(store)
    taken = codec.encode_node(replace(member.engine._record(), node_id="somebody"))
    store.commit([], [Put(KEYS.node("node-1"), taken)])
    revision = store.read([]).revision
    member.worker.linger(member.engine._record(), [workload(1, 2)], 300)
    assert store.read([]).revision == revision


def test_register_asks_for_the_time_that_the_settings_say(store):
    set_ttls(store, node_ttl_s=40)
    member = joined(store)
    assert [i.ttl_s for i in member.asked if isinstance(i, Register)] == [40]
