"""One thing that `overlaynet doctor` looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """`next` is a command that may help, or None."""

    name: str
    state: str
    detail: str
    next: str | None = None
