"""Inputs: what etcd, the operator and the machine tell us, as frozen values.

Nothing here does I/O. A value that exists is valid: constructors of the adapters (`store/codec.py`,
`config.py`) refuse anything else first. Addresses come as tuples, one entry per family, so that dual
stack is a longer tuple and not another type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from types import MappingProxyType
from typing import Generic, TypeAlias, TypeVar

from overlaynet.addr import IPAddress, IPNetwork, Mac
from overlaynet.errors import NameInvalid

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")
RESERVED_NAMES = frozenset({"etcd", "underlay", "outside", "local"})

VXLAN = "vxlan"
HOST_GW = "host-gw"
BACKENDS = (VXLAN, HOST_GW)
"""Backends this agent can program. Leases of other types are kept and ignored, as flannel does."""

DEFAULT_VNI = 1
DEFAULT_VXLAN_PORT = 8472
"""Linux's own default (drivers/net/vxlan/vxlan_core.c), which flannel uses; IANA's is 4789."""

NO_LABELS: Mapping[str, str] = MappingProxyType({})

DEFAULT_SERVICE_NETWORK = IPv4Network("10.112.0.0/16")
"""Where services get their virtual IPs; outside kubeadm's 10.96.0.0/12, so that both fit on one host."""
CLUSTER = "Cluster"
LOCAL = "Local"
"""The two traffic policies: any endpoint, or those on the host that a packet came to."""

UNSERVED_LABELS = frozenset({"service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"})
"""A service with one of these labels is none of ours, whatever its value, as for kube-proxy."""


def check_name(name: str, what: str, *, reserved: bool = True) -> str:
    """Return `name` if it can safely be part of a namespace, key, path and command; raise NameInvalid."""
    if not _NAME.fullmatch(name):
        raise NameInvalid(
            f"{what} {name!r} is not a valid name",
            evidence="a name starts with a lower-case letter, goes on with letters, digits and '-', "
            "ends with a letter or digit, and has at most 32 characters",
        )
    if reserved and name in RESERVED_NAMES:
        raise NameInvalid(
            f"{what} may not be called {name!r}",
            evidence="reserved names: " + ", ".join(sorted(RESERVED_NAMES)),
        )
    return name


# --- the network ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pool:
    """One family's address range and how hosts share it: every subnet from `first` to `last`."""

    network: IPNetwork
    subnet_len: int
    first: IPAddress
    last: IPAddress


@dataclass(frozen=True, slots=True)
class Backend:
    """How subnets reach each other. `mtu` is the underlay's, in bytes, where the operator forces it."""

    type: str
    vni: int = DEFAULT_VNI
    port: int = DEFAULT_VXLAN_PORT
    mtu: int | None = None
    direct_routing: bool = False
    learning: bool = False


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """flannel's network config (`<prefix>/config`)."""

    pools: tuple[Pool, ...]
    backend: Backend

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        return tuple(pool.network for pool in self.pools)


@dataclass(frozen=True, slots=True)
class Settings:
    """Cluster-wide settings of ours (`<overlay_prefix>/config`). Times in seconds."""

    lease_ttl_s: int = 86_400
    node_ttl_s: int = 15
    stop_grace_s: int = 300
    service_network: IPNetwork = DEFAULT_SERVICE_NETWORK


@dataclass(frozen=True, slots=True)
class Vtep:
    """One VXLAN tunnel endpoint of a host: the VNI and the MAC its peers put into their FDB."""

    version: int
    vni: int
    mac: Mac


@dataclass(frozen=True, slots=True)
class Lease:
    """A host's claim on its subnets (`<prefix>/subnets/<subnet>-<len>`), as flannel writes it.

    `node_id` and `node_name` are our additions; a lease that flannel wrote has neither.
    """

    subnets: tuple[IPNetwork, ...]
    public_ips: tuple[IPAddress, ...]
    backend_type: str | None = None
    vteps: tuple[Vtep, ...] = ()
    node_id: str | None = None
    node_name: str | None = None

    def subnet(self, version: int) -> IPNetwork | None:
        return next((s for s in self.subnets if s.version == version), None)

    def public_ip(self, version: int) -> IPAddress | None:
        return next((a for a in self.public_ips if a.version == version), None)

    def vtep(self, version: int) -> Vtep | None:
        return next((v for v in self.vteps if v.version == version), None)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node that is alive (`<overlay_prefix>/nodes/<node>`, on the node's short lease)."""

    name: str
    node_id: str
    public_ips: tuple[IPAddress, ...]
    interface: str
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    version: str = ""
    bridge: str = "cni0"
    bridge_mode: str = "managed"


@dataclass(frozen=True, slots=True)
class Claim:
    """A node's claim of a public address or a VTEP MAC, under the key that ends in it."""

    kind: str
    value: str
    node_id: str
    node_name: str


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a container listens on."""

    port: int
    protocol: str = "TCP"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A container that is wired (`<overlay_prefix>/workloads/<node>/<namespace>/<name>`).

    `namespace` is the Kubernetes kind of namespace; `netns` names or describes the kernel's, for people.
    """

    name: str
    namespace: str
    node: str
    ips: tuple[IPAddress, ...]
    mac: Mac
    device: str
    netns: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    ports: tuple[Port, ...] = ()
    ready: bool = True
    serving: bool = True
    terminating: bool = False

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"


# --- readiness probes -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """Whether the container accepts a connection at this port."""

    port: int


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """Whether the container answers a GET with a status from 200 to 399."""

    port: int
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)


@dataclass(frozen=True, slots=True)
class ExecCheck:
    """Whether a command, run inside the container as its user, ends with 0."""

    command: tuple[str, ...]


Check: TypeAlias = TcpCheck | HttpCheck | ExecCheck


@dataclass(frozen=True, slots=True)
class Probe:
    """How to find out whether a container is ready, with Kubernetes' defaults (API v1, Probe). Times in
    seconds; thresholds count results in a row."""

    check: Check
    period_s: float = 10.0
    timeout_s: float = 1.0
    initial_delay_s: float = 0.0
    success_threshold: int = 1
    failure_threshold: int = 3


# --- services -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service. `target` is the port of the endpoints that come from workloads: a number, or the
    name of a port of theirs; endpoints of slices bring their own. `node_port` 0: none."""

    port: int
    protocol: str = "TCP"
    name: str = ""
    target: int | str = 0
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A Kubernetes Service (`<overlay_prefix>/services/<namespace>/<name>`), as far as it matters here.

    `cluster_ips` is empty for a headless one and for type ExternalName. `ingress_ips` are those of the load
    balancer that are served here (ipMode VIP). `affinity_s`: seconds of session affinity by client address;
    0: none. `distribution`: trafficDistribution. Source: Kubernetes API v1, ServiceSpec."""

    name: str
    namespace: str
    type: str = "ClusterIP"
    cluster_ips: tuple[IPAddress, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    external_ips: tuple[IPAddress, ...] = ()
    ingress_ips: tuple[IPAddress, ...] = ()
    source_ranges: tuple[IPNetwork, ...] = ()
    internal_policy: str = CLUSTER
    external_policy: str = CLUSTER
    affinity_s: int = 0
    health_check_node_port: int = 0
    publish_not_ready: bool = False
    distribution: str = ""

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def served(self) -> bool:
        """Whether there is anything to do for it: it has a VIP, and no label says that another program
        serves it or that nobody does."""
        return bool(self.cluster_ips) and not UNSERVED_LABELS.intersection(self.labels)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of a slice; `for_zones` and `for_nodes` are its hints."""

    ip: IPAddress
    node: str | None = None
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A Kubernetes EndpointSlice (`<overlay_prefix>/endpointslices/<namespace>/<name>`). `service` is the name
    in its label kubernetes.io/service-name. Source: discovery.k8s.io/v1."""

    name: str
    namespace: str
    service: str
    ports: tuple[Port, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Allocation:
    """Who has a virtual IP (`<overlay_prefix>/vips/<ip>`) or a nodePort (`<overlay_prefix>/nodeports/
    <proto>-<port>`): the service's ``namespace/name``."""

    service: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A key of somebody's that could not be understood: reported, and otherwise as if it were absent."""

    reason: str


Record: TypeAlias = (
    NetworkConfig
    | Settings
    | Lease
    | NodeRecord
    | Claim
    | Workload
    | Service
    | EndpointSlice
    | Allocation
    | Unreadable
)
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Stored(Generic[T_co]):
    """A value with its key and etcd's word on it. `lease_id` 0 means it never expires (a reservation)."""

    key: str
    value: T_co
    create_revision: int = 0
    mod_revision: int = 0
    lease_id: int = 0


# --- this host ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes this node itself across restarts and reboots; kept in a 0600 file on its own disk."""

    node_id: str
    vtep_mac: Mac
    subnets: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Traces:
    """What a flannel left on this host: the MACs of VXLAN devices named as it names them and not ours, and
    the subnets in its subnet.env. They prove that a lease without node id is this host's."""

    vtep_macs: frozenset[Mac] = frozenset()
    subnets: tuple[IPNetwork, ...] = ()


NO_TRACES = Traces()


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How this host serves services. `node_ips`: its addresses that nodePorts are open on; None: every local
    one. `local_detect`, as in `config.ServiceConfig`, is how packets of this cluster's containers are told
    from others. `localhost_node_ports`: nodePorts also by 127.0.0.0/8, which needs the kernel to route such
    packets."""

    node_ips: tuple[IPAddress, ...] | None = ()
    local_detect: str = "cluster-cidr"
    masquerade_all: bool = False
    localhost_node_ports: bool = False


@dataclass(frozen=True, slots=True)
class LocalHost:
    """What the planner must know of this host. `underlay_mtu` is in bytes. `on_link` are the networks that
    the underlay interface reaches without a gateway. `adopt_lease`: the operator says that a lease of
    flannel's with our public address is ours, though nothing here proves it. `instance` tells the agents of
    several networks on one host apart. `services` None: this host serves none."""

    name: str
    identity: Identity
    public_ips: tuple[IPAddress, ...]
    interface: str
    underlay_mtu: int
    bridge: str = "cni0"
    bridge_mode: str = "managed"
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    masquerade: bool = True
    vxlan_peers_only: bool = False
    on_link: tuple[IPNetwork, ...] = ()
    traces: Traces = NO_TRACES
    adopt_lease: bool = False
    instance: str = ""
    services: ServiceOptions | None = None
