"""Listening at points of a whole cluster: a tap each, on every machine that has one.

All taps of one machine are one job of its probe. A machine whose probe fails has taps that are no witnesses;
the others are none the worse for it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from overlaynet.errors import OverlayError
from overlaynet.proof.points import Spot
from overlaynet.proof.sessions import Sessions
from overlaynet.trace.model import Captured, Point, Tap

SETTLE_S = 0.03
"""How long nothing may come before a capture is ended: what was sent just before is still on its way."""


@dataclass(slots=True)
class Taps:
    """Some points, each of which is listened at from `arm` to `collect`."""

    sessions: Sessions
    spots: Sequence[Spot]
    _errors: dict[Point, OverlayError | None] = field(default_factory=dict)

    def arm(self, keep: Mapping[str, Any] | None, snap: int | None = None) -> dict[Point, str]:
        """Begin. Answers why a point cannot be listened at, of those where that is so."""
        answers = self.sessions.ask_each(jobs("arm", self.spots, self.sessions, keep, snap))
        troubles: dict[Point, str] = {}
        for machine, answer in answers.items():
            here = self._points(machine)
            if isinstance(answer, OverlayError):
                troubles |= dict.fromkeys(here, answer.message)
                self._errors |= dict.fromkeys(here, answer)
            else:
                troubles |= {tap.point: tap.error for tap in map(tap_from, answer["points"]) if tap.error}
        return troubles

    def collect(self, settle_s: float = SETTLE_S) -> tuple[list[Tap], list[Captured]]:
        """End. What every tap saw, in order of time as far as there is one."""
        machines = [m for m in dict.fromkeys(map(self._machine, self.spots)) if not self._failed(m)]
        answers = self.sessions.ask_each({m: {"op": "collect", "settle_s": settle_s} for m in machines})
        taps = {spot.point: Tap(spot.point, self._why_silent(spot.point)) for spot in self.spots}
        frames: list[Captured] = []
        for machine, answer in answers.items():
            if isinstance(answer, OverlayError):
                taps |= {point: Tap(point, answer.message) for point in self._points(machine)}
                continue
            here = [tap_from(item) for item in answer["points"]]
            taps |= {tap.point: tap for tap in here}
            frames += (captured_from(here, item) for item in answer["frames"])
        depths = {spot.point: spot.depth for spot in self.spots}
        return list(taps.values()), sorted(frames, key=lambda frame: order_of(frame, depths))

    def _machine(self, spot: Spot) -> str:
        return self.sessions.machine(spot.where.host)

    def _points(self, machine: str) -> list[Point]:
        return [spot.point for spot in self.spots if self._machine(spot) == machine]

    def _failed(self, machine: str) -> bool:
        return any(point in self._errors for point in self._points(machine))

    def _why_silent(self, point: Point) -> str:
        error = self._errors.get(point)
        return error.message if error else "its probe did not report"


def jobs(
    operation: str, spots: Sequence[Spot], sessions: Sessions, keep: Mapping[str, Any] | None, snap: int | None
) -> dict[str, dict[str, Any]]:
    """For each machine the job of listening at its points."""
    found: dict[str, dict[str, Any]] = {}
    for spot in spots:
        machine = sessions.machine(spot.where.host)
        job = found.setdefault(machine, {"op": operation, "points": [], "keep": keep, "snap": snap})
        job["points"].append({"place": spot.point.place, "netns": spot.where.netns, "iface": spot.point.iface})
    return found


def tap_from(item: Mapping[str, Any]) -> Tap:
    """A tap as a probe tells of it; before the end nothing is known of how it will end."""
    point = Point(item["place"], item["iface"])
    return Tap(point, item["error"] or "", item["armed"], item.get("closed", False), item.get("dropped", None))


def order_of(frame: Captured, depths: Mapping[Point, int]) -> tuple[int, int]:
    """Sorts by time, and where a packet keeps its stamp from one interface to the next, by its way inwards."""
    return (frame.t_ns or 0, depths[frame.point] if frame.direction == "in" else 0)


def captured_from(taps: Sequence[Tap], item: Mapping[str, Any]) -> Captured:
    """A frame as a probe tells of it: its point is a number there."""
    return Captured(
        taps[item["point"]].point,
        item["t_ns"],
        item["direction"],
        base64.b64decode(item["data"]),
        item["length"],
    )
