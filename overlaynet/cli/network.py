"""`overlaynet network`: flannel's network configuration in etcd.

A change of it moves nothing by itself: hosts go on with the configuration that is in force on them until
`network apply` makes them take the new one, one after another.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from overlaynet.cli import inventory, names
from overlaynet.cli.app import App, confirm, pass_app, shared, yes_option
from overlaynet.cli.output import members, table
from overlaynet.cluster.cluster import Cluster, pick_hosts, read_view
from overlaynet.errors import (
    Conflict,
    NetworkConfigInvalid,
    NetworkNotConfigured,
    NotReady,
    OverlayError,
    UsageError,
)
from overlaynet.model import NetworkConfig
from overlaynet.ports import Compare, KeyValue, Put, Store

APPLY_TIMEOUT_S = 30.0
"""How long one host may take to have a subnet of the new network and to program it."""

POLL_S = 0.2

_IN_FORCE = members(
    "HOST", "NETWORK=networks", "LEN=subnet_len", "BACKEND=backend_type", "VNI", "PORT", "MTU", "PENDING"
)


@click.group()
def network() -> None:
    """Show, set or apply the network's configuration."""


@network.command()
@shared
@pass_app
def show(app: App) -> None:
    """Print the configuration that etcd offers, what it means, and what is in force on each host."""
    from overlaynet.store import codec

    key = app.cluster.keys().network_config
    app.explain_store()
    store = app.cluster.store()
    try:
        item = _read(store, key)
    finally:
        store.close()
    if item is None:
        raise NetworkNotConfigured(
            "no network is configured in etcd", evidence=f"key {key}", next=["overlaynet network set FILE"]
        )
    config = codec.parse_network_config(item.value)
    backend = config.backend
    members = {
        "key": key,
        "mod_revision": item.mod_revision,
        "networks": [str(n) for n in config.networks],
        "subnet_len": config.pools[0].subnet_len,
        "backend_type": backend.type,
        "vni": backend.vni,
        "port": backend.port,
        "mtu": backend.mtu,
        "config": json.loads(item.value),
        "hosts": in_force(app.cluster),
    }
    app.result("Network", members, lambda: _shown(config, item.value, members["hosts"]), members["networks"])


def in_force(cluster: Cluster) -> list[dict[str, Any]]:
    """What each host's agent goes by; None where no agent answers, or where none was ever in force."""
    told = inventory.statuses(cluster, cluster.hosts())
    return [{"host": host, **_of_status(status)} for host, status in told.items()]


def _of_status(status: Mapping[str, Any] | OverlayError) -> dict[str, Any]:
    found = None if isinstance(status, OverlayError) else status["network"]
    names = ("networks", "subnet_len", "backend_type", "vni", "port", "mtu", "pending")
    return {name: found.get(name) if found else None for name in names}


def _shown(config: NetworkConfig, raw: bytes, hosts: Sequence[Mapping[str, Any]]) -> str:
    lines = [network_text(config, raw), "", "in force:", table(_IN_FORCE, hosts)]
    waiting = " ".join(h["host"] for h in hosts if h["pending"])
    return "\n".join([*lines, *([f"next: overlaynet network apply {waiting}"] if waiting else [])])


def network_text(config: NetworkConfig, raw: bytes) -> str:
    """What the configuration means, then its own words."""
    lines = [
        f"network  {pool.network}  subnets /{pool.subnet_len}, {pool.first} to {pool.last}"
        for pool in config.pools
    ]
    backend = config.backend
    more = f"  vni {backend.vni}  port {backend.port}" if backend.type == "vxlan" else ""
    lines.append(f"backend  {backend.type}{more}")
    return "\n".join([*lines, "", json.dumps(json.loads(raw), indent=2)])


@network.command("set")
@click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
@yes_option
@shared
@pass_app
def set_(app: App, file: Path, yes: bool) -> None:
    """Write a configuration, flannel's JSON, from FILE or, with `-`, from standard input.

    It is checked first, and written as it stands. Hosts that have one in force keep it until
    `overlaynet network apply`.
    """
    app.explain_store()
    raw = _input(file)
    config = _parse(file, raw)
    outside = _outside(app, config)
    key = app.cluster.keys().network_config
    store = app.cluster.store()
    try:
        before = _read(store, key)
        if before is not None and before.value == raw:
            app.note("it is the configuration that is there already")
        elif before is not None:
            confirm(f"replace the network configuration {_in_short(before.value)}?", yes=yes)
        done = store.commit([Compare(key, before.mod_revision if before else 0)], [Put(key, raw)])
    finally:
        store.close()
    if not done.ok:
        raise Conflict(
            "somebody else changed the network configuration at the same moment",
            evidence=f"key {key}",
            next=["overlaynet network show"],
        )
    if outside:
        app.note(f"{len(outside)} leases lie outside of it: {', '.join(outside)}")
    networks = [str(n) for n in config.networks]
    members = {"key": key, "mod_revision": done.revision, "networks": networks}
    app.result("Network", members, f"network set at revision {done.revision}", networks)


def _in_short(raw: bytes) -> str:
    return " ".join(raw.decode(errors="replace").split())


@network.command("apply")
@click.argument("hosts", nargs=-1, metavar="[HOST]...", shell_complete=names.hosts)
@click.option("--force", is_flag=True, help="Also where containers must be attached again after it.")
@shared
@pass_app
def apply_(app: App, hosts: tuple[str, ...], force: bool) -> int:
    """Make hosts take the configuration that etcd offers, one after another; all of them if none is named.

    Stops at the first host that cannot. A host whose subnet lies outside of the new network claims another
    one; it is refused while containers are attached, unless with --force.
    """
    chosen = [h for name in hosts for h in pick_hosts(app.cluster, name)] or pick_hosts(app.cluster, None)
    items: list[dict[str, Any]] = []
    timeout_s = app.timeout(APPLY_TIMEOUT_S)
    for host in chosen:
        items.append(_apply(app.cluster, host.name, force=force, timeout_s=timeout_s))
        app.note(_applied_line(items[-1]))
        if items[-1]["error"] is not None:
            break
    left = [host.name for host in chosen[len(items) :]]
    app.result("Applied", {"hosts": items, "left": left}, lambda: _applied_text(items, left), hosts)
    return 3 if items and items[-1]["error"] else 0


def _apply(cluster: Cluster, host: str, *, force: bool, timeout_s: float) -> dict[str, Any]:
    agent = cluster.agent(host, timeout_s)
    try:
        answer = agent.post("/v1/network/apply", {"force": force})
        subnets = _wait_for_lease(cluster, host, timeout_s)
    except OverlayError as error:
        return {"host": host, "applied": None, "subnets": [], "error": error.as_json()}
    return {"host": host, "applied": answer["applied"], "subnets": subnets, "error": None}


def _wait_for_lease(cluster: Cluster, host: str, timeout_s: float) -> list[str]:
    """The subnets of a host, once etcd has confirmed them and the kernel has taken everything."""
    agent, ends = cluster.agent(host, timeout_s), time.monotonic() + timeout_s
    while True:
        status = agent.get("/v1/status")
        lease = status["lease"]
        if lease is not None and lease.get("confirmed") and not status["pending"]:
            return list(lease["subnets"])
        if time.monotonic() > ends:
            raise NotReady(
                f"{host} has taken the configuration and is not settled after {timeout_s:g} s",
                evidence="; ".join(problem["message"] for problem in status["problems"]) or "no problem told",
                next=["overlaynet status"],
            )
        time.sleep(POLL_S)


def _applied_line(item: Mapping[str, Any]) -> str:
    if item["error"]:
        return f"{item['host']}  not applied: {item['error']['message']}"
    what = "applied" if item["applied"] else "in force already"
    return f"{item['host']}  {what}, subnet {', '.join(item['subnets'])}"


def _applied_text(items: Sequence[Mapping[str, Any]], left: Sequence[str]) -> str:
    changed = sum(bool(item["applied"]) for item in items)
    lines = [f"applied on {changed} of {len(items) + len(left)} hosts"]
    for item in items:
        if item["error"]:
            lines += [f"  {item['host']}  {item['error']['code']}: {item['error']['message']}"]
            lines += [f"    {item['error']['evidence']}"]
            lines += [f"    try  {step}" for step in item["error"]["next"]]
    return "\n".join([*lines, *([f"not asked: {' '.join(left)}"] if left else [])])


def _input(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read", evidence=str(error), next=[f"ls -l {file}"]) from error


def _parse(file: Path, raw: bytes) -> NetworkConfig:
    """Here it is the reader's own file that cannot be used, not what is in etcd."""
    from overlaynet.store import codec

    try:
        return codec.parse_network_config(raw)
    except NetworkConfigInvalid as error:
        advice = ["correct the file; `overlaynet network show` prints one that works"]
        raise UsageError(f"{file}: {error.message}", evidence=error.evidence, next=advice) from error


def _read(store: Store, key: str) -> KeyValue | None:
    return next((item for item in store.read([key]).items if item.key == key), None)


def _outside(app: App, config: NetworkConfig) -> list[str]:
    """Subnets in use that the new configuration does not hold."""
    leases = read_view(app.cluster).leases.values()
    return [
        str(subnet)
        for item in leases
        for subnet in item.value.subnets
        if not any(subnet.version == n.version and subnet.overlaps(n) for n in config.networks)
    ]
