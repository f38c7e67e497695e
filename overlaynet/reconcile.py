"""The only caller of Kernel and Firewall: makes have like want, and says truthfully how far it came.

`look` reads the whole kernel and is the authority. `follow` handles what one event touched against a cache
of what was there, so that a peer's change costs the same among a hundred peers and among twenty thousand;
the next look corrects whatever the cache had wrong. Nothing here stops at the first failure: each change
succeeds or fails alone, and what failed is in the Outcome with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from overlaynet.addr import IPNetwork
from overlaynet.core.diff import additions, changes, touched_changes
from overlaynet.core.ownership import have, shadowed, stands_for
from overlaynet.core.settled import Settled
from overlaynet.ports import Failure, Firewall, Kernel
from overlaynet.state import Change, KernelState, Key, Kind, Object, Op, Policy, RuleChange, Sysctl, kind_of


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


@dataclass(slots=True)
class Reconciler:
    """One host's writer. `seen` is the kernel at the last look; not for use across threads. While
    `additions_only`, nothing is taken away: what is wanted is then known from a time before this start."""

    kernel: Kernel
    additions_only: bool = False
    seen: KernelState = field(default_factory=KernelState)
    cache: dict[Key, Object] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)
    settled: Settled = field(default_factory=Settled)
    shadowed: dict[Key, str] = field(default_factory=dict)

    def observe(self, want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]) -> tuple[Change, ...]:
        """Read the kernel; answer what would have to change. Writes nothing."""
        names = [obj.name for obj in want.values() if isinstance(obj, Sysctl)]
        self.seen = self.kernel.observe(names)
        rest, rest_seen = self.settled.rest(want, self.seen)
        found = have(rest, rest_seen, networks)
        pending = changes(rest, found.objects, found.refused)
        self.settled.learn(rest, found.objects, pending)
        self.refused, self.shadowed = found.refused, shadowed(want, rest_seen, found.objects)
        self.cache = _all_but(want, rest) | found.objects
        return self._allowed(pending)

    def look(self, want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]) -> Outcome:
        """Read everything, write what differs. Raises KernelError if it cannot be read."""
        return self.write(self.observe(want, networks))

    def write(self, pending: Sequence[Change]) -> Outcome:
        """Write what `observe` found to differ."""
        return replace(self._apply(pending), whole=True)

    def follow(
        self, touched: Iterable[Key], want: Mapping[Key, Object], networks: tuple[IPNetwork, ...]
    ) -> Outcome:
        """Write what differs among some keys, going by the cache. A change of a link means a look, since
        the kernel drops what hangs on a link on its own. Raises KernelError if that look fails."""
        keys = list(touched)
        pending = self._allowed(touched_changes(keys, want, self.cache, self.refused))
        if any(kind_of(change.obj.key) is Kind.LINK for change in pending):
            return self.look(want, networks)
        return self._apply(pending)

    def _allowed(self, pending: tuple[Change, ...]) -> tuple[Change, ...]:
        return additions(pending) if self.additions_only else pending

    def _apply(self, pending: Sequence[Change]) -> Outcome:
        failures = tuple(self.kernel.apply(pending)) if pending else ()
        failed = {failure.change for failure in failures}
        for change in pending:
            if not failed or change not in failed:
                self._remember(change)
        return Outcome(tuple(pending), failures, dict(self.refused))

    def _remember(self, change: Change) -> None:
        if change.op is Op.PUT:
            self.cache[change.obj.key] = change.obj
        else:
            self.cache.pop(change.obj.key, None)
            stood_for = stands_for(change.obj)
            if self.cache.get(stood_for) == change.obj:
                del self.cache[stood_for]


def _all_but(objects: Mapping[Key, Object], some: Iterable[Key]) -> dict[Key, Object]:
    """Copying and deleting spares hashing every key, which is what a comprehension would cost."""
    found = dict(objects)
    for key in some:
        del found[key]
    return found


class FirewallOutcome(NamedTuple):
    """What differed and was written; and foreign rules in front of ours that may stop a packet first."""

    changes: tuple[RuleChange, ...] = ()
    blockers: tuple[str, ...] = ()


def sync_firewall(
    firewall: Firewall, want: Mapping[str, Policy], *, additions_only: bool = False
) -> FirewallOutcome:
    """Read the rules, write what differs; with `additions_only` only what is missing. Raises FirewallError
    or ToolMissing."""
    present = firewall.observe()
    pending = firewall.pending(want, present)
    if additions_only:
        pending = tuple(change for change in pending if change.op == "missing")
    if pending:
        firewall.apply(pending, present)
    return FirewallOutcome(pending, firewall.blockers(want, present))
