"""What the probes' answers prove about every pair."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from overlaynet.errors import LabFailed
from overlaynet.probe import mesh
from overlaynet.probe.mesh import Member

pytestmark = pytest.mark.unit

WEB_1 = Member("web-1", "node-1", "n-web-1", ip_address("10.244.1.2"))
WEB_2 = Member("web-2", "node-2", "n-web-2", ip_address("10.244.2.2"))
BARE = Member("bare", "node-2", "n-bare", None)


def result(name: str, error: str | None = None, evidence: str = "") -> dict[str, object]:
    rtt = 0.4 if error is None else None
    return {
        "id": name,
        "sent": 1,
        "received": int(error is None),
        "rtt_ms": rtt,
        "error": error,
        "evidence": evidence,
    }


def answers(first: str | None = None, second: str | None = None) -> dict[str, dict[str, object]]:
    return {
        "node-1": {"results": [result("web-1:web-2", first, "said so")]},
        "node-2": {"results": [result("web-2:web-1", second, "said so")]},
    }


def test_every_ordered_pair_is_sent_once_from_the_senders_host():
    jobs = mesh.jobs([WEB_1, WEB_2])
    sent = {host: [(p["id"], p["netns"], p["target"]) for p in job["pings"]] for host, job in jobs.items()}
    assert sent == {
        "node-1": [("web-1:web-2", "n-web-1", "10.244.2.2")],
        "node-2": [("web-2:web-1", "n-web-2", "10.244.1.2")],
    }


def test_pairs_are_in_the_order_of_numbers():
    names = [Member(f"web-{n}", "node-1", "", None) for n in (10, 9, 2)]
    assert [a.name for a, _ in mesh.pairs(names)] == ["web-2"] * 2 + ["web-9"] * 2 + ["web-10"] * 2


@pytest.mark.parametrize(
    ("told", "verdicts", "summary"),
    [
        (answers(), ["pass", "pass"], "2/2 pairs reachable"),
        (answers("no_reply"), ["fail", "pass"], "1/2 pairs reachable, 1 failed"),
        (answers("send_error", "icmp_error"), ["fail", "fail"], "0/2 pairs reachable, 2 failed"),
        (answers("setup_error"), ["inconclusive", "pass"], "1/2 pairs reachable, 1 inconclusive"),
        (
            {**answers(None, "no_reply"), "node-1": LabFailed("no namespace")},
            ["inconclusive", "fail"],
            "0/2 pairs reachable, 1 failed, 1 inconclusive",
        ),
        ({"node-1": answers()["node-1"]}, ["pass", "inconclusive"], "1/2 pairs reachable, 1 inconclusive"),
    ],
    ids=["all", "no reply", "refused", "sender unreachable", "failure outweighs doubt", "host said nothing"],
)
def test_verdicts(told, verdicts, summary):
    report = mesh.judge([WEB_1, WEB_2], told)
    assert [check.verdict for check in report.checks] == verdicts
    assert report.summary == summary


def test_target_without_an_address_fails_and_is_not_pinged():
    assert list(mesh.jobs([WEB_1, BARE])) == ["node-2"]
    (to_bare,) = [c for c in mesh.judge([WEB_1, BARE], {}).checks if c.target is BARE]
    assert (to_bare.verdict, to_bare.reason) == ("fail", "no_address")


@pytest.mark.parametrize(
    ("host", "source", "told"),
    [
        pytest.param("node-1", ("lease", "10.244.2.0-24"), True, id="the-targets-subnet"),
        pytest.param("node-2", ("lease", "10.244.1.0-24&fd00::-64"), True, id="the-way-back"),
        pytest.param("node-1", ("lease", "10.244.3.0-24"), False, id="a-third-hosts-subnet"),
        pytest.param("node-3", ("host", "base"), False, id="on-a-third-host"),
        pytest.param("node-2", ("host", "base"), True, id="the-whole-host"),
        pytest.param("node-2", ("workload", "default/web-2"), True, id="the-target-itself"),
        pytest.param("node-2", ("workload", "default/web-7"), False, id="another-container"),
    ],
)
def test_failed_pair_is_told_of_what_differs_between_the_two(host, source, told):
    found = mesh.Difference(host, dict(zip(("kind", "name"), source, strict=True)), "missing this")
    report = mesh.judge([WEB_1, WEB_2], answers("no_reply")).with_differences([found])
    failed, passed = report.checks
    assert (f"{host}: missing this" in failed.evidence, passed.evidence) == (told, "")


def test_many_differences_are_counted_and_not_listed():
    found = [mesh.Difference("node-1", {"kind": "host", "name": "base"}, f"missing {n}") for n in range(9)]
    report = mesh.judge([WEB_1, WEB_2], answers("no_reply")).with_differences(found)
    assert report.checks[0].evidence.splitlines()[-1] == "and 5 more differences"
    assert len(report.checks[0].evidence.splitlines()) == 1 + mesh.DIFFERENCES_SHOWN + 1
