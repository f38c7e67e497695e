"""The cluster a command is about: a lab of this machine, or (`local`) the real one this host is in.

Verbs know only `Cluster`. It says what there is (hosts, containers), and gives three ways of asking about
it: the probe on a host, the agent of a host, and etcd. The first and the last work while agents are dead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from typing import Any, Protocol, TypeVar

from overlaynet.client import Agent
from overlaynet.config import AgentConfig
from overlaynet.core.keys import Keys
from overlaynet.core.view import View
from overlaynet.errors import NotFound, NotPermitted, OverlayError
from overlaynet.lab.session import Session
from overlaynet.model import Identity, Port, Probe, Workload
from overlaynet.ports import Listing, Store

R = TypeVar("R")

AGENT_TIMEOUT_S = 3.0
"""How long an agent may take to say how it is, where others can be asked instead."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host: how it is driven, and where its namespace is. `leased`: the subnet that etcd has for it, where
    the host itself does not answer."""

    name: str
    driver: str
    netns: str | None
    underlay_ip: str | None
    leased: str | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A container. `ips` and `mac` are None until it is wired. `started`: it is one of the lab's, and `probe`
    is what its topology says; of others neither is known here."""

    name: str
    host: str
    namespace: str
    netns: str | None
    ips: tuple[str, ...] = ()
    mac: str | None = None
    labels: Mapping[str, str] | None = None
    ports: tuple[Port, ...] = ()
    ready: bool = False
    serving: bool = False
    terminating: bool = False
    started: bool = False
    probe: Probe | None = None

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"

    def with_record(self, record: Workload) -> Container:
        """The same, as an agent wired it."""
        return replace(
            self,
            ips=tuple(map(str, record.ips)),
            mac=str(record.mac),
            labels=record.labels,
            ports=record.ports,
            ready=record.ready,
            serving=record.serving,
            terminating=record.terminating,
        )


@dataclass(frozen=True, slots=True)
class Outside:
    """A client that is no host: its namespace, and the address that hosts see."""

    netns: str | None
    ip: str


class Cluster(Protocol):
    """What verbs ask of a cluster. Each call raises only OverlayErrors."""

    name: str
    one_machine: bool
    """Whether all hosts are namespaces of one kernel: one probe reaches all, and there is one clock."""

    def hosts(self) -> Sequence[Host]:
        """In the order of their names."""

    def containers(self) -> Sequence[Container]:
        """Those that were started, wired or not."""

    def outside(self) -> Outside | None:
        """The client that is no host, where there is one."""

    def has_faults(self) -> bool:
        """Whether something is broken here on purpose, which agents leave alone."""

    def traces(self) -> Path:
        """The directory where traces are kept; it need not be there yet."""

    def places(self) -> Sequence[str]:
        """Every name that a command can be run in."""

    def config(self, host: str) -> AgentConfig:
        """The settings of that host's agent."""

    def identity(self, host: str) -> Identity | None:
        """What that host's agent is known by; None if it never ran."""

    def workloads(self, host: str) -> Sequence[Workload] | None:
        """The containers that host's agent has wired, by its own file; None if there is no such file."""

    def keys(self) -> Keys:
        """Where everything is in etcd."""

    def store(self) -> Store:
        """etcd, to be closed by the caller."""

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """The answer of a probe run on that host."""

    def session(self, host: str, timeout_s: float) -> Session:
        """A probe on that host that answers job after job, to be closed by the caller. `timeout_s`: how long
        its start may take, where that has to be waited for."""

    def stream(self, host: str, job: Mapping[str, Any]) -> Popen[bytes]:
        """A probe on that host that answers one job by line after line, until its input is closed."""

    def agent(self, host: str, timeout_s: float) -> Agent:
        """That host's agent, answering or not."""

    def wire(self, host: str, body: Mapping[str, Any], where: str, pid: int | None) -> Mapping[str, Any]:
        """Have that host's agent wire a container (docs/agent-api.md), and start what runs its probe's command:
        `where` is the name or path of its namespace on the host, unless it is that of the process `pid`."""

    def log(self, host: str, lines: int) -> Sequence[str]:
        """The last lines that its agent said."""

    def follow(self, host: str) -> Popen[bytes]:
        """A process that says what its agent says from now on, until its input is closed or it is ended."""

    def start(self, target: str, argv: Sequence[str]) -> Popen[bytes]:
        """A command in a host's or container's namespace, on the caller's own terminal."""

    def once(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        """One reconcile by ``overlaynet-agent once`` there: ``{"changes", "failures"}``."""


def pick_hosts(cluster: Cluster, name: str | None) -> list[Host]:
    """The named host, or all of them. Raises NotFound."""
    hosts = list(cluster.hosts())
    if name is None:
        return hosts
    found = [host for host in hosts if host.name == name]
    if not found:
        raise NotFound(
            f"there is no host {name!r} in {cluster.name}",
            evidence="hosts: " + (", ".join(h.name for h in hosts) or "none"),
            next=["overlaynet get hosts"],
        )
    return found


def each_host(hosts: Sequence[Host], ask: Callable[[Host], R]) -> dict[str, R | OverlayError]:
    """Ask all hosts at once; an error of one is its answer and stops nobody else's."""
    from concurrent.futures import ThreadPoolExecutor

    def safely(host: Host) -> R | OverlayError:
        try:
            return ask(host)
        except OverlayError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, min(16, len(hosts)))) as pool:
        return dict(zip((h.name for h in hosts), pool.map(safely, hosts), strict=True))


def readable(file: Path) -> Path:
    """The same file. Raises NotPermitted if we may not read it; anything else is its reader's to tell."""
    try:
        file.open("rb").close()
    except PermissionError as error:
        raise NotPermitted(
            f"you may not read {file}", evidence=str(error), next=["run it again with sudo"]
        ) from error
    except OSError:
        pass
    return file


def read_view(cluster: Cluster) -> View:
    """What etcd says now. Raises StoreError."""
    keys, store = cluster.keys(), cluster.store()
    try:
        listing = store.read(keys.watched)
    finally:
        store.close()
    return view_of(listing, keys)


def view_of(listing: Listing, keys: Keys) -> View:
    """A listing of what agents watch, understood."""
    from overlaynet.store import codec

    return View.of((codec.decode(item, keys) for item in listing.items), keys, listing.revision)
