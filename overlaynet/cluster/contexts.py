"""The two kinds of cluster behind `Cluster`: a lab, and the real one that this host is a node of.

Both read what agents leave on disk (identity, wired containers), so that neither needs a living agent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overlaynet.client import Agent, AgentClient
from overlaynet.cluster.cluster import Cluster, Container, Host, Outside, readable
from overlaynet.config import AgentConfig, load
from overlaynet.core.keys import Keys
from overlaynet.errors import (
    AgentUnreachable,
    EnvironmentProblem,
    LabFailed,
    NotFound,
    NotPermitted,
)
from overlaynet.kernel.netns import path as netns_path
from overlaynet.kernel.process import tool
from overlaynet.lab import faultrecords, sandbox
from overlaynet.lab.converge import OUTSIDE_PLACE
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import clean_environ
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.session import ProbeSession, Session, start
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import LOCAL, LabState, running_labs
from overlaynet.lab.state import choose as choose_name
from overlaynet.lab.state import load as load_state
from overlaynet.lab.topology import OUTSIDE_ADDRESS
from overlaynet.model import Identity, Workload
from overlaynet.ports import Store
from overlaynet.probe import log, wiring
from overlaynet.probe.job import checked, reported
from overlaynet.store.disk import read_identity, read_workloads

_PROBE = (sys.executable, "-P", "-m", "overlaynet.probe")
_AGENT = (sys.executable, "-P", "-m", "overlaynet_agent")


def choose_context(lab: str | None, paths: Paths | None = None) -> Cluster:
    """The cluster that is meant; a lab of an ordinary user's is joined (`lab.sandbox`), once for all that this
    process does. Raises LabChoice, NameInvalid, LabFailed."""
    paths = paths or Paths.here()
    name = choose_name(lab, os.environ, paths)
    if name == LOCAL:
        return LocalCluster(paths)
    sandbox.join(name, paths.lab(name))
    return of_lab(Lab.open(name, paths))


def of_lab(lab: Lab) -> LabCluster:
    """A lab's cluster, by what its hosts are."""
    if isinstance(lab.driver, SshDriver):
        from overlaynet.cluster.machines import MachineCluster

        return MachineCluster(lab, lab.driver)
    return LabCluster(lab)


def lab_items(paths: Paths | None = None) -> list[dict[str, Any]]:
    """Running labs as items of `get labs`."""
    paths = paths or Paths.here()
    return [_lab_item(name, paths.lab(name)) for name in running_labs(paths)]


def _lab_item(name: str, paths: LabPaths) -> dict[str, Any]:
    try:
        state = load_state(paths)
    except LabFailed:
        state = None
    return {
        "name": name,
        "state": _state(state),
        "driver": state.driver if state else None,
        "hosts": len(state.topology.hosts) if state else None,
        "containers": len(state.topology.containers) if state else None,
        "faults": _faults(paths, on_machines=state is not None and state.on_machines),
    }


def _state(state: LabState | None) -> str:
    if state is None:
        return "unreadable"
    return "rebooted" if state.rebooted else "ended" if state.ended else "running"


def _faults(paths: LabPaths, *, on_machines: bool) -> list[str] | None:
    """What is broken in a lab on purpose, by its ids; None if that cannot be read."""
    try:
        return [fault.id for fault in faultrecords.present(paths, time.time(), on_machines=on_machines)]
    except LabFailed:
        return None


class LabCluster:
    """A lab of this machine."""

    one_machine = True

    def __init__(self, lab: Lab) -> None:
        self.name = lab.name
        self.lab = lab

    def hosts(self) -> Sequence[Host]:
        lab = self.lab
        return [Host(h.name, lab.state.driver, lab.driver.netns(h.name), str(h.underlay_ip)) for h in lab.hosts]

    def containers(self) -> Sequence[Container]:
        wired = [workload for host in self.lab.hosts for workload in self.workloads(host.name) or ()]
        return with_records(lab_containers(self.lab), wired)

    def outside(self) -> Outside | None:
        if not self.lab.topology.outside:
            return None
        return Outside(self.lab.driver.netns(OUTSIDE_PLACE), str(OUTSIDE_ADDRESS))

    def has_faults(self) -> bool:
        return bool(self.lab.faults())

    def traces(self) -> Path:
        return self.lab.paths.run / "traces"

    def places(self) -> Sequence[str]:
        return self.lab.places

    def config(self, host: str) -> AgentConfig:
        return load(readable(self.lab.paths.host(host).config), {})

    def identity(self, host: str) -> Identity | None:
        return read_identity(readable(self.lab.paths.host(host).identity))

    def workloads(self, host: str) -> Sequence[Workload] | None:
        return read_workloads(readable(self.lab.paths.host(host).workloads), host)

    def keys(self) -> Keys:
        hosts = self.lab.hosts
        return keys_of(self.config(hosts[0].name)) if hosts else Keys()

    def store(self) -> Store:
        return self.lab.store()

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        return checked(self.lab.driver.probe(host, job, timeout_s))

    def session(self, host: str, timeout_s: float) -> Session:
        return self.lab.driver.session(host)

    def stream(self, host: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        return self.lab.driver.stream(host, job)

    def agent(self, host: str, timeout_s: float) -> Agent:
        return AgentClient(self.lab.paths.host(host).socket, timeout_s)

    def wire(self, host: str, body: Mapping[str, Any], where: str, pid: int | None) -> Mapping[str, Any]:
        paths = self.lab.paths.host(host)
        return wiring.wire_place(AgentClient(paths.socket), body, where, pid, paths.run)

    def log(self, host: str, lines: int) -> Sequence[str]:
        with self._log(host).open(encoding="utf-8", errors="replace") as stream:
            return [line.rstrip("\n") for line in deque(stream, maxlen=lines)]

    def follow(self, host: str) -> subprocess.Popen[bytes]:
        return _following(["tail", "-n0", "-F", str(self._log(host))])

    def _log(self, host: str) -> Path:
        file = self.lab.paths.host(host).log
        if not file.exists():
            raise NotFound(
                f"there is no log of {host}'s agent", evidence=f"looked for {file}", next=["overlaynet up"]
            )
        return readable(file)

    def start(self, target: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        return self.lab.driver.popen_in(target, argv)

    def once(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        environ = {**clean_environ(), **self.lab.environ_of(host)}
        done = _run(self.lab.agent_argv(host, "once", "-o", "json"), b"", timeout_s, environ)
        return once_answer(host, done.stdout, done.stderr)


class LocalCluster:
    """The cluster this machine's own agent belongs to: one host, ours."""

    name = LOCAL
    one_machine = True

    def __init__(self, paths: Paths) -> None:
        self._config = load(None, {k: v for k, v in os.environ.items() if k != "OVERLAYNET_LAB"})
        instance = self._config.node.instance
        self._socket = self._config.paths.socket if instance else paths.agent.socket

    def hosts(self) -> Sequence[Host]:
        node = self._status().get("node") or {}
        underlay = next(iter(node.get("public_ips", [])), None)
        return [Host(node.get("name") or self._node_name(), "local", None, underlay)]

    def containers(self) -> Sequence[Container]:
        wired = self.workloads(self.hosts()[0].name) or ()
        return with_records([Container(w.name, w.node, w.namespace, w.netns) for w in wired], wired)

    def outside(self) -> Outside | None:
        return None

    def has_faults(self) -> bool:
        return False

    def traces(self) -> Path:
        return self._config.paths.run / "traces"

    def places(self) -> Sequence[str]:
        return [h.name for h in self.hosts()] + [c.name for c in self.containers()]

    def config(self, host: str) -> AgentConfig:
        return self._config

    def identity(self, host: str) -> Identity | None:
        return read_identity(self._config.paths.identity)

    def workloads(self, host: str) -> Sequence[Workload] | None:
        return read_workloads(self._config.paths.workloads, host)

    def keys(self) -> Keys:
        return keys_of(self._config)

    def store(self) -> Store:
        from overlaynet.store.etcd import connect

        return connect(self._config.etcd)

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        done = _run(_PROBE, json.dumps(job).encode(), timeout_s)
        return reported(f"probe on {host}", done.stdout, done.stderr)

    def session(self, host: str, timeout_s: float) -> Session:
        return ProbeSession(host, _PROBE)

    def stream(self, host: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        return start(host, _PROBE, job)

    def agent(self, host: str, timeout_s: float) -> Agent:
        return AgentClient(self._socket, timeout_s)

    def wire(self, host: str, body: Mapping[str, Any], where: str, pid: int | None) -> Mapping[str, Any]:
        return wiring.wire_place(AgentClient(self._socket), body, where, pid, self._config.paths.run)

    def log(self, host: str, lines: int) -> Sequence[str]:
        return log.lines(lines)

    def follow(self, host: str) -> subprocess.Popen[bytes]:
        return _following(log.command(0, follow=True))

    def start(self, target: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        container = next((c for c in self.containers() if c.name == target), None)
        if container is not None and container.netns is None:
            raise EnvironmentProblem(f"it is not known which network namespace {target} has")
        inside = [] if container is None else [tool("nsenter"), f"--net={_namespace(container.netns)}", "--"]
        try:
            return subprocess.Popen([*inside, *argv])
        except OSError as error:
            raise EnvironmentProblem(f"{argv[0]} could not be started", evidence=str(error)) from error

    def once(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        done = _run([*_AGENT, "once", "-o", "json"], b"", timeout_s)
        return once_answer(host, done.stdout, done.stderr)

    def _status(self) -> Mapping[str, Any]:
        try:
            return self.agent("", 3.0).get("/v1/status")
        except (AgentUnreachable, NotPermitted):
            return {}

    def _node_name(self) -> str:
        return self._config.node.name or os.uname().nodename.partition(".")[0].lower()


def lab_containers(lab: Lab) -> list[Container]:
    """Those of a lab's topology, wired or not."""
    return [
        Container(
            c.name,
            c.host,
            c.namespace,
            lab.driver.netns(c.name),
            labels=c.labels,
            ports=c.ports,
            started=True,
            probe=c.probe,
        )
        for c in lab.containers
    ]


def with_records(found: Iterable[Container], wired: Iterable[Workload]) -> list[Container]:
    """The same, each as an agent wired it, if one did."""
    records = {workload.id: workload for workload in wired}
    return [c.with_record(records[c.id]) if c.id in records else c for c in found]


def keys_of(config: AgentConfig) -> Keys:
    return Keys(config.etcd.prefix, config.etcd.overlay_prefix)


# --- programs that report in JSON -----------------------------------------------------------------


def once_answer(host: str, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """What ``overlaynet-agent once`` did: how many changes, and those that were refused."""
    document = reported(f"overlaynet-agent once on {host}", stdout, stderr)
    return {"changes": document["count"], "failures": document["failures"]}


def _run(
    argv: Sequence[str], stdin: bytes, timeout_s: float, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            argv, input=stdin, capture_output=True, timeout=timeout_s, check=False, env=environ
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(f"{argv[-1]} did not end within {timeout_s:g} s") from error
    except OSError as error:
        raise EnvironmentProblem(f"{argv[0]} could not be started", evidence=str(error)) from error


def _following(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise EnvironmentProblem(f"{argv[0]} could not be started", evidence=str(error)) from error


def _namespace(netns: str | None) -> str:
    text = netns or ""
    return text if "/" in text else str(netns_path(text))
