"""Traffic does not notice the agent: not its restart, not its death, not an etcd that is away.

The stream runs between containers of two hosts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, ping, requires_lab
from helpers.pinging import Pinging, pinging

from overlaynet.core.keys import Keys
from overlaynet.errors import AgentUnreachable
from overlaynet.kernel import process
from overlaynet.lab.converge import ETCD
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import clean_environ, namespace
from overlaynet.lab.topology import Topology
from overlaynet.ports import Delete, Put

pytestmark = [pytest.mark.lab, requires_lab]

NEW_PEER = {
    "PublicIP": "192.168.50.99",
    "BackendType": "vxlan",
    "BackendData": {"VNI": 1, "VtepMAC": "02:0a:f4:63:00:00"},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.running(Topology.simple(lab_name("traffic"), hosts=2, containers=2)) as running:
        yield running


def stream(lab: Lab) -> AbstractContextManager[Pinging]:
    return pinging(namespace(lab.name, "web-1"), "10.244.2.2", least_s=1.0)


def status(lab: Lab) -> dict[str, Any]:
    return dict(lab.agent("node-1").get("/v1/status"))


def is_well(lab: Lab) -> bool:
    now = status(lab)
    return now["agent"]["state"] == "ready" and bool(now["peers"]) and now["pending"] == 0


def is_degraded(lab: Lab) -> bool:
    try:
        return bool(status(lab)["agent"]["state"] == "degraded")
    except AgentUnreachable:
        return False


def end(lab: Lab, name: str, number: signal.Signals) -> int:
    """Send a process of the lab a signal and see it end; its id."""
    pid = lab.pid(name)
    assert pid is not None
    os.kill(pid, number)
    eventually(lambda: process.start_time(pid) is None, deadline_s=20)
    return pid


def start_again(lab: Lab) -> Lab:
    """`up` starts whatever of the lab is missing."""
    result = Lab.up(lab.topology)
    assert result.converged, result.waiting
    return Lab.open(lab.name)


def routes(lab: Lab) -> str:
    return lab.driver.run("node-1", ["ip", "route", "show", "proto", "111"]).stdout.decode()


@contextmanager
def extra_peer(lab: Lab) -> Iterator[None]:
    key, store = Keys().subnets + "10.244.99.0-24", lab.store()
    try:
        store.commit([], [Put(key, json.dumps(NEW_PEER).encode())])
        yield
        store.commit([], [Delete(key)])
    finally:
        store.close()


@contextmanager
def agent_alone(lab: Lab) -> Iterator[None]:
    """node-1's agent, whatever else of the lab runs; `up` would start etcd as well."""
    environ = {**clean_environ(), **lab.environ_of("node-1")}
    with subprocess.Popen(lab.agent_argv("node-1", "run"), env=environ, stderr=subprocess.DEVNULL) as running:
        try:
            yield
        finally:
            running.terminate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_agent_that_starts_again_costs_no_packet_and_writes_nothing(lab: Lab, number: signal.Signals) -> None:
    lab = Lab.open(lab.name)
    with stream(lab) as pings:
        before = end(lab, "agent/node-1", number)
        lab = start_again(lab)
        eventually(lambda: is_well(lab))
    assert lab.pid("agent/node-1") != before
    assert pings.sent > 50
    assert pings.lost == 0, pings.said
    assert status(lab)["writes"] == {"kernel": 0, "firewall": 0}


def test_etcd_away_costs_no_packet_and_what_changed_is_followed_on_its_return(lab: Lab) -> None:
    lab = Lab.open(lab.name)
    before = status(lab)["writes"]
    with stream(lab) as pings:
        end(lab, ETCD, signal.SIGKILL)
        eventually(lambda: not status(lab)["store"]["connected"], deadline_s=20)
        assert status(lab)["writes"] == before
        lab = start_again(lab)
        with extra_peer(lab):
            eventually(lambda: "10.244.99.0/24" in routes(lab), deadline_s=20)
        eventually(lambda: "10.244.99.0/24" not in routes(lab), deadline_s=20)
        eventually(lambda: is_well(lab), deadline_s=20)
    assert pings.lost == 0, pings.said


def test_host_that_starts_without_etcd_keeps_its_traffic_and_writes_nothing(lab: Lab) -> None:
    lab = Lab.open(lab.name)
    with stream(lab) as pings:
        end(lab, "agent/node-1", signal.SIGTERM)
        end(lab, ETCD, signal.SIGKILL)
        with agent_alone(lab):
            eventually(lambda: is_degraded(lab), deadline_s=30)
            assert status(lab)["writes"] == {"kernel": 0, "firewall": 0}
            assert "10.244.2.0/24" in routes(lab)
        lab = start_again(lab)
        eventually(lambda: is_well(lab), deadline_s=20)
    assert pings.lost == 0, pings.said


@pytest.mark.parametrize("bridged", ["0", "1"], ids=["bridge-past-iptables", "bridge-through-iptables"])
def test_host_that_drops_what_it_forwards_carries_the_overlay(lab: Lab, bridged: str) -> None:
    """As Docker leaves a host: policy DROP, and with br_netfilter the bridge's frames meet it as well."""
    lab = Lab.open(lab.name)
    iptables = f"iptables-{status(lab)['firewall']['flavour']}"
    setting = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    lab.driver.run("node-1", ["sh", "-c", f"test ! -e {setting} || echo {bridged} > {setting}"])
    assert lab.driver.run("node-1", [iptables, "-w", "-P", "FORWARD", "DROP"]).returncode == 0
    try:
        for address in ("10.244.1.3", "10.244.2.2"):
            assert ping(namespace(lab.name, "web-1"), address)
    finally:
        lab.driver.run("node-1", [iptables, "-w", "-P", "FORWARD", "ACCEPT"])
