"""docs/lessons.md, followed by somebody who has nothing else: a lesson of one's own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.etcd import requires_etcd
from helpers.lab import cleaned_up, lab_name, requires_lab
from helpers.transcripts import retype, sessions

from overlaynet.lab.paths import Paths
from overlaynet.lessons import record
from overlaynet.lessons.catalogue import OWN

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lessons.md").read_text("utf-8")
_FILE = re.compile(r"^`([a-zA-Z.]+)` (?:[^\n]+\n)+\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a learner whose home has the page's files, and nothing else."""
    folder = tmp_path / "lessons" / "21-silence"
    folder.mkdir(parents=True)
    for name, content in _FILE.findall(PAGE):
        (folder / name).write_text(content, "utf-8")
    learner = lab_name("author")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = {"HOME": str(tmp_path), OWN: str(tmp_path / "lessons"), "SUDO_USER": learner, "PATH": search}
    with cleaned_up("silence", Paths()):
        yield {**os.environ, **ours, "NO_COLOR": "1"}
    record.file_of(learner, Paths.here()).unlink(missing_ok=True)


def test_page_is_typed_as_it_stands(environ: dict[str, str], tmp_path: Path):
    folder = tmp_path / "lessons" / "21-silence"
    assert {file.name for file in folder.iterdir()} == {"lab.yaml", "lesson.py", "README.md", "test.sh"}
    retype(sessions(PAGE), tmp_path, environ)
    assert {file.name for file in folder.iterdir()} == {"lab.yaml", "lesson.py", "README.md", "test.sh"}
