"""Questions asked for real in a `packet_net`, and what was seen compared with what was predicted."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from helpers.packet_net import PacketNet, Seen, Tap, heard, taps

from overlaynet.addr import IPAddress
from overlaynet.trace import routing
from overlaynet.trace.decode import decode
from overlaynet.trace.model import Frame, Headers, Hop, Path, Prediction, Question, World

IP_MTU_DISCOVER, PMTU_DONT, PMTU_DO = 10, 0, 2
ASKED, ANSWERED = b"Q", b"A"
PATIENCE_S = 0.8
AGAIN_NS = 900_000_000
"""TCP sends a SYN again after a second: what comes so late is about that one."""
SETTLED_S = 0.05
"""How long nothing more may come before what came is all."""
ECHO_ID = 77
ECHO_REQUEST = re.compile(rb"\x08\x00..\x00\x4d\x00\x01", re.DOTALL)
"""The header of a request as `_echo` makes it, whatever its checksum."""
ASKED_PORTS = (80, 8080, 30_080, 8472)
"""An ICMP error about a packet to any of these is about the question; one from there is about the answer."""


def source_for(world: World, place: str, dst: IPAddress, protocol: str, port: int | None) -> IPAddress | None:
    """The address that a socket of this place gets which has none yet."""
    kernel = world.places[place].kernel
    found = routing.output(kernel, routing.Query(dst, protocol=protocol, dst_port=port))
    return routing.source_for(kernel, found, dst)


# --- asking ---------------------------------------------------------------------------------------


def watched(net: PacketNet, question: Question, prediction: Prediction) -> list[Seen]:
    """Send it, and listen until what is seen is as predicted, or for long enough that it will not be."""
    sender = net.namespaces[question.source]
    with taps(net) as listening, sender.entered(), closing(_socket(question)) as client:
        began = time.time_ns()
        with suppress(OSError):  # what the sender's own kernel refuses is not sent
            _send(client, question)
        seen = _listened(net, listening, prediction)
    return [one for one in seen if question.protocol != "tcp" or one.t_ns < began + AGAIN_NS]


def _socket(question: Question) -> socket.socket:
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "icmp": socket.SOCK_RAW}
    number = socket.IPPROTO_ICMP if question.protocol == "icmp" else 0
    client = socket.socket(socket.AF_INET, kinds[question.protocol], number)
    client.setblocking(False)
    if question.df is not None:
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTU_DO if question.df else PMTU_DONT)
    with suppress(OSError):
        client.bind((str(question.src), 0))
    return client


def _send(client: socket.socket, question: Question) -> None:
    address = (str(question.dst), question.dst_port or 0)
    if question.protocol == "tcp":
        client.connect_ex(address)
    elif question.protocol == "udp":
        client.sendto(ASKED * question.size, address)
    else:
        client.sendto(_echo(ASKED * question.size), address)


def _echo(payload: bytes) -> bytes:
    """An ICMP echo request (RFC 792)."""
    whole = struct.pack("!BBHHH", 8, 0, 0, ECHO_ID, 1) + payload
    even = whole + bytes(len(whole) % 2)
    total = sum(struct.unpack(f"!{len(even) // 2}H", even))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return whole[:2] + struct.pack("!H", checksum) + whole[4:]


def _listened(net: PacketNet, listening: list[Tap], prediction: Prediction) -> list[Seen]:
    """The time is not over before nothing new was heard in it, however late that was looked for."""
    seen: list[Seen] = []
    deadline, quiet = time.monotonic() + PATIENCE_S, 0.0
    while quiet < SETTLED_S:
        late = time.monotonic() >= deadline
        net.answer()
        new = heard(listening)
        if late and not new:
            break
        seen += new
        right = fitting(prediction, seen) is not None
        quiet = 0.0 if new or not right else quiet + 0.01
        time.sleep(0.01)
    return sorted(seen, key=lambda one: one.t_ns)


# --- comparing ------------------------------------------------------------------------------------


class Glimpse(NamedTuple):
    """A frame that is the packet asked about ("asked"), or its answer ("answered")."""

    seen: Seen
    frame: Frame
    kind: str


def glimpses(seen: Sequence[Seen]) -> Iterator[Glimpse]:
    """First fragments, and whole packets; not ARP, multicast, and what follows a connection's opening."""
    for one in seen:
        frame = decode(one.data)
        kind = _kind(frame, one.data)
        if kind is not None and frame.packet.offset == 0 and frame.outer.offset == 0:
            yield Glimpse(one, frame, kind)


def _kind(frame: Frame, data: bytes) -> str | None:
    ip = frame.packet
    if ip.icmp is not None:
        return _kind_of_icmp(ip, data)
    if ip.protocol == "tcp" and ip.tcp is not None:
        return {"S": "asked", "SA": "answered", "RA": "answered"}.get(ip.tcp.flags)
    if ip.protocol == "udp":
        return {ASKED: "asked", ANSWERED: "answered"}.get(frame.payload[:1])
    return None


def _kind_of_icmp(ip: Headers, data: bytes) -> str | None:
    icmp = ip.icmp
    assert icmp is not None
    if icmp.type in (8, 0):
        return "asked" if icmp.type == 8 else "answered"
    if icmp.type not in (3, 11) or icmp.quoted is None:
        return None
    if icmp.quoted.protocol == "icmp":
        return "answered" if ECHO_REQUEST.search(data) else None
    return "answered" if icmp.quoted.dst_port in ASKED_PORTS else None


def fitting(prediction: Prediction, seen: Sequence[Seen]) -> Path | None:
    """The path that was taken."""
    found = list(glimpses(seen))
    return next((path for path in prediction.paths if not misfits(path, found)), None)


def misfits(path: Path, found: Sequence[Glimpse]) -> list[str]:
    """How what was seen differs from one path."""
    words: list[str] = []
    back = path.reply.hops if path.reply else ()
    tunnels = {(str(hop.outer.src), str(hop.outer.dst)) for hop in (*path.hops, *back) if hop.outer}
    for kind, hops in (("asked", path.hops), ("answered", back)):
        left = [each for each in found if each.kind == kind and not _is_about(tunnels, each)]
        words += _course(kind, hops, left)
        if kind == "answered" and _ends_out_of_sight(path):
            continue
        if not _is_loop(path):
            words += [f"{kind}: not predicted: {_told(each)}" for each in left if not _is_flood(path, each)]
    return words


def _is_about(tunnels: set[tuple[str, str]], glimpse: Glimpse) -> bool:
    """Whether it is an error about an outer packet, of which the tunnel's other end hears and nobody else."""
    icmp = glimpse.frame.packet.icmp
    quoted = icmp.quoted if icmp else None
    return quoted is not None and quoted.protocol == "udp" and (str(quoted.src), str(quoted.dst)) in tunnels


def _ends_out_of_sight(path: Path) -> bool:
    """In the underlay: who is there may answer, or a router say no."""
    return bool(path.hops) and path.hops[-1].iface == "eth0" and path.hops[-1].direction == "out"


def _is_loop(path: Path) -> bool:
    both = (path, path.reply) if path.reply else (path,)
    return any(p.cause is not None and "again and again" in p.cause.found for p in both)


def _is_flood(path: Path, glimpse: Glimpse) -> bool:
    notes = (*path.notes, *(path.reply.notes if path.reply else ()))
    flooded = any("sends it by every port" in note for note in notes)
    return (glimpse.seen.foreign and glimpse.seen.point.iface == "eth0") or flooded


def _course(kind: str, hops: Sequence[Hop], left: list[Glimpse]) -> Iterator[str]:
    """Takes out of `left` what the hops explain."""
    last = 0
    for hop in hops:
        here = [each for each in left if (each.seen.point, each.seen.direction) == (hop.point, hop.direction)]
        match = next((each for each in here if each.seen.t_ns >= last and not list(_unlike(hop, each))), None)
        if match is not None:
            left.remove(match)
            last = match.seen.t_ns
        elif not hop.optional:
            reasons = "; ".join(", ".join(_unlike(hop, each)) or "too early" for each in here)
            yield f"{kind}: missing {_hop(hop)}: {reasons or 'nothing there'}"


def _unlike(hop: Hop, glimpse: Glimpse) -> Iterator[str]:
    frame = glimpse.frame
    if (hop.outer is None) != (frame.inner is None):
        yield "tunnelled or not"
        return
    yield from _differing(hop.inner, frame.packet, "")
    if hop.outer is not None:
        yield from _differing(hop.outer, frame.outer, "outer ")
        if hop.vni != frame.vni:
            yield f"vni {frame.vni}"


_COMPARED = (
    "src",
    "dst",
    "protocol",
    "src_port",
    "dst_port",
    "ttl",
    "length",
    "more_fragments",
    "dst_mac",
    "src_mac",
)


def _differing(want: Headers, have: Headers, prefix: str) -> Iterator[str]:
    for name in _COMPARED:
        expected, value = getattr(want, name), getattr(have, name)
        if expected is not None and value is not None and expected != value:
            yield f"{prefix}{name} {value} instead of {expected}"
    if want.icmp and have.icmp:
        if want.icmp[:2] != have.icmp[:2]:
            yield f"{prefix}icmp {have.icmp[:2]} instead of {want.icmp[:2]}"
        elif want.icmp.quoted and have.icmp.quoted:
            quoted, seen = want.icmp.quoted, have.icmp.quoted
            if (quoted.src, quoted.dst) != (seen.src, seen.dst):
                yield f"{prefix}quote of {seen.src} > {seen.dst} instead of {quoted.src} > {quoted.dst}"


def _told(glimpse: Glimpse) -> str:
    ip, seen = glimpse.frame.packet, glimpse.seen
    outer = f" [{glimpse.frame.outer.src} > {glimpse.frame.outer.dst}]" if glimpse.frame.inner else ""
    words = [str(seen.point), seen.direction, *(["foreign"] if seen.foreign else [])]
    words += [f"{ip.src}:{ip.src_port} > {ip.dst}:{ip.dst_port} ttl {ip.ttl}, {ip.length} B{outer}"]
    words += [f"icmp {ip.icmp.type}/{ip.icmp.code}"] if ip.icmp else []
    return " ".join(words)


def _hop(hop: Hop) -> str:
    return f"{hop.point} {hop.direction} {hop.inner.src} > {hop.inner.dst}"


def _way(path: Path) -> Iterator[str]:
    why = f"{path.cause.kind}: {path.cause.object}: {path.cause.found}" if path.cause else ""
    yield f"  {path.outcome} {why}"
    yield from (f"    {_hop(hop)}" for hop in path.hops)


def report(question: Question, prediction: Prediction, seen: Sequence[Seen]) -> str:
    """Everything a person needs to find out which of the two is wrong."""
    found = list(glimpses(seen))
    lines = [f"unread: {word}" for word in prediction.unread]
    for number, path in enumerate(prediction.paths):
        lines += [f"path {number}", *_way(path), *(_way(path.reply) if path.reply else ())]
        lines += [f"  misfit: {word}" for word in misfits(path, found)]
    lines += ["seen:", *(f"    {each.kind:9}{_told(each)}" for each in found)]
    return "\n".join(lines)
