"""The cluster behind a lab of machines: everything is asked of the machines themselves, over ssh.

Machines are asked at once, each through one connection. One that does not answer is told and left out, and what
is known of it from elsewhere (the topology, etcd) stays. What a machine tells of itself, its agent's files
among it, is as it was when it was first asked: such a cluster is made for one command.

etcd is asked from the first machine whose agent's settings lead to it, with that agent's rights. Whoever has
more rights sets OVERLAYNET_ETCD_…: then etcd is asked from here, directly.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from overlaynet import __version__
from overlaynet.client import Agent
from overlaynet.cluster.cluster import Container, Host, Outside, read_view
from overlaynet.cluster.contexts import LabCluster, keys_of, lab_containers, with_records
from overlaynet.config import DEFAULT_CONFIG_PATH, AgentConfig, EtcdConfig, from_environ, parse
from overlaynet.core.keys import Keys
from overlaynet.errors import (
    ConfigError,
    EnvironmentProblem,
    MachineUnreachable,
    OverlayError,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from overlaynet.lab.lab import Lab
from overlaynet.lab.remote_store import RemoteStore
from overlaynet.lab.session import Session
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.model import Identity, Lease, Workload
from overlaynet.ports import Store
from overlaynet.store import disk

ETCD_VARIABLES = "OVERLAYNET_ETCD_"


class Facts(NamedTuple):
    """What a machine told of itself: `release` is its kernel's; files are text, None for those that are not
    there. `underlay_ips`: by its agent's word, empty where none answers."""

    version: str
    release: str
    boot_id: str
    config: str | None
    identity: str | None
    workloads: str | None
    underlay_ips: Sequence[str]

    @classmethod
    def of(cls, host: str, answer: Mapping[str, Any]) -> Facts | OverlayError:
        """From its answer; an error if that is not one of ours."""
        if missing := [name for name in cls._fields if name not in answer]:
            return MachineUnreachable(
                f"the probe of {host} answers unlike this version's",
                evidence=f"it said nothing of {', '.join(missing)}",
                next=[f"install version {__version__} there (docs/install.md)"],
            )
        return cls(*(answer[name] for name in cls._fields))


class MachineCluster(LabCluster):
    """A lab whose hosts are machines. `environ`: ours, for what it says of etcd."""

    one_machine = False

    def __init__(self, lab: Lab, driver: SshDriver, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(lab)
        self._driver = driver
        self._environ = os.environ if environ is None else environ
        self._asks_etcd = ""
        driver.begin(host.name for host in lab.hosts)

    def close(self) -> None:
        """Hang up. Otherwise that is done with the end of the program."""
        self._driver.close()

    # --- what machines tell ---

    @cached_property
    def told(self) -> Mapping[str, Facts | OverlayError]:
        """Every machine's own word, or why there is none, by host."""
        answers = self._driver.reach(host.name for host in self.lab.hosts)
        return {n: a if isinstance(a, OverlayError) else Facts.of(n, a) for n, a in answers.items()}

    def facts(self, host: str) -> Facts:
        """One machine's. Raises MachineUnreachable, or what its probe could not do."""
        answer = self.told[host]
        if isinstance(answer, OverlayError):
            raise answer
        return answer

    def config(self, host: str) -> AgentConfig:
        return _parsed(self.facts(host).config, host)

    def identity(self, host: str) -> Identity | None:
        text = self.facts(host).identity
        return None if text is None else disk.parse_identity(text, f"{host}'s identity file")

    def workloads(self, host: str) -> Sequence[Workload] | None:
        text = self.facts(host).workloads
        return None if text is None else disk.parse_workloads(text, f"{host}'s workload file", host)

    def keys(self) -> Keys:
        return keys_of(AgentConfig(etcd=self._etcd_from_here or self._etcd_of_machines))

    # --- what there is ---

    def hosts(self) -> Sequence[Host]:
        return [self._host(host.name) for host in self.lab.hosts]

    def _host(self, name: str) -> Host:
        """By its own word, else by its lease, which outlives its agent for a while."""
        driver = self.lab.state.driver
        if ip := self._underlay_ip(name):
            return Host(name, driver, None, ip)
        lease = self._leases.get(name)
        if lease is None or not lease.public_ips:
            return Host(name, driver, None, None)
        return Host(name, driver, None, str(lease.public_ips[0]), str(lease.subnets[0]))

    def _underlay_ip(self, host: str) -> str | None:
        """By its agent, or by its agent's settings."""
        try:
            if ips := self.facts(host).underlay_ips:
                return ips[0]
            configured = self.config(host).node.public_ip
        except OverlayError:
            return None
        return None if configured is None else str(configured)

    @cached_property
    def _leases(self) -> Mapping[str, Lease]:
        """Those that etcd has, by the names of their nodes."""
        try:
            leases = [item.value for item in read_view(self).leases.values()]
        except OverlayError:
            return {}
        return {lease.node_name: lease for lease in leases if lease.node_name}

    def containers(self) -> Sequence[Container]:
        wired = [workload for host in self.lab.hosts for workload in self._wired_on(host.name)]
        started = lab_containers(self.lab)
        ours = {container.id for container in started}
        others = [Container(w.name, w.node, w.namespace, w.netns) for w in wired if w.id not in ours]
        return with_records([*started, *others], wired)

    def _wired_on(self, host: str) -> Sequence[Workload]:
        with suppress(OverlayError):
            return self.workloads(host) or ()
        return ()

    def outside(self) -> Outside | None:
        return None

    def places(self) -> Sequence[str]:
        return [host.name for host in self.lab.hosts] + [container.name for container in self.containers()]

    # --- asking ---

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        return self._driver.probe(host, job, timeout_s)

    def session(self, host: str, timeout_s: float) -> Session:
        return self._driver.session(host)

    def stream(self, host: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        return self._driver.stream(host, job)

    def agent(self, host: str, timeout_s: float) -> Agent:
        return self._driver.agent(host, timeout_s)

    def wire(self, host: str, body: Mapping[str, Any], where: str, pid: int | None) -> Mapping[str, Any]:
        job = {"op": "wire", "body": body, "netns": where, "pid": pid}
        document: dict[str, Any] = self._driver.probe(host, job)["document"]
        return document

    def log(self, host: str, lines: int) -> Sequence[str]:
        found: list[str] = self._driver.probe(host, {"op": "log", "lines": lines})["lines"]
        return found

    def follow(self, host: str) -> subprocess.Popen[bytes]:
        return self._driver.stream(host, {"op": "follow"})

    def start(self, target: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        found = next((c for c in self.containers() if c.name == target), None)
        if found is None:
            return self._driver.popen(target, None, argv)
        if found.netns is None:
            raise EnvironmentProblem(f"it is not known which network namespace {target} has")
        return self._driver.popen(found.host, found.netns, argv)

    def once(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        done = self._driver.probe(host, {"op": "once", "timeout_s": timeout_s}, timeout_s)
        return {"changes": done["count"], "failures": done["failures"]}

    # --- etcd ---

    def store(self) -> Store:
        if self._etcd_from_here is None:
            return RemoteStore(self._ask_etcd)
        from overlaynet.store.etcd import connect

        return connect(self._etcd_from_here)

    @cached_property
    def _etcd_from_here(self) -> EtcdConfig | None:
        """How etcd is asked from here, None if that was not asked for. What the environment leaves open of
        where etcd is, the machines' agents say; of who we are they say nothing. Raises ConfigError."""
        given = {name for name, value in self._environ.items() if name.startswith(ETCD_VARIABLES) and value}
        if not given:
            return None
        mine, theirs = from_environ(self._environ).etcd, self._etcd_of_machines
        where = ("endpoints", "prefix", "overlay_prefix")
        left = {name: getattr(theirs, name) for name in where if ETCD_VARIABLES + name.upper() not in given}
        return replace(mine, **left)

    @cached_property
    def _etcd_of_machines(self) -> EtcdConfig:
        """As the first machine says that can say it."""
        for host in self.lab.hosts:
            with suppress(OverlayError):
                return self.config(host.name).etcd
        return EtcdConfig()

    def _ask_etcd(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Through the machine that answered first. Raises StoreErrors, ConfigError."""
        if self._asks_etcd:
            return self._ask_through(self._asks_etcd, job, timeout_s)
        errors = []
        for host in self._answering():
            try:
                answer = self._ask_through(host, job, timeout_s)
            except StoreUnavailable as error:
                errors.append(error)
                if job["call"] != "read":  # it may have been carried out, and must not be twice
                    break
                continue
            self._asks_etcd = host
            return answer
        raise errors[0] if errors else self._nobody_answers()

    def _answering(self) -> Iterator[str]:
        return (name for name, answer in self.told.items() if not isinstance(answer, OverlayError))

    def _ask_through(self, host: str, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            return self._driver.probe(host, job, timeout_s)
        except StoreRefused as error:
            error.next = (
                *error.next,
                f"it was asked as {host}'s agent; as somebody else: {ETCD_VARIABLES}USERNAME=… "
                f"{ETCD_VARIABLES}PASSWORD_FILE=… (docs/machines.md)",
            )
            raise
        except StoreError as error:
            error.evidence = "; ".join(filter(None, [error.evidence, f"asked from {host}"]))
            raise
        except EnvironmentProblem as error:
            raise _through(host, error) from error

    def _nobody_answers(self) -> StoreUnavailable:
        errors = [answer for answer in self.told.values() if isinstance(answer, OverlayError)]
        return _through("any machine", errors[0]) if errors else StoreUnavailable("the lab has no machine")


def _through(what: str, error: OverlayError) -> StoreUnavailable:
    return StoreUnavailable(
        f"etcd cannot be asked through {what}",
        evidence="\n".join(filter(None, [error.message, error.evidence])),
        next=error.next,
    )


def _parsed(text: str | None, host: str) -> AgentConfig:
    """An agent.toml. Raises ConfigError."""
    where = f"{host}:{DEFAULT_CONFIG_PATH}"
    try:
        return parse(tomllib.loads(text or ""), where)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {where} is not TOML", evidence=str(error)) from None
