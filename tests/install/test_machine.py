"""What is made of systemd's words about the unit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.eventually import eventually

from overlaynet.errors import InstallFailed
from overlaynet.install import machine
from overlaynet.install.machine import Service

pytestmark = pytest.mark.unit

SHOWN = """ActiveState=active
SubState=running
StatusText=ready; subnet 10.244.1.0/24, 2 peers, 4 containers
MainPID=812
NRestarts=0
InvocationID=6f1e
"""


def test_properties_are_read_by_name_and_a_value_may_hold_anything():
    said = SHOWN.replace("4 containers", "a=b")
    status = "ready; subnet 10.244.1.0/24, 2 peers, a=b"
    assert machine.parsed(said) == Service("active", "running", status, 812, 0, "6f1e")
    assert machine.parsed("") == Service("", "", "", 0, 0)


@pytest.mark.parametrize(
    ("active", "sub", "restarts", "state"),
    [
        ("active", "running", 0, "ready"),
        ("active", "running", 3, "ready"),
        ("reloading", "reload", 0, "ready"),
        ("activating", "start", 0, "starting"),
        ("activating", "start", 1, "failing"),
        ("activating", "auto-restart", 0, "failing"),
        ("failed", "failed", 0, "failing"),
        ("inactive", "dead", 0, "stopped"),
        ("deactivating", "stop-sigterm", 0, "starting"),
    ],
)
def test_state_in_a_word(active, sub, restarts, state):
    assert Service(active, sub, "", 1, restarts).state == state


def shown(monkeypatch, *states):
    """systemd says these one after the other, the last one again and again."""
    said = [Service(active, sub, "", 0, 0, invocation) for active, sub, invocation in states]
    monkeypatch.setattr(machine, "service", lambda: said.pop(0) if said[1:] else said[0])
    monkeypatch.setattr(machine, "POLL_S", 0.0)


RESTARTING = ("activating", "auto-restart")


@pytest.mark.parametrize(
    ("states", "end"),
    [
        ([("active", "running", "a"), ("deactivating", "stop", "a"), ("activating", "start", "b")], "ready"),
        ([(*RESTARTING, "a"), ("inactive", "dead", "a"), ("activating", "start", "b")], "ready"),
        ([("failed", "failed", "a"), ("activating", "start", "b"), (*RESTARTING, "b")], "failing"),
        ([("inactive", "dead", ""), ("activating", "start", "b")], "ready"),
    ],
    ids=["was ready", "was failing", "fails again", "was stopped"],
)
def test_restart_is_judged_by_what_came_after_it(monkeypatch, states, end):
    shown(monkeypatch, *states, ("active", "running", "b"))
    before = Service(*states[0][:2], "", 0, 0, states[0][2])
    assert machine.settled(before, 60).state == end


def test_agent_that_waits_for_etcd_is_not_waited_for_for_ever(monkeypatch):
    shown(monkeypatch, ("activating", "start", "b"))
    assert machine.settled(Service("inactive", "dead", "", 0, 0), 0).state == "starting"


def test_version_that_runs_is_told_by_its_interpreter(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    with subprocess.Popen([python, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        eventually(lambda: machine.runs_from(process.pid, tmp_path))  # the kernel shows it a moment late
        assert not machine.runs_from(process.pid, tmp_path.parent / "other")
    assert not machine.runs_from(process.pid, tmp_path)


def test_command_that_fails_is_an_error_with_its_own_words(tmp_path, monkeypatch):
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho 'Unit is masked.' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InstallFailed, match="systemctl restart x failed") as caught:
        machine.run("systemctl", "restart", "x")
    assert caught.value.evidence == "Unit is masked."
    assert machine.tried("systemctl", "reload") == "systemctl reload failed: Unit is masked."


def test_modules_that_are_not_loaded_are_found_and_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    (tmp_path / "vxlan").mkdir()
    monkeypatch.setattr(machine, "SYS_MODULE", tmp_path)
    assert machine.absent_modules(["vxlan", "br_netfilter"]) == ["br_netfilter"]
    monkeypatch.setattr(machine, "tried", lambda *argv: None if argv[1] == "vxlan" else " ".join(argv))
    assert machine.load(["vxlan", "br_netfilter"]) == ["modprobe br_netfilter"]


def test_systemd_is_asked_for_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "BOOTED", Path(tmp_path / "there-is-none"))
    assert not machine.booted()
