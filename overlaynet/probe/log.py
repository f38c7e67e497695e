"""What the agent of this machine said: lines of the journal, or of a file where there is no systemd.

A service's output goes to the journal (journalctl(1)). An agent that was started otherwise is expected to say
what it says into `agent.log` beside its socket, as the agents of labs in namespaces do.
"""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overlaynet.agentservice import BOOTED_BY_SYSTEMD, UNIT
from overlaynet.client import LOG_FILE
from overlaynet.config import PathConfig, load
from overlaynet.errors import ConfigError, EnvironmentProblem, NotFound
from overlaynet.probe.job import member


def last(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"lines": number}``: the last lines. Raises NotFound, EnvironmentProblem."""
    return {"kind": "Log", "lines": lines(member(job, "lines", int))}


def lines(count: int) -> list[str]:
    """The last `count` lines. Raises NotFound if there is no log, EnvironmentProblem if it cannot be read."""
    done = subprocess.run(command(count), capture_output=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(
            "the agent's log cannot be read", evidence=done.stderr.decode(errors="replace")
        )
    return done.stdout.decode(errors="replace").splitlines()


def follow(stop_fd: int) -> None:
    """Write to standard output what the agent says from now on, until `stop_fd` ends. Raises NotFound."""
    following = subprocess.Popen(command(0, follow=True), stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(following.pid)
    poll = select.poll()
    for descriptor in (stop_fd, ended):
        poll.register(descriptor, select.POLLIN)
    try:
        while not any(_is_over(descriptor, ended) for descriptor, _ in poll.poll()):
            pass
    finally:
        os.close(ended)
        following.terminate()
        following.wait()


def _is_over(descriptor: int, ended: int) -> bool:
    return descriptor == ended or not os.read(descriptor, 4096)


def command(count: int, *, follow: bool = False) -> list[str]:
    """The command that shows the last lines, and with `follow` goes on with what comes. Raises NotFound."""
    file = _file()
    if file.exists():
        return ["tail", f"--lines={count}", *(["-F"] if follow else []), str(file)]
    if BOOTED_BY_SYSTEMD.exists():
        unit = [f"--unit={UNIT}", "--no-pager", "--quiet", "--no-hostname", "--output=short-iso"]
        return ["journalctl", *unit, f"--lines={count}", *(["--follow"] if follow else [])]
    raise NotFound(
        "there is no log of an agent", evidence=f"no {file}, and no systemd", next=["overlaynet-agent run"]
    )


def _file() -> Path:
    try:
        return load(None, {}).paths.run / LOG_FILE
    except ConfigError:
        return PathConfig().run / LOG_FILE
