"""What is called, and what the results of calls prove, without a network."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import frames
from helpers.captures import captured, seen

from overlaynet.proof.verify.services import Call, Caller, Here, calls_needed, judge, plan
from overlaynet.proof.verify.services import _senders as senders
from overlaynet.state import Endpoint, ServicePortPolicy, ServicesPolicy
from overlaynet.trace.servicewalk import DROPPED, REJECTED, Outcome, Verdict

pytestmark = pytest.mark.unit

VIP, NODE = ip_address("10.112.0.10"), ip_address("192.168.50.11")
ENDPOINTS = tuple(Endpoint(ip_address(f"10.244.{n}.2"), 8080) for n in (1, 2))
PORT = ServicePortPolicy(
    "default/web", "", "tcp", 80, cluster_ips=(VIP,), node_port=30080, cluster=ENDPOINTS, usable=True
)
COMMON = ServicesPolicy(networks=(), node_ips=(NODE,))
HOST = Caller("node-1", NODE, None)
INSIDE = Caller("web-3", ip_address("10.244.1.9"), "cni0")
OUTSIDE = Caller("outside", ip_address("203.0.113.10"), "eth0")
NAMES = {"10.244.1.2": "web-1", "10.244.2.2": "web-2"}


def here(*ports: ServicePortPolicy) -> Here:
    return Here("node-1", NODE, None, (COMMON, *ports), frozenset({NODE}), "cni0", "eth0")


def call(port: ServicePortPolicy = PORT, *outcomes: Outcome) -> Call:
    found = outcomes or tuple(Outcome(Verdict.ENDPOINT, one) for one in ENDPOINTS)
    return Call(INSIDE, here(port), port, VIP, 80, frozenset(found))


def result(answers: dict[str, int], endpoints: dict[str, int] | None = None, error: str | None = None) -> dict:
    return {"answers": answers, "endpoints": endpoints or {}, "error": error, "rtt_ms": 0.2}


def fair(first: int = 11, second: int = 10) -> dict:
    shares = {"10.244.1.2:8080": first, "10.244.2.2:8080": second}
    return result({"syn-ack": first + second}, {at: n for at, n in shares.items() if n})


# --- what is called -------------------------------------------------------------------------------


def test_everybody_calls_whatever_can_be_called() -> None:
    assert [(c.caller.name, str(c.dst), c.dst_port) for c in plan(here(PORT), [HOST, INSIDE, OUTSIDE])] == [
        ("node-1", "10.112.0.10", 80),
        ("node-1", "192.168.50.11", 30080),
        ("web-3", "10.112.0.10", 80),
        ("web-3", "192.168.50.11", 30080),
        ("outside", "192.168.50.11", 30080),
    ]


def test_calls_say_what_should_become_of_them() -> None:
    (one, *_) = plan(here(PORT), [INSIDE])
    assert one.endpoints == {"10.244.1.2:8080", "10.244.2.2:8080"}
    (one, *_) = plan(here(replace(PORT, cluster=(), usable=False)), [INSIDE])
    assert one.outcomes == {REJECTED}
    assert one.count == 1


def test_what_is_neither_tcp_nor_udp_is_not_called() -> None:
    assert list(plan(here(replace(PORT, protocol="sctp")), [HOST, INSIDE])) == []


def test_ids_are_told_apart() -> None:
    ids = [c.id for c in plan(here(PORT, replace(PORT, port=81, port_name="x", node_port=0)), [HOST, INSIDE])]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("endpoints", "calls"), [(1, 3), (2, 21), (4, 53)])
def test_so_many_calls_leave_nobody_out(endpoints: int, calls: int) -> None:
    assert calls_needed(endpoints) == calls
    if endpoints > 1:
        assert endpoints * (1 - 1 / endpoints) ** calls <= 1e-6


# --- what results prove ---------------------------------------------------------------------------


def test_calls_that_all_endpoints_answer_pass() -> None:
    check = judge(call(), fair(), (), NAMES)
    assert (check.verdict, check.reason, check.note) == ("pass", None, "21 calls: web-1 11, web-2 10")
    assert (check.sender, check.target, check.target_ip, check.rtt_ms) == (
        "web-3", "web at 10.112.0.10:80", "10.112.0.10", 0.2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "foreign", "reason", "evidence"),
    [
        (fair(21, 0), (), "endpoint_unused", "10.244.2.2:8080 got none of 21 calls"),
        (fair(190, 10), (), "unfair", "10.244.1.2:8080 got 190 of 200 calls; 100 ± 43 are fair"),
        (
            result({"syn-ack": 3}, {"10.244.9.9:8080": 3}),
            (),
            "wrong_endpoint",
            "led to 10.244.9.9:8080, which is no endpoint of it",
        ),
        (result({"syn-ack": 20, "rst": 1}), (), "refused", "of 21 calls 20 were answered: 1 rst"),
        (result({"silent": 2}), (), "no_answer", "of 2 calls 0 were answered: 2 silent"),
        (
            result({"not sent": 2}, error="no route (ENETUNREACH)"),
            (),
            "not_sent",
            "of 2 calls 0 were answered: 2 not sent; no route (ENETUNREACH)",
        ),
        (
            fair(),
            ["10.244.1.2:8080"],
            "reply_source",
            "answers came under the endpoint's own address 10.244.1.2:8080",
        ),
    ],
)
def test_calls_that_go_wrong_fail(found: dict, foreign: tuple, reason: str, evidence: str) -> None:
    check = judge(call(), found, foreign, NAMES)
    assert (check.verdict, check.reason, check.evidence) == ("fail", reason, evidence)
    assert check.next == "trace web-3 10.112.0.10 --tcp 80"


def test_too_few_calls_do_not_accuse_an_endpoint_of_being_unused() -> None:
    assert judge(call(), fair(5, 0), (), NAMES).verdict == "pass"


def test_affinity_leads_one_client_to_one_endpoint() -> None:
    sticky = call(replace(PORT, affinity_s=60))
    assert judge(sticky, fair(21, 0), (), NAMES).verdict == "pass"
    check = judge(sticky, fair(20, 1), (), NAMES)
    assert (check.verdict, check.reason) == ("fail", "no_affinity")


def test_datagrams_that_nobody_answers_prove_nothing() -> None:
    silent = call(replace(PORT, protocol="udp"))
    assert judge(silent, result({"silent": 2}), (), NAMES).verdict == "inconclusive"
    assert judge(silent, result({"icmp port-unreachable": 2}), (), NAMES).verdict == "fail"


@pytest.mark.parametrize(
    ("outcome", "answers", "reason"),
    [
        (REJECTED, {"rst": 1}, None),
        (REJECTED, {"icmp port-unreachable": 1}, None),
        (REJECTED, {"not sent": 1}, None),
        (REJECTED, {"silent": 1}, "no_answer"),
        (REJECTED, {"syn-ack": 1}, "answered"),
        (DROPPED, {"silent": 1}, None),
        (DROPPED, {"rst": 1}, "refused"),
        (DROPPED, {"syn-ack": 1}, "answered"),
    ],
)
def test_service_without_endpoints_refuses(outcome: Outcome, answers: dict, reason: str | None) -> None:
    check = judge(call(PORT, outcome), result(answers), (), NAMES)
    assert (check.verdict, check.reason) == ("fail" if reason else "pass", reason)
    assert check.next == "describe svc/web"


@pytest.mark.parametrize("found", [None, result({}, error="no permission to open a socket")])
def test_caller_that_cannot_call_proves_nothing(found: dict | None) -> None:
    check = judge(call(), found, (), NAMES)
    assert (check.verdict, check.reason) == ("inconclusive", "probe_failed")
    assert check.evidence


def test_answer_under_an_endpoints_own_address_is_found() -> None:
    good = frames.syn_ack(str(VIP), 80, "10.244.1.9", 40_000)
    foreign = frames.syn_ack("10.244.2.2", 8080, "10.244.1.9", 40_001)
    packets = captured(seen("web-3:eth0", good, 0, "in"), seen("web-3:eth0", foreign, 1, "in"))
    assert senders(call(), packets, NAMES) == {"10.244.2.2:8080"}
    assert senders(call(), packets[:1], NAMES) == set()
    assert senders(call(), captured(points="web-9:eth0"), NAMES) == set()
