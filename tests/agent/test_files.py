"""What the agent keeps on disk."""

from __future__ import annotations

import errno
import json
import os
import stat
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from helpers.model import network, vtep_mac, workload

from overlaynet.errors import ConfigError, EnvironmentProblem
from overlaynet.model import Identity, Pool, Port
from overlaynet_agent import files

pytestmark = pytest.mark.unit

IDENTITY = Identity("ab12", vtep_mac(1), (ip_network("10.244.7.0/24"),))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_identity_survives_the_disk_for_its_owner_alone(tmp_path):
    path = tmp_path / "state" / "identity.json"
    files.write_identity(path, IDENTITY)
    assert files.read_identity(path) == IDENTITY
    assert mode(path) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["identity.json"]


def test_no_identity_yet(tmp_path):
    assert files.read_identity(tmp_path / "identity.json") is None


def test_new_identities_differ_and_can_be_a_devices():
    one, other = files.new_identity(), files.new_identity()
    assert one.node_id != other.node_id
    assert one.vtep_mac != other.vtep_mac
    assert one.vtep_mac.unicast


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut-off"),
        pytest.param("[]", id="a-list"),
        pytest.param("[" * 100_000, id="too-deep"),
        pytest.param("{}", id="no-members"),
        pytest.param('{"node_id": 3, "vtep_mac": "02:00:00:00:00:01", "subnets": []}', id="id-is-no-text"),
        pytest.param('{"node_id": "", "vtep_mac": "02:00:00:00:00:01", "subnets": []}', id="id-is-empty"),
        pytest.param('{"node_id": "a", "vtep_mac": 3, "subnets": []}', id="mac-is-no-text"),
        pytest.param('{"node_id": "a", "vtep_mac": "01:00:00:00:00:01", "subnets": []}', id="mac-of-a-group"),
        pytest.param('{"node_id": "a", "vtep_mac": "02:00:00:00:00:01", "subnets": ["x"]}', id="subnet"),
        pytest.param('{"node_id": "a", "vtep_mac": "02:00:00:00:00:01", "subnets": 3}', id="subnets"),
    ],
)
def test_damaged_identity_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "identity.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cannot be used"):
        files.read_identity(path)
    assert path.read_text() == text


def test_containers_survive_the_disk(tmp_path):
    path = tmp_path / "workloads.json"
    wired = [workload(1, 2), workload(1, 3, labels={"a": "ü"}, ports=(Port(80, "TCP", "http"),))]
    files.write_workloads(path, wired)
    assert files.read_workloads(path, "node-1") == wired
    assert files.read_workloads(path, "renamed") == []
    assert mode(path) == 0o600


def test_no_containers_yet(tmp_path):
    assert files.read_workloads(tmp_path / "none", "node-1") == []


@pytest.mark.parametrize("text", [pytest.param(t, id=t[:8]) for t in ("{", "[3]", "3", "[" * 100_000)])
def test_damaged_container_file_is_refused(tmp_path, text):
    path = tmp_path / "workloads.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        files.read_workloads(path, "node-1")


V6 = Pool(ip_network("fd00::/48"), 64, ip_address("fd00:0:0:1::"), ip_address("fd00:0:0:ffff::"))


@pytest.mark.parametrize(
    ("dual", "masquerade", "expected"),
    [
        pytest.param(
            False,
            True,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            id="ipv4",
        ),
        pytest.param(
            True,
            False,
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n"
            "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n"
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
            id="dual-stack",
        ),
    ],
)
def test_subnet_env_is_flannels_text(dual, masquerade, expected):
    net = network()
    subnets = (ip_network("10.244.7.0/24"),)
    if dual:
        net = type(net)((*net.pools, V6), net.backend)
        subnets += (ip_network("fd00:0:0:7::/64"),)
    assert files.subnet_env(net, subnets, 1450, masquerade=masquerade) == expected


def test_write_replaces_the_file_and_never_changes_it_in_place(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, "old", 0o644)
    with path.open() as reader:
        files.write_atomically(path, "new", 0o644)
        assert reader.read() == "old"
    assert (path.read_text(), mode(path)) == ("new", 0o644)


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old", 0o644)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, "new", 0o644)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_mode_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_atomically(tmp_path / "file", "x", 0o644)
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o644


def test_equal_text_is_not_written_again(tmp_path):
    path = tmp_path / "file"
    assert files.write_if_different(path, "x", 0o644)
    inode = path.stat().st_ino
    assert not files.write_if_different(path, "x", 0o644)
    assert path.stat().st_ino == inode
    assert files.write_if_different(path, "y", 0o644)


def test_second_agent_is_refused_and_told_who_is_first(tmp_path):
    path = tmp_path / "run" / "agent.pid"
    with files.only_one(path):
        assert json.loads(path.read_text()) == os.getpid()
        with pytest.raises(EnvironmentProblem) as caught, files.only_one(path):
            pass
    assert caught.value.evidence == f"process {os.getpid()} holds {path}"
    with files.only_one(path):
        assert path.read_text()
    assert path.read_text() == ""
