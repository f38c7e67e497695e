"""The machines of labs, for `overlaynet doctor`: do they answer, with which version, and does their agent?"""

from __future__ import annotations

from collections.abc import Iterator

from overlaynet import __version__
from overlaynet.cli.checks import OK, WARN, Check
from overlaynet.cluster.cluster import AGENT_TIMEOUT_S, each_host
from overlaynet.cluster.contexts import of_lab
from overlaynet.cluster.machines import MachineCluster
from overlaynet.errors import LabFailed, OverlayError
from overlaynet.lab.lab import Lab
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import load, running_labs

UPGRADE = "in the clone: agent/wheels OUT, and OUT/install there"


def checks(paths: Paths, lab: str | None) -> Iterator[Check]:
    """A check for each machine of each lab, or of that lab alone."""
    for name in running_labs(paths):
        if lab in (None, name) and _on_machines(paths, name):
            yield from _of_lab(paths, name)


def _on_machines(paths: Paths, name: str) -> bool:
    try:
        state = load(paths.lab(name))
    except LabFailed:
        return False
    return state is not None and state.on_machines


def _of_lab(paths: Paths, name: str) -> Iterator[Check]:
    cluster = of_lab(Lab.open(name, paths))
    if isinstance(cluster, MachineCluster):
        found = each_host(cluster.hosts(), lambda host: _machine(cluster, host.name))
        for host, check in found.items():
            yield _failed(f"{name}/{host}", check) if isinstance(check, OverlayError) else check


def _machine(cluster: MachineCluster, host: str) -> Check:
    """Raises MachineUnreachable, AgentUnreachable."""
    facts, title = cluster.facts(host), f"{cluster.name}/{host}"
    about = f"overlaynet {facts.version}, Linux {facts.release}"
    if facts.version != __version__:
        return Check(title, WARN, f"{about}; here it is overlaynet {__version__}", UPGRADE)
    agent = cluster.agent(host, AGENT_TIMEOUT_S).get("/v1/status")["agent"]
    state = OK if agent["state"] == "ready" else WARN
    step = None if state == OK else f"overlaynet status -l {cluster.name}"
    return Check(title, state, f"{about}, agent {agent['state']}", step)


def _failed(title: str, error: OverlayError) -> Check:
    evidence = error.evidence.partition("\n")[0].partition(";")[0]
    detail = ": ".join(filter(None, [error.message, evidence]))
    return Check(title, WARN, f"{error.code} {detail}", next(iter(error.next), None))
