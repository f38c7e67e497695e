"""What must hold of a lab on machines, whatever made them: the tiers vm and vagrant ask the same.

A machine is anything on which a command can be run as root; the lab is asked by the command itself, as a user
asks.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from helpers.eventually import eventually

UNIT = "overlaynet-agent.service"
READY_S = 300.0
"""Machines are emulated, and other work is done beside them."""
COMMAND_S = 300.0
_PING_PID = "/run/ping.pid"


class Machine(Protocol):
    """`run` answers what a command said, or raises; `start` lets it go on, its output a pipe."""

    @property
    def name(self) -> str: ...

    def run(self, *argv: str) -> str: ...

    def start(self, *argv: str) -> subprocess.Popen[str]: ...


# --- one machine ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlay:
    """What others know a host by: its subnet, and the MAC of its VTEP. A reboot must not change them."""

    subnet: str
    mac: str


def overlay_of(machine: Machine) -> Overlay:
    """As the machine has them, not as anybody remembers them."""
    written = machine.run("cat", "/run/flannel/subnet.env")
    links = json.loads(machine.run("ip", "-json", "link", "show", "dev", "flannel.1"))
    found = re.search(r"^FLANNEL_SUBNET=([\d.]+)\.1/(\d+)$", written, re.MULTILINE)
    assert found, written
    return Overlay(f"{found[1]}.0/{found[2]}", links[0]["address"])


def service_of(machine: Machine) -> Mapping[str, str]:
    """What systemd says of the agent (systemctl(1), show)."""
    wanted = "ActiveState,SubState,StatusText,MainPID,NRestarts,CapabilityBoundingSet"
    lines = machine.run("systemctl", "show", "--property", wanted, UNIT).splitlines()
    return dict(line.split("=", 1) for line in lines)


def wait_for_agent(machine: Machine) -> None:
    """Until the service runs and its agent finds nothing wrong."""

    def ready() -> None:
        service = service_of(machine)
        assert service["SubState"] == "running", service
        assert service["StatusText"].startswith("ready"), service

    eventually(ready, deadline_s=READY_S)


def agent_version(machine: Machine) -> str:
    """The folder that the running agent's program is in, not the one that a link points to by now."""
    pid = service_of(machine)["MainPID"]
    argv = machine.run("cat", f"/proc/{pid}/cmdline").split("\0")
    return next(word for word in argv if word.startswith("/opt/overlaynet/")).split("/")[3]


# --- packets --------------------------------------------------------------------------------------


@dataclass
class Pings:
    """Filled in when the stream has ended."""

    sent: int = 0
    received: int = 0

    @property
    def lost(self) -> int:
        return self.sent - self.received


@contextmanager
def pings(machine: Machine, netns: str, address: str, *, interval_s: float = 0.2) -> Iterator[Pings]:
    """Echo requests from a namespace on a machine, by its name, as long as the block lasts.

    ping(8) ends its work on SIGINT, with a summary, and waits for the answer to its last request (-W)."""
    ping = f"exec ping -n -q -i {interval_s} -W 2 {address}"
    process = machine.start("ip", "netns", "exec", netns, "sh", "-c", f"echo $$ >{_PING_PID}; {ping}")
    found = Pings()
    try:
        eventually(lambda: machine.run("sh", "-c", f"cat {_PING_PID} || true"), deadline_s=READY_S)
        yield found
    finally:
        machine.run("sh", "-c", f"kill -INT $(cat {_PING_PID}); rm {_PING_PID}")
        said, _ = process.communicate(timeout=60)
    numbers = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert numbers, said
    found.sent, found.received = int(numbers[1]), int(numbers[2])


# --- the lab --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lab:
    """The command `overlaynet`, for one lab. `before`: what leads to where it is run."""

    name: str
    before: Sequence[str]
    program: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def ask(self, *words: str, exit_code: int = 0, timeout_s: float = COMMAND_S) -> dict[str, Any]:
        """Its document. Raises AssertionError with all it said where it ended otherwise."""
        done = subprocess.run(
            [*self.before, str(self.program), *words, "-l", self.name, "-o", "json"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self.env or None,
        )
        said = f"overlaynet {' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == exit_code, said
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    # --- what is asked of every lab ---

    def check_mesh(self, containers: int) -> str:
        """Every container pings every other: how many pairs, of how many."""
        found = self.ask("verify", "mesh")
        pairs = containers * (containers - 1)
        assert (found["passed"], found["total"]) == (pairs, pairs), found
        return f"{found['passed']}/{found['total']}"

    def check_services(self) -> str:
        """Every virtual IP answers, from every host, by each of its endpoints."""
        found = self.ask("verify", "services")
        assert found["total"] > 0, found
        assert found["passed"] == found["total"], found
        return f"{found['passed']}/{found['total']}"

    def check_trace(self, source: str, target: str) -> dict[str, Any]:
        """Proved, there and back, and on two machines."""
        found = self.ask("trace", source, target)
        assert found["verdict"] == "proved", found
        assert found["cause"] is None, found
        for way in ("forward", "reply"):
            assert len({hop["host"] for hop in found[way] if hop["seen"]}) == 2, found[way]
        return found
