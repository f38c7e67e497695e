"""Causes that only captures tell: each line of the table, and each kind of cause once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import pictures
from helpers.pictures import VETH_2
from helpers.traces import (
    Story,
    answer_headers,
    at,
    down,
    ending,
    frame,
    lost_after,
    path_of,
    told,
    went,
    with_links,
    with_node,
    world,
)

from overlaynet.state import Neigh
from overlaynet.trace.causes import answer_words, next_commands
from overlaynet.trace.join import Followed, Sighting
from overlaynet.trace.model import (
    CAUSES,
    CERTAIN,
    LIKELY,
    LOST,
    OUTSIDE,
    PROVED,
    WRONG_PATH,
    Cause,
    Count,
    Headers,
    Icmp,
    Reach,
    Tcp,
    World,
)

pytestmark = pytest.mark.unit

VXLAN = path_of(pictures.vxlan())
TO_WIRE, ON_HOST = 5, 2
"""Hops after which a packet vanishes in the underlay, and on its own host."""
ALL = Reach("node-1", "node-2", 20, 20, 20)
NONE = Reach("node-1", "node-2", 20, 0, 0)


def why(story: Story) -> Cause:
    trace = story.verdict()
    assert trace.verdict == LOST
    assert trace.cause is not None
    return trace.cause


def told_as(story: Story) -> tuple[str, str, str]:
    cause = why(story)
    return cause.kind, str(cause.point), cause.certainty


def refused(hops: int, speaker: int, icmp: Icmp | None = None, **headers: object) -> Story:
    """Lost after so many hops, with an ICMP error or a RST from the hop numbered `speaker`."""
    hop = VXLAN.hops[speaker]
    packet = answer_headers(hop, protocol="icmp" if icmp else "tcp", icmp=icmp, **headers)
    said = Sighting(hop.point, "out", 90_000, replace(frame(hop), outer=packet, vni=None, inner=None))
    return lost_after(hops).seeing(lambda one: replace(one, reply=(said,)))


# --- somebody said no -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("icmp", "kind", "certainty", "answer"),
    [
        (Icmp(3, 0), "route_missing", LIKELY, "net-unreachable"),
        (Icmp(3, 1), "neigh_missing", LIKELY, "host-unreachable"),
        (Icmp(3, 2), "rule_reject", CERTAIN, "proto-unreachable"),
        (Icmp(3, 3), "rule_reject", CERTAIN, "port-unreachable"),
        (Icmp(3, 4, mtu=1450), "mtu", CERTAIN, "fragmentation-needed"),
        (Icmp(3, 9), "rule_reject", CERTAIN, "net-prohibited"),
        (Icmp(3, 10), "rule_reject", CERTAIN, "host-prohibited"),
        (Icmp(3, 13), "rule_reject", CERTAIN, "admin-prohibited"),
        (Icmp(11, 0), "route_wrong", LIKELY, "ttl-exceeded"),
        (Icmp(12, 0), "unknown", LIKELY, "type 12 code 0"),
    ],
)
def test_an_icmp_error_says_who_and_why(icmp: Icmp, kind: str, certainty: str, answer: str):
    story = refused(3, 2, icmp)
    assert told_as(story) == (kind, "node-1:cni0", certainty)
    assert story.verdict().answer == f"icmp {answer}"
    assert why(story).found.startswith(f"node-1 (10.244.2.2) answered: {answer}")


def test_the_next_hops_mtu_is_told():
    assert "next-hop MTU 1450" in why(refused(3, 2, Icmp(3, 4, mtu=1450))).found


def test_an_error_from_the_next_host_is_told_of_its_point():
    assert told_as(refused(5, 7, Icmp(3, 1))) == ("neigh_missing", "node-2:eth0", LIKELY)


def test_a_rst_from_the_way_is_a_rule():
    story = refused(3, 2, tcp=Tcp(0, pictures.ISN + 1, "RA"))
    assert told_as(story) == ("rule_reject", "node-1:cni0", CERTAIN)
    assert "RST" in why(story).found


def test_an_error_seen_coming_in_is_from_whoever_has_its_address():
    def from_afar(one: Followed) -> Followed:
        packet = replace(one.reply[0].frame.outer, src=ip_address("192.168.50.12"))
        said = one.reply[0]._replace(direction="in", point=at("node-1:eth0"))
        return replace(one, reply=(said._replace(frame=replace(said.frame, outer=packet)),))

    assert why(refused(5, 7, Icmp(3, 1)).seeing(from_afar)).found.startswith("node-2 (192.168.50.12) answered")


def test_outside_is_nobodys_to_compare():
    assert why(lost_after(ON_HOST)).next[-1] == "overlaynet diff node-1"
    here = world()
    place = replace(here.places["node-1"], kind=OUTSIDE)
    outside = lost_after(ON_HOST).but(world=replace(here, places={**here.places, "node-1": place}))
    assert why(outside).next[-1] == "overlaynet status"


def test_a_redirect_is_no_refusal():
    assert why(refused(3, 2, Icmp(5, 1))).kind == "unknown"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"tcp": Tcp(1, 2, "SA")}, "syn-ack"),
        ({"tcp": Tcp(1, 2, "RA")}, "rst"),
        ({"protocol": "icmp", "icmp": Icmp(0, 0)}, "echo-reply"),
        ({"protocol": "icmp", "icmp": Icmp(3, 3)}, "icmp port-unreachable"),
        ({"protocol": "udp"}, "udp"),
    ],
)
def test_answers_have_words(headers: dict[str, object], words: str):
    said = {"protocol": "tcp", **headers}
    assert answer_words(Headers(None, None, None, None, **said)) == words


# --- links and hosts ------------------------------------------------------------------------------


def test_a_capture_that_says_its_link_is_down():
    story = lost_after(ON_HOST).deaf("node-1:cni0", error="Network is down", dropped=None)
    assert told_as(story) == ("link_down", "node-1:cni0", CERTAIN)


@pytest.mark.parametrize("point", ["node-1:cni0", f"node-1:{VXLAN.hops[1].iface}"])
def test_a_link_that_the_state_says_is_down(point: str):
    here = down(world(), *point.split(":"))
    assert told_as(lost_after(ON_HOST).having(after=here)) == ("link_down", point, CERTAIN)


def test_a_link_without_carrier_and_one_that_is_gone():
    links = world().places["node-1"].kernel.links
    bare = with_links(world(), "node-1", cni0=links["cni0"]._replace(running=False))
    assert "has no carrier" in why(lost_after(ON_HOST).having(after=bare)).found
    gone = with_links(world(), "node-1", cni0=None)
    assert "node-1 has no link cni0" in why(lost_after(ON_HOST).having(after=gone)).found


def test_an_unplugged_link_is_a_witness_and_the_cause():
    eth0 = world().places["node-2"].kernel.links["eth0"]._replace(running=False)
    here = with_links(world(), "node-2", eth0=eth0)
    story = lost_after(TO_WIRE).having(after=here).deaf("node-2:eth0", error="has no carrier")
    assert told_as(story) == ("link_down", "node-2:eth0", CERTAIN)
    assert "node-2 has no carrier" in why(story).found


@pytest.mark.parametrize("agent", ["down", None])
def test_a_host_all_of_whose_links_are_down_is_down(agent: str | None):
    here = with_node(down(world(), "node-2"), "node-2", agent=agent)
    story = lost_after(TO_WIRE).having(after=here, reach=(NONE,)).deaf("node-2:eth0", error="Network is down")
    assert told_as(story) == ("node_down", "node-2:eth0", CERTAIN)


def test_a_host_whose_agent_lives_has_a_link_that_is_down():
    story = lost_after(TO_WIRE).having(after=down(world(), "node-2"), reach=(NONE,))
    assert told_as(story.deaf("node-2:eth0", error="Network is down")) == ("link_down", "node-2:eth0", CERTAIN)
    other = down(world(), "node-2", "flannel.1")
    assert why(lost_after(TO_WIRE).having(after=other, reach=(NONE,))).kind == "partition"


def test_a_host_that_cannot_be_looked_at_is_down():
    here = with_node(world(), "node-2", error="no route to host")
    assert told_as(lost_after(TO_WIRE).but(world=here)) == ("node_down", "node-2:eth0", CERTAIN)


def test_a_host_whose_agent_is_dead_and_whose_record_is_gone_is_likely_down():
    here = with_node(world(), "node-2", agent="down", live=False)
    assert told_as(lost_after(TO_WIRE).but(world=here).having(reach=(NONE,))) == (
        "node_down",
        "node-2:eth0",
        LIKELY,
    )


@pytest.mark.parametrize("state", [{"agent": "down"}, {"live": False}, {"agent": "down", "live": None}])
def test_a_dead_agent_alone_is_no_dead_host(state: dict[str, object]):
    here = with_node(world(), "node-2", **state)
    assert why(lost_after(TO_WIRE).but(world=here).having(reach=(NONE,))).kind == "partition"
    gone = with_node(world(), "node-2", agent="down", live=False)
    assert why(lost_after(TO_WIRE).but(world=gone).having(reach=(ALL,))).kind == "unknown"


# --- the underlay ---------------------------------------------------------------------------------


def test_no_test_packet_arrives_and_the_host_is_there():
    story = lost_after(TO_WIRE).having(reach=(NONE,))
    assert told_as(story) == ("partition", "node-2:eth0", CERTAIN)
    assert "0 of 20 test packets to UDP port 8472 and 0 of 20 of ICMP" in why(story).found
    assert why(story).next == ("overlaynet status", "overlaynet heal")


def test_only_the_vxlan_port_is_dropped():
    story = lost_after(TO_WIRE).having(reach=(NONE._replace(icmp_arrived=20),))
    assert told_as(story) == ("underlay_loss", "node-2:eth0", CERTAIN)
    assert why(story).found.startswith("the underlay drops UDP port 8472; ICMP passes")


@pytest.mark.parametrize(("udp", "icmp"), [(13, 14), (19, 20), (0, 12), (20 - 1, 0)])
def test_some_are_lost(udp: int, icmp: int):
    reach = NONE._replace(udp_arrived=udp, icmp_arrived=icmp)
    story = lost_after(TO_WIRE).having(reach=(reach,))
    assert told_as(story) == ("underlay_loss", "node-2:eth0", LIKELY)
    assert f"{udp} of 20" in why(story).found


def test_lost_icmp_matters_only_to_icmp():
    reach = ALL._replace(icmp_arrived=5)
    assert why(lost_after(TO_WIRE).having(reach=(reach,))).kind == "unknown"
    routed = path_of(pictures.host_gw())
    hops = tuple(replace(h, inner=replace(h.inner, protocol="icmp", tcp=None)) for h in routed.hops)
    path = replace(routed, hops=hops)
    story = Story((path,), tries=(went(path, hops=4),)).having(reach=(reach,))
    assert why(story).kind == "underlay_loss"


def test_measurements_add_up_and_those_of_others_do_not_count():
    reach = (NONE._replace(udp_arrived=4, icmp_arrived=5), ALL, Reach("node-2", "node-1", 20, 0, 0))
    assert (
        "24 of 40 test packets to UDP port 8472 and 25 of 40"
        in why(lost_after(TO_WIRE).having(reach=reach)).found
    )


def test_all_arrive_and_nobody_knows():
    cause = why(lost_after(TO_WIRE).having(reach=(ALL,)))
    assert (cause.kind, cause.certainty) == ("unknown", LIKELY)
    assert "20 of 20 test packets" in cause.found
    assert cause.next == ("overlaynet capture node-1:eth0 node-2:eth0", "overlaynet diff node-1")


def test_all_arrive_and_the_lost_one_was_large():
    path = replace(VXLAN, hops=pictures.there(length=1450))
    story = Story((path,), tries=(went(path, hops=TO_WIRE),)).having(reach=(ALL,))
    assert told_as(story) == ("mtu", "node-2:eth0", LIKELY)
    assert "the lost packet has 1500 bytes" in why(story).found


def test_what_vanished_on_one_host_is_not_the_underlays():
    assert why(lost_after(ON_HOST).having(reach=(NONE,))).kind == "unknown"
    inner = why(lost_after(9).having(reach=(NONE,)))  # veth and container: a cable, not the underlay
    assert (inner.kind, str(inner.point)) == ("unknown", "web-3:eth0")


def waiting(state: str, here: World | None = None) -> World:
    """node-1 has asked for node-2's MAC."""
    here = here or world()
    place = here.places["node-1"]
    neigh = Neigh("eth0", ip_address("192.168.50.12"), None, state)
    kernel = replace(place.kernel, neighs=(neigh,))
    return replace(here, places={**here.places, "node-1": replace(place, kernel=kernel)})


@pytest.mark.parametrize("state", ["failed", "incomplete"])
def test_a_packet_that_waits_for_arp_is_lost_in_the_underlay(state: str):
    story = lost_after(4).having(after=waiting(state))
    assert str(VXLAN.hops[4].point) == "node-1:eth0"
    assert told_as(story) == ("partition", "node-2:eth0", LIKELY)
    assert told_as(story.having(reach=(NONE,))) == ("partition", "node-2:eth0", CERTAIN)
    dead = with_node(waiting(state), "node-2", error="no route to host")
    assert told_as(story.having(after=dead)) == ("node_down", "node-2:eth0", CERTAIN)
    eth0 = world().places["node-2"].kernel.links["eth0"]._replace(running=False)
    unplugged = waiting(state, with_links(world(), "node-2", eth0=eth0))
    assert told_as(story.having(after=unplugged)) == ("link_down", "node-2:eth0", CERTAIN)


def test_a_packet_whose_question_by_arp_is_forgotten_ends_at_what_is_dead_beyond():
    """The kernel drops entries that failed; and where all is well beyond, maybe nobody asked."""
    assert not world().places["node-1"].kernel.neighs
    story = lost_after(4).having(after=world())
    assert why(story.having(reach=(NONE,))).kind == "unknown"
    dead = with_node(world(), "node-2", error="no route to host")
    assert told_as(story.having(after=dead)) == ("node_down", "node-2:eth0", CERTAIN)
    eth0 = world().places["node-2"].kernel.links["eth0"]._replace(running=False)
    unplugged = with_links(world(), "node-2", eth0=eth0)
    assert told_as(story.having(after=unplugged)) == ("link_down", "node-2:eth0", CERTAIN)


def test_a_neighbour_that_answered_is_not_waited_for():
    assert why(lost_after(4).having(after=waiting("stale"), reach=(NONE,))).kind == "unknown"
    assert why(lost_after(3).having(after=waiting("failed"), reach=(NONE,))).kind == "unknown"


def test_an_answer_lost_in_the_underlay():
    back = Reach("node-2", "node-1", 20, 0, 0)
    story = Story((VXLAN,), tries=(went(VXLAN, back=5),)).having(reach=(back,))
    assert told_as(story) == ("partition", "node-1:eth0", CERTAIN)


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "kind"), [("DROP", "rule_drop"), ("REJECT", "rule_reject")])
def test_a_rule_that_counted_is_likely(target: str, kind: str):
    count = Count("node-1", "filter", "FORWARD", 1, f"-s 10.244.1.2/32 -j {target}", 2)
    assert told_as(lost_after(ON_HOST).having(counts=(count,))) == (
        kind,
        f"node-1:{VXLAN.hops[1].iface}",
        LIKELY,
    )


@pytest.mark.parametrize("change", [{"host": "node-3"}, {"packets": 0}, {"text": "-j ACCEPT"}])
def test_other_counters_say_nothing(change: dict[str, object]):
    count = Count("node-1", "filter", "FORWARD", 1, "-j DROP", 2)._replace(**change)
    assert why(lost_after(ON_HOST).having(counts=(count,))).kind == "unknown"


# --- astray and altered ---------------------------------------------------------------------------


def stray(point: str, direction: str, like: int, **outer: object) -> Callable[[Followed], Followed]:
    def change(one: Followed) -> Followed:
        seen = one.forward[like]
        there = replace(seen.frame, outer=replace(seen.frame.outer, **outer))
        return replace(
            one, forward=(*one.forward, seen._replace(point=at(point), direction=direction, frame=there))
        )

    return change


@pytest.mark.parametrize(
    ("hops", "point", "direction", "like", "kind"),
    [
        (5, "node-3:eth0", "in", 4, "fdb_wrong"),
        (4, "node-3:eth0", "in", 3, "route_wrong"),
        (2, "web-2:eth0", "in", 1, "neigh_wrong"),
        (1, "web-1:eth1", "out", 0, "unknown"),
    ],
)
def test_where_it_went_tells_why(hops: int, point: str, direction: str, like: int, kind: str):
    place, _, iface = point.partition(":")
    links = world().places[place].kernel.links
    addressed = {"dst_mac": links[iface].mac} if iface in links else {}
    trace = lost_after(hops).seeing(stray(point, direction, like, **addressed)).verdict()
    assert trace.verdict == WRONG_PATH
    assert trace.cause is not None
    assert (trace.cause.kind, str(trace.cause.point), trace.cause.certainty) == (kind, point, LIKELY)


def looking_like(**headers: object) -> Callable[[Followed], Followed]:
    """The packet as it was seen last, with other headers: of the tunnel, if there is one."""

    def change(one: Followed) -> Followed:
        last = one.forward[-1]
        other = replace(last.frame, outer=replace(last.frame.outer, **headers))
        return replace(one, forward=(*one.forward[:-1], last._replace(frame=other)))

    return change


@pytest.mark.parametrize(
    ("picture", "headers", "kind"),
    [
        (pictures.virtual_ip, {"dst": ip_address("10.112.0.10")}, "rule_missing"),
        (pictures.virtual_ip, {"dst_port": 80}, "rule_missing"),
        (pictures.to_outside, {"src": ip_address("10.244.1.2")}, "rule_missing"),
        (pictures.to_outside, {"src": ip_address("192.168.50.13")}, "unknown"),
    ],
)
def test_headers_that_differ_tell_why(picture: Callable, headers: dict[str, object], kind: str):
    path = path_of(picture())
    story = Story((path,), question=picture().question, tries=(went(path),))
    assert story.verdict().verdict == PROVED
    trace = story.seeing(looking_like(**headers)).verdict()
    assert trace.verdict == WRONG_PATH
    assert trace.cause is not None
    assert trace.cause.kind == kind


def test_a_tunnel_to_another_host_than_predicted_tells_of_the_loss():
    story = lost_after(TO_WIRE).seeing(looking_like(dst=ip_address("192.168.50.99"))).having(reach=(ALL,))
    cause = why(story)
    assert (cause.kind, cause.expected) == ("fdb_wrong", "outer dst 192.168.50.12")
    assert cause.found == "at node-1:eth0 its outer dst was 192.168.50.99"


def test_what_should_be_in_a_tunnel_and_is_not_was_routed_wrongly():
    def unwrapped(one: Followed) -> Followed:
        last = one.forward[-1]
        inner = last.frame.inner
        assert inner is not None
        return replace(
            one,
            forward=(
                *one.forward[:-1],
                last._replace(frame=replace(last.frame, outer=inner, vni=None, inner=None)),
            ),
        )

    assert why(lost_after(TO_WIRE).seeing(unwrapped).having(reach=(ALL,))).kind == "route_wrong"


# --- every kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSES)
def test_every_cause_has_commands(kind: str):
    assert all(command.startswith("overlaynet ") for command in next_commands(kind, "node-1"))
    path = ending(
        VXLAN, 5, LOST, Cause(kind, at("node-1:eth0"), "x", "y", "z", None, CERTAIN, ("overlaynet status",))
    )
    assert why(told(path, listening=(at("web-3:eth0"),))).kind == kind


def test_the_state_after_is_the_one_that_is_asked():
    up, low = world(), down(world(), "node-1", "cni0")
    assert why(lost_after(ON_HOST).but(world=low).having(after=up)).kind == "unknown"
    assert why(lost_after(ON_HOST).but(world=low)).kind == "link_down"


def test_a_port_beside_the_path_is_not_suspected():
    here: World = down(world(), "node-1", VETH_2)
    assert why(lost_after(ON_HOST).having(after=here)).kind == "unknown"
