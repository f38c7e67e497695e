"""One place's IP stack: what is sent there, what comes in, what goes on to elsewhere, what stays.

In the kernel's order (net/ipv4/ip_input.c, route.c, ip_forward.c, ip_output.c)::

    in       PREROUTING → is the source believed? → route ─┬─ here:  INPUT → who listens, or the tunnel
                                                           └─ elsewhere:  TTL left?  small enough?  TTL − 1,
                                                              FORWARD ─┐
    out      route → OUTPUT → route again if it was translated ────────┴─ POSTROUTING → fragments → neighbour
"""

from __future__ import annotations

from dataclasses import replace

from overlaynet.addr import IPAddress
from overlaynet.state import LearnedMtu
from overlaynet.trace import routing, whys
from overlaynet.trace.arp import Resolved, resolve
from overlaynet.trace.blame import Blame
from overlaynet.trace.hooks import Hook, reassembled, through
from overlaynet.trace.journey import (
    CLEAN,
    Arrives,
    End,
    Enters,
    Journey,
    Leaves,
    Outcome,
    Sends,
    Stays,
    Step,
    Transmits,
)
from overlaynet.trace.model import LOST, REJECTED, Place, World
from overlaynet.trace.reply import delivered
from overlaynet.trace.routing import LOOPBACK, NO_MAC, Found, Query
from overlaynet.trace.stops import refused

SMALLEST_BYTES = 60
"""A SYN with its usual options: what a packet of unknown length is taken for."""


def size_of(journey: Journey) -> int:
    return journey.ip.length or SMALLEST_BYTES


def query_for(journey: Journey, iif: str = LOOPBACK, oif: str | None = None) -> Query:
    ip = journey.ip
    return Query(journey.dst, ip.src, iif, oif, journey.mark, ip.protocol, ip.src_port, ip.dst_port)


def mtu_of(place: Place, dev: str, dst: IPAddress) -> tuple[int, LearnedMtu | None]:
    """Of what a place sends itself: its device's, or what an ICMP error said of the way, with that
    (net/ipv4/route.c, ipv4_mtu)."""
    mtu = place.kernel.links[dev].mtu
    entry = next((e for e in place.kernel.learned if (e.dst, e.dev) == (dst, dev)), None)
    return (mtu, None) if entry is None or entry.mtu >= mtu else (entry.mtu, entry)


# --- out ------------------------------------------------------------------------------------------


def sends(world: World, journey: Journey, stage: Sends) -> Outcome:
    """A process, or the kernel, of this place sends it."""
    place = world.places[stage.place]
    query = query_for(journey)
    found = routing.output(place.kernel, query)
    journey = _routed(world, place, journey, found, query)
    if found.kind not in ("unicast", "local"):
        yield _unroutable_here(world, place, journey, found)
        return
    if journey.ip.src is None:
        journey = journey.with_headers(src=routing.source_for(place.kernel, found, journey.dst))
    mtu, learned = mtu_of(place, found.dev or LOOPBACK, journey.dst)
    if size_of(journey) > mtu and journey.ip.df:
        yield _too_large_here(world, place, journey, found, learned)
        return
    journey = _with_df(journey, mtu)
    yield from sent(world, place, journey, found)


def _with_df(journey: Journey, mtu: int) -> Journey:
    """Linux forbids to fragment what fits, and fragments itself what does not. What it sent so it will cut
    all the same, should a translation send it by another device (ip(7), IP_PMTUDISC_WANT)."""
    if journey.ip.df is None:
        journey = journey.with_headers(df=size_of(journey) <= mtu).with_context(ignore_df=True)
    return journey


def sent(world: World, place: Place, journey: Journey, found: Found, oif: str | None = None) -> Outcome:
    """From OUTPUT on."""
    dev = found.dev or LOOPBACK
    before = journey
    for after in through(world, place, journey, Hook("OUTPUT", out_dev=dev)):
        if isinstance(after, End):
            yield after
        elif (after.dst, after.mark) != (before.dst, before.mark):
            yield _rerouted(world, place, after, oif)
        else:
            yield _out(after, place, found)


def _rerouted(world: World, place: Place, journey: Journey, oif: str | None) -> Step | End:
    """To where it was translated to; the route that it had before does not count."""
    journey = replace(journey, whys=tuple(why for why in journey.whys if why.object not in ("route", "iprule")))
    query = query_for(journey, oif=oif)
    found = routing.output(place.kernel, query)
    journey = _routed(world, place, journey, found, query)
    if found.kind not in ("unicast", "local"):
        return _unroutable_here(world, place, journey, found)
    return _out(journey, place, found)


def _out(journey: Journey, place: Place, found: Found) -> Step:
    journey = journey.with_context(routed=found.kind == "local")
    return Step(journey, Leaves(place.name, found.dev or LOOPBACK, found.next_hop(journey.dst)))


def _routed(world: World, place: Place, journey: Journey, found: Found, query: Query) -> Journey:
    """With the route told, and whether it is the one that should be there."""
    journey = journey.doubting(*(f"{place.name}: {word}" for word in found.unread))
    if found.rule:
        journey = journey.because(whys.iprule(found.rule))
    if found.route and found.route.protocol:
        journey = journey.because(whys.route(world, place, found.route, query))
    return Blame(world, place).route(journey, found)


def leaves(world: World, journey: Journey, stage: Leaves) -> Outcome:
    """Routed; from POSTROUTING to the frame."""
    place = world.places[stage.place]
    hook = Hook("POSTROUTING", stage.source, stage.dev, journey.context.physin, next_hop=stage.next_hop)
    for after in through(world, place, journey, hook):
        if isinstance(after, End):
            yield after
            continue
        learned = mtu_of(place, stage.dev, after.dst)[1] if stage.source is None else None
        cut = fragmented(world, place, after, stage.dev, learned)
        yield cut if isinstance(cut, End) else _addressed(world, place, cut, stage)


def fragmented(
    world: World, place: Place, journey: Journey, dev: str, learned: LearnedMtu | None = None
) -> Journey | End:
    """Cut to what the device carries, or the way is known to; what was put together on the way is cut as it was
    before."""
    mtu, layer = learned.mtu if learned else place.kernel.links[dev].mtu, journey.layer
    if layer.pieces:
        if layer.pieces > mtu:
            return journey.with_layer(replace(layer, pieces=mtu))
        return journey
    if size_of(journey) <= mtu and not layer.largest:
        return journey
    limit = min(mtu, layer.largest) if layer.largest else mtu
    if journey.ip.df and size_of(journey) > mtu and not journey.context.ignore_df:
        return _too_large(world, place, journey, dev, mtu)
    cut = journey.with_layer(replace(layer, pieces=limit, largest=0)).with_headers(df=False)
    who = f"the way to {learned.dst}" if learned else dev
    return replace(
        cut, reasons={**cut.reasons, "fragments": f"{size_of(journey)} bytes, and {who} takes {mtu}"}
    )


def _addressed(world: World, place: Place, journey: Journey, stage: Leaves) -> Step | End:
    """With MACs."""
    if stage.dev == LOOPBACK:
        journey = journey.with_headers(src_mac=NO_MAC, dst_mac=NO_MAC)
        return Step(journey, Transmits(place.name, stage.dev))
    link = place.kernel.links[stage.dev]
    answer = resolve(world, place, stage.dev, stage.next_hop)
    if answer.mac is None and not answer.unknown:
        return _unresolved(world, place, journey, stage, answer)
    if answer.entry is not None and answer.mac == answer.entry.mac:
        journey = journey.because(whys.neigh(world, place, answer.entry))
        journey = Blame(world, place).neigh(journey, answer.entry, answer.right)
    reason = f"next hop {stage.next_hop}"
    journey = journey.with_headers(reason, src_mac=link.mac, dst_mac=answer.mac)
    return Step(journey, Transmits(place.name, stage.dev, stage.next_hop))


def _unresolved(world: World, place: Place, journey: Journey, stage: Leaves, answer: Resolved) -> End:
    return Blame(world, place).no_neighbour(journey, stage.dev, stage.next_hop, answer.entry)


def _unroutable_here(world: World, place: Place, journey: Journey, found: Found) -> End:
    return Blame(world, place).no_route(journey, found, REJECTED, None)


def _too_large_here(
    world: World, place: Place, journey: Journey, found: Found, learned: LearnedMtu | None
) -> End:
    dev, blame, why = found.dev or LOOPBACK, Blame(world, place), "its own kernel refuses to send it"
    if learned is not None:
        return blame.too_large_as_learned(journey, learned, why)
    return blame.too_large(journey, dev, place.kernel.links[dev].mtu, None, why)


# --- in -------------------------------------------------------------------------------------------


def enters(world: World, journey: Journey, stage: Enters) -> Outcome:
    """From PREROUTING to the route."""
    place = world.places[stage.place]
    if journey.context.filtered:
        yield from _received(world, place, journey, stage.dev)
        return
    before = journey.dst
    for after in through(world, place, journey, Hook("PREROUTING", stage.dev)):
        if isinstance(after, End):
            yield after
            continue
        if after.dst != before:
            after = after.with_context(routed=False)
        yield from _received(world, place, after, stage.dev)


def _received(world: World, place: Place, journey: Journey, dev: str) -> Outcome:
    """Believed, and routed."""
    if journey.context.routed:
        yield Step(journey.with_context(routed=False), Stays(place.name, dev))
        return
    query, blame = query_for(journey, iif=dev), Blame(world, place)
    if _is_cast(place, journey.dst):
        yield End(journey.doubting(f"{journey.dst} is no single receiver's address"), LOST, None)
        return
    found = routing.lookup(place.kernel, query)
    journey = journey.doubting(*(f"{place.name}: {word}" for word in found.unread))
    if found.kind == "local" or routing.forwards(place.kernel, dev):
        out = found.dev if found.kind == "unicast" else None
        no = routing.source_refused(place.kernel, query, out or LOOPBACK)
        if no is not None and (found.kind in ("local", "unicast") or no.word == "martian"):
            yield blame.not_believed(journey, dev, no)
            return
    if found.kind == "local":
        yield Step(journey, Stays(place.name, dev))
    elif not routing.forwards(place.kernel, dev):
        yield blame.not_forwarding(journey, dev)
    elif found.kind != "unicast":
        yield _unroutable(world, place, journey, found)
    else:
        journey = _routed(world, place, journey, found, query)
        yield from _forwarded(world, place, journey, dev, found)


def _is_cast(place: Place, ip: IPAddress) -> bool:
    """Whether it is a multicast or broadcast address."""
    if ip.is_multicast or str(ip) == "255.255.255.255":
        return True
    networks = (a.interface.network for a in place.kernel.addresses if a.interface.version == 4)
    return any(n.prefixlen < 31 and ip == n.broadcast_address for n in networks)


def _unroutable(world: World, place: Place, journey: Journey, found: Found) -> End:
    """The kernel tells the sender, but for a blackhole (net/ipv4/route.c, ip_error)."""
    codes = {
        "none": (0, "icmp net-unreachable"),
        "unreachable": (1, "icmp host-unreachable"),
        "prohibit": (13, "icmp admin-prohibited"),
    }
    blame = Blame(world, place)
    if found.kind not in codes:
        return blame.no_route(journey, found, "dropped", None)
    code, name = codes[found.kind]
    answer = refused(place, journey, 3, code, name)
    return blame.no_route(journey, found, REJECTED if answer else LOST, answer)


def _forwarded(world: World, place: Place, journey: Journey, dev: str, found: Found) -> Outcome:
    out = found.dev
    assert out is not None
    ttl, mtu, layer = journey.ip.ttl, place.kernel.links[out].mtu, journey.layer
    if ttl is not None and ttl <= 1:
        answer = refused(place, journey, 11, 0, "icmp time-exceeded")
        yield Blame(world, place).no_ttl(journey, dev, answer)
        return
    if journey.ip.df and max(layer.largest or 0, 0 if layer.pieces else size_of(journey)) > mtu:
        yield _too_large(world, place, journey, out, mtu)
        return
    if ttl is not None:
        journey = journey.with_headers("routed", ttl=ttl - 1)
    for after in through(world, place, journey, Hook("FORWARD", dev, out, journey.context.physin)):
        if isinstance(after, End):
            yield after
        else:
            yield Step(after, Leaves(place.name, out, found.next_hop(after.dst), dev))


def _too_large(world: World, place: Place, journey: Journey, dev: str, mtu: int) -> End:
    answer = refused(place, journey, 3, 4, "icmp fragmentation-needed", mtu)
    return Blame(world, place).too_large(journey, dev, mtu, answer, "it may not be cut (DF)")


# --- here -----------------------------------------------------------------------------------------


def stays(world: World, journey: Journey, stage: Stays) -> Outcome:
    """INPUT, and then whoever takes it."""
    place = world.places[stage.place]
    journey = reassembled(journey, "put together by its receiver")
    hook = Hook("INPUT", stage.dev, physin=journey.context.physin)
    for after in through(world, place, journey, hook):
        if isinstance(after, End):
            yield after
        elif after.tunnelled:
            yield _unwrapped(world, place, after, stage.dev)
        else:
            yield delivered(place, after)


def _unwrapped(world: World, place: Place, journey: Journey, dev: str) -> Step | End:
    """The tunnel's device takes the inner frame (drivers/net/vxlan/vxlan_core.c, vxlan_rcv)."""
    port, vni = journey.ip.dst_port, journey.vni
    ends = routing.vxlan_devices(place.kernel)
    device = next((d for d in ends if d.vxlan and (d.vxlan.vni, d.vxlan.port) == (vni, port)), None)
    blame = Blame(world, place)
    if device is None or not device.up:
        return blame.no_tunnel_end(journey, dev, device)
    inner = replace(journey, layers=journey.layers[:-1], vni=None, context=CLEAN)
    if inner.ip.src_mac == device.mac:
        return blame.own_frame(journey, device)
    inner = inner.because(encapsulation="unwrapped: it is for this host's VXLAN port", ttl="", dst_mac="")
    return Step(inner, Arrives(place.name, device.name))
