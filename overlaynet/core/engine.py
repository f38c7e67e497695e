"""The engine: events in, wanted state and intents out.

It never waits, never reads a clock and never does I/O; time comes in with every call. It is written
level-triggered: `handle` folds an event into what is known, and then `_wants` looks at *all* that is known
and says what is still to be asked of the store. No step depends on having seen the step before, so a lost,
repeated or late event costs nothing but time.

What the engine asks for, in the order in which it becomes possible:

    synced ──► Register  (node record, claims of our addresses and VTEP MAC; on the short node lease)
           ──► ClaimSubnet  (as soon as there is a network; again when the lease should read differently)
           ──► Publish / Withdraw  (workload records, on the node lease)

An intent is asked for once and then waited for: its answer is an event. A failed one is asked for again
after a back-off. Until the first listing nothing is planned, so nothing can be deleted by mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from overlaynet.core import leasing, plan
from overlaynet.core.backoff import delay
from overlaynet.core.keys import Keys
from overlaynet.core.view import View
from overlaynet.errors import ChangePending, NetworkNotConfigured, OverlayError, PoolExhausted
from overlaynet.events import (
    Attached,
    Changed,
    Claimed,
    ClaimSubnet,
    Detached,
    Done,
    Event,
    Failed,
    Gone,
    HostChanged,
    Intent,
    LeaseExpired,
    Publish,
    Raced,
    Register,
    Registered,
    StoreBack,
    StoreLost,
    Synced,
    Withdraw,
)
from overlaynet.model import Lease, LocalHost, NodeRecord, Stored, Workload
from overlaynet.state import Key, Source

Topic: TypeAlias = str
"""What an intent is about; at most one intent per topic is under way."""


@dataclass(slots=True)
class Retry:
    """A topic that failed: how often, when it may be tried again, and why it failed."""

    attempt: int
    due: float
    error: OverlayError


@dataclass(slots=True)
class Engine:
    """One host's mind. `pick` and `jitter` bring the randomness; `version` goes into the node record."""

    keys: Keys
    local: LocalHost
    pick: leasing.Pick
    jitter: Callable[[], float]
    version: str
    view: View = field(init=False)
    desired: plan.Desired = field(default_factory=plan.Desired)
    workloads: dict[str, Workload] = field(default_factory=dict)
    lease: Stored[Lease] | None = None
    node_lease: int = 0
    synced: bool = False
    store_error: OverlayError | None = None
    retries: dict[Topic, Retry] = field(default_factory=dict)
    _under_way: set[Topic] = field(default_factory=set)
    _lost: set[str] = field(default_factory=set)
    _exhausted: OverlayError | None = None
    _touched: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.view = View(self.keys)

    # --- in ---------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Intent]:
        """Take one event in; answer what to ask of the store."""
        match event:
            case Synced() | Changed() | Gone():
                self._fold(event)
            case StoreLost(error):
                self.store_error = error
            case StoreBack():
                self.store_error = None
            case Registered(lease_id):
                self.node_lease = lease_id
                self._done("register")
            case Claimed(item):
                self._hold(item)
            case Raced(key):
                self._lost.add(key)
                self._done("lease")
            case Done(intent):
                self._done(topic_of(intent))
            case Failed(intent, error):
                self._failed(topic_of(intent), error, now)
            case LeaseExpired(lease_id):
                self._expired(lease_id)
            case HostChanged(local):
                self.local = local
                self._replan_all()
            case Attached(workload):
                self.workloads[workload.id] = workload
                self._replan_workload(workload.id)
            case Detached(workload_id):
                self.workloads.pop(workload_id, None)
                self._replan_workload(workload_id)
        return self.tick(now)

    def tick(self, now: float) -> list[Intent]:
        """What may be asked for by now."""
        asked = []
        for intent in self._wants():
            topic = topic_of(intent)
            retry = self.retries.get(topic)
            if topic not in self._under_way and (retry is None or retry.due <= now):
                self._under_way.add(topic)
                asked.append(intent)
        return asked

    # --- out --------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do next, if nothing happens before."""
        waiting = [r.due for topic, r in self.retries.items() if topic not in self._under_way]
        return min(waiting, default=None)

    def take_touched(self) -> set[Key]:
        """Keys whose wanted object may have changed since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    @property
    def confirmed(self) -> bool:
        """Whether the store has our lease, as far as we know."""
        return self.lease is not None and self.lease.key in self.view.leases

    def problems(self) -> Iterator[OverlayError]:
        """What keeps this host from being whole, as far as the store is concerned."""
        if self.store_error is not None:
            yield self.store_error
        elif self.synced:
            yield from self._network_problems()
        if self._exhausted is not None:
            yield self._exhausted
        yield from (retry.error for retry in self.retries.values())

    def _network_problems(self) -> Iterator[OverlayError]:
        key, view = self.keys.network_config, self.view
        reason = view.problems.get(key)
        if view.network is None:
            yield NetworkNotConfigured(
                "the network config cannot be used" if reason else "there is no network config in etcd",
                evidence=reason or f"key {key} is absent",
                next=["overlaynet network set FILE"],
            )
        elif view.offered != view.network:
            yield ChangePending(
                "the network config in etcd is not the one in force here",
                evidence=reason or ("the key is absent" if view.offered is None else "it was changed"),
                next=["overlaynet network show", "restart the agent to take the new config"],
            )

    # --- folding ----------------------------------------------------------------------------------

    def _fold(self, event: Synced | Changed | Gone) -> None:
        before = (self.view.network, self.view.settings)
        changed = self.view.fold(event)
        if isinstance(event, Synced):
            self.synced, self.store_error = True, None
        for key in changed:
            self._lost.discard(key)
        if (self.view.network, self.view.settings) != before or self._follow_own_lease():
            self._replan_all()
        else:
            self._replan_leases(key for key in changed if key.startswith(self.keys.subnets))

    def _follow_own_lease(self) -> bool:
        """Keep our lease's revisions current; let go of it if somebody else has the key now."""
        if self.lease is None:
            return False
        there = self.view.leases.get(self.lease.key)
        if there is None:
            return False
        if there.value.node_id in (None, self.local.identity.node_id):
            self.lease = Stored(
                there.key, self.lease.value, there.create_revision, there.mod_revision, there.lease_id
            )
            return False
        self.lease = None
        return True

    def _hold(self, item: Stored[Lease]) -> None:
        changed = self.lease is None or self.lease.value != item.value
        self.lease = item
        remembered = replace(self.local.identity, subnets=item.value.subnets)
        self.local = replace(self.local, identity=remembered)
        self.view.fold(Changed(item))
        self._done("lease")
        self._lost.clear()
        if changed:
            self._replan_all()

    def _expired(self, lease_id: int) -> None:
        """Forget the etcd lease; the dataplane stays, and what was on it is put again."""
        if lease_id == self.node_lease:
            self.node_lease = 0
        for key in self.view.keys_on(lease_id):
            self.view.fold(Gone(key, self.view.revision))

    def _done(self, topic: Topic) -> None:
        self._under_way.discard(topic)
        self.retries.pop(topic, None)

    def _failed(self, topic: Topic, error: OverlayError, now: float) -> None:
        self._under_way.discard(topic)
        attempt = self.retries[topic].attempt + 1 if topic in self.retries else 1
        self.retries[topic] = Retry(attempt, now + delay(attempt, self.jitter()), error)

    # --- planning ---------------------------------------------------------------------------------

    def _replan_all(self) -> None:
        own = self.lease.value if self.lease else None
        whole = plan.desired(self.view, self.local, own, self.workloads.values())
        self._touched |= set(self.desired.objects) | set(whole.objects)
        self.desired = whole

    def _replan_leases(self, keys: Iterator[str]) -> None:
        if self.lease is None or self.view.network is None:
            return
        for key in keys:
            source = Source("lease", key.removeprefix(self.keys.subnets))
            peer = self.view.leases.get(key)
            part = plan.NOTHING
            if peer is not None:
                part = plan.lease_slice(self.view.network, self.lease.value, peer.value, self.local)
            self._touched |= self.desired.replace(source, part)
            if self.local.vxlan_peers_only:
                self._replan_host()

    def _replan_workload(self, workload_id: str) -> None:
        if self.lease is None or self.view.network is None:
            return
        workload = self.workloads.get(workload_id)
        part = plan.workload_slice(workload, self.local) if workload else plan.NOTHING
        self._touched |= self.desired.replace(plan.workload_source(workload_id), part)
        self._replan_host()

    def _replan_host(self) -> None:
        assert self.lease is not None
        assert self.view.network is not None
        own = self.lease.value
        leases = self.view.leases.values() if self.local.vxlan_peers_only else ()
        host = plan.host_slice(
            self.view.network,
            own,
            self.local,
            peers=[item.value for item in plan.peers_of(leases, own)],
            has_workloads=bool(self.workloads),
        )
        self._touched |= self.desired.replace(plan.HOST, host)

    # --- asking -----------------------------------------------------------------------------------

    def _wants(self) -> Iterator[Intent]:
        """All that is still to be asked of the store, as things are now."""
        if not self.synced:
            return
        record = self._record()
        if self.node_lease == 0 or self._differs(self.keys.node(self.local.name), record):
            yield self._register(record)
        if self.node_lease == 0:
            return
        claim = self._claim()
        if claim is not None:
            yield claim
        for workload in self.workloads.values():
            if self._differs(self.keys.workload(self.local.name, workload.id), workload):
                yield Publish(workload)
        for stale in list(self.view.workloads_of(self.local.name)):
            if stale.id not in self.workloads:
                yield Withdraw(stale)

    def _differs(self, key: str, value: NodeRecord | Workload) -> bool:
        there = self.view.nodes.get(key) or self.view.workloads.get(key)
        return there is None or there.value != value

    def _record(self) -> NodeRecord:
        local = self.local
        return NodeRecord(
            name=local.name,
            node_id=local.identity.node_id,
            public_ips=local.public_ips,
            interface=local.interface,
            zone=local.zone,
            labels=local.labels,
            version=self.version,
            bridge=local.bridge,
            bridge_mode=local.bridge_mode,
        )

    def _register(self, record: NodeRecord) -> Register:
        macs = (str(self.local.identity.vtep_mac),)
        keys = [self.keys.node(record.name), *map(self.keys.address, record.public_ips)]
        keys += map(self.keys.vtep, macs)
        there = self.view.nodes.get(keys[0])
        resume = there.lease_id if there and there.value.node_id == record.node_id else 0
        expect = tuple((key, self.view.mod_revision(key) if self._is_ours(key) else 0) for key in keys)
        return Register(record, macs, expect, self.node_lease or resume, self.view.settings.node_ttl_s)

    def _is_ours(self, key: str) -> bool:
        there = self.view.nodes.get(key) or self.view.claims.get(key)
        return there is not None and there.value.node_id == self.local.identity.node_id

    def _claim(self) -> ClaimSubnet | None:
        """A claim to make, if our lease is not in the store or does not read as it should."""
        network = self.view.network
        if network is None or self._lease_is_right():
            return None
        ttl_s = self.view.settings.lease_ttl_s
        found = leasing.own_lease(self.view, self.local)
        if found is not None:
            value = leasing.lease_value(found.value.subnets, network, self.local)
            return ClaimSubnet(value, found.mod_revision, found.lease_id, ttl_s)
        try:
            subnets = leasing.choose(self.view, network, self.local, self.pick, self._lost)
        except PoolExhausted as error:
            self._exhausted = error
            return None
        self._exhausted = None
        return ClaimSubnet(leasing.lease_value(subnets, network, self.local), 0, 0, ttl_s)

    def _lease_is_right(self) -> bool:
        """Whether the store has exactly the lease that we hold and would write."""
        if self.lease is None or self.view.network is None:
            return False
        there = self.view.leases.get(self.lease.key)
        want = leasing.lease_value(self.lease.value.subnets, self.view.network, self.local)
        return there is not None and there.value == want


def topic_of(intent: Intent) -> Topic:
    match intent:
        case Register():
            return "register"
        case ClaimSubnet():
            return "lease"
        case Publish(workload) | Withdraw(workload):
            return f"workload {workload.id}"
        case _:
            return "list"
