"""Writes what is made from the verbs themselves: the manual page, and the lines that Tab completes by.

    python -m overlaynet.cli.manual     writes data/man1/overlaynet.1 and cli/lines.json

The verbs' own helps are the text, so that nothing is said twice; what is about all of them is here. The form is
man(7). A test holds the files to what this makes of the verbs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from overlaynet import __version__, data
from overlaynet.cli import main as program
from overlaynet.cli import names, tree
from overlaynet.cli.get import KINDS
from overlaynet.lab import faultkinds

PAGE = Path(data.__file__).parent / "man1" / "overlaynet.1"

_DESCRIPTION = (
    "overlaynet builds a container overlay network, as flannel and kube-proxy do, in network namespaces of"
    " this machine or on machines of yours, and shows what it is made of. `trace` sends a packet, captures it"
    " at every point of its way, and says which route, neighbour, forwarding entry or rule decided each step,"
    " or where and why the packet was lost. A lab of one's own needs nothing but this program: `up` makes it"
    " and `down` leaves nothing behind."
)
_EXAMPLES = (
    ("Three hosts with two containers each; take it all away again:", ("overlaynet up", "overlaynet down")),
    (
        "Prove that every container reaches every other, and see one packet's way:",
        ("overlaynet verify mesh", "overlaynet trace web-1 web-3"),
    ),
    (
        "Break something on purpose, find it, mend it:",
        ("overlaynet break fdb node-1 node-2 --wrong", "overlaynet trace web-1 web-3", "overlaynet heal"),
    ),
    (
        "What a host's kernel holds, as it changes, and the commands that show the same:",
        ("overlaynet get routes node-1 --watch", "overlaynet get routes node-1 --explain-commands"),
    ),
    ("A prompt for all of it, with history and completion:", ("overlaynet shell",)),
    ("Lessons that begin broken and check themselves:", ("overlaynet lab list",)),
)
_ENVIRONMENT = (
    ("OVERLAYNET_LAB", "The lab that is meant, where no option names one."),
    ("OVERLAYNET_LESSONS", "A folder with lessons of one's own, whose code runs when they are used."),
    ("NO_COLOR", "If it is set to anything, output is plain text."),
    (
        "XDG_RUNTIME_DIR, XDG_STATE_HOME",
        "Where a user who is not root has labs, in a folder `overlaynet` of each; the second, by default"
        " ~/.local/state, holds everybody's history.",
    ),
)
_FILES = (
    (
        "/run/overlaynet/labs/LAB",
        "A running lab of root's: lab.json, faults.json, logs, a folder for each host.",
    ),
    ("/var/lib/overlaynet/labs/LAB", "What of it outlives a reboot of this machine."),
    ("$XDG_RUNTIME_DIR/overlaynet, $XDG_STATE_HOME/overlaynet", "The same of a user's labs."),
    ("$XDG_STATE_HOME/overlaynet/history", "What was typed at the prompt of `overlaynet shell`."),
    ("/etc/overlaynet/agent.toml", "Settings of this machine's own agent."),
)


# --- the page -------------------------------------------------------------------------------------


def page() -> str:
    """All of it, in man(7)."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    root = click.Context(program.cli, info_name="overlaynet")
    yield f'.TH OVERLAYNET 1 "" "overlaynet {__version__}" "User Commands"'
    yield '.\\" Made by python -m overlaynet.cli.manual from the verbs; edit those.'
    yield from (".nh", ".ad l")
    yield ".SH NAME"
    yield _text("overlaynet - a container overlay network, and the lab that proves what its packets do")
    yield ".SH SYNOPSIS"
    yield "\\fBoverlaynet\\fR \\fICOMMAND\\fR [\\fIARGUMENT\\fR...] [\\fIOPTION\\fR...]"
    yield ".SH DESCRIPTION"
    yield _text(_DESCRIPTION)
    yield ".SH EXAMPLES"
    for what, commands in _EXAMPLES:
        yield ".PP"
        yield _text(what)
        yield from _example(commands)
    yield ".SH OPTIONS OF EVERY COMMAND"
    yield _text("They may stand before or behind the command.")
    yield from _options(param for param in program.cli.params if isinstance(param, click.Option))
    for group in dict.fromkeys(verb.group for verb in program.VERBS.values()):
        yield f".SH COMMANDS: {group.upper()}"
        for name, verb in program.VERBS.items():
            if verb.group == group:
                yield from _command(program.cli.get_command(root, name), root, name)
    yield ".SH EXIT STATUS"
    yield from _pairs(re.findall(r"^    (\d+) +(.*)$", program.__doc__ or "", re.MULTILINE))
    yield ".SH ENVIRONMENT"
    yield from _pairs(_ENVIRONMENT)
    yield ".SH FILES"
    yield from _pairs(_FILES)
    yield ".SH SEE ALSO"
    also = ("overlaynet-agent(1)", "ip(8)", "bridge(8)", "iptables(8)", "etcdctl(1)", "tcpdump(8)")
    yield _text(", ".join(also))


def _command(command: click.Command | None, parent: click.Context, name: str) -> Iterator[str]:
    """A verb, and those below it."""
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent)
    words = [word for word in command.collect_usage_pieces(context) if word != "[OPTIONS]"]
    yield ".SS " + _text(" ".join([context.command_path, *words]))
    yield from _paragraphs(command.help or "")
    yield from _options(p for p in command.params if isinstance(p, click.Option) and p.expose_value)
    for below in command.list_commands(context) if isinstance(command, click.Group) else ():
        assert isinstance(command, click.Group)
        yield from _command(command.get_command(context, below), context, below)


def _options(params: Iterable[click.Option]) -> Iterator[str]:
    for param in params:
        record = param.get_help_record(click.Context(click.Command("")))
        if record is not None:
            yield from _pairs([record])


def _paragraphs(help: str) -> Iterator[str]:
    """click's own marks: a paragraph behind a line with \\b keeps its lines."""
    for paragraph in map(str.strip, help.split("\n\n")):
        if paragraph.startswith("\b\n"):
            yield from _example(line.strip() for line in paragraph.splitlines()[1:])
        else:
            yield ".PP"
            yield _text(" ".join(paragraph.split()))


def _example(lines: Iterable[str]) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".nf")
    yield from map(_text, lines)
    yield from (".fi", ".RE")


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in pairs:
        yield ".TP"
        yield f"\\fB{_text(term)}\\fR"
        yield _text(text)


def _text(text: str) -> str:
    """As man(7) takes it: a backslash, a hyphen and what begins a line with a dot are written otherwise."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped)
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


# --- what Tab completes by ------------------------------------------------------------------------


def lines() -> dict[str, Any]:
    """The verbs, the kinds of `get` and those of `break`."""
    return {
        "commands": tree.written(program.cli),
        "kinds": [
            {
                "kind": kind,
                "word": _plural((kind, *row.words)),
                "others": [word for word in (kind, *row.words) if word != _plural((kind, *row.words))],
                "columns": " ".join(column.title.lower() for column in row.columns if not column.wide),
            }
            for kind, row in KINDS.items()
        ],
        "faults": {kind: {"usage": row.usage, "what": row.what} for kind, row in faultkinds.KINDS.items()},
    }


def _plural(words: Sequence[str]) -> str:
    """The word that people say: ``hosts``, and ``fdb``, which has none."""
    return words[0] if words[0] == "fdb" else words[1]


def texts() -> dict[Path, str]:
    """Each file that is made, with its content."""
    return {
        PAGE: page(),
        names.LINES: json.dumps(lines(), indent=1, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for file, content in texts().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(content, "utf-8")
        click.echo(f"written {file}")
