"""One host's dataplane, as the loop sees it: what is wanted, what was written, what went wrong.

This is the half of the loop that has no threads and no queue: it takes the engine's touched keys to the
reconciler, wires and unwires containers, and keeps the counters. Everything runs on the loop's thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface

from overlaynet.addr import IPAddress, IPNetwork, container_mac, gateway_address
from overlaynet.core.engine import Engine
from overlaynet.core.overlay import USABLE_MTU_BYTES, container_mtu
from overlaynet.core.plan import workload_slice
from overlaynet.core.workload import (
    CONTAINER_DEVICE,
    give_address,
    host_device,
    used_addresses,
    veth_tag,
)
from overlaynet.errors import (
    ForeignObject,
    KernelError,
    MtuProblem,
    NotFound,
    NotReady,
    OverlayError,
    WorkloadExists,
)
from overlaynet.events import Attached, Detached, Intent
from overlaynet.model import Port, Probe, Workload, check_name
from overlaynet.ports import Failure, Kernel, Noticed, Wiring
from overlaynet.reconcile import Outcome, Reading, Reconciler
from overlaynet.state import Change, Key, Kind, describe, kind_of
from overlaynet_agent.drift import STRUCTURE, Drift
from overlaynet_agent.durations import Durations
from overlaynet_agent.lookworker import Look, Looked

log = logging.getLogger("overlaynet.host")

PART = 500
"""Changes written before anybody else has a turn: some twenty milliseconds."""
MAX_LINES = 3
"""Log lines about one round's changes: a lost device alone is thousands of them."""


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """What a client asks for when it wires a container; the descriptors are the request's to close."""

    name: str
    namespace: str
    labels: dict[str, str]
    ports: tuple[Port, ...]
    ips: tuple[IPAddress, ...]
    netns: str | None
    netns_fd: int
    netlink_fd: int
    probe: Probe | None = None
    probe_socket: str = ""


@dataclass(slots=True)
class Host:
    """The dataplane of this host. `failures` are the writes that are still due, by key; `blind` is why the
    last look failed, if it did; `tried` says that one look was made. `asked` collects the engine's intents
    until the loop takes them: they must not get lost when the call that caused them fails.

    `looking` is the look whose reading is under way on another thread, `due` what the last one found to
    differ and is still to be written, for the reason `due_why`."""

    engine: Engine
    kernel: Kernel
    reconciler: Reconciler = field(init=False)
    failures: dict[Key, Failure] = field(default_factory=dict)
    blind: OverlayError | None = None
    asked: list[Intent] = field(default_factory=list)
    tried: bool = False
    looks: int = 0
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    drift: Drift = field(init=False)
    durations: Durations = field(default_factory=Durations)
    looking: Look | None = None
    due: list[Change] = field(default_factory=list)
    due_why: str = ""
    _failed_before: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(self.kernel)
        self.drift = Drift(self.engine, self.reconciler)

    @property
    def repaired(self) -> Counter[str]:
        """Objects that had gone wrong by themselves and were put right, by kind."""
        return self.drift.repaired

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        network = self.engine.view.network
        return network.networks if network else ()

    @property
    def active(self) -> bool:
        """Whether there is anything to want: before the first lease the kernel is left as it is."""
        return self.engine.lease is not None

    @property
    def refused(self) -> Mapping[Key, str]:
        """Wanted links in whose place something foreign stands, and what."""
        return self.reconciler.refused

    def take_asked(self) -> list[Intent]:
        """The intents since the last call."""
        asked, self.asked = self.asked, []
        return asked

    # --- reconciling ------------------------------------------------------------------------------

    def begin_look(self, why: str, now: float) -> Look:
        """Begin to read the whole kernel, on another thread: have the answer's `read` called there, and `land`
        here with what comes of it. What is still due from the look before, this one finds again."""
        self.due, self.drift.look = [], None
        want, networks = dict(self.engine.desired.objects), self.networks
        self.reconciler.begin(networks)
        self.looking = Look(lambda: self.reconciler.read(want, networks), why, now)
        return self.looking

    def land(self, looked: Looked, now: float) -> bool:
        """Take a reading, and begin to mend what differs. Answers whether it was the one that is waited for:
        another look may have overtaken it."""
        self.follow(now)  # what is wanted differently by now is newer than the reading
        if looked.look is not self.looking or self._is_overtaken(looked.look.why):
            return False
        self.looking = None
        if isinstance(looked.found, KernelError):
            self.reconciler.end()
            self._cannot_see(looked.found)
            return True
        pending = self.reconciler.not_left(self._take(looked.found, looked.look.why))
        self.due, self.due_why, self._failed_before = list(pending), looked.look.why, set(self.failures)
        self._has_looked()
        if self._have_vanished(now):
            self.follow(now)
        if self.reconciler.recent is not None:  # else that was a look of its own
            self._write_part(now, whole=True)
        return True

    def _take(self, reading: Reading, why: str) -> tuple[Change, ...]:
        """Believe it. What was compared with less since it began is compared again."""
        reconciler, known = self.reconciler, self.reconciler.cache
        pending = reconciler.take(reading)
        for key in reconciler.recent.wanted if reconciler.recent else ():
            if reconciler.cache.get(key) != known.get(key):
                self.drift.suspect(key, why)
        return pending

    def write_due(self, now: float) -> None:
        """Write some more of what the last look found, no more than takes a moment."""
        if self.due and not self._is_overtaken(self.due_why):
            self._write_part(now, whole=False)

    def _is_overtaken(self, why: str) -> bool:
        """Whether somebody has read everything since, and the rest of this look is not to be trusted. He may
        have written nothing, so another look follows."""
        if self.reconciler.recent is not None:
            return False
        self.looking, self.due = None, []
        self.drift.look = self.drift.look or why
        return True

    def _write_part(self, now: float, *, whole: bool) -> None:
        part, self.due = self.due[:PART], self.due[PART:]
        before = self._failed_before
        outcome = self._carry_out(lambda: self.reconciler.write_part(part), self.due_why, now)
        why = {c.obj.key: "retry" if c.obj.key in before else self.due_why for c in outcome.changes}
        self._count(replace(outcome, whole=whole), why, now)
        if not self.due:
            self.reconciler.end()

    def look(self, why: str, now: float) -> Outcome:
        """Read the whole kernel and mend what differs, at once. What other looks have begun is over then."""
        if not self.active:
            return Outcome()
        why = why if self.tried else "start"
        if not self.tried:
            self.drift.rewatch()  # what happens from here on is announced, and heard afterwards
        touched, self.drift.look = self.engine.take_touched(), None
        self.drift.suspects.clear()
        outcome = self._carry_out(lambda: self.reconciler.write(self._observe(now)), why, now)
        self._count(outcome, {c.obj.key: why for c in outcome.changes if c.obj.key not in touched}, now)
        return outcome

    def _observe(self, now: float) -> tuple[Change, ...]:
        """What differs, once containers that are gone are not wanted any more either."""
        pending = self.reconciler.observe(self.engine.desired.objects, self.networks)
        if self._drop_vanished(now):
            pending = self.reconciler.observe(self.engine.desired.objects, self.networks)
        return pending

    def follow(self, now: float) -> Outcome:
        """Write what the last events touched, and what is suspected to have gone wrong by itself."""
        if not self.active:
            return Outcome()
        touched = self.engine.take_touched()
        if not self.tried:
            return self.look("start", now) if touched else Outcome()
        self._start_anew(touched)
        reasons = self.drift.take_suspects(now)
        keys = touched | reasons.keys()
        if not keys:
            return Outcome()
        desired = self.engine.desired.objects
        outcome = self._carry_out(lambda: self.reconciler.follow(keys, desired, self.networks), "event", now)
        self._count(outcome, reasons, now)
        if any(kind_of(key) in STRUCTURE for key in keys):
            self.drift.rewatch()
        return outcome

    def _start_anew(self, touched: set[Key]) -> None:
        """What is wanted differently has neither failed nor gone wrong yet."""
        for key in touched:
            self.failures.pop(key, None)
            self.drift.suspects.pop(key, None)
            self.drift.failing.forget(key)

    def _carry_out(self, write: Callable[[], Outcome], why: str, now: float) -> Outcome:
        """Do it and keep the books. A kernel that cannot be read leaves everything as it was."""
        try:
            with self.durations.timed():
                outcome = write()
        except KernelError as error:
            self._cannot_see(error)
            return Outcome()
        if outcome.whole:
            self.looking, self.due = None, []
            self._has_looked()
        self._log(outcome, why)
        return outcome

    def _has_looked(self) -> None:
        self.looks += 1
        self.tried, self.blind = True, None
        self.drift.rewatch()

    def _cannot_see(self, error: KernelError) -> None:
        self.blind = error
        log.warning("the kernel could not be read error=%s", error)

    def _drop_vanished(self, now: float) -> bool:
        """Containers whose veth is gone (their namespace was deleted) are gone too. Answers whether any is.
        What was seen may be older than a container, so none is given up unasked. Raises KernelError."""
        gone = self._without(self.reconciler.seen.links)
        if gone:
            gone = self._without(self.kernel.glance().links)
        for workload in gone:
            log.info("container is gone container=%s device=%s", workload.id, workload.device)
            self.asked += self.engine.handle(Detached(workload.id), now)
        return bool(gone)

    def _without(self, links: Collection[str]) -> list[Workload]:
        """The containers whose device is not among these."""
        return [workload for workload in self.engine.workloads.values() if workload.device not in links]

    def _have_vanished(self, now: float) -> bool:
        """The same, where nobody else sees to a kernel that cannot be read."""
        try:
            return self._drop_vanished(now)
        except KernelError as error:
            self._cannot_see(error)
            return False

    def _count(self, outcome: Outcome, reasons: Mapping[Key, str], now: float) -> None:
        """Writes, failures and repairs. What failed before and now succeeds was no drift.

        A whole look puts an end to every failure but one of a write that was tried since it began: it has left
        that alone, so it is still to be tried again."""
        failed = {failure.change.obj.key: failure for failure in outcome.failures}
        before = self.failures.keys() | failed.keys()
        done = [change for change in outcome.changes if change.obj.key not in failed]
        for change in done:
            self.writes[str(kind_of(change.obj.key)), str(change.op)] += 1
        self.drift.count([change for change in done if change.obj.key not in before], reasons, now)
        over = [*reasons, *(c.obj.key for c in done)]
        if outcome.whole:
            is_newer = self.reconciler.is_newer
            over = [key for key, failure in self.failures.items() if not is_newer(failure.change.obj)]
        for key in over:
            self.failures.pop(key, None)
            if key not in failed:
                self.drift.failing.forget(key)
        for key in failed:
            self.drift.failing.strike(key, now)
            self.drift.failing.must_wait(key, now)
        self.failures.update(failed)

    def _log(self, outcome: Outcome, why: str) -> None:
        if outcome.changes:
            log.info(
                "kernel written why=%s changes=%d failed=%d object=%s",
                why, len(outcome.changes), len(outcome.failures), describe(outcome.changes[0].obj),
            )  # fmt: skip
        for failure in outcome.failures[:MAX_LINES]:
            log.warning("refused change=%s error=%s", failure.change, failure.error)

    # --- drift ------------------------------------------------------------------------------------

    def hear(self, noticed: Noticed, now: float) -> None:
        """Take in what the kernel announced; what follows from it is done by the next round. What could not be
        compared takes a look, and one that is under way may be older."""
        if not self.tried:
            return  # the first look is still to come, and sees it
        try:
            if self.drift.hear(noticed):
                self._drop_vanished(now)
        except KernelError as error:
            self._cannot_see(error)
            self.drift.look = self.drift.look or "notice"

    def poll(self, now: float) -> None:
        """Look after what the kernel announces no change of."""
        if self.tried:
            self.drift.poll(now)

    def problems(self) -> list[OverlayError]:
        """What keeps this host's kernel from being as it should."""
        blind = [self.blind] if self.blind else []
        refused = [self._refusal(key) for key in self.refused]
        failed = (failure.error for failure in self.failures.values())
        shadowed = [self._shadow(key) for key in self.reconciler.shadowed]
        return [*blind, *refused, *shadowed, *failed, *self.drift.problems(), *self._mtu_problems()]

    def _mtu_problems(self) -> Iterator[MtuProblem]:
        """A path too small for IPv4's sake, and containers from the days of a larger one. Their pairs are left
        as they are: a host end below the inner one drops without a word what routing would answer with an
        ICMP error."""
        network = self.engine.view.network
        if network is None or not self.active:
            return
        mtu, links = container_mtu(network.backend, self.engine.local), self.reconciler.seen.links
        if mtu < USABLE_MTU_BYTES:
            yield MtuProblem(
                f"the underlay leaves containers {mtu} bytes a packet, less than {USABLE_MTU_BYTES}",
                evidence=f"MTU of {self.engine.local.interface}: {self.engine.local.underlay_mtu}",
                next=[f"ip link show dev {self.engine.local.interface}", "overlaynet network show"],
            )
        wired = self.engine.workloads.values()
        large = [w.id for w in wired if w.device in links and links[w.device].mtu > mtu]
        if large:
            yield MtuProblem(
                f"{len(large)} containers still send packets larger than the path's {mtu} bytes",
                evidence=", ".join(large[:5]) + (", …" if large[5:] else ""),
                next=["attach them again, or set their MTU inside"],
            )

    def _shadow(self, key: Key) -> ForeignObject:
        show = f"ip route show {key[2]}"
        return ForeignObject(self.reconciler.shadowed[key], evidence=f"route {key[2]}", next=[show])

    def _refusal(self, key: Key) -> ForeignObject:
        show = f"ip -d link show dev {key[1]}"
        return ForeignObject(self.refused[key], evidence=f"link {key[1]}", next=[show])

    # --- containers -------------------------------------------------------------------------------

    def attach(self, request: AttachRequest, now: float) -> Workload:
        """Wire a container: address, veth, bridge. All or nothing. Raises WorkloadError, KernelError or
        ForeignObject."""
        workload = self._plan_workload(request)
        self.kernel.attach(self._wiring(workload, request))
        self.asked += self.engine.handle(Attached(workload), now)
        self.follow(now)
        if trouble := self._trouble_with(workload):
            self._give_up(workload, now)
            raise trouble
        log.info("attached container=%s ip=%s device=%s", workload.id, workload.ips[0], workload.device)
        return workload

    def _give_up(self, workload: Workload, now: float) -> None:
        """Unwire what hangs nowhere. If the kernel will not, it is a stray: nobody was told of a container."""
        try:
            self.kernel.detach(workload.device)
        except KernelError as error:
            log.warning("device is left over device=%s error=%s", workload.device, error)
        self.asked += self.engine.handle(Detached(workload.id), now)
        self.follow(now)

    def _trouble_with(self, workload: Workload) -> OverlayError | None:
        """Why a container that was just wired hangs on no bridge, if it does not."""
        bridge = (Kind.LINK, self.engine.local.bridge)
        needed = {bridge} & self.engine.desired.objects.keys()
        for key in (*needed, *workload_slice(workload, self.engine.local).objects):
            if key not in self.reconciler.cache:
                return self._reason(key)
        return None

    def _reason(self, key: Key) -> OverlayError:
        if key in self.refused:
            return self._refusal(key)
        if key in self.failures:
            return self.failures[key].error
        return self.blind or NotReady(f"{key[0]} {key[1]} could not be made", next=["overlaynet status"])

    def detach(self, namespace: str, name: str, now: float) -> None:
        """Unwire a container; also one that no record mentions but whose veth carries its name. Raises
        NotFound or KernelError."""
        workload_id = f"{namespace}/{name}"
        workload = self.engine.workloads.get(workload_id)
        if workload is None and not self._is_stray(workload_id):
            raise self._not_here(workload_id)
        self.kernel.detach(host_device(workload_id, self.engine.local.instance))
        self.asked += self.engine.handle(Detached(workload_id), now)
        self.follow(now)
        log.info("detached container=%s stray=%s", workload_id, workload is None)

    def wired(self, workload_id: str) -> Workload:
        """The container of that id. Raises NotFound."""
        if workload_id not in self.engine.workloads:
            raise self._not_here(workload_id)
        return self.engine.workloads[workload_id]

    def _not_here(self, workload_id: str) -> NotFound:
        return NotFound(
            f"no container {workload_id} is attached to this host",
            evidence="attached: " + (", ".join(sorted(self.engine.workloads)) or "none"),
            next=["overlaynet get containers"],
        )

    def _is_stray(self, workload_id: str) -> bool:
        instance = self.engine.local.instance
        link = self.kernel.glance().links.get(host_device(workload_id, instance))
        return link is not None and link.tag == veth_tag(workload_id, instance)

    def _plan_workload(self, request: AttachRequest) -> Workload:
        check_name(request.name, "container")
        check_name(request.namespace, "namespace", reserved=False)
        workload_id = f"{request.namespace}/{request.name}"
        if workload_id in self.engine.workloads:
            raise WorkloadExists(
                f"container {workload_id} is attached already",
                evidence=f"its device is {self.engine.workloads[workload_id].device}",
                next=["overlaynet get containers"],
            )
        ips = self._addresses(request.ips)
        return Workload(
            name=request.name,
            namespace=request.namespace,
            node=self.engine.local.name,
            ips=ips,
            mac=container_mac(ips[0]),
            device=host_device(workload_id, self.engine.local.instance),
            netns=request.netns,
            labels=request.labels,
            ports=request.ports,
            ready=request.probe is None,
            serving=request.probe is None,
        )

    def _addresses(self, asked: Sequence[IPAddress]) -> tuple[IPAddress, ...]:
        lease = self.engine.lease
        if lease is None or not self.tried or not self.engine.confirmed:
            raise NotReady(
                "this host has no subnet that etcd confirms, so it has no address to give",
                evidence="; ".join(error.message for error in self.engine.problems()) or "still starting",
                next=["overlaynet status"],
            )
        used = used_addresses(self.engine.workloads.values())
        others = self._behind_bridge(self.reconciler.seen.links)
        if others - used:  # what was seen may be older than a port's end
            others = self._behind_bridge(self.kernel.glance().links)
        used |= others
        by_version = {ip.version: ip for ip in asked}
        return tuple(give_address(s, used, by_version.get(s.version)) for s in lease.value.subnets)

    def _behind_bridge(self, links: Collection[str]) -> set[IPAddress]:
        """Addresses that live behind the bridge, also without our doing: neighbours whose MAC is on one
        of these ports."""
        seen, bridge = self.reconciler.seen, self.engine.local.bridge
        macs = {entry.mac for entry in seen.fdb if entry.master == bridge and entry.dev in links}
        return {n.ip for n in seen.neighs if n.dev == bridge and n.mac in macs}

    def _wiring(self, workload: Workload, request: AttachRequest) -> Wiring:
        network, lease = self.engine.view.network, self.engine.lease
        assert network is not None
        assert lease is not None
        pairs = list(zip(workload.ips, lease.value.subnets, strict=True))
        return Wiring(
            host_device=workload.device,
            tag=veth_tag(workload.id, self.engine.local.instance),
            container_device=CONTAINER_DEVICE,
            mac=workload.mac,
            addresses=tuple(ip_interface(f"{ip}/{subnet.prefixlen}") for ip, subnet in pairs),
            gateways=tuple(gateway_address(subnet) for _, subnet in pairs),
            mtu=container_mtu(network.backend, self.engine.local),
            netns_fd=request.netns_fd,
            netlink_fd=request.netlink_fd,
        )
