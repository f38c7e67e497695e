"""`overlaynet diff` and `overlaynet repair`: intended against real state.

An agent may have been asked to leave an object alone (`POST /v1/hold`), as `break` does. Such a difference
stays whatever repairs, so both say who wanted that, and what ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import click

from overlaynet.cli import inventory, names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.surveys import survey_hosts, what_differs
from overlaynet.cluster.cluster import Cluster, Host, each_host, pick_hosts
from overlaynet.errors import AgentUnreachable, OverlayError
from overlaynet.lab.faultrecords import HIDDEN

REPAIR_TIMEOUT_S = 60.0
_SIGNS = {"missing": "-", "extra": "+", "changed": "~"}

Holds: TypeAlias = Mapping[tuple[str, str], str]
"""Why a host's agent leaves an object alone, by kind and key."""


@click.command()
@click.argument("host", required=False, shell_complete=names.hosts)
@shared
@pass_app
def diff(app: App, host: str | None) -> int:
    """What differs between what hosts should hold and what they do.

    Exit code 1 if anything does. Works without agents: what is wanted is computed from etcd, what is
    there is looked at. Foreign routes and rules are not compared. What an agent was asked to leave alone, as
    `break` does, is told as held.
    """
    with app.asking() as cluster:
        picked = pick_hosts(cluster, host)
        found = survey_hosts(app, picked, need_plan=True)
        holds = _holds(cluster, picked) if any(s.changes_json() for s in found.surveys) else {}
    hosts: list[dict[str, Any]] = []
    hosts += [
        {"host": s.host, "changes": _with_holds(s.changes_json(), holds.get(s.host, {})), "error": None}
        for s in found.surveys
    ]
    hosts += [{"host": n, "changes": [], "error": e.as_json()} for n, e in found.errors.items()]
    count = sum(len(item["changes"]) for item in hosts)
    names = [f"{h['host']}:{c['object']}:{c['key']}" for h in hosts for c in h["changes"]]
    app.explain(lambda commands: commands.looking(picked))
    app.result("Diff", {"count": count, "hosts": hosts}, lambda: diff_text(hosts, app.command), names)
    return 1 if count else found.exit_code


def _holds(cluster: Cluster, hosts: Sequence[Host]) -> dict[str, Holds]:
    """What each agent leaves alone; nothing of those that do not answer."""
    return {
        name: {(held["kind"], held["key"]): held["reason"] for held in told["holds"]}
        for name, told in inventory.statuses(cluster, hosts).items()
        if not isinstance(told, OverlayError)
    }


def _with_holds(changes: Sequence[Mapping[str, Any]], holds: Holds) -> list[dict[str, Any]]:
    return [{**change, "held": holds.get((change["object"], change["key"]))} for change in changes]


def diff_text(hosts: Sequence[Mapping[str, Any]], command: Callable[[str], str]) -> str:
    """One block for each host that differs, and a last line with the count."""
    lines = []
    for host in hosts:
        lines += [line for change in host["changes"] for line in _change(host["host"], change)]
    count = sum(len(host["changes"]) for host in hosts)
    silent = [host["host"] for host in hosts if host["error"]]
    summary = f"{_many(count, 'difference')} on {_many(len(hosts) - len(silent), 'host')}"
    lines.append(summary + (f"; not compared: {', '.join(silent)}" if silent else ""))
    steps = {_ending(change["held"]) for host in hosts for change in host["changes"]}
    return "\n".join([*lines, *_next(steps, command)])


def _ending(held: str | None) -> str:
    """What ends a difference: held because of a fault, and of one that is to be found, or not at all."""
    if held is None:
        return "repair"
    return "lab check" if held.endswith(f": {HIDDEN}") else "heal"


def _next(steps: Collection[str], command: Callable[[str], str]) -> list[str]:
    return [f"next: {command(verb)}" for verb in ("heal", "lab check", "repair") if verb in steps]


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
    if change["held"] is not None:
        lines.append(f"    held    {change['held']}")
    return lines


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


@click.command()
@click.argument("host", required=False, shell_complete=names.hosts)
@shared
@pass_app
def repair(app: App, host: str | None) -> int:
    """Make hosts hold what they should.

    Asks each host's agent; where none runs, one reconcile is made in its place. What an agent was asked to
    leave alone stays as it is; `heal` ends that, if it was broken on purpose. Exit code 1 if the kernel or the
    firewall refused something.
    """
    hosts = pick_hosts(app.cluster, host)
    app.explain(lambda commands: commands.repairing(survey_hosts(app, hosts, need_plan=True).surveys))
    with app.progress("repairing"):
        found = each_host(hosts, lambda h: _repair(app.cluster, h.name, app.timeout(REPAIR_TIMEOUT_S)))
        holds = _holds(app.cluster, hosts)
    errors = [answer for answer in found.values() if isinstance(answer, OverlayError)]
    if errors and len(errors) == len(hosts):
        raise errors[0]
    items = [{**_item(n, answer), "held": _held_items(holds.get(n, {}))} for n, answer in found.items()]
    app.result("Repair", {"hosts": items}, lambda: _repair_text(items, app.command), [h.name for h in hosts])
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


def _held_items(holds: Holds) -> list[dict[str, str]]:
    return [{"object": kind, "key": key, "reason": reason} for (kind, key), reason in holds.items()]


def _repair_text(items: Sequence[Mapping[str, Any]], command: Callable[[str], str]) -> str:
    """A line for each host, with what was left alone; and how to end that."""
    steps = {_ending(held["reason"]) for item in items for held in item["held"]}
    return "\n".join([*map(_line, items), *_next(steps, command)])


def _line(item: Mapping[str, Any]) -> str:
    if item["error"]:
        return f"{item['host']}  could not be repaired: {item['error']['message']}"
    by = "by its agent" if item["by"] == "agent" else "without an agent"
    lines = [f"{item['host']}  {_many(item['changes'], 'change')}, {by}"]
    lines += [f"  refused  {f['change']}: {f['error']['message']}" for f in item["failures"]]
    lines += [f"  held     {h['object']} {h['key']}: {h['reason']}" for h in item["held"]]
    return "\n".join(lines)
