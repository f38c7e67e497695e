"""The agent's one loop: events in, engine, kernel; everything that blocks is somebody else's thread.

    store threads ─┐
    API threads  ──┼──► inbox ──► engine ──► Host (kernel, on this thread) ──► firewall thread
    signals      ──┤                 ├─────► store thread (intents)
    readings     ──┘                 └─────► look thread (what is there?)

The loop owns the engine and the netlink socket, so neither needs a lock. It never works long at a stretch: full
looks are read on another thread and written part by part. A request from the API is an item
of the inbox like any other and is answered through a future. A round handles all that is waiting and then
writes once.
"""

from __future__ import annotations

import gc
import logging
import math
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from overlaynet.addr import IPAddress
from overlaynet.config import AgentConfig
from overlaynet.core.backoff import delay
from overlaynet.core.engine import Engine
from overlaynet.core.overlay import container_mtu
from overlaynet.core.underlay import local_host
from overlaynet.errors import EnvironmentProblem, KernelError, NotReady, OverlayError, UnderlayProblem
from overlaynet.events import Conditions, Event, HostChanged, Intent, Recalled, StoreLost, Synced
from overlaynet.model import Lease, NetworkConfig
from overlaynet.ports import Noticed
from overlaynet.reconcile import Outcome
from overlaynet.state import KernelState, Policy
from overlaynet.store import disk
from overlaynet_agent import files, logs, settings
from overlaynet_agent.drift import FOUGHT_CAP_S, QUIET_S
from overlaynet_agent.firewallworker import FirewallDone, FirewallWorker, Task
from overlaynet_agent.healthports import HealthPorts, wanted
from overlaynet_agent.host import Host
from overlaynet_agent.lookworker import Look, Looked, LookWorker
from overlaynet_agent.memory import Memory
from overlaynet_agent.notify import Manager, Notifier
from overlaynet_agent.pace import Pace
from overlaynet_agent.storeworker import KeepAlive, StoreWorker
from overlaynet_agent.timedstore import TimedStore
from overlaynet_agent.upkeep import Probed, Upkeep

log = logging.getLogger("overlaynet.loop")

IDLE_S = 1.0
"""The loop ticks at least this often, so that the keep-alive knows it is alive."""

LOOK_REST = 2
"""After a look that a notice asked for, at least so many times as long as it took without another such."""

DETACH_AGAIN_S = 1.0
"""Between attempts to unwire a container whose time is over."""

RULES_AGAIN_S = 0.02
"""After rules or connections were refused, before the first further attempt."""

SAVE_AGAIN_S = 5.0
"""Between attempts to write to a disk that refused."""


@dataclass(frozen=True, slots=True)
class Request:
    """Work for the loop's thread from another one."""

    run: Callable[[Loop], Any]
    reply: Future[Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop, leaving the dataplane as it is."""


Item: TypeAlias = Event | Noticed | FirewallDone | Looked | Probed | Request | Stop


@dataclass(slots=True)
class FirewallState:
    """What the firewall thread last said. `asked` are the policies it was last given, and whether it was
    told to take nothing away; at `due` it is asked to read the rules in full, for the reason `why`; `reads`
    counts its rounds, `failures` those that failed, `restores` those that wrote, `deleted` the connections
    that were forgotten. `flows_error`: why not all were that should be. `synced_at`: when it was last done, in
    the loop's seconds."""

    asked: tuple[Mapping[str, Policy], bool] | None = None
    due: float = math.inf
    why: str = "timer"
    reads: int = 0
    tried: bool = False
    error: OverlayError | None = None
    attempt: int = 0
    restores: int = 0
    failures: int = 0
    deleted: int = 0
    flows_error: OverlayError | None = None
    synced_at: float | None = None
    blockers: tuple[str, ...] = ()

    @property
    def is_pending(self) -> bool:
        """Whether the last round left something undone."""
        return self.error is not None or self.flows_error is not None


@dataclass(slots=True)
class Loop:
    """One agent. `clock` is monotonic seconds."""

    config: AgentConfig
    engine: Engine
    host: Host
    inbox: queue.SimpleQueue[Item]
    store: StoreWorker
    keepalive: KeepAlive
    firewall: FirewallWorker
    looker: LookWorker
    memory: Memory
    calls: TimedStore
    upkeep: Upkeep
    manager: Manager = field(default_factory=lambda: Manager(Notifier(None)))
    reread: Callable[[], AgentConfig] | None = None
    clock: Callable[[], float] = time.monotonic
    started: float = field(default_factory=time.monotonic)
    last_tick: float = field(default_factory=time.monotonic)
    rules: FirewallState = field(default_factory=FirewallState)
    underlay_error: OverlayError | None = None
    health_ports: HealthPorts = field(init=False)
    _next_look: float = 0.0
    _noticed_look: float = 0.0
    _noticed: str | None = None
    _looks: Pace = field(default_factory=lambda: Pace(FOUGHT_CAP_S, QUIET_S))
    _failed_looks: int = 0
    _followed: int = 0
    _saved: object = None
    _save_error: OverlayError | None = None
    _next_save: float = 0.0
    _reload_error: OverlayError | None = None
    _said_ready: bool = False
    _stopped: bool = False

    def __post_init__(self) -> None:
        self.health_ports = HealthPorts(lambda: self.is_alive() and self.rules.tried)

    @property
    def threads(self) -> tuple[StoreWorker, FirewallWorker, LookWorker, KeepAlive, Memory, HealthPorts]:
        """The workers, to be started before `run` and stopped after it in the other order."""
        return (self.store, self.firewall, self.looker, self.keepalive, self.memory, self.health_ports)

    def run(self) -> None:
        """Turn until told to stop."""
        self._next_look = self.clock() + self.config.firewall.resync_s
        while True:
            items = self._wait()
            if any(isinstance(item, Stop) for item in items):
                self.manager.stopping()
                self.upkeep.stop()
                self._remember(at_once=True)
                self._refuse(items)
                return
            for item in items:
                self._handle(item)
            self._round()

    def call(self, run: Callable[[Loop], Any], timeout_s: float = 30.0) -> Any:
        """From another thread: have `run` called on the loop's, and wait for what it returns or raises.

        Raises NotReady if its turn did not come in time; then it never will. What has begun is waited for:
        the caller's descriptors are in use until then."""
        reply: Future[Any] = Future()
        self.inbox.put(Request(run, reply))
        if self._stopped and reply.cancel():  # asked only now, for else the loop may end in between
            raise _stopping()
        try:
            return reply.result(timeout_s)
        except TimeoutError:
            if not reply.cancel():
                return reply.result()
            raise NotReady(f"the agent was too busy to answer within {timeout_s:g} s") from None

    def _refuse(self, items: list[Item]) -> None:
        """Leave nobody waiting for a loop that has ended."""
        self._stopped = True
        for item in (*items, *self._waiting()):
            if isinstance(item, Request) and item.reply.set_running_or_notify_cancel():
                item.reply.set_exception(_stopping())

    def is_alive(self) -> bool:
        """From another thread: whether the loop has turned within the node lease's time."""
        return self.clock() - self.last_tick < self.engine.view.settings.node_ttl_s

    def submit(self, intents: list[Intent]) -> None:
        self.store.submit(*intents)

    # --- one turn ---------------------------------------------------------------------------------

    def _wait(self) -> list[Item]:
        """All that is waiting; or nothing, once it is time to do something anyway."""
        now = self.last_tick = self.clock()
        deadlines = [now + IDLE_S, self.engine.deadline() or now + IDLE_S]
        deadlines += [self.host.drift.deadline(), self.rules.due, self.upkeep.deadline()]
        deadlines += [now] if self.host.due else []
        if self.host.looking is None:
            deadlines += [self._next_look, *([self._noticed_look] if self.host.drift.look else [])]
        try:
            first = self.inbox.get(timeout=max(0.0, min(deadlines) - now))
        except queue.Empty:
            return []
        return [first, *self._waiting()]

    def _waiting(self) -> Iterator[Item]:
        """All that is in the inbox now."""
        with suppress(queue.Empty):
            while True:
                yield self.inbox.get_nowait()

    def _handle(self, item: Item) -> None:
        match item:
            case Request(run, reply):
                if not reply.set_running_or_notify_cancel():
                    return
                self.submit(self.engine.tick(self.clock()))  # who was stopped for long must not act on old time
                try:
                    reply.set_result(run(self))
                except Exception as error:
                    reply.set_exception(error)
            case FirewallDone():
                self._firewall_done(item)
            case Noticed():
                self.host.hear(item, self.clock())
            case Probed():
                self._change(self.upkeep.hear(item, self.engine.workloads.get(item.id)))
            case Looked():
                self._land(item)
            case Stop():
                pass
            case _:
                if isinstance(item, Synced):
                    self._meet_store()
                self.submit(self.engine.handle(item, self.clock()))
                if isinstance(item, StoreLost):
                    self._recall()

    def _round(self) -> None:
        now = self.clock()
        self.submit(self.engine.tick(now))
        self._trust_the_store()
        self.expire_holds(now)
        self.host.poll(now)
        if now >= self._next_look and not self.host.tried:
            self.full_look("timer")
        else:
            self.host.follow(now)
            self.host.write_due(now)
            if self.host.blind and self.host.looking is None:
                self._look_again()
            self._begin_look(now)
        self._follow_looks(now)
        self._see_to_containers(now)
        self.submit(self.host.take_asked())
        self.ask_firewall()
        self.keepalive.keep(self.engine.node_lease, self._subnet_lease())
        self.save()
        self._remember()
        self._say_ready()
        self._tell_manager(now)

    def _subnet_lease(self) -> int:
        return self.engine.lease.lease_id if self.engine.lease else 0

    def _remember(self, *, at_once: bool = False) -> None:
        lease_end = self.keepalive.ends_at(self._subnet_lease())
        self.memory.note(self.engine, lease_end, self.clock(), at_once=at_once)

    # --- containers -------------------------------------------------------------------------------

    def leave(self, namespace: str, name: str, grace_s: float) -> None:
        """Have a container unwired after so many seconds; until then it serves, and takes nothing new. Raises
        NotFound."""
        self._change(self.upkeep.leave(self.host.wired(f"{namespace}/{name}"), grace_s))

    def _change(self, conditions: Conditions | None) -> None:
        if conditions is not None:
            self.submit(self.engine.handle(conditions, self.clock()))

    def _see_to_containers(self, now: float) -> None:
        """Probe those that are wired, and unwire those whose time is over."""
        for workload_id in self.upkeep.over(now):
            namespace, _, name = workload_id.partition("/")
            try:
                self.host.detach(namespace, name, now)
            except OverlayError as error:
                log.warning("container could not be detached container=%s error=%s", workload_id, error)
                self.upkeep.postpone(workload_id, now + DETACH_AGAIN_S)
        self.upkeep.follow(self.engine.workloads)

    # --- without a store --------------------------------------------------------------------------

    def _recall(self) -> None:
        """The store is away and was not read since we started: go by what it said before."""
        engine = self.engine
        if engine.synced or engine.lease is not None:
            return
        remembered = self.memory.recall()
        if remembered is None:
            return
        left_s = None if remembered.lease_end is None else remembered.lease_end - time.time()
        ends = None if left_s is None else self.clock() + left_s
        items, lease_id = remembered.items, remembered.lease_id
        recalled = Recalled(remembered.revision, items, remembered.cluster_id, lease_id, ends)
        self.submit(engine.handle(recalled, self.clock()))
        if left_s is not None:
            self.keepalive.recall(remembered.lease_id, left_s)
        log.warning("etcd is away: going by what it said before keys=%d", len(remembered.items))

    def _trust_the_store(self) -> None:
        """Take nothing away before the store was read; look at everything once it was."""
        reconciler = self.host.reconciler
        if reconciler.additions_only == self.engine.synced:
            reconciler.additions_only = not self.engine.synced
            if self.host.tried:
                self._next_look = self.clock()

    # --- looking and writing ----------------------------------------------------------------------

    def full_look(self, why: str) -> Outcome:
        """Look at everything in the kernel, and mend what differs; and at our files with the next save.

        At once, for those who wait for it, and for the first time: it takes long among thousands of peers."""
        self._saved = None
        self._next_look = self.clock() + self.config.firewall.resync_s
        outcome = self.host.look(why, self.clock())
        self._after_look()
        return outcome

    def _begin_look(self, now: float) -> None:
        """The same, without waiting: by the timer, or for what was noticed."""
        noticed = self.host.drift.look if now >= self._noticed_look else None
        if self.host.looking is not None or not (noticed or now >= self._next_look):
            return
        self._saved = None
        self._next_look = now + self.config.firewall.resync_s
        self._noticed = noticed
        self.looker.begin(self.host.begin_look(noticed or "timer", now))

    def _land(self, looked: Looked) -> None:
        if self.host.land(looked, self.clock()):
            self._after_look()
            if self._noticed:
                self._pace_looks(looked.look)

    def _after_look(self) -> None:
        if self.host.blind is None:
            self._failed_looks = 0
        else:
            self._look_again()
            self._failed_looks += 1

    def _follow_looks(self, now: float) -> None:
        """Whoever has looked, and be it for another's sake: what he saw of the underlay is no news any more."""
        if self.host.looks != self._followed:
            self._followed = self.host.looks
            self._follow_underlay()
            self.host.follow(now)

    def _follow_underlay(self) -> None:
        if self.host.active and self.host.blind is None:
            self._take_up(self.host.reconciler.seen)

    def _meet_store(self) -> None:
        """The store was away when we started: what was read of the underlay then may be long over, and nothing
        is to be claimed by it. A kernel that cannot be read now is told of by the first look."""
        if not self.host.tried and self.engine.store_error is not None:
            with suppress(KernelError):
                self._take_up(self.host.kernel.observe())

    def _take_up(self, seen: KernelState) -> None:
        """Take up another address or MTU of the underlay. An underlay that is gone is told and waited for."""
        self.underlay_error = None
        try:
            local = self.engine.local
            there = local_host(self.config, local.identity, seen, local.traces)
        except UnderlayProblem as error:
            self.underlay_error = error
            return
        if there != self.engine.local:
            log.warning(
                "host changed public_ip=%s interface=%s mtu=%d node_port_ips=%s",
                there.public_ips[0], there.interface, there.underlay_mtu,
                _addresses(there.services.node_ips if there.services else ()),
            )  # fmt: skip
            self.submit(self.engine.handle(HostChanged(there), self.clock()))

    def _look_again(self) -> None:
        """What could not be read is looked at again soon, and less soon after each look that did not help."""
        soon = self.clock() + delay(self._failed_looks + 1, 0.0)
        self._next_look = min(self._next_look, soon)

    def _pace_looks(self, look: Look) -> None:
        """After a full look that somebody's doing asked for: the more of them in a row, the later the next one,
        and never so that they take all the time there is."""
        ended = self.clock()
        self._looks.prune(ended)
        due = self._looks.strike((self._noticed,), ended).due
        self._noticed_look = max(due, ended + LOOK_REST * (ended - look.began))

    def expire_holds(self, now: float) -> None:
        """End the holds whose time is up."""
        if any(hold.chain for hold in self.host.drift.expire(now)):
            self.ask_firewall_again("release")

    # --- the firewall -----------------------------------------------------------------------------

    def ask_firewall_again(self, why: str) -> None:
        """Have the rules read in full by the next round, and mended."""
        self.rules.due, self.rules.why = 0.0, why

    def ask_firewall(self) -> None:
        """When something else is wanted, and now and then all the same."""
        policies, additions_only = self.engine.desired.policies, self.host.reconciler.additions_only
        rules, holds = self.rules, self.host.drift.holds
        changed = rules.asked != (policies, additions_only)
        if self.host.active and (changed or self.clock() >= rules.due):
            why = "event" if changed else rules.why
            networks = (self.engine.view.settings.service_network,)
            self.firewall.want(Task(dict(policies), additions_only, holds.chains, why, networks))
            rules.asked, rules.due = (dict(policies), additions_only), math.inf
            services = self.engine.local.services
            self.health_ports.follow(wanted(policies, services.node_ips if services else ()))

    def _firewall_done(self, done: FirewallDone) -> None:
        rules, changes = self.rules, done.outcome.changes
        if rules.tried and rules.error is None and done.why != "event":
            self.host.drift.count_rules(changes, done.why, self.clock())
        rules.error, rules.flows_error, rules.tried = done.error, done.forgotten.error, True
        rules.reads += 1
        rules.deleted += done.forgotten.deleted
        if changes:
            rules.restores += 1
            log.info("firewall written chains=%s", ",".join(sorted({c.chain for c in changes})))
        if done.forgotten.deleted:
            log.info("connections forgotten count=%d", done.forgotten.deleted)
        if done.error is None:
            rules.blockers = (*done.outcome.blockers, *done.strangers)
            rules.synced_at = self.clock()
        self._firewall_again(done.error or done.forgotten.error)

    def _firewall_again(self, error: OverlayError | None) -> None:
        """When the next round is due: soon after one that failed, and less soon after each further one. It does
        not put off what somebody has asked for meanwhile."""
        rules, now = self.rules, self.clock()
        is_asked_for = rules.due <= now
        if error is None:
            rules.attempt = 0
            every_s, why = min(self.config.firewall.resync_s, self.config.service.max_sync_s), "timer"
        else:
            rules.attempt += 1
            rules.failures += 1
            log.warning("firewall refused attempt=%d error=%s", rules.attempt, error)
            every_s, why = delay(rules.attempt, 0.0, RULES_AGAIN_S), "retry"
        if not is_asked_for:
            rules.due, rules.why = now + every_s, why

    # --- what is kept on disk ---------------------------------------------------------------------

    def save(self) -> None:
        """Write identity, containers and subnet.env where they differ from what was written last. A disk
        that is full is a problem to report, and no reason to leave the host without an agent."""
        lease, network = self.engine.lease, self.engine.view.network
        state = (self.engine.local, tuple(self.engine.workloads.values()), dict(self.upkeep.kept))
        now = self.clock()
        if lease is None or network is None or state == self._saved or now < self._next_save:
            return
        try:
            self._write_files(network, lease.value)
        except OSError as error:
            self._save_error = EnvironmentProblem("state could not be saved", evidence=str(error), next=["df"])
            self._next_save = now + SAVE_AGAIN_S
            log.warning("state could not be saved error=%s", error)
        else:
            self._saved, self._save_error = state, None

    def _write_files(self, network: NetworkConfig, lease: Lease) -> None:
        paths, local = self.config.paths, self.engine.local
        disk.write_identity(paths.identity, local.identity)
        disk.write_workloads(paths.workloads, self.engine.workloads.values(), self.upkeep.kept)
        mtu = container_mtu(network.backend, local)
        text = files.subnet_env(network, lease.subnets, mtu, masquerade=local.masquerade)
        disk.write_if_different(paths.subnet_file, text, 0o644)

    # --- readiness --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the first full apply was tried, kernel and rules."""
        return self.host.tried and self.rules.tried

    def problems(self) -> list[OverlayError]:
        rules = (self.rules.error, self.rules.flows_error)
        own = (self.underlay_error, *rules, self._save_error, self._reload_error)
        mine = [error for error in own if error]
        return [*self.engine.problems(), *self.host.problems(), *self.health_ports.problems(), *mine]

    @property
    def state_word(self) -> str:
        """``starting``, ``ready``, or ``degraded``: ready once, with something wrong now."""
        if not self.ready:
            return "starting"
        return "degraded" if self.problems() else "ready"

    def _tell_manager(self, now: float) -> None:
        self.manager.turn(now)
        if self.manager.wants_status(now, self.ready):
            self.manager.tell(now, self.ready, self._status_line())

    def _status_line(self) -> str:
        """The state, what we have, and the first of the problems."""
        lease, problems = self.engine.lease, self.problems()
        words = [self.state_word]
        if lease is not None:
            subnets = ",".join(map(str, lease.value.subnets))
            peers, containers = len(self.engine.view.leases) - 1, len(self.engine.workloads)
            words.append(f"subnet {subnets}, {peers} peers, {containers} containers")
        if problems:
            more = f" and {len(problems) - 1} more" if problems[1:] else ""
            words.append(f"{problems[0].code} {problems[0].message}{more}")
        return "; ".join(words)

    # --- settings ---------------------------------------------------------------------------------

    def reload(self) -> tuple[list[settings.Key], list[settings.Key]]:
        """Read the settings again: which changed and hold now, and which need a restart.

        Raises ConfigError for settings that cannot be used; then the old ones stay, all of them."""
        self.manager.reloading()
        try:
            new = self.reread() if self.reread else self.config
        except OverlayError as error:
            self._reload_error = error
            log.error("settings refused, the old ones stay error=%s evidence=%s", error, error.evidence)
            raise
        finally:
            self.manager.reloaded()
        self._reload_error = None
        return self._adopt(new)

    def _adopt(self, new: AgentConfig) -> tuple[list[settings.Key], list[settings.Key]]:
        keys = settings.changed(self.config, new)
        live, rest = [k for k in keys if k in settings.LIVE], [k for k in keys if k not in settings.LIVE]
        self.config = settings.merged(self.config, new)
        logs.configure(self.config.log)
        self.firewall.min_sync_s = self.config.service.min_sync_s
        local = settings.local_host(self.engine.local, self.config)
        if local != self.engine.local:
            self.submit(self.engine.handle(HostChanged(local), self.clock()))
        self._follow_underlay()
        self._next_look = min(self._next_look, self.clock() + self.config.firewall.resync_s)
        log.info("settings read again changed=%s restart_needed=%s", _names(live), _names(rest))
        return live, rest

    def _say_ready(self) -> None:
        lease = self.engine.lease
        if self.ready and lease is not None and not self._said_ready:
            self._said_ready = True
            log.info(
                "ready node=%s subnet=%s peers=%d took_s=%.2f",
                self.engine.local.name,
                ",".join(map(str, lease.value.subnets)),
                len(self.engine.view.leases) - 1,
                self.clock() - self.started,
            )
            # What was listed and planned so far stays, as a whole: a search for cycles among all of it would
            # keep everybody waiting, 0.2 s with twenty thousand peers.
            gc.freeze()


def _addresses(ips: tuple[IPAddress, ...] | None) -> str:
    return "all" if ips is None else ",".join(map(str, ips)) or "none"


def _names(keys: list[settings.Key]) -> str:
    return ",".join(".".join(key) for key in keys) or "none"


def _stopping() -> NotReady:
    return NotReady("the agent is stopping", next=["overlaynet status"])
