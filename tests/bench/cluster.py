"""A cluster as large as asked for, for one host's engine: leases of a /8, one /24 for each peer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from helpers.kernel_hosts import PUBLIC, UNDERLAY
from helpers.model import KEYS, lease, local, network, stored

from overlaynet.addr import Mac
from overlaynet.core import leasing
from overlaynet.core.engine import Engine
from overlaynet.events import Claimed, Synced
from overlaynet.model import Lease, Stored, Vtep
from overlaynet.ports import Put, Store
from overlaynet.state import Kind, Object, kind_of
from overlaynet.store import codec

NETWORK = network("10.0.0.0/8", count=65_535)
OWN = IPv4Network("10.200.0.0/24")
"""Behind every peer's."""
TABLES = (Kind.NEIGH, Kind.FDB, Kind.ROUTE)
"""What a peer has an entry in."""
HOST = local(1, public_ips=(PUBLIC.ip,), interface=UNDERLAY)


def peer(number: int, version: int = 0) -> Lease:
    """The lease of a peer. Another `version` of it has another MAC, as after a reboot."""
    mac = Mac.from_bytes(b"\x02" + bytes([version]) + number.to_bytes(4, "big"))
    return lease(
        1,
        subnets=(IPv4Network((0x0A000000 + 256 * (number + 1), 24)),),
        public_ips=(IPv4Address("172.16.0.0") + number,),
        vteps=(Vtep(4, 1, mac),),
        node_id=f"{number:032x}",
        node_name=f"node-{number}",
    )


def peers(count: int) -> Iterator[Stored[Lease]]:
    return (stored(peer(number), revision=number + 10) for number in range(count))


def own() -> Stored[Lease]:
    return stored(leasing.lease_value((OWN,), NETWORK, HOST), revision=5)


def engine(count: int) -> Engine:
    """An engine that knows all of them, and holds its own lease."""
    made = Engine(KEYS, HOST, lambda n: 0, lambda: 0.0, "bench")
    made.handle(Synced(count + 10, (stored(NETWORK, revision=1), *peers(count))), 0.0)
    made.handle(Claimed(own()), 0.0)
    made.take_touched()
    return made


def of_peers(objects: Iterable[Object]) -> list[Object]:
    """Neighbours, forwarding entries and routes, each kind together."""
    everything = list(objects)
    return [obj for kind in TABLES for obj in everything if kind_of(obj.key) is kind]


def fill(store: Store, count: int) -> None:
    """Put the network and the peers' leases into a real store."""
    store.commit([], [Put(KEYS.network_config, codec.encode_network_config(NETWORK))])
    writes = [Put(item.key, codec.encode_lease(item.value)) for item in peers(count)]
    for start in range(0, count, 100):
        store.commit([], writes[start : start + 100])
