"""Rules of many services, three endpoints each, against iptables-restore given the same lines by hand.

Ours is `sync_firewall` with the real adapter, as the agent calls it: rendering, comparing and the program's
run. "full load" begins with an empty filter and includes reading back what was written; theirs is one
iptables-restore of the same input into another empty namespace. "one service changed" takes an endpoint from
one service and gives it back; theirs is the input that this makes, given to iptables-restore alone. "nothing
changed" is another round of the same policies, against iptables-save, which is what finding out by reading
costs. The bytes handed over for one changed service stand beside those of a full load.

The nft variant puts each new chain and rule into lists that it searches, so that its time for a full load grows
with the square of the rules: minutes for the largest size, which is left out unless it is asked for alone.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from unittest.mock import patch

from bench.measure import Cost, Row, compare, cost
from helpers.firewall_cases import WEB, restore, services
from helpers.private_netns import private_netns

from overlaynet.firewall.iptables import FLAVOURS, Flavour, Iptables
from overlaynet.firewall.restore import restore_text
from overlaynet.reconcile import sync_firewall
from overlaynet.state import Endpoint, Policy, ServicePortPolicy

ABOUT = "rules of services, 3 endpoints each; other: iptables-restore of the same lines"
ENDPOINTS = 3
NFT_LIMIT = 1_000
"""Services up to which the nft variant is tried beside others."""
CHANGES = 6
"""An even number: after the last one all is as it was."""
ROUNDS = {100: 5, 1_000: 3}
"""How often a size is done; larger ones once."""


@dataclass(frozen=True)
class Round:
    """One size in one variant, each thing done once; the changes several times."""

    load: Cost
    load_theirs: Cost
    change: Cost
    change_theirs: Cost
    same: Cost
    read: Cost
    bytes_load: int
    bytes_change: int


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    for count in sizes:
        for flavour in FLAVOURS:
            if flavour == "legacy" or count <= NFT_LIMIT or len(sizes) == 1:
                yield from _rows(count, flavour, [_round(count, flavour) for _ in range(ROUNDS.get(count, 1))])


def _rows(count: int, flavour: Flavour, rounds: Sequence[Round]) -> Iterator[Row]:
    ms = partial(compare, each=1_000, unit="ms")
    changes = [(r.change, r.change_theirs) for r in rounds]
    same = [(r.same, r.read) for r in rounds]
    small, large = rounds[0].bytes_change, rounds[0].bytes_load
    yield from ms(f"{flavour}: full load", count, [(r.load, r.load_theirs) for r in rounds])
    goal = (1.5 if flavour == "legacy" else 2) if count >= 1_000 else None
    yield from ms(f"{flavour}: one service changed", count, changes, goal=goal)
    yield from ms(f"{flavour}: nothing changed; other: iptables-save", count, same, goal=0.1)
    yield Row(f"{flavour}: one changed; other: full load", count, small, "bytes", large, small / large)


def _round(count: int, flavour: Flavour) -> Round:
    ports = [_port(number, ENDPOINTS) for number in range(count)]
    want = services(*ports)
    with _host() as lines:
        firewall = Iptables(flavour)
        load = cost(lambda: sync_firewall(firewall, want))
        bytes_load = firewall.bytes_written
        changes = list(_changes(firewall, want, count // 2))
        bytes_change = (firewall.bytes_written - bytes_load) // CHANGES
        same = cost(lambda: sync_firewall(firewall, dict(want), fresh=False))
        read = cost(lambda: subprocess.run([f"iptables-{flavour}-save", "-c"], capture_output=True, check=True))
    with _host():
        first, *rest = lines
        load_theirs = cost(lambda: restore(flavour, first, "--counters"))
        theirs = [cost(partial(restore, flavour, text, "--counters")) for text in rest]
    return Round(load, load_theirs, min(changes), min(theirs), same, read, bytes_load, bytes_change)


def _changes(firewall: Iptables, want: Mapping[str, Policy], number: int) -> Iterator[Cost]:
    """An endpoint of a service goes and comes back, again and again."""
    for turn in range(CHANGES):
        port = _port(number, ENDPOINTS - 1 + turn % 2)
        task = {**want, f"service {port.name}/{port.protocol}": port}
        yield cost(partial(sync_firewall, firewall, task, fresh=False))


@contextmanager
def _host() -> Iterator[list[str]]:
    """An empty namespace with a lock of its own. Answers the inputs that iptables-restore is given there."""
    seen: list[str] = []

    def keep(changes: object, present: object) -> str:
        seen.append(restore_text(changes, present))  # type: ignore[arg-type]
        return seen[-1]

    with tempfile.TemporaryDirectory() as folder, private_netns() as netns, netns.entered():
        lock = {"XTABLES_LOCKFILE": str(Path(folder) / "xtables.lock")}
        with patch.dict(os.environ, lock), patch("overlaynet.firewall.iptables.restore_text", keep):
            yield seen


def _port(number: int, endpoints: int) -> ServicePortPolicy:
    ips = [f"10.244.{1 + (number + i) % 250}.{2 + number // 250 % 250}" for i in range(endpoints)]
    return replace(
        WEB,
        service=f"default/web-{number}",
        cluster_ips=(ip_address("10.112.0.10") + number,),
        cluster=tuple(sorted((Endpoint(ip_address(ip), 8080) for ip in ips), key=str)),
        local=(),
    )
