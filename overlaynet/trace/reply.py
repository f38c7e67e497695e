"""What comes back: who answers a packet that arrived, and whether the answer is understood where it arrives.

The kernel itself answers echo requests, opens TCP connections for whoever listens, and says no where nobody
does. What a program answers to UDP, if anything, is its own affair.

An answer is a packet like any other, and goes its own way; only connections that conntrack remembers tell
it from another. It is worth something to the sender only with the addresses that the sender expects.
"""

from __future__ import annotations

from dataclasses import replace

from overlaynet.trace.journey import CLEAN, NO_REASONS, Answer, End, Journey, Layer, Sends, Step
from overlaynet.trace.model import (
    CERTAIN,
    DELIVERED,
    LIKELY,
    LOST,
    Cause,
    Icmp,
    Place,
    Point,
    Question,
    World,
)
from overlaynet.trace.routing import number, vxlan_devices
from overlaynet.trace.stops import refused, reset, returning

ECHO_REPLY, ECHO = 0, 8
SILENT_UDP = "whether a program answers UDP is its own affair: silence is no fault of the path"


def delivered(place: Place, journey: Journey) -> End:
    """It is where it was sent to; with the answer that comes."""
    answer = _answer(place, journey)
    if answer is not None and answer.name == "udp":
        journey = journey.noting(SILENT_UDP)
    return End(journey, DELIVERED, arrived=place.name, answer=answer)


def _answer(place: Place, journey: Journey) -> Answer | None:
    ip = journey.ip
    back = returning(place, journey)
    if ip.icmp is not None:
        is_echo = ip.icmp.type == ECHO and not number(place.kernel, "net/ipv4/icmp_echo_ignore_all")
        reply = replace(back, icmp=Icmp(ECHO_REPLY, 0), length=ip.length, df=False)
        return Answer("echo-reply", place.name, reply) if is_echo else None
    if ip.protocol == "tcp" and journey.tcp_flags == "S":
        opened = Answer("syn-ack", place.name, back, "SA")
        return opened if _listens(place, journey) else reset(place, journey)
    if ip.protocol == "udp":
        if any(end.vxlan and end.up and end.vxlan.port == ip.dst_port for end in vxlan_devices(place.kernel)):
            return None  # a tunnel's end takes it, and throws away what is no VXLAN
        is_heard = _listens(place, journey)
        return Answer("udp", place.name, back) if is_heard else _no_port(place, journey)
    return None


def _no_port(place: Place, journey: Journey) -> Answer | None:
    return refused(place, journey, 3, 3, "icmp port-unreachable")


def _listens(place: Place, journey: Journey) -> bool:
    ip = journey.ip
    return any(
        (one.protocol, one.port) == (ip.protocol, ip.dst_port) and one.ip in (None, ip.dst)
        for one in place.listening
    )


def sent_back(forward: Journey, answer: Answer) -> Step:
    """The answer, about to be sent, with what conntrack knows by then."""
    back = Journey(
        (Layer(answer.headers),),
        tcp_flags=answer.tcp_flags,
        context=CLEAN,
        conns=forward.conns,
        reasons=NO_REASONS,
    )
    return Step(back, Sends(answer.place))


def judged(world: World, question: Question, end: End) -> End:
    """Whether an answer that arrived is one to this question."""
    if end.outcome != DELIVERED or end.arrived is None:
        return end
    ip = end.journey.ip
    place = world.places[end.arrived]
    if place.name != question.source:
        found = f"{place.name} has {ip.dst}, and {question.source} asked"
        return _unwanted(end, place, found, f"an answer to {question.src}")
    about = end.journey.quoted
    if about is not None:
        known = (about.src, about.dst) == (question.src, question.dst) or about.dst == question.dst
        quoted = f"it quotes a packet to {about.dst}"
        return end if known else _unwanted(end, place, quoted, f"one about a packet to {question.dst}")
    if ip.src != question.dst or ip.src_port not in (None, question.dst_port):
        port = f":{ip.src_port}" if ip.src_port else ""
        found = f"it comes from {ip.src}{port}, whom {question.source} did not ask"
        return _unwanted(end, place, found, f"an answer from {question.dst}")
    return end


def _unwanted(end: End, place: Place, found: str, expected: str) -> End:
    hops = end.journey.hops
    iface = hops[-1].iface if hops else "lo"
    certainty = LIKELY if end.journey.unread else CERTAIN
    commands = (f"overlaynet diff {place.host}",) if place.host else ()
    text = "the answer bypasses the host that translated the request"
    cause = Cause("unknown", Point(place.name, iface), text, expected, found, None, certainty, commands)
    return End(end.journey, LOST, cause, end.arrived)
