"""From what a person types to a `Question`: who sends what to whom.

A name is looked up in this order: container, host, ``outside``; ``svc/NAME`` (or ``svc/NAMESPACE/NAME``) is a
service, and anything that reads as an address is one. The answer also says which containers may become the
packet's destination, since behind a virtual IP there are several: they have to be looked at as well.

What is not said follows from the target: a service is asked at its first port, in that port's protocol; all
else is pinged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.cluster.cluster import Container, Host, Outside
from overlaynet.core.endpoints import port_endpoints
from overlaynet.core.services import Grants, members_of
from overlaynet.core.view import View
from overlaynet.errors import NotFound, UsageError
from overlaynet.model import Service, ServicePort, Stored
from overlaynet.probe.send import COOKIE_BYTES
from overlaynet.trace import model
from overlaynet.trace.model import OUTSIDE, Question

SERVICE_WORDS = frozenset({"svc", "service", "services"})
LARGEST_PAYLOAD_BYTES = 65_507
"""Of UDP over IPv4: 65 535 without both headers (RFC 768, RFC 791). An ICMP echo has the same header size."""

_EVERYBODY = 0xFFFFFFFF
"""255.255.255.255 (RFC 919)."""


class Asked(NamedTuple):
    """The words as they were typed. `protocol` None, `dst_port` None: what the target suggests."""

    source: str
    target: str
    protocol: str | None = None
    dst_port: int | None = None
    src_port: int | None = None
    size: int = 0
    df: bool | None = None


class Front(NamedTuple):
    """What a name or address leads to. `ports` are a service's."""

    ip: IPAddress
    ports: tuple[ServicePort, ...] = ()


@dataclass(frozen=True, slots=True)
class Directory:
    """Everything in a cluster that has a name and an address. `view` None: etcd could not be asked."""

    hosts: Sequence[Host]
    containers: Sequence[Container]
    outside: Outside | None
    view: View | None

    @property
    def services(self) -> list[Stored[Service]]:
        return [] if self.view is None else [self.view.services[key] for key in sorted(self.view.services)]

    def address_of(self, place: str) -> IPAddress | None:
        """Of a container, host or ``outside``; None if it has none that is known."""
        if place == OUTSIDE and self.outside:
            return ip_address(self.outside.ip)
        for container in self.containers:
            if place in (container.name, container.id):
                return next((ip_address(ip) for ip in container.ips if ":" not in ip), None)
        host = next((host for host in self.hosts if host.name == place), None)
        return ip_address(host.underlay_ip) if host and host.underlay_ip else None

    def names(self) -> list[str]:
        places = [*(c.name for c in self.containers), *(h.name for h in self.hosts)]
        return [*places, *([OUTSIDE] if self.outside else [])]

    def place(self, word: str) -> str:
        """The place of that name or address. Raises NotFound."""
        for container in self.containers:
            if word in (container.name, container.id):
                return container.name
        for name in self.names():
            if word in (name, str(self.address_of(name))):
                return name
        raise NotFound(
            f"there is no container or host {word!r}",
            evidence="there are " + (", ".join(self.names()) or "none"),
            next=["overlaynet get containers"],
        )

    def service(self, word: str) -> Stored[Service]:
        """By ``NAME`` (of namespace default) or ``NAMESPACE/NAME``. Raises NotFound."""
        wanted = word if "/" in word else f"default/{word}"
        for item in self.services:
            if item.value.id == wanted:
                return item
        if self.view is None:
            raise NotFound(
                f"nothing is known of service {wanted}: etcd could not be asked",
                evidence="whoever knows its address can ask about that without etcd",
                next=["overlaynet status"],
            )
        known = ", ".join(item.value.id for item in self.services) or "none"
        raise NotFound(
            f"there is no service {wanted}", evidence=f"services: {known}", next=["overlaynet get services"]
        )

    def front(self, word: str) -> Front:
        """What a target is. Raises NotFound, UsageError."""
        kind, _, rest = word.partition("/")
        if kind.lower() in SERVICE_WORDS and rest:
            return self._front_of(self.service(rest))
        try:
            ip = ip_address(word)
        except ValueError:
            ip = self._address(word)
        if ip.version != 4:
            raise _unsuitable(f"{ip} is an IPv6 address", "paths are followed over IPv4 only")
        if ip.is_multicast or ip.is_unspecified or int(ip) == _EVERYBODY:
            raise _nobodys(ip)
        taken = [item for item in self.services if ip in _frontends(item.value)]
        return Front(ip, tuple(port for item in taken for port in item.value.ports))

    def _address(self, word: str) -> IPAddress:
        place = self.place(word)
        ip = self.address_of(place)
        if ip is None:
            raise NotFound(f"{place} has no address", evidence="it is not wired", next=["overlaynet status"])
        return ip

    def _front_of(self, item: Stored[Service]) -> Front:
        ips = [ip for ip in _frontends(item.value) if ip.version == 4]
        if not ips:
            raise UsageError(f"service {item.value.id} has no virtual IP", next=["overlaynet get services"])
        return Front(ips[0], item.value.ports)

    def endpoints(self, ip: IPAddress, protocol: str, port: int | None) -> set[IPAddress]:
        """Whereto services may lead a packet to this address and port."""
        found: set[IPAddress] = set()
        for item in self.services:
            for one in item.value.ports:
                if one.protocol.lower() == protocol and _takes(item.value, one, ip, port):
                    found |= self._behind(item, one)
        return found

    def _behind(self, item: Stored[Service], port: ServicePort) -> set[IPAddress]:
        assert self.view is not None
        members = members_of(self.view, item.key, item.value, (), "")
        return {e.at.ip for e in port_endpoints(item.value, port, members, self.view.index.zones.get)}

    def world_services(self) -> tuple[model.Service, ...]:
        """For a World: names, with what they are served at."""
        return tuple(self._world_service(item) for item in self.services)

    def _world_service(self, item: Stored[Service]) -> model.Service:
        assert self.view is not None
        grants = Grants(item, self.view.index)
        ports = tuple(
            (port.protocol.lower(), port.port, grants.of_port(number).node_port)
            for number, port in enumerate(item.value.ports)
        )
        return model.Service(item.value.id, _frontends(item.value), ports)


def refuse_broadcast(ip: IPAddress, networks: Iterable[IPNetwork]) -> None:
    """The last address of one of these networks is everybody's there (RFC 919). Raises UsageError."""
    if any(net.prefixlen < net.max_prefixlen - 1 and ip == net.broadcast_address for net in networks):
        raise _nobodys(ip)


def _nobodys(ip: IPAddress) -> UsageError:
    return _unsuitable(f"{ip} is nobody's address", "a path is followed to one receiver")


def _unsuitable(message: str, why: str) -> UsageError:
    return UsageError(message, evidence=why, next=["overlaynet get containers", "overlaynet get services"])


def _frontends(service: Service) -> tuple[IPAddress, ...]:
    return (*service.cluster_ips, *service.external_ips, *service.ingress_ips)


def _takes(service: Service, one: ServicePort, ip: IPAddress, port: int | None) -> bool:
    """By one of its addresses, or by its nodePort at any address of a host."""
    return (one.port == port and ip in _frontends(service)) or (one.node_port == port and port is not None)


def question(asked: Asked, directory: Directory) -> Question:
    """What is sent. Raises NotFound and UsageError."""
    _check_sender(asked)
    source = directory.place(asked.source)
    src = directory.address_of(source)
    if src is None:
        raise NotFound(
            f"{source} has no address to send from", evidence="it is not wired", next=["overlaynet status"]
        )
    front = directory.front(asked.target)
    protocol, port = _protocol(asked, front)
    if protocol == "icmp" and asked.src_port is not None:
        raise UsageError(
            "an ICMP echo request has no port to be sent from",
            evidence=f"--sport {asked.src_port}",
            next=[f"overlaynet trace {asked.source} {asked.target} --tcp PORT --sport {asked.src_port}"],
        )
    _check_size(asked, protocol)
    return Question(
        source=source,
        target=asked.target,
        src=src,
        dst=front.ip,
        protocol=protocol,
        src_port=asked.src_port,
        dst_port=port,
        size=0 if protocol == "tcp" else max(asked.size, COOKIE_BYTES),
        df=asked.df,
    )


def _check_sender(asked: Asked) -> None:
    kind, _, rest = asked.source.partition("/")
    if kind.lower() in SERVICE_WORDS and rest:
        raise UsageError(
            f"a service sends nothing: {asked.source}",
            evidence="who sends is a container, a host or outside",
            next=[f"overlaynet describe {asked.source}", "overlaynet get containers"],
        )


def _protocol(asked: Asked, front: Front) -> tuple[str, int | None]:
    """Protocol and port, as far as they were given, else as the target's first port has them."""
    if asked.protocol is None and not front.ports:
        return "icmp", None
    fitting = [p for p in front.ports if asked.protocol in (None, p.protocol.lower())]
    protocol = asked.protocol or fitting[0].protocol.lower()
    if protocol == "icmp":
        return "icmp", None
    if asked.dst_port is not None:
        return protocol, asked.dst_port
    if not fitting:
        raise UsageError(
            f"{asked.target} has no {protocol} port, so one has to be named",
            next=[f"overlaynet trace {asked.source} {asked.target} --{protocol} PORT"],
        )
    if protocol not in ("tcp", "udp"):
        raise UsageError(f"a path of {protocol} cannot be followed", evidence="protocols: tcp, udp, icmp")
    return protocol, fitting[0].port


def _check_size(asked: Asked, protocol: str) -> None:
    if protocol == "tcp" and asked.size:
        raise UsageError(
            "the first packet of a TCP connection carries no data, so it has no size",
            next=[f"overlaynet trace {asked.source} {asked.target} --icmp --size {asked.size}"],
        )
    if not 0 <= asked.size <= LARGEST_PAYLOAD_BYTES:
        raise UsageError(
            f"a payload has from 0 to {LARGEST_PAYLOAD_BYTES} bytes",
            evidence=f"--size {asked.size}",
            next=[f"overlaynet trace {asked.source} {asked.target} --size {LARGEST_PAYLOAD_BYTES}"],
        )


def destinations(asked: Question, directory: Directory) -> Mapping[IPAddress, Container]:
    """The containers at which the packet may end, by address; any, where etcd cannot say what is behind it."""
    everybody = {ip: c for c in directory.containers for ip in map(ip_address, c.ips)}
    if directory.view is None and asked.dst not in everybody:
        return everybody
    ips = {asked.dst, *directory.endpoints(asked.dst, asked.protocol, asked.dst_port)}
    return {ip: c for ip, c in everybody.items() if ip in ips}
