"""Which of the kernel's objects are ours: how an agent without memory knows its own.

====================  ===========================================================================
object                ours if
====================  ===========================================================================
link                  it carries one of our alt-names
route                 it is in the main table with our protocol number, on a link of ours or to a network of
                      ours; or on a VXLAN device of ours, and not the kernel's own
neighbour             it is permanent, on a VXLAN device of ours
FDB entry             on a VXLAN device of ours: permanent, with a remote; on a container's port: the
                      static pin
address               it is on a link of ours, and of the overlay's networks
bridge port           its link is a container's veth of ours
sysctl                never; the ones we need are checked, and written only if they differ
====================  ===========================================================================

Two things of ours are never removed for not being wanted: a container's veth that no record mentions (the
container may well be alive), and a bridge that still has ports.

flannel writes a peer's route with metric 0 and no protocol of its own. Where such a route is right in all
else it stands for ours, under our key, and is not written again; where it is not, ours is put beside it and
it is dropped.

A foreign link that bears the name of one we want is taken over only with proof: a VXLAN device whose MAC is
our own VTEP MAC, a bridge that holds our gateway address (which is used as it is, and never deleted). Any
other is refused by name, with everything that depends on it; nothing foreign is ever changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from overlaynet.addr import IPNetwork, is_within
from overlaynet.core.diff import satisfied
from overlaynet.core.overlay import metric_of
from overlaynet.core.workload import VETH
from overlaynet.state import (
    KERNEL_PROTOCOL,
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Address,
    BridgePort,
    KernelState,
    Key,
    Kind,
    Link,
    LinkInfo,
    Object,
    Route,
    Sysctl,
    describe,
)

VETH_TAG = f"-{VETH}"


@dataclass(slots=True)
class Have:
    """What of ours the kernel holds. `refused`: wanted keys that a foreign object stands in the way of."""

    objects: dict[Key, Object] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)


def have(want: Mapping[Key, Object], kernel: KernelState, networks: tuple[IPNetwork, ...]) -> Have:
    """Sort the kernel's state into ours and not ours, in the light of what is wanted."""
    result = Have()
    for obj in want.values():
        if isinstance(obj, Link) and (there := kernel.links.get(obj.name)) and not there.tag:
            _take_over(result, obj, there, want, kernel)
    taken = {obj.name for obj in result.objects.values() if isinstance(obj, Link) and obj.type == "vxlan"}
    result.objects.update((obj.key, obj) for obj in owned(kernel, networks, taken))
    _take_routes(result, want, kernel)
    present = set(kernel.addresses)
    for key, obj in want.items():
        if isinstance(obj, Sysctl):
            _take_sysctl(result, obj, kernel)
        elif isinstance(obj, Address) and obj in present:
            result.objects[key] = obj  # on a bridge that is not ours it stands for ours all the same
    for key in set(result.objects).difference(want):
        if _keep(result.objects[key], kernel, want):
            del result.objects[key]
    return result


def owned(
    kernel: KernelState, networks: tuple[IPNetwork, ...], taken: Collection[str] = ()
) -> Iterator[Object]:
    """Everything that is ours by its mark, and all that hangs on the VXLAN devices `taken` over."""
    ours = {name: link for name, link in kernel.links.items() if link.tag or name in taken}
    tunnels = {name for name, link in ours.items() if link.type == "vxlan"}
    yield from (obj for link in ours.values() if link.tag and (obj := _link_object(link)))
    for address in kernel.addresses:
        if address.dev in ours and any(address.interface.ip in n for n in networks):
            yield address
    yield from (n for n in kernel.neighs if n.dev in tunnels and n.state == "permanent")
    for entry in kernel.fdb:
        if entry.dev in tunnels:
            if entry.dst is not None and entry.state == "permanent":
                yield entry
        elif entry.state == "static" and entry.master and entry.dev in ours:
            yield entry
    for route in kernel.routes:
        if route.table == MAIN_TABLE and (
            _is_ours(route, kernel, ours, networks) or _on_tunnel(route, tunnels)
        ):
            yield route


def _is_ours(route: Route, kernel: KernelState, ours: Collection[str], networks: tuple[IPNetwork, ...]) -> bool:
    """All instances on a host share one protocol number: a route is another's if it is on a tunnel that is
    not ours or, where our networks are known, leads to none of them."""
    if route.protocol != ROUTE_PROTOCOL or route.dev in ours:
        return route.protocol == ROUTE_PROTOCOL
    link = kernel.links.get(route.dev or "")
    on_anothers = link is not None and link.type == "vxlan"
    return not on_anothers and (not networks or any(is_within(route.dst, network) for network in networks))


def _on_tunnel(route: Route, tunnels: Collection[str]) -> bool:
    return route.dev in tunnels and route.protocol != KERNEL_PROTOCOL and route.dst.version == 4


def stands_for(obj: Object) -> Key:
    """The key under which an object counts: a route of flannel's under that of ours to the same subnet."""
    if isinstance(obj, Route) and obj.metric == 0:
        return obj._replace(metric=metric_of(obj.dst)).key
    return obj.key


def _take_routes(result: Have, want: Mapping[Key, Object], kernel: KernelState) -> None:
    """Flannel's routes that are as good as ours stand for ours."""
    for route in _preferred(kernel):
        key = stands_for(route)
        wanted = want.get(key)
        if wanted is None or key in result.objects or (Kind.LINK, route.dev) in result.refused:
            continue
        if satisfied(wanted, route):
            result.objects.pop(route.key, None)
            result.objects[key] = route


def shadowed(want: Mapping[Key, Object], kernel: KernelState, have: Mapping[Key, Object]) -> dict[Key, str]:
    """Wanted routes that no packet takes, since one of somebody else's to the same subnet comes first."""
    found = {}
    for route in _preferred(kernel):
        wanted = want.get(stands_for(route))
        if wanted is not None and route.key not in have and not satisfied(wanted, route):
            found[wanted.key] = f"{describe(route)} is not ours, and is preferred to ours by its metric"
    return found


def _preferred(kernel: KernelState) -> Iterator[Route]:
    """Routes that come before any of ours to the same subnet, and are neither ours nor the kernel's own."""
    for route in kernel.routes:
        theirs = route.protocol not in (ROUTE_PROTOCOL, KERNEL_PROTOCOL)
        if theirs and route.metric == 0 and route.table == MAIN_TABLE:
            yield route


def stray_veths(want: Mapping[Key, Object], kernel: KernelState) -> list[str]:
    """Containers' veths of ours that nothing wants: the ids in their alt-names."""
    wanted = {obj.dev for obj in want.values() if isinstance(obj, BridgePort)}
    strays = [link for link in kernel.links.values() if _is_veth(link) and link.name not in wanted]
    return sorted((link.tag or "").partition(VETH_TAG)[2] for link in strays)


def _is_veth(link: LinkInfo) -> bool:
    return link.type == "veth" and VETH_TAG in (link.tag or "")


def _link_object(link: LinkInfo) -> Object | None:
    if not _is_veth(link):
        return Link(link.name, link.type, link.tag or "", link.mtu, link.mac, link.vxlan, link.up)
    if link.master is None:
        return None
    return BridgePort(link.name, link.master, bool(link.hairpin), link.up, link.mtu)


def _keep(obj: Object, kernel: KernelState, want: Mapping[Key, Object]) -> bool:
    """Whether an object of ours that is not wanted must stay all the same."""
    match obj:
        case BridgePort():
            return True
        case Link(type="bridge"):
            return _has_ports(obj.name, kernel)
        case Address(dev=dev):
            return kernel.links[dev].type == "bridge" and _has_ports(dev, kernel) and not _wanted_on(dev, want)
        case _:
            return getattr(obj, "master", None) is not None and not _wanted_on(getattr(obj, "dev", ""), want)


def _has_ports(bridge: str, kernel: KernelState) -> bool:
    return any(link.master == bridge for link in kernel.links.values())


def _wanted_on(dev: str, want: Mapping[Key, Object]) -> bool:
    return any(getattr(obj, "dev", None) == dev for obj in want.values())


def _take_sysctl(result: Have, want: Sysctl, kernel: KernelState) -> None:
    value = kernel.sysctls.get(want.name)
    if value is not None:
        result.objects[want.key] = Sysctl(want.name, value)


def _take_over(
    result: Have, want: Link, there: LinkInfo, wanted: Mapping[Key, Object], kernel: KernelState
) -> None:
    """A foreign link stands where we want one of ours."""
    if there.type == want.type == "vxlan" and there.mac == want.mac:
        result.objects[want.key] = Link(want.name, "vxlan", "", there.mtu, there.mac, there.vxlan, there.up)
    elif there.type == want.type == "bridge" and _holds_gateway(want.name, wanted, kernel):
        result.objects[want.key] = want
    else:
        result.refused[want.key] = (
            f"{there.type or 'device'} {want.name} (MAC {there.mac}) exists and is not ours: "
            "remove it, or stop what made it"
        )


def _holds_gateway(bridge: str, want: Mapping[Key, Object], kernel: KernelState) -> bool:
    wanted = {obj for obj in want.values() if isinstance(obj, Address) and obj.dev == bridge}
    return any(address in wanted for address in kernel.addresses)
