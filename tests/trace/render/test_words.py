"""What is said of a hop, as real predictions and real captures have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import pictures

from overlaynet.trace.model import Change, Hop, Why
from overlaynet.trace.render.story import deciding, trace_story
from overlaynet.trace.render.words import Role, change_words, flow, roles, translations

pytestmark = pytest.mark.unit


def changed(*changes: Change, hop: Hop | None = None) -> Hop:
    return replace(hop or pictures.there()[3], changes=changes)


MACS = (Change("src_mac", "a", "b", "next hop 10.1.1.1"), Change("dst_mac", "c", "d", "next hop 10.1.1.1"))
TTL = Change("ttl", "64", "63", "routed")
DNAT = (Change("dst", "1.1.1.1", "2.2.2.2", "DNAT"), Change("dst_port", "80", "8080", "DNAT"))
HIDDEN = (Change("src", "1.1.1.1", "2.2.2.2", "masquerade"), Change("src_port", "80", "8080", ""))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((*MACS, TTL), "ttl 63: routed"),
        (MACS, "new MACs: next hop 10.1.1.1"),
        ((TTL._replace(reason=""),), "ttl 63"),
        ((TTL._replace(after=None, reason="by a router"),), "ttl falls: by a router"),
        ((*MACS, *HIDDEN, *DNAT, TTL), "DNAT, masquerade, ttl 63: routed"),
        ((Change("src_port", "1", "2", ""),), "src_port"),
        ((Change("fragments", None, "3 of at most 1444 bytes", "too long"),),
         "cut into 3 of at most 1444 bytes: too long"),
        ((Change("fragments", None, "3", ""),), "cut into 3 fragments"),
        ((Change("fragments", "several", None, "put together for conntrack"),), "put together for conntrack"),
        ((Change("fragments", "several", None, ""),), "put together again"),
        ((Change("length", "60", "110", "options"),), "+50 B: options"),
        ((Change("length", None, "?", ""),), "changed"),
        ((), ""),
    ],
)  # fmt: skip
def test_changes_in_words(changes: tuple[Change, ...], words: str):
    assert change_words(changed(*changes)) == words


def test_what_a_tunnel_costs_is_worked_out_of_lengths():
    wire, arrived, inside = (replace(pictures.there()[n], changes=()) for n in (4, 5, 6))
    into = changed(Change("encapsulation", None, "vxlan 1", ""), hop=wire)
    out = changed(Change("encapsulation", "vxlan 1", None, ""), hop=inside)
    assert change_words(into) == "+50 B: VXLAN vni 1"
    assert change_words(out, arrived) == "−50 B: unwrapped"
    assert change_words(out) == "unwrapped"


def test_a_rule_that_translates_decides_before_the_jump_to_it():
    jump = Why("rule", "nat PREROUTING 1", "-j OVL-SERVICES", None, "c1")
    dnat = Why("rule", "nat OVL-SEP-X 1", "-p tcp -j DNAT --to-destination 2.2.2.2:8080", None, "c2")
    route = Why("route", "r", "r", None, "c3")
    assert deciding(replace(changed(*DNAT), why=(jump, dnat, route))) == dnat
    assert deciding(replace(changed(*DNAT), why=(jump, route))) is None
    assert deciding(replace(changed(TTL), why=(jump, dnat, route))) == route
    assert deciding(replace(changed(TTL), why=(jump,))) == jump


def test_the_way_back_has_marks_only_for_nat():
    trace = pictures.virtual_ip()
    routed = tuple(
        replace(hop, changes=hop.changes or (TTL,)) if hop.iface == "cni0" else hop for hop in trace.reply
    )
    story = trace_story(replace(trace, reply=routed))
    assert [step.mark for step in story.reply if step.mark] == [6]
    assert translations(story.reply[8].hop) == "un-DNAT by conntrack"


def test_roles_by_what_is_next_to_what():
    there = pictures.there()
    found = roles(there)
    by_name = {(point.place, point.iface): role for point, role in found.items()}
    assert by_name["web-1", "eth0"] is Role.CONTAINER
    assert by_name["node-1", pictures.VETH_1] is Role.PORT
    assert by_name["node-1", "cni0"] is Role.BRIDGE
    assert by_name["node-1", "flannel.1"] is Role.TUNNEL
    assert by_name["node-2", "eth0"] is Role.WIRE


def test_roles_of_a_way_cut_short():
    there = pictures.there()
    assert roles(there[:4])[there[3].point] is Role.TUNNEL
    out = replace(there[3], iface="eth7")
    assert roles((*there[:3], out))[out.point] is Role.WIRE
    assert roles(there[:3])[there[2].point] is Role.BRIDGE


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "10.244.1.2:44778 → 10.244.2.2:8080"),
        ({"src_port": None}, "10.244.1.2:? → 10.244.2.2:8080"),
        ({"protocol": "icmp", "src_port": None, "dst_port": None}, "10.244.1.2 → 10.244.2.2"),
        ({"offset": 1480, "src_port": None, "dst_port": None}, "10.244.1.2 → 10.244.2.2"),
        ({"src": None, "dst": None}, "02:0a:f4:00:01:02 → 02:0a:f4:00:01:01"),
    ],
)
def test_who_to_whom(fields: dict, text: str):
    assert flow(replace(pictures.there()[0].inner, **fields)) == text


def test_the_last_that_sends_is_no_wire_where_its_host_has_one():
    way = pictures.there()[:8]
    assert way[-1].iface == "cni0"
    assert roles(way)[way[-1].point] is Role.BRIDGE
