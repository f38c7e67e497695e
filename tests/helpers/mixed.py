"""Hosts on one underlay and one etcd, of which each runs flannel's daemon or our agent, and may change over.

Everything is a network namespace without a name: the underlay, in which etcd runs, each host, and each
host's one container. Host N is 192.168.60.(10+N); its container hangs on a bridge that the test makes from
subnet.env, as Docker would, whichever daemon wrote that file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, ip_interface
from pathlib import Path
from typing import Any

from helpers.eventually import eventually
from helpers.flannel import FLANNELD
from helpers.private_netns import PrivateNetns, private_netns

from overlaynet.client import AgentClient
from overlaynet.core.keys import Keys
from overlaynet.errors import AgentUnreachable
from overlaynet.ports import Delete, Put
from overlaynet.store.etcd import EtcdStore

GATEWAY = "192.168.60.1"
ETCD_URL = f"http://{GATEWAY}:2379"
KEYS = Keys()
NETWORK = {"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}
"""The network config, without the options that a test may add to its backend."""


@dataclass
class Daemon:
    """One process of a host, with its output in a file."""

    argv: Sequence[str]
    log: Path
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, netns: PrivateNetns) -> None:
        with netns.entered(), self.log.open("ab") as log:
            environ = {**os.environ, **self.environ}
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, env=environ, cwd=self.log.parent)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self, number: signal.Signals) -> None:
        """Harmless if it is not running.

        flanneld that is told to stop while it still starts may wait for ever; it has given up its handler by
        then, so that a second signal ends it."""
        if self.process is None:
            return
        for patience_s in (5, 20):
            self.process.send_signal(number)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
            self.process = None
            return
        raise AssertionError(f"process {self.process.pid} does not end: {self.said()[-500:]}")

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


@dataclass
class Host:
    """One host, with both daemons at hand; at most one runs."""

    number: int
    where: Path
    netns: PrivateNetns
    container: PrivateNetns
    flanneld: Daemon = field(init=False)
    agent: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.where.mkdir()
        lock = {"XTABLES_LOCKFILE": str(self.where / "xtables.lock")}
        flags = (f"-etcd-endpoints={ETCD_URL}", "-iface=eth0", f"-subnet-file={self.subnet_file}", "-ip-masq")
        self.flanneld = Daemon((str(FLANNELD), *flags), self.where / "flanneld.log", lock)
        self.agent = Daemon((*AGENT, "run", *self._config()), self.where / "agent.log", lock)

    def _config(self) -> tuple[str, str]:
        file = self.where / "agent.toml"
        file.write_text(
            f'[node]\nname = "node-{self.number}"\ninterface = "eth0"\n[etcd]\nendpoints = "{ETCD_URL}"\n'
            f'[bridge]\nmode = "external"\n[paths]\nrun = "{self.where}/run"\nstate = "{self.where}/state"\n'
            f'subnet_file = "{self.subnet_file}"\n'
        )
        return "--config", str(file)

    @property
    def subnet_file(self) -> Path:
        return self.where / "subnet.env"

    @property
    def address(self) -> str:
        return f"192.168.60.{10 + self.number}"

    @property
    def settings(self) -> dict[str, str]:
        """What subnet.env says."""
        lines = self.subnet_file.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def bridge_address(self) -> IPv4Interface:
        return ip_interface(self.settings["FLANNEL_SUBNET"])  # type: ignore[return-value]

    @property
    def container_ip(self) -> str:
        return str(self.bridge_address.ip + 1)

    # --- daemons ------------------------------------------------------------------------------

    def start_flannel(self) -> None:
        """Until it has its subnet and its rules, and has seen its peers."""
        before = self.flanneld.said().count(READY)
        self.flanneld.start(self.netns)
        eventually(lambda: self._alive(self.flanneld).said().count(READY) > before, deadline_s=30)

    def start_agent(self) -> None:
        """Until it is ready."""
        self.agent.start(self.netns)
        eventually(self._agent_is_ready, deadline_s=30)

    def _agent_is_ready(self) -> bool:
        assert self._alive(self.agent)
        try:
            return bool(self.status()["agent"]["state"] == "ready")
        except AgentUnreachable:
            return False

    def _alive(self, daemon: Daemon) -> Daemon:
        if not daemon.running:
            raise RuntimeError(f"{daemon.argv[0]} ended: {daemon.said()[-3000:]}")
        return daemon

    def stop(self) -> None:
        self.flanneld.end(signal.SIGTERM)
        self.agent.end(signal.SIGTERM)

    def status(self) -> dict[str, Any]:
        return AgentClient(self.where / "run" / "agent.sock").get("/v1/status")

    def command(self, verb: str) -> tuple[int, dict[str, Any]]:
        """A command of overlaynet-agent in this host: exit status and document."""
        argv = [*AGENT, verb, *self._config(), "-o", "json"]
        with self.netns.entered():
            environ = {**os.environ, **self.agent.environ}
            done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    # --- container and kernel -----------------------------------------------------------------

    def wire(self) -> None:
        """The container, on a bridge with the address that subnet.env gives."""
        mtu, inner = (
            self.settings["FLANNEL_MTU"],
            f"{self.container_ip}/{self.bridge_address.network.prefixlen}",
        )
        self.netns.run(f"ip link add cni0 mtu {mtu} type bridge")
        self.netns.run(f"ip address add {self.bridge_address} dev cni0")
        self.netns.run("ip link set cni0 up")
        join(self.netns, "veth0", self.container, "eth0", mtu=mtu)
        self.netns.run("ip link set veth0 master cni0")
        self.container.run(f"ip address add {inner} dev eth0")
        self.container.run(f"ip route add default via {self.bridge_address.ip}")

    def reaches(self, address: str) -> bool:
        with self.container.entered():
            argv = ["ping", "-n", "-q", "-c1", "-W2", address]
            return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def tables(self) -> dict[str, str]:
        """The device with its number and MAC, and all entries that lead to peers."""
        commands = {
            "link": "ip -d link show flannel.1",
            "neigh": "ip neigh show dev flannel.1 nud permanent",
            "fdb": "bridge fdb show dev flannel.1",
            "routes": "ip route show",
        }
        return {what: self.netns.run(command) for what, command in commands.items()}

    @property
    def vtep_mac(self) -> str:
        return str(json.loads(self.netns.run("ip -j link show flannel.1"))[0]["address"])


AGENT = (sys.executable, "-P", "-m", "overlaynet_agent")
READY = "Wrote subnet file"
"""The last thing flanneld says of its start; its peers it lists right after."""


def join(one: PrivateNetns, name: str, other: PrivateNetns, other_name: str, *, mtu: str = "1500") -> None:
    """A veth pair between two namespaces, both ends up."""
    one.run(f"ip link add {name} mtu {mtu} type veth peer name {other_name} mtu {mtu} netns {other.path}")
    one.run(f"ip link set {name} up")
    other.run(f"ip link set {other_name} up")


@dataclass
class Mixed:
    """Underlay, etcd and hosts."""

    where: Path
    stack: ExitStack
    underlay: PrivateNetns
    store: EtcdStore
    hosts: list[Host] = field(default_factory=list)

    def add_host(self) -> Host:
        """A host that runs nothing yet."""
        number = len(self.hosts) + 1
        netns, container = (self.stack.enter_context(private_netns()) for _ in range(2))
        join(self.underlay, f"port{number}", netns, "eth0")
        self.underlay.run(f"ip link set port{number} master br0")
        host = Host(number, self.where / f"node-{number}", netns, container)
        netns.run(f"ip address add {host.address}/24 dev eth0")
        netns.run(f"ip route add default via {GATEWAY}")
        netns.run("sysctl -q -w net.ipv4.ip_forward=1")  # flannel leaves that to others
        self.stack.callback(host.stop)
        self.hosts.append(host)
        return host

    def put_network(self, **backend: object) -> None:
        config = {**NETWORK, "Backend": {"Type": "vxlan", **backend}}
        self.store.commit([], [Put(KEYS.network_config, json.dumps(config).encode())])

    def leases(self) -> dict[str, dict[str, Any]]:
        """By public address."""
        values = [json.loads(item.value) for item in self.store.read([KEYS.subnets]).items]
        return {value["PublicIP"]: value for value in values}

    def drop_lease(self, host: Host) -> None:
        items = self.store.read([KEYS.subnets]).items
        gone = [item.key for item in items if json.loads(item.value)["PublicIP"] == host.address]
        self.store.commit([], [Delete(key) for key in gone])

    def unreachable(self, hosts: Sequence[Host] | None = None) -> list[tuple[int, int]]:
        """Ordered pairs of hosts whose containers do not reach each other."""
        some = hosts or self.hosts
        pairs = [(a, b) for a in some for b in some if a is not b]
        return [(a.number, b.number) for a, b in pairs if not a.reaches(b.container_ip)]

    def until_all_reach_all(self, hosts: Sequence[Host] | None = None) -> None:
        def check() -> bool:
            assert self.unreachable(hosts) == []
            return True

        eventually(check, deadline_s=30)


@contextmanager
def mixed(where: Path, **backend: object) -> Iterator[Mixed]:
    """Underlay and etcd, with a network config whose VXLAN backend has these options."""
    with ExitStack() as stack:
        underlay = stack.enter_context(private_netns())
        underlay.run("ip link add br0 type bridge")
        underlay.run(f"ip address add {GATEWAY}/24 dev br0")
        underlay.run("ip link set br0 up")
        etcd = Daemon(_etcd_argv(where), where / "etcd.log")
        etcd.start(underlay)
        stack.callback(etcd.end, signal.SIGKILL)
        store = _connected(where, etcd)
        stack.callback(store.close)
        cluster = Mixed(where, stack, underlay, store)
        cluster.put_network(**backend)
        yield cluster


def _etcd_argv(where: Path) -> tuple[str, ...]:
    listen = f"{ETCD_URL},unix://etcd.sock:0"
    peers = "http://127.0.0.1:2380"
    flags = ("--name=mixed", f"--data-dir={where}/data", f"--listen-client-urls={listen}")
    flags += (f"--advertise-client-urls={ETCD_URL}", f"--listen-peer-urls={peers}")
    return ("etcd", *flags, f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=mixed={peers}")


def _connected(where: Path, etcd: Daemon) -> EtcdStore:
    eventually(lambda: etcd.running and "ready to serve client requests" in etcd.said(), deadline_s=20)
    return EtcdStore((f"unix://{where}/etcd.sock:0",))


def starter(kind: str) -> Callable[[Host], None]:
    """Starts the daemon of that kind on a host."""
    return Host.start_flannel if kind == "flannel" else Host.start_agent
