"""Captured frames, decoded: who to whom, and what is inside a tunnel.

scapy does the parsing. Only the layers that this project meets are loaded, since `scapy.all` takes a second;
and only the people's side (command, tests, verification scripts) imports this module at all: neither the
agent nor the probe ever loads scapy.

A VXLAN packet is a whole Ethernet frame behind outer Ethernet, IP, UDP and eight bytes of VXLAN header
(RFC 7348 section 5). scapy knows it by the destination port 4789; Linux, and flannel with it, use 8472, so
the port is a parameter here.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from overlaynet.addr import IPAddress, Mac
from overlaynet.model import DEFAULT_VXLAN_PORT


@dataclass(frozen=True, slots=True)
class Headers:
    """One frame's headers. `protocol`: "tcp", "udp", "icmp", "arp", or the EtherType or IP protocol number
    as text; what a frame has not is None. `length` is the frame's, in bytes."""

    src_mac: Mac
    dst_mac: Mac
    src: IPAddress | None
    dst: IPAddress | None
    protocol: str
    ttl: int | None
    ip_id: int | None
    src_port: int | None
    dst_port: int | None
    length: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame, and the one inside it if it is VXLAN."""

    outer: Headers
    vni: int | None = None
    inner: Headers | None = None


def decode(octets: bytes, vxlan_port: int = DEFAULT_VXLAN_PORT) -> Frame:
    """Decode one Ethernet frame. Raises ValueError if it is shorter than an Ethernet header."""
    if len(octets) < 14:
        raise ValueError(f"{len(octets)} bytes are no Ethernet frame")
    packet = Ether(octets)
    if UDP not in packet or packet[UDP].dport != vxlan_port:
        return Frame(_headers(packet, len(octets)))
    tunnel = packet[UDP].payload
    vxlan = tunnel if isinstance(tunnel, VXLAN) else VXLAN(bytes(tunnel))
    inside = bytes(vxlan.payload)
    inner = _headers(Ether(inside), len(inside)) if len(inside) >= 14 else None
    return Frame(_headers(packet, len(octets)), int(vxlan.vni), inner)


def _headers(packet: Packet, length: int) -> Headers:
    src, dst = _addresses(packet)
    ports = next((packet[layer] for layer in (TCP, UDP) if layer in packet), None)
    return Headers(
        src_mac=Mac.parse(packet.src),
        dst_mac=Mac.parse(packet.dst),
        src=src,
        dst=dst,
        protocol=_protocol(packet),
        ttl=int(packet[IP].ttl) if IP in packet else None,
        ip_id=int(packet[IP].id) if IP in packet else None,
        src_port=int(ports.sport) if ports is not None else None,
        dst_port=int(ports.dport) if ports is not None else None,
        length=length,
    )


def _addresses(packet: Packet) -> tuple[IPAddress | None, IPAddress | None]:
    if IP in packet:
        return ip_address(packet[IP].src), ip_address(packet[IP].dst)
    if ARP in packet:
        return ip_address(packet[ARP].psrc), ip_address(packet[ARP].pdst)
    return None, None


def _protocol(packet: Packet) -> str:
    for layer, name in ((TCP, "tcp"), (UDP, "udp"), (ICMP, "icmp"), (ARP, "arp")):
        if layer in packet:
            return name
    return str(packet[IP].proto) if IP in packet else hex(packet.type)
