"""What the agent's and etcd's absence costs: packets lost, writes of the next agent, CPU of the one that waits.

Two hosts of a lab, a hundred pings a second between their containers. The agent of one host is stopped, then
killed; then etcd is killed and stays away for a minute. Counts and shares, no times: they have goals of their
own. The last request of a stream may be cut off by its end, so one packet is none.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench.measure import Row
from helpers.eventually import eventually
from helpers.lab import lab_name
from helpers.pinging import Pinging, pinging

from overlaynet.kernel import process
from overlaynet.lab.converge import ETCD
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import Topology

ABOUT = 'pings between containers while an agent or etcd is away ("ratio" is the figure itself)'
AGENT = "agent/node-1"
AWAY_S = 60
MAX_CPU_PERCENT = 2.0


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    """The sizes do not matter: two hosts."""
    with Lab.running(Topology.simple(lab_name("bench"), hosts=2, containers=1)) as lab:
        yield from _restart(lab, signal.SIGTERM, "agent stopped and started")
        yield from _restart(lab, signal.SIGKILL, "agent killed and started")
        yield from _without_etcd(lab)


def _restart(lab: Lab, number: signal.Signals, what: str) -> Iterator[Row]:
    with _stream(lab) as pings:
        _end(lab, AGENT, number)
        _start_again(lab)
    yield from _lost(what, pings)
    writes = sum(lab.agent("node-1").get("/v1/status")["writes"].values())
    yield _figure(f"{what}: its writes", writes, "writes", 0)


def _without_etcd(lab: Lab) -> Iterator[Row]:
    what = f"etcd away for {AWAY_S} s"
    pid = Lab.open(lab.name).pid(AGENT)
    assert pid is not None
    with _stream(lab) as pings:
        _end(lab, ETCD, signal.SIGKILL)
        before = _cpu_s(pid)
        threading.Event().wait(AWAY_S)
        used_s = _cpu_s(pid) - before
        _start_again(lab)
    yield from _lost(what, pings)
    yield _figure(f"{what}: CPU of the agent", 100 * used_s / AWAY_S, "% core", MAX_CPU_PERCENT)


def _stream(lab: Lab) -> AbstractContextManager[Pinging]:
    return pinging(namespace(lab.name, "web-1"), "10.244.2.2")


def _lost(what: str, pings: Pinging) -> Iterator[Row]:
    yield _figure(f"{what}: packets sent", pings.sent, "packets", None)
    yield _figure(f"{what}: packets lost", pings.lost, "packets", 1)


def _figure(what: str, value: float, unit: str, goal: float | None) -> Row:
    return Row(what, 1, value, unit, None, value, goal)


def _end(lab: Lab, name: str, number: signal.Signals) -> None:
    pid = Lab.open(lab.name).pid(name)
    assert pid is not None
    os.kill(pid, number)
    eventually(lambda: process.start_time(pid) is None, deadline_s=20)


def _start_again(lab: Lab) -> None:
    """`up` starts what is missing and waits until every host is settled."""
    result = Lab.up(lab.topology)
    assert result.converged, result.waiting


def _cpu_s(pid: int) -> float:
    """User and system time of all threads (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
