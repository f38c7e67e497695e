"""The sessions of docs/cli.md, typed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers.docs import DOCS
from helpers.lab import cleaned_up, lab_name, requires_lab
from helpers.transcripts import Typed, retype, sessions

from overlaynet.lab.paths import Paths

pytestmark = [pytest.mark.lab, requires_lab]


def test_page_says_what_comes_back(tmp_path):
    name = lab_name("keyboard")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": search, "OVERLAYNET_LAB": name, "NO_COLOR": "1"}
    with cleaned_up(name, Paths()):
        retype([Typed("overlaynet up --hosts 2 -q", ("…",))], tmp_path, environ)
        retype(sessions((DOCS / "cli.md").read_text("utf-8")), tmp_path, environ)
