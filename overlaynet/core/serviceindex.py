"""Who belongs to which service, so that one record's change costs what it touches and not every service.

Three questions are asked for each event, and each has an index:

* which services choose this workload: services by namespace and that pair of their selector which they share
  with the fewest;
* which workloads does this service choose: workloads by namespace and label pair, of which the rarest pair of
  the selector is looked through;
* which services want one address and port, or one nodePort: claimants by frontend. Only one of them can be
  served there (`services.py`).

The index is fed record by record and remembers which services each record touched, until it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from overlaynet.addr import IPAddress
from overlaynet.model import LOCAL, EndpointSlice, NodeRecord, Service, ServicePort, Stored, Workload

Pair: TypeAlias = tuple[str, str]
Group: TypeAlias = tuple[str, Pair]
"""A namespace, and a label pair in it."""
K = TypeVar("K")
V = TypeVar("V")


class Frontend(NamedTuple):
    """Where packets for a service arrive: an address and port, or with `ip` None a port of the node."""

    ip: IPAddress | None
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.ip or 'nodePort'}:{self.port}/{self.protocol}"


class Claimant(NamedTuple):
    """A service port that wants a frontend. The smallest claimant gets it: who was created first."""

    created: int
    service: str
    port: int
    """The position among the service's ports, or `HEALTH`."""


HEALTH = -1
"""In place of a port's position: the health check's nodePort, which serves all of them."""


@dataclass(slots=True)
class Buckets(Generic[K, V]):
    """Values by group and key; an empty group is none."""

    groups: dict[K, dict[str, V]] = field(default_factory=dict)

    def put(self, group: K, key: str, value: V) -> None:
        self.groups.setdefault(group, {})[key] = value

    def drop(self, group: K, key: str) -> None:
        members = self.groups[group]
        del members[key]
        if not members:
            del self.groups[group]

    def of(self, group: K) -> Mapping[str, V]:
        return self.groups.get(group, {})


@dataclass(slots=True)
class Labelled:
    """Workloads by label pair."""

    pairs: Buckets[Group, Workload] = field(default_factory=Buckets)

    def put(self, key: str, workload: Workload) -> None:
        for pair in workload.labels.items():
            self.pairs.put((workload.namespace, pair), key, workload)

    def drop(self, key: str, workload: Workload) -> None:
        for pair in workload.labels.items():
            self.pairs.drop((workload.namespace, pair), key)

    def chosen(self, service: Service) -> Iterator[tuple[str, Workload]]:
        """Every workload that the selector chooses, by key."""
        if not service.selector:
            return
        found = [self.pairs.of((service.namespace, pair)) for pair in service.selector.items()]
        for key, workload in min(found, key=len).items():
            if selects(service, workload):
                yield key, workload


def selects(service: Service, workload: Workload) -> bool:
    """Whether the selector chooses it; an empty selector chooses nothing."""
    labels = workload.labels
    return (
        bool(service.selector)
        and service.namespace == workload.namespace
        and all(labels.get(name) == value for name, value in service.selector.items())
    )


@dataclass(slots=True)
class ServiceIndex:
    """Records of services, slices, workloads and nodes, found from one another. `services` by key."""

    services: dict[str, Stored[Service]] = field(default_factory=dict)
    labelled: Labelled = field(default_factory=Labelled)
    zones: dict[str, str | None] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    _choosing: Buckets[Group, Service] = field(default_factory=Buckets)
    _filed: dict[str, Group] = field(default_factory=dict)
    _slices: Buckets[Pair, EndpointSlice] = field(default_factory=Buckets)
    _keys: dict[str, str] = field(default_factory=dict)
    _claims: Buckets[Frontend, list[Claimant]] = field(default_factory=Buckets)
    _on: Buckets[str, Workload] = field(default_factory=Buckets)

    def replace(self, key: str, old: Stored[Any] | None, new: Stored[Any] | None) -> None:
        """A record has changed, come or gone. What changed nothing but its revision touches nobody."""
        if old is not None and new is not None and _stands_for(old) == _stands_for(new):
            return
        for item, step in ((old, self._drop), (new, self._put)):
            if item is not None:
                step(key, item)

    def take_touched(self) -> set[str]:
        """Keys of the services that may be planned differently since the last call."""
        touched, self.touched = self.touched, set()
        return touched

    def choosing(self, workload: Workload) -> Iterator[str]:
        """Keys of the services that choose this workload."""
        for pair in workload.labels.items():
            for key, service in self._choosing.of((workload.namespace, pair)).items():
                if selects(service, workload):
                    yield key

    def touch_choosing(self, workload: Workload) -> None:
        """The services that choose this workload are to be planned anew."""
        self.touched.update(self.choosing(workload))

    def key_of(self, service_id: str) -> str | None:
        return self._keys.get(service_id)

    def slices_of(self, service: Service) -> tuple[EndpointSlice, ...]:
        """In the order of their keys."""
        found = self._slices.of((service.namespace, service.name))
        return tuple(found[key] for key in sorted(found))

    def first(self, frontend: Frontend) -> Claimant:
        """Who gets a frontend that somebody claims."""
        return min(min(claims) for claims in self._claims.of(frontend).values())

    def on(self, node: str) -> Iterable[Workload]:
        return self._on.of(node).values()

    # --- one record -------------------------------------------------------------------------------

    def _put(self, key: str, item: Stored[Any]) -> None:
        match item.value:
            case Workload() as workload:
                self.labelled.put(key, workload)
                self._on.put(workload.node, key, workload)
                self.touch_choosing(workload)
            case Service():
                self._put_service(key, item)
            case EndpointSlice() as one:
                self._slices.put((one.namespace, one.service), key, one)
                self._touch_service(one)
            case NodeRecord() as node:
                self.zones[node.name] = node.zone
                self._touch_on(node)

    def _drop(self, key: str, item: Stored[Any]) -> None:
        match item.value:
            case Workload() as workload:
                self.labelled.drop(key, workload)
                self._on.drop(workload.node, key)
                self.touch_choosing(workload)
            case Service():
                self._drop_service(key, item)
            case EndpointSlice() as one:
                self._slices.drop((one.namespace, one.service), key)
                self._touch_service(one)
            case NodeRecord() as node:
                self.zones.pop(node.name, None)
                self._touch_on(node)

    def _put_service(self, key: str, item: Stored[Service]) -> None:
        service = item.value
        self.services[key], self._keys[service.id] = item, key
        if service.selector:
            self._file(key, service)
        for frontend, claimants in claims(item).items():
            self.touched.update(self._claims.of(frontend))
            self._claims.put(frontend, key, claimants)
        self.touched.add(key)

    def _drop_service(self, key: str, item: Stored[Service]) -> None:
        service = item.value
        del self.services[key]
        self._keys.pop(service.id, None)
        if group := self._filed.pop(key, None):
            self._choosing.drop(group, key)
        for frontend in claims(item):
            self._claims.drop(frontend, key)
            self.touched.update(self._claims.of(frontend))
        self.touched.add(key)

    def _file(self, key: str, service: Service) -> None:
        """Under the pair of its selector by which the fewest services are found so far."""
        groups = [(service.namespace, pair) for pair in sorted(service.selector.items())]
        self._filed[key] = group = min(groups, key=lambda one: len(self._choosing.of(one)))
        self._choosing.put(group, key, service)

    def _touch_service(self, one: EndpointSlice) -> None:
        if key := self._keys.get(f"{one.namespace}/{one.service}"):
            self.touched.add(key)

    def _touch_on(self, node: NodeRecord) -> None:
        """A node's zone matters to the hints of what is on it."""
        for workload in self.on(node.name):
            self.touch_choosing(workload)


def _stands_for(item: Stored[Any]) -> tuple[Any, int]:
    """What of a record matters here. A service's age decides whom a frontend belongs to."""
    return item.value, item.create_revision if isinstance(item.value, Service) else 0


def claims(item: Stored[Service]) -> dict[Frontend, list[Claimant]]:
    """Every frontend that a service wants, with the ports that want it."""
    found: dict[Frontend, list[Claimant]] = {}
    for number, port in enumerate(item.value.ports):
        for frontend in dict.fromkeys(frontends(item.value, port)):
            found.setdefault(frontend, []).append(Claimant(item.create_revision, item.value.id, number))
    if health := health_port(item.value):
        found.setdefault(health, []).append(Claimant(item.create_revision, item.value.id, HEALTH))
    return found


def frontends(service: Service, port: ServicePort) -> Iterator[Frontend]:
    """Where packets for this port arrive."""
    if not service.served:
        return
    protocol = port.protocol.lower()
    for ip in (*service.cluster_ips, *service.external_ips, *service.ingress_ips):
        yield Frontend(ip, protocol, port.port)
    if port.node_port:
        yield Frontend(None, protocol, port.node_port)


def health_port(service: Service) -> Frontend | None:
    """The nodePort on which load balancers ask for local endpoints; only for type LoadBalancer and the external
    policy Local does it mean anything."""
    number = service.health_check_node_port
    wanted = service.type == "LoadBalancer" and service.external_policy == LOCAL and service.served
    return Frontend(None, "tcp", number) if number and wanted else None
