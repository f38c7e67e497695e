"""Changes to the input of ``iptables-restore --noflush --counters``.

Under --noflush a line ``:CHAIN - [0:0]`` makes a user's chain, or empties the one that is there; chains that
are not named keep their rules and counters. Where few rules of a chain differ, only those are taken out
(``-D``, by text) and put in (``-I``, by number), so that one service more among thousands is a handful of
lines. Else the chain is replaced whole; rules that stay are written with the counters they had.

Every table is one commit, all or nothing. So the order inside a table is free of dangling jumps: new chains
first, then old rules off, new rules, and last the deletion of chains that nobody jumps to any more.

Between tables there is a moment in which one is changed and the other is not. What nat does not translate
meets the filter with its old address, and may be rejected there. So, where nat changes: first what the other
tables get, then nat, then what the others lose. A service that lost its endpoints is rejected before it is no
longer translated, one that got some is translated before it is no longer rejected, and if the second or third
commit fails, nothing is let through that should not be.

A hook is taken off by its text, not by its number: numbers move when somebody else inserts a rule meanwhile.
If it is gone by then, the whole commit fails and the next look decides anew. In chains of ours numbers are
safe, since nobody else has anything to do there; a rule put in the wrong place would be found and mended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from overlaynet.firewall.chains import Rules, is_any_instances
from overlaynet.firewall.compare import table_rank
from overlaynet.state import ChainKey, RuleChange, RuleLine

MAX_EDITS = 64
"""More single rules than this are not taken out and put in: each costs a search through the chain."""
NO_LINES: Mapping[ChainKey, Sequence[RuleLine]] = {}


class Edits(NamedTuple):
    """How one sequence of rules becomes another: first take these off, then put those in, each at its number
    (from 1) at that moment. Both empty: they are the same."""

    off: Rules
    on: tuple[tuple[int, str], ...]


@dataclass(slots=True)
class _Commit:
    """The lines of one table, by what has to come first. `present` are the rules as they were read."""

    table: str
    present: Mapping[ChainKey, Sequence[RuleLine]]
    chains: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    on: list[str] = field(default_factory=list)
    jumps: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        body = (*self.chains, *self.off, *self.on, *self.jumps, *self.drop)
        if body:
            yield from (f"*{self.table}", *body, "COMMIT")

    def edit(self, chain: str, have: Rules | None, want: Rules) -> None:
        """A chain of ours."""
        found = None if have is None else edits(have, want)
        if found is None:
            counters = self._counters(chain)
            self.chains.append(f":{chain} - [0:0]")
            self.on += [f"{counters.get(text, '')}-A {chain} {text}" for text in want]
            return
        self.off += [f"-D {chain} {text}" for text in found.off]
        self.on += [f"-I {chain} {number} {text}" for number, text in found.on]

    def delete(self, chain: str) -> None:
        self.chains.append(f":{chain} - [0:0]")
        self.drop.append(f"-X {chain}")

    def hooks(self, chain: str, have: Rules, want: Rules) -> None:
        counters = self._counters(chain)
        self.off += [f"-D {chain} {text}" for text in have]
        self.jumps += [f"{counters.get(text, '')}-I {chain} 1 {text}" for text in reversed(want)]

    def _counters(self, chain: str) -> Mapping[str, str]:
        lines = self.present.get((self.table, chain), ())
        return {line.text: f"[{line.packets}:{line.octets}] " for line in lines if line.packets}


def restore_text(
    changes: Sequence[RuleChange], present: Mapping[ChainKey, Sequence[RuleLine]] = NO_LINES
) -> str:
    """The whole input; empty for no changes. `present` are the rules as they were read, with counters."""
    tables = sorted({change.table for change in changes}, key=table_rank)
    nat, others = "nat" in tables, [table for table in tables if table != "nat"]
    commits = [_additions(table, changes, present, all_at_once=not nat) for table in others]
    if nat:
        commits.append(_additions("nat", changes, present, all_at_once=True))
        commits += [_removals(table, changes, present) for table in others]
    return "".join(f"{line}\n" for commit in commits for line in commit.lines())


def commits(text: str) -> list[str]:
    """The tables that an input commits, one by one."""
    return [line[1:] for line in text.splitlines() if line.startswith("*")]


def edits(have: Rules, want: Rules) -> Edits | None:
    """None where replacing the whole is better: nothing stays, it is too much, rules changed places, or one is
    there twice, so that its text does not say which."""
    old, new = set(have), set(want)
    if len(old) < len(have) or len(new) < len(want):
        return None
    off = tuple(text for text in have if text not in new)
    on = tuple((number, text) for number, text in enumerate(want, 1) if text not in old)
    stay = [text for text in have if text in new]
    if len(off) + len(on) > MAX_EDITS or (on and not stay) or stay != [text for text in want if text in old]:
        return None
    return Edits(off, on)


def union(have: Rules, want: Rules) -> Rules:
    """All of `want` in its order and, where the two differ, what only `have` has."""
    shorter, wanted = min(len(have), len(want)), set(want)
    same = next((i for i in range(shorter) if have[-1 - i] != want[-1 - i]), shorter)
    end = len(want) - same
    return (*want[:end], *(text for text in have if text not in wanted), *want[end:])


def _additions(
    table: str,
    changes: Sequence[RuleChange],
    present: Mapping[ChainKey, Sequence[RuleLine]],
    *,
    all_at_once: bool,
) -> _Commit:
    commit = _Commit(table, present)
    for change in (change for change in changes if change.table == table):
        if change.want is None:
            if all_at_once:
                _remove(commit, change)
        elif not is_any_instances(change.chain):
            commit.hooks(change.chain, change.have or (), change.want)
        elif all_at_once or change.have is None:
            commit.edit(change.chain, change.have, change.want)
        else:
            commit.edit(change.chain, change.have, union(change.have, change.want))
    return commit


def _removals(
    table: str, changes: Sequence[RuleChange], present: Mapping[ChainKey, Sequence[RuleLine]]
) -> _Commit:
    commit = _Commit(table, present)
    for change in (change for change in changes if change.table == table):
        if change.want is None:
            _remove(commit, change)
        elif change.have is not None and is_any_instances(change.chain):
            commit.edit(change.chain, union(change.have, change.want), change.want)
    return commit


def _remove(commit: _Commit, change: RuleChange) -> None:
    if is_any_instances(change.chain):
        commit.delete(change.chain)
    else:
        commit.hooks(change.chain, change.have or (), ())
