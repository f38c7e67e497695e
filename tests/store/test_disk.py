"""What an agent keeps on its disk reads back as it was written, by whoever reads it."""

from __future__ import annotations

import json
import os
import stat
from ipaddress import ip_address, ip_network

import pytest

from overlaynet.addr import Mac
from overlaynet.core.keys import Keys
from overlaynet.errors import ConfigError
from overlaynet.model import Identity, Workload
from overlaynet.store import disk

pytestmark = pytest.mark.unit

MAC = Mac.parse("02:00:00:00:00:01")
IDENTITY = Identity("a1", MAC, (ip_network("10.244.1.0/24"),))
WORKLOAD = Workload(
    "web-1", "default", "node-1", (ip_address("10.244.1.2"),), MAC, "veth1", labels={"app": "web"}
)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_identity_reads_back_and_is_nobody_elses_to_read(tmp_path):
    file = tmp_path / "made" / "identity.json"
    assert disk.read_identity(file) is None
    disk.write_identity(file, IDENTITY)
    assert disk.read_identity(file) == IDENTITY
    assert mode_of(file) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"node_id": "a1"}',
        '{"node_id":"a","vtep_mac":"x","subnets":[]}',
        '{"node_id":"","vtep_mac":"02:00:00:00:00:01","subnets":[]}',
        '{"node_id":"a","vtep_mac":"01:00:00:00:00:01","subnets":[]}',
    ],
    ids=["empty", "list", "deep", "partial", "no-mac", "no-id", "multicast"],
)
def test_damaged_identity_is_named(tmp_path, text):
    file = tmp_path / "identity.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"identity\.json"):
        disk.read_identity(file)


def test_wired_containers_read_back_and_those_of_another_node_do_not(tmp_path):
    file = tmp_path / "workloads.json"
    assert disk.read_workloads(file, "node-1") is None
    disk.write_workloads(file, [WORKLOAD])
    assert disk.read_workloads(file, "node-1") == [WORKLOAD]
    assert disk.read_workloads(file, "node-2") == []
    assert list(json.loads(file.read_text())) == [Keys().workload("node-1", WORKLOAD.id)]


@pytest.mark.parametrize("text", ["{", "3", '"x"', "[[1]]"])
def test_damaged_record_of_containers_is_named(tmp_path, text):
    file = tmp_path / "workloads.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"workloads\.json"):
        disk.read_workloads(file, "node-1")


def test_what_is_there_already_is_not_written_again(tmp_path):
    file = tmp_path / "x"
    assert disk.write_if_different(file, "one", 0o644)
    before = file.stat().st_ino
    assert not disk.write_if_different(file, "one", 0o644)
    assert file.stat().st_ino == before
    assert disk.write_if_different(file, "two", 0o644)
    assert file.read_text() == "two"


def test_disk_that_refuses_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "x"
    disk.write_atomically(file, "old", 0o600)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write_atomically(file, "new", 0o600)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "old"}
