"""Two overlays side by side: on each of two hosts an agent for each, in one network namespace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.lab import requires_lab
from helpers.mixed import AGENT, ETCD_URL, Daemon, Host, mixed

from overlaynet.client import AgentClient
from overlaynet.errors import AgentUnreachable
from overlaynet.ports import Put

pytestmark = [pytest.mark.lab, requires_lab]

BLUE = {"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}


@dataclass
class Agent:
    """One network's agent on one host."""

    host: Host
    instance: str
    where: Path

    def __post_init__(self) -> None:
        self.where.mkdir()
        file = self.where / "agent.toml"
        own = 'instance = "blue"\n[etcd]\nprefix = "/blue/network"\n' if self.instance else "[etcd]\n"
        file.write_text(
            f'[node]\nname = "node-{self.host.number}"\ninterface = "eth0"\n{own}endpoints = "{ETCD_URL}"\n'
            f'[paths]\nrun = "{self.where}/run"\nstate = "{self.where}/state"\n'
            f'subnet_file = "{self.where}/subnet.env"\n'
        )
        self.words = ("--config", str(file))
        self.environ = {"XTABLES_LOCKFILE": str(self.host.where / "xtables.lock")}
        self.daemon = Daemon((*AGENT, "run", *self.words), self.where / "agent.log", self.environ)

    def start(self) -> None:
        self.daemon.start(self.host.netns)

        def ready() -> bool:
            assert self.daemon.running, self.daemon.said()[-2000:]
            try:
                return bool(self.status()["agent"]["state"] == "ready")
            except AgentUnreachable:
                return False

        eventually(ready, deadline_s=30)

    def status(self) -> dict[str, Any]:
        return AgentClient(self.where / "run" / "agent.sock").get("/v1/status")

    def command(self, verb: str) -> dict[str, Any]:
        argv = [*AGENT, verb, *self.words, "-o", "json"]
        with self.host.netns.entered():
            environ = {**os.environ, **self.environ}
            done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def differences(self) -> int:
        """What ``overlaynet diff`` counts, told by the environment which network is meant."""
        settings = {
            "NODE_NAME": f"node-{self.host.number}",
            "NODE_INTERFACE": "eth0",
            "ETCD_ENDPOINTS": ETCD_URL,
            "PATHS_RUN": f"{self.where}/run",
            "PATHS_STATE": f"{self.where}/state",
        }
        if self.instance:
            settings |= {"NODE_INSTANCE": "blue", "ETCD_PREFIX": "/blue/network"}
        told = {f"OVERLAYNET_{name}": value for name, value in settings.items()}
        argv = [Path(sys.executable).with_name("overlaynet"), "diff", "-l", "local", "-o", "json"]
        with self.host.netns.entered():
            environ = {**os.environ, **self.environ, **told}
            done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
        return int(json.loads(done.stdout)["count"])

    @property
    def vtep(self) -> str:
        """The address of the VXLAN device."""
        return str(self.status()["lease"]["subnets"][0]).partition("/")[0]


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[dict[tuple[int, str], Agent]]:
    """By host and instance, all ready and with the other host as their peer."""
    with mixed(tmp_path) as cluster:
        cluster.store.commit([], [Put("/blue/network/config", json.dumps(BLUE).encode())])
        made = {}
        for host in (cluster.add_host(), cluster.add_host()):
            for instance in ("", "blue"):
                agent = Agent(host, instance, tmp_path / f"agent-{host.number}{instance}")
                cluster.stack.callback(agent.daemon.end, signal.SIGTERM)
                agent.start()
                made[host.number, instance] = agent
        eventually(lambda: all(settled(agent) for agent in made.values()), deadline_s=30)
        yield made


def settled(agent: Agent) -> bool:
    status = agent.status()
    return len(status["peers"]) == 1 and not status["pending"]


def reach(one: Agent, other: Agent) -> bool:
    with one.host.netns.entered():
        argv = ["ping", "-n", "-q", "-c1", "-W2", "-I", one.vtep, other.vtep]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def kernel_of(host: Host) -> list[str]:
    """Addresses, routes, neighbours, FDB entries and rules, a line each."""
    commands = ("ip -4 -o address show", "ip route show", "ip neigh show nud permanent", "bridge fdb show")
    rules = [line for line in host.netns.run("iptables-save").splitlines() if line.startswith("-A")]
    return [line for command in commands for line in host.netns.run(command).splitlines()] + rules


def about_blue(line: str) -> bool:
    return any(word in line for word in ("blue", "flannel.2", "10.99."))


def test_two_networks_share_hosts_and_neither_touches_what_is_the_others(agents):
    plain, blue = agents[1, ""], agents[1, "blue"]
    host = plain.host
    assert reach(plain, agents[2, ""])
    assert reach(blue, agents[2, "blue"])
    full = kernel_of(host)
    for hook in ("-j OVL-FORWARD", "-j OVL-blue-FORWARD"):
        assert any(line.startswith("-A FORWARD") and line.endswith(hook) for line in full)
    writes = plain.status()["writes"]

    # A full look of each finds nothing to do: it takes nothing of the other's for its own.
    for agent in (plain, blue):
        assert agent.command("plan")["changes"] == []
        assert agent.status()["problems"] == []
        assert agent.differences() == 0

    # One leaves, and all of its own goes with it; nothing else does.
    blue.daemon.end(signal.SIGTERM)
    assert blue.command("clean")["failures"] == []
    assert kernel_of(host) == [line for line in full if not about_blue(line)]
    assert plain.command("plan")["changes"] == []
    assert plain.status()["writes"] == writes
    assert reach(plain, agents[2, ""])

    # It comes back beside the other, with the subnet it had.
    blue.start()
    eventually(lambda: reach(blue, agents[2, "blue"]))
    plain.daemon.end(signal.SIGTERM)
    assert plain.command("clean")["failures"] == []
    assert reach(blue, agents[2, "blue"])
    assert blue.command("plan")["changes"] == []


def test_second_agent_that_says_not_which_network_it_is_for_is_refused(agents, tmp_path):
    other = Agent(agents[1, ""].host, "", tmp_path / "another")
    answer = other.command("run")
    assert answer["error"]["code"] == "OVL-200"
    assert "node.instance" in answer["error"]["next"][0]
