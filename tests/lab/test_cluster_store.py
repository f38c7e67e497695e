"""The services of a lab's topology in etcd: they come, stay and go with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from overlaynet.core.keys import Keys
from overlaynet.lab import cluster_store
from overlaynet.lab.topology import Topology
from overlaynet.store import services
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.fake
KEYS = Keys()


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]},
    }


def a_slice(name: str) -> dict[str, Any]:
    kind = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name}}
    return {**kind, "addressType": "IPv4", "endpoints": []}


def with_services(*values: dict[str, Any]) -> Topology:
    return replace(Topology.simple(), services=values)


def test_services_follow_the_topology_and_those_of_others_stay() -> None:
    store, empty = MemoryStore(), with_services()
    services.apply(store, KEYS, [service("theirs")])
    first = with_services(service("web"), a_slice("web-1"))
    assert cluster_store.serve(store, KEYS, first, None) == 2
    assert cluster_store.serve(store, KEYS, first, first) == 0
    second = with_services(service("web"), service("db"))
    assert cluster_store.serve(store, KEYS, second, first) == 2
    assert cluster_store.serve(store, KEYS, empty, second) == 2
    assert [item.key for item in store.read([KEYS.services, KEYS.slices]).items] == [
        KEYS.service("default/theirs")
    ]


def test_what_somebody_changed_is_as_the_topology_says_again() -> None:
    store, wanted = MemoryStore(), with_services(service("web"))
    cluster_store.serve(store, KEYS, wanted, None)
    other = service("web") | {"spec": {"ports": [{"port": 81}]}}
    services.apply(store, KEYS, [other])
    assert cluster_store.serve(store, KEYS, wanted, wanted) == 1
    assert cluster_store.serve(store, KEYS, wanted, wanted) == 0
