"""Predicted paths of clusters in memory: which points, in which order, what changes there, and why they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers import worlds
from helpers.worlds import Shape, altered, changed, veth, with_link, with_sysctl, without

from overlaynet.addr import Mac
from overlaynet.errors import UsageError
from overlaynet.model import Service, ServicePort
from overlaynet.state import Fdb, LearnedMtu, Neigh, Route, RuleLine, Source
from overlaynet.trace.model import Hop, Path, Prediction, Question, World
from overlaynet.trace.predict import predict

pytestmark = pytest.mark.unit

VIP, NODE_PORT = "10.112.0.10", 30_080
A1, A2, B1 = "10.244.1.2", "10.244.1.3", "10.244.2.2"


def service(label: str = "web") -> Service:
    ports = tuple(ServicePort(80, p, p.lower(), target=80, node_port=NODE_PORT) for p in ("TCP", "UDP"))
    return Service("web", "default", cluster_ips=(ip_address(VIP),), ports=ports, selector={"app": label})


SERVED = Shape((2, 1), services=(service(),))


def asked(source: str, src: str, dst: str, protocol: str = "tcp", port: int = 80, **more: object) -> Question:
    number = None if protocol == "icmp" else port
    made = Question(source, dst, ip_address(src), ip_address(dst), protocol, None, number)
    return replace(made, **more)  # type: ignore[arg-type]


def predicted(world: World, *words: str, **more: object) -> Prediction:
    return predict(world, asked(*words, **more))  # type: ignore[arg-type]


def only(world: World, *words: str, **more: object) -> Path:
    (path,) = predicted(world, *words, **more).paths
    return path


def points(hops: tuple[Hop, ...]) -> list[str]:
    return [f"{hop.point} {hop.direction}" for hop in hops if not hop.optional]


def to_endpoint(prediction: Prediction, place: str) -> Path:
    return next(path for path in prediction.paths if path.arrived_at == place)


# --- paths ----------------------------------------------------------------------------------------


def test_through_the_tunnel_and_back() -> None:
    path = only(worlds.world(Shape((1, 1))), "web-1", A1, B1)
    assert points(path.hops) == [
        "web-1:eth0 out",
        f"node-1:{veth('web-1')} in",
        "node-1:cni0 in",
        "node-1:flannel.1 out",
        "node-1:eth0 out",
        "node-2:eth0 in",
        "node-2:flannel.1 in",
        "node-2:cni0 out",
        f"node-2:{veth('web-2')} out",
        "web-2:eth0 in",
    ]
    assert [hop.inner.ttl for hop in path.hops] == [64, 64, 64, 63, 63, 63, 63, 62, 62, 62]
    assert (path.outcome, path.answer, path.arrived_at) == ("delivered", "syn-ack", "web-2")
    assert path.reply is not None
    assert points(path.reply.hops)[0] == "web-2:eth0 out"
    assert points(path.reply.hops)[-1] == "web-1:eth0 in"


def test_each_hop_says_what_changed_and_which_entry_decided() -> None:
    path = only(worlds.world(Shape((1, 1))), "web-1", A1, B1, "udp", size=1_000)
    tunnel, wire = path.hops[3], path.hops[4]
    assert {(c.field, c.before, c.after) for c in tunnel.changes} >= {("ttl", "64", "63")}
    route, neigh = tunnel.why
    assert route.text == "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 111 metric 717827 onlink"
    assert route.command == "ip route get 10.244.2.2 from 10.244.1.2 iif cni0"
    assert route.source == neigh.source == Source("lease", "10.244.2.0-24")
    assert neigh.text == "10.244.2.0 dev flannel.1 lladdr 02:0a:f4:02:00:00 PERMANENT"
    assert ("encapsulation", None, "vxlan 1 192.168.50.11 → 192.168.50.12") in {c[:3] for c in wire.changes}
    assert wire.why[0].text == "02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12 self permanent"
    assert wire.outer is not None
    assert (wire.inner.length, wire.outer.length, wire.outer.df, wire.vni) == (1_028, 1_078, False, 1)
    assert wire.mtu == 1_500


def test_host_gw_has_no_tunnel() -> None:
    path = only(worlds.world(Shape((1, 1), "host-gw")), "web-1", A1, B1)
    assert all(hop.outer is None for hop in path.hops)
    assert "node-1:eth0 out" in points(path.hops)
    assert path.outcome == "delivered"


def test_on_one_bridge_nothing_is_routed() -> None:
    path = only(worlds.world(Shape((2,))), "web-1", A1, A2)
    ports = [f"node-1:{veth('web-1')} in", f"node-1:{veth('web-2')} out"]
    assert points(path.hops) == ["web-1:eth0 out", *ports, "web-2:eth0 in"]
    assert {hop.inner.ttl for hop in path.hops} == {64}


def test_a_virtual_ip_leads_by_as_many_paths_as_there_are_endpoints() -> None:
    prediction = predicted(worlds.world(SERVED), "web-1", A1, VIP)
    assert [path.arrived_at for path in prediction.paths] == ["web-1", "web-2", "web-3"]
    assert all("one of 3" in path.choices[0] for path in prediction.paths)
    far = to_endpoint(prediction, "web-3")
    entered = next(hop for hop in far.hops if hop.iface == "cni0")
    assert ("dst", VIP, B1, "DNAT") in entered.changes
    assert [why.key.split()[:2] for why in entered.why if why.object == "rule"][-1][0] == "nat"
    assert far.reply is not None
    assert str(far.reply.hops[-1].inner.src) == VIP
    assert {path.reply.outcome for path in prediction.paths if path.reply} == {"delivered"}


def test_without_bridge_nf_the_bridge_passes_the_virtual_ip_on_and_local_replies_bypass_the_host() -> None:
    prediction = predicted(worlds.world(replace(SERVED, bridge_nf=False)), "web-1", A1, VIP)
    far, near = to_endpoint(prediction, "web-3"), to_endpoint(prediction, "web-2")
    assert str(next(hop for hop in far.hops if hop.iface == "cni0").inner.dst) == VIP
    assert far.reply is not None
    assert far.reply.outcome == "delivered"
    assert near.reply is not None
    assert near.reply.outcome == "lost"
    assert near.reply.cause is not None
    assert near.reply.cause.object == "sysctl net.bridge.bridge-nf-call-iptables"


def test_an_endpoint_that_is_sent_back_to_itself_is_masqueraded() -> None:
    itself = to_endpoint(predicted(worlds.world(SERVED), "web-1", A1, VIP), "web-1")
    assert str(itself.hops[-1].inner.src) == "10.244.1.1"
    assert itself.reply is not None
    assert itself.reply.outcome == "delivered"


@pytest.mark.parametrize("hairpin", [True, False])
def test_back_out_of_the_port_it_came_in_by_only_with_hairpin(hairpin: bool) -> None:
    world = with_link(
        worlds.world(Shape((1,), services=(service(),))), "node-1", veth("web-1"), hairpin=hairpin
    )
    path = only(world, "web-1", A1, VIP)
    assert (path.outcome == "delivered") is hairpin
    if path.cause:
        assert path.cause.object == f"port {veth('web-1')} hairpin"


def test_from_outside_by_a_node_port() -> None:
    prediction = predicted(
        worlds.world(SERVED), "outside", "203.0.113.10", "192.168.50.11", "tcp", port=NODE_PORT
    )
    far = to_endpoint(prediction, "web-3")
    assert points(far.hops)[:2] == ["outside:eth0 out", "node-1:eth0 in"]
    assert far.hops[1].inner.ttl is None
    assert str(far.hops[-1].inner.src) == "10.244.1.0"
    assert far.reply is not None
    assert str(far.reply.hops[-1].inner.src) == "192.168.50.11"


def test_to_itself_it_goes_by_loopback() -> None:
    path = only(worlds.world(Shape((1,))), "node-1", "192.168.50.11", "10.244.1.1", "icmp")
    assert points(path.hops) == ["node-1:lo out", "node-1:lo in"]
    assert path.answer == "echo-reply"


@pytest.mark.parametrize(
    ("protocol", "port", "answer"),
    [("tcp", 80, "syn-ack"), ("tcp", 81, "rst"), ("udp", 80, "udp"), ("udp", 81, "icmp port-unreachable")],
)
def test_who_listens_decides_the_answer(protocol: str, port: int, answer: str) -> None:
    path = only(worlds.world(Shape((1, 1))), "web-1", A1, B1, protocol, port=port)
    assert (path.outcome, path.answer) == ("delivered", answer)
    assert path.reply is not None
    assert path.reply.outcome == "delivered"


def test_what_is_larger_than_the_mtu_is_cut_and_put_together_by_conntrack() -> None:
    path = only(worlds.world(SERVED), "web-1", A1, B1, "udp", size=3_000)
    pieces = {f"{hop.point} {hop.direction}": hop.inner.more_fragments for hop in path.hops}
    assert pieces["web-1:eth0 out"]
    assert not pieces["node-1:cni0 in"]
    assert pieces["node-1:flannel.1 out"]
    assert next(c.after for hop in path.hops for c in hop.changes if c.field == "fragments") is None
    assert path.outcome == "delivered"


def test_ipv6_is_refused() -> None:
    question = Question("web-1", "fd00::1", ip_address("fd00::2"), ip_address("fd00::1"), "icmp")
    with pytest.raises(UsageError, match="IPv6"):
        predict(worlds.world(Shape((1,))), question)


# --- guards ---------------------------------------------------------------------------------------


def test_guards_are_where_no_way_leads() -> None:
    prediction = predicted(worlds.world(Shape((2, 1, 1))), "web-1", A1, B1)
    assert {str(guard) for guard in prediction.guards} == {
        f"node-1:{veth('web-2')}",
        "node-3:eth0",
        "node-3:flannel.1",
    }


# --- faults ---------------------------------------------------------------------------------------

Fault = Callable[[World], World]
SUBNET_B, VTEP_B, VTEP_MAC_B = ip_network("10.244.2.0/24"), ip_address("10.244.2.0"), Mac("02:0a:f4:02:00:00")
ROUTE_B = Route(SUBNET_B, "flannel.1", VTEP_B, 717_827, onlink=True)
NEIGH_B = Neigh("flannel.1", VTEP_B, VTEP_MAC_B)
FDB_B = Fdb("flannel.1", VTEP_MAC_B, ip_address("192.168.50.12"))


def no_route(world: World) -> World:
    return without(world, "node-1", lambda obj: obj == ROUTE_B)


def wrong_route(world: World) -> World:
    return changed(world, "node-1", ROUTE_B, ROUTE_B._replace(via=ip_address("192.168.50.1"), dev="eth0"))


def no_neigh(world: World) -> World:
    return without(world, "node-1", lambda obj: obj == NEIGH_B)


def wrong_neigh(world: World) -> World:
    stranger = Mac("02:99:99:99:99:99")
    world = changed(world, "node-1", NEIGH_B, NEIGH_B._replace(mac=stranger))
    return changed(world, "node-1", FDB_B, FDB_B._replace(mac=stranger))


def no_fdb(world: World) -> World:
    return without(world, "node-1", lambda obj: obj == FDB_B)


def wrong_fdb(world: World) -> World:
    return changed(world, "node-1", FDB_B, FDB_B._replace(dst=ip_address("192.168.50.99")))


def to_another_host(world: World) -> World:
    return changed(world, "node-1", FDB_B, FDB_B._replace(dst=ip_address("192.168.50.13")))


def tunnel_down(world: World) -> World:
    return with_link(world, "node-2", "flannel.1", up=False, running=False)


def underlay_down(world: World) -> World:
    return with_link(world, "node-2", "eth0", up=False, running=False)


def no_forwarding(world: World) -> World:
    world = with_sysctl(world, "node-2", "net/ipv4/ip_forward", "0")
    for dev in ("all", *world.places["node-2"].kernel.links):
        world = with_sysctl(world, "node-2", f"net/ipv4/conf/{dev}/forwarding", "0")
    return world


def strict(world: World) -> World:
    world = without(world, "node-2", lambda obj: isinstance(obj, Route) and str(obj.dst) == "10.244.1.0/24")
    return with_sysctl(world, "node-2", "net/ipv4/conf/flannel.1/rp_filter", "1")


def drop(world: World) -> World:
    return with_rule(world, "node-2", ("filter", "FORWARD"), "-d 10.244.2.2/32 -j DROP")


def reject(world: World) -> World:
    return with_rule(world, "node-2", ("filter", "FORWARD"), "-p tcp -j REJECT --reject-with tcp-reset")


def with_rule(world: World, place: str, chain: tuple[str, str], text: str) -> World:
    rules = world.places[place].rules
    assert rules is not None
    lines = (RuleLine(text), *rules.chains[chain])
    return altered(world, place, rules=replace(rules, chains={**rules.chains, chain: lines}))


def test_a_connections_mark_is_known_at_later_hooks_and_to_its_answers() -> None:
    marked = worlds.world(Shape((1, 1)))
    rules = marked.places["node-1"].rules
    assert rules is not None
    hook = ("mangle", "PREROUTING")
    mark = RuleLine(f"-s {A1}/32 -j CONNMARK --set-xmark 0x7/0xffffffff")
    chains = {**rules.chains, hook: (mark,)}
    marked = altered(
        marked, "node-1", rules=replace(rules, chains=chains, policies={**rules.policies, hook: "ACCEPT"})
    )
    assert only(marked, "web-1", A1, B1).reply is not None
    dropping = "-m connmark --mark 0x7 -j DROP"
    assert (
        only(with_rule(marked, "node-1", ("filter", "FORWARD"), dropping), "web-1", A1, B1).outcome == "dropped"
    )
    answers = f"-d {A1}/32 -m connmark --mark 0x7 -j DROP"
    path = only(with_rule(marked, "node-1", ("filter", "FORWARD"), answers), "web-1", A1, B1)
    assert path.outcome == "delivered"
    assert path.reply is not None
    assert path.reply.outcome == "dropped"


def small_tunnel(world: World) -> World:
    return with_link(world, "node-1", "flannel.1", mtu=1_000)


def host_gone(world: World) -> World:
    places = {name: place for name, place in world.places.items() if name not in ("node-2", "web-2")}
    nodes = {**world.nodes, "node-2": replace(world.nodes["node-2"], error="no answer")}
    return replace(world, places=places, nodes=nodes)


@pytest.mark.parametrize(
    ("fault", "outcome", "kind", "point", "last"),
    [
        (no_route, "lost", "route_missing", "node-1:eth0", "node-1:eth0 out"),
        (wrong_route, "lost", "route_wrong", "node-1:eth0", "node-1:eth0 out"),
        (no_neigh, "lost", "neigh_missing", "node-1:flannel.1", "node-1:cni0 in"),
        (wrong_neigh, "lost", "neigh_wrong", "node-1:flannel.1", "node-2:flannel.1 in"),
        (no_fdb, "lost", "fdb_missing", "node-1:flannel.1", "node-1:flannel.1 out"),
        (wrong_fdb, "lost", "fdb_wrong", "node-1:flannel.1", "node-1:eth0 out"),
        (to_another_host, "lost", "fdb_wrong", "node-1:flannel.1", "node-3:flannel.1 in"),
        (tunnel_down, "lost", "link_down", "node-2:flannel.1", "node-2:eth0 in"),
        (underlay_down, "lost", "link_down", "node-2:eth0", "node-1:flannel.1 out"),
        (no_forwarding, "lost", "forwarding_off", "node-2:flannel.1", "node-2:flannel.1 in"),
        (strict, "lost", "rp_filter", "node-2:flannel.1", "node-2:flannel.1 in"),
        (drop, "dropped", "rule_drop", "node-2:flannel.1", "node-2:flannel.1 in"),
        (reject, "rejected", "rule_reject", "node-2:flannel.1", "node-2:flannel.1 in"),
        (host_gone, "lost", "node_down", "node-1:eth0", "node-1:flannel.1 out"),
    ],
)
def test_faults(fault: Fault, outcome: str, kind: str, point: str, last: str) -> None:
    path = only(fault(worlds.world(Shape((1, 1, 1)))), "web-1", A1, B1)
    assert path.cause is not None
    assert (path.outcome, path.cause.kind, str(path.cause.point)) == (outcome, kind, point)
    assert f"{path.hops[-1].point} {path.hops[-1].direction}" == last
    assert path.cause.object
    assert path.cause.next


def test_a_missing_entry_is_named_with_the_lease_that_wants_it() -> None:
    cause = only(no_neigh(worlds.world(Shape((1, 1)))), "web-1", A1, B1).cause
    assert cause is not None
    assert cause.source == Source("lease", "10.244.2.0-24")
    assert cause.expected == "neigh 10.244.2.0 dev flannel.1 lladdr 02:0a:f4:02:00:00 PERMANENT"
    assert cause.certainty == "certain"
    assert cause.next[:2] == ("overlaynet diff node-1", "overlaynet repair node-1")


def test_of_a_wrong_entry_the_right_one_is_expected_and_the_wrong_one_the_cause() -> None:
    cause = only(wrong_fdb(worlds.world(Shape((1, 1)))), "web-1", A1, B1).cause
    assert cause is not None
    right, wrong = (f"fdb {VTEP_MAC_B} dev flannel.1 dst 192.168.50.{n} self permanent" for n in (12, 99))
    assert (cause.object, cause.expected) == (wrong, right)
    assert cause.found.startswith(wrong)
    assert cause.source == Source("lease", "10.244.2.0-24")


def test_of_a_missing_entry_none_is_found() -> None:
    cause = only(no_fdb(worlds.world(Shape((1, 1)))), "web-1", A1, B1).cause
    assert cause is not None
    assert cause.expected == f"fdb {VTEP_MAC_B} dev flannel.1 dst 192.168.50.12 self permanent"
    assert cause.found.startswith("none")
    cause = only(no_route(worlds.world(Shape((1, 1)))), "web-1", A1, B1).cause
    assert cause is not None
    assert cause.expected.startswith("route 10.244.2.0/24 via 10.244.2.0 dev flannel.1")
    assert cause.found.startswith("none, and what decides is route default via")


def test_a_container_whose_link_is_down_has_no_route_for_that_reason() -> None:
    world = with_link(worlds.world(Shape((1, 1))), "web-1", "eth0", up=False, running=False)
    path = only(altered(world, "web-1", routes=()), "web-1", A1, B1)
    assert path.cause is not None
    assert (path.outcome, path.cause.kind, str(path.cause.point)) == ("rejected", "link_down", "web-1:eth0")


@pytest.mark.parametrize(("agent", "kind"), [("down", "node_down"), ("running", "link_down")])
def test_a_host_without_links_and_agent_is_down_also_for_what_is_on_it(agent: str, kind: str) -> None:
    world = worlds.world(Shape((1, 1)))
    for dev in ("eth0", "cni0"):
        world = with_link(world, "node-1", dev, up=False, running=False)
    nodes = {**world.nodes, "node-1": replace(world.nodes["node-1"], agent=agent)}
    cause = only(replace(world, nodes=nodes), "web-1", A1, B1).cause
    assert cause is not None
    assert cause.kind == kind


def test_a_detour_that_arrives_is_told_with_the_entry_and_the_lease() -> None:
    world = worlds.world(Shape((1, 1, 1)))
    assert only(world, "web-1", A1, B1).detours == ()
    path = only(
        changed(world, "node-1", ROUTE_B, ROUTE_B._replace(via=ip_address("10.244.3.0"))), "web-1", A1, B1
    )
    assert (path.outcome, path.arrived_at) == ("delivered", "web-2")
    (detour,) = path.detours
    assert "node-1 uses route 10.244.2.0/24 via 10.244.3.0 dev flannel.1" in detour
    assert "lease 10.244.2.0-24 asks for route 10.244.2.0/24 via 10.244.2.0 dev flannel.1" in detour
    assert detour.endswith("next: overlaynet diff node-1")


def test_a_neighbour_of_a_container_with_a_foreign_mac_leaves_the_container_to_be_listened_at() -> None:
    world = worlds.world(Shape((1, 1)))
    kernel = world.places["node-2"].kernel
    stranger = Neigh("cni0", ip_address(B1), Mac("02:00:00:00:00:99"))
    others = tuple(entry for entry in kernel.neighs if entry.ip != stranger.ip)
    prediction = predicted(altered(world, "node-2", neighs=(*others, stranger)), "web-1", A1, B1)
    (path,) = prediction.paths
    assert path.cause is not None
    assert (path.cause.kind, str(path.cause.point)) == ("neigh_wrong", "node-2:cni0")
    assert "lladdr 02:00:00:00:00:99" in path.cause.object
    assert {str(ear) for ear in prediction.ears} == {"web-2:eth0"}


def test_what_is_too_large_and_may_not_be_cut_is_refused_and_the_sender_told() -> None:
    world = small_tunnel(worlds.world(Shape((1, 1))))
    path = only(world, "web-1", A1, B1, "udp", size=1_200)
    assert path.cause is not None
    assert (path.outcome, path.cause.kind, path.answer) == ("rejected", "mtu", "icmp fragmentation-needed")
    assert path.reply is not None
    icmp = path.reply.hops[-1].inner.icmp
    assert icmp is not None
    assert (icmp.type, icmp.code, icmp.mtu) == (3, 4, 1_000)
    assert only(world, "web-1", A1, B1, "udp", size=1_200, df=False).outcome == "delivered"


def test_a_path_mtu_that_was_learned_refuses_or_cuts_what_its_sender_sends() -> None:
    world = worlds.world(Shape((1, 1)))
    sender = world.places["web-1"]
    learned = LearnedMtu(ip_address(B1), "eth0", 1_300, 598.4)
    told = replace(sender, kernel=replace(sender.kernel, learned=(learned,)))
    world = replace(world, places={**world.places, "web-1": told})
    refused = only(world, "web-1", A1, B1, "udp", size=1_350, df=True).cause
    assert refused is not None
    assert (refused.kind, str(refused.point)) == ("mtu", "web-1:eth0")
    assert refused.object == f"route {B1} dev eth0 mtu 1300, learned from an ICMP error, expires in 598 s"
    assert refused.next[0] == "ip route flush cache"
    cut = only(world, "web-1", A1, B1, "udp", size=1_350)
    assert (cut.outcome, cut.hops[0].inner.more_fragments) == ("delivered", True)
    assert not only(world, "web-1", A1, B1, "udp", size=1_200).hops[0].inner.more_fragments


def test_what_another_place_learned_does_not_cut_what_it_forwards() -> None:
    world = worlds.world(Shape((1, 1)))
    router = world.places["node-1"]
    learned = LearnedMtu(ip_address(B1), "flannel.1", 1_300, 598.4)
    told = replace(router, kernel=replace(router.kernel, learned=(learned,)))
    world = replace(world, places={**world.places, "node-1": told})
    assert only(world, "web-1", A1, B1, "udp", size=1_350, df=True).outcome == "delivered"


def test_the_senders_own_kernel_refuses_what_may_not_be_cut() -> None:
    path = only(worlds.world(Shape((1, 1))), "web-1", A1, B1, "udp", size=2_000, df=True)
    assert path.cause is not None
    assert (path.outcome, path.cause.kind, path.hops) == ("rejected", "mtu", ())


def test_a_service_without_endpoints_says_no() -> None:
    shape = Shape((1, 1), services=(service("nobody"),))
    path = only(worlds.world(shape), "web-1", A1, VIP)
    assert path.cause is not None
    assert (path.outcome, path.cause.kind) == ("rejected", "no_endpoints")
    assert path.answer == "icmp port-unreachable"
    assert path.cause.source == Source("service", "default/web")


@pytest.mark.parametrize("chain", [("nat", "PREROUTING"), ("nat", "OVL-SERVICES")])
def test_the_rule_but_for_which_it_fails(chain: tuple[str, str]) -> None:
    world = worlds.world(SERVED)
    rules = world.places["node-1"].rules
    assert rules is not None
    emptied = altered(world, "node-1", rules=replace(rules, chains={**rules.chains, chain: ()}))
    path = only(emptied, "web-1", A1, VIP)
    assert path.cause is not None
    assert path.cause.kind == "rule_missing"
    assert path.cause.object.startswith(f"-t nat -A {chain[1]} ")


def test_packets_that_go_round_are_not_followed_for_ever() -> None:
    world = worlds.world(Shape((1, 1), "host-gw"))
    back = Route(ip_network("10.244.2.2/32"), "eth0", ip_address("192.168.50.11"))
    kernel = world.places["node-2"].kernel
    path = only(altered(world, "node-2", routes=(*kernel.routes, back)), "web-1", A1, B1)
    assert path.outcome == "lost"
    assert path.cause is not None
    assert path.cause.kind == "route_wrong"
    assert "again and again" in path.cause.found
    assert len(path.hops) < 20


# --- what is not known ----------------------------------------------------------------------------


def test_rules_that_could_not_be_read_leave_it_open() -> None:
    prediction = predicted(altered(worlds.world(Shape((1, 1))), "node-1", rules=None), "web-1", A1, B1)
    assert not prediction.paths[0].certain
    assert any("rules of node-1" in word for word in prediction.unread)


def test_a_device_of_a_foreign_type_is_not_guessed_at() -> None:
    world = with_link(worlds.world(Shape((1, 1))), "node-1", "flannel.1", type="wireguard")
    prediction = predicted(world, "web-1", A1, B1)
    assert not prediction.paths[0].certain
    assert any("flannel.1 (wireguard)" in word for word in prediction.unread)


def test_what_is_beyond_the_hosts_is_out_of_sight() -> None:
    path = only(worlds.world(Shape((1,))), "node-1", "192.168.50.11", "198.51.100.7", "icmp")
    assert points(path.hops) in (["node-1:eth0 out"], [])
    assert path.arrived_at is None
    assert any("beyond" in note for note in path.notes)
