"""nftables' rulesets as `nft -j list ruleset` prints them, and what becomes of a packet in them.

Every base chain on a hook sees a packet, in the order of priorities, and each must let it pass: an accept
ends one chain only, a drop ends all (nft(8), "Verdict statements").

Not everything about a packet is known, and not every expression is understood here. So a chain has a set of
possible ends: a rule that certainly matches takes the packet, one that certainly does not is passed over, and
one of which it cannot be told does both. Two kinds of "not" are kept apart: a header that the packet does not
have ends a rule, whatever is asked of it (`tcp dport != 22` does not match UDP); a value that is not known
leaves the rule open.

What a rule rewrites (marks, addresses) is not followed but told. A `limit` is taken as not reached.

Source: libnftables-json(5), and what nft 1.0 prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, TypeAlias

from overlaynet.addr import IPAddress

Rule: TypeAlias = list[dict[str, Any]]
ChainName: TypeAlias = tuple[str, str, str]
"""(family, table, chain)"""
Document: TypeAlias = Mapping[str, Any]

FAMILIES = {4: frozenset({"ip", "inet"}), 6: frozenset({"ip6", "inet"})}
"""Whose chains packets of an IP version pass."""
IPTABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
"""The tables of iptables-nft; its base chains are in capitals."""
MAX_DEPTH = 16
"""Of jumps; the kernel allows as many (NFT_JUMP_STACK_SIZE)."""
REWRITES = frozenset(
    {"mangle", "dnat", "snat", "masquerade", "redirect", "notrack", "queue", "tproxy", "fwd", "synproxy", "xt"}
)
"""Statements that change the packet, hand it to a program, or, xt, may be anything of iptables'."""
TRANSLATES = frozenset({"dnat", "snat", "masquerade", "redirect"})
"""These end the chain as an accept does."""


class _Absent:
    """The packet has no such header."""


ABSENT = _Absent()


class _SomeDevice:
    """One that is not loopback, and nothing else is known of it."""


SOME_DEVICE = _SomeDevice()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of a packet at a hook; None: not known. Devices: "" for none. `state`: conntrack's, in
    lower case; `status`: what of "snat" and "dnat" was done; `src_type`, `dst_type`: "local", "unicast", …,
    as the kernel's table `local` has it. `tcp_flags`: "syn", "ack", …"""

    hook: str
    iif: str | _SomeDevice | None = None
    oif: str | _SomeDevice | None = None
    src: IPAddress | None = None
    dst: IPAddress | None = None
    protocol: str | None = None
    src_port: int | None = None
    dst_port: int | None = None
    state: str | None = None
    status: frozenset[str] = frozenset()
    reply: bool | None = None
    mark: int | None = None
    length: int | None = None
    ttl: int | None = None
    tcp_flags: frozenset[str] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    src_type: str | None = None
    dst_type: str | None = None
    version: int = 4


@dataclass(frozen=True, slots=True)
class BaseChain:
    """Where the kernel enters a table. `kind`: filter, nat or route."""

    name: ChainName
    hook: str
    policy: str
    priority: int
    kind: str


@dataclass(slots=True)
class Ruleset:
    """All chains, with their rules in order, and the sets and maps with names."""

    bases: list[BaseChain] = field(default_factory=list)
    rules: dict[ChainName, list[Rule]] = field(default_factory=dict)
    sets: dict[ChainName, list[Any]] = field(default_factory=dict)


class End(NamedTuple):
    """How a packet may end in a base chain. `verdict`: accept, drop or reject; `chain` and `position`, from 1,
    name the rule that says so; 0: the base chain's policy. `rule` is that rule's, empty for the policy."""

    verdict: str
    chain: ChainName
    position: int
    rule: tuple[Any, ...] = ()


class Doubt(NamedTuple):
    """A rule of which it cannot be told whether it matches, or that does what is not followed here (`word`)."""

    chain: ChainName
    position: int
    word: str


@dataclass(slots=True)
class Fate:
    """Every end that a packet may come to in a base chain, and why there is more than one or a change that is
    not followed."""

    ends: list[End] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    rewrites: list[Doubt] = field(default_factory=list)

    @property
    def may_pass(self) -> bool:
        return any(end.verdict == "accept" for end in self.ends)


def parse(document: Document, version: int = 4) -> Ruleset:
    """Base chains of this IP version only. Raises ValueError, KeyError or TypeError for what is no ruleset."""
    if not isinstance(document, Mapping):
        raise ValueError("no object")
    found = Ruleset()
    for item in document.get("nftables", ()):
        if chain := item.get("chain"):
            name = (chain["family"], chain["table"], chain["name"])
            if "hook" in chain and chain["family"] in FAMILIES[version]:
                found.bases.append(_base(name, chain))
        elif rule := item.get("rule"):
            found.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])
        elif named := item.get("set") or item.get("map"):
            found.sets[(named["family"], named["table"], named["name"])] = named.get("elem", [])
    return found


def _base(name: ChainName, chain: Mapping[str, Any]) -> BaseChain:
    policy, kind = chain.get("policy", "accept"), chain.get("type", "filter")
    return BaseChain(name, chain["hook"], policy, int(chain.get("prio", 0)), kind)


def is_iptables(name: ChainName) -> bool:
    """Whether a base chain is one of iptables-nft."""
    return name[0] in ("ip", "ip6") and name[1] in IPTABLES and name[2].isupper()


def fate(ruleset: Ruleset, base: BaseChain, subject: Subject) -> Fate:
    """What may become of the packet in a base chain and in those it leads to."""
    walk = _Walk(ruleset, subject)
    if walk.through(base.name, 0):
        walk.fate.ends.append(End(base.policy, base.name, 0))
    return walk.fate


# --- the walk ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Walk:
    ruleset: Ruleset
    subject: Subject
    fate: Fate = field(default_factory=Fate)

    def through(self, chain: ChainName, depth: int) -> bool:
        """Whether the packet may come to the end of a chain, or return."""
        if depth > MAX_DEPTH:
            return True
        may_return = False
        for position, rule in enumerate(self.ruleset.rules.get(chain, ()), 1):
            goes_on, returns = self._rule(chain, position, rule, depth)
            may_return |= returns
            if not goes_on:
                return may_return
        return True

    def _rule(self, chain: ChainName, position: int, rule: Rule, depth: int) -> tuple[bool, bool]:
        """Whether the packet may go on to the next rule, and whether it may leave the chain here."""
        answers = [(self._matches(statement, chain), statement) for statement in rule]
        if any(matches is False for matches, _ in answers):
            return True, False
        open_ones = [statement for matches, statement in answers if matches is None]
        for statement in rule:
            goes_on, returns = self._carried_out(statement, chain, position, rule, depth)
            if not goes_on or returns:
                self.fate.doubts.extend(Doubt(chain, position, words([one])) for one in open_ones)
                return goes_on or bool(open_ones), returns
        return True, False

    def _carried_out(
        self, statement: Mapping[str, Any], chain: ChainName, position: int, rule: Rule, depth: int
    ) -> tuple[bool, bool]:
        word = next(iter(statement), "")
        if word in REWRITES:
            self.fate.rewrites.append(Doubt(chain, position, words([statement])))
        if word in ("accept", "drop", "reject") or word in TRANSLATES:
            verdict = "accept" if word in TRANSLATES else word
            self.fate.ends.append(End(verdict, chain, position, tuple(rule)))
            return False, False
        if word in ("return", "jump", "goto"):
            return self._leads(word, statement[word], chain, depth)
        if word == "vmap":
            return self._mapped(statement[word], chain, position, rule, depth)
        return True, False

    def _leads(self, word: str, to: Any, chain: ChainName, depth: int) -> tuple[bool, bool]:
        if word == "return":
            return False, True
        comes_back = self.through((*chain[:2], to["target"]), depth + 1)
        return (comes_back, False) if word == "jump" else (False, comes_back)

    def _mapped(
        self, vmap: Mapping[str, Any], chain: ChainName, position: int, rule: Rule, depth: int
    ) -> tuple[bool, bool]:
        """The verdict of the first element that matches; of each that may, until one certainly does."""
        key, may_return = value_of(vmap["key"], self.subject), False
        if key is ABSENT:
            return True, False
        for element, verdict in _pairs(self._elements(vmap["data"], chain)):
            matches = _is_element(key, element)
            if matches is False:
                continue
            if matches is None:
                self.fate.doubts.append(Doubt(chain, position, words([{"vmap": vmap}])))
            goes_on, returns = self._carried_out(verdict, chain, position, rule, depth)
            may_return |= returns
            if matches:
                return goes_on, may_return
        return True, may_return

    def _matches(self, statement: Mapping[str, Any], chain: ChainName) -> bool | None:
        match statement:
            case {"match": {"op": op, "left": {"ct": {"key": "status"}}, "right": right}}:
                return _has_status(op, self.subject, list(self._elements(right, chain)))
            case {"match": {"op": op, "left": left, "right": right}}:
                return _compare(op, value_of(left, self.subject), list(self._elements(right, chain)))
            case {"limit": limit}:
                return not limit.get("inv", False)
            case {"ct count": _} | {"quota": _} | {"xt": _}:
                return None
        return True

    def _elements(self, right: Any, chain: ChainName) -> Iterable[Any]:
        """What one side of a comparison may be: a value, several, or those of a set, with or without a name."""
        if isinstance(right, str) and right.startswith("@"):
            return self.ruleset.sets.get((*chain[:2], right[1:]), [UNKNOWN])
        if isinstance(right, dict) and "set" in right:
            elements = right["set"]
            return elements if isinstance(elements, list) else [elements]
        return [right]


UNKNOWN = {"unknown": None}
"""The element of a set that is not in the listing."""


def _pairs(elements: Iterable[Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """(key, verdict) of a verdict map's elements."""
    for element in elements:
        if isinstance(element, list) and len(element) == 2:
            yield element[0], element[1]
        else:
            yield UNKNOWN, {}


# --- values -----------------------------------------------------------------------------------------

PORTS = frozenset({"tcp", "udp", "udplite", "sctp", "dccp"})
"""Of other protocols `th dport` is what happens to be in these bytes."""
ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "time-exceeded": 11, "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14,
}  # fmt: skip
ICMP_CODES = {
    "net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3,
    "frag-needed": 4, "net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13,
}  # fmt: skip


NOT_FOLLOWED = frozenset({"invalid", "untracked"})


def value_of(expression: Any, subject: Subject) -> Any:
    """An expression's value for this packet: None if it is not known or not understood, `ABSENT` if the
    packet has no such header."""
    match expression:
        case {"meta": {"key": key}}:
            return _meta(key, subject)
        case {"payload": {"protocol": protocol, "field": name}}:
            return _payload(protocol, name, subject)
        case {"ct": {"key": key}}:
            return _ct(key if "dir" not in expression["ct"] else "", subject)
        case {"fib": {"result": "type", "flags": flags}} if flags in (["daddr"], ["saddr"]):
            return subject.dst_type if flags == ["daddr"] else subject.src_type
        case {"&": [left, mask]}:
            return _masked(value_of(left, subject), mask)
        case {"concat": parts}:
            values = [value_of(part, subject) for part in parts]
            return ABSENT if ABSENT in values else values
    return None


def _meta(key: str, subject: Subject) -> Any:
    match key:
        case "iifname" | "iif":
            return subject.iif
        case "oifname" | "oif":
            return subject.oif
        case "l4proto":
            return subject.protocol
        case "nfproto":
            return f"ipv{subject.version}"
        case "protocol":
            return "ip" if subject.version == 4 else "ip6"
        case "mark":
            return subject.mark
        case "length":
            return subject.length
    return None


def _payload(protocol: str, name: str, subject: Subject) -> Any:
    if protocol in ("ip", "ip6"):
        return _of_ip(name, subject) if (protocol == "ip6") == (subject.version == 6) else ABSENT
    if protocol == "ether":
        return None
    if subject.protocol is None:
        return None
    if protocol == "th":
        return _of_transport(name, subject) if subject.protocol in PORTS else None
    return _of_transport(name, subject) if protocol == subject.protocol else ABSENT


def _of_ip(name: str, subject: Subject) -> Any:
    fields = {
        "saddr": subject.src,
        "daddr": subject.dst,
        "protocol": subject.protocol,
        "nexthdr": subject.protocol,
    }
    return {**fields, "length": subject.length, "ttl": subject.ttl, "hoplimit": subject.ttl}.get(name)


def _of_transport(name: str, subject: Subject) -> Any:
    ports = {"sport": subject.src_port, "dport": subject.dst_port, "flags": subject.tcp_flags}
    return {**ports, "type": subject.icmp_type, "code": subject.icmp_code}.get(name)


def _ct(key: str, subject: Subject) -> Any:
    """Without a connection there is a state, and nothing else (nft_ct.c, nft_ct_get_eval())."""
    if key != "state" and subject.state in NOT_FOLLOWED:
        return ABSENT
    match key:
        case "state":
            return None if subject.state is None else frozenset({subject.state})
        case "direction":
            return None if subject.reply is None else ("reply" if subject.reply else "original")
    return None


def _masked(value: Any, mask: Any) -> Any:
    if value is ABSENT:
        return ABSENT
    if isinstance(value, frozenset):
        return value & frozenset([mask] if isinstance(mask, str) else mask)
    return value & mask if isinstance(value, int) and isinstance(mask, int) else None


# --- comparisons ------------------------------------------------------------------------------------


def _compare(op: str, value: Any, elements: list[Any]) -> bool | None:
    if value is ABSENT:
        return False
    if op in ("<", ">", "<=", ">="):
        return _ordered(op, value, elements)
    if op not in ("==", "!=", "in"):
        return None
    if isinstance(value, frozenset) and op == "in":
        return any(_flags_of(element) & value for element in elements)
    answers = [_is_element(value, element) for element in elements]
    answer = True if True in answers else None if None in answers else False
    return (not answer) if op == "!=" and answer is not None else answer


def _has_status(op: str, subject: Subject, elements: list[Any]) -> bool | None:
    """The bits of translation are known, others are not, and the whole number never is."""
    if subject.state in NOT_FOLLOWED:
        return False
    asked: frozenset[str] = frozenset().union(*map(_flags_of, elements))
    if asked & subject.status:
        return True if op == "in" else None
    return False if op == "in" and asked <= {"snat", "dnat"} else None


def _flags_of(element: Any) -> frozenset[str]:
    """``syn``; several as a list, or in a set as ``{"|": [...]}``; none as 0."""
    match element:
        case str():
            return frozenset({element})
        case list(several) | {"|": list(several)}:
            return frozenset(several)
    return frozenset()


def _ordered(op: str, value: Any, elements: list[Any]) -> bool | None:
    bound = elements[0] if len(elements) == 1 else None
    if not isinstance(value, int) or not isinstance(bound, int):
        return None
    return {"<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound}[op]


def _is_element(value: Any, element: Any) -> bool | None:
    """Whether a value is, or is in, one element of a set."""
    if element is UNKNOWN:
        return None
    match element:
        case {"elem": {"val": inner}}:
            return _is_element(value, inner)
        case {"concat": parts}:
            return _all_elements(value, parts)
        case {"range": [low, high]}:
            return _is_between(value, low, high)
        case {"prefix": {"addr": addr, "len": length}}:
            return None if not _is_ip(value) else value in ip_network(f"{addr}/{length}")
        case "*":
            return True
    return _is_equal(value, element)


def _is_equal(value: Any, element: Any) -> bool | None:
    if value is None:
        return None
    if value is SOME_DEVICE:
        return False if element == "lo" else None
    if isinstance(value, frozenset):
        return value == _flags_of(element)
    if _is_ip(value):
        return bool(str(value) == element)
    if isinstance(value, int) and isinstance(element, str):
        number = ICMP_TYPES.get(element, ICMP_CODES.get(element))
        return None if number is None else value == number
    if isinstance(value, str) and isinstance(element, str) and element.endswith("*"):
        return value.startswith(element[:-1])
    if isinstance(value, str) and isinstance(element, int):
        return {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "sctp": 132}.get(value) == element
    return bool(value == element)


def _all_elements(values: Any, parts: list[Any]) -> bool | None:
    if not isinstance(values, list) or len(values) != len(parts):
        return None
    answers = [_is_element(value, part) for value, part in zip(values, parts, strict=True)]
    return False if False in answers else None if None in answers else True


def _is_between(value: Any, low: Any, high: Any) -> bool | None:
    if isinstance(value, int) and isinstance(low, int):
        return bool(low <= value <= high)
    if _is_ip(value) and isinstance(low, str):
        return int(ip_address(low)) <= int(value) <= int(ip_address(high))
    return None


def _is_ip(value: Any) -> bool:
    return hasattr(value, "max_prefixlen")


# --- of a rule ----------------------------------------------------------------------------------------


def packets(rule: Iterable[Mapping[str, Any]]) -> int:
    """What a rule's counter says; 0 without one."""
    return next((int(one["counter"]["packets"]) for one in rule if isinstance(one.get("counter"), dict)), 0)


def reject_with(rule: Iterable[Mapping[str, Any]]) -> str:
    """What a rule rejects with, in iptables' words."""
    said = next((one["reject"] for one in rule if "reject" in one), None) or {}
    if said.get("type") == "tcp reset":
        return "tcp-reset"
    word = str(said.get("expr", "port-unreachable"))
    return "icmp-" + {"no-route": "net-unreachable", "prot-unreachable": "proto-unreachable"}.get(word, word)


FLAGS = {"F": "fin", "S": "syn", "R": "rst", "P": "psh", "A": "ack", "U": "urg", "E": "ecn", "C": "cwr"}


def flags(letters: str) -> frozenset[str]:
    """TCP's flags by their letters: "SA"."""
    return frozenset(FLAGS[letter] for letter in letters if letter in FLAGS)


# --- words ------------------------------------------------------------------------------------------


def words(rule: Iterable[Mapping[str, Any]]) -> str:
    """A rule much as `nft list ruleset` has it, without counters."""
    return " ".join(text for statement in rule if (text := _statement(statement)))


def _statement(statement: Mapping[str, Any]) -> str:
    match statement:
        case {"match": {"op": op, "left": left, "right": right}}:
            sign = "" if op in ("==", "in") else f" {op}"
            return f"{_expression(left)}{sign} {_expression(right)}"
        case {"counter": _}:
            return ""
        case {"jump": {"target": target}}:
            return f"jump {target}"
        case {"goto": {"target": target}}:
            return f"goto {target}"
        case {"vmap": {"key": key, "data": data}}:
            return f"{_expression(key)} vmap {_expression(data)}"
        case {"reject": {"type": kind, **more}}:
            return " ".join(["reject with", kind, *map(str, more.values())])
        case {"mangle": {"key": key, "value": value}}:
            return f"{_expression(key)} set {_expression(value)}"
    return " ".join(statement)


def _expression(expression: Any) -> str:
    match expression:
        case {"meta": {"key": key}}:
            return str(key) if key.startswith(("iif", "oif")) else f"meta {key}"
        case {"payload": {"protocol": protocol, "field": name}}:
            return f"{protocol} {name}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' . '.join(flags)} {result}"
        case {"&": [left, right]}:
            return f"{_expression(left)} & {_expression(right)}"
        case {"range": [low, high]}:
            return f"{low}-{high}"
        case {"prefix": {"addr": addr, "len": length}}:
            return f"{addr}/{length}"
        case {"concat": parts}:
            return " . ".join(map(_expression, parts))
        case {"set": list(elements)}:
            return f"{{ {', '.join(map(_expression, elements))} }}"
        case [key, dict(verdict)]:
            return f"{_expression(key)} : {_statement(verdict)}"
        case list(parts):
            return ",".join(map(_expression, parts))
        case dict():
            return " ".join(expression)
    return str(expression)
