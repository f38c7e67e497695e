"""Holds: objects that somebody asked the agent to leave alone, so that a fault can be studied or taught.

A hold is kept in memory only. It ends when it is released, when its time is up, and with the agent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from overlaynet.core.jsonstate import key_from_text
from overlaynet.errors import NotFound, UsageError
from overlaynet.state import ChainKey, Key

RULE: Final = "rule"
"""The kind of a rule chain; the others are `state.Kind`."""
MAX_REASON = 200
_CHAIN = re.compile(r"(filter|nat|mangle|raw) ([A-Za-z0-9_.:-]{1,28})")


@dataclass(frozen=True, slots=True)
class Hold:
    """`text` names the object within its kind, as the plan document does; `until` is in the loop's
    monotonic seconds, None for ever. `quiet`: the log does not tell of it."""

    kind: str
    text: str
    reason: str
    until: float | None
    quiet: bool = False

    @property
    def key(self) -> Key | None:
        """The kernel object's; None for a rule chain."""
        return None if self.kind == RULE else key_from_text(self.kind, self.text)

    @property
    def chain(self) -> ChainKey | None:
        """The rule chain's table and name; None for anything else."""
        table, _, name = self.text.partition(" ")
        return (table, name) if self.kind == RULE else None


@dataclass(slots=True)
class Holds:
    """Those in force. `keys` and `chains` are what must not be written."""

    by_name: dict[tuple[str, str], Hold] = field(default_factory=dict)
    keys: frozenset[Key] = frozenset()
    chains: frozenset[ChainKey] = frozenset()

    def place(self, hold: Hold) -> None:
        """In place of one on the same object."""
        self.by_name[hold.kind, hold.text] = hold
        self._settle()

    def release(self, kind: str, text: str) -> Hold:
        """Raises NotFound."""
        hold = self.by_name.pop((kind, text), None)
        if hold is None:
            held = ", ".join(f"{k} {t}" for k, t in sorted(self.by_name)) or "nothing"
            raise NotFound(f"{kind} {text} is not held", evidence=f"held: {held}", next=["overlaynet status"])
        self._settle()
        return hold

    def expire(self, now: float) -> list[Hold]:
        """End those whose time is up."""
        over = [hold for hold in self.by_name.values() if hold.until is not None and hold.until <= now]
        for hold in over:
            del self.by_name[hold.kind, hold.text]
        if over:
            self._settle()
        return over

    def deadline(self) -> float | None:
        """When the next one ends by itself."""
        return min((h.until for h in self.by_name.values() if h.until is not None), default=None)

    def _settle(self) -> None:
        holds = self.by_name.values()
        self.keys = frozenset(hold.key for hold in holds if hold.key is not None)
        self.chains = frozenset(hold.chain for hold in holds if hold.chain is not None)


def parse_hold(body: Mapping[str, Any], now: float) -> Hold:
    """A client's request. Raises UsageError."""
    kind, text = parse_name(body, {"for_s", "reason", "quiet"})
    for_s, reason = body.get("for_s"), body.get("reason") or ""
    if for_s is not None and not _is_duration(for_s):
        raise UsageError("for_s must be seconds above 0, or null for ever", evidence=repr(for_s))
    if not isinstance(reason, str) or len(reason) > MAX_REASON or not reason.isprintable():
        raise UsageError(
            f"a reason is one line of at most {MAX_REASON} characters", evidence=repr(reason)[:MAX_REASON]
        )
    if not isinstance(quiet := body.get("quiet", False), bool):
        raise UsageError("quiet must be true or false", evidence=repr(quiet)[:MAX_REASON])
    return Hold(kind, text, reason, None if for_s is None else now + for_s, quiet)


def parse_name(body: Mapping[str, Any], more: frozenset[str] | set[str] = frozenset()) -> tuple[str, str]:
    """Kind and key of a request that may have these `more` members. Raises UsageError."""
    if unknown := set(body) - {"kind", "key"} - more:
        raise UsageError("unknown members in the request", evidence=", ".join(sorted(unknown)))
    kind, text = body.get("kind"), body.get("key")
    if not isinstance(kind, str) or not isinstance(text, str):
        raise UsageError("kind and key must be text", evidence=repr(dict(body))[:MAX_REASON])
    if kind != RULE:
        key_from_text(kind, text)
    elif not _CHAIN.fullmatch(text):
        raise UsageError(f"{text!r} names no chain", evidence="a table, a blank, a chain: filter OVL-FORWARD")
    return kind, text


def _is_duration(value: Any) -> bool:
    """A number proper: true and false are none, though Python calls them integers."""
    return type(value) in (int, float) and 0 < value < math.inf
