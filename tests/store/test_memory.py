"""What the store in memory offers to tests beyond the contract."""

from __future__ import annotations

import threading

import pytest

from overlaynet.errors import Compacted, LeaseNotFound, StoreUnavailable
from overlaynet.ports import KeyPut, Notice, Put, WatchEnded
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.fake


def test_injected_failures_come_once_each_and_change_nothing() -> None:
    store = MemoryStore()
    store.fail_next(StoreUnavailable("no answer"), times=2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="no answer"):
            store.commit([], [Put("/a", b"1")])
    assert store.read(["/a"]).items == ()
    assert store.commit([], [Put("/a", b"1")]).ok


def test_notices_are_held_back_and_then_come_in_order() -> None:
    store, notices = MemoryStore(), list[Notice]()
    store.watch(["/a/"], 1, notices.append)
    store.hold()
    for number in range(3):
        store.commit([], [Put(f"/a/{number}", b"")])
    assert notices == []
    store.release()
    assert [n.item.key for n in notices if isinstance(n, KeyPut)] == ["/a/0", "/a/1", "/a/2"]


def test_time_stands_still_until_it_is_moved() -> None:
    store = MemoryStore()
    lease = store.grant(10).lease_id
    store.advance(9)
    assert store.time_to_live(lease) == 1
    assert store.keep_alive(lease) == 10
    store.advance(9)
    store.advance(1)
    with pytest.raises(LeaseNotFound):
        store.keep_alive(lease)


def test_another_cluster_is_empty_and_ends_watches() -> None:
    store, notices = MemoryStore(), list[Notice]()
    before = store.read(["/a"])
    store.commit([], [Put("/a", b"1")])
    store.watch(["/a"], 3, notices.append)
    store.replace(cluster_id=2)
    (ended,) = notices
    assert isinstance(ended, WatchEnded)
    assert isinstance(ended.error, Compacted)
    after = store.read(["/a"])
    assert (after.items, after.revision, after.cluster_id) == ((), 1, 2)
    assert before.cluster_id == 1


def test_ended_watch_is_told_so_once() -> None:
    store, notices = MemoryStore(), list[Notice]()
    store.watch(["/a"], 1, notices.append)
    store.end_watches(StoreUnavailable("gone"))
    store.end_watches(StoreUnavailable("gone"))
    store.commit([], [Put("/a", b"1")])
    assert [type(notice) for notice in notices] == [WatchEnded]


def test_writers_in_many_threads_are_told_in_the_order_of_revisions() -> None:
    store, notices = MemoryStore(), list[Notice]()
    store.watch(["/a/"], 1, notices.append)

    def write(name: int) -> None:
        for number in range(50):
            store.commit([], [Put(f"/a/{name}/{number}", b"")])

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    revisions = [n.item.mod_revision for n in notices if isinstance(n, KeyPut)]
    assert revisions == list(range(2, 202))
