"""Machines without virtual machines: each a set of namespaces with files of its own, reached by real ssh.

A machine has its own network, mounts, host name and processes; /etc, /usr/local/bin, /run, /var/lib and
/var/log are its own, everything else is this machine's. When its process 1 ends, which otherwise does nothing,
all its processes end. A cable leads from its eth0 (192.168.56.1N) to a bridge in a namespace of its own.

There is no ssh daemon and no port: the inventory's ProxyCommand enters the machine and runs `sshd -i`, which
serves the one connection that it was started for (sshd(8)). The command is a file, so that a test can make a
machine refuse, or never answer. etcd runs on the first machine and an agent on each, as after an installation,
but for systemd.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.privilege import missing_capabilities

from overlaynet.client import AgentClient
from overlaynet.core.keys import Keys
from overlaynet.errors import OverlayError
from overlaynet.lab.launch import toml
from overlaynet.model import NetworkConfig
from overlaynet.ports import Compare, Put
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore
from overlaynet.store.network_config import parse_network_config

SSHD = Path("/usr/sbin/sshd")
OWN = ("/etc", "/usr/local/bin")
"""What a machine sees of ours, to change it as it likes (mount(8), overlay)."""
EMPTY = ("/run", "/var/lib", "/var/log")
HOME = "/var/lib/root"
"""Root's, so that nothing in ours decides what its shell does."""
COMMANDS = ("overlaynet", "overlaynet-agent", "overlaynet-probe")
CONFIG = Path("/etc/overlaynet/agent.toml")
SOCKET = Path("/run/overlaynet/agent.sock")
LOG = Path("/run/overlaynet/agent.log")
NETWORK = b'{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
GATEWAY = "192.168.56.1"
"""A machine has a way to everywhere, on which it is told that there is no further one."""
AUTHORIZED = "/run/sshd/authorized_keys"
START_S = 30.0

_AGENT_RIGHTS = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--no-new-privs", "--")

_TOOLS = {
    "etcd": "etcd-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    str(SSHD): "openssh-server",
}


def _obstacle() -> str | None:
    if missing := missing_capabilities():
        return "no privilege: " + ", ".join(missing)
    lacking = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    return "not installed: " + ", ".join(lacking) if lacking else None


requires_machines = pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle()))


@dataclass
class Machine:
    """One machine. `pid` is its process 1, `directory` what the operator's side keeps for it."""

    number: int
    pid: int
    directory: Path
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return address_of(self.number)

    def path(self, path: str | Path) -> Path:
        """A file of the machine, as this process sees it."""
        return Path(f"/proc/{self.pid}/root", str(path).lstrip("/"))

    def argv(self, *argv: str) -> list[str]:
        """The command line that runs a command there."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid", "--", *argv]

    def run(self, *argv: str) -> str:
        """A command's output. Raises CalledProcessError, with what it said in a note."""
        try:
            done = subprocess.run(self.argv(*argv), check=True, capture_output=True, text=True, cwd="/")
        except subprocess.CalledProcessError as error:
            error.add_note(str(error.stderr))
            raise
        return done.stdout

    def start(self, *argv: str, log: str | Path) -> subprocess.Popen[bytes]:
        """A command that stays; it says what it says into a file of the machine."""
        with self.path(log).open("ab") as file:
            process = subprocess.Popen(
                self.argv(*argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd="/"
            )
        self._started.append(process)
        return process

    # --- its agent ---

    def agent(self) -> AgentClient:
        return AgentClient(self.path(SOCKET))

    def start_agent(self) -> None:
        """With the rights it has as a service; `wait_for_agent` waits."""
        self.start(*_AGENT_RIGHTS, "overlaynet-agent", "run", log=LOG)

    def wait_for_agent(self) -> None:
        """Until it has done its first work, however that went."""
        eventually(self._agent_is_ready, deadline_s=START_S)

    def _agent_is_ready(self) -> bool:
        try:
            return bool(self.agent().readiness()["ready"])
        except OverlayError:
            return False

    def kill_agent(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, and see it gone."""
        pid = self.path("/run/overlaynet/agent.pid").read_text().strip()
        self.run("kill", f"-{number.value}", pid)
        eventually(lambda: not self.path(f"/proc/{pid}/cmdline").exists(), deadline_s=START_S)

    # --- its sshd ---

    @property
    def _proxy(self) -> Path:
        return self.directory / "proxy"

    def accept(self) -> None:
        """Serve whoever connects from now on."""
        self._answer_by(" ".join(self.argv(str(SSHD), "-i", "-f", str(self.directory / "sshd_config"))))

    def refuse(self) -> None:
        """End each connection at once, as where nothing listens at the port."""
        self._answer_by("false")

    def hang(self) -> None:
        """Take connections and never say a word, as a machine does that has no memory left."""
        self._answer_by("sleep 600")

    def _answer_by(self, command: str) -> None:
        beside = self._proxy.with_suffix(".new")
        beside.write_text(f"#!/bin/sh\nexec {command}\n")
        beside.chmod(0o755)
        beside.replace(self._proxy)

    def end(self) -> None:
        """Switch it off."""
        _kill(self.pid)
        for process in self._started:
            process.wait()


@dataclass
class Machines:
    """Some machines, with etcd on the first."""

    machines: Sequence[Machine]
    inventory: Path
    """An ssh_config(5) of all."""

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    @property
    def endpoint(self) -> str:
        """etcd's, for those who are on no machine."""
        return f"unix://{self.machines[0].path('/run/etcd/etcd.sock')}:0"

    def store(self) -> EtcdStore:
        """etcd, the caller's to close."""
        return EtcdStore([self.endpoint])

    def put_network(self, network: NetworkConfig) -> None:
        """What agents wait for, unless it is there."""
        key, store = Keys().network_config, self.store()
        try:
            store.commit([Compare(key, 0)], [Put(key, codec.encode_network_config(network))])
        finally:
            store.close()


def address_of(number: int) -> str:
    return f"192.168.56.{10 + number}"


@contextmanager
def machines(directory: Path, count: int = 3, *, network: bytes | None = NETWORK) -> Iterator[Machines]:
    """Machines node-1 … with etcd and agents, ready; without `network` the agents still wait for one.

    `directory`: where keys and the inventory are written."""
    with bare_machines(directory, count) as found:
        made = found.machines
        _start_etcd(made[0])
        if network is not None:
            found.put_network(parse_network_config(network))
        for machine in made:
            machine.start_agent()
        if network is not None:
            for machine in made:
                machine.wait_for_agent()
        yield found


@contextmanager
def bare_machines(directory: Path, count: int = 3) -> Iterator[Machines]:
    """Machines on which overlaynet is installed and nothing runs."""
    with ExitStack() as stack:
        underlay = _process_1(stack, "--net")
        _enter(underlay, "ip link add br0 type bridge")
        _enter(underlay, "ip link set br0 up")
        _enter(underlay, f"ip addr add {GATEWAY}/24 dev br0")
        _enter(underlay, "sysctl -w net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0")
        _make_key(directory / "id")
        made = [_machine(stack, directory, number, underlay) for number in range(1, count + 1)]
        yield Machines(made, _inventory(directory, made))


# --- making one -----------------------------------------------------------------------------------


def _machine(stack: ExitStack, directory: Path, number: int, underlay: int) -> Machine:
    own = directory / f"node-{number}"
    own.mkdir()
    pid = _process_1(stack, "--net", "--mount", "--uts", "--pid", "--mount-proc", "--propagation=private")
    machine = Machine(number, pid, own)
    stack.callback(machine.end)
    _own_files(machine)
    machine.run("hostname", machine.name)
    _connect(machine, underlay)
    _install(machine)
    _serve(machine, directory)
    return machine


def _process_1(stack: ExitStack, *namespaces: str) -> int:
    """A process that does nothing, in new namespaces, and ends with this one. The kernel reaps for it."""
    forked = ["--fork", "--kill-child"] if "--pid" in namespaces else []
    nothing = ["env", "--ignore-signal=CHLD", "sleep", "infinity"]
    argv = ["setpriv", "--pdeathsig=KILL", "unshare", *namespaces, *forked, *nothing]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)  # it complains of how its child ended
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pid = int(eventually(children.read_text)) if forked else process.pid
    stack.callback(process.wait)
    stack.callback(_kill, pid)
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    return pid


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _own_files(machine: Machine) -> None:
    for place in EMPTY:
        machine.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    machine.path(HOME).mkdir()
    for place in OWN:
        changes = Path("/run/machine", place.strip("/").replace("/", "-"))
        machine.run("mkdir", "-p", f"{changes}/upper", f"{changes}/work")
        options = f"lowerdir={place},upperdir={changes}/upper,workdir={changes}/work"
        machine.run("mount", "-t", "overlay", "-o", options, "overlay", place)
    machine.run("sed", "--in-place", rf"s|^\(root:[^/]*\):[^:]*:|\1:{HOME}:|", "/etc/passwd")


def _connect(machine: Machine, underlay: int) -> None:
    cable = f"cable-{machine.number}"
    _enter(underlay, f"ip link add {cable} master br0 type veth peer name eth0 netns {machine.pid}")
    _enter(underlay, f"ip link set {cable} up")
    machine.run("ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        machine.run("ip", "link", "set", device, "up")
    machine.run("ip", "route", "add", "default", "via", GATEWAY)


def _install(machine: Machine) -> None:
    """What an installation leaves, as far as it matters without systemd."""
    for directory in ("/etc/overlaynet", "/run/overlaynet", "/run/flannel", "/run/sshd", "/run/etcd"):
        machine.path(directory).mkdir(exist_ok=True)
    for name in COMMANDS:
        link = machine.path(f"/usr/local/bin/{name}")
        link.unlink(missing_ok=True)
        link.symlink_to(Path(sys.executable).with_name(name))
    settings = {"node": {"interface": "eth0"}, "etcd": {"endpoints": [f"http://{address_of(1)}:2379"]}}
    machine.path(CONFIG).write_text(toml(settings))


def _start_etcd(machine: Machine) -> None:
    """One member; see `overlaynet.lab.launch` for its clock and its socket."""
    url = f"http://{machine.address}:2379"
    machine.start(
        "env",
        "--chdir=/run/etcd",
        "etcd",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={url},unix://etcd.sock:0",
        f"--advertise-client-urls={url}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--heartbeat-interval=20",
        "--election-timeout=100",
        log="/var/log/etcd.log",
    )
    log = machine.path("/var/log/etcd.log")
    eventually(lambda: b"ready to serve client requests" in log.read_bytes(), deadline_s=START_S)


def _enter(pid: int, command: str) -> None:
    subprocess.run(
        ["nsenter", f"--target={pid}", "--net", "--", *command.split()], check=True, capture_output=True
    )


# --- ssh ------------------------------------------------------------------------------------------


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)


def _serve(machine: Machine, directory: Path) -> None:
    _make_key(machine.directory / "host_key")
    machine.path(AUTHORIZED).write_text((directory / "id.pub").read_text())
    settings = [
        f"HostKey {machine.directory}/host_key",
        f"AuthorizedKeysFile {AUTHORIZED}",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "PrintMotd no",
        "PrintLastLog no",
        "Subsystem sftp internal-sftp",
    ]
    (machine.directory / "sshd_config").write_text("\n".join(settings) + "\n")
    machine.accept()


def _inventory(directory: Path, made: Sequence[Machine]) -> Path:
    """As `vagrant ssh-config` prints it."""
    known = directory / "known_hosts"
    known.write_text("".join(f"{m.name} {(m.directory / 'host_key.pub').read_text()}" for m in made))
    blocks = [
        f"Host {machine.name}\n"
        f"  HostName {machine.name}\n"
        f"  User root\n"
        f"  ProxyCommand {machine.directory}/proxy\n"
        f"  IdentityFile {directory}/id\n"
        f"  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {known}\n"
        for machine in made
    ]
    inventory = directory / "inventory"
    inventory.write_text("\n".join(blocks))
    return inventory
