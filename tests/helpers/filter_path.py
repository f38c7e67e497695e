"""What `traverse` says of packets through the router of `filter_net`, all hooks of a way put together.

What the kernel does between hooks is done here in a few lines, as far as this router needs it: routes, the TTL,
the address of a masquerade, and conntrack's translation of answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

from helpers.filter_net import ADDRESSES, CLIENT, CLIENT_MAC, ROUTER, SERVER, Probe

from overlaynet.addr import Mac
from overlaynet.state import RuleSet
from overlaynet.trace.netfilter import Ends, Packet, Passage, traverse

OWN = tuple(address.interface.ip for address in ADDRESSES)
R1, R2 = OWN[1:]
MASQUERADED = {"r1": R1, "r2": R2, "lo": R1}
"""By device. That of lo is good for this host alone, so another's is taken (inet_select_addr())."""


@dataclass
class Router:
    """`visits`: every hook that a packet came to, and as what."""

    rules: RuleSet
    nft: Mapping[str, Any] | None = None
    visits: list[tuple[str, Packet]] = field(default_factory=list)

    def ends(self, probe: Probe) -> list[tuple[Passage, str]]:
        """Of a connection's first packet, each with where it is then."""
        start = Passage("accept", sent(probe))
        if probe.sender == CLIENT:
            return list(self._from_device(start))
        return list(self._from_process(start))

    def ends_of_answer(self, probe: Probe, end: Passage) -> list[tuple[Passage, str]]:
        """Of the server's answer to a packet that came to this end. Conntrack takes back what was done to the
        connection: its destination where the packet comes in, its source where it leaves."""
        first = end.packet.first_ends
        assert first is not None
        onward = [
            replace(one, packet=_taken_back(one.packet, dst=first.src, dst_port=first.src_port))
            if one.verdict == "accept"
            else one
            for one in self._through("PREROUTING", Passage("accept", _answering(probe, end.packet, first)))
        ]
        return [
            (replace(one, packet=_taken_back(one.packet, src=first.dst, src_port=first.dst_port)), place)
            for passage in onward
            for one, place in self._after_routing(passage, CLIENT)
        ]

    def _from_device(self, start: Passage) -> Iterator[tuple[Passage, str]]:
        for passage in self._through("PREROUTING", start):
            yield from self._after_routing(passage, SERVER)

    def _after_routing(self, passage: Passage, beyond: str) -> Iterator[tuple[Passage, str]]:
        if passage.verdict != "accept":
            yield passage, ROUTER
        elif passage.packet.dst in OWN:
            yield from ((end, ROUTER) for end in self._through("INPUT", passage))
        else:
            yield from ((end, beyond) for end in self._forwarded(passage))

    def _forwarded(self, passage: Passage) -> Iterator[Passage]:
        assert passage.packet.ttl is not None
        leaving = replace(passage.packet, ttl=passage.packet.ttl - 1, out_dev=way_out(passage.packet.dst))
        for middle in self._through("FORWARD", replace(passage, packet=leaving)):
            yield from [middle] if middle.verdict != "accept" else self._through("POSTROUTING", middle)

    def _from_process(self, start: Passage) -> Iterator[tuple[Passage, str]]:
        for passage in self._through("OUTPUT", start):
            leaving = replace(passage, packet=replace(passage.packet, out_dev=way_out(passage.packet.dst)))
            if passage.verdict != "accept":
                yield passage, ROUTER
            elif leaving.packet.out_dev != "lo":
                yield from ((end, SERVER) for end in self._through("POSTROUTING", leaving))
            else:
                yield from ((end, ROUTER) for end in self._by_loopback(leaving))

    def _by_loopback(self, leaving: Passage) -> Iterator[Passage]:
        ways = [leaving]
        for hook, in_dev, out_dev in (
            ("POSTROUTING", None, "lo"),
            ("PREROUTING", "lo", None),
            ("INPUT", "lo", None),
        ):
            onward = []
            for way in ways:
                at_hook = replace(way, packet=replace(way.packet, in_dev=in_dev, out_dev=out_dev))
                for after in self._through(hook, at_hook):
                    if after.verdict == "accept":
                        onward.append(after)
                    else:
                        yield after
            ways = onward
        yield from ways

    def _through(self, hook: str, before: Passage) -> Iterator[Passage]:
        self.visits.append((hook, before.packet))
        for after in traverse(self.rules, hook, before.packet, OWN, addresses=ADDRESSES, nft=self.nft):
            packet = after.packet
            if after.masquerade:
                packet = replace(packet, src=MASQUERADED[packet.out_dev or ""])
            yield replace(
                after,
                packet=packet,
                used=before.used + after.used,
                choices=before.choices + after.choices,
                unread=before.unread + after.unread,
            )


def sent(probe: Probe) -> Packet:
    """A probe at the first hook that it comes to."""
    by_device, has_ports = probe.sender == CLIENT, probe.protocol != "icmp"
    return Packet(
        probe.src,
        probe.dst,
        probe.protocol,
        probe.src_port if has_ports else None,
        probe.dst_port if has_ports else None,
        in_dev="r1" if by_device else None,
        out_dev=None if by_device else way_out(probe.dst),
        state="INVALID" if probe.protocol == "tcp" and probe.flags not in ("S", "A") else "NEW",
        length=probe.length,
        ttl=probe.ttl,
        tcp_flags=probe.flags,
        icmp_type=8,
        icmp_code=0,
        src_mac=Mac(CLIENT_MAC) if by_device else None,
        reverse="same",
    )


def _answering(probe: Probe, arrived: Packet, first: Ends) -> Packet:
    return replace(
        sent(probe),
        in_dev="r2",
        out_dev=None,
        state="ESTABLISHED",
        reply=True,
        dnat=arrived.dnat,
        snat=arrived.snat,
        original=first,
        connmark=arrived.connmark or 0,
        src_mac=None,
    )


def _taken_back(packet: Packet, **ends: IPv4Address | int | None) -> Packet:
    return packet if packet.state == "UNTRACKED" else replace(packet, **ends)


def way_out(dst: IPv4Address) -> str:
    """By which device the router sends."""
    if dst in OWN:
        return "lo"
    return "r2" if dst in ADDRESSES[2].interface.network else "r1"
