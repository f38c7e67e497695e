"""The verdict on real predictions: clusters are planned, some of their state is broken, a path is predicted,
and what would be captured of a packet that goes so is judged. Every kind of cause that a state tells, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers import worlds
from helpers.traces import Story, answer_headers, went
from helpers.worlds import Shape, altered, changed, with_link, with_sysctl, without
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.model import Service, ServicePort
from overlaynet.state import Fdb, Neigh, Route, RuleLine
from overlaynet.trace.join import Sighting
from overlaynet.trace.model import (
    CAUSES,
    CERTAIN,
    DELIVERED,
    DROPPED,
    INCONCLUSIVE,
    LOST,
    PROVED,
    REJECTED,
    Frame,
    Icmp,
    Point,
    Question,
    World,
)
from overlaynet.trace.predict import predict
from overlaynet.trace.render.terminal import trace_text

pytestmark = pytest.mark.unit

VIP = ip_address("10.112.0.10")
WEB = Service(
    "web", "default", cluster_ips=(VIP,), selector={"app": "web"}, ports=(ServicePort(80, node_port=30_080),)
)
NOBODY = replace(WEB, selector={"app": "nobody"})
SHAPES = {
    "vxlan": Shape((2, 2, 1)),
    "host-gw": Shape((2, 2, 1), backend="host-gw"),
    "services": Shape((2, 2, 1), services=(WEB,)),
    "no endpoints": Shape((2, 2, 1), services=(NOBODY,)),
}
WORLDS = {name: worlds.world(shape) for name, shape in SHAPES.items()}
SUBNET = worlds.subnet("node-2")
VTEP = worlds.vtep_mac("node-2")


def ask(source: str, target: str, protocol: str = "tcp", port: int | None = 80, **more: object) -> Question:
    """From place to place, or to a service or address."""
    addresses = {place: str(_address(place)) for place in WORLDS["vxlan"].places}
    dst = ip_address(str(VIP) if target == "svc/web" else addresses.get(target, target))
    dst_port = None if protocol == "icmp" else port
    return Question(source, target, _address(source), dst, protocol, 40_001, dst_port, **more)


def _address(place: str):
    if place == "outside":
        return worlds.OUTSIDE.ip
    if place in SHAPES["vxlan"].hosts:
        return worlds.underlay_ip(place)
    return worlds.container_ip(SHAPES["vxlan"], place)


def stories(world: World, question: Question, **more: object) -> list[Story]:
    """One for each path: a packet that goes so. What never leaves its sender was refused by its kernel."""
    prediction = predict(world, question)
    assert prediction.paths
    found = []
    for path in prediction.paths:
        told = went(path) if path.hops else went(path, error="refused")
        story = Story(
            prediction.paths,
            question=question,
            world=world,
            guards=prediction.guards,
            unread=prediction.unread,
            listening=prediction.ears,
        )
        found.append(story.but(tries=(told,), **more))
    return found


# --- healthy --------------------------------------------------------------------------------------

PAIRS = [
    ("web-1", "web-3"),
    ("web-1", "web-2"),
    ("web-1", "web-1"),
    ("web-1", "node-1"),
    ("web-1", "node-2"),
    ("web-1", "outside"),
    ("node-1", "web-3"),
    ("node-1", "node-2"),
    ("outside", "node-1"),
]


@pytest.mark.parametrize("shape", ["vxlan", "host-gw"])
@pytest.mark.parametrize(
    ("protocol", "port"), [("icmp", None), ("tcp", 80), ("tcp", 81), ("udp", 80), ("udp", 81)]
)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_goes_as_predicted_is_proved(
    shape: str, protocol: str, port: int | None, source: str, target: str
):
    for story in stories(WORLDS[shape], ask(source, target, protocol, port)):
        trace = story.verdict()
        assert (trace.verdict, trace.outcome, trace.notes) == (PROVED, DELIVERED, ())


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("web-5", "svc/web", 80),
        ("web-1", "svc/web", 80),
        ("node-1", "svc/web", 80),
        ("outside", "node-3", 30_080),
    ],
)
def test_whichever_endpoint_was_chosen_is_proved(source: str, target: str, port: int):
    told = stories(WORLDS["services"], ask(source, target, "tcp", port))
    assert len(told) >= 4
    traces = [story.verdict() for story in told]
    assert {trace.verdict for trace in traces} == {PROVED}
    assert {trace.forward[-1].place for trace in traces} >= {"web-1", "web-2", "web-3", "web-4"}


# --- broken ---------------------------------------------------------------------------------------


def rule(world: World, place: str, text: str, chain: str = "FORWARD") -> World:
    rules = world.places[place].rules
    assert rules is not None
    key = ("filter", chain)
    lines = (RuleLine(text), *rules.chains.get(key, ()))
    return altered(world, place, rules=replace(rules, chains={**rules.chains, key: lines}))


def route(world: World, **change: object) -> World:
    old = next(r for r in world.places["node-1"].kernel.routes if r.dst == SUBNET)
    return changed(world, "node-1", old, old._replace(**change))


def entry(world: World, kind: type, **change: object) -> World:
    """With another neighbour or FDB entry of node-1 for node-2's VTEP."""
    kernel = world.places["node-1"].kernel
    old = next(e for e in (*kernel.neighs, *kernel.fdb) if isinstance(e, kind) and e.mac == VTEP)
    return changed(world, "node-1", old, old._replace(**change))


def is_entry(kind: type) -> Callable[[object], bool]:
    return lambda obj: isinstance(obj, kind) and obj.mac == VTEP


def unlooked(world: World, host: str) -> World:
    """A host that is gone, with its containers."""
    left = {name: place for name, place in world.places.items() if place.host != host}
    cables = {one: other for one, other in world.cables.items() if {one.place, other.place} <= left.keys()}
    nodes = {**world.nodes, host: replace(world.nodes[host], error="no route to host")}
    return replace(world, places=left, cables=cables, nodes=nodes)


DAMAGED = {
    "link": ("link_down", LOST, lambda w: with_link(w, "node-2", "flannel.1", up=False, running=False)),
    "node": ("node_down", LOST, lambda w: unlooked(w, "node-2")),
    "no route": ("route_missing", LOST, lambda w: without(w, "node-1", is_route)),
    "other route": ("route_wrong", LOST, lambda w: route(w, via=ip_address("10.244.2.254"))),
    "no neigh": ("neigh_missing", LOST, lambda w: without(w, "node-1", is_entry(Neigh))),
    "other neigh": ("neigh_wrong", LOST, lambda w: entry(w, Neigh, mac=Mac("02:00:00:00:00:99"))),
    "no fdb": ("fdb_missing", LOST, lambda w: without(w, "node-1", is_entry(Fdb))),
    "other fdb": ("fdb_wrong", LOST, lambda w: entry(w, Fdb, dst=ip_address("192.168.50.99"))),
    "other host": ("fdb_wrong", LOST, lambda w: entry(w, Fdb, dst=ip_address("192.168.50.13"))),
    "drop": ("rule_drop", DROPPED, lambda w: rule(w, "node-1", "-d 10.244.2.0/24 -j DROP")),
    "far drop": ("rule_drop", DROPPED, lambda w: rule(w, "node-2", "-d 10.244.2.0/24 -j DROP")),
    "reject": ("rule_reject", REJECTED, lambda w: rule(w, "node-1", "-d 10.244.2.0/24 -j REJECT")),
    "far reject": ("rule_reject", REJECTED, lambda w: rule(w, "node-2", "-d 10.244.2.0/24 -j REJECT")),
    "forwarding": ("forwarding_off", LOST, lambda w: not_forwarding(w, "node-1")),
    "far forwarding": ("forwarding_off", LOST, lambda w: not_forwarding(w, "node-2")),
}


def is_route(obj: object) -> bool:
    """node-1's way to node-2, and every other one."""
    return isinstance(obj, Route) and obj.dst in (SUBNET, ip_network("0.0.0.0/0"))


def not_forwarding(world: World, host: str) -> World:
    off = {name: "0" for name in world.places[host].kernel.sysctls if name.endswith("/forwarding")}
    for name in (*off, "net/ipv4/ip_forward"):
        world = with_sysctl(world, host, name, "0")
    return world


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_loss_that_was_predicted_and_seen_has_its_cause(damage: str):
    kind, outcome, harm = DAMAGED[damage]
    for story in stories(harm(WORLDS["vxlan"]), ask("web-1", "web-3")):
        trace = story.verdict()
        assert trace.cause is not None
        assert (trace.verdict, trace.cause.kind) == (LOST, kind), trace.inconclusive_because
        assert trace.outcome in (outcome, REJECTED)


@pytest.mark.parametrize("damage", [name for name, (_, outcome, _) in DAMAGED.items() if outcome != LOST])
def test_a_refusal_that_was_expected_is_proved(damage: str):
    _, outcome, harm = DAMAGED[damage]
    for story in stories(harm(WORLDS["vxlan"]), ask("web-1", "web-3"), expect=outcome):
        assert story.verdict().verdict == PROVED


@pytest.mark.parametrize("damage", DAMAGED)
def test_without_witnesses_beyond_it_is_inconclusive(damage: str):
    """All that is not on the path is deaf. What was refused, or is refused by a rule, needs no witness."""
    _, _, harm = DAMAGED[damage]
    for story in stories(harm(WORLDS["vxlan"]), ask("web-1", "web-3")):
        path = story.paths[0]
        on_path = {hop.point for hop in path.hops}
        deaf = story.deaf(*(str(point) for point in story.points if point not in on_path))
        expected = LOST if path.outcome == REJECTED or not deaf.guards else INCONCLUSIVE
        nobody_there = story.world.place_of(story.question.dst) is None
        assert deaf.verdict().verdict == (LOST if nobody_there else expected)


def test_a_service_without_endpoints():
    for story in stories(WORLDS["no endpoints"], ask("web-1", "svc/web")):
        trace = story.verdict()
        assert trace.cause is not None
        assert (trace.verdict, trace.outcome, trace.cause.kind) == (LOST, REJECTED, "no_endpoints")
        assert story.but(expect=REJECTED).verdict().verdict == PROVED


def test_a_packet_that_is_too_large():
    large = with_link(WORLDS["vxlan"], "web-1", "eth0", mtu=1_500)
    for story in stories(large, ask("web-1", "web-3", "icmp", size=1_472, df=True)):
        trace = story.verdict()
        assert trace.cause is not None
        assert (trace.verdict, trace.cause.kind) == (LOST, "mtu")


def test_a_host_that_does_not_believe_the_source():
    strict = with_sysctl(WORLDS["vxlan"], "node-2", "net/ipv4/conf/flannel.1/rp_filter", "1")
    back = next(r for r in strict.places["node-2"].kernel.routes if r.dst == worlds.subnet("node-1"))
    strict = changed(
        strict, "node-2", back, back._replace(dev="eth0", via=worlds.underlay_ip("node-1"), onlink=False)
    )
    causes = [story.verdict().cause for story in stories(strict, ask("web-1", "web-3"))]
    assert causes
    assert all(cause is not None and cause.kind in ("rp_filter", "route_wrong") for cause in causes)


def test_a_container_without_a_route_is_refused_by_its_own_kernel():
    lonely = altered(WORLDS["vxlan"], "web-1", routes=())
    for story in stories(lonely, ask("web-1", "web-3")):
        trace = story.verdict()
        assert trace.cause is not None
        assert (trace.verdict, trace.cause.kind, trace.forward) == (LOST, "route_missing", ())
        assert "refused by web-1's own kernel, which sent nothing" in trace_text(trace)


def test_a_copy_that_floods_to_the_container_is_not_called_unseen_there():
    kernel = WORLDS["vxlan"].places["node-2"].kernel
    stranger = Neigh("cni0", _address("web-3"), Mac("02:00:00:00:00:99"))
    others = tuple(entry for entry in kernel.neighs if entry.ip != stranger.ip)
    (story,) = stories(altered(WORLDS["vxlan"], "node-2", neighs=(*others, stranger)), ask("web-1", "web-3"))
    silent = story.verdict()
    assert (silent.verdict, str((silent.lost_between or ("", ""))[1])) == (LOST, "web-3:eth0")
    copy = story.tries[0].forward[-1]._replace(point=Point("web-3", "eth0"), direction="in")
    flooded = story.but(tries=(replace(story.tries[0], forward=(*story.tries[0].forward, copy)),)).verdict()
    assert flooded.cause is not None
    assert (flooded.verdict, flooded.cause.kind) == (LOST, "neigh_wrong")
    assert flooded.lost_between is None or flooded.lost_between[1] != copy.point


def test_an_address_that_no_lease_covers_is_told_so():
    (story,) = stories(WORLDS["vxlan"], ask("web-1", "10.244.9.9"))
    trace = story.verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "no lease covers 10.244.9.9; next: overlaynet get leases" in trace.inconclusive_because[0]


def test_an_address_of_the_world_is_asked_for_where_it_left():
    (story,) = stories(WORLDS["vxlan"], ask("web-1", "8.8.8.8"))
    (reason,) = story.verdict().inconclusive_because
    assert reason.endswith("next: overlaynet exec node-1 -- ip route get 8.8.8.8")


def test_a_neighbour_that_fails_on_the_underlay_is_the_cause_for_certain():
    question = ask("web-1", "192.168.50.98", "udp", 81)
    kernel = WORLDS["vxlan"].places["node-1"].kernel
    failed = Neigh("eth0", question.dst, None, state="failed")
    after = altered(WORLDS["vxlan"], "node-1", neighs=(*kernel.neighs, failed))
    (path,) = predict(WORLDS["vxlan"], question).paths
    seen = went(replace(path, hops=path.hops[:-1]))
    error = answer_headers(path.hops[-2], protocol="icmp", icmp=Icmp(3, 1))
    said = Sighting(path.hops[-2].point, "out", 90_000, Frame(error))
    (story,) = stories(WORLDS["vxlan"], question)
    story = story.but(tries=(replace(seen, reply=(said,)),), predict=predict).having(after=after)
    trace = story.verdict()
    assert trace.cause is not None
    assert (trace.verdict, trace.cause.kind, trace.cause.certainty) == (LOST, "neigh_missing", CERTAIN)
    assert trace.cause.next == ("ip neigh show 192.168.50.98 dev eth0",)


def test_a_detour_that_arrives_is_a_note():
    detour = route(WORLDS["vxlan"], via=ip_address("10.244.3.0"))
    (story,) = stories(detour, ask("web-1", "web-3"))
    trace = story.verdict()
    assert trace.verdict == PROVED
    assert any(note.endswith("next: overlaynet diff node-1") for note in trace.notes)


# --- changed meanwhile ----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["no fdb", "other neigh", "no route", "drop", "forwarding", "link"])
def test_what_was_broken_after_the_prediction_is_the_cause(damage: str):
    """The healthy path is predicted, the packet goes the damaged one, and the state is read again."""
    kind, _, harm = DAMAGED[damage]
    question, after = ask("web-1", "web-3", "udp", 81), harm(WORLDS["vxlan"])
    healthy = stories(WORLDS["vxlan"], question)[0]
    (damaged,) = predict(after, question).paths
    trace = healthy.but(tries=(went(damaged),), predict=predict).having(after=after).verdict()
    assert trace.cause is not None
    assert (trace.verdict, trace.cause.kind) == (LOST, kind)
    assert "the state changed after the path was predicted" in trace.notes


# --- any of them ----------------------------------------------------------------------------------


@given(st.data())
def test_no_subset_of_what_was_seen_is_on_the_wrong_path_or_lost_without_witnesses(data: st.DataObject):
    damage = data.draw(st.sampled_from(["none", *DAMAGED]))
    world = WORLDS["vxlan"] if damage == "none" else DAMAGED[damage][2](WORLDS["vxlan"])
    told = stories(world, ask("web-1", "web-3"))
    story = told[data.draw(st.integers(0, len(told) - 1))]
    (one,) = story.tries
    kept = data.draw(st.sets(st.integers(0, len(one.forward) - 1)))
    story = story.but(tries=(replace(one, forward=tuple(one.forward[n] for n in sorted(kept))),))
    trace = story.verdict()
    assert trace.verdict in (PROVED, LOST, INCONCLUSIVE)
    assert not (trace.verdict == PROVED and damage != "none")
    deaf = story.deaf(*map(str, story.points)).verdict()
    refused = story.paths[0].outcome == REJECTED
    assert deaf.verdict != LOST or refused or story.world.place_of(story.question.dst) is None


def test_every_cause_is_reached_here_or_among_the_causes_of_captures():
    here = {kind for kind, _, _ in DAMAGED.values()} | {"no_endpoints", "mtu", "rp_filter"}
    told_by_captures = {"rule_missing", "underlay_loss", "partition", "unknown"}  # tests/trace/test_causes.py
    assert here | told_by_captures == set(CAUSES)
