"""The command line over a real lab: agents, etcd, kernels. Each test leaves the lab whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.lab import cleaned_up, lab_name, requires_lab

from overlaynet.kernel import netns
from overlaynet.lab.lab import Lab
from overlaynet.lab.paths import Paths

pytestmark = [pytest.mark.lab, requires_lab]


@dataclass(frozen=True)
class Answer:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Commands as a person types them, about one lab."""

    lab: str

    def __call__(self, *words: str, stdin: str = "", **environ: str) -> Answer:
        argv = [sys.executable, "-m", "overlaynet.cli.main", *words]
        env = {**os.environ, "OVERLAYNET_LAB": self.lab, **environ}
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, env=env, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    def json(self, *words: str) -> Any:
        return self(*words, "-o", "json").document


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    name = lab_name("cli")
    with cleaned_up(name, Paths()):
        command = Shell(name)
        up = command("up", "--hosts", "2", "--containers", "2")
        assert up.code == 0, up
        yield command


def agent_pids(shell: Shell) -> list[int]:
    return [host["agent"]["pid"] for host in shell.json("get", "hosts")["items"] if host["agent"]["pid"]]


@pytest.fixture
def without_agents(shell: Shell) -> Iterator[Shell]:
    for pid in agent_pids(shell):
        os.kill(pid, 15)
    eventually(lambda: not agent_pids(shell), deadline_s=20)
    yield shell
    restored = shell.json("up")
    assert (restored["changes"], restored["converged"]) == (2, True)


def test_second_up_changes_nothing(shell):
    again = shell("up", "--hosts", "2", "--containers", "2")
    assert (again.code, again.out) == (0, f"0 changes; lab {shell.lab} is as described\n")


def test_up_tells_hosts_and_changes(shell):
    result = shell.json("up", "--hosts", "2", "--containers", "2")
    assert (result["changes"], [h["name"] for h in result["hosts"]]) == (0, ["node-1", "node-2"])
    assert result["ready_s"] >= 0


def test_every_pair_is_reachable(shell):
    verdict = shell("verify", "mesh")
    assert (verdict.code, verdict.out.splitlines()[-1]) == (0, "12/12 pairs reachable")


def test_status_and_lists_agree_on_what_there_is(shell):
    status = shell.json("status")
    assert (status["state"], status["rebooted"], status["problems"]) == ("ready", False, [])
    assert {h["name"]: h["subnet"] for h in status["hosts"]} == {
        "node-1": "10.244.1.0/24",
        "node-2": "10.244.2.0/24",
    }
    containers = shell.json("get", "containers")["items"]
    assert [(c["name"], c["ips"], c["ready"]) for c in containers] == [
        ("web-1", ["10.244.1.2"], True),
        ("web-2", ["10.244.1.3"], True),
        ("web-3", ["10.244.2.2"], True),
        ("web-4", ["10.244.2.3"], True),
    ]
    assert [item["live"] for item in shell.json("get", "leases")["items"]] == [True, True]
    assert shell.lab in shell("get", "labs", "-o", "name").out.split()


@pytest.mark.parametrize("kind", ["routes", "neighs", "fdb", "rules"])
def test_everything_of_ours_is_ok_and_has_a_source(shell, kind):
    ours = [item for item in shell.json("get", kind)["items"] if item["owner"] == "overlaynet"]
    assert ours
    assert {item["state"] for item in ours} == {"ok"}
    assert all(item["source"]["kind"] in {"lease", "workload", "policy", "host"} for item in ours)


def test_lost_route_is_found_and_mended_without_any_agent(without_agents):
    shell = without_agents
    assert shell("verify", "mesh").code == 0
    shell("exec", "node-1", "--", "ip", "route", "del", "10.244.2.0/24")

    verdict = shell.json("verify", "mesh")
    assert (shell("verify", "mesh").code, verdict["failed"]) == (1, 8)
    difference = shell("diff")
    assert (difference.code, "node-1  missing  route 10.244.2.0/24" in difference.out) == (1, True)
    assert [
        i["state"] for i in shell.json("get", "routes", "node-1")["items"] if i["dst"] == "10.244.2.0/24"
    ] == ["missing"]

    mended = shell.json("repair")
    assert [(h["host"], h["by"], h["changes"]) for h in mended["hosts"]] == [
        ("node-1", "once", 1),
        ("node-2", "once", 0),
    ]
    assert (shell("verify", "mesh").code, shell("diff").code) == (0, 0)


def test_agent_repairs_on_demand(shell):
    shell("exec", "node-1", "--", "ip", "neigh", "flush", "dev", "flannel.1", "nud", "permanent")
    assert shell("repair").code == 0
    assert (shell("diff").code, shell.json("repair")["hosts"][0]["by"]) == (0, "agent")


def test_verify_without_a_namespace_to_send_from_is_inconclusive(shell):
    netns.delete(f"ovl-{shell.lab}-web-1")
    try:
        verdict = shell("verify", "mesh", "-o", "json")
        checks = {c["id"]: c["verdict"] for c in verdict.document["checks"]}
        assert {checks["web-1:web-3"], checks["web-2:web-3"]} == {"inconclusive", "pass"}
        assert verdict.code in (1, 4)
    finally:
        assert shell("up").code == 0
    assert shell("verify", "mesh").code == 0


def test_command_in_a_container_sees_its_own_address(shell):
    shown = shell("exec", "web-3", "--", "ip", "-br", "address", "show", "eth0")
    assert "10.244.2.2/24" in shown.out
    for name in ("web-4", "node-2", "outside"):
        assert shell("exec", "web-1", "--", "ping", "-c1", "-W2", name).code == 0
    assert shell("exec", "web-1", "--", "sh", "-c", "exit 42").code == 42


def test_who_ends_exec_ends_the_command_which_decides_how(shell):
    line = ["sh", "-c", "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done"]
    argv = [sys.executable, "-m", "overlaynet.cli.main", "exec", "-l", shell.lab, "web-1", "--", *line]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            assert (process.wait(30), process.stdout.read()) == (3, "told\n")
        finally:
            with suppress(ProcessLookupError):  # else nobody is left
                os.killpg(process.pid, signal.SIGKILL)


def test_shell_knows_the_names(shell):
    answer = shell("shell", "web-1", stdin="echo at $web_4 in $OVERLAYNET_LAB\nip -br address show eth0\n")
    assert f"at 10.244.2.3 in {shell.lab}" in answer.out
    (own,) = shell.json("get", "container", "web-1")["items"]
    assert f"{own['ips'][0]}/24" in answer.out


def test_logs_are_the_agents(shell):
    assert "attached container=default/web-1" in shell("logs", "node-1").out
    last = shell.json("logs", "-n", "1")["items"]
    assert [item["host"] for item in last] == ["node-1", "node-2"]


def test_restarted_machine_is_told(shell):
    path = Lab.open(shell.lab).paths.lab_json
    before = path.read_text()
    path.write_text(before.replace(json.loads(before)["boot_id"], "another"))
    try:
        status = shell("status")
        assert (shell.json("status")["rebooted"], "the machine was restarted" in status.out) == (True, True)
    finally:
        path.write_text(before)


def test_reservation_is_kept_out_of_the_pool_until_it_is_deleted(shell):
    assert shell("lease", "reserve", "10.244.77.0/24", "--public-ip", "192.168.50.77").code == 0
    assert "10.244.77.0-24" in shell("get", "leases", "-o", "name").out.split()
    assert shell("lease", "delete", "10.244.77.0-24").code == 0
    assert "10.244.77.0-24" not in shell("get", "leases", "-o", "name").out.split()


def test_several_labs_want_a_choice(shell):
    other = Shell(lab_name("other"))
    with cleaned_up(other.lab, Paths()):
        assert other("up", "--hosts", "1", "--containers", "0").code == 0
        undecided = shell("status", OVERLAYNET_LAB="")
        assert (undecided.code, "OVL-104" in undecided.err, other.lab in undecided.err) == (2, True, True)
        assert shell("status", "-l", other.lab).code == 0
        down = other("down")
        assert (down.code, down.out) == (0, f"lab {other.lab} is down\n")


def test_what_a_dead_lab_left_is_listed_and_removed(shell):
    dead = lab_name("dead")
    netns.create(f"ovl-{dead}-underlay")
    left = Paths().lab(dead).run
    with cleaned_up(dead, Paths()):
        left.mkdir(parents=True)
        asked = shell("clean", "-l", dead)
        assert (asked.code, dead in asked.err, left.exists()) == (2, True, True)
        done = shell("clean", "--yes", "-l", dead)
        assert (done.code, f"lab {dead}: it has no state file" in done.out) == (0, True)
        assert not netns.exists(f"ovl-{dead}-underlay")
        assert not Path(left).exists()


def test_running_lab_is_never_cleaned(shell):
    assert shell("clean", "--yes", "-l", shell.lab).out == "nothing to clean\n"
    assert shell("verify", "mesh").code == 0


def test_doctor_finds_nothing_that_stops_a_lab(shell):
    doctor = shell("doctor", "-o", "json")
    assert (doctor.code, doctor.document["fail"]) == (0, 0)
    names = {check["name"] for check in doctor.document["checks"]}
    assert names >= {
        "privilege",
        "kernel",
        "namespaces",
        "ip",
        "iptables",
        "etcd",
        "vxlan-device",
        "rules",
        "labs",
    }
