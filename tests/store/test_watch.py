"""A watch that trips over something of ours: whoever waits for its news is told to list again."""

from __future__ import annotations

import queue
from types import SimpleNamespace

import pytest

from overlaynet.ports import Notice, WatchEnded
from overlaynet.store.etcd import watch

pytestmark = pytest.mark.unit


def test_watch_that_fails_by_a_bug_ends_and_says_so(monkeypatch: pytest.MonkeyPatch):
    def trip(_: watch.EtcdWatch) -> None:
        raise KeyError("a watcher that nobody made")

    monkeypatch.setattr(watch.EtcdWatch, "_follow", trip)
    monkeypatch.setattr(watch, "MAX_RECONNECT_S", 0.0)
    heard: queue.SimpleQueue[Notice] = queue.SimpleQueue()
    made = watch.EtcdWatch(SimpleNamespace(closed=False), ["/overlaynet/"], 1, heard.put)  # type: ignore[arg-type]
    ended = heard.get(timeout=20)
    made.cancel()
    assert isinstance(ended, WatchEnded)
    assert "a watcher that nobody made" in ended.error.evidence
