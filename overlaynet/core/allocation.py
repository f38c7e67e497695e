"""Which virtual IP and nodePort a service gets that asks for none in particular. Pure.

The search begins at a place that follows from the service's name, so that a service has the same address in
each lab that is built like another, and two clients that choose at the same time rarely choose the same. The
lower end of each range is taken last: it is left to those who ask for a certain address (KEP-3070 and KEP-3668
divide the ranges in this way).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.core.keys import Keys
from overlaynet.model import Service

NODE_PORTS = range(30_000, 32_768)
"""Kubernetes' default range (kube-apiserver --service-node-port-range)."""


def choose_vip(network: IPNetwork, service: str, is_free: Callable[[IPAddress], bool]) -> IPAddress | None:
    """A free address of the service network, neither its first nor its last; None if there is none.

    `service` is ``namespace/name``."""
    size = network.num_addresses - 2
    found = (network.network_address + 1 + n for n in _order(size, _kept(size, 256), service))
    return next(filter(is_free, found), None)


def choose_node_port(seed: str, is_free: Callable[[int], bool]) -> int | None:
    """A free nodePort; None if there is none. `seed` is any text that tells the service's ports apart."""
    found = (NODE_PORTS[n] for n in _order(len(NODE_PORTS), _kept(len(NODE_PORTS), 128), seed))
    return next(filter(is_free, found), None)


def allocations(service: Service, keys: Keys) -> frozenset[str]:
    """The keys of all that a service holds: its VIPs, its nodePorts, that of its health check."""
    node_ports = {keys.node_port(port.protocol, port.node_port) for port in service.ports if port.node_port}
    if service.health_check_node_port:
        node_ports.add(keys.node_port("TCP", service.health_check_node_port))
    return frozenset(node_ports.union(map(keys.vip, service.cluster_ips)))


def _kept(size: int, most: int) -> int:
    """How many at the lower end are taken last: a sixteenth, but from 16 to `most` of them."""
    return min(max(16, size // 16), most, max(0, size))


def _order(size: int, kept: int, name: str) -> Iterator[int]:
    """Every number below `size` once: those from `kept` on, beginning where `name` says, then the others."""
    upper = size - kept
    start = int.from_bytes(sha256(name.encode()).digest()[:8]) % max(1, upper)
    for n in range(upper):
        yield kept + (start + n) % upper
    yield from range(kept)
