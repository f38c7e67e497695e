"""Changes to the input of ``iptables-restore --noflush``.

Under --noflush a line ``:CHAIN - [0:0]`` makes a user's chain, or empties the one that is there; chains that
are not named keep their rules and counters. Every table is one commit, all or nothing. So the order inside
a table is free of dangling jumps: all chains first, then the old hooks off, rules, the new hooks on, and
last the deletion of what nobody jumps to any more.

A hook is taken off by its text, not by its number: numbers move when somebody else inserts a rule meanwhile.
If it is gone by then, the whole commit fails and the next look decides anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from overlaynet.firewall.chains import is_any_instances
from overlaynet.firewall.compare import table_rank
from overlaynet.state import RuleChange


def restore_text(changes: Sequence[RuleChange]) -> str:
    """The whole input; empty for no changes."""
    by_table = sorted(changes, key=lambda change: table_rank(change.table))
    lines: list[str] = []
    for table, group in groupby(by_table, key=lambda change: change.table):
        lines += [f"*{table}", *_table(list(group)), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def _table(changes: Sequence[RuleChange]) -> Iterator[str]:
    chains = [change for change in changes if is_any_instances(change.chain)]
    hooks = [change for change in changes if not is_any_instances(change.chain)]
    yield from (f":{change.chain} - [0:0]" for change in chains)
    for change in hooks:
        yield from (f"-D {change.chain} {text}" for text in change.have or ())
    for change in chains:
        yield from (f"-A {change.chain} {text}" for text in change.want or ())
    for change in hooks:
        yield from (f"-I {change.chain} 1 {text}" for text in reversed(change.want or ()))
    yield from (f"-X {change.chain}" for change in chains if change.want is None)
