"""Captured frames, decoded: who to whom, and what is inside a tunnel.

scapy does the parsing, one header at a time: its own way of dissecting a frame looks into options, guesses at
payloads and checks for tunnels that nobody meets here, which costs three times as much. Only the layers that
this project meets are loaded, since `scapy.all` takes a second; and only the people's side (command, tests,
verification scripts) imports this module at all: neither the agent nor the probe ever loads scapy.

A VXLAN packet is a whole Ethernet frame behind outer Ethernet, IP, UDP and eight bytes of VXLAN header
(RFC 7348 section 5). scapy knows it by the destination port 4789; Linux, and flannel with it, use 8472, so
the port is a parameter here.

A capture often keeps only the first bytes of a frame. What is cut off is None, like what was never there; what
comes before is decoded. Checksums are not looked at: with offload, the card fills them in after the capture.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from scapy.error import Scapy_Exception
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from overlaynet.addr import IPAddress, Mac
from overlaynet.model import DEFAULT_VXLAN_PORT
from overlaynet.trace.model import Frame, Headers, Icmp, Quoted, Tcp

_ETHERNET_BYTES, _IP_BYTES, _TCP_BYTES, _UDP_BYTES, _ICMP_BYTES, _VXLAN_BYTES = 14, 20, 20, 8, 8, 8
_IPV4, _ARP = 0x0800, 0x0806
_TRANSPORTS = {1: "icmp", 6: "tcp", 17: "udp"}
_ECHO = (0, 8)
_ERRORS = (3, 4, 5, 11, 12)
"""ICMP types that quote a packet (RFC 792; RFC 1122 section 3.2.2)."""
_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4

_address = lru_cache(maxsize=4_096)(ip_address)
_mac = lru_cache(maxsize=4_096)(Mac.parse)


class _Transport(NamedTuple):
    """What follows the IP header: ports, TCP's or ICMP's fields, and the octets behind them."""

    src_port: int | None = None
    dst_port: int | None = None
    tcp: Tcp | None = None
    icmp: Icmp | None = None
    payload: bytes = b""


def decode(octets: bytes, vxlan_port: int = DEFAULT_VXLAN_PORT, length: int | None = None) -> Frame:
    """Decode one Ethernet frame of `length` bytes, of which `octets` may hold only the first. VXLAN is looked
    into, also in the first fragment of an outer packet. Raises ValueError for less than an Ethernet header."""
    if len(octets) < _ETHERNET_BYTES:
        raise ValueError(f"{len(octets)} bytes are no Ethernet frame")
    outer, payload = _ethernet(octets)
    vni, inside = _tunnel(outer, payload, vxlan_port)
    inner = None
    if len(inside) >= _ETHERNET_BYTES:
        inner, payload = _ethernet(inside)
    return Frame(outer, vni, inner, len(octets) if length is None else length, payload)


def _ethernet(octets: bytes) -> tuple[Headers, bytes]:
    """A frame's headers, and the payload of its packet."""
    ether = _header(Ether, octets, _ETHERNET_BYTES)
    assert ether is not None
    src, dst, kind = _mac(ether.src), _mac(ether.dst), int(ether.type)
    rest = octets[_ETHERNET_BYTES:]
    if kind == _IPV4 and (ip := _ip(rest)) is not None:
        return _packet(src, dst, ip, _body(ip, rest))
    if kind == _ARP:
        return Headers(src, dst, *_arp(rest), "arp"), b""
    return Headers(src, dst, None, None, f"{kind:#06x}"), rest


def _packet(src_mac: Mac, dst_mac: Mac, ip: Packet, body: bytes) -> tuple[Headers, bytes]:
    offset = int(ip.frag) * 8
    above = _transport(int(ip.proto), body) if offset == 0 else _Transport(payload=body)
    headers = Headers(
        src_mac=src_mac,
        dst_mac=dst_mac,
        src=_address(ip.src),
        dst=_address(ip.dst),
        protocol=_protocol(ip),
        src_port=above.src_port,
        dst_port=above.dst_port,
        ttl=int(ip.ttl),
        ip_id=int(ip.id),
        length=int(ip.len),
        df="DF" in ip.flags,
        more_fragments="MF" in ip.flags,
        offset=offset,
        tcp=above.tcp,
        icmp=above.icmp,
    )
    return headers, above.payload


def _tunnel(outer: Headers, payload: bytes, port: int) -> tuple[int | None, bytes]:
    """VNI and content of a VXLAN packet: one with the flag that says that its VNI is valid."""
    if outer.protocol != "udp" or outer.dst_port != port:
        return None, b""
    vxlan = _header(VXLAN, payload, _VXLAN_BYTES)
    if vxlan is None or "Instance" not in vxlan.flags:
        return None, b""
    return int(vxlan.vni), payload[_VXLAN_BYTES:]


# --- single headers -------------------------------------------------------------------------------


def _header(cls: type[Packet], octets: bytes, size: int) -> Packet | None:
    """The first `size` bytes as a header of `cls`, without options and without what follows; None if they are
    not all there, or make no sense."""
    if len(octets) < size:
        return None
    packet = cls()
    try:
        packet.do_dissect(octets[:size])
    except (Scapy_Exception, struct.error, ValueError, IndexError):
        return None
    return packet


def _ip(octets: bytes) -> Packet | None:
    ip = _header(IP, octets, _IP_BYTES)
    return ip if ip is not None and ip.version == 4 and ip.ihl >= 5 else None


def _body(ip: Packet, octets: bytes) -> bytes:
    """What an IP packet carries, without the padding of a short frame. A length of 0 is that of a packet too
    large for the field, which is segmented later (BIG TCP)."""
    return octets[4 * int(ip.ihl) : int(ip.len) or None]


def _protocol(ip: Packet) -> str:
    return _TRANSPORTS.get(int(ip.proto), str(ip.proto))


def _arp(octets: bytes) -> tuple[IPAddress | None, IPAddress | None]:
    """Who asks or answers, and about whom (RFC 826), of ARP between Ethernet and IPv4 addresses."""
    arp = _header(ARP, octets, 28)
    if arp is None or (arp.ptype, arp.hwlen, arp.plen) != (_IPV4, 6, 4):
        return None, None
    return _address(arp.psrc), _address(arp.pdst)


def _transport(protocol: int, body: bytes) -> _Transport:
    match _TRANSPORTS.get(protocol):
        case "tcp":
            return _tcp(body)
        case "udp":
            return _Transport(*_ports(body), payload=body[_UDP_BYTES:])
        case "icmp":
            return _Transport(icmp=_icmp(body), payload=body[_ICMP_BYTES:])
    return _Transport(payload=body)


def _ports(body: bytes) -> tuple[int | None, int | None]:
    """Of TCP or UDP: both begin alike."""
    if len(body) < 4:
        return None, None
    udp = _header(UDP, body[:4].ljust(_UDP_BYTES, b"\0"), _UDP_BYTES)
    assert udp is not None
    return int(udp.sport), int(udp.dport)


def _tcp(body: bytes) -> _Transport:
    tcp = _header(TCP, body, _TCP_BYTES)
    if tcp is None:
        return _Transport(*_ports(body))
    numbers = Tcp(int(tcp.seq), int(tcp.ack), str(tcp.flags))
    return _Transport(int(tcp.sport), int(tcp.dport), numbers, payload=body[4 * int(tcp.dataofs) :])


def _icmp(body: bytes) -> Icmp | None:
    icmp = _header(ICMP, body, _ICMP_BYTES)
    if icmp is None:
        return None
    kind, code = int(icmp.type), int(icmp.code)
    if kind in _ECHO:
        return Icmp(kind, code, int(icmp.id), int(icmp.seq))
    mtu = int(icmp.nexthopmtu) if (kind, code) == (_UNREACHABLE, _FRAGMENTATION_NEEDED) else None
    return Icmp(kind, code, mtu=mtu, quoted=_quoted(body[_ICMP_BYTES:]) if kind in _ERRORS else None)


def _quoted(octets: bytes) -> Quoted | None:
    """The packet that an error is about. Eight bytes of what it carries are certain to be there: of TCP they
    end with the sequence number."""
    ip = _ip(octets)
    if ip is None:
        return None
    protocol, body = _protocol(ip), octets[4 * int(ip.ihl) :]
    src_port, dst_port, seq = None, None, None
    if ip.frag == 0 and protocol in ("tcp", "udp"):
        src_port, dst_port = _ports(body)
    if ip.frag == 0 and protocol == "tcp" and len(body) >= 8:
        begin = _header(TCP, body[:8].ljust(_TCP_BYTES, b"\0"), _TCP_BYTES)
        assert begin is not None
        seq = int(begin.seq)
    if ip.frag == 0 and protocol == "icmp" and (echo := _icmp(body)) is not None:
        src_port = echo.id
    return Quoted(_address(ip.src), _address(ip.dst), protocol, src_port, dst_port, int(ip.id), seq)
