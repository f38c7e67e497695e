"""One host's dataplane, as the loop sees it: what is wanted, what was written, what went wrong.

This is the half of the loop that has no threads and no queue: it takes the engine's touched keys to the
reconciler, wires and unwires containers, and keeps the counters. Everything runs on the loop's thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface

from overlaynet.addr import IPAddress, IPNetwork, container_mac, gateway_address
from overlaynet.core.diff import word
from overlaynet.core.engine import Engine
from overlaynet.core.overlay import container_mtu
from overlaynet.core.workload import (
    CONTAINER_DEVICE,
    give_address,
    host_device,
    used_addresses,
    veth_tag,
)
from overlaynet.errors import ForeignObject, NotFound, NotReady, OverlayError, WorkloadExists
from overlaynet.events import Attached, Detached, Intent
from overlaynet.model import Port, Workload, check_name
from overlaynet.ports import Kernel, Wiring
from overlaynet.reconcile import Outcome, Reconciler
from overlaynet.state import describe, kind_of

log = logging.getLogger("overlaynet.host")


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
    """The dataplane of this host. `failed` is the last outcome's failures; `tried` says one look was made."""

    engine: Engine
    kernel: Kernel
    reconciler: Reconciler = field(init=False)
    outcome: Outcome = field(default_factory=Outcome)
    tried: bool = False
    looks: int = 0
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)

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

    # --- reconciling ------------------------------------------------------------------------------

    def look(self, why: str) -> Outcome:
        """Read the whole kernel and mend what differs."""
        if not self.active:
            return Outcome()
        self.engine.take_touched()
        outcome = self.reconciler.look(self.engine.desired.objects, self.networks)
        self.looks += 1
        if self.tried and why != "start":
            self._count_repairs(outcome)
        self.tried = True
        self._take(outcome, why)
        return outcome

    def follow(self) -> Outcome:
        """Write what the last events touched."""
        touched = self.engine.take_touched()
        if not self.active or not touched:
            return Outcome()
        if not self.tried:
            return self.look("start")
        outcome = self.reconciler.follow(touched, self.engine.desired.objects, self.networks)
        if outcome.changes:
            self._take(outcome, "event")
        return outcome

    def vanished(self, now: float) -> list[Intent]:
        """Containers whose veth is gone (their namespace was deleted) are gone too."""
        there = self.reconciler.seen.links
        intents: list[Intent] = []
        for workload in list(self.engine.workloads.values()):
            if workload.device not in there:
                log.info("container is gone container=%s device=%s", workload.id, workload.device)
                intents += self.engine.handle(Detached(workload.id), now)
        return intents

    def _take(self, outcome: Outcome, why: str) -> None:
        self.outcome = outcome
        failed = {failure.change for failure in outcome.failures}
        for change in outcome.changes:
            if change not in failed:
                self.writes[str(kind_of(change.obj.key)), str(change.op)] += 1
        if outcome.changes:
            log.info(
                "kernel written why=%s changes=%d failed=%d first=%s",
                why, len(outcome.changes), len(outcome.failures), describe(outcome.changes[0].obj),
            )  # fmt: skip
        for failure in outcome.failures[:3]:
            log.warning("refused change=%s error=%s", failure.change, failure.error)

    def _count_repairs(self, outcome: Outcome) -> None:
        for change in outcome.changes:
            self.repaired[str(kind_of(change.obj.key))] += 1
            log.warning("drift repaired %s %s", word(change), describe(change.obj))

    def problems(self) -> list[OverlayError]:
        refused = [
            ForeignObject(reason, evidence=f"link {key[1]}", next=[f"ip -d link show dev {key[1]}"])
            for key, reason in self.outcome.refused.items()
        ]
        return [*refused, *(failure.error for failure in self.outcome.failures)]

    # --- containers -------------------------------------------------------------------------------

    def attach(self, request: AttachRequest, now: float) -> tuple[Workload, list[Intent]]:
        """Wire a container: address, veth, bridge. All or nothing. Raises WorkloadError or KernelError."""
        workload = self._plan_workload(request)
        self.kernel.attach(self._wiring(workload, request))
        intents = self.engine.handle(Attached(workload), now)
        outcome = self.follow()
        mine = [f for f in outcome.failures if workload.device in str(f.change)]
        if mine:
            self.detach(workload.namespace, workload.name, now)
            raise mine[0].error
        log.info("attached container=%s ip=%s device=%s", workload.id, workload.ips[0], workload.device)
        return workload, intents

    def detach(self, namespace: str, name: str, now: float) -> tuple[Workload, list[Intent]]:
        """Unwire a container. Raises NotFound or KernelError."""
        workload = self.engine.workloads.get(f"{namespace}/{name}")
        if workload is None:
            raise NotFound(
                f"no container {namespace}/{name} is attached to this host",
                evidence="attached: " + (", ".join(sorted(self.engine.workloads)) or "none"),
                next=["overlaynet get containers"],
            )
        self.kernel.detach(workload.device)
        intents = self.engine.handle(Detached(workload.id), now)
        self.follow()
        log.info("detached container=%s", workload.id)
        return workload, intents

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
        if lease is None or not self.tried:
            raise NotReady(
                "this host has no subnet yet, so it has no address to give",
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
