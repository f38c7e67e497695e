"""The real flanneld, where this machine has one, and whether it can run here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.lab import obstacle

BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def _built() -> Path:
    """Where `tests/interop/build` puts what it builds, the newest version of several."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = sorted((cache / "overlaynet").glob("flannel-*/flanneld"))
    return found[-1] if found else Path("flanneld")


FLANNELD = Path(shutil.which("flanneld") or _built())
DOCKER_OPTIONS = FLANNELD.with_name("mk-docker-opts.sh")
"""flannel's own script that makes Docker's options from subnet.env; packages do not all have it."""


def _obstacle() -> str | None:
    if not FLANNELD.is_absolute():
        return "no flanneld on the PATH, and none built: tests/interop/build"
    if not BRIDGE_NETFILTER.exists():
        return "flanneld ends at once where the module br_netfilter is not loaded"
    return obstacle()


requires_flannel = pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle()))
requires_docker_options = pytest.mark.skipif(
    not DOCKER_OPTIONS.exists(),
    reason=f"there is no {DOCKER_OPTIONS.name} beside flanneld: tests/interop/build",
)
