"""The only caller of Kernel and Firewall: makes have like want, and says truthfully how far it came.

`look` reads the whole kernel and is the authority. `follow` handles what one event touched against a cache
of what was there, so that a peer's change costs the same among a hundred peers and among twenty thousand;
the next look corrects whatever the cache had wrong.

A look takes long where there are thousands of peers, so its reading half (`read`) may run on another thread
while this one goes on following events: `begin`, then `read` there, then `take` here. By the time it is taken
a reading is old. What was written or announced since `begin` (`Recent`) is newer, and stays as it is; of what
the reading says has to change, all that concerns this, or what may be wanted differently by now, is left to
`follow`. So what is written is always what is wanted now; and where the kernel may have removed more than it
told, whoever heard of it asks for the next look.

Nothing here stops at the first failure: each change
succeeds or fails alone, and what failed is in the Outcome with its reason.

Services are served by rules and by what goes with them, in this order: sets of clients that rules will refer
to, the rules, sets that no rule refers to any more, and last the connections that were led by rules that are
gone. Each step is safe to stop after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.core.diff import additions, changes, links_of, satisfied, touched_changes
from overlaynet.core.flows import PROTOCOLS, Cleanup
from overlaynet.core.ownership import have, owned, shadowed, stands_for
from overlaynet.core.settled import Settled
from overlaynet.errors import FirewallBusy, KernelError, OverlayError
from overlaynet.ports import AffinitySets, Conntrack, Failure, Firewall, Kernel
from overlaynet.state import (
    ChainKey,
    Change,
    Flow,
    KernelState,
    Key,
    Kind,
    Link,
    Object,
    Op,
    Policy,
    RuleChange,
    RuleSet,
    Sysctl,
    kind_of,
)

STRUCTURE = frozenset({Kind.LINK, Kind.PORT, Kind.ADDRESS})
"""What `Reconciler.seen` must keep up with, so that news of our own writes is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round did: changes tried (failed ones among them), failures, and refused keys. `whole`
    says that it was a look at everything."""

    changes: tuple[Change, ...] = ()
    failures: tuple[Failure, ...] = ()
    refused: Mapping[Key, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def written(self) -> int:
        return len(self.changes) - len(self.failures)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the kernel held at some moment, of that what is ours, and what would have to change."""

    seen: KernelState
    cache: dict[Key, Object]
    pending: tuple[Change, ...]
    refused: dict[Key, str]
    shadowed: dict[Key, str]


@dataclass(slots=True)
class Recent:
    """What a reading under way may not know of: keys that were written or announced since it began, those that
    may be wanted differently, and devices that were looked at."""

    keys: set[Key] = field(default_factory=set)
    wanted: set[Key] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)


def _at_once() -> None:
    """Where no reading runs on another thread there is none to wait for."""


@dataclass(slots=True)
class Reconciler:
    """One host's writer. `seen` is the kernel at the last look, with links and addresses as of the last
    write of any; `leave` are keys that nothing is to be written for. While `additions_only`, nothing is taken
    away: what is wanted is then known from a time before this start.

    Not for use across threads but for `read`, once at a time: `rest` waits for the one begun elsewhere."""

    kernel: Kernel
    additions_only: bool = False
    seen: KernelState = field(default_factory=KernelState)
    cache: dict[Key, Object] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)
    settled: Settled = field(default_factory=Settled)
    shadowed: dict[Key, str] = field(default_factory=dict)
    leave: Collection[Key] = ()
    networks: tuple[IPNetwork, ...] = ()
    recent: Recent | None = None
    rest: Callable[[], None] = _at_once

    def observe(self, want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]) -> tuple[Change, ...]:
        """Read the kernel; answer what would have to change. Writes nothing. A reading that was begun before
        is not worth taking any more."""
        self.rest()
        self.recent, self.networks = None, networks
        return self.take(self.read(want, networks))

    def differences(self, want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]) -> tuple[Change, ...]:
        """What would have to change by now, for whoever asks. Nothing is written and nothing believed: what is
        still to be announced has to differ from what was known before, or nobody would mend it."""
        self.rest()
        return self._allowed(self.read(want, networks).pending)

    def begin(self, networks: tuple[IPNetwork, ...]) -> None:
        """From now on remember what a reading that begins now may not know."""
        self.recent, self.networks = Recent(), networks

    def end(self) -> None:
        """What the last reading found has been written; or it has failed."""
        self.recent = None

    def read(self, want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]) -> Reading:
        """Read the kernel and compare. `want` must not change meanwhile. Raises KernelError."""
        seen = self.kernel.observe([obj.name for obj in want.values() if isinstance(obj, Sysctl)])
        rest, rest_seen = self.settled.rest(want, seen)
        found = have(rest, rest_seen, networks)
        pending = changes(rest, found.objects, found.refused)
        self.settled.learn(rest, found.objects, pending)
        passed_over = shadowed(want, rest_seen, found.objects)
        return Reading(seen, _all_but(want, rest) | found.objects, pending, found.refused, passed_over)

    def take(self, reading: Reading) -> tuple[Change, ...]:
        """Believe a reading, but for what is known to be newer; answer what would have to change. That
        something may be wanted differently by now says nothing of what is there."""
        recent, known, before = self.recent or Recent(), self.cache, self.seen
        self.cache, self.seen = reading.cache, reading.seen
        self.refused, self.shadowed = reading.refused, reading.shadowed
        for key in recent.keys:
            if key in known:
                self.cache[key] = known[key]
            else:
                self.cache.pop(key, None)
        if recent.devices:
            self.adopt(before, recent.devices)
        return self._allowed(reading.pending)

    def note(self, keys: Iterable[Key]) -> None:
        """These were written or announced just now."""
        if self.recent is not None:
            self.recent.keys.update(keys)

    def is_newer(self, obj: Object) -> bool:
        """Whether what is known of this is newer than the reading that is under way or being written: what has
        to be done about it is then left to `follow`."""
        return self.recent is not None and any(
            key in newer
            for newer in (self.recent.keys, self.recent.wanted)
            for key in (obj.key, stands_for(obj))
        )

    def write_part(self, pending: Sequence[Change]) -> Outcome:
        """Write some of what a reading found to differ, but for what became of it since."""
        return self._apply(self.not_left([c for c in pending if not self.is_newer(c.obj)]))

    def look(self, want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]) -> Outcome:
        """Read everything, write what differs. Raises KernelError if it cannot be read."""
        return self.write(self.observe(want, networks))

    def write(self, pending: Sequence[Change]) -> Outcome:
        """Write what `observe` found to differ."""
        return replace(self._apply(self.not_left(pending)), whole=True)

    def follow(
        self, touched: Iterable[Key], want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]
    ) -> Outcome:
        """Write what differs among some keys, going by the cache. A change of a link means a look, since
        the kernel drops what hangs on a link on its own. Raises KernelError if that look fails."""
        keys = [*touched, *(key for key in self.leave if kind_of(key) is Kind.LINK)]
        if self.recent is not None:
            self.recent.wanted.update(keys)
        pending = self.not_left(self._allowed(touched_changes(keys, want, self.cache, self.refused)))
        if any(kind_of(change.obj.key) is Kind.LINK for change in pending):
            return self.look(want, networks)
        self.note(key for change in pending for key in (change.obj.key, stands_for(change.obj)))
        return self._apply(pending)

    def _allowed(self, pending: tuple[Change, ...]) -> tuple[Change, ...]:
        return additions(pending) if self.additions_only else pending

    def not_left(self, pending: Sequence[Change]) -> Sequence[Change]:
        """Without what is to be left alone, and what hangs on a link that is wrong and left alone."""
        if not self.leave:
            return pending
        wrong = {c.obj.name for c in pending if isinstance(c.obj, Link) and c.obj.key in self.leave}
        return [c for c in pending if c.obj.key not in self.leave and not links_of(c.obj) & wrong]

    def adopt(self, now: KernelState, names: Collection[str]) -> None:
        """From now on take these devices, and the addresses on them, as seen like this. Only those: what
        happened to another is still to be noticed."""
        if self.recent is not None:
            self.recent.devices.update(names)
        links = {name: link for name, link in self.seen.links.items() if name not in names}
        links |= {name: now.links[name] for name in names if name in now.links}
        kept = [address for address in self.seen.addresses if address.dev not in names]
        read = [address for address in now.addresses if address.dev in names]
        self.seen = replace(self.seen, links=links, addresses=(*kept, *read))

    def _apply(self, pending: Sequence[Change]) -> Outcome:
        failures = tuple(self.kernel.apply(pending)) if pending else ()
        failed = {failure.change for failure in failures}
        for change in pending:
            if not failed or change not in failed:
                self._remember(change)
        if written := [c for c in pending if kind_of(c.obj.key) in STRUCTURE and c not in failed]:
            with suppress(KernelError):  # then `seen` is stale, and the next notice of a device means a look
                self._adopt_written(written)
        return Outcome(tuple(pending), failures, dict(self.refused))

    def _adopt_written(self, written: Sequence[Change]) -> None:
        """Take note of devices as we left them, so that the kernel's announcing it is no news. One that
        reads differently was changed by somebody in the meantime: that is news. Raises KernelError."""
        now = self.kernel.glance()
        names = {str(change.obj.key[1]) for change in written}
        links = {name: link for name, link in now.links.items() if name in names}
        ours = KernelState(links=links, addresses=tuple(a for a in now.addresses if a.dev in names))
        there = {obj.key: obj for obj in owned(ours, self.networks)}
        self.adopt(now, names - {str(change.obj.key[1]) for change in written if not _came_true(change, there)})

    def _remember(self, change: Change) -> None:
        if change.op is Op.PUT:
            self.cache[change.obj.key] = change.obj
        else:
            self.cache.pop(change.obj.key, None)
            stood_for = stands_for(change.obj)
            if self.cache.get(stood_for) == change.obj:
                del self.cache[stood_for]


def _came_true(change: Change, there: Mapping[Key, Object]) -> bool:
    """Whether the kernel reads as this change left it."""
    present = there.get(change.obj.key)
    if change.op is Op.DROP or present is None:
        return (change.op is Op.DROP) == (present is None)
    return satisfied(change.obj, present)


def _all_but(objects: Mapping[Key, Object], some: Iterable[Key]) -> dict[Key, Object]:
    """Copying and deleting spares hashing every key, which is what a comprehension would cost."""
    found = dict(objects)
    for key in some:
        del found[key]
    return found


class FirewallOutcome(NamedTuple):
    """What differed and was written; and foreign rules in front of ours that may stop a packet first.
    `generation` is that of the last reading; `settled` says that this reading found nothing left to do."""

    changes: tuple[RuleChange, ...] = ()
    blockers: tuple[str, ...] = ()
    generation: object = None
    settled: bool = True


def sync_firewall(
    firewall: Firewall,
    want: Mapping[str, Policy],
    *,
    sets: AffinitySets | None = None,
    additions_only: bool = False,
    leave: Collection[ChainKey] = (),
    fresh: bool = True,
) -> FirewallOutcome:
    """Read the rules, write what differs, but for the chains in `leave`; with `additions_only` only what is
    missing. A set of clients is made before a rule refers to it, and goes once none does. Unless `fresh`, rules
    that are known and that nobody has changed since are not read again. Raises FirewallError or ToolMissing."""

    def allowed(rules: RuleSet) -> tuple[RuleChange, ...]:
        pending = _not_left(firewall.pending(want, rules), rules, leave)
        return tuple(c for c in pending if c.op == "missing") if additions_only else pending

    unused = _make_sets(sets, firewall.affinity_sets(want)) if sets else frozenset()
    rules = (None if fresh else firewall.recall()) or firewall.observe()
    blockers, pending = firewall.blockers(want, rules), allowed(rules)
    if pending:
        rules = firewall.apply(pending, rules)
    gone = not sets or additions_only or _destroy_sets(sets, unused)
    return FirewallOutcome(pending, blockers, rules.generation, gone and (not pending or not allowed(rules)))


def _make_sets(sets: AffinitySets, wanted: Mapping[str, int]) -> frozenset[str]:
    """Have all that are wanted; answer those of ours that are not."""
    present = sets.observe()
    for name, timeout_s in sorted(wanted.items()):
        if present.get(name) != timeout_s:
            sets.create(name, timeout_s)
    return frozenset(present.keys() - wanted.keys())


def _destroy_sets(sets: AffinitySets, unused: Collection[str]) -> bool:
    """Whether all are gone. One may still be in use: by a rule that is left alone on request, or for the
    moment that the kernel takes to let go of a rule that is deleted."""
    used = 0
    for name in sorted(unused):
        try:
            sets.destroy(name)
        except FirewallBusy:
            used += 1
    return not used


@dataclass(frozen=True, slots=True)
class ServiceDoors:
    """What serving services takes beside rules: sets of clients, the table of connections, and this host's own
    addresses. None where this kernel has no such thing; `lacks` says so."""

    sets: AffinitySets | None = None
    conntrack: Conntrack | None = None
    own_addresses: Callable[[], Collection[IPAddress]] = tuple
    lacks: tuple[OverlayError, ...] = ()


class Forgotten(NamedTuple):
    """How many connections were deleted that led to where nobody serves any more; and the first failure, if
    there is more to forget. `looked`: the table was read at all."""

    deleted: int = 0
    error: OverlayError | None = None
    looked: bool = False


def forget_flows(
    doors: ServiceDoors,
    cleanup: Cleanup,
    policies: Mapping[str, Policy],
    networks: tuple[IPNetwork, ...] = (),
    *,
    again: bool = False,
) -> Forgotten:
    """Forget the connections that these policies, whose rules are in force, would not lead to where they lead.
    The table is read only if something has changed by which they are judged, if the last time failed, or to
    judge all `again`. `networks` are the service networks."""
    if doors.conntrack is None:
        return Forgotten()
    try:
        owed = cleanup.follow(policies, frozenset(doors.own_addresses()), networks)
    except OverlayError as error:
        return Forgotten(error=error)
    protocols = PROTOCOLS if again else owed
    if not protocols:
        return Forgotten()
    forgotten = _forget(doors.conntrack, cleanup, protocols)
    if forgotten.error is None:
        cleanup.done()
    return forgotten


def _forget(conntrack: Conntrack, cleanup: Cleanup, protocols: frozenset[str]) -> Forgotten:
    """One that cannot be forgotten is no reason to keep the rest."""
    count, first = 0, None
    try:
        for flow in _stale(conntrack, cleanup, protocols):
            try:
                conntrack.delete(flow)
                count += 1
            except OverlayError as error:
                first = first or error
    except OverlayError as error:
        first = first or error
    return Forgotten(count, first, looked=True)


def _stale(conntrack: Conntrack, cleanup: Cleanup, protocols: frozenset[str]) -> list[Flow]:
    """Of TCP only what nobody answered can be stale, and that is read quickly."""
    found = list(cleanup.stale(conntrack.flows(protocols - {"tcp"})))
    if "tcp" in protocols:
        found += cleanup.stale(conntrack.flows({"tcp"}, unanswered=True))
    return found


def _not_left(
    pending: Sequence[RuleChange], present: RuleSet, leave: Collection[ChainKey]
) -> tuple[RuleChange, ...]:
    """Without chains that are to be left alone, and without jumps to one of them that is not there."""
    absent = {(table, chain) for table, chain in leave if (table, chain) not in present.chains}
    return tuple(
        change
        for change in pending
        if (change.table, change.chain) not in leave
        and not any(
            table == change.table and any(chain in rule.split() for rule in change.want or ())
            for table, chain in absent
        )
    )
