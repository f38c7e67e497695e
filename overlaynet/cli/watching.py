"""`overlaynet get KIND --watch`: the same list again and again, and what became of it.

Level-triggered: each second the whole list is looked at and compared with the one before, so nothing that stays
for a second is missed and no event has to be trusted. What is there at the start counts as added. On a terminal
the table is redrawn in place, with a mark before each row that changed lately; into a pipe go changed rows, or
one JSON document a line:

    {"schema": …, "kind": "Change", "lab": L, "type": "added|changed|removed", "time": T, "item": {…}}

Ctrl-C ends it, with exit code 0: there is no other end, but for --timeout.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import click

from overlaynet.cli.app import App, is_dumb
from overlaynet.cli.output import Column, document, table
from overlaynet.errors import OverlayError, UsageError

EVERY_S = 1.0
MARKED_S = 3.0
"""How long a row on a terminal is marked as changed, or still shown after it has gone."""
ADDED, CHANGED, REMOVED = "added", "changed", "removed"
_MARKS = {ADDED: ("+", "green"), CHANGED: ("~", "yellow"), REMOVED: ("-", "red")}
_HOME, _CLEAR, _END_OF_LINE, _BELOW = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"

Item: TypeAlias = Mapping[str, Any]
Id: TypeAlias = tuple[str, int]


class Watched(NamedTuple):
    """What is looked at: by what words, what names an item, its columns, which items the plain table leaves
    out, and which members alone make no change."""

    words: str
    look: Callable[[], Sequence[Item]]
    name: str
    columns: Sequence[Column]
    leaves_out: Callable[[Item], bool]
    fleeting: Sequence[str]


class Event(NamedTuple):
    """What became of one item, and how it is now (or was last)."""

    type: str
    id: Id
    item: Item


def watch(app: App, watched: Watched) -> int:
    """Look until Ctrl-C, or for --timeout. Raises UsageError for a form that has no line for a change, and any
    error of a look that waiting does not mend."""
    if app.format not in ("table", "wide", "json"):
        raise UsageError(f"-o {app.format} has no form for a change", next=[f"{watched.words} --watch -o json"])
    redrawn = sys.stdout.isatty() and not is_dumb()
    show = _lines if app.format == "json" else _Screen() if redrawn else _Rows()
    end = time.monotonic() + app.timeout(float("inf"))
    app.timeout_s = None  # a look has as long as it has without --watch
    before: dict[Id, Item] = {}
    try:
        while True:
            began = time.monotonic()
            now = _looked(app, watched, before)
            show(app, watched, now, list(events(before, now, watched.fleeting)))
            before = now
            if time.monotonic() >= end:
                return 0
            time.sleep(max(0.0, min(began + EVERY_S, end) - time.monotonic()))
    except KeyboardInterrupt:
        return 0


def _looked(app: App, watched: Watched, before: dict[Id, Item]) -> dict[Id, Item]:
    """What is there; what was there, if that cannot be told just now."""
    try:
        return identified(watched.look(), watched.name)
    except OverlayError as error:
        if not error.transient:
            raise
        app.note(f"{error.code}: {error.message}; trying again")
        return before


def identified(items: Sequence[Item], name: str) -> dict[Id, Item]:
    """Items by their names, and those of one name by their order."""
    seen: Counter[str] = Counter()
    found = {}
    for item in items:
        text = name.format_map(item)
        found[text, seen[text]] = item
        seen[text] += 1
    return found


def events(before: Mapping[Id, Item], now: Mapping[Id, Item], fleeting: Sequence[str]) -> Iterator[Event]:
    """What became of it, in the order of the lists; what is gone comes last."""

    def lasting(item: Item) -> dict[str, Any]:
        return {name: value for name, value in item.items() if name not in fleeting}

    for key, item in now.items():
        if key not in before:
            yield Event(ADDED, key, item)
        elif lasting(item) != lasting(before[key]):
            yield Event(CHANGED, key, item)
    for key, item in before.items():
        if key not in now:
            yield Event(REMOVED, key, item)


# --- how it is shown ------------------------------------------------------------------------------


def _lines(app: App, watched: Watched, now: Mapping[Id, Item], happened: Sequence[Event]) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for event in happened:
        members = {"type": event.type, "time": at, "item": event.item}
        app.echo(json.dumps(document("Change", app.lab, members), ensure_ascii=False))
    sys.stdout.flush()


def _shown(app: App, watched: Watched, item: Item) -> bool:
    return app.wide or not watched.leaves_out(item)


class _Rows:
    """Changed rows, one after another, with the header once. Their columns are as wide as all rows now need."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, app: App, watched: Watched, now: Mapping[Id, Item], happened: Sequence[Event]) -> None:
        rows = {event.id: event for event in happened if _shown(app, watched, event.item)}
        others = [{**item, "_type": ADDED} for key, item in now.items() if key not in rows]
        told = [{**event.item, "_type": event.type} for event in rows.values()]
        at = time.strftime("%H:%M:%S")
        columns = [
            Column("TIME", lambda item: at),
            Column("CHANGE", lambda item: f"{item['_type']:<{len(REMOVED)}}"),
            *watched.columns,
        ]
        lines = table(columns, [*told, *others], wide=app.wide).splitlines()
        for line in lines[int(self._begun) : 1 + len(told)]:
            app.echo(line)
        self._begun = True
        sys.stdout.flush()


@dataclass
class _Screen:
    """The whole table on a terminal; rows are cut off where it has no more lines."""

    lately: dict[Id, tuple[float, Event]] = field(default_factory=dict)
    drawn: bool = False

    def __call__(self, app: App, watched: Watched, now: Mapping[Id, Item], happened: Sequence[Event]) -> None:
        self._note(happened)
        lines = self.lines(app, watched, now)
        room = shutil.get_terminal_size().lines - 1
        if len(lines) > room:
            lines = [*lines[: room - 1], f"… and {len(lines) - room + 1} more rows"]
        begin = _HOME if self.drawn else _CLEAR + _HOME
        click.echo(
            begin + "".join(f"{self._plain(app, line)}{_END_OF_LINE}\n" for line in lines) + _BELOW, nl=False
        )
        self.drawn = True

    def _plain(self, app: App, line: str) -> str:
        return click.unstyle(line) if app.colour is False else line

    def _note(self, happened: Sequence[Event]) -> None:
        at = time.monotonic()
        if self.drawn:
            self.lately |= {event.id: (at, event) for event in happened}
        self.lately = {key: row for key, row in self.lately.items() if at - row[0] < MARKED_S}

    def lines(self, app: App, watched: Watched, now: Mapping[Id, Item]) -> list[str]:
        """A line with the time, and the table with a mark before each row."""
        gone = {key: event.item for key, (_, event) in self.lately.items() if key not in now}
        rows = {key: item for key, item in {**now, **gone}.items() if _shown(app, watched, item)}
        width = None if app.width is None else app.width - 2
        text = table(watched.columns, rows.values(), wide=app.wide, width=width).splitlines()
        head = f"{watched.words}  {time.strftime('%H:%M:%S')}  {len(rows) - len(gone)} rows; Ctrl-C ends it"
        marked = (self._marked(key, line) for key, line in zip(rows, text[1:], strict=True))
        return [head, "", f"  {text[0]}", *marked]

    def _marked(self, key: Id, line: str) -> str:
        if key not in self.lately:
            return f"  {line}"
        mark, colour = _MARKS[self.lately[key][1].type]
        return click.style(f"{mark} {click.unstyle(line)}", fg=colour, bold=True)
