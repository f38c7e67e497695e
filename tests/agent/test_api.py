"""The agent's HTTP API over a real unix socket, with real descriptors."""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.agent import Agent, agent, descriptors, hanging, read_answer
from helpers.cluster import put_network
from helpers.eventually import eventually
from helpers.model import KEYS, network

from overlaynet.errors import all_errors
from overlaynet.state import Kind
from overlaynet.store.memory import MemoryStore
from overlaynet_agent import api

pytestmark = pytest.mark.fake


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Agent]:
    """An agent for tests that leave it as it was."""
    one = agent(tmp_path_factory.mktemp("h1")).start().until_ready()
    yield one
    one.stop()


@pytest.fixture
def fresh(tmp_path) -> Iterator[Agent]:
    one = agent(tmp_path).start().until_ready()
    yield one
    one.stop()


def code(document: dict) -> str:
    return document["error"]["code"]


# --- reads ----------------------------------------------------------------------------------------

MEMBERS = [
    pytest.param("/v1/health", {"status"}, id="health"),
    pytest.param("/v1/ready", {"ready", "state", "problems"}, id="ready"),
    pytest.param(
        "/v1/status",
        {"node", "agent", "store", "network", "lease", "peers", "containers", "pending", "failures", "problems"}
        | {"firewall", "writes", "looks"},
        id="status",
    ),
    pytest.param("/v1/state", {"objects", "policies"}, id="state"),
    pytest.param("/v1/stale", {"leases"}, id="stale"),
    pytest.param("/v1/plan", {"count", "changes"}, id="plan"),
]


@pytest.mark.parametrize(("path", "members"), MEMBERS)
def test_read_answers_with_its_members(shared, path, members):
    status, document = shared.ask("GET", path)
    assert status == 200
    assert members <= document.keys()


def test_state_names_every_object_and_its_source(shared):
    state = shared.get("/v1/state")
    assert {item["kind"] for item in state["objects"]} >= {"link", "address", "sysctl"}
    assert {item["name"] for item in state["policies"]} == {"forward", "masquerade", "vxlan"}
    assert all(item["source"]["kind"] == "host" for item in state["objects"])


def test_plan_of_a_host_that_is_right_is_empty_and_of_another_is_not(fresh):
    eventually(lambda: fresh.loop.rules.tried)
    assert fresh.get("/v1/plan") == {"count": 0, "changes": []}
    fresh.loop.call(lambda loop: fresh.kernel.detach("flannel.1"))
    plan = fresh.get("/v1/plan")
    assert plan["count"] > 2
    assert {change["op"] for change in plan["changes"]} == {"missing"}
    assert "flannel.1" not in fresh.kernel.links


def test_metrics_are_prometheus_text(shared):
    with shared.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            text = answer.read().decode()
    for name in ("kernel_writes_total{", "full_looks_total 1.0", "ready 1.0", "firewall_restores_total{"):
        assert f"overlaynet_{name}" in text


def test_starting_agent_is_not_ready_and_says_why(tmp_path):
    one = agent(tmp_path, store=MemoryStore()).start()
    try:
        eventually(lambda: one.get("/v1/ready")["problems"])
        status, document = one.ask("GET", "/v1/ready")
        assert (status, document["state"], document["problems"][0]["code"]) == (503, "starting", "OVL-401")
        assert one.attach("web")[0] == 503
        assert one.ask("POST", "/v1/repair", {}) == (200, {"changes": 0, "failures": []})
        assert one.get("/v1/plan")["count"] == 0
        assert one.status()["lease"] is None
        put_network(one.store, network(count=199))
        one.until_ready()
    finally:
        one.stop()


def test_loop_that_hangs_fails_the_health_check(fresh):
    with hanging(fresh.loop):
        later = fresh.loop.clock() + 1_000
        fresh.loop.clock, real = (lambda: later), fresh.loop.clock
        status, document = fresh.ask("GET", "/v1/health")
        fresh.loop.clock = real
    assert (status, code(document)) == (503, "OVL-704")


# --- containers -----------------------------------------------------------------------------------


def test_container_is_wired_recorded_published_and_unwired(fresh):
    ports = [{"port": 80, "protocol": "TCP", "name": "http"}]
    status, made = fresh.attach("web", labels={"app": "web"}, ports=ports, netns="box")
    assert status == 201
    assert (made["ips"][0], made["gateway"]) == (subnet_of(fresh, 2), subnet_of(fresh, 1))
    assert (made["subnet_len"], made["mtu"], made["labels"], made["ports"]) == (24, 1450, {"app": "web"}, ports)
    assert '"default/web' in saved(fresh) or "node-1/default/web" in saved(fresh)
    assert fresh.kernel.links[made["device"]].master == "cni0"
    eventually(lambda: fresh.store.read([KEYS.workloads]).items)
    gone = {"name": "web", "namespace": "default", "ends_in_s": None}
    assert fresh.ask("DELETE", "/v1/containers/default/web") == (200, gone)
    assert made["device"] not in fresh.kernel.links
    assert "default/web" not in saved(fresh)
    eventually(lambda: not fresh.store.read([KEYS.workloads]).items)


def subnet_of(one: Agent, last: int) -> str:
    return one.status()["lease"]["subnets"][0].replace(".0/24", f".{last}")


def saved(one: Agent) -> str:
    return (one.config.paths.state / "workloads.json").read_text()


def test_name_is_free_again_after_a_detach(fresh):
    assert [fresh.attach("web")[0] for _ in range(2)] == [201, 409]
    assert [fresh.ask("DELETE", "/v1/containers/default/web")[0] for _ in range(2)] == [200, 404]
    assert fresh.attach("web")[0] == 201


def test_addresses_asked_for(fresh):
    assert fresh.attach("a", ips=[subnet_of(fresh, 9)])[1]["ips"] == [subnet_of(fresh, 9)]
    assert code(fresh.attach("b", ips=[subnet_of(fresh, 9)])[1]) == "OVL-702"
    assert code(fresh.attach("b", ips=["192.0.2.1"])[1]) == "OVL-702"
    fresh.ask("DELETE", "/v1/containers/default/a")
    assert fresh.attach("b", ips=None)[1]["ips"] == [subnet_of(fresh, 2)]


def test_refused_wiring_leaves_nothing_and_blocks_nothing(fresh):
    fresh.kernel.fail_next("attach", errno.EPERM)
    status, document = fresh.attach("web")
    assert (status, code(document)) == (503, "OVL-500")
    assert fresh.status()["containers"] == []
    assert fresh.attach("web")[0] == 201
    eventually(lambda: fresh.store.read([KEYS.workloads]).items)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Kind.PORT, id="port"),
        pytest.param(Kind.FDB, id="pin"),
        pytest.param(Kind.LINK, id="bridge"),
        pytest.param("observe", id="look"),
    ],
)
def test_container_that_does_not_get_onto_the_bridge_is_taken_back(fresh, kind):
    fresh.kernel.fail_next(kind, errno.ENOBUFS)
    status, document = fresh.attach("web")
    assert (status, code(document)) == (503, "OVL-500")
    assert not [link for link in fresh.kernel.links.values() if link.type == "veth"]
    assert fresh.status()["containers"] == []
    assert fresh.attach("web")[0] == 201
    eventually(lambda: fresh.store.read([KEYS.workloads]).items)
    fresh.until_state("ready")


def test_foreign_bridge_in_the_way_is_an_error_by_name(fresh):
    fresh.kernel.add_device("cni0", type="bridge")
    status, document = fresh.attach("web")
    assert (status, code(document)) == (503, "OVL-407")
    assert "cni0" in document["error"]["message"]
    assert fresh.status()["containers"] == []


GOOD = {"name": "web"}
BAD_BODIES = [
    pytest.param({}, id="no-name"),
    pytest.param({"name": 3}, id="name-is-no-text"),
    pytest.param({"name": "Web"}, id="name-in-capitals"),
    pytest.param({"name": "etcd"}, id="reserved-name"),
    pytest.param({"name": "a/b"}, id="name-with-a-slash"),
    pytest.param({**GOOD, "namespace": "../x"}, id="namespace"),
    pytest.param({**GOOD, "colour": "red"}, id="unknown-member"),
    pytest.param({**GOOD, "labels": ["a"]}, id="labels-are-no-object"),
    pytest.param({**GOOD, "labels": {"a": 1}}, id="label-is-no-text"),
    pytest.param({**GOOD, "labels": {"a": "\ud800"}}, id="half-a-character"),
    pytest.param({**GOOD, "ports": [80]}, id="port-is-no-object"),
    pytest.param({**GOOD, "ports": [{"port": 0}]}, id="port-0"),
    pytest.param({**GOOD, "ports": [{"port": 65_536}]}, id="port-65536"),
    pytest.param({**GOOD, "ports": [{"port": True}]}, id="port-true"),
    pytest.param({**GOOD, "ports": [{"port": "80"}]}, id="port-as-text"),
    pytest.param({**GOOD, "ports": [{"port": 80, "protocol": "ICMP"}]}, id="protocol"),
    pytest.param({**GOOD, "ports": [{"port": 80, "name": 5}]}, id="port-name-is-no-text"),
    pytest.param({**GOOD, "ips": "10.244.1.2"}, id="ips-are-no-list"),
    pytest.param({**GOOD, "ips": [5]}, id="address-is-no-text"),
    pytest.param({**GOOD, "ips": ["10.244.1.300"]}, id="no-address"),
    pytest.param({**GOOD, "ips": ["10.244.1.2", "10.244.1.3"]}, id="two-of-one-family"),
    pytest.param([1], id="a-list"),
    pytest.param(b"{", id="cut-off"),
    pytest.param(b"[" * 60_000, id="too-deep"),
    pytest.param(b"\xff", id="no-text-at-all"),
    pytest.param(b"", id="empty"),
]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_bad_request_is_refused_before_anything_is_touched(shared, body):
    with descriptors() as pair:
        status, document = shared.ask("POST", "/v1/containers", body, pair)
    assert status == 400
    assert code(document).startswith("OVL-1")
    assert shared.status()["containers"] == []


@pytest.mark.parametrize("count", [pytest.param(n, id=f"{n}-descriptors") for n in (0, 1, 3, 9)])
def test_wrong_number_of_descriptors_is_refused(shared, count):
    a, b = socket.socketpair()
    with a, b:
        status, document = shared.ask("POST", "/v1/containers", GOOD, [a.fileno()] * count)
    assert (status, code(document)) == (400, "OVL-100")
    assert "two descriptors" in document["error"]["message"]


def test_no_descriptor_stays_open(shared):
    shared.get("/v1/health")
    before = open_descriptors()
    for _ in range(5):
        a, b = socket.socketpair()
        with a, b:
            shared.ask("POST", "/v1/containers", {"name": "Bad"}, [a.fileno()] * 2)
            shared.ask("GET", "/v1/health", None, [a.fileno()] * 9)
            shared.ask("DELETE", "/v1/containers/default/none", None, [a.fileno()])
    eventually(lambda: open_descriptors() <= before)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- what HTTP itself can get wrong ---------------------------------------------------------------

REQUESTS = [
    pytest.param(b"GET /v1/nothing HTTP/1.1\r\n\r\n", 404, "OVL-105", id="no-such-read"),
    pytest.param(b"POST /v1/nothing HTTP/1.1\r\n\r\n", 404, "OVL-105", id="no-such-change"),
    pytest.param(b"DELETE /v1/containers/web HTTP/1.1\r\n\r\n", 404, "OVL-105", id="half-a-name"),
    pytest.param(b"DELETE /v1/containers/default/none HTTP/1.1\r\n\r\n", 404, "OVL-105", id="no-container"),
    pytest.param(b"PUT /v1/status HTTP/1.1\r\n\r\n", 501, "OVL-100", id="method"),
    pytest.param(b"what is this\r\n\r\n", 400, "OVL-100", id="no-http"),
    pytest.param(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "OVL-100", id="line-too-long"),
    pytest.param(b"POST /v1/containers HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "OVL-100", id="length"),
    pytest.param(b"POST /v1/containers HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "OVL-100", id="below-0"),
    pytest.param(
        b"POST /v1/containers HTTP/1.1\r\nContent-Length: 999999\r\n\r\n{}",
        400,
        "OVL-100",
        id="body-too-long",
    ),
]


@pytest.mark.parametrize(("request_", "status", "error"), REQUESTS)
def test_every_refusal_is_an_error_document(shared, request_, status, error):
    found, document = shared.send(request_)
    assert (found, code(document), document["schema"]) == (status, error, "overlaynet/v1")
    assert error in all_errors()


@pytest.mark.parametrize("path", [pytest.param(path, id=path[4:]) for path in ("/v1/nothing", "/v1/repair")])
def test_slow_client_hears_the_refusal_after_it_has_said_everything(shared, monkeypatch, path):
    monkeypatch.setattr(api.struct, "unpack", lambda form, text: (4711, 1000, 1000))
    with shared.connect() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n".encode())
        connection.sendall(b"{")
        connection.sendall(b"}")
        assert read_answer(connection)[0] == 403


def test_several_reads_share_a_connection(shared):
    with shared.connect() as connection:
        for _ in range(3):
            connection.sendall(b"GET /v1/health HTTP/1.1\r\n\r\n")
            assert read_answer(connection)[0] == 200


def test_change_closes_its_connection_so_that_no_unread_byte_is_taken_for_a_request(shared):
    with shared.connect() as connection:
        connection.sendall(b"POST /v1/repair HTTP/1.1\r\nContent-Length: 3\r\n\r\n{ }")
        assert read_answer(connection)[0] == 200
        assert connection.recv(1) == b""


def test_client_that_goes_away_is_no_news(shared, capfd):
    for _ in range(3):
        with shared.connect() as connection:
            connection.sendall(b"GET /v1/status HTTP/1.1\r\n")
    assert shared.get("/v1/health") == {"status": "ok"}
    assert "Traceback" not in capfd.readouterr().err


def test_only_uid_0_may_change_something(shared, monkeypatch):
    monkeypatch.setattr(api.struct, "unpack", lambda form, text: (4711, 1000, 1000))
    status, document = shared.ask("POST", "/v1/repair", {})
    assert (status, code(document)) == (403, "OVL-201")
    assert document["error"]["evidence"] == "process 4711 is uid 1000"
    assert shared.ask("GET", "/v1/health")[0] == 200


def test_bug_in_a_request_is_a_500_and_ends_nothing(shared, monkeypatch, caplog):
    def bug(loop: object) -> dict:
        raise RuntimeError("bug")

    monkeypatch.setattr(api.documents, "status", bug)
    status, document = shared.ask("GET", "/v1/status")
    assert (status, code(document)) == (500, "OVL-000")
    assert shared.ask("GET", "/v1/health")[0] == 200


def test_socket_is_for_owner_and_group(shared):
    assert shared.config.paths.socket.stat().st_mode & 0o777 == 0o660
