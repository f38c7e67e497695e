"""What becomes of containers after they are wired: their probes, and the time that those have who must go.

Each probe has a thread of its own, as in the kubelet, so that one that hangs delays no other. A prober tells
the loop only what is new: another verdict, or another reason. All else here runs on the loop's thread.

It is level-triggered: `follow` compares the containers that are wired with the probers that run, whatever
made the difference. What must outlive the agent (`disk.Kept`) is in `kept`, for the loop to write down: the
probe, and the end of a grace period as a time of day. The last conditions are in the container's record; a
restarted agent leaves them as they are until a probe says otherwise.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overlaynet.core.probes import Tally, probe_document
from overlaynet.events import Conditions
from overlaynet.model import Probe, Workload
from overlaynet.store.disk import NOTHING_KEPT, Kept
from overlaynet_agent.checks import carry_out

log = logging.getLogger("overlaynet.upkeep")


@dataclass(frozen=True, slots=True)
class Probed:
    """News of a container's probe. `verdict` None: too few results in a row to say; `detail` is the last one's
    reason. `prober` tells the news of one that was stopped meanwhile."""

    id: str
    prober: Prober
    verdict: bool | None
    detail: str


class Prober:
    """One container's probe, again and again until stopped."""

    def __init__(
        self,
        workload: Workload,
        probe: Probe,
        helper: Path | None,
        delay_s: float,
        post: Callable[[Probed], None],
    ) -> None:
        self._workload = workload
        self._probe = probe
        self._helper = helper
        self._delay_s = delay_s
        self._post = post
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name=f"probe {workload.id}", daemon=True).start()

    def stop(self) -> None:
        """No check is begun after this; one under way ends by its deadline, and nobody waits for it."""
        self._stopped.set()

    def _run(self) -> None:
        tally, verdict, detail = Tally(), None, None
        due = time.monotonic() + self._delay_s
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + self._probe.period_s
            result = carry_out(self._probe, self._workload.ips[0], self._helper)
            now = tally.take(result.passed, self._probe)
            if result.detail != detail or (now is not None and now != verdict):
                self._post(Probed(self._workload.id, self, now, result.detail))
            verdict, detail = verdict if now is None else now, result.detail


class Upkeep:
    """The containers' upkeep on one host. `run` is where helpers' sockets are; `post` takes news to the
    loop."""

    def __init__(
        self,
        run: Path,
        post: Callable[[Probed], None],
        kept: Mapping[str, Kept],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kept = dict(kept)
        self._run = run
        self._post = post
        self._clock = clock
        self._resumed = frozenset(kept)
        self._probers: dict[str, Prober] = {}
        self._details: dict[str, str] = {}
        ends = {one: item.ends for one, item in kept.items() if item.ends is not None}
        self._until = {one: clock() + at - time.time() for one, at in ends.items()}

    # --- containers come and go -------------------------------------------------------------------

    def take(self, workload_id: str, probe: Probe | None, helper: str) -> None:
        """A container was wired: this is its probe."""
        old = self.kept.get(workload_id, NOTHING_KEPT)
        self._forget(workload_id, keep_socket=old.probe_socket == helper)
        if probe is not None:
            self.kept[workload_id] = Kept(probe, helper)

    def drop(self, workload_id: str) -> None:
        """A container is gone. Whoever ran commands in it ends when its socket is taken away."""
        self._forget(workload_id, keep_socket=False)

    def follow(self, wired: Mapping[str, Workload]) -> None:
        """Probe all that are wired and nobody else."""
        for gone in (self.kept.keys() | self._probers.keys()) - wired.keys():
            self.drop(gone)
        for workload_id in self.kept.keys() - self._probers.keys():
            self._probe(wired[workload_id], self.kept[workload_id])

    def stop(self) -> None:
        for prober in self._probers.values():
            prober.stop()

    def _probe(self, workload: Workload, kept: Kept) -> None:
        if kept.probe is not None:
            delay_s = 0.0 if workload.id in self._resumed else kept.probe.initial_delay_s
            helper = self._run / kept.probe_socket if kept.probe_socket else None
            self._probers[workload.id] = Prober(workload, kept.probe, helper, delay_s, self._post)

    def _forget(self, workload_id: str, *, keep_socket: bool) -> None:
        if prober := self._probers.pop(workload_id, None):
            prober.stop()
        self._details.pop(workload_id, None)
        self._until.pop(workload_id, None)
        self._resumed -= {workload_id}
        kept = self.kept.pop(workload_id, NOTHING_KEPT)
        if kept.probe_socket and not keep_socket:
            (self._run / kept.probe_socket).unlink(missing_ok=True)

    # --- conditions -------------------------------------------------------------------------------

    def hear(self, news: Probed, workload: Workload | None) -> Conditions | None:
        """What the container's conditions are with this news; None if they stay as they are."""
        if workload is None or self._probers.get(news.id) is not news.prober:
            return None
        self._details[news.id] = news.detail
        if news.verdict is None or news.verdict == workload.serving:
            return None
        log.info("probe container=%s serving=%s detail=%s", news.id, news.verdict, news.detail)
        ready = news.verdict and not workload.terminating
        return Conditions(news.id, ready, news.verdict, workload.terminating)

    def leave(self, workload: Workload, grace_s: float) -> Conditions:
        """Let the container go in so many seconds, or sooner if that was agreed on before."""
        kept = self.kept.get(workload.id, NOTHING_KEPT)
        ends = min(time.time() + grace_s, math.inf if kept.ends is None else kept.ends)
        self.kept[workload.id] = replace(kept, ends=ends)
        self._until[workload.id] = self._clock() + ends - time.time()
        return Conditions(workload.id, ready=False, serving=workload.serving, terminating=True)

    def over(self, now: float) -> list[str]:
        """Containers whose time is over."""
        return [workload_id for workload_id, until in self._until.items() if until <= now]

    def postpone(self, workload_id: str, until: float) -> None:
        """Try it again then."""
        self._until[workload_id] = until

    def deadline(self) -> float:
        """When somebody's time is over next."""
        return min(self._until.values(), default=math.inf)

    def ends_in_s(self, workload_id: str) -> float | None:
        """How long the container has; None if nobody has told it to go."""
        until = self._until.get(workload_id)
        return None if until is None else round(max(0.0, until - self._clock()), 3)

    def document(self, workload_id: str) -> dict[str, Any]:
        """What the API says of it: the probe with its last result, and how long the container has."""
        probe = self.kept.get(workload_id, NOTHING_KEPT).probe
        return {
            "probe": None if probe is None else probe_document(probe),
            "probe_detail": self._details.get(workload_id),
            "ends_in_s": self.ends_in_s(workload_id),
        }
