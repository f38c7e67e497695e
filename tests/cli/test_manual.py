"""The manual pages: made from the verbs, whole, and without a complaint of man(1)."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from overlaynet.cli import main as program
from overlaynet.cli import manual
from overlaynet.install import contents

pytestmark = pytest.mark.unit

PAGES = sorted(manual.PAGE.parent.iterdir())


@pytest.mark.parametrize("file", manual.texts(), ids=lambda file: file.name)
def test_file_is_what_is_made_of_the_verbs(file: Path) -> None:
    """Else: python -m overlaynet.cli.manual"""
    assert file.read_text("utf-8") == manual.texts()[file]


def test_page_has_every_verb_its_examples_first_and_every_exit_code() -> None:
    page = manual.page()
    assert [verb for verb in program.VERBS if f".SS overlaynet {verb}" not in page] == []
    assert page.index(".SH EXAMPLES") < page.index(".SH OPTIONS") < page.index(".SH COMMANDS")
    codes = page[page.index(".SH EXIT STATUS") : page.index(".SH ENVIRONMENT")]
    assert [code for code in (0, 1, 2, 3, 4, 130) if f"\\fB{code}\\fR" not in codes] == []


def test_agents_page_has_every_command_and_option_of_the_agent() -> None:
    from overlaynet_agent.__main__ import _parser

    page = (manual.PAGE.parent / "overlaynet-agent.1").read_text().replace("\\-", "-")
    (commands,) = (action for action in _parser()._actions if action.choices)
    assert commands.choices is not None
    own = {"--config", "--node-name", "--interface", "--adopt-lease", "--log-level", "--output"}
    taken = {
        flag
        for parser in commands.choices.values()
        for action in parser._actions
        for flag in action.option_strings
    }
    assert own <= taken
    assert [word for word in (*commands.choices, *own) if f"\\fB{word}\\fR" not in page] == []


def test_pages_are_those_that_are_installed() -> None:
    root = Path(__file__).parents[2]
    shared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert shared["shared-data"] == {"overlaynet/data/man1": "share/man/man1"}
    assert {page.name for page in PAGES} == set(contents.PAGES)


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man(1)")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_shows_it_without_a_warning(page: Path) -> None:
    done = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "EXIT STATUS" in done.stdout
