"""A store that counts how long its calls take and which of them failed, whoever makes them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from overlaynet.errors import OverlayError
from overlaynet.ports import Commit, Compare, Delete, Grant, Listing, Notice, Put, Store, Watch
from overlaynet_agent.durations import Durations


class TimedStore:
    """`ports.Store`, with `durations` by call and `failures` by call and error code."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.durations: defaultdict[str, Durations] = defaultdict(Durations)
        self.failures: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        with self.durations[call].timed():
            try:
                yield
            except OverlayError as error:
                self.failures[call, error.code] += 1
                raise

    def read(self, prefixes: Sequence[str]) -> Listing:
        with self._timed("read"):
            return self._store.read(prefixes)

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> Watch:
        return self._store.watch(prefixes, revision, sink)

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        with self._timed("commit"):
            return self._store.commit(compares, writes)

    def grant(self, ttl_s: int) -> Grant:
        with self._timed("grant"):
            return self._store.grant(ttl_s)

    def keep_alive(self, lease_id: int) -> int:
        with self._timed("keep_alive"):
            return self._store.keep_alive(lease_id)

    def time_to_live(self, lease_id: int) -> int:
        with self._timed("time_to_live"):
            return self._store.time_to_live(lease_id)

    def revoke(self, lease_id: int) -> None:
        with self._timed("revoke"):
            self._store.revoke(lease_id)

    def close(self) -> None:
        self._store.close()
