"""Services in an engine over a store: what a host that dies, stops or detaches does to endpoints elsewhere."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.cluster import Member, put_network, steps_of
from helpers.model import (
    KEYS,
    endpoint_slice,
    engine,
    lease,
    local,
    network,
    node,
    pod,
    service,
    stored,
    subnet,
    vtep_mac,
)

from overlaynet.core.departures import HOLD_DOWN_S
from overlaynet.core.engine import Engine
from overlaynet.core.vanishing import APART_S
from overlaynet.errors import StoreUnavailable
from overlaynet.events import (
    Attached,
    Changed,
    Claimed,
    Conditions,
    Detached,
    Gone,
    HostChanged,
    LeaseExpired,
    Recalled,
    Registered,
    Relist,
    StoreLost,
    Synced,
)
from overlaynet.model import Identity, ServiceOptions, ServicePort, Settings
from overlaynet.ports import Delete, Put
from overlaynet.store import codec
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.unit

WEB = "service default/web/tcp"
OBJECT = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "clusterIP": "10.112.0.10",
        "clusterIPs": ["10.112.0.10"],
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}],
    },
}


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    put_network(made, network())
    made.commit([], [Put(KEYS.service("default/web"), codec.encode_object(OBJECT))])
    return made


def joined(store: MemoryStore, number: int = 1) -> Member:
    remembered = Identity(f"id-{number}", vtep_mac(number), (subnet(number),))
    member = Member(store, engine(number, identity=remembered, services=ServiceOptions()))
    member.settle()
    assert member.engine.confirmed
    return member


def with_pods(store: MemoryStore, *numbers: int) -> list[Member]:
    """Host 1, and these with a container each."""
    members = [joined(store, number) for number in (1, *numbers)]
    for member, number in zip(members[1:], numbers, strict=True):
        member.hear(Attached(pod(number, 2)))
    for member in members:
        member.settle()
    return members


def leads_to(member: Member) -> list[str]:
    member.settle()
    return [str(one.ip) for one in member.engine.desired.policies[WEB].cluster]


def codes(member: Member) -> list[str]:
    return [problem.code for problem in member.engine.problems()]


def dies(store: MemoryStore, member: Member) -> None:
    store.revoke(member.engine.node_lease)


def test_containers_of_all_hosts_serve_everywhere(store):
    for member in with_pods(store, 2, 3):
        assert leads_to(member) == ["10.244.2.2", "10.244.3.2"]


def test_host_that_dies_serves_no_more(store):
    one, two, _ = with_pods(store, 2, 3)
    dies(store, two)
    assert leads_to(one) == ["10.244.3.2"]
    assert codes(one) == []


def test_last_endpoints_stay_for_a_while_when_their_hosts_die(store):
    one, two, three = with_pods(store, 2, 3)
    dies(store, two)
    dies(store, three)
    assert leads_to(one) == ["10.244.2.2", "10.244.3.2"]
    assert codes(one) == ["OVL-415"]
    assert one.engine.deadline() == HOLD_DOWN_S
    one.wait(HOLD_DOWN_S)
    assert leads_to(one) == []
    assert codes(one) == []


def test_last_container_that_is_detached_serves_no_more(store):
    one, two = with_pods(store, 2)
    two.hear(Detached(pod(2, 2).id))
    two.settle()
    one.settle()
    assert codes(one) == []
    assert one.engine.deadline() == APART_S
    one.wait(APART_S)
    assert leads_to(one) == []
    assert codes(one) == []


def test_stop_for_an_upgrade_takes_no_endpoint_away(store):
    one, two, three = with_pods(store, 2, 3)
    two.worker.linger(two.engine._record(), list(two.engine.workloads.values()), 300)
    for _ in range(6):
        store.advance(10)
        for member in (one, three):
            store.keep_alive(member.engine.node_lease)
    assert leads_to(one) == ["10.244.2.2", "10.244.3.2"]


def test_emptied_store_takes_no_service_away_for_a_while(store):
    one, _ = with_pods(store, 2)
    store.replace(cluster_id=2)
    put_network(store, network())
    one.todo.append(Relist())
    assert leads_to(one) == ["10.244.2.2"]
    assert "OVL-415" in codes(one)
    one.wait(HOLD_DOWN_S)
    one.settle()
    assert WEB not in one.engine.desired.policies


def test_start_into_an_emptied_store_keeps_the_services_that_are_remembered():
    mind = engine(1, services=ServiceOptions())
    items = [stored(network(), 5), *(stored(value, 5) for value in (lease(1), service(), node(2), pod(2, 2)))]
    mind.handle(Recalled(9, tuple(items)), 0.0)
    assert [str(one.ip) for one in mind.desired.policies[WEB].cluster] == ["10.244.2.2"]
    mind.handle(Synced(3, (stored(network(), 2), stored(lease(1), 3)), new_history=True), 0.0)
    assert [str(one.ip) for one in mind.desired.policies[WEB].cluster] == ["10.244.2.2"]
    mind.tick(HOLD_DOWN_S)
    assert WEB not in mind.desired.policies


def test_deleted_service_is_gone_at_once_and_what_all_share_with_it(store):
    (one,) = with_pods(store)
    store.commit([], [Delete(KEYS.service("default/web"))])
    one.settle()
    assert not {WEB, "services"} & one.engine.desired.policies.keys()


def test_own_container_serves_before_etcd_knows_it_and_while_etcd_is_away(store):
    (one,) = with_pods(store)
    one.hear(StoreLost(StoreUnavailable("away")))
    one.hear(Attached(pod(1, 2)))
    assert [str(e.ip) for e in one.engine.desired.policies[WEB].cluster] == ["10.244.1.2"]
    one.hear(LeaseExpired(one.engine.node_lease))
    assert leads_to(one) == ["10.244.1.2"]


def test_own_container_that_is_not_ready_serves_no_more(store):
    (one,) = with_pods(store)
    one.hear(Attached(pod(1, 2)))
    assert leads_to(one) == ["10.244.1.2"]
    one.hear(Conditions(pod(1, 2).id, ready=False, serving=False, terminating=False))
    assert leads_to(one) == []


def test_service_that_cannot_be_served_as_asked_is_a_problem_and_the_others_are_served(store):
    (one,) = with_pods(store)
    again = {**OBJECT, "metadata": {"name": "copy", "namespace": "default"}}
    store.commit([], [Put(KEYS.service("default/copy"), codec.encode_object(again))])
    store.commit([], [Put(KEYS.service("default/bad"), b'{"kind": "Service", "spec": {"ports": 7}}')])
    one.settle()
    assert sorted(codes(one)) == ["OVL-305", "OVL-414"]
    assert WEB in one.engine.desired.policies
    assert "service default/copy/tcp" not in one.engine.desired.policies


def test_node_port_addresses_that_change_are_taken_up(store):
    (one,) = with_pods(store)
    host = local(1, identity=one.engine.local.identity, services=ServiceOptions((ip_address("172.16.0.1"),)))
    one.hear(HostChanged(host))
    assert one.engine.desired.policies["services"].node_ips == (ip_address("172.16.0.1"),)


def test_listing_with_other_settings_and_other_endpoints_takes_up_both():
    """What is wanted of services is taken over where the settings do not bear on it, but not what is news."""
    mind = busy(3)
    settings = stored(Settings(lease_ttl_s=3_600), key=KEYS.settings)
    more = endpoint_slice("x", "s1", "10.9.0.1")
    listed = [stored(network(), 1), stored(lease(1), 3), settings, *mind.view.records(), stored(more, 100)]
    planned = mind.desired.services
    mind.handle(Synced(100, tuple(listed)), 0.0)
    assert mind.desired.services is planned
    assert "10.9.0.1:8080" in map(str, mind.desired.policies["service default/s1/tcp"].cluster)


# --- what an event costs --------------------------------------------------------------------------


def busy(count: int) -> Engine:
    """A host among `count` services with a container each, all of them labelled alike beside their own app."""
    mind = engine(1, services=ServiceOptions())
    items = [stored(network(), 1), stored(lease(1), 1), *(stored(node(n), 1) for n in range(2, 6))]
    for n in range(count):
        vip = ip_address("10.112.1.0") + n
        items.append(stored(service(f"s{n}", cluster_ips=(vip,), selector={"app": f"s{n}", "a": "b"}), 1))
        items.append(stored(pod(2 + n % 4, 2 + n // 4, name=f"p{n}", labels={"app": f"s{n}", "a": "b"}), 1))
    mind.handle(Synced(1, tuple(items)), 0.0)
    mind.handle(Registered(9), 0.0)
    mind.handle(Claimed(stored(lease(1), 3)), 0.0)
    assert len(mind.desired.policies) > count
    return mind


NEWS = {
    "a container that is not ready any more": Changed(
        stored(pod(2, 2, name="p0", labels={"app": "s0", "a": "b"}, ready=False), 100)
    ),
    "a container that goes": Gone(KEYS.workload("node-2", "default/p0"), 100),
    "a service with another port": Changed(
        stored(
            service(
                "s0",
                cluster_ips=(ip_address("10.112.1.0"),),
                selector={"app": "s0", "a": "b"},
                ports=(ServicePort(81),),
            ),
            100,
        )
    ),
    "a new slice": Changed(stored(endpoint_slice("x", "s0", "10.9.0.1"), 100)),
    "another zone of a node": Changed(stored(node(9, zone="east"), 100)),
}


@pytest.mark.parametrize("event", [pytest.param(event, id=what) for what, event in NEWS.items()])
def test_event_costs_the_same_among_few_services_and_among_many(event):
    few, many = steps_of(busy(20), event), steps_of(busy(600), event)
    assert few > 100
    assert many <= few * 1.5
