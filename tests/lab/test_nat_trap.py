"""Two machines whose first interface has one address, as every Vagrant VM's NAT card has 10.0.2.15."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.lab import requires_lab
from helpers.mixed import AGENT, ETCD_URL, KEYS, Daemon, Host, Mixed, mixed

from overlaynet.client import AgentClient
from overlaynet.errors import AgentUnreachable

pytestmark = [pytest.mark.lab, requires_lab]

NAT = "10.0.2.15"


@dataclass
class Machine:
    """A host whose default route leads by the NAT card, with an agent; its private network is on eth0."""

    host: Host
    where: Path
    daemon: Daemon

    @classmethod
    def on(cls, host: Host, where: Path) -> Machine:
        host.netns.run("ip link add nat0 type veth peer name nat-box")
        host.netns.run("ip link set nat-box up")
        host.netns.run(f"ip address add {NAT}/24 dev nat0")
        host.netns.run("ip link set nat0 up")
        host.netns.run("ip route replace default via 10.0.2.2 dev nat0")
        where.mkdir()
        lock = {"XTABLES_LOCKFILE": str(where / "xtables.lock")}
        argv = (*AGENT, "run", "--config", str(where / "agent.toml"))
        return cls(host, where, Daemon(argv, where / "agent.log", lock))

    def start(self, interface: str = "") -> None:
        chosen = f'interface = "{interface}"\n' if interface else ""
        (self.where / "agent.toml").write_text(
            f'[node]\nname = "vm-{self.host.number}"\n{chosen}[etcd]\nendpoints = "{ETCD_URL}"\n'
            f'[paths]\nrun = "{self.where}/run"\nstate = "{self.where}/state"\n'
            f'subnet_file = "{self.where}/subnet.env"\n'
        )
        self.daemon.start(self.host.netns)

    def stop(self) -> None:
        self.daemon.end(signal.SIGTERM)

    def status(self) -> dict[str, Any]:
        assert self.daemon.running, self.daemon.said()[-2000:]
        try:
            return AgentClient(self.where / "run" / "agent.sock").get("/v1/status")
        except AgentUnreachable as error:
            raise AssertionError(str(error)) from error

    def problem(self, code: str) -> dict[str, Any] | None:
        """The one with this code, once it is complained of; others may be while the agent starts."""
        return next((problem for problem in self.status()["problems"] if problem["code"] == code), None)

    def is_ready(self) -> bool:
        return bool(self.status()["agent"]["state"] == "ready")

    @property
    def vtep(self) -> str:
        return str(self.status()["lease"]["subnets"][0]).partition("/")[0]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Mixed]:
    with mixed(tmp_path) as made:
        yield made


def test_second_machine_with_the_nat_cards_address_is_told_what_to_type_and_then_both_work(cluster, tmp_path):
    first, second = (Machine.on(cluster.add_host(), tmp_path / f"vm-{n}") for n in (1, 2))
    for machine in (first, second):
        cluster.stack.callback(machine.stop)

    # Neither was told which interface to take, so both take that of the default route.
    first.start()
    eventually(first.is_ready, deadline_s=30)
    second.start()
    problem = eventually(lambda: second.problem("OVL-404"), deadline_s=30)
    for word in (NAT, "vm-1", "vm-2"):
        assert word in f"{problem['message']} {problem['evidence']}"
    assert any("node.interface" in step for step in problem["next"])
    assert second.status()["lease"] is None
    assert cluster.leases().keys() == {NAT}  # nobody's traffic for the first is led to the second

    # The address that only it has is the answer, on each of them.
    for machine in (first, second):
        machine.stop()
        machine.start("eth0")
    for machine in (first, second):
        eventually(machine.is_ready, deadline_s=30)
        eventually(lambda m=machine: len(m.status()["peers"]) == 1, deadline_s=30)
    eventually(lambda: cluster.leases().keys() == {first.host.address, second.host.address}, deadline_s=30)
    claims = {item.key for item in cluster.store.read([KEYS.addresses]).items}
    assert KEYS.address(NAT) not in claims
    eventually(lambda: reaches(first, second), deadline_s=30)


def reaches(one: Machine, other: Machine) -> bool:
    with one.host.netns.entered():
        argv = ["ping", "-n", "-q", "-c1", "-W2", "-I", one.vtep, other.vtep]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
