"""What each seed of lesson 13 hides: the same on every machine, all ways in twenty, two that do not cover each
other."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from overlaynet.lessons.catalogue import find
from overlaynet.trace.model import CAUSES

pytestmark = pytest.mark.unit

TWENTIES = pytest.mark.parametrize("first", [0, 20, 200])


@pytest.fixture(scope="module")
def mystery() -> ModuleType:
    entry = find("mystery")
    assert entry.lesson.asks_each_time
    return sys.modules[entry.lesson.check.__module__]


@pytest.mark.parametrize(
    ("seed", "hidden"),
    [
        (3, ["fdb node-3 node-1: fdb_missing at node-3", "neigh node-2 node-1: neigh_missing at node-2"]),
        (10, ["loss node-2 node-3 80: underlay_loss at underlay"]),
        (86, ["fdb node-1 node-2: fdb_wrong at node-1"]),
    ],
)
def test_a_seed_hides_the_same_everywhere(mystery: ModuleType, seed: int, hidden: list[str]):
    told = [f"{' '.join((f.kind, *f.request.words))}: {f.cause} at {f.place}" for f in mystery.hidden_by(seed)]
    assert told == hidden


@TWENTIES
def test_twenty_seeds_hide_every_cause_in_twenty_ways(mystery: ModuleType, first: int):
    hidden = [mystery.hidden_by(seed) for seed in range(first, first + 20)]
    assert {fault.cause for faults in hidden for fault in faults} == set(CAUSES) - {"unknown"}
    ways = [
        next(
            way
            for way, some in mystery.WAYS.items()
            if faults[-1 if mystery.is_together(faults) else 0] in some
        )
        for faults in hidden
    ]
    assert sorted(ways) == sorted(mystery.WAYS)
    assert 2 <= sum(len(faults) == 2 for faults in hidden) <= 12


def test_places_differ_from_seed_to_seed(mystery: ModuleType):
    places = {mystery.hidden_by(seed)[0].place for seed in range(400)}
    assert places == {*mystery.FIRST, *mystery.HOST_OF, mystery.UNDERLAY}


def test_two_faults_of_a_seed_are_told_apart_and_no_packet_meets_both(mystery: ModuleType):
    for seed in range(400):
        faults = mystery.hidden_by(seed)
        assert len({(fault.cause, fault.place) for fault in faults}) == len(faults)
        if len(faults) == 2 and not mystery.is_together(faults):
            first, second = faults
            ends = {mystery.HOST_OF.get(name) for name in (first.asked.source, first.asked.target)}
            assert second.host not in ends | {first.host}, seed


def test_every_diagnosis_can_be_typed(mystery: ModuleType):
    lesson = find("mystery").lesson
    for some in mystery.WAYS.values():
        for fault in some:
            for place in (fault.place, *fault.alike):
                words = [f"cause={fault.cause}", f"place={place}"]
                assert lesson.read(words) == {"cause": fault.cause, "place": place}
                assert fault.is_named(fault.cause, place)
