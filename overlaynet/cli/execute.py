"""`overlaynet exec` and `overlaynet shell`: being in a container or on a host."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from subprocess import Popen

import click

from overlaynet.cli import names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cluster import known
from overlaynet.errors import NotFound, OverlayError, UsageError

COULD_NOT_START = 125


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@shared
@click.argument("name", shell_complete=names.places)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, shell_complete=names.programs)
@pass_app
def execute(app: App, name: str, command: Sequence[str]) -> int:
    """Run COMMAND in the network namespace of a container or host: exec web-1 -- ping -c1 web-3

    An argument that is exactly the name of a container or host, or `outside`, becomes its address. The exit
    code is the command's own, or 125 if it could not be started. SIGTERM and SIGHUP are handed on to it.
    """
    argv = list(command[1:] if command[:1] == ("--",) else command)
    try:
        if not argv:
            raise UsageError("no command was given", next=[f"overlaynet exec {name} -- ip address"])
        line = with_addresses(argv, known.addresses(app.cluster))
        app.explain(lambda commands: commands.running(app, name, line))
        return run_in(app, name, line)
    except OverlayError as error:
        app.fail(error)
        return COULD_NOT_START


def with_addresses(argv: Sequence[str], addresses: Mapping[str, str]) -> list[str]:
    """The command line with names as addresses; the program itself is never one."""
    return [*argv[:1], *(addresses.get(word, word) for word in argv[1:])]


def run_in(app: App, target: str, argv: Sequence[str]) -> int:
    """Run a command there on our own terminal; its exit code, or 128 and the signal that ended it.

    Raises NotFound for a program or target that is not there, LabFailed."""
    check_target(app, target)
    if app.cluster.one_machine and shutil.which(argv[0]) is None:
        raise NotFound(f"there is no program {argv[0]!r}", evidence="looked on PATH")
    with _handing_on() as heirs:
        heirs.append(process := app.cluster.start(target, argv))
        # The terminal sends Ctrl-C to the command as well; it decides what that means, we only wait.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _handing_on() -> Iterator[list[Popen[bytes]]]:
    """Whoever ends us means the command, which would stay behind: it gets the signal, and decides. What comes
    before there is one is not for it; what we are to ignore (nohup) it ignores as well."""
    heirs: list[Popen[bytes]] = []

    def hand_on(number: int, _: object) -> None:
        if not heirs:
            raise SystemExit(128 + number)
        heirs[0].send_signal(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if before[number] != signal.SIG_IGN:
            signal.signal(number, hand_on)
    try:
        yield heirs
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_target(app: App, target: str) -> None:
    """Raises NotFound unless there is a container or host of that name."""
    known = app.cluster.places()
    if target not in known:
        raise NotFound(
            f"there is no container or host {target!r} in {app.cluster.name}",
            evidence="there are " + (", ".join(known) or "none"),
            next=["overlaynet get containers"],
        )


@click.command()
@click.argument("name", required=False, shell_complete=names.places)
@shared
@pass_app
def shell(app: App, name: str | None) -> int:
    """Open a shell in the network namespace of a container or host, or a prompt for the verbs.

    With NAME: a shell there. Names of containers and hosts are variables that hold their addresses: ping $web_3

    Without: a prompt at which the verbs need no `overlaynet` in front, and `web-1 ping -c1 web-3` is short for
    `exec web-1 -- ping -c1 web-3`. It has history and completion; help, exit and Ctrl-D do what they say. From
    a pipe it reads lines as a script. The exit code is that of the last line.
    """
    if name is None:
        from overlaynet.cli import prompt

        return prompt.session(app)
    addresses = known.addresses(app.cluster)
    check_target(app, name)
    if sys.stdin.isatty():
        app.note(
            f"in {name}; addresses: " + "  ".join(f"${variable(n)}={ip}" for n, ip in sorted(addresses.items()))
        )
    bash = shutil.which("bash") if app.cluster.one_machine else "bash"
    argv = shell_argv(name, app.cluster.name, addresses, bash)
    return run_in(app, name, [*argv[:1], *_history(app), *argv[1:]])


def _history(app: App) -> list[str]:
    """Where bash keeps what was typed, apart from the user's own. Another machine's or user's files are not
    ours."""
    if not app.cluster.one_machine:
        return []
    from overlaynet.cli.prompt import history_file

    file = history_file("shell_history")
    if file is None:
        return []
    with suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return [f"HISTFILE={file}"]


def variable(name: str) -> str:
    return name.replace("-", "_")


def shell_argv(name: str, lab: str, addresses: Mapping[str, str], bash: str | None) -> list[str]:
    """An interactive shell with a prompt that says where it is; `bash` is that one if there is one."""
    program = [bash, "--norc", "-i"] if bash else [os.environ.get("SHELL", "/bin/sh"), "-i"]
    prompt = f"[{name}] \\w \\$ " if bash else f"[{name}] $ "
    names = [f"{variable(n)}={ip}" for n, ip in sorted(addresses.items())]
    return ["env", f"PS1={prompt}", f"OVERLAYNET_LAB={lab}", *names, *program]
