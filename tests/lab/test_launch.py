"""Command lines and files of a lab's processes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet import config
from overlaynet.lab.launch import identity, launches, toml
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import Topology, parse

pytestmark = pytest.mark.unit

PATHS = Paths(Path("/r"), Path("/s")).lab("demo")
TEXT = """\
apiVersion: overlaynet/v1
kind: Lab
hosts:
- name: node-1
  zone: a
  labels: {disk: "s s\\"d"}
  agent: {firewall: {backend: legacy, resync_s: 5}, node: {interface: eth9}}
- name: node-2
containers:
- {name: web-1, host: node-1, command: [sleep, "60"]}
- {name: web-2, host: node-1}
"""
TOPOLOGY = parse(TEXT, "t.yaml", name="demo")


def test_one_process_for_etcd_each_host_and_each_command() -> None:
    assert set(launches(TOPOLOGY, PATHS, "x86_64")) == {"etcd", "agent/node-1", "agent/node-2", "command/web-1"}


def test_agent_reads_its_file_as_it_was_meant(tmp_path: Path) -> None:
    launch = launches(TOPOLOGY, PATHS, "x86_64")["agent/node-1"]
    ((file, text),) = launch.files.items()
    (tmp_path / "agent.toml").write_text(text)
    read = config.load(tmp_path / "agent.toml", {})
    assert str(file) == launch.argv[-1] == "/r/labs/demo/hosts/node-1/agent.toml"
    assert (read.node.name, read.node.interface, read.node.zone) == ("node-1", ("eth9",), "a")
    assert dict(read.node.labels) == {"disk": 's s"d'}
    assert (read.firewall.backend, read.firewall.resync_s) == ("legacy", 5.0)
    assert read.etcd.endpoints == ("http://192.168.50.2:2379",)
    assert read.paths.socket == PATHS.host("node-1").socket
    assert read.paths.identity == PATHS.host("node-1").identity


def test_agents_have_two_capabilities_and_an_own_lock() -> None:
    launch = launches(TOPOLOGY, PATHS, "x86_64")["agent/node-2"]
    assert "--bounding-set=-all,+net_admin,+net_raw" in launch.argv
    assert "--no-new-privs" in launch.argv
    assert launch.environ == {"XTABLES_LOCKFILE": "/r/labs/demo/hosts/node-2/xtables.lock"}


def test_spec_changes_with_what_the_process_is_started_from() -> None:
    other = parse(TEXT.replace("resync_s: 5", "resync_s: 6"), "t.yaml", name="demo")
    before, after = launches(TOPOLOGY, PATHS, "x86_64"), launches(other, PATHS, "x86_64")
    assert {name for name in before if before[name].spec != after[name].spec} == {"agent/node-1"}


def test_identity_gives_the_host_its_numbers_subnet_and_mac() -> None:
    lab = Topology.simple("demo", 2, 0)
    made = identity(lab, lab.hosts[1], "id-2")
    assert (made.node_id, str(made.vtep_mac), *map(str, made.subnets)) == (
        "id-2",
        "02:0a:f4:02:00:00",
        "10.244.2.0/24",
    )


VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**60), 2**60),
    st.booleans(),
    st.lists(st.text('ab"\\\n\x7f')),
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES),
    st.dictionaries(st.text('ab." '), st.text("x\x7f\t")),
)
def test_toml_is_read_back_as_it_was(table: dict[str, object], labels: dict[str, str]) -> None:
    document: dict[str, dict[str, object]] = {"one": table, "two": {"labels": labels}}
    assert tomllib.loads(toml(document)) == document
