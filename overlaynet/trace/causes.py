"""Why a packet did not go as predicted: the causes that only captures can tell.

What a host's state explains is predicted (`predict`): a missing route, a wrong FDB entry, a rule that drops.
This module is asked for the rest, when the state says "delivered" and the captures say otherwise. Of a packet
that vanished, the first line that fits is the cause::

    seen                                                               cause             certainty
    an ICMP error: fragmentation needed                                mtu               certain
        net unreachable / host unreachable                             route_missing / neigh_missing   likely
        port, protocol unreachable, prohibited; or a RST on the way    rule_reject       certain
        time exceeded                                                  route_wrong       likely
    between two hosts, and the second cannot be looked at, or all its
        links are down and its agent is not known to live              node_down         certain
    a point's capture or state says that its link is down              link_down         certain
    between two hosts,
        no test packet arrives, its agent is dead, its record gone     node_down         likely
        no test packet arrives, and the host is there                  partition         certain
        it waits for ARP, which the other host does not answer         partition         likely
        all of ICMP arrives, no UDP to the VXLAN port                  underlay_loss     certain
        some arrive                                                    underlay_loss     likely
        all arrive, and the lost packet was far larger                 mtu               likely
    a rule of that host that drops or rejects has counted              rule_drop, rule_reject   likely
    nothing of this                                                    unknown           likely

Of one that went astray or was altered::

    seen                                                               cause             certainty
    in a tunnel at another host than predicted                         fdb_wrong         likely
    outside of a tunnel at another host, or tunnelled and should not   route_wrong       likely
    in a container that it is not for                                  neigh_wrong       likely
    not translated (DNAT, masquerade) where a rule should              rule_missing      likely
    nothing of this                                                    unknown           likely

The underlay itself cannot be looked into, so of what happens between two hosts' devices there is only the
count of test packets (`Reach`) and what the hosts say of themselves. ICMP errors: RFC 792, RFC 1191; which of
them Linux sends when: net/ipv4/route.c, ip_error(), and net/ipv4/netfilter/ipt_REJECT.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from overlaynet.trace.align import Difference, Step
from overlaynet.trace.blame import is_cut_off
from overlaynet.trace.join import Followed, Sighting
from overlaynet.trace.model import (
    CERTAIN,
    CONTAINER,
    HOST,
    LIKELY,
    OUTSIDE,
    Cause,
    Evidence,
    Frame,
    Headers,
    Icmp,
    Point,
    Question,
    Reach,
    Tap,
    World,
)

LARGE_BYTES = 1280
"""Test packets are far smaller; that a lost packet of at least this size met a smaller MTU is likely."""


class Gap(NamedTuple):
    """Where a packet vanished. `frame`: as it was seen last; `following`: the point after the missing one."""

    seen: Point
    missing: Point
    frame: Frame | None = None
    following: Point | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What causes are told from. `world`: the state after, if it was read."""

    question: Question
    world: World
    evidence: Evidence
    taps: Mapping[Point, Tap]


def of_loss(scene: Scene, gap: Gap, followed: Followed) -> Cause:
    """The cause of a loss that no state predicts; of kind "unknown" if nothing tells."""
    return next(filter(None, (ask(scene, gap, followed) for ask in _QUESTIONS)), None) or _unknown(scene, gap)


def machine(world: World, name: str) -> str:
    """The host that a place is on; itself, if it is on none or not known."""
    place = world.places.get(name)
    return (place.host if place and place.kind != OUTSIDE else None) or name


def next_commands(kind: str, host: str) -> tuple[str, ...]:
    """What to type after a cause of this kind on this host."""
    if kind in ("partition", "underlay_loss", "link_down", "node_down"):
        return ("overlaynet status", "overlaynet heal")
    if kind == "mtu":
        return ("overlaynet verify mtu", f"overlaynet diff {host}")
    return (f"overlaynet diff {host}", f"overlaynet repair {host}")


class _Told(NamedTuple):
    """A cause without what follows from its kind."""

    kind: str
    point: Point
    object: str
    expected: str
    found: str
    certainty: str = LIKELY


def _cause(scene: Scene, told: _Told) -> Cause:
    place = scene.world.places.get(told.point.place)
    host = machine(scene.world, told.point.place)
    outside = place is not None and place.kind == OUTSIDE
    following = ("overlaynet status",) if outside else next_commands(told.kind, host)
    return Cause(*told[:5], source=None, certainty=told.certainty, next=following)


# --- somebody said no -----------------------------------------------------------------------------

_ERROR_TYPES = frozenset({3, 11, 12})
"""ICMP errors after which the packet gets no further; a redirect (5) is none of them."""


class _Error(NamedTuple):
    """What an ICMP error says of the loss. `words` as iptables has them (--reject-with icmp-…)."""

    kind: str
    certainty: str
    words: str


_ERRORS: Mapping[tuple[int, int], _Error] = MappingProxyType(
    {
        (3, 0): _Error("route_missing", LIKELY, "net-unreachable"),
        (3, 1): _Error("neigh_missing", LIKELY, "host-unreachable"),
        (3, 2): _Error("rule_reject", CERTAIN, "proto-unreachable"),
        (3, 3): _Error("rule_reject", CERTAIN, "port-unreachable"),
        (3, 4): _Error("mtu", CERTAIN, "fragmentation-needed"),
        (3, 9): _Error("rule_reject", CERTAIN, "net-prohibited"),
        (3, 10): _Error("rule_reject", CERTAIN, "host-prohibited"),
        (3, 13): _Error("rule_reject", CERTAIN, "admin-prohibited"),
        (11, 0): _Error("route_wrong", LIKELY, "ttl-exceeded"),
    }
)
_EXPECTED = MappingProxyType(
    {
        "mtu": "an MTU that lets it pass",
        "route_missing": "a route to the destination",
        "neigh_missing": "a next hop that answers",
        "rule_reject": "no rule that rejects it",
        "route_wrong": "routes that lead to the destination",
    }
)


class Refusal(NamedTuple):
    """Somebody said no. `place`: who, where that is known; `packet`: the ICMP error or RST."""

    place: str | None
    packet: Headers


def refusal(world: World, followed: Followed) -> Refusal | None:
    """The first answer, if it is an ICMP error or a RST."""
    first = followed.reply[0] if followed.reply else None
    if first is None or not _refuses(first.frame.packet):
        return None
    return Refusal(_speaker(world, first), first.frame.packet)


def _refuses(packet: Headers) -> bool:
    return bool(packet.icmp and packet.icmp.type in _ERROR_TYPES) or bool(
        packet.tcp and "R" in packet.tcp.flags
    )


def _speaker(world: World, first: Sighting) -> str | None:
    """The place that an answer was first seen leaving, else the owner of its source address (which NAT may
    have changed)."""
    if first.direction == "out":
        return first.point.place
    src = first.frame.packet.src
    owner = world.place_of(src) if src is not None else None
    return owner.name if owner else None


def answer_words(packet: Headers) -> str:
    """What came back, in the words of `Path.answer`."""
    if packet.tcp is not None:
        return "rst" if "R" in packet.tcp.flags else "syn-ack"
    if packet.icmp is None:
        return packet.protocol
    if packet.icmp.type == 0:
        return "echo-reply"
    return "icmp " + _error_words(packet.icmp)


def _error_words(icmp: Icmp) -> str:
    known = _ERRORS.get((icmp.type, icmp.code))
    return known.words if known else f"type {icmp.type} code {icmp.code}"


def _said_no(scene: Scene, gap: Gap, followed: Followed) -> Cause | None:
    said = refusal(scene.world, followed)
    if said is None:
        return None
    if said.place is None and said.packet.icmp is not None:
        return _said_out_of_sight(scene, gap, said.packet, said.packet.icmp)
    near = said.place is None or machine(scene.world, said.place) == machine(scene.world, gap.seen.place)
    point = gap.seen if near else gap.missing
    who = f"{said.place or 'somebody'} ({said.packet.src})"
    icmp = said.packet.icmp
    if icmp is None:
        found = f"{who} answered with a RST in the place of {scene.question.target}"
        rule = "rule -j REJECT --reject-with tcp-reset"
        return _cause(scene, _Told("rule_reject", point, rule, _EXPECTED["rule_reject"], found, CERTAIN))
    words = _error_words(icmp)
    kind, certainty, _ = _ERRORS.get((icmp.type, icmp.code), _Error("unknown", LIKELY, words))
    mtu = f", next-hop MTU {icmp.mtu}" if icmp.mtu else ""
    found = f"{who} answered: {words}{mtu}"
    return _cause(scene, _Told(kind, point, f"icmp {words}", _EXPECTED.get(kind, "no error"), found, certainty))


def _said_out_of_sight(scene: Scene, gap: Gap, packet: Headers, icmp: Icmp) -> Cause:
    """By somebody who is not looked into: whatever is wrong there, no host of ours can mend it."""
    words = _error_words(icmp)
    kind, certainty, _ = _ERRORS.get((icmp.type, icmp.code), _Error("unknown", LIKELY, words))
    mtu = f", next-hop MTU {icmp.mtu}" if icmp.mtu else ""
    return Cause(
        kind,
        gap.seen,
        f"underlay address {packet.src}, beyond {gap.seen}",
        f"at {packet.src} {_EXPECTED.get(kind, 'no error')}",
        f"{packet.src}, which is out of sight, answered: {words}{mtu}",
        source=None,
        certainty=certainty,
        next=(f"ip route get {scene.question.dst}",),
    )


# --- links and hosts ------------------------------------------------------------------------------


def says_down(tap: Tap | None) -> bool:
    """Whether a capture failed because its link was down (ENETDOWN) or unplugged: where nothing can pass."""
    return tap is not None and any(words in tap.error for words in ("is down", "no carrier"))


def _link_down(scene: Scene, gap: Gap, followed: Followed) -> Cause | None:
    across = _across(scene, gap, forgotten=True)
    if across and _host_gone(scene.world, machine(scene.world, across.missing.place)):
        return None  # more than a link
    for point in (gap.missing, gap.seen, *([across.missing] if across else [])):
        found = _down_words(scene, point)
        if found:
            told = _Told("link_down", point, f"link {point.iface}", f"{point} up", found, CERTAIN)
            return _cause(scene, told)
    return None


def _down_words(scene: Scene, point: Point) -> str:
    place = scene.world.places.get(point.place)
    links = place.kernel.links if place else {}
    link = links.get(point.iface)
    if links and link is None:
        return f"{point.place} has no link {point.iface}"
    if link and link.up and not link.running:
        return f"link {point.iface} of {point.place} has no carrier: its other end is down or unplugged"
    if says_down(scene.taps.get(point)) or (link and not link.up):
        return f"link {point.iface} of {point.place} is down"
    return ""


def _host_gone(world: World, name: str) -> str:
    node, place = world.nodes.get(name), world.places.get(name)
    if node and node.error:
        return f"{name} cannot be looked at: {node.error}"
    if place and place.kind == HOST and is_cut_off(place) and node and node.agent in ("down", None):
        return f"no link of {name} carries anything" + (", and its agent is dead" if node.agent else "")
    return ""


# --- the underlay ---------------------------------------------------------------------------------


def _crossing(world: World, gap: Gap) -> tuple[str, str] | None:
    """Sender and receiver, if the gap is the underlay between two machines."""
    sender, receiver = machine(world, gap.seen.place), machine(world, gap.missing.place)
    crosses = sender != receiver and world.cables.get(gap.seen) != gap.missing
    return (sender, receiver) if crosses else None


_UNANSWERED = frozenset({"failed", "incomplete"})


def _across(scene: Scene, gap: Gap, *, forgotten: bool = False) -> Gap | None:
    """The gap, if it is the underlay; or the underlay behind it, if the packet waits in front of that for an
    answer to ARP that does not come. `forgotten`: also if nothing of that is on record any more, for the kernel
    may drop a failed entry at any time (net/core/neighbour.c, neigh_periodic_work) and an answered one not so
    soon. Maybe nobody asked, though: then the other end is to blame only for what is seen wrong there."""
    if _crossing(scene.world, gap):
        return gap
    behind = Gap(gap.missing, gap.following, gap.frame) if gap.following else None
    if behind is None or not _crossing(scene.world, behind):
        return None
    states = _entries(scene.world, behind.seen, behind.missing)
    return behind if states & _UNANSWERED or (forgotten and not states) else None


def _entries(world: World, asker: Point, asked: Point) -> set[str]:
    """The states of the neighbour entries by which the other host is sent to."""
    place, node = world.places.get(asker.place), world.nodes.get(machine(world, asked.place))
    here = [n for n in place.kernel.neighs if n.dev == asker.iface] if place else []
    return {n.state for n in here if n.ip in (node.underlay_ips if node else ())}


def _underlay(scene: Scene, gap: Gap, followed: Followed) -> Cause | None:
    across = _across(scene, gap, forgotten=True)
    ends = _crossing(scene.world, across) if across else None
    if across is None or ends is None:
        return None
    gone = _host_gone(scene.world, ends[1])
    if gone:
        told = _Told("node_down", across.missing, f"host {ends[1]}", f"{ends[1]} is there", gone, CERTAIN)
        return _cause(scene, told)
    if _across(scene, gap) is None:
        return None
    reach = measured(scene.evidence, *ends)
    told_by = _by_reach(scene, across, reach) if reach else None
    if told_by is None and across is not gap:
        told_by = _unresolved(across, *ends)
    return _cause(scene, told_by) if told_by else None


def _unresolved(across: Gap, sender: str, receiver: str) -> _Told:
    found = f"both hosts are there with their links up, and {receiver} does not answer {sender}'s ARP"
    expected = f"{sender} reaches {receiver}"
    return _Told("partition", across.missing, f"underlay between {sender} and {receiver}", expected, found)


def measured(evidence: Evidence, sender: str, receiver: str) -> Reach | None:
    """All measurements in this direction, added up; None if there is none."""
    found = [r for r in evidence.reach if (r.sender, r.receiver) == (sender, receiver) and r.sent > 0]
    sums = [sum(column) for column in zip(*(one[2:] for one in found), strict=True)]
    return Reach(sender, receiver, *sums) if sums else None


def figures(reach: Reach, vxlan_port: int) -> str:
    """A measurement in words."""
    return (
        f"{reach.udp_arrived} of {reach.sent} test packets to UDP port {vxlan_port} and "
        f"{reach.icmp_arrived} of {reach.sent} of ICMP got from {reach.sender} to {reach.receiver}"
    )


def _by_reach(scene: Scene, gap: Gap, reach: Reach) -> _Told | None:
    _, _, sent, udp, icmp = reach
    told, underlay = figures(reach, scene.world.vxlan_port), f"underlay from {reach.sender} to {reach.receiver}"
    expected = f"{reach.sender} reaches {reach.receiver}"
    if not udp and not icmp:
        return _unreached(scene, gap, reach)
    if not udp and icmp >= sent:
        found = f"the underlay drops UDP port {scene.world.vxlan_port}; ICMP passes ({told})"
        return _Told("underlay_loss", gap.missing, underlay, expected, found, CERTAIN)
    if udp < sent or (icmp < sent and _is_bare_icmp(gap.frame)):
        return _Told("underlay_loss", gap.missing, underlay, expected, told)
    length = gap.frame.outer.length if gap.frame else None
    if length is None or length < LARGE_BYTES:
        return None
    found = f"the lost packet has {length} bytes, and small ones pass ({told})"
    return _Told("mtu", gap.missing, underlay, f"an MTU of at least {length} bytes", found)


def _unreached(scene: Scene, gap: Gap, reach: Reach) -> _Told:
    told, there = figures(reach, scene.world.vxlan_port), reach.receiver
    node = scene.world.nodes.get(there)
    if node and node.agent == "down" and node.live is False:
        found = f"its agent does not answer, its node record is gone, and {told}"
        return _Told("node_down", gap.missing, f"host {there}", f"{there} is alive", found)
    found = f"both hosts are there with their links up, and {told}"
    underlay = f"underlay between {reach.sender} and {there}"
    return _Told("partition", gap.missing, underlay, f"{reach.sender} reaches {there}", found, CERTAIN)


def _is_bare_icmp(frame: Frame | None) -> bool:
    return frame is not None and frame.vni is None and frame.outer.protocol == "icmp"


# --- rules, and nothing ---------------------------------------------------------------------------


def _counted(scene: Scene, gap: Gap, followed: Followed) -> Cause | None:
    """A rule where the packet vanished that throws packets away, and counted one meanwhile."""
    here = {gap.seen.place, gap.missing.place, machine(scene.world, gap.seen.place)}
    for count in scene.evidence.counts:
        for target, kind in (("-j DROP", "rule_drop"), ("-j REJECT", "rule_reject")):
            if count.packets > 0 and count.host in here and target in count.text:
                rule = f"rule -t {count.table} -A {count.chain} {count.text}"
                found = f"its counter on {count.host} grew by {count.packets}"
                return _cause(scene, _Told(kind, gap.seen, rule, "no packet in it", found))
    return None


def _unknown(scene: Scene, gap: Gap) -> Cause:
    ends = _crossing(scene.world, gap)
    reach = measured(scene.evidence, *ends) if ends else None
    test = f"; {figures(reach, scene.world.vxlan_port)}" if reach else ""
    again = ", read once more," if scene.evidence.after else ""
    host = machine(scene.world, gap.seen.place)
    place = scene.world.places.get(host)
    is_outside = place is not None and place.kind == OUTSIDE
    looks = "overlaynet status" if is_outside else f"overlaynet diff {host}"
    return Cause(
        kind="unknown",
        point=gap.missing,
        object="",
        expected=f"what leaves {gap.seen} comes to {gap.missing}",
        found=f"it did not, though the state{again} lets it pass{test}",
        source=None,
        certainty=LIKELY,
        next=(f"overlaynet capture {gap.seen} {gap.missing}", looks),
    )


_QUESTIONS: tuple[Callable[[Scene, Gap, Followed], Cause | None], ...] = (
    _said_no,
    _link_down,
    _underlay,
    _counted,
)


# --- astray, altered ------------------------------------------------------------------------------


def of_stray(scene: Scene, stray: Sighting) -> Cause:
    """Why a packet is at a point that it has no business at."""
    place = scene.world.places.get(stray.point.place)
    kind, thing = _stray_kind(place.kind if place else HOST, stray)
    found = f"it was seen at {stray.point}, which is on no predicted path"
    told = _Told(kind, stray.point, thing, f"nothing of it at {stray.point}", found)
    return _cause(scene, told)


def _stray_kind(place: str, stray: Sighting) -> tuple[str, str]:
    frame = stray.frame
    if place == CONTAINER and stray.direction == "in":
        return "neigh_wrong", f"neigh lladdr {frame.outer.dst_mac}"
    if frame.vni is not None:
        return "fdb_wrong", f"fdb {frame.packet.dst_mac} dst {frame.outer.dst}"
    return ("route_wrong", f"route to {frame.packet.dst}") if place != CONTAINER else ("unknown", "")


def of_difference(scene: Scene, step: Step) -> Cause:
    """Why a packet came with other headers than predicted."""
    one = step.differences[0]
    kind, thing = _difference_kind(scene.question, one)
    point = step.hop.point
    found = f"at {point} its {one.field} was {one.seen}"
    return _cause(scene, _Told(kind, point, thing, f"{one.field} {one.predicted}", found))


def _difference_kind(question: Question, one: Difference) -> tuple[str, str]:
    asked = {"src": question.src, "dst": question.dst, "dst_port": question.dst_port}
    untouched = {field: str(value) for field, value in asked.items()}
    if one.field == "encapsulation":
        return "route_wrong", f"route to {question.dst}"
    if one.field == "outer dst":
        return "fdb_wrong", f"fdb dst {one.seen}"
    if untouched.get(one.field) == one.seen:
        return "rule_missing", "rule MASQUERADE" if one.field == "src" else "rule DNAT"
    return "unknown", ""
