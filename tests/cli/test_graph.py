"""`overlaynet graph` over a cluster in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.fake_cluster import FakeCluster

from overlaynet.errors import LabFailed, StoreUnavailable
from overlaynet.state import ROUTE_PROTOCOL, Change, Op
from overlaynet.store import services

pytestmark = pytest.mark.fake

Run = Callable[..., tuple[int, str, str]]

WEB = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "clusterIP": "10.112.0.9",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}],
    },
}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    services.apply(made.memory, made.keys(), [WEB])
    for host in made.hosts():
        made.once(host.name, 1)
    return made


def lose_route(cluster: FakeCluster) -> None:
    kernel = cluster.kernels["node-1"]
    route = next(r for r in kernel.observe([]).routes if r.protocol == ROUTE_PROTOCOL)
    kernel.apply([Change(Op.DROP, route)])


def test_text_is_the_default(run: Run):
    code, out, err = run("graph")
    assert code == 0, err
    assert out.startswith("2 hosts, 2 containers, 1 service, 0 differences")
    assert "10.244.2.0/24 → node-2 192.168.50.12" in out
    assert "default/web 10.112.0.9" in out


def test_dash_is_standard_output_as_for_capture(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("graph", "-f", "svg", "-w", "-")
    assert (code, ElementTree.fromstring(out).tag) == (0, "{http://www.w3.org/2000/svg}svg")
    assert list(tmp_path.iterdir()) == []


def test_what_differs_is_marked_and_is_no_failure(run: Run, cluster: FakeCluster):
    lose_route(cluster)
    code, out, _ = run("graph")
    assert code == 0
    assert "✗ 10.244.2.0/24 → nowhere  route missing" in out
    assert "✗ missing route 10.244.2.0/24" in out


def test_a_document(run: Run, cluster: FakeCluster):
    lose_route(cluster)
    code, out, _ = run("graph", "-o", "json")
    document = json.loads(out)
    assert code == 0
    assert (document["schema"], document["kind"], document["lab"]) == ("overlaynet/v1", "Graph", "fake")
    assert document["differences"] == 1
    assert [host["name"] for host in document["hosts"]] == ["node-1", "node-2"]
    (service,) = document["services"]
    assert {backend["container"] for backend in service["backends"]} == {"web-1", "web-2"}


@pytest.mark.parametrize(
    ("form", "begin"),
    [("svg", "<svg "), ("html", "<!DOCTYPE html>"), ("mermaid", "### 2 hosts"), ("text", "2 hosts")],
)
def test_each_form_on_standard_output(run: Run, form: str, begin: str):
    code, out, _ = run("graph", "-f", form)
    assert code == 0
    assert out.startswith(begin)


@pytest.mark.parametrize(
    ("name", "begin"), [("g.svg", "<svg "), ("g.html", "<!DOCTYPE"), ("g.md", "### "), ("g.txt", "2 hosts")]
)
def test_a_file_has_the_form_of_its_name(run: Run, tmp_path: Path, name: str, begin: str):
    file = tmp_path / name
    code, out, err = run("graph", "-w", str(file))
    assert (code, out) == (0, "")
    assert str(file) in err
    assert file.read_text().startswith(begin)


def test_the_form_outranks_the_name(run: Run, tmp_path: Path):
    file = tmp_path / "picture.xml"
    assert run("graph", "-f", "svg", "-w", str(file))[0] == 0
    ElementTree.parse(file)


def test_a_name_that_says_nothing_is_refused(run: Run, tmp_path: Path):
    code, _, err = run("graph", "-w", str(tmp_path / "picture"))
    assert code == 2
    assert "its name ends in one of: .txt, .svg, .html, .md" in err


def test_a_file_that_cannot_be_written(run: Run, tmp_path: Path):
    code, _, err = run("graph", "-w", str(tmp_path / "nowhere" / "g.svg"))
    assert code == 3
    assert "could not be written" in err


def test_hosts_that_cannot_be_looked_at_make_it_inconclusive(run: Run, cluster: FakeCluster):
    for host in cluster.hosts():
        cluster.probe_errors[host.name] = LabFailed("the probe could not be started", evidence="no such host")
    code, out, _ = run("graph")
    assert code == 4
    assert out.count("could not be looked at: the probe could not be started") >= 2


def test_without_etcd_what_is_there_is_drawn_and_nothing_judged(run: Run, cluster: FakeCluster):
    cluster.store_error = StoreUnavailable("etcd does not answer")
    code, out, _ = run("graph", "-o", "json")
    assert code == 0
    document = json.loads(out)
    assert {host["differences"] for host in document["hosts"]} == {None}
    assert document["services"] == []
    assert [peer["subnet"] for peer in document["hosts"][0]["peers"]] == ["10.244.2.0/24"]
