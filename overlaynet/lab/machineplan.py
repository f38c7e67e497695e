"""What a lab on machines takes: refused where it cannot be, and otherwise the same comparison of want and have
as in a lab of namespaces. Pure.

A machine runs its agent already, and the lab changes neither the machine nor the agent: it adds containers. So
everything that would have to be changed before the lab could be as its topology says is a refusal, found by
looking at all machines before any is touched. Containers and processes are the parts, machine by machine; one
that moves is taken away on one machine before it is made on another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlaynet import __version__
from overlaynet.config import AgentConfig
from overlaynet.errors import (
    AgentUnreachable,
    Conflict,
    LabFailed,
    OverlayError,
    ToolMissing,
    TopologyError,
    WorkloadExists,
)
from overlaynet.kernel.netns import of_lab
from overlaynet.lab.converge import Key, Kind, Plan, Spec, command_of, helper_of, plan
from overlaynet.lab.launch import Launch
from overlaynet.lab.topology import Host, Topology
from overlaynet.model import Workload

UNIT = "overlaynet-agent"


@dataclass(frozen=True, slots=True)
class Machine:
    """What one machine told. `status`: its agent's, or the error of asking it; `here`: what the lab has there
    (`probe.containers.look`)."""

    host: str
    version: str
    config: AgentConfig
    status: Mapping[str, Any] | OverlayError
    here: Mapping[str, Any]

    @property
    def parts(self) -> dict[Key, Spec]:
        """What the lab has there."""
        found: dict[Key, Spec] = {Key(Kind.NETNS, name): self.host for name in self.here["containers"]}
        return found | {Key(Kind.PROCESS, n): item["spec"] for n, item in self.here["processes"].items()}

    @property
    def recorded(self) -> frozenset[str]:
        """The containers that the machine knows to be the lab's, there or lost."""
        return frozenset((*self.here["containers"], *self.here["lost"]))


def wanted(topology: Topology, host: str) -> dict[Key, Spec]:
    """The parts of a lab on one machine."""
    here = topology.containers_on(host)
    parts: dict[Key, Spec] = {Key(Kind.NETNS, c.name): host for c in here}
    parts |= {Key(Kind.PROCESS, command_of(c.name)): _spec(*c.command) for c in here if c.command}
    return parts | {Key(Kind.PROCESS, helper_of(c.name)): _spec("helper") for c in here if c.needs_helper}


def _spec(*argv: str) -> str:
    return Launch("", argv, Path(os.devnull)).spec


def plans(topology: Topology, machines: Iterable[Machine]) -> dict[str, Plan]:
    """The steps on each machine; one that has no host in the topology any more loses all it has."""
    return {machine.host: plan(wanted(topology, machine.host), machine.parts) for machine in machines}


# --- refusals -------------------------------------------------------------------------------------


def check_inventory(topology: Topology, inventory: Sequence[str], file: str) -> None:
    """Raise TopologyError for what no machine can be: known before any is asked."""
    if strangers := [host.name for host in topology.hosts if host.name not in inventory]:
        raise TopologyError(
            f"the topology has hosts that the inventory does not: {', '.join(strangers)}",
            evidence=f"{file} has: {', '.join(inventory)}",
            next=[f"add a `Host` block for each to {file}, or name the topology's hosts as there"],
        )
    if told := [host.name for host in topology.hosts if host.agent]:
        raise TopologyError(
            f"a machine's agent has its own settings; the topology may not set them: {', '.join(told)}",
            evidence="hosts[].agent",
            next=["set them in /etc/overlaynet/agent.toml there", f"systemctl reload {UNIT}"],
        )


def check_machines(topology: Topology, machines: Sequence[Machine], me: str) -> None:
    """Raise what keeps the lab from being built on these machines. `me`: who builds it."""
    for machine in machines:
        refuse_anothers(topology.name, machine.host, machine.here, me)
    hosts = {host.name: host for host in topology.hosts}
    for machine in machines:
        for problem in _problems(hosts.get(machine.host), machine):
            raise problem
    _refuse_clones(machines)
    for problem in _taken_names(topology, machines):
        raise problem


def refuse_anothers(lab: str, host: str, here: Mapping[str, Any], me: str) -> None:
    """A lab of the same name that somebody else has built would be changed under his hands. `here`: what the
    host has of it. Raises LabFailed."""
    owner = here["owner"]
    if owner not in (None, me):
        raise LabFailed(
            f"{host} has a lab {lab!r} of {owner}",
            evidence=f"its containers there: {', '.join(sorted([*here['containers'], *here['lost']]))}",
            next=[
                "overlaynet up -l ANOTHER_NAME",
                f"if nobody has it any more, on {host}: rm -r /run/overlaynet/containers/{lab};"
                f" ip netns delete {of_lab(lab, 'NAME')} for each",
            ],
        )


def _problems(host: Host | None, machine: Machine) -> Iterator[OverlayError]:
    if host is None:
        return  # it loses what it has, and whoever wired it is asked to unwire it
    status = machine.status
    if isinstance(status, OverlayError):
        yield AgentUnreachable(
            f"the agent of {machine.host} does not answer",
            evidence=f"{status.message}: {status.evidence}",
            next=[f"on {machine.host}: systemctl status {UNIT}", f"on {machine.host}: systemctl start {UNIT}"],
        )
        return
    if status["node"]["name"] != machine.host:
        yield TopologyError(
            f"the machine {machine.host} of the inventory is the node {status['node']['name']}",
            evidence="a host is named as its agent is ([node] name in agent.toml, else the host name)",
            next=[f"in the inventory: Host {status['node']['name']}"],
        )
    yield from _versions(machine, str(status["agent"]["version"]))
    yield from _settings(host, machine)
    for item in machine.here["missing"]:
        yield ToolMissing(
            f"{machine.host} has no program {item['program']!r}, which a container there is to run",
            evidence=item["evidence"],
            next=["install it there, or correct the container's `command` in the topology"],
        )


def _versions(machine: Machine, agent: str) -> Iterator[OverlayError]:
    """Whoever builds a lab talks to agents and probes of its own version: their documents may differ."""
    if {machine.version, agent} != {__version__}:
        yield LabFailed(
            f"{machine.host} has another version of overlaynet",
            evidence=f"installed {machine.version}, its agent {agent}, this command {__version__}",
            next=[f"agent/wheels OUT, copy OUT to {machine.host}, and there: sudo OUT/install"],
        )


def _settings(host: Host, machine: Machine) -> Iterator[OverlayError]:
    node = machine.config.node
    there = {"zone": node.zone, "labels": dict(node.labels)}
    asked = {"zone": host.zone, "labels": dict(host.labels)}
    different = [key for key, value in asked.items() if value and there[key] != value]
    if different:
        yield TopologyError(
            f"{machine.host} has another {' and other '.join(different)} than the topology says",
            evidence=", ".join(f"{key}: {there[key]!r}, wanted {asked[key]!r}" for key in different),
            next=["set them under [node] in /etc/overlaynet/agent.toml there", f"systemctl reload {UNIT}"],
        )


def _refuse_clones(machines: Sequence[Machine]) -> None:
    """Two machines with one identity would take each other's subnet: one was copied, or is named twice."""
    seen: dict[str, str] = {}
    for machine in machines:
        ident = None if isinstance(machine.status, OverlayError) else machine.status["node"]["node_id"]
        if ident in seen:
            raise Conflict(
                f"{seen[ident]} and {machine.host} are the same node, or one is a copy of the other",
                evidence=f"both have node id {ident}",
                next=[
                    "name each machine once in the inventory",
                    f"on the copy: systemctl stop {UNIT}; rm /var/lib/overlaynet/identity.json;"
                    f" systemctl start {UNIT}",
                ],
            )
        if ident is not None:
            seen[ident] = machine.host


def _taken_names(topology: Topology, machines: Sequence[Machine]) -> Iterator[OverlayError]:
    for machine in machines:
        for name in machine.here["strangers"]:
            namespace = of_lab(topology.name, name)
            yield LabFailed(
                f"{machine.host} has a network namespace {namespace} that this lab did not make",
                next=[
                    f"on {machine.host}: ip netns delete {namespace}",
                    "overlaynet up -l ANOTHER_NAME",
                ],
            )


def check_containers(topology: Topology, workloads: Iterable[Workload]) -> None:
    """Raise WorkloadExists for a name that another container of the cluster has: services and traces know them
    by their names."""
    names = {(c.namespace, c.name) for c in topology.containers}
    for one in workloads:
        if (one.namespace, one.name) in names and one.netns != of_lab(topology.name, one.name):
            raise WorkloadExists(
                f"{one.node} has a container {one.id} that is not this lab's",
                evidence=f"its network namespace: {one.netns or 'unknown'}",
                next=["give the topology's container another name or namespace", "overlaynet get labs"],
            )
