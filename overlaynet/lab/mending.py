"""Doing the damage of a fault and undoing it, by whatever reaches its places (`Grip`).

Undoing looks at what is there and writes only what differs. What an agent looks after it puts back itself, for
it knows what is wanted by now; where no agent answers, what was there before is put back. Last, senders forget
what routers told them of ways that were wrong: a path's MTU (RFC 1191), which the kernel would believe for ten
minutes more (ip-sysctl.rst, mtu_expires), or a redirect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from overlaynet.client import Agent
from overlaynet.errors import AgentUnreachable, NotFound
from overlaynet.firewall.chains import is_any_instances
from overlaynet.firewall.compare import hooks_in
from overlaynet.lab.faultground import Ground
from overlaynet.lab.faultrecords import MTU, UP, Damage, Edit, Entry, Fault, LinkChange
from overlaynet.state import Change, KernelState, Key, Link, Object, Op, RuleChange, RuleSet, Sysctl

REPAIR_S = 5.0
"""How long an agent is given to repair: settings and rules it looks at each second."""

Wanted: TypeAlias = Callable[[Entry, Object | None], tuple[Object | None, ...]]
"""What an entry should be, given what is there: one object, None for its absence, or nothing to say."""


class Reach(Protocol):
    """Places, as they are found and changed; see `faultsite.Site`."""

    @property
    def senders(self) -> Sequence[str]:
        """Every place whose packets may meet a fault."""

    def exists(self, place: str) -> bool: ...

    def look(self, place: str, sysctls: Sequence[str] = ()) -> KernelState: ...

    def rules(self, place: str) -> RuleSet: ...

    def agent(self, host: str) -> Agent: ...

    def write(self, place: str, changes: Sequence[Change]) -> None: ...

    def edit(self, place: str, change: RuleChange) -> None: ...

    def forget_learned(self, places: Iterable[str]) -> None: ...

    def start(self, names: Sequence[str]) -> None: ...

    def await_(self, check: Callable[[], bool], within_s: float) -> bool: ...


class Grip(Ground, Reach, Protocol):
    """A `Ground` that can also be changed."""

    def allow(self, damage: Damage) -> None:
        """Raise UsageError for damage after which it could not be undone."""

    def kill(self, places: Iterable[str]) -> None: ...

    def end(self, names: Iterable[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Hand:
    """What does and undoes. Unless `revive`, processes that a fault ended are left for others to start."""

    grip: Reach
    revive: bool = True

    def do(self, damage: Damage) -> None:
        """All but the ends of processes. Raises what writing raises."""
        for link in damage.links:
            self._set_link(link, link.after)
        self._write(damage.entries, lambda entry, _: (entry.after,))
        for edit in damage.edits:
            self._edit(edit, edit.change.have or (), edit.change.want or ())

    def is_broken(self, fault: Fault) -> bool:
        """Whether anything is still as the fault left it. Of processes nothing is known here."""
        damage = fault.damage
        return (
            any(self._link(link) == link.after for link in damage.links)
            or any(self._differing(damage.entries, _still_broken).values())
            or any(self._rules(edit) == edit.change.want for edit in damage.edits)
        )

    def undo(self, damage: Damage, rest: Sequence[Fault] = ()) -> None:
        """`rest`: what else is broken, and stays so. Raises what writing raises."""
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
            self.grip.forget_learned(self.grip.senders)

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
    """What is there. A neighbour that the kernel is only asking for, since somebody sends to it, is not."""
    known = (neigh for neigh in kernel.neighs if neigh.mac is not None)
    found: list[Object] = [*known, *kernel.fdb, *kernel.routes]
    found += [Sysctl(name, value) for name, value in kernel.sysctls.items() if value is not None]
    return {obj.key: obj for obj in found}


def _can_be(obj: Object, kernel: KernelState) -> bool:
    """Whether it has something to be on: its device, and of a setting the setting itself."""
    if isinstance(obj, Sysctl):
        return kernel.sysctls.get(obj.name) is not None
    return getattr(obj, "dev", None) in (None, *kernel.links)


def _is_used(entry: Entry, rest: Sequence[Fault]) -> bool:
    """Whether another fault needs it as it is."""
    return any((entry.place, entry.key) == (e.place, e.key) for f in rest for e in f.damage.entries)
