"""Reports as pages: what one learner did, and a class at a glance.

A class's page answers what a teacher asks before the next hour: who is where, and what did they believe before
they saw it? The second table counts first predictions, right and wrong, for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from overlaynet.lessons.report import (
    NOT_HERE,
    PROVED,
    STARTED,
    Believed,
    Column,
    believed,
    columns,
    found,
    headline,
    item_of,
    right_first,
    when,
)
from overlaynet.trace.render.html import page, text
from overlaynet.trace.render.text import count_of

Report = Mapping[str, Any]
MARKS = {PROVED: "✓", STARTED: "…", NOT_HERE: "∅"}
WORDS = {PROVED: "proved", STARTED: "begun", NOT_HERE: "not there", None: "not begun"}
TONES = {PROVED: "good", STARTED: "unsure", NOT_HERE: "foretold"}
VERDICTS = {"pass": ("ok", "good"), "fail": ("FAIL", "bad"), "inconclusive": ("?", "unsure")}
RIGHT = {True: ("right", "good"), False: ("wrong", "bad"), None: ("not captured yet", "unsure")}


# --- one learner ----------------------------------------------------------------------------------


def learner_page(report: Report) -> str:
    """All that one learner did."""
    title = f"{report['learner']}: {headline([report])}"
    body = [
        f"<h1>{text(report['learner'])}</h1>",
        f'<p class="verdict">{text(headline([report]))}</p>',
        f'<p class="quiet">{text(made(report))}</p>',
        *_overview(report),
    ]
    for item in report["items"]:
        if item["state"] not in (None, NOT_HERE) or item["checks"]:
            body += _lesson(item)
    return page(title, body, _STYLE)


def made(report: Report) -> str:
    """Where and when, for the small print."""
    return f"{report['machine']}, overlaynet {report['version']}, {when(report['made_at'])}"


def _overview(report: Report) -> Iterator[str]:
    rows = []
    for item in report["items"]:
        right, known = right_first(item)
        rows.append(
            [
                "" if item["number"] is None else str(item["number"]),
                _name(item),
                _chip(item["state"]),
                _count(item["starts"]),
                _count(item["checks"]),
                _count(item["hints"]),
                f"{right} of {known}" if known else "",
                f"<time>{text(when(item['proved_at']))}</time>",
            ]
        )
    titles = ("№", "lesson", "state", "starts", "checks", "hints", "right at first", "proved")
    yield from _table("Lessons", titles, rows, "overview")


def _name(item: Mapping[str, Any]) -> str:
    question = f'<br><span class="quiet">{text(item["question"])}</span>' if item["question"] else ""
    return f"<b>{text(item['lesson'])}</b>{question}"


def _chip(state: str | None) -> str:
    tone = TONES.get(str(state))
    return f'<b class="tone {tone}">{MARKS[str(state)]} {WORDS[state]}</b>' if tone else WORDS[state]


def _count(number: int) -> str:
    return str(number) if number else ""


def _lesson(item: Mapping[str, Any]) -> Iterator[str]:
    number = "" if item["number"] is None else f"{item['number']}. "
    yield '<section class="lesson">'
    yield f"<h2>{number}{text(item['question'] or item['lesson'])}</h2>"
    yield f'<p class="quiet">{text(_times(item))}</p>'
    yield from _table(
        f"Predictions of lesson {item['lesson']}",
        ("predicted", "at first", "at last", "theory", "captured", "the first was"),
        [_prediction(prediction) for prediction in item["predictions"] if prediction["first"] is not None],
        "predictions",
    )
    yield from _table(
        "What was hidden", ("seed", "looks", "found"), [_seed(seed) for seed in item["seeds"]], "seeds"
    )
    if item["claims"]:
        yield "<p>The last check:</p>"
        yield '<ul class="claims">'
        yield from (_claim(claim) for claim in item["claims"])
        yield "</ul>"
    yield "</section>"


def _times(item: Mapping[str, Any]) -> str:
    parts = [f"begun {when(item['started_at'])}"] if item["started_at"] else []
    parts += [f"proved {when(item['proved_at'])}"] if item["proved_at"] else []
    parts += [count_of(item[what], what[:-1]) for what in ("starts", "checks", "hints")]
    return ", ".join(parts)


def _prediction(prediction: Mapping[str, Any]) -> Sequence[str]:
    word, tone = RIGHT[prediction["right_first"]]
    last = "" if prediction["last"] == prediction["first"] else prediction["last"]
    because = f'<br><span class="quiet">{text(prediction["because"])}</span>' if prediction["because"] else ""
    return (
        text(prediction["question"] or prediction["name"]) + because,
        *(
            f"<code>{text(value)}</code>" if value else ""
            for value in (prediction["first"], last, prediction["theory"], prediction["captured"])
        ),
        f'<b class="tone {tone}">{word}</b>',
    )


def _seed(seed: Mapping[str, Any]) -> Sequence[str]:
    return str(seed["seed"]), str(seed["looks"]), text(found(seed))


def _claim(claim: Mapping[str, Any]) -> str:
    word, tone = VERDICTS[claim["verdict"]]
    evidence = "<br>".join(map(text, claim["evidence"].splitlines()))
    shown = f'<br><span class="quiet">{evidence}</span>' if evidence else ""
    return f'<li><b class="tone {tone}">{word}</b> {text(claim["text"])}{shown}</li>'


# --- a class --------------------------------------------------------------------------------------


def class_page(reports: Sequence[tuple[str, Report]]) -> str:
    """Several learners, each by the name of its file: who is where, and what they believed first."""
    documents = [report for _, report in reports]
    lessons = columns(documents)
    body = [
        f"<h1>{text(count_of(len(reports), 'learner'))}</h1>",
        f'<p class="verdict">{text(headline(documents))}</p>',
        '<p class="quiet">✓ proved, … begun, ∅ cannot be run on that machine; 3/4: three of four values were '
        "predicted right at first; h2: two hints were asked for.</p>",
        *_grid(reports, lessons),
        *_misbeliefs(documents, lessons),
        *_scores(documents),
    ]
    return page(f"{count_of(len(reports), 'learner')}: {headline(documents)}", body, _STYLE)


def _grid(reports: Sequence[tuple[str, Report]], lessons: Sequence[Column]) -> Iterator[str]:
    titles = [f"{'' if c.number is None else c.number} {c.lesson}" for c in lessons]
    rows = [
        [
            f"<b>{text(report['learner'])}</b><br>"
            f'<span class="quiet">{text(report["machine"])}, {text(file)}, {when(report["made_at"])}</span>',
            *(_cell(item_of(report, column.lesson)) for column in lessons),
            f"<b>{sum(item['state'] == PROVED for item in report['items'])}</b>",
        ]
        for file, report in reports
    ]
    totals = [_total(reports, column) for column in lessons]
    rows.append(["<b>proved by</b>", *totals, ""])
    yield from _table("Who is where", ("learner", *titles, "proved"), rows, "grid")


def _cell(item: Mapping[str, Any] | None) -> str:
    """A mark and two figures; whoever cannot see them hears words."""
    if item is None or item["state"] is None:
        return f'<span class="spoken">{WORDS[None]}</span>'
    right, known = right_first(item)
    told = [f"{right}/{known}"] if known else []
    told += [f"h{item['hints']}"] if item["hints"] else []
    state = item["state"]
    small = f'<br><span class="quiet">{" ".join(told)}</span>' if told else ""
    return (
        f'<b class="tone {TONES[state]}" aria-hidden="true">{MARKS[state]}</b>'
        f'<span class="spoken">{WORDS[state]}</span>{small}'
    )


def _total(reports: Sequence[tuple[str, Report]], column: Column) -> str:
    items = (item_of(report, column.lesson) for _, report in reports)
    return str(sum(item is not None and item["state"] == PROVED for item in items))


def _misbeliefs(reports: Sequence[Report], lessons: Sequence[Column]) -> Iterator[str]:
    rows = []
    for column in lessons:
        for n, question in enumerate(believed(reports, column.lesson)):
            name = f"<b>{text(column.number or '')} {text(column.lesson)}</b>" if n == 0 else ""
            rows.append([name, *_question(question)])
    titles = ("lesson", "asked", "captured", "said first", "right")
    yield from _table("What they believed before they saw it", titles, rows, "believed")


def _question(question: Believed) -> Sequence[str]:
    said = [
        f"<code{_underline(value in question.captured)}>{text(value)}</code>&nbsp;×{times}"
        for value, times in question.said
    ]
    return (
        text(question.question),
        ", ".join(f"<code>{text(value)}</code>" for value in question.captured),
        ", ".join(said),
        f"{question.right} of {question.judged}" if question.judged else "",
    )


def _scores(reports: Sequence[Report]) -> Iterator[str]:
    """Whoever named all that a seed had hidden comes first, after the fewest looks."""
    scores = [
        (seed["seed"], seed["verdict"] != PROVED, seed["looks"], n, seed)
        for n, report in enumerate(reports)
        for item in report["items"]
        for seed in item["seeds"]
    ]
    rows = [
        (str(number), text(reports[n]["learner"]), str(looks), text(found(seed)))
        for number, _, looks, n, seed in sorted(scores, key=lambda score: score[:4])
    ]
    yield from _table("What was hidden, and who found it", ("seed", "learner", "looks", "found"), rows, "seeds")


def _underline(right: bool) -> str:
    return ' class="right"' if right else ""


def _table(caption: str, titles: Iterable[str], rows: Sequence[Sequence[str]], kind: str) -> Iterator[str]:
    """Cells are escaped already, and the first of a row names it. Nothing where there are no rows."""
    if not rows:
        return
    yield f'<div class="wide" role="region" aria-label="{text(caption)}" tabindex="0">'
    yield f'<table class="{kind}"><caption>{text(caption)}</caption>'
    heads = "".join(f'<th scope="col"><span>{text(title)}</span></th>' for title in titles)
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for name, *cells in rows:
        yield f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></div>"


_STYLE = """\
caption { text-align: left; font-weight: 600; font-size: 1.2rem; margin: 1.4rem 0 .4rem; }
tbody th { font-weight: 400; white-space: normal; }
td:nth-child(-n+2) { white-space: normal; }
table .quiet { font-size: .95em; }
.overview td:nth-child(2) { min-width: 15rem; }
.tone { color: var(--tone); white-space: nowrap; }
time { white-space: nowrap; }
.lesson { margin: 2rem 0; }
.lesson caption { font-size: .95rem; margin: .6rem 0 .2rem; }
.claims { list-style: none; padding: 0; font-size: .9rem; }
.claims li { margin: .3rem 0; overflow-wrap: anywhere; }
.predictions td:first-child, .believed td:first-child { overflow-wrap: anywhere; }
td code, .believed td:last-child { white-space: nowrap; }
.grid td { text-align: center; padding: .28rem .3rem; }
.grid tbody th, .believed tbody th { white-space: nowrap; }
.grid thead th { vertical-align: bottom; text-align: center; padding: .28rem .3rem; }
.grid thead th:first-child, .grid thead th:last-child { text-align: left; }
.grid thead th:not(:first-child):not(:last-child) span { writing-mode: vertical-rl; transform: rotate(180deg); }
.grid tbody tr:last-child > * { border-top: 2px solid var(--edge); }
code.right { text-decoration: underline; font-weight: 700; color: var(--good); }
.wide { position: relative; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media print {
  @page { margin: 12mm; }
  body { font-size: 10pt; }
  table { font-size: .78rem; }
  .lesson { break-inside: avoid-page; }
  thead { display: table-header-group; }
  caption, thead { break-after: avoid; }
  tbody tr:first-child { break-before: avoid; }
}
"""
