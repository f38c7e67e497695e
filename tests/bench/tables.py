"""Programming peers and reading them back, against iproute2 doing the same with the same objects.

A peer is a neighbour, a forwarding entry and a route. Ours is `KernelAdapter.apply` on ready-made changes
and `KernelAdapter.observe`; theirs are `ip -batch` and `bridge -batch`, and ``ip -j`` with `json.loads`, text
and process start included. "as flannel" gives every route the same metric, as flannel does, which makes
each insert walk all the others. "look" is `Reconciler.look` over a host that is as it should be: the kernel
is read, sorted by owner and compared, and nothing is written.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench import cluster
from bench.measure import ROUNDS, Cost, Row, compare, cost
from helpers.kernel_hosts import RealHost, real_host

from overlaynet.core.engine import Engine
from overlaynet.reconcile import Outcome, Reconciler
from overlaynet.state import Change, Fdb, Neigh, Op, Route, kind_of

ABOUT = "programming and reading tables; other: iproute2"
FLANNEL_LIMIT = 5_000
"""Peers up to which equal metrics are tried: beyond, one round takes minutes."""


@dataclass(frozen=True)
class Round:
    """One size, each thing done once."""

    write: Cost
    write_again: Cost
    read: Cost
    look: Cost
    ip_write: Cost
    ip_write_again: Cost
    ip_read: Cost
    flannel_write: Cost | None


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    first: list[Round] = []
    for peers in sizes:
        engine = cluster.engine(peers)
        rounds = [_round(peers, engine) for _ in range(ROUNDS)]
        yield from _rows(peers, rounds)
        first = first or rounds
        if rounds is not first:
            yield _growth(sizes[0], first, peers, rounds)


def _rows(peers: int, rounds: list[Round]) -> Iterator[Row]:
    pairs = {
        ("write", 0.5): [(r.write, r.ip_write) for r in rounds],
        ("write again", None): [(r.write_again, r.ip_write_again) for r in rounds],
        ("write; other: as flannel", 0.25 if peers >= 5_000 else None): [
            (r.write, r.flannel_write) for r in rounds if r.flannel_write is not None
        ],
        ("read", 0.6): [(r.read, r.ip_read) for r in rounds],
        ("look, nothing to do; other: our write", 0.7): [(r.look, r.write) for r in rounds],
    }
    for (what, goal), measured in pairs.items():
        if measured:
            yield from compare(what, peers, measured, goal=goal, each=peers)


def _growth(few: int, first: list[Round], many: int, rounds: list[Round]) -> Row:
    """A peer's cost among many, against its cost among few."""
    pairs = [
        (Cost(b.write.wall / many, 0.0), Cost(a.write.wall / few, 0.0))
        for a, b in zip(first, rounds, strict=True)
    ]
    return compare(f"write; other: ours at {few}", many, pairs, goal=1.5)[0]


def _round(peers: int, engine: Engine) -> Round:
    """Ours, theirs, flannel's, each in a new namespace."""
    wanted = [Change(Op.PUT, obj) for obj in cluster.of_peers(list(engine.desired.objects.values()))]
    assert len(wanted) == 3 * peers
    with _host(engine) as host:
        write, again = (cost(lambda: _ours(host, wanted)) for _ in range(2))
        host.kernel.observe()
        read = cost(host.kernel.observe)
        look = _look(host, engine)
        ip_read = cost(lambda: _read_theirs(host))
    with _host(engine) as host:
        ip_write, ip_again = (cost(lambda: _theirs(host, wanted)) for _ in range(2))
    flannel = _flannel(engine, wanted) if peers <= FLANNEL_LIMIT else None
    return Round(write, again, read, look, ip_write, ip_again, ip_read, flannel)


def _flannel(engine: Engine, wanted: Sequence[Change]) -> Cost:
    equal = [c._replace(obj=c.obj._replace(metric=1)) if isinstance(c.obj, Route) else c for c in wanted]
    with _host(engine) as host:
        return cost(lambda: _theirs(host, equal))


@contextmanager
def _host(engine: Engine) -> Iterator[RealHost]:
    """A host in which all but the peers is in place."""
    base = {k: obj for k, obj in engine.desired.objects.items() if kind_of(k) not in cluster.TABLES}
    with real_host() as host:
        assert not Reconciler(host.kernel).look(base, cluster.NETWORK.networks).failures
        yield host


def _look(host: RealHost, engine: Engine) -> Cost:
    """The second look of a Reconciler, which finds everything as it left it."""
    reconciler, outcomes = Reconciler(host.kernel), list[Outcome]()

    def look() -> None:
        outcomes.append(reconciler.look(engine.desired.objects, cluster.NETWORK.networks))

    look()
    taken = cost(look)
    assert not any(outcome.changes for outcome in outcomes), outcomes[0].changes[:3]
    return taken


def _ours(host: RealHost, wanted: Sequence[Change]) -> None:
    failures = host.kernel.apply(wanted)
    assert not failures, failures[0].error


def _theirs(host: RealHost, wanted: Sequence[Change]) -> None:
    lines: dict[str, list[str]] = {"ip": [], "bridge": []}
    for _, obj, _ in wanted:
        match obj:
            case Neigh(dev, ip, mac):
                lines["ip"].append(f"neigh replace {ip} lladdr {mac} dev {dev} nud permanent")
            case Fdb(dev, mac, dst):
                lines["bridge"].append(f"fdb replace {mac} dev {dev} dst {dst} self permanent")
            case Route(dst, dev, via, metric):
                lines["ip"].append(f"route replace {dst} via {via} dev {dev} onlink metric {metric} proto 111")
    for tool, text in lines.items():
        subprocess.run([tool, "-batch", "-"], input="\n".join(text) + "\n", text=True, check=True)


def _read_theirs(host: RealHost) -> None:
    for command in ("ip -j neigh show", "bridge -j fdb show", "ip -j route show table all"):
        json.loads(host.netns.run(command))
