"""`overlaynet break` and `overlaynet heal`: faults on purpose, so that what they do can be seen.

overlaynet break KIND TARGET…      record it, take holds, make it
overlaynet heal [ID…]              undo it, all of it if none is named
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from overlaynet.cli import names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.output import members, seconds, table
from overlaynet.cli.values import duration, parsed
from overlaynet.cluster.breaking import changing_faults
from overlaynet.cluster.contexts import LabCluster
from overlaynet.errors import UsageError
from overlaynet.lab import faultkinds, faultrecords
from overlaynet.lab.faultkinds import Request
from overlaynet.lab.faultrecords import HIDDEN, Fault
from overlaynet.lab.faults import Made

_KIND_COLUMNS = (*members("KIND"), *members("TARGET=usage", wide=True), *members("WHAT", "EXAMPLE"))


def _length(text: str) -> float:
    """How long a fault is to last: some time at least."""
    if not (length_s := duration(text)):
        raise ValueError("a fault lasts longer than 0 s")
    return length_s


@click.command(name="break")
@click.argument("kind", required=False, shell_complete=names.fault_kinds)
@click.argument("target", nargs=-1, shell_complete=names.fault_targets)
@click.option("--list", "listing", is_flag=True, help="Kinds of fault with an example each.")
@click.option(
    "--for", "for_s", callback=parsed(_length), metavar="30s", help="Heal it by itself after a while."
)
@click.option("--no-hold", is_flag=True, help="Let agents repair what is theirs, and tell how long it took.")
@click.option("--wrong", is_flag=True, help="Do not delete the entry, let it lead elsewhere.")
@click.option("--to", metavar="ADDR|HOST|MAC", help="The same, and where it leads.")
@click.option("--drop", is_flag=True, help="Put in a rule that drops SRC's packets to DST.")
@click.option("--reject", is_flag=True, help="The same, and their sender is told.")
@shared
@pass_app
def break_(
    app: App,
    kind: str | None,
    target: tuple[str, ...],
    listing: bool,
    for_s: float | None,
    no_hold: bool,
    wrong: bool,
    to: str | None,
    drop: bool,
    reject: bool,
) -> None:
    """Break something in a lab on purpose: `overlaynet break --list` has the kinds.

    What an agent looks after it leaves alone until the fault is healed. PLACE is a host, a container, etcd,
    underlay or outside; a host or container may be named wherever its address is meant.
    """
    if listing:
        _list(app)
        return
    if kind is None:
        raise UsageError("what is to be broken?", next=["overlaynet break --list"])
    if drop and reject:
        raise UsageError("a rule drops or it rejects", evidence="--drop and --reject")
    lab = _lab(app, "broken")
    request = Request(target, wrong, to, "DROP" if drop else "REJECT" if reject else None)
    with app.asking(), changing_faults(lab) as faults:
        made = faults.make(kind.lower(), request, time.time(), for_s, hold=not no_hold)
    fault, damage = made.fault, made.fault.damage
    document = {
        **{name: value for name, value in fault.as_item().items() if name != "kind"},
        "fault_kind": fault.kind,
        "done": list(map(str, faultrecords.making(damage))),
        "undo": [app.command(f"heal {fault.id}"), *map(str, faultrecords.mending(damage))],
        "repaired_s": made.repaired_s,
    }
    app.result("Fault", document, lambda: made_text(made, app.command), [fault.id])
    app.explain(lambda commands: commands.of_words(faultrecords.making(damage)))


def made_text(made: Made, command: Callable[[str], str]) -> str:
    """What was done in the words of the tools, who leaves it alone, and how to undo it."""
    fault, damage = made.fault, made.fault.damage
    ends = "until healed" if fault.for_s is None else f"for {seconds(fault.for_s)}"
    lines = [f"{fault.id}  {fault.words}, {ends}"]
    lines += _labelled("done", map(str, faultrecords.making(damage)))
    if made.repaired_s is not None:
        took = f"repaired by the agent of {damage.host} after {seconds(made.repaired_s)}"
        return "\n".join([*lines, f"{took}; nothing is broken now"])
    held = (f"{h.kind} {h.key}: the agent of {h.host} leaves it alone" for h in damage.holds)
    lines += _labelled("held", held)
    free = set() if damage.kills else set(damage.owners) - {h.host for h in damage.holds}
    lines += [f"  {'free':<6}the agent of {host} repairs it as soon as it can" for host in sorted(free)]
    lines += _labelled("undo", map(str, faultrecords.mending(damage)))
    return "\n".join([*lines, f"next: {command(f'heal {fault.id}')}"])


def _labelled(label: str, lines: Iterable[str]) -> list[str]:
    return [f"  {label if n == 0 else '':<6}{line}" for n, line in enumerate(lines)]


def _list(app: App) -> None:
    items = [
        {"kind": name, "usage": kind.usage, "what": kind.what, "example": kind.example}
        for name, kind in faultkinds.KINDS.items()
    ]
    text = table(_KIND_COLUMNS, items, wide=app.wide)
    app.result("FaultKinds", {"items": items}, text, list(faultkinds.KINDS))


@click.command()
@click.argument("fault", nargs=-1, shell_complete=names.faults)
@click.option("--all", "everything", is_flag=True, help="Every fault, as without a name.")
@shared
@pass_app
def heal(app: App, fault: tuple[str, ...], everything: bool) -> None:
    """Undo what was broken on purpose: the named faults, or all of them, newest first."""
    if fault and everything:
        raise UsageError("--all, or some by name", evidence=" ".join(fault), next=["overlaynet heal --help"])
    lab = _lab(app, "healed")
    with app.asking(), changing_faults(lab) as faults:
        healed = faults.heal(fault, time.time())
        left = faults.all
    document = {"items": [one.as_item() for one in healed], "left": [one.as_item() for one in left]}
    app.result("Healed", document, lambda: healed_text(healed, left), [one.id for one in healed])
    mended = [words for one in healed if not one.hidden for words in faultrecords.mending(one.damage)]
    app.explain(lambda commands: commands.of_words(mended))


def healed_text(healed: Sequence[Fault], left: Sequence[Fault]) -> str:
    """A line for each, and what is still broken."""
    lines = [f"healed {one.id}  {one.words}" for one in healed] or ["nothing is broken"]
    return "\n".join([*lines, *(fault_line(one.as_item()) for one in left)])


def fault_line(item: Mapping[str, Any]) -> str:
    """One fault that there is, in a line."""
    if item["kind"] == HIDDEN:
        return f"hidden  {item['id']}, to be found: overlaynet lab check"
    until = "until healed" if item["until"] is None else f"until {item['until']}"
    return f"broken  {item['id']} {item['kind']} {item['target']}".rstrip() + f", {until}: {item['object']}"


def _lab(app: App, what: str) -> LabCluster:
    cluster = app.cluster
    if not isinstance(cluster, LabCluster):
        raise UsageError(
            f"only labs can be {what}; {cluster.name} is none",
            evidence="what runs in earnest is not broken on purpose",
            next=["overlaynet up", "overlaynet get labs"],
        )
    return cluster
