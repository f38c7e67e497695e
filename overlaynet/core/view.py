"""What the store says, by key, folded from events.

The view is a plain last-known-value table. It keeps no history and needs none: every event replaces one
key, a listing replaces all, and whoever wants to know what changed compares what it planned before with
what it plans now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from overlaynet.core.keys import Keys
from overlaynet.core.serviceindex import ServiceIndex
from overlaynet.events import Changed, Gone, Synced
from overlaynet.model import (
    Claim,
    EndpointSlice,
    Lease,
    NetworkConfig,
    NodeRecord,
    Record,
    Service,
    Settings,
    Stored,
    Unreadable,
    Workload,
)

MAX_TOMBSTONES = 4_096
"""Deletions remembered: an answer and the watch are seconds apart at most, not thousands of deletions."""


@dataclass(slots=True)
class View:
    """Last known records. `unreadable` holds keys that could not be understood; the last good record of
    such a key stays where it was.

    `network` is the config in force: the first good one seen. `offered` is what etcd says now; a change of
    it moves nothing by itself, since it could renumber every container of the cluster at once.

    `stale` are leases that the store no longer has and that stay in use all the same (`departures.py`).

    So are services, slices, nodes and workloads in `kept`; and in `last`, by the service's key, the last
    known endpoints of services that have no others (`vanishing.py`).

    `index` finds services, what they choose and who else wants their addresses (`serviceindex.py`).
    """

    keys: Keys
    network: NetworkConfig | None = None
    offered: NetworkConfig | None = None
    settings: Settings = field(default_factory=Settings)
    leases: dict[str, Stored[Lease]] = field(default_factory=dict)
    nodes: dict[str, Stored[NodeRecord]] = field(default_factory=dict)
    workloads: dict[str, Stored[Workload]] = field(default_factory=dict)
    claims: dict[str, Stored[Claim]] = field(default_factory=dict)
    unreadable: dict[str, Stored[Unreadable]] = field(default_factory=dict)
    stale: dict[str, Stored[Lease]] = field(default_factory=dict)
    revision: int = 0
    cluster_id: int = 0
    tombstones: dict[str, int] = field(default_factory=dict)
    services: dict[str, Stored[Service]] = field(default_factory=dict)
    slices: dict[str, Stored[EndpointSlice]] = field(default_factory=dict)
    kept: dict[str, Stored[Any]] = field(default_factory=dict)
    last: dict[str, dict[str, Workload]] = field(default_factory=dict)
    index: ServiceIndex = field(default_factory=ServiceIndex)
    _wired: dict[str, dict[str, Workload]] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Iterable[Stored[Record]], keys: Keys, revision: int = 0) -> View:
        """A view of one listing."""
        view = cls(keys)
        view.fold(Synced(revision, tuple(items)))
        return view

    def fold(self, event: Synced | Changed | Gone) -> set[str]:
        """Take an event in; answer the keys whose records may differ now."""
        match event:
            case Synced():
                return self._replace_all(event)
            case Changed():
                if self._is_old(event.item.key, event.item.mod_revision):
                    return set()
                self.revision = max(self.revision, event.item.mod_revision)
                self._follow(event.item.key, lambda: self._put(event.item))
                return {event.item.key}
            case Gone():
                if self._is_old(event.key, event.revision):
                    return set()
                self.revision = max(self.revision, event.revision)
                self._follow(event.key, lambda: self._forget(event.key))
                self._bury(event.key, event.revision)
                return {event.key}

    @property
    def problems(self) -> dict[str, str]:
        """Keys that could not be understood, with the reason."""
        return {key: item.value.reason for key, item in self.unreadable.items()}

    def is_another_history(self, event: Synced) -> bool:
        """Whether a listing is not the continuation of what we know: etcd was restored, or emptied."""
        other_cluster = event.cluster_id not in (0, self.cluster_id) and self.cluster_id != 0
        return event.new_history or other_cluster or event.revision < self.revision

    def lease_in_use(self, key: str) -> Stored[Lease] | None:
        return self.leases.get(key) or self.stale.get(key)

    def leases_in_use(self) -> list[Stored[Lease]]:
        """What the store has, and what it has lost without our believing it."""
        return [*self.leases.values(), *self.stale.values()]

    def leases_of(self, node_id: str) -> list[Stored[Lease]]:
        """The leases that carry this node id, the oldest first."""
        mine = [item for item in self.leases.values() if item.value.node_id == node_id]
        return sorted(mine, key=lambda item: (item.create_revision, item.key))

    def claims_of(self, node_id: str) -> list[str]:
        """The keys of the addresses and MACs that this node claims."""
        return [key for key, item in self.claims.items() if item.value.node_id == node_id]

    def record(self, key: str) -> Stored[Any] | None:
        """What the store has under this key, if that is a workload, node, service or slice."""
        return self.workloads.get(key) or self.nodes.get(key) or self.services.get(key) or self.slices.get(key)

    def records(self) -> list[Stored[Any]]:
        """Every workload, node, service and slice that the store has."""
        tables: tuple[dict[str, Stored[Any]], ...] = (self.workloads, self.nodes, self.services, self.slices)
        return [item for table in tables for item in table.values()]

    def keep(self, item: Stored[Any]) -> None:
        """Go on using a record that the store has no more."""
        self._follow(item.key, lambda: self.kept.update({item.key: item}))

    def let_go(self, key: str) -> None:
        """Use a record no longer that is only kept."""
        self._follow(key, lambda: self.kept.pop(key, None))

    def workloads_of(self, node: str) -> Iterator[Workload]:
        return iter(self._wired.get(node, {}).values())

    def mod_revision(self, key: str) -> int:
        """The key's mod revision as last seen, 0 if it is absent."""
        tables = (self.unreadable, *self._tables())
        return max(int(table[key].mod_revision) if key in table else 0 for table in tables)

    def keys_on(self, lease_id: int) -> list[str]:
        """The keys that hang on an etcd lease."""
        return [k for table in self._tables() for k, item in table.items() if item.lease_id == lease_id]

    def _is_old(self, key: str, revision: int) -> bool:
        """Whether something newer is known of this key: an answer may overtake the watch, or be overtaken."""
        return revision < max(self.mod_revision(key), self.tombstones.get(key, 0))

    def _bury(self, key: str, revision: int) -> None:
        self.tombstones[key] = revision
        if len(self.tombstones) > MAX_TOMBSTONES:
            del self.tombstones[next(iter(self.tombstones))]

    def _everything(self) -> dict[str, Stored[Any]]:
        return {key: item for table in self._tables() for key, item in table.items()}

    def _tables(self) -> tuple[dict[str, Stored[Any]], ...]:
        return (self.leases, self.nodes, self.workloads, self.claims, self.services, self.slices)

    def _follow(self, key: str, step: Callable[[], object]) -> None:
        """Take a step that concerns one key, and have the index follow."""
        before = self._indexed(key)
        step()
        self.index.replace(key, before, self._indexed(key))

    def _indexed(self, key: str) -> Stored[Any] | None:
        """The record that this key has in the index, if it is of a kind that is indexed."""
        return self.record(key) or self.kept.get(key)

    def _replace_all(self, event: Synced) -> set[str]:
        before, held = self._everything(), dict(self.kept)
        bad = {item.key for item in event.items if isinstance(item.value, Unreadable)}
        for table in self._tables():
            table.clear()
        self.unreadable.clear()
        self.tombstones.clear()
        self._wired.clear()
        self.offered, self.revision = None, event.revision
        self.cluster_id = event.cluster_id or self.cluster_id
        if self.keys.settings not in bad:
            self.settings = Settings()
        for item in (*(before[key] for key in bad & before.keys()), *event.items):
            self._put(item)
        after = self._everything()
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        for key in changed:
            self.index.replace(key, before.get(key) or held.get(key), self._indexed(key))
        return changed | {self.keys.network_config, self.keys.settings}

    def _put(self, item: Stored[Any]) -> None:
        """A value that has become unreadable removes nobody: the last good record stays."""
        self.unreadable.pop(item.key, None)
        if not isinstance(item.value, Unreadable):
            self.kept.pop(item.key, None)
        match item.value:
            case NetworkConfig():
                self.offered = item.value
                self.network = self.network or item.value
            case Settings():
                self.settings = item.value
            case Lease():
                self.leases[item.key] = item
            case NodeRecord():
                self.nodes[item.key] = item
            case Workload():
                self.workloads[item.key] = item
                self._wired.setdefault(item.value.node, {})[item.key] = item.value
            case Claim():
                self.claims[item.key] = item
            case Service():
                self.services[item.key] = item
            case EndpointSlice():
                self.slices[item.key] = item
            case Unreadable():
                self.unreadable[item.key] = item

    def _forget(self, key: str) -> None:
        if key in self.workloads:
            self._unwire(self.workloads[key])
        for table in (*self._tables(), self.unreadable):
            table.pop(key, None)
        if key == self.keys.settings:
            self.settings = Settings()
        if key == self.keys.network_config:
            self.offered = None

    def _unwire(self, item: Stored[Workload]) -> None:
        wired = self._wired[item.value.node]
        del wired[item.key]
        if not wired:
            del self._wired[item.value.node]
