"""Labs of ordinary users: two users with two labs each at once, one of the names the same, and root's none.

The tests are root, the commands are not: they run as users without rights, with homes of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.lab import requires_lab
from helpers.learner import CLONE, OVERLAYNET, Learner, ended, learners, requires_user_namespaces

from overlaynet.kernel import process
from overlaynet.lab.marker import FILE
from overlaynet.lab.paths import Paths

pytestmark = [pytest.mark.lab, requires_lab, requires_user_namespaces]

KINDS = ("user", "mnt", "net")
QUICKSTART = CLONE / "labs" / "quickstart.yaml"
NAMES = ("shared", "ada", "bob", "twice", "failing")
SMALL = ("--hosts", "2", "--containers", "1")


@pytest.fixture(scope="module")
def users() -> Iterator[list[Learner]]:
    with learners(3) as found:
        yield found


def traces_of(users: list[Learner]) -> list[str]:
    """What these users have on this machine: processes, files, mounts and names outside of their sandboxes."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    names = [f"ovl-{name}-" for name in NAMES]
    return [
        *(line for user in users for line in (*user.processes(), *user.files())),
        *(line for line in mounts if "tmpfs overlaynet" in line or any(name in line for name in names)),
        *(str(file) for file in Path("/run/netns").glob("*") if file.name.startswith(tuple(names))),
        *(str(file) for file in Path("/run/overlaynet/labs").glob("*") if file.name in NAMES),
    ]


@pytest.fixture(scope="module")
def labs(users: list[Learner]) -> list[tuple[Learner, str]]:
    """Whose labs there are, by what name; all made at the same time."""
    assert traces_of(users) == []
    ada, bob, _ = users
    wanted = [
        (ada, "shared", (str(QUICKSTART),)),
        (ada, "ada", SMALL),
        (bob, "shared", SMALL),
        (bob, "bob", SMALL),
    ]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda w: w[0].overlaynet("up", "-l", w[1], *w[2]), wanted))
    assert [d.returncode for d in done] == [0, 0, 0, 0], [d.stderr for d in done]
    return [(user, name) for user, name, _ in wanted]


@pytest.fixture(scope="module")
def ada(users: list[Learner], labs: object) -> Learner:
    """A user with the quickstart's lab under the name "shared", and another one."""
    return users[0]


@pytest.fixture(scope="module")
def bob(users: list[Learner], labs: object) -> Learner:
    return users[1]


# --- several at once ------------------------------------------------------------------------------


def test_all_four_are_traced_at_the_same_time_and_proved(labs: list[tuple[Learner, str]]) -> None:
    targets = ("client-1 web-1", "web-1 web-2", "web-1 web-2", "web-1 web-2")
    commands = [
        user.start(*OVERLAYNET, "trace", *words.split(), "-l", name)
        for (user, name), words in zip(labs, targets, strict=True)
    ]
    done = [ended(command) for command in commands]
    assert [(d.returncode, "PROVED" in d.stdout) for d in done] == [(0, True)] * 4, [d.stderr for d in done]


def test_they_share_no_namespace_with_each_other_nor_with_the_machine(labs: list[tuple[Learner, str]]) -> None:
    found = [namespaces(user, name) for user, name in labs]
    assert all(len(one) >= 6 for one in found), "user, mnt, and net of two hosts, etcd and the commands"
    apart = [process.namespace_id(Path(f"/proc/self/ns/{kind}")) for kind in KINDS]
    for one in found:
        apart += one
    assert len(set(apart)) == len(apart)


def namespaces(user: Learner, name: str) -> set[object]:
    """All namespaces in which the processes of one lab are."""
    pids = [p.pid for p in user.inside(name)]
    assert user.keeper(name).pid in pids
    return {process.namespace_id(Path(f"/proc/{pid}/ns/{kind}")) for pid in pids for kind in KINDS}


def test_each_user_has_the_own_labs_alone(ada: Learner, bob: Learner) -> None:
    names = [[lab["name"] for lab in user.json("get", "labs")["items"]] for user in (ada, bob)]
    assert names == [["ada", "shared"], ["bob", "shared"]]
    assert bob.overlaynet("status", "-l", "ada").returncode == 2
    assert len(bob.json("get", "hosts", "-l", "shared")["items"]) == 2
    assert len(ada.json("get", "hosts", "-l", "shared")["items"]) == 3


def test_nobody_else_can_read_or_join_or_end_a_lab(ada: Learner, bob: Learner) -> None:
    lab, keeper = ada.paths.lab("ada"), ada.keeper("ada").pid
    ask = f"import socket; socket.socket(socket.AF_UNIX).connect({str(lab.host('node-1').socket)!r})"
    attempts = [
        ("cat", lab.lab_json),
        ("cat", lab.durable_json),
        ("ls", ada.paths.run_root),
        ("ls", ada.paths.state_root),
        (sys.executable, "-c", ask),
        ("nsenter", "--user", "--mount", "--preserve-credentials", f"--target={keeper}", "true"),
        ("ls", f"/proc/{keeper}/root/run/netns"),
        ("kill", str(keeper)),
    ]
    done = [bob.run(*words) for words in attempts]
    assert all(d.returncode != 0 for d in done)
    assert all("denied" in d.stderr or "not permitted" in d.stderr for d in done), [d.stderr for d in done]
    assert ada.run(*attempts[4]).returncode == 0, "the same by the owner works"


# --- what every command does ----------------------------------------------------------------------


def test_a_service_is_traced_and_proved_and_the_picture_is_where_it_was_asked_for(ada: Learner) -> None:
    words = ("trace", "client-1", "svc/web", "-l", "shared", "-w", "trace.svg")
    eventually(lambda: "PROVED" in ada.overlaynet(*words).stdout, deadline_s=20)
    assert (ada.home / "trace.svg").stat().st_uid == ada.uid
    (ada.home / "trace.svg").unlink()


def test_every_container_pings_every_other(ada: Learner) -> None:
    document = ada.json("verify", "mesh", "-l", "shared")
    assert (document["passed"], document["total"]) == (30, 30)


def test_looking_says_what_is_there_and_well(ada: Learner) -> None:
    status = ada.json("status", "-l", "shared")
    assert (status["state"], status["ended"], status["problems"]) == ("ready", False, [])
    assert len(ada.json("get", "containers", "-l", "shared")["items"]) == 6
    assert all(rule["state"] == "ok" for rule in ada.json("get", "rules", "-l", "shared")["items"])
    assert ada.json("diff", "-l", "shared")["count"] == 0


def test_a_command_inside_finds_the_lab_again_without_its_environment(ada: Learner) -> None:
    inner = ("env", "-i", "PATH=/usr/bin:/bin", *OVERLAYNET, "get", "hosts", "-l", "ada", "-o", "name")
    done = ada.overlaynet("exec", "-l", "ada", "web-1", "--", *inner)
    assert (done.returncode, done.stdout.split()) == (0, ["node-1", "node-2"]), done.stderr
    other = ada.overlaynet("exec", "-l", "ada", "web-1", "--", *OVERLAYNET, "get", "hosts", "-l", "shared")
    assert "inside of lab 'ada'" in other.stderr
    assert (other.returncode, "OVL-203" in other.stderr) == (3, True)


def test_programs_of_root_are_found_inside_though_the_users_path_has_them_not(ada: Learner) -> None:
    line = ("exec", "-l", "ada", "web-1", "--")
    done = ada.run("env", "PATH=/usr/bin:/bin", *OVERLAYNET, *line, "bridge", "-j", "fdb", "show")
    assert (done.returncode, done.stderr) == (0, "")
    done = ada.run("env", "PATH=/usr/bin:/bin", *OVERLAYNET, *line, "sh", "-c", "sysctl -n net.ipv4.ip_forward")
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_on_a_terminal_the_thread_that_shows_progress_is_in_nobodys_way(ada: Learner) -> None:
    line = " ".join((*OVERLAYNET, "up", "-l", "ada"))
    done = ada.run("env", "TERM=xterm", "script", "--quiet", "--return", "--command", line, "/dev/null")
    assert (done.returncode, "0 changes; lab ada is as described" in done.stdout) == (0, True), done.stdout


def test_a_script_on_the_python_interface_proves_its_claim(ada: Learner) -> None:
    script = CLONE / "labs" / "verify_service_nat.py"
    done = ada.run("env", "OVERLAYNET_LAB=shared", sys.executable, "-P", script)
    assert (done.returncode, "PROVED" in done.stdout) == (0, True), done.stdout + done.stderr


def test_what_is_broken_is_found_by_trace_and_healed(ada: Learner) -> None:
    assert ada.overlaynet("break", "fdb", "node-1", "node-2", "-l", "ada").returncode == 0
    lost = ada.overlaynet("trace", "web-1", "web-2", "-l", "ada")
    assert (lost.returncode, "LOST" in lost.stdout, "fdb missing on node-1" in lost.stdout) == (1, True, True)
    assert ada.overlaynet("heal", "-l", "ada").returncode == 0
    assert ada.overlaynet("trace", "web-1", "web-2", "-l", "ada").returncode == 0


# --- ends -----------------------------------------------------------------------------------------


def test_a_lab_whose_keeper_was_killed_says_so_and_is_built_again(bob: Learner) -> None:
    old = bob.inside("bob")
    process.kill([bob.keeper("bob")])
    status = bob.json("status", "-l", "bob")
    assert (status["state"], status["ended"], status["rebooted"]) == ("ended", True, False)
    assert "lab bob: its sandbox has ended" in bob.overlaynet("clean").stderr
    assert bob.overlaynet("up", "-l", "bob").returncode == 0
    assert not any(p.alive for p in old), "what was left of the old one has ended"
    assert "PROVED" in bob.overlaynet("trace", "web-1", "web-2", "-l", "bob").stdout


TWICE = """
import sys
from overlaynet.lab.lab import Lab
from overlaynet.lab.lifecycle import down
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import Topology
for _ in range(2):
    Lab.up(Topology.simple("twice", 1, 0))
    down("twice", Paths.here())
"""


def test_one_process_may_take_a_lab_down_and_build_it_again_as_a_lesson_is_reset(users: list[Learner]) -> None:
    cleo = users[2]
    done = cleo.run(sys.executable, "-P", "-c", TWICE)
    assert done.returncode == 0, done.stderr
    assert (cleo.processes(), cleo.files()) == ([], [])


def test_a_first_up_that_fails_takes_the_sandbox_away_again(users: list[Learner]) -> None:
    cleo = users[2]
    etcd = cleo.home / "bin" / "etcd"
    etcd.parent.mkdir()
    etcd.write_text("#!/bin/sh\nexit 1\n")
    etcd.chmod(0o755)
    mine = cleo.files()
    failing = Learner(cleo.uid, cleo.home, cleo.door, {"PATH": f"{etcd.parent}:/usr/bin:/bin"})
    done = failing.overlaynet("up", "-l", "failing", *SMALL)
    assert (done.returncode, "etcd did not start" in done.stderr) == (3, True), done.stderr
    assert (cleo.processes(), cleo.files()) == ([], mine)
    shutil.rmtree(etcd.parent)


def test_all_of_it_is_gone_after_down(users: list[Learner], labs: list[tuple[Learner, str]]) -> None:
    there = traces_of(users)
    pids = [p for user, name in labs for p in user.inside(name)]
    assert len(there) > len(pids) > len(labs)
    done = [user.overlaynet("down", "-l", name) for user, name in labs]
    assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
    assert not any(p.alive for p in pids)
    assert traces_of(users) == []


# --- refused --------------------------------------------------------------------------------------


@pytest.fixture
def forbidden(users: list[Learner]) -> Learner:
    """A user on a machine that allows no user namespaces: inside a user namespace of the test's own, in which
    ids are the same and the limit is 0 (it is each namespace's own setting)."""
    cleo = users[2]
    return Learner(cleo.uid, cleo.home, (*cleo.door, sys.executable, "-c", FORBIDDING))


FORBIDDING = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
parent = os.getpid()
if (child := os.fork()) == 0:
    os.read(ready[0], 1)
    for kind in ("uid", "gid"):
        with open(f"/proc/{parent}/{kind}_map", "w") as file:
            file.write("0 0 4000000")
    os.write(go[1], b"x")
    os._exit(0)
assert ctypes.CDLL(None).unshare(0x10000000) == 0
os.write(ready[1], b"x")
os.read(go[0], 1)
os.waitpid(child, 0)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_machine_that_allows_no_user_namespaces_is_told_from_others_and_nothing_is_left(
    forbidden: Learner,
) -> None:
    done = forbidden.overlaynet("up", *SMALL)
    assert (done.returncode, "OVL-208" in done.stderr) == (3, True), done.stderr
    assert "it allows no user namespaces" in done.stderr
    assert "try  sudo sysctl -w user.max_user_namespaces=" in done.stderr
    assert "try  sudo overlaynet up" in done.stderr
    assert (forbidden.processes(), forbidden.files()) == ([], [])


def test_doctor_tells_whether_labs_without_sudo_work(users: list[Learner], forbidden: Learner) -> None:
    found = [{c["name"]: c for c in user.json("doctor")["checks"]} for user in (users[2], forbidden)]
    assert [checks["privilege"]["state"] for checks in found] == ["ok", "fail"]
    assert found[0]["vxlan-device"]["state"] == found[0]["rules"]["state"] == "ok"
    assert found[1]["privilege"]["next"] == "sudo sysctl -w user.max_user_namespaces=15000"
    assert not users[2].processes()


def test_root_is_in_no_sandbox() -> None:
    assert not FILE.exists()
    assert (os.geteuid(), Paths.here()) == (0, Paths())
