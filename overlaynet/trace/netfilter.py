"""A packet's way through one hook of Netfilter, by the rules that iptables-save shows.

    by a device ─► PREROUTING ─┬─ for this place ─► INPUT
                               └─ for others ─────► FORWARD ─► POSTROUTING
    from a process ─► OUTPUT ─► POSTROUTING

At each hook the kernel asks the tables in the order of their priorities (netfilter_ipv4.h), and every table
must let the packet pass: ACCEPT ends one table alone, DROP all of it. Conntrack looks at the packet after
raw. Only a connection's first packet comes through nat; what is decided there holds for all that follow. What
came by loopback was through nat when it was sent.

    raw -300 ─► conntrack -200 ─► mangle -150 ─► nat (destination) -100 ─► filter 0 ─► security 50 ─► nat
    (source) 100

In a table the packet begins in the hook's own chain, whose policy decides if no rule does. Rules lead into
other chains (``-j``: and back, ``-g``: back to where that chain was entered from).

nftables' own chains stand beside (`firewall.nftables`), each at its own priority.

Where rules cannot be decided, or choose by chance, there are several passages; see `ways`. Rules are read from
text that anybody may have written: what is not understood is told in `Passage.unread` and never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from overlaynet.addr import IPAddress
from overlaynet.firewall import nftables
from overlaynet.state import Address, RuleLine, RuleSet
from overlaynet.trace.packet import Ends, Packet
from overlaynet.trace.rulematch import Doubt, Here, address_type, covers, holds
from overlaynet.trace.ruletarget import UNCHANGED, Deed, carry_out
from overlaynet.trace.rulewords import Rule, parse
from overlaynet.trace.ways import Fork, Passage, Used, Way, merged, passages

__all__ = ["Ends", "Packet", "Passage", "Used", "traverse"]

TABLES: Mapping[str, Mapping[str, int]] = {
    "PREROUTING": {"raw": -300, "mangle": -150, "nat": -100},
    "INPUT": {"mangle": -150, "filter": 0, "security": 50, "nat": 100},
    "FORWARD": {"mangle": -150, "filter": 0, "security": 50},
    "OUTPUT": {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50},
    "POSTROUTING": {"mangle": -150, "nat": 100},
}
"""By hook: tables with their priorities."""
CONNTRACK = -200
MOST_WAYS = 256
"""Parts of a way that are followed; a service may have as many endpoints."""
TOO_MANY = f"the rules leave more than {MOST_WAYS} ways open, and not all are followed"
MAX_DEPTH = 64
"""Of jumps that are followed; the kernel itself refuses rules that lead in a circle."""


def traverse(
    rules: RuleSet,
    hook: str,
    packet: Packet,
    own: Collection[IPAddress],
    *,
    addresses: Sequence[Address] = (),
    nft: nftables.Document | None = None,
    tables: Collection[str] | None = None,
) -> tuple[Passage, ...]:
    """Every way that a packet may come out of a hook, "PREROUTING" to "POSTROUTING", of a place that has the
    addresses `own`, beside those of loopback.

    `addresses`: the place's, with their devices, in the kernel's order; some rules need them. `nft`: what
    `nft -j list ruleset` says; the tables of iptables-nft in it are passed over if `rules` are these.
    `tables`: only these of iptables, if not None."""
    here = Here(hook, own, addresses)
    ways, ended = [Way(packet)], []
    for stage in _stages(rules, here, packet, nft, tables):
        after = _bounded(merged([end for way in ways for end in stage(way)]))
        ended += [way for way in after if way.verdict is not None]
        ways = [way for way in after if way.verdict is None]
    return passages([*ended, *(replace(way, verdict="accept") for way in ways)], packet)


Stage = Callable[[Way], Sequence[Way]]


def _stages(
    rules: RuleSet,
    here: Here,
    packet: Packet,
    nft: nftables.Document | None,
    tables: Collection[str] | None,
) -> list[Stage]:
    found: list[tuple[int, Stage]] = [
        (priority, _Table(rules, table, replace(here, followed=_is_followed(packet, priority))).through)
        for table, priority in TABLES[here.hook].items()
        if (tables is None or table in tables) and (table, here.hook) in rules.chains
    ]
    found += _native_stages(rules, here, packet, nft)
    return [stage for _, stage in sorted(found, key=lambda one: one[0])]


def _bounded(ways: list[Way]) -> list[Way]:
    if len(ways) <= MOST_WAYS:
        return ways
    return [way.doubted(TOO_MANY) for way in ways[:MOST_WAYS]]


def _is_followed(packet: Packet, priority: int) -> bool:
    """Whether conntrack has looked at the packet; at what comes by loopback it did when that was sent."""
    return priority > CONNTRACK or packet.in_dev == "lo"


def _is_translated(packet: Packet, hook: str) -> bool:
    """Whether the packet comes through nat here."""
    return packet.state == "NEW" and not (packet.in_dev == "lo" and hook in ("PREROUTING", "INPUT"))


# --- one table --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """One table at one hook."""

    rules: RuleSet
    table: str
    here: Here

    def through(self, way: Way) -> Sequence[Way]:
        """Ways that go on have no verdict."""
        hook = self.here.hook
        if self.table == "nat" and not _is_translated(way.packet, hook):
            return [way]
        crossed = self.crossed(hook, way, ())
        return [*(self._after(one) for one in crossed.ended), *(self._by_policy(one) for one in crossed.left)]

    def crossed(self, chain: str, way: Way, trail: tuple[Used, ...]) -> _Crossing:
        """A chain's rules, asked one after the other."""
        crossing = _Crossing(self, trail, [way])
        for position, line in candidates(self.rules.chains[(self.table, chain)], way.packet):
            crossing.ask(Used(self.table, chain, position, line.text, line.packets))
            if not crossing.going:
                break
        crossing.end()
        return crossing

    def _after(self, way: Way) -> Way:
        """An accept is for this table alone."""
        return replace(way, verdict=None) if way.verdict == "accept" else way

    def _by_policy(self, way: Way) -> Way:
        policy = self.rules.policies.get((self.table, self.here.hook), "ACCEPT")
        said = f"{self.table} {self.here.hook} {policy}"
        if policy == "DROP":
            return replace(way, verdict="drop", policy=said)
        return replace(way, policy=said) if self.table == "filter" else way


@dataclass(slots=True)
class _Crossing:
    """Of one chain: ways that are `going` on to the next rule, that `left` the chain at its end or before,
    and that
    `ended` in the table. `trail`: the jumps that led into the chain."""

    table: _Table
    trail: tuple[Used, ...]
    going: list[Way]
    left: list[Way] = field(default_factory=list)
    ended: list[Way] = field(default_factory=list)

    def ask(self, line: Used) -> None:
        ways, self.going = self.going, []
        for way in ways:
            try:
                self._ask(line, way)
            except ValueError as error:
                self.going.append(way.doubted(f"{_place(line)} cannot be read: {error}"))
        self.going = merged(self.going)

    def end(self) -> None:
        self.left, self.ended, self.going = merged([*self.left, *self.going]), merged(self.ended), []

    def _ask(self, line: Used, way: Way) -> None:
        rule = parse(line.text)
        does_something = rule.target is not None and rule.target not in UNCHANGED
        answer = does_something and holds(rule, way.packet, self.table.here)
        if answer is False:
            self.going.append(way)
        elif answer is True:
            self._obey(rule, line, way)
        elif answer.kind == "rate":
            self._within(answer, rule, line, way)
        else:
            self._part(answer, rule, line, way)

    def _within(self, doubt: Doubt, rule: Rule, line: Used, way: Way) -> None:
        """A few packets reach no limit."""
        way = way.assuming(f"{_place(line)}: {doubt.word} is taken as not reached")
        if doubt.usual:
            self._obey(rule, line, way)
        else:
            self.going.append(way)

    def _part(self, doubt: Doubt, rule: Rule, line: Used, way: Way) -> None:
        """Both ways, as long as there are not too many; then that of a rule that does not hold."""
        if len(self.going) + len(self.left) + len(self.ended) >= MOST_WAYS:
            self.going.append(way.doubted(TOO_MANY))
            return
        fork = Fork(doubt.kind, *line[:3], doubt.word)
        self._obey(rule, line, way.taking(fork, True))
        self.going.append(way.taking(fork, False))

    def _obey(self, rule: Rule, line: Used, way: Way) -> None:
        """Raises ValueError before anything is done."""
        if rule.target == "RETURN":
            self.left.append(way)
        elif (self.table.table, rule.target) in self.table.rules.chains:
            self._enter(rule, line, way)
        else:
            self._carried_out(carry_out(rule, way.packet, self.table.here), rule, line, way)

    def _enter(self, rule: Rule, line: Used, way: Way) -> None:
        if len(self.trail) >= MAX_DEPTH:
            self.going.append(way.doubted(f"{_place(line)} leads deeper than rules may"))
            return
        inside = self.table.crossed(str(rule.target), way, (*self.trail, line))
        self.ended += inside.ended
        (self.left if rule.goes else self.going).extend(inside.left)

    def _carried_out(self, deed: Deed, rule: Rule, line: Used, way: Way) -> None:
        if deed.unread:
            way = way.doubted(f"{_place(line)}: what {deed.unread} does is not known")
        fork = Fork("chance", *line[:3], str(rule.target))
        for number, packet in enumerate(deed.packets):
            one = way.taking(fork, number) if len(deed.packets) > 1 else way
            if deed.end or packet != way.packet:
                one = replace(one, packet=packet, used=self._used(way, line))
            if deed.end is None:
                self.going.append(one)
            else:
                self.ended.append(_ended(one, deed))

    def _used(self, way: Way, line: Used) -> tuple[Used, ...]:
        """What the way has used once it used this rule."""
        return (*way.used, *(jump for jump in self.trail if jump not in way.used), line)


def _ended(way: Way, deed: Deed) -> Way:
    masquerade = way.masquerade or deed.masquerade
    return replace(way, verdict=deed.end, reject_with=deed.reject_with, masquerade=masquerade)


def _place(line: Used) -> str:
    return f"{line.table} {line.chain} rule {line.position}"


_DPORT = re.compile(
    r"-p \S+ (?:-m comment --comment (?:\"(?:[^\"\\]|\\.)*\"|\S+) )?-m (?:tcp|udp|sctp) --dport (\d+)(?: |$)"
)


def candidates(lines: Sequence[RuleLine], packet: Packet) -> Iterator[tuple[int, RuleLine]]:
    """Rules, with their positions, without those whose first words already say no: of a host with thousands of
    services most are for another address or another port. No target changes these and goes on in the table."""
    hosts = {"-d ": f"{packet.dst}/32", "-s ": f"{packet.src}/32"} if packet.dst.version == 4 else {}
    for position, line in enumerate(lines, 1):
        text = line.text
        host = hosts.get(text[:3])
        if host is not None:
            word = text[3:].partition(" ")[0]
            if word != host and word.endswith("/32"):
                continue
        elif packet.dst_port is not None and text.startswith("-p "):
            port = _DPORT.match(text)
            if port is not None and not covers(port[1], packet.dst_port):
                continue
        yield position, line


# --- nftables' own ------------------------------------------------------------------------------------


def _native_stages(
    rules: RuleSet, here: Here, packet: Packet, document: nftables.Document | None
) -> list[tuple[int, Stage]]:
    if document is None:
        return []
    try:
        ruleset = nftables.parse(document, packet.dst.version)
    except MALFORMED as error:
        sentence = f"nftables' ruleset cannot be read: {error!r}"
        return [(CONNTRACK, lambda way: [way.doubted(sentence)])]
    return [
        (base.priority, partial(_native, ruleset, base, here))
        for base in ruleset.bases
        if base.hook == here.hook.lower() and not (rules.flavour == "nft" and nftables.is_iptables(base.name))
    ]


MALFORMED = (ValueError, KeyError, TypeError, AttributeError)
"""What comes of JSON that is shaped otherwise than libnftables-json(5) says."""


def _native(ruleset: nftables.Ruleset, base: nftables.BaseChain, here: Here, way: Way) -> Sequence[Way]:
    if base.kind == "nat" and not _is_translated(way.packet, here.hook):
        return [way]
    table = f"nft {' '.join(base.name[:2])}"
    try:
        fate = nftables.fate(ruleset, base, _subject(way.packet, here, base))
    except MALFORMED as error:
        return [way.doubted(f"{table} {base.name[2]} cannot be read: {error!r}")]
    for doubt in dict.fromkeys(fate.rewrites):
        way = way.doubted(f"{table} {doubt.chain[2]} rule {doubt.position}: {doubt.word} is not followed")
    ends = {end[:3] if end.verdict != "accept" else "accept": end for end in fate.ends}
    if len(ends) == 1:
        return [_ended_natively(way, end) for end in ends.values()]
    doubt = fate.doubts[0]
    fork = Fork("unread", table, doubt.chain[2], doubt.position, doubt.word)
    return [_ended_natively(way.taking(fork, branch), end) for branch, end in ends.items()]


def _ended_natively(way: Way, end: nftables.End) -> Way:
    if end.verdict == "accept":
        return way
    family, table, chain = end.chain
    where = f"nft {family} {table}"
    if end.position == 0:
        return replace(way, verdict="drop", policy=f"{where} {chain} DROP")
    rule = Used(where, chain, end.position, nftables.words(end.rule), nftables.packets(end.rule))
    reject_with = nftables.reject_with(end.rule) if end.verdict == "reject" else ""
    return replace(way, verdict=end.verdict, used=(*way.used, rule), reject_with=reject_with)


def _subject(packet: Packet, here: Here, base: nftables.BaseChain) -> nftables.Subject:
    followed = _is_followed(packet, base.priority) or packet.state == "UNTRACKED"
    status = {"dnat": packet.dnat, "snat": packet.snat}
    known: dict[str, Any] = {
        name: getattr(packet, name)
        for name in ("src", "dst", "protocol", "src_port", "dst_port", "reply", "mark", "length", "ttl")
    }
    return nftables.Subject(
        here.hook.lower(),
        packet.in_dev or "",
        packet.out_dev or "",
        **known,
        state=packet.state.lower() if followed else "invalid",
        status=frozenset(word for word, is_so in status.items() if is_so and followed),
        tcp_flags=nftables.flags(packet.tcp_flags) if packet.tcp_flags is not None else None,
        icmp_type=packet.icmp_type,
        icmp_code=packet.icmp_code,
        src_type=(address_type(packet.src, here) or "").lower() or None,
        dst_type=(address_type(packet.dst, here) or "").lower() or None,
        version=packet.dst.version,
    )
