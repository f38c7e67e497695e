"""Endpoints that vanish from the store, and how far that is believed.

A container that is detached takes its record with it, and is an endpoint no more from that moment on. A host
that dies says nothing: its etcd lease runs out, and etcd deletes its node record and all of its containers'
records at one revision. By that a *lapse* is told from a departure that was meant. Most lapses are what they
look like, and are believed at once. These are not:

* **The last endpoints of a service.** Without them every call is refused; with them, calls fail only if the
  host is dead indeed. So when a service has nothing usable left, those of its endpoints that lapsed last,
  together, stay in use for `HOLD_DOWN_S`, or until it has a usable endpoint again.
* **Over half of the nodes together** (and more than a few). Something happened to the store, or to the way to
  it. All that lapsed stays in use as long.
* **Another history.** etcd was emptied or restored. Whatever services, slices, nodes and containers it does
  not have stay as long, as subnet leases do (`departures.py`, which has the same constants).

A node that writes itself in again writes its containers too. What is still missing `TOGETHER_S` later has
been detached meanwhile.

The store tells of one revision's deletions prefix by prefix, those of containers before or after that of their
node. So a container's going is remembered until its node's may have been told; and the last one of a service
stays in use for that moment, `APART_S`, or calls would be refused in it. Where the watch ends between the two,
a listing tells of the other, without its revision; they are taken to have gone together.

What stays is in `View.kept`, for all, or in `View.last`, for one service each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from overlaynet.core.departures import FEW, HOLD_DOWN_S, TOGETHER_S
from overlaynet.core.endpoints import has_usable
from overlaynet.core.serviceindex import selects
from overlaynet.core.view import View
from overlaynet.events import Changed, Gone, Synced
from overlaynet.model import NodeRecord, Stored, Workload

APART_S = 0.5
"""Between the news of a container's going and that of its node's, if both went at one revision. They come right
behind each other, but whoever tells or hears them may be slow."""

Held: TypeAlias = tuple[str, str]
"""The service that a record is kept for, by key (empty: for all), and the record's key."""


@dataclass(slots=True)
class Lapse:
    """A node whose etcd lease ran out: when we heard of it, at which revision, and what went with it."""

    at: float
    revision: int
    records: dict[str, Stored[Any]]


@dataclass(slots=True)
class Vanishing:
    """Who lapsed lately, and until when what is kept. Writes `kept` and `last` of the view. `here`: our own
    node, of which we know better than the store."""

    view: View
    here: str
    lapses: dict[str, Lapse] = field(default_factory=dict)
    until: dict[Held, float] = field(default_factory=dict)
    _soonest: float = math.inf
    """No deadline is earlier; so what happens often need not look at all of them."""
    _withdrawn: dict[str, Lapse] = field(default_factory=dict)
    """By node, the containers that were deleted at its newest revision of that kind."""
    _undecided: set[Held] = field(default_factory=set)
    """What stays for the moment in which nobody knows yet whether its node has lapsed."""

    def at_stake(self, event: Synced | Changed | Gone) -> Sequence[Stored[Any]]:
        """The records that this event may take away."""
        match event:
            case Synced():
                return self.view.records()
            case Gone(key, _):
                item = self.view.record(key)
                return [item] if item is not None else []
            case _:
                return ()

    def follow(
        self, event: Synced | Changed | Gone, before: Iterable[Stored[Any]], now: float, *, new_history: bool
    ) -> None:
        """The view has taken the event in; `before` are the records that were at stake."""
        self._forget_old(now)
        gone = [item for item in before if self.view.record(item.key) is None and not self._is_own(item.value)]
        match event:
            case Changed(item):
                self._came_back(item, now)
                self._forget_present(self._held_for(item.key))
            case Gone(_, revision):
                self._went(gone, revision, now)
            case Synced(revision):
                if new_history:
                    self._keep(gone, now)
                else:
                    self._found(now)
                    self._missing(gone, revision, now)
                self._forget_present(list(self.until))
        self._forget_replaced()

    def let_go(self, now: float) -> None:
        """End the use of what has been kept for its time."""
        if now < self._soonest:
            return
        for held in [held for held, end in self.until.items() if end <= now]:
            self._drop(held)
        self._soonest = min(self.until.values(), default=math.inf)

    def deadline(self) -> float | None:
        """When the next record may be let go."""
        return self._soonest if self.until else None

    def stale(self) -> list[str]:
        """Keys of the containers, services and slices that stay in use, in order."""
        nodes, doubted = self.view.keys.nodes, self.until.keys() - self._undecided
        return sorted({key for _, key in doubted if not key.startswith(nodes)})

    # --- what happened ----------------------------------------------------------------------------

    def _went(self, gone: Iterable[Stored[Any]], revision: int, now: float) -> None:
        for item in gone:
            match item.value:
                case NodeRecord(name):
                    lapse = Lapse(now, revision, {item.key: item})
                    same = self._withdrawn.pop(name, None)
                    if same is not None and same.revision == revision:
                        lapse.records |= same.records
                    self.lapses[name] = lapse
                    self._judge(lapse, now)
                case Workload():
                    self._workload_went(item, revision, now)

    def _workload_went(self, item: Stored[Workload], revision: int, now: float) -> None:
        lapse = self.lapses.get(item.value.node)
        if lapse is not None and lapse.revision == revision:
            lapse.records[item.key] = item
            self._judge(lapse, now)
            return
        waiting = self._withdrawn.get(item.value.node)
        if waiting is None or waiting.revision != revision:
            waiting = self._withdrawn[item.value.node] = Lapse(now, revision, {})
        waiting.records[item.key] = item
        self._await_node(item, now)

    def _await_node(self, item: Stored[Workload], now: float) -> None:
        """One that was told to go has gone as it was meant to."""
        for key in self.view.index.choosing(item.value):
            service = self.view.index.services[key].value
            was_usable = not item.value.terminating and has_usable(service, (item.value,), ())
            if was_usable and not self._has_usable(key):
                self.view.last.setdefault(key, {})[item.key] = item.value
                self._undecided.add((key, item.key))
                self._hold((key, item.key), now + APART_S)

    def _missing(self, gone: Sequence[Stored[Any]], revision: int, now: float) -> None:
        """A listing lacks them. A node that is missing has lapsed, and its containers with it; so have those of
        which was told just before that they went, and those that are missed after their node."""
        nodes = {item.value.name for item in gone if isinstance(item.value, NodeRecord)}
        for name in sorted(nodes):
            told = self._withdrawn.pop(name, None)
            self.lapses[name] = Lapse(now, revision, told.records if told else {})
        missed: set[str] = set()
        for item in gone:
            node = item.value.name if isinstance(item.value, NodeRecord) else getattr(item.value, "node", "")
            if node in self.lapses and self.view.keys.node(node) not in self.view.nodes:
                self.lapses[node].records[item.key] = item
                missed.add(node)
        for node in sorted(missed):
            self._judge(self.lapses[node], now)

    def _found(self, now: float) -> None:
        """A listing has nodes that had lapsed: they are back, whoever tells of it."""
        away = {*self.lapses, *map(self._node_of, self.until)}
        for item in [item for item in self.view.nodes.values() if item.value.name in away]:
            self._came_back(item, now)

    def _came_back(self, item: Stored[Any], now: float) -> None:
        if not isinstance(item.value, NodeRecord):
            return
        self.lapses.pop(item.value.name, None)
        for held in self.until:
            if self._node_of(held) == item.value.name:
                self._hold(held, min(self.until[held], now + TOGETHER_S))

    # --- what is believed -------------------------------------------------------------------------

    def _judge(self, lapse: Lapse, now: float) -> None:
        if self._are_many():
            for each in self.lapses.values():
                self._keep(each.records.values(), now)
            return
        workloads = [item.value for item in lapse.records.values() if isinstance(item.value, Workload)]
        for key in sorted({key for one in workloads for key in self.view.index.choosing(one)}):
            if not self._has_usable(key):
                self._keep_last(key, now)

    def _are_many(self) -> bool:
        kept = {item.value.name for item in self.view.kept.values() if isinstance(item.value, NodeRecord)}
        away = len(self.lapses.keys() | kept)
        present = sum(item.value.name != self.here for item in self.view.nodes.values())
        return away > FEW and 2 * away > present + away

    def _has_usable(self, key: str) -> bool:
        index = self.view.index
        service = index.services[key].value
        chosen = (workload for _, workload in index.labelled.chosen(service))
        return has_usable(service, chosen, index.slices_of(service))

    def _keep(self, items: Iterable[Stored[Any]], now: float) -> None:
        for item in items:
            if self.view.record(item.key) is None:
                self.view.keep(item)
                self._hold(("", item.key), now + HOLD_DOWN_S)

    def _keep_last(self, key: str, now: float) -> None:
        service = self.view.index.services[key].value
        for lapse in self.lapses.values():
            for item in lapse.records.values():
                if isinstance(item.value, Workload) and selects(service, item.value):
                    self.view.last.setdefault(key, {})[item.key] = item.value
                    self._decide((key, item.key))
                    self._hold((key, item.key), self.until.get((key, item.key), now + HOLD_DOWN_S))
        self.view.index.touched.add(key)

    def _decide(self, held: Held) -> None:
        """It has lapsed, and stays for as long as what has."""
        if held in self._undecided:
            self._undecided.discard(held)
            del self.until[held]
            self._soonest = min(self.until.values(), default=math.inf)

    def _hold(self, held: Held, until: float) -> None:
        self.until[held] = until
        self._soonest = min(self._soonest, until)

    # --- the end of it ----------------------------------------------------------------------------

    def _drop(self, held: Held) -> None:
        del self.until[held]
        self._undecided.discard(held)
        service, key = held
        if not service:
            self.view.let_go(key)
        elif some := self.view.last.get(service):
            some.pop(key, None)
            if not some:
                del self.view.last[service]
            self.view.index.touched.add(service)

    def _held_for(self, key: str) -> list[Held]:
        """Everything for which the record of this key is kept."""
        last = [(service, key) for service, some in self.view.last.items() if key in some]
        return [*last, ("", key)] if ("", key) in self.until else last

    def _forget_present(self, some: Iterable[Held]) -> None:
        """What the store has again is kept no longer."""
        for held in some:
            if self.view.record(held[1]) is not None:
                self._drop(held)

    def _forget_replaced(self) -> None:
        """A service that is gone, or has a usable endpoint again, needs its last known ones no more."""
        for service in self.view.last.keys() & self.view.index.touched:
            if service not in self.view.index.services or self._has_usable(service):
                for key in list(self.view.last[service]):
                    self._drop((service, key))

    def _forget_old(self, now: float) -> None:
        for some in (self.lapses, self._withdrawn):
            for name in [name for name, lapse in some.items() if lapse.at <= now - TOGETHER_S]:
                del some[name]

    def _is_own(self, value: Any) -> bool:
        return self.here == (value.name if isinstance(value, NodeRecord) else getattr(value, "node", None))

    def _node_of(self, held: Held) -> str | None:
        service, key = held
        if service:
            return self.view.last[service][key].node
        item = self.view.kept.get(key)
        return getattr(item.value, "node", None) if item is not None else None
