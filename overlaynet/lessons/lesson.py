"""What a lesson is: a question, what a learner predicts, how the lab begins and when it is done. Pure.

A prediction is one value that follows from how networks work, and that a capture shows: a TTL, a number of
bytes, a MAC address, the interface at which a packet is seen last. It is asked for before anything is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from overlaynet.addr import Mac
from overlaynet.errors import UsageError

if TYPE_CHECKING:
    from overlaynet.lessons.board import Board
    from overlaynet.lessons.stage import Stage

HINTS = 3
"""From a nudge to nearly the answer."""
_NAME = re.compile(r"[a-z][-_a-z0-9]*")
_POINT = re.compile(r"[a-z][-a-z0-9]*:[!-.0-9;-~]{1,15}")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One value to predict. `kind`: ``number``, ``address``, ``mac``, ``point`` (PLACE:IFACE) or ``word``,
    one of `choices`, which are in small letters. Raises ValueError for any other."""

    name: str
    question: str
    kind: str = "number"
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a prediction's name is typed before its value, and {self.name!r} cannot be")
        if self.kind not in _READERS:
            raise ValueError(f"{self.name} is of kind {self.kind!r}; there are {', '.join(_READERS)}")
        if (self.kind == "word") != bool(self.choices):
            raise ValueError(f"{self.name}: a word has choices, and nothing else has")
        if any(choice != choice.lower() for choice in self.choices):
            raise ValueError(f"{self.name}: choices are in small letters, not {self.choices}")

    def read(self, text: str) -> str:
        """What was typed in the one spelling that is compared. Raises UsageError for what is none of the
        kind."""
        try:
            return _READERS[self.kind](self, text.strip())
        except ValueError:
            raise UsageError(
                f"{text.strip()!r} is no answer to: {self.question}",
                evidence=f"wanted: {self.wanted}",
                next=[f"overlaynet lab check --predict {self.name}={self.example}"],
            ) from None

    @property
    def wanted(self) -> str:
        """What may be typed, in a word or two."""
        return " or ".join(self.choices) if self.choices else _WANTED[self.kind]

    @property
    def example(self) -> str:
        return "|".join(self.choices) if self.choices else self.kind.upper()


def _number(_: Prediction, text: str) -> str:
    return str(int(text.removeprefix("+")))


def _word(prediction: Prediction, text: str) -> str:
    if text.lower() not in prediction.choices:
        raise ValueError(text)
    return text.lower()


def _point(_: Prediction, text: str) -> str:
    if not _POINT.fullmatch(text):
        raise ValueError(text)
    return text


_READERS: dict[str, Callable[[Prediction, str], str]] = {
    "number": _number,
    "address": lambda _, text: str(ip_address(text)),
    "mac": lambda _, text: str(Mac.parse(text)),
    "point": _point,
    "word": _word,
}
_WANTED = {
    "number": "a whole number",
    "address": "an IP address",
    "mac": "a MAC address",
    "point": "PLACE:IFACE, such as node-1:eth0",
    "word": "a word",
}


def _nothing(_: Stage) -> None:
    """A lab that begins as its topology says."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One lesson, without its folder.

    `start` makes the lab what the learner finds, `check` says how far it is; both may raise what the lab
    raises. `needs` names capabilities of the machine (`overlaynet.lessons.needs`). `minutes`, `memory_mb` and
    `disk_mb` are what it costs a learner and a machine, as measured. `asks_each_time`: what was predicted once
    says nothing of the next check. Raises ValueError unless there are three
    hints and each prediction has a name of its own."""

    question: str
    predictions: tuple[Prediction, ...]
    hints: tuple[str, str, str]
    check: Callable[[Stage, Board], None]
    start: Callable[[Stage], None] = _nothing
    minutes: int = 15
    memory_mb: int = 150
    disk_mb: int = 130
    needs: tuple[str, ...] = ()
    asks_each_time: bool = False

    def __post_init__(self) -> None:
        if len(self.hints) != HINTS:
            raise ValueError(f"a lesson has {HINTS} hints, this one {len(self.hints)}")
        names = [prediction.name for prediction in self.predictions]
        if len(set(names)) != len(names):
            raise ValueError(f"two predictions have one name: {', '.join(names)}")

    def prediction(self, name: str) -> Prediction:
        """Raises UsageError."""
        for prediction in self.predictions:
            if prediction.name == name:
                return prediction
        names = ", ".join(p.name for p in self.predictions) or "none"
        raise UsageError(
            f"there is nothing called {name!r} to predict", evidence=f"to be predicted: {names}", next=()
        )

    def read(self, given: Sequence[str]) -> dict[str, str]:
        """``NAME=VALUE`` as they were typed. Raises UsageError."""
        found: dict[str, str] = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"{text!r} is no prediction", evidence="wanted: NAME=VALUE")
            found[name] = self.prediction(name).read(value)
        return found
