"""One look at everything in a namespace that a packet can meet.

Six dumps and a few files. The links come first, for all else speaks of them by number. Nothing is left
out because it is not ours: whoever compares filters by owner, and whoever explains a path needs it all.
Each table is consistent in itself; between two tables something may change, and the notice of that
change leads to the next look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from overlaynet.addr import IPAddress
from overlaynet.kernel import parse, sysctl, wire
from overlaynet.kernel.handle import Rtnl
from overlaynet.state import KernelState, LearnedMtu, LinkInfo, visible_altnames


def links(rtnl: Rtnl, instance: str = "") -> dict[str, LinkInfo]:
    """Every link by name, as the agent of that instance sees it. Raises KernelError."""
    found = parse.links(rtnl.dump(wire.dump_links()))
    for name, link in found.items():
        if link.altnames:
            found[name] = link._replace(altnames=visible_altnames(link.altnames, instance))
    return found


def glance(rtnl: Rtnl, instance: str = "") -> KernelState:
    """Links and addresses alone. Raises KernelError."""
    found = links(rtnl, instance)
    names = {link.ifindex: link.name for link in found.values()}
    return KernelState(links=found, addresses=tuple(parse.addresses(rtnl.dump(wire.dump_addresses()), names)))


def own_addresses(rtnl: Rtnl, family: int = 4) -> frozenset[IPAddress]:
    """The addresses of one family (4 or 6) that are this host's. Raises KernelError."""
    return parse.own_addresses(rtnl.dump(wire.dump_addresses(wire.FAMILY[family])))


def learned(rtnl: Rtnl, found: Mapping[str, LinkInfo]) -> tuple[LearnedMtu, ...]:
    """What ICMP errors taught this namespace of paths, by links seen before; nothing where the kernel does not
    list it. Raises KernelError."""
    names = {link.ifindex: link.name for link in found.values()}
    return tuple(parse.learned(rtnl.dump(wire.dump_exceptions()), names))


def observe(
    rtnl: Rtnl, sysctls: Sequence[str] = (), known: parse.Known | None = None, instance: str = ""
) -> KernelState:
    """All of it. `sysctls` are read in the calling thread's namespace; `known` is what earlier looks at this
    namespace read. Raises KernelError."""
    found = links(rtnl, instance)
    names = {link.ifindex: link.name for link in found.values()}
    known = known or parse.Known()
    known.use(names)
    return KernelState(
        links=found,
        addresses=tuple(parse.addresses(rtnl.dump(wire.dump_addresses()), names)),
        neighs=tuple(parse.neighs(rtnl.dump(wire.dump_neighs()), names, known)),
        fdb=tuple(parse.fdb(rtnl.dump(wire.dump_fdb()), names, known)),
        routes=tuple(parse.routes(rtnl.dump(wire.dump_routes()), names, known)),
        rules=tuple(parse.rules(rtnl.dump(wire.dump_rules()))),
        sysctls={name: sysctl.read(name) for name in sysctls},
    )
