"""The scripts in labs/: each proves its claim in a lab that is well, and tells how it is refuted in another.

Agents are stopped before anything is broken, or they would mend it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.lab import caught_up, lab_name, requires_lab

from overlaynet import data
from overlaynet.cluster.contexts import LabCluster
from overlaynet.kernel import process
from overlaynet.lab.lab import Lab
from overlaynet.lab.topology import parse
from overlaynet.model import Settings

pytestmark = [pytest.mark.lab, requires_lab]

LABS = Path(__file__).parent.parent.parent / "labs"
SCRIPTS = sorted(file.stem for file in LABS.glob("verify_*.py"))
MOST_LINES = 60


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its records of endpoints outlive its agents for as long as the tests take."""
    text = data.path("labs", "quickstart.yaml").read_text()
    topology = parse(text, "quickstart.yaml", lab_name("scripts"))
    with Lab.running(replace(topology, settings=Settings(node_ttl_s=600))) as running:
        yield running


@pytest.fixture(scope="module")
def served(lab: Lab) -> Lab:
    """The lab, once its service has all of its endpoints on every host."""
    eventually(lambda: caught_up(LabCluster(lab)), deadline_s=30)
    return lab


@pytest.fixture(scope="module")
def alone(served: Lab) -> Lab:
    """The same without any agent. What runs before it has them."""
    for host in served.hosts:
        pid = served.pid(f"agent/{host.name}")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: process.start_time(pid) is None)
    return served


def run(lab: Lab, script: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(LABS / f"{script}.py"), "-l", lab.name]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def on(lab: Lab, host: str, command: str, stdin: bytes = b"") -> str:
    done = lab.driver.run(host, command.split(), stdin=stdin)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.decode()


@contextmanager
def without_fdb(lab: Lab) -> Iterator[None]:
    """node-1 does not know on which host the tunnel's other end is that leads to node-2."""
    entries = on(lab, "node-1", "bridge fdb show dev flannel.1").splitlines()
    mac = next(line.split()[0] for line in entries if "dst 192.168.50.12" in line)
    on(lab, "node-1", f"bridge fdb del {mac} dev flannel.1 dst 192.168.50.12")
    try:
        yield
    finally:
        on(lab, "node-1", f"bridge fdb append {mac} dev flannel.1 dst 192.168.50.12 self permanent")


@contextmanager
def without_neighbour(lab: Lab) -> Iterator[None]:
    """node-1 does not know the Ethernet address of the tunnel's other end at node-2."""
    (entry,) = on(lab, "node-1", "ip neigh show 10.244.2.0 dev flannel.1").splitlines()
    mac = entry.split()[2]
    on(lab, "node-1", "ip neigh del 10.244.2.0 dev flannel.1")
    try:
        yield
    finally:
        on(lab, "node-1", f"ip neigh replace 10.244.2.0 lladdr {mac} dev flannel.1 nud permanent")


@contextmanager
def without_rules(lab: Lab, host: str, chain: str) -> Iterator[None]:
    """A built-in chain of nat is empty."""
    saves = {flavour: on(lab, host, f"iptables-{flavour}-save -t nat") for flavour in ("nft", "legacy")}
    flavour = next(flavour for flavour, rules in saves.items() if "OVL-" in rules)
    on(lab, host, f"iptables-{flavour} -w -t nat -F {chain}")
    try:
        yield
    finally:
        on(lab, host, f"iptables-{flavour}-restore -T nat", stdin=saves[flavour].encode())


BREAKS: dict[str, tuple[Callable[[Lab], AbstractContextManager[None]], str]] = {
    "verify_vxlan": (without_fdb, "no packet is vxlan from node-1 to node-2"),
    "verify_hops": (without_fdb, "the packet is not seen at node-1:eth0"),
    "verify_arp": (without_neighbour, "packets are arp at"),
    "verify_masquerade": (
        lambda lab: without_rules(lab, "node-1", "POSTROUTING"),
        "not so: src turns from web-1 to 192.168.50.11",
    ),
    "verify_service_nat": (
        lambda lab: without_rules(lab, "node-3", "PREROUTING"),
        "not so: it comes to an endpoint",
    ),
}


def test_every_script_is_short_and_has_a_way_to_fail() -> None:
    assert sorted(BREAKS) == SCRIPTS
    assert [s for s in SCRIPTS if len((LABS / f"{s}.py").read_text().splitlines()) >= MOST_LINES] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_proves_its_claim(served: Lab, script: str) -> None:
    done = run(served, script)
    assert done.returncode == 0, done.stdout + done.stderr
    *steps, last = done.stdout.splitlines()
    assert last.startswith("PROVED  ")
    assert len(steps) >= 3
    assert {step[:6] for step in steps} == {"  ok  "}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_proves_its_claim_without_agents(alone: Lab, script: str) -> None:
    done = run(alone, script)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_says_how_its_claim_is_refuted(alone: Lab, script: str) -> None:
    broken, told = BREAKS[script]
    with broken(alone):
        done = run(alone, script)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\nNOT SO  " in "\n" + done.stdout
    assert told in done.stdout
    assert "PROVED" not in done.stdout
    assert done.stderr == ""
    assert run(alone, script).returncode == 0


def test_script_without_its_lab_says_so(served: Lab) -> None:
    argv = [sys.executable, str(LABS / "verify_vxlan.py"), "-l", "no-such-lab"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error OVL-104: no lab 'no-such-lab' is running")
