"""Services as this host serves them: which endpoints may answer, on which addresses; as kube-proxy decides it.

**Endpoints.** For each service port two sets are chosen, apart from each other:

* *cluster*, for the traffic policy Cluster: the ready endpoints, less those that topology sends elsewhere.
  If that leaves none, all that are terminating and still serve, wherever they are.
* *local*, for the policy Local: the ready ones on this host; if there are none, those here that are
  terminating and still serve. Topology says nothing about it.

Topology goes by the hints of the ready endpoints. If every one of them names nodes, and one names this node,
those that name it are meant for us; else the same with zones; else everybody is. A single endpoint without
hints switches it off, for nobody can say then whether the load would be shared fairly.

With none usable anywhere a packet is rejected; with some, but none here for a policy Local, it is dropped:
that is how a load balancer learns to send elsewhere, while a rejection would look like a service that is down.

**Frontends.** A virtual IP and port, or a nodePort, can lead to one service only. Allocation sees to that,
but records can be written by hand. Then the service that was created first has it, here as on every other
host, and the other is served without it and reported.

Sources: kubernetes/kubernetes, pkg/proxy (topology.go, serviceport.go, iptables/proxier.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.core.endpoints import Members, ServiceEndpoint, has_usable, port_endpoints
from overlaynet.core.overlay import vxlan_device
from overlaynet.core.serviceindex import (
    HEALTH,
    Claimant,
    Frontend,
    Labelled,
    ServiceIndex,
    health_port,
)
from overlaynet.core.view import View
from overlaynet.errors import ServiceNotServed
from overlaynet.model import (
    LOCAL,
    VXLAN,
    Lease,
    LocalHost,
    NetworkConfig,
    Service,
    ServiceOptions,
    ServicePort,
    Stored,
    Workload,
)
from overlaynet.state import Endpoint, HostState, Policy, ServicePortPolicy, ServicesPolicy, Source, Sysctl

COMMON = Source("services", "common")
EXTERNAL_TYPES = frozenset({"NodePort", "LoadBalancer"})
"""Service types to which the external traffic policy applies even without externalIPs."""


def service_source(service_id: str) -> Source:
    return Source("service", service_id)


def policy_name(policy: ServicePortPolicy) -> str:
    """``service default/web:http/tcp``."""
    return f"service {policy.name}/{policy.protocol}"


class Fronts(NamedTuple):
    """The frontends that one service port really has."""

    cluster_ips: tuple[IPAddress, ...] = ()
    external_ips: tuple[IPAddress, ...] = ()
    ingress_ips: tuple[IPAddress, ...] = ()
    node_port: int = 0
    health_check_node_port: int = 0

    @property
    def external(self) -> bool:
        """Whether it can be reached from outside the cluster."""
        return bool(self.external_ips or self.ingress_ips or self.node_port)


def port_policy(
    service: Service,
    port: ServicePort,
    fronts: Fronts,
    endpoints: Sequence[ServiceEndpoint],
    node: str,
    zone: str | None,
) -> ServicePortPolicy:
    """How the host `node` in `zone` serves one port of a service."""
    internal_local = service.internal_policy == LOCAL
    external_local = service.external_policy == LOCAL and _has_external_policy(service)
    uses_cluster = not internal_local or fronts.external
    uses_local = internal_local or (external_local and fronts.external)
    here = [one for one in endpoints if one.host == node]
    return ServicePortPolicy(
        service=service.id,
        port_name=port.name,
        protocol=port.protocol.lower(),
        port=port.port,
        cluster_ips=fronts.cluster_ips,
        external_ips=fronts.external_ips,
        ingress_ips=fronts.ingress_ips,
        source_ranges=service.source_ranges,
        node_port=fronts.node_port,
        internal_local=internal_local,
        external_local=external_local,
        affinity_s=service.affinity_s,
        cluster=_addresses(best(for_topology(endpoints, node, zone), endpoints)) if uses_cluster else (),
        local=_addresses(best(here, here)) if uses_local else (),
        usable=any(one.usable for one in endpoints),
        serving=frozenset(one.at for one in endpoints if one.serving or one.ready),
        health_check_node_port=fronts.health_check_node_port,
        local_ready=len({one.at.ip for one in here if one.ready}),
    )


def _has_external_policy(service: Service) -> bool:
    return service.type in EXTERNAL_TYPES or bool(service.external_ips)


def best(preferred: Iterable[ServiceEndpoint], all_of_them: Iterable[ServiceEndpoint]) -> list[ServiceEndpoint]:
    """The ready ones of `preferred`; if there are none, all that are terminating and still serve."""
    ready = [one for one in preferred if one.ready]
    return ready or [one for one in all_of_them if one.serving and one.terminating]


def for_topology(
    endpoints: Sequence[ServiceEndpoint], node: str, zone: str | None
) -> Sequence[ServiceEndpoint]:
    """The endpoints that hints mean for this node, or all of them where hints do not apply."""
    ready = [one for one in endpoints if one.ready]
    if _named_by_all([one.for_nodes for one in ready], node):
        return [one for one in ready if node in one.for_nodes]
    if zone is not None and _named_by_all([one.for_zones for one in ready], zone):
        return [one for one in ready if zone in one.for_zones]
    return endpoints


def _named_by_all(hints: Sequence[tuple[str, ...]], name: str) -> bool:
    """Whether every endpoint has hints, and some endpoint is meant for `name`."""
    return all(hints) and any(name in names for names in hints)


def _addresses(endpoints: Iterable[ServiceEndpoint]) -> tuple[Endpoint, ...]:
    return tuple(one.at for one in endpoints)


# --- frontends ------------------------------------------------------------------------------------


class Wish(NamedTuple):
    """A frontend that a service asks for, and the field in which it does."""

    frontend: Frontend
    field: str


@dataclass(slots=True)
class Grants:
    """Decides for one service who gets what, and keeps who did not."""

    item: Stored[Service]
    index: ServiceIndex
    lost: dict[Wish, Claimant] = field(default_factory=dict)

    def of_port(self, number: int) -> Fronts:
        """The frontends that the port at position `number` gets."""
        service, port = self.item.value, self.item.value.ports[number]
        health, node_port = health_port(service), Frontend(None, port.protocol.lower(), port.node_port)
        return Fronts(
            self._addresses(service.cluster_ips, number, "spec.clusterIPs"),
            self._addresses(service.external_ips, number, "spec.externalIPs"),
            self._addresses(service.ingress_ips, number, "status.loadBalancer.ingress"),
            port.node_port
            if port.node_port and self._wins(node_port, number, f"spec.ports[{number}].nodePort")
            else 0,
            health.port if health and self._wins(health, HEALTH, "spec.healthCheckNodePort") else 0,
        )

    def _addresses(self, ips: tuple[IPAddress, ...], number: int, where: str) -> tuple[IPAddress, ...]:
        port = self.item.value.ports[number]
        wanted = ((i, ip, Frontend(ip, port.protocol.lower(), port.port)) for i, ip in enumerate(ips))
        return tuple([ip for i, ip, frontend in wanted if self._wins(frontend, number, f"{where}[{i}]")])

    def _wins(self, frontend: Frontend, number: int, where: str) -> bool:
        first = self.index.first(frontend)
        mine = first.service == self.item.value.id and first.port == number
        if not mine:
            self.lost[Wish(frontend, where)] = first
        return mine

    def problems(self) -> tuple[ServiceNotServed, ...]:
        service = self.item.value
        return tuple(
            ServiceNotServed(
                f"service {service.id} is not served on {wish.frontend}: service {first.service} has it",
                evidence=f"{wish.field} of {service.id}; {first.service} was created first, "
                f"at revision {first.created}",
                next=[f"overlaynet describe svc/{service.name} -n {service.namespace}"],
            )
            for wish, first in self.lost.items()
        )


# --- this host ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Services:
    """Plans the services of one host, each by itself. `own` are the containers that are wired here: their host
    knows them better than the store does. `served` has the virtual IPs outside of ServiceNetwork of each
    service with rules, by its key; `problems` what cannot be served as asked, likewise."""

    view: View
    local: LocalHost
    network: NetworkConfig
    lease: Lease
    service_network: IPNetwork = field(init=False)
    own: dict[str, Workload] = field(default_factory=dict)
    problems: dict[str, tuple[ServiceNotServed, ...]] = field(default_factory=dict)
    served: dict[str, tuple[IPAddress, ...]] = field(default_factory=dict)
    _labelled: Labelled = field(default_factory=Labelled)
    _shared: bool = True
    """Whether what all services share may have changed."""

    def __post_init__(self) -> None:
        self.service_network = self.view.settings.service_network

    def serves(self, view: View, local: LocalHost, network: NetworkConfig, lease: Lease) -> bool:
        """Whether what was planned here holds for this host as well; then it is its plan from now on."""

        def world(host: LocalHost) -> tuple[object, ...]:
            return host.name, host.zone, host.interface, host.bridge, host.bridge_mode, host.services

        same = (
            view is self.view
            and (network, lease.subnets, view.settings.service_network)
            == (self.network, self.lease.subnets, self.service_network)
            and world(local) == world(self.local)
        )
        if same:
            self.local, self.lease = local, lease
        return same

    def put_all_own(self, workloads: Iterable[Workload]) -> None:
        """These are wired here, and no others."""
        wired = {workload.id: workload for workload in workloads}
        for workload_id in self.own.keys() - wired.keys():
            self.drop_own(workload_id)
        for workload_id, workload in wired.items():
            if self.own.get(workload_id) != workload:
                self.put_own(workload)

    def put_own(self, workload: Workload) -> None:
        """A container was wired here, or is different now."""
        self.drop_own(workload.id)
        self.own[workload.id] = workload
        self._shared |= len(self.own) == 1
        if self._is_at_home(workload):
            self._labelled.put(workload.id, workload)
            self.view.index.touch_choosing(workload)

    def drop_own(self, workload_id: str) -> None:
        workload = self.own.pop(workload_id, None)
        self._shared |= not self.own
        if workload is not None and self._is_at_home(workload):
            self._labelled.drop(workload_id, workload)
            self.view.index.touch_choosing(workload)

    def plan(self, keys: Iterable[str]) -> Iterator[tuple[Source, HostState]]:
        """The slices of these services, by their keys; and that of what all services share, if it may have
        changed."""
        for key in sorted(keys):
            yield service_source(key.removeprefix(self.view.keys.services)), self._slice(key)
        if self._shared:
            self._shared = False
            yield COMMON, self._common() if self.served else HostState()

    def endpoints(self, key: str) -> Iterator[tuple[ServicePort, tuple[ServiceEndpoint, ...]]]:
        """The ports of a service, each with its endpoints."""
        service = self.view.index.services[key].value
        members, zones, here = self._members(key, service), self.view.index.zones, self.local.name
        for port in service.ports:
            yield port, port_endpoints(service, port, members, zones.get, here)

    def strays(self) -> tuple[IPAddress, ...]:
        """Virtual IPs outside of ServiceNetwork, in order."""
        found = {ip for ips in self.served.values() for ip in ips}
        return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))

    def _members(self, key: str, service: Service) -> Members:
        own = [workload for _, workload in self._labelled.chosen(service)]
        return members_of(self.view, key, service, own, self.local.name)

    def _is_at_home(self, workload: Workload) -> bool:
        """Whoever has an address of a subnet that is another host's by now cannot be reached there."""
        return all(any(ip in subnet for subnet in self.lease.subnets) for ip in workload.ips)

    def _slice(self, key: str) -> HostState:
        item = self.view.index.services.get(key)
        policies, problems = self._policies(key, item) if item and item.value.served else ({}, ())
        self._note(key, item.value if item and policies else None)
        self.problems.pop(key, None)
        if problems:
            self.problems[key] = problems
        return HostState({}, policies)

    def _policies(
        self, key: str, item: Stored[Service]
    ) -> tuple[dict[str, Policy], tuple[ServiceNotServed, ...]]:
        service, grants = item.value, Grants(item, self.view.index)
        policies: dict[str, Policy] = {}
        for number, (port, endpoints) in enumerate(self.endpoints(key)):
            fronts = grants.of_port(number)
            policy = port_policy(service, port, fronts, endpoints, self.local.name, self.local.zone)
            if fronts.cluster_ips:  # whoever lost those is not to be found by half of its addresses
                policies[policy_name(policy)] = policy
        return policies, grants.problems()

    def _note(self, key: str, service: Service | None) -> None:
        """Keep what this service adds to the common slice."""
        network = self.service_network
        before = self.served.pop(key, None)
        if service is not None:
            self.served[key] = tuple(ip for ip in service.cluster_ips if ip not in network)
        after = self.served.get(key)
        first_or_last = (before is None) != (after is None) and len(self.served) <= 1
        self._shared |= first_or_last or (before or ()) != (after or ())

    def _common(self) -> HostState:
        options = self.local.services
        assert options is not None
        policy = ServicesPolicy(
            networks=(self.service_network,),
            strays=self.strays(),
            node_ips=options.node_ips,
            local_sources=self._local_sources(options),
            local_device=self.local.bridge if options.local_detect == "bridge" else "",
            masquerade_all=options.masquerade_all,
            localhost_node_ports=options.localhost_node_ports,
            overlay=self.network.networks,
        )
        return HostState.of(self._sysctls(options), services=policy)

    def _local_sources(self, options: ServiceOptions) -> tuple[IPNetwork, ...]:
        match options.local_detect:
            case "cluster-cidr":
                return self.network.networks
            case "node-cidr":
                return self.lease.subnets
            case _:
                return ()

    def _sysctls(self, options: ServiceOptions) -> Iterator[Sysctl]:
        """Replies between containers of one bridge must pass through conntrack, or their address is not
        translated back. And a packet from 127.0.0.0/8 may leave by a device only if that is allowed there."""
        managed = self.local.bridge_mode == "managed"
        if managed:
            yield Sysctl("net/bridge/bridge-nf-call-iptables", "1")
        if options.localhost_node_ports:
            for device in sorted(self._ways_to_endpoints(with_bridge=managed and bool(self.own))):
                yield Sysctl(f"net/ipv4/conf/{device}/route_localnet", "1")

    def _ways_to_endpoints(self, *, with_bridge: bool) -> set[str]:
        """The devices by which containers are reached, here and elsewhere."""
        backend = self.network.backend
        found = {self.local.bridge} if with_bridge else set()
        if backend.type == VXLAN:
            found.add(vxlan_device(backend.vni))
        if backend.type != VXLAN or backend.direct_routing:
            found.add(self.local.interface)
        return found


def members_of(view: View, key: str, service: Service, own: Sequence[Workload], here: str) -> Members:
    """What stands behind a service, by the store's word for all hosts but `here`, which knows its `own`. Its
    last known endpoints only if there are no others that could be used."""
    far = sorted((k, w) for k, w in view.index.labelled.chosen(service) if w.node != here)
    known = [*own, *(w for k, w in far if k not in view.kept)]
    kept = [w for k, w in far if k in view.kept]
    slices = view.index.slices_of(service)
    last = view.last.get(key, {})
    if last and not has_usable(service, (*known, *kept), slices):
        kept += [last[k] for k in sorted(last)]
    return Members(tuple(known), tuple(kept), slices)
