"""What the last look found right and this one finds unchanged: set aside on both sides, before comparing.

On a host at rest every wanted route, neighbour and forwarding entry is there, and a look costs what it costs
to find that out. Sorting by owner and comparing takes some 25 µs a peer, most of it in hashing and comparing
`ipaddress` objects. But the kernel port answers an entry that did not change with the very object of the
look before, and a plan that did not change wants the very object it wanted then. So it is enough to
remember which pairs of objects were equal, and to look for both by identity: 1 to 2 µs a peer.

A pair is set aside only if nothing else can bear on it: the links are the same, those wanted and those
there (an entry goes with its device, and must be put again on a new one), no other entry has its key, and
it is no pin on a bridge port, which matters to others on that bridge (`core/ownership.py`, `_keep`). What
is left goes the ordinary way, so the two ways answer the same; that is a property test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from overlaynet.state import Change, Fdb, KernelState, Key, Kind, Link, Neigh, Object, Route, kind_of

Entry: TypeAlias = Neigh | Fdb | Route


@dataclass(slots=True)
class Settled:
    """Pairs by the identity of the kernel's entry; `seen` keeps those entries alive, so that no other object
    can take an identity over."""

    seen: KernelState = field(default_factory=KernelState)
    links: tuple[Link, ...] = ()
    pairs: dict[int, Object] = field(default_factory=dict)

    def rest(self, want: Mapping[Key, Object], seen: KernelState) -> tuple[dict[Key, Object], KernelState]:
        """Both sides without the pairs that still hold."""
        links = tuple(obj for obj in want.values() if isinstance(obj, Link))
        if links != self.links or seen.links != self.seen.links:
            self.pairs = {}
        wanted = set(map(id, want.values()))
        present = set(map(id, _entries(seen)))
        self.pairs = {i: obj for i, obj in self.pairs.items() if i in present and id(obj) in wanted}
        self.seen, self.links = seen, links
        if self.pairs:
            self._part_rivals(want, self._left(seen))
        return self._unpaired(want), self._left(seen)

    def learn(self, want: Mapping[Key, Object], have: Mapping[Key, Object], pending: Iterable[Change]) -> None:
        """Remember what is right among the rest. With a link still to be changed nothing is: entries that
        look right may go with it."""
        if any(isinstance(change.obj, Link) for change in pending):
            return
        for key, obj in have.items():
            if kind_of(key) in _TABLES and getattr(obj, "master", None) is None and want.get(key) == obj:
                self.pairs[id(obj)] = want[key]

    def _left(self, seen: KernelState) -> KernelState:
        pairs = self.pairs
        return replace(
            seen,
            neighs=tuple([e for e in seen.neighs if id(e) not in pairs]),
            fdb=tuple([e for e in seen.fdb if id(e) not in pairs]),
            routes=tuple([e for e in seen.routes if id(e) not in pairs]),
        )

    def _part_rivals(self, want: Mapping[Key, Object], left: KernelState) -> None:
        """A second entry under a key that was settled (a MAC with two peers) is for the ordinary way."""
        rivals = {id(want.get(entry.key)) for entry in _entries(left)} - {id(None)}
        if rivals:
            self.pairs = {i: obj for i, obj in self.pairs.items() if id(obj) not in rivals}

    def _unpaired(self, want: Mapping[Key, Object]) -> dict[Key, Object]:
        paired = set(map(id, self.pairs.values()))
        return {key: obj for key, obj in want.items() if id(obj) not in paired}


_TABLES = frozenset({Kind.NEIGH, Kind.FDB, Kind.ROUTE})


def _entries(seen: KernelState) -> list[Entry]:
    return [*seen.neighs, *seen.fdb, *seen.routes]
