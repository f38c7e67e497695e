"""Which leases that vanish are let go at once, and which are kept for a while."""

from __future__ import annotations

import pytest
from helpers.model import KEYS, key_of, lease, stored
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.departures import FEW, HOLD_DOWN_S, TOGETHER_S, Departures
from overlaynet.core.view import View
from overlaynet.events import Gone

pytestmark = pytest.mark.unit


class World:
    """A view of `count` peers, and what becomes of those that leave it."""

    def __init__(self, count: int) -> None:
        self.view = View.of([stored(lease(n)) for n in range(1, count + 1)], KEYS, 10)
        self.departures = Departures(self.view)
        self.revision = 10

    def leave(self, *numbers: int, now: float = 0.0, new_history: bool = False) -> set[int]:
        gone = [self.view.leases[key_of(lease(n))] for n in numbers]
        for item in gone:
            self.revision += 1
            self.view.fold(Gone(item.key, self.revision))
        kept = self.departures.left(gone, len(self.view.leases), now, new_history=new_history)
        return {n for n in range(1, 200) if key_of(lease(n)) in kept}

    @property
    def stale(self) -> set[int]:
        return {n for n in range(1, 200) if key_of(lease(n)) in self.view.stale}


@pytest.mark.parametrize(
    ("peers", "together", "kept"),
    [
        pytest.param(10, 1, 0, id="one-of-many"),
        pytest.param(10, 5, 0, id="half"),
        pytest.param(10, 6, 6, id="more-than-half"),
        pytest.param(10, 10, 10, id="all"),
        pytest.param(1, 1, 0, id="the-only-one"),
        pytest.param(2, 2, 0, id="both-of-two"),
        pytest.param(3, 3, 3, id="all-of-three"),
        pytest.param(4, 2, 0, id="two-of-four"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["in-one-listing", "one-after-another"])
def test_more_than_half_that_leave_together_are_kept(peers, together, kept, at_once):
    world, numbers = World(peers), range(1, together + 1)
    if at_once:
        world.leave(*numbers)
    else:
        for number in numbers:
            world.leave(number, now=number * TOGETHER_S / 100)
    assert world.stale == set(range(1, kept + 1))


def test_departures_with_time_between_them_are_believed():
    world = World(10)
    for number in range(1, 10):
        assert world.leave(number, now=number * TOGETHER_S) == set()


def test_missing_from_a_new_history_is_kept_however_few():
    world = World(10)
    assert world.leave(4, new_history=True) == {4}


def test_what_was_let_go_first_is_taken_up_again_with_the_rest():
    world = World(5)
    assert world.leave(1) == set()
    assert world.leave(2) == set()
    assert world.leave(3) == {1, 2, 3}


def test_stale_lease_is_let_go_when_its_time_is_over_and_not_before():
    world = World(3)
    world.leave(1, 2, 3, now=5.0)
    assert world.departures.deadline() == 5.0 + HOLD_DOWN_S
    assert world.departures.let_go(4.9 + HOLD_DOWN_S) == set()
    assert len(world.departures.let_go(5.0 + HOLD_DOWN_S)) == 3
    assert (world.stale, world.departures.deadline()) == (set(), None)


def test_lease_that_is_back_is_no_longer_stale():
    world = World(3)
    world.leave(1, 2, 3)
    world.departures.came_back(key_of(lease(2)))
    assert world.stale == {1, 3}


steps = st.tuples(
    st.sampled_from(["leave", "back", "wait"]), st.integers(1, 12), st.sampled_from([0.0, 1.0, 20.0, 400.0])
)


@given(st.lists(steps, max_size=40))
def test_whatever_happens_nobody_is_kept_beyond_the_bound_or_while_present(moves):
    world, now, left_at = World(12), 0.0, dict[int, float]()
    for what, number, pause in moves:
        now += pause
        world.departures.let_go(now)
        key = key_of(lease(number))
        if what == "leave" and key in world.view.leases:
            left_at[number] = now
            world.leave(number, now=now)
        elif what == "back" and key not in world.view.leases:
            world.view.leases[key] = stored(lease(number), world.revision)
            world.departures.came_back(key)
        assert world.view.stale.keys() == world.departures.until.keys()
        assert not world.view.stale.keys() & world.view.leases.keys()
        assert all(now - left_at[n] < HOLD_DOWN_S + TOGETHER_S for n in world.stale)


@given(st.integers(0, FEW))
def test_so_few_may_always_leave(count):
    world = World(FEW)
    assert world.leave(*range(1, count + 1)) == set()
