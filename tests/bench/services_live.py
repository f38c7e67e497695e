"""What callers of a virtual IP notice, beyond what a test can wait for: agents of a lab, TCP and UDP callers.

Three hosts with a container each, which all answer. One container calls, a connection and a datagram at a time
(`helpers.calling`), while an agent is restarted, killed and stopped for a minute; then a hundred endpoints come
at once; then somebody holds the xtables lock; last, a host dies. Where the goal is a count it is none, but for
restores, of which there may be two, of three commits at most.
"""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bench.measure import Row
from helpers.answering import Answer, ask
from helpers.calling import Calling
from helpers.eventually import eventually
from helpers.lab import lab_name
from helpers.served_lab import CLIENT, KEYS, SLICED_VIP, VIP, ServedLab, served_lab, slice_of, web

ABOUT = 'calls of a virtual IP while agents and hosts come and go ("ratio" is the figure itself)'
NODE_TTL_S = 15
CALLS = 1_000
STOPPED_S, HELD_S = 60, 8
PATIENT = 20
CHANGES, BATCHES, WITHIN_S = 100, 10, 0.2
AGENT = "node-3"
"""The caller's own host, whose rules and connections serve it; with the legacy iptables, which has a lock."""
ENDPOINTS = ("10.244.1.2", "10.244.2.2", "10.244.3.2")


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    """The sizes do not matter: three hosts."""
    with served_lab(lab_name("live"), node_ttl_s=NODE_TTL_S) as lab:
        yield from _away(lab, signal.SIGTERM, 0, "agent restarted")
        yield from _away(lab, signal.SIGKILL, 0, "agent killed")
        yield from _away(lab, signal.SIGTERM, STOPPED_S, f"agent stopped for {STOPPED_S} s")
        lab.apply(web("api", SLICED_VIP), slice_of("api", ENDPOINTS[0]))
        eventually(lambda: _answers(lab) == {"web-1"})
        yield from _changes(lab)
        yield from _lock(lab)
        yield from _death(lab)


def _figure(what: str, value: float, unit: str, goal: float | None = None) -> Row:
    return Row(what, 1, value, unit, None, value, goal)


def _away(lab: ServedLab, number: signal.Signals, seconds: float, what: str) -> Iterator[Row]:
    before = lab.forgotten(AGENT)
    with lab.calling(VIP) as calls:
        lab.kill(AGENT, number)
        threading.Event().wait(seconds)
        lab.up()
        eventually(lambda: lab.well(AGENT), deadline_s=30)
        eventually(lambda: len(calls.tcp) >= CALLS, deadline_s=30)
    yield _figure(f"{what}: connections", len(calls.tcp), "calls")
    yield _figure(f"{what}: datagrams", len(calls.udp), "calls")
    yield _figure(f"{what}: failures", _failures(calls), "calls", 0)
    yield _figure(f"{what}: endpoints that one socket met", len(calls.udp.names), "of 3", 1)
    yield _figure(f"{what}: connections deleted", lab.forgotten(AGENT) - before, "flows", 0)
    yield _figure(f"{what}: its writes", sum(lab.status(AGENT)["writes"].values()), "writes", 0)


def _failures(calls: Calling) -> int:
    return sum(calls.tcp.failures.values()) + sum(calls.udp.failures.values())


def _answers(lab: ServedLab) -> set[str]:
    said = [lab.ask(CLIENT, SLICED_VIP) for _ in range(8)]
    return {one.name if isinstance(one, Answer) else one for one in said}


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _has(lab: ServedLab, targets: set[str]) -> bool:
    """Whether the rules have them; at most ten times a second, since asking takes the agent's time."""
    threading.Event().wait(0.1)
    return lab.targets(AGENT) == targets


def _changes(lab: ServedLab) -> Iterator[Row]:
    """Spread evenly, in batches."""
    before = lab.metric(AGENT, "overlaynet_firewall_restores_total")
    expected, batch = lab.targets(AGENT), CHANGES // BATCHES
    began = time.monotonic()
    for number in range(BATCHES):
        expected |= lab.change(range(9_000 + batch * number, 9_000 + batch * (number + 1)))
        threading.Event().wait(max(0.0, began + WITHIN_S * (number + 1) / BATCHES - time.monotonic()))
    took_s = time.monotonic() - began
    right_s = _seconds(lambda: eventually(lambda: _has(lab, expected), deadline_s=30))
    commits = lab.metric(AGENT, "overlaynet_firewall_restores_total") - before
    lab.delete(*(KEYS.slice(f"default/api-{port}") for port in range(9_000, 9_000 + CHANGES)))
    eventually(lambda: len(lab.targets(AGENT)) == 1, deadline_s=30)
    what = f"{CHANGES} changes within {1_000 * WITHIN_S:.0f} ms"
    yield _figure(f"{what}: etcd took", 1_000 * took_s, "ms")
    yield _figure(f"{what}: tables committed", commits, "commits", 6)
    yield _figure(f"{what}: right after the last", 1_000 * right_s, "ms")


def _lock(lab: ServedLab) -> Iterator[Row]:
    asked: list[float] = []
    with lab.lab.paths.host(AGENT).xtables_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lab.apply(slice_of("api", ENDPOINTS[1]))
        end = time.monotonic() + HELD_S
        while time.monotonic() < end:
            asked.append(_seconds(lambda: lab.status(AGENT)))
            threading.Event().wait(0.02)
        held = _answers(lab)
    after_s = _seconds(lambda: eventually(lambda: _answers(lab) == {"web-2"}, deadline_s=60))
    assert held == {"web-1"}, "the lock held nobody up"
    yield _figure(f"lock held for {HELD_S} s: slowest answer of the agent", 1_000 * max(asked), "ms", 100)
    yield _figure(f"lock held for {HELD_S} s: convergence after", after_s, "s", 1)


@contextmanager
def _calling_first(lab: ServedLab) -> Iterator[Calling]:
    """Calls whose one socket for datagrams met the container of the host that is to die."""
    while True:
        with lab.calling(VIP, patience_s=0.3) as calls:
            eventually(lambda calls=calls: len(calls.tcp) > 100 and len(calls.udp) > 0)
            if set(calls.udp.names) == {"web-1"}:
                yield calls
                return


def _patient_call(lab: ServedLab) -> float | None:
    """Seconds until one was answered that does not give up, None if it was not."""
    with lab.places[CLIENT].entered():
        began = time.monotonic()
        said = ask("tcp", VIP, 80, patience_s=4 * NODE_TTL_S)
    return time.monotonic() - began if isinstance(said, Answer) else None


def _death(lab: ServedLab) -> Iterator[Row]:
    with _calling_first(lab) as calls, ThreadPoolExecutor(PATIENT) as pool:
        died = time.monotonic()
        lab.cut_off("node-1")
        lab.kill("node-1")
        patient = list(pool.map(lambda _: _patient_call(lab), range(PATIENT)))
        eventually(lambda: calls.tcp.failures)
        threading.Event().wait(max(0.0, died + 2 * NODE_TTL_S - time.monotonic()))
    most_s = NODE_TTL_S + 1
    yield _figure("host killed: patient connections that failed", patient.count(None), "calls", 0)
    yield _figure("host killed: the slowest of these", max(took or 0.0 for took in patient), "s")
    yield _figure("host killed: connections that failed", sum(calls.tcp.failures.values()), "calls")
    yield _figure("host killed: seconds to the last such", calls.tcp.failed_until(died), "s", most_s)
    yield _figure(
        "host killed: seconds to the last lost datagram", calls.udp.failed_until(died), "s", NODE_TTL_S + 1
    )
