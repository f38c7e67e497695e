"""What a running lab is, on disk: `lab.json`.

It is written *before* anything is made, with the name of every namespace that is going to be: so whatever a
crash leaves behind can be found and taken away. A copy lies on the durable disk, since /run is empty after
a reboot; the boot id in it then tells that the machine was restarted and that no process id in it counts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overlaynet.errors import LabChoice, LabFailed, OverlayError
from overlaynet.kernel import process
from overlaynet.kernel.process import Process
from overlaynet.lab import sandbox
from overlaynet.lab.document import Document
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.topology import Topology, from_document
from overlaynet.model import check_name
from overlaynet.store.disk import write_atomically

LOCAL = "local"
"""The context that is no lab: the real cluster that this machine's own agent belongs to."""
ENVIRONMENT = "OVERLAYNET_LAB"
NETNS = "netns"
"""The driver of labs in namespaces of this machine."""
boot_id = process.boot_id


@dataclass(frozen=True, slots=True)
class Running:
    """A process of the lab. `spec` says from what it was started: if that changes, it is started anew."""

    process: Process
    spec: str


@dataclass(frozen=True, slots=True)
class LabState:
    """A lab as it was last built: its namespaces' specs and its processes, by their names in the plan, if they
    are on this machine. `machines`: those on which something of it may be. `sandbox_ended`: it was in one
    that is not there any more."""

    topology: Topology
    boot_id: str
    namespaces: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, Running] = field(default_factory=dict)
    driver: str = NETNS
    machines: tuple[str, ...] = ()
    sandbox_ended: bool = False

    @property
    def on_machines(self) -> bool:
        """Whether its hosts are machines, of which this one need not be any."""
        return self.driver != NETNS

    @property
    def rebooted(self) -> bool:
        """Whether this machine, and so the lab in it, was restarted since."""
        return not self.on_machines and self.boot_id != boot_id()

    @property
    def ended(self) -> bool:
        """Whether nothing of it can run any more, so that no process in it counts and `up` builds it anew."""
        return self.rebooted or self.sandbox_ended

    @property
    def why_ended(self) -> str:
        """What to say of a lab that has ended."""
        return "was up before the machine was restarted" if self.rebooted else "was in a sandbox that has ended"

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": "overlaynet/v1",
            "kind": "LabState",
            "lab": self.topology.name,
            "driver": self.driver,
            "boot_id": self.boot_id,
            "machines": list(self.machines),
            "topology": self.topology.as_document(),
            "numbers": {host.name: host.number for host in self.topology.hosts},
            "namespaces": dict(self.namespaces),
            "processes": {
                name: {"pid": running.process.pid, "start": running.process.start, "spec": running.spec}
                for name, running in sorted(self.processes.items())
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], file: str) -> LabState:
        """Raises KeyError, TypeError, ValueError or an OverlayError for what `as_json` did not write."""
        topology = from_document(Document(file, document["topology"]))
        return cls(
            topology=topology.keeping(document["numbers"]),
            boot_id=document["boot_id"],
            namespaces=dict(document["namespaces"]),
            processes={
                name: Running(Process(item["pid"], item["start"]), item["spec"])
                for name, item in document["processes"].items()
            },
            driver=document["driver"],
            machines=tuple(document.get("machines", ())),
        )


def save(paths: LabPaths, state: LabState) -> None:
    """Write lab.json and its durable copy."""
    text = json.dumps(state.as_json(), indent=1) + "\n"
    write_atomically(paths.durable_json, text, 0o644)
    write_atomically(paths.lab_json, text, 0o644)


def load(paths: LabPaths) -> LabState | None:
    """The lab's state, None if there is no such lab. Raises LabFailed for a file that makes no sense."""
    for file in (paths.lab_json, paths.durable_json):
        try:
            state = LabState.from_json(json.loads(file.read_text("utf-8")), str(file))
            return replace(state, sandbox_ended=sandbox.has_ended(paths))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverlayError) as error:
            raise LabFailed(
                f"the lab's state {file} cannot be read",
                evidence=f"{type(error).__name__}: {error}",
                next=[f"overlaynet down -l {paths.run.name}"],
            ) from None
    return None


@contextmanager
def changing(paths: Paths, name: str) -> Iterator[None]:
    """Hold the lab's lock. Raises LabFailed at once if another command is changing this lab, and for files
    of the lab that cannot be written."""
    try:
        with _locked(paths, name):
            yield
    except OSError as error:
        raise LabFailed(
            f"the files of lab {name!r} cannot be written",
            evidence=str(error),
            next=[f"df -h {paths.run_root.parent} {paths.state_root.parent}", "overlaynet doctor"],
        ) from error


@contextmanager
def _locked(paths: Paths, name: str) -> Iterator[None]:
    descriptor = _lock(paths.lock(name), name)
    try:
        yield
    finally:
        paths.lock(name).unlink(missing_ok=True)
        os.close(descriptor)
        home = paths.home_of(name)
        for empty in (home.labs, home.run_root, home.state_root):
            with suppress(OSError):  # it is not empty: there are other labs
                empty.rmdir()


def _lock(file: Path, name: str) -> int:
    """The lock, on the file that has this name now: whoever held it before has removed theirs."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # the last command of another lab has just taken the empty directory away
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_as(file, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise LabFailed(
                f"another command is changing lab {name!r} just now",
                evidence=f"it holds {file}",
                next=[f"overlaynet status -l {name}"],
            ) from None
        os.close(descriptor)


def _is_open_as(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# --- which lab ------------------------------------------------------------------------------------


def running_labs(paths: Paths) -> tuple[str, ...]:
    """The names of this user's labs that are up, or were until the machine was restarted."""
    return paths.names()


def choose(name: str | None, environ: Mapping[str, str], paths: Paths) -> str:
    """Which lab is meant: the one named, else the environment's, else this user's only one.

    `LOCAL` if there is none but an agent of this machine's own. Raises LabChoice or NameInvalid."""
    labs = running_labs(paths)
    wanted = name or environ.get(ENVIRONMENT)
    if wanted == LOCAL or (not wanted and not labs and paths.agent.socket.exists()):
        return LOCAL
    if wanted:
        if check_name(wanted, "lab") in (*labs, *paths.roots()):
            return wanted
        raise LabChoice(
            f"no lab {wanted!r} is running", evidence=_list(paths), next=[f"overlaynet up -l {wanted}"]
        )
    if len(labs) == 1:
        return labs[0]
    if not labs:
        roots = ["sudo overlaynet get labs"] if paths.roots() else []
        raise LabChoice("no lab is running", evidence=_list(paths), next=["overlaynet up", *roots])
    raise LabChoice("which lab?", evidence=_list(paths), next=[f"overlaynet status -l {lab}" for lab in labs])


def _list(paths: Paths) -> str:
    told = "running: " + (", ".join(running_labs(paths)) or "none")
    return f"{told}; root's: {', '.join(paths.roots())}" if paths.roots() else told
