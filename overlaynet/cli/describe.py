"""`overlaynet describe svc/NAME`: one service with all that belongs to it.

What it is and what stands behind it comes from etcd; which connections each endpoint has, from the tables of
all hosts; the chains with their counters, from one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from overlaynet.cli import names, serving, surveys
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.get import rule_text
from overlaynet.cli.inventory import Items
from overlaynet.cli.output import Column, cell_text, members, seconds, table
from overlaynet.cluster.cluster import Host, each_host, pick_hosts
from overlaynet.core.jsonstate import source_to_json
from overlaynet.core.services import service_source
from overlaynet.errors import NotFound, OverlayError, UsageError
from overlaynet.model import Service, Stored
from overlaynet.probe.survey import rules

INCONCLUSIVE = 4
KINDS = ("service", "services", "svc", "se")

_FRONTENDS = (
    *members("KIND"),
    Column("ADDRESS", lambda item: item["address"] or "(host)"),
    *members("PORT", "PROTOCOL", "PORT-NAME"),
)
_ENDPOINTS = (*serving.ENDPOINT_COLUMNS[2:], *members("CONNECTIONS"))
_RULES = (*members("TABLE", "CHAIN", "#=position", "PACKETS", "STATE"), Column("RULE", rule_text))


class Connections(NamedTuple):
    """Connections by protocol, address and port of the endpoint; None if some host could not be asked."""

    counts: Mapping[tuple[str, str, int], int] | None

    def of(self, endpoint: Mapping[str, Any]) -> int | None:
        key = (endpoint["protocol"].lower(), endpoint["address"], endpoint["port"])
        return None if self.counts is None else self.counts.get(key, 0)


@click.command()
@click.argument("target", shell_complete=names.services_with_kind)
@click.argument("name", required=False, shell_complete=names.services)
@click.option("-n", "--namespace", metavar="NS", help="The namespace; else `default`.")
@click.option(
    "--host", metavar="HOST", shell_complete=names.hosts, help="Whose chains to show; else the first host's."
)
@shared
@pass_app
def describe(app: App, target: str, name: str | None, namespace: str | None, host: str | None) -> int:
    """Show a service with its frontends, endpoints, connections and chains.

    TARGET is svc/NAME, or svc/NAMESPACE/NAME, or `svc` with NAME behind it. CONNECTIONS are those that
    all hosts hold in their tables now, but for TCP that has ended; chains and their counters are of one host.
    """
    service_id = _service_id(target, name, namespace)
    catalogue = serving.read_catalogue(app.cluster)
    item = _find(app, catalogue, service_id)
    hosts = pick_hosts(app.cluster, None)
    shown = pick_hosts(app.cluster, host)[0]
    frontends = serving.frontend_items(catalogue, item)
    connections = _connections(app, hosts, frontends)
    endpoints = [
        {**one, "connections": connections.of(one)} for one in serving.endpoint_items(catalogue.view, [item])
    ]
    chains, code = _rules(app, shown, item.value)
    found = {
        **serving.service_item(catalogue, item),
        "frontends": frontends,
        "endpoint_items": endpoints,
        "rules": {"host": shown.name, "items": chains},
    }
    app.result("Description", found, lambda: _text(app, found), [item.value.id])
    return max(code, INCONCLUSIVE if connections.counts is None else 0)


def _service_id(target: str, name: str | None, namespace: str | None) -> str:
    """``namespace/name`` out of the ways to write it."""
    kind, *rest = target.split("/")
    words = [*rest, *([name] if name else [])]
    if kind.lower() not in KINDS or not 1 <= len(words) <= 2:
        raise UsageError(
            f"{target if name is None else f'{target} {name}'!r} names no service",
            evidence="only services can be described",
            next=["overlaynet describe svc/NAME"],
        )
    return "/".join(words if len(words) == 2 else [namespace or "default", *words])


def _find(app: App, catalogue: serving.Catalogue, service_id: str) -> Stored[Service]:
    for item in catalogue.services:
        if item.value.id == service_id:
            return item
    for problem in catalogue.problems():
        if f"/{service_id} " in problem.message:
            raise problem
    known = ", ".join(item.value.id for item in catalogue.services) or "none"
    raise NotFound(
        f"there is no service {service_id}", evidence=f"services: {known}", next=[app.command("get services")]
    )


def _connections(app: App, hosts: Sequence[Host], frontends: Items) -> Connections:
    """What every host's table says of these frontends."""
    wanted = [{"protocol": f["protocol"].lower(), "ip": f["address"], "port": f["port"]} for f in frontends]
    job = {"op": "connections", "frontends": wanted}
    if not wanted:
        return Connections({})
    told = each_host(hosts, lambda host: app.cluster.probe(host.name, job, app.timeout(surveys.TIMEOUT_S)))
    total: Counter[tuple[str, str, int]] = Counter()
    for answer in told.values():
        if isinstance(answer, OverlayError):
            app.warn(answer)
            return Connections(None)
        for one in answer["endpoints"]:
            total[one["protocol"], one["ip"], one["port"]] += one["connections"]
    return Connections(total)


def _rules(app: App, host: Host, service: Service) -> tuple[Items, int]:
    """The service's rules on a host, nat first and as a packet meets them; and the exit code."""
    found = surveys.survey_hosts(app, [host], need_plan=False)
    source = source_to_json(service_source(service.id))
    items = [item for survey in found.surveys for item in rules(survey) if item["source"] == source]
    return sorted(items, key=_on_the_way), found.exit_code


_WAY = ("-SERVICES", "-NODEPORTS", "-FW-", "-EXT-", "-SVC-", "-SVL-", "-SEP-")
"""Parts of chains' names in the order in which a packet comes to them."""


def _on_the_way(item: Mapping[str, Any]) -> tuple[bool, int]:
    return item["table"] != "nat", next((n for n, part in enumerate(_WAY) if part in item["chain"]), len(_WAY))


def _text(app: App, found: Mapping[str, Any]) -> str:
    head = [f"{title + ':':<13}{value}" for title, value in _facts(found)]
    head += [f"{'Note:':<13}{note}" for note in found["notes"]]
    parts = ["\n".join(head)]
    for title, columns, items in (
        ("Frontends", _FRONTENDS, found["frontends"]),
        ("Endpoints", _ENDPOINTS, found["endpoint_items"]),
        (f"Rules on {found['rules']['host']}", _RULES, found["rules"]["items"]),
    ):
        body = table(columns, items, wide=app.wide, width=app.width) if items else "none"
        parts.append(f"{title}\n{body}")
    return "\n\n".join(parts)


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    affinity = f"by client address, {seconds(found['affinity_s'])}" if found["affinity_s"] else "none"
    ready = f"{found['endpoints']['ready']} of {found['endpoints']['total']} addresses"
    facts = [
        ("Service", found["id"]),
        ("Type", found["type"]),
        ("Served", "yes" if found["served"] else "no: it has no VIP, or a label that excludes it"),
        ("Selector", cell_text(found["selector"])),
        ("Ready", ready),
        ("Policies", f"internal {found['internal_policy']}, external {found['external_policy']}"),
        ("Affinity", affinity),
    ]
    if found["health_check_node_port"]:
        facts.append(("Health port", str(found["health_check_node_port"])))
    return facts
