"""What the rules are after our own write, without reading them back.

Reading back ten thousand rules to see the three that were just written costs more than writing them. If
`poll.nobody_else` says that our commits explain how the generation changed, the rules are those from before
with our changes made. What is left open is how this version of iptables prints a rule. That is a question of
its form: rules that differ in addresses, numbers, names and comments alone are spelt alike. So a form that was
once read back as it was written need not be read back again.

Counters are as old as the last reading.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from overlaynet.firewall.chains import is_any_instances
from overlaynet.state import RuleChange, RuleLine, RuleSet

_PARTICULAR = re.compile(r'"(?:[^"\\]|\\.)*"|OVL-[A-Za-z0-9-]+|[0-9a-fA-F:.]*[0-9][0-9a-fA-F:./x]*')
CHAIN_ENTRIES = 2
"""What the legacy kernel keeps for a user's chain beside its rules: a head and a policy."""


def written(have: RuleSet, changes: Sequence[RuleChange]) -> RuleSet:
    """The rules after these changes, which were computed from `have`."""
    chains, policies = dict(have.chains), dict(have.policies)
    for change in changes:
        key = (change.table, change.chain)
        if change.want is None and is_any_instances(change.chain):
            chains.pop(key, None)
            policies.pop(key, None)
        else:
            chains[key] = _after(chains.get(key, ()), change)
            policies.setdefault(key, "-")
    return RuleSet(have.flavour, chains, policies)


def _after(lines: Sequence[RuleLine], change: RuleChange) -> tuple[RuleLine, ...]:
    counted = {line.text: line for line in lines}
    ours = tuple(counted.get(text) or RuleLine(text) for text in change.want or ())
    if is_any_instances(change.chain):
        return ours
    off = set(change.have or ())
    return (*ours, *(line for line in lines if line.text not in off))


def entries(changes: Iterable[RuleChange]) -> Mapping[str, int]:
    """By how many entries each table grows, as the legacy kernel counts them."""
    grown: Counter[str] = Counter()
    for change in changes:
        grown[change.table] += len(change.want or ()) - len(change.have or ())
        if is_any_instances(change.chain):
            grown[change.table] += CHAIN_ENTRIES * ((change.have is None) - (change.want is None))
    return grown


def form(text: str) -> str:
    """A rule without what does not matter to how it is spelt."""
    return _PARTICULAR.sub("#", text)


def forms(rules: Iterable[str]) -> set[str]:
    """Of all these rules."""
    return {form(text) for text in rules}


def are_known(changes: Iterable[RuleChange], known: Collection[str]) -> bool:
    """Whether all rules that these changes bring are of known forms."""
    return all(form(text) in known for change in changes for text in change.want or ())
