"""Wiring a container: this side opens what the agent is not allowed to open, and hands it over.

The agent needs no right to enter a namespace. Whoever asks for a container opens the namespace's file and a
netlink socket inside it, and passes both descriptors with the request.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlaynet.client import AgentClient
from overlaynet.core.probes import probe_document
from overlaynet.errors import NotFound
from overlaynet.kernel import netns
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
    the socket of who runs its probe's command.

    Raises the agent's WorkloadErrors, AgentUnreachable, NotFound, NotPermitted, KernelError."""
    body = {
        **_body(container),
        "netns": str(where),
        "ips": list(ips) or None,
        "probe_socket": str(helper) if helper else None,
    }
    path = netns.path(where) if isinstance(where, str) else where
    with netns.socket_in(where, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return agent.post("/v1/containers", body, [fd, netlink.fileno()])
        finally:
            os.close(fd)


def detach(agent: AgentClient, namespace: str, name: str) -> bool:
    """Unwire; answer whether it had been wired."""
    try:
        agent.delete(f"/v1/containers/{namespace}/{name}")
    except NotFound:
        return False
    return True


def _body(container: Container) -> dict[str, Any]:
    return {
        "name": container.name,
        "namespace": container.namespace,
        "labels": dict(container.labels),
        "ports": [{"port": p.port, "protocol": p.protocol, "name": p.name} for p in container.ports],
        "probe": None if container.probe is None else probe_document(container.probe),
    }
