"""How a packet gets to another host, and the entries that take it there.

VXLAN, for a packet from a container here to 10.244.2.7 there::

    route   10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink     which device, which next hop
    neigh   10.244.2.0 lladdr 02:…:02 dev flannel.1 permanent     the next hop's MAC; nobody is asked
    fdb     02:…:02 dev flannel.1 dst 192.168.50.12 permanent     the underlay address behind that MAC

The next hop is the peer's VXLAN device, whose address is the base address of the peer's subnet; it is
"onlink" because no connected route covers it. With all three in place the kernel never floods and never
asks by ARP. They are written in the order neighbour, FDB, route: a route whose neighbour is not there yet
would make the kernel ask (RFC 7348 section 4; the scheme is flannel's).

With DirectRouting a peer whose underlay address our interface reaches without a gateway gets the route that
host-gw would give it, and no tunnel. Both kinds of route have one key, so changing kinds replaces the route
in one step.

host-gw needs one route via the peer's underlay address, and both hosts on one link.

Every peer's route has a metric of its own, derived from its subnet. With equal metrics all routes of one
device fall into one bucket of the kernel's fib_info hash (net/ipv4/fib_semantics.c hashes protocol, scope,
priority and device, not the gateway), which each insert then walks: quadratic in the number of peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from overlaynet.addr import MIN_MTU_BYTES, IPNetwork, container_mac, gateway_address, vtep_address, vxlan_mtu
from overlaynet.model import HOST_GW, VXLAN, Backend, Lease, LocalHost, NetworkConfig
from overlaynet.state import (
    Address,
    Fdb,
    Link,
    Neigh,
    Object,
    Route,
    Sysctl,
    Vxlan,
    tag,
)

USABLE_MTU_BYTES = 576
"""What every IPv4 host must be able to receive (RFC 791); below it programs may fail in odd ways."""


def vxlan_device(vni: int) -> str:
    """flannel's name for the device, so that its tools and ours see the same thing."""
    return f"flannel.{vni}"


def vxlan_tag(vni: int, instance: str = "") -> str:
    return tag(f"vxlan-{vni}", instance)


def bridge_tag(name: str, instance: str = "") -> str:
    return tag(f"bridge-{name}", instance)


def metric_of(subnet: IPNetwork) -> int:
    """A metric ≥ 1 that depends on nothing but the subnet: its number among all subnets of its length."""
    return (int(subnet.network_address) >> (subnet.max_prefixlen - subnet.prefixlen)) % 0x7FFF_FFFF + 1


def underlay_mtu(backend: Backend, local: LocalHost) -> int:
    """Bytes: the interface's MTU, or what the network config says where that is less. A config that promises
    more than the interface carries would have every large packet lost, or cut in two."""
    return min(backend.mtu or local.underlay_mtu, local.underlay_mtu)


def container_mtu(backend: Backend, local: LocalHost) -> int:
    """The largest IP packet a container may send, in bytes; never less than a device with IPv4 must have."""
    mtu = underlay_mtu(backend, local)
    inner = vxlan_mtu(mtu, local.public_ips[0].version) if backend.type == VXLAN else mtu
    return max(inner, MIN_MTU_BYTES[4])


def host_objects(network: NetworkConfig, lease: Lease, local: LocalHost, *, wants_bridge: bool) -> list[Object]:
    """What this host needs whoever its peers are."""
    objects: list[Object] = [Sysctl("net/ipv4/ip_forward", "1")]
    if network.backend.type == VXLAN:
        objects += _vxlan_objects(network.backend, lease, local)
    if wants_bridge and local.bridge_mode == "managed":
        objects += _bridge_objects(network.backend, lease, local)
    return objects


def _vxlan_objects(backend: Backend, lease: Lease, local: LocalHost) -> Iterator[Object]:
    dev = vxlan_device(backend.vni)
    yield Link(
        name=dev,
        type="vxlan",
        tag=vxlan_tag(backend.vni, local.instance),
        mtu=container_mtu(backend, local),
        mac=local.identity.vtep_mac,
        vxlan=Vxlan(backend.vni, backend.port, local.public_ips[0], local.interface, backend.learning),
    )
    for subnet in lease.subnets:
        address = vtep_address(subnet)
        yield Address(dev, ip_interface(f"{address}/{subnet.max_prefixlen}"))
    yield Sysctl(f"net/ipv4/conf/{dev}/rp_filter", "2")


def _bridge_objects(backend: Backend, lease: Lease, local: LocalHost) -> Iterator[Object]:
    mac = container_mac(gateway_address(lease.subnets[0]))
    mtu = container_mtu(backend, local)
    mark = bridge_tag(local.bridge, local.instance)
    yield Link(name=local.bridge, type="bridge", tag=mark, mtu=mtu, mac=mac)
    for subnet in lease.subnets:
        yield Address(local.bridge, ip_interface(f"{gateway_address(subnet)}/{subnet.prefixlen}"))
    yield Sysctl(f"net/ipv4/conf/{local.bridge}/rp_filter", "2")


def peer_objects(network: NetworkConfig, peer: Lease, local: LocalHost) -> list[Object]:
    """The entries that lead to one peer. Empty for a peer whose backend is not the network's."""
    backend = network.backend
    if peer.backend_type != backend.type:
        return []
    if backend.type == HOST_GW:
        return list(_host_gw_peer(peer, local))
    return list(_vxlan_peer(backend, peer, local))


def _vxlan_peer(backend: Backend, peer: Lease, local: LocalHost) -> Iterator[Object]:
    dev = vxlan_device(backend.vni)
    for subnet in peer.subnets:
        vtep, public_ip = peer.vtep(subnet.version), peer.public_ip(4)
        if vtep is None or public_ip is None or vtep.vni != backend.vni:
            continue
        if backend.direct_routing and subnet.version == 4 and any(public_ip in n for n in local.on_link):
            yield Route(subnet, local.interface, via=public_ip, metric=metric_of(subnet))
            continue
        hop = vtep_address(subnet)
        yield Neigh(dev, hop, vtep.mac)
        yield Fdb(dev, vtep.mac, dst=public_ip)
        yield Route(subnet, dev, via=hop, metric=metric_of(subnet), onlink=True)


def _host_gw_peer(peer: Lease, local: LocalHost) -> Iterator[Object]:
    for subnet in peer.subnets:
        public_ip = peer.public_ip(subnet.version)
        if public_ip is not None:
            yield Route(subnet, local.interface, via=public_ip, metric=metric_of(subnet))
