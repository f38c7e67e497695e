"""A store in memory that behaves as etcd does: revisions, leases, compaction, watches, refusals.

It is what the fake tier of tests runs on, and it must pass the same contract suite as etcd. What it copies
on purpose: one revision per writing transaction; a lease's keys deleted in one revision when it ends; a
watch that starts in the past is served from history, or ends with `Compacted` if that history is gone; a
key written twice in one transaction, a transaction too long, and an unknown lease are refused.

Time stands still until `advance` moves it. Sinks are called in order, one call at a time for each watch,
by the thread whose call made the change (`commit`, `revoke`, `advance`, `watch`, `release`), after the
change is complete; a sink may call the store. If two threads write at once, one of them may deliver the
other's notices.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from overlaynet.errors import (
    AnotherHistory,
    Compacted,
    LeaseNotFound,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from overlaynet.ports import (
    Commit,
    Compare,
    Delete,
    Grant,
    KeyGone,
    KeyPut,
    KeyValue,
    Listing,
    Notice,
    Put,
    WatchEnded,
)

MAX_OPERATIONS = 128
"""Comparisons or writes in one transaction (etcd's default for --max-txn-ops)."""


def covers(prefix: str, key: str) -> bool:
    """A prefix that ends in "/" covers every key under it, any other exactly one key."""
    return key.startswith(prefix) if prefix.endswith("/") else key == prefix


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    ends: float


@dataclass(eq=False, slots=True)
class MemoryWatch:
    """A watch on a MemoryStore."""

    store: MemoryStore
    prefixes: tuple[str, ...]
    sink: Callable[[Notice], None]
    waiting: deque[Notice] = field(default_factory=deque)
    delivering: bool = False

    def cancel(self) -> None:
        self.store.forget(self)


class MemoryStore:
    """`overlaynet.ports.Store` without etcd. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._revision = 1
        self._cluster_id = 1
        self._keys: dict[str, KeyValue] = {}
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        self._history: list[tuple[int, KeyPut | KeyGone]] = []
        self._compacted = 0
        self._watches: list[MemoryWatch] = []
        self._now = 0.0
        self._failures: deque[StoreError] = deque()
        self._held = False
        self._closed = False

    # --- ports.Store ------------------------------------------------------------------------------

    def read(self, prefixes: Sequence[str]) -> Listing:
        with self._lock:
            self._check()
            found = [kv for key, kv in self._keys.items() if any(covers(prefix, key) for prefix in prefixes)]
            items = tuple(sorted(found, key=lambda kv: kv.key))
            return Listing(self._revision, self._cluster_id, items)

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> MemoryWatch:
        watch = MemoryWatch(self, tuple(prefixes), sink)
        with self._lock:
            self._watches.append(watch)
            if self._closed:
                self._end(watch, _closed())
            elif revision < self._compacted:
                self._end(watch, _compacted(revision, self._compacted))
            else:
                past = [notice for made, notice in self._history if made >= revision]
                for prefix in watch.prefixes:
                    watch.waiting.extend(notice for notice in past if covers(prefix, _key(notice)))
        self._deliver()
        return watch

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        with self._lock:
            self._check()
            self._refuse_malformed(compares, writes)
            if any(self._mod_revision(compare.key) != compare.mod_revision for compare in compares):
                current = {c.key: self._keys[c.key] for c in compares if c.key in self._keys}
                return Commit(ok=False, revision=self._revision, current=tuple(current.values()))
            self._write(writes)
            answer = Commit(ok=True, revision=self._revision)
        self._deliver()
        return answer

    def grant(self, ttl_s: int) -> Grant:
        with self._lock:
            self._check()
            lease_id, self._next_lease = self._next_lease, self._next_lease + 1
            self._leases[lease_id] = _Lease(ttl_s, self._now + ttl_s)
            return Grant(lease_id, ttl_s)

    def keep_alive(self, lease_id: int) -> int:
        with self._lock:
            self._check()
            lease = self._lease(lease_id)
            lease.ends = self._now + lease.ttl_s
            return lease.ttl_s

    def time_to_live(self, lease_id: int) -> int:
        with self._lock:
            self._check()
            return int(self._lease(lease_id).ends - self._now)

    def revoke(self, lease_id: int) -> None:
        with self._lock:
            self._check()
            self._end_lease(lease_id)
        self._deliver()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._watches.clear()

    # --- what a test does to it -------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass; leases that run out take their keys with them."""
        with self._lock:
            self._now += seconds
            for lease_id in [i for i, lease in self._leases.items() if lease.ends <= self._now]:
                self._end_lease(lease_id)
        self._deliver()

    def compact(self) -> None:
        """Forget history: a watch that would start before the present revision ends with `Compacted`."""
        with self._lock:
            self._compacted = self._revision
            self._history = [(made, notice) for made, notice in self._history if made >= self._revision]

    def fail_next(self, error: StoreError, times: int = 1) -> None:
        """The next `times` calls raise `error` and do nothing."""
        with self._lock:
            self._failures.extend([error] * times)

    def recover(self) -> None:
        """Calls succeed again."""
        with self._lock:
            self._failures.clear()

    def hold(self) -> None:
        """Keep notices back, as a slow network does, until `release`."""
        with self._lock:
            self._held = True

    def release(self) -> None:
        """Deliver what `hold` kept back."""
        with self._lock:
            self._held = False
        self._deliver()

    def end_watches(self, error: StoreError) -> None:
        """Every watch is over, for this reason."""
        with self._lock:
            for watch in list(self._watches):
                self._end(watch, error)
        self._deliver()

    def replace(self, cluster_id: int) -> None:
        """Become another, empty cluster at revision 1, as after a lost disk; watches end."""
        with self._lock:
            self._cluster_id, self._revision, self._compacted = cluster_id, 1, 0
            self._keys, self._leases, self._history = {}, {}, []
        self.end_watches(AnotherHistory("etcd has another history now", evidence=f"cluster id {cluster_id}"))

    # --- inside: call with the lock held ----------------------------------------------------------

    def _check(self) -> None:
        if self._closed:
            raise _closed()
        if self._failures:
            raise self._failures.popleft()

    def _mod_revision(self, key: str) -> int:
        return self._keys[key].mod_revision if key in self._keys else 0

    def _lease(self, lease_id: int) -> _Lease:
        if lease_id not in self._leases:
            raise LeaseNotFound("etcd does not know this lease", evidence=f"lease {lease_id:x}")
        return self._leases[lease_id]

    def _refuse_malformed(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> None:
        if max(len(compares), len(writes)) > MAX_OPERATIONS:
            raise StoreRefused("the transaction is too long", evidence=f"at most {MAX_OPERATIONS} operations")
        puts = [write for write in writes if isinstance(write, Put)]
        keys = [write.key for write in writes]
        if any(keys.count(put.key) > 1 for put in puts):
            raise StoreRefused("the transaction writes a key twice", evidence=", ".join(keys))

    def _write(self, writes: Sequence[Put | Delete]) -> None:
        for write in writes:
            if isinstance(write, Put) and write.lease_id:
                self._lease(write.lease_id)
        revision = self._revision + 1
        notices = [notice for write in writes if (notice := self._apply(write, revision))]
        if notices:
            self._revision = revision
            self._publish(notices)

    def _apply(self, write: Put | Delete, revision: int) -> KeyPut | KeyGone | None:
        old = self._keys.pop(write.key, None)
        if isinstance(write, Delete):
            return KeyGone(write.key, revision) if old else None
        created = old.create_revision if old else revision
        new = KeyValue(write.key, write.value, created, revision, write.lease_id)
        self._keys[write.key] = new
        return KeyPut(new)

    def _end_lease(self, lease_id: int) -> None:
        if self._leases.pop(lease_id, None):
            self._write([Delete(key) for key, kv in self._keys.items() if kv.lease_id == lease_id])

    def _publish(self, notices: Sequence[KeyPut | KeyGone]) -> None:
        self._history.extend((self._revision, notice) for notice in notices)
        for watch in self._watches:
            watch.waiting.extend(notice for notice in notices if _concerns(watch, notice))

    def _end(self, watch: MemoryWatch, error: StoreError) -> None:
        watch.waiting.append(WatchEnded(error))

    # --- delivery: without the lock ---------------------------------------------------------------

    def forget(self, watch: MemoryWatch) -> None:
        """A watch was cancelled or has ended."""
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)

    def _deliver(self) -> None:
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            self._drain(watch)

    def _drain(self, watch: MemoryWatch) -> None:
        """Hand over what waits, unless somebody is at it already: order matters more than who does it."""
        with self._lock:
            if watch.delivering:
                return
            watch.delivering = True
        while notice := self._next(watch):
            watch.sink(notice)

    def _next(self, watch: MemoryWatch) -> Notice | None:
        with self._lock:
            if self._held or not watch.waiting or watch not in self._watches:
                watch.delivering = False
                return None
            notice = watch.waiting.popleft()
            if isinstance(notice, WatchEnded):
                self._watches.remove(watch)
            return notice


def _concerns(watch: MemoryWatch, notice: KeyPut | KeyGone) -> bool:
    return any(covers(prefix, _key(notice)) for prefix in watch.prefixes)


def _key(notice: KeyPut | KeyGone) -> str:
    return notice.item.key if isinstance(notice, KeyPut) else notice.key


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the store was closed")


def _compacted(revision: int, compacted: int) -> Compacted:
    return Compacted(
        "etcd has compacted the history this watch asked for",
        evidence=f"asked from revision {revision}, history starts at {compacted}",
    )
