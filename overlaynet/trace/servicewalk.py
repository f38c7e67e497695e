"""What becomes of a packet that is addressed to a service: by the policies alone, without any rules.

The packet is a connection's first; what follows goes where that one went. There may be several outcomes,
since an endpoint is chosen by chance (or by session affinity, which is chance that is remembered).

Addresses are tried in this order, and the first that takes the packet decides: cluster IP, externalIP,
load balancer's address, nodePort. A packet that none of them takes still has the address it was sent to; then
it is dropped, rejected or let pass by where it is on its way: to this host (INPUT), through it (FORWARD) or out
of a process here (OUTPUT, and INPUT too if it stays). What the kernel itself refuses, such as a packet to
127.0.0.0/8 that comes by a device, is not said here.

Source: kube-proxy's iptables mode (kubernetes/kubernetes, pkg/proxy/iptables/proxier.go).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.state import Endpoint, Policy, ServicePortPolicy, ServicesPolicy


class Verdict(StrEnum):
    ENDPOINT = "endpoint"
    REJECT = "reject"
    DROP = "drop"
    GOES_ON = "pass"
    """Nothing to do with services: it goes on to where it is addressed."""


class Packet(NamedTuple):
    """A connection's first packet. `device`: by which it came in; None: a process of this host sends it.
    `protocol` in lower case."""

    src: IPAddress
    dst: IPAddress
    protocol: str
    port: int
    device: str | None = None


class Outcome(NamedTuple):
    """One thing that may become of a packet. `masqueraded`: its source becomes an address of this host."""

    verdict: Verdict
    endpoint: Endpoint | None = None
    masqueraded: bool = False

    def __str__(self) -> str:
        return f"{self.endpoint or self.verdict}{' masqueraded' if self.masqueraded else ''}"


REJECTED, DROPPED, PASSED = (Outcome(v) for v in (Verdict.REJECT, Verdict.DROP, Verdict.GOES_ON))


def walk(policies: Iterable[Policy], packet: Packet, own: Collection[IPAddress]) -> frozenset[Outcome]:
    """Everything that may become of a packet on a host with these policies and the addresses `own`, beside
    those of loopback."""
    all_of_them = list(policies)
    common = next((p for p in all_of_them if isinstance(p, ServicesPolicy)), None)
    if common is None:
        return frozenset({PASSED})
    ports = [p for p in all_of_them if isinstance(p, ServicePortPolicy)]
    return _Walk(common, ports, packet, own).outcomes()


@dataclass(frozen=True, slots=True)
class _Walk:
    common: ServicesPolicy
    ports: Collection[ServicePortPolicy]
    packet: Packet
    own: Collection[IPAddress]

    def outcomes(self) -> frozenset[Outcome]:
        taken = next(filter(None, self._accepted()), frozenset())
        return taken or frozenset({next(self._refused(), PASSED)})

    # --- accepted, and translated -----------------------------------------------------------------

    def _accepted(self) -> Iterator[frozenset[Outcome]]:
        """What each frontend that the packet comes by makes of it; nothing: it takes it not."""
        for port in self._addressed():
            dst = self.packet.dst
            if dst in port.cluster_ips and port.usable:
                internal = port.local if port.internal_local else port.cluster
                yield self._to(internal, masqueraded=self._is_outsider())
            if dst in port.external_ips:
                yield self._from_outside(port)
            if dst in port.ingress_ips and not self._is_barred(port):
                yield self._from_outside(port)
        for port in self._at_node_ports():
            yield self._from_outside(port)

    def _from_outside(self, port: ServicePortPolicy) -> frozenset[Outcome]:
        """Under the policy Local containers and this host may go to any endpoint: replies come back here."""
        if not port.usable:
            return frozenset()
        if not port.external_local:
            return self._to(port.cluster, masqueraded=True)
        if self._is_from_container():
            return self._to(port.cluster, masqueraded=False)
        if self._is_own(self.packet.src):
            return self._to(port.cluster, masqueraded=True)
        return self._to(port.local, masqueraded=False)

    def _to(self, endpoints: Iterable[Endpoint], *, masqueraded: bool) -> frozenset[Outcome]:
        """An endpoint that is sent back to itself is masqueraded, or it would answer itself."""
        same_family = (e for e in endpoints if e.ip.version == self.packet.dst.version)
        return frozenset(
            Outcome(Verdict.ENDPOINT, e, masqueraded or e.ip == self.packet.src) for e in same_family
        )

    # --- refused ----------------------------------------------------------------------------------

    def _refused(self) -> Iterator[Outcome]:
        """What says no to a packet that no frontend took, in order."""
        here, leaves = self._is_own(self.packet.dst), self.packet.device is None
        if here or leaves:
            yield from self._martian()
        yield from (DROPPED for port in self._addressed() if self._is_barred(port))
        if not leaves:
            yield from self._external_without_endpoints()
        if leaves or not here:
            yield from self._cluster_without_endpoints()
        if leaves and here:
            yield from self._external_without_endpoints()

    def _martian(self) -> Iterator[Outcome]:
        src, dst = self.packet.src, self.packet.dst
        if self.common.localhost_node_ports and dst.is_loopback and not src.is_loopback:
            yield DROPPED

    def _external_without_endpoints(self) -> Iterator[Outcome]:
        addressed = (p for p in self._addressed() if self.packet.dst in (*p.external_ips, *p.ingress_ips))
        for port in (*addressed, *self._at_node_ports()):
            if not (port.local if port.external_local else port.cluster):
                yield _without_endpoints(port)

    def _cluster_without_endpoints(self) -> Iterator[Outcome]:
        for port in self._addressed():
            internal = port.local if port.internal_local else port.cluster
            if self.packet.dst in port.cluster_ips and not internal:
                yield _without_endpoints(port)
        if any(self.packet.dst in network for network in self.common.networks):
            yield REJECTED
        if self.packet.dst in self.common.strays:
            yield REJECTED

    # --- what matches -----------------------------------------------------------------------------

    def _addressed(self) -> Iterator[ServicePortPolicy]:
        """Service ports by number and protocol, and one of their addresses."""
        packet = self.packet
        for port in self.ports:
            where = (*port.cluster_ips, *port.external_ips, *port.ingress_ips)
            if (port.protocol, port.port) == (packet.protocol, packet.port) and packet.dst in where:
                yield port

    def _at_node_ports(self) -> Iterator[ServicePortPolicy]:
        packet = self.packet
        if packet.port and self._is_node_port_address():
            yield from (p for p in self.ports if (p.protocol, p.node_port) == (packet.protocol, packet.port))

    def _is_node_port_address(self) -> bool:
        dst, open_on = self.packet.dst, self.common.node_ips
        if dst.is_loopback:
            return self.common.localhost_node_ports
        return self._is_own(dst) if open_on is None else dst in open_on

    def _is_barred(self, port: ServicePortPolicy) -> bool:
        """Whether a load balancer's address is not open to this source. A host that has the address itself
        uses it to speak to it."""
        if self.packet.dst not in port.ingress_ips or not port.source_ranges or not port.usable:
            return False
        if any(self.packet.src in network for network in port.source_ranges):
            return False
        known = any(ip in network for ip in self.common.node_ips or () for network in port.source_ranges)
        return not (known and self.packet.src in port.ingress_ips)

    def _is_outsider(self) -> bool:
        """Whether a packet to a cluster IP is masqueraded."""
        detector = self.common.local_sources or self.common.local_device
        return self.common.masquerade_all or (bool(detector) and not self._is_from_container())

    def _is_from_container(self) -> bool:
        by_device = bool(self.common.local_device) and self.packet.device == self.common.local_device
        return by_device or any(self.packet.src in network for network in self.common.local_sources)

    def _is_own(self, ip: IPAddress) -> bool:
        return ip.is_loopback or ip in self.own


def _without_endpoints(port: ServicePortPolicy) -> Outcome:
    """Some elsewhere: a load balancer shall send elsewhere. None at all: the client shall know."""
    return DROPPED if port.usable else REJECTED
