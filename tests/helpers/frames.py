"""Frames as a wire has them, built with scapy; everything that a route or a clock would choose is given."""

from __future__ import annotations

from collections.abc import Iterator

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
ISN = 3_233_124_061


def ethernet(packet: Packet, kind: int = 0x0800) -> bytes:
    return bytes(Ether(src=MACS[0], dst=MACS[1], type=kind) / packet)


def ip(src: str, dst: str, *, ttl: int = 64, ip_id: int = 7, df: bool = True) -> Packet:
    return IP(src=src, dst=dst, ttl=ttl, id=ip_id, flags="DF" if df else 0)


def syn(src: str, sport: int, dst: str, dport: int, *, isn: int = ISN, flags: str = "S", **more) -> Packet:
    options = [("MSS", 1410), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    return ip(src, dst, **more) / TCP(sport=sport, dport=dport, seq=isn, flags=flags, options=options)


def syn_ack(src: str, sport: int, dst: str, dport: int, *, isn: int = ISN, flags: str = "SA", **more) -> Packet:
    numbers = {"seq": 99, "ack": (isn + 1) % 2**32}
    return ip(src, dst, **{"ip_id": 0, **more}) / TCP(sport=sport, dport=dport, flags=flags, **numbers)


def udp(src: str, sport: int, dst: str, dport: int, payload: bytes, **more) -> Packet:
    return ip(src, dst, **more) / UDP(sport=sport, dport=dport) / Raw(payload)


def echo(src: str, dst: str, ident: int, payload: bytes, *, kind: int = 8, seq: int = 1, **more) -> Packet:
    return ip(src, dst, **more) / ICMP(type=kind, id=ident, seq=seq) / Raw(payload)


def error(
    src: str, dst: str, about: Packet, kind: int = 3, code: int = 3, *, quote: int = 548, **more
) -> Packet:
    """An ICMP error with as much of a packet as Linux quotes, or only the first `quote` bytes."""
    mtu = {"nexthopmtu": more.pop("mtu")} if "mtu" in more else {}
    return ip(src, dst, df=False, **more) / ICMP(type=kind, code=code, **mtu) / Raw(bytes(about)[:quote])


def arp(src: str, dst: str) -> Packet:
    return ARP(op=1, hwsrc=MACS[0], psrc=src, pdst=dst)


def vxlan(src: str, dst: str, inner: Packet, *, vni: int = 1, port: int = 8472, **more) -> Packet:
    tunnel = UDP(sport=40_001, dport=port, chksum=0) / VXLAN(flags="Instance", vni=vni)
    return ip(src, dst, **{"df": False, **more}) / tunnel / Ether(src=MACS[1], dst=MACS[0]) / inner


def pieces(packet: Packet, mtu: int = 1450) -> Iterator[Packet]:
    """A packet in fragments that fit an MTU in bytes."""
    yield from fragment(packet, fragsize=mtu - 20)
