"""The verbs as data: what each takes, in one file that is read in a millisecond.

To import every verb's module takes half a second, too long between Tab and an answer. So `lines.json` holds the
names, options and helps of all of them; `python -m overlaynet.cli.manual` writes it from the verbs themselves,
and a test holds the two to each other. Of a parameter it says which function of `cli/names.py` completes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

from overlaynet.cli.app import shared
from overlaynet.cli.names import COMPLETERS

Json: TypeAlias = dict[str, Any]

_SETTINGS = ("ignore_unknown_options", "allow_interspersed_args")
_PATHS: Mapping[str, click.Path] = {"file": click.Path(), "dir": click.Path(file_okay=False)}


# --- verbs to data --------------------------------------------------------------------------------


def written(command: click.Command) -> Json:
    """A verb and all below it."""
    context = click.Context(command)
    own = [param for param in command.params if param.expose_value]
    below = command.list_commands(context) if isinstance(command, click.Group) else ()
    return {
        "help": command.get_short_help_str(limit=100),
        "shared": len(own) < len(command.params),
        "settings": {
            name: command.context_settings[name] for name in _SETTINGS if name in command.context_settings
        },
        "params": [_param(param) for param in own],
        "commands": {name: written(_command(command, context, name)) for name in below},
    }


def _command(group: click.Command, context: click.Context, name: str) -> click.Command:
    assert isinstance(group, click.Group)
    found = group.get_command(context, name)
    assert found is not None
    return found


def _param(param: click.Parameter) -> Json:
    completer = getattr(param._custom_shell_complete, "__name__", None)
    row: Json = {
        "name": param.name,
        "words": [*param.opts, *param.secondary_opts] if isinstance(param, click.Option) else None,
        "help": param.help if isinstance(param, click.Option) else None,
        "flag": isinstance(param, click.Option) and (param.is_flag or param.count),
        "nargs": param.nargs,
        "multiple": param.multiple,
        "choices": list(param.type.choices) if isinstance(param.type, click.Choice) else None,
        "path": _path(param.type),
        "completer": completer if completer in COMPLETERS else None,
    }
    return {name: value for name, value in row.items() if value not in (None, False)}


def _path(kind: click.ParamType[Any]) -> str | None:
    if isinstance(kind, click.Path):
        return "file" if kind.file_okay else "dir"
    return "file" if isinstance(kind, click.File) else None


# --- data to verbs --------------------------------------------------------------------------------


class Line(click.Command):
    """A verb that can be completed and not run."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Its options; none behind the first word of another program's command line."""
        within = not ctx.allow_interspersed_args and any(ctx.params.values())
        return [] if within else super().shell_complete(ctx, incomplete)


def read(name: str, row: Mapping[str, Any]) -> click.Command:
    """What `written` wrote, as commands to complete by."""
    params = [_read_param(param) for param in row["params"]]
    command: click.Command
    if row["commands"]:
        below = {word: read(word, line) for word, line in row["commands"].items()}
        command = _InOrder(name, commands=below, params=params, help=row["help"])
    else:
        command = Line(name, params=params, help=row["help"], context_settings=dict(row["settings"]))
    return shared(command) if row["shared"] else command


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _read_param(row: Mapping[str, Any]) -> click.Parameter:
    kind = click.Choice(row["choices"]) if "choices" in row else _PATHS.get(row.get("path", ""))
    more: dict[str, Any] = {"type": kind, "shell_complete": COMPLETERS.get(row.get("completer", ""))}
    if "words" not in row:
        return click.Argument([row["name"]], nargs=row["nargs"], required=False, **more)
    if row.get("flag"):
        more = {"is_flag": True}
    return click.Option(
        [*row["words"], row["name"]],
        multiple="multiple" in row,
        help=row.get("help"),
        expose_value=True,
        **more,
    )
