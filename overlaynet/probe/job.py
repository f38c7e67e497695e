"""Reading a job and its members. A job is written by a program, so a fault in it is told in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from overlaynet.errors import EnvironmentProblem, UsageError, from_json

T = TypeVar("T")
SCHEMA = "overlaynet/v1"


def read_job(line: bytes) -> Mapping[str, Any]:
    """A job, from its line. Raises UsageError."""
    try:
        job = json.loads(line)
    except ValueError as error:
        raise UsageError("the job is not one line of JSON", evidence=str(error)) from None
    if not isinstance(job, dict):
        raise UsageError("the job is not a JSON object", evidence=repr(job)[:200])
    return job


def answer_line(document: Mapping[str, Any]) -> bytes:
    """An answer, as its line."""
    return json.dumps({"schema": SCHEMA, **document}, separators=(",", ":")).encode() + b"\n"


def member(job: Mapping[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """`job[name]`, which must be of that type (an int will do for a float); raises UsageError.

    A default makes the member optional; null counts as absent."""
    value = job.get(name)
    if value is None:
        value = default
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"the job's {name!r} must be a {kind.__name__}", evidence=f"it is {value!r}")
    return value


def objects(job: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """`job[name]`, which must be a list of objects; raises UsageError."""
    items = member(job, name, list)
    if not all(isinstance(item, Mapping) for item in items):
        raise UsageError(f"the job's {name!r} must be a list of objects", evidence=f"it is {items!r}"[:200])
    return items


def netns(job: Mapping[str, Any]) -> str | None:
    """The namespace named in a job: a name or a path, or None for the one the probe runs in."""
    return member(job, "netns", str) if job.get("netns") is not None else None


def checked(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document, unless it tells of an error: then that is raised."""
    if document.get("kind") == "Error":
        raise from_json(document["error"])
    return dict(document)


def reported(what: str, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """The document that a program wrote. Raises the error that it tells of, EnvironmentProblem if there is
    none."""
    try:
        document = json.loads(stdout)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        said = stderr.decode(errors="replace")[-400:]
        raise EnvironmentProblem(f"{what} did not report", evidence=said)
    return checked(document)
