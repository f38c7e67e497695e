"""How often a lab was looked into, by whom that is counted, and where it is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from overlaynet.cli.app import LOOKS, App
from overlaynet.cli.main import VERBS, run
from overlaynet.cluster.contexts import LabCluster
from overlaynet.errors import LabFailed
from overlaynet.lab import looks
from overlaynet.lab.paths import LabPaths

pytestmark = pytest.mark.fake


@pytest.fixture
def paths(tmp_path: Path) -> LabPaths:
    return LabPaths(tmp_path, tmp_path)


def test_only_a_lab_that_asks_for_it_is_counted_in(paths: LabPaths) -> None:
    looks.count(paths, "trace")
    assert (looks.counted(paths), list(paths.run.iterdir())) == ([], [])
    looks.begin(paths)
    looks.count(paths, "trace")
    looks.count(paths, "diff")
    assert looks.counted(paths) == ["trace", "diff"]
    looks.begin(paths)
    assert looks.counted(paths) == []


class Empty(LabCluster):
    """A lab that refuses whatever else it is asked."""

    def __init__(self, paths: LabPaths) -> None:
        self.name = "empty"
        self.lab = SimpleNamespace(paths=paths)

    def __getattribute__(self, name: str) -> object:
        if name in ("name", "lab", "one_machine", "__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise LabFailed("nothing is here")


@pytest.mark.parametrize(
    ("words", "looked"),
    [
        (("trace", "red", "blue"), ["trace"]),
        (("explain", "red", "blue"), ["explain"]),
        (("capture", "red"), ["capture"]),
        (("verify", "mesh"), ["verify"]),
        (("diff",), ["diff"]),
        (("repair",), ["repair"]),
        (("get", "routes"), ["get"]),
        (("describe", "svc/shop"), ["describe"]),
        (("graph",), ["graph"]),
        (("status",), []),
        (("logs", "node-1"), []),
        (("exec", "red", "true"), []),
        (("trace", "--help"), []),
        (("trace", "--replay", "no-such.ovltrace"), []),
    ],
)
def test_each_verb_that_finds_out_by_itself_is_one_look(paths: LabPaths, words, looked) -> None:
    looks.begin(paths)
    run(words, App(pick=lambda _: Empty(paths)))
    assert looks.counted(paths) == looked


def test_verbs_that_count_are_verbs() -> None:
    assert set(VERBS) > LOOKS
