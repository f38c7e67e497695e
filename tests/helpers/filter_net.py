"""A router whose rules are tried, between a client and a server, and what becomes of single packets there.

    client 10.9.1.2 eth0 ── r1 10.9.1.1 [router] 10.9.2.1 r2 ── eth0 10.9.2.2, 10.9.2.3 server

Nobody is silent by himself: what arrives is seen on raw sockets, which are served after INPUT (raw(7)), and the
server's own answers are kept back. Nothing here waits by the clock: all is sent and carried by one processor,
in order, so what was sent before a packet of the protocol `LAST` was dealt with once that arrives.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import NamedTuple

from helpers import crafted
from helpers.answering import PATIENCE_S
from helpers.private_netns import PrivateNetns, private_netns
from helpers.service_net import forget_flows, run
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from overlaynet.firewall.iptables import Flavour
from overlaynet.firewall.readback import parse
from overlaynet.state import Address, RuleSet

CLIENT, ROUTER, SERVER = "client", "router", "server"
LAST = 253
"""An IP protocol for experiments (RFC 3692)."""
SPEAKS = 7
"""The mark with which the server's packets leave."""
NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "icmp": socket.IPPROTO_ICMP, "last": LAST}
ADDRESSES = (
    Address("lo", ip_interface("127.0.0.1/8")),
    Address("r1", ip_interface("10.9.1.1/24")),
    Address("r2", ip_interface("10.9.2.1/24")),
)
"""The router's."""
CLIENT_MAC = "02:00:00:00:09:02"
CLIENT_IP, SERVER_IP, SERVER_TOO = (ip_address(text) for text in ("10.9.1.2", "10.9.2.2", "10.9.2.3"))

GUARDS = (
    f"-p {LAST} -j ACCEPT",
    "-p icmp -m icmp --icmp-type 3 -j ACCEPT",
    "-p icmp -m icmp --icmp-type 0 -j ACCEPT",
    "-p tcp -m tcp --tcp-flags RST RST -j ACCEPT",
)
"""Rules that let through what the router and the client answer by themselves, and the last packet."""

OF_ROUTER = """\
link add r1 type veth peer name eth0 address {mac} netns {client}
link add r2 type veth peer name eth0 netns {server}
address add 10.9.1.1/24 dev r1
address add 10.9.2.1/24 dev r2
link set r1 up
link set r2 up
"""
OF_CLIENT = """\
address add 10.9.1.2/24 dev eth0
link set eth0 up
route add default via 10.9.1.1
"""
OF_SERVER = """\
address add 10.9.2.2/24 dev eth0
address add 10.9.2.3/24 dev eth0
link set eth0 up
route add default via 10.9.2.1
"""
SETTINGS = "ip_forward=1 conf.all.rp_filter=0 conf.default.rp_filter=0 conf.r1.rp_filter=0 icmp_ratemask=0"
"""The kernel tells of every refused packet, not only of some a second (icmp(7))."""


@dataclass(frozen=True)
class Probe:
    """A packet to send. Those sent together have different source ports, or identifiers; the server's, which
    are answers, different destination ports."""

    sender: str
    src: IPv4Address
    dst: IPv4Address
    protocol: str
    src_port: int
    dst_port: int
    flags: str = "S"
    ttl: int = 64
    padding: int = 0

    def bytes(self, number: int) -> IP:
        layer = {
            "tcp": lambda: TCP(sport=self.src_port, dport=self.dst_port, flags=self.flags, seq=1, ack=2),
            "udp": lambda: UDP(sport=self.src_port, dport=self.dst_port),
            "icmp": lambda: ICMP(type=8, id=self.src_port, seq=1),
        }[self.protocol]()
        payload = Raw(number.to_bytes(4, "big") + bytes(self.padding))
        return IP(src=str(self.src), dst=str(self.dst), ttl=self.ttl) / layer / payload

    @property
    def key(self) -> int:
        return self.dst_port if self.sender == SERVER else self.src_port

    @property
    def length(self) -> int:
        return 20 + {"tcp": 20, "udp": 8, "icmp": 8}[self.protocol] + 4 + self.padding


class Arrival(NamedTuple):
    """Where a probe came to, and as what."""

    place: str
    src: IPv4Address
    dst: IPv4Address
    src_port: int | None
    dst_port: int | None
    ttl: int


class Refusal(NamedTuple):
    """Who heard that a probe was refused, and how: the ICMP code of type 3, or "reset"."""

    place: str
    how: int | str


@dataclass
class FilterNet:
    flavour: Flavour
    places: Mapping[str, PrivateNetns] = field(repr=False)
    ears: Mapping[tuple[str, str], socket.socket] = field(repr=False)

    def load(self, text: str) -> None:
        """Replace all the router's rules, and forget all connections. Raises CalledProcessError."""
        with self.places[ROUTER].entered():
            run([f"iptables-{self.flavour}-restore"], text)
        forget_flows(self.places[ROUTER])

    def read(self) -> RuleSet:
        with self.places[ROUTER].entered():
            return parse(run([f"iptables-{self.flavour}-save", "-c"]), self.flavour)

    def send(self, probes: Sequence[Probe]) -> list[Arrival | Refusal | None]:
        """What became of each, in order. What came before, when nobody asked any more, is none of them."""
        list(self._heard({}))
        for number, probe in enumerate(probes):
            with self.places[probe.sender].entered():
                crafted.send_anyway(probe.bytes(number), SPEAKS if probe.sender == SERVER else 0)
        with self.places[CLIENT].entered():
            crafted.send(IP(dst=str(SERVER_IP), proto=LAST) / Raw(b"last"))
        last = self.ears[SERVER, "last"]
        assert select.select([last], [], [], PATIENCE_S)[0], "the last packet has not arrived"
        found: list[Arrival | Refusal | None] = [None] * len(probes)
        numbers = {probe.key: number for number, probe in enumerate(probes)}
        for number, what in sorted(self._heard(numbers), key=lambda one: isinstance(one[1], Arrival)):
            found[number] = what
        return found

    def _heard(self, numbers: Mapping[int, int]) -> Iterator[tuple[int, Arrival | Refusal]]:
        for (place, _), ear in self.ears.items():
            while (packet := _next(ear)) is not None:
                yield from _told(place, packet, numbers)


def _next(ear: socket.socket) -> IP | None:
    try:
        return IP(ear.recv(2048))
    except BlockingIOError:
        return None


def _told(place: str, packet: IP, numbers: Mapping[int, int]) -> Iterator[tuple[int, Arrival | Refusal]]:
    """A probe is known by its payload, an answer by the port, or identifier, that it is for."""
    if ICMP in packet and packet[ICMP].type == 3:
        quoted = packet[ICMP].payload
        for key in [quoted.payload.id] if quoted.proto == 1 else [quoted.payload.sport, quoted.payload.dport]:
            if key in numbers:
                yield numbers[key], Refusal(place, packet[ICMP].code)
    elif TCP in packet and "R" in packet[TCP].flags:
        for key in packet[TCP].dport, packet[TCP].sport:
            if key in numbers:
                yield numbers[key], Refusal(place, "reset")
    elif (TCP in packet or UDP in packet or (ICMP in packet and packet[ICMP].type == 8)) and Raw in packet:
        ports = (None, None) if ICMP in packet else (packet.sport, packet.dport)
        number = int.from_bytes(packet[Raw].load[:4], "big")
        yield number, Arrival(place, ip_address(packet.src), ip_address(packet.dst), *ports, packet.ttl)


@contextmanager
def filter_net(flavour: Flavour) -> Iterator[FilterNet]:
    with ExitStack() as stack:
        places = {name: stack.enter_context(private_netns()) for name in (CLIENT, ROUTER, SERVER)}
        stack.enter_context(_one_processor())
        paths = {"client": places[CLIENT].path, "server": places[SERVER].path, "mac": CLIENT_MAC}
        for name, text in ((ROUTER, OF_ROUTER.format(**paths)), (CLIENT, OF_CLIENT), (SERVER, OF_SERVER)):
            with places[name].entered():
                run(["ip", "-batch", "-"], text)
        settings = " ".join(f"net.ipv4.{setting}" for setting in SETTINGS.split())
        places[ROUTER].run(f"sysctl -q -w {settings}")
        places[SERVER].run(f"iptables-{flavour} -A OUTPUT -m mark ! --mark {SPEAKS} -j DROP")
        ears = {
            (place, name): stack.enter_context(_ear(places[place], name))
            for place in places
            for name in NUMBERS
        }
        yield FilterNet(flavour, places, ears)


@contextmanager
def _one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _ear(netns: PrivateNetns, name: str) -> Iterator[socket.socket]:
    with netns.entered():
        ear = socket.socket(socket.AF_INET, socket.SOCK_RAW, NUMBERS[name])
    with closing(ear):
        ear.setblocking(False)
        yield ear
