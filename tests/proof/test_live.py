"""Frames of several machines: the order in which they are told, and from when on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from overlaynet.proof.live import Live, _Machine
from overlaynet.trace.model import Captured, Point, Tap

pytestmark = pytest.mark.unit


def frame(place: str, t_ns: int) -> Captured:
    return Captured(Point(place, "eth0"), t_ns, "out", b"", 0)


def machine(name: str, *frames: tuple[int, float]) -> _Machine:
    """Frames by their stamp and when they came."""
    held = [((t_ns, 0), n, came, frame(name, t_ns)) for n, (t_ns, came) in enumerate(sorted(frames))]
    return _Machine(name, cast(Any, None), held=held)


def told(*machines: _Machine, before: float = 100.0) -> list[tuple[str, int | None]]:
    live = Live.__new__(Live)
    live._started = list(machines)
    return [(one.point.place, one.t_ns) for one in live._due(before)]


def test_frames_of_one_machine_are_in_order_of_its_clock_whenever_they_came() -> None:
    assert told(machine("a", (3, 1.0), (1, 1.2), (2, 1.1))) == [("a", 1), ("a", 2), ("a", 3)]


def test_clocks_of_two_machines_are_not_compared() -> None:
    """The second one's is far behind, and what it captured came later."""
    assert told(machine("a", (1_000, 1.0), (1_001, 2.0)), machine("b", (5, 1.5), (6, 2.5))) == [
        ("a", 1_000),
        ("b", 5),
        ("a", 1_001),
        ("b", 6),
    ]


def test_frames_that_came_just_now_are_held_back() -> None:
    assert told(machine("a", (1, 1.0), (2, 9.0)), machine("b", (7, 9.5)), before=5.0) == [("a", 1)]


def test_what_came_before_every_point_was_listened_at_is_forgotten() -> None:
    early, late = machine("a", (1, 1.0), (2, 2.0)), machine("b")
    early.taps, late.taps = [Tap(Point("a", "eth0"), "")], [Tap(Point("b", "eth0"), "is down")]
    live = Live.__new__(Live)
    live._started = [early, late]
    assert live.arm() == {Point("b", "eth0"): "is down"}
    assert told(early, late) == []
