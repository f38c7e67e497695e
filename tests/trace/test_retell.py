"""Paths told as they were seen."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import pictures
from helpers.traces import GUARD, Story, also_seen, altered, at, healthy, lost_after, path_of, went

from overlaynet.trace.model import Count

pytestmark = pytest.mark.unit

VXLAN = path_of(pictures.vxlan())


def test_captured_headers_win_over_predicted_ones():
    hops = tuple(replace(h, inner=replace(h.inner, ip_id=None)) for h in VXLAN.hops)
    trace = Story((replace(VXLAN, hops=hops),), tries=(went(VXLAN, hops=5),)).verdict()
    assert [hop.inner.ip_id for hop in trace.forward] == [22_852] * 5 + [None] * 5


def test_times_are_since_the_first_sighting():
    trace = healthy().verdict()
    assert [hop.t_us for hop in trace.forward] == [float(10 * n) for n in range(10)]
    assert trace.reply[0].t_us == 500.0


def test_changes_are_those_that_were_seen():
    path = path_of(pictures.virtual_ip())
    other = ip_address("10.244.2.77")
    story = Story((path,), question=pictures.TO_SERVICE, tries=(went(path),))
    changes = {c.field: c for c in story.verdict().forward[2].changes}
    assert (changes["dst"].after, changes["dst"].reason) == ("10.244.2.2", "DNAT")
    changed = story.seeing(altered("node-1:cni0", "in", dst=other)).verdict().forward[2].changes
    assert {c.field: c for c in changed}["dst"].after == "10.244.2.77"


def test_wrapping_is_a_change():
    wrapped = {c.field: c for c in healthy().verdict().forward[4].changes}
    vxlan = "vxlan 1 192.168.50.11 → 192.168.50.12"
    assert (wrapped["encapsulation"].before, wrapped["encapsulation"].after) == (None, vxlan)


def test_rules_are_told_with_what_they_counted():
    path = path_of(pictures.virtual_ip())
    rule = path.hops[2].why[0]
    bare = replace(
        path, hops=tuple(replace(h, why=tuple(w._replace(packets=None) for w in h.why)) for h in path.hops)
    )
    story = Story((bare,), question=pictures.TO_SERVICE, tries=(went(path),))
    trace = story.having(counts=(Count("node-1", "nat", "OVL-SEP", 2, rule.text, 1),)).verdict()
    assert trace.forward[2].why[0].packets == 1
    assert story.verdict().forward[2].why[0].packets is None
    assert trace.counts[0].packets == 1


def test_what_nobody_foretold_is_told_by_time():
    trace = healthy().seeing(also_seen(str(GUARD), "in", 4, t_us=45)).verdict()
    assert [hop.point for hop in trace.forward].index(GUARD) == 5
    assert [(hop.predicted, hop.seen, hop.t_us) for hop in trace.forward if hop.point == GUARD] == [
        (False, True, 45.0)
    ]
    assert [hop.seen for hop in trace.guards] == [True]


def test_a_hop_that_nobody_could_see_is_neither_seen_nor_unseen():
    trace = (
        lost_after(5)
        .deaf("node-2:eth0")
        .but(taps={**lost_after(5).deaf("node-2:eth0").taps, at("web-3:eth0"): None})
        .verdict()
    )
    assert [hop.seen for hop in trace.forward] == [True] * 5 + [None, False, False, False, None]


def test_a_guard_is_told_with_what_it_did_not_see():
    (guard,) = healthy().verdict().guards
    assert (guard.point, guard.seen, guard.note) == (GUARD, False, "")
    (deaf,) = healthy().deaf(str(GUARD)).verdict().guards
    assert (deaf.seen, deaf.note) == (None, "no witness")


def test_what_a_tunnel_holds_is_told_as_captured():
    trace = lost_after(5).seeing(altered("node-1:eth0", "out", ip_id=77)).verdict()
    assert trace.forward[4].inner.ip_id == 77
    assert trace.forward[4].outer == VXLAN.hops[4].outer
