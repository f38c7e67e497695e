"""What a trace gathers: frames at every point, counters, conntrack entries, and how the underlay is.

`Gathering.arm` and `collect` stand before and after the sending. All else only adds to a verdict: where a
counter or an entry cannot be read, it is missing, and nothing is concluded from that.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import chain, pairwise
from typing import Any

from overlaynet.addr import IPAddress
from overlaynet.core.jsonstate import rules_from_json
from overlaynet.errors import OverlayError
from overlaynet.proof.points import Spot
from overlaynet.proof.sessions import Sessions
from overlaynet.proof.taps import SETTLE_S, Taps
from overlaynet.proof.world import Where
from overlaynet.state import RuleSet
from overlaynet.trace.model import (
    PROVED,
    Connection,
    Count,
    Evidence,
    Hop,
    Nat,
    Path,
    Place,
    Point,
    Prediction,
    Reach,
    Sent,
    Tap,
    Trace,
    World,
)

SNAP_BYTES = 256
"""Kept of each frame: all headers of a tunnelled packet, and enough of its payload for the cookie."""
TEST_PACKETS = 20
"""Of each kind, that measure the underlay."""


@dataclass(slots=True)
class Gathering:
    """The evidence of one round of a trace."""

    sessions: Sessions
    world: World
    prediction: Prediction
    _taps: Taps = field(init=False)

    def __post_init__(self) -> None:
        self._taps = self._listening(p for p in points(self.prediction) if p.place in self.world.places)

    def arm(self) -> None:
        """Listen at every point. One where nobody can is no witness, and says so when it is collected."""
        self._taps.arm(keep(self.prediction, self.world), SNAP_BYTES)

    def collect(self, sent: Sequence[Sent]) -> Evidence:
        """What was seen of these packets, and what they left behind."""
        taps, frames = self._taps.collect()
        return Evidence(
            taps=tuple(taps),
            frames=tuple(frames),
            sent=tuple(sent),
            counts=tuple(self._counts()),
            connections=tuple(self._connections(sent)),
        )

    def reach(self, sender: Point, receiver: Point) -> Reach:
        """How many test packets the underlay carries from one host to another. Raises OverlayErrors."""
        nodes, cookie = self.world.nodes, secrets.token_hex(8)
        there = nodes[receiver.place].underlay_ips[0]
        ips = [str(there), *map(str, nodes[sender.place].underlay_ips)]
        taps = self._listening([receiver])
        taps.arm(
            {"ips": ips, "protocol": "udp", "ports": [self.world.vxlan_port], "vxlan_port": None}, SNAP_BYTES
        )
        self._ask(
            self.world.places[sender.place],
            {
                "op": "burst",
                "dst": str(there),
                "port": self.world.vxlan_port,
                "count": TEST_PACKETS,
                "cookie": cookie,
            },
        )
        time.sleep(SETTLE_S)
        _, frames = taps.collect()
        arrived = [
            frame.data for frame in frames if frame.direction == "in" and bytes.fromhex(cookie) in frame.data
        ]
        return Reach(sender.place, receiver.place, TEST_PACKETS, *_by_protocol(arrived))

    def _listening(self, where: Iterable[Point]) -> Taps:
        return Taps(self.sessions, [Spot(point, _where(self.world.places[point.place])) for point in where])

    def _ask(self, place: Place, job: Mapping[str, Any]) -> dict[str, Any]:
        return self.sessions.ask(self.sessions.machine(place.host), {**job, "netns": place.netns})

    def _counts(self) -> Iterator[Count]:
        """By how much the counters of rules on the predicted paths grew."""
        for name, keys in sorted(_quoted_rules(self.prediction).items()):
            place = self.world.places.get(name)
            if place is None or place.rules is None or not place.rules.chains:
                continue
            try:
                answer = self._ask(place, {"op": "counters"})
            except OverlayError:
                continue
            if answer["rules"] is not None:
                yield from grown(name, place.rules, rules_from_json(answer["rules"]), keys)

    def _connections(self, sent: Iterable[Sent]) -> Iterator[Connection]:
        """What conntrack keeps of the packets where they are translated on their way."""
        met = {nat for nat in self._translations() if nat.src == self.prediction.question.src}
        asked = {nat._replace(src_port=one.src_port) for one in sent if one.src_port for nat in met}
        for nat in sorted(asked, key=str):
            job = {
                "op": "connection",
                "protocol": nat.protocol,
                "src": str(nat.src),
                "src_port": nat.src_port,
                "dst": str(nat.dst),
                "dst_port": nat.dst_port,
            }
            try:
                found = self._ask(self.world.places[nat.place], job)
            except OverlayError:
                continue
            if found["text"]:
                yield Connection(nat.place, found["text"])

    def _translations(self) -> Iterator[Nat]:
        every = chain.from_iterable(path.nat for path in self.prediction.paths)
        return (nat for nat in every if nat.place in self.world.places)


def merged(before: Evidence, now: Evidence) -> Evidence:
    """The evidence of two rounds. A tap is a witness if it was one in both; counters have counted all along."""
    return replace(
        before,
        taps=_both(before.taps, now.taps),
        frames=(*before.frames, *now.frames),
        sent=(*before.sent, *(one._replace(number=one.number + len(before.sent)) for one in now.sent)),
        counts=now.counts,
        connections=tuple(dict.fromkeys((*before.connections, *now.connections))),
        problems=tuple(dict.fromkeys((*before.problems, *now.problems))),
    )


def _both(before: Sequence[Tap], now: Sequence[Tap]) -> tuple[Tap, ...]:
    earlier = {tap.point: tap for tap in before}
    return tuple(_of_both(earlier[tap.point], tap) if tap.point in earlier else tap for tap in now)


def _of_both(one: Tap, other: Tap) -> Tap:
    dropped = None if None in (one.dropped, other.dropped) else (one.dropped or 0) + (other.dropped or 0)
    return Tap(
        one.point, one.error or other.error, one.armed and other.armed, one.closed and other.closed, dropped
    )


def _where(place: Place) -> Where:
    return Where(place.name, place.kind, place.host, place.netns)


def _by_protocol(arrived: Iterable[bytes]) -> tuple[int, int]:
    """How many are UDP, and how many ICMP."""
    from overlaynet.trace.decode import decode  # here: it loads scapy

    protocols = [decode(data).outer.protocol for data in arrived]
    return protocols.count("udp"), protocols.count("icmp")


# --- what to look at ------------------------------------------------------------------------------


def _walks(prediction: Prediction) -> Iterator[Path]:
    for path in prediction.paths:
        yield path
        if path.reply is not None:
            yield path.reply


def _hops(prediction: Prediction) -> Iterator[Hop]:
    return chain.from_iterable(path.hops for path in _walks(prediction))


def points(prediction: Prediction) -> list[Point]:
    """Where to listen: on every possible way, and beside."""
    on_ways = (hop.point for hop in _hops(prediction))
    return list(dict.fromkeys([*on_ways, *prediction.guards, *prediction.ears]))


def keep(prediction: Prediction, world: World) -> dict[str, Any]:
    """Which frames may be this packet's or its answer's, for the kernel to sift by (`probe/bpf.py`)."""
    asked = prediction.question
    heads = [hop.inner for hop in _hops(prediction)]
    ips: set[IPAddress | None] = {asked.src, asked.dst}
    ports: set[int | None] = {asked.src_port, asked.dst_port}
    for head in heads:
        ips |= {head.src, head.dst}
        ports |= {head.src_port, head.dst_port}
    return {
        "ips": sorted((str(ip) for ip in ips if ip is not None), key=ip_address),
        "protocol": asked.protocol,
        "ports": sorted(port for port in ports if port is not None),
        "vxlan_port": world.vxlan_port,
    }


def _quoted_rules(prediction: Prediction) -> dict[str, set[str]]:
    """The keys of rules that decide on predicted paths (``nat OVL-SERVICES 3``), by place."""
    found: dict[str, set[str]] = {}
    for hop in _hops(prediction):
        for why in hop.why:
            if why.object == "rule":
                found.setdefault(hop.place, set()).add(why.key)
    return found


def grown(place: str, before: RuleSet, after: RuleSet, quoted: set[str]) -> Iterator[Count]:
    """Rules among the quoted (``nat OVL-SERVICES 3``) whose counters grew; a chain that was rewritten meanwhile
    tells nothing."""
    for (table, name), lines in after.chains.items():
        old = before.chains.get((table, name), ())
        if tuple(line.text for line in old) != tuple(line.text for line in lines):
            continue
        for position, (was, now) in enumerate(zip(old, lines, strict=True), start=1):
            if f"{table} {name} {position}" in quoted and now.packets > was.packets:
                text = f"-A {name} {now.text}"
                yield Count(place, table, name, position, text, now.packets - was.packets)


def underlay_gap(found: Trace, world: World) -> tuple[Point, Point] | None:
    """The two hosts' points between which the packet, or its answer, vanished; None where it did not, or where
    one of them cannot be asked. One that waits for ARP is lost there too, though it was not seen to leave."""
    if found.verdict == PROVED:
        return None
    way = found.reply if all(hop.seen or hop.optional for hop in found.forward) else found.forward
    for here, there in pairwise(way):
        hosts = {here.place, there.place}
        if len(hosts) == 2 and not there.seen and hosts <= world.nodes.keys() & world.places.keys():
            known = all(world.nodes[host].underlay_ips for host in hosts)
            return (here.point, there.point) if known else None
    return None
