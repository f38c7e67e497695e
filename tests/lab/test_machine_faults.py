"""Every kind of fault that is offered on machines: made, found by a trace with its cause, and healed.

All of them by one cluster, and so through one connection to each machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name
from helpers.machines import Machine, Machines, machines, requires_machines

from overlaynet.cluster import building
from overlaynet.cluster.breaking import changing_faults
from overlaynet.cluster.building import Inventory
from overlaynet.cluster.contexts import of_lab
from overlaynet.cluster.machines import MachineCluster
from overlaynet.errors import EnvironmentProblem, LabFailed, UsageError
from overlaynet.lab.faultkinds import KINDS, Request
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.lab import Lab
from overlaynet.lab.machinesite import BARRED
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import Topology
from overlaynet.proof.question import Asked
from overlaynet.proof.tracing import trace
from overlaynet.trace.model import LOST, PROVED, Trace

pytestmark = [pytest.mark.lab, requires_machines]

LAB = lab_name("harm")
PING = Asked("web-1", "web-3", "icmp")
LARGE = Asked("web-1", "web-3", "icmp", size=1300)
SYSTEMCTL = """#!/bin/sh
# As systemd does it, as far as faults go: kill what it is told to, and start what is not held dead.
set -eu
echo "$*" >> /run/systemctl.log
dropin=/run/systemd/system/overlaynet-agent.service.d/overlaynet-fault.conf
case "$1" in
kill) kill -KILL "$(cat /run/overlaynet/agent.pid)" ;;
start) test ! -e $dropin; setsid overlaynet-agent run >> /run/overlaynet/agent.log 2>&1 < /dev/null & ;;
esac
"""


@dataclass(frozen=True)
class Case:
    words: tuple[str, ...]
    cause: str
    asked: Asked = PING
    more: dict[str, str | bool] = field(default_factory=dict)


CASES = {
    "container": Case(("link", "web-3"), "link_down"),
    "underlay": Case(("link", "node-3"), "link_down"),
    "mtu": Case(("mtu", "node-3:cni0", "1000"), "mtu", LARGE),
    "route": Case(("route", "node-1", "node-3"), "route_missing"),
    "wrong-route": Case(("route", "node-1", "node-3"), "route_wrong", more={"wrong": True}),
    "neigh": Case(("neigh", "node-1", "node-3"), "neigh_missing"),
    "fdb": Case(("fdb", "node-1", "node-3"), "fdb_missing"),
    "wrong-fdb": Case(("fdb", "node-1", "node-3"), "fdb_wrong", more={"wrong": True}),
    "drop": Case(("rule", "node-1", "web-1", "web-3"), "rule_drop", more={"target": "DROP"}),
    "forwarding": Case(("forwarding", "node-1"), "forwarding_off"),
    "loss": Case(("loss", "node-1", "node-3", "100"), "rule_drop"),
    "partition": Case(("partition", "node-1", "node-2,node-3"), "rule_drop"),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(tmp_path_factory.mktemp("machines")) as found:
        inventory = Inventory.read(found.inventory)
        topology = Topology.of_hosts(inventory.hosts, LAB, 1)
        assert building.up(topology, inventory, Paths(), timeout_s=30.0).converged
        yield found
        assert building.down(LAB, Paths()).left == ()


@pytest.fixture(scope="module")
def connected(three: Machines) -> Iterator[MachineCluster]:
    lab = Lab.open(LAB)
    cluster = of_lab(lab)
    assert isinstance(cluster, MachineCluster)
    yield cluster
    lab.driver.close()


@pytest.fixture
def cluster(connected: MachineCluster) -> Iterator[MachineCluster]:
    yield connected
    heal(connected)


def break_(cluster: MachineCluster, *words: str, for_s: float | None = None, **more: str | bool) -> Fault:
    kind, *target = words
    with changing_faults(cluster) as mine:
        return mine.make(kind, Request(tuple(target), **more), time.time(), for_s).fault


def heal(cluster: MachineCluster) -> None:
    with changing_faults(cluster) as mine:
        mine.heal((), time.time())


def told(found: Trace) -> tuple[str, str | None]:
    return found.verdict, found.cause and found.cause.kind


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fault_is_found_with_its_cause_and_healed(cluster: MachineCluster, case: Case) -> None:
    break_(cluster, *case.words, **case.more)
    found = trace(cluster, case.asked).trace
    assert told(found) == (LOST, case.cause), (found.cause, found.inconclusive_because)
    heal(cluster)
    eventually(lambda: trace(cluster, PING).trace.verdict == PROVED, deadline_s=30)


def test_strict_reverse_path_is_set_and_set_back(cluster: MachineCluster, three: Machines) -> None:
    setting = "/proc/sys/net/ipv4/conf/flannel.1/rp_filter"
    before = three["node-1"].run("cat", setting)
    break_(cluster, "rp_filter", "node-1", "flannel.1")
    assert three["node-1"].run("cat", setting) == "1\n" != before
    heal(cluster)
    assert three["node-1"].run("cat", setting) == before


def test_host_is_cut_off_from_etcd_alone(cluster: MachineCluster, three: Machines) -> None:
    break_(cluster, "partition", "node-3", "etcd")
    rules = three["node-3"].run("iptables-save", "-t", "filter")
    assert "-d 192.168.56.11/32 -p tcp -m tcp --dport 2379" in rules
    agent = three["node-3"].agent()
    eventually(lambda: not agent.get("/v1/status")["store"]["connected"], deadline_s=60)
    assert trace(cluster, PING).trace.verdict == PROVED
    heal(cluster)
    assert "2379" not in three["node-3"].run("iptables-save", "-t", "filter")
    eventually(lambda: agent.get("/v1/status")["store"]["connected"], deadline_s=60)


def test_fault_ends_by_itself_on_its_machine(cluster: MachineCluster, three: Machines) -> None:
    """Nobody of this side is there to end it: no process waits here, and no connection is open."""
    fault = break_(cluster, "fdb", "node-1", "node-3", for_s=5.0)
    assert fault.timer is None
    lost = fdb_of(three["node-1"])
    assert not any("192.168.56.13" in line for line in lost)
    for machine in three:
        machine.refuse()
    try:
        eventually(lambda: any("192.168.56.13" in line for line in fdb_of(three["node-1"])), deadline_s=60)
        eventually(lambda: not three["node-1"].path("/run/overlaynet/faults").exists(), deadline_s=60)
        assert three["node-1"].agent().get("/v1/status")["holds"] == []
    finally:
        for machine in three:
            machine.accept()
    assert not Lab.open(LAB).faults()
    assert trace(cluster, PING).trace.verdict == PROVED


def test_what_has_ended_by_itself_is_not_undone_again(cluster: MachineCluster, three: Machines) -> None:
    """Who has changed it since had his reasons."""
    inside = ["ip", "netns", "exec", f"ovl-{LAB}-web-1", "ip", "route"]
    way = three["node-1"].run(*inside, "show", "default").split()
    break_(cluster, "route", "web-1", "default", for_s=3.0)
    assert three["node-1"].run(*inside, "show", "default") == ""
    eventually(lambda: three["node-1"].run(*inside, "show", "default").split() == way, deadline_s=60)
    eventually(lambda: not three["node-1"].path("/run/overlaynet/faults").exists(), deadline_s=60)
    three["node-1"].run(*inside, "delete", "default")
    heal(cluster)
    assert not Lab.open(LAB).paths.faults_json.exists()
    assert three["node-1"].run(*inside, "show", "default") == ""
    three["node-1"].run(*inside, "add", *way)


def fdb_of(machine: Machine) -> list[str]:
    return machine.run("bridge", "fdb", "show", "dev", "flannel.1").splitlines()


def test_fault_that_is_healed_before_its_time_has_no_timer_left(
    cluster: MachineCluster, three: Machines
) -> None:
    break_(cluster, "partition", "node-1", "node-2", for_s=600.0)
    timer = three["node-1"].path(f"/run/overlaynet/faults/{LAB}.f1/timer.json")
    assert timer.exists()
    heal(cluster)
    assert not timer.exists()
    eventually(lambda: "machinetimer" not in three["node-1"].run("ps", "-e", "-o", "args"))


def test_fault_on_a_machine_out_of_reach_stays_on_record(cluster: MachineCluster, three: Machines) -> None:
    break_(cluster, "fdb", "node-1", "node-3")
    three["node-1"].refuse()
    anew = of_lab(Lab.open(LAB))
    try:
        with changing_faults(anew) as mine, pytest.raises(LabFailed, match="not healed: f1") as raised:
            mine.heal((), time.time())
    finally:
        anew.lab.driver.close()
        three["node-1"].accept()
    assert "node-1" in raised.value.evidence
    assert [fault.id for fault in Lab.open(LAB).faults()] == ["f1"]
    heal(cluster)
    assert trace(cluster, PING).trace.verdict == PROVED


@pytest.fixture
def systemd(three: Machines) -> Iterator[Machine]:
    """A machine on which something answers as systemd does."""
    machine = three["node-2"]
    machine.path("/run/systemd/system").mkdir(parents=True)
    command = machine.path("/usr/local/bin/systemctl")
    command.write_text(SYSTEMCTL)
    command.chmod(0o755)
    yield machine
    command.unlink()
    machine.run("rm", "-r", "/run/systemd")


def test_agent_is_killed_and_started_by_systemd(cluster: MachineCluster, systemd: Machine) -> None:
    pid = systemd.path("/run/overlaynet/agent.pid").read_text()
    break_(cluster, "agent", "node-2")
    eventually(lambda: not systemd.path(f"/proc/{pid.strip()}/cmdline").exists())
    said = systemd.path("/run/systemctl.log").read_text()
    assert "kill --signal=SIGKILL overlaynet-agent" in said
    assert trace(cluster, PING).trace.verdict == PROVED
    heal(cluster)
    assert systemd.path("/run/overlaynet/agent.pid").read_text() != pid
    eventually(lambda: systemd.agent().get("/v1/status")["agent"]["state"] == "ready", deadline_s=30)
    assert not systemd.path("/run/systemd/system/overlaynet-agent.service.d").exists()


def test_agent_that_nobody_could_start_again_is_not_killed(cluster: MachineCluster, three: Machines) -> None:
    pid = three["node-2"].path("/run/overlaynet/agent.pid").read_text()
    with pytest.raises(EnvironmentProblem, match="systemd"):
        break_(cluster, "agent", "node-2")
    assert Path(three["node-2"].path(f"/proc/{pid.strip()}/cmdline")).exists()
    assert not Lab.open(LAB).faults()


@pytest.mark.parametrize("kind", BARRED)
def test_what_makes_no_sense_on_machines_is_refused_with_the_reason(cluster: MachineCluster, kind: str) -> None:
    words = KINDS[kind].example.split()[3:4] if KINDS[kind].usage else []
    with pytest.raises(UsageError) as raised:
        break_(cluster, kind, *words)
    assert raised.value.evidence == BARRED[kind]


def test_every_kind_is_either_tested_here_or_refused() -> None:
    tested = {case.words[0] for case in CASES.values()} | {"rp_filter", "agent", "partition"}
    assert tested | set(BARRED) == set(KINDS)


def test_device_that_is_not_the_overlays_is_left_alone(cluster: MachineCluster) -> None:
    with pytest.raises(UsageError, match="may be what ssh needs"):
        break_(cluster, "link", "node-1:lo")
