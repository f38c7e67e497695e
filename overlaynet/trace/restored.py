"""Whether a packet would arrive if a host held what it should: the entry but for which it fails.

What is missing leaves no trace on a packet's way: without the rule that translates, nothing is translated, and
the packet is lost elsewhere, by nobody's word. So the question is put the other way round. With everything back
in its place that a host on the way should have and has not (rules, sysctls, settings of bridge ports), does the
packet arrive? If so, the first of these that is needed for it is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, TypeAlias

from overlaynet.state import BridgePort, ChainKey, RuleLine, RuleSet, Source, Sysctl
from overlaynet.trace import whys
from overlaynet.trace.blame import next_commands
from overlaynet.trace.model import CERTAIN, DELIVERED, LIKELY, Cause, Path, Place, Point, Wanted, World

MOST = 48
"""Missing entries that are tried one by one; hooks and settings first, which concern every packet."""
MOST_TRIES = 2 * MOST

Follow: TypeAlias = Callable[[World], Sequence[Path]]


class Missing(NamedTuple):
    """Something that a place should have. `found`: how it is instead; `put` gives the place with it."""

    place: str
    words: str
    expected: str
    found: str
    source: Source | None
    command: str
    put: Callable[[Place], Place]


def arrives(path: Path) -> bool:
    """There and back."""
    return path.outcome == DELIVERED and (path.reply is None or path.reply.outcome == DELIVERED)


def explained(world: World, paths: Sequence[Path], follow: Follow) -> tuple[Path, ...]:
    """The paths, with another cause for those that fail for want of something. `follow` predicts elsewhere."""
    tries = _Tries(world, follow)
    return tuple(path if arrives(path) else _explained(tries, path) for path in paths)


def _explained(tries: _Tries, path: Path) -> Path:
    cause = _but_for(tries, path)
    if cause is None:
        return path
    if path.outcome != DELIVERED or path.reply is None:
        return replace(path, cause=cause)
    return replace(path, reply=replace(path.reply, cause=cause))


def _but_for(tries: _Tries, path: Path) -> Cause | None:
    missing = list(islice(_missing_on(tries.world, path), MOST))
    if not missing or not tries.would_arrive(path, missing):
        return None
    for number, one in enumerate(missing):
        without = tries.would_arrive(path, [*missing[:number], *missing[number + 1 :]])
        if not without:
            return None if without is None else _cause(path, one, len(missing))
    return None


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
            places = dict(self.world.places)
            for one in present:
                places[one.place] = one.put(places[one.place])
            self.made[key] = self.follow(replace(self.world, places=places))
        return self.made.get(key)


def _cause(path: Path, missing: Missing, count: int) -> Cause:
    hops = [hop for p in (path, path.reply) if p for hop in p.hops if hop.place == missing.place]
    point = Point(missing.place, hops[-1].iface) if hops else None
    more = f" (with {count - 1} more that this host should have)" if count > 1 else ""
    certain = path.certain and (path.reply is None or path.reply.certain)
    return Cause(
        "rule_missing",
        point,
        missing.words,
        missing.expected,
        f"{missing.found}{more}; with it the packet would arrive, and the answer return",
        missing.source,
        CERTAIN if certain else LIKELY,
        (*next_commands(missing.place), missing.command),
    )


# --- what is missing ------------------------------------------------------------------------------


def _missing_on(world: World, path: Path) -> Iterator[Missing]:
    """On every host by which it goes."""
    ways = [way for way in (path, path.reply) if way]
    hosts = dict.fromkeys(hop.host for way in ways for hop in way.hops if hop.host in world.wanted)
    for name in hosts:
        assert name is not None
        place, wanted = world.places.get(name), world.wanted[name]
        if place is not None:
            yield from _settings(world, place, wanted)
            yield from _rules(place, wanted)


def _settings(world: World, place: Place, wanted: Wanted) -> Iterator[Missing]:
    for key, obj in wanted.objects.items():
        source = wanted.sources.get(key)
        if isinstance(obj, Sysctl) and place.kernel.sysctls.get(obj.name) not in (None, obj.value):
            have = whys.sysctl(world, place, obj.name, place.kernel.sysctls[obj.name] or "")
            words, found = f"sysctl {have.key}", f"it is {place.kernel.sysctls[obj.name]}"
            yield Missing(place.name, words, obj.value, found, source, have.command, _with_sysctl(obj))
        if isinstance(obj, BridgePort) and obj.hairpin:
            link = place.kernel.links.get(obj.dev)
            if link is not None and link.hairpin is False:
                command = f"bridge -d link show dev {obj.dev}"
                words = f"port {obj.dev} hairpin"
                yield Missing(place.name, words, "on", "it is off", source, command, _with_hairpin(obj))


def _with_sysctl(obj: Sysctl) -> Callable[[Place], Place]:
    def put(place: Place) -> Place:
        sysctls = {**place.kernel.sysctls, obj.name: obj.value}
        return replace(place, kernel=replace(place.kernel, sysctls=sysctls))

    return put


def _with_hairpin(port: BridgePort) -> Callable[[Place], Place]:
    def put(place: Place) -> Place:
        links = dict(place.kernel.links)
        links[port.dev] = links[port.dev]._replace(hairpin=True)
        return replace(place, kernel=replace(place.kernel, links=links))

    return put


def _rules(place: Place, wanted: Wanted) -> Iterator[Missing]:
    """Hooks in built-in chains, then rules of our own."""
    if place.rules is None:
        return
    for chains, is_hook in ((wanted.hooks, True), (wanted.chains, False)):
        for key, texts in chains.items():
            have = {line.text for line in place.rules.chains.get(key, ())}
            for number, text in enumerate(texts):
                if text not in have:
                    origins = wanted.origins.get(key, ())
                    source = origins[number] if not is_hook and number < len(origins) else None
                    yield _missing_rule(place, key, texts, text, source)


def _missing_rule(
    place: Place, key: ChainKey, texts: Sequence[str], text: str, source: Source | None
) -> Missing:
    table, chain = key
    words = f"-t {table} -A {chain} {text}"
    command = f"iptables -t {table} -S {chain}"
    put = _with_rule(key, texts, text)
    return Missing(place.name, words, "this rule", "it is not there", source, command, put)


def _with_rule(key: ChainKey, texts: Sequence[str], text: str) -> Callable[[Place], Place]:
    """Where it should be among the others that are wanted in its chain; before what else there is."""

    def put(place: Place) -> Place:
        rules = place.rules or RuleSet("none")
        lines = list(rules.chains.get(key, ()))
        before = set(texts[: texts.index(text)])
        at = max((i + 1 for i, line in enumerate(lines) if line.text in before), default=0)
        lines.insert(at, RuleLine(text))
        policies = {key: "-", **rules.policies}
        return replace(
            place, rules=replace(rules, chains={**rules.chains, key: tuple(lines)}, policies=policies)
        )

    return put
