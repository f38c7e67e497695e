"""nftables chains that iptables does not show, and whether one stops what our rules accept.

Every base chain on a hook sees a packet, in the order of priorities, and each must let it pass: an accept
ends one chain only, a drop ends all (nft(8), "Verdict statements"). So where firewalld, or a hand-written
ruleset, ends its forward chain in a reject, our accept in another table does not help.

`stops` walks such chains for the packets that matter: between bridge and VXLAN device, and VXLAN's own from the
underlay. Devices, the UDP port and the state of a new connection are decided. What cannot be decided (an
address, a set with a name) counts as a match where it leads to an accept, else as none: an administrator who
let the overlay pass by its addresses must not be told of it for ever.

The input is `nft -j list ruleset` (libnftables-json(5)).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from overlaynet.state import Policy, VxlanGuard

Verdict: TypeAlias = Literal["accept", "stop", "return"]
Rule: TypeAlias = list[dict[str, Any]]
ChainName: TypeAlias = tuple[str, str, str]
"""(family, table, chain)"""

FAMILIES = frozenset({"ip", "inet"})
"""Whose chains IPv4 packets pass."""
IPTABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
"""The tables of iptables-nft; its base chains are in capitals."""
FRESH_STATES = frozenset({"new", "untracked"})
OTHERS = frozenset({"ip6", "icmp", "icmpv6", "tcp", "sctp", "dccp"})
"""Protocols that a UDP packet over IPv4 has no header of."""
MAX_DEPTH = 16
"""Of jumps; the kernel allows as many (NFT_JUMP_STACK_SIZE)."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One that should pass `hook`. A device is None where it can be any."""

    hook: str
    came_by: str | None
    leaves_by: str | None
    dport: int | None
    what: str


@dataclass(frozen=True, slots=True)
class BaseChain:
    """Where the kernel enters a table."""

    name: ChainName
    hook: str
    policy: str


@dataclass(slots=True)
class Ruleset:
    """All chains, with their rules in order."""

    bases: list[BaseChain] = field(default_factory=list)
    rules: dict[ChainName, list[Rule]] = field(default_factory=dict)


class Stop(NamedTuple):
    """A chain that ends the walk of a packet which our rules accept."""

    chain: ChainName
    hook: str
    what: str


def stops(text: str, want: Mapping[str, Policy], *, with_iptables: bool) -> tuple[Stop, ...]:
    """The base chains that stop the overlay. With `with_iptables` those of iptables-nft count too, since ours
    are in the legacy variant. Raises ValueError, KeyError or TypeError for what is no ruleset."""
    ruleset = parse(text)
    found = []
    for base in ruleset.bases:
        if not with_iptables and _is_iptables(base.name):
            continue
        for packet in packets(want):
            if packet.hook == base.hook and _fate(ruleset, base, packet) == "stop":
                found.append(Stop(base.name, base.hook, packet.what))
                break
    return tuple(found)


def sentence(stop: Stop) -> str:
    """The finding, and what to type."""
    family, table, chain = stop.chain
    where = f"table {family} {table} chain {chain} (hook {stop.hook})"
    return f"{where} stops {stop.what}, and our accept does not overrule it; try: {remedy(stop)}"


def remedy(stop: Stop) -> str:
    """A command: for firewalld's own table what mends it, else one that shows the chain."""
    family, table, chain = stop.chain
    if table != "firewalld":
        return f"nft list chain {family} {table} {chain}"
    if stop.hook == "input":
        return "firewall-cmd --permanent --add-port=8472/udp && firewall-cmd --reload"
    zone = "firewall-cmd --permanent --zone=trusted --add-interface=flannel.1 --add-interface=cni0"
    return f"{zone} && firewall-cmd --reload"


def packets(want: Mapping[str, Policy]) -> Iterator[Packet]:
    """What must pass: by each pair of our devices, and VXLAN from the underlay."""
    for policy in want.values():
        if not isinstance(policy, VxlanGuard):
            continue
        yield Packet("input", None, None, policy.port, f"UDP to the VXLAN port {policy.port}")
        for one in policy.devices:
            for other in policy.devices:
                if one != other:
                    yield Packet("forward", one, other, None, f"packets from {one} to {other}")


def parse(text: str) -> Ruleset:
    """Raises ValueError."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("no object")
    found = Ruleset()
    for item in document.get("nftables", ()):
        if chain := item.get("chain"):
            name = (chain["family"], chain["table"], chain["name"])
            if "hook" in chain and chain["family"] in FAMILIES:
                found.bases.append(BaseChain(name, chain["hook"], chain.get("policy", "accept")))
        elif rule := item.get("rule"):
            name = (rule["family"], rule["table"], rule["chain"])
            found.rules.setdefault(name, []).append(rule["expr"])
    return found


def _is_iptables(name: ChainName) -> bool:
    return name[0] == "ip" and name[1] in IPTABLES and name[2].isupper()


def _fate(ruleset: Ruleset, base: BaseChain, packet: Packet) -> Verdict:
    verdict = _walk(ruleset, base.name, packet, 0)
    if verdict == "return":
        return "stop" if base.policy == "drop" else "accept"
    return verdict


def _walk(ruleset: Ruleset, chain: ChainName, packet: Packet, depth: int) -> Verdict:
    """What becomes of the packet in a chain; "return" if nothing does."""
    if depth > MAX_DEPTH:
        return "return"
    for rule in ruleset.rules.get(chain, ()):
        matches = _matches(rule, packet)
        if matches is False:
            continue
        verdict, ends = _carried_out(ruleset, chain, rule, packet, depth)
        if verdict == "accept" or (verdict == "stop" and matches):
            return verdict
        if ends and matches:
            return "return"
    return "return"


def _carried_out(
    ruleset: Ruleset, chain: ChainName, rule: Rule, packet: Packet, depth: int
) -> tuple[Verdict, bool]:
    """The rule's verdict, and whether the chain ends with it all the same."""
    for statement in rule:
        if "accept" in statement:
            return "accept", True
        if "drop" in statement or "reject" in statement:
            return "stop", True
        if "return" in statement:
            return "return", True
        for word in ("jump", "goto"):
            if word in statement:
                target = (*chain[:2], statement[word]["target"])
                return _walk(ruleset, target, packet, depth + 1), word == "goto"
    return "return", False


def _matches(rule: Rule, packet: Packet) -> bool | None:
    """Whether all conditions hold; None if that cannot be told."""
    answers = [_holds(statement["match"], packet) for statement in rule if "match" in statement]
    if False in answers:
        return False
    return None if None in answers else True


def _holds(match: Mapping[str, Any], packet: Packet) -> bool | None:
    holds = _is_among(match["left"], list(_values(match["right"])), packet)
    return (not holds) if holds is not None and match["op"] == "!=" else holds


def _is_among(left: Any, values: list[Any], packet: Packet) -> bool | None:
    match left:
        case {"meta": {"key": "iifname" | "iif"}}:
            return _is_device(packet.came_by, values)
        case {"meta": {"key": "oifname" | "oif"}}:
            return _is_device(packet.leaves_by, values)
        case {"meta": {"key": "l4proto"}}:
            return None if packet.dport is None else "udp" in values or 17 in values
        case {"meta": {"key": "nfproto"}}:
            return "ipv4" in values
        case {"ct": {"key": "state"}}:
            return bool(FRESH_STATES & set(map(str, values)))
        case {"ct": {"key": "status"}}:
            return False
        case {"payload": {"protocol": "udp" | "th", "field": "dport"}}:
            return None if packet.dport is None else any(_covers(value, packet.dport) for value in values)
        case {"payload": {"protocol": protocol}} if protocol in OTHERS:
            return False if protocol == "ip6" or packet.dport is not None else None
    return None


def _is_device(name: str | None, values: Iterable[Any]) -> bool | None:
    """A name that ends in * stands for many. A packet from anywhere is at least not a local one."""
    words = [str(value) for value in values]
    if name is None:
        return False if words == ["lo"] else None
    return any(word == name or (word.endswith("*") and name.startswith(word[:-1])) for word in words)


def _values(right: Any) -> Iterator[Any]:
    """What one side of a comparison may be: a value, several, or those of a nameless set."""
    if isinstance(right, list):
        yield from right
    elif isinstance(right, dict) and "set" in right:
        yield from right["set"]
    else:
        yield right


def _covers(value: Any, port: int) -> bool:
    if isinstance(value, dict) and "range" in value:
        return bool(value["range"][0] <= port <= value["range"][1])
    return bool(value == port)
