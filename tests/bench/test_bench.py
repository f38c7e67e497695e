"""The benches still run, and what they measure really happens; nothing here is about time."""

from __future__ import annotations

import pytest
from bench import cluster, listing, services, tables
from bench.measure import Cost, compare
from helpers.etcd import requires_etcd
from helpers.privilege import requires_netns

from overlaynet.state import kind_of


@pytest.mark.unit
def test_ratio_is_the_median_of_the_pairs_ratios():
    pairs = [
        (Cost(1.0, 0.0), Cost(2.0, 0.0)),
        (Cost(9.0, 0.0), Cost(3.0, 0.0)),
        (Cost(4.0, 0.0), Cost(4.0, 0.0)),
    ]
    (row,) = compare("work", 10, pairs, goal=0.5, each=1_000_000)
    assert (row.ours, row.other, row.ratio, row.goal) == (4.0, 3.0, 1.0, 0.5)


@pytest.mark.unit
def test_every_peer_of_the_bench_cluster_is_planned():
    objects = cluster.engine(5).desired.objects
    assert [sum(kind_of(key) is kind for key in objects) for kind in cluster.TABLES] == [5, 5, 5]


@pytest.mark.kernel
@requires_netns
def test_tables_bench_runs(monkeypatch):
    monkeypatch.setattr(tables, "ROUNDS", 1)
    said = {row.what for row in tables.rows([2, 3])}
    assert {"write", "read", "look, nothing to do; other: our write", "write; other: ours at 2"} <= said


@pytest.mark.lab
@requires_etcd
def test_listing_bench_runs(monkeypatch):
    monkeypatch.setattr(listing, "ROUNDS", 1)
    assert [row.what for row in listing.rows([3])] == ["read", "decode"]


@pytest.mark.kernel
@requires_netns
def test_services_bench_runs():
    said = [row.what.removeprefix("nft: ") for row in services.rows([2]) if row.what.startswith("nft")]
    assert said[0] == "full load"
    assert said[-1] == "one changed; other: full load"
