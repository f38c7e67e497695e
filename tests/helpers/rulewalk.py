"""A packet's walk through rendered rules, by their text: what the kernel would do, as far as our rules go.

The packet is a connection's first. A rule that holds by chance, or by who was there before (statistic, set,
recent), makes two walks of one; the answer is every way it may end. Read what the words mean in
iptables-extensions(8) and in the picture of Netfilter's hooks:

    by a device ─► nat PREROUTING ─┬─ for this host ─► filter INPUT
                                   └─ for others ────► filter FORWARD ─► nat POSTROUTING
    from a process ─► nat OUTPUT ─► filter OUTPUT ─► nat POSTROUTING, and filter INPUT if it is for this host
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.firewall.chains import Rendered
from overlaynet.state import ChainKey, Endpoint
from overlaynet.trace.servicewalk import DROPPED, PASSED, REJECTED, Outcome, Packet, Verdict

BY_CHANCE = frozenset({"statistic", "set", "recent"})
ASKS = frozenset({"--probability", "--match-set", "--rcheck"})
"""Matches that hold or not, as it happens, and what makes them ask; ``--set`` always holds."""
ENDS = {"ACCEPT": PASSED, "DROP": DROPPED, "REJECT": REJECTED}


class Test(NamedTuple):
    """One condition of a rule. `match` is the module that `-m` names, empty for iptables' own."""

    match: str
    option: str
    value: str
    negated: bool


class Rule(NamedTuple):
    """One rule, taken apart."""

    tests: tuple[Test, ...]
    target: str
    arguments: Mapping[str, str]


@dataclass(frozen=True)
class Walker:
    """Where a packet is on its way, and what happened to it so far."""

    src: IPAddress
    dst: IPAddress
    protocol: str
    port: int
    device: str | None
    mark: int = 0
    endpoint: Endpoint | None = None
    masqueraded: bool = False
    end: Outcome | None = None
    """What a table said of it."""


def walk(rules: Rendered, packet: Packet, own: Collection[IPAddress]) -> frozenset[Outcome]:
    """Every way this may end on a host with the addresses `own`, beside those of loopback."""
    host = _Host(rules, frozenset(own))
    return frozenset(_said(walker) for walker in host.walk(Walker(*packet)))


def _said(walker: Walker) -> Outcome:
    if walker.end in (DROPPED, REJECTED):
        return walker.end
    if walker.endpoint is None:
        return PASSED
    return Outcome(Verdict.ENDPOINT, walker.endpoint, walker.masqueraded)


@dataclass(frozen=True)
class _Host:
    rules: Rendered
    own: frozenset[IPAddress]

    def walk(self, start: Walker) -> Iterator[Walker]:
        leaves = start.device is None
        for walker in self._builtin(start, "nat", "OUTPUT" if leaves else "PREROUTING"):
            here = self._is_own(walker.dst)
            for hooks in [
                ["OUTPUT", *(["INPUT"] if here else [])] if leaves else ["INPUT" if here else "FORWARD"]
            ]:
                for filtered in self._filters([walker], hooks):
                    yield from self._leave(filtered, passes=leaves or not here)

    def _filters(self, walkers: Sequence[Walker], hooks: Sequence[str]) -> Sequence[Walker]:
        """Through these hooks of filter, one after the other; by INPUT it comes by lo if a process sent it."""
        for hook in hooks:
            walkers = [after for walker in walkers for after in self._unless_ended(walker, hook)]
        return walkers

    def _unless_ended(self, walker: Walker, hook: str) -> Iterator[Walker]:
        if walker.end in (DROPPED, REJECTED):
            yield walker
            return
        comes_back = hook == "INPUT" and walker.device is None
        at = replace(walker, device="lo") if comes_back else walker
        yield from (replace(w, device=walker.device) for w in self._builtin(at, "filter", hook))

    def _leave(self, walker: Walker, *, passes: bool) -> Iterator[Walker]:
        if walker.end in (DROPPED, REJECTED) or not passes:
            yield walker
            return
        yield from self._builtin(walker, "nat", "POSTROUTING")

    def _builtin(self, walker: Walker, table: str, chain: str) -> Iterator[Walker]:
        yield from self._through(replace(walker, end=None), table, self.rules.hooks.get((table, chain), ()))

    def _through(self, walker: Walker, table: str, rules: Sequence[str]) -> Iterator[Walker]:
        """Out of a chain: those whose way ended here, and those that came to its end or returned."""
        if not rules:
            yield walker
            return
        first, rest = parsed(rules[0]), rules[1:]
        for holds in self._holds(first.tests, walker):
            if not holds:
                yield from self._through(walker, table, rest)
            elif first.target != "RETURN":
                for after in self._target(first, walker, table):
                    if after.end is None:
                        yield from self._through(after, table, rest)
                    else:
                        yield after
            else:
                yield walker

    def _target(self, rule: Rule, walker: Walker, table: str) -> Iterator[Walker]:
        match rule.target:
            case "ACCEPT" | "DROP" | "REJECT" as word:
                yield replace(walker, end=ENDS[word])
            case "SET":
                yield walker
            case "MARK":
                value, mask = (int(n, 16) for n in rule.arguments["--set-xmark"].split("/"))
                yield replace(walker, mark=walker.mark & ~mask ^ value)
            case "MASQUERADE":
                yield replace(walker, masqueraded=True, end=PASSED)
            case "DNAT":
                yield _translated(walker, rule.arguments["--to-destination"])
            case chain:
                yield from self._through(walker, table, self._chain((table, chain)))

    def _chain(self, key: ChainKey) -> Sequence[str]:
        return self.rules.chains[key]

    def _holds(self, tests: Sequence[Test], walker: Walker) -> Collection[bool]:
        if not all(self._holds_surely(test, walker) for test in tests if test.match not in BY_CHANCE):
            return [False]
        return [True, False] if any(test.option in ASKS for test in tests) else [True]

    def _holds_surely(self, test: Test, walker: Walker) -> bool:
        return self._plainly(test, walker) != test.negated

    def _plainly(self, test: Test, walker: Walker) -> bool:
        match test.option:
            case "-s" | "-d":
                return (walker.src if test.option == "-s" else walker.dst) in ip_network(test.value)
            case "-i":
                return walker.device == test.value
            case "-p":
                return walker.protocol == test.value
            case "--dport":
                return walker.port == int(test.value)
            case "--mark":
                value, mask = (int(number, 16) for number in test.value.split("/"))
                return walker.mark & mask == value
            case "--ctstate":
                states = {"NEW", "DNAT"} if walker.endpoint else {"NEW"}
                return not states.isdisjoint(test.value.split(","))
            case "--src-type" | "--dst-type":
                assert test.value == "LOCAL"
                return self._is_own(walker.src if test.option == "--src-type" else walker.dst)
        raise NotImplementedError(test)

    def _is_own(self, address: IPAddress) -> bool:
        return address.is_loopback or address in self.own


def _translated(walker: Walker, destination: str) -> Walker:
    ip, _, port = destination.rpartition(":")
    endpoint = Endpoint(ip_address(ip.strip("[]")), int(port))
    return replace(walker, dst=endpoint.ip, port=endpoint.port, endpoint=endpoint, end=PASSED)


@cache
def parsed(text: str) -> Rule:
    """Raises ValueError for what this walker does not know."""
    before, _, after = text.rpartition("-j ")
    target, *arguments = after.split()
    return Rule(
        tuple(_tests(shlex.split(before))), target, dict(zip(arguments[::2], arguments[1::2], strict=False))
    )


def _tests(words: Sequence[str]) -> Iterator[Test]:
    match, negated, left = "", False, list(words)
    while left:
        word = left.pop(0)
        if word == "!":
            negated = True
        elif word == "-m":
            match = left.pop(0)
        elif not word.startswith("-"):
            raise ValueError(f"what is {word!r} in {words}?")
        else:
            values = []
            while left and not left[0].startswith("-") and left[0] != "!":
                values.append(left.pop(0))
            if match != "comment":
                yield Test(match, word, " ".join(values), negated)
            negated = False
