"""A trace or a prediction as one drawing, in one self-contained SVG file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from overlaynet.trace.model import Hop, Prediction, Trace
from overlaynet.trace.render import sections
from overlaynet.trace.render.cards import describe
from overlaynet.trace.render.drawing import Line, Sheet, shifted, write
from overlaynet.trace.render.lanes import Lanes, draw, lay_out
from overlaynet.trace.render.story import Story, path_stories, trace_story

MARGIN = 24.0
NARROWEST = 860.0
MOST_PATHS = 8
"""Of a prediction with more ways the first are drawn; the others are named."""


def svg(what: Trace | Prediction) -> str:
    """The drawing as text. Several ways stand below one another."""
    return write(sheet(what))


def sheet(what: Trace | Prediction) -> Sheet:
    """The drawing, laid out but not written."""
    if isinstance(what, Trace):
        return story_sheet(trace_story(what), what.guards)
    stories = path_stories(what)
    shown = [story_sheet(story) for story in stories[:MOST_PATHS]]
    if len(shown) == 1:
        return shown[0]
    return _stacked(shown, len(stories))


def story_sheet(story: Story, guards: Sequence[Hop] = ()) -> Sheet:
    """One way: headline, lanes, and what explains them."""
    return _composed(
        story,
        (sections.headline, sections.verdict_lines),
        (
            sections.legend, sections.reply, sections.reasons, sections.mtu_bar, sections.notes,
            lambda _, *place: sections.guards(guards, *place),
        ),
    )  # fmt: skip


def picture_sheet(story: Story) -> Sheet:
    """What of one way has to be a picture, for a page that says the rest in words."""
    return _composed(story, (), (sections.legend, sections.reply, sections.mtu_bar))


Draw: TypeAlias = Callable[[Story, float, float, float], sections.Section]


def _composed(story: Story, above: Sequence[Draw], below: Sequence[Draw]) -> Sheet:
    """The lanes with sections above and below. An answer that was lost on its way has lanes as well."""
    drawing = Sheet(f"{' → '.join(story.title)}: {story.word}", summary(story), 0.0)
    there, back = lay_out(story.forward, 0.0, story.break_after), None
    if story.reply_break is not None:
        back = lay_out(story.reply, 0.0, story.reply_break)
    room, y = max(NARROWEST, there.width, back.width if back else 0.0), MARGIN
    for section in above:
        shapes, y = section(story, MARGIN, y, room)
        drawing.add(*shapes)
    y = _drawn(drawing, there, story.break_words, y, room)
    if back is not None:
        shapes, y = sections.title("The way back", MARGIN, y, room)
        drawing.add(*shapes)
        y = _drawn(drawing, back, "lost here", y, room)
    for section in below:
        shapes, y = section(story, MARGIN, y, room)
        drawing.add(*shapes)
    drawing.width, drawing.height = room + 2 * MARGIN, y + MARGIN - 10
    return drawing


def _drawn(drawing: Sheet, lanes: Lanes, words: str, y: float, room: float) -> float:
    """Add lanes in the middle; where the next section may begin."""
    left = MARGIN + (room - lanes.width) / 2
    drawing.add(*(shifted(shape, left, y) for shape in draw(lanes, words)))
    return y + lanes.bottom + 22


def summary(story: Story) -> str:
    """The whole drawing in words, for who cannot see it."""
    parts = [f"{story.word}: {story.summary}."]
    parts += [f"{describe(step)}." for step in story.forward]
    parts += [f"Answer: {story.answer}."] if story.answer else []
    parts += [f"{label}: {text}." for label, text in story.lines]
    return " ".join(parts)


def _stacked(sheets: Sequence[Sheet], total: int) -> Sheet:
    """Several drawings below one another, with a line between."""
    width = max((one.width for one in sheets), default=NARROWEST)
    words = " ".join(one.summary for one in sheets)
    whole = Sheet(f"{total} ways, one of which is taken", words, width)
    y = 0.0
    for number, one in enumerate(sheets):
        if number:
            whole.add(Line(((MARGIN, y), (width - MARGIN, y)), "line"))
        whole.add(*(shifted(shape, 0, y) for shape in one.shapes))
        y += one.height
    if total > len(sheets):
        words = f"and {total - len(sheets)} more ways"
        shapes, y = sections.title(words, MARGIN, y, width - 2 * MARGIN)
        whole.add(*shapes)
    if not sheets:
        shapes, y = sections.title("no way could be followed", MARGIN, MARGIN, NARROWEST)
        whole.add(*shapes)
    whole.height = y + MARGIN / 2
    return whole
