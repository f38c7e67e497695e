"""Lessons and labs in memory, for the tests of what runs lessons."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.classroom import FakeLabs, write_lesson

from overlaynet import data
from overlaynet.lab.paths import Paths
from overlaynet.lessons import classroom
from overlaynet.lessons.catalogue import OWN


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "run", tmp_path / "state")


@pytest.fixture
def lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all lessons that there are: 3 vxlan, and 4 mtu."""
    folder = tmp_path / "labs"
    write_lesson(folder, 3, "vxlan")
    write_lesson(folder, 4, "mtu")
    real = data.path
    monkeypatch.setattr(data, "path", lambda kind, *parts: real(kind, *parts) if parts else folder)
    monkeypatch.delenv(OWN, raising=False)
    return folder


@pytest.fixture
def labs(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> FakeLabs:
    made = FakeLabs(paths)
    monkeypatch.setattr(classroom.Lab, "up", made.up)
    monkeypatch.setattr(classroom, "down", made.down)
    monkeypatch.setattr(classroom, "choose_context", made.cluster)
    monkeypatch.setattr(classroom, "LabCluster", FakeLabs)
    return made
