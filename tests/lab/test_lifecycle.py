"""Whose namespaces are whose when nothing but their names is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlaynet.lab.lifecycle import orphans, remove_tree

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("present", "claimed", "want"),
    [
        pytest.param(["ovl-a-etcd", "ovl-a-web-1"], [], ["ovl-a-etcd", "ovl-a-web-1"], id="ours"),
        pytest.param(["ovl-b-etcd", "other", "ovl-ab-etcd"], [], [], id="other-names"),
        pytest.param(
            ["ovl-a-b-web", "ovl-a-web"], ["ovl-a-b-web"], ["ovl-a-web"], id="recorded-by-another-lab"
        ),
        pytest.param(
            ["ovl-a-b-underlay", "ovl-a-b-web", "ovl-a-underlay", "ovl-a-web"],
            [],
            ["ovl-a-underlay", "ovl-a-web"],
            id="an-underlay-tells-of-a-lab-with-a-longer-name",
        ),
    ],
)
def test_orphans(present: list[str], claimed: list[str], want: list[str]) -> None:
    assert orphans("a", present, claimed) == want


def build_tree(root: Path) -> Path:
    lab = root / "labs" / "demo"
    (lab / "hosts" / "node-1").mkdir(parents=True)
    for name in ("lab.json", "etcd.log", "hosts/node-1/agent.log", "hosts/node-1/agent.toml"):
        (lab / name).touch()
    (lab / "etcd.sock").symlink_to("gone")
    return lab


def test_nothing_is_left_of_a_labs_directory(tmp_path: Path) -> None:
    remove_tree(build_tree(tmp_path / "run"), keep_logs=False)
    assert list(tmp_path.iterdir()) == []


def test_directory_of_another_lab_stays(tmp_path: Path) -> None:
    (tmp_path / "run" / "labs" / "other").mkdir(parents=True)
    remove_tree(build_tree(tmp_path / "run"), keep_logs=False)
    assert [path.name for path in (tmp_path / "run" / "labs").iterdir()] == ["other"]


def test_logs_are_left_if_they_are_to_be_kept(tmp_path: Path) -> None:
    lab = build_tree(tmp_path / "run")
    remove_tree(lab, keep_logs=True)
    assert sorted(str(p.relative_to(lab)) for p in lab.rglob("*") if p.is_file()) == [
        "etcd.log",
        "hosts/node-1/agent.log",
    ]
