"""Traces that were saved are judged as they were, from their files alone, by anybody.

`bundles/make.py` makes the files; `helpers.bundles` says what each is about.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.bundles import BUNDLES, DIRECTORY, Judged, file_of, told
from helpers.privilege import requires_netns

from overlaynet.proof.saved import open_bundle, replay
from overlaynet.trace.model import CAUSES, INCONCLUSIVE, LOST, PROVED, WRONG_PATH

LARGEST_BYTES = 60_000
EXIT = {PROVED: 0, LOST: 1, WRONG_PATH: 1, INCONCLUSIVE: 4}
ONE_OF_EACH = {judged.verdict: name for name, judged in BUNDLES.items()}
NOBODY = 65_534
WITHOUT_RIGHTS = (
    "unshare", "--net", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs",
)  # fmt: skip
"""In a network namespace in which nothing is, as a user who may do nothing."""


@pytest.mark.unit
@pytest.mark.parametrize(("name", "judged"), BUNDLES.items(), ids=BUNDLES)
def test_it_is_judged_as_it_was(name: str, judged: Judged) -> None:
    saved = open_bundle(file_of(name))
    found = replay(saved, None, name)
    assert told(found) == judged
    assert found.expect == saved.verdict["expect"]
    if judged.verdict == PROVED:
        assert all(hop.seen or hop.optional for hop in (*found.forward, *found.reply)), found.forward
        assert not any(hop.seen for hop in found.guards)
    assert bool(found.inconclusive_because) == (judged.verdict == INCONCLUSIVE)


@pytest.mark.unit
def test_there_is_one_of_each_kind() -> None:
    assert ONE_OF_EACH.keys() == EXIT.keys()
    assert {judged.cause for judged in BUNDLES.values()} == {*CAUSES, None}


@pytest.mark.unit
def test_every_file_is_small_and_has_its_row() -> None:
    files = {file.stem: file for file in DIRECTORY.glob("*.ovltrace")}
    assert files.keys() == BUNDLES.keys()
    assert {name for name, file in files.items() if file.stat().st_size > LARGEST_BYTES} == set()


@pytest.mark.kernel
@requires_netns
@pytest.mark.parametrize(("verdict", "name"), ONE_OF_EACH.items(), ids=ONE_OF_EACH)
def test_anybody_may_judge(verdict: str, name: str) -> None:
    """A user without any right, who sees no network."""
    argv = [*WITHOUT_RIGHTS, sys.executable, "-m", "overlaynet.cli.main", "trace", "--replay"]
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*argv, str(file_of(name)), "-o", "name"], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (EXIT[verdict], f"{verdict}\n"), done.stderr
