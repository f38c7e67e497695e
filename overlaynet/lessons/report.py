"""What a learner did, as a document to hand in; and what a class did, from the documents of its learners.

A document is made from one learner's record and the lessons that there are. It comes back from elsewhere as a
file, and such a file is whatever somebody made of it: `read` holds it against `labs/report.schema.json` before
anything is done with it, and takes nothing in it for more than text, without characters that a terminal obeys.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlaynet import __version__, data
from overlaynet.errors import ReportInvalid
from overlaynet.lessons import record
from overlaynet.lessons.catalogue import Entry
from overlaynet.lessons.record import Progress, Record
from overlaynet.store.place import dotted
from overlaynet.trace.render.text import count_of, cut_middle, plain

SCHEMA, KIND = "overlaynet/v1", "LessonReport"
PROVED, STARTED, NOT_HERE = "proved", "started", "not here"
MAX_BYTES = 4 << 20
"""A report of all lessons has some 50 kB."""
DEEPEST = 20
"""Levels of lists and objects in a report, a newer version's as well; one of ours has seven."""
LONGEST = 200
"""Characters of a complaint, which quotes what it is about."""


# --- made of a record -----------------------------------------------------------------------------


def report(done: Record, lessons: Sequence[Entry]) -> dict[str, Any]:
    """The members of a learner's document: each lesson that there is, and each that is in the record alone."""
    items = [_item(entry, done.lessons.get(entry.name, Progress())) for entry in lessons]
    known = {entry.name for entry in lessons}
    items += [_unknown(name, done.lessons[name]) for name in sorted(done.lessons.keys() - known)]
    return {
        "learner": done.learner,
        "machine": platform.node(),
        "version": __version__,
        "made_at": record.now(),
        "proved": sum(item["state"] == PROVED for item in items),
        "items": items,
    }


def state(progress: Progress, unavailable: str | None) -> str | None:
    """``proved``, ``not here`` where it cannot be run, ``started``, or None."""
    if progress.proved_at is not None:
        return PROVED
    if unavailable is not None:
        return NOT_HERE
    return STARTED if progress.started_at is not None else None


def _item(entry: Entry, progress: Progress) -> dict[str, Any]:
    asked = {prediction.name: prediction.question for prediction in entry.lesson.predictions}
    return {
        "number": entry.number,
        "lesson": entry.name,
        "question": entry.lesson.question,
        "state": state(progress, entry.unavailable),
        "unavailable": entry.unavailable,
        **_done(progress, asked),
    }


def _unknown(name: str, progress: Progress) -> dict[str, Any]:
    """A lesson of a folder that is not looked at now."""
    asked = {name: str(answer.get("question") or name) for name, answer in progress.captured.items()}
    return {
        "number": None,
        "lesson": name,
        "question": None,
        "state": state(progress, None),
        "unavailable": None,
        **_done(progress, dict.fromkeys(progress.predictions, "") | asked),
    }


def _done(progress: Progress, asked: Mapping[str, str]) -> dict[str, Any]:
    last = progress.last or {}
    return {
        "started_at": progress.started_at,
        "proved_at": progress.proved_at,
        "starts": progress.starts,
        "checks": progress.checks,
        "hints": progress.hints,
        "predictions": [_prediction(name, question, progress) for name, question in asked.items()],
        "verdict": last.get("verdict"),
        "claims": list(last.get("claims", ())),
        "seeds": sorted(progress.seeds.values(), key=lambda seed: seed["seed"]),
    }


def found(seed: Mapping[str, Any]) -> str:
    """``1 of 2: fdb_wrong at node-1``, of the faults that a seed had hidden."""
    named = [f"{fault['kind']} at {fault['place']}" for fault in seed["faults"] if fault["found"]]
    return ": ".join(filter(None, [f"{len(named)} of {len(seed['faults'])}", ", ".join(named)]))


def _prediction(name: str, question: str, progress: Progress) -> dict[str, Any]:
    """The first is what was believed; theory and capture are those of the first check that got so far."""
    told: Sequence[str | None] = progress.predictions.get(name) or [None]
    found = progress.captured.get(name, {})
    captured = found.get("captured")
    return {
        "name": name,
        "question": question,
        "first": told[0],
        "last": told[-1],
        "theory": found.get("theory"),
        "captured": captured,
        "right_first": None if captured is None else told[0] == captured,
        "because": found.get("because", ""),
    }


# --- read from a file -----------------------------------------------------------------------------


def read(file: Path) -> dict[str, Any]:
    """A learner's document. Raises ReportInvalid with the file and the member that is wrong."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ReportInvalid(f"{file} cannot be read", evidence=str(error.strerror)) from error
    if len(content) > MAX_BYTES:
        raise ReportInvalid(f"{file} is no report", evidence=f"it has more than {MAX_BYTES} bytes")
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ReportInvalid(f"{file} is no report", evidence=f"it is not JSON: {error}") from error
    if _is_deep(document):
        raise ReportInvalid(f"{file} is no report", evidence=f"it has more than {DEEPEST} levels")
    _check(document, file)
    return dict(_harmless(document))


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _is_deep(document: object) -> bool:
    """Whether it is nested as no report is: whoever goes through it would run out of stack."""
    level = [document]
    for _ in range(DEEPEST):
        level = [part for value in level for part in _parts(value)]
    return bool(level)


def _parts(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _harmless(value: Any) -> Any:
    """The same with every text in it made plain, line by line."""
    match value:
        case str():
            return "\n".join(map(plain, value.splitlines()))
        case list():
            return [_harmless(part) for part in value]
        case dict():
            return {plain(name): _harmless(part) for name, part in value.items()}
        case _:
            return value


def _check(document: object, file: Path) -> None:
    import jsonschema  # here: it costs 0.2 s

    schema = json.loads(data.path("labs", "report.schema.json").read_text("utf-8"))
    fault = next(jsonschema.Draft202012Validator(schema).iter_errors(document), None)
    if fault is not None:
        where = dotted(tuple(fault.absolute_path))
        raise ReportInvalid(
            f"{file}: {where + ': ' if where else ''}{cut_middle(plain(fault.message), LONGEST)}",
            evidence="a report is what `overlaynet lab report -w NAME.json` writes",
        )


def headline(reports: Sequence[Mapping[str, Any]]) -> str:
    """``3 of 13 lessons proved, 9 of 11 values predicted right at first``, of one or several."""
    items = [item for report in reports for item in report["items"]]
    proved = sum(item["state"] == PROVED for item in items)
    right, known = map(sum, zip(*map(right_first, items), strict=True)) if items else (0, 0)
    said = f"{proved} of {count_of(len(items), 'lesson')} proved"
    return f"{said}, {right} of {count_of(known, 'value')} predicted right at first" if known else said


def when(time: str | None) -> str:
    """An ISO time of UTC as people read it."""
    return "" if time is None else f"{time[:10]} {time[11:16]} UTC"


# --- of a class -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """One lesson of those that some learner has."""

    number: int | None
    lesson: str
    question: str


@dataclass(frozen=True, slots=True)
class Believed:
    """What a class said first to one question, in order of how many said it; and how many were right, of those
    of whom that can be told."""

    question: str
    captured: tuple[str, ...]
    said: tuple[tuple[str, int], ...]
    right: int
    judged: int


def columns(reports: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The lessons of all learners, by number."""
    found: dict[str, Column] = {}
    for item in (item for report in reports for item in report["items"]):
        if item["lesson"] not in found or found[item["lesson"]].number is None:
            found[item["lesson"]] = Column(item["number"], item["lesson"], item["question"] or "")
    return sorted(found.values(), key=lambda c: (c.number is None, c.number, c.lesson))


def item_of(report: Mapping[str, Any], lesson: str) -> Mapping[str, Any] | None:
    """What a learner did in a lesson; None where the lesson was not there."""
    return next((item for item in report["items"] if item["lesson"] == lesson), None)


def right_first(item: Mapping[str, Any]) -> tuple[int, int]:
    """How many predictions were right the first time, and of how many that is known."""
    known = [p["right_first"] for p in item["predictions"] if p["right_first"] is not None]
    return sum(known), len(known)


def believed(reports: Sequence[Mapping[str, Any]], lesson: str) -> list[Believed]:
    """Each question of a lesson that somebody answered, and what the class believed before it saw."""
    answers: dict[str, list[Mapping[str, Any]]] = {}
    for item in filter(None, (item_of(report, lesson) for report in reports)):
        for prediction in item["predictions"]:
            if prediction["first"] is not None:
                answers.setdefault(prediction["name"], []).append(prediction)
    return [_believed(given) for given in answers.values()]


def _believed(given: Sequence[Mapping[str, Any]]) -> Believed:
    """Where all who got so far captured the same, that decides of those who did not."""
    captured = tuple(dict.fromkeys(p["captured"] for p in given if p["captured"] is not None))
    same = captured[0] if len(captured) == 1 else None
    marks = [p["first"] == (p["captured"] or same) for p in given if p["captured"] or same]
    return Believed(
        question=given[0]["question"] or given[0]["name"],
        captured=captured,
        said=tuple(Counter(p["first"] for p in given).most_common()),
        right=sum(marks),
        judged=len(marks),
    )
