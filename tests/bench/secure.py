"""What TLS and users cost, beside three plain members; and how long nobody hears anything without the leader.

Both clusters have three members and the same leases. A start is a new client's: connections, TLS, a login by
certificate or by password, and the first listing; an agent's start goes on to its own subnet (no kernel, see
`helpers.light_agent`). An event is one lease, from the writer's call until the watching client is told. CPU is
that of our process alone.

Then the leader is killed while five agents claim their subnets and two others watch. The time is from the kill
until all of them know of a lease that was put after it. An event is lost if an agent does not know a lease that
is in etcd, or another version of it, once they all have settled.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

from bench import cluster
from bench.loss import MAX_LEADER_LOSS_S
from bench.measure import ROUNDS, Cost, Row, compare, cost
from helpers import secure_etcd
from helpers.etcd import EtcdServer, three_members
from helpers.eventually import eventually
from helpers.light_agent import LightAgent
from helpers.model import KEYS, flannel_lease, key_of, network
from helpers.secure_etcd import AGENT, SecureEtcd, certificates

from overlaynet.errors import OverlayError
from overlaynet.ports import KeyPut, Notice, Put
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore

ABOUT = "etcd with TLS and users; other: the same without"
EVENTS = 100
LOSSES = 5
WATCHING, CLAIMING = 2, 5

Connect = Callable[[], EtcdStore]


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    """The fewest leases only: that more of them are encrypted is no news."""
    leases = min(sizes)
    with _both(leases) as (secure, plain):
        logins: dict[str, Connect] = {
            "certificate": lambda: secure.connect("node-1"),
            "password": lambda: secure.store("host", AGENT),
        }
        for login, connect in logins.items():
            yield from _starts(leases, login, connect, plain)
            yield from _agents(leases, login, connect, plain)
            yield _events(leases, login, connect, plain)
    yield from _losses()


@contextmanager
def _both(leases: int) -> Iterator[tuple[SecureEtcd, Connect]]:
    with ExitStack() as stack:
        secure = stack.enter_context(_secure())
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ovl-bench-")))
        members = three_members(where)
        for member in members:
            stack.callback(member.kill)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(EtcdServer.start, members))
        urls = [member.url for member in members]
        for connect in (secure.connect, lambda: EtcdStore(urls)):
            with closing(connect()) as store:
                cluster.fill(store, leases)
        yield secure, lambda: EtcdStore(urls)


@contextmanager
def _secure() -> Iterator[SecureEtcd]:
    with tempfile.TemporaryDirectory(prefix="ovl-bench-") as name, secure_etcd.running(Path(name)) as etcd:
        certificates("client", etcd.folder, "host")
        yield etcd


# --- costs ----------------------------------------------------------------------------------------


def _starts(leases: int, login: str, ours: Connect, plain: Connect) -> Iterator[Row]:
    pairs = [(cost(lambda: _first_listing(ours)), cost(lambda: _first_listing(plain))) for _ in range(ROUNDS)]
    yield from compare(f"client's start, by {login}", leases, pairs, each=1_000, unit="ms")


def _first_listing(connect: Connect) -> None:
    with closing(connect()) as store:
        assert store.read(KEYS.watched).items


def _agents(leases: int, login: str, ours: Connect, plain: Connect) -> Iterator[Row]:
    pairs = [_both_agents(2 * number + 1, ours, plain) for number in range(ROUNDS)]
    yield from compare(f"agent's start to its subnet, by {login}", leases, pairs, each=1_000, unit="ms")


def _both_agents(number: int, ours: Connect, plain: Connect) -> tuple[Cost, Cost]:
    agents: list[LightAgent] = []
    try:
        first, second = (cost(lambda c=c: agents.append(_agent(number, c))) for c in (ours, plain))
        return first, second
    finally:
        for agent in agents:
            agent.stop()


def _agent(number: int, connect: Connect) -> LightAgent:
    agent = LightAgent([], number, connect()).start()
    eventually(lambda: agent.settled, deadline_s=60)
    return agent


def _events(leases: int, login: str, ours: Connect, plain: Connect) -> Row:
    """Writers and watchers in turn, so that whatever else the machine does hits both alike."""
    with ExitStack() as stack:
        pairs = [_Watched(stack, connect) for connect in (ours, plain)]
        for number in range(EVENTS):
            for watched in pairs:
                watched.put(number)
        took = [[1e3 * seconds for seconds in watched.took] for watched in pairs]
    ours_ms, other_ms = map(statistics.median, took)
    return Row(f"one event, by {login}", leases, ours_ms, "ms", other_ms, ours_ms / other_ms)


class _Watched:
    """One client that writes and one that is told. `took` are seconds."""

    def __init__(self, stack: ExitStack, connect: Connect) -> None:
        self.took: list[float] = []
        self._told = threading.Event()
        self._writer, reader = (stack.enter_context(closing(connect())) for _ in range(2))
        reader.watch([KEYS.subnets], self._writer.read([KEYS.subnets]).revision + 1, self._hear)
        self.put(0)
        self.took.clear()

    def _hear(self, notice: Notice) -> None:
        if isinstance(notice, KeyPut):
            self._told.set()

    def put(self, number: int) -> None:
        lease = flannel_lease(200, public_ips=(ip_address(f"192.168.99.{1 + number % 200}"),))
        self._told.clear()
        began = time.perf_counter()
        self._writer.commit([], [Put(key_of(lease), codec.encode_lease(lease))])
        assert self._told.wait(60)
        self.took.append(time.perf_counter() - began)


# --- a leader less --------------------------------------------------------------------------------


def _losses() -> Iterator[Row]:
    with _secure() as etcd:
        with closing(etcd.connect()) as store:
            _put(store, KEYS.network_config, codec.encode_network_config(network()))
        found = [_leader_loss(etcd, 10 * number) for number in range(LOSSES)]
    times, lost = [seconds for seconds, _ in found], sum(events for _, events in found)
    median = statistics.median(times)
    yield Row("leader killed during claims, to the next event", 1, median, "s", None, median, MAX_LEADER_LOSS_S)
    yield Row("the slowest of them", 1, max(times), "s", None, max(times), MAX_LEADER_LOSS_S)
    yield Row("events lost", 1, lost, "", None, lost, 0)


def _leader_loss(etcd: SecureEtcd, first: int) -> tuple[float, int]:
    """Seconds until all watching agents knew of a lease, and how many events some agent never heard of."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(etcd.connect(deadline_s=1.0)))
        watching = [_agent(first + number, lambda: etcd.connect("node-1")) for number in range(1, WATCHING + 1)]
        _put_lease(store, 200)
        agents = [
            *watching,
            *(LightAgent([], first + WATCHING + n, etcd.connect("node-1")) for n in range(1, CLAIMING + 1)),
        ]
        for agent in agents:
            stack.callback(agent.stop)
        leader = etcd.leader
        for agent in agents[WATCHING:]:
            agent.start()
        began = time.monotonic()
        leader.kill()
        news = eventually(lambda: _put_lease(store, 201), deadline_s=30)
        eventually(lambda: all(_knows(agent, 201, news) for agent in watching), deadline_s=30)
        seconds = time.monotonic() - began
        eventually(lambda: all(agent.settled for agent in agents), deadline_s=60)
        leader.start()
        last = eventually(lambda: _put_lease(store, 202), deadline_s=30)
        eventually(lambda: all(_knows(agent, 202, last) for agent in agents), deadline_s=60)
        return seconds, _lost(store, agents)


def _lost(store: EtcdStore, agents: Sequence[LightAgent]) -> int:
    there = {item.key: item.mod_revision for item in store.read([KEYS.subnets]).items}
    known = [{key: item.mod_revision for key, item in dict(a.engine.view.leases).items()} for a in agents]
    return sum(len(dict(there.items() ^ one.items())) for one in known)


def _knows(agent: LightAgent, number: int, revision: int) -> bool:
    lease = agent.engine.view.leases.get(key_of(flannel_lease(number)))
    return lease is not None and lease.mod_revision >= revision


def _put_lease(store: EtcdStore, number: int) -> int:
    return _put(store, key_of(flannel_lease(number)), codec.encode_lease(flannel_lease(number)))


def _put(store: EtcdStore, key: str, value: bytes) -> int:
    """The revision of the write; 0 if etcd did not take it."""
    try:
        return store.commit([], [Put(key, value)]).revision
    except OverlayError:
        return 0
