"""The last known value of every key, whatever order events come in."""

from __future__ import annotations

import pytest
from helpers.model import KEYS, key_of, lease, network, stored, workload
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.view import MAX_TOMBSTONES, View
from overlaynet.events import Changed, Gone, Synced
from overlaynet.model import Settings, Unreadable

pytestmark = pytest.mark.unit

KEY = key_of(lease(2))
BAD = Unreadable("not JSON")


def view_of(*items) -> View:
    return View.of(items, KEYS, 10)


def test_answer_that_the_watch_has_overtaken_changes_nothing():
    view = view_of()
    view.fold(Changed(stored(lease(2, node_name="newer"), 12)))
    assert view.fold(Changed(stored(lease(2), 11))) == set()
    assert view.leases[KEY].value.node_name == "newer"


def test_late_echo_does_not_bring_a_deleted_key_back():
    view = view_of(stored(lease(2)))
    view.fold(Gone(KEY, 12))
    assert view.fold(Changed(stored(lease(2), 11))) == set()
    assert view.leases == {}


def test_late_deletion_does_not_remove_a_key_that_was_made_again():
    view = view_of(stored(lease(2), 12))
    assert view.fold(Gone(KEY, 11)) == set()
    assert KEY in view.leases


@given(st.permutations([("put", 3), ("gone", 4), ("put", 5), ("put", 7)]), st.data())
def test_events_of_one_key_in_any_order_and_repeated_end_in_the_same_state(order, data):
    view = view_of()
    for what, revision in order + data.draw(st.lists(st.sampled_from(order), max_size=4)):
        view.fold(Gone(KEY, revision) if what == "gone" else Changed(stored(lease(2), revision)))
    assert view.leases[KEY].mod_revision == 7


def test_listing_names_the_keys_that_differ():
    view = view_of(stored(lease(2)), stored(lease(3)))
    changed = view.fold(Synced(20, (stored(lease(3)), stored(lease(4)))))
    assert {key for key in changed if key.startswith(KEYS.subnets)} == {KEY, key_of(lease(4))}


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(Changed(stored(BAD, 12, key=KEY)), id="by-an-event"),
        pytest.param(Synced(12, (stored(BAD, 12, key=KEY),)), id="by-a-listing"),
    ],
)
def test_value_that_became_unreadable_removes_nobody(event):
    view = view_of(stored(lease(2)))
    view.fold(event)
    assert view.leases[KEY].value == lease(2)
    assert view.problems == {KEY: "not JSON"}
    assert view.mod_revision(KEY) == 12


def test_value_that_reads_well_again_is_no_problem_any_more():
    view = view_of(stored(lease(2)), stored(BAD, 12, key=KEY))
    view.fold(Changed(stored(lease(2), 13)))
    assert view.problems == {}


def test_key_that_was_never_readable_is_absent():
    view = view_of(stored(BAD, 12, key=KEY))
    assert view.leases == {}


def test_unreadable_settings_leave_the_last_good_ones():
    good = stored(Settings(node_ttl_s=99), key=KEYS.settings)
    view = view_of(good)
    view.fold(Synced(20, (stored(BAD, 12, key=KEYS.settings),)))
    assert view.settings.node_ttl_s == 99
    view.fold(Gone(KEYS.settings, 30))
    assert view.settings == Settings()


def test_first_good_network_stays_in_force():
    first, other = network(), network("10.1.0.0/16")
    view = view_of(stored(first))
    view.fold(Changed(stored(other, 12)))
    assert (view.network, view.offered) == (first, other)
    view.fold(Gone(KEYS.network_config, 13))
    assert (view.network, view.offered) == (first, None)


def test_workloads_of_a_node_follow_every_event():
    mine, other = workload(1, 2), workload(2, 2)
    view = view_of(stored(mine), stored(other))
    assert list(view.workloads_of("node-1")) == [mine]
    view.fold(Changed(stored(workload(1, 2, ready=False), 12)))
    assert [one.ready for one in view.workloads_of("node-1")] == [False]
    view.fold(Gone(key_of(mine), 13))
    assert list(view.workloads_of("node-1")) == []
    view.fold(Synced(20, (stored(mine),)))
    assert list(view.workloads_of("node-1")) == [mine]
    assert list(view.workloads_of("node-2")) == []


def test_memory_of_deletions_is_bounded():
    view = view_of()
    for number in range(MAX_TOMBSTONES + 10):
        view.fold(Gone(f"{KEYS.workloads}node-1/default/w{number}", number))
    assert len(view.tombstones) == MAX_TOMBSTONES
    assert f"{KEYS.workloads}node-1/default/w0" not in view.tombstones
