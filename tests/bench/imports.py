"""What the agent's modules cost to load, in time and memory, beside the two libraries it stands on."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence

from bench.measure import Row

ABOUT = "loading the agent; other: import pyroute2, etcd3"
ROUNDS = 7
OURS = "import overlaynet_agent.commands"
OTHER = "import pyroute2, etcd3"
PROGRAM = """
import time; begun = time.perf_counter()
{what}
taken = time.perf_counter() - begun
print(taken, open('/proc/self/status').read().partition('VmRSS:')[2].split()[0])
"""


def rows(_: Sequence[int]) -> Iterator[Row]:
    rounds = [(_load(OURS), _load(OTHER)) for _ in range(ROUNDS)]
    for what, unit, index, goal in (("time", "ms", 0, 0.5), ("resident", "MiB", 1, 0.7)):
        pairs = [(ours[index], other[index]) for ours, other in rounds]
        ours, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        yield Row(what, 0, ours, unit, other, statistics.median(a / b for a, b in pairs), goal)


def _load(what: str) -> tuple[float, float]:
    """Milliseconds and MiB, in an interpreter of its own."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(what=what)]
    seconds, kib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return 1e3 * float(seconds), int(kib) / 1024
