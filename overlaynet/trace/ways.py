"""The ways that one packet may take through rules, where these leave more than one open.

A rule that holds by chance, or of which it cannot be told whether it holds, parts the way in two. Most such
forks do not matter in the end: both ways lead to the same. So a way remembers its forks with the branch it took
there; ways that have become alike are one again, which took both branches; and only when all ways have ended is
it told which forks were decisive, those whose branches do not lead to the same results. The others are
forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from overlaynet.trace.packet import Packet
from overlaynet.trace.rulematch import Kind


class Used(NamedTuple):
    """A rule that matched and mattered. `position` from 1, as `iptables -L --line-numbers` counts; a rule of
    nftables' own has a `table` that says so: "nft inet firewalld"."""

    table: str
    chain: str
    position: int
    text: str
    packets_before: int


@dataclass(frozen=True, slots=True)
class Passage:
    """One way that a packet may come out of a hook: "accept", "drop" or "reject".

    `packet`: as it comes out. `used`: the rules that ended its way through a table or changed it, with the
    jumps that led there, in order. `choices`: what chance or memory decided, and what limits were taken as
    not reached. `unread`: why this may not be the truth, a sentence for each rule that could not be decided
    or followed. `masquerade`: the source becomes an address of the device that the packet leaves by;
    `packet.src` still is the old one. `policy`: the chain whose default decided, of those that drop, and of
    the table filter ("filter FORWARD DROP")."""

    verdict: str
    packet: Packet
    used: tuple[Used, ...] = ()
    reject_with: str = ""
    choices: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    masquerade: bool = False
    policy: str | None = None


class Fork(NamedTuple):
    """A rule at which the way parts."""

    kind: Kind
    table: str
    chain: str
    position: int
    word: str

    def __str__(self) -> str:
        return f"{self.table} {self.chain} rule {self.position}: whether {self.word} holds is not known"


Branches = Mapping[Fork, frozenset[Hashable]]


@dataclass(frozen=True, slots=True)
class Way:
    """How far a packet came. `verdict` None: it is still under way. The rest as in `Passage`; `unread` and
    `assumed` hold what is told beside the forks."""

    packet: Packet
    used: tuple[Used, ...] = ()
    branches: Branches = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    verdict: str | None = None
    reject_with: str = ""
    masquerade: bool = False
    policy: str | None = None

    def taking(self, fork: Fork, branch: Hashable) -> Way:
        return replace(self, branches={**self.branches, fork: frozenset({branch})})

    def doubted(self, sentence: str) -> Way:
        return self if sentence in self.unread else replace(self, unread=(*self.unread, sentence))

    def assuming(self, sentence: str) -> Way:
        return self if sentence in self.assumed else replace(self, assumed=(*self.assumed, sentence))

    @property
    def result(self) -> Hashable:
        """What a sender, or a reader of the rules, could tell from another. Why a packet ends belongs to it."""
        why = None if self.verdict in (None, "accept") else (self.policy, self.used[-1:])
        return self.verdict, self.packet, self.reject_with, self.masquerade, why


def merged(ways: Sequence[Way]) -> list[Way]:
    """Each result once."""
    if len(ways) < 2:
        return list(ways)
    alike: dict[Hashable, list[Way]] = defaultdict(list)
    for way in ways:
        alike[way.result].append(way)
    return [_as_one(group) for group in alike.values()]


def _as_one(ways: Sequence[Way]) -> Way:
    """Only the rules that are used on all of them are used for certain."""
    first, *others = ways
    if not others:
        return first
    branches = dict(first.branches)
    for way in others:
        for fork, taken in way.branches.items():
            branches[fork] = branches.get(fork, frozenset()) | taken
    used = tuple(one for one in first.used if all(one in way.used for way in others))
    unread = tuple(dict.fromkeys(sentence for way in ways for sentence in way.unread))
    assumed = tuple(dict.fromkeys(sentence for way in ways for sentence in way.assumed))
    policy = first.policy if all(way.policy == first.policy for way in others) else None
    return replace(first, used=used, branches=branches, unread=unread, assumed=assumed, policy=policy)


def passages(ways: Sequence[Way], start: Packet) -> tuple[Passage, ...]:
    """What all ways, each of which has ended, come to."""
    decisive, ended = _decisive(ways), merged(ways)
    chances = {fork for fork in decisive if fork.kind == "chance"}
    labels = {id(way): _label(way, start) for way in ended}
    number = {
        chain: len({labels[id(way)] for way in ended if chain in _chains(way, chances)})
        for chain in dict.fromkeys((fork.table, fork.chain) for fork in chances)
    }
    return tuple(_passage(way, decisive, labels[id(way)], number) for way in ended)


def _passage(
    way: Way, decisive: Collection[Fork], label: str, number: Mapping[tuple[str, str], int]
) -> Passage:
    mine = [fork for fork in way.branches if fork in decisive]
    chances = [
        f"{_chooser(mine, chain)} chose {label}, one of {number[chain]} ({' '.join(chain)})"
        for chain in _chains(way, [fork for fork in mine if fork.kind == "chance"])
    ]
    unread = (*way.unread, *(str(fork) for fork in mine if fork.kind == "unread"))
    assert way.verdict is not None
    return Passage(
        way.verdict,
        way.packet,
        way.used,
        way.reject_with,
        (*chances, *way.assumed),
        unread,
        way.masquerade,
        way.policy,
    )


def _decisive(ways: Iterable[Way]) -> frozenset[Fork]:
    """Forks whose branches do not lead to the same results."""
    results: dict[Fork, dict[Hashable, set[Hashable]]] = defaultdict(lambda: defaultdict(set))
    for way in ways:
        for fork, taken in way.branches.items():
            for branch in taken:
                results[fork][branch].add(way.result)
    return frozenset(fork for fork, by in results.items() if len(set(map(frozenset, by.values()))) > 1)


def _chains(way: Way, forks: Collection[Fork]) -> Collection[tuple[str, str]]:
    return dict.fromkeys((fork.table, fork.chain) for fork in way.branches if fork in forks)


def _chooser(forks: Iterable[Fork], chain: tuple[str, str]) -> str:
    return " or ".join(dict.fromkeys(f.word for f in forks if f.kind == "chance" and f[1:3] == chain))


def _label(way: Way, start: Packet) -> str:
    """What a way has come to, in a word or two."""
    packet = way.packet
    if way.verdict != "accept":
        return str(way.verdict)
    if (packet.dst, packet.dst_port) != (start.dst, start.dst_port):
        host = f"[{packet.dst}]" if packet.dst.version == 6 else str(packet.dst)
        return host if packet.dst_port is None else f"{host}:{packet.dst_port}"
    if packet.src != start.src:
        return f"source {packet.src}"
    if way.masquerade:
        return "masquerade"
    return f"mark {packet.mark:#x}" if packet.mark != start.mark else "accept"
