"""Reading an object that a person wrote, and noting every mistake in it rather than the first.

A `Place` is one JSON object within a document together with its path, so that a mistake is named as
``spec.ports[1].nodePort``. Reading goes on behind a mistake with the member's default: the value that comes
out is then worth nothing, but the list of mistakes is complete. A member that is `null` counts as not given,
as in Kubernetes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Path: TypeAlias = tuple[str | int, ...]
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 60
"""Characters of a wrong value that are shown."""


class Mistake(NamedTuple):
    """What is wrong, and where."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.problem}" if self.path else self.problem


def dotted(path: Path) -> str:
    """``spec.ports[1].nodePort``; a key that is no plain word stands in brackets as well."""
    plain = (isinstance(part, str) and _WORD.fullmatch(part) for part in path)
    text = "".join(f".{part}" if word else f"[{part}]" for word, part in zip(plain, path, strict=True))
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A value as it stands in a sentence."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@dataclass(slots=True)
class Place:
    """One object and where it stands. All places of a document note their mistakes in one list."""

    members: Mapping[str, Any]
    path: Path = ()
    mistakes: list[Mistake] = field(default_factory=list)

    def wrong(self, problem: str, *below: str | int) -> None:
        """Note a mistake here or, with `below`, further down."""
        self.mistakes.append(Mistake((*self.path, *below), problem))

    def given(self, name: str) -> bool:
        return self.members.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        return self._typed(name, str, "text", default)

    def flag(self, name: str, default: bool = False) -> bool:
        return self._typed(name, bool, "true or false", default)

    def number(self, name: str, low: int, high: int, default: int = 0) -> int:
        """A whole number from `low` to `high`."""
        value = self.members.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self.wrong(f"must be a whole number, not {shown(value)}", name)
            return default
        if not low <= value <= high:
            self.wrong(f"must be from {low} to {high}, not {value}", name)
            return default
        return value

    def choice(self, name: str, allowed: Collection[str], default: str) -> str:
        """One of a few words."""
        word = self.text(name, default)
        if word in allowed or word == default:
            return word
        self.wrong(f"must be one of {', '.join(allowed)}, not {shown(word)}", name)
        return default

    def parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        """The text as `parse` understands it; its ValueError is the mistake. Empty text is not given."""
        text = self.text(name)
        return self.understood(parse, text, name) if text else None

    def understood(self, parse: Callable[[str], T], text: str, *below: str | int) -> T | None:
        """The same for text that is at hand already."""
        try:
            return parse(text)
        except ValueError as error:
            self.wrong(str(error), *below)
            return None

    def within(self, name: str) -> Place:
        """The object that this member holds; an empty one if it is not given."""
        return self._place(self._typed(name, dict, "an object", {}), name)

    def each(self, name: str) -> list[Place]:
        """The objects of a list."""
        return [
            self._place(item, name, n)
            for n, item in enumerate(self._typed(name, list, "a list", []))
            if self._is(item, dict, "an object", name, n)
        ]

    def texts(self, name: str) -> dict[int, str]:
        """The texts of a list, by their position."""
        items = enumerate(self._typed(name, list, "a list", []))
        return {n: item for n, item in items if self._is(item, str, "text", name, n)}

    def pairs(self, name: str) -> dict[str, str]:
        """An object whose members are all text."""
        members = self._typed(name, dict, "an object", {})
        return {key: text for key, text in members.items() if self._is(text, str, "text", name, key)}

    def _place(self, members: Mapping[str, Any], *below: str | int) -> Place:
        return Place(members, (*self.path, *below), self.mistakes)

    def _typed(self, name: str, kind: type[T], words: str, default: T) -> T:
        value = self.members.get(name)
        if value is None:
            return default
        return value if self._is(value, kind, words, name) else default

    def _is(self, value: object, kind: type, words: str, *below: str | int) -> bool:
        if isinstance(value, kind):
            return True
        self.wrong(f"must be {words}, not {shown(value)}", *below)
        return False
