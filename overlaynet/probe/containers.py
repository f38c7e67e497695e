"""The containers of labs on this machine: network namespaces by name, the commands that run in them, and the
helpers that run their probes' commands (`probe.helper`).

What is a lab's is known twice: by its name, `ovl-LAB-CONTAINER`, and by a record that is written *before*
anything is made, so that whatever a crash leaves behind is found and a namespace of anybody else's is never
taken for ours. The record lies in /run, because namespaces and processes do not outlive a reboot either:

    /run/overlaynet/containers/LAB/containers.json     what was made here
    /run/overlaynet/containers/LAB/CONTAINER.log       what its command said

Commands are started detached; they stay when the ssh connection ends, and end with their container. Programs
are those of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlaynet.client import AgentClient, wire
from overlaynet.config import PathConfig, load
from overlaynet.errors import EnvironmentProblem, LabFailed, ToolMissing, UsageError
from overlaynet.kernel import netns, process, quiet
from overlaynet.kernel.process import Process
from overlaynet.model import check_name
from overlaynet.probe.job import member, objects
from overlaynet.store.disk import write_atomically

STOP_GRACE_S = 5.0
HELPER_START_S = 30.0
POLL_S = 0.02
COMMAND, HELPER = "command", "helper"


@dataclass(slots=True)
class Record:
    """What a lab has on this machine: its containers, and its processes ``ROLE/CONTAINER``, each with the text
    by which its operator knows what it was started from. `owner`: who built it, for people."""

    lab: str
    owner: str = ""
    containers: list[str] = field(default_factory=list)
    processes: dict[str, tuple[Process, str]] = field(default_factory=dict)

    def save(self) -> None:
        """Write it, or take it away with its directory when there is nothing to record."""
        if not self.containers:
            shutil.rmtree(_directory(self.lab), ignore_errors=True)
            with suppress(OSError):  # other labs have something here
                _directory(self.lab).parent.rmdir()
            return
        started = {
            name: {"pid": one.pid, "start": one.start, "spec": spec}
            for name, (one, spec) in self.processes.items()
        }
        text = (
            json.dumps({"owner": self.owner, "containers": self.containers, "processes": started}, indent=1)
            + "\n"
        )
        write_atomically(_file(self.lab), text, 0o644)

    def forget(self, containers: Iterable[str]) -> None:
        """These and their processes are gone."""
        gone = set(containers)
        self.containers = [name for name in self.containers if name not in gone]
        self.processes = {k: v for k, v in self.processes.items() if _container_of(k) not in gone}

    def alive(self, name: str) -> bool:
        """Whether the process of that name runs, and in its container as it is now."""
        found = self.processes.get(name)
        if found is None or not found[0].alive:
            return False
        own = process.namespace_id(netns.path(netns.of_lab(self.lab, _container_of(name))))
        return own is not None and own == process.namespace_id(process.own_namespace(found[0].pid))


def _directory(lab: str) -> Path:
    return PathConfig().run / "containers" / lab


def _file(lab: str) -> Path:
    return _directory(lab) / "containers.json"


def _log(lab: str, name: str) -> Path:
    role, _, container = name.rpartition("/")
    return _directory(lab) / (f"{container}-{HELPER}.log" if role == HELPER else f"{container}.log")


def _container_of(process_name: str) -> str:
    return process_name.rpartition("/")[2]


def _load(job: Mapping[str, Any]) -> Record:
    """The record of the job's lab. Raises UsageError, LabFailed for a file that makes no sense."""
    lab = check_name(member(job, "lab", str), "lab")
    try:
        document = json.loads(_file(lab).read_text("utf-8"))
        started = {
            name: (Process(item["pid"], item["start"]), item["spec"])
            for name, item in document["processes"].items()
        }
        return Record(lab, document["owner"], list(document["containers"]), started)
    except FileNotFoundError:
        return Record(lab)
    except (ValueError, KeyError, TypeError) as error:
        raise LabFailed(
            f"the record of lab {lab!r} on this machine cannot be read",
            evidence=f"{_file(lab)}: {type(error).__name__}: {error}",
            next=["ip netns list", f"rm {_file(lab)}"],
        ) from None


def _names(job: Mapping[str, Any], key: str) -> list[str]:
    return [check_name(str(name), "container") for name in member(job, key, list)]


# --- looking --------------------------------------------------------------------------------------


def look(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "names": [container], "programs": [program]}``: what the lab has here.

    `lost`: containers whose namespace is gone, as after a crash; `strangers`: of `names`, those whose namespace
    is there and is not the lab's; `missing`: of `programs`, those that this machine does not have."""
    record = _load(job)
    known = set(netns.names())
    there = [name for name in record.containers if netns.of_lab(record.lab, name) in known]
    others = [name for name in _names(job, "names") if name not in record.containers]
    return {
        "kind": "Containers",
        "owner": record.owner or None,
        "containers": there,
        "lost": [name for name in record.containers if name not in there],
        "processes": {
            name: {"pid": one.pid, "spec": spec}
            for name, (one, spec) in record.processes.items()
            if record.alive(name)
        },
        "strangers": [name for name in others if netns.of_lab(record.lab, name) in known],
        "missing": _missing(member(job, "programs", list, [])),
    }


def _missing(programs: Iterable[object]) -> list[dict[str, Any]]:
    missing = []
    for program in programs:
        try:
            process.tool(str(program))
        except ToolMissing as error:
            missing.append({"program": program, "evidence": error.evidence})
    return missing


# --- changing -------------------------------------------------------------------------------------


def make(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "owner", "names"}``: namespaces that are not there yet. Raises LabFailed for one that
    is there and is not the lab's, KernelError, NotPermitted."""
    record, names = _load(job), _names(job, "names")
    for name in names:
        if name not in record.containers and netns.exists(netns.of_lab(record.lab, name)):
            raise LabFailed(
                f"there is a network namespace {netns.of_lab(record.lab, name)} that this lab did not make",
                next=["ip netns list", f"ip netns delete {netns.of_lab(record.lab, name)}"],
            )
    record.owner = member(job, "owner", str)
    record.containers += [name for name in names if name not in record.containers]
    record.save()
    missing = [name for name in names if not netns.exists(netns.of_lab(record.lab, name))]
    for name in missing:
        quiet.create(netns.of_lab(record.lab, name))
    return {"kind": "Made", "containers": missing}


def start(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "processes": [{"role", "container", "spec", "argv" | "socket"}]}``: start those that
    do not run, and record each at once. A command has an `argv`; a helper is waited for until it listens at
    `socket`. Raises LabFailed, ToolMissing, UsageError."""
    record = _load(job)
    for item in objects(job, "processes"):
        name = _process_name(item, record)
        if record.alive(name):
            continue
        socket = _probe_socket(item) if name.startswith(f"{HELPER}/") else None
        started = _start(record, name, item, socket)
        record.processes[name] = started, member(item, "spec", str)
        record.save()
        if socket is not None:
            _await_socket(socket, started, _log(record.lab, name))
    return {"kind": "Started"}


def _process_name(item: Mapping[str, Any], record: Record) -> str:
    role, container = member(item, "role", str), member(item, "container", str)
    if role not in (COMMAND, HELPER) or container not in record.containers:
        raise UsageError(f"no {role!r} can be started for {container!r}", evidence="it is not made here")
    return f"{role}/{container}"


def _probe_socket(item: Mapping[str, Any]) -> Path:
    """Where a helper listens: the operator has it from the agent's settings. Raises UsageError."""
    socket = Path(member(item, "socket", str))
    if not (socket.is_absolute() and socket.name.startswith("probe-") and socket.suffix == ".sock"):
        raise UsageError(f"{socket} is no place for a probe's helper")
    return socket


def _start(record: Record, name: str, item: Mapping[str, Any], socket: Path | None) -> Process:
    inside = netns.path(netns.of_lab(record.lab, _container_of(name)))
    log = _log(record.lab, name)
    if socket is not None:
        socket.unlink(missing_ok=True)  # one that listens there ends by itself
        argv = [sys.executable, "-P", "-m", "overlaynet.probe.helper", str(socket), "--netns", str(inside)]
        return process.spawn(argv, log, os.environ)
    program, *words = map(str, member(item, "argv", list))
    entering = [process.tool("nsenter"), f"--net={inside}", "--wd=/", "--"]
    return process.spawn([*entering, process.tool(program), *words], log, _clean_environ())


def _clean_environ() -> dict[str, str]:
    """What ssh and sudo tell of the operator is no container's business."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OVERLAYNET_", "SSH_", "SUDO_"))}


def _await_socket(socket: Path, helper: Process, log: Path) -> None:
    deadline = time.monotonic() + HELPER_START_S
    while not socket.exists():
        if not helper.alive or time.monotonic() > deadline:
            raise EnvironmentProblem(
                "the helper that is to run the probe's command did not start", evidence=process.last_lines(log)
            )
        time.sleep(POLL_S)


def attach(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "container", "body"}``: have this machine's agent wire it; `body` is that of
    ``POST /v1/containers`` in docs/agent-api.md. Raises as `client.wire`."""
    record, container = _load(job), member(job, "container", str)
    if container not in record.containers:
        raise UsageError(f"{container!r} cannot be wired", evidence="it is not made here")
    agent = AgentClient(load(None, {}).paths.socket)
    body: dict[str, Any] = member(job, "body", dict)
    return {"kind": "Attached", **wire(agent, body, netns.of_lab(record.lab, container))}


def end(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "processes": [name]}``: end these, as far as they run."""
    record, names = _load(job), member(job, "processes", list)
    process.stop([record.processes[name][0] for name in names if name in record.processes], STOP_GRACE_S)
    for name in names:
        record.processes.pop(name, None)
    record.save()
    return {"kind": "Ended"}


def remove(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "names": [container] | null}``: take these away, or all, with all that runs in them;
    answers how many namespaces and processes there were. What is not recorded is left alone."""
    record = _load(job)
    chosen = record.containers if job.get("names") is None else _names(job, "names")
    names = [name for name in chosen if name in record.containers]
    namespaces = [name for name in (netns.of_lab(record.lab, n) for n in names) if netns.exists(name)]
    living = process.inside(map(netns.path, namespaces))
    process.stop(living, STOP_GRACE_S)
    for namespace in namespaces:
        netns.delete(namespace)
    record.forget(names)
    record.save()
    return {"kind": "Removed", "removed": len(namespaces) + len(living)}
