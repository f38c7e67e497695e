"""Breaking a lab on purpose, and healing it.

    record   what will be done, with all that undoes it, is on disk before anything is touched
    hold     agents are asked to leave alone what is going to be wrong (docs/agent-api.md)
    make     processes end; links, entries, rules become what the record says

Healing (`mending`) looks at what is there and writes only what differs, so it may be done twice, after a crash
in the middle, after an agent was restarted and had mended it, and at any time after the fault was over.

A fault that ends by itself has a process that waits for the time and heals it (`faulttimer`). Should that be
gone, the next command that changes the lab heals what is over.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from overlaynet.errors import (
    AgentUnreachable,
    LabChoice,
    LabFailed,
    NotFound,
    OverlayError,
    UsageError,
)
from overlaynet.kernel import capability, process
from overlaynet.kernel.process import Process
from overlaynet.lab import faultkinds, faultrecords
from overlaynet.lab.faultkinds import Request
from overlaynet.lab.faultrecords import Damage, Entry, Fault
from overlaynet.lab.faultsite import Site
from overlaynet.lab.mending import REPAIR_S, Grip, Hand
from overlaynet.lab.netns_driver import clean_environ
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.sandbox import CAPABILITIES
from overlaynet.lab.state import LabState, changing
from overlaynet.lab.state import load as load_state
from overlaynet.state import Key, Sysctl

LOG = "faults"
"""The name of the log of what happens when faults end by themselves."""
STOP_GRACE_S = 1.0


class Made(NamedTuple):
    """A fault that was made. `repaired_s`: after so many seconds an agent had repaired all of it, and the fault
    is over; None where nobody was asked to, or nobody did in time."""

    fault: Fault
    repaired_s: float | None = None


class Timers(Protocol):
    """Who ends faults whose time is up, also when the command that made them has long ended."""

    def start(self, fault: Fault) -> Process | None:
        """From now on `for_s` seconds. Answers the process on this machine, if it is one."""

    def end(self, fault: Fault) -> None:
        """Not any more; harmless if it is over."""

    def has_ended(self, fault: Fault) -> bool:
        """Whether a fault whose time is up was undone by whoever waited for that."""


@dataclass(slots=True)
class Faults:
    """The faults of one lab, for one who holds the lab's lock. Unless `revive`, processes that a fault ended
    are left for others to start."""

    paths: LabPaths
    grip: Grip
    timers: Timers
    revive: bool = True

    @property
    def hand(self) -> Hand:
        return Hand(self.grip, self.revive)

    @property
    def all(self) -> tuple[Fault, ...]:
        """Oldest first."""
        return faultrecords.load(self.paths)

    # --- breaking -----------------------------------------------------------------------------

    def make(
        self,
        kind: str,
        request: Request,
        now: float,
        for_s: float | None = None,
        *,
        hold: bool = True,
        hidden: bool = False,
    ) -> Made:
        """Break something. `now` in seconds since 1970. Where a fault is hidden only more of these are made:
        what is refused beside it would tell what it is.

        Raises UsageError, NotFound and what making it raises; then nothing is left of it."""
        self.heal_over(now)
        present = self.all
        if not hidden:
            _refuse_hidden(present, "nothing else is broken here on purpose")
        request = replace(request, ident=faultrecords.free_id(present))
        damage = self._beside(faultkinds.plan(self.grip, kind, request), present)
        looked_after = bool(damage.holds)
        if not hold:
            damage = replace(damage, holds=())
        fault = Fault(request.ident, kind, _target(request), now, damage, for_s, hidden=hidden)
        self._refuse_conflict(fault, present)
        self.grip.allow(damage)
        if fault.for_s is not None:
            fault = replace(fault, timer=self.timers.start(fault))
        faultrecords.save(self.paths, [*present, fault])
        try:
            fault = self._placed(fault, now)
            faultrecords.save(self.paths, [*present, fault])
            self.grip.kill(damage.kills)
            self.grip.end(damage.ends)
            self.hand.do(damage)
            self._check_made(fault, hold=hold)
        except BaseException:
            with suppress(OverlayError):
                self._heal([fault])
            raise
        return Made(fault) if hold or not looked_after else self._watch_repair(fault)

    def _beside(self, damage: Damage, present: Sequence[Fault]) -> Damage:
        """A setting that another fault has changed already was, before all of them, what that one found."""
        found = {(e.place, e.key): e.before for fault in present for e in fault.damage.entries}
        entries = tuple(
            entry._replace(before=found[entry.place, entry.key]) if _is_shared(entry, found) else entry
            for entry in damage.entries
        )
        return replace(damage, entries=entries)

    def _refuse_conflict(self, new: Fault, present: Sequence[Fault]) -> None:
        for old in present:
            if (what := faultkinds.conflict(new.damage, old.damage)) is not None:
                raise UsageError(
                    f"{old.id} has broken that already: {old.words}",
                    evidence=f"both are about {what}",
                    next=[f"overlaynet heal {old.id}"],
                )

    def _placed(self, fault: Fault, now: float) -> Fault:
        """The fault with those holds that were taken. An agent that is not there repairs nothing either."""
        taken = []
        left_s = None if fault.until is None else max(fault.until - now, 1.0)
        for held in fault.damage.holds:
            reason = f"fault {fault.id}: {fault.words}"
            body = {"kind": held.kind, "key": held.key, "for_s": left_s, "reason": reason[:200]}
            if fault.hidden:
                body["quiet"] = True
            with suppress(AgentUnreachable, NotFound):
                self.grip.agent(held.host).post("/v1/hold", body)
                taken.append(held)
        return replace(fault, damage=replace(fault.damage, holds=tuple(taken)))

    def _check_made(self, fault: Fault, *, hold: bool) -> None:
        """Raises LabFailed if nothing came of it: then a lab that works would be taken for a proof."""
        damage = fault.damage
        lasting = hold and (damage.links or damage.entries or damage.edits)
        if lasting and not self.hand.is_broken(fault):
            raise LabFailed(
                f"{damage.object} is not broken: somebody has put it right at once, or it could not be changed",
                evidence="; ".join(map(str, faultrecords.making(damage))),
                next=["overlaynet status", f"overlaynet logs {damage.host or ''}".rstrip()],
            )

    def _watch_repair(self, fault: Fault) -> Made:
        """Without a hold, an agent repairs what is its own; then there is no fault any more."""
        started = time.monotonic()
        if not self.grip.await_(lambda: not self.hand.is_broken(fault), REPAIR_S):
            return Made(fault)
        took_s = time.monotonic() - started
        self._heal([fault])
        return Made(fault, took_s)

    # --- healing ------------------------------------------------------------------------------

    def heal(self, idents: Sequence[str], now: float, *, hidden: bool = False) -> tuple[Fault, ...]:
        """Heal these, or all, newest first, and whatever is over. Answers those that were meant, in that order.

        Raises NotFound; UsageError for a hidden fault, unless those are meant as well; LabFailed if something
        could not be undone, which then stays recorded."""
        present = self.all
        chosen = [faultrecords.find(present, ident) for ident in idents] or list(present)
        if not hidden:
            _refuse_hidden(chosen, "it is healed once it is named")
        over = [fault for fault in present if fault.is_over(now) and fault not in chosen]
        self._heal([*over, *chosen], now)
        return tuple(sorted(chosen, key=_newest_first))

    def break_again(self, idents: Sequence[str]) -> None:
        """Have what somebody has mended by hand be as these faults left it. Raises NotFound, and as `make`."""
        for fault in (faultrecords.find(self.all, ident) for ident in idents):
            self.grip.kill(fault.damage.kills)
            self.grip.end(fault.damage.ends)
            self._placed(fault, time.time())
            self.hand.do(fault.damage)

    def heal_over(self, now: float) -> None:
        """Heal those whose time is up. Raises as `heal`."""
        self._heal([fault for fault in self.all if fault.is_over(now)], now)

    def _heal(self, some: Iterable[Fault], now: float = 0.0) -> None:
        failures: dict[str, OverlayError] = {}
        for fault in sorted(some, key=_newest_first):
            rest = [other for other in self.all if other.id != fault.id]
            try:
                if not (fault.is_over(now) and self.timers.has_ended(fault)):
                    self.hand.undo(fault.damage, rest)
            except OverlayError as error:
                failures[fault.id] = error
                continue
            if fault.for_s is not None:
                self.timers.end(fault)
            faultrecords.save(self.paths, rest)
            self._reassert(fault, rest)
        if failures:
            raise LabFailed(
                f"not healed: {', '.join(failures)}",
                evidence="\n".join(f"{ident}: {e.message} ({e.evidence})" for ident, e in failures.items()),
                next=["overlaynet heal", f"overlaynet down -l {self.grip.topology.name}"],
            )

    def _reassert(self, healed: Fault, rest: Sequence[Fault]) -> None:
        """An agent that was started again knows of no holds, and has mended what it found: what other faults
        broke is broken again."""
        started = {name.partition("/")[2] for name in healed.damage.ends if name.startswith("agent/")}
        for fault in rest:
            if started.intersection(fault.damage.owners):
                self._placed(fault, time.time())
                self.hand.do(fault.damage)


def _refuse_hidden(faults: Iterable[Fault], why: str) -> None:
    """Raises UsageError."""
    if hidden := [fault.id for fault in faults if fault.hidden]:
        few = "a fault is" if len(hidden) == 1 else f"{len(hidden)} faults are"
        raise UsageError(f"{few} hidden in this lab", evidence=why, next=["overlaynet lab check"])


def _is_shared(entry: Entry, found: Mapping[tuple[str, Key], object]) -> bool:
    return isinstance(entry.object, Sysctl) and (entry.place, entry.key) in found


def _newest_first(fault: Fault) -> float:
    return -fault.since


def _target(request: Request) -> str:
    more = ["--wrong"] if request.wrong else []
    more += ["--to", request.to] if request.to is not None else []
    more += [f"--{request.target.lower()}"] if request.target else []
    return " ".join([*request.words, *more])


# --- a lab's faults -------------------------------------------------------------------------------


@contextmanager
def changing_faults(name: str, paths: Paths) -> Iterator[Faults]:
    """A lab's faults, with the lab's lock held. Raises LabFailed if another command holds it, LabChoice if
    there is no such lab, NotPermitted."""
    _refuse_ended(name, load_state(paths.lab(name)))  # nobody can join it, so nobody has rights over it
    capability.require(*CAPABILITIES, purpose="breaking a lab")
    with changing(paths, name):
        yield faults_of(name, paths)


def faults_of(name: str, paths: Paths) -> Faults:
    """For one who holds the lock. Raises LabChoice or LabFailed."""
    state = _refuse_ended(name, load_state(paths.lab(name)))
    lab = paths.lab(name)
    return Faults(lab, Site(lab, state), ProcessTimers(name, paths))


def _refuse_ended(name: str, state: LabState | None) -> LabState:
    """Raises LabChoice."""
    if state is None or state.ended:
        why = state.why_ended if state else "is not running"
        raise LabChoice(f"lab {name!r} {why}", next=[f"overlaynet up -l {name}"])
    return state


def heal_before(name: str, paths: Paths) -> tuple[Fault, ...]:
    """For `up`, which holds the lock, and goes on to start whatever does not run: heal all there are."""
    if not paths.lab(name).faults_json.exists():
        return ()
    return replace(faults_of(name, paths), revive=False).heal((), time.time(), hidden=True)


def end_timers(paths: LabPaths) -> None:
    """For `down`, which takes everything else away."""
    with suppress(LabFailed):
        timers = [fault.timer for fault in faultrecords.load(paths) if fault.timer is not None]
        process.stop(timers, STOP_GRACE_S)


@dataclass(frozen=True, slots=True)
class ProcessTimers:
    """For each fault a process of this machine, which waits and heals it (`faulttimer`)."""

    lab: str
    paths: Paths

    def start(self, fault: Fault) -> Process:
        roots = [str(self.paths.run_root), str(self.paths.state_root)]
        words = [self.lab, fault.id, repr(fault.until), *roots]
        argv = [sys.executable, "-P", "-m", "overlaynet.lab.faulttimer", *words]
        return process.spawn(argv, self.paths.lab(self.lab).log(LOG), clean_environ())

    def end(self, fault: Fault) -> None:
        if fault.timer is not None and fault.timer.pid != os.getpid():
            process.stop([fault.timer], STOP_GRACE_S)

    def has_ended(self, fault: Fault) -> bool:
        """Never while the fault is on record: its process takes it off."""
        return False
