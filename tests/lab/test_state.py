"""lab.json, and which lab is meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from overlaynet.errors import LabChoice, LabFailed, NameInvalid
from overlaynet.kernel.process import Process
from overlaynet.lab import state
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LOCAL, LabState, Running, choose, running_labs
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.unit


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "run", tmp_path / "state")


def lab_state(name: str = "default", boot_id: str | None = None) -> LabState:
    return LabState(
        topology=Topology.simple(name, 2, 1).keeping({"node-1": 4}),
        boot_id=boot_id or state.boot_id(),
        namespaces={"node-1": "", "web-1": "node-1"},
        processes={"etcd": Running(Process(12, 345), "spec")},
    )


def up(paths: Paths, *names: str) -> None:
    for name in names:
        state.save(paths.lab(name), lab_state(name))


def test_state_read_is_state_written(paths: Paths) -> None:
    state.save(paths.lab("default"), lab_state())
    assert state.load(paths.lab("default")) == lab_state()


def test_host_numbers_survive(paths: Paths) -> None:
    up(paths, "default")
    found = state.load(paths.lab("default"))
    assert found is not None
    assert {h.name: h.number for h in found.topology.hosts} == {"node-1": 4, "node-2": 2}


def test_no_lab_is_none(paths: Paths) -> None:
    assert state.load(paths.lab("default")) is None


def test_lab_is_still_known_when_run_was_emptied_by_a_reboot(paths: Paths) -> None:
    state.save(paths.lab("default"), lab_state(boot_id="an-earlier-one"))
    paths.lab("default").lab_json.unlink()
    found = state.load(paths.lab("default"))
    assert found is not None
    assert found.rebooted
    assert running_labs(paths) == ("default",)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"topology": {"hosts": [{"name": "A_"}]}}'])
def test_damaged_state_names_the_file_and_the_way_out(paths: Paths, text: str) -> None:
    up(paths, "default")
    paths.lab("default").lab_json.write_text(text)
    with pytest.raises(LabFailed) as caught:
        state.load(paths.lab("default"))
    assert str(paths.lab("default").lab_json) in caught.value.message
    assert caught.value.next == ("overlaynet down -l default",)


def test_file_is_replaced_and_no_other_is_left(paths: Paths) -> None:
    up(paths, "default", "default")
    assert [file.name for file in paths.lab("default").run.iterdir()] == ["lab.json"]
    assert json.loads(paths.lab("default").lab_json.read_text())["kind"] == "LabState"


@pytest.mark.parametrize(
    ("labs", "name", "environ", "want"),
    [
        pytest.param(["a", "b"], "b", {"OVERLAYNET_LAB": "a"}, "b", id="name-goes-first"),
        pytest.param(["a", "b"], None, {"OVERLAYNET_LAB": "a"}, "a", id="then-the-environment"),
        pytest.param(["a"], None, {}, "a", id="then-the-only-one"),
        pytest.param(["a"], "local", {}, LOCAL, id="local-by-name"),
    ],
)
def test_choice(paths: Paths, labs: list[str], name: str | None, environ: dict[str, str], want: str) -> None:
    up(paths, *labs)
    assert choose(name, environ, paths) == want


@pytest.mark.parametrize(
    ("labs", "name", "word"),
    [
        pytest.param(["a", "b"], None, "running: a, b", id="several"),
        pytest.param(["a"], "c", "running: a", id="another"),
        pytest.param([], None, "running: none", id="none"),
    ],
)
def test_no_choice_lists_labs(paths: Paths, labs: list[str], name: str | None, word: str) -> None:
    up(paths, *labs)
    with pytest.raises(LabChoice) as caught:
        choose(name, {}, paths)
    assert caught.value.evidence == word
    assert caught.value.exit_code == 2


def test_name_that_could_leave_the_directory_is_refused(paths: Paths) -> None:
    with pytest.raises(NameInvalid):
        choose("../x", {}, paths)


def test_without_labs_this_machines_own_agent_is_meant(paths: Paths) -> None:
    paths.run_root.mkdir()
    (paths.run_root / "agent.sock").touch()
    assert choose(None, {}, paths) == LOCAL
    up(paths, "a")
    assert choose(None, {}, paths) == "a"


def test_second_command_on_the_same_lab_is_refused_at_once(paths: Paths) -> None:
    with (
        state.changing(paths, "default"),
        pytest.raises(LabFailed, match="another command is changing"),
        state.changing(paths, "default"),
    ):
        pass


def test_lock_is_free_afterwards_and_leaves_nothing(paths: Paths) -> None:
    for _ in range(2):
        with state.changing(paths, "default"):
            assert paths.lock("default").exists()
    assert not paths.run_root.exists()


def test_directory_that_another_lab_takes_away_meanwhile_is_made_again(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, gone = os.open, []

    def late(file: Path, *more: int) -> int:
        if not gone:
            file.parent.rmdir()
            gone.append(file.parent)
        return plain(file, *more)

    monkeypatch.setattr(state.os, "open", late)
    with state.changing(paths, "default"):
        assert gone == [paths.labs]
        assert paths.lock("default").exists()


def test_files_that_cannot_be_written_are_a_failure_of_the_lab(paths: Paths) -> None:
    paths.run_root.write_text("not a directory")
    refused = pytest.raises(LabFailed, match="files of lab 'default' cannot be written")
    with refused as caught, state.changing(paths, "default"):
        pytest.fail("nothing may be done without the lock")
    assert str(paths.run_root) in caught.value.evidence
