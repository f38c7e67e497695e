"""Whether a packet would arrive if a host held what it should: the entry for want of which it fails.

What is missing leaves no trace on a packet's way: without the rule that translates, nothing is translated, and
the packet is lost elsewhere, by nobody's word. So the question is put the other way round. With everything back
in its place that a host on the way should have and has not (rules, sysctls, settings of bridge ports), does the
packet arrive? If so, it is put back one by one; what makes it arrive in the end is the cause.

Hooks come last: where a whole table was emptied, the jump into our chains is what one has to know of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from overlaynet.state import BridgePort, ChainKey, Object, RuleLine, RuleSet, Source, Sysctl
from overlaynet.trace import whys
from overlaynet.trace.blame import next_commands
from overlaynet.trace.model import CERTAIN, DELIVERED, LIKELY, Cause, Path, Place, Point, Wanted, World

MOST_TRIES = 64
"""Worlds that are predicted in; one failing path takes the logarithm of what is missing."""

UNTOLD = frozenset({"unknown", "rule_drop", "rule_reject", "route_missing", "rp_filter"})
"""Kinds of cause that may be another's consequence; the others name themselves what is wrong."""
TOLD_SETTINGS = ("rp_filter", "ip_forward")
"""Settings with a kind of cause of their own."""

Follow: TypeAlias = Callable[[World], Sequence[Path]]


class Missing(NamedTuple):
    """Something that a place should have: a setting, or the rule `text` in a chain that should hold `texts`, in
    this order. `found`: how it is instead."""

    place: str
    words: str
    expected: str
    found: str
    source: Source | None
    command: str
    setting: Object | None = None
    chain: ChainKey | None = None
    text: str = ""
    texts: Sequence[str] = ()


def arrives(path: Path) -> bool:
    """There and back."""
    return path.outcome == DELIVERED and (path.reply is None or path.reply.outcome == DELIVERED)


def explained(world: World, paths: Sequence[Path], follow: Follow) -> tuple[Path, ...]:
    """The paths, with another cause for those that fail for want of something. `follow` predicts elsewhere."""
    tries = _Tries(world, follow)
    return tuple(path if arrives(path) else _explained(tries, path) for path in paths)


def _explained(tries: _Tries, path: Path) -> Path:
    failing = path if path.outcome != DELIVERED or path.reply is None else path.reply
    if failing.cause and failing.cause.kind not in UNTOLD:
        return path
    cause = _for_want_of(tries, path)
    if cause is None:
        return path
    return replace(path, cause=cause) if failing is path else replace(path, reply=replace(failing, cause=cause))


def _for_want_of(tries: _Tries, path: Path) -> Cause | None:
    """By halves: with the first `few` it does not arrive, with the first `many` it does."""
    missing = list(_missing_on(tries.world, path))
    if not missing or not tries.would_arrive(path, missing):
        return None
    few, many = 0, len(missing)
    while many - few > 1:
        middle = (few + many) // 2
        answer = tries.would_arrive(path, missing[:middle])
        if answer is None:
            return None
        few, many = (few, middle) if answer else (middle, many)
    return _cause(path, missing[many - 1], len(missing))


@dataclass(slots=True)
class _Tries:
    """Predictions in worlds in which more is as it should be, each made once."""

    world: World
    follow: Follow
    made: dict[frozenset[tuple[str, str]], Sequence[Path]] = field(default_factory=dict)

    def would_arrive(self, path: Path, present: Sequence[Missing]) -> bool | None:
        """By the same choices, if there are such. None: there were too many tries already to know."""
        paths = self._with(present)
        if paths is None:
            return None
        same = [other for other in paths if other.choices == path.choices]
        return any(arrives(other) for other in same or paths)

    def _with(self, present: Sequence[Missing]) -> Sequence[Path] | None:
        key = frozenset((one.place, one.words) for one in present)
        if key not in self.made and len(self.made) < MOST_TRIES:
            self.made[key] = self.follow(replace(self.world, places=_restored(self.world.places, present)))
        return self.made.get(key)


def _cause(path: Path, missing: Missing, count: int) -> Cause:
    hops = [hop for p in (path, path.reply) if p for hop in p.hops if hop.place == missing.place]
    point = Point(missing.place, hops[-1].iface) if hops else None
    more = f" (as {count - 1} more that should be there)" if count > 1 else ""
    certain = path.certain and (path.reply is None or path.reply.certain)
    return Cause(
        "rule_missing",
        point,
        missing.words,
        missing.expected,
        f"{missing.found}{more}; as it should be, the packet would arrive, and the answer return",
        missing.source,
        CERTAIN if certain else LIKELY,
        (*next_commands(missing.place), missing.command),
    )


# --- what is missing ------------------------------------------------------------------------------


def _missing_on(world: World, path: Path) -> Iterator[Missing]:
    """On every host by which it goes."""
    ways = [way for way in (path, path.reply) if way]
    hosts = dict.fromkeys(hop.host for way in ways for hop in way.hops if hop.host in world.wanted)
    known = [(world.places[name], world.wanted[name]) for name in hosts if name in world.places and name]
    for place, wanted in known:
        yield from _settings(world, place, wanted)
    for place, wanted in known:
        yield from _rules(place, wanted.chains, wanted.origins)
    for place, wanted in known:
        yield from _rules(place, wanted.hooks, {})


def _settings(world: World, place: Place, wanted: Wanted) -> Iterator[Missing]:
    for key, obj in wanted.objects.items():
        source = wanted.sources.get(key)
        if (
            isinstance(obj, Sysctl)
            and not obj.name.endswith(TOLD_SETTINGS)
            and place.kernel.sysctls.get(obj.name) not in (None, obj.value)
        ):
            have = whys.sysctl(world, place, obj.name, place.kernel.sysctls[obj.name] or "")
            found = f"it is {place.kernel.sysctls[obj.name]}"
            expected = f"{have.key} = {obj.value}"
            yield Missing(place.name, f"sysctl {have.key}", expected, found, source, have.command, obj)
        if isinstance(obj, BridgePort) and obj.hairpin:
            link = place.kernel.links.get(obj.dev)
            if link is not None and link.hairpin is False:
                words, command = f"port {obj.dev} hairpin", f"bridge -d link show dev {obj.dev}"
                yield Missing(place.name, words, "on", "it is off", source, command, obj)


def _rules(
    place: Place,
    chains: Mapping[ChainKey, Sequence[str]],
    origins: Mapping[ChainKey, Sequence[Source]],
) -> Iterator[Missing]:
    for key, texts in chains.items() if place.rules else ():
        assert place.rules is not None
        have = {line.text for line in place.rules.chains.get(key, ())}
        sources: Sequence[Source | None] = origins.get(key) or [None] * len(texts)
        for text, source in zip(texts, sources, strict=True):
            if text not in have:
                words, command = f"-t {key[0]} -A {key[1]} {text}", f"iptables -t {key[0]} -S {key[1]}"
                yield Missing(
                    place.name,
                    words,
                    words,
                    "none",
                    source,
                    command,
                    chain=key,
                    text=text,
                    texts=texts,
                )


# --- put back -------------------------------------------------------------------------------------


def _restored(places: Mapping[str, Place], present: Iterable[Missing]) -> dict[str, Place]:
    by_place: dict[str, list[Missing]] = defaultdict(list)
    for one in present:
        by_place[one.place].append(one)
    return {**places, **{name: _with_all(places[name], some) for name, some in by_place.items()}}


def _with_all(place: Place, present: Sequence[Missing]) -> Place:
    rules: dict[ChainKey, list[Missing]] = defaultdict(list)
    for one in present:
        if one.setting is not None:
            place = _with_setting(place, one.setting)
        elif one.chain is not None:
            rules[one.chain].append(one)
    return replace(place, rules=_with_rules(place.rules, rules)) if place.rules and rules else place


def _with_setting(place: Place, setting: Object) -> Place:
    kernel = place.kernel
    if isinstance(setting, Sysctl):
        return replace(place, kernel=replace(kernel, sysctls={**kernel.sysctls, setting.name: setting.value}))
    assert isinstance(setting, BridgePort)
    links = {**kernel.links, setting.dev: kernel.links[setting.dev]._replace(hairpin=True)}
    return replace(place, kernel=replace(kernel, links=links))


def _with_rules(rules: RuleSet, missing: Mapping[ChainKey, Sequence[Missing]]) -> RuleSet:
    chains, policies = dict(rules.chains), dict(rules.policies)
    for key, some in missing.items():
        chains[key] = _merged(chains.get(key, ()), some[0].texts, {one.text for one in some})
        policies.setdefault(key, "-")
    return replace(rules, chains=chains, policies=policies)


def _merged(lines: Sequence[RuleLine], texts: Sequence[str], put: Collection[str]) -> tuple[RuleLine, ...]:
    """Each one put back behind the last that is there and should come before it, or in front of all."""
    have = {line.text for line in lines}
    behind: dict[str, list[RuleLine]] = defaultdict(list)
    last = ""
    for text in texts:
        if text in have:
            last = text
        elif text in put:
            behind[last].append(RuleLine(text))
    rows = [(line, *behind.pop(line.text, ())) for line in lines]
    return (*behind[""], *(line for row in rows for line in row))
