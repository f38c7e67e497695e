"""What every verb shares: the global options, where results and progress go, and which cluster is meant.

The global options may stand before the verb or behind it; `shared` puts them on both, and each value given
is written into the one `App` of this call. Results go to standard output, everything else to standard
error, so that a pipe only ever carries results.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from overlaynet.cli import names, output
from overlaynet.errors import OverlayError, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from overlaynet.cluster.cluster import Cluster

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE_S = 1.0
"""What takes no longer needs no progress."""
PROGRAM = "overlaynet "
LOOKS = frozenset({"trace", "explain", "capture", "verify", "diff", "repair", "get", "describe", "graph"})
"""Verbs that find out what is wrong, or hold what is there against what should be."""
_SAYS_LAB = re.compile(r" (?:-l|--lab|--help|labs|doctor|clean)\b")
"""A command that names its lab, or is about none."""


def choose(lab: str | None) -> Cluster:
    """The cluster that is meant: imported only now, since help and version need none. Raises LabChoice."""
    from overlaynet.cluster.contexts import choose_context

    return choose_context(lab)


def is_dumb() -> bool:
    """Whether the terminal knows neither colours nor how to move about, as an editor's window (terminfo(5))."""
    return os.environ.get("TERM") == "dumb"


@dataclass(slots=True)
class App:
    """One call of the command line. `verb`: what is being run. `timeout_s` is None where the verb's own default
    holds; `named` says that the lab was chosen by an option, so that a next command must choose it as well."""

    lab: str | None = None
    verb: str = ""
    format: str = "table"
    quiet: bool = False
    colour: bool | None = None
    timeout_s: float | None = None
    named: bool = False
    explaining: bool = False
    pick: Callable[[str | None], Cluster] = choose
    started_s: float = field(default_factory=time.monotonic)
    _cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        """The lab (or real cluster) that is meant, chosen when it is first asked for."""
        if self._cluster is None:
            self._cluster = self.pick(self.lab)
            self.lab = self._cluster.name
            self._count_look(self._cluster)
        return self._cluster

    def _count_look(self, cluster: Cluster) -> None:
        """Some lessons ask to be found out with few looks."""
        if self.verb in LOOKS:
            from overlaynet.cluster.contexts import LabCluster
            from overlaynet.lab import looks

            if isinstance(cluster, LabCluster):
                looks.count(cluster.lab.paths, self.verb)

    @property
    def wide(self) -> bool:
        return self.format == "wide"

    @property
    def width(self) -> int | None:
        """Columns of the terminal that a table has to fit; None where there is no limit."""
        return None if self.wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns

    def command(self, words: str) -> str:
        """A command to type next, about the same lab. Behind ``exec NAME`` all is another program's."""
        if not self.named:
            return f"{PROGRAM}{words}"
        if words.startswith("exec "):
            return f"{PROGRAM}exec -l {self.lab} {words.removeprefix('exec ')}"
        return f"{PROGRAM}{words} -l {self.lab}"

    def _typed(self, line: str) -> str:
        """A next command of an error, about the same lab if it is one of ours and says nothing of that."""
        ours = line.startswith(PROGRAM) and not _SAYS_LAB.search(line)
        return self.command(line.removeprefix(PROGRAM)) if ours else line

    def timeout(self, default_s: float) -> float:
        return default_s if self.timeout_s is None else self.timeout_s

    def result(
        self,
        kind: str,
        members: Mapping[str, Any],
        text: str | Callable[[], str],
        names: Sequence[str] = (),
    ) -> None:
        """Print the answer in the form that was asked for. `text` may be put off until it is needed."""
        match self.format:
            case "json":
                self.echo(output.to_json(output.document(kind, self.lab, members)))
            case "yaml":
                self.echo(output.to_yaml(output.document(kind, self.lab, members)))
            case "name":
                for name in names:
                    self.echo(name)
            case _:
                self.echo(text() if callable(text) else text)

    def explain(self, blocks: Callable[[Any], Iterable[Any]]) -> None:
        """Tell the command lines that `cli/commands.py`, given to `blocks`, makes of it, if they are wanted."""
        if self.explaining:
            from overlaynet.cli import commands

            commands.tell(self, blocks(commands))

    def explain_store(self) -> None:
        """The same of all that is asked of etcd from now on."""
        if self.explaining:
            from overlaynet.cli import commands

            commands.follow_store(self)

    def _advise(self, error: OverlayError) -> None:
        """The etcd of a lab on this machine is the lab's to start again; any other is not ours. Next commands
        are about the lab that was asked about."""
        error.next = tuple(map(self._typed, error.next))
        if isinstance(error, StoreUnavailable) and self._cluster is not None:
            from overlaynet.lab.state import LOCAL

            if self._cluster.name != LOCAL and self._cluster.one_machine:
                error.next = (self.command("up"),)

    def fail(self, error: OverlayError) -> int:
        """Print an error in the form that was asked for; its exit code."""
        self._advise(error)
        if self.format in ("json", "yaml"):
            write = output.to_json if self.format == "json" else output.to_yaml
            self.echo(write(output.error_document(error, self.lab)))
        else:
            click.echo(output.error_block(error), err=True, color=self.colour)
        return error.exit_code

    def warn(self, error: OverlayError) -> None:
        """An error that leaves a partial answer: standard error, also when quiet."""
        self._advise(error)
        click.echo(output.error_block(error), err=True, color=self.colour)

    def echo(self, text: str) -> None:
        click.echo(text, color=self.colour)

    def note(self, text: str) -> None:
        """A line about what is going on, for a person: standard error, unless quiet."""
        if not self.quiet:
            click.echo(text, err=True, color=self.colour)

    def note_written(self, files: Iterable[object]) -> None:
        """Which files there are now, for whoever reads no more than the answer."""
        for file in files:
            self.note(f"written to {file}")

    def _note_later(self, text: str) -> None:
        """A step as a line, but for what is done within the first second anyway."""
        if time.monotonic() - self.started_s > PATIENCE_S:
            self.note(text)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show what a longer piece of work is at: a spinner on a terminal, else a line for each step."""
        if self.quiet or self.colour is False or not sys.stderr.isatty():
            yield self._note_later
            return
        from rich.console import Console

        from overlaynet.lab.sandbox import register_at_join

        spinner = Console(stderr=True).status(title)
        with register_at_join(spinner.stop, spinner.start), spinner:  # it is turned by a thread
            yield spinner.update

    @contextmanager
    def asking(self) -> Iterator[Cluster]:
        """The cluster, for a question that takes long enough for progress only where hosts are machines."""
        if self.cluster.one_machine:
            yield self.cluster
            return
        with self.progress("asking the machines"):
            yield self.cluster


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            app = ctx.ensure_object(App)
            setattr(app, name, value)
            app.named = app.named or name == "lab"

    return callback


def _option(name: str, *flags: str, **settings: Any) -> Callable[[F], F]:
    """An option whose value goes into the App and not into the command's arguments."""
    return click.option(*flags, name, expose_value=False, callback=_keep(name), **settings)


_SHARED = (
    _option(
        "lab",
        "-l",
        "--lab",
        metavar="NAME",
        shell_complete=names.labs,
        help="Which lab (also: OVERLAYNET_LAB).",
    ),
    _option("format", "-o", "--output", type=click.Choice(output.FORMATS), help="Form of the result."),
    _option(
        "explaining",
        "--explain-commands",
        is_flag=True,
        default=None,
        help="Tell (on standard error) by which commands of ip, iptables, etcdctl, ... one could do the same.",
    ),
    _option("quiet", "-q", "--quiet", is_flag=True, default=None, help="The result alone, no progress."),
    _option("colour", "--no-color", flag_value=False, default=None, help="Plain text."),
    _option(
        "timeout_s", "--timeout", type=click.FloatRange(min=0.1), metavar="S", help="Give up after S seconds."
    ),
)


def shared(command: F) -> F:
    """Add the global options to a command."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


pass_app = click.make_pass_decorator(App, ensure=True)


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask the person at the terminal; where there is none, whoever wrote the script has decided. Raises
    UsageError if the answer is no."""
    if yes or not sys.stdin.isatty():
        return
    if not click.confirm(question, err=True):
        raise UsageError("nothing was changed", evidence="the answer was no")
