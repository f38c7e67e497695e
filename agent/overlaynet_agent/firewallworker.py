"""The agent's hands on iptables: a thread, because a restore can wait seconds for the xtables lock.

There is one writer. While it is busy only the latest wanted policies are remembered, so a hundred changes
in a row cost two restores, not a hundred. The first change after a quiet time is written at once; after a
round the next waits for `min_sync_s`, unless it is a repair or a further attempt. Connections come last in
each round: they are judged by what the rules in force were made from.

In between it asks twice a second whether anybody has changed rules (`Firewall.generation`), and reads them back
if so; when other policies are wanted and nobody has, the rules are known without reading. Where others change
rules all the time, most readings find nothing of ours to mend; so after such a one it rests for some time, the
longer the reading took.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from overlaynet.addr import IPNetwork
from overlaynet.core.flows import Cleanup
from overlaynet.errors import OverlayError
from overlaynet.ports import Firewall
from overlaynet.reconcile import FirewallOutcome, Forgotten, ServiceDoors, forget_flows, sync_firewall
from overlaynet.state import ChainKey, Policy
from overlaynet_agent.durations import Durations

log = logging.getLogger("overlaynet.firewall")

POLL_S = 0.5
NO_DOORS = ServiceDoors()
NOTHING_FORGOTTEN = Forgotten()
REST = 10
"""After a reading that found nothing to mend, polling pauses so many times as long as that took."""


@dataclass(frozen=True, slots=True)
class FirewallDone:
    """One round is over: what differed and was written, or why it could not be; which connections were
    forgotten. `why` there was a round. `strangers` are rules of others that no iptables shows."""

    outcome: FirewallOutcome
    error: OverlayError | None = None
    why: str = "event"
    forgotten: Forgotten = NOTHING_FORGOTTEN
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Make the rules like this; with `additions_only` take nothing away; leave those chains alone. `why` this
    is to be done. `networks` are the service networks. `overdue`: a task that this one replaced was to read
    the rules in full."""

    policies: Mapping[str, Policy]
    additions_only: bool = False
    leave: Collection[ChainKey] = ()
    why: str = "event"
    networks: tuple[IPNetwork, ...] = ()
    overdue: bool = False

    @property
    def is_repair(self) -> bool:
        """Whether whatever differs has gone wrong by itself."""
        return self.why not in ("event", "retry")

    @property
    def is_thorough(self) -> bool:
        """Whether the rules are to be read in full, whatever is known of them."""
        return self.overdue or self.why != "event"


class FirewallWorker:
    """Brings the rules to the latest policies given; tells `post` after each round. `min_sync_s`: seconds of
    rest between rounds; `durations` are those of rules, `cleanups` those of reading and forgetting flows."""

    def __init__(
        self,
        firewall: Firewall,
        post: Callable[[FirewallDone], None],
        doors: ServiceDoors = NO_DOORS,
        min_sync_s: float = 0.0,
    ) -> None:
        self._firewall = firewall
        self._post = post
        self.doors = doors
        self.min_sync_s = min_sync_s
        self._cleanup = Cleanup()
        self._wanted: Task | None = None
        self._settled: tuple[Task, FirewallOutcome] | None = None
        self._rested = 0.0
        self._ended = -math.inf
        self._strangers: tuple[str, ...] | None = None
        self.durations = Durations()
        self.cleanups = Durations()
        self._stopped = False
        self._wake = threading.Condition()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="firewall", daemon=True)

    @property
    def flavour(self) -> str:
        return self._firewall.flavour

    def start(self) -> None:
        for error in self.doors.lacks:
            log.warning("services make do without error=%s evidence=%s", error, error.evidence)
        self._thread.start()

    def want(self, task: Task) -> None:
        """Do this, soon."""
        with self._wake:
            overdue = self._wanted is not None and self._wanted.is_thorough
            self._wanted = replace(task, overdue=overdue)
            self._wake.notify()

    def rest(self) -> None:
        """Wait until no round is under way: whatever is written from then on goes by what was wanted last."""
        self._idle.wait()

    def stop(self) -> None:
        """End after the round under way: a restore is never cut short."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            task = self._taken()
            try:
                if self._stopped:
                    return
                if task := task or self._poll():
                    self._carry_out(task)
            except Exception as error:
                log.exception("firewall round failed: this is a bug")
                bug = OverlayError("the agent failed at the firewall; its log says where", evidence=repr(error))
                self._fail(bug, task)
            finally:
                self._idle.set()

    def _taken(self) -> Task | None:
        """What is wanted, when its time has come; None after a while without anything."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopped or self._wanted is not None, POLL_S)
            while not self._stopped and (rest_s := self._rest_s()) > 0:
                self._wake.wait(rest_s)
            task, self._wanted = self._wanted, None
            self._idle.clear()
            return task

    def _rest_s(self) -> float:
        """Seconds before the next round."""
        if self._wanted is None or self._wanted.is_thorough:
            return 0.0
        return self._ended + self.min_sync_s - time.monotonic()

    def _poll(self) -> Task | None:
        """What to do, if anybody has changed rules since the last reading."""
        if self._settled is None or time.monotonic() < self._rested:
            return None
        task, outcome = self._settled
        if outcome.settled and self._firewall.generation() == outcome.generation:
            return None
        return replace(task, why="poll")

    def _carry_out(self, task: Task) -> None:
        began = time.monotonic()
        try:
            with self.durations.timed():
                outcome = self._sync(task)
        except OverlayError as error:
            self._fail(error, task)
        else:
            self._settled = task, outcome
            self._look_beside(task)
            self._post(
                FirewallDone(outcome, None, task.why, self._forget(task, outcome), self._strangers or ())
            )
            ended = time.monotonic()
            self._rested = ended if outcome.changes else ended + REST * (ended - began)
            if outcome.changes or not task.is_repair:
                self._ended = ended

    def _look_beside(self, task: Task) -> None:
        """At the first round, and then as often as the rules are read because it is time."""
        if self._strangers is None or task.why not in ("event", "poll"):
            self._strangers = self._firewall.strangers(task.policies) or ()

    def _sync(self, task: Task) -> FirewallOutcome:
        return sync_firewall(
            self._firewall,
            task.policies,
            sets=self.doors.sets,
            additions_only=task.additions_only,
            leave=task.leave,
            fresh=task.is_thorough,
        )

    def _forget(self, task: Task, outcome: FirewallOutcome) -> Forgotten:
        """Nothing while we do not know all that is wanted. While rules were wrong, connections began that they
        did not lead."""
        if task.additions_only:
            return NOTHING_FORGOTTEN
        with self.cleanups.timed():
            again = task.is_repair and bool(outcome.changes)
            return forget_flows(self.doors, self._cleanup, task.policies, task.networks, again=again)

    def _fail(self, error: OverlayError, task: Task | None) -> None:
        """Whoever asked decides when to try again; until then there is nothing to poll for."""
        self._settled, self._ended = None, time.monotonic()
        self._post(FirewallDone(FirewallOutcome(), error, task.why if task else "poll"))
