"""One probe for many jobs: each line in is a job, each is answered by one line out, until the input ends.

Starting a probe and importing what it needs costs more than most of what it is asked. And some jobs belong
together: interfaces are listened at (`arm`), packets are sent meanwhile, and at the end it is told what passed
(`collect`). A job that fails is answered by an Error document, and the session goes on.

What most sessions need is imported at once: whoever starts one has other things to do before the first job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from overlaynet.errors import EnvironmentProblem, OverlayError, UsageError
from overlaynet.probe import operations, place, send, tap  # noqa: F401 (place and send are got ready)
from overlaynet.probe.etcd import Etcd
from overlaynet.probe.job import answer_line, member, read_job
from overlaynet.probe.tap import Taken, Taps, frame_to_json

SETTLE_S = 0.05
MOST_FRAMES = 50_000
MOST_BYTES = 64 << 20
"""What is kept of one capture; frames beyond that count as dropped."""


class Store:
    """The frames of a capture, in bounded room."""

    def __init__(self) -> None:
        self.frames: list[Taken] = []
        self._octets = 0

    def take(self, frame: Taken) -> bool:
        """False if there is no room."""
        if len(self.frames) >= MOST_FRAMES or self._octets + len(frame.data) > MOST_BYTES:
            return False
        self.frames.append(frame)
        self._octets += len(frame.data)
        return True

    def forget(self) -> None:
        """What came so far. Its room is not given back: another thread counts what it takes."""
        self.frames.clear()


class Session:
    """What is kept from one job to the next: the interfaces that are listened at, and a client of etcd."""

    def __init__(self) -> None:
        self._taps: Taps | None = None
        self._etcd = Etcd()
        self._store = Store()

    def answer(self, line: bytes) -> dict[str, Any]:
        """To one job; an Error document if it failed."""
        try:
            return self._do(read_job(line))
        except OverlayError as error:
            return {"kind": "Error", "error": error.as_json()}
        except OSError as error:
            problem = EnvironmentProblem("the probe could not do its job", evidence=str(error))
            return {"kind": "Error", "error": problem.as_json()}

    def end(self) -> None:
        """Stop listening."""
        if self._taps is not None:
            self._taps.abandon()
        self._etcd.close()

    def _do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        match job.get("op"):
            case "arm":
                return self._arm(job)
            case "collect":
                return self._collect(job)
            case "etcd":
                return self._etcd.run(job)
            case _:
                return operations.do(job)

    def _arm(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if self._taps is not None:
            raise UsageError("this session is listening already", evidence="the job 'collect' ends that")
        self._store = Store()
        taps = tap.from_job(job, self._store.take)
        try:
            taps.arm()
        except OSError:
            taps.abandon()
            raise
        self._store.forget()  # what some of them saw until then, since others had no chance to
        self._taps = taps
        return {"kind": "Armed", "points": [one.opening() for one in taps.taps]}

    def _collect(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if self._taps is None:
            raise UsageError("this session is not listening", evidence="the job 'arm' begins that")
        taps, self._taps = self._taps, None
        taps.close(member(job, "settle_s", float, SETTLE_S))
        frames = sorted(self._store.frames, key=lambda frame: frame.t_ns or 0)
        return {
            "kind": "Collected",
            "points": [one.ending() for one in taps.taps],
            "frames": [frame_to_json(frame) for frame in frames],
        }


def run(jobs: Iterable[bytes], out: BinaryIO) -> None:
    """Answer every job, until there are no more."""
    session = Session()
    try:
        for line in jobs:
            out.write(answer_line(session.answer(line)))
            out.flush()
    finally:
        session.end()
