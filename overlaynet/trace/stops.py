"""What stops a packet on purpose, and what the sender hears of it: rules that drop or reject, and ICMP errors.

A rejected packet is answered by whoever rejects it, and the answer goes back as any other packet; for conntrack
it belongs to the connection of the packet that it is about.
"""

from __future__ import annotations

from dataclasses import replace

from overlaynet.trace import whys
from overlaynet.trace.journey import Answer, End, Journey, error
from overlaynet.trace.model import (
    CERTAIN,
    DROPPED,
    LIKELY,
    REJECTED,
    Cause,
    Headers,
    Place,
    Point,
    Why,
    World,
)
from overlaynet.trace.netfilter import Passage, Used
from overlaynet.trace.routing import number
from overlaynet.trace.ruletarget import DROP, REJECT

WITHOUT_ENDPOINTS = ("has no endpoints", "has no local endpoints")
"""What the comments of rules say that refuse packets to a service; kube-proxy's are alike."""
UNKNOWN_SERVICE = "no service at this"
_CODES = {
    "icmp-net-unreachable": (0, "icmp net-unreachable"),
    "icmp-host-unreachable": (1, "icmp host-unreachable"),
    "icmp-proto-unreachable": (2, "icmp proto-unreachable"),
    "icmp-port-unreachable": (3, "icmp port-unreachable"),
    "icmp-net-prohibited": (9, "icmp net-prohibited"),
    "icmp-host-prohibited": (10, "icmp host-prohibited"),
    "icmp-admin-prohibited": (13, "icmp admin-prohibited"),
}
"""iptables' words for `--reject-with` (ipt_REJECT.h) and their codes of ICMP type 3."""


def used_rule(world: World, place: Place, used: Used) -> Why:
    return whys.rule(world, place, used.table, used.chain, used.position, used.text)


def stopped(world: World, place: Place, journey: Journey, iface: str, passage: Passage) -> End:
    """By a rule, or by a chain's policy. `iface`: where one says that it was."""
    point = Point(place.name, iface)
    if passage.verdict == DROP and passage.policy and passage.policy.endswith(" DROP"):
        return End(journey, DROPPED, _by_policy(journey, point, passage.policy))
    why = used_rule(world, place, passage.used[-1])
    rejects = passage.verdict == REJECT
    cause = _by_rule(journey, point, passage.used[-1], why, rejects=rejects)
    journey = journey.because(why)
    if not rejects:
        return End(journey, DROPPED, cause)
    return End(journey, REJECTED, cause, answer=_refusal(place, journey, passage.reject_with))


def _certainty(journey: Journey) -> str:
    return LIKELY if journey.unread else CERTAIN


def _by_policy(journey: Journey, point: Point, policy: str) -> Cause:
    """`policy`: "filter FORWARD DROP"."""
    *table, chain, _ = policy.split()
    is_native = table[0] == "nft"
    text = f"chain {policy}" if is_native else f"-t {table[0]} -P {chain} DROP"
    shown = (
        f"nft list chain {' '.join(table[1:])} {chain}" if is_native else f"iptables -t {table[0]} -S {chain}"
    )
    expected, found = "a rule that accepts it", "no rule does, and the policy is DROP"
    return Cause("rule_drop", point, text, expected, found, None, _certainty(journey), (shown,))


def _by_rule(journey: Journey, point: Point, used: Used, why: Why, *, rejects: bool) -> Cause:
    kind, expected, following = "rule_reject" if rejects else "rule_drop", "no rule stops it", ""
    if any(words in used.text for words in WITHOUT_ENDPOINTS):
        kind, expected = "no_endpoints", "a ready endpoint that may take it"
        name = why.source.name.rpartition("/")[2] if why.source else ""
        following = f"overlaynet describe svc/{name}" if name else "overlaynet get services"
    elif UNKNOWN_SERVICE in used.text:
        expected, following = "a service at this address and port", "overlaynet get services"
    object = f"-A {used.chain} {used.text}"
    return Cause(
        kind,
        point,
        object if used.table.startswith("nft") else f"-t {used.table} {object}",
        expected,
        f"the rule {'rejects' if rejects else 'drops'} it",
        why.source,
        _certainty(journey),
        (*([following] if following else []), why.command),
    )


# --- what goes back -------------------------------------------------------------------------------


def _refusal(place: Place, journey: Journey, reject_with: str) -> Answer | None:
    """The packet that says no."""
    if reject_with == "tcp-reset":
        return reset(place, journey)
    code, name = _CODES.get(reject_with, _CODES["icmp-port-unreachable"])
    return refused(place, journey, 3, code, name)


def reset(place: Place, journey: Journey) -> Answer:
    """A TCP packet that ends the connection, as if from whom the packet was for."""
    return Answer("rst", place.name, returning(place, journey), "RA")


def returning(place: Place, journey: Journey) -> Headers:
    """Headers of a packet that goes back to where this one comes from."""
    ip, ttl = journey.ip, number(place.kernel, "net/ipv4/ip_default_ttl", 64)
    return Headers(None, None, ip.dst, ip.src, ip.protocol, ip.dst_port, ip.src_port, ttl)


def refused(
    place: Place, journey: Journey, kind: int, code: int, name: str, mtu: int | None = None
) -> Answer | None:
    """An ICMP error from here to the sender, by the address that the packet was for if that is of this place.
    None is sent about another error (RFC 1122 section 3.2.2). Of a tunnelled packet the tunnel's other end
    hears."""
    if journey.quoted is not None or journey.tunnelled:
        return None
    source = journey.dst if place.owns(journey.dst) else None
    headers = replace(
        returning(place, journey),
        src=source,
        protocol="icmp",
        src_port=None,
        dst_port=None,
        df=False,
        icmp=error(kind, code, journey.ip, mtu),
    )
    return Answer(name, place.name, headers)
