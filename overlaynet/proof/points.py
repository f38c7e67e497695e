"""Points as they are typed: which interface of which place is meant, and who can listen there.

    web-1:eth0        one interface
    web-1             a container's eth0, the only one that a container has of us
    node-2            every interface of a host that is up, but for its loopback
    node-1:*          the same of any place; a pattern as a shell has it: node-1:veth*
    outside           the client that is no host

A point that is named must be there. A pattern takes what is up and leaves out what is not: nothing passes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from overlaynet.core.jsonstate import kernel_from_json
from overlaynet.errors import NotFound, OverlayError, UsageError, from_json
from overlaynet.proof.question import Directory
from overlaynet.proof.sessions import Sessions
from overlaynet.proof.world import Where, places_jobs
from overlaynet.state import KernelState, LinkInfo
from overlaynet.trace.model import CONTAINER, HOST, OUTSIDE, Point

CONTAINER_DEVICE = "eth0"
LOOPBACK = "lo"
_PATTERN = frozenset("*?[")


class Spot(NamedTuple):
    """A point, with the way to it. `depth`: which of several interfaces that a packet comes in by at one moment
    has it first, the lowest; it goes out in the other order."""

    point: Point
    where: Where
    depth: int = 0


def where_is(directory: Directory, name: str) -> Where:
    """A place by name. Raises NotFound, also for a container of a host that can only be asked on itself."""
    place = directory.place(name)
    for container in directory.containers:
        if container.name == place:
            if container.host not in {host.name for host in directory.hosts}:
                raise NotFound(f"{place} is on {container.host}, where nobody can look from here")
            return Where(place, CONTAINER, container.host, container.netns)
    for host in directory.hosts:
        if host.name == place:
            return Where(place, HOST, place, host.netns)
    assert directory.outside is not None
    return Where(place, OUTSIDE, None, directory.outside.netns)


def look_at(sessions: Sessions, places: Iterable[Where]) -> dict[str, KernelState]:
    """The kernel's tables of each place. Raises the first error of a place that cannot be looked at."""
    found: dict[str, KernelState] = {}
    for answer in sessions.ask_each(places_jobs(sessions, places, firewall=False)).values():
        if isinstance(answer, OverlayError):
            raise answer
        for document in answer["places"]:
            if document["error"] is not None:
                raise from_json(document["error"])
            found[document["name"]] = kernel_from_json(document["kernel"])
    return found


def spots(
    words: Sequence[str], directory: Directory, sessions: Sessions
) -> tuple[list[Spot], dict[str, KernelState]]:
    """The points that words mean, each once, and the tables of all places named.

    Raises NotFound for a place or interface that is not there, and UsageError for no point at all."""
    if not words:
        raise UsageError(
            "no point to capture at",
            evidence="a point is PLACE:INTERFACE, such as web-1:eth0 or node-1:flannel.1, or a place alone",
            next=["overlaynet capture web-1", "overlaynet get containers"],
        )
    split = [word.partition(":") for word in words]
    places = {where.name: where for where in (where_is(directory, place) for place, _, _ in split)}
    kernels = look_at(sessions, places.values())
    found = [
        Spot(Point(where.name, iface), where, _depth(kernels[where.name].links[iface]))
        for place, _, wanted in split
        for where in [places[directory.place(place)]]
        for iface in _interfaces(where, wanted, kernels[where.name].links)
    ]
    return list(dict.fromkeys(found)), kernels


def _depth(link: LinkInfo) -> int:
    """A bridge has what came by one of its ports, and a tunnel's device what came by the underlay."""
    if link.master is not None:
        return 0
    return 2 if link.vxlan is not None or link.type == "bridge" else 1


def _interfaces(where: Where, wanted: str, links: Mapping[str, LinkInfo]) -> Iterator[str]:
    wanted = wanted or (CONTAINER_DEVICE if where.kind == CONTAINER else "*")
    if not _PATTERN & set(wanted):
        found = [wanted] if wanted in links else []
    else:
        up = (name for name, link in links.items() if link.up and name != LOOPBACK)
        found = [name for name in sorted(up) if fnmatchcase(name, wanted)]
    if not found:
        raise NotFound(
            f"there is no interface {wanted!r} on {where.name}",
            evidence="interfaces: " + (", ".join(sorted(links)) or "none"),
            next=[f"overlaynet exec {where.name} -- ip -br link"],
        )
    yield from found
