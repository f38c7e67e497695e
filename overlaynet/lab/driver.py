"""What the rest of the project needs of a lab, whatever its hosts are: namespaces here, machines elsewhere.

A driver knows names and how to get there, and remembers nothing: a lab is what its state file and the
machine say. `place` is a host, a container or one of the lab's own namespaces (etcd, underlay, outside).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from overlaynet.client import Agent
from overlaynet.lab.session import Session


class Completed(NamedTuple):
    """A command that ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Driver(Protocol):
    """How to reach the hosts of one lab."""

    @property
    def name(self) -> str:
        """``netns``, ``ssh`` or ``vagrant``."""

    def netns(self, place: str) -> str | None:
        """The network namespace of a place, as a job for the host's probe names it; None: the host's own."""

    def argv_in(self, place: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` there. Raises LabFailed if the place is known not to be there."""

    def run(self, place: str, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Completed:
        """Run a command there. Raises LabFailed if it could not be started or did not end in time."""

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
        """Run `python -m overlaynet.probe` on a host: a job as JSON in, a document out. Raises LabFailed."""

    def session(self, host: str) -> Session:
        """A probe on a host that answers job after job, and is not waited for. Raises LabFailed."""

    def stream(self, host: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        """A probe on a host whose answer is line after line, until its input is closed. Raises LabFailed."""

    def popen_in(self, place: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command there on the caller's own terminal. Raises LabFailed."""

    def agent(self, host: str) -> Agent:
        """The host's agent, answering or not."""
