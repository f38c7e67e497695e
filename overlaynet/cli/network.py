"""`overlaynet network`: flannel's network configuration in etcd."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.cluster import read_view
from overlaynet.errors import Conflict, NetworkNotConfigured, UsageError
from overlaynet.model import NetworkConfig
from overlaynet.ports import Compare, KeyValue, Put, Store


@click.group()
def network() -> None:
    """Show or set the network's configuration."""


@network.command()
@shared
@pass_app
def show(app: App) -> None:
    """Print the configuration as it is in etcd, and what it means."""
    from overlaynet.store import codec

    key = app.cluster.keys().network_config
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
    }
    app.result("Network", members, lambda: network_text(config, item.value), members["networks"])


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
@shared
@pass_app
def set_(app: App, file: Path) -> None:
    """Write a configuration, flannel's JSON, from FILE or, with `-`, from standard input.

    It is checked first, and written as it stands.
    """
    from overlaynet.store import codec

    raw = _input(file)
    config = codec.parse_network_config(raw)
    outside = _outside(app, config)
    key = app.cluster.keys().network_config
    store = app.cluster.store()
    try:
        before = _read(store, key)
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


def _input(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read", evidence=str(error)) from error


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
