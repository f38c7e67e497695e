"""`overlaynet lease`: who holds which subnet, and setting one aside by hand."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import click

from overlaynet.addr import IPNetwork
from overlaynet.cli.app import App, confirm, pass_app, shared, yes_option
from overlaynet.cli.get import KINDS
from overlaynet.cli.output import table
from overlaynet.cluster.cluster import read_view
from overlaynet.core.view import View
from overlaynet.errors import Conflict, NetworkNotConfigured, NotFound, UsageError
from overlaynet.model import Lease, Stored, Unreadable
from overlaynet.ports import Compare, Delete, Put

HELP = "overlaynet lease reserve --help"


@click.group()
def lease() -> None:
    """List, reserve and delete leases of subnets."""


@lease.command("list")
@shared
@pass_app
def list_(app: App) -> None:
    """List leases: the same as `get leases`."""
    app.explain_store()
    kind = KINDS["lease"]
    items = kind.find(app, None).items
    app.result("List", {"items": items}, lambda: table(kind.columns, items, wide=app.wide), kind.names(items))


@lease.command()
@click.argument("subnet")
@click.option("--public-ip", required=True, metavar="IP", help="The underlay address of the host it is for.")
@click.option("--node-id", metavar="ID", help="The node it is for, if that is known.")
@shared
@pass_app
def reserve(app: App, subnet: str, public_ip: str, node_id: str | None) -> None:
    """Set SUBNET aside for one host: a lease that never expires."""
    from overlaynet.store import codec

    app.explain_store()
    wanted = _subnet(subnet)
    view = read_view(app.cluster)
    _check_fits(wanted, view)
    assert view.network is not None
    try:
        address = ip_address(public_ip)
    except ValueError:
        raise UsageError(f"{public_ip!r} is not an address", next=[HELP]) from None
    value = Lease((wanted,), (address,), view.network.backend.type, node_id=node_id)
    key = app.cluster.keys().lease(value.subnets)
    revision = _commit(app, Compare(key, 0), Put(key, codec.encode_lease(value)))
    short = key.rsplit("/", 1)[-1]
    members = {"key": short, "subnet": str(wanted), "mod_revision": revision}
    app.result("Lease", members, f"reserved {wanted} for {address}", [short])


@lease.command()
@click.argument("key")
@yes_option
@shared
@pass_app
def delete(app: App, key: str, yes: bool) -> None:
    """Delete a lease, named by its key (10.244.1.0-24) or subnet (10.244.1.0/24).

    A living host claims a subnet again at once; its containers keep their addresses only if it gets the
    same one.
    """
    app.explain_store()
    view = read_view(app.cluster)
    item = _find(key, view)
    short = item.key.rsplit("/", 1)[-1]
    lease = item.value if isinstance(item.value, Lease) else None
    if lease is not None and _is_alive(lease, view):
        confirm(f"{short} is the lease of {lease.node_name}, which is alive: delete it?", yes=yes)
    _commit(app, Compare(item.key, item.mod_revision), Delete(item.key))
    subnet, node = (str(lease.subnets[0]), lease.node_name) if lease else (None, None)
    members = {"key": short, "subnet": subnet, "node": node}
    app.result("Lease", members, f"deleted {short}", [short])


def _subnet(text: str) -> IPNetwork:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a subnet", evidence=str(error), next=[HELP]) from None


def _check_fits(subnet: IPNetwork, view: View) -> None:
    """A lease outside of the network, of another size, or over another's would cut hosts off."""
    if view.network is None:
        raise NetworkNotConfigured("no network is configured in etcd", next=["overlaynet network set FILE"])
    pools = [p for p in view.network.pools if p.network.version == subnet.version]
    if not any(p.subnet_len == subnet.prefixlen and subnet.overlaps(p.network) for p in pools):
        wanted = ", ".join(f"a /{p.subnet_len} of {p.network}" for p in pools)
        raise UsageError(
            f"{subnet} is no subnet of the network",
            evidence=f"wanted: {wanted}",
            next=["overlaynet network show"],
        )
    for item in view.leases.values():
        if any(s.version == subnet.version and s.overlaps(subnet) for s in item.value.subnets):
            raise Conflict(
                f"{subnet} is taken",
                evidence=f"{item.key} is held by {item.value.node_name or item.value.public_ips[0]}",
                next=["overlaynet get leases"],
            )


def _is_alive(lease: Lease, view: View) -> bool:
    return any(item.value.node_id == lease.node_id for item in view.nodes.values())


def _find(text: str, view: View) -> Stored[Lease] | Stored[Unreadable]:
    """The lease of that key or subnet. A key that cannot be understood counts too: flannel reads nothing while
    it is there, and no other verb removes it."""
    wanted = text.replace("/", "-") if not text.startswith("/") else text.rsplit("/", 1)[-1]
    key = view.keys.subnets + wanted
    if key in view.unreadable:
        return view.unreadable[key]
    if key in view.leases:
        return view.leases[key]
    known = ", ".join(sorted(key.rsplit("/", 1)[-1] for key in view.leases)) or "none"
    raise NotFound(f"there is no lease {text!r}", evidence=f"leases: {known}", next=["overlaynet get leases"])


def _commit(app: App, compare: Compare, write: Put | Delete) -> int:
    store = app.cluster.store()
    try:
        done = store.commit([compare], [write])
    finally:
        store.close()
    if not done.ok:
        raise Conflict(
            "the lease changed at the same moment; nothing was written",
            evidence=f"key {compare.key}",
            next=["overlaynet get leases"],
        )
    return done.revision
