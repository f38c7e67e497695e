"""Which firewall policies this host needs.

Three: masquerade what leaves the overlay, let the overlay through the FORWARD chain (Docker and firewalld
set its policy to DROP), and keep forged VXLAN frames out. The last is not decoration: VXLAN authenticates
nothing, so a container that can reach a host's UDP port 8472 can inject frames into any other container
(RFC 7348 section 7).
"""

from __future__ import annotations

from collections.abc import Iterable

from overlaynet.addr import IPAddress
from overlaynet.core.overlay import vxlan_device
from overlaynet.model import VXLAN, Lease, LocalHost, NetworkConfig
from overlaynet.state import ForwardAccept, Masquerade, Policy, VxlanGuard


def policies(
    network: NetworkConfig, lease: Lease, local: LocalHost, peers: Iterable[Lease]
) -> dict[str, Policy]:
    """Policies by name."""
    wanted: dict[str, Policy] = {"forward": ForwardAccept(network.networks)}
    if local.masquerade:
        wanted["masquerade"] = Masquerade(network.networks, lease.subnets)
    if network.backend.type == VXLAN:
        allowed = _addresses(peers) if local.vxlan_peers_only else None
        inside = (local.bridge, vxlan_device(network.backend.vni))
        wanted["vxlan"] = VxlanGuard(network.backend.port, network.networks, allowed, inside)
    return wanted


def _addresses(peers: Iterable[Lease]) -> tuple[IPAddress, ...]:
    found = {ip for peer in peers for ip in peer.public_ips}
    return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))
