"""`explain` and `trace` over a cluster in memory: what they refuse, what they say and with which exit code.

Nothing can be sent there, so every trace is inconclusive; those that prove something are in tests/lab.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_cluster import FakeCluster

from overlaynet.errors import LabFailed, StoreUnavailable
from overlaynet.state import ROUTE_PROTOCOL, Change, Op
from overlaynet.store import services

pytestmark = pytest.mark.fake

Run = Callable[..., tuple[int, str, str]]

VIP = "10.112.0.9"
WEB = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": VIP, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
}
TRACE_MEMBERS = {
    "schema", "kind", "lab", "id", "verdict", "from", "to", "protocol", "tag", "forward", "reply", "guards",
    "lost_between", "cause", "inconclusive_because", "capture", "timing", "bundle",
}  # fmt: skip
HOP_MEMBERS = {
    "seq", "point", "host", "netns", "iface", "direction", "predicted", "seen", "t_us", "outer", "inner",
    "changes", "why",
}  # fmt: skip
CAUSE_MEMBERS = {"kind", "point", "object", "expected", "found", "source", "certainty", "next"}
TIMING_MEMBERS = {"import_s", "predict_s", "arm_s", "send_s", "judge_s", "total_s"}


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    made = FakeCluster()
    made.traces_in = tmp_path / "traces"
    services.apply(made.memory, made.keys(), [WEB])
    for host in made.hosts():
        made.once(host.name, 1)
    return made


def document(run: Run, *line: str) -> dict[str, Any]:
    return dict(json.loads(run(*line, "-o", "json")[1]))


def lose_route(cluster: FakeCluster, host: str) -> None:
    """The host's route to the other one's containers."""
    kernel = cluster.kernels[host]
    route = next(r for r in kernel.observe().routes if r.protocol == ROUTE_PROTOCOL)
    kernel.tamper(Change(Op.DROP, route))


def without(cluster: FakeCluster, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This place's namespace cannot be entered."""
    see = cluster.place

    def place(asked: str, *, firewall: bool) -> dict[str, Any]:
        found = see(asked, firewall=firewall)
        gone = LabFailed("there is no such namespace", evidence=f"ovl-fake-{name}").as_json()
        return found | {"kernel": None, "rules": None, "error": gone} if asked == name else found

    monkeypatch.setattr(cluster, "place", place)


# --- explain --------------------------------------------------------------------------------------


def test_what_leaves_out_of_sight_is_not_said_to_arrive(run: Run) -> None:
    code, out, _ = run("explain", "node-1", "192.168.50.99")
    found = document(run, "explain", "node-1", "192.168.50.99")
    assert "leaves by node-1 eth0, out of sight" in out.splitlines()[-1]
    (path,) = found["paths"]
    assert (code, found["outcome"], path["out_of_sight"], path["arrived_at"]) == (4, "delivered", True, None)
    assert not document(run, "explain", "web-1", "web-2")["paths"][0]["out_of_sight"]


def test_a_path_is_explained_hop_by_hop(run: Run) -> None:
    code, out, err = run("explain", "web-1", "web-2")
    assert (code, err) == (0, "")
    assert "VXLAN vni 1" in out
    assert "delivered" in out.splitlines()[-1]
    found = document(run, "explain", "web-1", "web-2")
    assert (found["kind"], found["outcome"], found["protocol"]) == ("Explanation", "delivered", "icmp")
    points = [hop["point"] for hop in found["hops"]]
    assert (points[0], points[3:7], points[-1]) == (
        "web-1:eth0",
        ["node-1:flannel.1", "node-1:eth0", "node-2:eth0", "node-2:flannel.1"],
        "web-2:eth0",
    )
    assert [hop["seq"] for hop in found["hops"]] == list(range(1, 11))
    assert all(hop.keys() >= HOP_MEMBERS for hop in found["hops"])
    wrapped = found["hops"][4]
    assert {change["field"] for change in wrapped["changes"]} == {"encapsulation"}
    assert {change.keys() >= {"from", "to", "reason"} for change in wrapped["changes"]} == {True}
    fdb = next(why for why in wrapped["why"] if why["object"] == "fdb")
    assert fdb["source"] == {"kind": "lease", "name": "10.244.2.0-24"}
    assert fdb.keys() >= {"object", "key", "source", "command"}


def test_bare_names_are_outcome_and_verdict(run: Run, cluster: FakeCluster) -> None:
    assert run("explain", "web-1", "web-2", "-o", "name") == (0, "delivered\n", "")
    assert run("trace", "web-1", "web-2", "-o", "name") == (4, "inconclusive\n", "")
    lose_route(cluster, "node-1")
    assert run("explain", "web-1", "web-2", "-o", "name") == (1, "rejected\n", "")


def test_behind_a_service_are_as_many_ways_as_endpoints(run: Run) -> None:
    found = document(run, "explain", "web-1", "svc/web")
    assert {path["hops"][-1]["point"] for path in found["paths"]} == {"web-1:eth0", "web-2:eth0"}
    assert {path["nat"][0]["dst"] for path in found["paths"]} == {VIP}
    assert found["question"]["dst_port"] == 80


def test_what_is_missing_is_the_cause_with_its_source_and_what_to_type(run: Run, cluster: FakeCluster) -> None:
    lose_route(cluster, "node-1")
    code, out, _ = run("explain", "web-1", "web-2")
    assert code == 1
    assert "route missing" in out
    cause = document(run, "explain", "web-1", "web-2")["paths"][0]["cause"]
    assert cause.keys() == CAUSE_MEMBERS
    assert (cause["kind"], cause["source"]["name"]) == ("route_missing", "10.244.2.0-24")
    assert "overlaynet repair node-1" in cause["next"]


def test_an_answer_that_would_not_come_back_is_a_no(run: Run, cluster: FakeCluster) -> None:
    kernel = cluster.kernels["node-2"]
    kernel.tamper(*(Change(Op.DROP, entry) for entry in kernel.observe().fdb if entry.dev == "flannel.1"))
    found = document(run, "explain", "web-1", "web-2")
    assert (found["outcome"], found["paths"][0]["reply"]["outcome"]) == ("delivered", "lost")
    assert run("explain", "web-1", "web-2")[0] == 1


def test_a_sender_may_be_named_by_its_address(run: Run) -> None:
    assert document(run, "explain", "10.244.1.2", "web-2")["from"] == "web-1"
    assert document(run, "explain", "192.168.50.11", "web-2")["from"] == "node-1"


def test_a_packet_to_oneself_stays_at_home(run: Run) -> None:
    found = document(run, "explain", "web-1", "web-1")
    assert [hop["point"] for hop in found["hops"]] == ["web-1:lo", "web-1:lo"]


def test_explain_needs_no_etcd_but_for_names_of_services(run: Run, cluster: FakeCluster) -> None:
    cluster.store_error = StoreUnavailable("etcd cannot be reached")
    assert run("explain", "web-1", "10.244.2.2")[0] == 0
    assert run("explain", "web-1", VIP, "--tcp", "80")[0] == 0
    code, _, err = run("explain", "web-1", "svc/web")
    assert (code, "etcd could not be asked" in err) == (2, True)


def test_without_a_look_at_the_sender_nothing_is_known(run: Run, cluster: FakeCluster) -> None:
    cluster.probe_errors["node-1"] = LabFailed("the probe could not be started", evidence="no namespaces here")
    found = document(run, "explain", "web-1", "web-2")
    assert (run("explain", "web-1", "web-2")[0], found["paths"]) == (4, [])
    assert found["unread"] == [
        "web-1 could not be looked at: the probe could not be started: no namespaces here"
    ]
    assert "the probe could not be started: no namespaces here" in run("explain", "web-1", "web-2")[1]
    code, out, _ = run("trace", "web-1", "web-2")
    assert (code, "INCONCLUSIVE" in out, "the probe could not be started" in out) == (4, True, True)


@pytest.mark.parametrize("unseen", ["node-1", "node-2"])
def test_a_host_on_the_way_that_cannot_be_looked_at_leaves_it_open(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, unseen: str
) -> None:
    without(cluster, unseen, monkeypatch)
    code, out, _ = run("explain", "web-1", "web-2")
    assert (code, unseen in out) == (4, True)


def test_rules_that_could_not_be_read_leave_it_open(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    see = cluster.place
    said = ["its rules could not be read"]
    monkeypatch.setattr(
        cluster, "place", lambda name, firewall: see(name, firewall=firewall) | {"unread": said}
    )
    code, out, _ = run("explain", "web-1", "web-2")
    assert (code, "its rules could not be read" in out) == (4, True)


@pytest.mark.parametrize("verb", ["explain", "trace"])
def test_hosts_are_given_as_long_as_was_said(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    given, opens = [], cluster.session
    monkeypatch.setattr(
        cluster, "session", lambda host, timeout_s: given.append(timeout_s) or opens(host, timeout_s)
    )
    run(verb, "web-1", "web-2", "--timeout", "7")
    assert given == [7.0]


# --- trace ----------------------------------------------------------------------------------------


def test_a_trace_that_could_not_be_sent_is_inconclusive(run: Run) -> None:
    code, out, _ = run("trace", "web-1", "web-2")
    assert code == 4
    assert "INCONCLUSIVE" in out
    assert out.count("nothing could be sent from web-1") == 1
    assert "overlaynet status" in out


def test_a_trace_has_every_member(run: Run) -> None:
    found = document(run, "trace", "web-1", "svc/web")
    assert found.keys() >= TRACE_MEMBERS
    assert (found["kind"], found["lab"], found["verdict"]) == ("Trace", "fake", "inconclusive")
    assert (found["from"], found["to"], found["protocol"]) == ("web-1", "svc/web", "tcp")
    assert found["tag"].keys() == {"ip_id", "tcp_isn", "cookie"}
    assert found["timing"].keys() >= TIMING_MEMBERS
    assert found["capture"].keys() >= {"points", "drops"}
    assert found["inconclusive_because"]


def test_a_trace_is_kept_and_can_be_judged_again(run: Run, cluster: FakeCluster) -> None:
    found = document(run, "trace", "web-1", "web-2", "--expect", "rejected")
    assert found["bundle"] == str(cluster.traces_in / f"{found['id']}.ovltrace")
    code, out, _ = run("trace", "--replay", found["bundle"], "-o", "json")
    again = json.loads(out)
    assert code == 4
    same = ("id", "verdict", "expect", "question", "inconclusive_because", "bundle")
    assert {name: again[name] for name in same} == {name: found[name] for name in same}
    assert json.loads(run("trace", "--replay", found["bundle"], "--expect", "dropped", "-o", "json")[1])[
        "expect"
    ] == ("dropped")
    code, out, _ = run("explain", "--from", found["bundle"])
    assert (code, "delivered" in out) == (0, True)


def test_a_trace_that_cannot_be_kept_is_told_all_the_same(run: Run, cluster: FakeCluster) -> None:
    cluster.traces_in = Path("/dev/null/traces")
    assert document(run, "trace", "web-1", "web-2")["bundle"] is None


def test_as_many_traces_are_kept_as_there_is_room_for(run: Run, cluster: FakeCluster) -> None:
    ids = [document(run, "trace", "web-1", "web-2")["id"] for _ in range(22)]
    assert {file.stem for file in cluster.traces_in.iterdir()} == set(ids[-20:])


@pytest.mark.parametrize("form", ["svg", "html", "md", "json"])
@pytest.mark.parametrize("verb", ["explain", "trace"])
def test_every_form_can_be_written(run: Run, tmp_path: Path, verb: str, form: str) -> None:
    file = tmp_path / f"way.{form}"
    code, _, err = run(verb, "web-1", "web-2", "-w", str(file))
    assert (code, err) == ({"explain": 0, "trace": 4}[verb], f"written to {file}\n")
    begins = {"svg": "<svg ", "html": "<!doctype html>", "md": "", "json": "{"}[form]
    text = file.read_text()
    assert text.lower().startswith(begins)
    assert "web-1" in text


def test_a_written_bundle_is_the_kept_one(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.ovltrace"
    found = document(run, "trace", "web-1", "web-2", "-w", str(file))
    assert file.read_bytes() == Path(found["bundle"]).read_bytes()


# --- what is refused ------------------------------------------------------------------------------

USAGE, ENVIRONMENT = 2, 3


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("web-1", "a question has two ends", "overlaynet get containers"),
        ("", "a question has two ends", "overlaynet get containers"),
        ("web-1 web-2 --tcp 80 --udp 53", "a packet has one protocol", "--udp 53"),
        ("web-1 web-2 --tcp 80 --icmp", "a packet has one protocol", "overlaynet trace web-1 web-2 --icmp"),
        ("web-1 web-2 --icmp --sport 4000", "has no port to be sent from", "--sport 4000"),
        ("web-1 web-2 --sport 4000", "has no port to be sent from", "--sport 4000"),
        ("web-1 web-2 --tcp 80 --size 4", "carries no data", "--icmp --size 4"),
        ("web-1 svc/web --size 4", "carries no data", "--icmp --size 4"),
        ("web-1 web-2 --size 65508", "from 0 to 65507 bytes", "--size 65507"),
        ("web-1 web-2 --size -1", "from 0 to 65507 bytes", "--size 65507"),
        ("web-1 web-2 --tcp 0", "not in the range", "--help"),
        ("web-1 web-2 --udp 65536", "not in the range", "--help"),
        ("web-1 nobody", "no container or host 'nobody'", "overlaynet get containers"),
        ("nobody web-1", "no container or host 'nobody'", "overlaynet get containers"),
        ("svc/web web-1", "a service sends nothing: svc/web", "overlaynet get containers"),
        ("svc/none web-1", "a service sends nothing: svc/none", "overlaynet describe svc/none"),
        ("10.9.9.9 web-1", "no container or host '10.9.9.9'", "overlaynet get containers"),
        ("web-1 10.244.1.0/24", "no container or host '10.244.1.0/24'", "overlaynet get containers"),
        ("web-1 svc/none", "no service default/none", "overlaynet get services"),
        ("web-1 svc/web --udp 53 --icmp", "a packet has one protocol", "--icmp"),
        ("web-1 fd00::1", "an IPv6 address", "overlaynet get"),
        ("web-1 224.0.0.1", "nobody's address", "overlaynet get"),
        ("web-1 255.255.255.255", "nobody's address", "overlaynet get"),
        ("web-1 10.244.1.255", "nobody's address", "overlaynet get"),
        ("web-1 192.168.50.255", "nobody's address", "overlaynet get"),
        ("web-1 0.0.0.0", "nobody's address", "overlaynet get"),
    ],
)
@pytest.mark.parametrize("verb", ["explain", "trace"])
def test_a_question_that_cannot_be_asked(run: Run, verb: str, line: str, said: str, hint: str) -> None:
    code, out, err = run(verb, *line.split())
    assert (code, out) == (USAGE, "")
    assert err.startswith("error OVL-1")
    assert said in err.splitlines()[0]
    assert hint in err.partition("try")[2]


def test_an_unknown_expectation(run: Run) -> None:
    code, _, err = run("trace", "web-1", "web-2", "--expect", "luck")
    assert (code, "'luck' is not one of 'delivered', 'rejected', 'dropped'" in err) == (USAGE, True)


def test_an_unwired_container_cannot_send(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = [replace(container, ips=()) for container in cluster.containers()]
    monkeypatch.setattr("overlaynet.cluster.known.containers", lambda *_: bare)
    code, _, err = run("trace", "web-1", "web-2")
    assert (code, "web-1 has no address to send from" in err, "overlaynet status" in err) == (USAGE, True, True)


@pytest.mark.parametrize(
    "asked", [["web-1", "web-2"], ["web-1"], ["--tcp", "80"], ["--icmp"], ["--no-df"], ["--size", "9"]]
)
@pytest.mark.parametrize("verb", [["trace", "--replay"], ["explain", "--from"]])
def test_what_was_saved_is_asked_nothing_else(run: Run, verb: Sequence[str], asked: Sequence[str]) -> None:
    code, _, err = run(*verb, "x.ovltrace", *asked)
    assert code == USAGE
    assert "has its question with it" in err
    assert f"try  overlaynet {' '.join(verb)} x.ovltrace" in err


@pytest.mark.parametrize("verb", [["trace", "--replay"], ["explain", "--from"]])
def test_files_that_are_no_bundle(run: Run, tmp_path: Path, verb: Sequence[str]) -> None:
    code, _, err = run(*verb, str(tmp_path / "none"))
    assert (code, "there is no file" in err, "overlaynet trace FROM TO" in err) == (USAGE, True, True)
    code, _, err = run(*verb, str(tmp_path))
    assert (code, "cannot be read" in err) == (ENVIRONMENT, True)
    (tmp_path / "text").write_text("no bundle")
    code, _, err = run(*verb, str(tmp_path / "text"))
    assert (code, "OVL-109" in err, "overlaynet trace FROM TO -w" in err) == (USAGE, True, True)


@pytest.mark.parametrize("verb", [["trace", "--replay"], ["explain", "--from"]])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_damaged_bundle_is_told_as_one(run: Run, tmp_path: Path, verb: Sequence[str], share: float) -> None:
    whole = Path(document(run, "trace", "web-1", "web-2")["bundle"]).read_bytes()
    cut, changed = tmp_path / "cut.ovltrace", tmp_path / "changed.ovltrace"
    cut.write_bytes(whole[: int(len(whole) * share)])
    assert run(*verb, str(cut))[0] == USAGE
    at = int(len(whole) * share / 2)
    changed.write_bytes(whole[:at] + bytes(255 - octet for octet in whole[at : at + 9]) + whole[at + 9 :])
    code, _, err = run(*verb, str(changed), "-o", "table")
    assert (code, "OVL-109" in err) == (USAGE, True)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("way", USAGE, ".svg .html .md .json"),
        ("way.txt", USAGE, ".svg .html .md .json"),
        (".svg", USAGE, ".svg .html .md .json"),
        ("none/way.svg", ENVIRONMENT, "there is no directory"),
        ("directory.svg", ENVIRONMENT, "it is a directory"),
    ],
)
@pytest.mark.parametrize("verb", ["explain", "trace"])
def test_what_could_not_be_written_is_told_before_anything_is_sent(
    run: Run, cluster: FakeCluster, tmp_path: Path, verb: str, name: str, code: int, said: str
) -> None:
    (tmp_path / "directory.svg").mkdir()
    opened: list[str] = []
    cluster.session = lambda host, timeout_s: opened.append(host)  # type: ignore[assignment, return-value, func-returns-value]
    good = tmp_path / "good.json"
    found, out, err = run(verb, "web-1", "web-2", "-w", str(good), "-w", str(tmp_path / name))
    assert (found, out) == (code, "")
    assert said in err
    assert (opened, good.exists()) == ([], False)


def test_a_prediction_is_no_trace_to_be_kept(run: Run, tmp_path: Path) -> None:
    code, _, err = run("explain", "web-1", "web-2", "-w", str(tmp_path / "way.ovltrace"))
    assert (code, "does not say what to write" in err) == (USAGE, True)


def test_a_full_disk_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "way.json").symlink_to("/dev/full")
    code, _, err = run("explain", "web-1", "web-2", "-w", str(tmp_path / "way.json"))
    assert (code, "could not be written" in err) == (ENVIRONMENT, True)
