"""The driver whose hosts are network namespaces of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from overlaynet.client import AgentClient
from overlaynet.errors import LabFailed
from overlaynet.kernel import netns
from overlaynet.kernel.process import tool
from overlaynet.lab.driver import Completed
from overlaynet.lab.paths import LabPaths
from overlaynet.lab.session import ProbeSession, start

PREFIX = netns.LABS
PROBE = (sys.executable, "-P", "-m", "overlaynet.probe")
namespace = netns.of_lab


def entering(name: str, argv: Sequence[str], directory: str | None = None) -> list[str]:
    """The command line that runs `argv` in a named namespace: nsenter becomes it, so the pid is the same."""
    where = [f"--wd={directory}"] if directory else []
    return [tool("nsenter"), f"--net={netns.path(name)}", *where, "--", *argv]


class NetnsDriver:
    """Hosts and containers are namespaces, entered by nsenter(1)."""

    name = "netns"

    def __init__(self, lab: str, paths: LabPaths) -> None:
        self.lab = lab
        self._paths = paths

    def netns(self, place: str) -> str | None:
        return namespace(self.lab, place)

    def run(self, place: str, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Completed:
        try:
            done = subprocess.run(
                self.argv_in(place, argv), input=stdin, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LabFailed(f"{argv[0]} in {place} did not end within {timeout_s:g} s") from error
        except OSError as error:
            raise LabFailed(f"{argv[0]} could not be started in {place}", evidence=str(error)) from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def probe(self, host: str, job: Mapping[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
        done = self.run(host, PROBE, stdin=json.dumps(job).encode(), timeout_s=timeout_s)
        try:
            document = json.loads(done.stdout)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise LabFailed(
                f"the probe on {host} did not report",
                evidence=f"exit {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}",
                next=[f"overlaynet exec {host} -- true"],
            )
        return document

    def session(self, host: str) -> ProbeSession:
        return ProbeSession(host, self.argv_in(host, PROBE))

    def stream(self, host: str, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        return start(host, self.argv_in(host, PROBE), job)

    def popen_in(self, place: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(self.argv_in(place, argv))
        except OSError as error:
            raise LabFailed(f"{argv[0]} could not be started in {place}", evidence=str(error)) from error

    def agent(self, host: str) -> AgentClient:
        return AgentClient(self._paths.host(host).socket)

    def argv_in(self, place: str, argv: Sequence[str]) -> list[str]:
        name = namespace(self.lab, place)
        if not netns.exists(name):
            raise LabFailed(
                f"{place} has no network namespace",
                evidence=f"{netns.path(name)} does not exist",
                next=[f"overlaynet up -l {self.lab}"],
            )
        return entering(name, argv)


def clean_environ() -> dict[str, str]:
    """Our environment without our variables: an agent of a lab is set by its file alone."""
    return {key: value for key, value in os.environ.items() if not key.startswith("OVERLAYNET_")}
