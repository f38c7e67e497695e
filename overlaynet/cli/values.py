"""What options take: text that is understood before a verb begins."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from overlaynet.errors import OverlayError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600}


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback of an option: its value, or each of its values, as `parse` understands it; its ValueErrors and
    OverlayErrors are told by click."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return tuple(map(parse, value)) if isinstance(value, tuple) else value and parse(value)
        except (ValueError, OverlayError) as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def duration(text: str) -> float:
    """Seconds: ``30s``, ``5m``, ``1h`` or a number alone. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not like 30s or 5m")
    return float(found[1]) * _UNITS[found[2]]
