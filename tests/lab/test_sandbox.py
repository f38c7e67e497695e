"""A sandbox's record: whom it names, and who must not be taken for it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from overlaynet.errors import LabChoice, LabFailed
from overlaynet.kernel import process, userns
from overlaynet.kernel.process import Process
from overlaynet.lab import faults, marker, sandbox, state
from overlaynet.lab.marker import Marker
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.sandbox import Sandbox
from overlaynet.lab.state import LabState, choose, load
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.unit

START = process.start_time(os.getpid()) or 0


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "run", tmp_path / "state")


def record(lab: LabPaths, *, pid: int = os.getpid(), start: int = START, boot: str | None = None) -> Sandbox:
    made = Sandbox("an-id", Process(pid, start), boot or process.boot_id())
    state.save(lab, LabState(Topology.simple("lab", 1, 0), process.boot_id()))
    for file in (lab.sandbox, lab.durable_sandbox):
        file.write_text(made.as_text())
    return made


def test_a_lab_without_a_record_has_no_sandbox_and_has_not_ended(paths: Paths) -> None:
    lab = paths.lab("lab")
    assert sandbox.recorded(lab) is None
    assert not sandbox.has_ended(lab)


def test_a_record_is_read_as_it_was_written(paths: Paths) -> None:
    lab = paths.lab("lab")
    made = record(lab)
    assert sandbox.recorded(lab) == made
    found = load(lab)
    assert found is not None
    assert (found.sandbox_ended, found.ended) == (False, False)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"start": START + 1}, id="its-process-id-is-anothers-now"),
        pytest.param({"pid": 2**22 + 1}, id="its-process-is-gone"),
        pytest.param({"boot": "another"}, id="the-machine-was-restarted"),
    ],
)
def test_whoever_has_the_keepers_process_id_now_is_not_the_keeper(paths: Paths, change: dict[str, int]) -> None:
    lab = paths.lab("lab")
    record(lab, **change)  # type: ignore[arg-type]
    assert sandbox.has_ended(lab)
    found = load(lab)
    assert found is not None
    assert (found.rebooted, found.ended, found.why_ended) == (False, True, "was in a sandbox that has ended")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"id": "x", "keeper": {"pid": 1}, "boot_id": ""}'])
def test_a_damaged_record_is_of_a_sandbox_that_nobody_can_join(paths: Paths, text: str) -> None:
    lab = paths.lab("lab")
    record(lab)
    lab.sandbox.write_text(text)
    assert sandbox.has_ended(lab)


def test_without_the_files_of_the_session_a_living_keeper_does_not_count(paths: Paths) -> None:
    lab = paths.lab("lab")
    record(lab)
    lab.sandbox.unlink()
    lab.lab_json.unlink()
    assert sandbox.has_ended(lab)
    assert paths.names() == ("lab",)


def test_nobody_is_sent_to_root_for_a_lab_that_has_ended(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    record(paths.lab("lab"), boot="another")
    monkeypatch.setattr(faults.capability, "effective", frozenset)
    with pytest.raises(LabChoice, match="sandbox that has ended"), faults.changing_faults("lab", paths):
        pytest.fail("it was changed")


def test_markers_are_read_as_written_and_nothing_else_is_one() -> None:
    mine = Marker("an-id", "lab", "/run", "/state")
    assert Marker.of_text(mine.as_text()) == mine
    assert [Marker.of_text(text) for text in ("", "[]", "{}", '{"id": 1}')] == [None] * 4
    assert marker.of_process(2**22 + 1) is None


def test_another_labs_sandbox_is_no_way_to_this_one(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    record(paths.lab("lab"))
    monkeypatch.setattr(sandbox.marker, "here", lambda: Marker("other-id", "other", "", ""))
    monkeypatch.setattr(sandbox.os, "geteuid", lambda: 0)
    with pytest.raises(LabFailed, match="inside of lab 'other'"):
        sandbox.join("lab", paths.lab("lab"))


def test_threads_that_can_stop_are_stopped_for_the_time_of_joining_and_others_are_told(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(paths.lab("lab"))
    joined: list[int] = []
    said: list[str] = []
    monkeypatch.setattr(sandbox.userns, "join", joined.append)
    monkeypatch.setattr(sandbox.userns, "is_alone", lambda: "before" in said)
    monkeypatch.setattr(sandbox.marker, "here", lambda: Marker("an-id", "lab", "", "") if joined else None)
    with pytest.raises(LabFailed, match="several threads"):
        sandbox.join("lab", paths.lab("lab"))
    assert not joined
    with sandbox.register_at_join(lambda: said.append("before"), lambda: said.append("after")):
        sandbox.join("lab", paths.lab("lab"))
    assert (joined, said) == ([os.getpid()], ["before", "after"])


def test_a_process_is_not_alone_while_it_has_another_thread() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert not userns.is_alone(0.05)
    finally:
        go.set()
        thread.join()


def test_a_user_without_labs_is_told_of_roots(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "run", tmp_path / "state", own=Paths(tmp_path / "own", tmp_path / "own"))
    roots = Paths(tmp_path / "run", tmp_path / "state")
    state.save(roots.lab("roots"), LabState(Topology.simple("roots", 1, 0), process.boot_id()))
    with pytest.raises(LabChoice) as caught:
        choose(None, {}, paths)
    assert caught.value.evidence == "running: none; root's: roots"
    assert caught.value.next == ("overlaynet up", "sudo overlaynet get labs")
    assert choose("roots", {}, paths) == "roots"
    state.save(paths.mine.lab("own"), LabState(Topology.simple("own", 1, 0), process.boot_id()))
    assert choose(None, {}, paths) == "own"
