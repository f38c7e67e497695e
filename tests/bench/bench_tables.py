"""How long it takes to program peers, and to read them back, against iproute2 doing the same.

    python tests/bench/bench_tables.py [peers ...]

A peer is a neighbour, a forwarding entry and a route with a metric of its own. Ours is
`KernelAdapter.apply` on ready-made changes; theirs is `ip -batch` and `bridge -batch`, text and process
start included. Each round runs both, in turn, in new namespaces; the table holds medians in microseconds
a peer, and the ratio of each round's pair. Nothing is asserted: machines differ, ratios less so.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, ip_network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.kernel_hosts import PUBLIC, UNDERLAY, RealHost, real_host

from overlaynet.addr import Mac
from overlaynet.state import Change, Fdb, Link, Neigh, Object, Op, Route, Vxlan

ROUNDS = 5
VXLAN = Link("flannel.1", "vxlan", "overlaynet-vxlan", 1_450, None, Vxlan(1, 8472, PUBLIC.ip, UNDERLAY))


def changes(peers: int) -> list[Change]:
    """What an engine would hand over for so many peers: all of one kind, then all of the next."""
    found: list[list[Change]] = [[], [], []]
    for n in range(peers):
        base = IPv4Address("10.0.0.0") + 256 * n
        mac = Mac.from_bytes(b"\x02\x42" + base.packed)
        entries: tuple[Object, ...] = (
            Neigh("flannel.1", base, mac),
            Fdb("flannel.1", mac, IPv4Address("172.16.0.0") + n),
            Route(ip_network((base, 24)), "flannel.1", base, n + 1, onlink=True),
        )
        for kind, entry in zip(found, entries, strict=True):
            kind.append(Change(Op.PUT, entry))
    return [change for kind in found for change in kind]


def ours(host: RealHost, wanted: Sequence[Change]) -> None:
    failures = host.kernel.apply(wanted)
    assert not failures, failures[0].error


def theirs(host: RealHost, wanted: Sequence[Change]) -> None:
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


def read_ours(host: RealHost) -> None:
    host.kernel.observe()


def read_theirs(host: RealHost) -> None:
    for command in ("ip -j neigh show", "bridge -j fdb show", "ip -j route show table all"):
        json.loads(host.netns.run(command))


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(
    peers: int, wanted: Sequence[Change], write: Callable[[RealHost, Sequence[Change]], None]
) -> list[float]:
    """Microseconds a peer: write, write again, read by us, read by them."""
    with real_host() as host:
        assert not host.kernel.apply([Change(Op.PUT, VXLAN)])
        taken = [seconds(lambda: write(host, wanted)) for _ in range(2)]
        read_ours(host)
        taken += [seconds(lambda: read_ours(host)), seconds(lambda: read_theirs(host))]
    return [1e6 * t / peers for t in taken]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> None:
    say(f"{'peers':>7}  {'what':<14}{'ours':>9}{'iproute2':>10}{'ratio':>8}   us a peer, median of {ROUNDS}")
    for peers in [int(word) for word in sys.argv[1:]] or [1_000]:
        wanted = changes(peers)
        rounds = [(measured(peers, wanted, ours), measured(peers, wanted, theirs)) for _ in range(ROUNDS)]
        rows = {
            "write": [(a[0], b[0]) for a, b in rounds],
            "write again": [(a[1], b[1]) for a, b in rounds],
            "read": [(a[2], a[3]) for a, _ in rounds],
        }
        for what, pairs in rows.items():
            mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            say(f"{peers:>7}  {what:<14}{mine:>9.1f}{other:>10.1f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
