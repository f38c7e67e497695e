"""Writing a trace, or a prediction, to a file in the form that its name asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from overlaynet.errors import EnvironmentProblem, UsageError
from overlaynet.trace.model import Prediction, Trace

PICTURES = "FILE.svg, .html, .md (mermaid), .json or, of a trace, .ovltrace"
BUNDLE = ".ovltrace"

Pictured: TypeAlias = Trace | Prediction


def write_picture(file: Path, what: Pictured, bundle: bytes | None = None) -> None:
    """Write one file. Raises UsageError for a name whose end says nothing, EnvironmentProblem."""
    if file.suffix == BUNDLE and bundle is not None:
        content = bundle
    elif file.suffix in _FORMS:
        content = _FORMS[file.suffix](what).encode()
    else:
        raise UsageError(f"{file} does not say what to write", evidence=f"its name ends in one of: {PICTURES}")
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
