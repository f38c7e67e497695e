"""Services in an engine over a store: what a host that dies, stops or detaches does to endpoints elsewhere."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from helpers.cluster import Member, put_network
from helpers.model import KEYS, engine, local, network, pod, subnet, vtep_mac

from overlaynet.core.departures import HOLD_DOWN_S
from overlaynet.errors import StoreUnavailable
from overlaynet.events import Attached, Conditions, Detached, HostChanged, LeaseExpired, Relist, StoreLost
from overlaynet.model import Identity, ServiceOptions
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
