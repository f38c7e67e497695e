"""`trace` and `explain` in a whole lab: exit codes, files and bundles, with and without agents and etcd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from helpers.eventually import eventually
from helpers.lab import cleaned_up, lab_name, requires_lab
from helpers.served_lab import NODE_PORT, PORT, VIP, ServedLab, served_lab

from overlaynet.cli import main as program
from overlaynet.cli.app import App
from overlaynet.cluster.contexts import LabCluster
from overlaynet.kernel import process
from overlaynet.lab import lifecycle
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import Topology

pytestmark = [pytest.mark.lab, requires_lab, pytest.mark.timeout(240)]

Run = Callable[..., tuple[int, str]]

PROVED, NO, USAGE, INCONCLUSIVE = 0, 1, 2, 4


@pytest.fixture(scope="module")
def lab() -> Iterator[ServedLab]:
    with served_lab(lab_name("verbs")) as made:
        yield made


@pytest.fixture
def run(lab: ServedLab, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line; answers exit code and standard output, or error where that is empty."""

    def command(*arguments: str) -> tuple[int, str]:
        code = program.run(arguments, App(pick=lambda _: LabCluster(lab.lab)))
        out, err = capfd.readouterr()
        return code, click.unstyle(out or err)

    return command


def traced(run: Run, *words: str) -> tuple[int, dict[str, Any]]:
    code, out = run("trace", *words, "-o", "json")
    return code, dict(json.loads(out))


@contextmanager
def broken(run: Run, *words: str) -> Iterator[None]:
    code, said = run("break", *words)
    assert code == 0, said
    try:
        yield
    finally:
        assert run("heal")[0] == 0


def told(document: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same when a trace is judged again: all but what only sending knows."""
    return {name: value for name, value in document.items() if name not in ("lab", "timing", "bundle")}


# --- verdicts and exit codes ----------------------------------------------------------------------


def test_what_arrives_is_proved(run: Run) -> None:
    code, out = run("trace", "web-1", "svc/web")
    assert (code, "PROVED" in out) == (PROVED, True), out
    assert run("trace", "web-1", "web-2", "-o", "name") == (PROVED, "proved\n")
    code, out = run("trace", "web-1", "web-2", "--expect", "dropped")
    assert (code, "WRONG PATH" in out) == (NO, True), out


def test_what_is_rejected_is_proved_only_if_it_was_to_be(run: Run) -> None:
    with broken(run, "rule", "node-1", "web-1", "web-2", "--reject"):
        code, found = traced(run, "web-1", "web-2", "--tcp", str(PORT))
        assert (code, found["verdict"], found["outcome"]) == (NO, "lost", "rejected")
        assert (found["cause"]["kind"], found["cause"]["certainty"]) == ("rule_reject", "certain")
        code, found = traced(run, "web-1", "web-2", "--tcp", str(PORT), "--expect", "rejected")
        assert (code, found["verdict"], found["outcome"]) == (PROVED, "proved", "rejected")
        code, out = run("trace", "web-1", "web-2", "--expect", "dropped")
        assert (code, "LOST" in out) == (NO, True), out
        code, out = run("explain", "web-1", "web-2")
        assert (code, "rejected" in out) == (NO, True), out


def test_what_is_lost_is_lost_at_a_hop_because_of_an_entry(run: Run) -> None:
    with broken(run, "fdb", "node-1", "node-2"):
        code, found = traced(run, "web-1", "web-2")
    assert (code, found["verdict"], found["cause"]["kind"]) == (NO, "lost", "fdb_missing")
    assert found["lost_between"] == ["node-1:flannel.1", "node-2:eth0"]
    assert found["cause"]["source"] == {"kind": "lease", "name": "10.244.2.0-24"}
    assert "overlaynet heal" in found["cause"]["next"]
    assert [hop["point"] for hop in found["forward"] if hop["seen"]][-1] == "node-1:flannel.1"
    assert not any(hop["seen"] for hop in found["guards"])


def test_a_host_that_cannot_be_looked_at_leaves_it_open(run: Run, lab: ServedLab) -> None:
    """Its namespace lives, held by its agent, but nobody finds it."""
    name, agent = namespace(lab.lab.name, "node-2"), lab.lab.pid("agent/node-2")
    subprocess.run(["ip", "netns", "delete", name], check=True)
    try:
        for ends in (["web-1", "web-2"], ["web-2", "web-1"], ["node-2", "web-1"]):
            code, found = traced(run, *ends)
            assert (code, found["verdict"]) == (INCONCLUSIVE, "inconclusive"), found
            assert f"there is no network namespace {name}" in " ".join(found["inconclusive_because"])
            assert run("explain", *ends)[0] == INCONCLUSIVE
        assert run("trace", "web-1", "web-3")[0] == PROVED
    finally:
        subprocess.run(["ip", "netns", "attach", name, str(agent)], check=True)


# --- files ----------------------------------------------------------------------------------------


def test_every_form_is_written_at_once(run: Run, tmp_path: Path) -> None:
    files = {end: tmp_path / f"way.{end}" for end in ("svg", "html", "md", "json", "ovltrace")}
    words = [word for file in files.values() for word in ("-w", str(file))]
    code, found = traced(run, "web-1", "web-2", *words)
    assert code == PROVED
    assert ElementTree.fromstring(files["svg"].read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert files["html"].read_text().lower().startswith("<!doctype html>")
    assert "sequenceDiagram" in files["md"].read_text()
    assert told(json.loads(files["json"].read_text())).items() <= told(found).items()
    assert files["ovltrace"].read_bytes() == Path(found["bundle"]).read_bytes()


@pytest.mark.parametrize(
    ("fault", "verdict"), [(None, "proved"), (["route", "node-1", "node-2"], "lost")], ids=["proved", "lost"]
)
def test_a_saved_trace_is_judged_the_same_again(run: Run, fault: list[str] | None, verdict: str) -> None:
    if fault is None:
        _, found = traced(run, "web-1", "web-2", "--udp", str(PORT), "--size", "4000")
    else:
        with broken(run, *fault):
            _, found = traced(run, "web-1", "web-2")
    assert found["verdict"] == verdict
    code, out = run("trace", "--replay", found["bundle"], "-o", "json")
    again = json.loads(out)
    assert (code, again["bundle"]) == ({"proved": PROVED, "lost": NO}[verdict], found["bundle"])
    assert told(again) == told(found)


def test_a_saved_state_is_explained_after_it_was_mended(run: Run) -> None:
    with broken(run, "neigh", "node-1", "node-2", "--wrong"):
        _, found = traced(run, "web-1", "web-2")
        code, now = run("explain", "web-1", "web-2", "-o", "json")
    assert code == NO
    code, saved = run("explain", "--from", found["bundle"], "-o", "json")
    one, other = json.loads(now), json.loads(saved)
    assert (code, one["outcome"], other["outcome"]) == (NO, "lost", "lost")
    assert one["paths"][0]["cause"] == other["paths"][0]["cause"] == found["cause"]
    assert run("explain", "web-1", "web-2")[0] == PROVED


def test_no_more_traces_are_kept_than_there_is_room_for(run: Run, lab: ServedLab) -> None:
    directory = LabCluster(lab.lab).traces()
    directory.mkdir(exist_ok=True)
    for number in range(30):
        file = directory / f"t-{number:08}.ovltrace"
        file.touch()
        os.utime(file, (number, number))
    _, found = traced(run, "web-1", "web-2")
    kept = {file.name for file in directory.iterdir()}
    assert len(kept) == 20
    assert Path(found["bundle"]).name in kept
    assert "t-00000000.ovltrace" not in kept


def test_traces_go_with_their_lab(capfd: pytest.CaptureFixture[str]) -> None:
    name, paths = lab_name("kept"), Paths()
    with cleaned_up(name, paths):
        assert Lab.up(Topology.simple(name, hosts=1, containers=1)).converged
        cluster = LabCluster(Lab.open(name))
        code = program.run(["trace", "web-1", "node-1", "-o", "name"], App(pick=lambda _: cluster))
        assert (code, capfd.readouterr().out) == (PROVED, "proved\n")
        [file] = cluster.traces().iterdir()
        lifecycle.down(name, paths)
        assert not file.exists()
        assert not cluster.traces().exists()


# --- as it is typed -------------------------------------------------------------------------------


def test_the_program_itself(lab: ServedLab) -> None:
    argv = [sys.executable, "-m", "overlaynet.cli.main", "trace", "outside", "node-1", "--tcp", str(NODE_PORT)]
    env = {**os.environ, "OVERLAYNET_LAB": lab.lab.name}
    done = subprocess.run([*argv, "-o", "json"], env=env, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["lab"]) == (PROVED, "proved", lab.lab.name), done.stderr
    timing = found["timing"]
    assert all(timing[f"{part}_s"] > 0 for part in ("import", "predict", "arm", "send", "judge"))
    assert sum(timing.values()) - timing["total_s"] == pytest.approx(timing["total_s"], rel=0.1)


# --- without agents and etcd ----------------------------------------------------------------------


def test_agents_and_etcd_are_not_needed(run: Run, lab: ServedLab) -> None:
    """Only etcd knows a service by its name; its address leads there all the same."""
    for host in lab.lab.hosts:
        lab.kill(host.name)
    pid = lab.lab.pid("etcd")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process.start_time(pid) is None, deadline_s=20)
    try:
        code, found = traced(run, "web-1", "web-2", "--tcp", str(PORT))
        assert (code, found["answer"]) == (PROVED, "syn-ack")
        code, found = traced(run, "web-1", VIP, "--tcp", "80")
        assert (code, found["answer"]) == (PROVED, "syn-ack"), found
        assert [change["from"] for hop in found["forward"] for change in hop["changes"]].count(VIP) == 1
        code, found = traced(run, "outside", "node-1", "--tcp", str(NODE_PORT))
        assert (code, found["answer"]) == (PROVED, "syn-ack"), found
        code, out = run("trace", "web-1", "svc/web")
        assert (code, "etcd could not be asked" in out) == (USAGE, True), out
    finally:
        lab.up()
