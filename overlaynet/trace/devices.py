"""A frame on devices: cables, bridges, tunnels, and the underlay that nobody looks into.

**Cables.** A veth hands what it sends to its other end, unless that is down, or the packet is larger than the
other end's MTU and four bytes (net/core/dev.c, is_skb_forwardable).

**Bridges** look up the MAC. With bridge-nf-call-iptables=1 every frame that comes by a port goes through
PREROUTING first, as if the bridge had received it. If it gets another destination there, the bridge routes it:
one that stays on this bridge gets its new neighbour's MAC and is bridged on, with the same TTL; any other goes
up to the host's stack. Bridged frames go through FORWARD and POSTROUTING as well
(net/bridge/br_netfilter_hooks.c). What the host itself sends by the bridge has been through all hooks already.

**Tunnels.** A VXLAN device looks up the MAC as well, and its entry is the other host's address. The new
outer packet is one that the host sends: it is routed, and goes through OUTPUT and POSTROUTING. It may be
cut in pieces (DF is not set) (drivers/net/vxlan/vxlan_core.c).

**The underlay** carries a frame to whoever has its MAC. A router in between is not seen: what it is given
arrives at whoever has the IP address, or leaves the view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from overlaynet.addr import IPAddress, Mac
from overlaynet.state import Fdb, LinkInfo
from overlaynet.trace import routing, whys
from overlaynet.trace.arp import is_underlay, resolve, underlay_devices
from overlaynet.trace.blame import Blame
from overlaynet.trace.hooks import Hook, through
from overlaynet.trace.journey import (
    CLEAN,
    VXLAN_BYTES,
    Arrives,
    Bridges,
    End,
    Enters,
    Journey,
    Layer,
    Outcome,
    Step,
    Transmits,
)
from overlaynet.trace.model import Headers, Place, Point, World
from overlaynet.trace.routing import LOOPBACK, number
from overlaynet.trace.stack import query_for, sent, size_of

SLACK_BYTES = 4
"""What a veth takes above its MTU: room for a VLAN tag (VLAN_HLEN)."""
BRIDGE_NF = "net/bridge/bridge-nf-call-iptables"


def transmits(world: World, journey: Journey, stage: Transmits) -> Outcome:
    """A device sends a frame."""
    place = world.places[stage.place]
    link, blame = place.kernel.links[stage.dev], Blame(world, place)
    if not link.up or not (link.running or link.type == "bridge"):
        yield blame.link_down(journey, link)
        return
    point = Point(place.name, link.name)
    if is_underlay(world, place, link.name):
        yield from _over_underlay(world, place, journey, stage)
        return
    journey = journey.passing(place, link.name, "out")
    match link.type:
        case "loopback":
            yield Step(journey, Arrives(place.name, LOOPBACK, addressed=True))
        case "bridge":
            yield from bridges(world, journey, Bridges(place.name, link.name))
        case "vxlan":
            yield from _tunnelled(world, place, journey, link)
        case "veth" if point in world.cables:
            yield _through_cable(world, journey, world.cables[point])
        case _:
            yield blame.not_followed(journey, link)


def _through_cable(world: World, journey: Journey, far: Point) -> Step | End:
    place = world.places[far.place]
    link = place.kernel.links[far.iface]
    if not link.up:
        return Blame(world, place).link_down(journey, link)
    if _is_too_large(journey, link):
        return Blame(world, place).too_large(journey, link.name, link.mtu, None, "nobody tells the sender")
    crossed = replace(journey, mark=0, context=CLEAN)
    return Step(crossed, Arrives(far.place, far.iface))


def _is_too_large(journey: Journey, link: LinkInfo) -> bool:
    return (journey.layer.shown.length or 0) > link.mtu + SLACK_BYTES


def arrives(world: World, journey: Journey, stage: Arrives) -> Outcome:
    """A device receives a frame."""
    place = world.places[stage.place]
    link, blame = place.kernel.links[stage.dev], Blame(world, place)
    if not link.up:
        yield blame.link_down(journey, link)
        return
    journey = journey.passing(place, link.name, "in")
    master = place.kernel.links.get(link.master or "")
    if master is not None and master.type == "bridge":
        yield from bridges(world, journey, Bridges(place.name, master.name, link.name))
    elif link.master is not None:
        yield blame.not_followed(journey, master or link)
    elif not stage.addressed and journey.ip.dst_mac not in (None, link.mac):
        yield blame.not_addressed(journey, link)
    else:
        yield Step(journey, Enters(place.name, link.name))


# --- bridges --------------------------------------------------------------------------------------


def bridges(world: World, journey: Journey, stage: Bridges) -> Outcome:
    """A frame that came by a port, or from the bridge's own host."""
    place = world.places[stage.place]
    bridge = place.kernel.links[stage.bridge]
    if stage.port is None:
        yield from _to_port(world, place, journey, stage)
        return
    if not bridge.up:
        yield Blame(world, place).link_down(journey, bridge)
        return
    journey = journey.with_context(port=stage.port)
    if not number(place.kernel, BRIDGE_NF):
        yield from _decided(world, place, journey, stage)
        return
    hook = Hook("PREROUTING", stage.bridge, physin=stage.port)
    for after in through(world, place, journey, hook):
        if isinstance(after, End):
            yield after
            continue
        after = after.with_context(filtered=True)
        if after.dst != journey.dst:
            yield from _redirected(world, place, after, stage)
        else:
            yield from _decided(world, place, after, stage)


def _redirected(world: World, place: Place, journey: Journey, stage: Bridges) -> Outcome:
    """Translated while it is on the bridge: bridged on to its new neighbour, or up to the host, which may not
    have a way for it."""
    query, blame = query_for(journey, iif=stage.bridge), Blame(world, place)
    found = routing.lookup(place.kernel, query)
    forwards = routing.forwards(place.kernel, stage.bridge)
    out = found.dev if found.kind == "unicast" and found.dev else LOOPBACK
    no = routing.source_refused(place.kernel, query, out) if forwards or found.kind == "local" else None
    if no is not None:
        yield blame.not_believed(journey, stage.bridge, no)
        return
    if forwards and found.kind == "unicast" and found.dev == stage.bridge:
        hop = found.next_hop(journey.dst)
        answer = resolve(world, place, stage.bridge, hop)
        if answer.mac is None:
            yield blame.no_neighbour(journey, stage.bridge, hop, answer.entry)
            return
        if answer.entry is not None and answer.mac == answer.entry.mac:
            journey = journey.because(whys.neigh(world, place, answer.entry))
            journey = blame.neigh(journey, answer.entry, answer.right)
        journey = journey.because(whys.sysctl(world, place, BRIDGE_NF, 1))
        journey = journey.with_headers(f"its neighbour {hop} is on this bridge too", dst_mac=answer.mac)
        note = "only if the neighbour entry was not confirmed lately"
        journey = journey.passing(place, stage.bridge, "out", note, optional=True)
        yield from _decided(world, place, journey, stage)
        return
    bridge = place.kernel.links[stage.bridge]
    up = journey.with_headers("the bridge routes it", dst_mac=bridge.mac)
    yield from _decided(world, place, up, stage)


def _decided(world: World, place: Place, journey: Journey, stage: Bridges) -> Outcome:
    """By its MAC: up to the host, or on by a port."""
    if routing.is_bridges_own(place.kernel, stage.bridge, journey.ip.dst_mac):
        if journey.context.filtered:
            journey = (
                journey.because(whys.sysctl(world, place, BRIDGE_NF, 1))
                if _was_translated(journey)
                else journey
            )
        journey = journey.passing(place, stage.bridge, "in")
        # What was put together on the bridge arrives as one packet: how large its pieces were is forgotten.
        journey = journey.with_layer(replace(journey.layer, largest=0))
        yield Step(journey, Enters(place.name, stage.bridge))
        return
    yield from _to_port(world, place, journey, stage)


def _was_translated(journey: Journey) -> bool:
    return bool({"dst", "src"} & journey.reasons.keys())


def _to_port(world: World, place: Place, journey: Journey, stage: Bridges) -> Outcome:
    kernel, blame, mac = place.kernel, Blame(world, place), journey.ip.dst_mac
    entry = routing.bridge_entry(kernel, stage.bridge, mac)
    if entry is not None:
        journey = blame.bridge_entry(journey.because(whys.fdb(world, place, entry)), entry)
        port = kernel.links[entry.dev]
    else:
        found = _port_towards(world, place, stage, mac)
        flooded = {p.name for p in routing.ports(kernel, stage.bridge) if p.name != stage.port or p.hairpin}
        note = f"{stage.bridge} of {place.name} has no entry for {mac} and sends it by every port"
        journey = replace(journey.noting(note), floods=journey.floods | {f"{place.name}:{p}" for p in flooded})
        if found is None:
            yield blame.nobody_behind_bridge(journey, stage.bridge, mac)
            return
        port = found
    if port.name == stage.port and not port.hairpin:
        yield blame.no_hairpin(journey, port)
        return
    if not port.up or not port.running:
        yield blame.link_down(journey, port)
        return
    yield from _bridged(world, place, journey, stage, port)


def _port_towards(world: World, place: Place, stage: Bridges, mac: Mac | None) -> LinkInfo | None:
    """The port whose other end has this MAC."""
    for port in routing.ports(place.kernel, stage.bridge):
        far = world.cables.get(Point(place.name, port.name))
        if far and port.name != stage.port and world.places[far.place].kernel.links[far.iface].mac == mac:
            return port
    return None


def _bridged(world: World, place: Place, journey: Journey, stage: Bridges, port: LinkInfo) -> Outcome:
    """From port to port, by iptables where bridge-nf is on."""
    if stage.port is None or not journey.context.filtered:
        yield _out_by(world, place, journey, stage, port)
        return
    forward = Hook("FORWARD", stage.bridge, stage.bridge, stage.port, port.name)
    for after in through(world, place, journey, forward):
        if isinstance(after, End):
            yield after
            continue
        post = Hook("POSTROUTING", stage.bridge, stage.bridge, stage.port, port.name)
        for last in through(world, place, after, post):
            yield last if isinstance(last, End) else _out_by(world, place, last, stage, port)


def _out_by(world: World, place: Place, journey: Journey, stage: Bridges, port: LinkInfo) -> Step | End:
    blame = Blame(world, place)
    if stage.port is not None and journey.context.filtered:
        cut = _refragmented(place, journey, stage.bridge, port)
        if cut is None:
            why = "it may not be cut (DF); a bridge tells nobody"
            return blame.too_large(journey, port.name, port.mtu, None, why)
        journey = cut
    if _is_too_large(journey, port):
        return blame.too_large(journey, port.name, port.mtu, None, "a bridge tells nobody")
    return Step(journey, Transmits(place.name, port.name))


def _refragmented(place: Place, journey: Journey, bridge: str, port: LinkInfo) -> Journey | None:
    """What iptables has seen on the bridge is cut if the port does not carry it, to pieces of the bridge's MTU
    (br_nf_dev_queue_xmit); None: it may not be cut."""
    layer, limit = journey.layer, place.kernel.links[bridge].mtu
    if size_of(journey) <= min(port.mtu, layer.largest or port.mtu):
        return journey.with_layer(replace(layer, largest=0))
    if journey.ip.df or (layer.largest or 0) > limit:
        return None
    pieces = min(limit, layer.largest or limit)
    is_whole = size_of(journey) <= pieces
    return journey.with_layer(replace(layer, pieces=0 if is_whole else pieces, largest=0))


# --- tunnels --------------------------------------------------------------------------------------


def _tunnelled(world: World, place: Place, journey: Journey, link: LinkInfo) -> Outcome:
    blame, mac = Blame(world, place), journey.ip.dst_mac
    if journey.tunnelled or link.vxlan is None or mac is None:
        yield blame.not_followed(journey, link)
        return
    entries = routing.tunnels(place.kernel, link.name, mac)
    if not entries:
        yield blame.no_tunnel(journey, link, mac)
        return
    if len(entries) > 1:
        doubt = f"{place.name}: {link.name} has several entries for {mac}, and sends a copy to each"
        journey = journey.doubting(doubt)
    for entry in entries:
        yield from _wrapped(world, place, journey, link, entry)


def _wrapped(world: World, place: Place, journey: Journey, link: LinkInfo, entry: Fdb) -> Outcome:
    vxlan, blame = link.vxlan, Blame(world, place)
    assert vxlan is not None
    assert entry.dst is not None
    journey = blame.tunnel(journey.because(whys.fdb(world, place, entry)), link, entry)
    length = journey.layer.shown.length
    outer = Headers(
        None,
        None,
        vxlan.local,
        entry.dst,
        "udp",
        None,
        vxlan.port,
        number(place.kernel, "net/ipv4/ip_default_ttl", 64),
        length=None if length is None else length + VXLAN_BYTES,
        df=False,
    )
    wrapped = replace(journey, layers=(*journey.layers, Layer(outer)), vni=vxlan.vni, context=CLEAN)
    wrapped = wrapped.because(encapsulation=f"{link.name}: +{VXLAN_BYTES} bytes")
    oif = vxlan.underlay or None
    query = query_for(wrapped, oif=oif)
    found = routing.output(place.kernel, query)
    if _is_here(place, entry.dst):
        back = replace(journey, context=CLEAN).noting(f"{link.name} of {place.name} sends it to its own host")
        yield Step(back, Arrives(place.name, link.name, addressed=True))
        return
    if found.kind != "unicast":
        yield blame.no_route(wrapped, found, "lost", None)
        return
    if found.route and found.route.protocol:
        wrapped = wrapped.because(whys.route(world, place, found.route, query))
    yield from sent(world, place, wrapped, found, oif)


def _is_here(place: Place, ip: IPAddress) -> bool:
    return place.owns(ip)


# --- the underlay ---------------------------------------------------------------------------------


def _over_underlay(world: World, place: Place, journey: Journey, stage: Transmits) -> Outcome:
    mac = journey.ip.dst_mac
    ends = [(p, d) for p, d in underlay_devices(world) if d.mac == mac and (p, d.name) != (place, stage.dev)]
    if ends:
        far, device = ends[0]
        journey = journey.passing(place, stage.dev, "out")
        yield _into(world, journey, far, device)
        return
    yield from _by_router(world, place, journey, stage)


def _into(world: World, journey: Journey, place: Place, device: LinkInfo) -> Step | End:
    if not device.up:
        return Blame(world, place).link_down(journey, device)
    if device.type == "veth" and _is_too_large(journey, device):
        return Blame(world, place).too_large(journey, device.name, device.mtu, None, "a veth takes no more")
    crossed = replace(journey, mark=0, context=CLEAN)
    return Step(crossed, Arrives(place.name, device.name))


def _by_router(world: World, place: Place, journey: Journey, stage: Transmits) -> Outcome:
    """Its next hop is nobody whom we see."""
    hop, blame = stage.next_hop, Blame(world, place)
    owner = world.place_of(hop) if hop else None
    if hop and owner and journey.ip.dst_mac is not None:
        journey = journey.passing(place, stage.dev, "out")
        yield blame.nobody_has_mac(journey, stage.dev, hop, owner)
        return
    known = hop is not None and routing.is_usable(routing.neighbour(place.kernel, stage.dev, hop))
    note = "" if known else f"if anybody there has {hop}"
    if hop == journey.dst:
        journey = journey.passing(place, stage.dev, "out", note, optional=not known)
        yield blame.out_of_sight(journey, stage.dev)
        return
    end = next(_holders(world, journey.dst), None)
    if end is None:
        journey = journey.passing(place, stage.dev, "out", note, optional=not known)
        yield blame.out_of_sight(journey, stage.dev)
        return
    far, device = end
    journey = journey.passing(place, stage.dev, "out")
    journey = journey.with_headers(f"by a router, {hop}", ttl=None, src_mac=None, dst_mac=device.mac)
    yield _into(world, journey.noting(f"{hop} is a router that is not looked into"), far, device)


def _holders(world: World, ip: IPAddress) -> Iterator[tuple[Place, LinkInfo]]:
    """Who has this address on a device of the underlay."""
    for place, device in underlay_devices(world):
        if any(a.dev == device.name and a.interface.ip == ip for a in place.kernel.addresses):
            yield place, device
