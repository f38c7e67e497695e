"""`python -m overlaynet.probe`, started as drivers start it, on the real kernel."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

pytestmark = [pytest.mark.kernel, requires_netns]

PROBE = [sys.executable, "-m", "overlaynet.probe"]


def probe(job: dict[str, Any] | str) -> tuple[int, dict[str, Any]]:
    line = job if isinstance(job, str) else json.dumps(job)
    done = subprocess.run(PROBE, input=line + "\n", capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


@dataclass(frozen=True)
class Pair:
    """Two namespaces with a cable between them: 10.9.0.1 and 10.9.0.2."""

    left: PrivateNetns
    right: PrivateNetns


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with private_netns() as left, private_netns() as right:
        left.run(f"ip link add eth0 type veth peer name eth0 netns {right.path}")
        for netns, address in ((left, "10.9.0.1/24"), (right, "10.9.0.2/24")):
            netns.run(f"ip address add {address} dev eth0")
            netns.run("ip link set eth0 up")
        yield Pair(left, right)


def ping(pair: Pair, target: str, **more: Any) -> dict[str, Any]:
    item = {"id": "x", "netns": pair.left.path, "target": target, "count": 1, "timeout_s": 0.3, **more}
    code, answer = probe({"op": "ping", "pings": [item]})
    assert code == 0, answer
    (result,) = answer["results"]
    return dict(result)


def test_ping_reaches_the_other_namespace(pair):
    result = ping(pair, "10.9.0.2", timeout_s=5)
    assert (result["sent"], result["received"], result["error"]) == (1, 1, None)
    assert result["rtt_ms"] > 0


def test_large_ping_arrives_in_fragments(pair):
    assert ping(pair, "10.9.0.2", size=4000, timeout_s=5)["received"] == 1


def test_first_of_several_replies_is_enough_when_asked_for(pair):
    result = ping(pair, "10.9.0.2", count=5, enough=1, interval_s=60, timeout_s=5)
    assert (result["sent"], result["received"], result["error"]) == (1, 1, None)


def test_silence_is_told_from_refusal_and_from_a_missing_route(pair):
    # 10.9.0.2 drops on input; the kernel itself has no route to 198.51.100.1
    pair.right.run("ip route add blackhole 10.9.0.1/32")
    try:
        silent = ping(pair, "10.9.0.2", count=2, interval_s=0.05)
    finally:
        pair.right.run("ip route del blackhole 10.9.0.1/32")
    unroutable = ping(pair, "198.51.100.1")
    assert (silent["error"], silent["sent"]) == ("no_reply", 2)
    assert "0 replies to 2 requests" in silent["evidence"]
    assert unroutable["error"] == "send_error"
    assert "ENETUNREACH" in unroutable["evidence"]


def test_refusal_by_a_router_is_quoted(pair):
    pair.left.run("ip route add 203.0.113.0/24 via 10.9.0.2")
    pair.right.run("sysctl -qw net.ipv4.ip_forward=1")
    pair.right.run("ip route add unreachable 203.0.113.0/24")
    result = ping(pair, "203.0.113.7", timeout_s=5)
    assert (result["error"], result["received"]) == ("icmp_error", 0)
    assert result["evidence"] == "10.9.0.2 says: destination host unreachable"


def test_namespace_that_is_not_there_is_no_verdict_on_the_path(pair):
    result = ping(pair, "10.9.0.2", netns="there-is-no-such-namespace")
    assert (result["error"], result["sent"]) == ("setup_error", 0)


def test_one_bad_ping_does_not_hold_up_the_others(pair):
    pings = [
        {"id": n, "netns": pair.left.path, "target": target, "timeout_s": 5 if n else 0.2}
        for n, target in enumerate(["10.9.0.99", "10.9.0.2", "127.0.0.1"])
    ]
    _, answer = probe({"op": "ping", "pings": pings})
    assert [(r["id"], r["received"]) for r in answer["results"]] == [(0, 0), (1, 1), (2, 1)]


def test_job_ends_with_its_last_ping_however_long_another_was_given(pair):
    pair.left.run("ip route add blackhole 192.0.2.0/24")
    pair.right.run("ip route add 192.0.2.0/24 via 10.9.0.1")
    answered = {"id": 0, "netns": pair.left.path, "target": "10.9.0.2", "timeout_s": 600}
    silent = {"id": 1, "netns": pair.right.path, "target": "192.0.2.1", "timeout_s": 0.2}
    _, answer = probe({"op": "ping", "pings": [answered, silent]})
    assert [(r["received"], r["error"]) for r in answer["results"]] == [(1, None), (0, "no_reply")]


@pytest.mark.parametrize(
    "job",
    ["not json", "[]", '{"op":"dance"}', '{"op":"ping"}', '{"op":"ping","pings":[{"target":"fd00::1"}]}'],
)
def test_bad_job_is_an_error_document_with_exit_2(job):
    code, answer = probe(job)
    assert (code, answer["kind"], answer["error"]["code"]) == (2, "Error", "OVL-100")


def test_observation_shows_links_routes_and_sysctls(pair):
    job = {"op": "observe", "netns": pair.left.path, "sysctls": ["net/ipv4/ip_forward", "net/no/such"]}
    code, answer = probe(job)
    assert (code, answer["rules"]) == (0, None)
    kernel = answer["kernel"]
    assert {link["name"] for link in kernel["links"]} >= {"lo", "eth0"}
    assert "10.9.0.0/24" in {route["dst"] for route in kernel["routes"]}
    assert kernel["sysctls"] == {"net/ipv4/ip_forward": "0", "net/no/such": None}


def test_addresses_leave_out_loopback_and_what_cannot_be_entered(pair):
    _, answer = probe({"op": "addresses", "netns": [pair.left.path, "no-such-namespace"]})
    assert answer["addresses"] == {pair.left.path: ["10.9.0.1"], "no-such-namespace": []}


class Capture:
    """A running capture; `stop` ends its input and answers its report."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.process = subprocess.Popen(PROBE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": "capture", **job}) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout is not None
        self.armed = json.loads(self.process.stdout.readline())

    def stop(self) -> dict[str, Any]:
        out, _ = self.process.communicate()
        return dict(json.loads(out))


def points(pair: Pair, *ifaces: str) -> list[dict[str, str]]:
    sides = (pair.left, pair.right)
    return [{"netns": side.path, "iface": iface} for side, iface in zip(sides, ifaces, strict=False)]


def test_packet_sent_after_armed_is_seen_at_both_ends_in_order(pair):
    capture = Capture({"points": points(pair, "eth0", "eth0"), "seconds": 60, "max_frames": 100})
    assert capture.armed["armed"] is True
    assert ping(pair, "10.9.0.2", timeout_s=5)["received"] == 1
    report = capture.stop()
    echoes = [f for f in report["frames"] if base64.b64decode(f["data"])[12:14] == b"\x08\x00"]
    assert [(f["point"], f["direction"]) for f in echoes] == [(0, "out"), (1, "in"), (1, "out"), (0, "in")]
    assert [f["t_ns"] for f in echoes] == sorted(f["t_ns"] for f in echoes)
    assert [point["dropped"] for point in report["points"]] == [0, 0]


def test_only_frames_that_hold_the_wanted_bytes_are_kept(pair):
    job = {"points": points(pair, "eth0"), "seconds": 60, "max_frames": 100, "contains": ["0a09004d"]}
    capture = Capture(job)
    ping(pair, "10.9.0.2", timeout_s=5)
    ping(pair, "10.9.0.77")  # whom nobody has asked for yet: a question that is under way is not asked again
    frames = [base64.b64decode(f["data"]) for f in capture.stop()["frames"]]
    assert frames
    assert all(bytes([10, 9, 0, 77]) in frame for frame in frames)


def test_full_capture_stops_by_itself_and_says_so(pair):
    capture = Capture({"points": points(pair, "eth0"), "seconds": 60, "max_frames": 1})
    ping(pair, "10.9.0.2", count=2, interval_s=0.01, timeout_s=5)
    report = capture.stop()
    assert (len(report["frames"]), report["truncated"]) == (1, True)


def test_missing_interface_is_reported_before_anything_is_sent(pair):
    capture = Capture({"points": points(pair, "eth0", "eth7"), "seconds": 60})
    assert capture.armed["armed"] is False
    assert [point["error"] for point in capture.armed["points"]] == [None, os.strerror(19)]
    assert capture.stop()["points"][1]["dropped"] is None


def test_capture_ends_when_its_time_is_up(pair):
    capture = Capture({"points": points(pair, "eth0"), "seconds": 0.1})
    assert capture.process.stdout is not None
    assert json.loads(capture.process.stdout.readline())["kind"] == "Capture"
    capture.process.communicate()
