"""Every verb that looks, asks and proves, over machines reached by ssh."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from helpers.eventually import eventually
from helpers.lab import caught_up, lab_name
from helpers.machines import Machines, machines, requires_machines

from overlaynet.cli import main as program
from overlaynet.cli.app import App
from overlaynet.cluster import building
from overlaynet.cluster.building import Inventory
from overlaynet.cluster.contexts import choose_context, of_lab
from overlaynet.cluster.machines import MachineCluster
from overlaynet.lab.lab import Lab
from overlaynet.lab.paths import Paths
from overlaynet.lab.topology import parse

pytestmark = [pytest.mark.lab, requires_machines]

LAB = lab_name("far")
VIP = "10.112.0.10"
SERVER = (
    "from socketserver import *; ThreadingTCPServer.request_queue_size = 256; "
    "ThreadingTCPServer(('', 8080), BaseRequestHandler).serve_forever()"
)
TOPOLOGY = f"""
apiVersion: overlaynet/v1
kind: Lab
name: {LAB}
hosts: [{{name: node-1}}, {{name: node-2}}, {{name: node-3}}]
containers:
  - {{name: web-1, host: node-1, labels: {{app: web}}, ports: [8080], command: [python3, -c, "{SERVER}"]}}
  - {{name: web-2, host: node-2, labels: {{app: web}}, ports: [8080], command: [python3, -c, "{SERVER}"]}}
  - {{name: client-1, host: node-1}}
  - {{name: client-3, host: node-3}}
services:
  - apiVersion: v1
    kind: Service
    metadata: {{name: web, namespace: default}}
    spec: {{clusterIP: {VIP}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"""
HOMES = {"web-1": "node-1", "web-2": "node-2", "client-1": "node-1", "client-3": "node-3"}
PROVED, NO, USAGE, ENVIRONMENT, INCONCLUSIVE = range(5)


@dataclass
class Far:
    """A lab on machines. `cluster` is used by most verbs, so that machines are called once for all of them."""

    machines: Machines
    cluster: MachineCluster

    def ip(self, container: str) -> str:
        return next(c.ips[0] for c in self.cluster.containers() if c.name == container)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    with machines(tmp_path_factory.mktemp("machines")) as made:
        topology = parse(TOPOLOGY, "far.yaml")
        result = building.up(topology, Inventory.read(made.inventory), Paths(), timeout_s=30)
        try:
            assert result.converged, result.waiting
            with opened() as cluster:
                eventually(lambda: caught_up(cluster), deadline_s=30)
                yield Far(made, cluster)
        finally:
            building.down(LAB, Paths())


@contextmanager
def opened() -> Iterator[MachineCluster]:
    """The cluster, as a new command finds it."""
    cluster = of_lab(Lab.open(LAB))
    assert isinstance(cluster, MachineCluster)
    try:
        yield cluster
    finally:
        cluster.close()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(far: Far, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line; answers exit code, standard output and error. `cluster`: not the one of all."""

    def command(*arguments: str, cluster: MachineCluster | None = None) -> tuple[int, str, str]:
        code = program.run(arguments, App(pick=lambda _: cluster or far.cluster))
        out, err = capfd.readouterr()
        return code, click.unstyle(out), click.unstyle(err)

    return command


def asked(run: Run, *words: str, cluster: MachineCluster | None = None) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a verb."""
    code, out, err = run(*words, "-o", "json", cluster=cluster)
    assert out, err
    return code, dict(json.loads(out))


# --- looking --------------------------------------------------------------------------------------


def test_the_lab_is_chosen_by_its_name_and_is_one_of_machines(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = choose_context(LAB)
    assert isinstance(cluster, MachineCluster)
    assert (cluster.one_machine, cluster.outside()) == (False, None)
    cluster.close()


def test_hosts_and_containers_are_told_by_the_machines(run: Run) -> None:
    _, hosts = asked(run, "get", "hosts")
    assert [(h["name"], h["driver"], h["netns"], h["underlay_ip"]) for h in hosts["items"]] == [
        (f"node-{n}", "ssh", None, f"192.168.56.{10 + n}") for n in (1, 2, 3)
    ]
    assert {h["agent"]["state"] for h in hosts["items"]} == {"ready"}
    _, containers = asked(run, "get", "containers")
    assert {(c["name"], c["host"], c["netns"], c["ready"]) for c in containers["items"]} == {
        (name, host, f"ovl-{LAB}-{name}", True)
        for name, host in {
            "web-1": "node-1",
            "web-2": "node-2",
            "client-1": "node-1",
            "client-3": "node-3",
        }.items()
    }


@pytest.mark.parametrize("kind", ["routes", "neighs", "fdb", "rules", "leases", "services", "endpoints"])
def test_every_kind_is_listed_and_nothing_of_ours_differs(run: Run, kind: str) -> None:
    code, found = asked(run, "get", kind)
    assert (code, bool(found["items"])) == (0, True)
    ours = [item for item in found["items"] if item.get("owner") == "overlaynet"]
    assert {item["state"] for item in ours} <= {"ok"}
    if kind in ("routes", "neighs", "fdb", "rules"):
        assert {item["host"] for item in ours} == {"node-1", "node-2", "node-3"}


def test_status_describes_all_and_diff_finds_nothing(run: Run) -> None:
    code, status = asked(run, "status")
    assert (code, status["state"], status["etcd"]["connected"], status["problems"]) == (0, "ready", True, [])
    assert [(h["peers"], h["containers"]) for h in status["hosts"]] == [(2, 2), (2, 1), (2, 1)]
    code, out, _ = run("diff")
    assert (code, out) == (0, "0 differences on 3 hosts\n")


def test_service_is_described_with_its_rules(run: Run) -> None:
    code, out, _ = run("describe", "svc/web")
    assert (code, out.count("OVL-SEP-") >= 4, "Rules on node-1" in out) == (0, True, True), out


def test_doctor_tells_of_machines(run: Run) -> None:
    _, found = asked(run, "doctor", "-l", LAB)
    checks = {check["name"]: check for check in found["checks"]}
    assert {checks[f"{LAB}/node-{n}"]["state"] for n in (1, 2, 3)} == {"ok"}
    assert "agent ready" in checks[f"{LAB}/node-1"]["detail"]


def test_graph_draws_every_machine(run: Run) -> None:
    code, out, _ = run("graph")
    assert code == 0
    assert [f"node-{n}  192.168.56.1{n}  agent ready" in out for n in (1, 2, 3)] == [True] * 3


def test_logs_are_those_of_the_machines_agents(run: Run, far: Far) -> None:
    log = far.machines["node-2"].path("/run/overlaynet/agent.log")
    eventually(lambda: run("logs", "node-2", "-n", "2")[1].splitlines() == log.read_text().splitlines()[-2:])
    everybody = run("logs", "-n", "1")[1].splitlines()
    assert [line.split()[0] for line in everybody] == ["node-1", "node-2", "node-3"]


def test_logs_follow_what_is_said_from_now_on(far: Far) -> None:
    process = far.cluster.follow("node-3")
    assert process.stdout is not None
    assert process.stdin is not None
    log = far.machines["node-3"].path("/run/overlaynet/agent.log")
    os.set_blocking(process.stdout.fileno(), False)

    def heard() -> bool:
        """It says nothing of what came before it looked."""
        with log.open("a") as file:
            file.write("a line of a test\n")
        return b"a line of a test\n" in (process.stdout.read() or b"")

    try:
        eventually(heard, deadline_s=20)
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
    assert process.returncode == 0


# --- being there ----------------------------------------------------------------------------------


def test_exec_is_in_the_container_and_knows_addresses(run: Run) -> None:
    code, out, _ = run("exec", "client-3", "--", "ping", "-c1", "-W2", "web-1")
    assert (code, "1 received" in out) == (0, True)
    code, out, _ = run(
        "exec", "client-3", "--", "sh", "-c", 'readlink /proc/self/ns/net; echo "a\'b $0"; exit 7', "x y"
    )
    assert (code, out.splitlines()[1]) == (7, "a'b x y")
    assert out.splitlines()[0] != run("exec", "node-3", "--", "readlink", "/proc/self/ns/net")[1].strip()


def test_exec_on_a_host_is_on_that_machine(run: Run) -> None:
    assert run("exec", "node-2", "--", "hostname")[:2] == (0, "node-2\n")


def test_command_that_is_not_there_could_not_be_started(run: Run) -> None:
    code, _, err = run("exec", "web-1", "--", "no-such-program")
    assert (code, "'no-such-program' could not be started" in err) == (125, True)
    code, _, err = run("exec", "nobody", "--", "true")
    assert (code, "there is no container or host 'nobody'" in err) == (125, True)


def test_shell_without_a_terminal_reads_its_commands(far: Far) -> None:
    """As `shell` starts it; with a terminal it would get one."""
    process = far.cluster.start("client-1", ["bash", "--norc", "-c", "exit 3"])
    assert process.wait(20) == 3


# --- proving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["mesh", "mtu", "isolation", "services"])
def test_suite_passes(run: Run, suite: str) -> None:
    code, found = asked(run, "verify", suite)
    others = [(check["id"], check["evidence"]) for check in found["checks"] if check["verdict"] != "pass"]
    assert (code, others) == (0, [])
    assert found["passed"] == found["total"] > 0


def test_explain_predicts_across_machines(run: Run) -> None:
    code, found = asked(run, "explain", "client-1", "web-2", "--tcp", "8080")
    assert (code, found["outcome"]) == (0, "delivered")


def test_trace_on_one_machine_is_proved(run: Run) -> None:
    code, found = asked(run, "trace", "client-1", "web-1", "--tcp", "8080")
    assert (code, found["verdict"]) == (PROVED, "proved")
    assert {hop["host"] for hop in found["forward"]} == {"node-1"}


def test_trace_between_machines_is_proved_without_comparing_their_clocks(run: Run) -> None:
    code, found = asked(run, "trace", "client-1", "web-2", "--tcp", "8080")
    assert (code, found["verdict"]) == (PROVED, "proved")
    assert {hop["host"] for hop in found["forward"]} == {"node-1", "node-2"}
    assert all(hop["seen"] for hop in found["forward"])
    assert all((hop["t_us"] is None) == (hop["host"] == "node-2") for hop in found["forward"]), found["forward"]
    assert found["capture"]["drops"] == 0


def test_trace_of_a_vip_names_the_endpoint_that_was_chosen(run: Run) -> None:
    code, found = asked(run, "trace", "client-3", "svc/web", "--tcp", "80")
    assert (code, found["verdict"]) == (PROVED, "proved")
    translated = [change for hop in found["forward"] for change in hop["changes"] if "dst" in change["field"]]
    assert translated, found["forward"]


def test_lost_entry_is_proved_to_be_the_cause_and_is_repaired(run: Run, far: Far, tmp_path: Path) -> None:
    """With the agent held, so that it does not mend what was broken."""
    machine = far.machines["node-1"]
    pid = machine.path("/run/overlaynet/agent.pid").read_text().strip()
    fdb = json.loads(machine.run("bridge", "-json", "fdb", "show", "dev", "flannel.1"))
    mac = next(entry["mac"] for entry in fdb if entry.get("dst") == "192.168.56.12")
    machine.kill_agent()
    machine.run("bridge", "fdb", "del", mac, "dev", "flannel.1")
    try:
        code, found = asked(run, "trace", "client-1", "web-2", "-w", str(tmp_path / "lost.ovltrace"))
        assert (code, found["verdict"], found["lost_between"]) == (
            NO,
            "lost",
            ["node-1:flannel.1", "node-2:eth0"],
        )
        assert (found["cause"]["kind"], found["cause"]["point"]) == ("fdb_missing", "node-1:flannel.1"), found[
            "cause"
        ]
        code, again = asked(run, "trace", "--replay", str(tmp_path / "lost.ovltrace"))
        assert (code, again["cause"]) == (NO, found["cause"])
        code, found = asked(run, "diff")
        assert (code, [(h["host"], len(h["changes"])) for h in found["hosts"] if h["changes"]]) == (
            NO,
            [("node-1", 1)],
        )
        code, found = asked(run, "repair", "node-1")
        assert (code, found["hosts"][0]["by"], found["hosts"][0]["changes"]) == (0, "once", 1)
        assert asked(run, "trace", "client-1", "web-2")[1]["verdict"] == "proved"
    finally:
        assert not machine.path(f"/proc/{pid}").exists()
        machine.start_agent()
        machine.wait_for_agent()
    assert asked(run, "repair", "node-1")[1]["hosts"][0]["by"] == "agent"


def test_capture_is_of_several_machines_at_once(run: Run, far: Far, tmp_path: Path) -> None:
    inside = ("nsenter", f"--net=/run/netns/ovl-{LAB}-client-1")
    far.machines["node-1"].start(*inside, "ping", "-i0.2", "-w100", far.ip("web-2"), log="/var/log/ping.log")
    code, found = asked(
        run, "capture", "client-1:eth0", "node-2:eth0", "-c", "6", "-w", str(tmp_path / "x.pcapng"), "icmp"
    )
    assert (code, (tmp_path / "x.pcapng").stat().st_size > 500) == (0, True), found
    code, out, _ = run("capture", "--live", "client-1:eth0", "node-2:flannel.1", "-c", "12", "icmp")
    assert code == 0
    assert {"client-1:eth0", "node-2:flannel.1"} <= set(re.findall(r"\S+:\S+", out)), out


def test_capture_ends_in_good_order_at_ctrl_c(far: Far, tmp_path: Path) -> None:
    """Which a terminal sends to all that the command has started, too."""
    inside = ("nsenter", f"--net=/run/netns/ovl-{LAB}-client-3")
    far.machines["node-3"].start(*inside, "ping", "-i0.2", "-w100", far.ip("web-2"), log="/var/log/ping.log")
    file = tmp_path / "x.pcapng"
    words = ["capture", "client-3:eth0", "node-2:eth0", "-w", str(file), "-l", LAB, "-o", "json", "icmp"]
    argv = [sys.executable, "-m", "overlaynet.cli.main", *words]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    eventually(lambda: file.exists() and file.stat().st_size > 1_000, deadline_s=30)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    found = json.loads(out)
    assert (process.returncode, [point["witness"] for point in found["points"]]) == (0, [True, True]), out


# --- changing -------------------------------------------------------------------------------------


def test_services_are_written_through_a_machines_agents_settings(run: Run, tmp_path: Path) -> None:
    code, found = asked(run, "service", "create", "db", "--port", "5432", "--selector", "app=web")
    assert code == 0, found
    assert [s["name"] for s in asked(run, "get", "services")[1]["items"]] == ["db", "web"]
    assert run("service", "delete", "db")[0] == 0
    file = tmp_path / "other.yaml"
    file.write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: other}, "
        "spec: {selector: {app: none}, ports: [{port: 9}]}}"
    )
    assert run("apply", "-f", str(file))[0] == 0
    assert run("service", "delete", "other")[0] == 0


def test_network_and_leases_are_shown_and_changed(run: Run) -> None:
    code, found = asked(run, "network", "show")
    assert code == 0
    assert "10.244.0.0/16" in json.dumps(found)
    taken = {lease["subnet"] for lease in asked(run, "get", "leases")[1]["items"]}
    subnet = next(s for n in range(77, 256) if (s := f"10.244.{n}.0/24") not in taken)
    assert run("lease", "reserve", subnet, "--public-ip", "192.168.56.99")[0] == 0
    leases = asked(run, "get", "leases")[1]["items"]
    assert (subnet, None) in {(lease["subnet"], lease["expires_in_s"]) for lease in leases}
    assert run("lease", "delete", subnet, "--yes")[0] == 0


def test_container_of_somebody_elses_is_attached_on_its_machine_and_detached(run: Run, far: Far) -> None:
    machine = far.machines["node-3"]
    machine.run("ip", "netns", "add", "guest")
    try:
        with opened() as cluster:
            code, found = asked(run, "attach", "guest", "--netns", "guest", "--host", "node-3", cluster=cluster)
            assert (code, found["host"]) == (0, "node-3"), found
        with opened() as cluster:
            places = cluster.places()
            code, out, _ = run("exec", "guest", "--", "ping", "-c1", "-W2", "web-1", cluster=cluster)
            assert ("guest" in places, code, "1 received" in out) == (True, 0, True)
            assert asked(run, "trace", "guest", "web-1", cluster=cluster)[1]["verdict"] == "proved"
            assert run("detach", "guest", cluster=cluster)[0] == 0
        with opened() as cluster:
            assert "guest" not in cluster.places()
    finally:
        machine.run("ip", "netns", "del", "guest")


def test_container_with_a_probe_command_has_its_helper_on_the_machine(run: Run, far: Far) -> None:
    machine = far.machines["node-2"]
    machine.run("ip", "netns", "add", "probed")
    try:
        with opened() as cluster:
            words = ("--netns", "probed", "--host", "node-2", "--probe-exec", "test -d /proc")
            assert run("attach", "probed", *words, cluster=cluster)[0] == 0
            agent = cluster.agent("node-2", 30)
            eventually(lambda: _ready(agent.get("/v1/status"), "probed"), deadline_s=60)
            assert run("detach", "probed", cluster=cluster)[0] == 0
    finally:
        machine.run("ip", "netns", "del", "probed")


def _ready(status: dict[str, Any], name: str) -> bool:
    return any(c["name"] == name and c["ready"] for c in status["containers"])


def test_subnet_of_a_machine_that_refuses_is_told_by_etcd(far: Far, run: Run) -> None:
    def subnets(cluster: MachineCluster) -> dict[str, str]:
        code, out, _ = run("status", "-o", "json", cluster=cluster)
        assert code == 0
        return {host["name"]: host["subnet"] for host in json.loads(out)["hosts"]}

    with opened() as cluster:
        before = subnets(cluster)
    far.machines["node-2"].refuse()
    try:
        with opened() as cluster:
            assert subnets(cluster) == before
    finally:
        far.machines["node-2"].accept()
