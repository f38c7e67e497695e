"""A lab, as commands and tests use it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from overlaynet.client import Agent
from overlaynet.errors import LabChoice, LabFailed, OverlayError
from overlaynet.lab import faultrecords, lifecycle
from overlaynet.lab.converge import ETCD, places
from overlaynet.lab.driver import Driver
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.launch import agent_argv, agent_environ
from overlaynet.lab.netns_driver import NetnsDriver
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.settling import Progress, UpResult, silent
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import LabState, load, running_labs
from overlaynet.lab.topology import Container, Host, Topology
from overlaynet.ports import Store

UP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host. `agent` is its status document, or None and then `error` says why."""

    host: Host
    subnet: str
    netns: str | None
    agent: Mapping[str, Any] | None
    error: OverlayError | None

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``degraded``, or ``down`` if no agent answers."""
        return str(self.agent["agent"]["state"]) if self.agent else "down"


@dataclass(frozen=True, slots=True)
class LabStatus:
    """`rebooted`: the machine was restarted since the lab was up, so nothing of it runs; `up` rebuilds it."""

    name: str
    driver: str
    rebooted: bool
    etcd_pid: int | None
    hosts: tuple[HostStatus, ...]


class Lab:
    """A lab that is up, or was. It holds names only: what is true is looked up when it is asked for."""

    def __init__(self, name: str, paths: Paths, state: LabState) -> None:
        self.name = name
        self.root = paths
        self.paths: LabPaths = paths.lab(name)
        self.state = state

    @classmethod
    def open(cls, name: str, paths: Paths | None = None) -> Lab:
        """A lab by name. Raises LabChoice if there is none, LabFailed if its state cannot be read."""
        paths = paths or Paths.here()
        state = load(paths.lab(name))
        if state is None:
            known = ", ".join(running_labs(paths)) or "none"
            raise LabChoice(f"no lab {name!r} is running", evidence=f"running: {known}", next=["overlaynet up"])
        return cls(name, paths.home_of(name), state)

    @classmethod
    def up(
        cls,
        topology: Topology,
        *,
        timeout_s: float = UP_TIMEOUT_S,
        progress: Progress = silent,
        paths: Paths | None = None,
    ) -> UpResult:
        """Make the lab as the topology says, or find that it is. Raises OverlayErrors."""
        return lifecycle.up(topology, paths or Paths.here(), timeout_s=timeout_s, progress=progress)

    @classmethod
    @contextmanager
    def running(
        cls, topology: Topology, *, timeout_s: float = UP_TIMEOUT_S, paths: Paths | None = None
    ) -> Iterator[Lab]:
        """The lab, up and converged, for the length of the block. Raises LabChoice if it is up already."""
        paths = paths or Paths.here()
        if topology.name in running_labs(paths):
            raise LabChoice(f"lab {topology.name!r} is running already")
        result = cls.up(topology, timeout_s=timeout_s, paths=paths)
        lab = cls.open(topology.name, paths)
        try:
            if not result.converged:
                raise LabFailed("the lab did not converge", evidence="; ".join(result.waiting))
            yield lab
        finally:
            lab.down()

    def down(self, *, keep_logs: bool = False) -> int:
        """Take it away; answer how many namespaces and processes there were."""
        return lifecycle.down(self.name, self.root, keep_logs=keep_logs)

    @property
    def topology(self) -> Topology:
        return self.state.topology

    @property
    def hosts(self) -> tuple[Host, ...]:
        return self.topology.hosts

    @property
    def containers(self) -> tuple[Container, ...]:
        return self.topology.containers

    @property
    def places(self) -> tuple[str, ...]:
        """Every name that a command can be run in: hosts, containers, etcd, underlay and outside."""
        return tuple(places(self.topology))

    @cached_property
    def driver(self) -> Driver:
        if self.state.driver == NetnsDriver.name:
            return NetnsDriver(self.name, self.paths)
        homes = {container.name: container.host for container in self.containers}
        return SshDriver(self.name, self.paths.inventory, homes, name=self.state.driver)

    def agent(self, host: str) -> Agent:
        return self.driver.agent(host)

    def agent_argv(self, host: str, *words: str) -> list[str]:
        """The command line of `overlaynet-agent WORDS…` on a host, with the rights of that host's agent."""
        argv = agent_argv(self.paths.host(host), *words)
        return self.driver.argv_in(host, argv)

    def environ_of(self, place: str) -> dict[str, str]:
        """What a command there needs in its environment besides ours."""
        return agent_environ(self.paths.host(place)) if place in {h.name for h in self.hosts} else {}

    @property
    def endpoint(self) -> str:
        """etcd's endpoint for those who are not on the underlay."""
        return f"unix://{self.paths.etcd_socket}"

    def store(self) -> Store:
        """The lab's etcd, the caller's to close."""
        from overlaynet.store.etcd import EtcdStore  # here: it costs 0.2 s

        return EtcdStore([self.endpoint])

    def faults(self) -> tuple[Fault, ...]:
        """What is broken in it on purpose, oldest first. Raises LabFailed."""
        return faultrecords.present(self.paths, time.time(), on_machines=self.state.on_machines)

    def pid(self, name: str) -> int | None:
        """The process of that name (etcd, agent/HOST, command/CONTAINER), None if it does not run."""
        running = self.state.processes.get(name)
        alive = running is not None and not self.state.ended and running.process.alive
        return running.process.pid if running and alive else None

    def status(self) -> LabStatus:
        """Every host with what its agent says. Never fails because one of them does."""
        return LabStatus(
            name=self.name,
            driver=self.state.driver,
            rebooted=self.state.rebooted,
            etcd_pid=self.pid(ETCD),
            hosts=tuple(self._status(host) for host in self.hosts),
        )

    def _status(self, host: Host) -> HostStatus:
        document: Mapping[str, Any] | None = None
        error: OverlayError | None = None
        try:
            document = self.agent(host.name).get("/v1/status")
        except OverlayError as refusal:
            error = refusal
        return HostStatus(host, str(self.topology.subnet(host)), self.driver.netns(host.name), document, error)
