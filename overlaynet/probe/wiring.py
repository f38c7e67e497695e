"""Wiring any namespace of this machine to the overlay, with the helper that runs its probe's command.

`overlaynet attach` is about a container that somebody else made, by the name or path of its namespace or by a
process in it. The containers of labs are in `containers`.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overlaynet.client import AgentClient, wire
from overlaynet.config import load
from overlaynet.errors import EnvironmentProblem, OverlayError
from overlaynet.kernel import netns, process
from overlaynet.probe.job import member

HELPER_START_S = 10.0
POLL_S = 0.02


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"body", "netns", "pid"}``: have this machine's agent wire that namespace, or a process's.
    Raises as `wire_place`."""
    paths = load(None, {}).paths
    pid = member(job, "pid", int) if job.get("pid") is not None else None
    body: dict[str, Any] = member(job, "body", dict)
    document = wire_place(AgentClient(paths.socket), body, member(job, "netns", str, ""), pid, paths.run)
    return {"kind": "Wired", "document": document}


def wire_place(
    agent: AgentClient, body: Mapping[str, Any], where: str, pid: int | None, run: Path
) -> dict[str, Any]:
    """Have an agent, whose run directory is `run`, wire a container: `where` is its namespace's name or path,
    unless it is that of a process. Raises EnvironmentProblem, and as `client.wire`."""
    text = f"/proc/{pid}/ns/net" if pid is not None else where
    place = Path(text) if "/" in text else text
    helper = None
    if "exec" in (body.get("probe") or {}):
        helper = run / f"probe-{body['namespace']}.{body['name']}.sock"
        inside = ["--netns", str(netns.path(place) if isinstance(place, str) else place)]
        _start_helper(helper, inside if pid is None else ["--pid", str(pid)])
    try:
        whole = {**body, "netns": str(place), "probe_socket": str(helper) if helper else None}
        return wire(agent, whole, place)
    except OverlayError:
        if helper is not None:
            helper.unlink(missing_ok=True)
        raise


def _start_helper(socket: Path, where: Sequence[str]) -> None:
    """It outlives this command, and ends when the agent takes its socket away."""
    socket.unlink(missing_ok=True)
    argv = [sys.executable, "-P", "-m", "overlaynet.probe.helper", str(socket), *where]
    started = process.spawn(argv, Path(os.devnull), _environ())
    deadline = time.monotonic() + HELPER_START_S
    while not socket.exists():
        if not started.alive or time.monotonic() > deadline:
            raise EnvironmentProblem(
                "the helper that is to run the probe's command did not start",
                evidence=" ".join(where),
                next=[shlex.join(argv)],
            )
        time.sleep(POLL_S)


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OVERLAYNET_")}
