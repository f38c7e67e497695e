"""What to change in the kernel so that flanneld goes on where we stop, without a packet lost.

flanneld keeps a VXLAN device that is as it would make one, with its MAC, and puts every peer's neighbour,
FDB entry and route again as if they were new; with equal values that is no gap. Three things of ours would
stay for ever beside its own, or be taken for ours again: our routes (flannel's have metric 0 and the
protocol that comes of naming none), and our alt-names on the VXLAN device and the bridge.

A route is put in flannel's form before ours is dropped. Containers' veths keep their mark: whoever takes
the host back finds them.
"""

from __future__ import annotations

from collections.abc import Iterator

from overlaynet.addr import IPNetwork
from overlaynet.core.ownership import owned
from overlaynet.state import BOOT_PROTOCOL, MAIN_TABLE, Change, KernelState, Link, Op, Route


def changes(kernel: KernelState, networks: tuple[IPNetwork, ...]) -> tuple[Change, ...]:
    """In order: routes as flannel has them, then ours away, then our marks."""
    ours = list(owned(kernel, networks))
    routes = [obj for obj in ours if isinstance(obj, Route) and obj.metric]
    taken = {route.dst for route in kernel.routes if route.metric == 0 and route.table == MAIN_TABLE}
    puts = [Change(Op.PUT, as_flannels(route)) for route in routes if route.dst not in taken]
    drops = [Change(Op.DROP, route) for route in routes]
    return (*puts, *drops, *_unmarked(obj for obj in ours if isinstance(obj, Link)))


def as_flannels(route: Route) -> Route:
    """The same route, as flannel writes it."""
    return route._replace(metric=0, protocol=BOOT_PROTOCOL)


def _unmarked(links: Iterator[Link]) -> Iterator[Change]:
    for link in links:
        yield Change(Op.PUT, link._replace(tag=""), link)
