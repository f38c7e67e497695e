"""The parent's side of a probe that stays: answers, its own errors, silence, an early end."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, ping, requires_lab

from overlaynet.cluster.contexts import LabCluster
from overlaynet.errors import LabFailed, NotFound
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.session import ProbeSession, start
from overlaynet.lab.topology import Topology

fake = pytest.mark.fake

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
"""Answers each line by itself, the session's first one too."""

COOKIE = "0123456789abcdef"
PACKET = {"protocol": "icmp", "src": "10.244.1.2", "dst": "10.244.2.2", "tries": 3, "cookie": COOKIE}
KEEP = {"ips": ["10.244.1.2", "10.244.2.2"], "protocol": "icmp", "vxlan_port": 8472}


def program(text: str) -> list[str]:
    return [sys.executable, "-c", f"input()\n{text}"]


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@fake
def test_answers_come_one_by_one():
    with ProbeSession("node-1", program(ECHO)) as session:
        assert [session.ask({"op": n, "kind": "Echo"}, 10)["op"] for n in range(3)] == [0, 1, 2]


@fake
def test_answer_larger_than_a_pipe_holds_is_read_whole():
    answer = "print(json.dumps({'text': 'x' * 1_000_000, 'kind': 'Long'}), flush=True)"
    text = f"import json, sys\nfor line in sys.stdin: {answer}"
    with ProbeSession("node-1", program(text)) as session:
        for _ in range(2):
            assert len(session.ask({}, 30)["text"]) == 1_000_000


@fake
@pytest.mark.parametrize("said", ["[]", "7", '{"kind": "Error"}', '{"kind": "Error", "error": "x"}', "<html>"])
def test_what_no_probe_says_is_an_error_of_ours(said):
    with (
        ProbeSession("node-1", program(f"input()\nprint({said!r}, flush=True)\ninput()")) as session,
        pytest.raises(LabFailed, match="did not answer"),
    ):
        session.ask({}, 10)


@fake
def test_error_document_is_raised_as_what_it_was_and_the_session_goes_on():
    with ProbeSession("node-1", program(ECHO)) as session:
        with pytest.raises(NotFound, match="no namespace of that name"):
            session.ask({"kind": "Error", "error": NotFound("no namespace of that name").as_json()}, 10)
        assert session.ask({"kind": "Echo"}, 10) == {"kind": "Echo"}


@fake
def test_silence_ends_the_session_and_its_process():
    with ProbeSession("node-1", program("import time\ntime.sleep(600)")) as session:
        pid = session._process.pid
        with pytest.raises(LabFailed, match="did not answer") as told:
            session.ask({"op": "ping"}, 0.05)
        assert "no answer in time" in told.value.evidence
        assert not running(pid)
        with pytest.raises(LabFailed, match="after it was ended"):
            session.ask({"op": "ping"}, 10)


@fake
def test_early_end_is_told_with_the_last_words():
    text = "input()\nraise RuntimeError('the disk is on fire')"
    with ProbeSession("node-1", program(text)) as session, pytest.raises(LabFailed) as told:
        session.ask({"op": "ping"}, 10)
    assert "it has ended; exit 1; " in told.value.evidence
    assert told.value.evidence.endswith("RuntimeError: the disk is on fire")


@fake
def test_what_is_no_json_is_told_as_no_answer():
    with (
        ProbeSession("node-1", program("input()\nprint('hello')")) as session,
        pytest.raises(LabFailed, match="did not answer"),
    ):
        session.ask({"op": "ping"}, 10)


@fake
def test_program_that_is_not_there_cannot_be_started():
    with pytest.raises(LabFailed, match="could not be started"):
        ProbeSession("node-1", ["/there/is/no/such/program"])


@fake
def test_closing_ends_the_process_and_may_be_repeated():
    session = ProbeSession("node-1", program(ECHO))
    pid = session._process.pid
    session.close()
    session.close()
    assert not running(pid)


@fake
def test_session_that_is_left_by_an_error_is_closed():
    with pytest.raises(ZeroDivisionError), ProbeSession("node-1", program(ECHO)) as session:
        raise ZeroDivisionError
    assert not running(session._process.pid)


@fake
def test_stream_is_given_its_job_and_left_open():
    process = start("node-1", [sys.executable, "-c", ECHO], {"op": "stream"})
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"op": "stream"}
    process.stdin.close()
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait() == 0


@pytest.mark.lab
@requires_lab
def test_probe_of_one_host_reaches_every_place_of_a_lab():
    with Lab.running(Topology.simple(lab_name("session"), hosts=2, containers=1)) as lab:
        cluster = LabCluster(lab)
        places = [{"name": n, "netns": lab.driver.netns(n)} for n in ("node-1", "node-2", "web-1", "web-2")]
        points = [
            {"place": place["name"], "netns": place["netns"], "iface": iface}
            for place in places
            for iface in ("eth0", "cni0", "flannel.1")
            if iface == "eth0" or place["name"].startswith("node-")
        ]
        eventually(lambda: ping(namespace(lab.name, "web-1"), PACKET["dst"]))  # and so every address is known
        with cluster.session("node-1", 10) as session:
            found = session.ask({"op": "places", "places": places, "firewall": True}, 30)["places"]
            armed = session.ask({"op": "arm", "points": points, "keep": KEEP}, 30)["points"]
            sent = session.ask({"op": "send", "netns": lab.driver.netns("web-1"), **PACKET}, 30)["tries"]
            collected = session.ask({"op": "collect"}, 30)
    assert [(place["error"], place["unread"]) for place in found] == [(None, [])] * 4
    assert all(point["armed"] for point in armed), armed
    assert [one["answer"] for one in sent] == ["echo-reply"]
    assert all(point["closed"] and point["dropped"] == 0 for point in collected["points"]), collected["points"]
    requests = [f for f in collected["frames"] if bytes.fromhex(COOKIE) in base64.b64decode(f["data"])]
    assert {points[frame["point"]]["place"] for frame in requests} == {p["name"] for p in places}
    assert {points[frame["point"]]["iface"] for frame in requests} == {"eth0", "cni0", "flannel.1"}


@pytest.mark.lab
@requires_lab
def test_stream_of_a_host_tells_what_passes_there():
    with Lab.running(Topology.simple(lab_name("stream"), hosts=1, containers=2)) as lab:
        point = {"place": "node-1", "netns": lab.driver.netns("node-1"), "iface": "cni0"}
        process = LabCluster(lab).stream("node-1", {"op": "stream", "points": [point]})
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            assert json.loads(process.stdout.readline())["points"][0]["armed"]
            assert ping(lab.driver.netns("node-1") or "", "10.244.1.2")
            assert json.loads(process.stdout.readline())["kind"] == "Frame"
            process.stdin.close()
            *_, last = process.stdout
    assert json.loads(last)["points"][0]["closed"]
