"""Which endpoints that vanish are believed to be gone, and which stay in use for a while."""

from __future__ import annotations

import pytest
from helpers.model import KEYS, endpoint_slice, key_of, node, pod, service, stored
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.departures import HOLD_DOWN_S, TOGETHER_S
from overlaynet.core.services import members_of
from overlaynet.core.vanishing import APART_S, Vanishing
from overlaynet.core.view import View
from overlaynet.events import Changed, Gone, Synced
from overlaynet.model import NodeRecord, Workload

pytestmark = pytest.mark.unit

WEB = KEYS.service("default/web")


class World:
    """Service web on a cluster in which we are node 1 and serve nothing ourselves."""

    def __init__(self, *records, nodes: int = 9) -> None:
        every = [service(), *(node(n) for n in range(1, nodes + 1)), *records]
        self.view = View.of(map(stored, every), KEYS, 10)
        self.vanishing = Vanishing(self.view, "node-1")
        self.revision, self.now = 10, 0.0

    def hear(self, event, *, new_history: bool = False) -> None:
        at_stake = self.vanishing.at_stake(event)
        self.view.fold(event)
        self.vanishing.follow(event, at_stake, self.now, new_history=new_history)
        self.view.index.take_touched()

    def put(self, *values) -> None:
        for value in values:
            self.revision += 1
            self.hear(Changed(stored(value, self.revision)))

    def gone(self, *keys: str) -> None:
        """All at one revision."""
        self.revision += 1
        for key in keys:
            self.hear(Gone(key, self.revision))

    def dies(self, number: int, *, node_first: bool = True) -> None:
        """A node's lease runs out."""
        keys = [key_of(one) for one in self.view.workloads_of(f"node-{number}")]
        last = key_of(node(number))
        self.gone(*([last, *keys] if node_first else [*keys, last]))

    def listed(self, *values, new_history: bool = False) -> None:
        self.revision += 1
        items = tuple(stored(value, self.revision) for value in values)
        self.hear(Synced(self.revision, items), new_history=new_history)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.vanishing.let_go(self.now)

    @property
    def used(self) -> list[str]:
        """Where the service leads; stale ones with a question mark."""
        item = self.view.index.services.get(WEB)
        members = members_of(self.view, WEB, item.value, [], "node-1") if item else None
        if members is None:
            return ["no service"]
        names = [f"{w.node[5:]}.{w.name[4:]}" for w in members.workloads]
        names += [f"{w.node[5:]}.{w.name[4:]}?" for w in members.stale]
        return sorted(names + [str(e.ip) for one in members.slices for e in one.endpoints])


@pytest.fixture(params=[True, False], ids=["node-first", "node-last"])
def node_first(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- the last of a service ------------------------------------------------------------------------


def test_host_that_dies_is_believed_while_others_serve(node_first):
    world = World(pod(2, 2), pod(2, 3), pod(3, 2))
    world.dies(2, node_first=node_first)
    assert world.used == ["3.2"]
    assert world.vanishing.deadline() is None


def test_last_endpoints_stay_when_their_host_dies_and_only_so_long(node_first):
    world = World(pod(2, 2), pod(2, 3))
    world.dies(2, node_first=node_first)
    assert world.used == ["2.2?", "2.3?"]
    assert world.vanishing.deadline() == HOLD_DOWN_S
    world.wait(HOLD_DOWN_S - 1)
    assert world.used == ["2.2?", "2.3?"]
    world.wait(1)
    assert world.used == []


def test_last_endpoints_that_were_detached_are_gone_once_no_death_of_their_host_was_told():
    world = World(pod(2, 2), pod(2, 3))
    world.gone(key_of(pod(2, 2)))
    assert world.used == ["2.3"]
    world.gone(key_of(pod(2, 3)))
    assert world.used == ["2.3?"]
    assert world.vanishing.stale() == []  # that is no trouble to tell of
    world.wait(APART_S)
    assert world.used == []
    assert world.vanishing.deadline() is None


def test_last_endpoint_is_in_use_at_any_time_while_its_hosts_death_is_told_bit_by_bit():
    world = World(pod(2, 2))
    world.gone(key_of(pod(2, 2)))
    assert world.used == ["2.2?"]
    world.wait(APART_S / 2)
    world.hear(Gone(key_of(node(2)), world.revision))
    assert world.used == ["2.2?"]
    assert world.vanishing.deadline() == world.now + HOLD_DOWN_S
    world.wait(APART_S)
    assert world.used == ["2.2?"]
    assert world.vanishing.stale() == [key_of(pod(2, 2))]


def test_last_endpoint_that_was_told_to_go_is_gone_at_once():
    world = World(pod(2, 2))
    world.put(pod(2, 2, ready=False, terminating=True))
    world.gone(key_of(pod(2, 2)))
    assert world.used == []


def test_endpoint_that_served_nobody_is_gone_at_once():
    world = World(pod(2, 2, ready=False, serving=False))
    world.gone(key_of(pod(2, 2)))
    assert world.used == []


def test_detached_first_and_host_dead_after_is_no_lapse():
    world = World(pod(2, 2))
    world.gone(key_of(pod(2, 2)))
    world.dies(2)
    world.wait(APART_S)
    assert world.used == []


def test_hosts_that_die_together_leave_all_of_their_endpoints(node_first):
    world = World(pod(2, 2), pod(3, 2))
    world.dies(2, node_first=node_first)
    world.wait(TOGETHER_S / 2)
    world.dies(3, node_first=node_first)
    assert world.used == ["2.2?", "3.2?"]


def test_hosts_that_die_one_long_after_the_other_leave_the_last_ones():
    world = World(pod(2, 2), pod(3, 2))
    world.dies(2)
    world.wait(TOGETHER_S)
    world.dies(3)
    assert world.used == ["3.2?"]


def test_last_one_detached_after_a_death_leaves_nothing():
    world = World(pod(2, 2), pod(3, 2))
    world.dies(2)
    world.gone(key_of(pod(3, 2)))
    world.wait(APART_S)
    assert world.used == []


def test_usable_endpoint_ends_the_use_of_the_last_known_ones_for_good():
    world = World(pod(2, 2))
    world.dies(2)
    world.put(pod(3, 2, ready=False, serving=False))
    assert world.used == ["2.2?", "3.2"]
    world.put(pod(3, 2))
    assert world.used == ["3.2"]
    world.gone(key_of(pod(3, 2)))
    world.wait(APART_S)
    assert world.used == []


def test_slice_counts_as_an_endpoint_that_is_left():
    world = World(pod(2, 2), endpoint_slice("s", "web", "10.9.0.1"))
    world.dies(2)
    assert world.used == ["10.9.0.1"]


def test_other_services_keep_what_they_have():
    world = World(service("db", selector={"db": "1"}), pod(2, 2, labels={"app": "web", "db": "1"}))
    world.put(pod(3, 2, labels={"db": "1"}))
    world.dies(2)
    db = world.view.index.services[KEYS.service("default/db")]
    members = members_of(world.view, db.key, db.value, [], "node-1")
    assert ([w.node for w in members.workloads], members.stale) == (["node-3"], ())
    assert world.used == ["2.2?"]


def test_endpoint_that_returns_is_stale_no_more():
    world = World(pod(2, 2), pod(2, 3))
    world.dies(2)
    world.put(node(2), pod(2, 2))
    assert world.used == ["2.2"]
    assert world.vanishing.deadline() is None


def test_what_a_returned_host_does_not_bring_back_is_gone_soon():
    world = World(pod(2, 2))
    world.dies(2)
    world.put(node(2))
    assert world.used == ["2.2?"]
    world.wait(TOGETHER_S)
    assert world.used == []


def test_our_own_lapse_is_nobodys_business_here():
    world = World(pod(1, 2), pod(2, 2))
    world.dies(1)
    assert world.vanishing.deadline() is None


def test_listing_that_lacks_a_host_means_it_died():
    world = World(pod(2, 2), nodes=3)
    world.listed(service(), node(1), node(3))
    assert world.used == ["2.2?"]


def test_listing_that_lacks_a_container_of_a_living_host_means_it_was_detached():
    world = World(pod(2, 2), nodes=3)
    world.listed(service(), node(1), node(2), node(3))
    assert world.used == []


def test_host_whose_death_is_told_half_by_the_watch_and_half_by_a_listing_leaves_the_last_endpoints():
    world = World(pod(2, 2), pod(2, 3), nodes=3)
    world.gone(key_of(pod(2, 2)), key_of(pod(2, 3)))
    world.wait(APART_S)
    world.listed(service(), node(1), node(3))
    assert world.used == ["2.2?", "2.3?"]
    assert world.vanishing.deadline() == world.now + HOLD_DOWN_S


def test_containers_that_a_listing_lacks_lapsed_with_their_host_whose_going_was_told_before():
    world = World(pod(2, 2), nodes=3)
    world.gone(key_of(node(2)))
    world.listed(service(), node(1), node(3))
    assert world.used == ["2.2?"]


def test_container_that_a_listing_lacks_of_a_host_that_is_back_was_detached():
    world = World(pod(2, 2), nodes=3)
    world.gone(key_of(node(2)))
    world.listed(service(), node(1), node(2), node(3))
    assert world.used == []


def test_what_a_host_that_a_listing_brings_back_does_not_bring_is_gone_soon():
    world = World(pod(2, 2), nodes=3)
    world.dies(2)
    world.wait(TOGETHER_S + 1)
    world.listed(service(), node(1), node(2), node(3))
    assert world.used == ["2.2?"]
    world.wait(TOGETHER_S)
    assert world.used == []


# --- over half of the nodes -----------------------------------------------------------------------


def test_over_half_of_the_nodes_together_are_not_believed(node_first):
    world = World(*(pod(n, 2) for n in range(2, 7)), nodes=6)
    for number in (2, 3):
        world.dies(number, node_first=node_first)
    assert world.used == ["4.2", "5.2", "6.2"]
    world.dies(4, node_first=node_first)
    assert world.used == ["2.2?", "3.2?", "4.2?", "5.2", "6.2"]
    world.put(node(2), pod(2, 2))
    assert world.used == ["2.2", "3.2?", "4.2?", "5.2", "6.2"]
    world.wait(HOLD_DOWN_S)
    assert world.used == ["2.2", "5.2", "6.2"]


def test_zone_of_a_node_that_is_not_believed_gone_stays_known():
    world = World(*(pod(n, 2) for n in range(2, 5)), nodes=4)
    world.put(node(2, zone="east"))
    for number in (2, 3, 4):
        world.dies(number)
    assert world.view.index.zones["node-2"] == "east"


# --- another history ------------------------------------------------------------------------------


def test_emptied_store_takes_nothing_away_for_a_while():
    world = World(pod(2, 2), endpoint_slice("s", "web", "10.9.0.1"))
    world.listed(new_history=True)
    assert world.used == ["10.9.0.1", "2.2?"]
    world.put(service(), pod(2, 2))
    assert world.used == ["10.9.0.1", "2.2"]
    world.wait(HOLD_DOWN_S)
    assert world.used == ["2.2"]
    world.gone(WEB)
    assert world.used == ["no service"]


def test_service_that_the_new_history_lacks_goes_when_the_time_is_over():
    world = World(pod(2, 2))
    world.listed(node(2), pod(2, 2), new_history=True)
    assert world.used == ["2.2"]
    world.wait(HOLD_DOWN_S)
    assert world.used == ["no service"]


# --- whatever happens -----------------------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.just("dies"), st.integers(2, 6)),
    st.tuples(st.just("back"), st.integers(2, 6)),
    st.tuples(st.just("detach"), st.integers(2, 6)),
    st.tuples(st.just("wait"), st.sampled_from([1, 20, 400])),
    st.tuples(st.just("emptied"), st.just(0)),
)


@given(st.lists(steps, max_size=30), st.booleans())
def test_nothing_is_kept_that_is_there_or_beyond_the_bound(moves, first):
    world = World(*(pod(n, 2) for n in range(2, 7)), nodes=6)
    left: dict[str, float] = {}
    for what, number in moves:
        there = set(world.view.workloads)
        match what:
            case "dies":
                world.dies(number, node_first=first)
            case "back":
                world.put(node(number), pod(number, 2))
            case "detach":
                world.gone(key_of(pod(number, 2)))
            case "wait":
                world.wait(number)
            case "emptied":
                world.listed(service(), new_history=True)
        left.update(dict.fromkeys(there - world.view.workloads.keys(), world.now))
        kept = {key for _, key in world.vanishing.until}
        assert kept == {*world.view.kept, *(key for some in world.view.last.values() for key in some)}
        assert not [key for key in kept if world.view.record(key)]
        assert all(world.now - left[key] < HOLD_DOWN_S + TOGETHER_S for key in kept & left.keys())
        items = [*world.view.kept.values(), *world.view.records()]
        fresh = View.of([i for i in items if isinstance(i.value, NodeRecord | Workload)], KEYS)
        assert fresh.index.zones == world.view.index.zones
        assert fresh.index.labelled == world.view.index.labelled
