"""The agent of a machine, asked through the machine's probe, which is root there and next to its socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from overlaynet.client import TIMEOUT_S
from overlaynet.errors import AgentUnreachable
from overlaynet.lab.unreachable import Reach

Ask: TypeAlias = Callable[[Mapping[str, Any], float], dict[str, Any]]
"""A job and how long it may take, in seconds, to the probe's answer."""


class MachineAgent:
    """As `client.AgentClient`, and with its errors; MachineUnreachable besides."""

    def __init__(self, reach: Reach, ask: Ask, timeout_s: float = TIMEOUT_S) -> None:
        self._reach = reach
        self._ask = ask
        self._timeout_s = timeout_s

    def get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, body)

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path)

    def readiness(self) -> dict[str, Any]:
        return self._call("READY", "/v1/ready")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        job = {"op": "agent", "method": method, "path": path, "body": body, "timeout_s": self._timeout_s}
        try:
            document: dict[str, Any] = self._ask(job, self._timeout_s)["document"]
        except AgentUnreachable as error:
            raise AgentUnreachable(
                f"{error.message} on {self._reach.host}",
                evidence=error.evidence,
                next=[
                    f"overlaynet logs {self._reach.host}",
                    self._reach.by_hand("sudo systemctl status overlaynet-agent"),
                ],
            ) from error
        return document
