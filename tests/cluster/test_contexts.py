"""Which cluster is meant, what its agents left on disk, and what programs report."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from overlaynet.addr import Mac
from overlaynet.cluster import contexts
from overlaynet.cluster.contexts import LocalCluster
from overlaynet.config import build
from overlaynet.core.keys import Keys
from overlaynet.errors import (
    EnvironmentProblem,
    FirewallError,
    KernelError,
    LabChoice,
    OverlayError,
    StoreUnavailable,
)
from overlaynet.lab.paths import Paths
from overlaynet.model import Workload

pytestmark = pytest.mark.fake

WORKLOAD = Workload(
    "web-1", "default", "node-1", (ip_address("10.244.1.2"),), Mac("0a:58:0a:f4:01:02"), "veth1"
)


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.delenv("OVERLAYNET_LAB", raising=False)
    return Paths(tmp_path / "run", tmp_path / "state")


def test_nothing_running_is_an_error_that_says_how_to_start(paths):
    with pytest.raises(LabChoice) as caught:
        contexts.choose_context(None, paths)
    assert (caught.value.exit_code, caught.value.next) == (2, ("overlaynet up",))


def test_this_hosts_own_agent_is_meant_where_there_is_no_lab(paths):
    paths.run_root.mkdir()
    (paths.run_root / "agent.sock").touch()
    assert contexts.choose_context(None, paths).name == "local"
    assert contexts.choose_context("local", paths).name == "local"


def test_labs_are_listed_even_if_one_cannot_be_read(paths):
    damaged = paths.lab("broken")
    damaged.run.mkdir(parents=True)
    damaged.lab_json.write_text("{")
    damaged.faults_json.write_text("{")
    unknown = dict.fromkeys(("driver", "hosts", "containers", "faults"))
    assert contexts.lab_items(paths) == [{"name": "broken", "state": "unreadable", **unknown}]


def test_local_host_is_known_without_an_agent(paths):
    (host,) = LocalCluster(paths).hosts()
    assert (host.driver, host.netns, host.underlay_ip) == ("local", None, None)


def test_local_command_runs_where_we_are(paths):
    cluster = LocalCluster(paths)
    assert cluster.start(cluster.hosts()[0].name, ["sh", "-c", "exit 6"]).wait() == 6


def test_local_probe_answers_or_its_error_is_raised(paths):
    cluster = LocalCluster(paths)
    with pytest.raises(OverlayError) as caught:
        cluster.probe("here", {"op": "dance"}, 30)
    assert caught.value.code == "OVL-100"
    assert cluster.probe("here", {"op": "ping", "pings": []}, 30)["results"] == []


def test_keys_follow_the_hosts_settings():
    config = build({("etcd", "prefix"): "/elsewhere", ("etcd", "overlay_prefix"): "/ours"})
    assert contexts.keys_of(config) == Keys("/elsewhere", "/ours")


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("etcd is away", evidence="refused", next=["overlaynet status"]),
        KernelError("route x", 101, "Nexthop has invalid gateway"),
        FirewallError("line 3 refused", line="-A X"),
    ],
)
def test_error_of_another_process_is_raised_as_the_same_error(error):
    with pytest.raises(type(error)) as caught:
        contexts.checked({"kind": "Error", "error": error.as_json()})
    assert caught.value.as_json() == error.as_json()


def test_program_that_reports_nothing_is_told_with_its_last_words():
    with pytest.raises(EnvironmentProblem) as caught:
        contexts.once_answer("node-1", b"not json", b"it broke")
    assert caught.value.evidence == "it broke"


def test_reconcile_is_answered_with_its_count_and_failures():
    document = {"kind": "Once", "count": 3, "changes": [{}, {}, {}], "failures": []}
    assert contexts.once_answer("node-1", json.dumps(document).encode(), b"") == {"changes": 3, "failures": []}
