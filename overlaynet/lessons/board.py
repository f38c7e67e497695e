"""What a check writes down: claims about the lab, one after another, and predicted values beside captured ones.

A learner goes through a lesson step by step, so a check ends at the first claim that does not hold: that is
where the learner is. A claim that holds is proved by packets or by what the kernel has; one that rests on
silence where nobody watched is inconclusive, which is neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from overlaynet.errors import NotPermitted, OverlayError, ToolMissing, UsageError
from overlaynet.lessons.lesson import Lesson, Prediction
from overlaynet.proof.way import Inconclusive

PROVED, NOT_YET, INCONCLUSIVE = "proved", "not_yet", "inconclusive"


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, whether it holds (``pass``, ``fail`` or ``inconclusive``), and the evidence against it."""

    text: str
    verdict: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A value as theory has it and as it was captured, in the spelling of its prediction; and why."""

    theory: str
    captured: str
    because: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction beside theory and capture. Both are None until the lesson is so far that it was captured."""

    name: str
    question: str
    predicted: str
    theory: str | None = None
    captured: str | None = None
    because: str = ""

    @property
    def right(self) -> bool | None:
        """Whether it was predicted right; None while that is not known."""
        return None if self.captured is None else self.predicted == self.captured

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("name", "question", "predicted", "theory", "captured")},
            "right": self.right,
            "because": self.because,
        }


def _spelled(prediction: Prediction, captured: object) -> str:
    """What was captured need not be of the kind that was asked for: then it is not what theory says either."""
    try:
        return prediction.read(str(captured))
    except UsageError:
        return str(captured)


class _Ended(Exception):
    """A claim did not hold: what comes behind it rests on it."""


@dataclass(slots=True)
class Board:
    """Written by one check of one lesson. `predicted`: what the learner said last, for lessons in which that is
    all there is to do. `more`: members of the check's document; `next`: what to type after the verdict."""

    lesson: Lesson
    predicted: Mapping[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    next: str | None = None
    claims: list[Claim] = field(default_factory=list)
    values: dict[str, Measured] = field(default_factory=dict)

    @contextmanager
    def claim(self, text: str) -> Iterator[None]:
        """The block shows that `text` holds, or raises AssertionError (as claims about packets do); then the
        check ends here. What the block asks for and is not there, such as an interface, refutes it as well."""
        try:
            yield
        except Inconclusive as error:
            self.claims.append(Claim(text, "inconclusive", str(error)))
            raise _Ended from error
        except AssertionError as error:
            self.claims.append(Claim(text, "fail", str(error)))
            raise _Ended from error
        except (NotPermitted, ToolMissing):
            raise
        except OverlayError as error:
            told = "\n".join(filter(None, [str(error), error.evidence]))
            self.claims.append(Claim(text, "fail", told))
            raise _Ended from error
        self.claims.append(Claim(text, "pass"))

    def measured(self, name: str, *, theory: object, captured: object, because: str) -> None:
        """Put a predicted value beside what theory says and what was captured. That these two agree is a claim
        of its own: a lab that behaves otherwise is not the one that the lesson is about."""
        prediction = self.lesson.prediction(name)
        value = Measured(prediction.read(str(theory)), _spelled(prediction, captured), because)
        self.values[name] = value
        if value.theory != value.captured:
            self.claims.append(
                Claim(
                    f"{name} is captured as theory has it",
                    "fail",
                    f"captured: {value.captured}; theory: {value.theory}, for {because}",
                )
            )
            raise _Ended

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Around a check: ends where a claim ended it."""
        try:
            yield
        except _Ended:
            return

    @property
    def verdict(self) -> str:
        """``proved`` if all claims hold and every predicted value was captured."""
        verdicts = {claim.verdict for claim in self.claims}
        if "inconclusive" in verdicts:
            return INCONCLUSIVE
        complete = self.values.keys() >= {p.name for p in self.lesson.predictions}
        return PROVED if verdicts == {"pass"} and complete else NOT_YET

    def answers(self, predicted: Mapping[str, str]) -> list[Answer]:
        """Each prediction of the learner beside what was found."""
        return [self._answer(prediction, predicted[prediction.name]) for prediction in self.lesson.predictions]

    def _answer(self, prediction: Prediction, predicted: str) -> Answer:
        answer = Answer(prediction.name, prediction.question, predicted)
        value = self.values.get(prediction.name)
        if value is None:
            return answer
        return replace(answer, theory=value.theory, captured=value.captured, because=value.because)
