"""Which captured frames are the traced packet, and which are its answer: by what they carry, never by when.

On its way a packet changes its addresses (NAT), its MACs and TTL (routing), its wrapping (VXLAN) and its number
of pieces (fragmentation). What stays is what it is known by:

- TCP: the initial sequence number. The first SYN on the sender's own interface from the port that it sent from
  names it; the answer acknowledges it plus one (RFC 9293 section 3.4).
- UDP and ICMP echo: eight random octets, the cookie, repeated through the payload, so that each fragment holds
  some rotation of it.
- The answer to UDP need not hold the cookie: it is what goes back between the same two ports.
- An ICMP error quotes the packet that it is about (RFC 792), and is known by the cookie, the sequence number
  or the addresses and ports there.

Copies of one packet have one IP id (RFC 6864: routers do not change it); a retransmission has another. So the
packet first sent is told from its repetitions, which prove nothing about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from overlaynet.addr import IPAddress
from overlaynet.model import DEFAULT_VXLAN_PORT
from overlaynet.trace.decode import decode
from overlaynet.trace.model import (
    Captured,
    Direction,
    Evidence,
    Frame,
    Headers,
    Point,
    Prediction,
    Question,
    Quoted,
    Sent,
)


class Sighting(NamedTuple):
    """The packet at a point. `t_ns` as in `Captured`, of its first fragment to come; `frame`: of a fragmented
    packet the fragment with the lowest offset; `complete`: the fragments here are all of it; `numbers`: which
    frames of the evidence they are."""

    point: Point
    direction: Direction
    t_ns: int | None
    frame: Frame
    fragments: int = 1
    complete: bool = True
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Followed:
    """What was seen of one packet that was sent: on its way, and its first answer (SYN-ACK, RST, echo reply,
    UDP, ICMP error) on the way back, each in order of time. A packet that comes by a point once more with
    another TTL, in a loop, is seen there twice.

    `others`: repetitions of either (retransmissions, duplicates, further answers) and errors about the answer.
    `isn`, `ip_id`: None if the packet was never seen."""

    sent: Sent
    forward: tuple[Sighting, ...] = ()
    reply: tuple[Sighting, ...] = ()
    others: tuple[Sighting, ...] = ()
    isn: int | None = None
    ip_id: int | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """Every try with what was seen of it. `frames`: all frames of the evidence, decoded, in its order; None is
    what is no Ethernet frame."""

    tries: tuple[Followed, ...]
    frames: tuple[Frame | None, ...]


End: TypeAlias = tuple[IPAddress | None, int | None]
"""One side of a packet: address, and port or, at the sender of an ICMP echo, identifier."""
_Copy: TypeAlias = dict[int, tuple[Headers, int]]
"""One packet at one point: its fragments by offset, each with its header and the number of its frame."""
_COOKIE_BYTES = 8
_IP_BYTES = 20
_PORTS_BYTES = 8
_ECHO_REPLY = 0


class _Seen(NamedTuple):
    """A packet at a point, whoever's, with the payload of each of its fragments."""

    sighting: Sighting
    payloads: tuple[bytes, ...]

    @property
    def headers(self) -> Headers:
        return self.sighting.frame.packet


def join(
    question: Question, prediction: Prediction, evidence: Evidence, vxlan_port: int = DEFAULT_VXLAN_PORT
) -> Joined:
    """Find the sightings of every packet in `evidence.sent`. `prediction` tells how a packet that its own host
    translates looks on its first interface."""
    frames = tuple(_decoded(captured, vxlan_port) for captured in evidence.frames)
    seen = _assemble(evidence.frames, frames)
    if question.protocol == "tcp":
        isns = _isns(question, prediction, evidence, seen)
        tries = (_follow_tcp(sent, isn, seen) for sent, isn in zip(evidence.sent, isns, strict=True))
    else:
        tries = (_follow_cookie(question, sent, evidence.sent, seen) for sent in evidence.sent)
    return Joined(tuple(tries), frames)


def _decoded(captured: Captured, vxlan_port: int) -> Frame | None:
    try:
        return decode(captured.data, vxlan_port, captured.length)
    except ValueError:
        return None


# --- fragments ------------------------------------------------------------------------------------


def _assemble(captured: Sequence[Captured], frames: Sequence[Frame | None]) -> list[_Seen]:
    """Every packet at every point in order of time, its fragments together. A fragment that is there already
    begins another copy of the packet.

    Fragments share protocol and IP id. Addresses and TTL only help to choose between copies: the kernel sends
    the pieces of a packet that it had put together for NAT on in the very memory that a socket still shows,
    and writes the new header into it (net/ipv4/ip_output.c, ip_fraglist_prepare). So later fragments may be
    seen with the header that they get at a point further on."""
    copies: dict[tuple[object, ...], list[_Copy]] = {}
    for number, (record, frame) in enumerate(zip(captured, frames, strict=True)):
        if frame is None:
            continue
        piece = _fragment(frame)
        key = (number,) if piece is None else (record.point, record.direction, piece.protocol, piece.ip_id)
        _add(number, piece or frame.outer, copies.setdefault(key, []))
    seen = [_seen(copy, captured, frames) for there in copies.values() for copy in there]
    return sorted(seen, key=_order)


def _add(number: int, piece: Headers, copies: list[_Copy]) -> None:
    """Put a fragment to the copy of its packet that lacks it and is most like it."""

    def likeness(copy: _Copy) -> tuple[bool, bool]:
        other, _ = next(iter(copy.values()))
        return (piece.src, piece.dst) == (other.src, other.dst), piece.ttl == other.ttl

    lacking = [copy for copy in copies if piece.offset not in copy]
    if not lacking:
        copies.append({})
        lacking = copies[-1:]
    best = lacking[0] if len(lacking) == 1 else max(lacking, key=likeness)
    best[piece.offset] = piece, number


def _fragment(frame: Frame) -> Headers | None:
    """The headers by which a frame is a fragment: the outer ones, if the tunnel's packet was cut."""
    if frame.outer.is_fragment:
        return frame.outer
    return frame.inner if frame.inner is not None and frame.inner.is_fragment else None


def _seen(copy: _Copy, captured: Sequence[Captured], frames: Sequence[Frame | None]) -> _Seen:
    pieces, numbers = zip(*(copy[offset] for offset in sorted(copy)), strict=True)
    parts = [frame for n in numbers if (frame := frames[n]) is not None]
    times = [t for n in numbers if (t := captured[n].t_ns) is not None]
    first = captured[numbers[0]]
    sighting = Sighting(
        point=first.point,
        direction=first.direction,
        t_ns=min(times, default=None),
        frame=parts[0],
        fragments=len(parts),
        complete=_is_complete(pieces),
        numbers=tuple(sorted(numbers)),
    )
    return _Seen(sighting, tuple(part.payload for part in parts))


def _is_complete(pieces: Sequence[Headers]) -> bool:
    """Whether fragments, in order of their offsets, leave no gap. Their IP headers have no options here."""
    end = 0
    for piece in pieces:
        if piece.offset > end:
            return False
        end = piece.offset + (piece.length or 0) - _IP_BYTES
    return not pieces[-1].more_fragments


# --- TCP ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Origin:
    """How one try leaves its sender: as it was sent, or as its own host has translated it by then."""

    question: Question
    prediction: Prediction
    sent: Sent
    connections: Sequence[str]

    def isn(self, syns: Sequence[_Seen], taken: set[int]) -> int | None:
        """The first sequence number among `syns` that fits and is not `taken` by another try."""
        here = [one for one in syns if self._is_at_sender(one)]
        translated = [one for one in here if self._is_predicted(one)]
        own_port = [one for one in translated if one.headers.src_port == self.sent.src_port]
        for fitting in (self._as_sent(here), own_port, self._as_sent(syns)):
            if fresh := [isn for isn in _isns_of(fitting) if isn not in taken]:
                return fresh[0]
        return self._with_another_port(translated, taken)

    def _as_sent(self, syns: Sequence[_Seen]) -> list[_Seen]:
        asked = self.question
        ends = (asked.src, self.sent.src_port), (asked.dst, asked.dst_port)
        return [one for one in syns if _ends(one.headers) == ends]

    def _is_at_sender(self, one: _Seen) -> bool:
        return (one.sighting.point.place, one.sighting.direction) == (self.question.source, "out")

    def _is_predicted(self, one: _Seen) -> bool:
        hops = (hop for path in self.prediction.paths for hop in path.hops)
        where = one.sighting.point, one.sighting.direction
        return any((hop.point, hop.direction) == where and _agrees(hop.inner, one.headers) for hop in hops)

    def _with_another_port(self, syns: Sequence[_Seen], taken: set[int]) -> int | None:
        """Where masquerading has chosen a new port, conntrack's entry names both. Where nobody could read it
        there must be one packet only that it can be: the host may well have others to the same endpoint."""
        entries = [ports for text in self.connections if self.sent.src_port in (ports := _numbers(text))]
        if entries:
            syns = [one for one in syns if any(one.headers.src_port in ports for ports in entries)]
        fresh = [isn for isn in _isns_of(syns) if isn not in taken]
        return fresh[0] if len(fresh) == 1 else None


def _isns(
    question: Question, prediction: Prediction, evidence: Evidence, seen: Sequence[_Seen]
) -> list[int | None]:
    """The initial sequence number of every try. Tries from the same port have theirs in the same order; what
    its own kernel refused may have been sent nevertheless, and has what the others leave."""
    syns = [one for one in seen if _is_syn(one.headers)]
    connections = [connection.text for connection in evidence.connections]
    isns: dict[int, int] = {}
    for place, sent in sorted(enumerate(evidence.sent), key=lambda one: bool(one[1].error)):
        origin = _Origin(question, prediction, sent, connections)
        if (isn := origin.isn(syns, set(isns.values()))) is not None:
            isns[place] = isn
    return [isns.get(place) for place in range(len(evidence.sent))]


def _isns_of(syns: Iterable[_Seen]) -> list[int]:
    """Their sequence numbers, in order of appearance."""
    return list(dict.fromkeys(tcp.seq for one in syns if (tcp := one.headers.tcp) is not None))


def _numbers(text: str) -> set[int]:
    return {int(word) for word in re.findall(r"(?<![\d.])\d+(?![\d.])", text)}


def _is_syn(packet: Headers) -> bool:
    """Whether it opens a connection; ECN's flags may be set too (RFC 3168 section 6.1.1)."""
    return packet.tcp is not None and "S" in packet.tcp.flags and "A" not in packet.tcp.flags


def _answers(packet: Headers, isn: int) -> bool:
    """Whether it takes or refuses the connection."""
    tcp = packet.tcp
    return tcp is not None and tcp.ack == (isn + 1) & 0xFFFFFFFF and tcp.flags in ("SA", "SAE", "RA")


def _follow_tcp(sent: Sent, isn: int | None, seen: Sequence[_Seen]) -> Followed:
    if isn is None:
        return Followed(sent)
    forward, reply = [], []
    for one in seen:
        packet = one.headers
        if packet.tcp is not None and packet.tcp.seq == isn and _is_syn(packet):
            forward.append(one)
        elif _answers(packet, isn) or _quotes_seq(packet, {isn}):
            reply.append(one)
    answers = set(_isns_of(reply))
    about_answer = [one for one in seen if _quotes_seq(one.headers, answers)]
    return _followed(sent, forward, reply, about_answer, isn)


def _quotes_seq(packet: Headers, numbers: set[int]) -> bool:
    quoted = packet.icmp.quoted if packet.icmp else None
    return quoted is not None and quoted.tcp_seq in numbers


# --- UDP and ICMP ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ends:
    """Between whom a packet goes, under all the names that NAT gives them. A bridge shows packets with only
    one side translated back, so the sides are kept apart and not as pairs."""

    senders: set[End]
    receivers: set[End]

    def learn(self, packets: Sequence[_Seen]) -> None:
        """Add the names under which the packet itself is seen. Where it and its answer are seen at one point,
        it is the one that comes first; this is settled before anything is taken from points with only one
        of them, whose clock may be another."""
        pairs = {(one.sighting.point, *_ends(one.headers)) for one in packets}
        for both in (True, False):
            for one in packets:
                src, dst = _ends(one.headers)
                if not self.is_answer(one.headers) and (not both or (one.sighting.point, dst, src) in pairs):
                    self.senders.add(src)
                    self.receivers.add(dst)

    def is_answer(self, packet: Headers) -> bool:
        if packet.icmp is not None:
            return packet.icmp.type == _ECHO_REPLY
        src, dst = _ends(packet)
        return _is_among(src, self.receivers) and _is_among(dst, self.senders)

    def are_quoted(self, quoted: Quoted) -> bool:
        src, dst = (quoted.src, quoted.src_port), (quoted.dst, quoted.dst_port)
        return _is_among(src, self.senders) and _is_among(dst, self.receivers)


def _follow_cookie(question: Question, sent: Sent, tries: Sequence[Sent], seen: Sequence[_Seen]) -> Followed:
    marks = _rotations(sent.cookie)
    marked = [one for one in seen if _holds(one, marks)]
    packets = [one for one in marked if _quote(one) is None]
    ends = _Ends({(question.src, sent.src_port)}, {(question.dst, question.dst_port)})
    ends.learn(packets)
    forward = [one for one in packets if not ends.is_answer(one.headers)]
    echoed = [one for one in packets if ends.is_answer(one.headers)]
    unmarked = _unmarked_answers(sent, tries, ends, seen) if question.protocol == "udp" else []
    errors = [one for one in seen if _is_about(one, ends, forward, marks)]
    reply = sorted([*(echoed or unmarked), *errors], key=_order)
    claimed = {one.sighting.numbers for one in (*forward, *reply)}
    strays = [one for one in marked if one.sighting.numbers not in claimed]
    return _followed(sent, forward, reply, [*strays, *(unmarked if echoed else [])])


def _rotations(cookie: str) -> set[bytes]:
    octets = bytes.fromhex(cookie)
    return {octets[n:] + octets[:n] for n in range(len(octets))}


def _holds(one: _Seen, marks: set[bytes]) -> bool:
    return any(mark in payload for payload in one.payloads for mark in marks)


def _unmarked_answers(sent: Sent, tries: Sequence[Sent], ends: _Ends, seen: Sequence[_Seen]) -> list[_Seen]:
    """UDP that goes back without a cookie. Of several tries from one port it answers those that their sender
    says were answered, or else the last."""
    same_port = [one for one in tries if one.src_port == sent.src_port]
    if sent not in ([one for one in same_port if one.answer] or same_port[-1:]):
        return []
    marks = {mark for one in tries for mark in _rotations(one.cookie)}
    udp = (one for one in seen if one.headers.protocol == "udp" and not _holds(one, marks))
    return [one for one in udp if ends.is_answer(one.headers)]


def _is_about(one: _Seen, ends: _Ends, forward: Sequence[_Seen], marks: set[bytes]) -> bool:
    """Whether it is an error about the packet. A quote that is too short for the cookie must name the packet's
    IP id."""
    quoted = _quote(one)
    if quoted is None or not ends.are_quoted(quoted):
        return False
    if _holds(one, marks):
        return True
    is_short = len(one.payloads[0]) < _IP_BYTES + _PORTS_BYTES + _COOKIE_BYTES
    return is_short and quoted.ip_id in {seen.headers.ip_id for seen in forward}


def _quote(one: _Seen) -> Quoted | None:
    return one.headers.icmp.quoted if one.headers.icmp else None


def _ends(packet: Headers) -> tuple[End, End]:
    """Source and destination."""
    icmp = packet.icmp
    if icmp is None:
        return (packet.src, packet.src_port), (packet.dst, packet.dst_port)
    if icmp.type == _ECHO_REPLY:
        return (packet.src, None), (packet.dst, icmp.id)
    return (packet.src, icmp.id), (packet.dst, None)


def _is_among(end: End, ends: Iterable[End]) -> bool:
    """A fragment that is not the first has no ports: its address has to do."""
    ip, port = end
    return any(ip == other and port in (None, number) for other, number in ends)


# --- one packet -----------------------------------------------------------------------------------


def _followed(
    sent: Sent,
    forward: Sequence[_Seen],
    reply: Sequence[_Seen],
    strays: Sequence[_Seen],
    isn: int | None = None,
) -> Followed:
    there, repeated = _first(forward)
    back, again = _first(reply)
    others = sorted([*repeated, *again, *strays], key=_order)
    return Followed(
        sent=sent,
        forward=tuple(one.sighting for one in there),
        reply=tuple(one.sighting for one in back),
        others=tuple(one.sighting for one in others),
        isn=isn,
        ip_id=there[0].headers.ip_id if there else None,
    )


def _first(packets: Sequence[_Seen]) -> tuple[list[_Seen], list[_Seen]]:
    """The sightings of the packet that comes first, and the rest: of other packets, and of its duplicates."""
    first, rest = [], []
    passes: set[tuple[object, ...]] = set()
    for one in packets:
        again = _pass(one.sighting)
        if _identity(one.headers) == _identity(packets[0].headers) and again not in passes:
            passes.add(again)
            first.append(one)
        else:
            rest.append(one)
    return first, rest


def _identity(packet: Headers) -> tuple[object, ...]:
    """What no router and no NAT changes, and all fragments have."""
    icmp = (packet.icmp.type, packet.icmp.code) if packet.icmp and packet.icmp.quoted else None
    return packet.protocol, packet.ip_id, packet.tcp, icmp


def _pass(sighting: Sighting) -> tuple[object, ...]:
    """What tells a packet's second coming by a point, in a loop or flooded to other tunnel ends, from a
    duplicate."""
    frame, packet = sighting.frame, sighting.frame.packet
    tunnel = frame.outer.dst if frame.inner is not None else None
    return sighting.point, sighting.direction, packet.ttl, packet.src, packet.dst, tunnel


def _order(one: _Seen) -> tuple[int, tuple[int, ...]]:
    return one.sighting.t_ns or 0, one.sighting.numbers


def _agrees(predicted: Headers, seen: Headers) -> bool:
    """Whether a prediction, as far as it goes, is what was seen."""
    pairs = zip((*_ends(predicted)[0], *_ends(predicted)[1]), (*_ends(seen)[0], *_ends(seen)[1]), strict=True)
    return all(want is None or want == have for want, have in pairs)
