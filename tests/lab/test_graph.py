"""`graph` of a whole lab: drawn from its kernels, with what is broken marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, requires_lab
from helpers.served_lab import VIP, ServedLab, served_lab

from overlaynet.cli import main as program
from overlaynet.cli.app import App
from overlaynet.cluster.contexts import LabCluster

pytestmark = [pytest.mark.lab, requires_lab, pytest.mark.timeout(240)]

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def lab() -> Iterator[ServedLab]:
    with served_lab(lab_name("graph")) as made:
        yield made


@pytest.fixture
def run(lab: ServedLab, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line; answers exit code and standard output."""

    def command(*arguments: str) -> tuple[int, str]:
        code = program.run(arguments, App(pick=lambda _: LabCluster(lab.lab)))
        return code, click.unstyle(capfd.readouterr().out)

    return command


def drawn(run: Run) -> dict[str, Any]:
    code, out = run("graph", "-o", "json")
    assert code == 0
    return dict(json.loads(out))


def undisturbed(run: Run) -> dict[str, Any]:
    """As it is drawn once agents have nothing to do any more."""
    document = drawn(run)
    assert document["differences"] == 0
    return document


def peers(document: dict[str, Any], host: str) -> dict[str, dict[str, Any]]:
    (found,) = [one for one in document["hosts"] if one["name"] == host]
    return {peer["host"]: peer for peer in found["peers"]}


def test_a_lab_as_it_should_be(run: Run):
    document = eventually(lambda: undisturbed(run))
    names = [host["name"] for host in document["hosts"]]
    for host in document["hosts"]:
        assert set(peers(document, host["name"])) == set(names) - {host["name"]}
        assert {peer["state"] for peer in host["peers"]} == {"ok"}
        assert {device["role"] for device in host["devices"]} == {"bridge", "vxlan", "underlay"}
        for container in host["containers"]:
            assert (container["bridge"], container["up"], container["port_up"]) == ("cni0", True, True)
    assert any(VIP in service["addresses"] and service["backends"] for service in document["services"])


def test_what_is_broken_is_marked_until_it_is_healed(run: Run):
    code, said = run("break", "fdb", "node-1", "node-2")
    assert code == 0, said
    try:
        document = drawn(run)
        broken = peers(document, "node-1")
        text = run("graph")[1]
    finally:
        assert run("heal")[0] == 0
    assert document["differences"] == 1
    assert "fdb" in " ".join(broken.get("node-2", broken.get(None, {}))["problems"])
    assert "✗ " in text
    assert peers(drawn(run), "node-1")["node-2"]["state"] == "ok"


def test_each_form_of_a_real_lab(run: Run):
    for form, begin in (("svg", "<svg "), ("html", "<!DOCTYPE html>"), ("mermaid", "### ")):
        code, out = run("graph", "-f", form)
        assert code == 0
        assert out.startswith(begin)
        assert "flannel.1" in out
