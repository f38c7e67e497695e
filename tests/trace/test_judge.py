"""Verdicts, rule by rule: each line of the judge's table once where it holds and once where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import click
import pytest
from helpers import pictures
from helpers.pictures import VETH_1, VETH_2
from helpers.traces import (
    GUARD,
    Story,
    also_seen,
    altered,
    answer_headers,
    at,
    cause,
    ending,
    frame,
    healthy,
    lost_after,
    path_of,
    told,
    went,
    with_node,
    world,
)
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.trace.join import Followed, Sighting
from overlaynet.trace.model import (
    CAUSES,
    DELIVERED,
    DROPPED,
    INCONCLUSIVE,
    LIKELY,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Connection,
    Count,
    Icmp,
    Nat,
    Path,
    Prediction,
    Reach,
    Sent,
    Tcp,
    Trace,
    World,
)
from overlaynet.trace.render.terminal import trace_text

pytestmark = pytest.mark.unit

WIRE_OUT, WIRE_IN = at("node-1:eth0"), at("node-2:eth0")
VXLAN = path_of(pictures.vxlan())


def dropped_sighting(point: str, direction: str) -> Callable[[Followed], Followed]:
    """Not seen there, on the way there or back."""

    def change(one: Followed) -> Followed:
        kept = [
            tuple(s for s in way if (s.point, s.direction) != (at(point), direction))
            for way in (one.forward, one.reply)
        ]
        return replace(one, forward=kept[0], reply=kept[1])

    return change


def answered(said: str) -> Callable[[Followed], Followed]:
    return lambda one: replace(one, sent=one.sent._replace(answer=said))


def reasons(trace: Trace) -> str:
    return "\n".join(trace.inconclusive_because)


# --- proved ---------------------------------------------------------------------------------------


def test_a_packet_seen_at_every_hop_there_and_back_is_proved():
    trace = healthy().verdict()
    assert (trace.verdict, trace.outcome, trace.cause) == (PROVED, DELIVERED, None)
    assert trace.notes == ()
    assert trace.inconclusive_because == ()
    assert [hop.seen for hop in (*trace.forward, *trace.reply)] == [True] * 20
    assert trace.answer == "syn-ack"
    assert trace.tag == {"ip_id": 22_852, "tcp_isn": pictures.ISN, "cookie": None}


def test_sightings_prove_though_captures_dropped_frames():
    trace = healthy().deaf("node-1:eth0", "web-3:eth0").deaf("node-1:cni0", error="died").verdict()
    assert trace.verdict == PROVED


def test_a_guard_that_is_no_witness_is_noted_and_hinders_nothing():
    trace = healthy().deaf(str(GUARD)).verdict()
    assert (trace.verdict, trace.notes) == (PROVED, (f"the guard at {GUARD} is no witness",))
    assert [hop.seen for hop in trace.guards] == [None]


def test_problems_of_a_proved_trace_are_notes():
    trace = healthy().having(problems=("conntrack of node-1 could not be read",)).verdict()
    assert (trace.verdict, trace.notes) == (PROVED, ("conntrack of node-1 could not be read",))


def test_an_unsure_prediction_that_was_seen_through_is_proved():
    story = told(replace(VXLAN, certain=False), unread=("nft is not installed on node-2",))
    assert story.verdict().verdict == PROVED


def test_a_hop_that_may_be_unseen_is_not_missed():
    hops = (*VXLAN.hops[:2], replace(VXLAN.hops[2], optional=True), *VXLAN.hops[3:])
    story = told(replace(VXLAN, hops=hops)).seeing(dropped_sighting("node-1:cni0", "in"))
    assert story.verdict().verdict == PROVED
    assert story.deaf("node-1:cni0").verdict().verdict == PROVED


@pytest.mark.parametrize("answer", ["udp", "icmp port-unreachable"])
def test_an_answer_that_need_not_come_is_a_note(answer: str):
    path = replace(VXLAN, answer=answer)
    story = Story((path,), question=replace(pictures.TO_WEB_3, protocol="udp"), tries=(went(path, back=0),))
    trace = story.verdict()
    assert trace.verdict == PROVED
    assert "no answer came; none has to" in trace.notes


def test_what_asks_for_no_answer_is_proved_without_one():
    assert told(replace(VXLAN, reply=None, answer="")).verdict().verdict == PROVED


def test_what_goes_out_of_sight_is_proved_by_an_answer_only():
    """To an address that nobody has whom one could look at."""
    path = replace(VXLAN, hops=VXLAN.hops[:5], arrived_at=None, reply=None, answer="")
    trace = told(path).verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert "it left node-1:eth0 for 10.244.2.2, which is out of sight, and nobody answered" in reasons(trace)
    assert told(path).seeing(answered("syn-ack")).verdict().verdict == PROVED


def test_an_error_from_out_of_sight_is_a_loss():
    path = replace(VXLAN, hops=VXLAN.hops[:5], arrived_at=None, reply=None, answer="")
    packet = answer_headers(path.hops[-1], protocol="icmp", icmp=Icmp(3, 0), src=ip_address("192.168.50.1"))
    said = Sighting(at("node-1:eth0"), "in", 90_000, replace(frame(path.hops[-1]), outer=packet, inner=None))
    story = told(path).seeing(lambda one: replace(one, reply=(said,)))
    trace = story.verdict()
    assert (trace.verdict, trace.outcome, trace.answer) == (LOST, REJECTED, "icmp net-unreachable")
    assert trace.lost_between is None
    assert trace.cause is not None
    assert (trace.cause.kind, trace.cause.point) == ("route_missing", at("node-1:eth0"))
    assert trace.cause.found == "192.168.50.1, which is out of sight, answered: net-unreachable"
    assert trace.cause.next == ("ip route get 10.244.2.2",)
    text = click.unstyle(trace_text(trace, 160))
    assert "rejected by 192.168.50.1, beyond node-1 eth0: icmp net-unreachable came back" in text
    assert "icmp net-unreachable  192.168.50.1 → node-1" in text
    assert "route missing (likely): underlay address 192.168.50.1, beyond node-1:eth0" in text
    assert story.but(expect=REJECTED).verdict().verdict == PROVED


def test_offloading_is_no_fault():
    story = (
        healthy()
        .seeing(altered("node-1:eth0", "out", length=64_000, ttl=63))
        .seeing(altered("web-3:eth0", "in", length=64_000))
    )
    assert (story.verdict().verdict, story.verdict().notes) == (PROVED, ())


def test_a_mac_that_differs_is_a_note():
    trace = healthy().seeing(altered("web-3:eth0", "in", src_mac=pictures.MACS["router"])).verdict()
    assert trace.verdict == PROVED
    assert len(trace.notes) == 1
    assert "src_mac" in trace.notes[0]


def test_the_ttl_counts_by_how_far_it_fell():
    other_start = healthy()
    for hop in VXLAN.hops:
        other_start = other_start.seeing(altered(str(hop.point), hop.direction, ttl=hop.inner.ttl + 64))
    assert other_start.verdict().notes == ()
    fell = healthy().seeing(altered("web-3:eth0", "in", ttl=7)).verdict()
    assert fell.verdict == PROVED
    assert "at web-3:eth0 the TTL had fallen by 55, 0 was predicted" in fell.notes


def test_a_repetition_at_a_point_of_the_path_is_a_note():
    trace = healthy().seeing(also_seen("node-2:eth0", "in", 5)).verdict()
    assert (trace.verdict, trace.notes) == (PROVED, ("it was seen once more at node-2:eth0 (in)",))
    assert len(trace.forward) == 10


def test_ecn_flags_are_nobodys_fault():
    trace = healthy().seeing(altered("web-3:eth0", "in", tcp=Tcp(pictures.ISN, 0, "SEC"))).verdict()
    assert trace.verdict == PROVED


# --- the path that was taken ----------------------------------------------------------------------


def endpoints() -> Story:
    """A service with four endpoints; the packet went to web-3."""
    paths = tuple(
        replace(p, nat=(Nat("node-1", "tcp", ip_address("10.244.1.2"), None, ip_address("10.112.0.10"), 80,
                            ip_address("10.244.1.2"), None, p.hops[-1].inner.dst, 8080),))
        for p in pictures.four_ways().paths
    )  # fmt: skip
    return Story(paths, question=pictures.TO_SERVICE, tries=(went(paths[2]),))


def test_sightings_tell_the_endpoint():
    trace = endpoints().verdict()
    assert trace.verdict == PROVED
    assert trace.forward[-1].point == at("web-3:eth0")


def test_conntrack_tells_the_endpoint_where_sightings_do_not():
    story = endpoints().seeing(
        lambda one: replace(one, forward=one.forward[:2], reply=(), sent=one.sent._replace(answer=""))
    )
    text = (
        "tcp SYN_SENT src=10.244.1.2 dst=10.112.0.10 sport=44778 dport=80 [UNREPLIED] "
        "src=10.244.2.3 dst=10.244.1.2 sport=8080 dport=44778"
    )
    trace = story.having(connections=(Connection("node-1", text),)).verdict()
    assert (trace.verdict, trace.forward[-1].place) == (LOST, "web-4")


def test_lost_before_the_choice_needs_witnesses_on_every_way():
    story = endpoints().seeing(
        lambda one: replace(one, forward=one.forward[:2], reply=(), sent=one.sent._replace(answer=""))
    )
    assert story.verdict().verdict == LOST
    for point in ("web-3:eth0", "web-4:eth0", f"node-1:{VETH_2}"):
        trace = story.deaf(point).verdict()
        assert trace.verdict == INCONCLUSIVE
        assert f"the capture at {point} dropped 3 frames" in reasons(trace)


# --- lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", range(1, 10))
def test_seen_up_to_a_hop_and_witnesses_beyond_is_lost(hops: int):
    trace = lost_after(hops, tries=2).verdict()
    assert trace.verdict == LOST
    assert trace.lost_between == (VXLAN.hops[hops - 1].point, VXLAN.hops[hops].point)
    assert [hop.seen for hop in trace.forward] == [True] * hops + [False] * (10 - hops)
    assert trace.cause is not None
    assert trace.cause.kind == "unknown"


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ({"dropped": 3}, "dropped 3 frames"),
        ({"dropped": None}, "does not say whether it dropped"),
        ({"armed": False}, "was not seen to work before"),
        ({"closed": False}, "was not seen to work after"),
        ({"error": "No such device"}, "failed: No such device"),
    ],
)
@pytest.mark.parametrize("point", ["node-2:eth0", "web-3:eth0"])
def test_without_a_witness_beyond_nothing_is_lost(point: str, why: dict[str, object], words: str):
    trace = lost_after(5).deaf(point, **why).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert f"the capture at {point} {words}" in reasons(trace)


def test_a_deaf_capture_where_it_was_seen_does_not_matter():
    assert lost_after(5).deaf("node-1:eth0", "node-1:cni0").verdict().verdict == LOST


def test_where_nobody_listened_nothing_is_lost():
    trace = lost_after(5).but(taps={WIRE_IN: None}).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "nobody listened at node-2:eth0; next: overlaynet status" in reasons(trace)


def test_a_link_that_is_down_is_a_witness():
    trace = lost_after(5).deaf("node-2:eth0", error="Network is down", dropped=None).verdict()
    assert (trace.verdict, trace.cause and trace.cause.kind) == (LOST, "link_down")


def test_every_try_must_be_lost():
    tries = (went(VXLAN, number=1, hops=5), went(VXLAN, number=2))
    trace = Story((VXLAN,), tries=tries).verdict()
    assert (trace.verdict, trace.tries) == (PROVED, 2)
    assert "1 of 2 packets lost between node-1:eth0 and node-2:eth0" in trace.notes


def test_what_some_tries_lost_is_told_with_figures():
    tries = (went(VXLAN, number=1, hops=5), went(VXLAN, number=2, hops=5), went(VXLAN, number=3))
    trace = Story((VXLAN,), tries=tries).having(reach=(Reach("node-1", "node-2", 20, 11, 12),)).verdict()
    figures = "11 of 20 test packets to UDP port 8472 and 12 of 20 of ICMP got from node-1 to node-2"
    assert f"2 of 3 packets lost between node-1:eth0 and node-2:eth0; {figures}" in trace.notes


def test_the_try_that_got_furthest_tells_where():
    tries = (went(VXLAN, number=1, hops=2), went(VXLAN, number=2, hops=7), went(VXLAN, number=3, hops=5))
    trace = Story((VXLAN,), tries=tries).verdict()
    assert trace.lost_between == (at("node-2:flannel.1"), at("node-2:cni0"))


def test_tries_that_were_lost_elsewhere_are_told():
    tries = (went(VXLAN, number=1, hops=5), went(VXLAN, number=2, hops=7), went(VXLAN, number=3, hops=5))
    trace = Story((VXLAN,), tries=tries).verdict()
    assert "2 of 3 packets lost between node-1:eth0 and node-2:eth0" in trace.notes
    assert "1 of 3 packets lost between node-2:flannel.1 and node-2:cni0" in trace.notes
    assert not any("packets lost" in note for note in lost_after(5, tries=3).verdict().notes)


def test_a_lost_and_an_undecided_try_are_undecided():
    unseen = replace(went(VXLAN, number=2), forward=(), reply=(), sent=Sent(2, "02", 44_778, 0))
    trace = Story((VXLAN,), tries=(went(VXLAN, hops=5), unseen)).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "not even seen at its sender web-1" in reasons(trace)


# --- predicted not to arrive ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSES)
def test_a_predicted_loss_that_was_seen_has_the_predicted_cause(kind: str):
    path = ending(VXLAN, 5, LOST, cause(kind, "node-1:eth0"))
    story = told(path, guards=(GUARD, WIRE_IN, at("web-3:eth0")))
    trace = story.verdict()
    assert (trace.verdict, trace.outcome, trace.cause) == (LOST, LOST, path.cause)
    assert trace.lost_between == (WIRE_OUT, WIRE_IN)


def test_a_predicted_loss_needs_a_witness_where_it_would_arrive():
    path = ending(VXLAN, 5, LOST, cause("fdb_wrong", "node-1:eth0"))
    trace = told(path, guards=(WIRE_IN, at("web-3:eth0"))).deaf("web-3:eth0").verdict()
    assert trace.verdict == INCONCLUSIVE
    assert told(path, guards=(WIRE_IN,)).verdict().verdict == LOST
    trace = told(path).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "nobody listened at web-3 for whether it arrives all the same" in reasons(trace)


def test_a_call_to_oneself_that_is_lost_is_heard_where_it_left():
    path = ending(VXLAN, 2, LOST, cause("unknown", "node-1:cni0"))
    question = replace(pictures.TO_WEB_3, dst=path.hops[0].inner.src, target="web-1")
    hops = tuple(replace(hop, inner=replace(hop.inner, dst=question.dst)) for hop in path.hops)
    story = told(replace(path, hops=hops), question=question)
    assert story.verdict().verdict == LOST
    assert story.deaf("web-1:eth0").verdict().verdict == INCONCLUSIVE


def test_to_an_address_that_nobody_has_there_is_nowhere_to_listen():
    path = ending(VXLAN, 3, LOST, cause("route_missing", "node-1:cni0"))
    question = replace(pictures.TO_WEB_3, dst=ip_address("10.244.9.9"), target="10.244.9.9")
    assert told(path, question=question).verdict().verdict == LOST


def test_the_rules_counter_shows_that_it_was_dropped():
    rule = "-s 10.244.1.2/32 -j DROP"
    path = ending(VXLAN, 3, DROPPED, cause("rule_drop", "node-1:cni0", rule))
    story = told(path)
    assert story.verdict().verdict == INCONCLUSIVE
    count = Count("node-1", "filter", "FORWARD", 1, rule, 1)
    assert story.having(counts=(count,)).verdict().verdict == LOST
    assert story.having(counts=(count._replace(packets=0),)).verdict().verdict == INCONCLUSIVE


def test_an_unsure_prediction_of_loss_is_only_likely():
    path = ending(VXLAN, 5, LOST, cause("fdb_wrong", "node-1:eth0"), certain=False)
    trace = told(path, guards=(WIRE_IN, at("web-3:eth0"))).verdict()
    assert (trace.verdict, trace.cause and trace.cause.certainty) == (LOST, LIKELY)


def test_lost_earlier_than_predicted_is_lost_there():
    path = ending(VXLAN, 5, LOST, cause("fdb_wrong", "node-1:eth0"))
    story = Story((path,), tries=(went(path, hops=2),), listening=(at("web-3:eth0"),))
    trace = story.verdict()
    assert (trace.verdict, trace.lost_between) == (LOST, (at(f"node-1:{VETH_1}"), at("node-1:cni0")))
    assert trace.cause is not None
    assert trace.cause.kind == "unknown"
    assert story.deaf("web-3:eth0").verdict().verdict == INCONCLUSIVE


def test_a_packet_that_arrives_against_the_state_is_inconclusive():
    path = ending(VXLAN, 5, LOST, cause("fdb_missing", "node-1:flannel.1", "fdb 02:0a:f4:02:00:00"))
    story = Story((path,), tries=(replace(went(VXLAN), reply=()),), guards=(GUARD, WIRE_IN, at("web-3:eth0")))
    trace = story.verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert "by fdb 02:0a:f4:02:00:00 at node-1:flannel.1: state and kernel disagree" in reasons(trace)


def test_an_answer_against_the_state_is_inconclusive():
    path = ending(VXLAN, 5, LOST, cause("fdb_missing"))
    trace = told(path, guards=(GUARD, at("web-3:eth0"))).seeing(answered("syn-ack")).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "syn-ack came back, though by the state it is lost" in reasons(trace)


def test_a_packet_that_goes_on_against_the_state_is_inconclusive():
    path = ending(VXLAN, 3, DROPPED, cause("rule_drop", "node-1:cni0", "-j DROP"))
    trace = Story((path,), tries=(went(VXLAN, hops=6),), guards=(WIRE_IN, at("web-3:eth0"))).verdict()
    assert (trace.verdict, trace.outcome) == (WRONG_PATH, LOST)  # also at points nobody foretold


# --- expectations ---------------------------------------------------------------------------------


def refused(outcome: str = REJECTED, expect: str = REJECTED) -> Story:
    """A service without endpoints: port unreachable."""
    path = replace(path_of(pictures.rejected()), outcome=outcome)
    return Story((path,), question=pictures.TO_SERVICE, tries=(went(path),), expect=expect).seeing(
        answered("icmp port-unreachable")
    )


def test_a_rejection_that_is_expected_is_proved():
    trace = refused().verdict()
    assert (trace.verdict, trace.outcome, trace.answer) == (PROVED, REJECTED, "icmp port-unreachable")


def test_a_rejection_that_is_not_expected_is_a_loss():
    trace = refused(expect=DELIVERED).verdict()
    assert (trace.verdict, trace.outcome, trace.cause and trace.cause.kind) == (LOST, REJECTED, "no_endpoints")


def test_a_rejection_that_nobody_heard_is_not_proved():
    silent = refused().seeing(lambda one: replace(one, reply=(), sent=one.sent._replace(answer="")))
    assert silent.verdict().verdict != PROVED


def test_a_drop_that_is_expected_is_proved_by_silence():
    path = ending(VXLAN, 3, DROPPED, cause("rule_drop", "node-1:cni0", "-j DROP"))
    story = told(path, guards=(GUARD, at("web-3:eth0")), expect=DROPPED)
    assert story.verdict().verdict == PROVED
    assert story.but(expect=REJECTED).verdict().verdict == LOST
    assert story.deaf("web-3:eth0").verdict().verdict == INCONCLUSIVE


def test_a_drop_of_which_a_hop_was_missed_is_lost_and_not_proved():
    path = ending(VXLAN, 3, DROPPED, cause("rule_drop", "node-1:cni0", "-j DROP"))
    story = told(path, guards=(at("web-3:eth0"),), expect=DROPPED)
    assert story.seeing(dropped_sighting(f"node-1:{VETH_1}", "in")).verdict().verdict == LOST


@pytest.mark.parametrize("expect", [REJECTED, DROPPED])
def test_what_arrives_though_it_should_not_is_wrong(expect: str):
    trace = healthy().but(expect=expect).verdict()
    assert (trace.verdict, trace.outcome) == (WRONG_PATH, DELIVERED)
    assert f"it was delivered, and {expect} was expected" in trace.notes


# --- the sender's own kernel ----------------------------------------------------------------------


def refused_at_home(path: Path, **more: object) -> Story:
    sent = Sent(1, "01", 44_778, 0, error="its own kernel has no route to 10.244.2.2 (ENETUNREACH)")
    return Story((path,), tries=(Followed(sent),), **more)


def test_a_predicted_refusal_at_home_is_a_loss():
    path = ending(VXLAN, 0, LOST, cause("route_missing", "web-1:eth0"))
    trace = refused_at_home(path).verdict()
    assert (trace.verdict, trace.cause, trace.lost_between) == (LOST, path.cause, None)


def test_a_predicted_refusal_at_home_may_be_expected():
    path = ending(VXLAN, 0, DROPPED, cause("rule_drop", "web-1:eth0", "-j DROP"))
    assert refused_at_home(path, expect=DROPPED).verdict().verdict == PROVED


def test_a_refusal_at_home_that_no_state_explains_is_inconclusive():
    trace = refused_at_home(VXLAN).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "web-1 could not send it: its own kernel has no route" in reasons(trace)


def test_a_refusal_at_home_that_the_state_after_explains_is_a_loss():
    path = ending(VXLAN, 0, LOST, cause("route_missing", "web-1:eth0"))
    story = refused_at_home(VXLAN, predict=foretelling(path)).having(after=world())
    assert (story.verdict().verdict, story.verdict().cause) == (LOST, path.cause)


def test_silence_at_home_is_no_refusal():
    """Nothing seen and no error: it may never have been sent."""
    path = ending(VXLAN, 0, DROPPED, cause("rule_drop", "web-1:eth0", "-j DROP"))
    story = Story((path,), tries=(Followed(Sent(1, "01", 44_778, 0)),), expect=DROPPED)
    assert story.verdict().verdict == INCONCLUSIVE
    heard = story.but(listening=(at("web-1:eth0"), at("web-3:eth0")))
    assert heard.verdict().verdict == PROVED
    assert heard.deaf("web-1:eth0").verdict().verdict == INCONCLUSIVE


def test_a_packet_that_was_never_seen_is_inconclusive():
    story = Story((VXLAN,), tries=(Followed(Sent(1, "01", 44_778, 0)),))
    trace = story.verdict()
    assert trace.verdict == INCONCLUSIVE
    assert trace.inconclusive_because[0].startswith(
        "it was not even seen at its sender web-1; next: overlaynet trace"
    )
    assert trace.tag == {"ip_id": None, "tcp_isn": None, "cookie": None}


def test_without_tries_or_paths_there_is_no_verdict():
    assert healthy().but(tries=()).verdict().verdict == INCONCLUSIVE
    assert healthy().but(paths=()).verdict().verdict == INCONCLUSIVE


# --- wrong path -----------------------------------------------------------------------------------


def test_a_packet_at_a_guard_is_on_the_wrong_path():
    node_3 = {"dst_mac": pictures.MACS["router"]}  # not the MAC of anybody who overhears: see below
    trace = (
        lost_after(5)
        .seeing(also_seen(str(GUARD), "in", 4, **node_3))
        .but(world=without_mac("node-3"))
        .verdict()
    )
    assert trace.verdict == WRONG_PATH
    assert trace.cause is not None
    assert trace.cause.kind == "fdb_wrong"
    assert [hop.seen for hop in trace.guards] == [True]
    assert [hop.point for hop in trace.forward if not hop.predicted] == [GUARD]


def without_mac(place: str) -> World:
    """A world in which nobody knows the MAC of a host's interface."""
    from helpers.traces import with_links

    here = world()
    return with_links(here, place, eth0=here.places[place].kernel.links["eth0"]._replace(mac=None))


def test_a_frame_that_a_host_overhears_is_a_note():
    trace = healthy().seeing(also_seen(str(GUARD), "in", 4)).verdict()
    assert trace.verdict == PROVED
    assert f"a copy was seen at {GUARD}, addressed to another MAC: flooded or overheard" in trace.notes


def test_a_frame_flooded_by_the_bridge_is_a_note():
    story = healthy().seeing(also_seen(f"node-1:{VETH_2}", "out", 1)).seeing(also_seen("web-2:eth0", "in", 1))
    trace = story.verdict()
    assert trace.verdict == PROVED
    assert sum(note.startswith("a copy was seen at") for note in trace.notes) == 2


def test_a_packet_that_only_got_flooded_is_lost_and_not_astray():
    trace = lost_after(2).seeing(also_seen("web-2:eth0", "in", 1)).verdict()
    assert trace.verdict == LOST


def test_a_packet_delivered_to_another_container_is_on_the_wrong_path():
    there = {"dst_mac": pictures.MACS["web-2"]}
    story = lost_after(2).seeing(also_seen(f"node-1:{VETH_2}", "out", 1, **there))
    story = story.seeing(also_seen("web-2:eth0", "in", 1, **there))
    trace = story.verdict()
    assert (trace.verdict, trace.outcome) == (WRONG_PATH, LOST)


def test_an_unsure_prediction_makes_no_way_wrong():
    story = Story((replace(VXLAN, certain=False),), tries=(went(VXLAN, hops=3),))
    stray = also_seen("node-1:eth1", "out", 2)
    assert story.seeing(stray).verdict().verdict == INCONCLUSIVE
    assert lost_after(3).seeing(stray).verdict().verdict == WRONG_PATH
    assert story.but(guards=(at("node-1:eth1"),)).seeing(stray).verdict().verdict == WRONG_PATH


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"src": ip_address("192.168.50.11")}, "src"),
        ({"dst": ip_address("10.244.2.3")}, "dst"),
        ({"dst_port": 80}, "dst_port"),
    ],
)
def test_other_headers_than_predicted_are_wrong_though_it_arrived(headers: dict[str, object], field: str):
    trace = healthy().seeing(altered("web-3:eth0", "in", **headers)).verdict()
    assert (trace.verdict, trace.outcome) == (WRONG_PATH, DELIVERED)
    assert trace.cause is not None
    assert f"its {field} was {headers[field]}" in trace.cause.found


def test_what_was_not_masqueraded_misses_a_rule():
    path = path_of(pictures.to_outside())
    question = pictures.to_outside().question
    story = Story((path,), question=question, tries=(went(path),))
    assert story.verdict().verdict == PROVED
    bare = story.seeing(altered("node-1:eth0", "out", src=question.src)).seeing(
        altered("outside:eth0", "in", src=question.src)
    )
    trace = bare.verdict()
    assert (trace.verdict, trace.cause and trace.cause.kind) == (WRONG_PATH, "rule_missing")


def test_other_headers_under_an_unsure_prediction_are_inconclusive():
    story = told(VXLAN, unread=("nft is not installed on node-1",)).seeing(
        altered("web-3:eth0", "in", src=ip_address("192.168.50.11"))
    )
    trace = story.verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert "the prediction is unsure: nft is not installed on node-1" in reasons(trace)


def test_other_headers_that_the_state_after_predicts_are_inconclusive():
    src = ip_address("192.168.50.11")
    hops = (*VXLAN.hops[:-1], replace(VXLAN.hops[-1], inner=replace(VXLAN.hops[-1].inner, src=src)))
    story = healthy().seeing(altered("web-3:eth0", "in", src=src)).having(after=world())
    trace = story.but(predict=foretelling(replace(VXLAN, hops=hops))).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "the state changed after the path was predicted" in reasons(trace)


def test_a_masquerades_port_agrees_with_any():
    hops = (*VXLAN.hops[:-1], replace(VXLAN.hops[-1], inner=replace(VXLAN.hops[-1].inner, src_port=None)))
    assert Story((replace(VXLAN, hops=hops),), tries=(went(VXLAN),)).verdict().verdict == PROVED


# --- gaps and order -------------------------------------------------------------------------------


def test_a_hop_missed_by_a_witness_is_inconclusive():
    trace = healthy().seeing(dropped_sighting("node-2:cni0", "out")).verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert "it came past node-2:cni0 unseen, though the capture there ran" in reasons(trace)


def test_a_hop_missed_by_a_deaf_capture_is_inconclusive():
    trace = healthy().seeing(dropped_sighting("node-2:cni0", "out")).deaf("node-2:cni0").verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "the capture at node-2:cni0 dropped 3 frames" in reasons(trace)


def moved(number: int, t_us: float) -> Callable[[Followed], Followed]:
    def change(one: Followed) -> Followed:
        seen = list(one.forward)
        seen[number] = seen[number]._replace(t_ns=round(t_us * 1000))
        return replace(one, forward=tuple(seen))

    return change


def test_hops_out_of_order_are_inconclusive():
    trace = healthy().seeing(moved(2, -5000)).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "ms before node-1:" in reasons(trace)


def test_equal_stamps_and_those_of_two_processors_are_in_order():
    assert healthy().seeing(moved(2, 10)).seeing(moved(3, 9)).verdict().verdict == PROVED


def test_clocks_of_two_machines_are_not_compared():
    late = healthy().but(one_clock=False)
    for number in range(5, 10):
        late = late.seeing(moved(number, -9_000 + number))
    trace = late.verdict()
    assert trace.verdict == PROVED
    assert [hop.t_us is None for hop in trace.forward] == [True] * 5 + [False] * 5
    assert late.but(one_clock=True).verdict().verdict == INCONCLUSIVE


def test_some_fragments_are_not_the_packet():
    def torn(one: Followed) -> Followed:
        return replace(one, forward=(*one.forward[:-1], one.forward[-1]._replace(complete=False, fragments=2)))

    story = (
        lost_after(10)
        .seeing(torn)
        .seeing(lambda one: replace(one, reply=(), sent=one.sent._replace(answer="")))
    )
    trace = story.verdict()
    assert (trace.verdict, trace.lost_between) == (LOST, (VXLAN.hops[8].point, VXLAN.hops[9].point))
    assert trace.forward[-1].note == "2 fragments, which are not all"


# --- the answer -----------------------------------------------------------------------------------


def answer_lost(back: int) -> Story:
    return Story((VXLAN,), tries=(went(VXLAN, back=back),))


@pytest.mark.parametrize("back", range(1, 10))
def test_an_answer_that_vanished_between_witnesses_is_lost(back: int):
    assert VXLAN.reply is not None
    trace = answer_lost(back).verdict()
    assert (trace.verdict, trace.outcome) == (LOST, DELIVERED)
    assert trace.lost_between == (VXLAN.reply.hops[back - 1].point, VXLAN.reply.hops[back].point)
    assert "the packet arrived, its answer did not" in trace.notes


def test_an_answer_that_was_never_given_is_lost_at_its_giver():
    trace = answer_lost(0).verdict()
    assert (trace.verdict, trace.lost_between) == (LOST, (at("web-3:eth0"), at("web-3:eth0")))


def test_a_refusing_answer_that_is_lost_is_no_refusal_of_the_packet():
    """A closed port answers with a RST, which the underlay loses like anything else."""
    assert VXLAN.reply is not None
    refusing = tuple(replace(hop, inner=replace(hop.inner, tcp=Tcp(0, 0, "RA"))) for hop in VXLAN.reply.hops)
    path = replace(VXLAN, answer="rst", reply=replace(VXLAN.reply, hops=refusing))
    story = Story((path,), tries=(went(path, back=5),)).having(reach=(Reach("node-2", "node-1", 20, 4, 4),))
    trace = story.verdict()
    assert (trace.verdict, trace.outcome, trace.lost_between) == (LOST, DELIVERED, (WIRE_IN, WIRE_OUT))
    assert trace.cause is not None
    assert (trace.cause.kind, trace.cause.point) == ("underlay_loss", WIRE_OUT)


def test_an_answer_that_a_deaf_capture_may_have_missed_is_inconclusive():
    trace = answer_lost(5).deaf("node-1:cni0").verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert reasons(trace).startswith("of the answer: the capture at node-1:cni0 dropped 3 frames")


def test_an_answer_that_came_but_was_missed_on_its_way_is_inconclusive():
    story = healthy().seeing(dropped_sighting("web-1:eth0", "in"))
    trace = story.deaf("web-1:eth0").verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert "syn-ack came back, but of its way: the capture at web-1:eth0 dropped" in reasons(trace)
    assert "it came past web-1:eth0 unseen" in reasons(story.verdict())
    between = healthy().seeing(dropped_sighting("node-1:flannel.1", "in")).verdict()
    assert "of the answer: it came past node-1:flannel.1 unseen" in reasons(between)


def test_another_answer_than_predicted_is_inconclusive():
    def rst(one: Followed) -> Followed:
        reply = tuple(s._replace(frame=replace(s.frame)) for s in one.reply)
        return replace(one, reply=reply, sent=one.sent._replace(answer="rst"))

    trace = healthy().seeing(rst).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "web-3 answered rst, and by the state syn-ack: they disagree" in reasons(trace)


def test_another_answer_that_the_state_after_predicts_is_a_loss():
    after = ending(VXLAN, 9, REJECTED, cause("rule_reject", "node-2:cni0"), answer="icmp port-unreachable")
    story = healthy().seeing(answered("icmp port-unreachable")).having(after=world())
    trace = story.but(predict=foretelling(after)).verdict()
    assert trace.verdict == INCONCLUSIVE or (trace.verdict, trace.outcome) == (LOST, REJECTED)


def test_an_answer_that_is_lost_by_the_state_is_lost_with_its_cause():
    assert VXLAN.reply is not None
    back = ending(VXLAN.reply, 4, LOST, cause("fdb_missing", "node-2:flannel.1"))
    path = replace(VXLAN, reply=back)
    story = Story((path,), tries=(went(path, back=4, answer=""),), listening=(at("web-1:eth0"),))
    story = story.seeing(answered(""))
    trace = story.verdict()
    assert (trace.verdict, trace.outcome, trace.cause) == (LOST, DELIVERED, back.cause)
    assert trace.lost_between == (at("node-2:flannel.1"), at("node-1:eth0"))
    assert story.seeing(answered("syn-ack")).verdict().verdict == INCONCLUSIVE


# --- the state after ------------------------------------------------------------------------------


def foretelling(*paths: Path) -> Callable[..., Prediction]:
    """A predictor that says this of any state."""
    return lambda world, question: Prediction(question, paths)


def test_a_loss_that_the_state_after_predicts_has_its_cause():
    after = ending(VXLAN, 5, LOST, cause("fdb_wrong"))
    trace = lost_after(5).having(after=world()).but(predict=foretelling(after)).verdict()
    assert (trace.verdict, trace.cause) == (LOST, after.cause)
    assert "the state changed after the path was predicted" in trace.notes


@pytest.mark.parametrize("hops", [3, 7])
def test_a_state_after_that_ends_the_packet_elsewhere_is_not_the_cause(hops: int):
    after = ending(VXLAN, hops, LOST, cause("fdb_wrong"))
    trace = lost_after(5).having(after=world()).but(predict=foretelling(after)).verdict()
    assert (trace.verdict, trace.cause and trace.cause.kind) == (LOST, "unknown")


def test_a_state_after_that_changed_nothing_is_not_the_cause():
    trace = lost_after(5).having(after=world()).but(predict=foretelling(VXLAN)).verdict()
    assert trace.cause is not None
    assert trace.cause.kind == "unknown"
    assert "read once more" in trace.cause.found


def test_an_answer_that_the_state_after_loses_has_its_cause():
    assert VXLAN.reply is not None
    back = ending(VXLAN.reply, 5, LOST, cause("fdb_wrong", "node-2:flannel.1"))
    after = replace(VXLAN, reply=back)
    trace = answer_lost(5).having(after=world()).but(predict=foretelling(after)).verdict()
    assert (trace.verdict, trace.cause) == (LOST, back.cause)


# --- refusals on the way --------------------------------------------------------------------------


def refusing(hops: int, speaker: int, **headers: object) -> Story:
    """Lost after so many hops, and an ICMP error (or a RST) that goes back from the hop numbered `speaker`."""
    hop = VXLAN.hops[speaker]
    packet = answer_headers(hop, **headers)
    said = Sighting(hop.point, "out", 90_000, replace(frame(hop), outer=packet, vni=None, inner=None))
    return lost_after(hops).seeing(lambda one: replace(one, reply=(said,)))


def test_an_icmp_error_is_evidence_of_loss_even_where_captures_are_deaf():
    story = refusing(3, 2, protocol="icmp", icmp=Icmp(3, 0)).deaf("node-1:flannel.1", "web-3:eth0")
    trace = story.verdict()
    assert (trace.verdict, trace.outcome, trace.answer) == (LOST, REJECTED, "icmp net-unreachable")
    assert trace.lost_between == (at("node-1:cni0"), at("node-1:flannel.1"))
    assert trace.cause is not None
    assert trace.cause.kind == "route_missing"


def test_an_error_from_the_destination_itself_is_none_on_the_way():
    story = refusing(3, 9, protocol="icmp", icmp=Icmp(3, 3)).deaf("node-1:flannel.1")
    assert story.verdict().verdict == INCONCLUSIVE


# --- what is unread, and problems -----------------------------------------------------------------


def test_a_host_that_could_not_be_looked_at_is_named():
    story = lost_after(5).deaf("node-2:eth0", error="ssh: connection refused")
    trace = story.but(world=with_node(world(), "node-2", error="ssh: connection refused")).verdict()
    assert trace.verdict == INCONCLUSIVE
    assert "node-2 could not be looked at: ssh: connection refused; next: overlaynet status" in reasons(trace)


def test_problems_of_an_undecided_trace_are_reasons():
    trace = lost_after(5).deaf("node-2:eth0").having(problems=("the probe on node-2 failed: killed",)).verdict()
    assert trace.inconclusive_because[-1] == "the probe on node-2 failed: killed"


def test_an_answer_shows_that_it_arrived_though_it_was_not_seen():
    trace = lost_after(5).seeing(answered("syn-ack")).verdict()
    assert (trace.verdict, trace.outcome) == (INCONCLUSIVE, DELIVERED)
    assert "syn-ack came back, but it was not seen at node-2:eth0" in reasons(trace)


def test_every_reason_says_what_to_do_next():
    for story in (lost_after(5).deaf("node-2:eth0"), healthy().seeing(dropped_sighting("node-2:cni0", "out"))):
        trace = story.verdict()
        assert trace.inconclusive_because
        assert all("; next: overlaynet " in reason for reason in trace.inconclusive_because)


# --- for any evidence -----------------------------------------------------------------------------

POINTS = sorted({str(hop.point) for hop in VXLAN.hops})
REASONS = st.sampled_from(
    [{"dropped": 1}, {"dropped": None}, {"armed": False}, {"closed": False}, {"error": "No such device"}]
)


@st.composite
def subsets(draw: st.DrawFn) -> Followed:
    """The healthy packet with some sightings taken away, in any order, some twice."""
    one = went(VXLAN)
    there = draw(st.lists(st.sampled_from(one.forward), max_size=14))
    back = draw(st.lists(st.sampled_from(one.reply), max_size=14))
    answer = draw(st.sampled_from(["", "syn-ack"]))
    return replace(one, forward=tuple(there), reply=tuple(back), sent=one.sent._replace(answer=answer))


deafness = st.dictionaries(st.sampled_from(POINTS), REASONS, max_size=4)
outcomes = st.sampled_from([DELIVERED, REJECTED, DROPPED])
several = st.lists(subsets(), min_size=1, max_size=3)


def with_deafness(story: Story, deaf: dict[str, dict[str, object]]) -> Story:
    for point, why in deaf.items():
        story = story.deaf(point, **why)
    return story


@given(several, deafness)
def test_evidence_taken_from_a_healthy_packet_never_makes_its_way_wrong(tries, deaf):
    trace = with_deafness(Story((VXLAN,), tries=tuple(tries)), deaf).verdict()
    assert trace.verdict != WRONG_PATH


@given(several, deafness)
def test_a_packet_is_lost_only_between_witnesses(tries, deaf):
    trace = with_deafness(Story((VXLAN,), tries=tuple(tries)), deaf).verdict()
    if trace.verdict == LOST:
        way = trace.reply if trace.outcome == DELIVERED else trace.forward
        last = max((n for n, hop in enumerate(way) if hop.seen), default=-1)
        assert not {str(hop.point) for hop in way[last + 1 :]} & set(deaf)


@given(st.integers(0, 10), st.sampled_from(POINTS), REASONS)
def test_a_needed_witness_that_is_missing_is_never_a_loss(hops, deaf, why):
    trace = lost_after(hops).deaf(deaf, **why).verdict()
    if deaf in {str(hop.point) for hop in VXLAN.hops[hops:]}:
        assert trace.verdict == INCONCLUSIVE


@given(several, deafness, st.integers(0, 10), st.sampled_from([REJECTED, DROPPED, LOST]))
def test_what_is_predicted_not_to_arrive_is_never_proved_to(tries, deaf, hops, outcome):
    path = ending(VXLAN, hops, outcome, cause("rule_drop"))
    trace = with_deafness(Story((path,), tries=tuple(tries), listening=(at("web-3:eth0"),)), deaf).verdict()
    assert trace.verdict != PROVED


@given(several, deafness, outcomes, st.booleans(), st.randoms(use_true_random=False))
def test_the_verdict_is_always_there_and_always_the_same(tries, deaf, expect, one_clock, random):
    paths = [VXLAN, ending(VXLAN, 4, LOST, cause("fdb_missing")), *pictures.four_ways().paths]
    random.shuffle(paths)
    story = with_deafness(Story(tuple(paths), tries=tuple(tries), expect=expect, one_clock=one_clock), deaf)
    first, second = story.verdict(), story.verdict()
    assert first == second
    assert first.verdict in (PROVED, LOST, WRONG_PATH, INCONCLUSIVE)
    assert bool(first.inconclusive_because) == (first.verdict == INCONCLUSIVE)


@given(several, st.randoms(use_true_random=False))
def test_the_order_in_which_sightings_are_listed_does_not_matter(tries, random):
    def shuffled(one: Followed) -> Followed:
        ways = [list(way) for way in (one.forward, one.reply)]
        for way in ways:
            random.shuffle(way)
        return replace(one, forward=tuple(ways[0]), reply=tuple(ways[1]))

    story = Story((VXLAN,), tries=tuple(tries))
    assert story.verdict().verdict == story.seeing(shuffled).verdict().verdict
