"""healthCheckNodePort: what a load balancer hears, and that nobody can keep others from hearing it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address

import pytest
from helpers.eventually import eventually
from helpers.ports import free_port

from overlaynet.state import ForwardAccept, ServicePortPolicy
from overlaynet_agent import healthports
from overlaynet_agent.healthports import HealthPorts, Told, Where, wanted

pytestmark = pytest.mark.fake

HERE = ip_address("127.0.0.1")


@pytest.fixture
def ports() -> Iterator[HealthPorts]:
    one = HealthPorts(lambda: True)
    one.start()
    yield one
    one.stop()
    assert not one._thread.is_alive()


def ask(port: int, method: str = "GET") -> tuple[int, dict, str]:
    connection = http.client.HTTPConnection(str(HERE), port, timeout=10)
    try:
        connection.request(method, "/anything")
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body or b"{}"), answer.headers["X-Load-Balancing-Endpoint-Weight"]
    except OSError as error:
        raise AssertionError(str(error)) from error
    finally:
        connection.close()


def agrees(port: int, expected: tuple[int, dict, str]) -> bool:
    return ask(port) == expected


def test_answer_says_how_many_ready_endpoints_are_here(ports):
    port = free_port()
    for ready, status in ((2, 200), (0, 503), (1, 200)):
        ports.follow({Where(HERE, port): Told("shop/web", ready)})
        said = {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": ready}
        expected = (status, {**said, "serviceProxyHealthy": True}, str(ready))
        eventually(partial(agrees, port, expected))
    assert ask(port, "HEAD")[:2] == (200, {})
    assert ask(port, "POST")[0] == 200


def test_agent_that_is_not_well_says_so_and_turns_clients_away():
    ports, port = HealthPorts(lambda: False), free_port()
    ports.start()
    ports.follow({Where(HERE, port): Told("shop/web", 2)})
    status, document, _ = eventually(lambda: ask(port))
    ports.stop()
    assert (status, document["serviceProxyHealthy"], document["localEndpoints"]) == (503, False, 2)


def test_port_of_a_service_that_is_gone_is_closed(ports):
    first, second = free_port(), free_port()
    ports.follow({Where(HERE, first): Told("a/b", 1), Where(HERE, second): Told("a/c", 1)})
    eventually(lambda: ask(first) and ask(second))
    ports.follow({Where(HERE, second): Told("a/c", 1)})
    eventually(lambda: refused(first))
    assert ask(second)[0] == 200


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((str(HERE), port)) != 0


def test_port_that_somebody_else_has_is_a_problem_until_it_is_free(ports, monkeypatch):
    monkeypatch.setattr(healthports, "BIND_AGAIN_S", 0.05)
    port = free_port()
    with socket.socket() as other:
        other.bind((str(HERE), port))
        other.listen()
        ports.follow({Where(HERE, port): Told("shop/web", 1)})
        (problem,) = eventually(ports.problems)
        assert f"port {port} of service shop/web" in problem.message
        assert "in use" in problem.evidence
    eventually(lambda: ask(port)[0] == 200)
    assert ports.problems() == []


def test_clients_that_say_nothing_keep_nobody_away(ports, monkeypatch):
    monkeypatch.setattr(healthports, "MAX_CONNECTIONS", 8)
    port = free_port()
    ports.follow({Where(HERE, port): Told("shop/web", 1)})
    eventually(lambda: ask(port))
    with ExitStack() as silent:
        clients = [silent.enter_context(socket.create_connection((str(HERE), port))) for _ in range(20)]
        assert ask(port)[0] == 200
        clients[0].settimeout(10)
        assert clients[0].recv(1) == b""


def test_client_that_is_too_slow_or_says_too_much_is_let_go(ports, monkeypatch):
    port = free_port()
    ports.follow({Where(HERE, port): Told("shop/web", 1)})
    eventually(lambda: ask(port))
    monkeypatch.setattr(healthports, "CONNECTION_S", 0.1)
    for text in (b"GET / HTTP/1.1\r\n", b"x" * 9_000, b""):
        with socket.create_connection((str(HERE), port), timeout=10) as client:
            client.sendall(text)
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                continue
    monkeypatch.undo()
    assert ask(port)[0] == 200


def test_ports_are_those_of_policies_that_have_one_on_the_nodes_addresses():
    web = ServicePortPolicy("shop/web", "http", "tcp", 80, health_check_node_port=31000, local_ready=2)
    more = ServicePortPolicy("shop/web", "https", "tcp", 443, health_check_node_port=31000, local_ready=2)
    thief = ServicePortPolicy("shop/xyz", "", "tcp", 80, health_check_node_port=31000, local_ready=5)
    none = ServicePortPolicy("shop/none", "", "tcp", 80)
    named = {f"service {p.name}/tcp": p for p in (thief, more, web, none)} | {"forward": ForwardAccept(())}
    both = (HERE, ip_address("192.0.2.1"))
    assert wanted(named, both) == {Where(ip, 31000): Told("shop/web", 2) for ip in both}
    assert wanted(named, None) == {Where(None, 31000): Told("shop/web", 2)}
    assert wanted(named, ()) == {}
