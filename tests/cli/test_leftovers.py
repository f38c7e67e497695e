"""What counts as left over, and what must never."""

from __future__ import annotations

import os

import pytest

from overlaynet.cli import leftovers as module
from overlaynet.cli.leftovers import leftovers
from overlaynet.kernel.process import Process, start_time
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState, Running, boot_id, changing, save
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.fake


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    """No namespace of the machine is seen."""
    monkeypatch.setattr(module.netns, "names", list)
    return Paths(tmp_path / "run", tmp_path / "state")


def lab(paths: Paths, name: str, *, boot: str | None = None, pid: int | None = None) -> None:
    running = {} if pid is None else {"etcd": Running(Process(pid, start_time(pid) or 0), "spec")}
    state = LabState(Topology.simple(name, 1, 0), boot or boot_id(), processes=running)
    save(paths.lab(name), state)


def found(paths: Paths) -> dict[str, str]:
    return {item.lab: item.why for item in leftovers(paths)}


def test_lab_with_a_living_process_is_none(paths):
    lab(paths, "alive", pid=os.getpid())
    assert found(paths) == {}


def test_lab_whose_processes_and_namespaces_are_gone_is_one(paths):
    lab(paths, "dead")
    assert found(paths) == {"dead": "nothing of it runs"}


def test_lab_from_before_a_restart_is_one_whatever_has_its_process_id_now(paths):
    lab(paths, "old", boot="another", pid=os.getpid())
    assert found(paths) == {"old": "the machine was restarted since it was up"}


def test_lab_that_another_command_is_making_is_none(paths):
    lab(paths, "coming")
    with changing(paths, "coming"):
        assert found(paths) == {}


def test_directory_without_a_state_file_and_one_that_is_damaged_are(paths):
    paths.lab("bare").state.mkdir(parents=True)
    paths.lab("damaged").run.mkdir(parents=True)
    paths.lab("damaged").lab_json.write_text("{")
    assert found(paths) == {"bare": "it has no state file", "damaged": "its state cannot be read"}


def test_namespaces_tell_of_a_lab_that_left_no_file(paths, monkeypatch):
    names = ["ovl-gone-underlay", "ovl-gone-node-1", "ovl-gone-b-underlay", "other"]
    monkeypatch.setattr(module.netns, "names", lambda: names)
    assert {item.lab: item.namespaces for item in leftovers(paths)} == {
        "gone": ("ovl-gone-underlay", "ovl-gone-node-1"),
        "gone-b": ("ovl-gone-b-underlay",),
    }
