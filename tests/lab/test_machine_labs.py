"""Labs on machines: up from nothing, changed, moved, after a restart, with a machine out of reach, and down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name
from helpers.machines import Machine, Machines, machines, requires_machines

from overlaynet.cluster import building
from overlaynet.cluster.building import Inventory
from overlaynet.core.keys import Keys
from overlaynet.errors import (
    AgentUnreachable,
    LabFailed,
    MachineUnreachable,
    OverlayError,
    ToolMissing,
    TopologyError,
    WorkloadExists,
)
from overlaynet.lab.paths import Paths
from overlaynet.lab.settling import UpResult
from overlaynet.lab.state import load
from overlaynet.lab.topology import Topology, parse
from overlaynet.store import services

pytestmark = [pytest.mark.lab, requires_machines]

LAB = lab_name("roam")
HOSTS = ("node-1", "node-2")
UP_S = 30.0
HELLO = "from http.server import *; ThreadingHTTPServer(('', 80), SimpleHTTPRequestHandler).serve_forever()"
LISTENS = "ss -Hltn | grep -q :80"
SERVED = f"""
apiVersion: overlaynet/v1
kind: Lab
name: {LAB}
hosts: [{{name: node-1}}, {{name: node-2}}]
containers:
  - name: web-1
    host: node-1
    labels: {{app: web}}
    ports: [80]
    probe: {{exec: {{command: [sh, -c, "{LISTENS}"]}}, period_s: 0.2}}
    command: [python3, -c, "{HELLO}"]
  - {{name: client-1, host: node-2}}
services:
  - apiVersion: v1
    kind: Service
    metadata: {{name: web}}
    spec: {{clusterIP: 10.112.0.10, selector: {{app: web}}, ports: [{{port: 80}}]}}
"""
ANOTHERS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "anothers"},
    "spec": {"clusterIP": "10.112.0.99", "ports": [{"port": 80}]},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(tmp_path_factory.mktemp("machines"), 2) as found:
        yield found


@pytest.fixture(autouse=True)
def tidy(both: Machines) -> Iterator[None]:
    """Whatever becomes of the lab in a test, nothing of it is left."""
    yield
    for machine in both:
        machine.accept()
    if load(Paths().lab(LAB)) is not None:
        building.down(LAB, Paths())


def up(both: Machines, topology: Topology, timeout_s: float = UP_S) -> UpResult:
    return building.up(topology, Inventory.read(both.inventory), Paths(), timeout_s=timeout_s)


def cli(*words: str) -> tuple[int, Any]:
    """A command as a person types it: its exit code and its document."""
    argv = [sys.executable, "-m", "overlaynet.cli.main", *words, "-l", LAB, "-o", "json"]
    environ = {name: value for name, value in os.environ.items() if name != "OVERLAYNET_LAB"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
    return done.returncode, json.loads(done.stdout)


def simple(containers: int = 1, hosts: Sequence[str] = HOSTS) -> Topology:
    return Topology.of_hosts(hosts, LAB, containers)


def served() -> Topology:
    return parse(SERVED, "served.yaml")


def without(topology: Topology, container: str) -> Topology:
    return replace(topology, containers=tuple(c for c in topology.containers if c.name != container))


def moved(topology: Topology, container: str, host: str) -> Topology:
    found = tuple(replace(c, host=host) if c.name == container else c for c in topology.containers)
    return replace(topology, containers=found)


def namespaces(machine: Machine) -> set[str]:
    lines = machine.run("ip", "netns", "list").splitlines()
    return {line.split()[0].removeprefix(f"ovl-{LAB}-") for line in lines}


def wired(machine: Machine) -> dict[str, str]:
    return {c["name"]: c["ips"][0] for c in machine.agent().get("/v1/status")["containers"]}


def subnet(machine: Machine) -> str:
    found: str = machine.agent().get("/v1/status")["lease"]["subnets"][0]
    return found


def service_keys(both: Machines) -> set[str]:
    store = both.store()
    try:
        return {item.key.rpartition("/")[2] for item in store.read([Keys().services]).items}
    finally:
        store.close()


def untouched(both: Machines) -> bool:
    return all(not namespaces(machine) and not wired(machine) for machine in both)


# --- up -------------------------------------------------------------------------------------------


def test_comes_up_by_the_command_line_and_goes(both: Machines) -> None:
    code, made = cli("up", "--driver", "ssh", "--inventory", str(both.inventory), "--containers", "1")
    assert (code, made["converged"], made["waiting"]) == (0, True, [])
    assert made["changes"] > 0
    assert [host["containers"] for host in made["hosts"]] == [["web-1"], ["web-2"]]
    assert [namespaces(machine) for machine in both] == [{"web-1"}, {"web-2"}]
    code, again = cli("up")
    assert (code, again["changes"]) == (0, 0)
    code, mesh = cli("verify", "mesh")
    assert (code, mesh["passed"], mesh["total"]) == (0, 2, 2)
    (found,) = [lab for lab in cli("get", "labs")[1]["items"] if lab["name"] == LAB]
    assert (found["driver"], found["state"], found["containers"]) == ("ssh", "running", 2)
    assert cli("clean", "--yes")[1]["items"] == []
    code, gone = cli("down")
    assert (code, gone["left"], untouched(both)) == (0, [], True)


def test_service_is_called_its_command_started_again_and_all_of_it_taken_back(both: Machines) -> None:
    store, keys = both.store(), Keys()
    try:
        services.apply(store, keys, [ANOTHERS])
        agents = [pid_of(machine) for machine in both]
        leases = [subnet(machine) for machine in both]
        first = up(both, served())
        assert (first.converged, first.waiting) == (True, ())
        assert service_keys(both) == {"web", "anothers"}
        eventually(lambda: calls(both["node-2"]), deadline_s=30)
        assert up(both, served()).changes == 0
        kill_command(both["node-1"], "web-1")
        assert up(both, served()).changes == 1
        assert building.down(LAB, Paths()).left == ()
        assert service_keys(both) == {"anothers"}
    finally:
        services.delete(store, keys, ["default/anothers"], [])
        store.close()
    assert untouched(both)
    assert not any(machine.path("/run/overlaynet/containers").exists() for machine in both)
    assert "SimpleHTTPRequestHandler" not in both["node-1"].run("ps", "-e", "-o", "args")
    assert [pid_of(machine) for machine in both] == agents
    assert [subnet(machine) for machine in both] == leases
    assert load(Paths().lab(LAB)) is None


def pid_of(machine: Machine) -> str:
    """Its agent's."""
    return machine.path("/run/overlaynet/agent.pid").read_text()


def calls(machine: Machine) -> bool:
    """Whether client-1 gets an answer from the service."""
    call = "import urllib.request as u; u.urlopen('http://10.112.0.10', timeout=5)"
    with suppress(subprocess.CalledProcessError):
        machine.run("ip", "netns", "exec", f"ovl-{LAB}-client-1", "python3", "-c", call)
        return True
    return False


def kill_command(machine: Machine, container: str) -> None:
    record = json.loads(machine.path(f"/run/overlaynet/containers/{LAB}/containers.json").read_text())
    pid = str(record["processes"][f"command/{container}"]["pid"])
    machine.run("kill", "-9", pid)
    eventually(lambda: not machine.path(f"/proc/{pid}/cmdline").exists())


def test_containers_and_hosts_come_go_and_move_as_the_topology_does(both: Machines) -> None:
    up(both, simple(2))
    before = [subnet(machine) for machine in both]
    assert cli("break", "route", "web-1", "default")[0] == 0
    result = up(both, moved(without(simple(2), "web-1"), "web-3", "node-1"))
    assert (result.converged, [fault.words for fault in result.healed]) == (True, ["route web-1 default"])
    assert [namespaces(machine) for machine in both] == [{"web-2", "web-3"}, {"web-4"}]
    assert [set(wired(machine)) for machine in both] == [{"web-2", "web-3"}, {"web-4"}]
    code, mesh = cli("verify", "mesh")
    assert (code, mesh["passed"]) == (0, 6)
    assert up(both, simple(1, ["node-1"])).converged
    assert [namespaces(machine) for machine in both] == [{"web-1"}, set()]
    assert wired(both["node-2"]) == {}
    assert [subnet(machine) for machine in both] == before
    state = load(Paths().lab(LAB))
    assert state is not None
    assert state.machines == ("node-1",)


def test_containers_of_a_machine_that_was_restarted_are_made_again(both: Machines) -> None:
    up(both, simple(1))
    machine = both["node-2"]
    before = subnet(machine)
    restart(machine)
    assert namespaces(machine) == set()
    eventually(lambda: readiness() == {"web-1": True, "web-2": False}, deadline_s=30)
    problem = eventually(lambda: the_only(cli("status")[1]["problems"]))
    assert (problem["host"], "web-2" in problem["message"]) == ("node-2", True)
    result = up(both, simple(1))
    assert (result.converged, subnet(machine)) == (True, before)
    code, mesh = cli("verify", "mesh")
    assert (code, mesh["passed"]) == (0, 2)


def readiness() -> dict[str, bool]:
    """Of each container, as far as etcd has heard."""
    return {c["name"]: c["ready"] for c in cli("get", "containers")[1]["items"]}


def the_only(problems: list[dict[str, Any]]) -> dict[str, Any]:
    """An agent that starts may have more to complain of for a moment."""
    assert len(problems) == 1, problems
    return problems[0]


def restart(machine: Machine) -> None:
    """What a reboot leaves of a machine: its disk."""
    machine.kill_agent()
    for name in namespaces(machine):
        machine.run("ip", "netns", "delete", f"ovl-{LAB}-{name}")
    for device in ("flannel.1", "cni0"):
        machine.run("ip", "link", "delete", device)
    machine.run("find", "/run/overlaynet", "-mindepth", "1", "-delete")
    machine.start_agent()
    machine.wait_for_agent()


# --- refused --------------------------------------------------------------------------------------


def refused(both: Machines, topology: Topology, kind: type[OverlayError]) -> OverlayError:
    """Before anything is touched."""
    with pytest.raises(kind) as raised:
        up(both, topology)
    assert untouched(both)
    assert load(Paths().lab(LAB)) is None
    return raised.value


def test_topology_with_a_host_that_is_in_no_inventory(both: Machines) -> None:
    assert "node-9" in refused(both, simple(1, [*HOSTS, "node-9"]), TopologyError).message


def test_topology_that_sets_what_the_machine_decides(both: Machines) -> None:
    first, second = simple(1).hosts
    told = replace(first, agent={"log": {"level": "debug"}})
    error = refused(both, replace(simple(1), hosts=(told, second)), TopologyError)
    assert first.name in error.message
    zoned = replace(second, zone="b")
    assert "zone" in refused(both, replace(simple(1), hosts=(first, zoned)), TopologyError).message


def test_topology_of_another_network(both: Machines) -> None:
    text = SERVED.replace("hosts:", "network: {cidr: 10.99.0.0/16}\nhosts:", 1)
    assert "10.244.0.0/16" in refused(both, parse(text, "other.yaml"), TopologyError).evidence


def test_command_that_a_machine_does_not_have(both: Machines) -> None:
    text = SERVED.replace("[python3, -c,", "[no-such-program, -c,")
    assert "no-such-program" in refused(both, parse(text, "odd.yaml"), ToolMissing).message


def test_machine_that_cannot_be_reached(both: Machines) -> None:
    both["node-2"].refuse()
    error = refused(both, simple(1), MachineUnreachable)
    assert "node-2" in error.message
    assert error.next == (f"ssh -F {both.inventory} node-2 true",), "the lab's copy is gone"


def test_namespace_that_somebody_else_made_is_left_alone(both: Machines) -> None:
    name = f"ovl-{LAB}-web-1"
    both["node-1"].run("ip", "netns", "add", name)
    try:
        with pytest.raises(LabFailed, match=name):
            up(both, simple(1))
        assert namespaces(both["node-1"]) == {"web-1"}
    finally:
        both["node-1"].run("ip", "netns", "delete", name)


def test_name_that_another_container_has(both: Machines) -> None:
    machine = both["node-2"]
    machine.run("ip", "netns", "add", "another")
    machine.run("overlaynet", "attach", "web-1", "--netns", "another")
    try:
        with pytest.raises(WorkloadExists, match="web-1"):
            up(both, simple(1))
        assert set(wired(machine)) == {"web-1"}
    finally:
        machine.run("overlaynet", "detach", "web-1")
        machine.run("ip", "netns", "delete", "another")


# --- down -----------------------------------------------------------------------------------------


def test_down_without_a_machine_says_what_is_left_and_may_forget_it(both: Machines) -> None:
    up(both, served())
    both["node-1"].refuse()
    code, told = cli("down")
    assert code == 1
    assert [text.partition(":")[0] for text in told["left"]] == ["node-1"]
    assert "web-1" in told["left"][0]
    assert [namespaces(machine) for machine in both] == [{"web-1"}, set()]
    code, told = cli("down", "--force")
    assert (code, [text.partition(":")[0] for text in told["left"]]) == (0, ["node-1"])
    assert load(Paths().lab(LAB)) is None
    both["node-1"].accept()
    assert up(both, simple(1)).converged  # the record there still says whose it is
    assert [namespaces(machine) for machine in both] == [{"web-1"}, {"web-2"}]


def test_down_leaves_what_somebody_else_has_built_under_the_same_name(both: Machines) -> None:
    up(both, simple(1))
    machine = both["node-1"]
    file = machine.path(f"/run/overlaynet/containers/{LAB}/containers.json")
    mine = file.read_text()
    file.write_text(json.dumps({**json.loads(mine), "owner": "lee@lap"}))
    (left,) = building.down(LAB, Paths()).left
    assert "lee@lap" in left
    assert [namespaces(one) for one in both] == [{"web-1"}, set()]
    assert set(wired(machine)) == {"web-1"}
    file.write_text(mine)
    assert building.down(LAB, Paths()).left == ()
    assert namespaces(machine) == set()


def test_agent_that_does_not_run_is_told_at_up_and_lets_go_after_down(both: Machines) -> None:
    up(both, simple(1))
    machine = both["node-2"]
    machine.kill_agent()
    with pytest.raises(AgentUnreachable, match="node-2") as raised:
        up(both, simple(1))
    assert any("systemctl start" in step for step in raised.value.next)
    assert building.down(LAB, Paths()).left == ()
    assert namespaces(machine) == set()
    machine.start_agent()
    machine.wait_for_agent()
    eventually(lambda: not wired(machine))
