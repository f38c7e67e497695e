"""Wiring a container: this side opens what the agent is not allowed to open, and hands it over.

The agent needs no right to enter a namespace. Whoever asks for a container opens the namespace's file and a
netlink socket inside it, and passes both descriptors with the request.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from overlaynet.errors import NotFound
from overlaynet.kernel import netns
from overlaynet.lab.client import AgentClient
from overlaynet.lab.topology import Container


def attach(agent: AgentClient, container: Container, name: str) -> dict[str, Any]:
    """Wire the namespace called `name` as this container; answer the agent's document.

    Raises the agent's WorkloadErrors, AgentUnreachable, NotFound, NotPermitted, KernelError."""
    with netns.socket_in(name, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        fd = os.open(netns.path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return agent.post("/v1/containers", _body(container, name), [fd, netlink.fileno()])
        finally:
            os.close(fd)


def detach(agent: AgentClient, namespace: str, name: str) -> bool:
    """Unwire; answer whether it had been wired."""
    try:
        agent.delete(f"/v1/containers/{namespace}/{name}")
    except NotFound:
        return False
    return True


def _body(container: Container, name: str) -> dict[str, Any]:
    return {
        "name": container.name,
        "namespace": container.namespace,
        "labels": dict(container.labels),
        "ports": [{"port": p.port, "protocol": p.protocol, "name": p.name} for p in container.ports],
        "ips": None,
        "netns": name,
    }
