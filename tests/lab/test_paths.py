"""Whose labs are where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlaynet.errors import EnvironmentProblem
from overlaynet.lab import marker, state
from overlaynet.lab import paths as module
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState
from overlaynet.lab.topology import Topology

pytestmark = pytest.mark.unit


@pytest.fixture
def here(tmp_path: Path) -> Paths:
    """What a user sees who is not root."""
    own = Paths(tmp_path / "own" / "run", tmp_path / "own" / "state")
    return Paths(tmp_path / "run", tmp_path / "state", own=own)


def save(paths: Paths, name: str, driver: str = "netns") -> None:
    state.save(paths.lab(name), LabState(Topology.simple(name, 1, 0), state.boot_id(), driver=driver))


def test_roots_are_those_of_the_users_own_files(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": "/home/u/state"}
    found = module.of_user(environ, tmp_path)
    assert (found.run_root, found.state_root) == (
        tmp_path / "overlaynet",
        Path("/home/u/state/overlaynet"),
    )


@pytest.mark.parametrize(
    "environ",
    [{}, {"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "state"}, {"XDG_RUNTIME_DIR": "/run/user/none"}],
)
def test_without_usable_variables_all_is_in_the_home_directory(environ: dict[str, str], tmp_path: Path) -> None:
    found, base = module.of_user(environ, tmp_path), tmp_path / ".local/state/overlaynet"
    assert (found.run_root, found.state_root) == (base / "run", base)


@pytest.mark.parametrize(("home", "why"), [(None, "not set"), ("rel", "'rel', which is relative")])
def test_without_a_home_nobody_guesses_where_files_are(
    monkeypatch: pytest.MonkeyPatch, home: str | None, why: str
) -> None:
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(EnvironmentProblem) as caught:
        module.of_user({})
    assert why in caught.value.evidence
    assert module.of_user({"XDG_STATE_HOME": "/state"}).state_root == Path("/state/overlaynet")


def test_a_folder_that_cannot_be_looked_into_has_no_labs_of_ours(
    monkeypatch: pytest.MonkeyPatch, here: Paths
) -> None:
    save(here.mine, "mine")
    closed = here.mine.labs

    def is_dir(path: Path) -> bool:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return os.path.isdir(path)  # noqa: PTH112

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert here.names() == ("mine",), "by its durable files"


def test_root_has_one_place_for_all_labs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)
    assert Paths.here() == Paths()
    assert Paths.here().mine == Paths()


def test_uid_0_in_a_sandbox_has_its_users_places_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sandbox = marker.Marker("id", "lab", str(tmp_path / "run"), str(tmp_path / "state"))
    monkeypatch.setattr(marker, "FILE", tmp_path / "marker")
    marker.FILE.write_text(sandbox.as_text())
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    for uid, found in ((0, Paths(tmp_path / "run", tmp_path / "state")), (7, None)):
        monkeypatch.setattr(module.os, "geteuid", lambda uid=uid: uid)
        assert (Paths.here() == found) == (found is not None)


def test_a_user_sees_the_own_labs_and_finds_roots_by_name(here: Paths) -> None:
    save(here.mine, "mine", "ssh")
    save(Paths(here.run_root, here.state_root), "roots")
    assert (here.names(), here.roots()) == (("mine",), ("roots",))
    assert here.own is not None
    assert here.lab("mine").run == here.own.run_root / "labs" / "mine"
    assert here.lab("roots").run == here.run_root / "labs" / "roots"
    assert here.lock("mine").parent == here.own.labs
    assert here.home_of("mine") == here.own
    assert here.home_of("roots") == here


def test_a_users_new_lab_and_one_that_root_has_as_well_are_the_users(here: Paths) -> None:
    save(Paths(here.run_root, here.state_root), "default")
    save(here.mine, "default")
    assert here.own is not None
    assert here.lab("new").run == here.own.run_root / "labs" / "new"
    assert here.lab("default").run == here.own.run_root / "labs" / "default"
