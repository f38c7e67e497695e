"""The command lines, environments and files of a lab's processes. Pure.

etcd ticks faster than it does by default (a heartbeat each 20 ms, an election after 100): a single member
elects itself only after one election timeout, and that is what starting it costs (1.0 s by default, 0.1 s
so). Its unix socket is for commands that are not on the underlay; etcd wants ``host:port`` after
``unix://`` and takes it for a file name in its working directory, hence the odd name.

An agent gets uid 0 with CAP_NET_ADMIN and CAP_NET_RAW and no way to get more (setpriv(1)), as its systemd
unit gives it on a real host.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlaynet.kernel import netns
from overlaynet.lab.converge import ETCD, agent_of, command_of, helper_of
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.paths import HostPaths, LabPaths
from overlaynet.lab.topology import ETCD_ADDRESS, Container, Host, Topology
from overlaynet.model import Identity

ETCD_PORT = 2379
ETCD_URL = f"http://{ETCD_ADDRESS}:{ETCD_PORT}"
ETCD_SOCKET_FILE = "etcd.sock:0"
_ETCD_PEER_URL = "http://127.0.0.1:2380"

_ONLY_NETWORK_RIGHTS = (
    "setpriv",
    "--bounding-set=-all,+net_admin,+net_raw",
    "--inh-caps=-all,+net_admin,+net_raw",
    "--no-new-privs",
    "--",
)


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one process in the namespace of `place`, with its files and their contents."""

    place: str
    argv: tuple[str, ...]
    log: Path
    directory: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """Equal for equal launches: a process started from another one is started anew."""
        members = (self.argv, sorted(self.environ.items()), sorted((str(f), t) for f, t in self.files.items()))
        return hashlib.sha256(repr(members).encode()).hexdigest()[:16]


def launches(topology: Topology, paths: LabPaths, machine: str) -> dict[str, Launch]:
    """Every process of the lab by its name. `machine` is the processor's name, as uname(2) has it."""
    found = {ETCD: etcd(paths, machine)}
    found |= {agent_of(host.name): agent(host, paths.host(host.name)) for host in topology.hosts}
    found |= {command_of(c.name): command(c, paths) for c in topology.containers if c.command}
    helped = [c for c in topology.containers if c.needs_helper]
    return found | {helper_of(c.name): helper(topology.name, c, paths) for c in helped}


def etcd(paths: LabPaths, machine: str) -> Launch:
    """etcd, one member."""
    return Launch(
        place=ETCD,
        argv=(
            ETCD,
            "--name=lab",
            f"--data-dir={paths.etcd_data}",
            f"--listen-client-urls={ETCD_URL},unix://{ETCD_SOCKET_FILE}",
            f"--advertise-client-urls={ETCD_URL}",
            f"--listen-peer-urls={_ETCD_PEER_URL}",
            f"--initial-advertise-peer-urls={_ETCD_PEER_URL}",
            f"--initial-cluster=lab={_ETCD_PEER_URL}",
            "--heartbeat-interval=20",
            "--election-timeout=100",
        ),
        log=paths.log(ETCD),
        directory=paths.run,
        environ={"ETCD_UNSUPPORTED_ARCH": "arm64"} if machine == "aarch64" else {},
    )


def agent(host: Host, paths: HostPaths) -> Launch:
    """A host's agent."""
    return Launch(
        place=host.name,
        argv=tuple(agent_argv(paths, "run")),
        log=paths.log,
        environ=agent_environ(paths),
        files={paths.config: toml(agent_settings(host, paths))},
    )


def agent_argv(paths: HostPaths, *words: str) -> list[str]:
    """The command line of `overlaynet-agent WORDS… --config FILE` with an agent's rights. `-P` keeps the
    directory that the caller happens to be in from being searched for modules."""
    python = (sys.executable, "-P", "-m", "overlaynet_agent")
    return [*_ONLY_NETWORK_RIGHTS, *python, *words, "--config", str(paths.config)]


def agent_environ(paths: HostPaths) -> dict[str, str]:
    """Each host has a lock file for iptables of its own: /run is shared, the rules are not."""
    return {"XTABLES_LOCKFILE": str(paths.xtables_lock)}


def command(container: Container, paths: LabPaths) -> Launch:
    """The command of a container."""
    return Launch(place=container.name, argv=container.command, log=paths.log(container.name))


def helper(lab: str, container: Container, paths: LabPaths) -> Launch:
    """Who runs the command of a container's probe."""
    socket = paths.host(container.host).probe_socket(container.name)
    where = netns.path(namespace(lab, container.name))
    return Launch(
        place=container.name,
        argv=tuple(helper_argv(socket, "--netns", str(where))),
        log=paths.log(f"{container.name}-helper"),
    )


def helper_argv(socket: Path, *where: str) -> list[str]:
    """The command line of a helper; `where`: ``--netns PATH`` or ``--pid PID``."""
    return [sys.executable, "-P", "-m", "overlaynet.probe.helper", str(socket), *where]


def agent_settings(host: Host, paths: HostPaths) -> dict[str, dict[str, Any]]:
    """agent.toml's sections: the lab's own keys, and the topology's."""
    node: dict[str, Any] = {"name": host.name, "interface": "eth0"}
    if host.zone is not None:
        node["zone"] = host.zone
    if host.labels:
        node["labels"] = dict(host.labels)
    settings: dict[str, dict[str, Any]] = {
        "node": node,
        "etcd": {"endpoints": [ETCD_URL]},
        "paths": {"run": str(paths.run), "state": str(paths.state), "subnet_file": str(paths.subnet_file)},
    }
    for section, table in host.agent.items():
        settings[section] = {**settings.get(section, {}), **table}
    return settings


def identity(topology: Topology, host: Host, node_id: str) -> Identity:
    """The identity a host begins with: so it gets the subnet and the MAC that its number says."""
    return Identity(node_id, topology.vtep_mac(host), (topology.subnet(host),))


# --- TOML -----------------------------------------------------------------------------------------


def toml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """A TOML document of one level of tables."""
    tables = []
    for section, table in settings.items():
        lines = [f"{key} = {toml_value(value)}" for key, value in table.items()]
        tables.append("\n".join([f"[{section}]", *lines]) + "\n")
    return "\n".join(tables)


def toml_value(value: object) -> str:
    """Text, numbers, truths, lists and tables. JSON's text is TOML's, but for DEL."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
        case Mapping():
            return "{ " + ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
        case Sequence():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise TypeError(f"TOML has no place for {value!r}")
