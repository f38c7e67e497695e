"""A packet at one of Netfilter's hooks: its connection, the rules, and the translation of what goes back.

A connection's first packet walks the nat table; conntrack remembers what became of it, and every later
packet of the connection is translated alike, the replies the other way round, without asking any rule::

    hook                     a first packet        one of the other direction
    PREROUTING, OUTPUT       DNAT by rules         its destination becomes the first packet's source again
    POSTROUTING, INPUT       SNAT by rules         its source becomes what the first packet was sent to

ICMP errors belong to the connection that they quote; both their own addresses and those in the quote are
translated (net/netfilter/nf_nat_proto.c). Where no rule needs conntrack it does not run, and nothing is
translated, nor put together from fragments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.state import RuleSet
from overlaynet.trace.journey import Conn, End, Journey, Layer, Tuple
from overlaynet.trace.model import (
    Place,
    World,
)
from overlaynet.trace.netfilter import Packet, Passage, Used, traverse
from overlaynet.trace.packet import Ends
from overlaynet.trace.routing import Query, address_on, lookup
from overlaynet.trace.ruletarget import ACCEPT
from overlaynet.trace.stops import stopped, used_rule

_NEEDS_CONNTRACK = re.compile(
    r"-m (conntrack|state|connmark|connlimit|connbytes|helper|cluster|socket)\b"
    r"|-j (DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|CONNMARK|CT|CONNSECMARK|SYNPROXY|TPROXY)\b"
)
"""Matches and targets that switch conntrack on (nf_ct_netns_get in the kernel's net/netfilter/xt_*.c)."""


class Hook(NamedTuple):
    """Where a packet is: the hook's name in iptables' words, the devices, the bridge's ports, and to
    whom it goes next, where that is known."""

    name: str
    in_dev: str | None = None
    out_dev: str | None = None
    physin: str | None = None
    physout: str | None = None
    next_hop: IPAddress | None = None

    @property
    def point(self) -> str:
        """The interface by which one says where a packet was stopped: where it was seen last. A bridge shows
        itself only what is meant for its host, and that after PREROUTING."""
        on_the_bridge = self.name == "PREROUTING" or self.physout is not None
        return (self.physin if on_the_bridge else None) or self.in_dev or self.out_dev or "lo"


def own_addresses(place: Place) -> frozenset[IPAddress]:
    return frozenset(address.interface.ip for address in place.kernel.addresses)


def tracks(place: Place) -> bool:
    """Whether conntrack runs in this place. Also if its rules are not known: most hosts have some."""
    if place.nft:
        return True
    return place.rules is None or _any_needs(place.rules)


def _any_needs(rules: RuleSet) -> bool:
    return any(_NEEDS_CONNTRACK.search(line.text) for lines in rules.chains.values() for line in lines)


# --- connections ----------------------------------------------------------------------------------


def followed(place: Place, journey: Journey) -> Journey:
    """With its connection in this place: one that it belongs to, or a new one. Fragments are put together."""
    if not tracks(place):
        return journey.with_context(conn=None, reply=False, state="UNTRACKED")
    journey = reassembled(journey, "put together for conntrack")
    if journey.tunnelled:
        return journey.with_context(conn=None, reply=False, state="NEW")
    known = _known(place, journey)
    if known is not None:
        conn, reply = known
        related = journey.quoted is not None
        state = "RELATED" if related else "ESTABLISHED" if reply else "NEW"
        return journey.with_context(conn=conn, reply=reply, state=state)
    return _new(place, journey)


def _known(place: Place, journey: Journey) -> tuple[Conn, bool] | None:
    about = journey.quoted
    if about is not None:
        sought = Tuple(about.protocol, about.src, about.src_port, about.dst, about.dst_port).inverse
    else:
        sought = journey.tuple
    here = [conn for conn in journey.conns if conn.place == place.name]
    ways = [(conn.original, conn, False) for conn in here]
    ways += [(conn.translated.inverse, conn, True) for conn in here]
    ways.sort(key=lambda way: way[0] != sought)
    return next(((conn, reply) for way, conn, reply in ways if way.fits(sought)), None)


def _new(place: Place, journey: Journey) -> Journey:
    """What can open a connection: a SYN, an echo request, any UDP (nf_conntrack_proto_*.c)."""
    icmp = journey.ip.icmp
    strange = (journey.ip.protocol == "tcp" and journey.tcp_flags != "S") or (icmp and icmp.type != 8)
    if strange:
        return journey.with_context(conn=None, reply=False, state="INVALID")
    conn = Conn(place.name, journey.tuple, journey.tuple)
    journey = replace(journey, conns=(*journey.conns, conn))
    return journey.with_context(conn=conn, reply=False, state="NEW")


def reassembled(journey: Journey, why: str) -> Journey:
    layer = journey.layer
    if not layer.pieces:
        return journey
    whole = Layer(layer.headers, 0, first_of(layer))
    return replace(journey.with_layer(whole), reasons={**journey.reasons, "fragments": why})


def first_of(layer: Layer) -> int:
    """The largest fragment's size in bytes, as the kernel notes it."""
    return layer.shown.length or layer.pieces


def _remember(journey: Journey, translated: Tuple, mark: int | None) -> Journey:
    """The connection's first packet leaves like this, and rules gave the connection this mark."""
    old = journey.context.conn
    if old is None or (old.translated, old.mark) == (translated, mark):
        return journey
    conn = replace(old, translated=translated, mark=mark)
    conns = tuple(conn if each is old else each for each in journey.conns)
    return replace(journey, conns=conns).with_context(conn=conn)


# --- through a hook -------------------------------------------------------------------------------


def through(world: World, place: Place, journey: Journey, hook: Hook) -> Iterator[Journey | End]:
    """Everything that may become of a packet at this hook."""
    if hook.name in ("PREROUTING", "OUTPUT"):
        journey = followed(place, journey)
    early = hook.name == "OUTPUT"
    if early:
        journey = _translated(place, journey, hook)
    if place.rules is None and not place.nft:
        unread = f"the rules of {place.name} could not be read"
        yield (journey if early else _translated(place, journey, hook)).doubting(unread)
        return
    rules = place.rules or RuleSet("none")
    passages = traverse(
        rules,
        hook.name,
        _packet(place, journey, hook),
        own_addresses(place),
        addresses=place.kernel.addresses,
        nft=place.nft,
    )
    for passage in passages:
        yield from _passed(world, place, journey, hook, passage, early)


def _packet(place: Place, journey: Journey, hook: Hook) -> Packet:
    ip, context, conn = journey.ip, journey.context, journey.context.conn
    icmp = ip.icmp
    translated = conn is not None and (conn.dnat or conn.snat)
    return Packet(
        src=journey.src,
        dst=journey.dst,
        protocol=ip.protocol,
        src_port=ip.src_port,
        dst_port=ip.dst_port,
        in_dev=hook.in_dev,
        out_dev=hook.out_dev,
        physin=hook.physin,
        physout=hook.physout,
        mark=journey.mark,
        connmark=conn.mark if conn else None,
        state=context.state,
        dnat=bool(conn and conn.dnat),
        snat=bool(conn and conn.snat),
        reply=context.reply,
        original=_ends(conn.original) if conn and translated else None,
        reverse=_way_back(place, journey, hook),
        length=ip.length,
        ttl=ip.ttl,
        tcp_flags=journey.tcp_flags or None,
        icmp_type=icmp.type if icmp else None,
        icmp_code=icmp.code if icmp else None,
        src_mac=ip.src_mac,
    )


def _way_back(place: Place, journey: Journey, hook: Hook) -> str | None:
    """By which device the kernel would send to the packet's source, as `-m rpfilter` asks."""
    if hook.name != "PREROUTING" or hook.in_dev is None:
        return None
    found = lookup(place.kernel, Query(journey.src, journey.dst))
    if found.kind != "unicast":
        return "none"
    return "same" if found.dev == hook.in_dev else "other"


def _ends(one: Tuple) -> Ends:
    return Ends(one.src, one.src_port, one.dst, one.dst_port)


def _passed(
    world: World, place: Place, journey: Journey, hook: Hook, passage: Passage, early: bool
) -> Iterator[Journey | End]:
    journey = journey.choosing(*passage.choices).doubting(*_in_place(place, passage.unread))
    if passage.verdict != ACCEPT:
        yield stopped(world, place, journey, hook.point, passage)
        return
    after = _applied(world, place, journey, hook, passage)
    yield after if early else _translated(place, after, hook)


def _in_place(place: Place, unread: Iterable[str]) -> Iterator[str]:
    return (f"{place.name}: {word}" for word in unread)


def _applied(world: World, place: Place, journey: Journey, hook: Hook, passage: Passage) -> Journey:
    """With what the rules did to it."""
    new, before = passage.packet, journey
    journey = replace(journey, mark=new.mark)
    if (new.dst, new.dst_port) != (journey.dst, journey.ip.dst_port):
        journey = journey.with_headers("DNAT", dst=new.dst, dst_port=new.dst_port)
    source, port = new.src, new.src_port
    if passage.masquerade:
        masked = address_on(place.kernel, hook.out_dev or "", hook.next_hop or journey.dst)
        if masked is not None:
            source, port = masked, None
    if (source, port) != (journey.src, journey.ip.src_port):
        journey = journey.with_headers(
            "masquerade" if passage.masquerade else "SNAT", src=source, src_port=port
        )
    changed = journey.tuple != before.tuple or passage.masquerade or journey.mark != before.mark
    if changed:
        journey = journey.because(*(used_rule(world, place, each) for each in passage.used if _acts(each)))
    conn = journey.context.conn
    translated = journey.tuple if conn is None or journey.tuple != before.tuple else conn.translated
    return _remember(journey, translated, new.connmark)


def _acts(used: Used) -> bool:
    """Whether a rule did something to the packet, or sent it to one that may have."""
    return used.table in ("nat", "mangle") and not re.search(r"-j (RETURN|ACCEPT)\b", used.text)


# --- what goes back -------------------------------------------------------------------------------


def _translated(place: Place, journey: Journey, hook: Hook) -> Journey:
    """As conntrack remembers it: packets in the other direction, and later ones in the first."""
    conn, context = journey.context.conn, journey.context
    if conn is None or not (conn.dnat or conn.snat):
        return journey
    destination = hook.name in ("PREROUTING", "OUTPUT")
    if not context.reply:
        return _again(journey, conn, destination)
    if destination and conn.snat:
        return _back(journey, conn, destination, "un-SNAT by conntrack")
    if not destination and conn.dnat:
        return _back(journey, conn, destination, "un-DNAT by conntrack")
    return journey


def _again(journey: Journey, conn: Conn, destination: bool) -> Journey:
    new = conn.translated
    if destination:
        return journey.with_headers("DNAT by conntrack", dst=new.dst, dst_port=new.dst_port)
    return journey.with_headers("SNAT by conntrack", src=new.src, src_port=new.src_port)


def _back(journey: Journey, conn: Conn, destination: bool, reason: str) -> Journey:
    first, about = conn.original, journey.quoted
    if about is None:
        if destination:
            return journey.with_headers(reason, dst=first.src, dst_port=first.src_port)
        return journey.with_headers(reason, src=first.dst, src_port=first.dst_port)
    icmp = journey.ip.icmp
    assert icmp is not None
    if destination:
        quoted = about._replace(src=first.src, src_port=first.src_port)
        return journey.with_headers(reason, dst=first.src, icmp=icmp._replace(quoted=quoted))
    quoted = about._replace(dst=first.dst, dst_port=first.dst_port)
    return journey.with_headers(reason, src=first.dst, icmp=icmp._replace(quoted=quoted))
