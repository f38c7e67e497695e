"""Which interface and address of this machine carry the overlay, and whom it reaches without a gateway.

As flannel chooses: interfaces that were named, by name or address, in the order given; else patterns, each
tried on all addresses and then on all names; else the interface by which some address is reached; else the
one that holds the public address, else the device of the default route. An address is wanted that other
hosts can use, so loopback and link-local ones do not count, and neither do devices of our own. Where
nothing fits, the error lists what was there to choose from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from overlaynet.addr import IPAddress, IPNetwork, Mac, is_within
from overlaynet.config import AgentConfig
from overlaynet.errors import UnderlayProblem
from overlaynet.model import NO_TRACES, Identity, LocalHost, ServiceOptions, Traces
from overlaynet.state import MAIN_TABLE, ROUTE_PROTOCOL, KernelState, LinkInfo, Route

FLANNEL_DEVICE = re.compile(r"flannel\.[0-9]+")


def local_host(
    config: AgentConfig, identity: Identity, kernel: KernelState, traces: Traces = NO_TRACES
) -> LocalHost:
    """What the planner needs to know of this host. Raises UnderlayProblem."""
    link, address = _interface(config, kernel)
    public_ips = (config.node.public_ip or address or _public_ip(link, kernel),)
    return LocalHost(
        name=config.node.name,
        identity=identity,
        public_ips=public_ips,
        interface=link.name,
        underlay_mtu=link.mtu,
        bridge=config.bridge.name,
        bridge_mode=config.bridge.mode,
        zone=config.node.zone,
        labels=config.node.labels,
        masquerade=config.firewall.masquerade,
        vxlan_peers_only=config.firewall.vxlan_peers_only,
        on_link=on_link(kernel, link.name),
        traces=traces,
        adopt_lease=config.node.adopt_lease,
        instance=config.node.instance,
        services=_service_options(config, _primary(public_ips, link, kernel), kernel),
    )


def _primary(public_ips: tuple[IPAddress, ...], link: LinkInfo, kernel: KernelState) -> tuple[IPAddress, ...]:
    """The public addresses as packets to them arrive here: behind a NAT they have the interface's address."""
    here = {a.interface.ip for a in kernel.addresses}
    own = tuple(ip for ip in public_ips if ip in here)
    return own or tuple(usable_addresses(kernel, link.name)[:1])


def _service_options(
    config: AgentConfig, primary: tuple[IPAddress, ...], kernel: KernelState
) -> ServiceOptions | None:
    """How services are served here; None where that is left to another program."""
    service = config.service
    if service.mode == "off":
        return None
    return ServiceOptions(
        node_ips=_node_ips(config, primary, kernel),
        local_detect=service.local_detect,
        masquerade_all=service.masquerade_all,
        localhost_node_ports=service.localhost_node_ports,
    )


def _node_ips(
    config: AgentConfig, primary: tuple[IPAddress, ...], kernel: KernelState
) -> tuple[IPAddress, ...] | None:
    """The addresses of this host that nodePorts are open on, None for all that it has. Loopback addresses are
    a matter of `localhost_node_ports`."""
    words = config.service.node_port_addresses
    if words == ("all",):
        return None
    if words == ("primary",):
        return primary
    networks = [ip_network(word) for word in words]
    here = {a.interface.ip for a in kernel.addresses if not a.interface.ip.is_loopback}
    found = (ip for ip in here if any(ip in network for network in networks))
    return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))


def traces(kernel: KernelState, subnets: tuple[IPNetwork, ...]) -> Traces:
    """What flannel left here; `subnets` are those of its subnet.env."""
    return Traces(frozenset(_flannel_macs(kernel)), subnets)


def _flannel_macs(kernel: KernelState) -> Iterator[Mac]:
    for link in kernel.links.values():
        if link.type == "vxlan" and link.mac and not link.tag and FLANNEL_DEVICE.fullmatch(link.name):
            yield link.mac


def usable_addresses(kernel: KernelState, device: str) -> list[IPAddress]:
    """Addresses of a device that another host could reach, IPv4 first."""
    found = [a.interface.ip for a in kernel.addresses if a.dev == device]
    return sorted(
        (ip for ip in found if not ip.is_loopback and not ip.is_link_local),
        key=lambda ip: (ip.version, found.index(ip)),
    )


def on_link(kernel: KernelState, device: str) -> tuple[IPNetwork, ...]:
    """The networks that `device` reaches without a gateway; not the parts for which a longer route says
    otherwise."""
    main = _others(kernel)
    found = [part for network in direct(kernel, device) for part in _without(network, main, device)]
    return tuple(sorted(found, key=lambda n: (n.version, int(n.network_address), n.prefixlen)))


def direct(kernel: KernelState, device: str) -> list[IPNetwork]:
    """The networks that some route leads to through `device` without a gateway. A route of others inside one of
    them may make a difference to `on_link`; one outside does if it is such a route itself."""
    return [route.dst for route in _others(kernel) if route.dev == device and route.via is None]


def _others(kernel: KernelState) -> list[Route]:
    """What leads to a part of the world, and is not by us."""
    foreign = [r for r in kernel.routes if r.protocol != ROUTE_PROTOCOL]
    return [r for r in foreign if r.table == MAIN_TABLE and r.type == "unicast" and r.dst.prefixlen]


def _without(network: IPNetwork, routes: Iterable[Route], device: str) -> list[IPNetwork]:
    """`network` less every longer route inside it that leads elsewhere."""
    parts = [network]
    for route in routes:
        inside = route.dst != network and is_within(route.dst, network)
        if inside and (route.via is not None or route.dev != device):
            parts = [rest for part in parts for rest in _exclude(part, route.dst)]
    return parts


def _exclude(part: IPNetwork, gone: IPNetwork) -> list[IPNetwork]:
    if is_within(part, gone):
        return []
    return list(part.address_exclude(gone)) if is_within(gone, part) else [part]  # type: ignore[arg-type]


def _interface(config: AgentConfig, kernel: KernelState) -> tuple[LinkInfo, IPAddress | None]:
    """The link, and the address on it if it was found by that."""
    node = config.node
    if node.interface:
        return _named(node.interface, kernel)
    if node.interface_regex:
        return _matching(node.interface_regex, kernel)
    if node.interface_can_reach:
        return _reaching(node.interface_can_reach, kernel)
    if node.public_ip and (holder := _holder(node.public_ip, kernel)):
        return holder, None
    return _default(kernel), None


def _default(kernel: KernelState) -> LinkInfo:
    defaults = [r for r in kernel.routes if r.dst.prefixlen == 0 and r.table == MAIN_TABLE]
    for route in sorted(defaults, key=lambda r: (r.dst.version, r.metric)):
        if route.dev and route.dev in kernel.links:
            return kernel.links[route.dev]
    raise UnderlayProblem(
        "no underlay interface was named, and there is no default route to take one from",
        evidence=_choices(kernel),
        next=["set node.interface in agent.toml", "ip route show default"],
    )


def _holder(address: IPAddress, kernel: KernelState) -> LinkInfo | None:
    return next((kernel.links[a.dev] for a in kernel.addresses if a.interface.ip == address), None)


def _named(wanted: tuple[str, ...], kernel: KernelState) -> tuple[LinkInfo, IPAddress | None]:
    """The first that there is, by address or by name."""
    for word in wanted:
        for address in kernel.addresses:
            if str(address.interface.ip) == word:
                return kernel.links[address.dev], address.interface.ip
        if word in kernel.links:
            return kernel.links[word], None
    raise UnderlayProblem(
        f"underlay interface {' or '.join(wanted)} does not exist",
        evidence=_choices(kernel),
        next=["ip -br address", "set node.interface in agent.toml"],
    )


def _matching(patterns: tuple[str, ...], kernel: KernelState) -> tuple[LinkInfo, IPAddress | None]:
    """The first match of the first pattern that has one, tried on addresses before names."""
    candidates = [link for _, link in sorted(kernel.links.items()) if link.type != "loopback" and not link.tag]
    for pattern in map(re.compile, patterns):
        for link in candidates:
            for ip in usable_addresses(kernel, link.name):
                if ip.version == 4 and pattern.search(str(ip)):
                    return link, ip
        for link in candidates:
            if pattern.search(link.name):
                return link, None
    raise UnderlayProblem(
        f"no interface or address here matches {' or '.join(patterns)}",
        evidence=_choices(kernel),
        next=["ip -br address", "set node.interface_regex in agent.toml"],
    )


def _reaching(target: IPAddress, kernel: KernelState) -> tuple[LinkInfo, IPAddress | None]:
    """By the longest route to it, and of equal ones that with the lowest metric."""
    routes = [r for r in kernel.routes if r.table == MAIN_TABLE and r.dst.version == target.version]
    covering = [r for r in routes if target in r.dst and r.dev in kernel.links and r.type == "unicast"]
    best = min(covering, key=lambda r: (-r.dst.prefixlen, r.metric), default=None)
    if best is None or best.dev is None:
        raise UnderlayProblem(
            f"no route leads to {target}, so no interface can be chosen by it",
            evidence=_choices(kernel),
            next=[f"ip route get {target}", "set node.interface in agent.toml"],
        )
    return kernel.links[best.dev], best.prefsrc


def _public_ip(link: LinkInfo, kernel: KernelState) -> IPAddress:
    for ip in usable_addresses(kernel, link.name):
        if ip.version == 4:
            return ip
    raise UnderlayProblem(
        f"underlay interface {link.name} has no IPv4 address that other hosts could reach",
        evidence=_choices(kernel),
        next=[f"ip address show dev {link.name}", "set node.interface or node.public_ip in agent.toml"],
    )


def _choices(kernel: KernelState) -> str:
    seen = [
        f"{name} {' '.join(map(str, usable_addresses(kernel, name))) or 'without a usable address'}"
        for name, link in sorted(kernel.links.items())
        if link.type != "loopback" and not link.tag
    ]
    return "interfaces here: " + ("; ".join(seen) or "none but loopback")
