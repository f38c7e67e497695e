"""`overlaynet get KIND [NAME]`: lists of what there is.

Each kind is one row of `KINDS`: its words, its columns, how to find its items, and what names one of them.
For kernel tables NAME is a host, for all else it is the thing itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from overlaynet.addr import Mac
from overlaynet.cli import inventory, surveys
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.cluster import pick_hosts, read_view
from overlaynet.cli.inventory import Items
from overlaynet.cli.output import Column, member, seconds, table
from overlaynet.errors import NotFound, StoreError, UsageError


class Found(NamedTuple):
    """Items, and the exit code: 4 if some host could not be asked."""

    items: Items
    exit_code: int = 0


class Kind(NamedTuple):
    """A kind of thing: the words for it, its columns, how to find its items, what names one, and which of
    them the plain table leaves out."""

    words: tuple[str, ...]
    columns: tuple[Column, ...]
    find: Callable[[App, str | None], Found]
    name_of: Callable[[Mapping[str, Any]], str]
    leaves_out: Callable[[Mapping[str, Any]], bool] = lambda item: False


def _hosts(app: App, name: str | None) -> Found:
    hosts = pick_hosts(app.cluster, name)
    return Found(inventory.host_items(app.cluster, hosts, inventory.statuses(app.cluster, hosts)))


def _containers(app: App, name: str | None) -> Found:
    try:
        view = read_view(app.cluster)
    except StoreError as error:
        app.warn(error)
        view = None
    items = inventory.container_items(inventory.containers(app.cluster, view))
    return Found(_named(items, name, "container", ("name", "id")), 4 if view is None else 0)


def _leases(app: App, name: str | None) -> Found:
    view = read_view(app.cluster)
    store = app.cluster.store()
    try:
        items = inventory.lease_items(view, store.time_to_live)
    finally:
        store.close()
    return Found(_named(items, name, "lease", ("key", "subnet", "node")))


def _labs(app: App, name: str | None) -> Found:
    from overlaynet.cli.contexts import lab_items

    return Found(_named(lab_items(), name, "lab", ("name",)))


def _kernel(rows: Callable[[Any], Items]) -> Callable[[App, str | None], Found]:
    def find(app: App, host: str | None) -> Found:
        found = surveys.survey_hosts(app, pick_hosts(app.cluster, host), need_plan=False)
        return Found([row for survey in found.surveys for row in rows(survey)], found.exit_code)

    return find


def _rows(name: str) -> Callable[[Any], Items]:
    def rows(survey: Any) -> Items:
        from overlaynet.probe import survey as module

        found: Items = getattr(module, name)(survey)
        return found

    return rows


def _named(items: Items, name: str | None, what: str, members: Sequence[str]) -> Items:
    chosen = [item for item in items if name is None or name in [item[m] for m in members]]
    if name is not None and not chosen:
        known = ", ".join(str(item[members[0]]) for item in items) or "none"
        raise NotFound(f"there is no {what} {name!r}", evidence=f"{what}s: {known}")
    return chosen


def _source(item: Mapping[str, Any]) -> str | None:
    source = item["source"]
    return None if source is None else f"{source['kind']} {source['name']}"


def _noarp(item: Mapping[str, Any]) -> bool:
    """Multicast and the like, whose MAC follows from the address: `ip neigh` does not show them either."""
    return bool(item["owner"] == "foreign" and item["nud"] == "noarp")


def _kernels_own(item: Mapping[str, Any]) -> bool:
    """Multicast groups, and the addresses of a bridge and its ports, which the kernel enters by itself as
    permanent (bridge(8))."""
    multicast = not Mac.parse(item["mac"]).unicast
    port = item["master"] is not None and item["entry_state"] == "permanent"
    return item["owner"] == "foreign" and (multicast or port)


_COMMENT = re.compile(r'-m comment --comment (?:"((?:[^"\\\\]|\\\\.)*)"|\S+) ?')
_JUDGED = (member("OWNER", "owner", spare=True), member("STATE", "state"), Column("SOURCE", _source))

KINDS: Mapping[str, Kind] = {
    "host": Kind(
        ("hosts", "ho"),
        (
            member("NAME", "name"),
            member("UNDERLAY", "underlay_ip"),
            member("SUBNET", "subnet"),
            member("AGENT", "agent.state"),
            member("PID", "agent.pid"),
            member("DRIVER", "driver", wide=True),
            member("NETNS", "netns", wide=True),
            member("VERSION", "agent.version", wide=True),
        ),
        _hosts,
        lambda item: str(item["name"]),
    ),
    "container": Kind(
        ("containers", "co"),
        (
            member("NAME", "name"),
            member("HOST", "host"),
            member("IP", "ips"),
            member("READY", "ready"),
            member("LABELS", "labels"),
            member("NAMESPACE", "namespace", wide=True),
            member("MAC", "mac", wide=True),
            Column("PORTS", lambda i: [f"{p['port']}/{p['protocol']}" for p in i["ports"]], wide=True),
            member("NETNS", "netns", wide=True),
        ),
        _containers,
        lambda item: str(item["name"]),
    ),
    "lease": Kind(
        ("leases", "le"),
        (
            member("SUBNET", "subnet"),
            member("NODE", "node"),
            member("PUBLIC-IP", "public_ip"),
            member("BACKEND", "backend_type"),
            Column("EXPIRES", lambda i: "never" if i["expires_in_s"] is None else seconds(i["expires_in_s"])),
            member("LIVE", "live"),
            member("VNI", "vni", wide=True),
            member("VTEP-MAC", "vtep_mac", wide=True),
            member("REVISION", "mod_revision", wide=True),
        ),
        _leases,
        lambda item: str(item["key"]),
    ),
    "route": Kind(
        ("routes", "ro"),
        (
            member("HOST", "host"),
            member("DST", "dst"),
            member("VIA", "via"),
            member("DEV", "dev"),
            member("TABLE", "table", wide=True),
            member("METRIC", "metric", spare=True),
            member("PROTO", "proto", wide=True),
            member("ONLINK", "onlink", wide=True),
            *_JUDGED,
        ),
        _kernel(_rows("routes")),
        lambda item: f"{item['host']}:{item['dst']}",
    ),
    "neigh": Kind(
        ("neighs", "neighbour", "neighbours", "neighbor", "neighbors", "ne", "arp"),
        (
            member("HOST", "host"),
            member("IP", "ip"),
            member("DEV", "dev"),
            member("MAC", "mac"),
            member("NUD", "nud", spare=True),
            *_JUDGED,
        ),
        _kernel(_rows("neighs")),
        lambda item: f"{item['host']}:{item['ip']}",
        _noarp,
    ),
    "fdb": Kind(
        ("fdbs", "fd"),
        (
            member("HOST", "host"),
            member("MAC", "mac"),
            member("DEV", "dev"),
            member("DST", "dst"),
            member("MASTER", "master", wide=True),
            member("KIND", "entry_state", wide=True),
            *_JUDGED,
        ),
        _kernel(_rows("fdb")),
        lambda item: f"{item['host']}:{item['mac']}",
        _kernels_own,
    ),
    "rule": Kind(
        ("rules", "ru"),
        (
            member("HOST", "host"),
            member("TABLE", "table"),
            member("CHAIN", "chain"),
            member("#", "position"),
            member("PACKETS", "packets"),
            member("BYTES", "bytes", wide=True),
            member("OWNER", "owner", wide=True),
            member("STATE", "state"),
            Column("SOURCE", _source, spare=True),
            Column("RULE", lambda i: _COMMENT.sub("", i["text"])),
            Column("COMMENT", lambda i: next(iter(_COMMENT.findall(i["text"])), None), wide=True),
        ),
        _kernel(_rows("rules")),
        lambda item: f"{item['host']}:{item['table']}:{item['chain']}:{item['position']}",
    ),
    "lab": Kind(
        ("labs", "la"),
        (
            member("NAME", "name"),
            member("STATE", "state"),
            member("DRIVER", "driver"),
            member("HOSTS", "hosts"),
            member("CONTAINERS", "containers"),
        ),
        _labs,
        lambda item: str(item["name"]),
    ),
}
_WORDS = {word: kind for kind, row in KINDS.items() for word in (kind, *row.words)}


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@shared
@pass_app
def get(app: App, kind: str, name: str | None) -> int:
    """List what there is.

    KIND is one of hosts, containers, leases, routes, neighs, fdb, rules and labs, in the singular or
    plural or by its first two letters. NAME chooses one thing; for routes, neighs, fdb and rules, a host.

    The plain table leaves out what the kernel enters by itself (multicast groups and the addresses of bridge
    ports in fdb, noarp entries in neighs) and, on a narrow terminal, some columns. -o wide and -o json have
    everything.
    """
    chosen = KINDS[_kind(kind)]
    found = chosen.find(app, name)
    shown = [item for item in found.items if app.wide or not chosen.leaves_out(item)]
    app.result(
        "List",
        {"items": found.items},
        lambda: table(chosen.columns, shown, wide=app.wide, width=app.width),
        [chosen.name_of(item) for item in found.items],
    )
    return found.exit_code


def _kind(word: str) -> str:
    kind = _WORDS.get(word.lower())
    if kind is None:
        raise UsageError(
            f"there is no kind {word!r}", evidence="kinds: " + ", ".join(KINDS), next=["overlaynet get --help"]
        )
    return kind
