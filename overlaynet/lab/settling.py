"""Waiting until the hosts of a lab are as they should be, and wiring their containers on the way.

Hosts are looked after side by side, each by its agent's own word: its containers are wired as soon as it has a
subnet, and it is settled when it is ready, has nothing pending and knows everyone. What is different between
labs of namespaces and labs on machines is how a container is wired and a helper started: a `Crew` does it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from overlaynet.client import TIMEOUT_S
from overlaynet.errors import AgentUnreachable, OverlayError
from overlaynet.lab.converge import not_ready, plan_containers, problems, unsettled
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.topology import Container, Host, Topology

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""

_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.25
_WORKERS = 16


@dataclass(frozen=True, slots=True)
class UpResult:
    """What `up` did. `waiting` says, if not converged, what each unsettled host still lacks; `healed` are the
    faults that were healed first, which count as changes too."""

    lab: str
    changes: int
    hosts: tuple[str, ...]
    ready_s: float
    converged: bool
    waiting: tuple[str, ...] = ()
    healed: tuple[Fault, ...] = ()


def silent(step: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


class Crew(Protocol):
    """Who does on hosts what settling them takes."""

    @property
    def alone(self) -> bool:
        """Whether the lab's hosts and containers are all that their agents should know of."""

    def status(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        """What a host's agent says of itself. Raises AgentUnreachable."""

    def is_ours(self, container: Mapping[str, Any]) -> bool:
        """Whether a container that an agent tells of is this lab's."""

    def start_helpers(self, containers: Sequence[Container]) -> None:
        """Have those at work who run these containers' probe commands, before anybody asks them to."""

    def wire(self, container: Container) -> None:
        """Attach it. Raises OverlayErrors."""

    def unwire(self, host: str, namespace: str, name: str) -> None:
        """Detach it; harmless if it is not attached."""

    def check_alive(self, host: Host, error: AgentUnreachable) -> None:
        """Raise LabFailed if waiting for this host's agent is in vain."""


@dataclass(slots=True)
class Settled:
    """One host: how many containers were wired or unwired, which were wired, and why it is not settled, if it
    is not."""

    changes: int = 0
    waiting: str | None = None
    wired: frozenset[str] = frozenset()


@dataclass(slots=True)
class Settling:
    """One `up`'s waiting. `deadline` by the monotonic clock."""

    topology: Topology
    crew: Crew
    deadline: float
    progress: Progress
    stopping: threading.Event = field(default_factory=threading.Event)

    def settle(self, remade: Collection[str], helpless: Collection[str]) -> list[Settled]:
        """Wire containers and wait, all hosts side by side; the first error stops them all. `remade`:
        containers with a new namespace; `helpless`: those whose helper does not run."""
        total = len(self.topology.hosts)
        self.progress("hosts", 0, total)
        with ThreadPoolExecutor(max_workers=min(_WORKERS, total)) as pool:
            futures = [pool.submit(self._settle, h, remade, helpless) for h in self.topology.hosts]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    self.progress("hosts", done, total)
            except BaseException:
                self.stopping.set()
                raise
        return [future.result() for future in futures]

    def _settle(self, host: Host, remade: Collection[str], helpless: Collection[str]) -> Settled:
        settled = Settled(waiting=f"{host.name} did not answer in time")
        others = frozenset(h.name for h in self.topology.hosts if h != host)
        wired = False
        for status in self._statuses(host):
            if isinstance(status, str):
                settled.waiting = status
                continue
            if not wired:
                wired = self._wire(host, status, remade, helpless, settled)
            else:
                settled.waiting = unsettled(host.name, others, status, alone=self.crew.alone)
                if settled.waiting is None:
                    break
        return settled

    def _wire(
        self,
        host: Host,
        status: Mapping[str, Any],
        remade: Collection[str],
        helpless: Collection[str],
        settled: Settled,
    ) -> bool:
        """Bring the agent's containers in line; answer whether that could be done already."""
        lease = status["lease"]
        if lease is None or not lease["confirmed"]:
            settled.waiting = f"{host.name} has no subnet yet{problems(status)}"
            return False
        here = self.topology.containers_on(host.name)
        ours = [container for container in status["containers"] if self.crew.is_ours(container)]
        wiring = plan_containers(here, ours, remade)
        for namespace, name in wiring.detach:
            self.crew.unwire(host.name, namespace, name)
        self.crew.start_helpers(
            [c for c in here if c.needs_helper and (c in wiring.attach or c.name in helpless)]
        )
        try:
            for container in wiring.attach:
                self.crew.wire(container)
                settled.wired |= {container.name}
        except OverlayError as error:
            if not error.transient:
                raise
            settled.waiting = f"{host.name}: {error.message}"
            return False
        settled.changes = wiring.changes
        return True

    def await_ready(self, fresh: Collection[str]) -> tuple[str, ...]:
        """Wait until these containers, wired or started just now, are ready; answer what is not, in the end.
        What was not ready before is not what this `up` is about."""
        probed = [c for c in self.topology.containers if c.probe is not None and c.name in fresh]
        waiting = [self._await_ready_on(host, probed) for host in self.topology.hosts]
        return tuple(text for text in waiting if text)

    def _await_ready_on(self, host: Host, probed: Iterable[Container]) -> str | None:
        names = {container.name for container in probed if container.host == host.name}
        text: str | None = (
            f"{host.name} did not say in time whether its containers are ready" if names else None
        )
        for status in self._statuses(host) if names else ():
            text = status if isinstance(status, str) else not_ready(names, status)
            if text is None:
                break
        return text

    def _statuses(self, host: Host) -> Iterable[Mapping[str, Any] | str]:
        """The agent's status again and again, or why there is none, until the time is over."""
        pause_s = _FIRST_POLL_S
        while (rest_s := self.deadline - time.monotonic()) > 0 and not self.stopping.is_set():
            try:
                yield self.crew.status(host.name, min(TIMEOUT_S, rest_s))
            except AgentUnreachable as error:
                self.crew.check_alive(host, error)
                yield f"{host.name}: {error.message}"
            self.stopping.wait(pause_s)
            pause_s = min(pause_s * 1.3, _LAST_POLL_S)
