"""Calls from several callers at once, on the real kernel: answered, refused, unheard, and through NAT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.answering import Servers, servers
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import UsageError
from overlaynet.probe import calls
from overlaynet.probe.calls import NOT_SENT, SILENT

pytestmark = [pytest.mark.kernel, requires_netns]

HOST, ENDPOINTS, VIP = "10.9.0.1", ("10.9.0.2", "10.9.0.3"), "10.112.0.10"
DNAT = "iptables -t nat -A OUTPUT -d 10.112.0.10 -p tcp --dport 80 -j DNAT --to-destination"


@dataclass(frozen=True)
class Net:
    """A caller, whose rules lead a virtual IP to either of two addresses of another namespace."""

    caller: PrivateNetns
    there: PrivateNetns
    servers: Servers

    def call(
        self, call_id: str, dst: str, port: int, *, translated: bool = False, **more: Any
    ) -> dict[str, Any]:
        send = {
            "netns": self.caller.path,
            "protocol": "tcp",
            "src": HOST,
            "dst": dst,
            "dst_port": port,
            "wait_s": 5.0,
            "cookie": "a5" * 8,
        }
        translator = self.caller.path if translated else None
        return {"id": call_id, "send": {**send, **more.pop("send", {})}, "translator": translator, **more}


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with private_netns() as caller, private_netns() as there, servers() as listening:
        caller.run(f"ip link add v type veth peer name w netns {there.path}")
        caller.run(f"ip address add {HOST}/24 dev v")
        caller.run("ip link set v up")
        caller.run("ip route add 10.112.0.0/16 via 10.9.0.2 dev v onlink")
        for ip in ENDPOINTS:
            there.run(f"ip address add {ip}/24 dev w")
            listening.listen(there, ip, "tcp", 8080, ip)
        there.run("ip link set w up")
        there.run("iptables -A INPUT -p tcp --dport 9 -j DROP")
        caller.run(f"{DNAT} 10.9.0.2:8080 -m statistic --mode nth --every 2 --packet 0")
        caller.run(f"{DNAT} 10.9.0.3:8080")
        yield Net(caller, there, listening)


def run(*asked: dict[str, Any]) -> list[dict[str, Any]]:
    answer = calls.run({"calls": list(asked)})
    assert answer["kind"] == "Calls"
    return list(answer["results"])


def test_every_caller_is_answered_in_the_order_asked(net: Net) -> None:
    found = run(*(net.call(ip, ip, 8080, count=5) for ip in ENDPOINTS))
    assert [(one["id"], one["answers"], one["error"]) for one in found] == [
        (ip, {"syn-ack": 5}, None) for ip in ENDPOINTS
    ]
    assert all(one["rtt_ms"] > 0 for one in found)


def test_table_of_the_translator_tells_who_got_each_call(net: Net) -> None:
    (found,) = run(net.call("vip", VIP, 80, translated=True, count=8))
    assert found["answers"] == {"syn-ack": 8}
    assert found["endpoints"] == {"10.9.0.2:8080": 4, "10.9.0.3:8080": 4}


def test_without_a_translator_nobody_is_asked(net: Net) -> None:
    (found,) = run(net.call("vip", VIP, 80, count=2))
    assert (found["answers"], found["endpoints"]) == ({"syn-ack": 2}, {})


def test_calls_that_are_refused_or_not_heard_end_early(net: Net) -> None:
    unheard = net.call("s", "10.9.0.2", 9, count=50, send={"wait_s": 0.1})
    refused, silent = run(net.call("r", "10.9.0.2", 81, count=50), unheard)
    assert refused["answers"] == {"rst": 2}
    assert silent["answers"] == {SILENT: 2}
    assert refused["rtt_ms"] is silent["rtt_ms"] is None


def test_own_kernel_that_will_not_send_is_told(net: Net) -> None:
    (found,) = run(net.call("n", "198.51.100.1", 80, count=5))
    assert found["answers"] == {NOT_SENT: 2}
    assert "has no route to 198.51.100.1" in found["error"]


def test_echoes_are_calls_too(net: Net) -> None:
    (found,) = run(net.call("p", "10.9.0.2", 0, count=2, send={"protocol": "icmp", "size": 1472, "df": True}))
    assert found["answers"] == {"echo-reply": 2}
    (found,) = run(net.call("p", "10.9.0.2", 0, send={"protocol": "icmp", "size": 1473, "df": True}))
    assert found["answers"] == {NOT_SENT: 1}
    assert "EMSGSIZE" in found["error"]


def test_caller_that_is_nowhere_has_an_error_and_stops_nobody(net: Net) -> None:
    lost, good = run(
        net.call("l", "10.9.0.2", 8080, send={"netns": "no-such-namespace"}), net.call("g", "10.9.0.2", 8080)
    )
    assert lost["answers"] == {}
    assert "no-such-namespace" in lost["error"]
    assert good["answers"] == {"syn-ack": 1}


def test_job_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="'calls' must be a list"):
        calls.run({"calls": 1})
