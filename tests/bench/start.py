"""A real agent, from its start to "ready", with etcd full of leases; and again with everything in place.

Each agent runs as a process in a network namespace of its own and reaches etcd by its unix socket. A start
counts from the fork to the log line that says ready: interpreter, imports, listing, claims, kernel tables,
firewall rules. The second start finds the kernel as the first left it and should write nothing. Memory is
the resident set after the start, and its peak.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import cluster
from bench.measure import Row
from helpers.etcd import running_etcd
from helpers.kernel_hosts import UNDERLAY, real_host

from overlaynet.lab.launch import toml
from overlaynet.store.etcd import EtcdStore

ABOUT = "agent process to READY; other: the same without peers"
ROUNDS = 3


class Start(NamedTuple):
    """Seconds to ready, kernel writes, and MiB resident after it and at the most."""

    ready_s: float
    writes: int
    rss_mib: float
    peak_mib: float


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    empty: dict[str, list[Start]] = {}
    for peers in (0, *sizes[-2:]):
        found = _starts(peers)
        empty = empty or found
        for what, starts in found.items():
            yield _row(f"{what}, to ready", peers, [s.ready_s * 1e3 for s in starts], "ms",
                       [s.ready_s * 1e3 for s in empty[what]])  # fmt: skip
            yield _row(f"{what}, resident", peers, [s.rss_mib for s in starts], "MiB",
                       [s.rss_mib for s in empty[what]])  # fmt: skip
            yield _row(f"{what}, resident at most", peers, [s.peak_mib for s in starts], "MiB",
                       [s.peak_mib for s in empty[what]])  # fmt: skip
            yield Row(f"{what}, kernel writes", peers, statistics.median(s.writes for s in starts), "")


def _row(what: str, peers: int, ours: list[float], unit: str, other: list[float]) -> Row:
    mine, theirs = statistics.median(ours), statistics.median(other)
    return Row(what, peers, mine, unit, theirs, mine / theirs) if peers else Row(what, peers, mine, unit)


def _starts(peers: int) -> dict[str, list[Start]]:
    found: dict[str, list[Start]] = {"first start": [], "restart": []}
    with tempfile.TemporaryDirectory(prefix="ovl-bench-") as name, running_etcd(Path(name)) as server:
        store = EtcdStore([server.unix_url])
        cluster.fill(store, peers)
        store.close()
        for number in range(ROUNDS):
            directory = Path(name) / f"agent-{number}"
            directory.mkdir()
            with real_host():
                for what in found:
                    found[what].append(_start(directory, server.unix_url, number))
    return found


def _start(directory: Path, etcd: str, number: int) -> Start:
    config = directory / "agent.toml"
    config.write_text(toml(settings(directory, etcd, number)))
    environ = {**os.environ, "XTABLES_LOCKFILE": str(directory / "xtables.lock")}
    begun = time.perf_counter()
    agent = subprocess.Popen(
        [sys.executable, "-P", "-m", "overlaynet_agent", "run", "--config", str(config)],
        stderr=subprocess.PIPE, text=True, env=environ,
    )  # fmt: skip
    try:
        assert agent.stderr is not None
        said = []
        for line in agent.stderr:
            said.append(line)
            if " ready node=" in line:
                break
        else:
            raise RuntimeError("the agent ended:\n" + "".join(said))
        taken = time.perf_counter() - begun
        status = Path(f"/proc/{agent.pid}/status").read_text()
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=60)
    return Start(taken, _writes("".join(said)), _mib(status, "VmRSS"), _mib(status, "VmHWM"))


def settings(directory: Path, etcd: str, number: int) -> dict[str, dict[str, object]]:
    """An agent's settings, with all its files in `directory`."""
    return {
        "node": {"name": f"bench-{number}", "interface": UNDERLAY, "public_ip": f"192.168.50.{11 + number}"},
        "etcd": {"endpoints": [etcd]},
        "paths": {
            "run": str(directory / "run"),
            "state": str(directory / "state"),
            "subnet_file": str(directory / "subnet.env"),
        },
    }


def _writes(log: str) -> int:
    return sum(int(number) for number in re.findall(r"kernel written why=\S+ changes=(\d+)", log))


def _mib(status: str, member: str) -> float:
    found = re.search(rf"{member}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024
