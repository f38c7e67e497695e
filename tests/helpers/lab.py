"""What the tests of whole labs share: whether there can be one here, and the machine's own network."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlaynet.cluster.cluster import Cluster
from overlaynet.core.view import View
from overlaynet.errors import OverlayError
from overlaynet.kernel import capability, netns
from overlaynet.lab import lifecycle
from overlaynet.lab.paths import Paths
from overlaynet.lab.sandbox import CAPABILITIES
from overlaynet.lab.topology import Topology
from overlaynet.store import codec


def obstacle() -> str | None:
    """What keeps a lab from running here."""
    missing = sorted(set(CAPABILITIES) - capability.effective())
    if missing:
        return "no privilege: " + ", ".join(missing)
    tools = [name for name in lifecycle.TOOLS if shutil.which(name) is None]
    return "not installed: " + ", ".join(tools) if tools else None


requires_lab = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def lab_name(word: str) -> str:
    """A name that no lab of a person, or of another run of the tests, has."""
    return f"t{os.getpid()}-{word}"


@contextmanager
def cleaned_up(name: str, paths: Paths) -> Iterator[None]:
    """Whatever becomes of the lab in the block, nothing of it is left."""
    try:
        yield
    finally:
        lifecycle.down(name, paths)


def caught_up(cluster: Cluster) -> bool:
    """Whether etcd has all containers as ready, and every agent knows what etcd says and has nothing to do any
    more; an AssertionError, to wait by, if not, or if one cannot be asked."""
    try:
        return _caught_up(cluster)
    except OverlayError as error:
        raise AssertionError(f"{error.message}: {error.evidence}") from error


def _caught_up(cluster: Cluster) -> bool:
    store = cluster.store()
    try:
        items = store.read(cluster.keys().watched).items
    finally:
        store.close()
    view = View.of((codec.decode(item, cluster.keys()) for item in items), cluster.keys())
    ready = {item.value.id for item in view.workloads.values() if item.value.ready}
    assert {container.id for container in cluster.containers()} <= ready
    newest = max(item.mod_revision for item in items)
    for host in cluster.hosts():
        agent = cluster.agent(host.name, 10.0)
        assert agent.get("/v1/status")["store"]["revision"] >= newest, host.name
        assert agent.get("/v1/plan")["count"] == 0, host.name
    return True


def ping(namespace: str, address: str) -> bool:
    """Whether one echo request from a namespace is answered within two seconds."""
    argv = ["nsenter", f"--net={netns.path(namespace)}", "--", "ping", "-n", "-c1", "-W2", address]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def own_network() -> dict[str, str]:
    """The machine's own links, addresses, routes, rules, bridge entries, packet filter and forwarding."""
    commands = {
        "links": ["ip", "-br", "link"],
        "addresses": ["ip", "-br", "addr"],
        "routes": ["ip", "route", "show", "table", "all"],
        "rules": ["ip", "rule"],
        "fdb": ["bridge", "fdb"],
        "filter": ["iptables-legacy-save"],
        "nft": ["iptables-nft-save"],
    }
    found = {name: _output(argv) for name, argv in commands.items()}
    for setting in ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"):
        found[setting] = Path("/proc/sys/net/ipv4", setting).read_text()
    return found


def _output(argv: list[str]) -> str:
    """A command's output without comments, which hold the time."""
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(line for line in lines if not line.startswith(("#", ":")))


def topology(name: str, **how_many: int) -> Topology:
    return Topology.simple(lab_name(name), **how_many)
