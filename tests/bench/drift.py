"""How soon what somebody broke is whole again, and what that took: full looks, readings of the rules, writes.

One agent on a real kernel and real iptables, etcd in memory. Each object of ours is removed and altered, as
another program would do it; the time ends when a reading of kernel and rules, ours and foreign, begins that
finds all as before. Reading 5 000 peers costs as much as repairing them, and here it takes the agent's own
interpreter: so it is not tried before the agent has written something and has nothing more to do.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import cluster
from bench.measure import Row
from helpers.drift_cases import KERNEL, RULES, Case
from helpers.eventually import eventually
from helpers.real_agent import PEERS, RealAgent, real_agent

from overlaynet.store import codec

ABOUT = 'seconds to repair ("ratio" is the figure itself); looks, readings of rules, kernel writes, restores'
GOAL_S = 1.0
RESYNC_S = 10.0
"""What an edit that keeps a legacy table's size waits for, at most."""
OF_MANY = ("route-removed", "vxlan-device-removed")
"""What is tried among many peers too."""
IDLE_S = 20
MAX_CPU_PERCENT = 2.0


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="ovl-bench-") as where:
        for flavour, cases in (("legacy", (*KERNEL, *RULES)), ("nft", RULES)):
            with real_agent(Path(where, flavour), flavour, resync_s=RESYNC_S) as agent:
                for case in cases:
                    yield _repair(agent, case, len(PEERS))
                yield _idle(agent, len(PEERS))
        for peers in sizes:
            with real_agent(Path(where, str(peers)), "legacy", resync_s=RESYNC_S * 60) as agent:
                _add(agent, peers)
                for case in KERNEL:
                    if case.name in OF_MANY:
                        yield _repair(agent, case, peers)
                yield _idle(agent, peers)


def _repair(agent: RealAgent, case: Case, peers: int) -> Row:
    before, counters = agent.state(), agent.counters()

    def whole() -> float:
        now = agent.counters()
        assert now["writes"] > counters["writes"] or now["restores"] > counters["restores"]
        assert agent.quiet()
        began = time.monotonic()
        assert agent.state() == before
        return began

    agent.calm_down()
    agent.break_by(case)
    began = time.monotonic()
    took_s = eventually(whole, deadline_s=60) - began
    eventually(agent.quiet)
    spent = "/".join(str(after - counters[name]) for name, after in agent.counters().items())
    late = case.same_size and agent.flavour == "legacy"
    what = f"{agent.flavour} {case.object} {case.how} ({spent})"
    return Row(what, peers, took_s, "s", None, took_s, RESYNC_S + GOAL_S if late else GOAL_S)


def _idle(agent: RealAgent, peers: int) -> Row:
    """CPU of the whole process, so that of etcd's stand-in too."""
    eventually(agent.quiet)
    counters, began, used = agent.counters(), time.monotonic(), time.process_time()
    threading.Event().wait(IDLE_S)
    percent = 100 * (time.process_time() - used) / (time.monotonic() - began)
    spent = "/".join(str(after - counters[name]) for name, after in agent.counters().items())
    return Row(f"{agent.flavour} idle, CPU ({spent})", peers, percent, "%", None, percent, MAX_CPU_PERCENT)


def _add(agent: RealAgent, peers: int) -> None:
    for number in range(peers):
        lease = cluster.peer(number)
        agent.put_lease(cluster.KEYS.lease(lease.subnets), codec.encode_lease(lease))
    eventually(lambda: agent.counters()["writes"] >= len(cluster.TABLES) * (peers + len(PEERS)), deadline_s=120)
    eventually(agent.quiet)
