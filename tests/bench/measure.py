"""What a bench answers: rows of two times and their ratio, beside the goal that the ratio has.

Absolute times say little on a machine that others use too. So each row holds two things that were done in
the same run, in turn, several times; each time is the median, and the ratio the median of the ratios of
the pairs. Wall time and CPU time (ours and our children's) are both kept, for a busy machine stretches the
first more than the second.
"""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROUNDS = 5


class Cost(NamedTuple):
    """Seconds of one piece of work."""

    wall: float
    cpu: float


class Row(NamedTuple):
    """One line of the table. `other` and `ratio` are None where there is nothing to compare with."""

    what: str
    peers: int
    ours: float
    unit: str
    other: float | None = None
    ratio: float | None = None
    goal: float | None = None


def cost(work: Callable[[], object]) -> Cost:
    """Of one call; what garbage there was before is not this work's to collect."""
    gc.collect()
    wall, cpu = time.perf_counter(), _cpu()
    work()
    return Cost(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    """User and system time of this process and of its children that ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def compare(
    what: str,
    peers: int,
    pairs: Sequence[tuple[Cost, Cost]],
    *,
    goal: float | None = None,
    each: int = 1,
    unit: str = "us/peer",
) -> list[Row]:
    """Rows for wall and CPU time of (ours, theirs), in microseconds divided by `each`.

    Where little CPU time was spent, or none is known, its row is left out."""
    rows = [_row(what, peers, [(a.wall, b.wall) for a, b in pairs], goal, each, unit)]
    if min(min(a.cpu, b.cpu) for a, b in pairs) > 0.05:
        rows.append(_row(f"{what}, CPU", peers, [(a.cpu, b.cpu) for a, b in pairs], goal, each, unit))
    return rows


def _row(
    what: str, peers: int, pairs: Sequence[tuple[float, float]], goal: float | None, each: int, unit: str
) -> Row:
    ours, other = (1e6 / each * statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(what, peers, ours, unit, other, statistics.median(a / b for a, b in pairs), goal)


def show(row: Row) -> None:
    """Print one line as soon as it is known: a bench takes minutes."""
    other = "" if row.other is None else f"{row.other:.1f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    goal = "" if row.goal is None else f"<= {row.goal:g}"
    met = "" if row.goal is None or row.ratio is None else ("met" if row.ratio <= row.goal else "MISSED")
    say(f"{row.peers:>7}  {row.what:<44}{row.ours:>10.1f}{other:>10} {row.unit:<8}{ratio:>7}  {goal:<8}{met}")


def heading(bench: str, about: str) -> None:
    say(
        f"\n{bench}: {about}\n{'peers':>7}  {'what':<44}{'ours':>10}{'other':>10} {'unit':<8}{'ratio':>7}  goal"
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
