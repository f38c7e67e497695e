"""How long things took: counts by bucket, as a Prometheus histogram wants them.

The client library has histograms too, but importing it costs 0.2 s and some megabytes; it is imported only
when somebody asks for the metrics.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the buckets, in seconds; the last bucket has none."""


class Durations:
    """One histogram; any thread may add to it."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measures the block, however it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    def add(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(BOUNDS_S, seconds)] += 1
            self._sum_s += seconds

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulated counts by upper end (the last is ``+Inf``), and the sum in seconds."""
        with self._lock:
            counts, total_s = list(self._counts), self._sum_s
        ends = [*map(str, BOUNDS_S), "+Inf"]
        return [(end, float(sum(counts[: i + 1]))) for i, end in enumerate(ends)], total_s
