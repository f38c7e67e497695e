"""Bringing a lab up on machines that run the agent already, and taking it back.

As with namespaces (`lifecycle`), `up` looks, plans, and does only what the plan says; the second time there is
nothing to do. What is made on a machine is made by its probe, which knows its own by a record there, so that a
machine that was restarted, or a command that was killed half-way, is nothing special: the next `up` sees what
is there.

    refused        whatever cannot be built on these machines, before any is touched
    etcd           network config and settings where there are none, services: it may refuse us
    taken away     containers that went or moved: unwired by their agent, then removed with all that is in them
    made           namespaces
    settled        containers wired, every agent ready, nothing pending, everyone knows everyone
    commands       once the network is there; what has a probe is waited for

`down` takes back just that. Agents, their leases and the network config stay, for they are the machines' own. A
machine that cannot be reached keeps what it has, and the lab stays recorded until that is gone as well.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from overlaynet.client import Agent
from overlaynet.config import AgentConfig
from overlaynet.core.keys import Keys
from overlaynet.errors import AgentUnreachable, OverlayError
from overlaynet.kernel.netns import of_lab
from overlaynet.lab import attach, cluster_store
from overlaynet.lab.converge import COMMAND, HELPER, Kind, Plan, command_of, helper_of
from overlaynet.lab.machineplan import (
    Machine,
    check_containers,
    check_machines,
    plans,
    refuse_anothers,
    wanted,
)
from overlaynet.lab.paths import LabPaths
from overlaynet.lab.settling import Progress, Settling, UpResult, silent
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import LabState, boot_id, save
from overlaynet.lab.topology import Container, Host, LabNetwork, Topology
from overlaynet.model import Workload
from overlaynet.ports import Listing, Store
from overlaynet.store import codec

T = TypeVar("T")

JOB_S = 30.0
"""For one job of a probe: processes that must end may take `STOP_GRACE_S` there."""
AGENT_S = 10.0
_WORKERS = 16


class Reached(Protocol):
    """Machines, and the etcd of their cluster, as they are asked; each call raises OverlayErrors."""

    def config(self, host: str) -> AgentConfig:
        """The settings of that host's agent."""

    def keys(self) -> Keys:
        """Where everything is in etcd."""

    def store(self) -> Store:
        """etcd, to be closed by the caller."""


@dataclass(frozen=True, slots=True)
class DownResult:
    """What `down` took away: so many namespaces and processes. `left`: what is still there, and why; `rest`:
    the lab as it is then."""

    removed: int
    left: tuple[str, ...]
    rest: LabState


def operator() -> str:
    """Who we are to others who use the same machines: ``USER@HOST``."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"


def each(hosts: Iterable[str], do: Callable[[str], T]) -> dict[str, T]:
    """Do something on every machine at once. Raises the first error, in the order of hosts."""
    names = list(hosts)
    with ThreadPoolExecutor(max_workers=max(1, min(_WORKERS, len(names)))) as pool:
        return dict(zip(names, pool.map(do, names), strict=True))


@dataclass(slots=True)
class Raising:
    """One `up`, for one who holds the lab's lock, and the crew that settles its hosts. `any_network`: whatever
    network the machines have is meant; `deadline` by the monotonic clock."""

    topology: Topology
    driver: SshDriver
    reached: Reached
    paths: LabPaths
    old: LabState | None
    deadline: float
    any_network: bool = False
    progress: Progress = silent
    machines: dict[str, Machine] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    touched: bool = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those of the topology, and those where something of the lab is from before."""
        mine = [host.name for host in self.topology.hosts]
        return tuple(dict.fromkeys([*mine, *(self.old.machines if self.old else ())]))

    def run(self) -> UpResult:
        """Raises OverlayErrors; a lab that only takes too long is no error. `touched` says whether anything may
        have been changed by then."""
        started = time.monotonic()
        self.progress("machines", 0, len(self.hosts))
        self.machines = each(self.hosts, self._survey)
        self.progress("machines", len(self.hosts), len(self.hosts))
        check_machines(self.topology, list(self.machines.values()), operator())
        store = self.reached.store()
        try:
            result = self._build(store, self.reached.keys())
        finally:
            store.close()
        return replace(result, ready_s=round(time.monotonic() - started, 3))

    def _survey(self, host: str) -> Machine:
        here = self.topology.containers_on(host)
        programs = sorted({container.command[0] for container in here if container.command})
        found = self._job(host, "containers", names=[container.name for container in here], programs=programs)
        status: Mapping[str, Any] | OverlayError
        try:
            status = self.status(host, AGENT_S)
        except AgentUnreachable as error:
            status = error
        if host in {one.name for one in self.topology.hosts}:
            version = str(self.driver.desk(host).facts()["version"])
            return Machine(host, version, self.reached.config(host), status, found)
        return Machine(host, "", AgentConfig(), status, found)

    def _build(self, store: Store, keys: Keys) -> UpResult:
        listing = store.read(keys.watched)
        if self.any_network:
            self.topology = with_network_of(self.topology, listing, keys)
        joining = cluster_store.joining(listing, keys, self.topology)
        check_containers(self.topology, workloads(listing, keys))
        steps = plans(self.topology, self.machines.values())
        known = [name for machine in self.machines.values() for name in machine.recorded]
        previous = self.old.topology if self.old else None
        if self.old or not known:  # else the lab is ours by the machines' word, and its record here was lost
            cluster_store.check_services(listing, keys, self.topology, previous)
        mine = [*known, *(container.name for container in self.topology.containers)]
        self.ours = frozenset(of_lab(self.topology.name, name) for name in mine)

        self.touched = True
        self._save(self.hosts)
        changes = sum(plan.changes for plan in steps.values())
        self.progress("etcd", 0, 1)
        changes += sum(store.commit([compare], [put]).ok for compare, put in joining)
        changes += cluster_store.serve(store, keys, self.topology, previous)
        self.progress("etcd", 1, 1)
        self._remove(steps)
        self._make(steps)
        return self._settle(steps, changes)

    def _settle(self, steps: Mapping[str, Plan], changes: int) -> UpResult:
        settling = Settling(self.topology, self, self.deadline, self.progress)
        remade = {name for plan in steps.values() for name in plan.makes(Kind.NETNS)}
        helpless = {name for plan in steps.values() for name in plan.makes_processes(HELPER)}
        settled = settling.settle(remade, helpless)
        commands = {name for plan in steps.values() for name in plan.makes_processes(COMMAND)}
        each(steps, lambda host: self._start_commands(host, commands))
        fresh = {*commands, *(name for one in settled for name in one.wired)}
        waiting = tuple(s.waiting for s in settled if s.waiting) or settling.await_ready(fresh)
        hosts = tuple(host.name for host in self.topology.hosts)
        self._save(hosts)
        return UpResult(
            lab=self.topology.name,
            changes=changes + sum(one.changes for one in settled),
            hosts=hosts,
            ready_s=0.0,
            converged=not waiting,
            waiting=waiting,
        )

    def _save(self, machines: tuple[str, ...]) -> None:
        save(self.paths, LabState(self.topology, boot_id(), driver=self.driver.name, machines=machines))

    # --- parts --------------------------------------------------------------------------------

    def _remove(self, steps: Mapping[str, Plan]) -> None:
        def remove(host: str) -> None:
            containers, processes = steps[host].removes(Kind.NETNS), steps[host].removes(Kind.PROCESS)
            gone = frozenset(of_lab(self.topology.name, name) for name in containers)
            status = self.machines[host].status
            if not isinstance(status, OverlayError):  # one that does not run lets go of them when it starts
                unwire(self.driver.agent(host, AGENT_S), status, gone)
            self._job(host, "containers-remove", names=list(containers))
            self._job(host, "containers-end", processes=list(processes))

        each([host for host, plan in steps.items() if plan.remove], remove)

    def _make(self, steps: Mapping[str, Plan]) -> None:
        making = {host: list(plan.makes(Kind.NETNS)) for host, plan in steps.items()}
        self.progress("containers", 0, sum(map(len, making.values())))
        each(
            [host for host, names in making.items() if names],
            lambda host: self._job(host, "containers-make", owner=operator(), names=making[host]),
        )

    def _start_commands(self, host: str, among: Iterable[str]) -> None:
        names = set(among)
        self._start(host, COMMAND, [c for c in self.topology.containers_on(host) if c.name in names])

    def _start(self, host: str, role: str, containers: Sequence[Container]) -> None:
        specs = {key.name: spec for key, spec in wanted(self.topology, host).items()}
        name_of = command_of if role == COMMAND else helper_of
        items = [
            {
                "role": role,
                "container": c.name,
                "spec": specs[name_of(c.name)],
                "argv": list(c.command),
                "socket": str(self._probe_socket(c)),
            }
            for c in containers
        ]
        if items:
            self._job(host, "containers-start", processes=items)

    def _probe_socket(self, container: Container) -> Path:
        run = self.machines[container.host].config.paths.run
        return run / f"probe-{container.namespace}.{container.name}.sock"

    def _job(self, host: str, operation: str, **members: Any) -> dict[str, Any]:
        return self.driver.probe(host, {"op": operation, "lab": self.topology.name, **members}, JOB_S)

    # --- the crew that settles hosts ----------------------------------------------------------

    @property
    def alone(self) -> bool:
        return False

    def status(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        return self.driver.agent(host, timeout_s).get("/v1/status")

    def is_ours(self, container: Mapping[str, Any]) -> bool:
        return container["netns"] in self.ours

    def start_helpers(self, containers: Sequence[Container]) -> None:
        for container in containers:
            self._start(container.host, HELPER, [container])

    def wire(self, container: Container) -> None:
        helper = self._probe_socket(container) if container.needs_helper else None
        body = attach.body(container, of_lab(self.topology.name, container.name), helper=helper)
        self._job(container.host, "containers-attach", container=container.name, body=body)

    def unwire(self, host: str, namespace: str, name: str) -> None:
        attach.detach(self.driver.agent(host, AGENT_S), namespace, name)

    def check_alive(self, host: Host, error: AgentUnreachable) -> None:
        """Its service manager starts it again; who waits in vain is told so in the end."""


def unwire(agent: Agent, status: Mapping[str, Any], namespaces: frozenset[str]) -> None:
    """Have an agent let go of the containers in these namespaces."""
    for item in status["containers"]:
        if item["netns"] in namespaces:
            attach.detach(agent, item["namespace"], item["name"])


# --- etcd -----------------------------------------------------------------------------------------


def with_network_of(topology: Topology, listing: Listing, keys: Keys) -> Topology:
    """The topology with the network that is there, if there is one."""
    found = next((item for item in listing.items if item.key == keys.network_config), None)
    if found is None:
        return topology
    return replace(topology, network=LabNetwork.of(codec.parse_network_config(found.value)))


def workloads(listing: Listing, keys: Keys) -> list[Workload]:
    """Every container that the cluster knows."""
    found = (codec.decode(item, keys).value for item in listing.items)
    return [value for value in found if isinstance(value, Workload)]


# --- down -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Taking:
    """One `down`, for one who holds the lab's lock: as much as can be reached."""

    state: LabState
    driver: SshDriver
    reached: Reached
    progress: Progress = silent

    def run(self) -> DownResult:
        """Services first, for nobody shall be sent to what is going; then containers, on all machines."""
        services = self._take_services()
        self.progress("machines", 0, len(self.state.machines))
        taken = each(self.state.machines, self._take)
        self.progress("machines", len(self.state.machines), len(self.state.machines))
        left = {host: error for host, error in taken.items() if isinstance(error, OverlayError)}
        told = [] if services is None else [f"services in etcd: {services.message}"]
        told += [f"{host}: {self._containers(host)}: {error.message}" for host, error in left.items()]
        topology = self.state.topology
        rest = replace(
            topology,
            containers=tuple(c for c in topology.containers if c.host in left),
            services=topology.services if services is not None else (),
        )
        removed = sum(count for count in taken.values() if isinstance(count, int))
        return DownResult(removed, tuple(told), replace(self.state, topology=rest, machines=tuple(left)))

    def _containers(self, host: str) -> str:
        names = [container.name for container in self.state.topology.containers_on(host)]
        return ", ".join(names) or "what there may be of an earlier topology"

    def _take_services(self) -> OverlayError | None:
        """Delete the topology's own; answer why not."""
        if not self.state.topology.services:
            return None
        try:
            store = self.reached.store()
            try:
                cluster_store.serve(
                    store, self.reached.keys(), replace(self.state.topology, services=()), self.state.topology
                )
            finally:
                store.close()
        except OverlayError as error:
            return error
        return None

    def _take(self, host: str) -> int | OverlayError:
        """How many namespaces and processes there were, or why they are there still."""
        job = {"lab": self.state.topology.name, "names": None}
        try:
            here = self.driver.probe(host, {"op": "containers", **job, "names": []}, JOB_S)
            refuse_anothers(self.state.topology.name, host, here, operator())
            gone = frozenset(of_lab(self.state.topology.name, name) for name in here["containers"])
            with suppress(AgentUnreachable):
                agent = self.driver.agent(host, AGENT_S)
                unwire(agent, agent.get("/v1/status"), gone)
            return int(self.driver.probe(host, {"op": "containers-remove", **job}, JOB_S)["removed"])
        except OverlayError as error:
            return error
