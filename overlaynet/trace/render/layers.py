"""What is on the wire at a hop, header by header: from the outermost Ethernet header to the payload.

A tunnelled packet is a whole Ethernet frame inside a UDP datagram, behind eight bytes of VXLAN header
(RFC 7348 section 5). Seen from the wire the headers come in this order, with their bytes::

    eth 14 │ ip 20 │ udp 8 │ vxlan 8 │ eth 14 │ ip 20 │ tcp │ payload
    └────────── the tunnel ─────────┘ └─ the container's own frame ──

So the tunnel costs 50 bytes of what the underlay can carry (its MTU does not count its own Ethernet header).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from overlaynet.trace.model import Headers, Hop
from overlaynet.trace.render.text import plain
from overlaynet.trace.render.words import UNKNOWN, flow_parts

ETHERNET_BYTES, UDP_BYTES, VXLAN_BYTES = 14, 8, 8
IP_BYTES = {4: 20, 6: 40}

_ETHERNET_FIELDS = frozenset({"src_mac", "dst_mac"})
_IP_FIELDS = frozenset({"src", "dst", "ttl", "length", "fragments"})
_PORT_FIELDS = frozenset({"src_port", "dst_port"})
_NAMES = {
    "eth": "Ethernet",
    "ip": "IP",
    "udp": "UDP",
    "tcp": "TCP",
    "icmp": "ICMP",
    "arp": "ARP",
    "vxlan": "VXLAN",
}


class Layer(NamedTuple):
    """One header. `kind`: "eth", "ip", "udp", "tcp", "icmp", "arp", "vxlan", "data", or what the packet says
    of itself. `ends`: who to whom, in this layer's own addresses; `facts`: its other fields. `outer`: it is
    part of a tunnel; `changed`: something in it is not as it was one hop before."""

    kind: str
    ends: str
    facts: tuple[str, ...] = ()
    outer: bool = False
    changed: bool = False

    @property
    def name(self) -> str:
        return _NAMES.get(self.kind, self.kind)

    @property
    def text(self) -> str:
        return "  ".join(part for part in (self.ends, " ".join(self.facts)) if part)


def layers(hop: Hop) -> tuple[Layer, ...]:
    """All headers at this hop, outermost first."""
    fields = {change.field for change in hop.changes}
    wrapped = "encapsulation" in fields
    found: list[Layer] = []
    if hop.outer is not None:
        tunnel = [*_frame(hop.outer), Layer("vxlan", "", (f"vni {UNKNOWN if hop.vni is None else hop.vni}",))]
        found += [layer._replace(outer=True, changed=wrapped) for layer in tunnel]
    inner_fields = fields - {"length"} if wrapped else fields
    found += [layer._replace(changed=_touched(layer, inner_fields)) for layer in _frame(hop.inner)]
    return tuple(layer._replace(ends=plain(layer.ends), facts=_plain(layer.facts)) for layer in found)


def _plain(facts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(plain, facts))


def _touched(layer: Layer, fields: set[str]) -> bool:
    match layer.kind:
        case "eth":
            return bool(fields & _ETHERNET_FIELDS)
        case "ip":
            return bool(fields & _IP_FIELDS)
        case _:
            return bool(fields & _PORT_FIELDS)


def _frame(headers: Headers) -> Iterator[Layer]:
    yield Layer("eth", f"{headers.src_mac or UNKNOWN} → {headers.dst_mac or UNKNOWN}")
    if headers.protocol == "arp":
        yield Layer("arp", _addresses(headers))
        return
    if headers.src is None and headers.dst is None:
        yield Layer(plain(headers.protocol), "")
        return
    yield Layer("ip", _addresses(headers), tuple(_ip_facts(headers)))
    if not headers.offset:
        yield Layer(plain(headers.protocol), _ports(headers), tuple(_protocol_facts(headers)))


def _addresses(headers: Headers) -> str:
    return f"{flow_parts(headers.src, None)} → {flow_parts(headers.dst, None)}"


def _ip_facts(headers: Headers) -> Iterator[str]:
    numbers = (("ttl", headers.ttl), ("id", headers.ip_id), ("length", headers.length))
    yield from (f"{name} {value}" for name, value in numbers if value is not None)
    yield from (word for word, there in (("DF", headers.df), ("MF", headers.more_fragments)) if there)
    if headers.offset:
        yield f"offset {headers.offset}"


def _ports(headers: Headers) -> str:
    if headers.protocol not in ("tcp", "udp"):
        return ""
    ends = (UNKNOWN if port is None else str(port) for port in (headers.src_port, headers.dst_port))
    return " → ".join(ends)


def _protocol_facts(headers: Headers) -> Iterator[str]:
    if headers.tcp is not None:
        yield f"[{headers.tcp.flags}]"
        yield f"seq {headers.tcp.seq}"
        yield f"ack {headers.tcp.ack}"
    icmp = headers.icmp
    if icmp is not None:
        yield f"type {icmp.type} code {icmp.code}"
        values = (("id", icmp.id), ("seq", icmp.seq), ("mtu", icmp.mtu))
        yield from (f"{name} {value}" for name, value in values if value is not None)
        if icmp.quoted is not None:
            about = icmp.quoted
            ends = (flow_parts(about.src, about.src_port), flow_parts(about.dst, about.dst_port))
            yield f"about {about.protocol} {' → '.join(ends)}"
