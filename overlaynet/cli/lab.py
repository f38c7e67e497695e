"""`overlaynet lab`: lessons that begin broken, ask for a prediction first, and prove what became of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from overlaynet.cli import names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.lifecycle import teller
from overlaynet.cli.output import Column, member, members, table
from overlaynet.errors import PredictFirst, UsageError
from overlaynet.lab.paths import Paths
from overlaynet.lessons import classroom, record
from overlaynet.lessons.board import INCONCLUSIVE, PROVED, Answer, Claim
from overlaynet.lessons.catalogue import Entry, entries, find
from overlaynet.lessons.classroom import Checked, Started
from overlaynet.lessons.lesson import HINTS, Prediction
from overlaynet.lessons.record import Progress, Record

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
    items = [_item(entry, done.lessons.get(entry.name), started) for entry in entries()]
    app.result(
        "Lessons",
        {"learner": done.learner, "items": items},
        lambda: listing_text(items, app),
        [entry.name for entry in entries()],
    )


def _item(entry: Entry, progress: Progress | None, started: set[str]) -> dict[str, Any]:
    lesson = entry.lesson
    return {
        "number": entry.number,
        "lesson": entry.name,
        "question": lesson.question,
        "state": _state(entry, progress),
        "lab": "up" if entry.name in started else None,
        "unavailable": entry.unavailable,
        "minutes": lesson.minutes,
        "memory_mb": lesson.memory_mb,
        "disk_mb": lesson.disk_mb,
        "readme": str(entry.readme),
    }


def _state(entry: Entry, progress: Progress | None) -> str | None:
    if progress is not None and progress.proved_at is not None:
        return "proved"
    if entry.unavailable is not None:
        return "not here"
    return "started" if progress is not None and progress.started_at is not None else None


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
        started = classroom.start(entry, paths, seed=seed, progress=teller(say))
    done = record.load(paths)
    progress = done.of(entry.name)
    progress.starts += 1
    progress.started_at = progress.started_at or record.now()
    record.save(done, paths)
    _result(app, entry, started)


@lab.command()
@lesson_argument
@shared
@pass_app
def reset(app: App, lesson: str | None) -> None:
    """Make a lesson's lab what it was at its start. What you predicted and proved stays recorded."""
    paths = Paths.here()
    entry = _entry(app, lesson, paths)
    with app.progress(f"lesson {entry.name}") as say:
        started = classroom.reset(entry, paths, progress=teller(say))
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
    app.result("LessonStarted", members, lambda: started_text(entry, started), [entry.name])


def _prediction_item(prediction: Prediction) -> dict[str, Any]:
    return {
        "name": prediction.name,
        "question": prediction.question,
        "kind": prediction.kind,
        "choices": list(prediction.choices),
    }


def started_text(entry: Entry, started: Started) -> str:
    """The question, where to read, what to predict."""
    lesson = entry.lesson
    lines = [
        f"lesson {entry.number}, {entry.name}: {lesson.question}",
        f"  lab      {started.hosts} hosts, {started.containers} containers, ready in {started.ready_s:.1f} s",
        f"  read     {shown(entry.readme)}",
    ]
    width = max((len(p.name) for p in lesson.predictions), default=0)
    for n, prediction in enumerate(lesson.predictions):
        label = "predict" if n == 0 else ""
        asked = f"{prediction.question} ({prediction.wanted})"
        lines.append(f"  {label:<7}  {prediction.name:<{width}}  {asked}")
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
    done = record.load(paths)
    progress = done.of(entry.name)
    progress.predict(entry.lesson.read(given))
    _ask(app, entry, progress)
    record.save(done, paths)
    with app.progress(f"checking lesson {entry.name}"):
        checked = classroom.check(entry, progress.predicted([p.name for p in entry.lesson.predictions]), paths)
    _note(done, entry, checked, paths)
    document = {"lesson": entry.name, "number": entry.number, **checked.as_json()}
    app.result("LessonCheck", document, lambda: checked_text(entry, checked), [checked.verdict])
    return EXIT_CODES.get(checked.verdict, NOT_PROVED)


def _ask(app: App, entry: Entry, progress: Progress) -> None:
    """Have predicted what was not yet: on a terminal by asking. Raises PredictFirst."""
    missing = [p for p in entry.lesson.predictions if not progress.predictions.get(p.name)]
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
        progress.predict({prediction.name: _asked(prediction)})


def _asked(prediction: Prediction) -> str:
    def read(text: str) -> str:
        try:
            return prediction.read(text)
        except UsageError as error:
            raise click.BadParameter(error.evidence) from error

    question = f"{prediction.question} ({prediction.wanted})"
    return str(click.prompt(question, value_proc=read, err=True))


def _note(done: Record, entry: Entry, checked: Checked, paths: Paths) -> None:
    progress = done.of(entry.name)
    progress.checks += 1
    progress.last = checked.as_json()
    if checked.verdict == PROVED:
        progress.proved_at = progress.proved_at or record.now()
    record.save(done, paths)


_WORDS = {True: "right", False: "wrong", None: "not captured yet"}
_ANSWERS: tuple[Column, ...] = (
    member("PREDICTION", "name"),
    *members("YOU=predicted", "THEORY", "CAPTURED"),
    Column("", lambda item: _WORDS[item["right"]]),
)


def checked_text(entry: Entry, checked: Checked) -> str:
    """Predictions beside what was captured, each claim with the evidence against it, and the verdict."""
    lines = [f"lesson {entry.number}, {entry.name}: {entry.lesson.question}", ""]
    if checked.answers:
        lines += [answers_text(checked.answers), ""]
    for claim in checked.claims:
        lines += claim_lines(claim)
    return "\n".join([*lines, *verdict_lines(entry, checked)])


def answers_text(answers: Sequence[Answer]) -> str:
    """The table, and of each captured value why it is that one."""
    reasons = [f"  {a.name} is {a.captured}: {a.because}" for a in answers if a.captured is not None]
    return "\n".join([table(_ANSWERS, [answer.as_json() for answer in answers]), *reasons])


def verdict_lines(entry: Entry, checked: Checked) -> list[str]:
    held = sum(claim.verdict == "pass" for claim in checked.claims)
    if checked.verdict == PROVED:
        said = f"PROVED  {held} of {held} claims, in {checked.duration_s:.1f} s"
        return [said, f"next: overlaynet down -l {entry.name}"]
    word = SAID.get(checked.verdict, NOT_YET)
    said = f"{word}  claims that hold: {held}; what comes after the last one rests on it"
    return [said, f"next: overlaynet lab hint {entry.name}"]


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
    done = record.load(paths)
    progress = done.of(entry.name)
    progress.hints = min(progress.hints + 1, HINTS)
    record.save(done, paths)
    text = entry.lesson.hints[progress.hints - 1]
    document = {"lesson": entry.name, "level": progress.hints, "of": HINTS, "hint": text}
    app.result("LessonHint", document, f"hint {progress.hints} of {HINTS}: {text}", [str(progress.hints)])
