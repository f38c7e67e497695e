"""Frames as they pass points of a cluster, from every machine at once.

Each machine has a probe that tells of frames in lines of JSON (`overlaynet.probe.stream`). It reads its queues
in turn, each in order, so frames of different points come a little out of order: they are held back for
`HELD_S` and put in order by the kernel's stamps. Machines have no common clock; between them the order of
coming counts.
"""

from __future__ import annotations

import heapq
import json
import os
import selectors
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from subprocess import Popen
from types import TracebackType
from typing import Any

from overlaynet.cluster.cluster import Cluster
from overlaynet.errors import EnvironmentProblem, OverlayError, from_json
from overlaynet.lab.session import end
from overlaynet.proof.points import Spot
from overlaynet.proof.sessions import Sessions
from overlaynet.proof.taps import captured_from, jobs, order_of, tap_from
from overlaynet.trace.model import Captured, Point, Tap

HELD_S = 0.05
IDLE_S = 0.1
"""How often it is told that no frame has come, so that whoever waits can do something else."""
ARMED_S = 15.0
ENDED_S = 10.0
_READ_BYTES = 1 << 16


@dataclass(slots=True)
class _Machine:
    """One machine's probe. `taps` are known once they are armed, and once more at the end; `rest` is the
    beginning of a line; `held` are frames, each behind its order and when it came."""

    name: str
    process: Popen[bytes]
    taps: list[Tap] = field(default_factory=list)
    ended: bool = False
    rest: bytes = b""
    held: list[tuple[tuple[int, int], int, float, Captured]] = field(default_factory=list)

    def read(self) -> Iterator[Mapping[str, Any]]:
        """What it says next. Raises its own errors, and EnvironmentProblem if it ended unasked."""
        assert self.process.stdout is not None
        octets = os.read(self.process.stdout.fileno(), _READ_BYTES)
        if not octets and not self.ended:
            raise EnvironmentProblem(
                f"the probe on {self.name} ended", evidence=self.rest.decode(errors="replace")[-200:]
            )
        *lines, self.rest = (self.rest + octets).split(b"\n")
        for line in lines:
            yield self._understood(json.loads(line))

    def _understood(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        if document["kind"] == "Error":
            raise from_json(document["error"])
        if document["kind"] != "Frame":
            self.taps = [tap_from(item) for item in document["points"]]
            self.ended = document["kind"] == "Streamed"
        return document


class Live:
    """Points that are listened at from the block's beginning to `stop`."""

    def __init__(
        self, cluster: Cluster, sessions: Sessions, spots: Sequence[Spot], keep: Mapping[str, Any] | None
    ) -> None:
        self._spots = spots
        self._depths = {spot.point: spot.depth for spot in spots}
        self._started = [
            _Machine(name, cluster.stream(name, job))
            for name, job in jobs("stream", spots, sessions, keep, None).items()
        ]
        self._selector = selectors.DefaultSelector()
        self._numbers = count()

    def __enter__(self) -> Live:
        for machine in self._started:
            assert machine.process.stdout is not None
            self._selector.register(machine.process.stdout, selectors.EVENT_READ, machine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()
        for machine in self._started:
            end(machine.process)

    def arm(self) -> dict[Point, str]:
        """Wait until every point is listened at; what some of them saw until then is forgotten, since others
        had no chance to. Answers why one is not. Raises what a probe says."""
        deadline = time.monotonic() + ARMED_S
        while any(not machine.taps for machine in self._started):
            if time.monotonic() > deadline:
                raise EnvironmentProblem(f"a probe did not listen within {ARMED_S:g} s")
            self._read(IDLE_S)
        for machine in self._started:
            machine.held.clear()
        return {tap.point: tap.error for machine in self._started for tap in machine.taps if tap.error}

    def frames(self) -> Iterator[Captured | None]:
        """Each frame, for as long as somebody asks; None whenever none has come for a while.

        Raises what a probe says, and EnvironmentProblem if one ends."""
        while True:
            self._read(HELD_S / 2 if any(machine.held for machine in self._started) else IDLE_S)
            found = list(self._due(time.monotonic() - HELD_S))
            yield from found
            if not found:
                yield None

    def stop(self) -> tuple[list[Captured], list[Tap]]:
        """Listen no longer: the frames that were still on their way, and how it went at every point."""
        for machine in self._started:
            assert machine.process.stdin is not None
            machine.process.stdin.close()
        deadline = time.monotonic() + ENDED_S
        while any(not machine.ended for machine in self._started) and time.monotonic() < deadline:
            try:
                self._read(IDLE_S)
            except OverlayError:
                break
        taps = {spot.point: Tap(spot.point, "its probe did not report") for spot in self._spots}
        taps |= {tap.point: tap for machine in self._started if machine.ended for tap in machine.taps}
        return list(self._due(float("inf"))), list(taps.values())

    def _read(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            machine: _Machine = key.data
            for document in machine.read():
                if document["kind"] == "Frame":
                    self._hold(machine, captured_from(machine.taps, document))
            if machine.ended:
                self._selector.unregister(key.fileobj)

    def _hold(self, machine: _Machine, frame: Captured) -> None:
        item = (order_of(frame, self._depths), next(self._numbers), time.monotonic(), frame)
        heapq.heappush(machine.held, item)

    def _due(self, before: float) -> Iterator[Captured]:
        """Frames that came before that moment: each machine's earliest first, and of several machines' the one
        that came first."""
        while ready := [one for one in self._started if one.held and one.held[0][2] <= before]:
            yield heapq.heappop(min(ready, key=lambda one: one.held[0][2]).held)[3]
