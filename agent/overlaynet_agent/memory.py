"""Remembers what etcd last said, for a start on a day on which etcd is away, or has been emptied.

The loop hands over a snapshot, at most one in `EVERY_S` seconds and only if something is new; a thread writes
it, since with twenty thousand peers that takes longer than the loop may stand still. A copy that is a minute
old is good enough: by it things are only ever added (`core/diff.py`, `additions`). While leases are kept that
etcd no longer has, the copy from before stays: an agent that is started again must doubt their absence as this
one does.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from overlaynet.core.engine import Engine
from overlaynet.core.keys import Keys
from overlaynet.core.view import View
from overlaynet.events import Before
from overlaynet.model import Stored
from overlaynet.ports import Listing
from overlaynet.store.disk import Planned, Remembered, read_history, read_remembered, write_remembered

log = logging.getLogger("overlaynet.memory")

EVERY_S = 60.0


class Memory:
    """Keeps one file. `recall` and `note` are for the loop's thread, `before` is for the store's."""

    def __init__(self, path: Path, keys: Keys) -> None:
        self._path = path
        self._keys = keys
        self._newest: object = None
        self._next = 0.0
        self._todo: Remembered | None = None
        self._stopped = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def recall(self) -> Remembered | None:
        """What was written last, None if there is nothing usable."""
        return read_remembered(self._path, self._keys)

    def before(self, listing: Listing) -> Before | None:
        """What was written last, if this listing is of another history. That is seldom, and takes long: some
        0.15 ms a lease."""
        history = read_history(self._path)
        if history is None or history.goes_on_in(listing):
            return None
        remembered = self.recall()
        return Before(remembered.items) if remembered else None

    def note(self, engine: Engine, lease_end: float | None, now: float, *, at_once: bool = False) -> None:
        """Have it written down, if it is news and time. `lease_end`: when our lease ends by `now`'s clock."""
        if (
            engine.lease is None
            or not engine.synced
            or not engine.confirmed
            or engine.view.stale
            or engine.view.kept
            or (now < self._next and not at_once)
        ):
            return
        news = (engine.view.revision, engine.lease.lease_id, lease_end)
        if news == self._newest:
            return
        self._newest, self._next = news, now + EVERY_S
        left_s = None if lease_end is None else lease_end - now
        snapshot = _snapshot(engine, engine.lease.lease_id, left_s)
        with self._wake:
            self._todo = snapshot
            self._wake.notify()

    def stop(self) -> None:
        """End after writing what was noted."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._todo is not None)
                todo, self._todo = self._todo, None
                if todo is None:
                    return
            try:
                write_remembered(self._path, todo)
            except OSError as error:
                log.warning("what etcd said could not be kept error=%s", error)


def _snapshot(engine: Engine, lease_id: int, left_s: float | None) -> Remembered:
    view = engine.view
    items: list[Stored[Planned]] = list(view.leases.values())
    items += _endpoints(view)
    items.append(Stored(view.keys.settings, view.settings))
    if view.network is not None:
        items.append(Stored(view.keys.network_config, view.network))
    lease_end = None if left_s is None else int(time.time() + left_s)
    return Remembered(view.revision, tuple(items), view.cluster_id, lease_id, lease_end)


def _endpoints(view: View) -> list[Stored[Planned]]:
    """The services, and of everything else what makes their endpoints: most containers are none."""
    services = [item for item in view.services.values() if item.value.served]
    chosen = dict.fromkeys(key for item in services for key, _ in view.index.labelled.chosen(item.value))
    workloads = [view.workloads[key] for key in chosen if key in view.workloads]
    hosts = dict.fromkeys(view.keys.node(item.value.node) for item in workloads)
    nodes = [view.nodes[key] for key in hosts if key in view.nodes]
    return [*services, *view.slices.values(), *workloads, *nodes]
