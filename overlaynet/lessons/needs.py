"""What a lesson may need of the machine besides what every lab needs, and how that is found out.

A kernel without it is no fault of the learner's: such a lesson says why it cannot be run here, and is left out.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping

from overlaynet.errors import OverlayError, ToolMissing
from overlaynet.kernel import capability
from overlaynet.kernel.process import tool

TRY_S = 10.0


def _wireguard() -> str | None:
    """Tried by making such a device, which also has the kernel load its module: in a network namespace that
    ends with the attempt, and without privilege in a user namespace of one's own."""
    own = [] if "CAP_SYS_ADMIN" in capability.effective() else ["--user", "--map-root-user"]
    try:
        done = subprocess.run(
            [tool("unshare"), *own, "--net", "--", tool("ip"), *["link", "add", "wg0", "type", "wireguard"]],
            capture_output=True,
            text=True,
            check=False,
            timeout=TRY_S,
        )
    except (OSError, subprocess.TimeoutExpired, OverlayError) as error:
        return f"whether this kernel has WireGuard could not be tried: {error}"
    return f"this kernel has no WireGuard: {done.stderr.strip()}" if done.returncode else None


def _wg() -> str | None:
    try:
        tool("wg")
    except ToolMissing as error:
        return f"{error.message}; {error.next[0]}"
    return None


NEEDS: Mapping[str, Callable[[], str | None]] = {"wireguard": _wireguard, "wg": _wg}
"""Each answers why it is not there, or None."""


def missing(needs: tuple[str, ...]) -> str | None:
    """The first reason why a lesson with these needs cannot be run here. Raises ValueError for a need that is
    none."""
    if unknown := [need for need in needs if need not in NEEDS]:
        raise ValueError(f"nobody knows how to look for {', '.join(unknown)}; there are {', '.join(NEEDS)}")
    reasons = (NEEDS[need]() for need in needs)
    return next((reason for reason in reasons if reason is not None), None)
