"""Suites as documents, as JUnit's XML, and as an exit code."""

from __future__ import annotations

from ipaddress import ip_address
from xml.etree import ElementTree

import pytest

from overlaynet.probe import mesh
from overlaynet.probe.mesh import Member
from overlaynet.proof.verify.report import Check, Suite, document, exit_code, junit, of_mesh

pytestmark = pytest.mark.unit

GOOD = Check("a:b", "a", "b", "pass", rtt_ms=0.5, note="arrives", target_ip="10.0.0.1")
BAD = Check("b:a", "b", "a", "fail", "no_answer", "nobody <answered> & \x00 said why", note="1 silent")
VAGUE = Check("c:a", "c", "a", "inconclusive", "probe_failed", "no probe")
MESH = Suite("mesh", (GOOD, BAD), 1.25)
MTU = Suite("mtu", (VAGUE,), 0.25)


def test_one_suite_is_its_own_document() -> None:
    assert document([MESH]) == {
        "suite": "mesh", "total": 2, "passed": 1, "failed": 1, "inconclusive": 0, "duration_s": 1.25,
        "checks": [
            {"id": "a:b", "from": "a", "to": "b", "target_ip": "10.0.0.1", "verdict": "pass", "reason": None,
             "evidence": "", "rtt_ms": 0.5, "note": "arrives"},
            {"id": "b:a", "from": "b", "to": "a", "target_ip": None, "verdict": "fail", "reason": "no_answer",
             "evidence": BAD.evidence, "rtt_ms": None, "note": "1 silent"},
        ],
    }  # fmt: skip


def test_several_suites_are_summed() -> None:
    found = document([MESH, MTU])
    assert (found["suite"], found["total"], found["passed"], found["failed"], found["inconclusive"]) == (
        "all", 3, 1, 1, 1,
    )  # fmt: skip
    assert found["duration_s"] == 1.5
    assert [check["id"] for check in found["checks"]] == ["mesh/a:b", "mesh/b:a", "mtu/c:a"]
    assert [one["suite"] for one in found["suites"]] == ["mesh", "mtu"]


def test_mesh_is_a_suite_of_pairs() -> None:
    one, other = (Member(f"web-{n}", f"node-{n}", "", ip_address(f"10.244.{n}.2")) for n in (1, 2))
    bare = Member("web-3", "node-3", "", None)
    pairs = mesh.Report((
        mesh.Check(one, other, "fail", "no_reply", "said so"),
        mesh.Check(other, one, "pass", rtt_ms=0.5),
        mesh.Check(one, bare, "fail", "no_address", "not wired"),
    ))  # fmt: skip
    found = of_mesh(pairs, 1.23456).as_json()
    assert {k: v for k, v in found.items() if k != "checks"} == {
        "suite": "mesh", "total": 3, "passed": 1, "failed": 2, "inconclusive": 0, "duration_s": 1.235,
    }  # fmt: skip
    assert found["checks"][0] == {
        "id": "web-1:web-2", "from": "web-1", "to": "web-2", "target_ip": "10.244.2.2", "verdict": "fail",
        "reason": "no_reply", "evidence": "said so", "rtt_ms": None, "note": "",
    }  # fmt: skip
    assert found["checks"][1]["rtt_ms"] == 0.5
    assert found["checks"][2]["target_ip"] is None


@pytest.mark.parametrize(
    ("suites", "code"),
    [
        ([Suite("mesh", (GOOD,))], 0),
        ([Suite("mesh", ())], 4),
        ([Suite("mesh", (GOOD,)), MTU], 4),
        ([MESH, MTU], 1),
        ([Suite("services", (), skipped="no service to call")], 4),
        ([Suite("mesh", (GOOD,)), Suite("services", (), skipped="no service to call")], 0),
    ],
)
def test_exit_code_is_that_of_the_worst(suites: list[Suite], code: int) -> None:
    assert exit_code(suites) == code


def test_summary_counts_what_did_not_pass() -> None:
    assert MESH.summary == "1/2 passed, 1 failed"
    assert MTU.summary == "0/1 passed, 1 inconclusive"
    assert Suite("services", (), skipped="no service to call").summary == "no service to call"


def test_junit_tells_failures_and_errors() -> None:
    root = ElementTree.fromstring(junit([MESH, MTU]))
    first, second = root
    assert {**first.attrib} == {
        "name": "overlaynet.verify.mesh", "tests": "2", "failures": "1", "errors": "0", "skipped": "0",
        "time": "1.250",
    }  # fmt: skip
    good, bad = first
    assert (good.attrib["classname"], good.attrib["name"], good.attrib["time"]) == (
        "overlaynet.verify.mesh", "a:b", "0.000500",
    )  # fmt: skip
    assert len(good) == 0
    (failure,) = bad
    assert (failure.tag, failure.attrib["type"], failure.attrib["message"]) == (
        "failure", "no_answer", "b → a: 1 silent",
    )  # fmt: skip
    assert failure.text == "nobody <answered> & � said why"
    assert second.attrib["errors"] == "1"
    assert second[0][0].tag == "error"
