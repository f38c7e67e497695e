"""May this process make network namespaces and change what is in them?

Asked of the capabilities, not of the user id: root in a container may lack them, and an ordinary user has
them inside ``unshare -Urnm``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
"""Bit numbers from linux/capability.h."""


def missing_capabilities() -> list[str]:
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return [name for name, bit in NEEDED.items() if not effective & (1 << bit)]


requires_netns = pytest.mark.skipif(
    bool(missing_capabilities()), reason=f"no privilege: {', '.join(missing_capabilities())}"
)
