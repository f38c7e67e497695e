"""`overlaynet verify mesh`: can every container reach every other?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import click

from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.output import coloured
from overlaynet.cli.surveys import differences
from overlaynet.cluster import known
from overlaynet.cluster.cluster import Cluster, Container, Host, each_host, read_view
from overlaynet.errors import OverlayError, StoreError
from overlaynet.lab.state import LOCAL
from overlaynet.probe import mesh
from overlaynet.probe.mesh import FAIL, INCONCLUSIVE, PASS, Check, Member, Report

TIMEOUT_S = 60.0
MATRIX_MAX = 12
"""Containers up to which the whole matrix is shown; beyond, only what did not pass."""

PAIRS_SHOWN = 4
_CELLS = {PASS: ".", FAIL: "X", INCONCLUSIVE: "?"}


@click.command()
@click.argument("suite", type=click.Choice(["mesh"]), default="mesh")
@shared
@pass_app
def verify(app: App, suite: str) -> int:
    """Prove that every container reaches every other, by sending.

    Each ordered pair is tried from inside the sender's network namespace. Needs no agent. Exit code 0 if
    every pair passed, 1 if any failed, 4 if some could not be tried. For a pair that failed, what differs
    on its two hosts from what they should hold is named.
    """
    cluster = app.cluster
    started = time.monotonic()
    with app.progress("asking every pair") as say:
        members = _members(app, cluster)
        jobs = mesh.jobs(members)
        if not app.quiet and len(members) > MATRIX_MAX:
            say(f"{len(mesh.pairs(members))} pairs from {len(jobs)} hosts")
        senders = [host for host in cluster.hosts() if host.name in jobs]
        timeout_s = app.timeout(TIMEOUT_S)
        answers = each_host(senders, lambda host: cluster.probe(host.name, jobs[host.name], timeout_s))
        report = mesh.judge(members, answers)
        if failed := report.having(FAIL):
            concerned = {member.host for check in failed for member in (check.sender, check.target)}
            hosts = [host for host in cluster.hosts() if host.name in concerned]
            report = report.with_differences(differences(app, hosts))
    duration_s = time.monotonic() - started
    names = [check.id for check in report.checks if check.verdict != PASS]
    app.result("Verify", report.as_json(duration_s), lambda: report_text(report, app.command), names)
    return report.exit_code


def _members(app: App, cluster: Cluster) -> list[Member]:
    """Every container, with its address by its agent's list, by etcd or, last, by its own interface."""
    found: Sequence[Container] = cluster.containers()
    if cluster.name == LOCAL or not all(c.ips for c in found):
        try:
            found = known.containers(cluster, read_view(cluster))
        except StoreError as error:
            app.warn(error)
    seen = _look(cluster, [c for c in found if not c.ips])
    return [_member(c, c.ips or seen.get(c.name, ())) for c in found]


def _member(container: Container, ips: Sequence[str]) -> Member:
    first = next((ip_address(ip) for ip in ips if ":" not in ip), None)
    return Member(container.name, container.host, container.netns or "", first)


def _look(cluster: Cluster, unknown: Sequence[Container]) -> dict[str, list[str]]:
    """Addresses on the interfaces of containers that no record tells of."""
    hosts = [host for host in cluster.hosts() if any(c.host == host.name for c in unknown)]

    def ask(host: Host) -> Mapping[str, Any]:
        job = {"op": "addresses", "netns": [c.netns for c in unknown if c.host == host.name and c.netns]}
        return cluster.probe(host.name, job, TIMEOUT_S)["addresses"]  # type: ignore[no-any-return]

    answers = each_host(hosts, ask).values()
    by_netns = {k: v for a in answers if not isinstance(a, OverlayError) for k, v in a.items()}
    return {c.name: by_netns.get(c.netns or "", []) for c in unknown}


# --- text -----------------------------------------------------------------------------------------


def report_text(report: Report, command: Callable[[str], str]) -> str:
    """The matrix or nothing, then each kind of failure with its evidence, then the sum."""
    lines = []
    names = list(dict.fromkeys(check.sender.name for check in report.checks))
    if 0 < len(names) <= MATRIX_MAX:
        lines += [*matrix(report, names), ""]
    for alike in _alike([*report.having(FAIL), *report.having(INCONCLUSIVE)]):
        lines += [*_reasons(alike, command), ""]
    if not report.checks:
        lines.append("no pair to try: a mesh takes two containers")
    return "\n".join([*lines, report.summary])


def matrix(report: Report, names: Sequence[str]) -> list[str]:
    """Senders down, targets across. `.` reached, `X` failed, `?` inconclusive."""
    cells = {(c.sender.name, c.target.name): _CELLS[c.verdict] for c in report.checks}
    width = max(len(name) for name in names)
    lines = ["  ".join([" " * width, *names])]
    for sender in names:
        marks = [cells.get((sender, target), " ").ljust(len(target)) for target in names]
        lines.append("  ".join([sender.ljust(width), *marks]).rstrip())
    return lines


def _alike(checks: Sequence[Check]) -> list[list[Check]]:
    """Checks that failed between the same hosts for the same reason, together."""
    groups: dict[tuple[object, ...], list[Check]] = {}
    for check in checks:
        key = (check.verdict, check.sender.host, check.target.host, check.reason, check.evidence)
        groups.setdefault(key, []).append(check)
    return list(groups.values())


def _reasons(alike: Sequence[Check], command: Callable[[str], str]) -> list[str]:
    first = alike[0]
    shown = ", ".join(f"{c.sender.name} → {c.target.name}" for c in alike[:PAIRS_SHOWN])
    more = f" and {len(alike) - PAIRS_SHOWN} more" if len(alike) > PAIRS_SHOWN else ""
    return [
        f"{coloured(first.verdict)}  {first.sender.host} → {first.target.host}: {shown}{more}",
        *(f"  {line}" for line in f"{first.reason}: {first.evidence}".splitlines()),
        f"  try  {command(_next(first))}",
    ]


def _next(check: Check) -> str:
    if check.verdict == INCONCLUSIVE:
        return "status"
    if check.reason == "no_address":
        return f"logs {check.target.host}"
    if "\n" in check.evidence:  # the differences are named already
        return "repair"
    return f"diff {check.sender.host}" if check.reason == "send_error" else "diff"
