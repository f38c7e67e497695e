"""A lab's namespaces and processes, as faults find and change them.

Unlike an agent, this may do anything anywhere: it is the hand that pulls the cable. It enters a place's
namespace for each look and each write, and starts processes as `up` does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace

from overlaynet import agentservice
from overlaynet.addr import IPAddress
from overlaynet.client import AgentClient
from overlaynet.config import load
from overlaynet.errors import AgentUnreachable, LabFailed
from overlaynet.firewall.iptables import Iptables
from overlaynet.kernel import netns, process, sysctl
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.lab.build import Builder
from overlaynet.lab.converge import ETCD, HELPER, agent_of
from overlaynet.lab.faultground import NamespaceGround
from overlaynet.lab.launch import launches
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.paths import LabPaths
from overlaynet.lab.state import LabState, Running, save
from overlaynet.lab.topology import Topology
from overlaynet.state import Change, KernelState, RuleChange, RuleSet
from overlaynet.store.disk import read_workloads

AGENT_TIMEOUT_S = 10.0
AGENT_START_S = 30.0
POLL_S = 0.05
LOCK_VARIABLE = "XTABLES_LOCKFILE"
FORGET_LEARNED = "net/ipv4/route/flush"
"""Written, it makes all exceptions of routes stale (net/ipv4/route.c, rt_cache_flush)."""


class Local:
    """Places of this machine: entered for each look and each write."""

    def exists(self, place: str) -> bool:
        """Whether it is there to be entered."""
        raise NotImplementedError

    def _inside(self, place: str) -> AbstractContextManager[None]:
        raise NotImplementedError

    def look(self, place: str, sysctls: Sequence[str] = ()) -> KernelState:
        """Everything in its tables. Raises NotFound, KernelError."""
        with self._kernel(place) as kernel:
            return kernel.observe(sysctls)

    def rules(self, place: str) -> RuleSet:
        """Its packet filter. Raises NotFound, FirewallError, ToolMissing."""
        with self._inside(place):
            return Iptables().observe()

    def write(self, place: str, changes: Sequence[Change]) -> None:
        """Carry them out. Raises the first refusal."""
        with self._kernel(place) as kernel:
            for failure in kernel.apply(changes):
                raise failure.error

    def edit(self, place: str, change: RuleChange) -> None:
        """Change the rules of one chain. Raises FirewallError, ToolMissing."""
        with self._inside(place):
            rules = Iptables()
            rules.apply([change], rules.observe())

    def forget_learned(self, places: Iterable[str]) -> None:
        """In each that is there, whatever ICMP errors and redirects taught its routes. Raises KernelError."""
        for place in filter(self.exists, places):
            with self._inside(place):
                sysctl.write(FORGET_LEARNED, "1")

    @contextmanager
    def _kernel(self, place: str) -> Iterator[KernelAdapter]:
        with self._inside(place), closing(KernelAdapter.open()) as kernel:
            yield kernel

    def await_(self, check: Callable[[], bool], within_s: float) -> bool:
        """Whether this comes true in time."""
        deadline = time.monotonic() + within_s
        while not (found := check()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found


class Site(Local, NamespaceGround):
    """One lab, by its paths and its state on disk."""

    def __init__(self, paths: LabPaths, state: LabState) -> None:
        self.paths = paths
        self.state = state
        self._builder = Builder(self.topology.name, paths)

    @property
    def topology(self) -> Topology:
        return self.state.topology

    @property
    def _hosts(self) -> list[str]:
        return [host.name for host in self.topology.hosts]

    # --- looking ------------------------------------------------------------------------------

    def exists(self, place: str) -> bool:
        """Whether it has a namespace."""
        return netns.exists(namespace(self.topology.name, place))

    def ips(self, container: str) -> Sequence[IPAddress]:
        """A container's addresses, by what its agent left on disk."""
        host = next((c.host for c in self.topology.containers if c.name == container), None)
        wired = read_workloads(self.paths.host(host).workloads, host) if host else None
        return next((w.ips for w in wired or () if w.name == container), ())

    def agent(self, host: str) -> AgentClient:
        """The host's agent, answering or not."""
        return AgentClient(self.paths.host(host).socket, AGENT_TIMEOUT_S)

    # --- changing -----------------------------------------------------------------------------

    @contextmanager
    def _inside(self, place: str) -> Iterator[None]:
        """In its namespace, and with the lock of the rules that the host's agent uses."""
        before = os.environ.get(LOCK_VARIABLE)
        if place in self._hosts:
            os.environ[LOCK_VARIABLE] = str(self.paths.host(place).xtables_lock)
        try:
            with netns.entered(namespace(self.topology.name, place)):
                yield
        finally:
            os.environ.pop(LOCK_VARIABLE, None)
            if before is not None:
                os.environ[LOCK_VARIABLE] = before

    # --- processes ----------------------------------------------------------------------------

    def kill(self, places: Iterable[str]) -> None:
        """Every process in these places, at once."""
        names = [namespace(self.topology.name, place) for place in places]
        process.kill(process.inside(netns.path(name) for name in names))

    def end(self, names: Iterable[str]) -> None:
        """Processes of the lab, by their names, at once."""
        process.kill(self.state.processes[name].process for name in names if name in self.state.processes)

    def start(self, names: Sequence[str]) -> None:
        """Those that do not run and that the topology has, in this order; return when they are at work. Each is
        recorded at once. Raises LabFailed, ToolMissing."""
        known = launches(self.topology, self.paths, os.uname().machine)
        for name in names:
            running = self.state.processes.get(name)
            if name in known and not (running and running.process.alive):
                self._make_room(name)
                running = self._builder.start(known[name])
                self._record(name, running)
            if running and name == ETCD:
                self._builder.await_etcd(running)
        for host in self._hosts:
            if agent_of(host) in names:
                self._await_agent(host)

    def _make_room(self, name: str) -> None:
        role, _, place = name.rpartition("/")
        host = next((c.host for c in self.topology.containers if c.name == place), None)
        if role == HELPER and host is not None:
            self.paths.host(host).probe_socket(place).unlink(missing_ok=True)

    def _record(self, name: str, running: Running) -> None:
        self.state = replace(self.state, processes={**self.state.processes, name: running})
        save(self.paths, self.state)

    def _await_agent(self, host: str) -> None:
        """Until it has tried to put everything right. Raises LabFailed if it ends or takes too long."""
        if not self.await_(lambda: self._is_at_work(host), AGENT_START_S):
            raise LabFailed(
                f"the agent of {host} was started and is not ready",
                evidence=process.last_lines(self.paths.host(host).log),
                next=[f"overlaynet logs {host}", "overlaynet up"],
            )

    def _is_at_work(self, host: str) -> bool:
        try:
            status = self.agent(host).get("/v1/status")
        except AgentUnreachable:
            return False
        return status["agent"]["state"] != "starting" and not status["pending"]


class Here(Local):
    """One machine of a lab on machines, from inside: `namespaces` of the containers on it, by their names."""

    def __init__(self, host: str, namespaces: Mapping[str, str]) -> None:
        self._host = host
        self._namespaces = namespaces

    @property
    def senders(self) -> Sequence[str]:
        return [self._host, *self._namespaces]

    def exists(self, place: str) -> bool:
        return place == self._host or netns.exists(self._namespaces.get(place, ""))

    def _inside(self, place: str) -> AbstractContextManager[None]:
        return nullcontext() if place == self._host else netns.entered(self._namespaces[place])

    def agent(self, host: str) -> AgentClient:
        """The one of this machine."""
        return AgentClient(load(None, {}).paths.socket)

    def start(self, names: Sequence[str]) -> None:
        """Its agent, if it is among them."""
        if agent_of(self._host) in names:
            agentservice.start()
