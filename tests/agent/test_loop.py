"""The agent as a whole, on fakes: start, restart, trouble, stop."""

from __future__ import annotations

import errno
import json
import logging
import threading
from concurrent.futures import Future
from ipaddress import ip_interface

import pytest
from helpers.agent import Agent, agent, hanging
from helpers.cluster import put_network
from helpers.eventually import eventually
from helpers.model import KEYS, lease, network, workload

from overlaynet.errors import FirewallError, KernelError, LeaseNotFound, StoreUnavailable
from overlaynet.events import LeaseExpired, StoreLost
from overlaynet.ports import Delete, Put
from overlaynet.state import Kind
from overlaynet.store import codec, disk
from overlaynet.store.memory import MemoryStore
from overlaynet_agent import commands
from overlaynet_agent.loop import Request
from overlaynet_agent.storeworker import KeepAlive

pytestmark = pytest.mark.fake

AWAY = StoreUnavailable("away")
SOON = {"firewall": {"resync_s": 0.2}}


@pytest.fixture
def start(tmp_path):
    """Agents by number, started and at the end stopped; those of one test share a store."""
    store, running = MemoryStore(), []
    put_network(store, network(count=199))

    def start(number: int = 1, **sections) -> Agent:
        running.append(agent(tmp_path / f"h{number}", number, store, **sections).start())
        return running[-1].until_ready()

    yield start
    for one in running:
        if one.thread.is_alive():
            one.stop()


def put_peer(store: MemoryStore, number: int) -> None:
    store.commit([], [Put(KEYS.lease(lease(number).subnets), codec.encode_lease(lease(number)))])


def has_route(one: Agent, number: int) -> bool:
    return any(str(route.dst) == f"10.244.{number}.0/24" for route in list(one.kernel.routes.values()))


def threads() -> set[str]:
    ours = ("store", "keepalive", "firewall", "api", "loop")
    return {thread.name for thread in threading.enumerate() if thread.name in ours}


# --- start and stop -------------------------------------------------------------------------------


def test_agent_gets_ready_and_writes_its_files(start):
    one = start()
    status = eventually(one.status)
    assert (status["agent"]["state"], status["pending"], status["problems"]) == ("ready", 0, [])
    paths, subnet = one.config.paths, status["lease"]["subnets"][0]
    identity = disk.read_identity(paths.identity)
    assert identity
    assert [str(s) for s in identity.subnets] == [subnet]
    assert subnet.replace(".0/24", ".1/24") in paths.subnet_file.read_text()
    modes = [oct(path.stat().st_mode & 0o777) for path in (paths.identity, paths.subnet_file, paths.socket)]
    assert modes == ["0o600", "0o644", "0o660"]
    assert any(chain == "OVL-FORWARD" for _, chain in one.rules.observe().chains)


def test_two_agents_get_each_others_routes(start):
    one, two = start(1), start(2)
    eventually(lambda: len(one.status()["peers"]) == 1)
    assert [peer["node"] for peer in one.status()["peers"]] == ["node-2"]
    assert [peer["node"] for peer in two.status()["peers"]] == ["node-1"]


def test_restart_with_nothing_changed_writes_nothing(start):
    one = start()
    put_peer(one.store, 250)
    eventually(lambda: has_route(one, 250))
    assert one.attach("web")[0] == 201
    eventually(lambda: one.store.read([KEYS.workloads]).items)
    writes, restores = one.kernel.writes.copy(), one.rules.restores.copy()
    before, subnet = one.store.read([]).revision, one.status()["lease"]
    two = one.restart().until_ready()
    eventually(lambda: two.loop.rules.tried)
    assert (two.kernel.writes, two.rules.restores) == (writes, restores)
    assert two.status()["lease"]["subnets"] == subnet["subnets"]
    assert [c["name"] for c in two.status()["containers"]] == ["web"]
    assert two.store.read([]).revision == before
    two.stop()


def test_container_without_a_record_is_kept_shown_and_can_be_detached(start):
    one = start()
    assert one.attach("web")[0] == 201
    one.stop()
    one.config.paths.workloads.unlink()
    two = Agent(one.config, one.store, one.kernel, one.rules).start().until_ready()
    assert two.status()["stray_containers"] == ["default.web"]
    assert two.ask("DELETE", "/v1/containers/default/web")[0] == 200
    assert two.ask("DELETE", "/v1/containers/default/web")[0] == 404
    assert two.attach("web")[0] == 201
    two.stop()


def test_lost_subnet_env_is_written_again_by_a_look(start):
    one = start()
    path = one.config.paths.subnet_file
    eventually(path.exists)
    text = path.read_text()
    path.unlink()
    one.ask("POST", "/v1/repair")
    eventually(path.exists)
    assert path.read_text() == text


def test_stop_ends_every_thread_and_leaves_the_dataplane(start):
    before = threads()
    one = start()
    held = dict(one.kernel.links)
    one.stop()
    eventually(lambda: threads() <= before)
    assert one.kernel.links == held
    assert not one.config.paths.socket.exists()


def test_clean_stop_keeps_the_records_for_the_grace_time(start):
    one = start()
    one.attach("web")
    eventually(lambda: one.store.read([KEYS.workloads]).items)
    one.stop()
    commands._linger(one.loop)
    one.store.advance(200)
    assert len(one.store.read([KEYS.nodes, KEYS.addresses, KEYS.vteps, KEYS.workloads]).items) == 4
    one.store.advance(200)
    assert one.store.read([KEYS.nodes, KEYS.workloads]).items == ()


def test_store_that_is_away_at_the_stop_does_not_keep_the_agent(start, caplog):
    one = start()
    one.stop()
    one.store.fail_next(AWAY)
    with caplog.at_level(logging.WARNING):
        commands._linger(one.loop)
    assert "records were not extended" in caplog.text


# --- trouble --------------------------------------------------------------------------------------


def test_refused_write_is_reported_tried_again_and_healed(start):
    one = start()
    one.kernel.fail_next(Kind.ROUTE, errno.ENOBUFS, times=10_000)
    put_peer(one.store, 250)
    one.until_state("degraded")
    refused = one.kernel.writes["route", "put"]
    eventually(lambda: one.kernel.writes["route", "put"] > refused)
    one.kernel.recover()
    eventually(lambda: has_route(one, 250), deadline_s=30)
    one.until_state("ready")
    assert one.status()["pending"] == 0
    assert dict(one.loop.host.repaired) == {}


def test_failure_is_not_forgotten_when_something_else_is_written(start):
    one = start()
    one.kernel.fail_next(Kind.ROUTE, errno.ENOBUFS, times=10_000)
    put_peer(one.store, 250)
    eventually(lambda: one.status()["pending"])
    assert one.attach("web")[0] == 201
    assert one.status()["pending"] == 1
    assert "10.244.250.0/24" in one.status()["failures"][0]["change"]
    one.store.commit([], [Delete(KEYS.lease(lease(250).subnets))])
    eventually(lambda: one.status()["pending"] == 0)


def test_kernel_that_cannot_be_read_for_a_while_ends_nothing(start, monkeypatch):
    one = start(**SOON)

    def unreadable(_: object) -> object:
        raise KernelError("a look at the kernel", errno.EINTR)

    with monkeypatch.context() as broken:
        broken.setattr(one.kernel, "observe", unreadable)
        one.until_state("degraded")
    one.until_state("ready")
    assert one.thread.is_alive()


def test_kernel_that_cannot_be_read_at_the_start_delays_readiness(tmp_path):
    one = agent(tmp_path)
    one.start()
    one.kernel.fail_next("observe", errno.EINTR, times=2)
    try:
        one.until_ready()
        assert one.until_state("ready").status()["pending"] == 0
    finally:
        one.stop()


def test_drift_is_mended_and_counted(start):
    one = start(**SOON)
    one.loop.call(lambda loop: one.kernel.detach("flannel.1"))
    eventually(lambda: "flannel.1" in one.kernel.links)
    eventually(lambda: one.loop.host.repaired["link"] == 1)
    assert one.until_state("ready").status()["pending"] == 0


def test_lost_device_with_many_peers_logs_a_few_lines(start, caplog):
    one = start()
    for number in range(200, 240):
        put_peer(one.store, number)
    eventually(lambda: has_route(one, 239))
    one.loop.call(lambda loop: one.kernel.detach("flannel.1"))
    with caplog.at_level(logging.INFO):
        assert one.ask("POST", "/v1/repair", {})[1]["changes"] > 100
    assert len(caplog.records) < 12, [record.getMessage() for record in caplog.records]


def test_container_whose_device_vanished_is_gone(start):
    one = start(**SOON)
    one.attach("web")
    eventually(lambda: one.store.read([KEYS.workloads]).items)
    device = one.status()["containers"][0]["device"]
    tried = one.kernel.writes["port", "put"]
    one.loop.call(lambda loop: one.kernel.detach(device))
    eventually(lambda: one.status()["containers"] == [])
    assert (one.kernel.writes["port", "put"], one.status()["pending"]) == (tried, 0)
    eventually(lambda: not one.store.read([KEYS.workloads]).items)
    eventually(lambda: "cni0" not in one.kernel.links)


def test_containers_survive_an_agent_that_cannot_reach_etcd(tmp_path):
    one = agent(tmp_path, **SOON)
    disk.write_workloads(one.config.paths.workloads, [workload(1, 2)])
    one.kernel.add_device(workload(1, 2).device, type="veth")
    one.store.fail_next(AWAY, times=10_000)
    one.start()
    try:
        eventually(lambda: one.get("/v1/ready")["problems"])
        looks = one.loop.host.looks
        for _ in range(20):
            one.loop.call(lambda loop: loop.full_look("timer"))
        assert [c["name"] for c in one.status()["containers"]] == ["web-2"]
        assert (one.loop.host.looks, one.loop.ready) == (looks, False)
    finally:
        one.stop()


def test_store_that_comes_back_is_listed_again(start):
    one = start()
    one.store.fail_next(AWAY, times=10_000)
    one.store.end_watches(AWAY)
    eventually(lambda: one.loop.engine.store_error)
    one.store.recover()
    put_peer(one.store, 250)
    eventually(lambda: has_route(one, 250))
    one.until_state("ready")


def test_expired_node_lease_brings_the_records_back(start):
    one = start()
    one.attach("web")
    eventually(lambda: one.store.read([KEYS.workloads]).items)
    expired = one.loop.engine.node_lease
    one.store.revoke(expired)
    one.loop.inbox.put(LeaseExpired(expired))
    eventually(lambda: len(one.store.read([KEYS.nodes, KEYS.workloads]).items) == 2)
    one.until_state("ready")


def test_refused_rules_are_reported_and_tried_again(start, monkeypatch):
    one = start()
    before = one.rules.observe().chains

    def refuse(*_: object) -> object:
        raise FirewallError("no")

    with monkeypatch.context() as broken:
        broken.setattr(one.rules, "apply", refuse)
        one.rules.restore("*filter\n-D FORWARD " + before[("filter", "FORWARD")][0].text + "\nCOMMIT")
        one.ask("POST", "/v1/repair", {})
        one.until_state("degraded")
    one.until_state("ready")
    assert one.rules.observe().chains == before


def test_bug_in_the_firewall_ends_no_thread(start, monkeypatch, caplog):
    one = start()

    def buggy() -> object:
        raise RuntimeError("bug")

    with monkeypatch.context() as broken:
        broken.setattr(one.rules, "observe", buggy)
        one.ask("POST", "/v1/repair", {})
        one.until_state("degraded")
    one.until_state("ready")


def test_bug_in_the_store_ends_no_thread(start, monkeypatch):
    one = start()
    commit, broken = one.store.commit, [RuntimeError("bug")]

    def once(*arguments: object) -> object:
        if broken:
            raise broken.pop()
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(one.store, "commit", once)
    one.attach("web")
    eventually(lambda: one.store.read([KEYS.workloads]).items)
    one.until_state("ready")


def test_full_disk_is_reported_and_ends_nothing(start, monkeypatch):
    one = start()
    write, full = disk.write_atomically, [True]

    def refuse(*arguments: object) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "write_atomically", refuse)
    monkeypatch.setattr("overlaynet_agent.loop.SAVE_AGAIN_S", 0.05)
    assert one.attach("web")[0] == 201
    one.until_state("degraded")
    assert one.status()["problems"][0]["code"] == "OVL-200"
    full.clear()
    one.until_state("ready")
    assert "default/web" in json.loads((one.config.paths.workloads).read_text()).popitem()[0]


def test_refused_underlay_name_leaves_foreign_devices_alone(tmp_path):
    one = agent(tmp_path)
    one.kernel.add_device("flannel.1", type="dummy", addresses=[ip_interface("10.0.0.1/8")])
    before = one.kernel.links["flannel.1"]
    one.start()
    try:
        one.until_ready()
        put_peer(one.store, 250)
        eventually(lambda: one.status()["peers"])
        status = one.status()
        assert [problem["code"] for problem in status["problems"]] == ["OVL-407"]
        assert (status["pending"], one.kernel.links["flannel.1"]) == (1, before)
        assert one.kernel.neighs == {}
    finally:
        one.stop()


# --- the loop's manners ---------------------------------------------------------------------------


def test_idle_agent_turns_about_once_a_second(start, monkeypatch):
    one, turns = start(), []
    keep = one.loop.keepalive.keep
    monkeypatch.setattr(one.loop.keepalive, "keep", lambda *leases: (turns.append(1), keep(*leases)))
    one.thread.join(1.5)
    assert len(turns) < 10
    eventually(lambda: turns)


def test_request_that_came_too_late_is_never_carried_out(start):
    one = start()
    done = []
    with hanging(one.loop), pytest.raises(Exception, match="too busy"):
        one.loop.call(lambda loop: done.append(1), timeout_s=0.05)
    one.loop.call(lambda loop: None)
    assert done == []


def test_request_to_a_loop_that_has_ended_is_refused(start):
    one = start()
    one.stop()
    with pytest.raises(Exception, match="stopping"):
        one.loop.call(lambda loop: None)


def test_request_that_comes_while_the_loop_ends_is_refused_at_once(start, monkeypatch):
    """It was not there yet when the loop found that it is to stop."""
    one, late = start(), Future()
    monkeypatch.setattr(
        type(one.loop.manager), "stopping", lambda _: one.loop.inbox.put(Request(lambda loop: None, late))
    )
    one.stop()
    with pytest.raises(Exception, match="stopping"):
        late.result(10)


def test_loop_that_hangs_is_not_kept_alive(start):
    one = start()
    assert one.loop.is_alive()
    with hanging(one.loop):
        one.loop.last_tick -= 16
        assert not one.loop.is_alive()


# --- keeping leases alive -------------------------------------------------------------------------


class Scripted(MemoryStore):
    """A store whose renewals answer as told."""

    def __init__(self, *answers: int | Exception) -> None:
        super().__init__()
        self.answers = list(answers)
        self.renewed = 0

    def keep_alive(self, lease_id: int) -> int:
        self.renewed += 1
        answer = self.answers.pop(0) if self.answers else 9
        if isinstance(answer, Exception):
            raise answer
        return answer


def keeper(*answers: int | Exception, alive: bool = True) -> tuple[KeepAlive, Scripted, list]:
    said: list = []
    store = Scripted(*answers)
    return KeepAlive(store, said.append, lambda: alive), store, said


def test_renewal_reports_going_and_coming_back_once_each():
    keep, _, said = keeper(AWAY, AWAY, 9, 9)
    for _ in range(4):
        keep._renew(7)
    assert [type(event).__name__ for event in said] == ["StoreLost", "StoreBack", "Renewed", "Renewed"]
    assert keep.expires_in_s(7) in (8, 9)


def test_lost_lease_is_an_event_and_an_answer():
    keep, _, said = keeper(AWAY, LeaseNotFound("gone"))
    keep._renew(7)
    keep._renew(7)
    assert [type(event).__name__ for event in said] == ["StoreLost", "StoreBack", "LeaseExpired"]


def test_bug_in_a_renewal_counts_as_an_absent_store():
    keep, _, said = keeper(RuntimeError("bug"))
    keep._renew(7)
    assert isinstance(said[0], StoreLost)


def test_nothing_is_renewed_for_a_loop_that_hangs():
    keep, store, _ = keeper(alive=False)
    keep._renew(7)
    assert store.renewed == 0


def test_keeper_starts_renews_and_stops():
    keep, store, _ = keeper()
    keep.start()
    keep.keep(0, 7)
    eventually(lambda: store.renewed)
    assert keep.expires_in_s(7) is not None
    keep.keep()
    keep.stop()
    assert not keep._thread.is_alive()


def test_rules_of_others_that_iptables_does_not_show_are_told_with_those_in_front(start):
    one = start()
    one.rules.beside = ("table inet firewalld chain filter_FORWARD",)
    one.loop.call(lambda loop: loop.ask_firewall_again("timer"))
    eventually(lambda: one.status()["firewall"]["foreign_rules_in_front"] == list(one.rules.beside))
