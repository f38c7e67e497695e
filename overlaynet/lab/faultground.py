"""What there is in a lab to be broken, as kinds of fault ask for it.

`Ground` is all that a kind may ask. Where a lab's hosts are namespaces, much of it follows from the topology,
whose numbers are addresses: that is `NamespaceGround`. On machines it is the machines' own, and is looked up
there (`machinesite`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from itertools import product
from types import MappingProxyType
from typing import Protocol

from overlaynet.addr import IPAddress, IPNetwork, Mac
from overlaynet.errors import EnvironmentProblem
from overlaynet.lab.converge import ETCD, OUTSIDE_PLACE, UNDERLAY_PLACE, cables, places
from overlaynet.lab.faultrecords import Damage, Edit, Entry, rule_change
from overlaynet.lab.topology import ETCD_ADDRESS, OUTSIDE_ADDRESS, UNDERLAY, Topology
from overlaynet.state import KernelState, RuleSet, Sysctl

BRIDGED = "net/bridge/bridge-nf-call-iptables"
"""Whether bridged IPv4 packets go through the packet filter; of each namespace since Linux 5.3."""
NOTHING: Mapping[str, str] = MappingProxyType({})


class Ground(Protocol):
    """What is there to be broken."""

    @property
    def topology(self) -> Topology:
        """The lab as it was last built."""

    @property
    def places(self) -> Sequence[str]:
        """Everything that has a network namespace, by name."""

    @property
    def barred(self) -> Mapping[str, str]:
        """Kinds of fault that cannot be made here, each with the reason."""

    def look(self, place: str, sysctls: Sequence[str] = ()) -> KernelState:
        """Everything in a place's tables. Raises NotFound, KernelError."""

    def rules(self, place: str) -> RuleSet:
        """Its packet filter. Raises NotFound, FirewallError."""

    def ips(self, container: str) -> Sequence[IPAddress]:
        """The addresses of a container; none if it is not wired."""

    def address(self, name: str) -> IPAddress | None:
        """The underlay address of a host, or of etcd or outside; None for any other name."""

    def subnet(self, host: str) -> IPNetwork:
        """What of the overlay is a host's."""

    def vtep_mac(self, host: str) -> Mac:
        """The MAC of a host's VXLAN device."""

    def cable(self, place: str) -> tuple[str, str] | None:
        """The place and interface where a host is cut off from the underlay."""

    def is_underlay(self, ip: IPAddress) -> bool:
        """Whether this is an address of the underlay."""

    def nobody(self) -> IPAddress:
        """An address of the underlay that nobody has."""

    def barrier(self, some: Sequence[str], others: Sequence[str], match: str, comment: str) -> Damage:
        """Packets between two sides, hosts or etcd or outside, thrown away both ways as far as `match` says:
        entries and edits alone. Raises UsageError where that would cut off who has to heal it."""


class NamespaceGround:
    """What follows from a topology alone where hosts are namespaces."""

    @property
    def topology(self) -> Topology:
        raise NotImplementedError

    def look(self, place: str, sysctls: Sequence[str] = ()) -> KernelState:
        raise NotImplementedError

    def allow(self, damage: Damage) -> None:
        """All of it: it is undone from here, whatever becomes of the lab."""

    @property
    def places(self) -> Sequence[str]:
        return places(self.topology)

    @property
    def senders(self) -> Sequence[str]:
        hosts, containers = self.topology.hosts, self.topology.containers
        return [*(host.name for host in hosts), *(c.name for c in containers), OUTSIDE_PLACE]

    @property
    def barred(self) -> Mapping[str, str]:
        return NOTHING

    def address(self, name: str) -> IPAddress | None:
        hosts = {host.name: host.underlay_ip for host in self.topology.hosts}
        return {**hosts, ETCD: ETCD_ADDRESS, OUTSIDE_PLACE: OUTSIDE_ADDRESS}.get(name)

    def subnet(self, host: str) -> IPNetwork:
        return self.topology.subnet(self.topology.host(host))

    def vtep_mac(self, host: str) -> Mac:
        return self.topology.vtep_mac(self.topology.host(host))

    def cable(self, place: str) -> tuple[str, str] | None:
        ports = {cable.place: cable.port for cable in cables(self.topology)}
        return (UNDERLAY_PLACE, ports[place]) if place in ports else None

    def is_underlay(self, ip: IPAddress) -> bool:
        return ip in UNDERLAY

    def nobody(self) -> IPAddress:
        taken = {host.underlay_ip for host in self.topology.hosts}
        return next(ip for ip in (UNDERLAY[99 + n] for n in range(len(taken) + 1)) if ip not in taken)

    def barrier(self, some: Sequence[str], others: Sequence[str], match: str, comment: str) -> Damage:
        """Where on real machines nobody can look either: in the underlay's own namespace, whose bridge leads
        packets past its packet filter. So no host has an entry that tells of it, and it shows in what arrives
        and what does not."""
        ways = [way for pair in product(some, others) for way in (pair, pair[::-1])]
        texts = [
            f"-s {IPv4Network(str(self.address(a)))} -d {IPv4Network(str(self.address(b)))}"
            f" {match}{comment} -j DROP"
            for a, b in ways
        ]
        before = self.look(UNDERLAY_PLACE, [BRIDGED]).sysctls.get(BRIDGED)
        if before is None:
            raise EnvironmentProblem(
                f"{UNDERLAY_PLACE} has no setting {BRIDGED}", next=["modprobe br_netfilter"]
            )
        return Damage(
            object="",
            touches=(),
            entries=(Entry(UNDERLAY_PLACE, Sysctl(BRIDGED, before), Sysctl(BRIDGED, "1")),),
            edits=(Edit(UNDERLAY_PLACE, rule_change("filter", "FORWARD", texts, [])),),
        )
