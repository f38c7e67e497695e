"""A packet filter in memory: `ports.Firewall` without a kernel.

It renders, compares and writes the same text as the real adapter, then reads that text like
``iptables-restore --noflush`` would: all of a table or nothing, no jump to a chain that is missing, no deletion
of a chain that is still jumped to, no ``-D`` of a rule that is not there. So a change that the kernel would
refuse is refused here.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from overlaynet.errors import FirewallError, OverlayError
from overlaynet.firewall import compare
from overlaynet.firewall.chains import CHAIN_NAME_MAX, Rendered, is_ours
from overlaynet.firewall.render import render
from overlaynet.firewall.restore import commits, restore_text
from overlaynet.firewall.services import Affinity
from overlaynet.state import ChainKey, Policy, RuleChange, RuleLine, RuleSet

BUILTIN: Mapping[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
TARGETS = frozenset({"ACCEPT", "DROP", "RETURN", "REJECT", "LOG", "MARK", "MASQUERADE", "SET", "SNAT", "DNAT"})

_COUNTERS = re.compile(r"\[(\d+):(\d+)\] ")
_JUMP = re.compile(r'-[jg] ([^\s"]+)(?: [^"]*)?$')


def _as_written(text: str) -> str:
    return text


class FakeFirewall:
    """`spell` is how this filter prints a rule; by default as it was written.

    `fail` makes the next commits fail; `restore` is any other program's hand on the same rules; `hit`
    lets packets match. `restores` and `bytes_written` count as the real adapter does;
    `beside` is what others have that it does not show. Any thread may look while another one writes."""

    def __init__(
        self,
        *,
        flavour: str = "legacy",
        random_fully: bool = True,
        spell: Callable[[str], str] = _as_written,
        affinity: Affinity = "ipset",
    ) -> None:
        self.flavour = flavour
        self._random_fully = random_fully
        self._spell = spell
        self._affinity: Affinity = affinity
        self._chains: dict[ChainKey, list[RuleLine]] = {
            (table, chain): [] for table, chains in BUILTIN.items() for chain in chains
        }
        self._remembered: dict[str, str] = {}
        self._failures: deque[OverlayError] = deque()
        self._writing = threading.Lock()
        self._generation = 0
        self._known: RuleSet | None = None
        self.beside: tuple[str, ...] = ()
        self.restores: Counter[str] = Counter()
        self.bytes_written = 0

    def observe(self) -> RuleSet:
        generation, there = self._generation, self._chains  # in this order, as they are written in the other
        policies = {key: "ACCEPT" if key[1] in BUILTIN[key[0]] else "-" for key in there}
        chains = {key: tuple(rules) for key, rules in there.items()}
        found = self._known = RuleSet(self.flavour, chains, policies, generation)
        return found

    def recall(self) -> RuleSet | None:
        known = self._known
        return known if known and known.generation == self._generation else None

    def generation(self) -> object:
        return self._generation

    def pending(self, want: Mapping[str, Policy], have: RuleSet) -> tuple[RuleChange, ...]:
        return compare.pending(self.rendered(want), have, self._remembered)

    def apply(self, changes: Sequence[RuleChange], have: RuleSet) -> RuleSet:
        if not changes:
            return have
        if self._failures:
            raise self._failures.popleft()
        text = restore_text(changes, have.chains)
        self.restore(text)
        self.restores.update(commits(text))
        self.bytes_written += len(text.encode())
        self._learn(changes)
        return self.observe()

    def clean(self) -> None:
        have = self.observe()
        self.apply(compare.pending(Rendered(), have, {}), have)

    def rendered(self, want: Mapping[str, Policy]) -> Rendered:
        return render(want, random_fully=self._random_fully, affinity=self._affinity)

    def affinity_sets(self, want: Mapping[str, Policy]) -> Mapping[str, int]:
        return self.rendered(want).sets

    def blockers(self, want: Mapping[str, Policy], have: RuleSet) -> tuple[str, ...]:
        return compare.blockers(self.rendered(want), have)

    def strangers(self, want: Mapping[str, Policy]) -> tuple[str, ...] | None:
        return self.beside

    def held(self) -> Mapping[str, int]:
        """Rules of ours by table."""
        found: Counter[str] = Counter()
        for (table, chain), rules in self._chains.items():
            found[table] += len(rules) if is_ours(chain) else 0
        return found

    def fail(self, *errors: OverlayError) -> None:
        """Let the next commits fail with these, one each; nothing is written then."""
        self._failures.extend(errors)

    def hit(self, table: str, chain: str, position: int, *, packets: int = 1, octets: int = 84) -> None:
        """Let packets match the rule at `position` (from 0)."""
        rules = self._chains[(table, chain)]
        old = rules[position]
        rules[position] = old._replace(packets=old.packets + packets, octets=old.octets + octets)

    def restore(self, text: str) -> None:
        """What ``iptables-restore --noflush`` does with this input. Raises FirewallError."""
        with self._writing:
            self._restore(text)

    def _restore(self, text: str) -> None:
        try:
            for _, group in groupby(enumerate(text.splitlines()), key=_table_counter()):
                self._commit([line for _, line in group])
        finally:
            self._generation += 1

    def _commit(self, lines: Sequence[str]) -> None:
        """One table, from ``*table`` to ``COMMIT``."""
        if not lines[0].startswith("*") or lines[-1] != "COMMIT":
            raise FirewallError("a table begins with * and ends with COMMIT", line=lines[0])
        table = lines[0][1:]
        draft = {chain: list(rules) for (t, chain), rules in self._chains.items() if t == table}
        for line in lines[1:-1]:
            _take(draft, BUILTIN[table], line, self._spell)
        _refuse_dangling(draft)
        others = {key: rules for key, rules in self._chains.items() if key[0] != table}
        self._chains = others | {(table, chain): rules for chain, rules in draft.items()}

    def _learn(self, changes: Sequence[RuleChange]) -> None:
        for change in changes:
            rules = self._chains.get((change.table, change.chain), [])
            ours = tuple(r.text for r in rules) if is_ours(change.chain) else compare.hooks_in(rules)
            self._remembered.update(compare.learn(change.want or (), ours))


def _table_counter() -> Callable[[tuple[int, str]], int]:
    """A key function that counts the ``*table`` lines it has seen."""
    seen = Counter[str]()

    def key(numbered: tuple[int, str]) -> int:
        seen["tables"] += numbered[1].startswith("*")
        return seen["tables"]

    return key


def _take(
    draft: dict[str, list[RuleLine]], builtin: Sequence[str], line: str, spell: Callable[[str], str]
) -> None:
    counters = _COUNTERS.match(line)
    packets, octets = (int(number) for number in counters.groups()) if counters else (0, 0)
    verb, _, rest = line[counters.end() if counters else 0 :].partition(" ")
    chain, _, text = rest.partition(" ")
    if verb.startswith(":"):
        _declare(draft, builtin, verb[1:], line)
        return
    if chain not in draft:
        raise FirewallError("no chain by that name", line=line)
    match verb:
        case "-A":
            draft[chain].append(RuleLine(spell(text), packets, octets))
        case "-I":
            number, _, text = text.partition(" ")
            draft[chain].insert(int(number) - 1, RuleLine(spell(text), packets, octets))
        case "-D":
            _delete(draft[chain], spell(text), line)
        case "-X":
            _drop_chain(draft, builtin, chain, line)
        case _:
            raise FirewallError("not understood", line=line)


def _declare(draft: dict[str, list[RuleLine]], builtin: Sequence[str], chain: str, line: str) -> None:
    if len(chain) > CHAIN_NAME_MAX:
        raise FirewallError("the chain's name is too long", line=line)
    if chain not in builtin:
        draft[chain] = []


def _delete(rules: list[RuleLine], text: str, line: str) -> None:
    position = next((i for i, rule in enumerate(rules) if rule.text == text), None)
    if position is None:
        raise FirewallError("no such rule", line=line)
    del rules[position]


def _drop_chain(draft: dict[str, list[RuleLine]], builtin: Sequence[str], chain: str, line: str) -> None:
    if chain in builtin or draft[chain]:
        raise FirewallError("the chain is built in or not empty", line=line)
    del draft[chain]


def _refuse_dangling(draft: Mapping[str, Sequence[RuleLine]]) -> None:
    for chain, rules in draft.items():
        for line in rules:
            found = _JUMP.search(line.text)
            if found and found[1] not in TARGETS and found[1] not in draft:
                raise FirewallError("no chain/target/match by that name", line=f"-A {chain} {line.text}")
