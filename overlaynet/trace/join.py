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

from dataclasses import dataclass
from typing import NamedTuple

from overlaynet.model import DEFAULT_VXLAN_PORT
from overlaynet.trace.model import Direction, Evidence, Frame, Point, Prediction, Question, Sent


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


def join(
    question: Question, prediction: Prediction, evidence: Evidence, vxlan_port: int = DEFAULT_VXLAN_PORT
) -> Joined:
    """Find the sightings of every packet in `evidence.sent`. `prediction` tells how a packet that its own host
    translates looks on its first interface."""
    raise NotImplementedError
