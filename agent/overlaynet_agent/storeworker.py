"""The agent's hands on etcd: two threads that block so that the loop never does.

One carries out intents in the order in which they were asked for and answers each with an event; it also
lists and starts the watch. The other keeps our etcd leases alive. It does so only while the loop ticks: a
host whose agent hangs must look dead to the others, not alive for ever.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from overlaynet.core.backoff import delay
from overlaynet.core.keys import Keys
from overlaynet.errors import AnotherHistory, Conflict, LeaseNotFound, OverlayError, StoreError
from overlaynet.events import (
    Before,
    Changed,
    Claimed,
    ClaimSubnet,
    Done,
    Event,
    Expected,
    Failed,
    Gone,
    Intent,
    LeaseExpired,
    Publish,
    Raced,
    Register,
    Registered,
    Release,
    Relist,
    Renewed,
    StoreBack,
    StoreLost,
    Synced,
    Withdraw,
)
from overlaynet.model import Claim, NodeRecord, Record, Stored, Unreadable, Workload
from overlaynet.ports import (
    Commit,
    Compare,
    Delete,
    KeyGone,
    KeyPut,
    KeyValue,
    Listing,
    Notice,
    Put,
    Store,
    Watch,
    WatchEnded,
)
from overlaynet.store import codec

log = logging.getLogger("overlaynet.store")

MAX_WRITES = 100
"""In one transaction; etcd's own limit is 128 unless somebody lowered it (--max-txn-ops)."""


class StoreWorker:
    """Carries out intents, one after another, in a thread of its own; answers through `post`.

    `clock` is the one by which the engine handles events. `before` is asked of the first listing what to say
    before it."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        post: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
        before: Callable[[Listing], Before | None] = lambda listing: None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._post = post
        self._clock = clock
        self._before: Callable[[Listing], Before | None] | None = before
        self._todo: queue.SimpleQueue[Intent | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._watch: Watch | None = None
        self._node_lease = 0
        self._history_ended = False
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        self.submit(Relist())
        self._thread.start()

    def submit(self, *intents: Intent) -> None:
        for intent in intents:
            self._todo.put(intent)

    def stop(self) -> None:
        """End the thread and the watch."""
        self._stop.set()
        self._todo.put(None)
        self._thread.join(timeout=10)
        if self._watch is not None:
            self._watch.cancel()

    def _run(self) -> None:
        while (intent := self._todo.get()) is not None and not self._stop.is_set():
            if isinstance(intent, Relist):
                self._list_until_done()
                continue
            try:
                self.carry_out(intent)
            except OverlayError as error:
                self._post(Failed(intent, error))
            except Exception as error:
                log.exception("intent failed: this is a bug")
                self._post(Failed(intent, _bug(error)))

    def carry_out(self, intent: Intent) -> None:
        """One intent, to its answer. Raises StoreError or Conflict, having written nothing."""
        match intent:
            case Register():
                self._register(intent)
            case ClaimSubnet():
                self._claim(intent)
            case Release(key, expect):
                self._drop(intent, key, ((key, expect),))
            case Publish():
                self._publish(intent)
            case Withdraw(workload, expect):
                self._drop(intent, self._keys.workload(workload.node, workload.id), expect)
            case Relist():
                self._list()

    # --- listing and watching ---------------------------------------------------------------------

    def _list_until_done(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            try:
                return self._list()
            except StoreError as error:
                self._post(StoreLost(error))
            except Exception as error:
                log.exception("listing failed: this is a bug")
                self._post(StoreLost(_bug(error)))
            attempt += 1
            self._stop.wait(min(2.0, delay(attempt, 0.5)))

    def _list(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        listing = self._store.read(self._keys.watched)
        items = tuple(self._decode(item) for item in listing.items)
        new_history = self._is_first_of_another(listing) or self._history_ended
        self._history_ended = False
        self._post(Synced(listing.revision, items, listing.cluster_id, new_history))
        self._watch = self._store.watch(self._keys.watched, listing.revision + 1, self._notice)

    def _is_first_of_another(self, listing: Listing) -> bool:
        """Whether this is the first listing since we started, and not of the history we left; if so, say what
        was there."""
        before, self._before = self._before(listing) if self._before else None, None
        if before is not None:
            log.warning("etcd has another history than when this agent last ran")
            self._post(before)
        return before is not None

    def _notice(self, notice: Notice) -> None:
        """From the watch's thread."""
        match notice:
            case KeyPut(item):
                self._post(Changed(self._decode(item)))
            case KeyGone(key, revision):
                self._post(Gone(key, revision))
            case WatchEnded(error):
                self._history_ended |= isinstance(error, AnotherHistory)
                log.warning("watch ended, listing again error=%s", error)
                self.submit(Relist())

    # --- writing ----------------------------------------------------------------------------------

    def _register(self, intent: Register) -> None:
        record = intent.record
        lease_id, fresh = self._resume(intent.resume, intent.ttl_s)
        values = {self._keys.node(record.name): codec.encode_node(record)}
        for ip in record.public_ips:
            claim = Claim("address", str(ip), record.node_id, record.name)
            values[self._keys.address(ip)] = codec.encode_claim(claim)
        for mac in intent.vtep_macs:
            claim = Claim("vtep", mac, record.node_id, record.name)
            values[self._keys.vtep(mac)] = codec.encode_claim(claim)
        compares = [Compare(key, revision) for key, revision in intent.expect]
        if intent.unchanged and lease_id == intent.resume:
            self._node_lease = lease_id
            self._post(Registered(lease_id, intent.ttl_s))
            return
        writes: list[Put | Delete] = [Put(k, v, lease_id) for k, v in values.items()]
        writes += [Delete(key) for key in intent.release]
        commit = self._store.commit(compares, writes)
        if not commit.ok:
            self._forget(lease_id, fresh)
            raise self._conflict(commit, compares, record)
        self._node_lease = lease_id
        self._learn_own(values, commit.revision, lease_id)
        for key in intent.release:
            self._post(Gone(key, commit.revision))
        self._post(Registered(lease_id, intent.ttl_s))

    def _conflict(self, commit: Commit, compares: Sequence[Compare], record: NodeRecord) -> OverlayError:
        """Tell the engine what stands there; say who holds what we would claim."""
        for item in self._learn_why(commit, compares):
            holder = item.value
            if isinstance(holder, NodeRecord | Claim) and holder.node_id != record.node_id:
                return _held_by_another(item, holder, record)
        return Conflict("our node record changed while it was being written", evidence=str(commit.revision))

    def _claim(self, intent: ClaimSubnet) -> None:
        """What is right already is not written again, but asked for all the same: a listing does not say how
        long a lease has left to live."""
        key = self._keys.lease(intent.lease.subnets)
        lease_id, fresh = 0, False
        asked = self._clock()  # etcd counts from later on, and the answer may wait long before it is heard
        if intent.resume or not intent.expect:
            lease_id, fresh = self._resume(intent.resume, intent.ttl_s)
        unchanged = intent.unchanged and lease_id == intent.resume
        writes = [] if unchanged else [Put(key, codec.encode_lease(intent.lease), lease_id)]
        compares = [Compare(key, intent.expect)]
        commit = self._store.commit(compares, writes)
        if not commit.ok:
            self._forget(lease_id, fresh)
            self._learn_why(commit, compares)
            self._post(Raced(key))
            return
        revision = intent.expect if unchanged else commit.revision
        item = Stored(key, intent.lease, revision, revision, lease_id)
        self._post(Claimed(item, intent.ttl_s, asked + intent.ttl_s if lease_id else None))

    def _publish(self, intent: Publish) -> None:
        workload = intent.workload
        key = self._keys.workload(workload.node, workload.id)
        value = codec.encode_workload(workload)
        try:
            commit = self._commit(intent.expect, Put(key, value, self._node_lease))
        except LeaseNotFound:
            self._post(LeaseExpired(self._node_lease))
            raise
        if commit.ok:
            self._learn_own({key: value}, commit.revision, self._node_lease)
        self._post(Done(intent))

    def _drop(self, intent: Release | Withdraw, key: str, expect: Expected) -> None:
        commit = self._commit(expect, Delete(key))
        if commit.ok:
            self._post(Gone(key, commit.revision))
        self._post(Done(intent))

    def _commit(self, expect: Expected, write: Put | Delete) -> Commit:
        """One write, if things are as the engine believes; else it is told how they are, and may ask again."""
        compares = [Compare(key, revision) for key, revision in expect]
        commit = self._store.commit(compares, [write])
        if not commit.ok:
            self._learn_why(commit, compares)
        return commit

    def linger(self, node: NodeRecord, workloads: Sequence[Workload], ttl_s: int) -> None:
        """Move our node's records to a lease that outlives a clean stop, so that an upgrade drains nothing.
        What another node holds by now is left alone."""
        if not self._node_lease:
            return
        grant = self._store.grant(ttl_s)
        held = self._store.read([self._keys.node(node.name), self._keys.addresses, self._keys.vteps])
        records = [codec.decode(item, self._keys) for item in held.items]
        ours = {r.key for r in records if getattr(r.value, "node_id", None) == node.node_id}
        compares = [Compare(item.key, item.mod_revision) for item in held.items if item.key in ours]
        if self._keys.node(node.name) not in ours:
            return
        writes = []
        for workload in workloads:
            key = self._keys.workload(workload.node, workload.id)
            writes.append(Put(key, codec.encode_workload(workload), grant.lease_id))
        for start in range(0, len(writes), MAX_WRITES):
            self._store.commit(compares, writes[start : start + MAX_WRITES])
        ours_again = [Put(item.key, item.value, grant.lease_id) for item in held.items if item.key in ours]
        self._store.commit(compares, ours_again)

    def _resume(self, lease_id: int, ttl_s: int) -> tuple[int, bool]:
        """An etcd lease to write on: the old one if it lives and is as long as it should be (the one of a
        clean stop is longer), else a new one; and whether it is new."""
        if lease_id:
            with contextlib.suppress(LeaseNotFound):
                if self._store.keep_alive(lease_id) == ttl_s:
                    return lease_id, False
        return self._store.grant(ttl_s).lease_id, True

    def _forget(self, lease_id: int, fresh: bool) -> None:
        if fresh:
            self._store.revoke(lease_id)

    def _learn(self, items: Sequence[KeyValue]) -> list[Stored[Record]]:
        decoded = [self._decode(item) for item in items]
        for item in decoded:
            self._post(Changed(item))
        return decoded

    def _learn_why(self, commit: Commit, compares: Sequence[Compare]) -> list[Stored[Record]]:
        """What a failed transaction told us is news like any other, and so is what it did not find: an
        engine that waits for the watch to say so asks for the same thing again."""
        there = {item.key for item in commit.current}
        for compare in compares:
            if compare.key not in there:
                self._post(Gone(compare.key, commit.revision))
        return self._learn(commit.current)

    def _decode(self, item: KeyValue) -> Stored[Record]:
        """One key that trips the decoder must not cost us all the others."""
        try:
            return codec.decode(item, self._keys)
        except Exception as error:
            log.exception("decoding failed: this is a bug key=%s", item.key)
            reason = Unreadable(repr(error))
            return Stored(item.key, reason, item.create_revision, item.mod_revision, item.lease_id)

    def _learn_own(self, values: Mapping[str, bytes], revision: int, lease_id: int) -> None:
        """Do not wait for the watch to tell us what we have just written. Said before the intent's answer,
        or the engine would ask for the same thing again."""
        self._learn([KeyValue(key, value, revision, revision, lease_id) for key, value in values.items()])


def _bug(error: Exception) -> OverlayError:
    return OverlayError("the agent failed at this; its log says where", evidence=repr(error))


def _held_by_another(item: Stored[Record], holder: NodeRecord | Claim, record: NodeRecord) -> OverlayError:
    name = holder.name if isinstance(holder, NodeRecord) else holder.node_name
    what = {
        "nodes": f"the node name {record.name}",
        "addresses": f"the public address {item.key.rpartition('/')[2]}",
        "vteps": f"the VTEP MAC {item.key.rpartition('/')[2]}",
    }[item.key.split("/")[-2]]
    return Conflict(
        f"{what} of node {record.name} is claimed by node {name} already",
        evidence=f"key {item.key}: node id {holder.node_id}, ours is {record.node_id}",
        next=["set node.name and node.interface in agent.toml so that they differ on every host",
              "overlaynet get hosts"],
    )  # fmt: skip


class KeepAlive:
    """Renews leases at a third of their time, in a thread of its own, while `alive` says the loop turns."""

    def __init__(self, store: Store, post: Callable[[Event], None], alive: Callable[[], bool]) -> None:
        self._store = store
        self._post = post
        self._alive = alive
        self._due: dict[int, float] = {}
        self._ends: dict[int, float] = {}
        self._wake = threading.Condition()
        self._stopped = False
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="keepalive", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def keep(self, *lease_ids: int) -> None:
        """The leases to keep from now on; 0 is none."""
        wanted = {lease_id for lease_id in lease_ids if lease_id}
        with self._wake:
            if wanted != self._due.keys():
                self._due = {i: self._due.get(i, 0.0) for i in wanted}
                self._wake.notify()

    def expires_in_s(self, lease_id: int) -> int | None:
        """Seconds a lease we keep would live if we stopped now; None for none, or before the first renewal."""
        ends = self._ends.get(lease_id)
        return None if ends is None else max(0, int(ends - time.monotonic()))

    def ends_at(self, lease_id: int) -> float | None:
        """When a lease we keep would end by the monotonic clock, if we stopped now; None as above."""
        return self._ends.get(lease_id)

    def recall(self, lease_id: int, left_s: float) -> None:
        """What a lease of an earlier run has left, unless we know better by now."""
        self._ends.setdefault(lease_id, time.monotonic() + left_s)

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._stopped:
                    return
                now = time.monotonic()
                due = [lease_id for lease_id, at in self._due.items() if at <= now]
                if not due:
                    self._wake.wait(min([*self._due.values(), now + 1.0]) - now)
                    continue
            for lease_id in due:
                self._renew(lease_id)

    def _renew(self, lease_id: int) -> None:
        next_in_s = 1.0
        try:
            if self._alive():
                asked = time.monotonic()  # etcd counts from later on, so ours surely ends first
                ttl_s = self._store.keep_alive(lease_id)
                self._ends[lease_id] = asked + ttl_s
                next_in_s = max(1.0, ttl_s / 3)
                self._say(None)
                self._post(Renewed(lease_id, ttl_s, asked + ttl_s))
        except LeaseNotFound:
            log.warning("etcd lease is gone lease=%x", lease_id)
            self._say(None)
            self._post(LeaseExpired(lease_id))
            next_in_s = 5.0
        except StoreError as error:
            self._say(error)
        except Exception as error:
            log.exception("renewal failed: this is a bug")
            self._say(_bug(error))
        with self._wake:
            if lease_id in self._due:
                self._due[lease_id] = time.monotonic() + next_in_s

    def _say(self, error: OverlayError | None) -> None:
        """Report the store's going and coming back, once each."""
        if error is not None and not self._lost:
            log.warning("etcd does not answer, the dataplane stays error=%s", error)
            self._post(StoreLost(error))
        elif error is None and self._lost:
            log.info("etcd answers again")
            self._post(StoreBack())
        self._lost = error is not None
