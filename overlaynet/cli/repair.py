"""`overlaynet diff` and `overlaynet repair`: intended against real state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.surveys import survey_hosts, what_differs
from overlaynet.cluster.cluster import Cluster, each_host, pick_hosts
from overlaynet.errors import AgentUnreachable, OverlayError

REPAIR_TIMEOUT_S = 60.0
_SIGNS = {"missing": "-", "extra": "+", "changed": "~"}


@click.command()
@click.argument("host", required=False)
@shared
@pass_app
def diff(app: App, host: str | None) -> int:
    """What differs between what hosts should hold and what they do.

    Exit code 1 if anything does. Works without agents: what is wanted is computed from etcd, what is
    there is looked at. Foreign routes and rules are not compared.
    """
    found = survey_hosts(app, pick_hosts(app.cluster, host), need_plan=True)
    hosts: list[dict[str, Any]] = []
    hosts += [{"host": s.host, "changes": s.changes_json(), "error": None} for s in found.surveys]
    hosts += [{"host": n, "changes": [], "error": e.as_json()} for n, e in found.errors.items()]
    count = sum(len(item["changes"]) for item in hosts)
    names = [f"{h['host']}:{c['object']}:{c['key']}" for h in hosts for c in h["changes"]]
    app.result("Diff", {"count": count, "hosts": hosts}, lambda: diff_text(hosts, app.command("repair")), names)
    return 1 if count else found.exit_code


def diff_text(hosts: Sequence[Mapping[str, Any]], repair_command: str) -> str:
    """One block for each host that differs, and a last line with the count."""
    lines = []
    for host in hosts:
        lines += [line for change in host["changes"] for line in _change(host["host"], change)]
    count = sum(len(host["changes"]) for host in hosts)
    silent = [host["host"] for host in hosts if host["error"]]
    summary = f"{_many(count, 'difference')} on {_many(len(hosts) - len(silent), 'host')}"
    lines.append(summary + (f"; not compared: {', '.join(silent)}" if silent else ""))
    if count:
        lines.append(f"next: {repair_command}")
    return "\n".join(lines)


def _change(host: str, change: Mapping[str, Any]) -> list[str]:
    source = change["source"]
    lines = [f"{_SIGNS[change['op']]} {host}  {change['op']:<7}  {what_differs(change)}"]
    if change["op"] == "changed" and change["object"] != "rule":
        lines.append(f"    is      {change['have']}")
    if change["object"] == "rule":
        lines += [f"    want    {text}" for text in (change["want"] or "").splitlines()]
        lines += [f"    is      {text}" for text in (change["have"] or "").splitlines()]
    if source["name"]:
        lines.append(f"    for     {source['kind']} {source['name']}")
    return lines


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


@click.command()
@click.argument("host", required=False)
@shared
@pass_app
def repair(app: App, host: str | None) -> int:
    """Make hosts hold what they should.

    Asks each host's agent; where none runs, one reconcile is made in its place. Exit code 1 if the kernel
    or the firewall refused something.
    """
    hosts = pick_hosts(app.cluster, host)
    with app.progress("repairing"):
        found = each_host(hosts, lambda h: _repair(app.cluster, h.name, app.timeout(REPAIR_TIMEOUT_S)))
    errors = [answer for answer in found.values() if isinstance(answer, OverlayError)]
    if errors and len(errors) == len(hosts):
        raise errors[0]
    items = [_item(name, answer) for name, answer in found.items()]
    app.result("Repair", {"hosts": items}, lambda: "\n".join(map(_line, items)), [h.name for h in hosts])
    if errors:
        return errors[0].exit_code
    return 1 if any(item["failures"] for item in items) else 0


def _repair(cluster: Cluster, host: str, timeout_s: float) -> dict[str, Any]:
    try:
        return {"by": "agent", **cluster.agent(host, timeout_s).post("/v1/repair", {})}
    except AgentUnreachable:
        return {"by": "once", **cluster.once(host, timeout_s)}


def _item(host: str, answer: Mapping[str, Any] | OverlayError) -> dict[str, Any]:
    if isinstance(answer, OverlayError):
        return {"host": host, "by": None, "changes": None, "failures": [], "error": answer.as_json()}
    return {
        "host": host,
        "by": answer["by"],
        "changes": answer["changes"],
        "failures": answer["failures"],
        "error": None,
    }


def _line(item: Mapping[str, Any]) -> str:
    if item["error"]:
        return f"{item['host']}  could not be repaired: {item['error']['message']}"
    by = "by its agent" if item["by"] == "agent" else "without an agent"
    lines = [f"{item['host']}  {_many(item['changes'], 'change')}, {by}"]
    lines += [f"  refused  {f['change']}: {f['error']['message']}" for f in item["failures"]]
    return "\n".join(lines)
