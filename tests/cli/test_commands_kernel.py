"""What `--explain-commands` says of `up` and `get`, typed: namespaces, cables, and all that an agent writes.

The printed lines are given to a shell where each heading says, in namespaces in which nobody has made anything
else. Then the lab's own eyes find every part, and what `overlaynet diff` is made of finds no difference.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from helpers.fake_cluster import FakeCluster
from helpers.privilege import requires_netns

from overlaynet.cli import commands
from overlaynet.cli.app import App
from overlaynet.cli.commands import Block
from overlaynet.cli.surveys import survey_hosts
from overlaynet.cluster.cluster import read_view
from overlaynet.kernel import netns
from overlaynet.lab.build import Builder
from overlaynet.lab.converge import Kind, wanted
from overlaynet.lab.lab import Lab
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState, boot_id
from overlaynet.lab.topology import Topology
from overlaynet.probe import survey as surveying
from overlaynet.probe.survey import Known, Survey

pytestmark = [pytest.mark.kernel, requires_netns]

NAME = f"typed-{os.getpid()}"


class Typist:
    """A lab that only its lines have made. `type` reads what was printed as a person would."""

    def __init__(self, folder: Path) -> None:
        topology = Topology.simple(NAME, hosts=2, containers=1)
        self.lab = Lab(NAME, Paths(folder / "run", folder / "state"), LabState(topology, boot_id()))
        for host in self.lab.hosts:
            self.lab.paths.host(host.name).run.mkdir(parents=True)

    def type(self, blocks: Iterable[Block], capsys: pytest.CaptureFixture[str]) -> None:
        commands.tell(App(lab=NAME), blocks)
        place, lines = "", list[str]()
        for line in [*capsys.readouterr().err.splitlines(), "# in "]:
            if line.startswith("#"):
                self._run(place, lines)
                found = re.match(r"# in (\S+) \(overlaynet shell \1\):", line)
                place, lines = found[1] if found else "", []
            else:
                lines.append(line)

    def _run(self, place: str, lines: list[str]) -> None:
        where = ["ip", "netns", "exec", f"ovl-{NAME}-{place}"] if place else []
        done = subprocess.run([*where, "sh", "-e"], input="\n".join(lines), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), "\n".join(lines)


@pytest.fixture
def typist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Typist]:
    found = Typist(tmp_path)
    try:
        yield found
    finally:
        for name in netns.names():
            if name.startswith(f"ovl-{NAME}-"):
                netns.delete(name)


@pytest.fixture
def look(typist: Typist) -> Callable[[], Survey]:
    """node-1 as it is, judged by what its etcd says."""
    cluster = FakeCluster()
    view = read_view(cluster)

    def survey() -> Survey:
        config = cluster.config("node-1")
        answer = typist.lab.driver.probe("node-1", surveying.job(view, config))
        return surveying.survey(Known("node-1", config, cluster.identity("node-1"), view), answer)

    return survey


def test_what_is_printed_of_a_lab_makes_it_when_typed(typist, look, capsys):
    typist.type(commands.of_lab(typist.lab), capsys)

    parts = {key: spec for key, spec in wanted(typist.lab.topology, {}).items() if key.kind is not Kind.PROCESS}
    builder = Builder(NAME, typist.lab.paths)
    namespaces = {key.name: str(spec) for key, spec in parts.items() if key.kind is Kind.NETNS}
    state = LabState(typist.lab.topology, boot_id(), namespaces)
    assert builder.observe(state, typist.lab.topology) == parts

    before = look().changes_json()
    assert {change["op"] for change in before} == {"missing", "changed"}, "settings are there, and others"
    assert {change["object"] for change in before} >= {
        "link",
        "address",
        "route",
        "neigh",
        "fdb",
        "port",
        "rule",
    }

    cluster = FakeCluster()
    (planned,) = survey_hosts(App(pick=lambda _: cluster), cluster.hosts()[:1], need_plan=True).surveys
    workloads = list(read_view(cluster).workloads_of("node-1"))
    inside = {record.name: f"ovl-{NAME}-{record.name}" for record in workloads}
    typist.type(commands.of_host(planned, workloads, inside), capsys)

    assert look().changes_json() == []
    pinged = typist.lab.driver.run("web-1", ["ping", "-c1", "-W2", "10.244.1.1"])
    assert pinged.returncode == 0, "the container's own side is whole as well"

    shown = {kind: _shown(typist, kind, look()) for kind in ("route", "neigh", "fdb", "rule")}
    assert "10.244.2.0/24 via 10.244.2.0 dev flannel.1" in shown["route"]
    assert "10.244.2.0 dev flannel.1 lladdr 02:0a:f4:02:00:00 PERMANENT" in shown["neigh"]
    assert "02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12 self permanent" in shown["fdb"]
    assert '--comment "overlaynet: guard the VXLAN port" -j OVL-INPUT' in shown["rule"]


def _shown(typist: Typist, kind: str, survey: Survey) -> str:
    """What the commands print that `get KIND` is said to be the same as."""
    items = surveying.routes(survey) if kind == "route" else []
    host = FakeCluster().hosts()[0]
    (block,) = commands.showing(kind, items, [host])
    done = [typist.lab.driver.run(block.place, line.split()) for line in block.lines]
    assert [one.returncode for one in done] == [0] * len(done)
    return "\n".join(one.stdout.decode() for one in done)
