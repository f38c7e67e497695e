"""The agent of this machine, for those who are elsewhere: its files, its socket, and one reconcile without it.

Where everything is says the agent's own configuration file, read anew for each job. An agent's settings that
come from its environment are not known here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from overlaynet import __version__
from overlaynet.client import AgentClient
from overlaynet.config import DEFAULT_CONFIG_PATH, PathConfig, load
from overlaynet.errors import ConfigError, EnvironmentProblem, OverlayError, UsageError
from overlaynet.probe.job import member, reported

AGENT = (sys.executable, "-P", "-m", "overlaynet_agent")
PATIENCE_S = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def facts(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{}``: this machine, and what its agent keeps in files, as text; null for one that is not
    there. `underlay_ips`: by the agent's word; empty where none answers. Raises ConfigError for what may not be
    read."""
    paths = _paths()
    return {
        "kind": "Host",
        "version": __version__,
        "release": os.uname().release,
        "boot_id": _BOOT_ID.read_text().strip(),
        "config": _text(DEFAULT_CONFIG_PATH),
        "identity": _text(paths.identity),
        "workloads": _text(paths.workloads),
        "underlay_ips": _underlay_ips(paths),
    }


def _paths() -> PathConfig:
    """Where an agent with a broken configuration would keep its files is where every agent does."""
    try:
        return load(None, {}).paths
    except ConfigError:
        return PathConfig()


def _text(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read", evidence=str(error)) from None


def _underlay_ips(paths: PathConfig) -> list[str]:
    with suppress(OverlayError):
        return list(AgentClient(paths.socket, PATIENCE_S).get("/v1/status")["node"]["public_ips"])
    return []


def ask(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"method": GET | POST | DELETE | READY, "path", "body", "timeout_s"}``: what the agent
    answers. Raises its errors, AgentUnreachable, UsageError."""
    agent = AgentClient(_paths().socket, member(job, "timeout_s", float))
    path = member(job, "path", str)
    match job.get("method"):
        case "GET":
            document = agent.get(path)
        case "POST":
            document = agent.post(path, member(job, "body", dict))
        case "DELETE":
            document = agent.delete(path)
        case "READY":
            document = agent.readiness()
        case method:
            raise UsageError(f"an agent is not asked by {method!r}")
    return {"kind": "Agent", "document": document}


def once(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"timeout_s"}``: one reconcile by ``overlaynet-agent once``, in place of an agent that does
    not run; its own document. Raises its errors, EnvironmentProblem."""
    timeout_s = member(job, "timeout_s", float)
    try:
        done = subprocess.run(
            [*AGENT, "once", "-o", "json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(f"overlaynet-agent once did not end within {timeout_s:g} s") from error
    return reported("overlaynet-agent once", done.stdout, done.stderr)
