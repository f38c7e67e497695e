"""Agents (without kernels) and what a real etcd can go through: no lease is lost, and no news.

Every test ends with the same question: does each agent know every lease that etcd has, and no other?
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.etcd import EtcdServer, leader_of, requires_etcd, running_etcd, three_members
from helpers.eventually import eventually
from helpers.light_agent import LightAgent
from helpers.model import KEYS, flannel_lease, key_of, network
from helpers.relay import Relay

from overlaynet.errors import OverlayError
from overlaynet.ports import Delete, Put
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore
from overlaynet.store.etcd.rpc import etcdrpc

pytestmark = [pytest.mark.lab, requires_etcd]

PATIENCE_S = 60.0


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path) as server:
        yield server


class Cluster:
    """Agents of one etcd, and a client of the test's own."""

    def __init__(self, urls: list[str]) -> None:
        self.store = EtcdStore(urls, deadline_s=2.0)
        self.agents: list[LightAgent] = []
        put(self.store, KEYS.network_config, codec.encode_network_config(network(count=199)))

    def join(self, urls: list[str]) -> LightAgent:
        agent = LightAgent(urls, len(self.agents) + 1).start()
        self.agents.append(agent)
        eventually(lambda: agent.settled, deadline_s=PATIENCE_S)
        return agent

    def close(self) -> None:
        for agent in self.agents:
            agent.stop()
        self.store.close()

    def leases(self) -> dict[str, int]:
        try:
            items = self.store.read([KEYS.subnets]).items
        except OverlayError as error:
            raise AssertionError(error.message) from error
        return {item.key: item.mod_revision for item in items}

    def all_know_all(self) -> bool:
        for agent in self.agents:
            known = {key: item.mod_revision for key, item in dict(agent.engine.view.leases).items()}
            assert known == self.leases()
            assert agent.settled
        return True

    def settle(self) -> None:
        eventually(self.all_know_all, deadline_s=PATIENCE_S)


def put(store: EtcdStore, key: str, value: bytes) -> None:
    def attempt() -> bool:
        try:
            return store.commit([], [Put(key, value)]).ok
        except OverlayError as error:
            raise AssertionError(error.message) from error

    eventually(attempt, deadline_s=PATIENCE_S)


def put_peer(cluster: Cluster, number: int) -> None:
    """A flannel host's lease, number 200 or above: the network leaves nobody else any of those."""
    value = flannel_lease(number)
    put(cluster.store, key_of(value), codec.encode_lease(value))


@pytest.fixture
def relay(etcd: EtcdServer) -> Iterator[Relay]:
    made = Relay(int(etcd.url.rpartition(":")[2]))
    yield made
    made.close()


@pytest.fixture
def cluster(etcd: EtcdServer, relay: Relay) -> Iterator[Cluster]:
    """Two agents: the first reaches etcd directly, the second through the relay."""
    made = Cluster([etcd.url])
    try:
        made.join([etcd.url])
        made.join([relay.url])
        yield made
    finally:
        made.close()


def test_killed_etcd_costs_no_lease_and_no_news(etcd: EtcdServer, cluster: Cluster) -> None:
    before = [agent.subnet for agent in cluster.agents]
    put_peer(cluster, 200)
    etcd.kill()
    etcd.start()
    put_peer(cluster, 201)
    cluster.settle()
    assert [agent.subnet for agent in cluster.agents] == before
    assert len(cluster.leases()) == 4


def test_agent_that_was_cut_off_while_history_was_compacted_lists_again(cluster: Cluster, relay: Relay) -> None:
    put_peer(cluster, 200)
    cluster.settle()
    relay.cut()
    put_peer(cluster, 201)
    cluster.store.commit([], [Delete(key_of(flannel_lease(200)))])
    put_peer(cluster, 202)
    member = cluster.store._connection.member
    member.kv.Compact(etcdrpc.CompactionRequest(revision=cluster.store.read([]).revision), timeout=5)
    relay.mend()
    cluster.settle()
    assert not cluster.agents[1].engine.view.stale


def test_emptied_etcd_is_filled_again_with_the_same_subnets_and_peers_stay_in_use(
    etcd: EtcdServer, cluster: Cluster
) -> None:
    before = {agent.subnet for agent in cluster.agents}
    for number in (200, 201, 202):
        put_peer(cluster, number)
    cluster.settle()
    etcd.kill()
    etcd.empty()
    etcd.start()
    put(cluster.store, KEYS.network_config, codec.encode_network_config(network(count=199)))
    cluster.settle()
    assert {agent.subnet for agent in cluster.agents} == before
    for agent in cluster.agents:
        gone = {key_of(flannel_lease(number)) for number in (200, 201, 202)}
        assert gone <= set(agent.engine.view.stale)
        assert [problem.code for problem in agent.engine.problems()] == ["OVL-409"]


def test_history_that_others_wrote_past_ours_is_still_known_as_another(
    etcd: EtcdServer, cluster: Cluster, relay: Relay
) -> None:
    """Neither cluster id nor revision tells the agent that was away longest."""
    late = cluster.agents[1]
    put_peer(cluster, 200)
    cluster.settle()
    relay.cut()
    known = late.engine.view.revision
    etcd.kill()
    etcd.empty()
    etcd.start()
    put(cluster.store, KEYS.network_config, codec.encode_network_config(network(count=199)))
    while cluster.store.read([]).revision < known + 20:
        put_peer(cluster, 201)
    relay.mend()
    cluster.settle()
    assert key_of(flannel_lease(200)) in late.engine.view.stale


def test_etcd_restored_from_an_old_snapshot_is_corrected_by_its_agents(
    etcd: EtcdServer, cluster: Cluster, relay: Relay, tmp_path: Path
) -> None:
    before = {agent.subnet for agent in cluster.agents}
    saved = tmp_path / "saved.db"
    etcdctl("--endpoints", etcd.url, "snapshot", "save", str(saved))
    cluster.join([relay.url])
    put_peer(cluster, 200)
    cluster.settle()
    third = cluster.agents[2].subnet
    etcd.kill()
    etcd.empty()
    alone = ("--name", "test", "--initial-cluster", "test=http://localhost:2380")
    etcdctl("snapshot", "restore", str(saved), *alone, "--data-dir", str(etcd.directory / "data"))
    etcd.start()
    cluster.settle()
    assert {agent.subnet for agent in cluster.agents} == before | {third}
    assert all(key_of(flannel_lease(200)) in agent.engine.view.stale for agent in cluster.agents)


def etcdctl(*arguments: str) -> None:
    subprocess.run(["etcdctl", *arguments], check=True, capture_output=True, timeout=60, env=_ENVIRON)


_ENVIRON = {"ETCDCTL_API": "3", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"}


def test_lost_leader_of_three_members_costs_no_news(tmp_path: Path) -> None:
    members = three_members(tmp_path)
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(EtcdServer.start, members))
        urls = [member.url for member in members]
        cluster = Cluster(urls)
        try:
            for start in range(2):
                cluster.join(urls[start:] + urls[:start])
            put_peer(cluster, 200)
            leader_of(members).kill()
            put_peer(cluster, 201)
            cluster.settle()
            assert len(cluster.leases()) == 4
        finally:
            cluster.close()
    finally:
        for member in members:
            member.kill()
