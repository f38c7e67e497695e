"""`overlaynet get KIND [NAME]`: lists of what there is.

Each kind is one row of `KINDS`: its words, its columns, how to find its items, and what names one of them.
For kernel tables NAME is a host, for all else it is the thing itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import click

from overlaynet.addr import Mac
from overlaynet.cli import inventory, names, serving, surveys
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.inventory import Items
from overlaynet.cli.output import Column, members, seconds, table
from overlaynet.cli.watching import Watched, watch
from overlaynet.cluster import known
from overlaynet.cluster.cluster import pick_hosts, read_view
from overlaynet.errors import NotFound, StoreError, UsageError


class Found(NamedTuple):
    """Items, and the exit code: 4 if some host could not be asked."""

    items: Items
    exit_code: int = 0


class Kind(NamedTuple):
    """A kind of thing: the words for it, its columns, how to find its items, what names one (a format of its
    members), which of them the plain table leaves out, and which members say no more than that time passes."""

    words: tuple[str, ...]
    columns: tuple[Column, ...]
    find: Callable[[App, str | None], Found]
    name: str
    leaves_out: Callable[[Mapping[str, Any]], bool] = lambda item: False
    fleeting: tuple[str, ...] = ()

    @property
    def on_hosts(self) -> bool:
        """Whether each host holds its own of it."""
        return "{host}" in self.name

    @property
    def in_store(self) -> bool:
        """Whether etcd holds it."""
        return self.find in (_containers, _leases, _services, _endpoints)

    def names(self, items: Items) -> list[str]:
        """What `-o name` prints."""
        return [self.name.format_map(item) for item in items]


def _hosts(app: App, name: str | None) -> Found:
    hosts = pick_hosts(app.cluster, name)
    return Found(inventory.host_items(app.cluster, hosts, inventory.statuses(app.cluster, hosts)))


def _containers(app: App, name: str | None) -> Found:
    try:
        view = read_view(app.cluster)
    except StoreError as error:
        app.warn(error)
        view = None
    items = inventory.container_items(known.containers(app.cluster, view))
    return Found(_named(items, name, "container", ("name", "id")), 4 if view is None else 0)


def _leases(app: App, name: str | None) -> Found:
    view = read_view(app.cluster)
    store = app.cluster.store()
    try:
        items = inventory.lease_items(view, store.time_to_live)
    finally:
        store.close()
    return Found(_named(items, name, "lease", ("key", "subnet", "node")))


def _services(app: App, name: str | None) -> Found:
    catalogue = _catalogue(app)
    return Found(_named(serving.service_items(catalogue), name, "service", ("id", "name")))


def _endpoints(app: App, name: str | None) -> Found:
    catalogue = _catalogue(app)
    chosen = [item for item in catalogue.services if name in (None, item.value.id, item.value.name)]
    if name is not None and not chosen:
        known = ", ".join(item.value.id for item in catalogue.services) or "none"
        raise NotFound(f"there is no service {name!r}", evidence=f"services: {known}")
    return Found(serving.endpoint_items(catalogue.view, chosen))


def _catalogue(app: App) -> serving.Catalogue:
    """etcd's services; those that cannot be understood are warned of."""
    catalogue = serving.read_catalogue(app.cluster)
    for problem in catalogue.problems():
        app.warn(problem)
    return catalogue


def _labs(app: App, name: str | None) -> Found:
    from overlaynet.cluster.contexts import lab_items

    return Found(_named(lab_items(), name, "lab", ("name",)))


def _kernel(rows: str) -> Callable[[App, str | None], Found]:
    """Finds the rows of a kernel table by the function of `probe/survey.py` that makes them."""

    def find(app: App, host: str | None) -> Found:
        from overlaynet.probe import survey as module

        found = surveys.survey_hosts(app, pick_hosts(app.cluster, host), need_plan=False)
        make = getattr(module, rows)
        return Found([row for survey in found.surveys for row in make(survey)], found.exit_code)

    return find


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


def rule_text(item: Mapping[str, Any]) -> str:
    """A rule as iptables has it, without its comment."""
    return _COMMENT.sub("", item["text"])


_JUDGED = (*members("OWNER", spare=True), *members("STATE"), Column("SOURCE", _source))

KINDS: Mapping[str, Kind] = {
    "host": Kind(
        ("hosts", "ho"),
        (
            *members("NAME", "UNDERLAY=underlay_ip", "SUBNET", "AGENT=agent.state", "PID=agent.pid"),
            *members("DRIVER", "NETNS", "VERSION=agent.version", wide=True),
        ),
        _hosts,
        "{name}",
    ),
    "container": Kind(
        ("containers", "co"),
        (
            *members("NAME", "HOST", "IP=ips"),
            Column("READY", lambda item: "terminating" if item["terminating"] else item["ready"]),
            *members("LABELS"),
            *members("NAMESPACE", "MAC", wide=True),
            Column("PORTS", lambda i: [f"{p['port']}/{p['protocol']}" for p in i["ports"]], wide=True),
            *members("NETNS", wide=True),
        ),
        _containers,
        "{name}",
    ),
    "lease": Kind(
        ("leases", "le"),
        (
            *members("SUBNET", "NODE", "PUBLIC-IP", "BACKEND=backend_type"),
            Column("EXPIRES", lambda i: "never" if i["expires_in_s"] is None else seconds(i["expires_in_s"])),
            *members("LIVE"),
            *members("VNI", "VTEP-MAC", "REVISION=mod_revision", wide=True),
        ),
        _leases,
        "{key}",
        fleeting=("expires_in_s",),
    ),
    "route": Kind(
        ("routes", "ro"),
        (
            *members("HOST", "DST", "VIA", "DEV"),
            *members("TABLE", wide=True),
            *members("METRIC", spare=True),
            *members("PROTO", "ONLINK", wide=True),
            *_JUDGED,
        ),
        _kernel("routes"),
        "{host}:{dst}",
    ),
    "neigh": Kind(
        ("neighs", "neighbour", "neighbours", "neighbor", "neighbors", "ne", "arp"),
        (*members("HOST", "IP", "DEV", "MAC"), *members("NUD", spare=True), *_JUDGED),
        _kernel("neighs"),
        "{host}:{ip}",
        _noarp,
    ),
    "fdb": Kind(
        ("fdbs", "fd"),
        (
            *members("HOST", "MAC", "DEV", "DST"),
            *members("MASTER", "KIND=entry_state", wide=True),
            *_JUDGED,
        ),
        _kernel("fdb"),
        "{host}:{mac}",
        _kernels_own,
    ),
    "rule": Kind(
        ("rules", "ru"),
        (
            *members("HOST", "TABLE", "CHAIN", "#=position", "PACKETS"),
            *members("BYTES", "OWNER", wide=True),
            *members("STATE"),
            Column("SOURCE", _source, spare=True),
            Column("RULE", rule_text),
            Column("COMMENT", lambda i: next(iter(_COMMENT.findall(i["text"])), None), wide=True),
        ),
        _kernel("rules"),
        "{host}:{table}:{chain}:{position}",
    ),
    "service": Kind(("services", "svc", "se"), serving.SERVICE_COLUMNS, _services, "{id}"),
    "endpoint": Kind(
        ("endpoints", "ep", "en"),
        serving.ENDPOINT_COLUMNS,
        _endpoints,
        "{namespace}/{service}:{address}:{port}",
    ),
    "lab": Kind(
        ("labs", "la"),
        members("NAME", "STATE", "DRIVER", "HOSTS", "CONTAINERS", "FAULTS"),
        _labs,
        "{name}",
    ),
}
_WORDS = {word: kind for kind, row in KINDS.items() for word in (kind, *row.words)}


@click.command()
@click.argument("kind", shell_complete=names.kinds)
@click.argument("name", required=False, shell_complete=names.of_kind)
@click.option("-n", "--namespace", metavar="NS", help="Only containers, services, endpoints of this namespace.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Go on, and show what changes, until Ctrl-C.")
@shared
@pass_app
def get(app: App, kind: str, name: str | None, namespace: str | None, watching: bool) -> int:
    """List what there is.

    KIND is one of hosts, containers, services, endpoints, leases, routes, neighs, fdb, rules and labs, in the
    singular or plural or by its first two letters. NAME chooses one thing; for routes, neighs, fdb and rules a
    host, for endpoints a service. Services may be named as NAME or as NAMESPACE/NAME.

    The plain table leaves out what the kernel enters by itself (multicast groups and the addresses of bridge
    ports in fdb, noarp entries in neighs) and, on a narrow terminal, some columns. -o wide and -o json have
    everything.

    With --watch the list is looked at each second: redrawn on a terminal; into a pipe go changed rows alone, or
    with -o json a document a line. It ends at Ctrl-C, or after --timeout, with exit code 0.
    """
    chosen = KINDS[_kind(kind)]

    def look() -> Found:
        found = chosen.find(app, name)
        return found._replace(
            items=[i for i in found.items if namespace is None or i.get("namespace", namespace) == namespace]
        )

    if chosen.in_store:
        app.explain_store()
    if watching:
        if chosen.on_hosts:
            app.explain(lambda commands: commands.showing(_kind(kind), (), pick_hosts(app.cluster, name)))
        words = app.command(" ".join(["get", kind, *([name] if name else [])]))
        named = Watched(
            words, lambda: look().items, chosen.name, chosen.columns, chosen.leaves_out, chosen.fleeting
        )
        return watch(app, named)
    with nullcontext() if chosen is KINDS["lab"] else app.asking():
        found = look()
    items = found.items
    if chosen.on_hosts:
        app.explain(lambda commands: commands.showing(_kind(kind), items, pick_hosts(app.cluster, name)))
    shown = [item for item in items if app.wide or not chosen.leaves_out(item)]
    app.result(
        "List",
        {"items": items},
        lambda: table(chosen.columns, shown, wide=app.wide, width=app.width),
        chosen.names(items),
    )
    return found.exit_code


def _kind(word: str) -> str:
    kind = _WORDS.get(word.lower())
    if kind is None:
        raise UsageError(
            f"there is no kind {word!r}", evidence="kinds: " + ", ".join(KINDS), next=["overlaynet get --help"]
        )
    return kind
