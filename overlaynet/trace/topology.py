"""What is connected to what, as the kernels have it: hosts with their devices, containers on their cables, the
other hosts that each host can send to, and beside all of it what should be there.

A host sends to another host's containers by a route. Through a tunnel two more entries are needed: the
neighbour that is the route's next hop, and the FDB entry that says behind which underlay address its MAC is.
The three together are a `Peer`; it is only as good as the worst of them.

States compare the kernel with what etcd says the host should hold: ``ok``, ``missing``, ``changed``, ``extra``.
Where nobody can say, a state is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from overlaynet.addr import IPAddress, Mac
from overlaynet.core.diff import changes, satisfied, word
from overlaynet.core.ownership import have
from overlaynet.firewall.chains import Rendered
from overlaynet.firewall.compare import Comparison
from overlaynet.state import ROUTE_PROTOCOL, Fdb, Key, Kind, Link, LinkInfo, Neigh, Object, Route, describe
from overlaynet.trace.model import CONTAINER, OUTSIDE, Place, Point, Wanted, World

OK, MISSING, EXTRA, CHANGED = "ok", "missing", "extra", "changed"
_WORST = (MISSING, CHANGED, EXTRA, OK, None)


ROLES = ("bridge", "vxlan", "underlay")
"""What a host's devices are, in the order in which a packet leaves by them."""


class Backend(NamedTuple):
    """One endpoint of a service. `container` and `host` None: it is none that is known."""

    address: IPAddress
    port: int
    container: str | None = None
    host: str | None = None
    ready: bool = True


class Device(NamedTuple):
    """An interface of a host. `role`: one of `ROLES`; `mtu` in bytes; `state` of a link that should be
    there."""

    name: str
    role: str
    up: bool
    mtu: int
    mac: Mac | None
    addresses: tuple[str, ...]
    vni: int | None
    state: str | None


class Peer(NamedTuple):
    """Where a host sends what is for another subnet. `host` None: no host that is known has that underlay
    address; `to` None: it leads nowhere. `problems`: which entries are not as they should be."""

    subnet: str
    device: str
    tunnelled: bool
    to: IPAddress | None
    host: str | None
    state: str | None
    problems: tuple[str, ...]


class Attached(NamedTuple):
    """A container on its cable. `port`: the cable's end on the host; None if it is not known. `bridge`: what
    that is a port of."""

    name: str
    iface: str
    addresses: tuple[str, ...]
    mac: Mac | None
    mtu: int
    up: bool
    port: str | None
    port_up: bool
    bridge: str | None


class HostView(NamedTuple):
    """A host. `error`: why it could not be looked at; then nothing more is known of it. `differences`: what is
    not as it should be, in words; None: nobody can say what should be."""

    name: str
    underlay: tuple[str, ...]
    agent: str | None
    live: bool | None
    error: str
    devices: tuple[Device, ...] = ()
    peers: tuple[Peer, ...] = ()
    containers: tuple[Attached, ...] = ()
    differences: tuple[str, ...] | None = None


class ServiceView(NamedTuple):
    """A service with what stands behind it."""

    id: str
    addresses: tuple[IPAddress, ...]
    ports: tuple[tuple[str, int, int], ...]
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything. `outside`: addresses of a client that is no host, None if there is none."""

    hosts: tuple[HostView, ...]
    services: tuple[ServiceView, ...] = ()
    outside: tuple[str, ...] | None = None
    vxlan_port: int | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def differences(self) -> int:
        return sum(len(host.differences or ()) for host in self.hosts)


def topology(world: World, backends: Mapping[str, Iterable[Backend]] | None = None) -> Topology:
    """A world as it is connected. `backends`: by a service's id."""
    behind = backends or {}
    outside = next((place for place in world.places.values() if place.kind == OUTSIDE), None)
    hosts = tuple(_host(world, name) for name in sorted(world.nodes))
    tunnels = any(device.role == "vxlan" for host in hosts for device in host.devices)
    return Topology(
        hosts=hosts,
        services=tuple(
            ServiceView(one.id, one.ips, one.ports, tuple(behind.get(one.id, ()))) for one in world.services
        ),
        outside=None if outside is None else _addresses(outside),
        vxlan_port=world.vxlan_port if tunnels else None,
        unseen={name: why for name, why in world.unseen.items() if name not in world.nodes},
    )


def _host(world: World, name: str) -> HostView:
    node, place = world.nodes[name], world.places.get(name)
    about = (name, tuple(map(str, node.underlay_ips)), node.agent, node.live)
    if place is None:
        return HostView(*about, node.error or world.unseen.get(name, "it could not be looked at"))
    live = Live(world, place)
    return HostView(
        *about,
        "",
        devices=tuple(live.devices()),
        peers=tuple(live.peers()),
        containers=tuple(_containers(world, place)),
        differences=live.differences(),
    )


def _addresses(place: Place, dev: str | None = None) -> tuple[str, ...]:
    return tuple(
        str(address.interface)
        for address in place.kernel.addresses
        if (dev is None and not address.interface.is_loopback) or address.dev == dev
    )


def _containers(world: World, host: Place) -> Iterator[Attached]:
    inside = (p for p in world.places.values() if p.kind == CONTAINER and p.host == host.name)
    for place in sorted(inside, key=lambda place: place.name):
        for link in place.kernel.links.values():
            if link.name == "lo":
                continue
            end = world.cables.get(Point(place.name, link.name))
            port = host.kernel.links.get(end.iface) if end is not None and end.place == host.name else None
            yield Attached(
                place.name, link.name, _addresses(place, link.name), link.mac, link.mtu, link.up,
                None if end is None else end.iface, port is not None and port.up, port.master if port else None,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Live:
    """One host's kernel, beside what it should hold."""

    world: World
    place: Place

    @property
    def wanted(self) -> Wanted | None:
        return self.world.wanted.get(self.place.name)

    @property
    def want(self) -> Mapping[Key, Object]:
        return self.wanted.objects if self.wanted is not None else {}

    @property
    def ours(self) -> Mapping[Key, Object]:
        """What of ours there is, under the keys of what is wanted."""
        return have(self.want, self.place.kernel, ()).objects

    def state(self, key: Key, ours: Mapping[Key, Object]) -> str | None:
        want, there = self.want.get(key), ours.get(key)
        if self.wanted is None or (want is None and there is None):
            return None
        if want is None or there is None:
            return EXTRA if want is None else MISSING
        return OK if satisfied(want, there) else CHANGED

    # --- devices ------------------------------------------------------------------------------

    def devices(self) -> list[Device]:
        """Bridges, tunnels, wires, present or only wanted; not the ends of containers' cables."""
        ours, links = self.ours, self.place.kernel.links
        found = [self._device(link, role, ours) for link in links.values() if (role := self._role(link))]
        missing = (obj for obj in self.want.values() if isinstance(obj, Link) and obj.name not in links)
        found += [
            Device(
                obj.name, obj.type, False, obj.mtu, obj.mac, (), obj.vxlan.vni if obj.vxlan else None, MISSING
            )
            for obj in missing
            if obj.type in ROLES
        ]
        return sorted(found, key=lambda device: (ROLES.index(device.role), device.name))

    def _device(self, link: LinkInfo, role: str, ours: Mapping[Key, Object]) -> Device:
        vni = link.vxlan.vni if link.vxlan else None
        addresses, state = _addresses(self.place, link.name), self.state((Kind.LINK, link.name), ours)
        return Device(link.name, role, link.up, link.mtu, link.mac, addresses, vni, state)

    def _role(self, link: LinkInfo) -> str | None:
        if link.type in ("vxlan", "bridge"):
            return link.type
        node = self.world.nodes.get(self.place.name)
        mine = {address.interface.ip for address in self.place.kernel.addresses if address.dev == link.name}
        return "underlay" if node is not None and mine & set(node.underlay_ips) else None

    # --- peers --------------------------------------------------------------------------------

    def peers(self) -> Iterator[Peer]:
        """Every subnet of another host that is, or should be, reached from here."""
        ours = self.ours
        routes: dict[Key, Route] = {}
        for source in (self.want, ours, self._unjudged()):
            routes |= {
                key: obj for key, obj in source.items() if isinstance(obj, Route) and _leads_to_a_peer(obj)
            }
        for key, route in sorted(routes.items(), key=lambda item: str(item[1].dst)):
            yield self._peer(key, route, ours)

    def _unjudged(self) -> Mapping[Key, Object]:
        """Routes with our mark, where nobody says what is wanted."""
        if self.wanted is not None:
            return {}
        return {route.key: route for route in self.place.kernel.routes if route.protocol == ROUTE_PROTOCOL}

    def _peer(self, key: Key, route: Route, ours: Mapping[Key, Object]) -> Peer:
        link = self.place.kernel.links.get(route.dev or "")
        tunnelled = link.type == "vxlan" if link else self._tunnel_wanted(route.dev)
        states = {"route": self.state(key, ours)}
        to = route.via
        if tunnelled:
            neigh = self._neigh(route)
            states["neigh"] = self.state((Kind.NEIGH, route.dev, route.via), ours)
            mac = self._mac(route, neigh)
            states["fdb"] = self.state((Kind.FDB, route.dev, mac, None), ours)
            entry = self._fdb(route.dev, neigh.mac if neigh else None)
            to = entry.dst if entry else None
        problems = tuple(f"{name} {state}" for name, state in states.items() if state not in (OK, None))
        if key not in ours and self.wanted is not None:
            to = None
        return Peer(
            str(route.dst), route.dev or "", tunnelled, to, self._host_at(to),
            min(states.values(), key=_WORST.index), problems,
        )  # fmt: skip

    def _tunnel_wanted(self, dev: str | None) -> bool:
        return getattr(self.want.get((Kind.LINK, dev)), "type", "") == "vxlan"

    def _neigh(self, route: Route) -> Neigh | None:
        known = self.place.kernel.neighs
        return next((n for n in known if n.dev == route.dev and n.ip == route.via and n.mac is not None), None)

    def _mac(self, route: Route, neigh: Neigh | None) -> Mac | None:
        """The next hop's MAC, as it should be, else as it is."""
        want = self.want.get((Kind.NEIGH, route.dev, route.via))
        return want.mac if isinstance(want, Neigh) else (neigh.mac if neigh else None)

    def _fdb(self, dev: str | None, mac: Mac | None) -> Fdb | None:
        return next((f for f in self.place.kernel.fdb if f.dev == dev and f.mac == mac and f.dst), None)

    def _host_at(self, ip: IPAddress | None) -> str | None:
        return next(
            (n.name for n in self.world.nodes.values() if ip is not None and ip in n.underlay_ips), None
        )

    # --- differences --------------------------------------------------------------------------

    def differences(self) -> tuple[str, ...] | None:
        """What of ours is not as it should be, kernel objects first."""
        if self.wanted is None:
            return None
        sorted_out = have(self.want, self.place.kernel, ())
        pending = changes(self.want, sorted_out.objects, sorted_out.refused)
        found = [f"{word(change)} {describe(change.obj)}" for change in pending]
        found += [f"in the way: {why}" for why in sorted_out.refused.values()]
        return (*found, *self._rules())

    def _rules(self) -> Iterator[str]:
        if self.wanted is None or self.place.rules is None:
            return
        want = Rendered(self.wanted.chains, self.wanted.hooks, self.wanted.origins)
        for change in Comparison().pending(want, self.place.rules, {}):
            yield f"{change.op} rules of {change.table} {change.chain}"


def _leads_to_a_peer(route: Route) -> bool:
    return route.via is not None and route.dst.prefixlen > 0


# --- as a document --------------------------------------------------------------------------------


def topology_json(found: Topology) -> dict[str, Any]:
    """Members in snake case, addresses as text."""
    return {
        "differences": found.differences,
        "vxlan_port": found.vxlan_port,
        "outside": None if found.outside is None else list(found.outside),
        "hosts": [_host_json(host) for host in found.hosts],
        "services": [_service_json(service) for service in found.services],
        "unseen": dict(found.unseen),
    }


def _host_json(host: HostView) -> dict[str, Any]:
    return {
        **_plain(host),
        "underlay": list(host.underlay),
        "error": host.error or None,
        "devices": [_plain(device) for device in host.devices],
        "peers": [_plain(peer) for peer in host.peers],
        "containers": [_plain(container) for container in host.containers],
        "differences": None if host.differences is None else list(host.differences),
    }


def _service_json(service: ServiceView) -> dict[str, Any]:
    ports = [
        {"protocol": protocol, "port": port, "node_port": node_port or None}
        for protocol, port, node_port in service.ports
    ]
    return {
        "id": service.id,
        "addresses": [str(ip) for ip in service.addresses],
        "ports": ports,
        "backends": [_plain(backend) for backend in service.backends],
    }


def _plain(value: Any) -> dict[str, Any]:
    return {name: _plain_value(member) for name, member in value._asdict().items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple) and not isinstance(value, Mac):
        return [str(one) for one in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)
