"""Which MAC a packet to a neighbour gets: by the neighbour entry, or by whoever would answer an ARP question.

An entry that was asked for and failed is asked for again, as one that is not there (net/core/neighbour.c). So
what decides is whether anybody on that link has the address, and Linux answers for every address it has, on
whatever interface (ip-sysctl, arp_ignore=0)::

    a container's eth0    the host at its other end, and the other containers on that bridge
    the bridge            its ports' containers
    a VXLAN device        nobody, unless an entry for 00:00:00:00:00:00 floods
    an underlay device    the host, or `outside`, that has the address

Who is asked must believe the asker's address (`routing.source_refused`), or does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from overlaynet.addr import IPAddress, Mac
from overlaynet.state import LinkInfo, Neigh
from overlaynet.trace import routing
from overlaynet.trace.model import CONTAINER, Place, Point, World
from overlaynet.trace.routing import Query, is_usable, neighbour


class Resolved(NamedTuple):
    """The MAC, None if nobody is known to answer. `entry`: the neighbour entry, if it is that which says so.
    `unknown`: somebody may answer of whom we do not know; `right`: whom ARP would find, entry or not."""

    mac: Mac | None
    entry: Neigh | None = None
    unknown: bool = False
    right: Mac | None = None


def resolve(world: World, place: Place, dev: str, ip: IPAddress) -> Resolved:
    entry = neighbour(place.kernel, dev, ip)
    link = place.kernel.links[dev]
    answer = next((mac for mac in _answers(world, place, link, ip) if mac is not None), None)
    if entry is not None and is_usable(entry):
        return Resolved(entry.mac, entry, right=answer)
    if answer is None and _ends_out_of_sight(world, place, link):
        return Resolved(None, entry, unknown=True)
    unknown = answer is None and is_underlay(world, place, dev) and not (entry and entry.state == "failed")
    return Resolved(answer, entry, unknown and not _is_of_a_host(world, ip))


def _ends_out_of_sight(world: World, place: Place, link: LinkInfo) -> bool:
    """A container's cable whose other end is in a namespace that could not be looked at."""
    is_cable = place.kind == CONTAINER and link.type == "veth" and link.peer_netns is not None
    return is_cable and Point(place.name, link.name) not in world.cables


def _is_of_a_host(world: World, ip: IPAddress) -> bool:
    return world.place_of(ip) is not None or any(ip in node.underlay_ips for node in world.nodes.values())


def is_underlay(world: World, place: Place, dev: str) -> bool:
    """Whether what leaves by this device is out of everybody's sight: a host's device without a known other
    end."""
    link = place.kernel.links.get(dev)
    if link is None or link.type not in ("veth", "ether") or Point(place.name, dev) in world.cables:
        return False
    return place.kind != CONTAINER and link.master is None


def underlay_devices(world: World) -> Iterator[tuple[Place, LinkInfo]]:
    for place in world.places.values():
        for link in place.kernel.links.values():
            if is_underlay(world, place, link.name):
                yield place, link


def _answers(world: World, place: Place, link: LinkInfo, ip: IPAddress) -> Iterator[Mac | None]:
    asker = routing.address_on(place.kernel, link.name, ip)
    if link.type == "bridge":
        yield from _behind(world, place, link.name, ip, asker)
    elif is_underlay(world, place, link.name):
        for other, device in underlay_devices(world):
            if other is not place:
                yield _answer(other, device, ip, asker, device.name)
    elif far := world.cables.get(Point(place.name, link.name)):
        yield from _at_far_end(world, world.places[far.place], far.iface, ip, asker)


def _at_far_end(
    world: World, place: Place, iface: str, ip: IPAddress, asker: IPAddress | None
) -> Iterator[Mac | None]:
    device = place.kernel.links[iface]
    bridge = place.kernel.links.get(device.master or "")
    if bridge is None:
        yield _answer(place, device, ip, asker, iface)
    elif bridge.type == "bridge" and bridge.up and device.up:
        yield _answer(place, bridge, ip, asker, bridge.name)
        yield from _behind(world, place, bridge.name, ip, asker, but=iface)


def _behind(
    world: World, place: Place, bridge: str, ip: IPAddress, asker: IPAddress | None, but: str = ""
) -> Iterator[Mac | None]:
    """Whoever is at the other ends of a bridge's ports."""
    for port in routing.ports(place.kernel, bridge):
        far = world.cables.get(Point(place.name, port.name))
        if port.name != but and port.up and far:
            other = world.places[far.place]
            yield _answer(other, other.kernel.links[far.iface], ip, asker, far.iface)


def _answer(place: Place, device: LinkInfo, ip: IPAddress, asker: IPAddress | None, dev: str) -> Mac | None:
    """What a place says to who asks by this device."""
    if not device.up or ip.is_loopback or not place.owns(ip):
        return None
    refused = routing.source_refused(place.kernel, Query(ip, asker, iif=dev))
    return None if refused else device.mac
