"""Readiness probes: how they are read, and when a row of results counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.probes import Tally, parse_probe, probe_document
from overlaynet.errors import ProbeInvalid
from overlaynet.model import ExecCheck, HttpCheck, Probe, TcpCheck

pytestmark = pytest.mark.unit

GOOD = [
    ({"tcp": {"port": 80}}, Probe(TcpCheck(80))),
    ({"http": {"port": 8080}}, Probe(HttpCheck(8080, "/"))),
    (
        {"http": {"port": 80, "path": "/ok?a=b", "headers": {"X-A": "b c"}}, "period_s": 2, "timeout_s": 0.5},
        Probe(HttpCheck(80, "/ok?a=b", {"X-A": "b c"}), period_s=2.0, timeout_s=0.5),
    ),
    (
        {"exec": {"command": ["test", "-e", "/ok"]}, "success_threshold": 2, "failure_threshold": 1},
        Probe(ExecCheck(("test", "-e", "/ok")), success_threshold=2, failure_threshold=1),
    ),
    ({"tcp": {"port": 1}, "initial_delay_s": 0, "http": None}, Probe(TcpCheck(1))),
]
BAD = [
    ([], ""),
    ({}, ""),
    ({"tcp": {"port": 80}, "http": {"port": 80}}, ""),
    ({"tcp": {"port": 0}}, "tcp.port"),
    ({"tcp": {"port": True}}, "tcp.port"),
    ({"tcp": 80}, "tcp"),
    ({"tcp": {"port": 80, "host": "10.0.0.1"}}, "tcp.host"),
    ({"http": {"port": 80, "host": "10.0.0.1"}}, "http.host"),
    ({"http": {"port": 80, "path": "ok"}}, "http.path"),
    ({"http": {"port": 80, "path": "/a b"}}, "http.path"),
    ({"http": {"port": 80, "path": "/a\r\nX: y"}}, "http.path"),
    ({"http": {"port": 80, "headers": {"A": "b\r\nC: d"}}}, "http.headers.A"),
    ({"http": {"port": 80, "headers": {"A:": "b"}}}, "http.headers.A:"),
    ({"http": {"port": 80, "headers": ["A"]}}, "http.headers"),
    ({"exec": {"command": []}}, "exec.command"),
    ({"exec": {"command": "true"}}, "exec.command"),
    ({"exec": {"command": ["a\0b"]}}, "exec.command"),
    ({"tcp": {"port": 80}, "period_s": 0}, "period_s"),
    ({"tcp": {"port": 80}, "period_s": "10"}, "period_s"),
    ({"tcp": {"port": 80}, "timeout_s": float("nan")}, "timeout_s"),
    ({"tcp": {"port": 80}, "initial_delay_s": -1}, "initial_delay_s"),
    ({"tcp": {"port": 80}, "failure_threshold": 0}, "failure_threshold"),
    ({"tcp": {"port": 80}, "periodSeconds": 10}, "periodSeconds"),
]


@pytest.mark.parametrize(("document", "probe"), GOOD)
def test_probe_is_read_and_written(document, probe):
    assert parse_probe(document) == probe
    assert parse_probe(probe_document(probe)) == probe


@pytest.mark.parametrize(("document", "place"), BAD)
def test_wrong_probe_is_refused_where_it_is_wrong(document, place):
    with pytest.raises(ProbeInvalid) as caught:
        parse_probe(document)
    assert ".".join(map(str, caught.value.place)) == place
    assert caught.value.message.startswith(f"probe.{place} " if place else "probe ")


def verdicts(results: str, **thresholds: int) -> list[bool | None]:
    tally, probe = Tally(), Probe(TcpCheck(80), **thresholds)
    return [tally.take(result == "+", probe) for result in results]


def test_results_count_once_there_are_enough_of_the_same_in_a_row():
    usual = verdicts("+--+---+")
    assert usual == [True, None, None, True, None, None, False, True]
    assert verdicts("++-++", success_threshold=2, failure_threshold=1) == [None, True, False, None, True]


@given(st.text("+-", max_size=30), st.integers(1, 4), st.integers(1, 4))
def test_a_verdict_is_always_what_the_last_results_all_say(results, good, bad):
    found = verdicts(results, success_threshold=good, failure_threshold=bad)
    for index, verdict in enumerate(found):
        enough = good if results[index] == "+" else bad
        last = results[max(0, index + 1 - enough) : index + 1]
        same = len(last) == enough and len(set(last)) == 1
        assert verdict == ((results[index] == "+") if same else None)
