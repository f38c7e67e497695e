"""What there is in a cluster, as the items of `get` and `status`.

Several places know of each thing: the lab what was started, etcd what was claimed, an agent what it wired.
Each is asked, and one that does not answer only leaves its members null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from overlaynet.addr import subnet_key
from overlaynet.cluster.cluster import AGENT_TIMEOUT_S, Cluster, Container, Host, each_host
from overlaynet.core.view import View
from overlaynet.errors import LeaseNotFound, MachineUnreachable, NotPermitted, OverlayError
from overlaynet.model import Lease, Port, Stored

Items = list[dict[str, Any]]
Statuses = Mapping[str, Mapping[str, Any] | OverlayError]


def statuses(cluster: Cluster, hosts: Sequence[Host]) -> Statuses:
    """Every agent's status, or why there is none, by host."""
    return each_host(hosts, lambda host: cluster.agent(host.name, AGENT_TIMEOUT_S).get("/v1/status"))


def host_items(cluster: Cluster, hosts: Sequence[Host], told: Statuses) -> Items:
    """Hosts as items."""
    return [_host(cluster, host, told[host.name]) for host in hosts]


def _host(cluster: Cluster, host: Host, told: Mapping[str, Any] | OverlayError) -> dict[str, Any]:
    return {
        "name": host.name,
        "driver": host.driver,
        "netns": host.netns,
        "underlay_ip": host.underlay_ip,
        "subnet": _subnet(cluster, host, told),
        "agent": agent_item(told),
    }


def agent_item(told: Mapping[str, Any] | OverlayError) -> dict[str, Any]:
    """An agent's state; ``stopped`` if none answers, ``unknown`` if it cannot be asked, or we may not."""
    if isinstance(told, OverlayError):
        state = "unknown" if isinstance(told, NotPermitted | MachineUnreachable) else "stopped"
        return {"state": state, "pid": None, "version": None}
    return {name: told["agent"][name] for name in ("state", "pid", "version")}


def _subnet(cluster: Cluster, host: Host, told: Mapping[str, Any] | OverlayError) -> str | None:
    """The agent's word; where none speaks, what the host's identity remembers, else what etcd has."""
    if not isinstance(told, OverlayError):
        return next(iter(told["lease"]["subnets"]), None) if told["lease"] else None
    try:
        identity = cluster.identity(host.name)
    except OverlayError:
        return host.leased
    return next(map(str, identity.subnets), None) if identity else None


# --- containers -----------------------------------------------------------------------------------


def container_items(found: Sequence[Container]) -> Items:
    """Containers as items. `ready` is false for one that is not wired."""
    return [
        {
            "name": c.name,
            "id": c.id,
            "host": c.host,
            "namespace": c.namespace,
            "netns": c.netns,
            "ips": list(c.ips),
            "mac": c.mac,
            "labels": dict(c.labels or {}),
            "ports": [_port(port) for port in c.ports],
            "ready": c.ready,
            "serving": c.serving,
            "terminating": c.terminating,
        }
        for c in found
    ]


def _port(port: Port) -> dict[str, Any]:
    return {"port": port.port, "protocol": port.protocol, "name": port.name}


# --- leases ---------------------------------------------------------------------------------------


def lease_items(view: View, ttl_s: Callable[[int], int]) -> Items:
    """Leases as items, by subnet. `ttl_s` answers the seconds an etcd lease still lives."""
    alive = {item.value.node_id for item in view.nodes.values()}
    ordered = sorted(view.leases.values(), key=lambda i: (i.value.subnets[0].version, i.value.subnets[0]))
    return [_lease(item, alive, ttl_s) for item in ordered]


def _lease(item: Stored[Lease], alive: set[str], ttl_s: Callable[[int], int]) -> dict[str, Any]:
    lease = item.value
    vtep = lease.vtep(4)
    return {
        "key": "&".join(subnet_key(s) for s in lease.subnets),
        "subnet": str(lease.subnets[0]),
        "node": lease.node_name,
        "public_ip": next(map(str, lease.public_ips), None),
        "backend_type": lease.backend_type,
        "vni": vtep.vni if vtep else None,
        "vtep_mac": str(vtep.mac) if vtep else None,
        "mod_revision": item.mod_revision,
        "expires_in_s": _expiry(item.lease_id, ttl_s),
        "live": lease.node_id in alive if lease.node_id else None,
    }


def _expiry(lease_id: int, ttl_s: Callable[[int], int]) -> int | None:
    if not lease_id:
        return None
    try:
        return ttl_s(lease_id)
    except LeaseNotFound:
        return 0
