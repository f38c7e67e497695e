"""`overlaynet status`: the cluster on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from overlaynet.cli import inventory
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.faults import fault_line
from overlaynet.cli.output import members, table
from overlaynet.cluster.cluster import Cluster, Host, read_view
from overlaynet.cluster.contexts import LabCluster
from overlaynet.core.view import View
from overlaynet.errors import LabFailed, MachineUnreachable, NotPermitted, OverlayError, StoreUnavailable
from overlaynet.lab.state import LOCAL, LabState
from overlaynet.lab.topology import DEFAULT_NAME

_COLUMNS = (
    *members("HOST=name", "UNDERLAY=underlay_ip", "SUBNET", "AGENT=agent.state", "PID=agent.pid"),
    *members("PEERS", "CONTAINERS", "SERVICES=services.served", "PENDING"),
    *members("DRIVER", "NETNS", "VERSION=agent.version", wide=True),
    *members("ENDPOINTS=services.endpoints", "SYNCED-AGO=services.synced_s_ago", wide=True),
    *members("SYNC-FAILURES=services.sync_failures", wide=True),
)


@click.command()
@shared
@pass_app
def status(app: App) -> None:
    """How the cluster is: hosts, agents, etcd, leases, and what is wrong.

    Always exit code 0 if it could be told; `verify` and `diff` give verdicts.
    """
    with app.asking() as cluster:
        hosts = cluster.hosts()
        told = inventory.statuses(cluster, hosts)
        items = [_host(item, told[item["name"]]) for item in inventory.host_items(cluster, hosts, told)]
        view = _view(cluster)
    lab = cluster.lab.state if isinstance(cluster, LabCluster) else None
    members = {
        "state": _state(items, view, lab),
        "rebooted": lab is not None and lab.rebooted,
        "ended": lab is not None and lab.ended,
        "hosts": items,
        "etcd": _etcd(view),
        "network": _network(told, view),
        "problems": _problems(cluster, hosts, told),
        "faults": [fault.as_item() for fault in cluster.lab.faults()]
        if isinstance(cluster, LabCluster)
        else [],
    }
    app.result("Status", members, lambda: status_text(cluster.name, members, wide=app.wide), [cluster.name])


def _host(item: Mapping[str, Any], told: Mapping[str, Any] | OverlayError) -> dict[str, Any]:
    """An item of `get hosts`, with the counts its agent keeps."""
    if isinstance(told, OverlayError):
        return {**item, "peers": None, "containers": None, "services": None, "pending": None}
    counts = {name: len(told[name]) for name in ("peers", "containers")}
    return {**item, **counts, "services": told.get("services"), "pending": told["pending"]}


def _state(items: Sequence[Mapping[str, Any]], view: View | OverlayError, lab: LabState | None) -> str:
    states = {item["agent"]["state"] for item in items}
    if lab is not None and lab.ended:
        return "rebooted" if lab.rebooted else "ended"
    if states <= {"ready"}:  # agents notice later than we that etcd is gone
        return "degraded" if isinstance(view, StoreUnavailable) else "ready"
    return states.pop() if len(states) == 1 and states <= {"stopped", "unknown"} else "degraded"


def _view(cluster: Cluster) -> View | OverlayError:
    try:
        return read_view(cluster)
    except OverlayError as error:
        return error


def _etcd(view: View | OverlayError) -> dict[str, Any]:
    if isinstance(view, OverlayError):
        return {
            "connected": False,
            "revision": None,
            "leases": None,
            "containers": None,
            "error": view.as_json(),
        }
    counts = {"leases": len(view.leases), "containers": len(view.workloads)}
    return {"connected": True, "revision": view.revision, **counts, "error": None}


def _network(told: inventory.Statuses, view: View | OverlayError) -> Mapping[str, Any] | None:
    """An agent's word, else etcd's, which knows no MTU."""
    known = (t["network"] for t in told.values() if not isinstance(t, OverlayError))
    found = next((network for network in known if network is not None), None)
    if found is not None or isinstance(view, OverlayError) or view.network is None:
        return found
    backend = view.network.backend
    about = {"backend_type": backend.type, "vni": backend.vni, "port": backend.port, "mtu": None}
    return {"networks": [str(n) for n in view.network.networks], **about}


def _problems(cluster: Cluster, hosts: Sequence[Host], told: inventory.Statuses) -> list[dict[str, Any]]:
    found = []
    for host in hosts:
        answer = told[host.name]
        if isinstance(answer, OverlayError):
            found.append({"host": host.name, **_silent(host.name, answer, cluster)})
            continue
        found += [{"host": host.name, **problem} for problem in answer["problems"]]
        found += [
            {"host": host.name, **f["error"], "message": f"{f['change']}: {f['error']['message']}"}
            for f in answer["failures"]
        ]
    return found if cluster.one_machine else found + _lost(cluster, told)


def _lost(cluster: Cluster, told: inventory.Statuses) -> list[dict[str, Any]]:
    """Containers of a lab that its machines do not have any more: whoever restarts one loses them."""
    missing: dict[str, list[str]] = {}
    for container in cluster.containers():
        if container.started and not container.ips and not isinstance(told.get(container.host), OverlayError):
            missing.setdefault(container.host, []).append(container.name)
    return [
        {
            "host": host,
            **LabFailed(
                f"containers of the lab are not there: {', '.join(names)}",
                evidence="a machine that was restarted has lost its containers",
                next=[_up(cluster.name)],
            ).as_json(),
        }
        for host, names in missing.items()
    ]


def _silent(host: str, error: OverlayError, cluster: Cluster) -> dict[str, Any]:
    """An agent that does not answer, in few words: its log is a command away, if it is ours to read."""
    if isinstance(error, NotPermitted | MachineUnreachable):
        return error.as_json()
    start = "systemctl status overlaynet-agent" if cluster.name == LOCAL else _up(cluster.name)
    steps = [f"overlaynet logs {host}", start] if cluster.one_machine else error.next
    return {**error.as_json(), "evidence": error.evidence.partition(";")[0], "next": steps}


def _up(lab: str) -> str:
    return "overlaynet up" if lab == DEFAULT_NAME else f"overlaynet up -l {lab}"


def status_text(name: str, members: Mapping[str, Any], *, wide: bool = False) -> str:
    """The lab's state, one line for etcd and the network, the table of hosts, and problems."""
    lines = [f"{name}: {members['state']}"]
    if members["ended"]:
        why = "the machine was restarted" if members["rebooted"] else "its sandbox has ended, as at a logout,"
        lines.append(f"{why} since; `{_up(name)}` builds the lab again")
    lines += [_etcd_line(members["etcd"]), _network_line(members["network"]), ""]
    lines.append(table(_COLUMNS, members["hosts"], wide=wide))
    lines += [line for host in members["hosts"] for line in _fallbacks(host)]
    lines += ["", *map(fault_line, members["faults"])] if members["faults"] else []
    if members["problems"] and not members["ended"]:
        lines += ["", *(line for problem in members["problems"] for line in _problem(problem))]
    return "\n".join(lines)


def _fallbacks(host: Mapping[str, Any]) -> list[str]:
    """What a host's kernel lacks, so that its services make do without."""
    lacks = (host["services"] or {}).get("fallbacks", [])
    return [f"{host['name']}: services make do, {error['code']} {error['message']}" for error in lacks]


def _etcd_line(etcd: Mapping[str, Any]) -> str:
    if etcd["error"]:
        return f"etcd     {etcd['error']['message']}"
    return f"etcd     revision {etcd['revision']}, {etcd['leases']} leases, {etcd['containers']} containers"


def _network_line(network: Mapping[str, Any] | None) -> str:
    if network is None:
        return "network  not known"
    extra = f", vni {network['vni']}, port {network['port']}" if network["backend_type"] == "vxlan" else ""
    mtu = "" if network["mtu"] is None else f", mtu {network['mtu']}"
    return f"network  {', '.join(network['networks'])}, {network['backend_type']}{extra}{mtu}"


def _problem(problem: Mapping[str, Any]) -> list[str]:
    evidence = str(problem["evidence"]).splitlines()
    lines = [f"{problem['host']}  {problem['code']}: {problem['message']}", *(f"  {line}" for line in evidence)]
    return lines + [f"  try  {step}" for step in problem["next"]]
