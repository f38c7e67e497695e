"""Traces and predictions made by hand, one for each kind of way a packet may go: what pictures are drawn of.

Addresses, MACs and names are those of a lab of two or three hosts; the times are invented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from overlaynet.addr import Mac
from overlaynet.state import Source
from overlaynet.trace.model import (
    CERTAIN,
    DELIVERED,
    DROPPED,
    INCONCLUSIVE,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Cause,
    Change,
    Connection,
    Count,
    Direction,
    Headers,
    Hop,
    Icmp,
    Path,
    Point,
    Prediction,
    Question,
    Tap,
    Tcp,
    Trace,
    Why,
)

MACS = {
    "web-1": Mac("02:0a:f4:00:01:02"),
    "web-2": Mac("02:0a:f4:00:01:03"),
    "web-3": Mac("02:0a:f4:00:02:02"),
    "web-4": Mac("02:0a:f4:00:02:03"),
    "gateway-1": Mac("02:0a:f4:00:01:01"),
    "gateway-2": Mac("02:0a:f4:00:02:01"),
    "vtep-1": Mac("02:0a:f4:01:00:00"),
    "vtep-2": Mac("02:0a:f4:02:00:00"),
    "node-1": Mac("02:c0:a8:32:0b:00"),
    "node-2": Mac("02:c0:a8:32:0c:00"),
    "router": Mac("02:c0:a8:32:01:00"),
}
VETH_1, VETH_2, VETH_3 = "veth3487734c933", "veth96603d4dfdd", "veth1c5d0a77e02"
HOSTS = {"web-1": "node-1", "web-2": "node-1", "web-3": "node-2", "web-4": "node-2", "client-1": "node-3"}
LEASE_2 = Source("lease", "10.244.2.0-24")
ISN = 3_233_124_061


def packet(
    src: str, dst: str, macs: tuple[str, str], ports: tuple[int | None, int | None], ttl: int = 64, **more: Any
) -> Headers:
    """A TCP connection's first packet, unless `more` says otherwise."""
    said: dict[str, Any] = {
        "protocol": "tcp",
        "ip_id": 22_852,
        "length": 60,
        "df": True,
        "tcp": Tcp(ISN, 0, "S"),
        **more,
    }
    return Headers(
        MACS[macs[0]],
        MACS[macs[1]],
        ip_address(src),
        ip_address(dst),
        src_port=ports[0],
        dst_port=ports[1],
        ttl=ttl,
        **said,
    )


def tunnel(length: int = 110, dst: str = "192.168.50.12") -> Headers:
    """What node-1 puts around it."""
    return packet(
        "192.168.50.11", dst, ("node-1", "node-2"), (59_589, 8472), 64,
        protocol="udp", ip_id=4711, length=length, tcp=None, df=False,
    )  # fmt: skip


def hop(place: str, iface: str, direction: Direction, inner: Headers, t_us: float | None, **more: Any) -> Hop:
    """A hop that was predicted and seen."""
    host = HOSTS.get(place, None if place == "outside" else place)
    said = {"netns": f"ovl-demo-{place}", "seen": True, **more}
    return Hop(place, iface, direction, inner, host=host, t_us=t_us, **said)


def routed(before: int, *macs: tuple[str, str]) -> tuple[Change, ...]:
    """What a router changes."""
    fields = (
        Change(field, str(MACS[a]), str(MACS[b]), "routed")
        for field, (a, b) in zip(("src_mac", "dst_mac"), macs, strict=True)
    )
    return (*fields, Change("ttl", str(before), str(before - 1), "routed"))


def route(key: str, text: str, source: Source | None = None) -> Why:
    return Why("route", key, text, source, f"ip route show {key}")


WRAPPED = (
    Change("encapsulation", None, "vxlan 1", "encapsulated by flannel.1"),
    Change("length", "60", "110", "encapsulated by flannel.1"),
)
UNWRAPPED = (
    Change("encapsulation", "vxlan 1", None, "taken out by flannel.1"),
    Change("length", "110", "60", "taken out by flannel.1"),
)
TO_PEER = (
    Why(
        "fdb",
        "02:0a:f4:02:00:00",
        "fdb 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12 self permanent",
        LEASE_2,
        "bridge fdb show dev flannel.1",
    ),
    Why(
        "neigh",
        "10.244.2.0",
        "neigh 10.244.2.0 lladdr 02:0a:f4:02:00:00 dev flannel.1 nud permanent",
        LEASE_2,
        "ip neigh show 10.244.2.0 dev flannel.1",
    ),
)
INTO_TUNNEL = (
    route("10.244.2.0/24", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 717827", LEASE_2),
)
TO_BRIDGE = (route("10.244.2.0/24", "10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1"),)
TUNNEL_HERE = (
    Why(
        "link",
        "flannel.1",
        "vxlan id 1 dstport 8472 local 192.168.50.12",
        None,
        "ip -d link show dev flannel.1",
    ),
)
DNAT_RULE = (
    Why(
        "rule",
        "nat OVL-SEP-5CGJ2XW6HT3Q7YKA",
        "-p tcp -m comment --comment default/web -j DNAT --to-destination 10.244.2.2:8080",
        Source("service", "default/web"),
        "iptables -t nat -S OVL-SEP-5CGJ2XW6HT3Q7YKA",
        1,
    ),
    Why("sysctl", "net/bridge/bridge-nf-call-iptables", "1", None, "sysctl net.bridge.bridge-nf-call-iptables"),
)


def there(dst: str = "10.244.2.2", port: int = 8080, *, vip: bool = False, **more: Any) -> tuple[Hop, ...]:
    """web-1 to web-3, over VXLAN, ten hops; through a virtual IP if so wanted."""
    ends, length = (44_778, port), more.get("length", 60)
    src, lan = "10.244.1.2", ("web-1", "gateway-1")
    first = packet(src, "10.112.0.10" if vip else dst, lan, (44_778, 80 if vip else port), **more)
    chosen = packet(src, dst, lan, ends, **more)
    overlay = packet(src, dst, ("vtep-1", "vtep-2"), ends, 63, **more)
    last = packet(src, dst, ("gateway-2", "web-3"), ends, 62, **more)
    outer = tunnel(length + 50)
    translated = (
        (Change("dst", "10.112.0.10", dst, "DNAT"), Change("dst_port", "80", str(port), "DNAT")) if vip else ()
    )
    wrapped = [
        change._replace(before=str(length)) if change.field == "length" else change for change in WRAPPED
    ]
    wrapped = [c._replace(after=str(length + 50)) if c.field == "length" else c for c in wrapped]
    return (
        hop("web-1", "eth0", "out", first, 0.0),
        hop("node-1", VETH_1, "in", first, 10.2),
        hop("node-1", "cni0", "in", chosen, 62.0, changes=translated, why=DNAT_RULE if vip else ()),
        hop("node-1", "flannel.1", "out", overlay, 109.4, why=INTO_TUNNEL,
            changes=routed(64, ("web-1", "vtep-1"), ("gateway-1", "vtep-2"))),
        hop("node-1", "eth0", "out", overlay, 262.0, outer=outer, vni=1, changes=tuple(wrapped), why=TO_PEER),
        hop("node-2", "eth0", "in", overlay, 274.1, outer=outer, vni=1),
        hop("node-2", "flannel.1", "in", overlay, 292.0, changes=UNWRAPPED, why=TUNNEL_HERE),
        hop("node-2", "cni0", "out", last, 303.7, why=TO_BRIDGE,
            changes=routed(63, ("vtep-1", "gateway-2"), ("vtep-2", "web-3"))),
        hop("node-2", VETH_3, "out", last, 311.0),
        hop("web-3", "eth0", "in", last, 319.5),
    )  # fmt: skip


def back(forward: tuple[Hop, ...], *, vip: bool = False, **more: Any) -> tuple[Hop, ...]:
    """The answer on the same way, the other way round."""
    hops = []
    for number, there in enumerate(reversed(forward)):
        inner = _answer(there.inner, **more)
        outer = _answer(there.outer, tcp=None) if there.outer else None
        turned: Direction = "in" if there.direction == "out" else "out"
        hops.append(
            replace(there, direction=turned, inner=inner, outer=outer, t_us=400.0 + 12.5 * number,
                    changes=(), why=())
        )  # fmt: skip
    if vip:
        undone = tuple(
            Change(field, before, after, "un-DNAT by conntrack")
            for field, before, after in (("src", "10.244.2.2", "10.112.0.10"), ("src_port", "8080", "80"))
        )
        hops[-2] = replace(hops[-2], changes=undone)
    return tuple(hops)


def _answer(there: Headers, **more: Any) -> Headers:
    said = {"tcp": Tcp(99, ISN + 1, "SA"), "ip_id": 0, **more}
    return replace(
        there,
        src_mac=there.dst_mac,
        dst_mac=there.src_mac,
        src=there.dst,
        dst=there.src,
        src_port=there.dst_port,
        dst_port=there.src_port,
        **said,
    )


def taps(*ways: tuple[Hop, ...]) -> tuple[Tap, ...]:
    points = dict.fromkeys(hop.point for way in ways for hop in way)
    return tuple(Tap(point, armed=True, closed=True, dropped=0) for point in points)


TAG: Mapping[str, Any] = {"ip_id": 22_852, "tcp_isn": ISN, "cookie": None}
TIMING = {"import_s": 0.21, "predict_s": 0.05, "arm_s": 0.12, "send_s": 0.08, "judge_s": 0.02, "total_s": 0.51}
TO_WEB_3 = Question("web-1", "web-3", ip_address("10.244.1.2"), ip_address("10.244.2.2"), "tcp", dst_port=8080)
TO_SERVICE = replace(TO_WEB_3, target="svc/web", dst=ip_address("10.112.0.10"), dst_port=80)
GUARDS = (hop("node-3", "eth0", "in", there()[0].inner, None, predicted=False, seen=False),)


def proved(question: Question, forward: tuple[Hop, ...], reply: tuple[Hop, ...], **more: Any) -> Trace:
    said = {"guards": GUARDS, "answer": "syn-ack", "tag": TAG, "bundle": "t-0007.ovltrace", **more}
    armed = taps(forward, reply, GUARDS)
    return Trace(
        "t-0007", PROVED, question, DELIVERED, forward=forward, reply=reply, timing=TIMING, taps=armed, **said
    )


def vxlan() -> Trace:
    """Two hosts."""
    return proved(TO_WEB_3, there(), back(there()))


def virtual_ip() -> Trace:
    """Through a virtual IP: DNAT, and the reply's source put back."""
    forward = there(vip=True)
    ct = "tcp 10.244.1.2:44778 → 10.112.0.10:80, replies 10.244.2.2:8080 → 10.244.1.2:44778"
    rule = DNAT_RULE[0]
    count = Count("node-1", "nat", "OVL-SEP-5CGJ2XW6HT3Q7YKA", 2, rule.text, 1)
    return proved(
        TO_SERVICE, forward, back(forward, vip=True),
        counts=(count,), connections=(Connection("node-1", ct),),
    )  # fmt: skip


def same_host() -> Trace:
    """Two containers on one bridge."""
    inner = packet("10.244.1.2", "10.244.1.3", ("web-1", "web-2"), (40_100, 8080))
    fdb = Why("fdb", str(MACS["web-2"]), f"{MACS['web-2']} dev {VETH_2} master cni0 static", None,
              f"bridge fdb show dev {VETH_2}")  # fmt: skip
    forward = (
        hop("web-1", "eth0", "out", inner, 0.0),
        hop("node-1", VETH_1, "in", inner, 8.0),
        hop("node-1", VETH_2, "out", inner, 21.5, why=(fdb,)),
        hop("web-2", "eth0", "in", inner, 25.1),
    )
    question = replace(TO_WEB_3, target="web-2", dst=ip_address("10.244.1.3"))
    return proved(question, forward, back(forward))


def host_gw() -> Trace:
    """Routed without a tunnel."""
    first, *_, last = there()
    across = replace(first.inner, ttl=63, src_mac=MACS["node-1"], dst_mac=MACS["node-2"])
    via = (route("10.244.2.0/24", "10.244.2.0/24 via 192.168.50.12 dev eth0 metric 717827", LEASE_2),)
    forward = (
        *there()[:3],
        hop("node-1", "eth0", "out", across, 101.0, why=via,
            changes=routed(64, ("web-1", "node-1"), ("gateway-1", "node-2"))),
        hop("node-2", "eth0", "in", across, 115.0),
        hop("node-2", "cni0", "out", last.inner, 131.0, why=TO_BRIDGE,
            changes=routed(63, ("node-1", "gateway-2"), ("node-2", "web-3"))),
        *there()[8:],
    )  # fmt: skip
    return proved(TO_WEB_3, forward, back(forward))


def node_port() -> Trace:
    """From outside to node-1's nodePort, and on to a container of node-2."""
    ends = (51_000, 30_080)
    first = packet("192.168.60.10", "192.168.50.11", ("router", "node-1"), ends)
    port = 20_471
    overlay = packet("10.244.1.0", "10.244.2.2", ("vtep-1", "vtep-2"), (port, 8080), 63)
    last = packet("10.244.1.0", "10.244.2.2", ("gateway-2", "web-3"), (port, 8080), 62)
    changes = (
        Change("dst", "192.168.50.11", "10.244.2.2", "DNAT"),
        Change("dst_port", "30080", "8080", "DNAT"),
        Change("src", "192.168.60.10", "10.244.1.0", "masqueraded"),
        Change("src_port", "51000", str(port), "masqueraded"),
        *routed(64, ("router", "vtep-1"), ("node-1", "vtep-2")),
    )
    _, _, _, _, wire, arrived, inside, bridge, veth, end = there()
    forward = (
        hop("outside", "eth0", "out", first, 0.0),
        hop("node-1", "eth0", "in", first, 14.0),
        hop("node-1", "flannel.1", "out", overlay, 90.0, changes=changes, why=(*DNAT_RULE[:1], *INTO_TUNNEL)),
        *(replace(h, inner=overlay) for h in (wire, arrived, inside)),
        *(replace(h, inner=last) for h in (bridge, veth, end)),
    )
    question = replace(
        TO_SERVICE, source="outside", src=ip_address("192.168.60.10"), target="node-1:30080",
        dst=ip_address("192.168.50.11"), dst_port=30_080,
    )  # fmt: skip
    return proved(question, forward, back(forward))


def to_outside() -> Trace:
    """A container talks to the world, hidden behind its host."""
    first = packet("10.244.1.2", "192.168.60.10", ("web-1", "gateway-1"), (44_778, 8000))
    hidden = packet("192.168.50.11", "192.168.60.10", ("node-1", "router"), (44_778, 8000), 63)
    changes = (
        *routed(64, ("web-1", "node-1"), ("gateway-1", "router")),
        Change("src", "10.244.1.2", "192.168.50.11", "masqueraded"),
    )
    rule = Why("rule", "nat OVL-POSTROUTING", "-j MASQUERADE --random-fully", Source("host", "node-1"),
               "iptables -t nat -S OVL-POSTROUTING", 1)  # fmt: skip
    forward = (
        hop("web-1", "eth0", "out", first, 0.0),
        hop("node-1", VETH_1, "in", first, 9.0),
        hop("node-1", "cni0", "in", first, 40.0),
        hop("node-1", "eth0", "out", hidden, 88.0, changes=changes, why=(rule,)),
        hop("outside", "eth0", "in", hidden, 99.0),
    )
    question = replace(TO_WEB_3, target="outside", dst=ip_address("192.168.60.10"), dst_port=8000)
    return proved(question, forward, back(forward))


def _unseen(hops: tuple[Hop, ...], last_seen: int) -> tuple[Hop, ...]:
    return tuple(h if n <= last_seen else replace(h, seen=False, t_us=None) for n, h in enumerate(hops))


def wrong_fdb() -> Trace:
    """The FDB sends it to an address where nobody is."""
    cause = Cause(
        "fdb_wrong",
        Point("node-1", "flannel.1"),
        "fdb 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.99 self permanent",
        "outer 192.168.50.11 → 192.168.50.12 udp 8472",
        "outer 192.168.50.11 → 192.168.50.99 udp 8472, where no host is",
        LEASE_2,
        CERTAIN,
        ("overlaynet diff node-1", "overlaynet repair node-1"),
    )
    forward = _unseen(there(), 4)
    astray = replace(forward[4], outer=tunnel(dst="192.168.50.99"))
    return Trace(
        "t-0008", LOST, TO_WEB_3, LOST, forward=(*forward[:4], astray, *forward[5:]), guards=GUARDS,
        lost_between=(Point("node-1", "eth0"), Point("node-2", "eth0")), cause=cause,
        tag=TAG, taps=taps(forward), tries=3, timing=TIMING, bundle="t-0008.ovltrace",
    )  # fmt: skip


def lost_answer() -> Trace:
    """It arrives, and what comes back does not."""
    cause = Cause(
        "neigh_missing",
        Point("node-2", "flannel.1"),
        "neigh 10.244.1.0 dev flannel.1",
        "neigh 10.244.1.0 lladdr 02:0a:f4:01:00:00 dev flannel.1 nud permanent",
        "none",
        Source("lease", "10.244.1.0-24"),
        CERTAIN,
        ("overlaynet diff node-2", "overlaynet repair node-2"),
    )
    forward, reply = there(), _unseen(back(there()), 3)
    return Trace(
        "t-0013", LOST, TO_WEB_3, LOST, forward=forward, reply=reply, cause=cause, tag=TAG,
        lost_between=(Point("node-2", "flannel.1"), Point("node-2", "eth0")), answer="syn-ack",
        taps=taps(forward, reply), timing=TIMING, bundle="t-0013.ovltrace",
    )  # fmt: skip


def stray_answer() -> Trace:
    """It arrives, and what comes back is sent elsewhere."""
    answer = lost_answer()
    default = replace(answer.reply[4], outer=None, vni=None, seen=True, t_us=460.0)
    return replace(
        answer, reply=(*answer.reply[:3], default),
        lost_between=(Point("node-2", "eth0"), Point("node-1", "eth0")),
        notes=("the packet arrived, its answer did not",),
    )  # fmt: skip


def too_big() -> Trace:
    """A packet of 1500 bytes that must not be cut, into a tunnel of 1450."""
    forward = _unseen(there(protocol="udp", tcp=None, length=1500), 2)
    cause = Cause(
        "mtu",
        Point("node-1", "flannel.1"),
        "link flannel.1 mtu 1450",
        "a packet of at most 1450 bytes, or one that may be cut",
        "1500 bytes with DF set",
        None,
        CERTAIN,
        ("overlaynet exec node-1 -- ip link show dev flannel.1", "ip link set dev eth0 mtu 1450"),
    )
    question = replace(TO_WEB_3, protocol="udp", size=1472, df=True)
    answer = replace(
        _answer(forward[0].inner, tcp=None),
        protocol="icmp", src=ip_address("10.244.1.1"), src_port=None, dst_port=None, length=576,
        icmp=Icmp(3, 4, mtu=1450),
    )  # fmt: skip
    reply = (
        hop("node-1", "cni0", "out", answer, 80.0),
        hop("node-1", VETH_1, "out", answer, 84.0),
        hop("web-1", "eth0", "in", answer, 90.0),
    )
    return Trace(
        "t-0009", LOST, question, LOST, forward=forward, reply=reply, answer="icmp fragmentation-needed",
        lost_between=(Point("node-1", "cni0"), Point("node-1", "flannel.1")), cause=cause,
        tag={"ip_id": 22_852, "tcp_isn": None, "cookie": "5a1f00c3d2e4b697"}, taps=taps(forward),
        timing=TIMING, bundle="t-0009.ovltrace",
    )  # fmt: skip


def rejected(verdict: str = LOST, expect: str = DELIVERED) -> Trace:
    """A service without endpoints."""
    forward = there(vip=True)[:2]
    cause = Cause(
        "no_endpoints",
        Point("node-1", VETH_1),
        '-d 10.112.0.10/32 -p tcp -m comment --comment "default/web has no endpoints" -j REJECT',
        "an endpoint of default/web",
        "none that is ready",
        Source("service", "default/web"),
        CERTAIN,
        ("overlaynet describe svc/web", "overlaynet get endpoints"),
    )
    refusal = replace(
        _answer(forward[0].inner, tcp=None), protocol="icmp", src_port=None, dst_port=None,
        icmp=Icmp(3, 3), src=ip_address("10.112.0.10"), length=88,
    )  # fmt: skip
    reply = (
        hop("node-1", VETH_1, "out", refusal, 51.0),
        hop("web-1", "eth0", "in", refusal, 60.0),
    )
    return Trace(
        "t-0010", verdict, TO_SERVICE, REJECTED, expect=expect, forward=forward, reply=reply, cause=cause,
        answer="icmp port-unreachable", tag=TAG, taps=taps(forward), timing=TIMING, bundle="t-0010.ovltrace",
    )  # fmt: skip


def inconclusive() -> Trace:
    """Nobody could listen on node-2."""
    forward = tuple(replace(h, seen=None, t_us=None) if h.host == "node-2" else h for h in there())
    deaf = Tap(Point("node-2", "eth0"), error="ssh: connect to node-2 port 22: connection refused")
    return Trace(
        "t-0011", INCONCLUSIVE, TO_WEB_3, DELIVERED, forward=forward, tag=TAG, timing=TIMING,
        taps=(*taps(forward[:5]), deaf), bundle="t-0011.ovltrace",
        inconclusive_because=(
            "node-2 could not be listened at: ssh: connect to node-2 port 22: connection refused",
            "no answer came back within 1 s, and without node-2 nobody knows why",
        ),
    )  # fmt: skip


def wrong_path() -> Trace:
    """Seen where it must not be."""
    stray = hop("node-3", "eth0", "in", there()[4].inner, 280.0, predicted=False, outer=tunnel(), vni=1)
    forward = (*_unseen(there(), 4)[:5], stray, *_unseen(there(), 4)[5:])
    cause = Cause(
        "route_wrong",
        Point("node-1", "flannel.1"),
        "10.244.2.0/24 via 10.244.3.0 dev flannel.1 onlink metric 10",
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        "a route of lower metric that leads to node-3",
        LEASE_2,
        CERTAIN,
        ("overlaynet get route node-1", "overlaynet diff node-1"),
    )
    return Trace(
        "t-0012", WRONG_PATH, TO_WEB_3, LOST, forward=forward, guards=(stray,), cause=cause, tag=TAG,
        lost_between=(Point("node-1", "eth0"), Point("node-2", "eth0")), taps=taps(forward), timing=TIMING,
        bundle="t-0012.ovltrace",
    )  # fmt: skip


def ended() -> Trace:
    """Lost where nothing leads on, inside the host that it came to."""
    trace = wrong_fdb()
    forward = tuple(replace(h, seen=True) for h in there())[:9]
    return replace(trace, forward=forward, lost_between=None)


def ended_in_container() -> Trace:
    """Dropped by the container's own rules."""
    return replace(wrong_fdb(), forward=there(), outcome=DROPPED, lost_between=None)


def fragments() -> Trace:
    """A datagram of 4000 bytes, in three pieces through the tunnel."""
    forward = list(there(protocol="udp", tcp=None, length=4028))
    forward[0] = replace(
        forward[0],
        changes=(Change("fragments", "1", "3", "cut to mtu 1450"),),
        why=(Why("link", "eth0", "eth0 mtu 1450", None, "ip link show dev eth0"),),
        note="3 fragments",
    )
    question = replace(TO_WEB_3, protocol="udp", size=4000)
    way = tuple(forward)
    tag = {"ip_id": 22_852, "tcp_isn": None, "cookie": "5a1f00c3d2e4b697"}
    return proved(question, way, back(way, tcp=None), answer="udp", tag=tag)


def predicted(trace: Trace) -> Path:
    """The path that was foretold where this was seen."""

    def bare(way: tuple[Hop, ...]) -> tuple[Hop, ...]:
        return tuple(replace(h, seen=None, t_us=None) for h in way if h.predicted)

    reply = Path(DELIVERED, bare(trace.reply)) if trace.reply else None
    end = trace.forward[-1].place if trace.outcome == DELIVERED else None
    return Path(
        trace.outcome, bare(trace.forward), cause=trace.cause, answer=trace.answer, reply=reply, arrived_at=end
    )


def explained() -> Prediction:
    """One path."""
    return Prediction(TO_WEB_3, (predicted(vxlan()),), guards=(Point("node-3", "eth0"),))


def four_ways() -> Prediction:
    """A service of four endpoints: web-1 itself, its neighbour, and two on the other host."""
    remote = predicted(virtual_ip())
    paths = []
    for number, (name, ip) in enumerate(
        (("web-1", "10.244.1.2"), ("web-2", "10.244.1.3"), ("web-3", "10.244.2.2"), ("web-4", "10.244.2.3")), 1
    ):
        way = tuple(_towards(h, ip) for h in remote.hops)
        if HOSTS[name] == "node-1":
            veth = VETH_1 if name == "web-1" else VETH_2
            last = way[2].inner
            way = (*way[:3], replace(way[8], place="node-1", host="node-1", iface=veth, inner=last),
                   replace(way[9], place=name, host="node-1", inner=last))  # fmt: skip
        else:
            way = (*way[:9], replace(way[9], place=name))
        choice = f"statistic mode random: endpoint {number} of 4, {ip}:8080"
        paths.append(replace(remote, hops=way, arrived_at=name, choices=(choice,)))
    return Prediction(TO_SERVICE, tuple(paths), unread=("nft is not installed on node-2",))


def _towards(hop: Hop, ip: str) -> Hop:
    """The same hop of a packet that became one to another endpoint."""
    if hop.inner.dst != ip_address("10.244.2.2"):
        return hop
    changes = tuple(c._replace(after=ip) if c.field == "dst" else c for c in hop.changes)
    return replace(hop, inner=replace(hop.inner, dst=ip_address(ip)), changes=changes)


TRACES: Mapping[str, Callable[[], Trace]] = {
    "same-host": same_host,
    "vxlan": vxlan,
    "host-gw": host_gw,
    "virtual-ip": virtual_ip,
    "node-port": node_port,
    "to-outside": to_outside,
    "wrong-fdb": wrong_fdb,
    "lost-answer": lost_answer,
    "stray-answer": stray_answer,
    "ended": ended,
    "ended-in-container": ended_in_container,
    "too-big": too_big,
    "rejected": rejected,
    "inconclusive": inconclusive,
    "wrong-path": wrong_path,
    "fragments": fragments,
}
PREDICTIONS: Mapping[str, Callable[[], Prediction]] = {"explained": explained, "four-ways": four_ways}
