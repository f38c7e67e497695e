"""Why a predicted path ends: the entry that is missing or wrong, by what its host should hold.

What decides on the way is compared with what is wanted there as the packet passes. A deviation alone is no
fault: a packet may arrive by another way than planned. But if it does not arrive, the first deviation is
why, whatever stopped it in the end; without any it is what stopped it.

`Blame` knows one place. Its methods either note a deviation in the journey, or end it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from overlaynet.addr import IPAddress, Mac
from overlaynet.state import Fdb, Key, Kind, LearnedMtu, LinkInfo, Neigh, Object, Route, Source
from overlaynet.trace import whys
from overlaynet.trace.journey import Answer, Deviation, End, Journey
from overlaynet.trace.model import (
    CERTAIN,
    CONTAINER,
    DELIVERED,
    HOST,
    LIKELY,
    LOST,
    OUTSIDE,
    REJECTED,
    Cause,
    Node,
    Place,
    Point,
    Wanted,
    World,
)
from overlaynet.trace.routing import Found, Refused


def next_commands(host: str) -> tuple[str, ...]:
    """What to type when something differs from what this host should hold."""
    return (f"overlaynet diff {host}", f"overlaynet repair {host}")


@dataclass(frozen=True, slots=True)
class Blame:
    world: World
    place: Place

    # --- deviations ---------------------------------------------------------------------------

    @property
    def wanted(self) -> Wanted | None:
        return self.world.wanted.get(self.place.name)

    def route(self, journey: Journey, found: Found, dst: IPAddress | None = None) -> Journey:
        """The route to the packet's destination, or to another address, as it is and as it should be. Routes go
        with their link."""
        dst = dst or journey.dst
        want, have = self._wanted_route(dst), found.route
        if down := self._down_towards(dst, want, have):
            key = (Kind.LINK, down.name)
            return journey.deviating(Deviation(self.place.name, down.name, "link", None, have, key))
        if want is None or (have is not None and _leads_alike(have, want)):
            return journey
        if have is not None and have.dst.prefixlen > want.dst.prefixlen and have.protocol == 2:
            return journey  # an address of this host's own network
        iface = (have.dev if have else None) or want.dev or ""
        return journey.deviating(Deviation(self.place.name, iface, "route", want, have, want.key))

    def neigh(self, journey: Journey, have: Neigh, right: Mac | None) -> Journey:
        """A neighbour entry that is used. `right`: whom ARP would find there."""
        want = self._wanted(have.key)
        if not isinstance(want, Neigh):
            want = have._replace(mac=right or have.mac, state="reachable")
        if want.mac == have.mac:
            return journey
        return journey.deviating(Deviation(self.place.name, have.dev, "neigh", want, have, want.key))

    def tunnel(self, journey: Journey, link: LinkInfo, have: Fdb) -> Journey:
        """The other host's address behind a MAC."""
        want = self._wanted((Kind.FDB, link.name, have.mac, None))
        if not isinstance(want, Fdb) or want.dst == have.dst:
            return journey
        return journey.deviating(Deviation(self.place.name, link.name, "fdb", want, have, want.key))

    def bridge_entry(self, journey: Journey, have: Fdb) -> Journey:
        """The port behind which a container's MAC is pinned."""
        objects = self.wanted.objects.values() if self.wanted else ()
        same = (o for o in objects if isinstance(o, Fdb) and (o.mac, o.master) == (have.mac, have.master))
        want = next(same, None)
        if want is None or want.dev == have.dev:
            return journey
        return journey.deviating(Deviation(self.place.name, have.dev, "fdb", want, have, want.key))

    def _wanted(self, key: Key) -> Object | None:
        return self.wanted.objects.get(key) if self.wanted else None

    def _wanted_route(self, dst: IPAddress) -> Route | None:
        objects = self.wanted.objects.values() if self.wanted else ()
        routes = [o for o in objects if isinstance(o, Route) and dst in o.dst]
        return max(routes, key=lambda r: r.dst.prefixlen, default=None)

    def _down_towards(self, dst: IPAddress, want: Route | None, have: Route | None) -> LinkInfo | None:
        """The link by which a packet should leave for this destination, if it is down."""
        addresses, links = self.place.kernel.addresses, self.place.kernel.links
        names = [a.dev for a in addresses if dst in a.interface.network]
        if want and want.dev:
            names = [want.dev]
        elif have is None and self.place.kind == CONTAINER:
            names += [a.dev for a in addresses]  # its only link, and no route is left
        found = map(links.get, names)
        return next((link for link in found if link is not None and not link.up), None)

    def _source(self, key: Key) -> Source | None:
        return self.wanted.sources.get(key) if self.wanted else None

    # --- ends ---------------------------------------------------------------------------------

    def _end(
        self,
        journey: Journey,
        kind: str,
        iface: str,
        object: str,
        expected: str,
        found: str,
        *,
        outcome: str = LOST,
        answer: Answer | None = None,
        source: Source | None = None,
        next: tuple[str, ...] | None = None,
        likely: bool = False,
    ) -> End:
        certainty = LIKELY if likely or journey.unread else CERTAIN
        following = self._mending() if next is None else next
        point = Point(self.place.name, iface)
        cause = Cause(kind, point, object, expected, found, source, certainty, following)
        return End(journey, outcome, cause, answer=answer)

    def _mending(self) -> tuple[str, ...]:
        """`outside` is nobody's to mend."""
        return next_commands(whys.host_of(self.place)) if self.place.kind != OUTSIDE else ()

    def no_route(self, journey: Journey, found: Found, outcome: str, answer: Answer | None) -> End:
        """No route, or one that says no."""
        journey = self.route(journey, found)
        want = self._wanted_route(journey.dst)
        here = whys.host_of(self.place)
        have = f"the route {whys.route_text(found.route)} says so" if found.route else "no route leads there"
        if found.rule:
            have = f"ip rule {found.rule.priority} ({found.rule.text}) says so"
        expected = whys.objects_text(want) if want else f"a route to {journey.dst}"
        kind = "route_wrong" if found.route or found.rule else "route_missing"
        iface = (want.dev if want else None) or _last_iface(journey, self.place)
        return self._end(
            journey,
            kind,
            iface,
            f"route {want.dst if want else journey.dst}",
            expected,
            have,
            outcome=outcome,
            answer=answer,
            source=self._source(want.key) if want else None,
            next=(*(next_commands(here) if want else ()), f"ip route get {journey.dst}"),
        )

    def no_neighbour(self, journey: Journey, dev: str, ip: IPAddress, entry: Neigh | None) -> End:
        """Nobody answers for the next hop. The kernel asks for three seconds; then it tells the sender
        (net/ipv4/arp.c, arp_error_report)."""
        if unseen := self._unseen_host(ip):
            return self.node_down(journey, dev, unseen)
        if journey.tunnelled and self.world.place_of(journey.dst) is None:
            return self._tunnel_to_nobody(journey, dev)
        if down := self._down_at(ip):
            return Blame(self.world, down[0]).link_down(journey, down[1])
        want = self._wanted((Kind.NEIGH, dev, ip))
        if isinstance(want, Neigh):
            expected, source = whys.objects_text(want), self._source(want.key)
        else:
            expected, source = f"somebody on {dev} who has {ip}", None
        found = f"there is {whys.neigh_text(entry)}" if entry else "none, and nobody answers ARP"
        noted = journey.noting(f"{self.place.name} asks for {ip} by ARP for three seconds before it gives up")
        own = next_commands(whys.host_of(self.place)) if want else ()
        commands = (*own, f"ip neigh show {ip} dev {dev}")
        text = f"neigh {ip} dev {dev}"
        return self._end(noted, "neigh_missing", dev, text, expected, found, source=source, next=commands)

    def _unseen_host(self, ip: IPAddress) -> Node | None:
        """The host that has this address in the underlay, if it could not be looked at."""
        nodes = (node for node in self.world.nodes.values() if ip in node.underlay_ips)
        return next((node for node in nodes if node.error or node.name not in self.world.places), None)

    def _down_at(self, ip: IPAddress) -> tuple[Place, LinkInfo] | None:
        """The link that should answer for an address, or the other end of its cable, if that is down."""
        for point in self._points_of(ip):
            place = self.world.places[point.place]
            link = place.kernel.links.get(point.iface)
            if link is not None and not link.up:
                return place, link
        return None

    def _points_of(self, ip: IPAddress) -> Iterator[Point]:
        owner = self.world.place_of(ip)
        for address in owner.kernel.addresses if owner else ():
            if owner and address.interface.ip == ip:
                point = Point(owner.name, address.dev)
                yield point
                yield self.world.cables.get(point, point)

    def node_down(self, journey: Journey, dev: str, node: Node) -> End:
        """What becomes of a packet at a host that could not be looked at, nobody knows."""
        found = ": ".join(filter(None, (f"{node.name} could not be looked at", node.error)))
        expected = f"{node.name} takes what is sent to it"
        doubted, text = journey.doubting(found), f"host {node.name}"
        return self._end(doubted, "node_down", dev, text, expected, found, next=("overlaynet status",))

    def _tunnel_to_nobody(self, journey: Journey, dev: str) -> End:
        why = next((w for hop in reversed((*journey.hops,)) for w in hop.why if w.object == "fdb"), None)
        why = next((w for w in journey.whys if w.object == "fdb"), why)
        text = f"fdb {why.text}" if why else f"fdb dst {journey.dst}"
        found = f"no host has {journey.dst}"
        expected = "the underlay address of a host"
        return self._end(journey, "fdb_wrong", _last_iface(journey, self.place, dev), text, expected, found)

    def no_tunnel(self, journey: Journey, link: LinkInfo, mac: Mac) -> End:
        """A VXLAN device without an entry for a MAC drops what is for it."""
        want = self._wanted((Kind.FDB, link.name, mac, None))
        expected = whys.objects_text(want) if want else f"an entry that says which host has {mac}"
        source = self._source(want.key) if want else None
        found = f"none: {link.name} has no entry for {mac}, and none for 00:00:00:00:00:00"
        text = f"fdb {mac} dev {link.name}"
        return self._end(journey, "fdb_missing", link.name, text, expected, found, source=source)

    def no_tunnel_end(self, journey: Journey, dev: str, device: LinkInfo | None) -> End:
        """Nobody here unwraps it."""
        if device is not None:
            return self.link_down(journey, device)
        port = journey.ip.dst_port
        found = f"{self.place.name} has no VXLAN device with VNI {journey.vni} and port {port}"
        expected = "a VXLAN device that unwraps it"
        kind = (
            "link_down" if self.wanted and any(k[0] == Kind.LINK for k in self.wanted.objects) else "fdb_wrong"
        )
        return self._end(journey, kind, dev, f"link vxlan id {journey.vni}", expected, found)

    def own_frame(self, journey: Journey, device: LinkInfo) -> End:
        found = f"the frame comes from {device.mac}, which is {device.name} itself, so it is taken for an echo"
        text = f"link {device.name} address {device.mac}"
        return self._end(journey, "neigh_wrong", device.name, text, "a MAC of its own for each host", found)

    def not_addressed(self, journey: Journey, link: LinkInfo) -> End:
        """A frame for another MAC: the device takes it in, and the stack throws it away."""
        found = f"{link.name} has {link.mac}, and the frame is for {journey.ip.dst_mac}"
        text = f"neigh lladdr {journey.ip.dst_mac}"
        return self._end(journey, "neigh_wrong", link.name, text, f"lladdr {link.mac}", found)

    def link_down(self, journey: Journey, link: LinkInfo) -> End:
        """Of a cable the end that is down; of a host that is dead, all of it."""
        if gone := dead_host(self.world, self.place):
            text, alive = f"host {self.place.name}", f"{self.place.name} is alive"
            return self._end(
                journey,
                "node_down",
                link.name,
                text,
                alive,
                gone,
                next=("overlaynet status", "overlaynet heal"),
            )
        far = self.world.cables.get(Point(self.place.name, link.name))
        if link.up and far is not None:
            other = self.world.places[far.place]
            if not other.kernel.links[far.iface].up:
                return Blame(self.world, other).link_down(journey, other.kernel.links[far.iface])
        found = "it is down" if not link.up else "it has no carrier: its other end is down"
        commands = (f"ip link show dev {link.name}", *self._mending())
        source = self._source((Kind.LINK, link.name))
        text = f"link {link.name}"
        return self._end(journey, "link_down", link.name, text, "up", found, source=source, next=commands)

    def not_followed(self, journey: Journey, link: LinkInfo) -> End:
        """A device of a type that is not understood here, or a cable whose other end was not looked at."""
        unknown = f"what {link.name} ({link.type}) does with a frame is not known here"
        if link.type == "veth":
            host = self.place.host or self.place.name
            error = self.world.unseen.get(host, "")
            unknown = f"the other end of {link.name} was not looked at" + (f": {error}" if error else "")
        return End(journey.doubting(f"{self.place.name}: {unknown}"), LOST)

    def nobody_has_mac(self, journey: Journey, dev: str, hop: IPAddress, owner: Place) -> End:
        """A frame for a MAC that nobody has, though we know who has the address."""
        entry = next((n for n in self.place.kernel.neighs if (n.dev, n.ip) == (dev, hop)), None)
        text = f"neigh {whys.neigh_text(entry)}" if entry else f"neigh {hop} dev {dev}"
        found = f"nobody has {journey.ip.dst_mac}"
        return self._end(journey, "neigh_wrong", dev, text, f"the MAC of {owner.name}", found)

    def out_of_sight(self, journey: Journey, dev: str) -> End:
        """Given to somebody in the underlay whom nobody can look at."""
        if unseen := self._unseen_host(journey.dst):
            return self.node_down(journey, dev, unseen)
        owner = self.world.place_of(journey.dst)
        if owner is None and not journey.tunnelled:
            there = "whoever is there is not looked into"
            return End(journey.noting(f"{journey.dst} is beyond {self.place.name}:{dev}; {there}"), DELIVERED)
        if owner is None:
            return self._tunnel_to_nobody(journey, dev)
        want = f"a way to {owner.name}"
        found = f"it goes to a router in the underlay, which knows nothing of {journey.dst}"
        text, commands = f"route {journey.dst}", (*self._mending(), f"ip route get {journey.dst}")
        return self._end(journey, "route_missing", dev, text, want, found, next=commands, likely=True)

    def not_believed(self, journey: Journey, dev: str, no: Refused) -> End:
        """By its source address; the kernel says nothing (but in its log, if log_martians is set)."""
        name = f"net/ipv4/conf/{dev}/rp_filter"
        setting = whys.sysctl_name(name)
        if no.word == "rp_filter":
            value = self.place.kernel.sysctls.get(name)
            text, expected = (
                f"sysctl {setting} = {value}",
                "the way back is the way it came, or rp_filter is 0 or 2",
            )
        else:
            text, expected = f"source {journey.src}", "a source that can be on the other side of this device"
        if no.back is not None and no.back.kind != "unicast":
            journey = self.route(journey, no.back, journey.src)
        source = self._source((Kind.SYSCTL, name))
        commands = (f"sysctl {setting} net.ipv4.conf.all.rp_filter", f"ip route get {journey.src}")
        return self._end(journey, "rp_filter", dev, text, expected, no.why, source=source, next=commands)

    def not_forwarding(self, journey: Journey, dev: str) -> End:
        name = f"net/ipv4/conf/{dev}/forwarding"
        if self.place.kernel.sysctls.get("net/ipv4/ip_forward") == "0":
            name = "net/ipv4/ip_forward"
        setting = whys.sysctl_name(name)
        here = whys.host_of(self.place)
        commands = (f"sysctl {setting}", *(next_commands(here) if self.place.kind == "host" else ()))
        source = self._source((Kind.SYSCTL, "net/ipv4/ip_forward"))
        found = f"{journey.dst} is not {self.place.name}'s, and it does not forward"
        text = f"sysctl {setting} = 0"
        want = f"{setting} = 1"
        return self._end(journey, "forwarding_off", dev, text, want, found, source=source, next=commands)

    def no_ttl(self, journey: Journey, dev: str, answer: Answer | None) -> End:
        outcome = REJECTED if answer else LOST
        found = f"its TTL has run out at {self.place.name}"
        expected = "a route that leads to the destination"
        text = f"route {journey.dst}"
        return self._end(journey, "route_wrong", dev, text, expected, found, outcome=outcome, answer=answer)

    def goes_round(self, journey: Journey, dev: str) -> End:
        found = f"it comes to {self.place.name}:{dev} again and again until its TTL has run out"
        expected = "a route that leads to the destination"
        text = f"route {journey.dst}"
        return self._end(journey, "route_wrong", dev, text, expected, found)

    def too_large(self, journey: Journey, dev: str, mtu: int, answer: Answer | None, why: str) -> End:
        size = journey.ip.length
        outcome = REJECTED if answer or not journey.hops else LOST
        found = f"it has {size} bytes, and {why}"
        commands = (f"ip link show dev {dev}", "overlaynet verify mtu")
        text, expected = f"link {dev} mtu {mtu}", f"an MTU of at least {size} bytes"
        return self._end(
            journey, "mtu", dev, text, expected, found, outcome=outcome, answer=answer, next=commands
        )

    def too_large_as_learned(self, journey: Journey, learned: LearnedMtu, why: str) -> End:
        """For a way of which an ICMP error told; what it told may be over by now."""
        size = journey.ip.length
        found = f"it has {size} bytes, and {why}"
        text = f"route {learned.dst} dev {learned.dev} mtu {learned.mtu}, learned from an ICMP error"
        text += f", expires in {learned.expires_s:.0f} s"
        commands = ("ip route flush cache", "overlaynet verify mtu")
        return self._end(journey, "mtu", learned.dev, text, f"an MTU of at least {size} bytes", found,
                         outcome=REJECTED, next=commands)  # fmt: skip

    def nobody_behind_bridge(self, journey: Journey, bridge: str, mac: Mac | None) -> End:
        found = f"{bridge} has no entry for {mac}, and nobody behind its ports has it"
        expected = f"a port with {mac} behind it"
        return self._end(journey, "fdb_missing", bridge, f"fdb {mac} br {bridge}", expected, found)

    def no_hairpin(self, journey: Journey, port: LinkInfo) -> End:
        found = f"it goes back out of the port that it came in by, and hairpin is off on {port.name}"
        text = f"port {port.name} hairpin off"
        source = self._source((Kind.PORT, port.name))
        commands = (f"bridge -d link show dev {port.name}", *next_commands(whys.host_of(self.place)))
        return self._end(journey, "unknown", port.name, text, "hairpin on", found, source=source, next=commands)


def _leads_alike(have: Route, want: Route) -> bool:
    return (have.dst, have.dev, have.via, have.type) == (want.dst, want.dev, want.via, want.type)


def _last_iface(journey: Journey, place: Place, default: str = "lo") -> str:
    """Where it was seen last in this place."""
    return next((hop.iface for hop in reversed(journey.hops) if hop.place == place.name), default)


def dead_host(world: World, place: Place) -> str:
    """That this is a host of which nothing works any more, in words; empty if it is not, or if nobody knows."""
    node = world.nodes.get(place.name)
    if place.kind != HOST or node is None or node.agent != "down" or not is_cut_off(place):
        return ""
    return f"no link of {place.name} carries anything, and its agent is dead"


def is_cut_off(place: Place) -> bool:
    """None of the devices that lead out of the host is up, with somebody at the other end."""
    inside = ("vxlan", "bridge")
    links = [li for li in place.kernel.links.values() if li.name != "lo" and not li.master]
    out = [link for link in links if link.type not in inside]
    return bool(out) and not any(link.up and link.running for link in out)


# --- in the end -----------------------------------------------------------------------------------


def cause_of(world: World, end: End) -> Cause | None:
    """The first deviation on its way, or what stopped it."""
    first = next(_blamed(world, end), None)
    return first or end.cause


def _blamed(world: World, end: End) -> Iterator[Cause]:
    for deviation in end.journey.deviations:
        place = world.places[deviation.place]
        if deviation.kind == "link":
            yield from _down(end, place.kernel.links[deviation.iface], Blame(world, place))
            continue
        wanted = world.wanted.get(deviation.place)
        want, have = deviation.want, deviation.have
        is_there = _is_there(place, have, deviation.key)
        kind = f"{deviation.kind}_{'wrong' if is_there else 'missing'}"
        expected = whys.objects_text(want) if want else ""
        used = whys.objects_text(have) if have else ""
        found = (
            (used or "it does not decide") if is_there else f"none{used and f', and what decides is {used}'}"
        )
        ended = f"; then {end.cause.found}" if end.cause else ""
        yield Cause(
            kind,
            Point(deviation.place, deviation.iface),
            used if used and is_there else expected,
            expected,
            found + ended,
            wanted.sources.get(deviation.key) if wanted else None,
            LIKELY if end.journey.unread else CERTAIN,
            next_commands(deviation.place),
        )


def _down(end: End, link: LinkInfo, blame: Blame) -> Iterator[Cause]:
    cause = blame.link_down(end.journey, link).cause
    if cause is not None:
        ended = f", and its routes went with it; then {end.cause.found}" if end.cause else ""
        yield replace(cause, found=cause.found + ended)


def _is_there(place: Place, have: Object | None, key: Key) -> bool:
    """Whether the wanted entry is there: altered, or hidden by another one."""
    kernel = place.kernel
    keys = {each.key for table in (kernel.routes, kernel.neighs, kernel.fdb) for each in table}
    return key in keys or (have is not None and have.key == key)


def detours(world: World, journey: Journey) -> Iterator[str]:
    """Entries that took it by another way than its hosts should have it, a sentence each."""
    for deviation in journey.deviations:
        wanted = world.wanted.get(deviation.place)
        if deviation.want is None or wanted is None or deviation.key not in wanted.objects:
            continue
        source = wanted.sources.get(deviation.key)
        whose = f"{source.kind} {source.name} asks for" if source else "there should be"
        have = whys.objects_text(deviation.have) if deviation.have else "nothing"
        want = whys.objects_text(deviation.want)
        shown = f"next: overlaynet diff {deviation.place}"
        yield f"another way than wanted: {deviation.place} uses {have}, and {whose} {want}; {shown}"
