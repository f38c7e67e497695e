"""Leases of peers that vanish from the store, and how far that is believed.

One lease that goes is a host that left: its routes go at once. Two things look the same and are not:

* **Another history.** etcd was emptied, or restored from an old backup. Whoever is missing from it may be
  as alive as ever, and will write itself in again as soon as it notices. So what a new history lacks stays
  in use for `HOLD_DOWN_S`, and goes then if it has not come back.
* **A mass disappearance.** When more than half of the peers go together, something happened to the store
  and not to them: somebody deleted a prefix, or nobody could renew. They stay in use as long.

"Together" means within `TOGETHER_S`, since leases that run out at one moment are told one after another. The
first of them are let go before it shows that they are many, and are taken up again when it does; events
that wait in one queue are all heard before anything is written, so the kernel rarely notices.

A lease kept like this is *stale*: it is in `View.stale` and no longer in `View.leases`. Its subnet is not given
to anybody meanwhile. The price is bounded: packets to a host that is truly gone are sent for five minutes
more to where it was, and are lost there instead of here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from overlaynet.core.view import View
from overlaynet.model import Lease, Stored

HOLD_DOWN_S = 300.0
"""Seconds a lease whose absence is not believed stays in use."""

TOGETHER_S = 10.0
"""Seconds within which departures count as one."""

FEW = 2
"""So many may always go: in a cluster of three hosts, half is one."""


@dataclass(slots=True)
class Departures:
    """Who went lately, and until when the stale ones are kept. Writes `view.stale` and nothing else."""

    view: View
    recent: dict[str, tuple[float, Stored[Lease]]] = field(default_factory=dict)
    until: dict[str, float] = field(default_factory=dict)

    def left(
        self, gone: Sequence[Stored[Lease]], present: int, now: float, *, new_history: bool = False
    ) -> set[str]:
        """Leases of peers are no longer in the store, where `present` of them still are. Answers the keys of
        those that stay in use, some of which may have been let go before."""
        self._forget_old(now)
        kept = dict.fromkeys(item.key for item in gone)
        for item in gone:
            self.recent.pop(item.key, None)
            self.recent[item.key] = (now, item)
        if not new_history:
            kept = dict.fromkeys(self.recent) if self._are_many(present) else {}
        for key in kept:
            _, self.view.stale[key] = self.recent.pop(key)
            self.until[key] = now + HOLD_DOWN_S
        return set(kept)

    def came_back(self, key: str) -> None:
        """This lease is in the store."""
        self.recent.pop(key, None)
        if self.until.pop(key, None) is not None:
            del self.view.stale[key]

    def let_go(self, now: float) -> set[str]:
        """Keys of the stale leases whose time is over; they are not in use any more."""
        over = {key for key, end in self.until.items() if end <= now}
        for key in over:
            del self.until[key], self.view.stale[key]
        return over

    def deadline(self) -> float | None:
        """When the next stale lease is let go."""
        return min(self.until.values(), default=None)

    def _are_many(self, present: int) -> bool:
        away = len(self.recent) + len(self.until)
        return away > FEW and 2 * away > present + away

    def _forget_old(self, now: float) -> None:
        """Those at the front went first."""
        for key in list(self.recent):
            if self.recent[key][0] > now - TOGETHER_S:
                return
            del self.recent[key]
