"""The engine: events in, wanted state and intents out.

It never waits, never reads a clock and never does I/O; time comes in with every call. It is written
level-triggered: `handle` folds an event into what is known, and then `_wants` looks at *all* that is known
and says what is still to be asked of the store. No step depends on having seen the step before, so a lost,
repeated or late event costs nothing but time.

What the engine asks for, in the order in which it becomes possible:

    synced ──► Register  (node record, claims of our addresses and VTEP MAC; on the short node lease)
           ──► ClaimSubnet  (as soon as there is a network; again when the lease should read differently)
           ──► Release  (a lease of ours that we have moved away from)
           ──► Publish / Withdraw  (workload records, on the node lease)

An intent is asked for once and then waited for: its answer is an event. A failed one is asked for again after
a back-off, which begins anew when the store is back, and so is one that was answered and is wanted all the
same (a record that reads back differently, two nodes that write one key): whatever the world does, no intent
repeats without a pause.
Until the first listing nothing is planned, so nothing can be deleted by mistake.

Our subnet is *confirmed* while the store has our lease and the time of its last renewal has not run out.
Unconfirmed, this host keeps its dataplane and gives no address away: another host may hold the subnet by
now. If one does, the lease is let go and another subnet claimed. Containers on the lost one keep running,
but their addresses are the other host's: they are not published any more and must be attached again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from overlaynet.core import leasing, plan
from overlaynet.core.backoff import delay
from overlaynet.core.departures import Departures
from overlaynet.core.keys import Keys
from overlaynet.core.vanishing import Vanishing
from overlaynet.core.view import View
from overlaynet.errors import (
    ChangePending,
    Conflict,
    NetworkConfigInvalid,
    NetworkNotConfigured,
    OverlayError,
    PoolExhausted,
    StaleEndpoints,
    StalePeers,
    Unconfirmed,
    ValueInvalid,
)
from overlaynet.events import (
    Attached,
    Before,
    Changed,
    Claimed,
    ClaimSubnet,
    Conditions,
    Detached,
    Done,
    Event,
    Expected,
    Failed,
    Gone,
    HostChanged,
    Intent,
    LeaseExpired,
    NetworkTaken,
    Publish,
    Raced,
    Recalled,
    Register,
    Registered,
    Release,
    Renewed,
    StoreBack,
    StoreLost,
    Synced,
    Withdraw,
)
from overlaynet.model import Lease, LocalHost, NetworkConfig, NodeRecord, Stored, Workload
from overlaynet.state import Key

Topic: TypeAlias = str
"""What an intent is about; at most one intent per topic is under way."""


QUIET_S = 60.0
"""Seconds after which an intent that is wanted once more counts as a new one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was last asked on a topic, how often in a row, and when it may be asked again."""

    what: object
    times: int
    due: float


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
    departures: Departures = field(init=False)
    vanishing: Vanishing = field(init=False)
    desired: plan.Desired = field(default_factory=plan.Desired)
    workloads: dict[str, Workload] = field(default_factory=dict)
    lease: Stored[Lease] | None = None
    node_lease: int = 0
    synced: bool = False
    store_error: OverlayError | None = None
    retries: dict[Topic, Retry] = field(default_factory=dict)
    _under_way: set[Topic] = field(default_factory=set)
    _asked: dict[Topic, Asked] = field(default_factory=dict)
    _waiting: list[float] = field(default_factory=list)
    _lost: set[str] = field(default_factory=set)
    _obstacle: OverlayError | None = None
    _touched: set[Key] = field(default_factory=set)
    _now: float = 0.0
    _ttls: dict[int, int] = field(default_factory=dict)
    _ends: dict[int, float] = field(default_factory=dict)
    _left: set[str] = field(default_factory=set)
    _usurper: Stored[Lease] | None = None

    def __post_init__(self) -> None:
        self.view = View(self.keys)
        self.departures = Departures(self.view)
        self.vanishing = Vanishing(self.view, self.local.name)

    # --- in ---------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Intent]:
        """Take one event in; answer what to ask of the store."""
        self._now = now
        match event:
            case Synced() | Changed() | Gone():
                self._fold(event)
            case Before():
                self._know_before(event)
            case Recalled():
                self._recall(event)
            case StoreLost(error):
                self.store_error = error
            case StoreBack():
                self.store_error = None
                self._hurry(now)
            case Registered(lease_id, ttl_s):
                self._forget_lease(self.node_lease)
                self.node_lease = lease_id
                self._remember_ttl(lease_id, ttl_s)
                self._done("register")
            case Claimed(item, ttl_s, ends):
                self._hold(item)
                self._remember_ttl(item.lease_id, ttl_s)
                if ends is not None:
                    self._ends[item.lease_id] = max(ends, self._ends.get(item.lease_id, ends))
            case Renewed(lease_id, ttl_s, ends):
                self._ttls.setdefault(lease_id, ttl_s)
                self._ends[lease_id] = ends
            case Raced(key):
                if key not in self.view.tombstones:  # else it was deleted, and is free
                    self._lost.add(key)
                self._done("lease")
            case Done(intent):
                self._done(topic_of(intent))
            case Failed(intent, error):
                self._failed(topic_of(intent), error, now)
            case LeaseExpired(lease_id):
                self._expired(lease_id)
            case HostChanged(local):
                self.local = replace(local, identity=self.local.identity)
                self._replan_all()
            case NetworkTaken():
                self._take_network()
            case Attached(workload):
                self.workloads[workload.id] = workload
                self._replan_workload(workload.id)
            case Detached(workload_id):
                self.workloads.pop(workload_id, None)
                self._replan_workload(workload_id)
            case Conditions():
                self._follow_conditions(event)
        return self.tick(now)

    def tick(self, now: float) -> list[Intent]:
        """What may be asked for by now."""
        self._now = now
        self._replan_leases(self.departures.let_go(now))
        self.vanishing.let_go(now)
        self._replan_services()
        self._obstacle = None
        wanted = {topic_of(intent): intent for intent in self._wants()}
        self._forget_unwanted(wanted, now)
        idle = [(topic, intent) for topic, intent in wanted.items() if topic not in self._under_way]
        due = {topic: self._due(topic, intent) for topic, intent in idle}
        self._waiting = [at for at in due.values() if at > now]
        return [self._ask(topic, intent, now) for topic, intent in idle if due[topic] <= now]

    def _ask(self, topic: Topic, intent: Intent, now: float) -> Intent:
        last = self._asked.get(topic)
        times = last.times + 1 if last and last.what == _substance(intent) else 1
        self._asked[topic] = Asked(_substance(intent), times, now + delay(times, self.jitter()))
        self._under_way.add(topic)
        return intent

    def _due(self, topic: Topic, intent: Intent) -> float:
        """When this may be asked for."""
        last, retry = self._asked.get(topic), self.retries.get(topic)
        repeated = last.due if last and last.what == _substance(intent) else 0.0
        return max(repeated, retry.due if retry else 0.0)

    def _forget_unwanted(self, wanted: Mapping[Topic, Intent], now: float) -> None:
        """What nobody wants any more has not failed either."""
        for topic in self.retries.keys() - wanted.keys() - self._under_way:
            del self.retries[topic]
        for topic in [topic for topic, last in self._asked.items() if now > last.due + QUIET_S]:
            if topic not in self._under_way:
                del self._asked[topic]

    # --- out --------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do next, if nothing happens before."""
        kept = (self.departures.deadline(), self.vanishing.deadline())
        return min([*self._waiting, *(at for at in kept if at is not None)], default=None)

    def take_touched(self) -> set[Key]:
        """Keys whose wanted object may have changed since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    @property
    def confirmed(self) -> bool:
        """Whether the store has our lease, as far as we know, and its time cannot have run out there."""
        return self.lease is not None and self.lease.key in self.view.leases and not self._has_run_out()

    def _has_run_out(self) -> bool:
        """A lease whose end nobody has told may have; a reservation never does. The end counts from before it
        was asked for: news may have waited long before this host, asleep or stopped, took it in."""
        lease_id = self.lease.lease_id if self.lease else 0
        return bool(lease_id) and self._ends.get(lease_id, self._now) <= self._now

    def problems(self) -> Iterator[OverlayError]:
        """What keeps this host from being whole, as far as the store is concerned."""
        if self.store_error is not None:
            yield self.store_error
        elif self.synced:
            yield from self._network_problems()
        if self._obstacle is not None:
            yield self._obstacle
        yield from self._lease_problems()
        yield from (retry.error for retry in self.retries.values())
        yield from self._service_problems()
        for key, reason in self.view.problems.items():
            if key != self.keys.network_config:
                yield ValueInvalid(f"key {key} cannot be understood", evidence=reason)

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

    def _lease_problems(self) -> Iterator[OverlayError]:
        if self.lease is not None and not self.confirmed:
            yield self._unconfirmed(self.lease)
        if stale := self.view.stale:
            yield StalePeers(
                f"{len(stale)} leases vanished from etcd together; they stay in use until they return, or for "
                f"{(self.departures.deadline() or self._now) - self._now:.0f} s more",
                evidence=", ".join(key.removeprefix(self.keys.subnets) for key in sorted(stale)[:8]),
                next=["overlaynet get leases", "overlaynet status"],
            )
        strays = self.strays()
        if strays or (self.lease is None and self._usurper):
            yield self._displaced(strays)

    def _service_problems(self) -> Iterator[OverlayError]:
        if services := self.desired.services:
            yield from (problem for some in services.problems.values() for problem in some)
        if stale := self.vanishing.stale():
            yield StaleEndpoints(
                f"{len(stale)} endpoints and services vanished from etcd; they stay in use until they return, "
                f"or for {(self.vanishing.deadline() or self._now) - self._now:.0f} s more",
                evidence=", ".join(key.removeprefix(self.keys.overlay) for key in stale[:8]),
                next=["overlaynet get endpoints", "overlaynet get hosts"],
            )

    def _unconfirmed(self, lease: Stored[Lease]) -> Unconfirmed:
        gone = lease.key not in self.view.leases
        return Unconfirmed(
            f"subnet {lease.value.subnets[0]} of this host is not confirmed by etcd; "
            "what is attached stays, and nothing new is attached until it is",
            evidence=f"key {lease.key} " + ("is absent" if gone else "may have run out: no renewal in time"),
            next=["overlaynet status", "overlaynet get leases"],
        )

    def strays(self) -> list[Workload]:
        """Containers whose addresses are not, or no longer, in our subnets."""
        return [one for one in self.workloads.values() if not self._is_at_home(one)]

    def _is_at_home(self, workload: Workload) -> bool:
        """Without a lease nobody is a stray: it is not known yet where home is."""
        if self.lease is None:
            return True
        subnets = self.lease.value.subnets
        return all(any(ip in subnet for subnet in subnets) for ip in workload.ips)

    def _displaced(self, strays: Collection[Workload]) -> Conflict:
        holder = self._usurper.value if self._usurper else None
        who = (holder.node_name or f"at {', '.join(map(str, holder.public_ips))}") if holder else "no longer us"
        where = f"node {who} has taken {holder.subnets[0]}" if holder else "this host has another subnet now"
        names = ", ".join(f"{one.id} {one.ips[0]}" for one in strays)
        return Conflict(
            f"{where}; {len(strays)} containers here have addresses of the old one and must be attached again",
            evidence=f"attached with old addresses: {names or 'none'}",
            next=["overlaynet get containers", "overlaynet get leases"],
        )

    # --- folding ----------------------------------------------------------------------------------

    def _fold(self, event: Synced | Changed | Gone) -> None:
        before = (self.view.network, self.view.settings)
        peers, at_stake = self._peers_at_stake(event), self.vanishing.at_stake(event)
        doubted = isinstance(event, Synced) and self.view.is_another_history(event)
        changed = self.view.fold(event)
        self._follow_departures(changed, peers, new_history=doubted)
        self.vanishing.follow(event, at_stake, self._now, new_history=doubted)
        if isinstance(event, Synced):
            self.synced, self.store_error = True, None
            self._lost.clear()
            self._adopt()
        self._lost -= changed
        if self._follow_own_lease() or (self.view.network, self.view.settings) != before:
            self._replan_all()
        else:
            self._replan_leases(changed)
            self._replan_services()

    def _peers_at_stake(self, event: Synced | Changed | Gone) -> list[Stored[Lease]]:
        """The peers' leases that this event may take away."""
        match event:
            case Synced():
                found = list(self.view.leases.values())
            case Gone(key, _):
                found = [self.view.leases[key]] if key in self.view.leases else []
            case _:
                found = []
        return [item for item in found if not leasing.is_ours(item.value, self.local)]

    def _follow_departures(
        self, changed: set[str], peers: Iterable[Stored[Lease]], *, new_history: bool
    ) -> None:
        """Add to `changed` the keys of leases that stay in use though they are gone."""
        leases = self.view.leases
        for key in changed & leases.keys():
            self.departures.came_back(key)
        gone = [item for item in peers if item.key not in leases]
        if gone:
            present = len(leases) - (self.lease is not None and self.lease.key in leases)
            changed |= self.departures.left(gone, present, self._now, new_history=new_history)

    def _take_network(self) -> None:
        """Put the offered network config in force. The kernel stays as it is until there is a lease in it."""
        if self.view.offered is None:
            return
        self.view.network = self.view.offered
        if self.lease is not None and not leasing.fits(self.lease.value.subnets, self.view.network):
            self.lease = None
        self._replan_all()

    def check_network(self, *, strand: bool) -> bool:
        """Whether the offered network config is another one than that in force. Raises NetworkNotConfigured or
        NetworkConfigInvalid if there is none to take; Conflict if taking it would leave containers on
        addresses of another network, unless `strand`."""
        key, offered = self.keys.network_config, self.view.offered
        if reason := self.view.problems.get(key):
            raise NetworkConfigInvalid(
                "the network config in etcd cannot be used", evidence=reason, next=["overlaynet network show"]
            )
        if offered is None:
            raise NetworkNotConfigured(
                "there is no network config in etcd",
                evidence=f"key {key}",
                next=["overlaynet network set FILE"],
            )
        keeps = self.lease is None or leasing.fits(self.lease.value.subnets, offered)
        if self.workloads and not keeps and not strand:
            raise Conflict(
                "containers here have addresses that the new network does not have",
                evidence=", ".join(f"{one.id} {one.ips[0]}" for one in self.workloads.values()),
                next=[
                    "detach them first, or: overlaynet network apply --force, and attach them again after it"
                ],
            )
        return offered != self.view.network

    def _know_before(self, event: Before) -> None:
        """Only of the leases: a network config counts from when it is read at a start."""
        leases = tuple(item for item in event.items if isinstance(item.value, Lease))
        if not self.synced:
            self.view.fold(Synced(0, leases))

    def _recall(self, event: Recalled) -> None:
        """Plan by what was kept on disk, until the store can be read."""
        if self.synced:
            return
        self.view.fold(Synced(event.revision, event.items, event.cluster_id))
        if event.ends is not None:
            self._ends[event.lease_id] = event.ends
        self.lease = leasing.own_lease(self.view, self.local)
        self._replan_all()

    def _adopt(self) -> None:
        """Become the node that flannel made of this host, before anything is claimed under another MAC."""
        if self.lease is None and not self.node_lease:
            self.local = leasing.adopt(self.view, self.local)

    def _follow_own_lease(self) -> bool:
        """Keep our lease's revisions current; let go of it if somebody else has the key now."""
        if self.lease is None:
            return False
        there = self.view.leases.get(self.lease.key)
        if there is None:
            return False
        if leasing.is_ours(there.value, self.local):
            self.lease = Stored(
                there.key, self.lease.value, there.create_revision, there.mod_revision, there.lease_id
            )
            return False
        self.lease, self._usurper = None, there
        return True

    def _hold(self, item: Stored[Lease]) -> None:
        there = self.view.leases.get(item.key)
        item = replace(item, create_revision=there.create_revision) if there else item
        if self.view.network is not None and not leasing.fits(item.value.subnets, self.view.network):
            self.view.fold(Changed(item))  # another network was taken meanwhile: it goes with the next one
            self._done("lease")
            return
        changed = self.lease is None or self.lease.value != item.value
        self.lease = item
        if not self.strays():
            self._usurper = None
        remembered = replace(self.local.identity, subnets=item.value.subnets)
        self.local = replace(self.local, identity=remembered)
        self.view.fold(Changed(item))
        self._done("lease")
        self._lost.clear()
        ours = self.view.leases_of(self.local.identity.node_id)
        self._left = {other.key for other in ours if other.key != item.key and other.lease_id}
        if changed:
            self._replan_all()

    def _expired(self, lease_id: int) -> None:
        """Forget the etcd lease; the dataplane stays, and what was on it is put again."""
        if lease_id == self.node_lease:
            self.node_lease = 0
        self._forget_lease(lease_id)
        for key in self.view.keys_on(lease_id):
            self.view.fold(Gone(key, self.view.revision))

    def _forget_lease(self, lease_id: int) -> None:
        self._ttls.pop(lease_id, None)
        self._ends.pop(lease_id, None)

    def _remember_ttl(self, lease_id: int, ttl_s: int) -> None:
        if lease_id and ttl_s:
            self._ttls[lease_id] = ttl_s

    def _lives_long_enough(self, lease_id: int, ttl_s: int) -> bool:
        """Whether an etcd lease of ours has the time to live that the settings want. A reservation has none."""
        return self._ttls.get(lease_id, ttl_s) == ttl_s

    def _done(self, topic: Topic) -> None:
        self._under_way.discard(topic)
        self.retries.pop(topic, None)

    def _failed(self, topic: Topic, error: OverlayError, now: float) -> None:
        self._under_way.discard(topic)
        attempt = self.retries[topic].attempt + 1 if topic in self.retries else 1
        self.retries[topic] = Retry(attempt, now + delay(attempt, self.jitter()), error)

    def _hurry(self, now: float) -> None:
        """What failed while the store was away does not wait as long again as that was: it begins anew."""
        for topic, retry in self.retries.items():
            retry.attempt, retry.due = 0, now + delay(1, self.jitter())
            self._asked.pop(topic, None)

    def _follow_conditions(self, now: Conditions) -> None:
        """Of a container that is still here; the store is told because its record reads differently now."""
        workload = self.workloads.get(now.id)
        if workload is not None:
            self.workloads[now.id] = replace(
                workload, ready=now.ready, serving=now.serving, terminating=now.terminating
            )
            self._replan_workload(now.id)

    # --- planning ---------------------------------------------------------------------------------

    def _replan_all(self) -> None:
        own = self.lease.value if self.lease else None
        whole = plan.desired(self.view, self.local, own, self.workloads.values(), self.desired)
        self._touched |= set(self.desired.objects) | set(whole.objects)
        self.view.index.take_touched()
        self.desired = whole

    def _replan_services(self) -> None:
        """Those that the news of late touched."""
        self._touched |= self.desired.replace_services(self.view.index.take_touched())

    def _replan_leases(self, keys: Iterable[str]) -> None:
        some = [key for key in keys if key.startswith(self.keys.subnets)]
        if self.lease is None or self.view.network is None:
            return
        for key in some:
            self._replan_lease(key, self.view.network, self.lease.value)
        if some and self.local.vxlan_peers_only:
            self._replan_host()

    def _replan_lease(self, key: str, network: NetworkConfig, own: Lease) -> None:
        peer = self.view.lease_in_use(key)
        part = plan.lease_slice(network, own, peer.value, self.local) if peer else plan.NOTHING
        self._touched |= self.desired.replace(plan.lease_source(key), part)

    def _replan_workload(self, workload_id: str) -> None:
        if self.lease is None or self.view.network is None:
            return
        workload = self.workloads.get(workload_id)
        part = plan.workload_slice(workload, self.local) if workload else plan.NOTHING
        self._touched |= self.desired.replace(plan.workload_source(workload_id), part)
        self._replan_host()
        if services := self.desired.services:
            services.put_own(workload) if workload else services.drop_own(workload_id)
            self._replan_services()

    def _replan_host(self) -> None:
        assert self.lease is not None
        assert self.view.network is not None
        own = self.lease.value
        leases = self.view.leases_in_use() if self.local.vxlan_peers_only else ()
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
        if self.node_lease == 0:
            self._obstacle = self._twin()
            if self._obstacle is None:
                yield self._register(record)
            return
        claim = self._claim() if "lease" not in self._under_way else None
        if claim is not None:
            yield claim  # before the record: in an emptied etcd the subnet must not go to another
        alive = self._lives_long_enough(self.node_lease, self.view.settings.node_ttl_s)
        if not alive or not self._is_there(self.view.nodes.get(self.keys.node(self.local.name)), record):
            yield self._register(record)
        yield from self._releases()
        yield from self._publications()

    def _releases(self) -> Iterator[Release]:
        there = self.view.leases
        self._left = {
            key for key in self._left if key in there and leasing.is_ours(there[key].value, self.local)
        }
        if self.confirmed:
            yield from (Release(key, self.view.mod_revision(key)) for key in sorted(self._left))

    def _publications(self) -> Iterator[Publish | Withdraw]:
        name = self.local.name
        for workload in self.workloads.values():
            there = self.view.workloads.get(self.keys.workload(name, workload.id))
            if self._is_at_home(workload) and not self._is_there(there, workload):
                yield Publish(workload, self._expect(workload))
        for stale in list(self.view.workloads_of(name)):
            here = self.workloads.get(stale.id)
            if here is None or not self._is_at_home(here):
                yield Withdraw(stale, self._expect(stale))

    def _expect(self, workload: Workload) -> Expected:
        """The record as we know it, under a node record that is still ours."""
        node = self.local.name
        keys = (self.keys.workload(node, workload.id), self.keys.node(node))
        return tuple((key, self.view.mod_revision(key)) for key in keys)

    def _is_there(self, there: Stored[Any] | None, value: NodeRecord | Workload) -> bool:
        """Whether the store has this record, on our node's present lease."""
        return (
            there is not None
            and there.value == value
            and there.lease_id == self.node_lease
            and there.key not in self.view.unreadable
        )

    def _twin(self) -> Conflict | None:
        """A living node elsewhere that goes by our node id: one of the two was copied from the other, its
        identity file with it. Each would take the other's lease as its own, and take it back, for ever."""
        me = self.local
        for item in self.view.nodes.values():
            record = item.value
            same = record.node_id == me.identity.node_id and record.name != me.name
            if same and not set(record.public_ips) & set(me.public_ips):
                return Conflict(
                    f"node {record.name} at {record.public_ips[0]} has the node id of this node, {me.name}",
                    evidence=f"key {item.key}: node id {record.node_id}",
                    next=["on the copied machine: stop the agent and remove its identity file"],
                )
        return None

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
        unchanged = bool(resume) and self._all_on(resume, keys) and there is not None and there.value == record
        ttl_s = self.view.settings.node_ttl_s
        old = [key for key in self.view.claims_of(record.node_id) if key not in keys]
        expect += tuple((key, self.view.mod_revision(key)) for key in old)
        return Register(
            record, macs, expect, self.node_lease or resume, ttl_s, unchanged and not old, tuple(old)
        )

    def _all_on(self, lease_id: int, keys: Iterable[str]) -> bool:
        """Whether these keys are ours and hang on this etcd lease."""
        held = [self.view.nodes.get(key) or self.view.claims.get(key) for key in keys]
        return all(item is not None and self._is_ours(item.key) and item.lease_id == lease_id for item in held)

    def _is_ours(self, key: str) -> bool:
        if key in self.view.unreadable:
            return False
        there = self.view.nodes.get(key) or self.view.claims.get(key)
        return there is not None and there.value.node_id == self.local.identity.node_id

    def _claim(self) -> ClaimSubnet | None:
        """A claim to make, if our lease is not in the store or does not read as it should."""
        network = self.view.network
        if network is None or self._lease_is_right() or self._is_contested():
            return None
        ttl_s = self.view.settings.lease_ttl_s
        found = leasing.own_lease(self.view, self.local)
        if found is not None:
            value = leasing.lease_value(found.value.subnets, network, self.local)
            expect, unchanged = self.view.mod_revision(found.key), self._reads_right(found)
            return ClaimSubnet(value, expect, found.lease_id, ttl_s, unchanged)
        try:
            subnets = leasing.choose(self.view, network, self.local, self.pick, self._lost)
        except (PoolExhausted, Conflict) as error:
            self._obstacle = error
            return None
        return ClaimSubnet(leasing.lease_value(subnets, network, self.local), 0, 0, ttl_s)

    def _is_contested(self) -> bool:
        """Whether another node claims an address of ours: a lease must not lead peers to the wrong host."""
        held = [self.view.claims.get(self.keys.address(ip)) for ip in self.local.public_ips]
        return any(item and item.value.node_id != self.local.identity.node_id for item in held)

    def _lease_is_right(self) -> bool:
        """Whether the store has exactly the lease that we hold and would write, for as long as it should."""
        if self.lease is None or self.view.network is None:
            return False
        there = self.view.leases.get(self.lease.key)
        ttl_s = self.view.settings.lease_ttl_s
        return (
            there is not None
            and self._reads_right(there)
            and (not there.lease_id or self._lives_long_enough(there.lease_id, ttl_s))
        )

    def _reads_right(self, there: Stored[Lease]) -> bool:
        """Whether a lease is, to the letter, what we would write."""
        assert self.view.network is not None
        want = leasing.lease_value(there.value.subnets, self.view.network, self.local)
        return there.value == want and there.key not in self.view.unreadable


def _substance(intent: Intent) -> object:
    """What an intent would write: the same thing twice is a repetition, whatever revision it expects."""
    match intent:
        case Register(record):
            return record
        case ClaimSubnet(lease):
            return lease
        case Publish(workload) | Withdraw(workload):
            return (type(intent), workload)
        case Release(key):
            return key
        case _:
            return intent


def topic_of(intent: Intent) -> Topic:
    match intent:
        case Register():
            return "register"
        case ClaimSubnet():
            return "lease"
        case Publish(workload) | Withdraw(workload):
            return f"workload {workload.id}"
        case Release(key):
            return f"release {key}"
        case _:
            return "list"
