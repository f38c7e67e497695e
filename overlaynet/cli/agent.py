"""`overlaynet agent`: the agent as a service of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from overlaynet.cli.app import App, confirm, pass_app, shared, yes_option
from overlaynet.errors import InstallFailed, UsageError

if TYPE_CHECKING:
    from overlaynet.install.service import Done

READY_WITHIN_S = 60.0


@click.group()
def agent() -> None:
    """Install the agent as a service of this machine, and remove it."""


@agent.command()
@click.option("--no-start", is_flag=True, help="Neither enable nor start the service.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default="/",
    metavar="DIR",
    help="Write into the image at DIR; this machine is left alone.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Becomes agent.toml, in place of one that is there.",
)
@shared
@pass_app
def install(app: App, no_start: bool, root: Path, config: Path | None) -> int:
    """Make the agent a service of this machine, and start it.

    A second time it changes nothing. With another version's programs it is an upgrade: the service is
    restarted, and traffic goes on meanwhile. Exit code 1 if the agent fails again and again.
    """
    from overlaynet.install import service

    with app.progress("installing"):
        done = service.install(
            root=root, start=not no_start, config=config, timeout_s=app.timeout(READY_WITHIN_S)
        )
    app.result("AgentInstall", done.as_json(), lambda: _text(done), [str(c.path) for c in done.changes])
    return 1 if done.service and done.service.state == "failing" else 0


@agent.command()
@click.option("--purge", is_flag=True, help="Settings and state too: this host would come back as a new node.")
@yes_option
@shared
@pass_app
def uninstall(app: App, purge: bool, yes: bool) -> int:
    """Remove the agent, and its devices, routes and rules.

    Containers of this host lose the overlay. To give the host to flanneld without that, use
    `overlaynet-agent hand-over` first. Settings and state are kept without --purge.
    """
    from overlaynet.install import service

    service.require_root("uninstall")
    _ask(purge, yes)
    with app.progress("removing"):
        service.stop()
        _clean()
        done = service.uninstall(purge=purge)
    done.notes += [f"removed with all in it: {path}" for path in service.versions()]
    app.result("AgentUninstall", done.as_json(), lambda: _text(done), [str(c.path) for c in done.changes])
    service.remove_versions()
    return 0


def _ask(purge: bool, yes: bool) -> None:
    if not yes and not sys.stdin.isatty():  # `ssh HOST sudo …`: that is no yes to this
        raise UsageError(
            "`agent uninstall` asks before it removes anything", next=["overlaynet agent uninstall --yes"]
        )
    more = " Its identity goes as well." if purge else ""
    confirm(f"This host leaves the overlay, and its containers with it.{more} Go on?", yes=yes)


def _clean() -> None:
    """By the daemon's own command, for only it knows what is its own. Raises InstallFailed."""
    program = Path(sys.prefix, "bin", "overlaynet-agent")
    done = subprocess.run([program, "clean"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallFailed(
            "the agent was stopped, and what it made in the kernel could not all be removed",
            evidence=(done.stderr or done.stdout).strip(),
            next=["sudo overlaynet-agent clean", "sudo overlaynet agent uninstall"],
        )


def _text(done: Done) -> str:
    lines = [f"{change.op:8}  {change.path}" for change in done.changes if change.real]
    lines += [f"loaded    module {name}" for name in done.modules]
    lines += [f"note      {note}" for note in done.notes]
    return "\n".join([*lines, _last_line(done)])


def _last_line(done: Done) -> str:
    from overlaynet.install.machine import JOURNAL

    words = f"{done.count} changes" if done.count != 1 else "1 change"
    if done.service is None:
        return words
    said = f": {done.service.status}" if done.service.status else ""
    advice = f"\ntry  {JOURNAL}" if done.service.state in ("failing", "starting") else ""
    return f"{words}; the agent is {done.service.state}{said}{advice}"
