"""What a probe does at one go: a job in, an answer out, nothing kept.

What an operation needs is imported when it is asked for, because starting up is most of what a short ping
costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from overlaynet.errors import EnvironmentProblem, UsageError

OPERATIONS: Mapping[str, tuple[str, str]] = {
    "observe": ("observe", "run"),
    "addresses": ("observe", "addresses"),
    "connections": ("connections", "run"),
    "connection": ("connections", "find"),
    "ping": ("ping", "run"),
    "places": ("place", "run"),
    "counters": ("place", "counters"),
    "send": ("send", "run"),
    "burst": ("send", "burst"),
    "calls": ("calls", "run"),
    "containers": ("containers", "look"),
    "containers-make": ("containers", "make"),
    "containers-start": ("containers", "start"),
    "containers-end": ("containers", "end"),
    "containers-remove": ("containers", "remove"),
    "containers-attach": ("containers", "attach"),
    "write": ("changes", "write"),
    "edit": ("changes", "edit"),
    "forget": ("changes", "forget"),
    "service": ("changes", "service"),
    "caller": ("changes", "caller"),
    "timer": ("changes", "start_timer"),
    "timer-look": ("changes", "look_timer"),
    "timer-end": ("changes", "end_timer"),
    "host": ("agent", "facts"),
    "agent": ("agent", "ask"),
    "once": ("agent", "once"),
    "wire": ("wiring", "run"),
    "log": ("log", "last"),
}
"""Where each is: a module beside this one, and a function there."""


def do(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer. Raises OverlayErrors: UsageError for an operation that there is not."""
    name = job.get("op")
    if not isinstance(name, str) or name not in OPERATIONS:
        raise UsageError(f"there is no operation {name!r}", evidence=f"operations: {', '.join(OPERATIONS)}")
    module, function = OPERATIONS[name]
    operation: Callable[[Mapping[str, Any]], dict[str, Any]] = getattr(
        import_module(f"overlaynet.probe.{module}"), function
    )
    try:
        return operation(job)
    except OSError as error:
        raise EnvironmentProblem("the probe could not do its job", evidence=str(error)) from error
