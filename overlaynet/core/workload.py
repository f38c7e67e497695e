"""Containers on this host: their addresses, and how each hangs on the bridge.

A container has a veth pair. The inner end, ``eth0``, is configured once, on attach, by whoever can reach
into the namespace; the outer end is a bridge port and is kept right like everything else here. Its MAC is
pinned in the bridge's FDB, so that no other container can take it over by sending from it.

Addresses are the lowest free ones from the third of the subnet on (the base address is the VXLAN
device's, the next the bridge's); the broadcast address is never given out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from overlaynet.addr import IPAddress, IPNetwork, gateway_address
from overlaynet.errors import AddressTaken, SubnetFull
from overlaynet.model import LocalHost, Workload
from overlaynet.state import BridgePort, Fdb, Object, tag

CONTAINER_DEVICE = "eth0"
VETH = "veth-"
"""What a container's mark begins with, after whose it is."""


def host_device(workload_id: str, instance: str = "") -> str:
    """The outer end's name: ``veth`` and eleven hexadecimal digits of the id's hash (15 bytes in all)."""
    whole = f"{instance}@{workload_id}" if instance else workload_id
    return "veth" + hashlib.sha256(whole.encode()).hexdigest()[:11]


def veth_tag(workload_id: str, instance: str = "") -> str:
    """The alt-name that tells an agent without memory whose veth this is."""
    return tag(VETH + workload_id.replace("/", "."), instance)


def workload_objects(workload: Workload, local: LocalHost) -> list[Object]:
    """The outer end as a bridge port, and the pin. Nothing where there is no bridge to hang it on."""
    if local.bridge_mode == "none":
        return []
    return [
        BridgePort(workload.device, local.bridge),
        Fdb(workload.device, workload.mac, master=local.bridge, state="static"),
    ]


def give_address(subnet: IPNetwork, used: Collection[IPAddress], asked: IPAddress | None = None) -> IPAddress:
    """An address for a new container. Raises AddressTaken or SubnetFull."""
    if asked is not None:
        return _check_asked(subnet, used, asked)
    first = int(gateway_address(subnet)) + 1
    last = int(subnet.broadcast_address) - (1 if subnet.version == 4 else 0)
    kind = type(subnet.network_address)
    for number in range(first, last + 1):
        if (ip := kind(number)) not in used:
            return ip
    raise SubnetFull(
        f"every address of {subnet} is taken",
        evidence=f"{len(used)} addresses in use",
        next=["overlaynet get containers"],
    )


def _check_asked(subnet: IPNetwork, used: Collection[IPAddress], asked: IPAddress) -> IPAddress:
    ours = {subnet.network_address, gateway_address(subnet), subnet.broadcast_address}
    if asked not in subnet or asked in ours:
        raise AddressTaken(
            f"{asked} cannot be a container's address here",
            evidence=f"it must be in {subnet}, and not its base, gateway or broadcast address",
        )
    if asked in used:
        raise AddressTaken(
            f"{asked} is in use already",
            evidence="by a container, or by a neighbour seen on the bridge",
            next=["overlaynet get containers", "ip neigh show"],
        )
    return asked


def used_addresses(workloads: Iterable[Workload]) -> set[IPAddress]:
    return {ip for workload in workloads for ip in workload.ips}
