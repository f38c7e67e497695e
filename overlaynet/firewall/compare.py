"""What differs between the rules we want and those that are there, of what is ours.

Chains of ours are compared whole, rule by rule. In all other chains ours are the rules that jump to a
chain of ours and those whose comment begins with our prefix; they are compared as one sequence, so a lost,
doubled, edited or misplaced hook shows. Foreign rules between ours do not matter, and are never in a change.

A repaired hook goes to the top of its chain. A foreign rule that later puts itself before ours is not fought
(both sides would go on for ever) but `blockers` tells of it.

Another version of iptables may print a rule in other words than ours. What it printed right after our own
write is remembered (`learn`) and counts as right too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from overlaynet.firewall.chains import (
    CHAIN_PREFIX,
    TABLE_ORDER,
    Rendered,
    Rules,
    comment_prefix,
    is_any_instances,
    is_ours,
)
from overlaynet.state import ChainKey, RuleChange, RuleLine, RuleSet, Source

NOBODY = Source("none", "")
"""The source of what nobody wants."""
HOOKS = Source("firewall", "hooks")
"""The source of our jumps in built-in chains; they serve every policy."""

_TARGET = re.compile(r" ?-[jg] ([A-Za-z0-9_.:-]+)(?: [^\"]*)?$")
_COMMENT = re.compile(r'--comment ("(?:[^"\\]|\\.)*"|\S+)')
_FINAL = frozenset({"ACCEPT", "DROP", "REJECT", "QUEUE", "NFQUEUE", "MASQUERADE", "SNAT", "DNAT", "REDIRECT"})
_STOPS = frozenset({"DROP", "REJECT"})
_INTO = re.compile(r"(?:^| )-i (\S+)")
_DEVICE = re.compile(r"(?<!! )-[io] (\S+)")
_REPLIES_ONLY = re.compile(r"--ctstate (RELATED,ESTABLISHED|ESTABLISHED) ")


class Comparison:
    """Compares again and again. Of rules that were compared before and are the same object, only what else is
    wanted now, and what differed then, is looked at; of others, only chains that are not both the same objects
    as when they were found alike. So thousands of chains take some milliseconds."""

    def __init__(self) -> None:
        self._want, self._have = Rendered(), RuleSet("")
        self._foreign: Mapping[ChainKey, Sequence[RuleLine]] = {}
        self._unlike: frozenset[ChainKey] = frozenset()
        self._found: tuple[RuleChange, ...] = ()
        self._remembered = 0

    def pending(self, want: Rendered, have: RuleSet, remembered: Mapping[str, str]) -> tuple[RuleChange, ...]:
        """Every difference, in the order of tables and then of chain names. `remembered` only ever grows."""
        known = have is self._have and len(remembered) == self._remembered
        if known and want is self._want:
            return self._found
        if not known:
            self._foreign = _foreign(have, want.instance)
        changes = [
            *self._chains(want, have, remembered, self._unsure(want, known=known)),
            *_extra(want, have, self._gone(want) if known else have.chains),
            *_hooks(want, self._foreign, remembered),
        ]
        found = tuple(sorted(changes, key=lambda c: (table_rank(c.table), c.chain)))
        self._keep(want, have, found, len(remembered))
        return found

    def written(self, changes: Sequence[RuleChange], before: RuleSet, after: RuleSet) -> None:
        """The rules were `before` and are `after` by just these changes. If those were all there were, nothing
        is left to find."""
        if before is self._have and tuple(changes) == self._found:
            self._foreign = {key: after.chains.get(key, ()) for key in {*self._foreign, *self._want.hooks}}
            self._keep(self._want, after, (), self._remembered)

    def _keep(self, want: Rendered, have: RuleSet, found: tuple[RuleChange, ...], remembered: int) -> None:
        self._want, self._have, self._found, self._remembered = want, have, found, remembered
        self._unlike = frozenset((change.table, change.chain) for change in found)

    def _unsure(self, want: Rendered, *, known: bool) -> Iterator[ChainKey]:
        """Chains to be compared."""
        wanted, unlike = self._want.chains.get, self._unlike
        for key, rules in want.chains.items():
            if wanted(key) is not rules or key in unlike or not known:
                yield key

    def _chains(
        self, want: Rendered, have: RuleSet, remembered: Mapping[str, str], keys: Iterable[ChainKey]
    ) -> Iterator[RuleChange]:
        wanted, had, unlike = self._want.chains.get, self._have.chains.get, self._unlike
        for key in keys:
            rules, lines = want.chains[key], have.chains.get(key)
            if lines is None:
                yield RuleChange("missing", *key, rules, None, _source(want, key, ()))
            elif wanted(key) is rules and had(key) is lines and key not in unlike:
                continue
            elif not _same(rules, lines, remembered):
                present = _texts(lines)
                yield RuleChange("changed", *key, rules, present, _source(want, key, present))

    def _gone(self, want: Rendered) -> Iterable[ChainKey]:
        """Chains that may be nobody's now: those no longer wanted, and what there was to say something of."""
        return (self._want.chains.keys() - want.chains.keys()) | self._unlike


def pending(want: Rendered, have: RuleSet, remembered: Mapping[str, str]) -> tuple[RuleChange, ...]:
    """Every difference, in the order of tables and then of chain names."""
    return Comparison().pending(want, have, remembered)


def table_rank(table: str) -> tuple[int, str]:
    """Sorts tables in the order of commit; unknown ones last."""
    known = TABLE_ORDER.index(table) if table in TABLE_ORDER else len(TABLE_ORDER)
    return (known, table)


def learn(wrote: Rules, printed: Rules) -> dict[str, str]:
    """What to remember of a chain read back after our own write: other words for the same rule.

    Only if nobody changed the chain in between, as far as can be told: the rules are as many, and each
    has the comment and the target it was written with."""
    if (
        wrote == printed
        or len(wrote) != len(printed)
        or any(_purpose(w) != _purpose(p) for w, p in zip(wrote, printed, strict=True))
    ):
        return {}
    return {w: p for w, p in zip(wrote, printed, strict=True) if w != p}


def hooks_in(rules: Sequence[RuleLine], instance: str = "") -> Rules:
    """Those rules of a chain that is not ours which are."""
    return tuple(line.text for line in rules if _is_hook(line.text, instance))


def blockers(want: Rendered, have: RuleSet) -> tuple[str, ...]:
    """Foreign rules before our hooks that decide about packets for good, one sentence each.

    In the built-in chain itself any that does; a rule for replies of known connections is none, since the
    connection's first packet came past us. In chains called from there (DOCKER-USER, say) those that stop a
    packet, unless they or the way to them are about a device that no container of the overlay uses."""
    filters = (rules for (table, _), rules in want.chains.items() if table == "filter")
    devices = {name for rules in filters for text in rules for name in _INTO.findall(text)}
    found = []
    for table, chain in want.hooks:
        rules = _before_our_hook(have.chains.get((table, chain), ()), want.instance)
        found += [(table, chain, text) for text in _foreign_finals(rules)]
        for line in rules:
            stops = _stops_behind(line.text, have, table, devices, frozenset({chain}))
            found += [(table, where, text) for where, text in stops]
    return tuple(
        f"a foreign rule stands before ours in table {table} chain {chain}: {text}"
        for table, chain, text in dict.fromkeys(found)
    )


def _extra(want: Rendered, have: RuleSet, keys: Iterable[ChainKey]) -> Iterator[RuleChange]:
    for key in keys:
        if key in have.chains and key not in want.chains and is_ours(key[1], want.instance):
            yield RuleChange("extra", *key, None, _texts(have.chains[key]), NOBODY)


def _foreign(have: RuleSet, instance: str) -> Mapping[ChainKey, Sequence[RuleLine]]:
    """Chains of others that have rules, which may be hooks of ours."""
    return {key: lines for key, lines in have.chains.items() if lines and not is_ours(key[1], instance)}


def _hooks(
    want: Rendered, foreign: Mapping[ChainKey, Sequence[RuleLine]], remembered: Mapping[str, str]
) -> Iterator[RuleChange]:
    for key in foreign.keys() | want.hooks.keys():
        ours, wanted = hooks_in(foreign.get(key, ()), want.instance), want.hooks.get(key, ())
        if not _alike(wanted, ours, remembered):
            op = "missing" if not ours else "changed" if wanted else "extra"
            yield RuleChange(op, *key, wanted or None, ours or None, HOOKS if wanted else NOBODY)


def _texts(lines: Sequence[RuleLine]) -> Rules:
    return tuple(line.text for line in lines)


def _same(want: Rules, have: Sequence[RuleLine], remembered: Mapping[str, str]) -> bool:
    return len(want) == len(have) and _alike(want, _texts(have), remembered)


def _alike(want: Rules, have: Rules, remembered: Mapping[str, str]) -> bool:
    if want == have:
        return True
    return len(want) == len(have) and all(
        w == h or remembered.get(w) == h for w, h in zip(want, have, strict=True)
    )


def _source(want: Rendered, key: ChainKey, have: Rules) -> Source:
    """Who asked for the first rule that differs; for one too many at the end, who asked for the last."""
    rules, origins = want.chains[key], want.origins[key]
    for position, origin in enumerate(origins):
        if have[position : position + 1] != rules[position : position + 1]:
            return origin
    return origins[-1] if origins else NOBODY


def _is_hook(text: str, instance: str) -> bool:
    prefix = comment_prefix(instance)
    if CHAIN_PREFIX not in text and prefix not in text:
        return False
    return f'--comment "{prefix}' in text or is_ours(_target(text), instance)


def _target(text: str) -> str:
    found = _TARGET.search(_COMMENT.sub("", text))
    return found[1] if found else ""


def _purpose(text: str) -> tuple[str, str]:
    found = _COMMENT.search(text)
    return (found[1] if found else "", _target(text))


def _before_our_hook(rules: Sequence[RuleLine], instance: str) -> Sequence[RuleLine]:
    """Another instance's hooks are none: they concern its own network, and leave ours to ours."""
    ours = (position for position, line in enumerate(rules) if _is_hook(line.text, instance))
    before = rules[: next(ours, len(rules))]
    return [line for line in before if not is_any_instances(_target(line.text))]


def _stops_behind(
    text: str, have: RuleSet, table: str, devices: Collection[str], above: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """The rules that stop a packet in the chain this rule calls, and in those that one calls, with their
    chains. Nothing behind an unconditional RETURN is reached."""
    chain = _target(text)
    if chain in above or _about_others(text, devices):
        return
    for line in have.chains.get((table, chain), ()):
        if line.text == "-j RETURN":
            return
        if _target(line.text) in _STOPS:
            if not _about_others(line.text, devices) and not _REPLIES_ONLY.search(line.text):
                yield chain, line.text
        else:
            yield from _stops_behind(line.text, have, table, devices, above | {chain})


def _about_others(text: str, devices: Collection[str]) -> bool:
    """Whether a rule names a device, and it is none of ours. A name that ends in + stands for many."""
    named = _DEVICE.findall(_COMMENT.sub("", text))
    return bool(devices) and any(not _any_is(name, devices) for name in named)


def _any_is(name: str, devices: Collection[str]) -> bool:
    return any(device == name or (name.endswith("+") and device.startswith(name[:-1])) for device in devices)


def _foreign_finals(rules: Sequence[RuleLine]) -> Iterator[str]:
    for line in rules:
        if _target(line.text) in _FINAL and not _REPLIES_ONLY.search(line.text):
            yield line.text
