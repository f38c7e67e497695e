"""`overlaynet verify`: suites of checks, each proved by sending and by looking at what passes.

mesh        every container reaches every other
services    every service is answered by all of its endpoints, and refused where there are none
mtu         packets of full size pass, larger ones are refused and never lost in silence
isolation   what belongs into the tunnel stays there, and it is closed to containers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from overlaynet.cli.app import PROGRAM, App, pass_app, shared
from overlaynet.cli.output import Column, coloured, member, members, table
from overlaynet.cli.surveys import differences
from overlaynet.cluster import known
from overlaynet.cluster.cluster import Cluster, Container, Host, each_host, read_view
from overlaynet.errors import EnvironmentProblem, OverlayError, StoreError
from overlaynet.lab.state import LOCAL
from overlaynet.probe import mesh
from overlaynet.probe.mesh import FAIL, INCONCLUSIVE, PASS, Check, Member, Report
from overlaynet.proof.verify import report as reports
from overlaynet.proof.verify.report import Suite

TIMEOUT_S = 60.0
MATRIX_MAX = 12
"""Containers up to which the whole matrix is shown; beyond, only what did not pass."""
TABLE_MAX = 24
"""Checks of a suite up to which all are shown; beyond, only those that did not pass."""
MESH, ALL = "mesh", "all"
SUITES = (MESH, "services", "mtu", "isolation")

PAIRS_SHOWN = 4
EVIDENCE_LINES = 8
_CELLS = {PASS: ".", FAIL: "X", INCONCLUSIVE: "?"}
_COLUMNS: tuple[Column, ...] = (*members("FROM", "TO", "VERDICT"), member("SEEN", "note"))


@click.command()
@click.argument("suite", type=click.Choice([*SUITES, ALL]), default=MESH)
@click.option("--junit", type=click.Path(dir_okay=False), metavar="FILE", help="Write JUnit's XML as well.")
@shared
@pass_app
def verify(app: App, suite: str, junit: str | None) -> int:
    """Prove that the network does what it should, by sending.

    \b
      mesh       every container reaches every other (the default)
      services   every service is answered by all its endpoints, refused where it has none
      mtu        packets of full size pass, larger ones are refused, none is lost in silence
      isolation  containers' packets stay in the tunnel, which is closed to forged ones; no ARP
      all        each of them

    Needs no agent; services needs etcd, which says what should be. Exit code 0 if every check passed, 1 if any
    failed, 4 if some proved nothing. What failed is told with evidence and a command to go on with.
    """
    _writable(junit)
    with app.progress("verifying") as say:
        found: list[Suite] = []
        pairs: Report | None = None
        for name in SUITES if suite == ALL else (suite,):
            began = time.monotonic()
            if name == MESH:
                pairs = _mesh(app, say)
                found.append(reports.of_mesh(pairs, time.monotonic() - began))
            else:
                found.append(_run(app, name, say, began))
    if junit is not None:
        Path(junit).write_bytes(reports.junit(found))
    names = [check.id for one in found for check in one.checks if check.verdict != PASS]
    app.result("Verify", reports.document(found), lambda: _text(app, found, pairs), names)
    return reports.exit_code(found)


def _writable(junit: str | None) -> None:
    """Raises EnvironmentProblem, before anything is done."""
    if junit is not None:
        try:
            Path(junit).open("ab").close()
        except OSError as error:
            raise EnvironmentProblem(f"{junit} could not be written", evidence=str(error)) from error


def _run(app: App, name: str, say: Callable[[str], None], began: float) -> Suite:
    """One suite of those that watch and send by probes that stay. One that cannot run proves nothing."""
    from overlaynet.proof.network import Network

    module = import_module(f"overlaynet.proof.verify.{name}")
    try:
        with Network.of(app.cluster) as net:
            found: Suite = module.run(net, say)
    except OverlayError as error:
        evidence = " ".join(filter(None, [error.message, error.evidence]))
        ours = (line.removeprefix(PROGRAM) for line in error.next if line.startswith(PROGRAM))
        step = next(ours, "status")
        check = reports.Check(
            name, name, name, INCONCLUSIVE, "not_run", evidence, note=error.message, next=step
        )
        found = Suite(name, (check,))
    return Suite(name, found.checks, time.monotonic() - began, found.skipped)


# --- mesh -----------------------------------------------------------------------------------------


def _mesh(app: App, say: Callable[[str], None]) -> Report:
    cluster = app.cluster
    say("asking every pair")
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
    return report


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


def _text(app: App, found: Sequence[Suite], pairs: Report | None) -> str:
    """Each suite, and what did not pass; the sum in the last line."""
    blocks = [
        report_text(pairs, app.command) if suite.name == MESH and pairs else suite_text(app, suite)
        for suite in found
    ]
    if len(found) == 1:
        return blocks[0]
    titled = [f"{suite.name.upper()}\n{block}" for suite, block in zip(found, blocks, strict=True)]
    sums = "   ".join(f"{suite.name} {_short(suite)}" for suite in found)
    return "\n\n".join([*titled, sums])


def _short(suite: Suite) -> str:
    return f"{len(suite.having(PASS))}/{len(suite.checks)}" if suite.checks else "-"


def suite_text(app: App, suite: Suite) -> str:
    """A table, unless it were long; each failure with its evidence; the sum."""
    lines = []
    shown = [check for check in suite.checks if len(suite.checks) <= TABLE_MAX or check.verdict != PASS]
    if shown:
        lines += [table(_COLUMNS, [check.as_json() for check in shown], width=app.width), ""]
    for check in [*suite.having(FAIL), *suite.having(INCONCLUSIVE)]:
        lines += [*_failure(check, app.command), ""]
    return "\n".join([*lines, suite.summary])


def _failure(check: reports.Check, command: Callable[[str], str]) -> Iterator[str]:
    yield f"{coloured(check.verdict)}  {check.sender} → {check.target}: {check.reason}"
    evidence = check.evidence.splitlines()
    yield from (f"  {line}" for line in evidence[:EVIDENCE_LINES])
    if len(evidence) > EVIDENCE_LINES:
        yield f"  ({len(evidence) - EVIDENCE_LINES} more lines: -o json)"
    yield f"  try  {command(check.next)}"


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
