"""What the lab itself keeps in etcd: the network's config and settings, and the end of hosts that left.

Everything else there is the agents'. A config that is there already is the operator's and stays; settings
follow the topology, and so do its services, while those that others made stay. A host that was taken out of
the topology is gone for good, so its lease does not wait for its time to run out.
"""

from __future__ import annotations

from overlaynet.core.keys import Keys
from overlaynet.errors import TopologyError
from overlaynet.lab.topology import LabNetwork, Topology
from overlaynet.model import Claim, Lease, NodeRecord, Settings, Workload
from overlaynet.ports import Compare, Delete, KeyValue, Listing, Put, Store
from overlaynet.store import codec, kubernetes, services
from overlaynet.store.kubernetes import ENDPOINT_SLICE, SERVICE


def tend(store: Store, keys: Keys, topology: Topology, previous: Settings | None) -> int:
    """Put what is missing, delete what departed hosts left; answer how many keys were written.

    `previous`: the settings this lab last asked for. Raises StoreErrors."""
    listing = store.read(keys.watched)
    present = {item.key: item for item in listing.items}
    writes: list[tuple[Compare, Put | Delete]] = []
    if keys.network_config not in present:
        value = codec.encode_network_config(topology.network.config)
        writes.append((Compare(keys.network_config, 0), Put(keys.network_config, value)))
    if keys.settings not in present or previous not in (None, topology.settings):
        writes.append(_settings(keys, topology.settings, present.get(keys.settings)))
    hosts = {host.name for host in topology.hosts}
    for item in listing.items:
        node = owner(item, keys)
        if node is not None and node not in hosts:
            writes.append((Compare(item.key, item.mod_revision), Delete(item.key)))
    return sum(store.commit([compare], [write]).ok for compare, write in writes)


def joining(listing: Listing, keys: Keys, topology: Topology) -> list[tuple[Compare, Put]]:
    """What a lab on machines puts into their cluster's etcd: config and settings where there are none.

    What is there is everybody's and stays. Raises TopologyError where the topology asks for something else."""
    present = {item.key: item for item in listing.items}
    writes = []
    if (found := present.get(keys.network_config)) is None:
        value = codec.encode_network_config(topology.network.config)
        writes.append((Compare(keys.network_config, 0), Put(keys.network_config, value)))
    elif (network := LabNetwork.of(codec.parse_network_config(found.value))) != LabNetwork.of(
        topology.network.config
    ):
        raise TopologyError(
            "the machines have another network than the topology says",
            evidence=f"etcd: {network}\ntopology: {topology.network}",
            next=["overlaynet network show", "correct `network` in the topology"],
        )
    if (settings := present.get(keys.settings)) is None:
        writes.append(_settings(keys, topology.settings, None))
    elif topology.settings not in (Settings(), there := codec.parse_settings(settings.value)):
        raise TopologyError(
            "the machines have other lease times than the topology says",
            evidence=f"etcd: {there}\ntopology: {topology.settings}",
            next=["overlaynet network show", "correct `lease` in the topology"],
        )
    return writes


def check_services(listing: Listing, keys: Keys, topology: Topology, previous: Topology | None) -> None:
    """Raise TopologyError for an object of the topology that is there and that `previous` did not bring:
    whoever made it would lose it with the lab."""
    had, wanted = (_ids(one) for one in (previous, topology))
    present = {item.key for item in listing.items}
    for kind, key in ((SERVICE, keys.service), (ENDPOINT_SLICE, keys.slice)):
        for name in sorted(wanted[kind] - had[kind]):
            if key(name) in present:
                raise TopologyError(
                    f"there is a {kind} {name} that is not this lab's",
                    evidence=key(name),
                    next=["give the topology's another name or namespace", "overlaynet get services"],
                )


def serve(store: Store, keys: Keys, topology: Topology, previous: Topology | None) -> int:
    """Write the topology's services and slices, delete those that only `previous` had; answer how many objects
    were changed. Raises AllocationTaken, ServicesFull, StoreErrors."""
    had, wanted = (_ids(one) for one in (previous, topology))
    gone = services.delete(
        store,
        keys,
        sorted(had[SERVICE] - wanted[SERVICE]),
        sorted(had[ENDPOINT_SLICE] - wanted[ENDPOINT_SLICE]),
    )
    written = services.apply(store, keys, topology.services)
    return len(gone) + sum(one.action != services.UNCHANGED for one in written)


def _ids(topology: Topology | None) -> dict[str, set[str]]:
    """The objects of a topology, each ``namespace/name``, by kind."""
    found: dict[str, set[str]] = {SERVICE: set(), ENDPOINT_SLICE: set()}
    for value in topology.services if topology else ():
        found[str(value["kind"])].add("/".join(kubernetes.identity(value)))
    return found


def _settings(keys: Keys, settings: Settings, present: KeyValue | None) -> tuple[Compare, Put]:
    revision = present.mod_revision if present else 0
    return Compare(keys.settings, revision), Put(keys.settings, codec.encode_settings(settings))


def owner(item: KeyValue, keys: Keys) -> str | None:
    """The node whose key this is; None for one that is no node's or was written by another program."""
    match codec.decode(item, keys).value:
        case Lease(node_name=name) | Claim(node_name=name) | Workload(node=name) | NodeRecord(name=name):
            return name
    return None
