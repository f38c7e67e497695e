"""The command line over a cluster in memory."""

from __future__ import annotations

import io
from collections.abc import Callable

import click
import pytest
from helpers.fake_cluster import FakeCluster

from overlaynet.cli import main as program
from overlaynet.cli.app import App


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def run(
    cluster: FakeCluster, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line with `text` as its input; answers exit code, standard output and error."""
    monkeypatch.delenv("OVERLAYNET_LAB", raising=False)

    def command(*arguments: str, text: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code = program.run(arguments, App(pick=lambda _: cluster))
        out, err = capfd.readouterr()
        return code, click.unstyle(out), click.unstyle(err)

    return command
