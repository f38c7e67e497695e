"""The command `overlaynet`: finds the verb, runs it, and turns every ending into an exit code.

Verbs are imported when they are used, so that help and a mistyped word answer at once.

    exit  meaning
    0     yes
    1     proved no (it differs, it cannot be reached, it did not converge)
    2     usage or bad input; nothing was touched
    3     the environment: no privilege, a tool or etcd missing, or a bug in this program
    4     inconclusive
    130   interrupted
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

from overlaynet.cli import output
from overlaynet.cli.app import App, is_dumb, shared
from overlaynet.errors import OverlayError, UsageError

INTERRUPTED = 130
ENVIRONMENT = 3


class Verb(NamedTuple):
    """Where a verb is and what it does, in a line. Grouped as the help shows them."""

    group: str
    where: str
    what: str


_LAB, _LOOK, _PROVE, _CHANGE = "Labs", "Look", "Prove and mend", "Cluster"
VERBS: Mapping[str, Verb] = {
    "up": Verb(_LAB, "lifecycle:up", "Bring a lab up, or to what its topology says."),
    "down": Verb(_LAB, "lifecycle:down", "Take a lab down and remove all of it."),
    "clean": Verb(_LAB, "lifecycle:clean", "Remove what labs that are not running left behind."),
    "lab": Verb(_LAB, "lab:lab", "Lessons: start one, predict, check, get a hint, report."),
    "status": Verb(_LOOK, "status:status", "How the cluster is."),
    "get": Verb(_LOOK, "get:get", "List hosts, containers, services, endpoints, routes, rules, ..."),
    "describe": Verb(_LOOK, "describe:describe", "A service with its endpoints, connections and chains."),
    "graph": Verb(_LOOK, "graph:graph", "Draw what is connected to what."),
    "logs": Verb(_LOOK, "logs:logs", "What a host's agent said."),
    "exec": Verb(_LOOK, "execute:execute", "Run a command in a container or host."),
    "shell": Verb(_LOOK, "execute:shell", "Open a shell in a container or host."),
    "explain": Verb(_PROVE, "explain:explain", "Predict a packet's path and say which entries decide it."),
    "trace": Verb(_PROVE, "trace:trace", "Send a packet, capture it at every hop, prove where it went."),
    "verify": Verb(_PROVE, "verify:verify", "Prove mesh, services, mtu and isolation by sending."),
    "capture": Verb(_PROVE, "capture:capture", "Capture at points of hosts and containers, many at once."),
    "diff": Verb(_PROVE, "repair:diff", "What differs between intended and real state."),
    "repair": Verb(_PROVE, "repair:repair", "Make the real state what it should be."),
    "break": Verb(_PROVE, "faults:break_", "Break something in a lab on purpose, for a while or until healed."),
    "heal": Verb(_PROVE, "faults:heal", "Undo what was broken on purpose."),
    "doctor": Verb(_PROVE, "doctor:doctor", "Check whether this machine has what is needed."),
    "attach": Verb(_CHANGE, "attach:attach", "Wire a container to the overlay."),
    "detach": Verb(_CHANGE, "attach:detach", "Unwire a container, at once or with a grace period."),
    "apply": Verb(_CHANGE, "apply:apply", "Write Kubernetes Services and EndpointSlices from a file."),
    "service": Verb(_CHANGE, "service:service", "Create and delete services."),
    "network": Verb(_CHANGE, "network:network", "Show or set the network's configuration."),
    "lease": Verb(_CHANGE, "lease:lease", "List, reserve and delete leases of subnets."),
    "agent": Verb(_CHANGE, "agent:agent", "Install the agent as a service of this machine, or remove it."),
    "completion": Verb(
        _CHANGE, "completion:completion", "Print a script that completes names for bash, zsh or fish."
    ),
    "version": Verb(_CHANGE, "version:version", "Print the version."),
}


class Verbs(click.Group):
    """A group whose commands are imported on demand and whose help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name].where.partition(":")
        ctx.ensure_object(App).verb = name
        command = getattr(import_module(f"overlaynet.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in dict.fromkeys(verb.group for verb in VERBS.values()):
            with formatter.section(group):
                formatter.write_dl([(n, v.what) for n, v in VERBS.items() if v.group == group])


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 yes, 1 proved no, 2 usage, 3 environment, 4 inconclusive.",
)
@shared
def cli() -> None:
    """A container overlay network, and the lab that proves what its packets do.

    The global options may stand before or behind the verb.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and answer its exit code. Never raises but for SystemExit."""
    _complete_standard_files()
    if arguments is None and (shell := os.environ.get("_OVERLAYNET_COMPLETE")):
        from overlaynet.cli.completion import answer

        return answer(shell)
    return run(list(sys.argv[1:] if arguments is None else arguments), App())


def _complete_standard_files() -> None:
    """Whoever starts a program without one of these has the next file that it opens take the number of it."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 (it has no path)


def run(arguments: Sequence[str], app: App) -> int:
    """The same with a given App, which tests prepare."""
    app.lab = app.lab or os.environ.get("OVERLAYNET_LAB") or None
    if os.environ.get("NO_COLOR") or is_dumb():
        app.colour = False
    try:
        return _run(arguments, app)
    except BrokenPipeError:
        # The reader has gone; nothing more can be said, and Python must not try to at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: Sequence[str], app: App) -> int:
    try:
        answer = cli.main(list(arguments), prog_name="overlaynet", standalone_mode=False, obj=app)
        return answer if isinstance(answer, int) else 0
    except OverlayError as error:
        return app.fail(error)
    except click.ClickException as error:
        app.format = _format(arguments) or app.format
        return app.fail(_usage(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # the last resort: say that it is our fault, and how to tell us
        return app.fail(_bug(error))


def _usage(error: click.ClickException) -> UsageError:
    """click's word on a mistyped line, as an error of ours with the help to read."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "overlaynet"
    return UsageError(error.format_message(), next=[f"{path} --help"])


def _format(arguments: Sequence[str]) -> str | None:
    """The form of result asked for on a line that could not be parsed."""
    for n, word in enumerate(arguments):
        if word == "--":
            break
        for flag in ("--output=", "-o"):
            value = word.removeprefix(flag)
            if word in ("-o", "--output"):
                value = arguments[n + 1] if n + 1 < len(arguments) else ""
            if value != word and value in output.FORMATS:
                return value
    return None


def _bug(error: Exception) -> OverlayError:
    import platform
    import traceback

    from overlaynet import __version__

    trace = "".join(traceback.format_exception(error)).rstrip()
    system = f"overlaynet {__version__}, Python {platform.python_version()}, Linux {platform.release()}"
    return OverlayError(
        f"a bug in overlaynet: {type(error).__name__}: {error}",
        evidence=f"{system}\n{trace}",
        next=["please report it with the lines above and the command you typed", "overlaynet doctor"],
    )


if __name__ == "__main__":
    sys.exit(main())
