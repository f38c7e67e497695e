"""The agent among other programs: a start without etcd, settings read again, health, metrics, readiness."""

from __future__ import annotations

import http.client
import json
import re
import socket
from dataclasses import replace

import pytest
from helpers.agent import Agent, agent
from helpers.cluster import put_network
from helpers.eventually import eventually
from helpers.model import KEYS, key_of, lease, network, pod, service, vtep_mac

from overlaynet.addr import Mac
from overlaynet.config import AgentConfig, parse
from overlaynet.core.departures import HOLD_DOWN_S
from overlaynet.errors import ConfigError, StoreUnavailable
from overlaynet.model import Stored
from overlaynet.ports import Delete, Put
from overlaynet.state import Fdb, Kind
from overlaynet.store import codec, disk
from overlaynet.store.kubernetes import service_object
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.fake

AWAY = StoreUnavailable("away")
SOON = {"firewall": {"resync_s": 0.2}}


@pytest.fixture
def one(tmp_path):
    """An agent that is ready, with one peer; stopped at the end if it still runs."""
    store = MemoryStore()
    put_network(store, network(count=199))
    put_peer(store, 250)
    made = agent(tmp_path, 1, store, **SOON).start().until_ready()
    eventually(lambda: has_route(made, 250))
    eventually(made.config.paths.remembered.exists)
    yield made
    if made.thread.is_alive():
        made.stop()


def put_peer(store: MemoryStore, number: int) -> None:
    store.commit([], [Put(KEYS.lease(lease(number).subnets), codec.encode_lease(lease(number)))])


def has_route(one: Agent, number: int) -> bool:
    return any(str(route.dst) == f"10.244.{number}.0/24" for route in list(one.kernel.routes.values()))


@pytest.fixture
def without_etcd(one):
    """Restarts the agent while etcd is away, after whatever a test does to the host in between."""
    started = []

    def restart(change=lambda one: None) -> Agent:
        eventually(lambda: one.loop.keepalive.ends_at(one.loop.engine.lease.lease_id))
        one.stop()
        change(one)
        one.store.fail_next(AWAY, times=1_000_000)
        again = Agent(one.config, one.store, one.kernel, one.rules).start()
        started.append(again)
        return again

    yield restart
    for again in started:
        if again.thread.is_alive():
            again.stop()


def back(one: Agent) -> None:
    one.store.recover()


# --- a start without etcd -------------------------------------------------------------------------


def test_host_that_starts_without_etcd_keeps_its_dataplane_and_writes_nothing(without_etcd, one):
    again = without_etcd()
    again.until_state("degraded")
    writes, restores = again.kernel.writes.copy(), again.rules.restores.copy()
    again.loop.call(lambda loop: loop.full_look("timer"))
    assert has_route(again, 250)
    assert (again.kernel.writes, again.rules.restores) == (writes, restores)
    assert again.status()["writes"] == {"kernel": 0, "firewall": 0}
    status = again.status()
    assert (status["store"]["connected"], status["lease"]["confirmed"]) == (False, True)
    assert status["lease"]["expires_in_s"] > 80_000
    assert status["problems"][0]["code"] == "OVL-301"


def test_what_is_missing_is_put_back_by_what_etcd_said_before(without_etcd):
    def reboot(one: Agent) -> None:
        one.kernel.routes.clear()
        one.kernel.fdb.clear()
        one.rules.clean()

    again = without_etcd(reboot)
    again.until_state("degraded")
    eventually(lambda: has_route(again, 250))
    eventually(lambda: any(chain == "OVL-FORWARD" for _, chain in again.rules.observe().chains))


def test_nothing_is_deleted_or_redirected_before_etcd_is_back(without_etcd):
    """The kernel may know better than our copy: the last agent may have written it a moment before its end."""
    moved = Fdb("flannel.1", vtep_mac(250), dst=lease(99).public_ips[0])
    extra = Fdb("flannel.1", Mac.parse("02:00:00:00:77:77"), dst=lease(98).public_ips[0])

    def newer(one: Agent) -> None:
        one.kernel.fdb[moved.key] = moved
        one.kernel.fdb[extra.key] = extra

    again = without_etcd(newer)
    again.until_state("degraded")
    again.loop.call(lambda loop: loop.full_look("timer"))
    assert again.kernel.fdb[moved.key] == moved
    assert again.kernel.fdb[extra.key] == extra
    back(again)
    eventually(lambda: extra.key not in again.kernel.fdb)
    eventually(lambda: again.kernel.fdb[moved.key].dst == lease(250).public_ips[0])
    again.until_state("ready")


def test_changes_of_the_meantime_are_followed_when_etcd_is_back(without_etcd):
    def meanwhile(one: Agent) -> None:
        put_peer(one.store, 251)
        one.store.commit([], [Delete(KEYS.lease(lease(250).subnets))])

    again = without_etcd(meanwhile)
    again.until_state("degraded")
    assert has_route(again, 250)
    back(again)
    eventually(lambda: has_route(again, 251) and not has_route(again, 250))


def test_agent_that_starts_into_an_emptied_etcd_keeps_its_peers_for_as_long_as_a_running_one(one):
    one.stop()
    writes = one.kernel.writes.copy()
    one.store.replace(cluster_id=2)
    put_network(one.store, network(count=199))
    again = Agent(one.config, one.store, one.kernel, one.rules).start()
    try:
        again.until_state("degraded")
        assert [problem["code"] for problem in again.status()["problems"]] == ["OVL-409"]
        (kept,) = again.get("/v1/stale")["leases"]
        assert kept["key"] == KEYS.lease(lease(250).subnets)
        assert kept["value"] == json.loads(codec.encode_lease(lease(250)))
        assert 0 < kept["expires_in_s"] <= HOLD_DOWN_S
        again.loop.call(lambda loop: loop.full_look("timer"))
        assert has_route(again, 250)
        assert again.kernel.writes == writes
        again = again.restart()  # and keeps them in mind
        again.until_state("degraded")
        assert has_route(again, 250)
    finally:
        again.stop()


def test_services_are_served_without_etcd_as_they_were(without_etcd, one):
    beside = pod(9, 2)
    for value, text in (
        (service(), codec.encode_object(service_object(service()))),
        (beside, codec.encode_workload(beside)),
    ):
        one.store.commit([], [Put(key_of(value), text)])
    before = eventually(lambda: one.loop.engine.desired.policies.get("service default/web/tcp"))
    eventually(lambda: one.loop.engine.view.workloads)
    again = without_etcd()
    again.until_state("degraded")
    after = again.loop.engine.desired.policies["service default/web/tcp"]
    assert after.cluster_ips == before.cluster_ips
    assert [str(endpoint) for endpoint in after.cluster] == ["10.244.9.2:8080"]


def test_containers_are_attached_without_etcd_while_the_lease_lasts(without_etcd):
    again = without_etcd()
    again.until_state("degraded")
    status, answer = again.attach("late")
    assert status == 201, answer
    back(again)
    eventually(lambda: again.store.read([KEYS.workloads]).items)


def test_containers_are_refused_once_the_lease_has_run_out_here(without_etcd):
    def a_day_later(one: Agent) -> None:
        held = disk.read_remembered(one.config.paths.remembered, KEYS)
        assert held
        disk.write_remembered(one.config.paths.remembered, replace(held, lease_end=1_000))

    again = without_etcd(a_day_later)
    again.until_state("degraded")
    assert not again.status()["lease"]["confirmed"]
    status, answer = again.attach("late")
    assert (status, answer["error"]["code"]) == (503, "OVL-704")
    assert has_route(again, 250)


def test_start_without_etcd_and_without_a_copy_waits(without_etcd):
    again = without_etcd(lambda one: one.config.paths.remembered.write_text("{"))
    eventually(lambda: again.get("/v1/ready")["problems"])
    assert again.get("/v1/ready")["state"] == "starting"
    back(again)
    again.until_state("ready")


def test_copy_of_another_cluster_is_not_used(tmp_path):
    path = tmp_path / "etcd.json"
    items = (Stored(KEYS.network_config, network()), Stored(KEYS.lease(lease(1).subnets), lease(1), 3, 4, 5))
    disk.write_remembered(path, disk.Remembered(9, items, 77, 5, 123))
    assert disk.read_remembered(path, KEYS) == disk.Remembered(9, items, 77, 5, 123)
    other = disk.read_remembered(path, type(KEYS)("/elsewhere", "/ours"))
    assert other
    assert other.items == ()


def test_copy_is_written_now_and_then_and_not_on_every_event(one, monkeypatch):
    written = []
    monkeypatch.setattr(
        "overlaynet_agent.memory.write_remembered", lambda path, what: written.append(len(what.items))
    )
    for number in range(200, 230):
        put_peer(one.store, number)
    eventually(lambda: has_route(one, 229))
    assert written == []
    one.stop()
    assert written == [34]  # our lease, thirty-one peers, the network config and the settings


# --- settings read again --------------------------------------------------------------------------


def settings(one: Agent, **sections) -> AgentConfig:
    base = {
        "node": {"name": one.config.node.name, "interface": "eth0"},
        "paths": {name: str(getattr(one.config.paths, name)) for name in ("run", "state", "subnet_file")},
        **SOON,
    }
    return parse({**base, **sections}, "test")


def test_reload_takes_over_what_can_change_and_names_the_rest(one):
    new = settings(
        one,
        node={"name": "node-1", "interface": "eth0", "zone": "z2", "labels": {"disk": "ssd"}},
        firewall={"masquerade": False, "resync_s": 0.3},
        bridge={"name": "br9"},
        log={"level": "warning"},
    )
    one.loop.reread = lambda: new
    status, answer = one.ask("POST", "/v1/reload", {})
    assert status == 200
    assert sorted(answer["changed"]) == [
        "firewall.masquerade", "firewall.resync_s", "log.level", "node.labels", "node.zone",
    ]  # fmt: skip
    assert answer["restart_needed"] == ["bridge.name"]
    assert one.status()["node"]["zone"] == "z2"
    assert "masquerade" not in one.loop.engine.desired.policies
    eventually(lambda: b'"zone": "z2"' in one.store.read([KEYS.nodes]).items[0].value.replace(b'":"', b'": "'))
    eventually(lambda: "IPMASQ=false" in one.config.paths.subnet_file.read_text())
    assert one.ask("POST", "/v1/reload", {})[1] == {"changed": [], "restart_needed": ["bridge.name"]}


def test_reload_changes_how_services_are_served(one):
    one.store.commit([], [Put(key_of(service()), codec.encode_object(service_object(service())))])
    eventually(lambda: "services" in one.loop.engine.desired.policies)
    new = settings(one, service={"masquerade_all": True, "node_port_addresses": ["all"], "mode": "off"})
    one.loop.reread = lambda: replace(new, node=one.loop.config.node)
    _, answer = one.ask("POST", "/v1/reload", {})
    assert sorted(answer["changed"]) == ["service.masquerade_all", "service.node_port_addresses"]
    assert answer["restart_needed"] == ["service.mode"]
    policy = one.loop.engine.desired.policies["services"]
    assert (policy.masquerade_all, policy.node_ips) == (True, None)


def test_settings_that_cannot_be_used_change_nothing_and_are_reported(one):
    before = one.loop.config

    def broken() -> AgentConfig:
        raise ConfigError("agent.toml: unknown key 'nmae'")

    one.loop.reread = broken
    status, answer = one.ask("POST", "/v1/reload", {})
    assert (status, answer["error"]["code"]) == (400, "OVL-101")
    assert one.loop.config is before
    assert one.get("/v1/ready")["state"] == "degraded"
    one.loop.reread = lambda: before
    assert one.ask("POST", "/v1/reload", {})[0] == 200
    assert one.get("/v1/ready")["state"] == "ready"


# --- the underlay's MTU ---------------------------------------------------------------------------


def problems(one: Agent) -> list[tuple[str, str]]:
    return [(problem["code"], problem["evidence"]) for problem in one.status()["problems"]]


def set_mtu(one: Agent, mtu: int) -> None:
    one.kernel.links["eth0"] = one.kernel.links["eth0"]._replace(mtu=mtu)


def test_smaller_underlay_is_followed_live_and_old_containers_are_named(one):
    assert one.attach("old")[1]["mtu"] == 1_450
    set_mtu(one, 1_400)
    eventually(lambda: {one.kernel.links[name].mtu for name in ("flannel.1", "cni0")} == {1_350})
    eventually(lambda: "FLANNEL_MTU=1350" in one.config.paths.subnet_file.read_text())
    assert one.attach("new")[1]["mtu"] == 1_350
    old = one.loop.engine.workloads["default/old"].device
    assert one.kernel.links[old].mtu == 1_450
    eventually(lambda: ("OVL-412", "default/old") in problems(one))
    set_mtu(one, 1_500)
    one.until_state("ready")


@pytest.mark.parametrize(
    ("underlay", "device"),
    [
        pytest.param(500, 450, id="less-than-every-host-must-take"),
        pytest.param(100, 1_450, id="less-than-ipv4-needs-so-the-kernel-refuses"),
    ],
)
def test_underlay_too_small_for_ipv4_is_a_problem_and_no_crash(one, underlay, device):
    set_mtu(one, underlay)
    eventually(lambda: "OVL-412" in dict(problems(one)))
    eventually(lambda: one.kernel.links["flannel.1"].mtu == device)
    assert has_route(one, 250)
    set_mtu(one, 1_500)
    one.until_state("ready")


# --- health and metrics ---------------------------------------------------------------------------


@pytest.fixture
def over_tcp(one):
    """Asks the health port of an agent."""
    from overlaynet_agent.health import HealthServer

    server = HealthServer(("127.0.0.1", 0), one.server)
    server.start()

    def ask(method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    yield ask
    server.stop()


def test_tcp_serves_health_and_metrics(over_tcp):
    status, body = over_tcp("GET", "/v1/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    status, body = over_tcp("GET", "/metrics")
    assert status == 200
    assert b"overlaynet_ready 1.0" in body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("GET", "/v1/state"),
        ("GET", "/v1/plan"),
        ("POST", "/v1/repair"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/containers"),
        ("DELETE", "/v1/containers/default/web"),
    ],
)
def test_tcp_serves_nothing_else(over_tcp, method, path):
    assert over_tcp(method, path)[0] == 404


def test_health_is_refused_once_the_loop_hangs(one, over_tcp, monkeypatch):
    monkeypatch.setattr(type(one.loop), "is_alive", lambda loop: False)
    assert over_tcp("GET", "/v1/health")[0] == 503


def test_metrics_have_the_names_people_rely_on(one):
    text = one.server.metrics().decode()
    names = set(re.findall(r"^# HELP (\S+) \S", text, re.M))
    assert names >= {
        "overlaynet_kernel_writes_total",
        "overlaynet_firewall_restores_total",
        "overlaynet_firewall_bytes_total",
        "overlaynet_drift_repaired_total",
        "overlaynet_full_looks_total",
        "overlaynet_apply_seconds",
        "overlaynet_firewall_sync_seconds",
        "overlaynet_store_call_seconds",
        "overlaynet_conntrack_deleted_total",
        "overlaynet_conntrack_seconds",
        "overlaynet_firewall_failures_total",
        "overlaynet_firewall_rules",
        "overlaynet_services",
        "overlaynet_service_endpoints",
    }
    assert re.search(r'overlaynet_firewall_rules\{table="filter"\} [1-9]', text)
    assert 'overlaynet_state{state="ready"} 1.0' in text
    assert re.search(r'overlaynet_store_call_seconds_count\{call="read"\} [1-9]', text)
    counts = [float(n) for n in re.findall(r'overlaynet_apply_seconds_bucket\{le="[^"]+"\} (\S+)', text)]
    assert counts == sorted(counts)
    assert counts[-1] >= 1


# --- what the service manager hears ---------------------------------------------------------------


def test_agent_tells_the_service_manager_ready_and_degraded(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setattr("overlaynet_agent.notify.STATUS_EVERY_S", 0.05)
        one = agent(tmp_path / "h", **SOON)
        one.kernel.fail_next(Kind.SYSCTL, 1, times=10_000)
        one.start()
        try:
            heard = [listener.recv(4_096).decode()]
            while "READY=1" not in heard[-1]:
                heard.append(listener.recv(4_096).decode())
            assert heard[0].startswith("EXTEND_TIMEOUT_USEC=")
            assert "degraded; subnet 10.244." in heard[-1]
            assert "OVL-500" in heard[-1]
        finally:
            one.stop()
        rest = []
        while not rest or "STOPPING=1" not in rest[-1]:
            rest.append(listener.recv(4_096).decode())
