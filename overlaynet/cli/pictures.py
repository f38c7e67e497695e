"""Writing a trace, or a prediction, to a file in the form that its name asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from overlaynet.errors import EnvironmentProblem, UsageError
from overlaynet.trace.model import Prediction, Trace

PICTURES = "FILE.svg, .html, .md (mermaid), .json or, of a trace, .ovltrace"
BUNDLE = ".ovltrace"

Pictured: TypeAlias = Trace | Prediction


def check_pictures(files: Iterable[Path], *, bundles: bool) -> None:
    """Find out before anything is sent what could not be written after it. Raises UsageError for a name whose
    end says nothing, EnvironmentProblem."""
    check_files(files, [*_FORMS, *([BUNDLE] if bundles else [])])


def check_files(files: Iterable[Path], ends: Sequence[str]) -> None:
    """The same for files of other things, whose names have these ends."""
    for file in files:
        if file.suffix not in ends:
            raise UsageError(
                f"{str(file)!r} does not say what to write",
                evidence=f"its name ends in one of: {' '.join(ends)}",
            )
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            raise EnvironmentProblem(f"{file} could not be written", evidence=_obstacle(file))


def _obstacle(file: Path) -> str:
    if file.is_dir():
        return "it is a directory"
    return "no permission" if file.parent.is_dir() else f"there is no directory {file.parent}"


def write_picture(file: Path, what: Pictured, bundle: bytes = b"") -> None:
    """Write one file, whose name was checked. Raises EnvironmentProblem."""
    write_file(file, bundle if file.suffix == BUNDLE else _FORMS[file.suffix](what).encode())


def write_file(file: Path, content: bytes) -> None:
    """Write what is drawn already. Raises EnvironmentProblem."""
    try:
        file.write_bytes(content)
    except OSError as error:
        raise EnvironmentProblem(f"{file} could not be written", evidence=str(error)) from error


def _svg(what: Pictured) -> str:
    from overlaynet.trace.render.svg import svg

    return svg(what)


def _html(what: Pictured) -> str:
    from overlaynet.trace.render.html import html

    return html(what)


def _mermaid(what: Pictured) -> str:
    from overlaynet.trace.render.mermaid import mermaid

    return mermaid(what)


def _json(what: Pictured) -> str:
    from overlaynet.cli.output import to_json
    from overlaynet.trace.document import explain_json, trace_json

    return to_json(trace_json(what) if isinstance(what, Trace) else explain_json(what))


_FORMS: Mapping[str, Callable[[Pictured], str]] = {
    ".svg": _svg,
    ".html": _html,
    ".md": _mermaid,
    ".json": _json,
}
