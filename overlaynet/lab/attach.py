"""Wiring a container of a lab, and unwiring it: what its agent is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlaynet.client import Agent, AgentClient, wire
from overlaynet.core.probes import probe_document
from overlaynet.errors import NotFound
from overlaynet.lab.topology import Container


def attach(
    agent: AgentClient,
    container: Container,
    where: str | Path,
    *,
    ips: Sequence[str] = (),
    helper: Path | None = None,
) -> dict[str, Any]:
    """Wire the namespace `where`, a name or a path, as this container; answer the agent's document. `helper`:
    the socket of who runs its probe's command. Raises as `client.wire`."""
    return wire(agent, body(container, where, ips=ips, helper=helper), where)


def detach(agent: Agent, namespace: str, name: str) -> bool:
    """Unwire; answer whether it had been wired."""
    try:
        agent.delete(f"/v1/containers/{namespace}/{name}")
    except NotFound:
        return False
    return True


def body(
    container: Container, where: str | Path, *, ips: Sequence[str] = (), helper: Path | None = None
) -> dict[str, Any]:
    """The document by which a container is wired (docs/agent-api.md)."""
    return {
        "name": container.name,
        "namespace": container.namespace,
        "labels": dict(container.labels),
        "ports": [{"port": p.port, "protocol": p.protocol, "name": p.name} for p in container.ports],
        "probe": None if container.probe is None else probe_document(container.probe),
        "netns": str(where),
        "ips": list(ips) or None,
        "probe_socket": str(helper) if helper else None,
    }
