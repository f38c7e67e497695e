"""Frames told as they pass, one line each, until the input ends: what `capture --live` watches.

The first line says at which interfaces it is listened (kind Armed), the last one whether anything was lost.
What passed before all of them were listened at is not told: it may have been seen at one and missed at the
next. If whoever reads is slow the pipe fills; then frames wait in the kernel's queues, and may end as dropped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

from overlaynet.probe import tap
from overlaynet.probe.job import answer_line
from overlaynet.probe.tap import Taken, frame_to_json


class Teller:
    """Writes frames as they come, but none before the first line."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._begun = False

    def begin(self, document: Mapping[str, Any]) -> None:
        """Write this line; frames follow."""
        with self._lock:
            self._write(document)
            self._begun = True

    def take(self, frame: Taken) -> bool:
        """False if nobody reads any more."""
        with self._lock:
            try:
                if self._begun:
                    self._tell(frame)
            except BrokenPipeError:
                return False
            return True

    def _tell(self, frame: Taken) -> None:
        self._write({"kind": "Frame", **frame_to_json(frame)})

    def _write(self, document: Mapping[str, Any]) -> None:
        self._out.write(answer_line(document))
        self._out.flush()


def run(job: Mapping[str, Any], stop_fd: int, out: BinaryIO) -> dict[str, Any]:
    """Carry out ``{"points": [{"place", "netns", "iface"}], "keep", "snap"}``; the answer is the last document.

    Ends when `stop_fd` does. Raises UsageError; a point that cannot be listened at has an `error`."""
    teller = Teller(out)
    taps = tap.from_job(job, teller.take)
    try:
        taps.arm()
        teller.begin({"kind": "Armed", "points": [one.opening() for one in taps.taps]})
        while os.read(stop_fd, 4096):
            pass
        taps.close()
    finally:
        taps.abandon()
    return {"kind": "Streamed", "points": [one.ending() for one in taps.taps]}
