"""How results look: plain aligned tables, JSON and YAML documents, bare names, error blocks. Pure.

A table is text that survives a pipe: upper-case headers, two blanks between columns, no lines drawn. Colour
only repeats what a word says already, so a table read without colour says the same.

A document is what programs read: one JSON object with `schema`, `kind` and `lab`, members in snake case,
an unknown value as null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from overlaynet.errors import OverlayError
from overlaynet.trace.render.text import cells, cut

SCHEMA = "overlaynet/v1"
FORMATS = ("table", "wide", "json", "yaml", "name")
SHORTEST = 12
"""A cut column keeps at least this many characters."""
NOTHING = "-"
"""What a table shows for null and for an empty list."""

_COLOURS: Mapping[str, str] = {
    **dict.fromkeys(("ok", "pass", "ready", "live"), "green"),
    **dict.fromkeys(("warn", "extra", "changed", "inconclusive", "degraded", "starting"), "yellow"),
    **dict.fromkeys(("fail", "missing", "stopped", "dead"), "red"),
}


class Column(NamedTuple):
    """A column of a table: its header, what to show of an item, whether only `-o wide` shows it, and
    whether it is left out where the terminal is too narrow for all."""

    title: str
    show: Callable[[Mapping[str, Any]], Any]
    wide: bool = False
    spare: bool = False


def member(title: str, path: str, *, wide: bool = False, spare: bool = False) -> Column:
    """A column that shows ``item["a"]["b"]`` for the path ``a.b``; null on the way is null at its end."""

    def show(item: Mapping[str, Any]) -> Any:
        value: Any = item
        for name in path.split("."):
            value = None if value is None else value[name]
        return value

    return Column(title, show, wide, spare)


def members(*titles: str, wide: bool = False, spare: bool = False) -> tuple[Column, ...]:
    """A `member` each: ``TITLE=path``, or the title alone where the path is the same in lower case."""
    pairs = (title.partition("=") for title in titles)
    return tuple(
        member(title, path or title.lower().replace("-", "_"), wide=wide, spare=spare)
        for title, _, path in pairs
    )


def table(
    columns: Sequence[Column],
    items: Iterable[Mapping[str, Any]],
    *,
    wide: bool = False,
    width: int | None = None,
) -> str:
    """Aligned text, header first; numbers to the right. The last column is not padded. Where a line would be
    longer than `width`, spare columns are left out, and then the last one is cut short (with a mark)."""
    shown = [c for c in columns if wide or not c.wide]
    rows, right, widths = _laid_out(shown, items := list(items))
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        rows, right, widths = _laid_out([c for c in shown if not c.spare], items)
        room = max(SHORTEST, width - sum(w + 2 for w in widths[:-1]))
        rows = [[*row[:-1], cut(row[-1], room)] for row in rows]
    return "\n".join(_line(row, widths, right, header=n == 0) for n, row in enumerate(rows))


def _laid_out(
    columns: Sequence[Column], items: Sequence[Mapping[str, Any]]
) -> tuple[list[list[str]], list[bool], list[int]]:
    """The cells with the header on top, which columns hold numbers, and how wide each is."""
    values = [[column.show(item) for column in columns] for item in items]
    right = [any(_is_number(row[n]) for row in values) for n in range(len(columns))]
    rows = [[c.title for c in columns], *([cell_text(v) for v in row] for row in values)]
    return rows, right, [max(cells(row[n]) for row in rows) for n in range(len(columns))]


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, header: bool) -> str:
    last = len(row) - 1
    out = []
    for n, text in enumerate(row):
        gap = " " * (widths[n] - cells(text))
        shown = text if header else coloured(text)
        out.append(gap + shown if right[n] else shown + ("" if n == last else gap))
    return "  ".join(out).rstrip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell_text(value: Any) -> str:
    """One value as a cell: lists by commas, booleans as yes and no, null as a dash."""
    match value:
        case None | [] | "":
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ",".join(cell_text(v) for v in value)
        case Mapping():
            return ",".join(f"{k}={cell_text(v)}" for k, v in value.items()) or NOTHING
        case _:
            return str(value)


def coloured(text: str) -> str:
    """A state word with its colour; any other text as it is. `click.echo` strips it where there is none."""
    colour = _COLOURS.get(text)
    return click.style(text, fg=colour) if colour else text


def document(kind: str, lab: str | None, members: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer for a program."""
    return {"schema": SCHEMA, "kind": kind, "lab": lab, **members}


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def to_yaml(value: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip("\n")


def error_block(error: OverlayError) -> str:
    """``error OVL-nnn: what happened``, then the evidence and the commands to try, indented."""
    lines = [f"{click.style('error', fg='red', bold=True)} {error.code}: {error.message}"]
    lines += [f"  {line}" for line in error.evidence.splitlines()]
    lines += [f"  try  {command}" for command in error.next]
    return "\n".join(lines)


def error_document(error: OverlayError, lab: str | None) -> dict[str, Any]:
    return document("Error", lab, {"error": error.as_json()})


def seconds(value: float | None) -> str:
    """A span for people: ``0.4 s``, ``35 s``, ``12 min``, ``3 h``, ``2 d``."""
    if value is None:
        return NOTHING
    if value < 10:
        return f"{value:.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if value < limit:
            return f"{value / size:.0f} {unit}"
    return f"{value / 86_400:.0f} d"
