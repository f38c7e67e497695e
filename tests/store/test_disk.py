"""What an agent keeps on its disk reads back as it was written, by whoever reads it."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from helpers.model import (
    KEYS,
    endpoint_slice,
    key_of,
    lease,
    node,
    pod,
    service,
    stored,
    vtep_mac,
    workload,
)

from overlaynet.core.keys import Keys
from overlaynet.errors import ConfigError
from overlaynet.model import Identity, Port, ServicePort
from overlaynet.ports import KeyValue, Listing
from overlaynet.store import disk

pytestmark = pytest.mark.unit

IDENTITY = Identity("ab12", vtep_mac(1), (ip_network("10.244.7.0/24"),))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_identity_survives_the_disk_for_its_owner_alone(tmp_path):
    path = tmp_path / "state" / "identity.json"
    disk.write_identity(path, IDENTITY)
    assert disk.read_identity(path) == IDENTITY
    assert mode(path) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["identity.json"]


def test_no_identity_yet(tmp_path):
    assert disk.read_identity(tmp_path / "identity.json") is None


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
        disk.read_identity(path)
    assert path.read_text() == text


def test_containers_survive_the_disk(tmp_path):
    path = tmp_path / "workloads.json"
    wired = [workload(1, 2), workload(1, 3, labels={"a": "ü"}, ports=(Port(80, "TCP", "http"),))]
    disk.write_workloads(path, wired)
    assert disk.read_workloads(path, "node-1") == wired
    assert disk.read_workloads(path, "renamed") == []
    assert list(json.loads(path.read_text())) == [Keys().workload("node-1", one.id) for one in wired]
    assert mode(path) == 0o600


def test_no_containers_yet(tmp_path):
    assert disk.read_workloads(tmp_path / "none", "node-1") is None


@pytest.mark.parametrize("text", [pytest.param(t, id=t[:8]) for t in ("{", "[3]", "3", "[" * 100_000)])
def test_damaged_container_file_is_refused(tmp_path, text):
    path = tmp_path / "workloads.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        disk.read_workloads(path, "node-1")


def test_write_replaces_the_file_and_never_changes_it_in_place(tmp_path):
    path = tmp_path / "file"
    disk.write_atomically(path, "old", 0o644)
    with path.open() as reader:
        disk.write_atomically(path, "new", 0o644)
        assert reader.read() == "old"
    assert (path.read_text(), mode(path)) == ("new", 0o644)


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    disk.write_atomically(path, "old", 0o644)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write_atomically(path, "new", 0o644)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_mode_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        disk.write_atomically(tmp_path / "file", "x", 0o644)
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o644


def test_equal_text_is_not_written_again(tmp_path):
    path = tmp_path / "file"
    assert disk.write_if_different(path, "x", 0o644)
    inode = path.stat().st_ino
    assert not disk.write_if_different(path, "x", 0o644)
    assert path.stat().st_ino == inode
    assert disk.write_if_different(path, "y", 0o644)


# --- what is remembered ---------------------------------------------------------------------------

OF_SERVICES = (
    stored(
        service(affinity_s=60, ports=(ServicePort(80, target="http", node_port=30080),), type="NodePort"), 7
    ),
    stored(endpoint_slice("web-1", "web", "10.9.0.1", node="node-9", for_zones=("east",)), 8),
    stored(pod(2, 2, terminating=True), 9),
    stored(node(2, zone="east"), 9),
)


def test_services_and_what_stands_behind_them_are_remembered(tmp_path):
    path = tmp_path / "etcd.json"
    disk.write_remembered(path, disk.Remembered(50, OF_SERVICES))
    found = disk.read_remembered(path, KEYS)
    assert found
    assert found.items == OF_SERVICES


# --- the history of what is remembered ------------------------------------------------------------

LEASES = (stored(lease(1), 30), stored(lease(2), 40))
SINCE_THEN = KeyValue(key_of(lease(2)), b"{}", 40, 60)


@pytest.mark.parametrize(
    ("listing", "goes_on"),
    [
        pytest.param(Listing(50, 7, ()), True, id="all-gone-since"),
        pytest.param(Listing(60, 7, (SINCE_THEN,)), True, id="written-again-since"),
        pytest.param(Listing(50, 8, ()), False, id="another-cluster"),
        pytest.param(Listing(49, 7, ()), False, id="behind"),
        pytest.param(Listing(60, 7, (replace(SINCE_THEN, mod_revision=39),)), False, id="written-too-early"),
    ],
)
def test_listing_goes_on_with_what_is_remembered_or_is_of_another_history(tmp_path, listing, goes_on):
    path = tmp_path / "etcd.json"
    disk.write_remembered(path, disk.Remembered(50, LEASES, cluster_id=7))
    history = disk.read_history(path)
    assert history
    assert history.goes_on_in(listing) is goes_on


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cluster_id": 1, "revision": 1, "items": [3]}', "[" * 100_000]
)
def test_damaged_copy_has_no_history(tmp_path, text):
    path = tmp_path / "etcd.json"
    path.write_text(text)
    assert disk.read_history(path) is None
    assert disk.read_history(tmp_path / "none") is None
