"""How long an agent's loop keeps others waiting, while it looks at the whole kernel again and again.

A real agent with etcd full of leases looks at everything each second; meanwhile it is asked whether it is
ready, one time right after the other, which only the loop can answer. The slowest answer is the longest that
the loop was at something else, or waited for the interpreter, and some milliseconds for HTTP.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import cluster
from bench.measure import Row
from bench.start import settings
from helpers.etcd import running_etcd
from helpers.eventually import eventually
from helpers.kernel_hosts import real_host

from overlaynet.client import AgentClient
from overlaynet.errors import OverlayError
from overlaynet.lab.launch import toml
from overlaynet.store.etcd import EtcdStore

ABOUT = "answers of the agent's loop while it looks at the whole kernel each second"
WATCHED_S = 20.0
GOAL_MS = 100.0


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    for peers in sizes:
        answers, looks = _watched(peers)
        answers.sort()
        slowest = answers[-1] * 1e3
        yield Row("slowest answer", peers, slowest, "ms", ratio=slowest, goal=GOAL_MS)
        yield Row("of a hundred the slowest", peers, answers[-1 - len(answers) // 100] * 1e3, "ms")
        yield Row("median answer", peers, answers[len(answers) // 2] * 1e3, "ms")
        yield Row("looks meanwhile", peers, float(looks), "")


def _watched(peers: int) -> tuple[list[float], int]:
    """Seconds of each answer, and how many full looks there were."""
    with tempfile.TemporaryDirectory(prefix="ovl-bench-") as name, running_etcd(Path(name)) as server:
        store = EtcdStore([server.unix_url])
        cluster.fill(store, peers)
        store.close()
        directory = Path(name) / "agent"
        directory.mkdir()
        config = directory / "agent.toml"
        config.write_text(toml({**settings(directory, server.unix_url, 0), "firewall": {"resync_s": 1}}))
        environ = {**os.environ, "XTABLES_LOCKFILE": str(directory / "xtables.lock")}
        with real_host(), (directory / "log").open("w") as log:
            agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "overlaynet_agent", "run", "--config", str(config)],
                stderr=log, env=environ,
            )  # fmt: skip
            try:
                return _asked(AgentClient(directory / "run" / "agent.sock"))
            finally:
                agent.send_signal(signal.SIGTERM)
                agent.wait(timeout=60)


def _asked(client: AgentClient) -> tuple[list[float], int]:
    eventually(lambda: _is_ready(client), deadline_s=120)
    answers, before = [], _looks(client)
    end = time.monotonic() + WATCHED_S
    while (begun := time.monotonic()) < end:
        client.get("/v1/ready")
        answers.append(time.monotonic() - begun)
    return answers, _looks(client) - before


def _is_ready(client: AgentClient) -> bool:
    try:
        return bool(client.get("/v1/ready")["ready"])
    except OverlayError:
        return False


def _looks(client: AgentClient) -> int:
    return int(client.get("/v1/status")["looks"])
