"""Which interface and address of this machine carry the overlay.

As flannel chooses: an interface or address that was named; else the device of the default route. An
address is wanted that other hosts can use, so loopback and link-local ones do not count, and neither do
devices of our own. Where nothing fits, the error lists what was there to choose from.
"""

from __future__ import annotations

from overlaynet.addr import IPAddress
from overlaynet.config import AgentConfig
from overlaynet.errors import UnderlayProblem
from overlaynet.model import Identity, LocalHost
from overlaynet.state import MAIN_TABLE, KernelState, LinkInfo


def local_host(config: AgentConfig, identity: Identity, kernel: KernelState) -> LocalHost:
    """What the planner needs to know of this host. Raises UnderlayProblem."""
    link = _interface(config, kernel)
    return LocalHost(
        name=config.node.name,
        identity=identity,
        public_ips=(_public_ip(config, link, kernel),),
        interface=link.name,
        underlay_mtu=link.mtu,
        bridge=config.bridge.name,
        bridge_mode=config.bridge.mode,
        zone=config.node.zone,
        labels=config.node.labels,
        masquerade=config.firewall.masquerade,
        vxlan_peers_only=config.firewall.vxlan_peers_only,
    )


def usable_addresses(kernel: KernelState, device: str) -> list[IPAddress]:
    """Addresses of a device that another host could reach, IPv4 first."""
    found = [a.interface.ip for a in kernel.addresses if a.dev == device]
    return sorted(
        (ip for ip in found if not ip.is_loopback and not ip.is_link_local),
        key=lambda ip: (ip.version, found.index(ip)),
    )


def _interface(config: AgentConfig, kernel: KernelState) -> LinkInfo:
    if config.node.interface:
        return _named(config.node.interface, kernel)
    if config.node.public_ip:
        for address in kernel.addresses:
            if address.interface.ip == config.node.public_ip:
                return kernel.links[address.dev]
    defaults = [r for r in kernel.routes if r.dst.prefixlen == 0 and r.table == MAIN_TABLE]
    for route in sorted(defaults, key=lambda r: (r.dst.version, r.metric)):
        if route.dev and route.dev in kernel.links:
            return kernel.links[route.dev]
    raise UnderlayProblem(
        "no underlay interface was named, and there is no default route to take one from",
        evidence=_choices(kernel),
        next=["set node.interface in agent.toml", "ip route show default"],
    )


def _named(name: str, kernel: KernelState) -> LinkInfo:
    link = kernel.links.get(name)
    if link is None:
        raise UnderlayProblem(
            f"underlay interface {name} does not exist",
            evidence=_choices(kernel),
            next=["ip -br address", "set node.interface in agent.toml"],
        )
    return link


def _public_ip(config: AgentConfig, link: LinkInfo, kernel: KernelState) -> IPAddress:
    if config.node.public_ip:
        return config.node.public_ip
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
