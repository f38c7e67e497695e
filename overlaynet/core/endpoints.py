"""The endpoints of a service: which containers and slice entries stand behind each of its ports.

No controller writes them down. Everybody who asks, each agent and each command, derives them from the same
records and so comes to the same answer: the workloads that the service's selector chooses (same namespace,
every pair of the selector among their labels; an empty selector chooses none), and every EndpointSlice
labelled with the service. Where both name one address and port, the workload's word counts: its own host
wrote it.

A workload has the conditions that Kubernetes' slice controller would give it: *serving* while its probe
succeeds, *terminating* once it was told to end, *ready* if neither speaks against it, or if the service
publishes endpoints that are not ready. With a traffic distribution it also gets that controller's hints:
its zone (PreferClose, PreferSameZone), or its node and zone (PreferSameNode). Only ready ones have hints.

Order is that of the text ``address:port``, as kube-proxy has it. It must be the same on every host and after
every start, or one change of a service would alter all of its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from overlaynet.model import EndpointSlice, Port, Service, ServicePort, SliceEndpoint, Workload
from overlaynet.state import Endpoint

SAME_ZONE = frozenset({"PreferClose", "PreferSameZone"})
SAME_NODE = "PreferSameNode"

ZoneOf: TypeAlias = Callable[[str], str | None]
"""A node's zone by the node's name, None where that is not known."""


class ServiceEndpoint(NamedTuple):
    """One endpoint of one service port. `host`: the node it is on, if that is known. `stale`: the store has
    it no more, and its going is not believed yet (`vanishing.py`)."""

    at: Endpoint
    host: str | None = None
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()
    stale: bool = False

    @property
    def usable(self) -> bool:
        """Whether traffic may go here: at best because it is ready, at worst because it still answers."""
        return self.ready or (self.serving and self.terminating)


class Members(NamedTuple):
    """What stands behind a service: workloads that its selector chooses, those of them that are gone from the
    store and stay in use, and its slices."""

    workloads: tuple[Workload, ...] = ()
    stale: tuple[Workload, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()


def has_usable(service: Service, workloads: Iterable[Workload], slices: Iterable[EndpointSlice]) -> bool:
    """Whether traffic for any port of a service has somewhere to go."""
    entries: list[Workload | SliceEndpoint] = [*workloads, *(e for some in slices for e in some.endpoints)]
    return any(is_ready(service, one) or (one.serving and one.terminating) for one in entries)


def is_ready(service: Service, one: Workload | SliceEndpoint) -> bool:
    if isinstance(one, SliceEndpoint):
        return one.ready
    return service.publish_not_ready or (one.ready and not one.terminating)


def port_endpoints(
    service: Service, port: ServicePort, members: Members, zone_of: ZoneOf, here: str = ""
) -> tuple[ServiceEndpoint, ...]:
    """The endpoints of one port in their order. Where two records name one address and port, that on the
    node `here` counts, then a workload's, then the first."""
    families = {ip.version for ip in service.cluster_ips}
    found: dict[str, ServiceEndpoint] = {}
    for one in _candidates(service, port, members, zone_of):
        if families and one.at.ip.version not in families:
            continue
        text = str(one.at)
        if text not in found or (one.host == here and found[text].host != here):
            found[text] = one
    return tuple([found[text] for text in sorted(found)])


def _candidates(
    service: Service, port: ServicePort, members: Members, zone_of: ZoneOf
) -> Iterator[ServiceEndpoint]:
    for workloads, stale in ((members.workloads, False), (members.stale, True)):
        for workload in workloads:
            yield from _of_workload(service, port, workload, zone_of, stale)
    for one in members.slices:
        yield from _of_slice(port, one)


def _of_workload(
    service: Service, port: ServicePort, workload: Workload, zone_of: ZoneOf, stale: bool
) -> Iterator[ServiceEndpoint]:
    number = target_port(port, workload)
    if number is None:
        return
    ready = is_ready(service, workload)
    zones, nodes = _hints(service, workload.node, zone_of) if ready else ((), ())
    for ip in workload.ips:
        yield ServiceEndpoint(
            Endpoint(ip, number),
            workload.node,
            ready,
            workload.serving,
            workload.terminating,
            zones,
            nodes,
            stale,
        )


def target_port(port: ServicePort, workload: Workload) -> int | None:
    """The number of the workload's port behind a service port, None if it has no port of the name asked for.
    Without any target it is the service port's own number."""
    if isinstance(port.target, int):
        return port.target or port.port
    same = (p.port for p in workload.ports if p.name == port.target and _same_protocol(p, port))
    return next(same, None)


def _hints(service: Service, node: str, zone_of: ZoneOf) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The zones and the nodes that an endpoint on `node` is meant for."""
    if service.distribution != SAME_NODE and service.distribution not in SAME_ZONE:
        return (), ()
    zone = zone_of(node)
    zones = (zone,) if zone else ()
    return zones, (node,) if service.distribution == SAME_NODE else ()


def _of_slice(port: ServicePort, one: EndpointSlice) -> Iterator[ServiceEndpoint]:
    numbers = [p.port for p in one.ports if (p.name or "") == port.name and _same_protocol(p, port) and p.port]
    for number in numbers:
        for entry in one.endpoints:
            conditions = (entry.ready, entry.serving, entry.terminating)
            at = Endpoint(entry.ip, number)
            yield ServiceEndpoint(at, entry.node, *conditions, entry.for_zones, entry.for_nodes)


def _same_protocol(port: Port, wanted: ServicePort) -> bool:
    return port.protocol.upper() == wanted.protocol.upper()
