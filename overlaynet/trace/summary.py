"""A frame in one line, as a person reads it who knows tcpdump(8).

    10.244.1.2:40000 > 10.112.0.10:80 tcp S ttl 64
    10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63
    192.168.50.11 > 192.168.50.12 vxlan 1 [10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63]

The packet in a tunnel is in brackets; the tunnel's own ports say nothing and are left out. An echo's numbers
are its identifier and sequence number.
"""

from __future__ import annotations

from overlaynet.addr import IPAddress
from overlaynet.trace.model import Frame, Headers, Icmp, Quoted

BROADCAST = "ff:ff:ff:ff:ff:ff"
_ICMP = {
    (0, 0): "echo reply",
    (3, 0): "net unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (3, 9): "net prohibited",
    (3, 10): "host prohibited",
    (3, 13): "prohibited",
    (5, 0): "redirect",
    (5, 1): "redirect",
    (8, 0): "echo request",
    (11, 0): "time exceeded",
    (11, 1): "reassembly time exceeded",
}


def summary(frame: Frame) -> str:
    """The whole frame; its length is not told."""
    text, inside = parts(frame)
    return f"{text} {inside}" if inside else text


def parts(frame: Frame) -> tuple[str, str]:
    """The outer packet, and the inner one in brackets or nothing: for where one line is too short."""
    if frame.vni is None:
        return packet(frame.outer), ""
    inside = packet(frame.inner) if frame.inner else "cut off"
    return f"{frame.outer.src} > {frame.outer.dst} vxlan {frame.vni}", f"[{inside}]"


def packet(headers: Headers) -> str:
    """One packet: who to whom, what, and its TTL."""
    if headers.src is None:
        return f"{headers.src_mac} > {headers.dst_mac} {headers.protocol}"
    if headers.protocol == "arp":
        return f"{_ends(headers)} arp" + (" broadcast" if str(headers.dst_mac) == BROADCAST else "")
    words = [_ends(headers), headers.protocol, _details(headers)]
    if headers.is_fragment:
        words.append(f"fragment at {headers.offset}")
    return " ".join(filter(None, [*words, f"ttl {headers.ttl}"]))


def _ends(headers: Headers) -> str:
    return f"{_end(headers.src, headers.src_port)} > {_end(headers.dst, headers.dst_port)}"


def _end(ip: IPAddress | None, port: int | None) -> str:
    return str(ip) if port is None else f"{ip}:{port}"


def _details(headers: Headers) -> str:
    if headers.tcp is not None:
        return headers.tcp.flags
    return _icmp(headers.icmp) if headers.icmp is not None else ""


def _icmp(icmp: Icmp) -> str:
    name = _ICMP.get((icmp.type, icmp.code), f"type {icmp.type} code {icmp.code}")
    if icmp.id is not None:
        return f"{name} {icmp.id}/{icmp.seq}"
    mtu = f" mtu {icmp.mtu}" if icmp.mtu is not None else ""
    return f"{name}{mtu}" + (f" about {_quoted(icmp.quoted)}" if icmp.quoted else "")


def _quoted(quoted: Quoted) -> str:
    ends = f"{_end(quoted.src, quoted.src_port)} > {_end(quoted.dst, quoted.dst_port)}"
    return f"({ends} {quoted.protocol})"
