"""A trace or a prediction as one page: the drawing, and in tables all that a drawing has no room for.

The page is one file without scripts or anything from elsewhere, so it may be mailed, kept and printed; its own
policy forbids the browser to fetch or run anything (Content Security Policy level 3). On a dark screen it is
dark; on paper everything is unfolded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from overlaynet.trace.model import Prediction, Question, Trace
from overlaynet.trace.render.drawing import write
from overlaynet.trace.render.layers import layers
from overlaynet.trace.render.palette import COLOURS, LOOKS
from overlaynet.trace.render.story import STATE_WORDS, Step, Story, path_stories, trace_story
from overlaynet.trace.render.svg import picture_sheet
from overlaynet.trace.render.text import plain

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
SEEN = {"seen": "yes", "missing": "no", "unexpected": "yes, unexpected", "unlooked": "nobody looked",
        "spared": "no, nor need it be", "predicted": "-"}  # fmt: skip


def html(what: Trace | Prediction) -> str:
    """The page as text."""
    if isinstance(what, Trace):
        story = trace_story(what)
        body = [*_story(story, "way-1", 1), *_counts(what), *_guards(what)]
        return page(_title(story), [*body, *_repeat(what.question, what.bundle)])
    stories = path_stories(what)
    if not stories:
        return page("Prediction", ["<h1>Prediction</h1>", "<p>No way could be followed.</p>"])
    level = 1 if len(stories) == 1 else 2
    body = [] if level == 1 else [_several(stories)]
    for number, story in enumerate(stories, 1):
        body += _story(story, f"way-{number}", level)
    return page(_title(stories[0]), [*body, *_repeat(what.question, None)])


def page(title: str, body: Iterable[str], looks: str = "") -> str:
    """A whole document around these blocks; `looks`: rules of style that only they need."""
    head = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title>",
        f"<style>\n{style()}{looks}</style>",
        "</head>",
        "<body>",
        "<main>",
    ]
    return "\n".join([*head, *body, "</main>", "</body>", "</html>", ""])


def text(value: object) -> str:
    """Words for a page: harmless, escaped."""
    return escape(plain(value))


def _title(story: Story) -> str:
    return f"{' → '.join(story.title)}: {story.word}"


# --- a way ----------------------------------------------------------------------------------------


def _story(story: Story, name: str, level: int) -> Iterator[str]:
    names = " → ".join(part.partition(" ")[0] for part in story.title)
    yield f'<section aria-labelledby="{name}">'
    yield f'<h{level} id="{name}">{text(names)}</h{level}>'
    yield f"<p>{text(' → '.join(story.title))}</p>"
    yield (
        f'<p class="verdict"><strong class="chip {story.tone}">{text(story.word)}</strong> '
        f"{text(story.summary)}</p>"
    )
    yield f'<p class="quiet">{text(story.tag)}</p>'
    yield from _lines(story)
    drawing = write(picture_sheet(story), name)
    yield f'<div class="picture" role="region" aria-label="The way, drawn" tabindex="0">\n{drawing}</div>'
    yield from _notes(story)
    yield from _reasons(story)
    yield from _expected_and_seen(story)
    yield from _headers("Headers, hop by hop", story.forward)
    yield from _headers("Headers of the answer", story.reply)
    yield "</section>"


def _lines(story: Story) -> Iterator[str]:
    if not story.lines:
        return
    yield f'<dl class="lines {story.tone}">'
    for label, words in story.lines:
        value = f"<code>{text(words)}</code>" if label in ("try", "then") else text(words)
        yield f"<dt>{text(label)}</dt><dd>{value}</dd>"
    yield "</dl>"


def _notes(story: Story) -> Iterator[str]:
    if story.notes:
        yield "<ul>"
        yield from (f"<li>{text(note)}</li>" for note in story.notes)
        yield "</ul>"


def _reasons(story: Story) -> Iterator[str]:
    rows = [row for step in story.steps for row in _entries(step)]
    rows += [("", "", "conntrack", text(entry), "", "") for entry in story.connections]
    titles = ("№", "where", "entry", "as its tool prints it", "wanted by", "command that shows it")
    yield from table("Rules, routes and conntrack: why it goes this way", titles, rows)


def _entries(step: Step) -> Iterator[Sequence[str]]:
    mark = "" if step.mark is None else str(step.mark)
    for why in step.hop.why:
        grown = f" <b>counter +{why.packets}</b>" if why.packets is not None else ""
        wanted = f"{why.source.kind} {why.source.name}" if why.source else ""
        yield (
            mark,
            text(step.hop.point),
            text(f"{why.object} {why.key}"),
            f"<code>{text(why.text)}</code>{grown}",
            text(wanted),
            f"<code>{text(why.command)}</code>",
        )


def _expected_and_seen(story: Story) -> Iterator[str]:
    for words, steps in (("Expected and seen", story.forward), ("The answer", story.reply)):
        rows = [_seen(number, step) for number, step in enumerate(steps, 1)]
        titles = ("hop", "point", "way", "expected", "seen", "µs", "who → whom", "what happened")
        yield from table(words, titles, rows)


def _seen(number: int, step: Step) -> Sequence[str]:
    hop = step.hop
    mark = f"<b>({step.mark})</b> " if step.mark is not None else ""
    told = "" if step.state == "missing" and step.mark is None else step.told
    return (
        str(number),
        text(hop.point),
        hop.direction,
        "yes" if hop.predicted else "no",
        f'<span class="{step.state}">{SEEN[step.state]}</span>',
        "" if hop.t_us is None else f"{hop.t_us:.0f}",
        "same" if step.same else f"<code>{text(step.who)}</code>",
        f"{mark}{text(told)}",
    )


def _headers(words: str, steps: Sequence[Step]) -> Iterator[str]:
    rows = []
    for number, step in enumerate(steps, 1):
        state = STATE_WORDS[step.state]
        about = f"{number}. {step.hop.point} {step.hop.direction}" + (f" ({state})" if state else "")
        for place, layer in enumerate(layers(step.hop)):
            name = f"{layer.name}, of the tunnel" if layer.outer else layer.name
            swatch = f'<span class="swatch {layer.kind if layer.kind in COLOURS else "data"}"></span>'
            rows.append(
                (
                    text(about) if place == 0 else "",
                    f"{swatch}{text(name)}",
                    f"<code>{text(layer.ends)}</code>",
                    text(" ".join(layer.facts)),
                    "<b>changed</b>" if layer.changed else "",
                )
            )
    yield from table(words, ("hop", "header", "who → whom", "fields", "here"), rows)


# --- the rest -------------------------------------------------------------------------------------


def _several(stories: Sequence[Story]) -> str:
    ends = "".join(f"<li>{text(story.title[-1])}: {text(story.summary)}</li>" for story in stories)
    start = " → ".join(stories[0].title[:2])
    return f"<h1>{text(start)}</h1>\n<p>One of {len(stories)} ways is taken:</p>\n<ol>{ends}</ol>"


def _counts(trace: Trace) -> Iterator[str]:
    rows = [
        (
            text(c.host),
            text(f"{c.table} {c.chain} {c.position}"),
            f"<code>{text(c.text)}</code>",
            f"+{c.packets}",
        )
        for c in trace.counts
    ]
    yield from table("Counters that moved", ("host", "rule", "as iptables prints it", "packets"), rows)


def _guards(trace: Trace) -> Iterator[str]:
    rows = [(text(hop.point), "seen, and must not be" if hop.seen else "not seen") for hop in trace.guards]
    yield from table("Where it must not appear", ("point", "seen"), rows)


def _repeat(question: Question, bundle: str | None) -> Iterator[str]:
    port = "" if question.dst_port is None else f" {question.dst_port}"
    more = f" --size {question.size}" if question.size else ""
    ends = f"{question.source} {question.target} --{question.protocol}{port}{more}"
    lines = [f"overlaynet explain {ends}", f"overlaynet trace {ends}"]
    lines += [f"overlaynet trace --replay {bundle}"] if bundle else []
    yield "<h2>How to repeat</h2>"
    yield f"<pre>{chr(10).join(text(line) for line in lines)}</pre>"


def table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table that can be folded; cells are escaped already. Nothing where there are no rows."""
    if not rows:
        return
    yield f"<details open><summary>{text(caption)}</summary>"
    yield f'<div class="wide" role="region" aria-label="{text(caption)}" tabindex="0"><table>'
    yield "<thead><tr>" + "".join(f'<th scope="col">{text(title)}</th>' for title in titles) + "</tr></thead>"
    yield "<tbody>"
    yield from ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    yield "</tbody></table></div></details>"


# --- looks ----------------------------------------------------------------------------------------

_STYLE = """\
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
code, pre { font-size: .86em;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--host); border: 1px solid var(--edge); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; }
.quiet { color: var(--quiet); font-size: .85rem; }
.verdict { font-size: 1.05rem; font-weight: 600; margin: .8rem 0; }
.chip { display: inline-block; padding: .1rem .7rem; border-radius: 6px; margin-right: .4rem;
  color: var(--on-verdict); }
.good { --tone: var(--good); } .bad { --tone: var(--bad); }
.unsure { --tone: var(--unsure); } .foretold { --tone: var(--foretold); }
.chip { background: var(--tone); border: 2px solid var(--tone); }
.lines { border: 2px solid var(--tone); border-radius: 8px; padding: .7rem 1rem; display: grid;
  grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: .8rem 0; }
.lines dt { font-weight: 600; color: var(--tone); } .lines dd { margin: 0; overflow-wrap: anywhere; }
.picture, .wide { overflow-x: auto; }
.picture { margin: 1rem 0; border: 1px solid var(--edge); border-radius: 8px; }
.picture svg { display: block; width: 100%; min-width: 46rem; height: auto; }
details { margin: 1.2rem 0; }
summary { font-weight: 600; font-size: 1.05rem; cursor: pointer; margin-bottom: .4rem; }
table { border-collapse: collapse; font-size: .86rem; min-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .28rem .9rem .28rem .3rem;
  border-bottom: 1px solid var(--edge); }
td:nth-child(-n+2) { white-space: nowrap; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
.missing, .unexpected { color: var(--bad); font-weight: 600; } .unlooked { color: var(--unsure); }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid var(--quiet);
  border-radius: 2px; vertical-align: -.05em; }
@media print {
  main { max-width: none; padding: 0; }
  .picture, .wide { overflow: visible; border: none; }
  .picture svg { min-width: 0; }
  details, tr, .lines { break-inside: avoid; }
  .chip { background: none; color: var(--ink); }
}
"""


def style() -> str:
    """The stylesheet: colours as variables, and the drawing's own for dark screens."""
    swatches = "".join(f".swatch.{name} {{ background: var(--{name}); }}\n" for name in _layers())
    dark = f":root {{ color-scheme: dark; {_variables('dark')} }}\n{''.join(_drawing_rules())}"
    return (
        f":root {{ color-scheme: light; {_variables('light')} }}\n{_STYLE}{swatches}"
        f"@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n"
    )


def _variables(scheme: str) -> str:
    return " ".join(f"--{name}: {getattr(colour, scheme)};" for name, colour in COLOURS.items())


def _layers() -> list[str]:
    return ["eth", "ip", "udp", "tcp", "icmp", "vxlan", "data"]


def _drawing_rules() -> Iterator[str]:
    """Rules that outrank the colours that a drawing's elements have in themselves."""
    for name in COLOURS:
        yield f".t-{name} {{ fill: var(--{name}); }}\n"
    for name, look in LOOKS.items():
        fill = "" if look.fill is None else f"fill: var(--{look.fill}); "
        stroke = "" if look.stroke is None else f"stroke: var(--{look.stroke}); "
        yield f".s-{name} {{ {fill}{stroke}}}\n"
    for name in _layers():
        yield f".f-{name} {{ fill: var(--{name}); }}\n"
