"""`overlaynet attach` and `detach` in a real lab: any namespace, any process, probes and grace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, ping, requires_lab
from helpers.private_netns import private_netns

from overlaynet.cli import main as program
from overlaynet.cli.app import App
from overlaynet.cluster.contexts import LabCluster
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import Topology

pytestmark = [pytest.mark.lab, requires_lab]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.running(Topology.simple(lab_name("attach"), hosts=2, containers=1)) as running:
        yield running


@pytest.fixture
def run(lab: Lab, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = program.run(arguments, App(pick=lambda _: LabCluster(lab)))
        out, err = capfd.readouterr()
        return code, click.unstyle(out), click.unstyle(err)

    return command


@pytest.fixture
def box() -> Iterator[str]:
    """The path of a network namespace that is not the lab's."""
    with private_netns() as made:
        yield made.path


@pytest.fixture
def process(box: str) -> Iterator[int]:
    """A process in it, as nobody."""
    argv = ["nsenter", f"--net={box}", "setpriv", "--reuid=65534", "--clear-groups", "sleep", "300"]
    with subprocess.Popen(argv) as one:
        eventually(lambda: Path(f"/proc/{one.pid}/comm").read_text() == "sleep\n")
        yield one.pid
        one.kill()


def item(run: Run, name: str) -> dict:
    """A container as the command shows it, once etcd has heard of it."""

    def look() -> dict:
        code, out, _ = run("get", "containers", name, "-o", "json")
        assert code == 0, out
        return json.loads(out)["items"][0]

    return eventually(look)


def names(run: Run) -> list[str]:
    return run("get", "containers", "-o", "name")[1].split()


def helpers(lab: Lab) -> list[Path]:
    return list(lab.paths.host("node-1").run.glob("probe-*.sock"))


def test_namespace_by_its_path_is_reached_and_released(run: Run, lab: Lab, box: str) -> None:
    options = [
        "--label",
        "app=db",
        "--port",
        "5432:sql",
        "--port",
        "53/udp",
        "--ip",
        "10.244.1.77",
        "-n",
        "shop",
    ]
    code, out, err = run("attach", "db-1", "--netns", box, "--host", "node-1", *options)
    assert (code, out) == (0, "shop/db-1  10.244.1.77  on node-1, ready\n"), err
    assert ping(namespace(lab.name, "web-2"), "10.244.1.77")
    found = item(run, "db-1")
    assert (found["labels"], found["netns"], found["ready"]) == ({"app": "db"}, box, True)
    listed = [(p["port"], p["protocol"], p["name"]) for p in found["ports"]]
    assert listed == [(5432, "TCP", "sql"), (53, "UDP", None)]
    assert run("detach", "db-1", "-n", "shop")[:2] == (0, "shop/db-1 detached from node-1\n")
    assert run("detach", "db-1", "-n", "shop")[0] == 2


def test_probe_command_runs_as_the_process_and_its_helper_ends_with_the_attachment(
    run: Run, lab: Lab, process: int
) -> None:
    words = "sh -c 'test $(id -u) = 65534 && ip addr show dev eth0 | grep -q 10.244.1'"
    code, out, err = run("attach", "api-1", "--pid", str(process), "--host", "node-1", "--probe-exec", words)
    assert (code, out.endswith("ready when its probe passes\n")) == (0, True), err
    eventually(lambda: item(run, "api-1")["ready"], deadline_s=60)  # after one that took too long comes another
    assert len(helpers(lab)) == 1
    assert run("detach", "api-1")[0] == 0
    assert helpers(lab) == []


def test_refused_attachment_leaves_no_helper(run: Run, lab: Lab, box: str) -> None:
    options = ("--host", "node-1", "--probe-exec", "true", "--ip", "10.244.1.1")
    code, _, err = run("attach", "api-2", "--netns", box, *options)
    assert (code, "OVL-702" in err) == (2, True)
    assert helpers(lab) == []


def test_grace_is_told_and_seen_and_a_second_detach_ends_it(run: Run, box: str) -> None:
    assert run("attach", "old-1", "--netns", box, "--host", "node-2")[0] == 0
    code, out, _ = run("detach", "old-1", "--grace", "10m")
    assert (code, out) == (0, "default/old-1 terminates, and is detached in 10 min from node-2\n")
    eventually(lambda: item(run, "old-1")["terminating"])
    assert "terminating" in run("get", "containers")[1]
    assert run("detach", "old-1")[0] == 0
    eventually(lambda: names(run) == ["web-1", "web-2"])


def test_container_of_the_lab_is_taken_back_as_the_topology_has_it(run: Run, lab: Lab) -> None:
    before = item(run, "web-1")
    assert run("detach", "web-1")[0] == 0
    eventually(lambda: not item(run, "web-1")["ready"])
    assert run("attach", "web-1")[0] == 0
    eventually(lambda: item(run, "web-1") == before)
    assert Lab.up(lab.topology).changes == 0


@pytest.mark.parametrize(
    "words",
    [
        ("attach", "new-1"),
        ("attach", "new-1", "--netns", "nowhere"),
        ("attach", "new-1", "--netns", "a", "--pid", "1"),
        ("attach", "new-1", "--netns", "a", "--probe-tcp", "80", "--probe-http", "80/"),
        ("attach", "new-1", "--netns", "a", "--probe-tcp", "0"),
        ("attach", "new-1", "--netns", "a", "--probe-exec", "''"[:1]),
        ("attach", "new-1", "--netns", "a", "--port", "http"),
        ("attach", "new-1", "--netns", "a", "--label", "app"),
        ("attach", "new-1", "--netns", "/no/where", "--host", "node-1"),
        ("detach", "new-1"),
        ("detach", "web-1", "--grace", "soon"),
    ],
)
def test_wrong_words_change_nothing(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error OVL-10")
    eventually(lambda: names(run) == ["web-1", "web-2"])
