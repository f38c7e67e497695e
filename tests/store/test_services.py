"""Services in etcd: what they are given, keep and free, and who else may have it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlaynet.core.allocation import NODE_PORTS, allocations, choose_node_port, choose_vip
from overlaynet.core.keys import Keys
from overlaynet.errors import AllocationTaken, ObjectInvalid, ServicesFull, StoreError
from overlaynet.model import Allocation, Service, Settings
from overlaynet.ports import Commit, Compare, Delete, Put
from overlaynet.store import codec, services
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.unit
KEYS = Keys()
NETWORK = IPv4Network("10.112.0.0/16")


def service(name: str = "web", /, **spec: Any) -> dict[str, Any]:
    usual = {"ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": usual | spec}


def a_slice(name: str, of: str, namespace: str = "default") -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": of}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.1"]}],
    }


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def apply(store: MemoryStore, *values: dict[str, Any]) -> list[services.Written]:
    return services.apply(store, KEYS, values)


def spec(store: MemoryStore, name: str = "default/web") -> dict[str, Any]:
    [item] = store.read([KEYS.service(name)]).items
    found: dict[str, Any] = json.loads(item.value)["spec"]
    return found


def records(store: MemoryStore) -> dict[str, str]:
    """Who has what, by the last part of the key."""
    items = store.read([KEYS.vips, KEYS.node_ports]).items
    return {item.key.rpartition("/")[2]: json.loads(item.value)["service"] for item in items}


def put(store: MemoryStore, key: str, value: bytes) -> None:
    store.commit([], [Put(key, value)])


def shrink(store: MemoryStore, network: str) -> None:
    """Make the service network that of the argument."""
    put(store, KEYS.settings, codec.encode_settings(Settings(service_network=ip_network(network))))


# --- given and kept -------------------------------------------------------------------------------


def test_a_new_service_is_given_a_vip_with_its_record(store: MemoryStore) -> None:
    [written] = apply(store, service())
    vip = spec(store)["clusterIP"]
    assert IPv4Address(vip) in NETWORK
    assert spec(store)["clusterIPs"] == [vip]
    assert records(store) == {vip: "default/web"}
    assert (written.action, written.object["metadata"]["namespace"]) == ("created", "default")


def test_a_name_has_the_same_vip_wherever_it_is_free() -> None:
    first, second = MemoryStore(), MemoryStore()
    apply(first, service("web"))
    apply(second, service("db"), service("web"))
    assert spec(first)["clusterIP"] == spec(second)["clusterIP"]


def test_applying_again_writes_nothing(store: MemoryStore) -> None:
    apply(store, service(type="NodePort"), a_slice("web-1", "web"))
    revision = store.read([]).revision
    assert [w.action for w in apply(store, service(type="NodePort"), a_slice("web-1", "web"))] == [
        "unchanged"
    ] * 2
    assert store.read([]).revision == revision


def test_an_update_keeps_vip_and_node_ports(store: MemoryStore) -> None:
    apply(store, service(type="NodePort"))
    before = spec(store)
    ports = [{"name": "a", "port": 80, "targetPort": 8080}, {"name": "b", "port": 81}]
    [written] = apply(store, service(type="NodePort", ports=ports))
    after = spec(store)
    assert (written.action, after["clusterIP"]) == ("configured", before["clusterIP"])
    assert after["ports"][0]["nodePort"] == before["ports"][0]["nodePort"] != after["ports"][1]["nodePort"]


def test_what_an_update_no_longer_has_is_free(store: MemoryStore) -> None:
    apply(store, service(type="NodePort"))
    apply(store, service(clusterIP="10.112.0.77"))
    assert records(store) == {"10.112.0.77": "default/web"}
    apply(store, service(type="ExternalName", externalName="db.example.net"))
    assert records(store) == {}


def test_ports_of_one_number_get_one_node_port(store: MemoryStore) -> None:
    ports = [{"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}]
    apply(store, service(type="NodePort", ports=ports))
    tcp, udp = spec(store)["ports"]
    assert tcp["nodePort"] == udp["nodePort"]
    assert {f"tcp-{tcp['nodePort']}", f"udp-{tcp['nodePort']}"} < records(store).keys()


def test_a_local_load_balancer_gets_a_health_check_port_of_its_own(store: MemoryStore) -> None:
    apply(store, service(type="LoadBalancer", externalTrafficPolicy="Local"))
    found = spec(store)
    assert found["healthCheckNodePort"] != found["ports"][0]["nodePort"]
    assert records(store)[f"tcp-{found['healthCheckNodePort']}"] == "default/web"


def test_a_load_balancer_may_do_without_node_ports(store: MemoryStore) -> None:
    apply(store, service(type="LoadBalancer", allocateLoadBalancerNodePorts=False))
    assert "nodePort" not in spec(store)["ports"][0]


def test_headless_services_are_given_nothing(store: MemoryStore) -> None:
    apply(store, service(clusterIP="None"))
    assert (spec(store)["clusterIP"], records(store)) == ("None", {})


def test_a_vip_outside_of_the_service_network_is_accepted_and_told(store: MemoryStore) -> None:
    [written] = apply(store, service(clusterIP="10.96.0.1"))
    assert records(store) == {"10.96.0.1": "default/web"}
    assert "10.96.0.1 is outside of the service network 10.112.0.0/16" in written.notes[0]


def test_only_the_family_of_the_service_network_can_be_chosen(store: MemoryStore) -> None:
    with pytest.raises(ObjectInvalid, match=r"spec\.ipFamilies\[0\]"):
        apply(store, service(ipFamilies=["IPv6"]))


# --- taken ----------------------------------------------------------------------------------------


def test_a_taken_vip_or_node_port_names_its_holder_and_nothing_is_written(store: MemoryStore) -> None:
    node = {"type": "NodePort", "clusterIP": "10.112.0.9", "ports": [{"port": 80, "nodePort": 30080}]}
    apply(store, service("db", **node))
    before = store.read([]).revision
    with pytest.raises(AllocationTaken) as caught:
        apply(store, service("other"), service("web", **node))
    assert caught.value.subject == "Service default/web"
    assert [path for path, _ in caught.value.mistakes] == [
        ("spec", "ports", 0, "nodePort"),
        ("spec", "clusterIP"),
    ]
    assert "VIP 10.112.0.9 belongs to service default/db" in caught.value.message
    assert store.read([]).revision == before


def test_what_one_document_asks_for_is_not_chosen_for_another(store: MemoryStore) -> None:
    apply(store, service("web"))
    chosen = spec(store)["clusterIP"]
    services.delete(store, KEYS, ["default/web"])
    apply(store, service("web"), service("db", clusterIP=chosen))
    assert spec(store, "default/db")["clusterIP"] == chosen != spec(store)["clusterIP"]


def test_two_documents_cannot_ask_for_the_same(store: MemoryStore) -> None:
    with pytest.raises(AllocationTaken, match="default/a"):
        apply(store, service("a", clusterIP="10.112.0.9"), service("b", clusterIP="10.112.0.9"))


def test_a_service_written_by_hand_holds_what_it_says(store: MemoryStore) -> None:
    put(store, KEYS.service("default/db"), codec.encode_object(service("db", clusterIP="10.112.0.9")))
    with pytest.raises(AllocationTaken, match="default/db"):
        apply(store, service(clusterIP="10.112.0.9"))


def test_a_record_of_a_service_that_is_gone_is_anybodys(store: MemoryStore) -> None:
    put(store, KEYS.vip(IPv4Address("10.112.0.9")), codec.encode_allocation(Allocation("default/gone")))
    apply(store, service(clusterIP="10.112.0.9"))
    assert records(store) == {"10.112.0.9": "default/web"}


def test_a_vip_that_one_service_gives_up_can_go_to_another_in_the_same_call(store: MemoryStore) -> None:
    apply(store, service("a", clusterIP="10.112.0.9"))
    apply(store, service("a", clusterIP="10.112.0.8"), service("b", clusterIP="10.112.0.9"))
    assert records(store) == {"10.112.0.8": "default/a", "10.112.0.9": "default/b"}


def test_a_full_service_network_is_told(store: MemoryStore) -> None:
    shrink(store, "10.112.0.0/30")
    apply(store, service("a"), service("b"))
    assert sorted(records(store)) == ["10.112.0.1", "10.112.0.2"]
    with pytest.raises(ServicesFull):
        apply(store, service("c"))


# --- races ----------------------------------------------------------------------------------------


class Quicker(MemoryStore):
    """A store in which somebody else does something right before each of the next few transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[Callable[[], object]] = []

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        if self.moves:
            self.moves.pop(0)()
        return super().commit(compares, writes)


def test_losing_a_race_means_choosing_again() -> None:
    store = Quicker()
    shrink(store, "10.112.0.0/30")
    store.moves = [lambda: services.apply(store, KEYS, [service("db")])]
    apply(store, service("web"))
    assert sorted(records(store)) == ["10.112.0.1", "10.112.0.2"]


def test_a_vip_that_somebody_takes_meanwhile_is_refused_by_name() -> None:
    store = Quicker()
    store.moves = [lambda: services.apply(store, KEYS, [service("db", clusterIP="10.112.0.9")])]
    with pytest.raises(AllocationTaken, match="default/db"):
        apply(store, service("web", clusterIP="10.112.0.9"))
    assert records(store) == {"10.112.0.9": "default/db"}


def test_others_who_never_pause_are_given_up_on() -> None:
    store = Quicker()
    change = iter(range(100))

    def move() -> None:
        value = codec.encode_object(service("web", x=next(change)))
        MemoryStore.commit(store, [], [Put(KEYS.service("default/web"), value)])

    store.moves = [move] * 100
    with pytest.raises(StoreError, match="without pause"):
        apply(store, service("web", clusterIP="10.112.0.9"))


# --- deleting -------------------------------------------------------------------------------------


def test_deleting_a_service_frees_what_it_had_and_takes_its_slices(store: MemoryStore) -> None:
    apply(store, service("web", type="NodePort"), service("db"), a_slice("web-1", "web"), a_slice("db-1", "db"))
    apply(store, a_slice("web-1", "web", namespace="other"))
    gone = services.delete(store, KEYS, ["default/web", "default/never"])
    assert [(w.kind, w.name, w.action) for w in gone] == [
        ("EndpointSlice", "web-1", "deleted"),
        ("Service", "web", "deleted"),
    ]
    assert set(records(store).values()) == {"default/db"}
    assert [item.key for item in store.read([KEYS.slices]).items] == [
        KEYS.slice("default/db-1"),
        KEYS.slice("other/web-1"),
    ]


# --- choosing -------------------------------------------------------------------------------------


@given(st.integers(20, 32), st.text(max_size=5))
def test_every_address_but_first_and_last_is_chosen_once(length: int, name: str) -> None:
    network = IPv4Network(f"10.112.0.0/{length}")
    taken: set[IPv4Address] = set()
    for _ in range(max(0, network.num_addresses - 2)):
        ip = choose_vip(network, name, lambda ip: ip not in taken)
        assert isinstance(ip, IPv4Address)
        taken.add(ip)
        if len(taken) > 40:
            break
    else:
        assert choose_vip(network, name, lambda ip: ip not in taken) is None
    assert taken <= set(list(network)[1:-1])


def test_the_lower_end_is_chosen_last() -> None:
    lowest = {NETWORK[n] for n in range(1, 257)}
    assert not {choose_vip(NETWORK, f"default/s{n}", lambda _: True) for n in range(300)} & lowest
    assert choose_vip(NETWORK, "default/web", lambda ip: ip in lowest) in lowest
    assert {choose_node_port(f"s{n}", lambda _: True) for n in range(300)}.isdisjoint(NODE_PORTS[:86])
    assert choose_node_port("s", lambda _: False) is None


PORTS = st.lists(
    st.fixed_dictionaries(
        {"port": st.integers(80, 83), "protocol": st.sampled_from(["TCP", "UDP"])},
        optional={"nodePort": st.integers(30000, 30002)},
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda port: (port["port"], port["protocol"]),
)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any] | str:
    """An object to apply, or the name of a service to delete."""
    name = draw(st.sampled_from("abc"))
    if draw(st.integers(0, 3)) == 0:
        return f"default/{name}"
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    ports = [{**port, "name": f"p{n}"} for n, port in enumerate(draw(PORTS))]
    for port in ports:
        if kind == "ClusterIP":
            port.pop("nodePort", None)
    members: dict[str, Any] = {"type": kind, "ports": ports}
    if draw(st.booleans()):
        members["clusterIP"] = f"10.112.0.{draw(st.integers(1, 3))}"
    if kind == "LoadBalancer" and draw(st.booleans()):
        members["externalTrafficPolicy"] = "Local"
    return service(name, **members)


@settings(max_examples=60, deadline=None)
@given(st.lists(changes(), max_size=8))
def test_whatever_happens_records_and_services_agree_and_nothing_is_held_twice(steps: list[Any]) -> None:
    store = MemoryStore()
    shrink(store, "10.112.0.0/29")
    for step in steps:
        try:
            if isinstance(step, str):
                services.delete(store, KEYS, [step])
            else:
                apply(store, step)
        except (ObjectInvalid, ServicesFull):
            continue
        held: dict[str, str] = {}
        for item in store.read([KEYS.services]).items:
            value = codec.decode(item, KEYS).value
            assert isinstance(value, Service), value
            wanted = allocations(value, KEYS)
            assert not wanted & held.keys()
            held |= dict.fromkeys(wanted, value.id)
        assert {key.rpartition("/")[2]: name for key, name in held.items()} == records(store)
