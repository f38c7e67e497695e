"""What of ours has gone wrong by itself: who noticed, when it is repaired, and how often it was.

The reconciler's cache is what the kernel is believed to hold. Here it is corrected by what the kernel
announces and by what a poll finds, and every key whose belief changed becomes a *suspect*: the next round
compares it with what is wanted. So a repair costs one object, not a full look. A full look is asked for
where the kernel may have removed more than it tells: when a device changes that others hang on, or when
announcements were lost.

All of this is a belief to be checked, never a list of steps: an announcement that comes late, twice or
after our own write leads at worst to writing once more what is there already.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from overlaynet.addr import IPNetwork
from overlaynet.core import backoff
from overlaynet.core.diff import word
from overlaynet.core.engine import Engine
from overlaynet.core.jsonstate import key_text
from overlaynet.core.overlay import metric_of
from overlaynet.core.ownership import owned
from overlaynet.core.plan import workload_slice
from overlaynet.core.underlay import direct
from overlaynet.errors import Contested, OverlayError
from overlaynet.ports import Noticed, Sighting, Watched
from overlaynet.reconcile import Reconciler
from overlaynet.state import (
    BridgePort,
    Change,
    Fdb,
    KernelState,
    Key,
    Kind,
    Link,
    LinkInfo,
    Neigh,
    Object,
    Route,
    RuleChange,
    Sysctl,
    describe,
    kind_of,
)
from overlaynet_agent.holds import RULE, Hold, Holds
from overlaynet_agent.pace import Pace

log = logging.getLogger("overlaynet.drift")

POLL_S = 0.5
"""Between readings of the sysctls, whose changes the kernel does not announce."""
FOUGHT_CAP_S = 0.5
"""An object that is undone again and again is still repaired this often."""
QUIET_S = 10.0
"""Undone once more after this time, it counts as the first time."""
FIGHT = 8
"""Repairs in a row that make a problem to report."""
MAX_LINES = 3
"""Log lines about one round's repairs, and objects named in a problem: a lost device alone is thousands."""
MAX_PACED = 256
"""Objects of one round that are paced one by one; what breaks in greater numbers is paced by the full looks."""
STRUCTURE = frozenset({Kind.LINK, Kind.PORT, Kind.SYSCTL})
"""What decides which devices and settings are watched."""
UNCOUNTED = frozenset({"retry", "start", "event"})
"""Reasons for a write that are no drift."""


def _nobody(_: Watched) -> None:
    """Without a listener there is nobody to tell which devices matter."""


@dataclass(slots=True)
class Drift:
    """`suspects` are keys to compare again, and why; `look` is why a full look is wanted, if one is. `watch`
    is told which devices matter. `vanished` is called when a container's device is gone."""

    engine: Engine
    reconciler: Reconciler
    holds: Holds = field(default_factory=Holds)
    repaired: Counter[str] = field(default_factory=Counter)
    suspects: dict[Key, str] = field(default_factory=dict)
    look: str | None = None
    watch: Callable[[Watched], None] = _nobody
    failing: Pace = field(default_factory=lambda: Pace(backoff.CAP_S, math.inf))
    fought: Pace = field(default_factory=lambda: Pace(FOUGHT_CAP_S, QUIET_S))
    _by: dict[Key, str] = field(default_factory=dict)
    _sysctls: tuple[str, ...] = ()
    _next_poll: float = 0.0

    # --- what was noticed -------------------------------------------------------------------------

    def hear(self, noticed: Noticed) -> bool:
        """Take an announcement in. Answers whether a container's device is gone. Raises KernelError."""
        if noticed.overrun:
            self.look = "overrun"
            return False
        if noticed.on_wire:
            self.look = self.look or "notice"
        gone = self._check_devices(noticed.devices) if noticed.devices else False
        if self.look is None:
            self._check_entries(noticed.entries)
        return gone

    def _check_entries(self, entries: Mapping[Key, Sighting]) -> None:
        """Entries of a device that is not there any more say nothing about the present one's."""
        links, ours = self.reconciler.seen.links, self._ours(entries.values())
        for key, (_, ifindex, by) in entries.items():
            if ifindex and not _is_at(links.get(str(key[1])), ifindex):
                continue
            self._believe(self._counted_under(key), ours.get(key), "notice", by)
            self._check_pin(key, by)

    def _counted_under(self, key: Key) -> Key:
        """A route of flannel's may stand for one of ours, and is then believed to be that."""
        if kind_of(key) is Kind.ROUTE and key[3] == 0 and isinstance(key[2], IPv4Network):
            stood_for = (*key[:3], metric_of(key[2]))
            there = self.reconciler.cache.get(stood_for)
            if isinstance(there, Route) and there.metric == 0:
                return stood_for
        return key

    def _ours(self, sightings: Iterable[Sighting]) -> dict[Key, Object]:
        """Those of ours among them, by the rules of `core.ownership`."""
        found: dict[type, list[Object]] = {Neigh: [], Fdb: [], Route: []}
        for sighting in sightings:
            if sighting.obj is not None:
                found[type(sighting.obj)].append(sighting.obj)
        state = KernelState(
            links=self.reconciler.seen.links,
            neighs=tuple(o for o in found[Neigh] if isinstance(o, Neigh)),
            fdb=tuple(o for o in found[Fdb] if isinstance(o, Fdb)),
            routes=tuple(o for o in found[Route] if isinstance(o, Route)),
        )
        return {obj.key: obj for obj in owned(state, self.reconciler.networks)}

    def _check_pin(self, key: Key, by: str) -> None:
        """A bridge holds a MAC once: seen at one port, it is no longer at the container's own."""
        if kind_of(key) is not Kind.FDB or key[3] is None:
            return
        for workload in self.engine.workloads.values():
            if workload.mac == key[2] and workload.device != key[1]:
                self._believe((Kind.FDB, workload.device, *key[2:]), None, "notice", by)

    def _believe(self, key: Key, obj: Object | None, why: str, by: str = "") -> None:
        """From now on take this for what the kernel holds. Known already, it is still newer than a reading that
        is under way, which then leaves it to be compared here."""
        reconciler = self.reconciler
        reconciler.note((key,))
        cache = reconciler.cache
        if cache.get(key) == obj and reconciler.recent is None:
            return
        if obj is None:
            cache.pop(key, None)
        else:
            cache[key] = obj
        self.suspect(key, why, by)

    def suspect(self, key: Key, why: str, by: str = "") -> None:
        self.suspects[key] = why
        if by:
            self._by[key] = by

    def _check_devices(self, names: Collection[str]) -> bool:
        before, after = self.reconciler.seen, self.reconciler.kernel.glance()
        self.reconciler.adopt(after, names)
        gone = False
        for name in names:
            if self._facts(before, name) == self._facts(after, name):
                continue
            if (Kind.PORT, name) not in self.engine.desired.objects:
                self.look = "notice"
            elif name not in after.links:
                gone = True
            else:
                self._check_port(after.links[name])
        return gone

    def _facts(self, state: KernelState, name: str) -> tuple[LinkInfo | None, set[object]]:
        """All that is to be known about a device; whether its cable is in matters on the underlay alone."""
        link = state.links.get(name)
        if link and name != self.engine.local.interface:
            link = link._replace(running=False)
        return link, {address.interface for address in state.addresses if address.dev == name}

    def _check_port(self, link: LinkInfo) -> None:
        """A port that leaves its bridge loses its pins there."""
        port = next((o for o in owned(KernelState(links={link.name: link}), ()) if o.key[0] is Kind.PORT), None)
        self._believe((Kind.PORT, link.name), port, "notice")
        for workload in self.engine.workloads.values():
            if workload.device == link.name and port is None:
                for key in workload_slice(workload, self.engine.local).objects:
                    self._believe(key, None, "notice")

    def poll(self, now: float) -> None:
        """Read the settings that the kernel announces no change of, if it is time."""
        if now < self._next_poll:
            return
        self._next_poll = now + POLL_S
        self.fought.prune(now)
        for name, value in self.reconciler.kernel.read_sysctls(self._sysctls).items():
            if value is not None:  # else it went with its device, and that is another's business
                self._believe((Kind.SYSCTL, name), Sysctl(name, value), "poll")

    def rewatch(self) -> None:
        """Find out which devices and settings matter now."""
        tunnels, devices, names = set(), {self.engine.local.interface}, []
        for obj in self.engine.desired.objects.values():
            match obj:
                case Sysctl(name):
                    names.append(name)
                case Link(name, kind):
                    devices.add(name)
                    tunnels |= {name} if kind == "vxlan" else set()
                case BridgePort(dev):
                    devices.add(dev)
        self._sysctls = tuple(names)
        self.watch(Watched(frozenset(tunnels), frozenset(devices), *self._wire()))

    def _wire(self) -> tuple[str | None, tuple[IPNetwork, ...]]:
        """The underlay, and what it was last seen to reach without a gateway, if that makes a difference."""
        network, interface = self.engine.view.network, self.engine.local.interface
        if network is None or not network.backend.direct_routing:
            return None, ()
        return interface, tuple(direct(self.reconciler.seen, interface))

    def deadline(self) -> float:
        """When there is something to do."""
        paces = (self.failing.deadline(), self.fought.deadline(), self.holds.deadline())
        poll = [self._next_poll] if self._sysctls else []
        return min([at for at in paces if at is not None] + poll, default=math.inf)

    # --- what is to be compared now ---------------------------------------------------------------

    def take_suspects(self, now: float) -> dict[Key, str]:
        """Those whose turn it is, and why."""
        taken, self.suspects = self.suspects, {}
        for key in self.failing.take_due(now):
            taken.setdefault(key, "retry")
        for key in self.fought.take_due(now):
            taken.setdefault(key, "notice")
        return {key: why for key, why in taken.items() if not self._too_early(key, now)}

    def _too_early(self, key: Key, now: float) -> bool:
        return self.failing.must_wait(key, now) or self.fought.must_wait(key, now)

    # --- what was done ----------------------------------------------------------------------------

    def count(self, changes: Sequence[Change], reasons: Mapping[Key, str], now: float) -> None:
        """Changes that were carried out, of which `reasons` names those that were suspects."""
        mended = [change for change in changes if reasons.get(change.obj.key, "event") not in UNCOUNTED]
        for change in mended:
            self.repaired[str(kind_of(change.obj.key))] += 1
        for change in mended[:MAX_PACED]:
            self.fought.strike(change.obj.key, now)
        for change in mended[:MAX_LINES]:
            key = change.obj.key
            by = self._by.get(key) or "unknown"
            log.warning(
                "drift repaired why=%s by=%s op=%s object=%s",
                reasons[key], by, word(change), describe(change.obj),
            )  # fmt: skip
        if len(mended) > MAX_LINES:
            log.warning("drift repaired in all count=%d", len(mended))

    def count_rules(self, changes: Iterable[RuleChange], why: str, now: float) -> None:
        """The same for rule chains; one for each chain."""
        for change in changes:
            self.repaired[RULE] += 1
            self.fought.strike((RULE, change.table, change.chain), now)
            log.warning(
                "drift repaired why=%s op=%s table=%s chain=%s", why, change.op, change.table, change.chain
            )

    def problems(self) -> list[OverlayError]:
        """A fight with another program, as one problem."""
        fights = [(key, streak) for key, streak in self.fought.streaks.items() if streak.times >= FIGHT]
        if not fights:
            return []
        said = [
            f"{key[0]} {key_text(key)}: repaired {streak.times} times in {streak.last - streak.since:.0f} s, "
            f"undone by {self._by.get(key) or 'an unknown program'}"
            for key, streak in fights[:MAX_LINES]
        ]
        return [
            Contested(
                f"something keeps undoing {len(fights)} of our objects",
                evidence="; ".join(said),
                next=["ip monitor all", "overlaynet logs"],
            )
        ]

    # --- holds ------------------------------------------------------------------------------------

    def hold(self, hold: Hold) -> None:
        """Leave an object alone from now on."""
        self.holds.place(hold)
        self.reconciler.leave = self.holds.keys
        log.log(
            _level(hold),
            "hold placed kind=%s object=%s reason=%r until=%s",
            *(hold.kind, hold.text, hold.reason, hold.until),
        )

    def release(self, kind: str, text: str) -> Hold:
        """Look after it again. Raises NotFound."""
        hold = self.holds.release(kind, text)
        self._ended(hold, "released")
        return hold

    def expire(self, now: float) -> list[Hold]:
        """End the holds whose time is up; answers those."""
        over = self.holds.expire(now)
        for hold in over:
            self._ended(hold, "expired")
        return over

    def _ended(self, hold: Hold, how: str) -> None:
        self.reconciler.leave = self.holds.keys
        log.log(_level(hold), "hold over how=%s kind=%s object=%s", how, hold.kind, hold.text)
        if hold.kind == Kind.LINK:
            self.look = "release"
        elif hold.key is not None:
            self.suspect(hold.key, "release")


def _level(hold: Hold) -> int:
    return logging.DEBUG if hold.quiet else logging.WARNING


def _is_at(link: LinkInfo | None, ifindex: int) -> bool:
    return link is not None and link.ifindex == ifindex
