"""A new connection's packet through rendered rules, hook by hook, in the words of `servicewalk`.

by a device ─► PREROUTING ─┬─ for this host ─► INPUT
                           └─ for others ────► FORWARD ─► POSTROUTING
from a process ─► OUTPUT ─► POSTROUTING, and INPUT if it is for this host
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from overlaynet.addr import IPAddress
from overlaynet.firewall.chains import Rendered
from overlaynet.state import Endpoint, RuleLine, RuleSet
from overlaynet.trace import netfilter, servicewalk
from overlaynet.trace.servicewalk import DROPPED, PASSED, REJECTED, Outcome, Verdict

ENDS = {"drop": DROPPED, "reject": REJECTED}


def walk(rules: Rendered, packet: servicewalk.Packet, own: Collection[IPAddress]) -> frozenset[Outcome]:
    """Every way this may end on a host with the addresses `own`, beside those of loopback."""
    src, dst, protocol, port, device = packet
    sent = netfilter.Packet(src, dst, protocol, 40_000, port, in_dev=device)
    chains = {**rules.chains, **rules.hooks}
    read = RuleSet("nft", {key: tuple(map(RuleLine, texts)) for key, texts in chains.items()})
    passed, ended = [netfilter.Passage("accept", sent)], set()
    for number in range(3):
        after = [way for before in passed for way in _next(read, before, number, own)]
        assert not [way.unread for way in after if way.unread]
        ended |= {ENDS[way.verdict] for way in after if way.verdict != "accept"}
        passed = [way for way in after if way.verdict == "accept"]
    return frozenset(ended | {_said(way) for way in passed})


def _next(
    rules: RuleSet, before: netfilter.Passage, number: int, own: Collection[IPAddress]
) -> Collection[netfilter.Passage]:
    """Through the hook that comes after `number` others; behind the last one nothing happens."""
    packet = before.packet
    here = packet.dst.is_loopback or packet.dst in own
    if packet.in_dev is None:
        hooks = ["OUTPUT", "POSTROUTING", *(["INPUT"] if here else [])]
    else:
        hooks = ["PREROUTING", *(["INPUT"] if here else ["FORWARD", "POSTROUTING"])]
    if number >= len(hooks):
        return [before]
    at = replace(packet, in_dev="lo") if hooks[number] == "INPUT" and packet.in_dev is None else packet
    after = netfilter.traverse(rules, hooks[number], at, own)
    return [
        replace(
            way,
            packet=replace(way.packet, in_dev=packet.in_dev),
            masquerade=way.masquerade or before.masquerade,
        )
        for way in after
    ]


def _said(way: netfilter.Passage) -> Outcome:
    if not way.packet.dnat:
        return PASSED
    assert way.packet.dst_port is not None
    return Outcome(Verdict.ENDPOINT, Endpoint(way.packet.dst, way.packet.dst_port), way.masquerade)
