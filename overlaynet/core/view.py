"""What the store says, by key, folded from events.

The view is a plain last-known-value table. It keeps no history and needs none: every event replaces one
key, a listing replaces all, and whoever wants to know what changed compares what it planned before with
what it plans now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from overlaynet.core.keys import Keys
from overlaynet.events import Changed, Gone, Synced
from overlaynet.model import (
    Claim,
    Lease,
    NetworkConfig,
    NodeRecord,
    Record,
    Settings,
    Stored,
    Unreadable,
    Workload,
)


@dataclass(slots=True)
class View:
    """Last known records. `problems` holds keys that could not be understood, with the reason.

    `network` is the config in force: the first good one seen. `offered` is what etcd says now; a change of
    it moves nothing by itself, since it could renumber every container of the cluster at once.
    """

    keys: Keys
    network: NetworkConfig | None = None
    offered: NetworkConfig | None = None
    settings: Settings = field(default_factory=Settings)
    leases: dict[str, Stored[Lease]] = field(default_factory=dict)
    nodes: dict[str, Stored[NodeRecord]] = field(default_factory=dict)
    workloads: dict[str, Stored[Workload]] = field(default_factory=dict)
    claims: dict[str, Stored[Claim]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    revision: int = 0
    tombstones: dict[str, int] = field(default_factory=dict)

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
                self._put(event.item)
                return {event.item.key}
            case Gone():
                if self._is_old(event.key, event.revision):
                    return set()
                self.revision = max(self.revision, event.revision)
                self._forget(event.key)
                self.tombstones[event.key] = event.revision
                return {event.key}

    def own_lease(self, node_id: str) -> Stored[Lease] | None:
        """The lease that carries this node id; the oldest, should there be two."""
        mine = [item for item in self.leases.values() if item.value.node_id == node_id]
        return min(mine, key=lambda item: (item.create_revision, item.key), default=None)

    def workloads_of(self, node: str) -> Iterator[Workload]:
        return (item.value for item in self.workloads.values() if item.value.node == node)

    def mod_revision(self, key: str) -> int:
        """The key's mod revision as last seen, 0 if it is absent."""
        for table in self._tables():
            if key in table:
                return int(table[key].mod_revision)
        return 0

    def keys_on(self, lease_id: int) -> list[str]:
        """The keys that hang on an etcd lease."""
        return [k for table in self._tables() for k, item in table.items() if item.lease_id == lease_id]

    def _is_old(self, key: str, revision: int) -> bool:
        """Whether something newer is known of this key: an answer may overtake the watch, or be overtaken."""
        return revision < max(self.mod_revision(key), self.tombstones.get(key, 0))

    def _tables(self) -> tuple[dict[str, Stored[Any]], ...]:
        return (self.leases, self.nodes, self.workloads, self.claims)

    def _replace_all(self, event: Synced) -> set[str]:
        before = {key: item for table in self._tables() for key, item in table.items()}
        for table in self._tables():
            table.clear()
        self.problems.clear()
        self.tombstones.clear()
        self.offered, self.settings = None, Settings()
        self.revision = event.revision
        for item in event.items:
            self._put(item)
        after = {key: item for table in self._tables() for key, item in table.items()}
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        return changed | {self.keys.network_config, self.keys.settings}

    def _put(self, item: Stored[Any]) -> None:
        """A value that has become unreadable removes nobody: the last good record stays."""
        self.problems.pop(item.key, None)
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
            case Claim():
                self.claims[item.key] = item
            case Unreadable(reason):
                self.problems[item.key] = reason

    def _forget(self, key: str) -> None:
        for table in self._tables():
            table.pop(key, None)
        self.problems.pop(key, None)
        if key == self.keys.settings:
            self.settings = Settings()
        if key == self.keys.network_config:
            self.offered = None
