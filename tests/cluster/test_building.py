"""Where an inventory comes from: a file, or Vagrant."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlaynet.cli.lifecycle import down_text
from overlaynet.cluster import building
from overlaynet.cluster.building import Inventory
from overlaynet.errors import EnvironmentProblem, ToolMissing, TopologyError, UsageError
from overlaynet.lab import lifecycle
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState, save
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.fake

CONFIG = "Host node-1\n  HostName 127.0.0.1\n  Port 2222\nHost node-2\n  HostName 127.0.0.1\n  Port 2200\n"


@pytest.fixture
def privileged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as capabilities and programs go; nothing here needs them."""
    monkeypatch.setattr(lifecycle, "require_privilege", lambda purpose: None)
    monkeypatch.setattr(lifecycle.process, "tool", lambda name: name)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All there is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def vagrant(programs: Path, script: str) -> None:
    program = programs / "vagrant"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_vagrant_tells_its_machines(programs: Path) -> None:
    vagrant(programs, f"test \"$1\" = ssh-config || exit 9\necho '{CONFIG}'")
    found = Inventory.of_vagrant()
    assert (found.driver, found.hosts, found.text.strip()) == ("vagrant", ("node-1", "node-2"), CONFIG.strip())


def test_without_vagrant_it_is_named(programs: Path) -> None:
    with pytest.raises(ToolMissing, match="vagrant"):
        Inventory.of_vagrant()


@pytest.mark.parametrize("script", ["echo 'not yet ready for SSH' >&2; exit 1", "exit 0"])
def test_machines_that_do_not_run_are_to_be_started(programs: Path, script: str) -> None:
    vagrant(programs, script)
    with pytest.raises(EnvironmentProblem) as raised:
        Inventory.of_vagrant()
    assert "vagrant up" in raised.value.next


def test_inventory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        Inventory.read(tmp_path / "nowhere")


def test_down_tells_what_is_left_and_how_to_go_on() -> None:
    left = ["node-1: web-1: node-1 cannot be reached"]
    text = down_text("roam", left, forced=False, command="overlaynet {} -l roam".format)
    assert text.splitlines() == [
        "left     node-1: web-1: node-1 cannot be reached",
        "lab roam is not down everywhere",
        "next: overlaynet down -l roam",
    ]
    assert down_text("roam", left, forced=True, command=str).endswith("lab roam is down")


# --- a lab of that name ---------------------------------------------------------------------------


def refused(paths: Paths, state: LabState) -> TopologyError:
    """By a lab that is there; no machine is asked."""
    save(paths.lab("roam"), state)
    inventory = Inventory("ssh", "FILE", CONFIG, ("node-1", "node-2"))
    with pytest.raises(TopologyError) as raised:
        building.up(Topology.of_hosts(["node-1"], "roam"), inventory, paths, timeout_s=1.0)
    return raised.value


def test_lab_of_namespaces_is_not_made_one_of_machines(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "run", tmp_path / "state")
    assert "namespaces" in refused(paths, LabState(Topology.simple("roam"), "")).message


def test_lab_of_machines_is_not_made_or_taken_as_one_of_namespaces(tmp_path: Path, privileged: None) -> None:
    paths = Paths(tmp_path / "run", tmp_path / "state")
    save(paths.lab("roam"), LabState(Topology.simple("roam"), "", driver="ssh"))
    for change in (
        lambda: lifecycle.up(Topology.simple("roam"), paths, timeout_s=1.0),
        lambda: lifecycle.down("roam", paths),
    ):
        with pytest.raises(TopologyError, match="on machines"):
            change()
    assert paths.lab("roam").lab_json.exists()


def test_machines_that_have_something_of_the_lab_stay_in_its_inventory(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "run", tmp_path / "state")
    state = LabState(Topology.of_hosts(["node-7"], "roam"), "", driver="ssh", machines=("node-7",))
    error = refused(paths, state)
    assert "node-7" in error.message
    assert any("--force" in step for step in error.next)
