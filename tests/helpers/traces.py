"""Evidence made by hand: what would be captured of a packet that goes as predicted, for a test to take from.

The cluster is that of `helpers.pictures`: web-1 and web-2 on node-1, web-3 and web-4 on node-2, client-1 on
node-3, and `outside`. `Story` is one trace as it is told by captures; a test alters what it is about, and asks
for the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import Any

from helpers import pictures
from helpers.pictures import HOSTS, MACS, VETH_1, VETH_2, VETH_3

from overlaynet.addr import Mac
from overlaynet.state import Address, KernelState, LinkInfo
from overlaynet.trace.case import Case
from overlaynet.trace.join import Followed, Sighting
from overlaynet.trace.judge import Predict, judged
from overlaynet.trace.model import (
    CONTAINER,
    DELIVERED,
    HOST,
    OUTSIDE,
    Cause,
    Evidence,
    Frame,
    Headers,
    Hop,
    Node,
    Path,
    Place,
    Point,
    Prediction,
    Question,
    Sent,
    Tap,
    Trace,
    World,
)

VETH_4, VETH_C = "veth4444444444", "vethcccccccccc"
CABLES = {"web-1": VETH_1, "web-2": VETH_2, "web-3": VETH_3, "web-4": VETH_4, "client-1": VETH_C}
CONTAINER_IPS = {
    "web-1": "10.244.1.2",
    "web-2": "10.244.1.3",
    "web-3": "10.244.2.2",
    "web-4": "10.244.2.3",
    "client-1": "10.244.3.2",
}
GUARD = Point("node-3", "eth0")


def mac(name: str) -> Mac:
    """Of a container or host as pictures have it, or one made up."""
    return MACS.get(name) or Mac(f"02:00:00:00:{len(name):02x}:{sum(map(ord, name)) % 256:02x}")


def link(name: str, kind: str, address: Mac, **more: Any) -> LinkInfo:
    said = {"ifindex": 2 + sum(map(ord, name)), "mtu": 1500, "up": True, "running": True, **more}
    return LinkInfo(name=name, type=kind, mac=address, **said)


def host_place(number: int) -> Place:
    name = f"node-{number}"
    ports = [CABLES[c] for c, host in HOSTS.items() if host == name]
    links = [
        link("eth0", "veth", mac(name)),
        link("flannel.1", "vxlan", mac(f"vtep-{number}")),
        link("cni0", "bridge", mac(f"gateway-{number}")),
        *(link(port, "veth", mac(port), master="cni0") for port in ports),
    ]
    addresses = (
        Address("eth0", ip_interface(f"192.168.50.{10 + number}/24")),
        Address("cni0", ip_interface(f"10.244.{number}.1/24")),
        Address("flannel.1", ip_interface(f"10.244.{number}.0/32")),
    )
    return Place(name, HOST, name, f"ovl-t-{name}", KernelState({li.name: li for li in links}, addresses))


def container_place(name: str) -> Place:
    kernel = KernelState(
        {"eth0": link("eth0", "veth", mac(name))},
        (Address("eth0", ip_interface(f"{CONTAINER_IPS[name]}/24")),),
    )
    return Place(name, CONTAINER, HOSTS[name], f"ovl-t-{name}", kernel)


def world() -> World:
    """Everything there and up."""
    outside = KernelState(
        {"eth0": link("eth0", "veth", mac("outside"))},
        (Address("eth0", ip_interface("192.168.60.10/24")),),
    )
    places = [
        *(host_place(number) for number in (1, 2, 3)),
        *map(container_place, CONTAINER_IPS),
        Place(OUTSIDE, OUTSIDE, None, "ovl-t-outside", outside),
    ]
    inner = {Point(name, "eth0"): Point(HOSTS[name], port) for name, port in CABLES.items()}
    nodes = {
        f"node-{n}": Node(f"node-{n}", (ip_address(f"192.168.50.{10 + n}"),), "ready", live=True)
        for n in (1, 2, 3)
    }
    return World({place.name: place for place in places}, inner | {b: a for a, b in inner.items()}, nodes=nodes)


def with_links(here: World, place: str, **links: LinkInfo | None) -> World:
    """The same with links replaced, or taken away (None), in one place; ``flannel_1`` stands for flannel.1."""
    named = {name.replace("_1", ".1"): value for name, value in links.items()}
    old = here.places[place]
    kept = {**old.kernel.links, **named}
    kernel = replace(old.kernel, links={name: li for name, li in kept.items() if li is not None})
    return replace(here, places={**here.places, place: replace(old, kernel=kernel)})


def with_node(here: World, name: str, **changes: Any) -> World:
    return replace(here, nodes={**here.nodes, name: replace(here.nodes[name], **changes)})


def down(here: World, place: str, *names: str) -> World:
    """The same with these links down, or all of the place's."""
    links = here.places[place].kernel.links
    altered = {n: links[n]._replace(up=False, running=False) for n in names or links}
    return with_links(here, place, **{n.replace(".1", "_1"): li for n, li in altered.items()})


# --- paths ----------------------------------------------------------------------------------------


def path_of(trace: Trace) -> Path:
    return pictures.predicted(trace)


def ending(path: Path, hops: int, outcome: str, cause: Cause | None, **more: Any) -> Path:
    """The same way, which ends after so many hops."""
    said: dict[str, Any] = {"answer": "", "reply": None, "arrived_at": None, **more}
    return replace(path, hops=path.hops[:hops], outcome=outcome, cause=cause, **said)


def cause(
    kind: str, point: str = "node-1:flannel.1", thing: str = "fdb 02:0a:f4:02:00:00 dst 192.168.50.99"
) -> Cause:
    place, _, iface = point.partition(":")
    return Cause(kind, Point(place, iface), thing, "dst 192.168.50.12", "dst 192.168.50.99", None, "certain",
                 ("overlaynet diff node-1", "overlaynet repair node-1"))  # fmt: skip


# --- sightings ------------------------------------------------------------------------------------


def frame(hop: Hop) -> Frame:
    if hop.outer is None:
        return Frame(hop.inner)
    return Frame(hop.outer, hop.vni, hop.inner)


def sightings(hops: Iterable[Hop], start_us: float = 0.0) -> tuple[Sighting, ...]:
    """Every hop seen, 10 µs after the one before."""
    return tuple(
        Sighting(hop.point, hop.direction, round((start_us + 10 * n) * 1000), frame(hop), numbers=(n,))
        for n, hop in enumerate(hops)
    )


def answer_headers(hop: Hop, **changes: Any) -> Headers:
    """What goes back from this hop, as an ICMP error or RST: addresses the other way round."""
    there = hop.inner
    said = {"src": there.dst, "dst": there.src, "src_port": None, "dst_port": None, "tcp": None, **changes}
    return replace(there, **said)


# --- one trace ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """What was sent, seen and heard in one trace. `taps`: instead of a witness; None: nobody listened there.
    `listening`: where besides the paths and guards."""

    paths: tuple[Path, ...]
    question: Question = pictures.TO_WEB_3
    world: World = field(default_factory=world)
    tries: tuple[Followed, ...] = ()
    guards: tuple[Point, ...] = (GUARD,)
    unread: tuple[str, ...] = ()
    taps: Mapping[Point, Tap | None] = field(default_factory=dict)
    listening: tuple[Point, ...] = ()
    evidence: Evidence = field(default_factory=lambda: Evidence((), (), ()))
    expect: str = DELIVERED
    predict: Predict | None = None
    one_clock: bool = True

    @property
    def prediction(self) -> Prediction:
        return Prediction(self.question, self.paths, self.guards, self.unread)

    @property
    def points(self) -> tuple[Point, ...]:
        """Everything that is listened at."""
        ways = [way for path in self.paths for way in (path, path.reply) if way]
        hops = [hop.point for way in ways for hop in way.hops]
        return tuple(dict.fromkeys([*hops, *self.guards, *self.listening]))

    def verdict(self) -> Trace:
        taps = {point: self.taps.get(point, witness(point)) for point in self.points}
        evidence = replace(
            self.evidence,
            taps=tuple(tap for tap in taps.values() if tap is not None),
            sent=tuple(one.sent for one in self.tries),
        )
        after = self.predict(evidence.after, self.question) if self.predict and evidence.after else None
        world = replace(self.world, one_clock=self.one_clock)
        case = Case(world, self.prediction, evidence, self.expect, after)
        return judged(case, self.tries, "t-1")

    def but(self, **changes: Any) -> Story:
        return replace(self, **changes)

    def having(self, **changes: Any) -> Story:
        """With more evidence."""
        return replace(self, evidence=replace(self.evidence, **changes))

    def deaf(self, *points: str, **changes: Any) -> Story:
        """With taps there that are no witnesses, for the reason given."""
        said = changes or {"dropped": 3}
        deaf = {at(point): witness(at(point))._replace(**said) for point in points}
        return replace(self, taps={**self.taps, **deaf})

    def seeing(self, change: Callable[[Followed], Followed]) -> Story:
        """With every try altered."""
        return replace(self, tries=tuple(map(change, self.tries)))


def at(point: str) -> Point:
    place, _, iface = point.partition(":")
    return Point(place, iface)


def witness(point: Point) -> Tap:
    return Tap(point, armed=True, closed=True, dropped=0)


def went(
    path: Path, *, number: int = 1, hops: int | None = None, back: int | None = None, **more: Any
) -> Followed:
    """One try, seen at the path's first `hops` and the answer's first `back` (all of them, unless given)."""
    there = path.hops[:hops]
    arrived = hops is None or hops >= len(path.hops)
    reply = path.reply.hops[:back] if path.reply and arrived else ()
    heard = arrived and path.reply is not None and len(reply) == len(path.reply.hops)
    sent = Sent(number, f"{number:016x}", 44_778, 0, path.answer if heard else "")
    return Followed(
        sent._replace(**more), sightings(there), sightings(reply, 500), isn=pictures.ISN, ip_id=22_852
    )


def told(path: Path, **more: Any) -> Story:
    """A packet that goes as the only path says."""
    return Story((path,), tries=(went(path),), **more)


def healthy() -> Story:
    """web-1 to web-3, as predicted and seen everywhere."""
    return told(path_of(pictures.vxlan()))


def lost_after(hops: int, tries: int = 1) -> Story:
    """The same, seen at only so many hops."""
    path = path_of(pictures.vxlan())
    return Story((path,), tries=tuple(went(path, number=n, hops=hops) for n in range(1, tries + 1)))


# --- alterations of what was seen --------------------------------------------------------------------


def altered(point: str, direction: str, **headers: object) -> Callable[[Followed], Followed]:
    """Seen there with other headers of the packet itself."""

    def other(s: Sighting) -> Sighting:
        if (s.point, s.direction) != (at(point), direction):
            return s
        packet = replace(s.frame.packet, **headers)
        return s._replace(
            frame=replace(s.frame, inner=packet) if s.frame.inner else replace(s.frame, outer=packet)
        )

    return lambda one: replace(one, forward=tuple(map(other, one.forward)), reply=tuple(map(other, one.reply)))


def also_seen(
    point: str, direction: str, like: int, *, t_us: float = 75, **outer: object
) -> Callable[[Followed], Followed]:
    """Seen at one more point, as at hop number `like`."""

    def change(one: Followed) -> Followed:
        seen = one.forward[like]
        stray = seen._replace(
            point=at(point),
            direction=direction,
            t_ns=round(t_us * 1000),
            frame=replace(seen.frame, outer=replace(seen.frame.outer, **outer)),
        )
        return replace(one, forward=(*one.forward, stray))

    return change
