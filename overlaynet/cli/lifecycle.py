"""`overlaynet up`, `down` and `clean`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import click

from overlaynet.cli import inventory
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.inventory import Items
from overlaynet.cli.leftovers import Leftover, leftovers
from overlaynet.cluster import building
from overlaynet.cluster.building import Inventory
from overlaynet.cluster.contexts import LabCluster, of_lab
from overlaynet.errors import LabFailed, UsageError
from overlaynet.lab import lifecycle
from overlaynet.lab.lab import UP_TIMEOUT_S, Lab
from overlaynet.lab.paths import Paths
from overlaynet.lab.settling import UpResult
from overlaynet.lab.state import LOCAL, choose, load, running_labs
from overlaynet.lab.topology import DEFAULT_NAME, Topology

HOSTS, CONTAINERS = 3, 2
NOT_CONVERGED = STILL_THERE = 1
HELP = "overlaynet up --help"
ON_MACHINES = "overlaynet up --driver ssh --inventory"
DRIVERS = ("netns", building.SSH, building.VAGRANT)


@click.command()
@click.argument("topology", required=False, type=click.Path(path_type=Path))
@click.option("-f", "--file", type=click.Path(path_type=Path), help="The topology file, in place of TOPOLOGY.")
@click.option("--hosts", type=click.IntRange(1), help=f"Hosts, where there is no file (default {HOSTS}).")
@click.option(
    "--containers", type=click.IntRange(0), help=f"Containers on each of them (default {CONTAINERS})."
)
@click.option("--driver", type=click.Choice(DRIVERS), help="What the hosts are (default: namespaces).")
@click.option(
    "--inventory", "machines_file", type=click.Path(path_type=Path), help="The machines, as an ssh_config(5)."
)
@shared
@pass_app
def up(
    app: App,
    topology: Path | None,
    file: Path | None,
    hosts: int | None,
    containers: int | None,
    driver: str | None,
    machines_file: Path | None,
) -> int:
    """Bring a lab up, or to what its topology says.

    Without a file: --hosts hosts, each with --containers containers; without any of these, a lab that is
    there already is made whole as it was. A running lab is changed only where it differs. Exit code 1 if
    the hosts did not settle within --timeout (60 s).

    With --driver ssh, hosts are the machines of an inventory, which run the agent already; with --driver
    vagrant they are those of the Vagrantfile in the current directory.
    """
    if topology is not None and file is not None:
        raise UsageError("two topology files were named", evidence=f"{topology} and {file}", next=[HELP])
    chosen = topology or file
    machines = _machines(app, chosen, driver, machines_file)
    if machines is None:
        wanted = _topology(app, chosen, hosts, containers)
    else:
        wanted = _topology_on(app, machines, chosen, hosts, containers)
    app.lab = wanted.name
    timeout_s = app.timeout(UP_TIMEOUT_S)
    with app.progress(f"lab {wanted.name}") as say:
        if machines is None:
            result = Lab.up(wanted, timeout_s=timeout_s, progress=teller(say))
        else:
            result = building.up(
                wanted,
                machines,
                Paths.here().mine,
                timeout_s=timeout_s,
                any_network=chosen is None,
                progress=teller(say),
            )
    app.named = app.named or len(running_labs(Paths.here())) > 1
    items = _hosts(of_lab(Lab.open(result.lab)))
    members = {
        "changes": result.changes,
        "healed": [fault.as_item() for fault in result.healed],
        "hosts": items,
        "ready_s": round(result.ready_s, 3),
        "converged": result.converged,
        "waiting": list(result.waiting),
    }
    app.result("Up", members, lambda: up_text(items, result, app.command), [wanted.name])
    app.explain(lambda commands: commands.of_cluster(app, Lab.open(result.lab)))
    return 0 if result.converged else NOT_CONVERGED


def _machines(app: App, file: Path | None, driver: str | None, listed: Path | None) -> Inventory | None:
    """The machines that are meant: those asked for, or those of a lab that is there; None for namespaces."""
    if listed is not None and driver != building.SSH:
        raise UsageError("--inventory is for --driver ssh", next=[f"{ON_MACHINES} {listed}", HELP])
    if driver == building.VAGRANT:
        return Inventory.of_vagrant()
    if listed is not None:
        return Inventory.read(listed)
    paths = Paths.here().mine
    name = app.lab or (Topology.load(file).name if file else DEFAULT_NAME)
    known = load(paths.lab(name)) if name in running_labs(paths) else None
    if known is not None and known.on_machines and driver in (None, known.driver):
        return Inventory.read(paths.lab(name).inventory, known.driver)
    if driver == building.SSH:
        raise UsageError(
            "which machines?",
            evidence="--driver ssh without --inventory",
            next=[f"{ON_MACHINES} FILE", HELP],
        )
    return None


def _topology_on(
    app: App, machines: Inventory, file: Path | None, hosts: int | None, containers: int | None
) -> Topology:
    """Without a file: all machines of the inventory, with --containers containers; or what is there already."""
    if hosts is not None:
        raise UsageError("the inventory says which hosts there are", evidence="--hosts", next=[HELP])
    if file is not None:
        return _topology(app, file, hosts, containers)
    name = app.lab or DEFAULT_NAME
    if containers is None and (known := load(Paths.here().mine.lab(name))) is not None:
        return known.topology
    return Topology.of_hosts(machines.hosts, name, CONTAINERS if containers is None else containers)


def _topology(app: App, file: Path | None, hosts: int | None, containers: int | None) -> Topology:
    if file is not None:
        if hosts is not None or containers is not None:
            raise UsageError(
                "a topology file says how many hosts there are",
                evidence="--hosts or --containers",
                next=[HELP],
            )
        return Topology.load(file, app.lab)
    name = app.lab or DEFAULT_NAME
    if hosts is None and containers is None and (known := load(Paths.here().mine.lab(name))) is not None:
        return known.topology
    return Topology.simple(name, hosts or HOSTS, CONTAINERS if containers is None else containers)


def teller(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Steps of a lab as lines, each said once."""
    said: set[str] = set()

    def tell(step: str, done: int, total: int) -> None:
        text = f"{step} {done}/{total}" if total > 1 else step
        if text not in said:
            said.add(text)
            say(text)

    return tell


def _hosts(cluster: LabCluster) -> Items:
    """Each host as it is now: a subnet is one that its agent holds."""
    hosts = cluster.hosts()
    items = inventory.host_items(cluster, hosts, inventory.statuses(cluster, hosts))
    return [
        {
            **{member: item[member] for member in ("name", "underlay_ip", "subnet")},
            "containers": [c.name for c in cluster.lab.topology.containers_on(item["name"])],
        }
        for item in items
    ]


def up_text(hosts: Items, result: UpResult, command: Callable[[str], str]) -> str:
    """Each host with its containers, then how many changes it took and what to type next."""
    if result.converged and not result.changes:
        return f"0 changes; lab {result.lab} is as described"
    rows = [(host["name"], host["underlay_ip"] or "-", host["subnet"] or "no subnet") for host in hosts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for host, row in zip(hosts, rows, strict=True):
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join([*padded, *host["containers"]]).rstrip())
    lines += [f"healed   {fault.id} {fault.words}" for fault in result.healed]
    lines += [f"waiting  {text}" for text in result.waiting]
    count = f"{result.changes} change" + ("" if result.changes == 1 else "s")
    state = f"ready in {result.ready_s:.1f} s" if result.converged else "not settled in time"
    step = command("verify mesh" if result.converged else "status")
    return "\n".join([*lines, f"lab {result.lab}: {count}, {state}", f"next: {step}"])


@click.command()
@click.option("--keep-logs", is_flag=True, help="Leave the log files.")
@click.option("--force", is_flag=True, help="Forget machines that cannot be reached.")
@shared
@pass_app
def down(app: App, keep_logs: bool, force: bool) -> int:
    """Take a lab down and remove all of it: processes, namespaces and files.

    On machines that is its containers and services; agents, their leases and the network stay. What cannot be
    reached is told, with exit code 1, and stays recorded for the next `down`.
    """
    paths = Paths.here()
    name = choose(app.lab, os.environ, paths)
    paths = paths.home_of(name)
    if name == LOCAL:
        raise UsageError("`down` takes labs down; this machine is a node of a real cluster")
    app.lab = name
    with app.progress(f"taking lab {name} down"):
        removed, left = _take_down(name, paths, keep_logs=keep_logs, force=force)
    text = down_text(name, left, forced=force, command=app.command)
    app.result("Down", {"removed": removed, "left": list(left)}, text, [name])
    return STILL_THERE if left and not force else 0


def _take_down(name: str, paths: Paths, *, keep_logs: bool, force: bool) -> tuple[int, Sequence[str]]:
    """How many namespaces and processes there were, and what is left."""
    state = None
    with suppress(LabFailed):
        state = load(paths.lab(name))
    if state is None or not state.on_machines:
        return lifecycle.down(name, paths, keep_logs=keep_logs), ()
    result = building.down(name, paths, keep_logs=keep_logs, force=force)
    return result.removed, result.left


def down_text(name: str, left: Sequence[str], *, forced: bool, command: Callable[[str], str]) -> str:
    """That it is down, or what is still there."""
    lines = [f"left     {text}" for text in left]
    if left and not forced:
        return "\n".join([*lines, f"lab {name} is not down everywhere", f"next: {command('down')}"])
    return "\n".join([*lines, f"lab {name} is down"])


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@shared
@pass_app
def clean(app: App, yes: bool) -> None:
    """Remove what labs that are not running left behind: namespaces, processes, files.

    Lists it first and asks. With -l it is about that lab alone.
    """
    paths = Paths.here()
    found = [item for item in leftovers(paths) if not app.named or item.lab == app.lab]
    agreed = bool(found) and (yes or _agreed(app, found))
    for item in found if agreed else ():
        lifecycle.down(item.lab, paths.home_of(item.lab))
    members = {"removed": agreed, "items": [item.as_json() for item in found]}
    app.result("Clean", members, lambda: clean_text(found, removed=agreed), [item.lab for item in found])


def _agreed(app: App, found: Sequence[Leftover]) -> bool:
    for item in found:
        click.echo(clean_line(item), err=True, color=app.colour)
    if not sys.stdin.isatty():
        raise UsageError("`clean` asks before it removes anything", next=["overlaynet clean --yes"])
    return click.confirm("remove all of it?", err=True)


def clean_text(found: Sequence[Leftover], *, removed: bool) -> str:
    """What became of the leftovers."""
    if not found:
        return "nothing to clean"
    return "\n".join([*map(clean_line, found), "removed" if removed else "nothing was removed"])


def clean_line(item: Leftover) -> str:
    return f"lab {item.lab}: {item.why}; " + (
        ", ".join([*item.namespaces, *item.directories]) or "nothing else"
    )
