"""One host's dataplane, as the loop sees it: what is wanted, what was written, what went wrong.

This is the half of the loop that has no threads and no queue: it takes the engine's touched keys to the
reconciler, wires and unwires containers, and keeps the counters. Everything runs on the loop's thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface

from overlaynet.addr import IPAddress, IPNetwork, container_mac, gateway_address
from overlaynet.core.diff import word
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
from overlaynet.model import Port, Workload, check_name
from overlaynet.ports import Failure, Kernel, Wiring
from overlaynet.reconcile import Outcome, Reconciler
from overlaynet.state import Change, Key, Kind, describe, kind_of
from overlaynet_agent.durations import Durations

log = logging.getLogger("overlaynet.host")

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


@dataclass(slots=True)
class Host:
    """The dataplane of this host. `failures` are the writes that are still due, by key; `blind` is why the
    last look failed, if it did; `tried` says that one look was made. `asked` collects the engine's intents
    until the loop takes them: they must not get lost when the call that caused them fails."""

    engine: Engine
    kernel: Kernel
    reconciler: Reconciler = field(init=False)
    failures: dict[Key, Failure] = field(default_factory=dict)
    blind: OverlayError | None = None
    asked: list[Intent] = field(default_factory=list)
    tried: bool = False
    looks: int = 0
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    durations: Durations = field(default_factory=Durations)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(self.kernel)

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        network = self.engine.view.network
        return network.networks if network else ()

    @property
    def active(self) -> bool:
        """Whether there is anything to want: before the first lease the kernel is left as it is."""
        return self.engine.lease is not None

    @property
    def healthy(self) -> bool:
        """Whether the kernel could be read, and took everything."""
        return self.blind is None and not self.failures

    @property
    def refused(self) -> Mapping[Key, str]:
        """Wanted links in whose place something foreign stands, and what."""
        return self.reconciler.refused

    def take_asked(self) -> list[Intent]:
        """The intents since the last call."""
        asked, self.asked = self.asked, []
        return asked

    # --- reconciling ------------------------------------------------------------------------------

    def look(self, why: str, now: float) -> Outcome:
        """Read the whole kernel and mend what differs."""
        if not self.active:
            return Outcome()
        self.engine.take_touched()
        return self._carry_out(lambda: self.reconciler.write(self._observe(now)), why, now)

    def _observe(self, now: float) -> tuple[Change, ...]:
        """What differs, once containers that are gone are not wanted any more either."""
        pending = self.reconciler.observe(self.engine.desired.objects, self.networks)
        if self._drop_vanished(now):
            pending = self.reconciler.observe(self.engine.desired.objects, self.networks)
        return pending

    def follow(self, now: float) -> Outcome:
        """Write what the last events touched."""
        touched = self.engine.take_touched()
        if not self.active or not touched:
            return Outcome()
        if not self.tried:
            return self.look("start", now)
        for key in touched:
            self.failures.pop(key, None)
        desired = self.engine.desired.objects
        return self._carry_out(lambda: self.reconciler.follow(touched, desired, self.networks), "event", now)

    def _carry_out(self, write: Callable[[], Outcome], why: str, now: float) -> Outcome:
        """Do it and keep the books. A kernel that cannot be read leaves everything as it was."""
        try:
            with self.durations.timed():
                outcome = write()
        except KernelError as error:
            self.blind = error
            log.warning("the kernel could not be read error=%s", error)
            return Outcome()
        if outcome.whole:
            self._looked(outcome, why)
        self._take(outcome, why)
        if outcome.whole:
            self._drop_vanished(now)
        return outcome

    def _looked(self, outcome: Outcome, why: str) -> None:
        self.looks += 1
        if self.tried and why in ("timer", "repair"):
            self._count_repairs(outcome)
        self.tried, self.blind = True, None
        self.failures.clear()

    def _drop_vanished(self, now: float) -> bool:
        """Containers whose veth is gone (their namespace was deleted) are gone too. Answers whether any is."""
        there = self.reconciler.seen.links
        gone = [workload for workload in self.engine.workloads.values() if workload.device not in there]
        for workload in gone:
            log.info("container is gone container=%s device=%s", workload.id, workload.device)
            self.asked += self.engine.handle(Detached(workload.id), now)
        return bool(gone)

    def _take(self, outcome: Outcome, why: str) -> None:
        self.failures.update({failure.change.obj.key: failure for failure in outcome.failures})
        for change in outcome.changes:
            if change.obj.key not in self.failures:
                self.writes[str(kind_of(change.obj.key)), str(change.op)] += 1
        if outcome.changes:
            log.info(
                "kernel written why=%s changes=%d failed=%d first=%s",
                why, len(outcome.changes), len(outcome.failures), describe(outcome.changes[0].obj),
            )  # fmt: skip
        for failure in outcome.failures[:MAX_LINES]:
            log.warning("refused change=%s error=%s", failure.change, failure.error)

    def _count_repairs(self, outcome: Outcome) -> None:
        """What had been right and was not any more; a write that failed before and now succeeded is none."""
        due = self.failures.keys() | {failure.change.obj.key for failure in outcome.failures}
        repaired = [change for change in outcome.changes if change.obj.key not in due]
        for change in repaired:
            self.repaired[str(kind_of(change.obj.key))] += 1
        for change in repaired[:MAX_LINES]:
            log.warning("drift repaired %s %s", word(change), describe(change.obj))

    def problems(self) -> list[OverlayError]:
        """What keeps this host's kernel from being as it should."""
        blind = [self.blind] if self.blind else []
        refused = [self._refusal(key) for key in self.refused]
        failed = (failure.error for failure in self.failures.values())
        shadowed = [self._shadow(key) for key in self.reconciler.shadowed]
        return [*blind, *refused, *shadowed, *failed, *self._mtu_problems()]

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
            self.detach(workload.namespace, workload.name, now)
            raise trouble
        log.info("attached container=%s ip=%s device=%s", workload.id, workload.ips[0], workload.device)
        return workload

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
            raise NotFound(
                f"no container {workload_id} is attached to this host",
                evidence="attached: " + (", ".join(sorted(self.engine.workloads)) or "none"),
                next=["overlaynet get containers"],
            )
        self.kernel.detach(host_device(workload_id))
        self.asked += self.engine.handle(Detached(workload_id), now)
        self.follow(now)
        log.info("detached container=%s stray=%s", workload_id, workload is None)

    def _is_stray(self, workload_id: str) -> bool:
        link = self.kernel.observe().links.get(host_device(workload_id))
        return link is not None and link.tag == veth_tag(workload_id)

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
            device=host_device(workload_id),
            netns=request.netns,
            labels=request.labels,
            ports=request.ports,
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
        used |= self._behind_bridge()
        by_version = {ip.version: ip for ip in asked}
        return tuple(give_address(s, used, by_version.get(s.version)) for s in lease.value.subnets)

    def _behind_bridge(self) -> set[IPAddress]:
        """Addresses that live behind the bridge without our doing: neighbours whose MAC is on a port."""
        seen, bridge = self.reconciler.seen, self.engine.local.bridge
        macs = {entry.mac for entry in seen.fdb if entry.master == bridge}
        return {n.ip for n in seen.neighs if n.dev == bridge and n.mac in macs}

    def _wiring(self, workload: Workload, request: AttachRequest) -> Wiring:
        network, lease = self.engine.view.network, self.engine.lease
        assert network is not None
        assert lease is not None
        pairs = list(zip(workload.ips, lease.value.subnets, strict=True))
        return Wiring(
            host_device=workload.device,
            tag=veth_tag(workload.id),
            container_device=CONTAINER_DEVICE,
            mac=workload.mac,
            addresses=tuple(ip_interface(f"{ip}/{subnet.prefixlen}") for ip, subnet in pairs),
            gateways=tuple(gateway_address(subnet) for _, subnet in pairs),
            mtu=container_mtu(network.backend, self.engine.local),
            netns_fd=request.netns_fd,
            netlink_fd=request.netlink_fd,
        )
