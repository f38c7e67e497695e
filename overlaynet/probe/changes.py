"""Changing this machine on purpose, as faults do: entries, rules, the agent's process.

Unlike an agent, this writes anything anywhere that it is told to. It is told by whoever may run a probe as
root, and could do the same by hand.

A fault that ends by itself must end even if its operator's machine is gone, so its timer is here: a process
that waits, undoes this machine's part (`overlaynet.lab.machinetimer`) and takes its record away.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from overlaynet import agentservice
from overlaynet.config import PathConfig
from overlaynet.core.jsonstate import object_from_json
from overlaynet.errors import UsageError
from overlaynet.firewall.iptables import Iptables
from overlaynet.kernel import netns as namespaces
from overlaynet.kernel import process, sysctl
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.kernel.process import Process
from overlaynet.model import check_name
from overlaynet.probe.job import member, netns, objects
from overlaynet.state import Change, Op, RuleChange, Source
from overlaynet.store.disk import write_atomically

FORGET_LEARNED = "net/ipv4/route/flush"
"""Written, it makes all exceptions of routes stale (net/ipv4/route.c, rt_cache_flush)."""
STOP_GRACE_S = 1.0


def _inside(name: str | None) -> Any:
    return nullcontext() if name is None else namespaces.entered(name)


# --- entries and rules ----------------------------------------------------------------------------


def write(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "changes": [{"op", "object", "have"}]}``, objects as in `core.jsonstate`. Raises
    the kernel's first refusal."""
    changes = [
        Change(Op(member(item, "op", str)), object_from_json(item["object"]), _object(item.get("have")))
        for item in objects(job, "changes")
    ]
    with _inside(netns(job)), closing(KernelAdapter.open()) as kernel:
        for failure in kernel.apply(changes):
            raise failure.error
    return {"kind": "Written"}


def _object(document: Mapping[str, Any] | None) -> Any:
    return None if document is None else object_from_json(document)


def edit(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "table", "chain", "want": [rule], "have": [rule]}``. Raises FirewallError."""
    change = RuleChange(
        "changed",
        member(job, "table", str),
        member(job, "chain", str),
        tuple(map(str, member(job, "want", list))),
        tuple(map(str, member(job, "have", list))),
        Source("fault", ""),
    )
    with _inside(netns(job)):
        rules = Iptables()
        rules.apply([change], rules.observe())
    return {"kind": "Edited"}


def forget(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"places": [netns | null]}``: in each that is there, forget whatever ICMP errors and
    redirects taught its routes. Raises KernelError."""
    for name in member(job, "places", list):
        if name is None or namespaces.exists(str(name)):
            with _inside(name):
                sysctl.write(FORGET_LEARNED, "1")
    return {"kind": "Forgotten"}


# --- the agent's process --------------------------------------------------------------------------


def service(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"do": "kill" | "start"}`` on the agent's unit. Raises EnvironmentProblem where there is no
    systemd, or if it refuses."""
    match job.get("do"):
        case "kill":
            agentservice.kill()
        case "start":
            agentservice.start()
        case other:
            raise UsageError(f"nothing that an agent's service can be asked to do: {other!r}")
    return {"kind": "Service"}


# --- who must not be cut off ----------------------------------------------------------------------


def caller(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{}``: which addresses the ssh connection has that this probe is asked by, by SSH_CONNECTION
    of whoever of our parents has it, for sudo(8) takes it from us. `known` false: nobody has it; `client` and
    `address` null: the connection came by no network (sshd -i)."""
    found = _ssh_connection()
    words = found.split() if found else []
    client, address = (_ip(words[0]), _ip(words[2])) if len(words) == 4 else (None, None)
    return {"kind": "Caller", "known": found is not None, "client": client, "address": address}


def _ip(text: str) -> str | None:
    try:
        return str(ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def _ssh_connection() -> str | None:
    pid: int = os.getpid()
    with suppress(FileNotFoundError, ProcessLookupError):  # a parent that ended meanwhile tells nothing
        return _inherited(pid)
    return None


def _inherited(pid: int) -> str | None:
    while pid > 1:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found = next((v for v in variables if v.startswith(b"SSH_CONNECTION=")), None)
        if found is not None:
            return found.partition(b"=")[2].decode()
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat[stat.rindex(")") + 2 :].split()[1])
    return None


# --- timers ---------------------------------------------------------------------------------------


def _record(lab: str, fault: str) -> Path:
    """In a directory of its own, with the timer's process and log."""
    directory = f"{check_name(lab, 'lab')}.{check_name(fault, 'fault')}"
    return PathConfig().run / "faults" / directory / "fault.json"


def start_timer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "fault", "after_s", "document"}``: have this machine undo its part of a fault then,
    by the document that `overlaynet.lab.machinetimer` reads."""
    record = _record(member(job, "lab", str), member(job, "fault", str))
    document: dict[str, Any] = member(job, "document", dict)
    ends = time.clock_gettime(time.CLOCK_BOOTTIME) + member(job, "after_s", float)
    write_atomically(record, json.dumps({**document, "ends": ends}) + "\n", 0o600)
    argv = [sys.executable, "-P", "-m", "overlaynet.lab.machinetimer", str(record)]
    started = process.spawn(argv, record.with_name("timer.log"), dict(os.environ))
    pid = {"pid": started.pid, "start": started.start}
    write_atomically(record.with_name("timer.json"), json.dumps(pid) + "\n", 0o600)
    return {"kind": "Timer", **pid}


def look_timer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "fault"}``: whether there is something that this machine is still to undo."""
    return {"kind": "Timer", "there": _record(member(job, "lab", str), member(job, "fault", str)).exists()}


def end_timer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lab", "fault"}``: nothing is to be undone any more. Harmless if it has been."""
    record = _record(member(job, "lab", str), member(job, "fault", str))
    with suppress(FileNotFoundError):
        found = json.loads(record.with_name("timer.json").read_text())
        process.stop([Process(found["pid"], found["start"])], STOP_GRACE_S)
    shutil.rmtree(record.parent, ignore_errors=True)
    with suppress(OSError):
        record.parent.parent.rmdir()
    return {"kind": "TimerEnded"}
