"""A trace on one screen: hops down the page by host, what changed where, why, and the verdict last.

Nothing depends on colour: it repeats what a word or a mark says. Lines are cut to the width, never wrapped;
what is cut first is what can be had elsewhere (a rule's text before the command that prints it). In a pipe or a
file there is no width: nothing is cut there, and nothing wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from textwrap import wrap
from typing import Any, NamedTuple

import click

from overlaynet.trace.model import Hop, Prediction, Trace, Why
from overlaynet.trace.render.layers import layers
from overlaynet.trace.render.story import (
    PREDICTED,
    STATE_WORDS,
    Command,
    Step,
    Story,
    path_stories,
    plain_command,
    trace_story,
)
from overlaynet.trace.render.text import cells, circled, count_of, cut, cut_middle, pad, plain
from overlaynet.trace.render.words import Role, translations

WIDTH = 120
"""Columns of a page where nobody says how many there are, in a pipe or a file: how long rulers are."""
ENDLESS = 1_000_000
"""Columns of a line there: more than any line has."""
NARROWEST = 60
"""Columns that are used even if there are fewer."""
NARROW = 90
"""Below this, names of interfaces are shortened in favour of what happens there."""
TIME_CELLS = 5
GAP = "  "
ENTRY_NEEDS = 26
"""Cells that an entry keeps beside the command that shows it; with less the command gets a line of its own."""

_STYLES: Mapping[str, Mapping[str, Any]] = {
    "good": {"fg": "green", "bold": True},
    "bad": {"fg": "red", "bold": True},
    "unsure": {"fg": "yellow", "bold": True},
    "foretold": {"fg": "cyan", "bold": True},
    "strong": {"bold": True},
    "faint": {"dim": True},
    "mark": {"fg": "cyan"},
}
_STATE_STYLES: Mapping[str, str] = {
    "missing": "bad",
    "unexpected": "bad",
    "unlooked": "unsure",
    "spared": "faint",
}
_HOST = re.compile(r" \([^()]*\)")


class Span(NamedTuple):
    """A piece of a line and how it looks."""

    text: str
    style: str = ""


Line = list[Span]


def trace_text(
    trace: Trace, width: int | None = None, *, verbose: bool = False, command: Command = plain_command
) -> str:
    """A trace for a terminal of `width` columns, None: it goes elsewhere. `verbose`: every header and every
    entry as well. `command` makes of a verb and its words the line to type."""
    room = _room(width)
    return _painted(_trace_lines(trace_story(trace, command), room, verbose=verbose), room)


def explain_text(
    prediction: Prediction, width: int | None = None, *, verbose: bool = False, command: Command = plain_command
) -> str:
    """A prediction: its one path like a trace; of several what they have in common once, then each."""
    stories, room = path_stories(prediction, command), _room(width)
    if len(stories) == 1:
        return _painted(_trace_lines(stories[0], room, verbose=verbose), room)
    return _painted(_fan_lines(prediction, stories, room, verbose=verbose), room)


def _room(width: int | None) -> int:
    return ENDLESS if width is None else max(NARROWEST, width)


def _page(width: int) -> int:
    """Columns that a ruler fills."""
    return WIDTH if width == ENDLESS else width


def _painted(lines: Iterable[Line], width: int) -> str:
    return "\n".join("".join(_paint(_cut(line, width))) for line in lines)


def _cut(line: Line, width: int) -> Line:
    kept: Line = []
    for span in line:
        text = cut(span.text, width)
        kept.append(Span(text, span.style))
        width -= cells(text)
        if text != span.text:
            break
    return kept


def _paint(line: Line) -> Iterator[str]:
    for number, span in enumerate(line):
        text = span.text.rstrip() if number == len(line) - 1 else span.text
        yield click.style(text, **_STYLES[span.style]) if span.style and text else text


# --- one way --------------------------------------------------------------------------------------


def _trace_lines(story: Story, width: int, *, verbose: bool) -> Iterator[Line]:
    yield from _head(story.title, story.tag, width)
    steps, rest = (story.forward, ()) if verbose else _without_followers(story)
    yield from _table(steps, width, broken=story.break_after, words=story.break_words)
    if rest:
        yield [Span(f"{'·':>{TIME_CELLS}}{GAP}", "faint"), Span("✗ nor at  ", "bad"), Span(_chain(rest))]
    yield from _reply(story, width, verbose=verbose)
    yield from _notes(story, width)
    if verbose:
        yield from _details(story, width)
    yield from _verdict(story, width)


def _head(title: Sequence[str], tag: str, width: int) -> Iterator[Line]:
    """Who asks whom; where that is too long without the hosts, which the table shows as well."""
    whole = " → ".join(title)
    yield [Span(whole if cells(whole) <= width else _HOST.sub("", whole), "strong")]
    yield [Span(tag, "faint")]


def _without_followers(story: Story) -> tuple[Sequence[Step], Sequence[Step]]:
    """The steps up to the first that is missing; the others, if all of them are missing as well."""
    first = story.break_after
    if first is None or any(step.state != "missing" for step in story.forward[first:]):
        return story.forward, ()
    return story.forward[: first + 1], story.forward[first + 1 :]


class Columns(NamedTuple):
    """Cells for each column of the table of hops."""

    where: int
    who: int
    told: int


def _columns(steps: Sequence[Step], width: int) -> Columns:
    longest = 16 if width < NARROW else width // 3
    where = min(max((cells(step.label) for step in steps), default=0), longest)
    room = width - TIME_CELLS - 3 * len(GAP) - where
    who = min(max((cells(_who(step)) for step in steps), default=0), room - min(16, room // 3))
    return Columns(where, who, room - who)


def _table(steps: Sequence[Step], width: int, broken: int | None = None, words: str = "") -> Iterator[Line]:
    columns = _columns(steps, width)
    if not steps:
        return
    unit = "   µs" if any(step.hop.t_us is not None for step in steps) else "     "
    titles = GAP.join((unit, pad("where", columns.where), pad("who → whom", columns.who), "changed here"))
    yield [Span(titles, "faint")]
    number = 0
    for lane, group in groupby(steps, key=lambda step: step.lane):
        ruler: Line | None = _ruler(lane, width)
        for step in group:
            if number == broken:
                yield _break_line(words, width)
            if ruler is not None:
                yield ruler
            ruler = None
            yield _row(step, columns)
            number += 1
    if number == broken:
        yield _break_line(words, width)


def _ruler(lane: str, width: int) -> Line:
    name = plain(lane)
    return [Span(name, "strong"), Span(" " + "─" * max(0, _page(width) - cells(name) - 1), "faint")]


def _break_line(words: str, width: int) -> Line:
    line = f"{'':>{TIME_CELLS}}{GAP}✗ {words} "
    return [Span(line, "bad"), Span("╌" * max(0, _page(width) - cells(line)), "bad")]


def _row(step: Step, columns: Columns) -> Line:
    style = _STATE_STYLES.get(step.state, "")
    who = _who(step)
    row = [
        Span(f"{_time(step):>{TIME_CELLS}}{GAP}", "faint"),
        Span(pad(_short_label(step, columns.where), columns.where) + GAP, style),
        Span(pad(who, columns.who) + GAP, "faint" if step.same else style),
    ]
    return [*row, *_told(step, style)]


def _short_label(step: Step, room: int) -> str:
    """The direction stays; names give way in their middle."""
    name, _, direction = step.label.rpartition(" ")
    return f"{cut_middle(name, room - len(direction) - 1)} {direction}"


def _time(step: Step) -> str:
    if step.hop.t_us is not None:
        return f"{step.hop.t_us:.0f}"
    return "" if step.state == "predicted" else "·"


def _who(step: Step) -> str:
    return ("same outer" if step.hop.outer else "same") if step.same else step.who


def _told(step: Step, style: str) -> Iterator[Span]:
    words = STATE_WORDS[step.state]
    if words:
        yield Span(f"{words}  ", style)
    if step.mark is not None:
        yield Span(f"{circled(step.mark)} ", "mark")
    if step.mark is not None or not words:
        yield Span(step.told, "" if step.mark is not None else "faint")


# --- the way back ---------------------------------------------------------------------------------


def _reply(story: Story, width: int, *, verbose: bool) -> Iterator[Line]:
    if not story.reply and not story.answer:
        return
    line = [Span(f"{'reply':<{TIME_CELLS}}{GAP}", "strong"), Span(_reply_words(story))]
    if verbose:
        yield line
        yield from _table(story.reply, width, broken=story.reply_break, words="lost here")
        return
    for step in story.reply:
        if step.mark is not None:
            said = [
                Span(f"{circled(step.mark)} ", "mark"),
                Span(plain(f"{step.who}  {translations(step.hop)}")),
            ]
            if sum(cells(span.text) for span in (*line, *said)) + 2 > width:
                yield line
                line = [Span(" " * TIME_CELLS)]
            line += [Span(GAP), *said]
    yield line


def _reply_words(story: Story) -> str:
    steps = story.reply
    if not steps:
        return f"{story.answer} came back"
    first = steps[0].hop
    ends = f"{first.place if first.direction == 'out' else first.inner.src} → {steps[-1].hop.place}"
    if story.foretold:
        return plain(f"{story.answer}  {ends}  {count_of(len(steps), 'hop')}")
    times = [step.hop.t_us for step in steps if step.hop.t_us is not None]
    took = f" by {times[-1]:.0f} µs" if times else ""
    seen = sum(step.state in ("seen", "unexpected") for step in steps)
    lost = "" if story.reply_break is None else f"  ✗ {_lost_words(steps, story.reply_break)}"
    return plain(f"{story.answer}  {ends}  {seen}/{len(steps)} hops{took}{lost}")


def _lost_words(steps: Sequence[Step], broken: int) -> str:
    if broken < len(steps):
        return f"not seen at {steps[broken].lane} {steps[broken].label}"
    return f"lost after {steps[-1].lane} {steps[-1].label}"


# --- why ------------------------------------------------------------------------------------------


def _notes(story: Story, width: int) -> Iterator[Line]:
    for step in story.marked:
        if step.why is not None:
            yield from _note(step, step.why, width)
        for why in step.more_whys:
            yield from _note(step, why, width, first=False)
    for text in story.connections:
        yield [Span("ct  ", "mark"), Span(text)]
    for text in story.notes:
        head = "note  "
        for part in _wrapped(text, width - len(head)):
            yield [Span(head, "mark"), Span(part)]
            head = " " * len(head)


def _note(step: Step, why: Why, width: int, *, first: bool = True) -> Iterator[Line]:
    """An entry that decided, and the command that shows it: at the end of the line, or on one of its own. Only
    the first one of a mark bears it."""
    number = f"{circled(step.mark)} " if step.mark is not None else "   "
    number = number if first else " " * cells(number)
    command = _command(step, why)
    room = width - cells(number) - cells(command) - 2 * len(GAP)
    if room < ENTRY_NEEDS:
        yield [Span(number, "mark"), Span(entry_words(why, width - cells(number)))]
        yield [Span("     ", "faint"), Span(command, "faint")]
    else:
        words = entry_words(why, room)
        space = max(cells(words), room - (width - _page(width)))
        yield [Span(number, "mark"), Span(pad(words, space) + GAP), Span(command, "faint")]


def _command(step: Step, why: Why) -> str:
    """``node-3$ ip route get …``: what to type, and in which place."""
    return plain(f"{step.hop.place}$ {why.command}")


def entry_words(why: Why, room: int) -> str:
    """``rule  nat OVL-SVC-…  +1``: what kind of entry, which, and by how much its counter grew."""
    grown = f"  +{why.packets}" if why.packets is not None else ""
    kind = plain(why.object)
    left = max(1, room - 7 - len(grown))
    text = plain(why.text).removeprefix(f"{kind} ")
    if cells(text) > left and kind == "rule":
        text = _target_of(text)
    return f"{kind:<5}  {cut(text, left)}{grown}"


def _target_of(rule: str) -> str:
    """What a rule does, without what it asks for: ``-j DNAT --to-destination …``."""
    before, jump, target = rule.partition(" -j ")
    return f"-j {target}" if jump else before


# --- everything -----------------------------------------------------------------------------------


def _details(story: Story, width: int) -> Iterator[Line]:
    for title, steps in (("headers", story.forward), ("headers of the reply", story.reply)):
        if steps:
            yield [Span(title, "strong")]
        for number, step in enumerate(steps, 1):
            yield [Span(f"{number:>3}  {plain(step.hop.point)} {step.hop.direction}", "strong")]
            yield from ([Span(f"     {line}")] for line in header_lines(step.hop))
            for why in step.hop.why:
                yield from _whole_entry(step, why, width)


def _whole_entry(step: Step, why: Why, width: int) -> Iterator[Line]:
    grown = f"  counter +{why.packets}" if why.packets is not None else ""
    text = plain(why.text).removeprefix(f"{why.object} ")
    yield [
        Span("     because  ", "faint"),
        Span(plain(f"{why.object} {why.key}"), "strong"),
        Span(plain(grown)),
    ]
    margin = " " * 14
    yield from ([Span(margin + part)] for part in _wrapped(text, width - len(margin)))
    if why.source:
        yield [Span(margin + plain(f"wanted by {why.source.kind} {why.source.name}"))]
    yield [Span(margin + _command(step, why), "faint")]


def header_lines(hop: Hop) -> Iterator[str]:
    """Every header of what is on the wire, outermost first."""
    for layer in layers(hop):
        side = "outer " if layer.outer else ("inner " if hop.outer else "")
        yield f"{side}{layer.kind:<5}  {layer.text}{'  (changed)' if layer.changed else ''}"


# --- the end --------------------------------------------------------------------------------------


def _verdict(story: Story, width: int) -> Iterator[Line]:
    word = "predicted:" if story.word == PREDICTED else story.word
    head = f"{'✗ ' if story.tone == 'bad' else ''}{word}  "
    first, *others = _wrapped(story.summary, width - cells(head))
    line = [Span(head, story.tone), Span(first)]
    room = _page(width) - cells(head) - cells(first) - 2
    beside = story.bundle is not None and not others and cells(story.bundle) <= room
    if beside and story.bundle is not None:
        line.append(Span(f"  {story.bundle:>{room}}", "faint"))
    yield line
    yield from ([Span(" " * cells(head)), Span(text)] for text in others)
    for label, text in story.lines:
        yield from _labelled(label, text, width)
    if story.bundle is not None and not beside:
        yield from _labelled("saved", story.bundle, width)


def _labelled(label: str, text: str, width: int, margin: str = "  ") -> Iterator[Line]:
    """A line of the verdict, on as many lines as it needs: what is said here is not cut."""
    head = f"{margin}{label:<8}  "
    for part in _wrapped(text, width - len(head)):
        yield [Span(head, "strong"), Span(part)]
        head = " " * len(head)


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, max(20, width), break_on_hyphens=False) or [""]


# --- several ways ---------------------------------------------------------------------------------


def _fan_lines(
    prediction: Prediction, stories: Sequence[Story], width: int, *, verbose: bool
) -> Iterator[Line]:
    """What all ways have in common, then how each goes on."""
    if not stories:
        yield [Span("predicted:", "unsure"), Span("  nothing; no way could be followed")]
        yield from _unread_lines(prediction, width)
        return
    shared = _shared(stories)
    yield from _head(stories[0].title[:2], f"{stories[0].tag}; one of {len(stories)} ways is taken", width)
    yield from _table(stories[0].forward[:shared], width)
    for number, story in enumerate(stories, 1):
        yield from _branch(number, story, shared, width)
        if verbose:
            yield from _table(story.forward[shared:], width)
            yield from _notes(story, width)
            yield from _details(story, width)
    yield [Span("predicted:", "foretold"), Span(f"  {prediction.outcome}  by {len(stories)} ways")]
    yield from _unread_lines(prediction, width)


def _unread_lines(prediction: Prediction, width: int) -> Iterator[Line]:
    for text in prediction.unread:
        yield from _labelled("unread", plain(text), width, "  ")


def _shared(stories: Sequence[Story]) -> int:
    """How many first hops are the same in all."""
    ways = zip(*(story.forward for story in stories), strict=False)
    return sum(1 for _ in takewhile(lambda steps: all(s.hop == steps[0].hop for s in steps), ways))


def _branch(number: int, story: Story, shared: int, width: int) -> Iterator[Line]:
    margin = " " * 7
    end = story.title[2] if len(story.title) > 2 else story.title[1]
    yield [Span(f"way {number}  ", "mark"), Span(end, "strong"), Span(f"  {story.summary}", "faint")]
    if story.forward[shared:]:
        yield [Span(margin), Span(cut_middle(_chain(story.forward[shared:]), width - 7))]
    for text in story.notes[:1]:
        yield [Span(margin), Span(text, "faint")]
    for label, text in story.lines:
        yield from _labelled(label, text, width, margin)


def _chain(steps: Sequence[Step]) -> str:
    """``cni0 → flannel.1 → eth0 ⇒ node-2 eth0 → …``: steps on one line."""
    groups = groupby(steps, key=lambda step: step.lane)
    parts = [(lane, " → ".join(map(_link_of_chain, group))) for lane, group in groups]
    return " ⇒ ".join(f"{plain(lane)} {part}" if number else part for number, (lane, part) in enumerate(parts))


def _link_of_chain(step: Step) -> str:
    hop = step.hop
    name = f"{hop.place} {hop.iface}" if step.role is Role.CONTAINER else hop.iface
    translated = translations(hop)
    return plain(f"{name} ({translated})" if translated else name)
