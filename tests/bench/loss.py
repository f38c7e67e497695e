"""How long an agent hears nothing when etcd is lost: a leader of three killed, a single member restarted.

An agent without a kernel (`helpers.light_agent`) watches; a lease is put again and again until etcd takes it,
as another host's agent would. The time is from the kill (or from the restarted member's first answer) until
the watching agent knows of the lease. Nothing may be lost, so the lease put before the kill must be known too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.measure import Row
from helpers.etcd import EtcdServer, leader_of, three_members
from helpers.eventually import eventually
from helpers.light_agent import LightAgent
from helpers.model import KEYS, flannel_lease, key_of, network

from overlaynet.errors import OverlayError
from overlaynet.ports import Put
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore

ABOUT = 'seconds without news after a loss of etcd ("ratio" is the figure itself)'
ROUNDS = 3
MAX_LEADER_LOSS_S = 3.0


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    """The sizes do not matter: two agents."""
    times = [_leader_loss() for _ in range(ROUNDS)]
    yield _row("leader of three killed, to the next event", statistics.median(times), MAX_LEADER_LOSS_S)
    yield _row("leader of three killed, the slowest", max(times), MAX_LEADER_LOSS_S)
    yield _row("one member killed and restarted, to the next event", _restart(), None)


def _row(what: str, seconds: float, goal: float | None) -> Row:
    return Row(what, 1, seconds, "s", None, seconds, goal)


def _leader_loss() -> float:
    with tempfile.TemporaryDirectory() as where:
        members = three_members(Path(where))
        try:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(EtcdServer.start, members))
            urls = [member.url for member in members]
            return _until_heard(urls, lambda: leader_of(members).kill())
        finally:
            for member in members:
                member.kill()


def _restart() -> float:
    with tempfile.TemporaryDirectory() as where:
        only = EtcdServer(Path(where))
        only.start()
        try:
            return _until_heard([only.url], lambda: (only.kill(), only.start()), after=True)
        finally:
            only.kill()


def _until_heard(urls: list[str], lose: Callable[[], object], *, after: bool = False) -> float:
    """Seconds from `lose` (or from its end) until the agent knows a lease that was put after it."""
    store = EtcdStore(urls, deadline_s=1.0)
    agent = None
    try:
        eventually(lambda: _put(store, KEYS.network_config, codec.encode_network_config(network())))
        agent = LightAgent(urls, 1).start()
        eventually(lambda: agent.settled, deadline_s=30)
        _put_lease(store, 200)
        began = time.monotonic()
        lose()
        began = time.monotonic() if after else began
        eventually(lambda: _put_lease(store, 201), deadline_s=30)
        eventually(lambda: _knows(agent, 200) and _knows(agent, 201), deadline_s=30)
        return time.monotonic() - began
    finally:
        if agent is not None:
            agent.stop()
        store.close()


def _knows(agent: LightAgent, number: int) -> bool:
    return key_of(flannel_lease(number)) in agent.engine.view.leases


def _put_lease(store: EtcdStore, number: int) -> bool:
    return _put(store, key_of(flannel_lease(number)), codec.encode_lease(flannel_lease(number)))


def _put(store: EtcdStore, key: str, value: bytes) -> bool:
    try:
        return store.commit([], [Put(key, value)]).ok
    except OverlayError:
        return False
