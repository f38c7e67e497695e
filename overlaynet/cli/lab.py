"""`overlaynet lab`: lessons that begin broken, ask for a prediction first, and prove what became of it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from overlaynet.cli import names, output
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.lifecycle import teller
from overlaynet.cli.output import Column, member, members, table
from overlaynet.cli.pictures import check_files, write_file
from overlaynet.errors import PredictFirst, UsageError
from overlaynet.lab.lab import UP_TIMEOUT_S
from overlaynet.lab.paths import Paths
from overlaynet.lessons import classroom, record, report
from overlaynet.lessons.board import INCONCLUSIVE, PROVED, Answer, Claim
from overlaynet.lessons.catalogue import Entry, entries, find
from overlaynet.lessons.classroom import Checked, Started
from overlaynet.lessons.lesson import HINTS, Prediction
from overlaynet.lessons.record import Progress
from overlaynet.trace.render.text import count_of

EXIT_CODES = {PROVED: 0, INCONCLUSIVE: 4}
NOT_PROVED = 1
SAID = {PROVED: "PROVED", INCONCLUSIVE: "INCONCLUSIVE"}
NOT_YET = "NOT YET"

lesson_argument = click.argument("lesson", required=False, shell_complete=names.lessons)


@click.group()
@shared
def lab() -> None:
    """Lessons on how containers reach each other, each proved by captured packets.

    Start one, read its page, predict what the packets will show, do what it takes, and check. LESSON is a
    number or a name, and may be left out where only one is started.
    """


# --- which there are ------------------------------------------------------------------------------

_COLUMNS: tuple[Column, ...] = (
    member("", "number"),
    *members("LESSON", "STATE", "LAB"),
    *members("MINUTES", "MEMORY=memory_mb", "DISK=disk_mb", spare=True),
    *members("QUESTION"),
)


@lab.command("list")
@shared
@pass_app
def listing(app: App) -> None:
    """All lessons, and how far you are."""
    paths = Paths.here()
    done = record.load(paths)
    started = {entry.name for entry in classroom.running(paths)}
    items = [_item(entry, done.lessons.get(entry.name, Progress()), started) for entry in entries()]
    app.result(
        "Lessons",
        {"learner": done.learner, "items": items},
        lambda: listing_text(items, app),
        [entry.name for entry in entries()],
    )


def _item(entry: Entry, progress: Progress, started: set[str]) -> dict[str, Any]:
    lesson = entry.lesson
    return {
        "number": entry.number,
        "lesson": entry.name,
        "question": lesson.question,
        "state": report.state(progress, entry.unavailable),
        "lab": "up" if entry.name in started else None,
        "unavailable": entry.unavailable,
        "minutes": lesson.minutes,
        "memory_mb": lesson.memory_mb,
        "disk_mb": lesson.disk_mb,
        "readme": str(entry.readme),
    }


def listing_text(items: Sequence[Mapping[str, Any]], app: App) -> str:
    """The table; under it why some cannot be run, and what to type."""
    lines = [table(_COLUMNS, items, wide=app.wide, width=app.width)]
    lines += [f"not here: {i['lesson']}, for {i['unavailable']}" for i in items if i["unavailable"]]
    first = next((i for i in items if i["state"] is None), None)
    if first is not None:
        lines.append(f"next: overlaynet lab start {first['lesson']}")
    return "\n".join(lines)


# --- beginning ------------------------------------------------------------------------------------


@lab.command()
@click.argument("lesson", shell_complete=names.lessons)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="What is left to chance, if anything is.")
@shared
@pass_app
def start(app: App, lesson: str, seed: int) -> None:
    """Build a lesson's lab, as the learner finds it."""
    entry, paths = find(lesson), Paths.here()
    with app.progress(f"lesson {entry.name}") as say:
        patience_s = app.timeout(UP_TIMEOUT_S)
        started = classroom.start(entry, paths, seed=seed, timeout_s=patience_s, progress=teller(say))
    with record.changing(paths) as done:
        done.of(entry.name).begin()
    _result(app, entry, started)


@lab.command()
@lesson_argument
@click.option("--seed", type=click.IntRange(min=0), help="Another one, for what is left to chance.")
@shared
@pass_app
def reset(app: App, lesson: str | None, seed: int | None) -> None:
    """Make a lesson's lab what it was at its start. What you predicted and proved stays recorded."""
    paths = Paths.here()
    entry = _entry(app, lesson, paths)
    with app.progress(f"lesson {entry.name}") as say:
        patience_s = app.timeout(UP_TIMEOUT_S)
        started = classroom.reset(entry, paths, seed=seed, timeout_s=patience_s, progress=teller(say))
    _result(app, entry, started)


def _entry(app: App, lesson: str | None, paths: Paths) -> Entry:
    """The lesson that is meant: a lesson's lab has its name, so -l will do as well."""
    word = lesson or app.lab
    return find(word) if word else classroom.current(paths)


def _result(app: App, entry: Entry, started: Started) -> None:
    app.lab = entry.name
    lesson = entry.lesson
    members = {
        "lesson": entry.name,
        "number": entry.number,
        "question": lesson.question,
        "readme": str(entry.readme),
        "hosts": started.hosts,
        "containers": started.containers,
        "ready_s": round(started.ready_s, 3),
        "predictions": [_prediction_item(p) for p in lesson.predictions],
    }
    app.result("LessonStarted", members, lambda: started_text(entry, started, app.width), [entry.name])


def _prediction_item(prediction: Prediction) -> dict[str, Any]:
    return {
        "name": prediction.name,
        "question": prediction.question,
        "kind": prediction.kind,
        "choices": list(prediction.choices),
    }


def started_text(entry: Entry, started: Started, width: int | None = None) -> str:
    """The question, where to read, what to predict."""
    lesson = entry.lesson
    size = f"{count_of(started.hosts, 'host')}, {count_of(started.containers, 'container')}"
    lines = [
        f"lesson {entry.number}, {entry.name}: {lesson.question}",
        f"  lab      {size}, ready in {started.ready_s:.1f} s",
        f"  read     {shown(entry.readme)}",
    ]
    names = max((len(p.name) for p in lesson.predictions), default=0)
    for n, prediction in enumerate(lesson.predictions):
        label = "predict" if n == 0 else ""
        head = f"  {label:<7}  {prediction.name:<{names}}  "
        lines.append(folded(f"{head}{prediction.question} ({prediction.wanted})", width, len(head)))
    return "\n".join([*lines, f"next: overlaynet lab check {entry.name}"])


def shown(file: Path) -> str:
    """A path as short as it can be typed here."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


# --- checking -------------------------------------------------------------------------------------


@lab.command()
@lesson_argument
@click.option("--predict", "given", multiple=True, metavar="NAME=VALUE", help="What you expect to be captured.")
@shared
@pass_app
def check(app: App, lesson: str | None, given: Sequence[str]) -> int:
    """Compare what you predicted, theory and capture, and say how far the lesson is.

    Exit code 0 if it is proved, 1 if not yet, 4 if nobody could have seen it.
    """
    paths = Paths.here()
    entry = _entry(app, lesson, paths)
    app.lab = entry.name
    classroom.started(entry, paths)
    told = entry.lesson.read(given)
    _predict(entry, told, paths)
    _ask(app, entry, told, paths)
    predicted = record.load(paths).of(entry.name).predicted([p.name for p in entry.lesson.predictions])
    with app.progress(f"checking lesson {entry.name}"):
        checked = classroom.check(entry, predicted, paths)
    with record.changing(paths) as done:
        done.of(entry.name).note(checked.as_json())
    document = {"lesson": entry.name, "number": entry.number, **checked.as_json()}
    app.result("LessonCheck", document, lambda: checked_text(entry, checked, app.width), [checked.verdict])
    return EXIT_CODES.get(checked.verdict, NOT_PROVED)


def _predict(entry: Entry, given: Mapping[str, str], paths: Paths) -> None:
    """Take down what was predicted, at once: what comes next may fail, or be interrupted."""
    with record.changing(paths) as done:
        done.of(entry.name).predict(given)


def _ask(app: App, entry: Entry, given: Mapping[str, str], paths: Paths) -> None:
    """Have predicted what was not yet: on a terminal by asking. Raises PredictFirst."""
    told = given if entry.lesson.asks_each_time else record.load(paths).of(entry.name).predictions
    missing = [p for p in entry.lesson.predictions if not told.get(p.name)]
    if not missing:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or app.format in ("json", "yaml"):
        options = " ".join(f"--predict {p.name}={p.example}" for p in missing)
        raise PredictFirst(
            "predict first: what will the packets show?",
            evidence="\n".join(f"{p.name}: {p.question} ({p.wanted})" for p in missing),
            next=[f"overlaynet lab check {entry.name} {options}"],
        )
    app.note("First predict what the packets will show. It is kept as you type it, right or wrong.")
    for prediction in missing:
        _predict(entry, {prediction.name: _asked(prediction)}, paths)


def _asked(prediction: Prediction) -> str:
    def read(text: str) -> str:
        try:
            return prediction.read(text)
        except UsageError as error:
            raise click.BadParameter(error.evidence) from error

    question = f"{prediction.question} ({prediction.wanted})"
    return str(click.prompt(question, value_proc=read, err=True))


_WORDS = {True: "right", False: "wrong", None: "not captured yet"}
_ANSWERS: tuple[Column, ...] = (
    member("PREDICTION", "name"),
    *members("YOU=predicted", "THEORY", "CAPTURED"),
    Column("", lambda item: _WORDS[item["right"]]),
)


def checked_text(entry: Entry, checked: Checked, width: int | None = None) -> str:
    """Predictions beside what was captured, each claim with the evidence against it, and the verdict."""
    lines = [f"lesson {entry.number}, {entry.name}: {entry.lesson.question}", ""]
    if checked.answers:
        lines += [answers_text(checked.answers, width), ""]
    for claim in checked.claims:
        lines += claim_lines(claim)
    return "\n".join([*lines, *verdict_lines(entry, checked)])


def answers_text(answers: Sequence[Answer], width: int | None = None) -> str:
    """The table, and of each captured value why it is that one."""
    said = [f"  {a.name} is {a.captured}: {a.because}" for a in answers if a.captured is not None]
    reasons = [folded(reason, width, 4) for reason in said]
    return "\n".join([table(_ANSWERS, [answer.as_json() for answer in answers]), *reasons])


def verdict_lines(entry: Entry, checked: Checked) -> list[str]:
    held = sum(claim.verdict == "pass" for claim in checked.claims)
    if checked.verdict == PROVED:
        said = f"PROVED  {held} of {held} claims, in {checked.duration_s:.1f} s"
        return [said, f"next: {checked.next or f'overlaynet down -l {entry.name}'}"]
    word = SAID.get(checked.verdict, NOT_YET)
    said = f"{word}  claims that hold: {held}; what comes after the last one rests on it"
    return [said, f"next: {checked.next or f'overlaynet lab hint {entry.name}'}"]


def claim_lines(claim: Claim) -> list[str]:
    """``ok    it is so`` and, where it is not, why."""
    word = {"pass": "ok", "fail": "FAIL"}.get(claim.verdict, "?")
    return [f"{word:<5} {claim.text}", *(f"      {line}" for line in claim.evidence.splitlines())]


# --- hints ----------------------------------------------------------------------------------------


@lab.command()
@lesson_argument
@shared
@pass_app
def hint(app: App, lesson: str | None) -> None:
    """The next hint of three, from a nudge to nearly the answer."""
    paths = Paths.here()
    entry = _entry(app, lesson, paths)
    with record.changing(paths) as done:
        level = done.of(entry.name).hint()
    text = entry.lesson.hints[level - 1]
    document = {"lesson": entry.name, "level": level, "of": HINTS, "hint": text}
    app.result("LessonHint", document, hint_text(level, text, app.width), [str(level)])


def hint_text(level: int, text: str, width: int | None) -> str:
    """The hint."""
    return folded(f"hint {level} of {HINTS}: {text}", width)


def folded(text: str, width: int | None, indent: int = 0) -> str:
    """A paragraph, on a terminal without a word that two lines share; what continues it is indented."""
    if width is None:
        return text
    deep = " " * indent
    return textwrap.fill(text, width, subsequent_indent=deep, break_long_words=False, break_on_hyphens=False)


# --- reporting ------------------------------------------------------------------------------------

_HTML, _JSON = ".html", ".json"
_REPORT: tuple[Column, ...] = (
    member("", "number"),
    *members("LESSON", "STATE", "STARTS", "CHECKS", "HINTS"),
    Column("RIGHT AT FIRST", lambda item: _right_first(item)),
    Column("PROVED", lambda item: report.when(item["proved_at"])),
)
_CLASS: tuple[Column, ...] = (
    *members("LEARNER", "MACHINE", "PROVED"),
    Column("HINTS", lambda item: sum(lesson["hints"] for lesson in item["items"])),
    Column("RIGHT AT FIRST", lambda item: _right_first(*item["items"])),
    Column("MADE", lambda item: report.when(item["made_at"])),
)


@lab.command("report")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, metavar="[FILE.json]...")
@click.option(
    "-w",
    "--write",
    "written",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Write FILE.html, or of one learner FILE.json.",
)
@shared
@pass_app
def reporting(app: App, files: Sequence[Path], written: Sequence[Path]) -> None:
    """What you did in each lesson, to hand in; or what learners did, from the files that they wrote.

    `overlaynet lab report -w NAME.json` is a learner's to send, `overlaynet lab report *.json -w class.html`
    the teacher's to read.
    """
    check_files(written, [_HTML] if len(files) > 1 else [_HTML, _JSON])
    found = [(file.name, report.read(file)) for file in files] or [("", _own_report())]
    for file in written:
        write_file(file, _written(found, file.suffix).encode())
    if len(found) == 1:
        _, one = found[0]
        app.result(report.KIND, one, lambda: report_text(one, app), [i["lesson"] for i in one["items"]])
    else:
        learners = [one for _, one in found]
        names = [one["learner"] for one in learners]
        app.result("LessonReports", {"items": learners}, lambda: class_text(learners, app), names)
    app.note_written(written)


def _own_report() -> dict[str, Any]:
    members = report.report(record.load(Paths.here()), entries())
    return output.document(report.KIND, None, members)


def _written(found: Sequence[tuple[str, Mapping[str, Any]]], form: str) -> str:
    from overlaynet.lessons.page import class_page, learner_page

    if form == _JSON:
        return output.to_json(found[0][1]) + "\n"
    return class_page(found) if len(found) > 1 else learner_page(found[0][1])


def _right_first(*items: Mapping[str, Any]) -> str | None:
    right, known = map(sum, zip(*map(report.right_first, items), strict=True))
    return f"{right} of {known}" if known else None


def report_text(one: Mapping[str, Any], app: App) -> str:
    """Who, and a table of the lessons."""
    who = f"{one['learner']}: {report.headline([one])}"
    return "\n".join([who, table(_REPORT, one["items"], wide=app.wide, width=app.width)])


def class_text(learners: Sequence[Mapping[str, Any]], app: App) -> str:
    """A line for each learner."""
    who = f"{len(learners)} learners: {report.headline(learners)}"
    return "\n".join([who, table(_CLASS, learners, wide=app.wide, width=app.width)])
