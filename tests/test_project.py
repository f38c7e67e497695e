"""What holds for the files of the project as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlaynet import data
from overlaynet.errors import EnvironmentProblem, all_errors

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
TEXT = {".cfg", ".json", ".md", ".py", ".rules", ".service", ".sh", ".toml", ".txt", ".yaml", ""}
# Written in two parts, or this file would be the first to break its own rule.
NOT_OURS_TO_NAME = ["/wo" + "rk/", "py" + "pi.org", "python" + "hosted.org", "deb.debian" + ".org"]


def project_files() -> Iterator[Path]:
    """Every file that belongs to the project, as a clone has it: no caches, no virtual environment."""
    for top in sorted(ROOT.iterdir()):
        if top.name == ".ci" or not top.name.startswith("."):
            inside = [top] if top.is_file() else sorted(top.rglob("*"))
            yield from (f for f in inside if f.is_file() and "__pycache__" not in f.parts)


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def starts_with_sh(file: Path) -> bool:
    with file.open("rb") as opened:
        return (
            re.match(rb"#!/bin/sh\n|#!/usr/bin/env bash\n|# shellcheck shell=sh\n", opened.readline())
            is not None
        )


PYTHON = [f for f in project_files() if f.suffix == ".py"]
SHELL = [f for f in project_files() if f.suffix in {"", ".sh"} and starts_with_sh(f)]


def test_every_error_code_is_explained_and_no_other() -> None:
    sections = re.findall(r"^### (OVL-\d{3})\b", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert sections == list(all_errors())


def test_every_error_section_says_what_to_do() -> None:
    sections = (ROOT / "docs" / "errors.md").read_text().split("\n### ")[1:]
    assert [s.splitlines()[0] for s in sections if "\n**Do**: " not in s] == []


@pytest.mark.parametrize("word", NOT_OURS_TO_NAME)
def test_no_file_names_a_machine_or_a_package_host(word: str) -> None:
    texts = [f for f in project_files() if f.suffix in TEXT]
    assert [relative(f) for f in texts if word in f.read_text(errors="replace")] == []


@pytest.mark.parametrize("module", [f for f in PYTHON if not f.name.startswith("test_")], ids=relative)
def test_module_has_a_docstring(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text()))


@pytest.mark.parametrize("script", SHELL, ids=relative)
def test_shell_script_parses(script: Path) -> None:
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True).stderr == ""


def test_scripts_that_a_reader_types_are_found_and_executable() -> None:
    named = {relative(f) for f in SHELL}
    assert {".ci/run", "labs/bootstrap.sh", "labs/quickstart", "tests/minimal/run", "tests/run"} <= named
    assert [relative(f) for f in SHELL if f.suffix != ".sh" and not f.stat().st_mode & 0o100] == []


def test_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "\n    sudo labs/quickstart\n" in readme
    assert "\n    sudo tests/run\n" in readme


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = [ln for ln in (ROOT / "constraints.txt").read_text().splitlines() if not ln.startswith("#")]
    assert [ln for ln in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", ln)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {normal(w) for w in wanted} - {normal(ln) for ln in lines} == set()


def normal(requirement: str) -> str:
    """The name in a requirement, spelled one way."""
    found = re.match(r"[\w-]+", requirement)
    assert found is not None
    return found.group().lower().replace("_", "-")


def test_packaged_file_is_found() -> None:
    assert "kind: Lab" in data.path("labs", "quickstart.yaml").read_text()


def test_missing_packaged_file_is_an_environment_problem() -> None:
    with pytest.raises(EnvironmentProblem, match=r"no labs/nowhere\.yaml"):
        data.path("labs", "nowhere.yaml")
