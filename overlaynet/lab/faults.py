"""Breaking a lab on purpose, and healing it.

    record   what will be done, with all that undoes it, is on disk before anything is touched
    hold     agents are asked to leave alone what is going to be wrong (docs/agent-api.md)
    make     processes end; links, entries, rules become what the record says

Healing looks at what is there and writes only what differs, so it may be done twice, after a crash in the
middle, after an agent was restarted and had mended it, and at any time after the fault was over. What an agent
looks after it puts back itself, for it knows what is wanted by now; where no agent answers, what was there
before is put back. Last, senders forget what routers told them of ways that were wrong: a path's MTU
(RFC 1191), which the kernel would believe for ten minutes more (ip-sysctl.rst, mtu_expires), or a redirect.

A fault that ends by itself has a process that waits for the time and heals it (`faulttimer`). Should that be
gone, the next command that changes the lab heals what is over.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

from overlaynet.client import AgentClient
from overlaynet.errors import (
    AgentUnreachable,
    LabChoice,
    LabFailed,
    NotFound,
    OverlayError,
    UsageError,
)
from overlaynet.firewall.chains import is_any_instances
from overlaynet.firewall.compare import hooks_in
from overlaynet.kernel import capability, process
from overlaynet.kernel.process import Process
from overlaynet.lab import faultkinds, faultrecords
from overlaynet.lab.build import CAPABILITIES
from overlaynet.lab.converge import OUTSIDE_PLACE
from overlaynet.lab.faultkinds import Ground, Request
from overlaynet.lab.faultrecords import MTU, UP, Damage, Edit, Entry, Fault, LinkChange
from overlaynet.lab.faultsite import Site
from overlaynet.lab.netns_driver import clean_environ
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.state import changing
from overlaynet.lab.state import load as load_state
from overlaynet.state import Change, KernelState, Key, Link, Object, Op, RuleChange, Sysctl

REPAIR_S = 5.0
"""How long an agent is given to repair: settings and rules it looks at each second."""
LOG = "faults"
"""The name of the log of what happens when faults end by themselves."""
STOP_GRACE_S = 1.0


Wanted: TypeAlias = Callable[[Entry, Object | None], tuple[Object | None, ...]]
"""What an entry should be, given what is there: one object, None for its absence, or nothing to say."""


class Grip(Ground, Protocol):
    """A `Ground` that can also be changed; see `faultsite.Site`."""

    def exists(self, place: str) -> bool: ...

    def agent(self, host: str) -> AgentClient: ...

    def write(self, place: str, changes: Sequence[Change]) -> None: ...

    def edit(self, place: str, change: RuleChange) -> None: ...

    def forget_learned(self, places: Iterable[str]) -> None: ...

    def kill(self, places: Iterable[str]) -> None: ...

    def end(self, names: Iterable[str]) -> None: ...

    def start(self, names: Sequence[str]) -> None: ...

    def await_(self, check: Callable[[], bool], within_s: float) -> bool: ...


class Made(NamedTuple):
    """A fault that was made. `repaired_s`: after so many seconds an agent had repaired all of it, and the fault
    is over; None where nobody was asked to, or nobody did in time."""

    fault: Fault
    repaired_s: float | None = None


@dataclass(slots=True)
class Faults:
    """The faults of one lab, for one who holds the lab's lock. `timer` starts the process that ends a fault.
    Unless `revive`, processes that a fault ended are left for others to start."""

    paths: LabPaths
    grip: Grip
    timer: Callable[[str, float], Process]
    revive: bool = True

    @property
    def all(self) -> tuple[Fault, ...]:
        """Oldest first."""
        return faultrecords.load(self.paths)

    # --- breaking -----------------------------------------------------------------------------

    def make(
        self, kind: str, request: Request, now: float, for_s: float | None = None, *, hold: bool = True
    ) -> Made:
        """Break something. `now` in seconds since 1970. Raises UsageError, NotFound and what making it raises;
        then nothing is left of it."""
        self.heal_over(now)
        present = self.all
        request = replace(request, ident=faultrecords.free_id(present))
        damage = self._beside(faultkinds.plan(self.grip, kind, request), present)
        looked_after = bool(damage.holds)
        if not hold:
            damage = replace(damage, holds=())
        fault = Fault(request.ident, kind, _target(request), now, damage, for_s)
        self._refuse_conflict(fault, present)
        if fault.until is not None:
            fault = replace(fault, timer=self.timer(fault.id, fault.until))
        faultrecords.save(self.paths, [*present, fault])
        try:
            fault = self._placed(fault, now)
            faultrecords.save(self.paths, [*present, fault])
            self._do(damage)
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
            with suppress(AgentUnreachable, NotFound):
                self.grip.agent(held.host).post("/v1/hold", body)
                taken.append(held)
        return replace(fault, damage=replace(fault.damage, holds=tuple(taken)))

    def _do(self, damage: Damage) -> None:
        self.grip.kill(damage.kills)
        self.grip.end(damage.ends)
        for link in damage.links:
            self._set_link(link, link.after)
        self._write(damage.entries, lambda entry, _: (entry.after,))
        for edit in damage.edits:
            self._edit(edit, edit.change.have or (), edit.change.want or ())

    def _check_made(self, fault: Fault, *, hold: bool) -> None:
        """Raises LabFailed if nothing came of it: then a lab that works would be taken for a proof."""
        damage = fault.damage
        lasting = hold and (damage.links or damage.entries or damage.edits)
        if lasting and not self.is_broken(fault):
            raise LabFailed(
                f"{damage.object} is not broken: somebody has put it right at once, or it could not be changed",
                evidence="; ".join(map(str, faultrecords.making(damage))),
                next=["overlaynet status", f"overlaynet logs {damage.host or ''}".rstrip()],
            )

    def _watch_repair(self, fault: Fault) -> Made:
        """Without a hold, an agent repairs what is its own; then there is no fault any more."""
        started = time.monotonic()
        if not self.grip.await_(lambda: not self.is_broken(fault), REPAIR_S):
            return Made(fault)
        took_s = time.monotonic() - started
        self._heal([fault])
        return Made(fault, took_s)

    def is_broken(self, fault: Fault) -> bool:
        """Whether anything is still as the fault left it. Of processes nothing is known here."""
        damage = fault.damage
        return (
            any(self._link(link) == link.after for link in damage.links)
            or any(self._differing(damage.entries, _still_broken).values())
            or any(self._rules(edit) == edit.change.want for edit in damage.edits)
        )

    # --- healing ------------------------------------------------------------------------------

    def heal(self, idents: Sequence[str], now: float) -> tuple[Fault, ...]:
        """Heal these, or all, newest first, and whatever is over. Answers those that were meant, in that order.

        Raises NotFound; LabFailed if something could not be undone, which then stays recorded."""
        present = self.all
        chosen = [faultrecords.find(present, ident) for ident in idents] or list(present)
        over = [fault for fault in present if fault.is_over(now) and fault not in chosen]
        self._heal([*over, *chosen])
        return tuple(sorted(chosen, key=_newest_first))

    def heal_over(self, now: float) -> None:
        """Heal those whose time is up. Raises as `heal`."""
        self._heal([fault for fault in self.all if fault.is_over(now)])

    def _heal(self, some: Iterable[Fault]) -> None:
        failures: dict[str, OverlayError] = {}
        for fault in sorted(some, key=_newest_first):
            rest = [other for other in self.all if other.id != fault.id]
            try:
                self._undo(fault.damage, rest)
            except OverlayError as error:
                failures[fault.id] = error
                continue
            if fault.timer is not None and fault.timer.pid != os.getpid():
                process.stop([fault.timer], STOP_GRACE_S)
            faultrecords.save(self.paths, rest)
            self._reassert(fault, rest)
        if failures:
            raise LabFailed(
                f"not healed: {', '.join(failures)}",
                evidence="\n".join(f"{ident}: {e.message} ({e.evidence})" for ident, e in failures.items()),
                next=["overlaynet heal", f"overlaynet down -l {self.grip.topology.name}"],
            )

    def _undo(self, damage: Damage, rest: Sequence[Fault]) -> None:
        for link in reversed(damage.links):
            self._set_link(link, link.before)
        free = [e for e in damage.entries if not e.owned and not _is_used(e, rest)]
        self._write(free, _back)
        for edit in damage.edits:
            if not edit.owned:
                self._edit(edit, edit.change.want or (), edit.change.have or ())
        if self.revive:
            self.grip.start(damage.ends)
        for host in damage.owners:
            self._let_repair(host, damage)
        self._write([e for e in damage.entries if e.owned], _still_broken)
        for edit in (edit for edit in damage.edits if edit.owned):
            self._edit(edit, edit.change.want or (), edit.change.have or ())
        if damage.links or damage.entries:
            self.grip.forget_learned(self._places)

    @property
    def _places(self) -> list[str]:
        topology = self.grip.topology
        hosts, containers = ([each.name for each in some] for some in (topology.hosts, topology.containers))
        return [*hosts, *containers, OUTSIDE_PLACE]

    def _let_repair(self, host: str, damage: Damage) -> None:
        """Have the host's agent look after everything again, and mend it; if it answers."""
        agent = self.grip.agent(host)
        try:
            for held in damage.holds:
                if held.host == host:
                    with suppress(NotFound):
                        agent.post("/v1/release", {"kind": held.kind, "key": held.key})
            agent.post("/v1/repair", {})
        except AgentUnreachable:
            return
        edits = [edit for edit in damage.edits if edit.owned and edit.place == host]
        self.grip.await_(lambda: all(self._rules(e) != e.change.want for e in edits), REPAIR_S)

    def _reassert(self, healed: Fault, rest: Sequence[Fault]) -> None:
        """An agent that was started again knows of no holds, and has mended what it found: what other faults
        broke is broken again."""
        started = {name.partition("/")[2] for name in healed.damage.ends if name.startswith("agent/")}
        for fault in rest:
            if started.intersection(fault.damage.owners):
                self._placed(fault, time.time())
                self._do(replace(fault.damage, kills=(), ends=()))

    # --- links, entries, rules ----------------------------------------------------------------

    def _link(self, link: LinkChange) -> int | None:
        """The attribute's present value; None where there is no such interface any more."""
        if not self.grip.exists(link.place):
            return None
        there = self.grip.look(link.place).links.get(link.device)
        return None if there is None else int(there.up) if link.attribute == UP else there.mtu

    def _set_link(self, link: LinkChange, value: int) -> None:
        if self._link(link) in (None, value):
            return
        there = self.grip.look(link.place).links[link.device]
        up = bool(value) if link.attribute == UP else there.up
        mtu = value if link.attribute == MTU else there.mtu
        wanted = Link(there.name, there.type, there.tag or "", mtu, None, there.vxlan, up)
        self.grip.write(link.place, [Change(Op.PUT, wanted, wanted._replace(up=there.up, mtu=there.mtu))])

    def _write(self, entries: Iterable[Entry], wanted: Wanted) -> None:
        for place, changes in self._differing(entries, wanted).items():
            if changes:
                self.grip.write(place, changes)

    def _differing(self, entries: Iterable[Entry], wanted: Wanted) -> dict[str, list[Change]]:
        """What has to be written so that each entry is as `wanted` says in the light of what is there."""
        found: dict[str, list[Change]] = {}
        for place, some in _by_place(entries).items():
            if not self.grip.exists(place):
                continue
            names = [e.object.name for e in some if isinstance(e.object, Sysctl)]
            kernel = self.grip.look(place, names)
            there = _objects(kernel)
            found[place] = [
                change
                for entry in some
                if _can_be(entry.object, kernel)
                for change in _change(there.get(entry.key), wanted(entry, there.get(entry.key)))
            ]
        return found

    def _rules(self, edit: Edit) -> tuple[str, ...] | None:
        """The present rules that the edit is about; None where there is no such place or chain any more. A
        built-in chain is there even if the kernel has not been asked for its table yet."""
        if not self.grip.exists(edit.place):
            return None
        change = edit.change
        lines = self.grip.rules(edit.place).chains.get((change.table, change.chain))
        if is_any_instances(change.chain):
            return None if lines is None else tuple(line.text for line in lines)
        lines = lines or ()
        if edit.owned:
            return hooks_in(lines)
        return tuple(
            text for line in lines if (text := line.text) in (*(change.want or ()), *(change.have or ()))
        )

    def _edit(self, edit: Edit, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        """From rules to rules. If those of an agent are neither, it has changed them, and they stay."""
        present = self._rules(edit)
        if present is None or present == after or (edit.owned and present != before):
            return
        self.grip.edit(edit.place, edit.change._replace(want=after, have=present))


def _back(entry: Entry, there: Object | None) -> tuple[Object | None, ...]:
    """As it was before. What was not there before is taken away only if it is what the fault put there."""
    return () if entry.before is None and there != entry.after else (entry.before,)


def _still_broken(entry: Entry, there: Object | None) -> tuple[Object | None, ...]:
    """As it was before, if it is still as the fault left it."""
    return (entry.before,) if there == entry.after else ()


def _change(there: Object | None, wanted: tuple[Object | None, ...]) -> Iterator[Change]:
    for obj in wanted:
        if obj == there:
            continue
        if obj is not None:
            yield Change(Op.PUT, obj, there)
        elif there is not None:
            yield Change(Op.DROP, there)


def _by_place(entries: Iterable[Entry]) -> Mapping[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.place, []).append(entry)
    return found


def _objects(kernel: KernelState) -> dict[Key, Object]:
    found: list[Object] = [*kernel.neighs, *kernel.fdb, *kernel.routes]
    found += [Sysctl(name, value) for name, value in kernel.sysctls.items() if value is not None]
    return {obj.key: obj for obj in found}


def _can_be(obj: Object, kernel: KernelState) -> bool:
    """Whether it has something to be on: its device, and of a setting the setting itself."""
    if isinstance(obj, Sysctl):
        return kernel.sysctls.get(obj.name) is not None
    return getattr(obj, "dev", None) in (None, *kernel.links)


def _is_shared(entry: Entry, found: Mapping[tuple[str, Key], object]) -> bool:
    return isinstance(entry.object, Sysctl) and (entry.place, entry.key) in found


def _is_used(entry: Entry, rest: Sequence[Fault]) -> bool:
    """Whether another fault needs it as it is."""
    return any((entry.place, entry.key) == (e.place, e.key) for f in rest for e in f.damage.entries)


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
    capability.require(*CAPABILITIES, purpose="breaking a lab")
    with changing(paths, name):
        yield faults_of(name, paths)


def faults_of(name: str, paths: Paths) -> Faults:
    """For one who holds the lock. Raises LabChoice or LabFailed."""
    state = load_state(paths.lab(name))
    if state is None or state.rebooted:
        why = "was up before the machine was restarted" if state else "is not running"
        raise LabChoice(f"lab {name!r} {why}", next=[f"overlaynet up -l {name}"])
    lab = paths.lab(name)
    return Faults(lab, Site(lab, state), lambda ident, until: _start_timer(name, paths, ident, until))


def heal_before(name: str, paths: Paths) -> tuple[Fault, ...]:
    """For `up`, which holds the lock, and goes on to start whatever does not run: heal all there are."""
    if not paths.lab(name).faults_json.exists():
        return ()
    return replace(faults_of(name, paths), revive=False).heal((), time.time())


def end_timers(paths: LabPaths) -> None:
    """For `down`, which takes everything else away."""
    with suppress(LabFailed):
        timers = [fault.timer for fault in faultrecords.load(paths) if fault.timer is not None]
        process.stop(timers, STOP_GRACE_S)


def _start_timer(name: str, paths: Paths, ident: str, until: float) -> Process:
    roots = [str(paths.run_root), str(paths.state_root)]
    argv = [sys.executable, "-P", "-m", "overlaynet.lab.faulttimer", name, ident, repr(until), *roots]
    return process.spawn(argv, paths.lab(name).log(LOG), clean_environ())
