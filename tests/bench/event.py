"""One peer's change, among few and among many: from the event to the kernel, and from etcd to the kernel.

The first is `Engine.handle` of a lease with another MAC, and `Host.follow`, on the loop's thread: a neighbour
and two forwarding entries. The second puts that lease into a real etcd, whose watch a `StoreWorker`
follows, and ends when the kernel has it; most of it is etcd's commit to disk. "ours" is among many peers.
"""

from __future__ import annotations

import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import cluster
from bench.measure import Row
from helpers.etcd import running_etcd
from helpers.kernel_hosts import real_host

from overlaynet.core.engine import Engine
from overlaynet.events import Changed, Event
from overlaynet.model import Lease, Stored
from overlaynet.ports import Put
from overlaynet.store import codec
from overlaynet.store.etcd import EtcdStore
from overlaynet_agent.host import Host
from overlaynet_agent.storeworker import StoreWorker

ABOUT = "one peer's change, median; other: among the fewest peers"
EVENTS = 200
FEWEST = 100


@dataclass
class Node:
    """One host with so many peers, all of them in the kernel. `took` are microseconds."""

    engine: Engine
    host: Host
    peers: int
    took: list[float] = field(default_factory=list)
    took_from_etcd: list[float] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        self.engine.handle(event, 0.0)
        outcome = self.host.follow(0.0)
        assert not outcome.failures, outcome.failures[0].error


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    for peers in sizes:
        if peers > FEWEST:
            few, many = _nodes(FEWEST, peers)
            yield _row("event to kernel", few.took, many, many.took)
            yield _row("etcd put to kernel", few.took_from_etcd, many, many.took_from_etcd)


def _row(what: str, few: list[float], many: Node, took: list[float]) -> Row:
    ours, other = statistics.median(took), statistics.median(few)
    return Row(what, many.peers, ours, "us", other, ours / other, 5.0)


def _nodes(*sizes: int) -> list[Node]:
    """Measured in turn, so that whatever else the machine does hits all alike."""
    with ExitStack() as stack:
        nodes = [_node(stack, peers) for peers in sizes]
        for number in range(EVENTS):
            for node in nodes:
                lease = cluster.peer(number * 7919 % node.peers, version=1 + number % 200)
                event = Changed(_stored(lease, 10**9 + number))
                node.took.append(_us(lambda node=node, event=event: node.hear(event)))
        for node in nodes:
            _from_etcd(stack, node)
    return nodes


def _node(stack: ExitStack, peers: int) -> Node:
    engine = cluster.engine(peers)
    host = Host(engine, stack.enter_context(real_host()).kernel)
    outcome = host.look("start", 0.0)
    assert not outcome.failures, outcome.failures[0].error
    return Node(engine, host, peers)


def _from_etcd(stack: ExitStack, node: Node) -> None:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ovl-bench-")))
    server = stack.enter_context(running_etcd(directory))
    store, writer = EtcdStore([server.unix_url]), EtcdStore([server.unix_url])
    stack.callback(store.close)
    stack.callback(writer.close)
    cluster.fill(writer, node.peers)
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    worker = StoreWorker(store, cluster.KEYS, inbox.put)
    worker.start()
    stack.callback(worker.stop)
    node.hear(inbox.get(timeout=60))
    for number in range(EVENTS // 2):
        lease = cluster.peer(number * 7919 % node.peers, version=1 + number % 200)
        node.took_from_etcd.append(_us(lambda lease=lease: _put(writer, lease, inbox, node)))


def _put(writer: EtcdStore, lease: Lease, inbox: queue.SimpleQueue[Event], node: Node) -> None:
    writer.commit([], [Put(cluster.KEYS.lease(lease.subnets), codec.encode_lease(lease))])
    node.hear(inbox.get(timeout=60))


def _stored(lease: Lease, revision: int) -> Stored[Lease]:
    return Stored(cluster.KEYS.lease(lease.subnets), lease, revision, revision, 77)


def _us(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - start)
