"""Hops and sightings, side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import pictures
from helpers.traces import path_of, sightings

from overlaynet.trace.align import follow
from overlaynet.trace.model import Icmp, Tcp

pytestmark = pytest.mark.unit

HOPS = path_of(pictures.vxlan()).hops
FIRST = HOPS[0]


def ttl(hop, value: int):
    return replace(hop, inner=replace(hop.inner, ttl=value))


def test_each_hop_has_its_sighting():
    course = follow(HOPS, reversed(sightings(HOPS)))
    assert [step.sighting.numbers for step in course.steps] == [(n,) for n in range(10)]
    assert (course.last, course.rest, course.missed, course.strays) == (9, (), (), ())
    assert course.is_whole


def test_a_point_that_is_passed_twice_takes_what_agrees_with_each_passing():
    """As a packet that a service sends back to where it came from."""
    back = replace(FIRST, inner=replace(FIRST.inner, dst=FIRST.inner.src))
    hops = (FIRST, HOPS[1], back)
    only_second = sightings([back])
    course = follow(hops, only_second)
    assert [step.is_seen for step in course.steps] == [False, False, True]
    both = follow(hops, sightings([back, FIRST]))
    assert [step.differences for step in both.steps] == [(), (), ()]
    assert [step.is_seen for step in both.steps] == [True, False, True]


def test_passings_that_look_alike_go_by_time():
    course = follow((FIRST, FIRST), sightings([FIRST, FIRST]))
    assert [step.sighting.t_ns for step in course.steps] == [0, 10_000]


def test_what_differs_belongs_to_a_hop_only_if_nothing_agrees():
    other = replace(FIRST, inner=replace(FIRST.inner, dst_port=1))
    course = follow((FIRST,), sightings([other, FIRST]))
    assert course.steps[0].differences == ()
    assert [stray.frame.packet.dst_port for stray in course.strays] == [1]
    (step,) = follow((FIRST,), sightings([other])).different
    assert step.differences == (("dst_port", "8080", "1"),)


def test_the_other_direction_is_another_hop():
    course = follow((FIRST,), [sightings([FIRST])[0]._replace(direction="in")])
    assert (course.last, len(course.strays)) == (-1, 1)


def test_an_optional_hop_is_never_owed():
    optional = tuple(replace(hop, optional=True) for hop in HOPS)
    course = follow((*HOPS[:3], *optional[3:5], HOPS[5]), sightings(HOPS[:3]))
    assert [step.hop.point for step in course.rest] == [HOPS[5].point]
    ended = follow((*HOPS[:3], *optional[3:5]), sightings(HOPS[:3]))
    assert ended.rest == ()
    assert ended.is_whole


def test_a_packet_of_which_fragments_lack_was_not_seen():
    torn = sightings(HOPS[:1])[0]._replace(complete=False, fragments=2)
    course = follow(HOPS[:1], [torn])
    assert (course.last, course.steps[0].sighting) == (-1, torn)
    whole = torn._replace(complete=True, t_ns=99)
    assert follow(HOPS[:1], [torn, whole]).steps[0].sighting == whole


@pytest.mark.parametrize(
    ("predicted", "seen", "differ"),
    [
        ({"tcp": Tcp(0, 0, "S")}, {"tcp": Tcp(1, 0, "SEC")}, False),
        ({"tcp": Tcp(0, 0, "SA")}, {"tcp": Tcp(1, 1, "RA")}, True),
        ({"tcp": None}, {"tcp": Tcp(1, 1, "RA")}, False),
        ({"icmp": Icmp(3, 3)}, {"icmp": Icmp(3, 3, mtu=7)}, False),
        ({"icmp": Icmp(3, 3)}, {"icmp": Icmp(3, 13)}, True),
        ({"src_port": None}, {"src_port": 4711}, False),
        ({"src_port": 80}, {"src_port": None}, False),
        ({"src_port": 80}, {"src_port": 81}, True),
        ({"protocol": "udp"}, {"protocol": "tcp"}, True),
        ({"length": 60, "ip_id": 1, "df": True}, {"length": 9000, "ip_id": 2, "df": False}, False),
    ],
)
def test_what_is_compared(predicted: dict[str, object], seen: dict[str, object], differ: bool):
    hop = replace(FIRST, inner=replace(FIRST.inner, **predicted))
    (sighting,) = sightings([replace(FIRST, inner=replace(FIRST.inner, **seen))])
    assert bool(follow((hop,), [sighting]).different) == differ


@pytest.mark.parametrize(
    ("outer", "vni", "field"),
    [
        ({"dst": HOPS[0].inner.dst}, 1, "outer dst"),
        ({"src": HOPS[0].inner.dst}, 1, "outer src"),
        ({}, 2, "vni"),
        (None, None, "encapsulation"),
        ({"ttl": 1, "src_port": 1, "ip_id": 9}, 1, None),
    ],
)
def test_a_tunnel_is_compared_too(outer: dict[str, object] | None, vni: int | None, field: str | None):
    wire = HOPS[4]
    assert wire.outer is not None
    other = replace(wire, outer=None if outer is None else replace(wire.outer, **outer), vni=vni)
    course = follow((wire,), sightings([other]))
    assert [one.field for step in course.different for one in step.differences] == ([field] if field else [])
