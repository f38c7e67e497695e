"""One packet on its way: its sightings at several points, and what became of its headers between them.

way = packets.path(["web-1:eth0", "node-1:cni0", "node-1:flannel.1"], icmp("echo-request"))
way.falls("ttl", by=1, between=("node-1:cni0", "node-1:flannel.1"))
way.keeps("src")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload

from overlaynet.proof.packet import Packet
from overlaynet.proof.predicates import Address, addresses
from overlaynet.trace.filter import Names
from overlaynet.trace.summary import summary


class Refuted(AssertionError):
    """The packets prove that it is not so."""


class Inconclusive(AssertionError):
    """Nobody watched all the time, so that silence proves nothing."""


def line(packet: Packet, start_ns: int = 0) -> str:
    """A packet for a person: seconds, point, direction, what it is, bytes."""
    time = "-" if packet.t_ns is None else f"{(packet.t_ns - start_ns) / 1e9:.6f}"
    try:
        text = summary(packet.frame)
    except ValueError as error:
        text = str(error)
    return f"{time:>10}  {packet.point!s:<20} {packet.direction:<3}  {text}  {packet.length} B"


class Change(NamedTuple):
    """A field that differs from one sighting to the next."""

    where: tuple[str, str]
    before: Any
    after: Any


class Way(Sequence[Packet]):
    """The sightings of one packet in order of time. Fields are those of `Headers`, of the innermost packet:
    "src", "dst_port", "ttl", …"""

    def __init__(self, sightings: Iterable[Packet], names: Names) -> None:
        self.sightings = tuple(sightings)
        self._names = names

    @overload
    def __getitem__(self, index: int) -> Packet: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Packet]: ...
    def __getitem__(self, index: int | slice) -> Packet | Sequence[Packet]:
        return self.sightings[index]

    def __len__(self) -> int:
        return len(self.sightings)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        start = next((p.t_ns for p in self if p.t_ns is not None), 0)
        return [line(packet, start) for packet in self]

    @property
    def points(self) -> list[str]:
        return [str(packet.point) for packet in self]

    def at(self, point: str) -> Packet:
        """The first sighting there. Raises Refuted if there is none."""
        for packet in self:
            if str(packet.point) == point:
                return packet
        raise Refuted("\n".join([f"the packet is not seen at {point}", *self.lines()]))

    def values(self, field: str) -> list[Any]:
        """What the field is at each sighting."""
        return [getattr(packet.innermost, field) for packet in self]

    def changes(self, field: str) -> list[Change]:
        """Where on the way a field gets another value."""
        seen = list(zip(self.points, self.values(field), strict=True))
        return [Change((here, there), old, new) for (here, old), (there, new) in pairwise(seen) if old != new]

    def require(self, claim: str, good: bool) -> None:
        """Anything else that holds of this way, in words. Raises Refuted with all sightings if it does not."""
        if not good:
            raise Refuted("\n".join([f"not so: {claim}", *self.lines()]))

    def keeps(self, field: str) -> None:
        """The field is the same everywhere."""
        self._require(field, not self.changes(field), f"{field} stays the same")

    def falls(self, field: str, by: int, between: tuple[str, str]) -> None:
        """The field gets smaller by that much between these points, and changes nowhere else."""
        changes = self.changes(field)
        good = len(changes) == 1 and changes[0].where == between and changes[0].before - changes[0].after == by
        self._require(field, good, f"{field} falls by {by} between {between[0]} and {between[1]} alone")

    def turns(
        self,
        field: str,
        before: int | Address,
        after: int | Address,
        between: tuple[str, str] | None = None,
    ) -> Change:
        """NAT: the field has the one value up to a point (the first of these), and the other from the next one
        on. Values may be names of containers and hosts."""
        changes = self.changes(field)
        good = len(changes) == 1 and self._is(changes[0].before, before) and self._is(changes[0].after, after)
        good = good and between in (None, changes[0].where)
        where = "once" if between is None else f"between {between[0]} and {between[1]} alone"
        self._require(field, good, f"{field} turns from {before} to {after} {where}")
        return changes[0]

    def _is(self, value: Any, wanted: int | Address) -> bool:
        return value == wanted if isinstance(wanted, int) else value in (addresses(wanted, self._names) or ())

    def _require(self, field: str, good: bool, claim: str) -> None:
        if not good:
            seen = [
                f"    {point:<20} {field} {value}"
                for point, value in zip(self.points, self.values(field), strict=True)
            ]
            raise Refuted("\n".join([f"not so: {claim}", *seen]))
