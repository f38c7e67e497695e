"""A trace or a prediction as a sequence diagram that Markdown viewers draw.

Mermaid's grammar (https://mermaid.js.org/syntax/sequenceDiagram.html) ends a statement at a line's end or at a
semicolon, takes ``#`` for the beginning of a character's code and ``end`` for the end of a box. So whatever
comes from outside is written in codes but for letters, digits and a few signs that mean nothing there.

Participants are places: containers, hosts, ``outside``. What happens on the way inside a place is a note over
it; a packet that goes on is an arrow, one that was lost ends in a cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from overlaynet.trace.model import Prediction, Trace
from overlaynet.trace.render.story import STATE_WORDS, Step, Story, path_stories, trace_story
from overlaynet.trace.render.text import cut, plain

LONGEST = 90
_SAFE = frozenset(" .,:/→↔−+×µ·✗!?()[]_*=…'")


def mermaid(what: Trace | Prediction) -> str:
    """Markdown: a heading and a diagram for each way."""
    stories = [trace_story(what)] if isinstance(what, Trace) else list(path_stories(what))
    if not stories:
        return "No way could be followed.\n"
    return "\n".join(_section(story) for story in stories)


def _section(story: Story) -> str:
    lines = [
        f"### {_markdown(' → '.join(story.title))}",
        "",
        f"**{_markdown(story.word)}** {_markdown(story.summary)}",
        "",
        "```mermaid",
        *diagram(story),
        "```",
        "",
    ]
    lines += [f"- **{_markdown(label)}** {_markdown(text)}" for label, text in story.lines]
    return "\n".join(lines) + ("\n" if story.lines else "")


def diagram(story: Story) -> Iterator[str]:
    """The statements of one sequence diagram."""
    yield "sequenceDiagram"
    names = _participants(story)
    for lane, group in groupby(names, key=lambda place: _lane_of(story, place)):
        places = list(group)
        boxed = len(places) > 1 or places[0] != lane
        if boxed:
            yield f"  box {said(lane)}"
        yield from (f"  participant {names[place]} as {said(place)}" for place in places)
        if boxed:
            yield "  end"
    yield from _way(story.forward, names, "->>", story.break_after, story.break_words)
    if story.reply:
        yield from _way(story.reply, names, "-->>", None, "")
    elif story.answer and story.forward:
        yield f"  Note over {names[story.forward[0].hop.place]}: {said(f'answer: {story.answer}')}"


def _participants(story: Story) -> Mapping[str, str]:
    """Places in the order in which a packet comes to them, those of a host together, with an id each."""
    places = list(dict.fromkeys(step.hop.place for step in story.steps))
    lanes = list(dict.fromkeys(_lane_of(story, place) for place in places))
    ordered = sorted(places, key=lambda place: lanes.index(_lane_of(story, place)))
    return {place: f"p{number}" for number, place in enumerate(ordered, 1)}


def _lane_of(story: Story, place: str) -> str:
    return next(step.lane for step in story.steps if step.hop.place == place)


def _way(
    steps: Sequence[Step], names: Mapping[str, str], arrow: str, broken: int | None, words: str
) -> Iterator[str]:
    """Notes and arrows; nothing beyond a break but the arrow into it."""
    for number, (one, other) in enumerate(pairwise([None, *steps])):
        assert other is not None
        name = names[other.hop.place]
        if number == broken:
            yield from _broken(one, name, names, words)
            return
        if one is not None and one.hop.place != other.hop.place:
            yield f"  {names[one.hop.place]}{arrow}{name}: {said(other.who)}"
        yield f"  Note over {name}: {said(_note(other))}"
    if steps and broken == len(steps):
        name = names[steps[-1].hop.place]
        yield f"  {name}-x{name}: {said(words)}"


def _broken(one: Step | None, name: str, names: Mapping[str, str], words: str) -> Iterator[str]:
    if one is None:
        yield f"  Note over {name}: {said(words)}"
    else:
        yield f"  {names[one.hop.place]}-x{name}: {said(f'✗ {words}: {one.who}')}"


def _note(step: Step) -> str:
    hop = step.hop
    time = f"{hop.t_us:.0f} µs " if hop.t_us is not None else ""
    mark = f"({step.mark}) " if step.mark is not None else ""
    state = f"{STATE_WORDS[step.state]} " if STATE_WORDS[step.state] else ""
    return f"{time}{hop.iface} {hop.direction}: {state}{mark}{step.told}"


def said(text: str) -> str:
    """Words that mean nothing to mermaid."""
    return "".join(_code(character) for character in cut(plain(text), LONGEST)) or "#160;"


def _code(character: str) -> str:
    if character.isalnum() or character in _SAFE or character == "-":
        return character
    return f"#{ord(character)};"


def _markdown(text: str) -> str:
    """Words that mean nothing to Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in plain(text))
