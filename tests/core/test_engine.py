"""One host's mind, as sequences of events; and many of them over one store."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.cluster import Member, codes, joined, later, put_network, settle, steps_of
from helpers.model import (
    KEYS,
    endpoint_slice,
    engine,
    flannel_lease,
    key_of,
    lease,
    local,
    network,
    node,
    pod,
    service,
    stored,
    subnet,
    vtep_mac,
    workload,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from overlaynet.core import plan
from overlaynet.core.departures import HOLD_DOWN_S
from overlaynet.core.engine import Engine
from overlaynet.core.view import View
from overlaynet.errors import Conflict, StoreUnavailable
from overlaynet.events import (
    Attached,
    Changed,
    Claimed,
    ClaimSubnet,
    Conditions,
    Detached,
    Done,
    Event,
    Failed,
    Gone,
    HostChanged,
    Intent,
    LeaseExpired,
    NetworkTaken,
    Raced,
    Register,
    Registered,
    StoreBack,
    StoreLost,
    Synced,
)
from overlaynet.model import Identity, Port, ServiceOptions, ServicePort, Settings, Stored, Unreadable, Vtep
from overlaynet.ports import Delete, Put
from overlaynet.state import HostState, Key, Kind, Object, kind_of
from overlaynet.store import codec
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.unit

AWAY = StoreUnavailable("away")


def kinds(intents: list[Intent]) -> list[str]:
    return [type(intent).__name__ for intent in intents]


def restarted(member: Member, number: int = 1) -> Member:
    """The agent of the same host, started anew with what it keeps on disk."""
    again = Member(member.store, engine(number, identity=member.engine.local.identity))
    again.engine.workloads = dict(member.engine.workloads)
    again.settle()
    return again


# --- coming by a subnet ---------------------------------------------------------------------------


def test_nothing_is_asked_and_nothing_planned_before_the_first_listing():
    mind = engine(1)
    assert mind.handle(Changed(stored(network())), 0.0) == []
    assert mind.handle(Changed(stored(lease(1))), 0.0) == []
    assert mind.desired.objects == {}


def test_host_registers_then_claims_then_plans(store):
    member = joined(store)
    assert kinds(member.asked) == ["Register", "ClaimSubnet"]
    assert member.engine.confirmed
    assert codes(member) == []
    assert (Kind.LINK, "flannel.1") in member.engine.desired.objects
    assert member.engine.local.identity.subnets == member.engine.lease.value.subnets


def test_fifty_hosts_get_a_subnet_each_of_sixty_four():
    store = MemoryStore()
    put_network(store, network("10.244.0.0/18", 24, count=63))
    members = [Member(store, engine(number)) for number in range(1, 51)]
    settle(members, random.Random(7))
    given_out = [member.engine.lease.value.subnets[0] for member in members if member.engine.lease]
    assert len(set(given_out)) == 50
    assert all(codes(member) == [] for member in members)
    assert any(isinstance(e, ClaimSubnet) and e.expect == 0 for m in members for e in m.asked)
    in_store = store.read([KEYS.subnets]).items
    assert len(in_store) == 50
    for member in members:
        routes = [key for key in member.engine.desired.objects if kind_of(key) is Kind.ROUTE]
        assert len(routes) == 49


def test_host_that_loses_every_race_takes_the_only_subnet_left():
    store = MemoryStore()
    put_network(store, network(count=3))
    members = [Member(store, engine(number)) for number in (1, 2, 3)]
    for member in members:
        member.engine.pick = lambda n: 0
    settle(members, random.Random(1))
    assert {str(m.engine.lease.value.subnets[0]) for m in members} == {str(subnet(n)) for n in (1, 2, 3)}


def test_subnet_claimed_while_another_network_was_taken_is_given_back_for_one_of_that(store):
    """The claim was under way, and its answer is of the old network."""
    member = Member(store, engine(1))
    while not any(isinstance(intent, ClaimSubnet) for intent in member.todo):
        member.step()
    put_network(store, network("10.99.0.0/16"))
    while member.events:
        member.hear(member.events.popleft())
    member.hear(NetworkTaken())
    later(member)
    assert str(member.engine.lease.value.subnets[0]).startswith("10.99.")
    assert [item.key for item in store.read([KEYS.subnets]).items] == [member.engine.lease.key]
    assert codes(member) == []


def test_full_pool_is_a_problem_until_a_subnet_is_free(store):
    small = MemoryStore()
    put_network(small, network(count=1))
    first, second = joined(small, 1), Member(small, engine(2))
    second.settle()
    assert codes(second) == ["OVL-403"]
    small.commit([], [Delete(first.engine.lease.key)])
    second.settle()
    assert codes(second) == []
    assert second.engine.confirmed


def test_no_network_config_is_a_problem_and_one_that_appears_is_used():
    store = MemoryStore()
    member = Member(store, engine(1))
    member.settle()
    assert codes(member) == ["OVL-401"]
    store.commit([], [Put(KEYS.network_config, b"{}")])
    member.settle()
    assert codes(member) == ["OVL-401"]
    put_network(store, network())
    member.settle()
    assert codes(member) == []
    assert member.engine.confirmed


def test_flannels_lease_of_this_host_is_adopted_in_place(store):
    claim = flannel_lease(1, subnets=(subnet(7),))
    store.commit([], [Put(key_of(claim), codec.encode_lease(claim))])
    member = joined(store)
    assert member.engine.lease.value == lease(1, subnets=(subnet(7),))
    assert [item.key for item in store.read([KEYS.subnets]).items] == [key_of(claim)]


def test_reservation_of_ours_keeps_its_nature(store):
    kept = lease(1, subnets=(subnet(9),), public_ips=(ip_address("192.168.50.200"),))
    store.commit([], [Put(key_of(kept), codec.encode_lease(kept))])
    member = joined(store)
    assert (member.engine.lease.key, member.engine.lease.lease_id) == (key_of(kept), 0)


# --- staying --------------------------------------------------------------------------------------


def test_restart_resumes_subnet_and_leases_and_writes_nothing(store):
    before = joined(store)
    before.hear(Attached(workload(1, 2)))
    before.settle()
    revision = store.read([]).revision
    after = restarted(before)
    assert after.engine.lease == before.engine.lease
    assert after.engine.node_lease == before.engine.node_lease
    assert store.read([]).revision == revision


def test_clean_stop_leaves_records_that_the_next_start_puts_on_a_short_lease_again(store):
    before = joined(store)
    before.hear(Attached(workload(1, 2)))
    before.settle()
    before.worker.linger(before.engine._record(), list(before.engine.workloads.values()), 300)
    store.advance(60)
    assert [i.key for i in store.read([KEYS.workloads]).items] == [key_of(workload(1, 2))]
    after = restarted(before)
    assert after.engine.lease.value == before.engine.lease.value
    held = store.read([KEYS.nodes, KEYS.addresses, KEYS.vteps, KEYS.workloads]).items
    assert {item.lease_id for item in held} == {after.engine.node_lease}
    assert store.time_to_live(after.engine.node_lease) == 15


def test_clean_stop_extends_any_number_of_containers(store):
    member = joined(store)
    wired = [workload(1, n) for n in range(2, 250)]
    member.worker.linger(member.engine._record(), wired, 300)
    assert len(store.read([KEYS.workloads]).items) == len(wired)


def test_reboot_after_the_lease_ran_out_claims_the_remembered_subnet(store):
    before = joined(store)
    store.advance(100_000)
    assert store.read([KEYS.subnets]).items == ()
    assert restarted(before).engine.lease.key == before.engine.lease.key


def test_lost_lease_is_claimed_again_while_the_dataplane_stays(store):
    member, other = joined(store, 1), joined(store, 2)
    settle([member, other])
    before = dict(member.engine.desired.objects)
    store.commit([], [Delete(member.engine.lease.key)])
    member.step()
    assert not member.engine.confirmed
    assert member.engine.desired.objects == before
    member.wait(1.0)
    settle([member, other])
    assert member.engine.confirmed
    assert member.engine.desired.objects == before


def test_expired_node_lease_registers_again_and_publishes_containers_again(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    store.revoke(member.engine.node_lease)
    old, member.asked = member.engine.node_lease, []
    member.hear(LeaseExpired(old))
    member.settle()
    member.wait(1.0)
    member.settle()
    assert sorted(kinds(member.asked)) == ["Publish", "Register"]
    held = store.read([KEYS.nodes, KEYS.addresses, KEYS.vteps, KEYS.workloads]).items
    assert {item.lease_id for item in held} == {member.engine.node_lease} != {old}
    assert len(held) == 4


def test_lease_that_flannel_rewrote_on_this_host_is_written_again(store):
    member = joined(store)
    theirs = flannel_lease(1, subnets=member.engine.lease.value.subnets)
    store.commit([], [Put(member.engine.lease.key, codec.encode_lease(theirs))])
    member.settle()
    member.wait(1.0)
    member.settle()
    assert codec.decode(store.read([KEYS.subnets]).items[0], KEYS).value.node_id == "id-1"


@pytest.mark.parametrize(
    "usurper",
    [
        pytest.param(lease(9), id="of-another-node"),
        pytest.param(flannel_lease(9), id="of-a-flannel-host"),
    ],
)
def test_subnet_that_somebody_else_has_now_is_let_go(store, usurper):
    member = joined(store)
    lost = member.engine.lease.value.subnets
    taken = codec.encode_lease(usurper)
    store.commit([], [Put(member.engine.lease.key, taken)])
    member.settle()
    assert member.engine.lease.value.subnets != lost
    assert member.engine.confirmed
    assert (Kind.ROUTE, 254, lost[0]) in {key[:3] for key in member.engine.desired.objects}


def test_our_own_lease_made_unreadable_is_written_again(store):
    member = joined(store)
    store.commit([], [Put(member.engine.lease.key, b"junk")])
    member.settle()
    member.wait(1.0)
    member.settle()
    assert codes(member) == []
    assert codec.decode(store.read([KEYS.subnets]).items[0], KEYS).value == member.engine.lease.value


def test_unreadable_lease_of_a_peer_removes_nobody_and_is_reported(store):
    member, other = joined(store, 1), joined(store, 2)
    settle([member, other])
    before = dict(member.engine.desired.objects)
    store.commit([], [Put(other.engine.lease.key, b"junk")])
    while member.step():
        pass
    assert member.engine.desired.objects == before
    assert codes(member) == ["OVL-305"]
    member.hear(Synced(member.engine.view.revision, tuple(everything(store))))
    assert member.engine.desired.objects == before


def everything(store: MemoryStore):
    return [codec.decode(item, KEYS) for item in store.read(KEYS.watched).items]


def test_changed_network_config_is_reported_and_moves_nothing(store):
    member = joined(store)
    before = dict(member.engine.desired.objects)
    put_network(store, network("10.99.0.0/16"))
    member.settle()
    assert codes(member) == ["OVL-406"]
    assert member.engine.desired.objects == before
    put_network(store, network())
    member.settle()
    assert codes(member) == []


def test_deleted_network_config_leaves_the_dataplane(store):
    member = joined(store)
    before = dict(member.engine.desired.objects)
    store.commit([], [Delete(KEYS.network_config)])
    member.settle()
    assert codes(member) == ["OVL-406"]
    assert member.engine.desired.objects == before


# --- conflicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "what"),
    [
        pytest.param({"name": "node-1"}, "the node name node-1 of node node-1", id="name"),
        pytest.param(
            {"public_ips": local(1).public_ips}, "the public address 192.168.50.1 of node node-2", id="address"
        ),
        pytest.param(
            {"identity": Identity("id-2", local(1).identity.vtep_mac)},
            "the VTEP MAC 02:00:00:00:00:01 of node node-2",
            id="vtep",
        ),
    ],
)
def test_second_claimant_is_told_who_is_first(store, second, what):
    joined(store, 1)
    late = Member(store, engine(2, **second))
    late.settle()
    (problem,) = late.engine.problems()
    assert isinstance(problem, Conflict)
    assert problem.message == f"{what} is claimed by node node-1 already"
    assert late.engine.lease is None
    late.wait(60.0)
    late.settle()
    assert codes(late) == ["OVL-404"]


def test_claim_succeeds_once_the_first_claimant_is_gone(store):
    first = joined(store, 1)
    late = Member(store, engine(2, public_ips=local(1).public_ips))
    late.settle()
    store.revoke(first.engine.node_lease)
    late.wait(60.0)
    late.settle()
    late.wait(60.0)
    late.settle()
    assert codes(late) == []
    assert late.engine.confirmed


def test_copied_machine_is_told_apart_and_waits(store):
    original = joined(store, 1)
    copy = Member(store, engine(2, identity=original.engine.local.identity))
    settle([original, copy])
    (problem,) = copy.engine.problems()
    assert problem.code == "OVL-404"
    assert "node node-1 at 192.168.50.1 has the node id of this node, node-2" in problem.message
    assert kinds(copy.asked) == []
    assert original.engine.confirmed


def test_two_nodes_of_one_name_and_id_do_not_write_without_pause(store):
    original = joined(store, 1)
    copy = Member(store, engine(2, identity=original.engine.local.identity, name="node-1"))
    settle([original, copy])
    assert len(original.asked) + len(copy.asked) < 20


# --- failure --------------------------------------------------------------------------------------


def test_failed_intent_is_asked_for_again_after_a_growing_pause(store):
    member = Member(store, engine(1))
    member.step()
    member.step()
    pauses = []
    for _ in range(4):
        store.fail_next(AWAY)
        member.step()
        assert member.hear(member.events.popleft()) == []
        due = member.engine.deadline()
        assert due
        pauses.append(round(due - member.now, 3))
        member.wait(due - member.now)
    assert pauses == [0.1, 0.2, 0.4, 0.8]
    member.settle()
    assert codes(member) == []


def test_what_failed_for_long_is_tried_at_once_when_the_store_is_back(store):
    member = joined(store)
    member.hear(StoreLost(AWAY))
    (publish,) = member.hear(Attached(workload(1, 2)))
    for _ in range(10):
        member.todo.clear()
        member.hear(Failed(publish, AWAY))
        member.wait(60.0)
    member.todo.clear()
    member.hear(Failed(publish, AWAY))
    member.hear(StoreBack())
    later(member, 0.2)
    assert [codec.decode(item, KEYS).value for item in store.read([KEYS.workloads]).items] == [workload(1, 2)]
    assert codes(member) == []


def test_failure_of_what_nobody_wants_any_more_is_forgotten(store):
    member = joined(store)
    (publish,) = member.hear(Attached(workload(1, 2)))
    member.todo.clear()
    member.hear(Failed(publish, AWAY))
    assert codes(member) == ["OVL-301"]
    member.hear(Detached("default/web-2"))
    assert codes(member) == []
    assert member.engine.deadline() is None


def test_container_whose_conditions_change_is_published_again(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    member.hear(Conditions("default/web-2", ready=False, serving=True, terminating=True))
    member.settle()
    (item,) = store.read([KEYS.workloads]).items
    assert codec.decode(item, KEYS).value == workload(1, 2, ready=False, terminating=True)
    assert member.hear(Conditions("default/gone", ready=True, serving=True, terminating=False)) == []


def test_claim_that_went_through_though_it_seemed_to_fail_is_ours(store):
    member = Member(store, engine(1))
    while not any(isinstance(intent, ClaimSubnet) for intent in member.todo):
        member.step()
    claim = member.todo.popleft()
    member.worker.carry_out(claim)
    member.events.clear()
    member.hear(Failed(claim, AWAY))
    (written,) = store.read([KEYS.subnets]).items
    member.hear(Changed(codec.decode(written, KEYS)))
    later(member, 1.0)
    assert member.engine.lease.key == written.key
    assert store.read([KEYS.subnets]).items == (written,)
    assert codes(member) == []
    assert member.engine.deadline() is None


def test_lost_store_is_reported_until_it_is_back(store):
    member = joined(store)
    member.hear(StoreLost(AWAY))
    assert codes(member) == ["OVL-301"]
    member.hear(StoreBack())
    assert codes(member) == []


def test_stale_claim_learns_from_the_refusal_and_does_not_wait_for_the_watch(store):
    member = joined(store)
    store.hold()
    store.commit([], [Delete(member.engine.lease.key)])
    member.engine.local = local(
        1, identity=member.engine.local.identity, public_ips=(ip_address("192.168.50.77"),)
    )
    member.wait(1.0)
    for _ in range(100):
        member.step()
    claims = [intent for intent in member.asked if isinstance(intent, ClaimSubnet)]
    assert len(claims) <= 4


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda intent: done(intent), id="success-that-never-shows"),
        pytest.param(lambda intent: Failed(intent, AWAY), id="failure"),
        pytest.param(lambda intent: raced_or_done(intent), id="race-lost-to-nobody"),
    ],
)
def test_no_intent_repeats_without_a_pause_whatever_the_answer(answer):
    mind = engine(1)
    todo = mind.handle(Synced(1, (stored(network(count=4)),)), 0.0)
    todo += mind.handle(Attached(workload(1, 2)), 0.0)
    asked = 0
    while todo:
        asked += 1
        assert asked < 20
        todo += mind.handle(answer(todo.pop(0)), 0.0)


def done(intent: Intent) -> Event:
    match intent:
        case Register():
            return Registered(9)
        case ClaimSubnet():
            return Raced("somewhere else")
    return Done(intent)


def raced_or_done(intent: Intent) -> Event:
    if isinstance(intent, ClaimSubnet):
        return Raced(KEYS.lease(intent.lease.subnets))
    return done(intent)


# --- containers -----------------------------------------------------------------------------------


def test_container_is_published_and_withdrawn(store):
    member = joined(store)
    member.hear(Attached(workload(1, 2)))
    member.settle()
    (record,) = store.read([KEYS.workloads]).items
    assert codec.decode(record, KEYS).value == workload(1, 2)
    assert record.lease_id == member.engine.node_lease
    assert (Kind.LINK, "cni0") in member.engine.desired.objects
    member.hear(Detached("default/web-2"))
    member.settle()
    assert store.read([KEYS.workloads]).items == ()
    assert (Kind.LINK, "cni0") not in member.engine.desired.objects


def test_record_of_a_container_that_is_not_here_is_withdrawn(store):
    before = joined(store)
    before.hear(Attached(workload(1, 2)))
    before.settle()
    before.engine.workloads.clear()
    restarted(before)
    assert store.read([KEYS.workloads]).items == ()


def test_containers_of_other_nodes_are_left_alone(store):
    other = joined(store, 2)
    other.hear(Attached(workload(2, 2)))
    settle([other, joined(store, 1)])
    assert len(store.read([KEYS.workloads]).items) == 1


# --- two hosts ------------------------------------------------------------------------------------


def delivers(sender: Engine, receiver: Engine, target) -> bool:
    """Walk a frame from a container of one host to one of another through what is planned: route, then
    neighbour, then forwarding entry; at the other end, the VTEP's MAC and the pin of the target."""
    objects = {obj.key: obj for obj in sender.desired.objects.values()}
    routes = [o for o in objects.values() if kind_of(o.key) is Kind.ROUTE and target.ips[0] in o.dst]
    if not routes:
        return False
    hop = objects[(Kind.NEIGH, routes[0].dev, routes[0].via)]
    tunnel = objects[(Kind.FDB, routes[0].dev, hop.mac, None)]
    there = receiver.desired.objects
    device = there[(Kind.LINK, "flannel.1")]
    pin = there.get((Kind.FDB, target.device, target.mac, "cni0"))
    return tunnel.dst in receiver.local.public_ips and device.mac == hop.mac and pin is not None


def test_frame_from_one_hosts_container_reaches_the_others(store):
    a, b = joined(store, 1), joined(store, 2)
    number = int(b.engine.lease.value.subnets[0].network_address) >> 8 & 255
    target = workload(number, 5, node="node-2")
    b.hear(Attached(target))
    settle([a, b])
    assert delivers(a.engine, b.engine, target)
    store.commit([], [Delete(b.engine.lease.key)])
    a.settle()
    assert not delivers(a.engine, b.engine, target)


# --- incremental is the same as from scratch ------------------------------------------------------

NUMBERS = range(2, 6)
peers = st.builds(
    lambda number, key, changes: stored(lease(number, **changes), key=key_of(lease(key))),
    st.sampled_from(NUMBERS),
    st.sampled_from(NUMBERS),
    st.sampled_from([{}, {"vni": 9}, {"backend": "host-gw"}, {"node_id": None}]),
).map(lambda item: stored(codec_round(item), key=item.key))


def codec_round(item):
    """The lease that reading this key yields: its subnet is the key's."""
    return codec.decode(codec.KeyValue(item.key, codec.encode_lease(item.value)), KEYS).value


VIPS = [ip_address(f"10.112.0.{n}") for n in (10, 11)] + [ip_address("10.96.0.5")]
PORTS = [
    (ServicePort(80, target=8080),),
    (ServicePort(80, target="http", node_port=30080), ServicePort(53, "UDP", "dns")),
    (),
]
services = st.builds(
    lambda name, **changes: service(name, **changes),
    st.sampled_from(["web", "db"]),
    cluster_ips=st.sampled_from(VIPS).map(lambda ip: (ip,)) | st.just(()),
    ports=st.sampled_from(PORTS),
    selector=st.sampled_from([{}, {"app": "web"}, {"app": "web", "tier": "1"}]),
    type=st.sampled_from(["ClusterIP", "NodePort"]),
    internal_policy=st.sampled_from(["Cluster", "Local"]),
    external_policy=st.sampled_from(["Cluster", "Local"]),
    distribution=st.sampled_from(["", "PreferClose", "PreferSameNode"]),
)
slices = st.builds(
    endpoint_slice,
    st.sampled_from(["s1", "s2"]),
    st.sampled_from(["web", "db"]),
    st.sampled_from(["10.244.2.2", "10.9.0.1"]),
    ready=st.booleans(),
    node=st.sampled_from([None, "node-1", "node-2"]),
)
labels = st.sampled_from([{}, {"app": "web"}, {"app": "web", "tier": "1"}, {"app": "db"}])
pods = st.builds(
    lambda number, container, **changes: pod(number, container, **changes),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([2, 3]),
    labels=labels,
    ports=st.sampled_from([(), (Port(8081, name="http"),)]),
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
)
nodes = st.builds(
    lambda number, zone: node(number, zone=zone),
    st.sampled_from([2, 3]),
    st.sampled_from([None, "east", "west"]),
)
of_services = st.one_of(services, services, slices, pods, pods, nodes)
moves = st.one_of(
    peers.map(lambda item: ("put", item)),
    st.sampled_from(NUMBERS).map(lambda n: ("gone", key_of(lease(n)))),
    st.sampled_from(NUMBERS).map(lambda n: ("bad", key_of(lease(n)))),
    st.integers(2, 4).map(lambda n: ("attach", workload(1, n))),
    st.integers(2, 4).map(lambda n: ("detach", workload(1, n).id)),
    st.sampled_from([1_400, 1_500]).map(lambda mtu: ("mtu", mtu)),
    st.just(("relist", None)),
)
service_moves = st.one_of(
    of_services.map(lambda value: ("put", stored(value))),
    of_services.map(lambda value: ("put", stored(value))),
    st.integers(0, 99).map(lambda n: ("lose", n)),
    st.sampled_from([2, 3]).map(lambda n: ("die", f"node-{n}")),
    st.sampled_from([1.0, HOLD_DOWN_S]).map(lambda seconds: ("wait", seconds)),
    st.just(("emptied", None)),
    of_services.map(lambda value: ("bad", key_of(value))),
    pods.map(lambda one: ("attach", replace(one, node="node-1"))),
    st.tuples(st.sampled_from([2, 3]), st.booleans(), st.booleans()).map(
        lambda has: ("probed", Conditions(pod(1, has[0]).id, has[1], has[2], has[1]))
    ),
    st.sampled_from(["10.112.0.0/16", "10.96.0.0/16"]).map(
        lambda text: ("put", stored(Settings(service_network=ip_network(text)), key=KEYS.settings))
    ),
    moves,
)


def play(mind: Engine, steps, first: int = 100) -> dict[Key, Object]:
    """Feed the events, each with a revision of its own; answer what a follower of `take_touched` holds."""
    held: dict[Key, Object] = {}
    for revision, (what, value) in enumerate(steps, first):
        if what == "wait":
            mind.tick(mind._now + value)
        for event in events_of(mind, what, value, revision):
            mind.handle(event, mind._now)
            follow(mind, held)
    follow(mind, held)
    return held


def follow(mind: Engine, held: dict[Key, Object]) -> None:
    for key in mind.take_touched():
        if key in mind.desired.objects:
            held[key] = mind.desired.objects[key]
        else:
            held.pop(key, None)


def events_of(mind: Engine, what: str, value, revision: int) -> list[Event]:
    match what:
        case "put":
            made = next((item.create_revision for item in known(mind) if item.key == value.key), revision)
            return [Changed(replace(value, create_revision=made, mod_revision=revision))]
        case "gone":
            return [Gone(value, revision)]
        case "die":
            gone = [KEYS.node(value), *(KEYS.workload(value, one.id) for one in mind.view.workloads_of(value))]
            return [Gone(key, revision) for key in gone]
        case "emptied":
            return [Synced(revision, (stored(network()), stored(lease(1))), new_history=True)]
        case "lose":
            keys = sorted(item.key for item in known(mind) if item.key != mind.lease.key)
            return [Gone(keys[value % len(keys)], revision)] if keys else []
        case "bad":
            return [Changed(stored(Unreadable("junk"), revision, key=value))]
        case "attach":
            return [Attached(value)]
        case "detach":
            return [Detached(value)]
        case "probed":
            return [value]
        case "wait":
            return []
        case "mtu":
            return [HostChanged(replace(mind.local, underlay_mtu=value))]
    return [Synced(revision, (stored(network()), stored(mind.view.settings, key=KEYS.settings), *known(mind)))]


def known(mind: Engine) -> list[Stored]:
    """Everything but the network, as a listing has it."""
    view = mind.view
    tables = (view.leases, view.nodes, view.workloads, view.services, view.slices)
    return [item for table in tables for item in table.values()]


def with_lease(**changes) -> Engine:
    mind = engine(1, **changes)
    mind.handle(Synced(1, (stored(network(), 1), stored(lease(1), 1))), 0.0)
    mind.handle(Registered(9), 0.0)
    mind.handle(Claimed(stored(lease(1), 1)), 0.0)
    return mind


BASE = [
    service("web", ports=PORTS[1], distribution="PreferClose"),
    service("db", ports=PORTS[0], selector={"app": "web", "tier": "1"}),
    *(node(n, zone=zone) for n, zone in ((2, "east"), (3, "west"))),
    *(pod(n, 2, labels={"app": "web", "tier": "1"}, ports=(Port(8081, name="http"),)) for n in (2, 3)),
    endpoint_slice("s1", "db", "10.9.0.1"),
]
OPTIONS = ServiceOptions(node_ips=(ip_address("192.168.50.1"),), localhost_node_ports=True)


@given(steps=st.lists(moves, max_size=25), peers_only=st.booleans())
@settings(max_examples=80)
def test_any_sequence_of_events_is_planned_as_if_from_scratch(steps, peers_only):
    same_as_from_scratch(with_lease(vxlan_peers_only=peers_only), steps)


@given(steps=st.lists(service_moves, min_size=1, max_size=15))
@settings(max_examples=100)
def test_any_sequence_of_news_of_services_is_planned_as_if_from_scratch(steps):
    """Looked at after each, since a listing or another setting of the cluster plans everything anew."""
    mind = with_lease(services=OPTIONS, zone="east")
    play(mind, [("put", stored(value)) for value in BASE], 50)
    for revision, step in enumerate(steps, 100):
        scratch = same_as_from_scratch(mind, [step], revision)
        assert told(mind.desired) == told(scratch)


def told(desired: plan.Desired) -> set[str]:
    """What is said of services that are not served as asked."""
    return {str(problem) for some in desired.services.problems.values() for problem in some}


def same_as_from_scratch(mind: Engine, steps, revision: int = 100) -> plan.Desired:
    held = dict(mind.desired.objects)
    mind.take_touched()
    held_after = play(mind, steps, revision)
    fresh = View.of([stored(network()), stored(mind.view.settings, key=KEYS.settings), *known(mind)], KEYS)
    fresh.stale = dict(mind.view.stale)
    for item in mind.view.kept.values():
        fresh.keep(item)
    fresh.last = dict(mind.view.last)
    scratch = plan.desired(fresh, mind.local, mind.lease.value, mind.workloads.values())
    assert mind.desired.objects == scratch.objects
    assert mind.desired.policies == scratch.policies
    assert mind.desired.slices == scratch.slices
    assert mind.desired.sources == scratch.sources
    touched = {key: held_after.get(key, held.get(key)) for key in scratch.objects}
    assert touched == scratch.objects
    return scratch


@given(steps=st.lists(peers, min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_order_repetition_and_listing_of_the_same_news_do_not_matter(steps, seed):
    chance = random.Random(seed)
    news = [Changed(stored(item.value, 100 + n, key=item.key)) for n, item in enumerate(steps)]
    last = {event.item.key: event.item for event in news}
    ways = {
        "as it came": news,
        "backwards": news[::-1],
        "each twice": [event for event in news for _ in range(2)],
        "shuffled and repeated": chance.sample(news * 2, len(news) * 2),
        "as a listing": [Synced(200, (stored(network(), 1), stored(lease(1), 1), *last.values()))],
        "listed half way": [
            *news[: len(news) // 2],
            Synced(200, (stored(network(), 1), stored(lease(1), 1), *last.values())),
            *news,
        ],
    }
    hosts = {}
    for way, events in ways.items():
        mind = with_lease()
        for event in events:
            mind.handle(event, 0.0)
        hosts[way] = HostState(mind.desired.objects, mind.desired.policies)
    assert all(host == hosts["as it came"] for host in hosts.values()), [str(host) for host in hosts.values()]


# --- what an event costs --------------------------------------------------------------------------


def peer_of(number: int, **changes):
    """Peer `number` of a big network, with a VTEP of its own."""
    net = ip_network((0x0A800000 + (number << 8), 24))
    values = {"subnets": (net,), "node_id": f"peer-{number}", "vteps": (Vtep(4, 1, vtep_mac(number)),)}
    return lease(2, **{**values, **changes})


def big(count: int) -> Engine:
    """A host with `count` peers, each with two containers."""
    mind = engine(1)
    mine = lease(1, subnets=(ip_network("10.250.0.0/24"),))
    items = [stored(network("10.128.0.0/9", 24, count=32_000), 1), stored(mine, 1)]
    items += [stored(peer_of(n), 1) for n in range(2, count + 2)]
    items += [stored(workload(2, n, node=f"peer-{m}"), 1) for m in range(count) for n in (2, 3)]
    mind.handle(Synced(1, tuple(items)), 0.0)
    mind.handle(Registered(9), 0.0)
    mind.handle(Claimed(stored(mine, 3)), 0.0)
    mind.handle(Changed(stored(mind._record(), 3, lease_id=9)), 0.0)
    assert mind._lease_is_right()
    mind.take_touched()
    return mind


def cost(mind: Engine, revision: int) -> int:
    """Byte codes run for one changed lease."""
    moved = peer_of(9, node_name=f"n{revision}", public_ips=(ip_address(revision),))
    counted = steps_of(mind, Changed(stored(moved, revision)))
    assert len(mind.take_touched()) == 3
    return counted


def test_changed_lease_costs_the_same_among_a_hundred_and_among_thousands():
    few, many = cost(big(100), 100), cost(big(2_000), 100)
    assert few > 100
    assert many <= few * 1.5
