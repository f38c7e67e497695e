"""Services written into a real etcd, by several at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from helpers.etcd import requires_etcd, running_etcd

from overlaynet.core.allocation import allocations
from overlaynet.core.keys import Keys
from overlaynet.errors import AllocationTaken, ServicesFull
from overlaynet.model import Service, Settings
from overlaynet.ports import Put
from overlaynet.store import codec, services
from overlaynet.store.etcd import EtcdStore

pytestmark = [pytest.mark.lab, requires_etcd]
KEYS = Keys()


def service(name: str, **spec: Any) -> dict[str, Any]:
    usual = {"type": "NodePort", "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": usual | spec}


def test_writers_at_once_never_share_a_vip_or_node_port(tmp_path: Path) -> None:
    """Six services for six addresses; a seventh writer finds none, and one address has one owner."""
    with running_etcd(tmp_path) as server:
        stores = [EtcdStore([server.url]) for _ in range(3)]
        try:
            small = Settings(service_network=ip_network("10.112.0.0/29"))
            stores[0].commit([], [Put(KEYS.settings, codec.encode_settings(small))])
            jobs = [(store, [service(f"s{n}-{m}") for m in range(2)]) for n, store in enumerate(stores)]
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda job: services.apply(job[0], KEYS, job[1]), jobs))
            listing = stores[0].read([KEYS.services])
            found = [codec.decode(item, KEYS).value for item in listing.items]
            held = [key for one in found if isinstance(one, Service) for key in allocations(one, KEYS)]
            assert len(held) == len(set(held)) == 12
            records = stores[0].read([KEYS.vips, KEYS.node_ports]).items
            assert {item.key for item in records} == set(held)
            with pytest.raises(ServicesFull):
                services.apply(stores[1], KEYS, [service("late")])
            with pytest.raises(AllocationTaken):
                services.apply(stores[1], KEYS, [service("late", clusterIP="10.112.0.1")])
            services.delete(stores[2], KEYS, ["default/s0-0"])
            assert [w.action for w in services.apply(stores[1], KEYS, [service("late")])] == ["created"]
        finally:
            for store in stores:
                store.close()
