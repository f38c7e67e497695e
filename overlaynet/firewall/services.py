"""Service ports to chains: kube-proxy's iptables mode under our own names.

A connection's first packet walks the nat table, and everything is decided there:

    PREROUTING, OUTPUT ─► OVL-SERVICES ─┬─► OVL-SVC-h ──┬─► OVL-SEP-h   one endpoint: DNAT
                          by address    ├─► OVL-SVL-h ──┘
                          and port      ├─► OVL-EXT-h ─► SVC or SVL     from outside: masquerade
                                        ├─► OVL-FW-h ──► EXT            only from these networks
                                        └─► OVL-NODEPORTS ─► EXT        by port, at this host's addresses

SVC holds the endpoints of the traffic policy Cluster, SVL those of Local; `h` is a hash of service port and
protocol, for SEP of the endpoint as well. What shall be masqueraded gets a mark on the way (OVL-MARK-MASQ), and
is masqueraded where it leaves (OVL-POSTROUTING), after the mark was cleared: a packet that walks the stack
once more, inside a tunnel, is not masqueraded again.

The filter table sees a packet after nat did. One that still has a service's address was not accepted there,
so rules by that address say what becomes of it: REJECT where the service has no endpoint at all, DROP where
it has some but none that this traffic may go to, and nothing where it was taken to an endpoint. In the order
of the hooks:

* **OVL-FIREWALL** stops what was sent to 127.0.0.0/8 from elsewhere, which the kernel would route as soon as
  nodePorts are served there (CVE-2020-8558).
* **OVL-PROXY-FIREWALL** drops what OVL-FW did not let through.
* **OVL-NODEPORTS** accepts questions to healthCheckNodePorts.
* **OVL-EXTERNAL** is for external addresses and, by way of **OVL-NO-ENDPOINTS**, for nodePorts. It comes before
  the next, whose last rules take everything.
* **OVL-SERVICES** is for cluster IPs; and what is addressed to the service network at all, an unused port of a
  service or an address of none, is rejected rather than sent to the default route.
* **OVL-FORWARD** then accepts what is marked, and all that belongs to a connection, so that services work
  where the policy of FORWARD is DROP.

Only new connections are sent through the three that reject and drop. The first two and the last two are called
from FORWARD, a host's own processes come by OUTPUT, and what is for the host itself by INPUT.

**INVALID.** Packets that conntrack cannot place are not translated back. A client that gets such a reply from
an endpoint's own address answers it with a reset, which ends the connection; so they have to be dropped. But a
host that routes other people's traffic and sees only one direction of it takes all of that for INVALID.
Therefore only what may belong to a service is dropped: what comes from a container and what goes to the
service network. Where nothing tells a container's packets, it is all of them.

**Session affinity**, by `Affinity`: a timed ipset for each endpoint, to which a client is added with every
connection it opens; or the match ``recent``, whose lists forget beyond 100 addresses, for hosts without ipset.

Rules of one service port carry its name in the comment as kube-proxy's do, and `Source` names its service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.firewall.chains import MASQUERADE_MARK, Dispatch, Part, Rules, chain_key, probability, rule
from overlaynet.state import ChainKey, Endpoint, ServicePortPolicy, ServicesPolicy, Source

Affinity: TypeAlias = Literal["ipset", "recent"]

SERVICES = chain_key("nat", "OVL-SERVICES")
NODE_PORTS = chain_key("nat", "OVL-NODEPORTS")
MARK_MASQ = chain_key("nat", "OVL-MARK-MASQ")
MARK_OUTSIDERS = chain_key("nat", "OVL-MARK-OUTSIDE")
MASQUERADE_MARKED = chain_key("nat", "OVL-MASQUERADE")
CLUSTER_FILTER = chain_key("filter", "OVL-SERVICES")
EXTERNAL_FILTER = chain_key("filter", "OVL-EXTERNAL")
NO_ENDPOINTS = chain_key("filter", "OVL-NO-ENDPOINTS")
HEALTH_CHECKS = chain_key("filter", "OVL-NODEPORTS")
PROXY_FIREWALL = chain_key("filter", "OVL-PROXY-FIREWALL")
MARTIANS = chain_key("filter", "OVL-FIREWALL")

PORT_ORDER = 50
"""Rules of service ports in the shared chains."""
REST_ORDER = 90
"""What comes after the rules of all service ports."""
MARKED_ORDER = 40
"""In OVL-POSTROUTING, before the rules that masquerade containers."""
INVALID_ORDER, MARK_ACCEPT_ORDER, ESTABLISHED_ORDER = 20, 30, 40
"""In OVL-FORWARD, between the guard and the accepts."""

BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
HASH_SHIFTS = range(59, 0, -5)
"""Of 12 groups of 5 bits in a number of 64."""
MARKED = f"-m mark --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}"
SRC_LOCAL, DST_LOCAL = "-m addrtype --src-type LOCAL", "-m addrtype --dst-type LOCAL"
INVALID = "-m conntrack --ctstate INVALID"
LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
REJECT = {
    4: "REJECT --reject-with icmp-port-unreachable",
    6: "REJECT --reject-with icmp6-port-unreachable",
}
WHOLE_ADDRESS = {4: "255.255.255.255", 6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
BITS = {4: 32, 6: 128}


def short_hash(text: str) -> str:
    """The first 12 characters of SHA-256 in base32 (RFC 4648), 5 bits each: short enough that a chain's name
    fits, with an instance's name before it."""
    first = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "".join([BASE32[first >> shift & 31] for shift in HASH_SHIFTS])


# --- what all services share ----------------------------------------------------------------------


def services_part(
    policy: ServicesPolicy, *, family: int, masquerade: str, postrouting: ChainKey, forward: ChainKey
) -> Part:
    """The shared chains. `masquerade` is the target, `postrouting` and `forward` the chains of ours that all
    traffic passes."""
    chains: dict[ChainKey, Rules] = {
        SERVICES: (),
        NODE_PORTS: (),
        MARK_MASQ: (rule("masquerade this", f"MARK --set-xmark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}"),),
        MASQUERADE_MARKED: tuple(_masquerade_marked(masquerade)),
        CLUSTER_FILTER: (),
        EXTERNAL_FILTER: (),
        NO_ENDPOINTS: (),
        HEALTH_CHECKS: (),
        PROXY_FIREWALL: (),
    }
    if len(sources := of_family(policy.local_sources, family)) > 1:
        chains[MARK_OUTSIDERS] = tuple(_mark_outsiders(sources, policy.local_device))
    if policy.localhost_node_ports and family == 4:
        chains[MARTIANS] = (_martian_guard(),)
    dispatch = [
        Dispatch(
            MARKED_ORDER, postrouting, rule("services: masquerade", MASQUERADE_MARKED[1], matches=[MARKED])
        ),
        *(Dispatch(REST_ORDER, SERVICES, text) for text in _to_node_ports(policy, family, NODE_PORTS)),
        *(Dispatch(REST_ORDER, EXTERNAL_FILTER, text) for text in _to_node_ports(policy, family, NO_ENDPOINTS)),
        *(Dispatch(REST_ORDER, CLUSTER_FILTER, text) for text in _rest_of_network(policy, family)),
        *_forwarding(policy, family, forward),
    ]
    return Part(chains, tuple(dispatch))


def _masquerade_marked(masquerade: str) -> Iterator[str]:
    yield rule("the mark has done its work", f"MARK --set-xmark {MASQUERADE_MARK:#x}/0x0")
    yield rule("service traffic whose reply must pass here", masquerade)


def _mark_outsiders(sources: Iterable[str], device: str) -> Iterator[str]:
    for source in sources:
        yield rule("from a container", "RETURN", matches=[f"-s {source}"])
    if device:
        yield rule("from a container", "RETURN", matches=[f"-i {device}"])
    yield rule("not from a container", MARK_MASQ[1])


def _martian_guard() -> str:
    loopback = f"! -s {LOOPBACK[4]} -d {LOOPBACK[4]} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
    return rule("block incoming localnet connections", "DROP", matches=[loopback])


def _to_node_ports(policy: ServicesPolicy, family: int, chain: ChainKey) -> Iterator[str]:
    """The jumps at this host's addresses that nodePorts are open on."""
    why = "nodePorts, after all addresses of services"
    loopback = policy.localhost_node_ports and family == 4
    if policy.node_ips is None:
        but = "" if loopback else f"! -d {LOOPBACK[family]} "
        yield rule(why, chain[1], matches=[f"{but}{DST_LOCAL}"])
        return
    for address in policy.node_ips:
        if address.version == family:
            yield rule(why, chain[1], matches=[f"-d {host(address)}"])
    if loopback:
        yield rule(why, chain[1], matches=[f"-d {LOOPBACK[4]}"])


def _rest_of_network(policy: ServicesPolicy, family: int) -> Iterator[str]:
    for network in of_family(policy.networks, family):
        yield rule("no service at this address and port", REJECT[family], matches=[f"-d {network}"])
    for address in policy.strays:
        if address.version == family:
            yield rule("no service at this port", REJECT[family], matches=[f"-d {host(address)}"])


def _forwarding(policy: ServicesPolicy, family: int, forward: ChainKey) -> Iterator[Dispatch]:
    if policy.drop_invalid:
        for match in _may_be_service_traffic(policy, family):
            text = rule("cannot be translated back", "DROP", matches=[match + INVALID])
            yield Dispatch(INVALID_ORDER, forward, text)
    yield Dispatch(MARK_ACCEPT_ORDER, forward, rule("services: masqueraded", "ACCEPT", matches=[MARKED]))
    known = "-m conntrack --ctstate RELATED,ESTABLISHED"
    yield Dispatch(ESTABLISHED_ORDER, forward, rule("services: connections", "ACCEPT", matches=[known]))


def _may_be_service_traffic(policy: ServicesPolicy, family: int) -> Iterator[str]:
    sources = of_family(policy.overlay or policy.local_sources, family)
    if not sources and not policy.local_device:
        yield ""
        return
    yield from (f"-s {source} " for source in sources)
    if policy.local_device:
        yield f"-i {policy.local_device} "
    yield from (f"-d {network} " for network in of_family(policy.networks, family))
    yield from (f"-d {host(address)} " for address in policy.strays if address.version == family)


# --- one service port -----------------------------------------------------------------------------


class Target(NamedTuple):
    """An endpoint, its address alone and with the port, the chain that leads to it, and its set of clients if
    there is affinity by ipset."""

    ip: str
    endpoint: str
    chain: ChainKey
    clients: str


@dataclass(frozen=True, slots=True)
class _Port:
    """One service port in one address family, with what its rules have in common."""

    policy: ServicePortPolicy
    common: ServicesPolicy
    family: int
    name: str
    hash: str
    cluster_ips: tuple[IPAddress, ...]
    external_ips: tuple[IPAddress, ...]
    ingress_ips: tuple[IPAddress, ...]
    cluster: tuple[Target, ...]
    local: tuple[Target, ...]
    ranges: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def svc(self) -> ChainKey:
        return ("nat", f"OVL-SVC-{self.hash}")

    @property
    def svl(self) -> ChainKey:
        return ("nat", f"OVL-SVL-{self.hash}")

    @property
    def ext(self) -> ChainKey:
        return ("nat", f"OVL-EXT-{self.hash}")

    @property
    def firewall(self) -> ChainKey:
        return ("nat", f"OVL-FW-{self.hash}")

    @property
    def externally(self) -> bool:
        """Whether anything but a cluster IP leads here."""
        return bool(self.policy.node_port or self.external_ips or self.ingress_ips)

    @property
    def internal(self) -> tuple[Target, ...]:
        return self.local if self.policy.internal_local else self.cluster

    @property
    def external(self) -> tuple[Target, ...]:
        return self.local if self.policy.external_local else self.cluster

    @property
    def uses_cluster(self) -> bool:
        return bool(self.cluster) and (not self.policy.internal_local or self.externally)

    @property
    def uses_local(self) -> bool:
        wanted = self.policy.internal_local or (self.policy.external_local and self.externally)
        return bool(self.local) and wanted

    @property
    def limited(self) -> bool:
        """Whether load balancer addresses are open to some networks only."""
        return bool(self.policy.usable and self.ingress_ips and self.ranges)

    def at(self, address: IPAddress) -> str:
        """Matches packets to this port of an address."""
        return f"-d {host(address)} {self.dport(self.policy.port)}"

    def dport(self, number: int) -> str:
        return f"-p {self.policy.protocol} -m {self.policy.protocol} --dport {number}"


def port_part(
    policy: ServicePortPolicy, common: ServicesPolicy, *, family: int, affinity: Affinity = "ipset"
) -> Part:
    """One service port. Nothing in a family in which the service has no cluster IP."""
    if not addresses(policy.cluster_ips, family):
        return Part()
    port = _port(policy, common, family, affinity)
    reached = _reached(port)
    timeout = policy.affinity_s
    return Part(
        dict(_chains(port, reached)),
        tuple(_dispatch(port)),
        {target.clients: timeout for target in reached if target.clients},
        Source("service", policy.service),
    )


def _port(policy: ServicePortPolicy, common: ServicesPolicy, family: int, affinity: Affinity) -> _Port:
    name = policy.name
    targets = {
        endpoint: _target(name, policy, endpoint, affinity)
        for endpoint in dict.fromkeys((*policy.cluster, *policy.local))
        if endpoint.ip.version == family
    }
    return _Port(
        policy,
        common,
        family,
        name,
        short_hash(name + policy.protocol),
        addresses(policy.cluster_ips, family),
        addresses(policy.external_ips, family),
        addresses(policy.ingress_ips, family),
        tuple(targets[endpoint] for endpoint in policy.cluster if endpoint in targets),
        tuple(targets[endpoint] for endpoint in policy.local if endpoint in targets),
        of_family(policy.source_ranges, family),
        of_family(common.local_sources, family),
    )


def _target(name: str, policy: ServicePortPolicy, endpoint: Endpoint, affinity: Affinity) -> Target:
    """The set's name says the timeout too: a set's timeout cannot be changed, so another one is another set."""
    address = str(endpoint)
    what = f"{name}{policy.protocol}{address}"
    by_set = policy.affinity_s and affinity == "ipset"
    clients = f"OVL-SEP-{short_hash(f'{what}/{policy.affinity_s}')}" if by_set else ""
    return Target(host(endpoint.ip), address, ("nat", f"OVL-SEP-{short_hash(what)}"), clients)


def _reached(port: _Port) -> tuple[Target, ...]:
    cluster = port.cluster if port.uses_cluster else ()
    local = port.local if port.uses_local else ()
    return tuple(dict.fromkeys((*cluster, *local)))


def _chains(port: _Port, reached: Iterable[Target]) -> Iterator[tuple[ChainKey, Rules]]:
    if port.uses_cluster:
        internal = not port.policy.internal_local
        yield port.svc, (*_mark_internal(port, internal), *_balance(port, port.cluster))
    if port.uses_local:
        yield port.svl, (*_mark_internal(port, port.policy.internal_local), *_balance(port, port.local))
    if port.policy.usable and port.externally:
        yield port.ext, tuple(_from_outside(port))
    if port.limited:
        yield port.firewall, tuple(_allowed(port))
    for target in reached:
        yield target.chain, tuple(_to_endpoint(port, target))


def _mark_internal(port: _Port, internal: bool) -> Iterator[str]:
    """Masquerade what goes to a cluster IP and is no container's. The chain may serve external traffic too,
    which is marked in EXT, so the address is matched again."""
    if not internal or (target := _outsiders(port)) is None:
        return
    not_from, not_in, chain = target
    for address in port.cluster_ips:
        match = f"{not_from}-d {host(address)} {not_in}{port.dport(port.policy.port)}"
        yield rule(f"{port.name} cluster IP", chain[1], matches=[match])


def _outsiders(port: _Port) -> tuple[str, str, ChainKey] | None:
    """How a packet that is no container's is told: by source, by device, and the chain to send it to."""
    device = port.common.local_device
    if port.common.masquerade_all:
        return "", "", MARK_MASQ
    if len(port.sources) > 1:
        return "", "", MARK_OUTSIDERS
    if not port.sources and not device:
        return None
    return "".join(f"! -s {s} " for s in port.sources), f"! -i {device} " if device else "", MARK_MASQ


def _balance(port: _Port, targets: Sequence[Target]) -> Iterator[str]:
    for target in targets:
        if port.policy.affinity_s:
            known = _known_client(port, target)
            yield rule(f"{port.name} -> {target.endpoint}", target.chain[1], matches=[known])
    for left, target in zip(range(len(targets), 0, -1), targets, strict=True):
        share = [probability(1 / left)] if left > 1 else []
        yield rule(f"{port.name} -> {target.endpoint}", target.chain[1], matches=share)


def _known_client(port: _Port, target: Target) -> str:
    if target.clients:
        return f"-m set --match-set {target.clients} src"
    return (
        f"-m recent --rcheck --seconds {port.policy.affinity_s} --reap --name {target.chain[1]} "
        f"--mask {WHOLE_ADDRESS[port.family]} --rsource"
    )


def _from_outside(port: _Port) -> Iterator[str]:
    """EXT. Under the policy Local the client's address is kept; containers and this host, whose replies come
    back here anyway, may go to any endpoint."""
    if not port.policy.external_local:
        why = f"masquerade traffic for {port.name} external destinations"
        yield rule(why, MARK_MASQ[1])
        if port.uses_cluster:
            yield rule(port.name, port.svc[1])
        return
    if port.uses_cluster:
        yield from _short_circuits(port)
    if port.uses_local:
        yield rule(port.name, port.svl[1])


def _short_circuits(port: _Port) -> Iterator[str]:
    ours = [f"-s {source}" for source in port.sources]
    ours += [f"-i {port.common.local_device}"] if port.common.local_device else []
    for match in ours:
        yield rule(f"pod traffic for {port.name} external destinations", port.svc[1], matches=[match])
    what = f"LOCAL traffic for {port.name} external destinations"
    yield rule(f"masquerade {what}", MARK_MASQ[1], matches=[SRC_LOCAL])
    yield rule(f"route {what}", port.svc[1], matches=[SRC_LOCAL])


def _allowed(port: _Port) -> Iterator[str]:
    """FW. A host that has a load balancer's address itself uses it as source when it speaks to it."""
    for source in port.ranges:
        yield rule(f"{port.name} loadbalancer IP", port.ext[1], matches=[f"-s {source}"])
    if _host_is_allowed(port):
        for address in port.ingress_ips:
            yield rule(f"{port.name} loadbalancer IP", port.ext[1], matches=[f"-s {host(address)}"])


def _host_is_allowed(port: _Port) -> bool:
    own = addresses(port.common.node_ips or (), port.family)
    return any(address in network for address in own for network in port.policy.source_ranges)


def _to_endpoint(port: _Port, target: Target) -> Iterator[str]:
    """SEP. An endpoint that is sent back to itself would see its own address as source, and answer itself."""
    protocol = f"-p {port.policy.protocol}"
    yield rule(port.name, MARK_MASQ[1], matches=[f"-s {target.ip}"])
    matches = [protocol]
    if target.clients:
        yield rule(port.name, f"SET --add-set {target.clients} src --exist", matches=[protocol])
    elif port.policy.affinity_s:
        mask = WHOLE_ADDRESS[port.family]
        matches.append(f"-m recent --set --name {target.chain[1]} --mask {mask} --rsource")
    yield rule(port.name, f"DNAT --to-destination {target.endpoint}", matches=matches)


# --- its rules in shared chains -------------------------------------------------------------------


def _dispatch(port: _Port) -> Iterator[Dispatch]:
    for chain, match, why, target in (*_nat_rules(port), *_filter_rules(port)):
        yield Dispatch(PORT_ORDER, chain, rule(f"{port.name} {why}".rstrip(), target, matches=[match]))


_Entry: TypeAlias = tuple[ChainKey, str, str, str]


def _nat_rules(port: _Port) -> Iterator[_Entry]:
    if port.internal and port.policy.usable:
        chain = port.svl if port.policy.internal_local else port.svc
        for address in port.cluster_ips:
            yield SERVICES, port.at(address), "cluster IP", chain[1]
    if not port.policy.usable:
        return
    for address in port.external_ips:
        yield SERVICES, port.at(address), "external IP", port.ext[1]
    for address in port.ingress_ips:
        chain = port.firewall if port.limited else port.ext
        yield SERVICES, port.at(address), "loadbalancer IP", chain[1]
    if port.policy.node_port:
        yield NODE_PORTS, port.dport(port.policy.node_port), "", port.ext[1]


def _filter_rules(port: _Port) -> Iterator[_Entry]:
    some = port.policy.usable
    why, target = ("has no local endpoints", "DROP") if some else ("has no endpoints", REJECT[port.family])
    if not (some and port.internal):
        for address in port.cluster_ips:
            yield CLUSTER_FILTER, port.at(address), why, target
    if not (some and port.external):
        for address in (*port.external_ips, *port.ingress_ips):
            yield EXTERNAL_FILTER, port.at(address), why, target
        if port.policy.node_port:
            yield NO_ENDPOINTS, port.dport(port.policy.node_port), why, target
    if port.limited:
        for address in port.ingress_ips:
            refused = f"traffic not accepted by {port.firewall[1]}"
            yield PROXY_FIREWALL, port.at(address), refused, "DROP"
    if port.policy.health_check_node_port:
        match = f"-p tcp -m tcp --dport {port.policy.health_check_node_port}"
        yield HEALTH_CHECKS, match, "health check node port", "ACCEPT"


# --- of one family --------------------------------------------------------------------------------


def host(address: IPAddress) -> str:
    """An address as a match has it."""
    return f"{address}/{BITS[address.version]}"


def addresses(some: Iterable[IPAddress], family: int) -> tuple[IPAddress, ...]:
    return tuple(address for address in some if address.version == family)


def of_family(networks: Iterable[IPNetwork], family: int) -> tuple[str, ...]:
    return tuple(str(network) for network in networks if network.version == family)
