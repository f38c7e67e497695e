"""What every Store does. The fake must not be kinder than etcd, so both run the same tests."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from helpers.etcd import running_etcd
from helpers.eventually import eventually

from overlaynet.errors import Compacted, LeaseNotFound, StoreRefused, StoreUnavailable
from overlaynet.lab.remote_store import RemoteStore
from overlaynet.ports import Compare, Delete, KeyGone, KeyPut, Notice, Put, Store, WatchEnded
from overlaynet.probe.job import answer_line, checked
from overlaynet.probe.session import Session
from overlaynet.store.etcd import EtcdStore
from overlaynet.store.etcd.rpc import etcdrpc
from overlaynet.store.memory import MemoryStore

MANY = 12_000
DEADLINE_S = 20.0
"""For one call: other tests want the disk too, and what was given up may be done all the same."""
LASTS_S = 3_600
"""A lease that ran out beside another test would make a revision there."""


@dataclass(frozen=True)
class World:
    """A store to test, a prefix nobody else writes under, and what only the backend itself can do."""

    store: Store
    prefix: str
    another_client: Callable[[], Store]
    compact: Callable[[], None]
    let_expire: Callable[[int], None]

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def put(self, name: str, value: bytes = b"x", lease_id: int = 0) -> int:
        return self.store.commit([], [Put(self.key(name), value, lease_id)]).revision


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if shutil.which("etcd") is None:
        pytest.skip("the etcd program is not installed")
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server.url


numbers = itertools.count()


MEMORY = pytest.param("memory", marks=pytest.mark.fake)
ETCD = pytest.param("etcd", marks=pytest.mark.lab)
PROBE = pytest.param("probe", marks=pytest.mark.lab)
"""etcd as a machine's probe asks it: that cannot watch."""


@pytest.fixture(params=[MEMORY, ETCD, PROBE])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from _world(request)


@pytest.fixture(params=[MEMORY, ETCD])
def watched(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from _world(request)


def _world(request: pytest.FixtureRequest) -> Iterator[World]:
    prefix = f"/test-{next(numbers)}/"
    made = _memory(prefix) if request.param == "memory" else _etcd(prefix, request.getfixturevalue("etcd_url"))
    store = made.store
    if request.param == "probe":
        remote = _through_a_probe(store)
        made = replace(made, store=remote, another_client=lambda: remote)
    yield made
    store.close()


def _memory(prefix: str) -> World:
    store = MemoryStore()
    store.commit([], [Put("/elsewhere", b"1")])
    return World(store, prefix, lambda: store, store.compact, lambda ttl_s: store.advance(ttl_s))


def _etcd(prefix: str, url: str) -> World:
    store = EtcdStore([url], deadline_s=DEADLINE_S)

    def compact() -> None:
        member = store._connection.member
        member.kv.Compact(etcdrpc.CompactionRequest(revision=store.read([prefix]).revision), timeout=DEADLINE_S)

    return World(store, prefix, lambda: EtcdStore([url], deadline_s=DEADLINE_S), compact, lambda _: None)


def _through_a_probe(store: Store) -> Store:
    """All that passes is lines of JSON, as between this machine and another."""
    session = Session()
    session._etcd._store = store

    def ask(job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        return checked(json.loads(answer_line(session.answer(json.dumps(job).encode()))))

    return RemoteStore(ask)


class Sink:
    """Collects notices; `wait` answers them once there are as many."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def __call__(self, notice: Notice) -> None:
        self.notices.append(notice)

    def wait(self, count: int) -> list[Notice]:
        def enough() -> bool:
            assert len(self.notices) >= count, f"{len(self.notices)} of {count}: {self.notices}"
            return True

        eventually(enough, deadline_s=20)
        return list(self.notices)


def told(notices: list[Notice], prefix: str = "") -> list[str]:
    """Notices in short: "+name" and "-name"."""
    words = {KeyPut: "+", KeyGone: "-", WatchEnded: "!"}
    keys = [n.item.key if isinstance(n, KeyPut) else n.key for n in notices if not isinstance(n, WatchEnded)]
    return [words[type(n)] + key.removeprefix(prefix) for n, key in zip(notices, keys, strict=True)]


# --- read and commit ------------------------------------------------------------------------------


def test_listing_holds_values_revisions_and_leases(world: World) -> None:
    lease = world.store.grant(LASTS_S).lease_id
    first = world.put("a", b"1")
    second = world.put("a", b"2", lease)
    (item,) = world.store.read([world.prefix]).items
    assert (item.key, item.value, item.lease_id) == (world.key("a"), b"2", lease)
    assert (item.create_revision, item.mod_revision) == (first, second)


def test_listing_of_several_prefixes_is_at_one_revision(world: World) -> None:
    world.put("a/1")
    revision = world.put("b/1")
    listing = world.store.read([world.key("a/"), world.key("b/")])
    assert [kv.key for kv in listing.items] == [world.key("a/1"), world.key("b/1")]
    assert listing.revision == revision
    assert listing.cluster_id != 0


def test_prefix_with_slash_lists_what_is_under_it_alone(world: World) -> None:
    for name in ("subnets", "subnets/1", "subnets-old/1", "subnetsX"):
        world.put(name)
    assert [kv.key for kv in world.store.read([world.key("subnets/")]).items] == [world.key("subnets/1")]
    assert [kv.key for kv in world.store.read([world.key("subnets")]).items] == [world.key("subnets")]


def test_listing_of_many_keys_is_complete(world: World) -> None:
    for start in range(0, MANY, 120):
        puts = [Put(world.key(f"{n:06}"), b"v" * 100) for n in range(start, start + 120)]
        world.store.commit([], puts)
    assert len(world.store.read([world.prefix]).items) == MANY


def test_transaction_without_writes_compares_and_makes_no_revision(world: World) -> None:
    revision = world.put("a")
    assert world.store.commit([Compare(world.key("a"), revision)], []).ok
    answer = world.store.commit([Compare(world.key("a"), revision - 1)], [])
    assert (answer.ok, [item.mod_revision for item in answer.current]) == (False, [revision])
    assert world.store.read([]).revision == revision


def test_one_transaction_is_one_revision(world: World) -> None:
    before = world.put("a")
    commit = world.store.commit(
        [], [Put(world.key("b"), b"1"), Put(world.key("c"), b"1"), Delete(world.key("a"))]
    )
    assert commit.ok
    assert commit.revision == before + 1
    assert {kv.mod_revision for kv in world.store.read([world.prefix]).items} == {before + 1}


def test_failed_comparison_writes_nothing_and_answers_what_is_there(world: World) -> None:
    held = world.put("held", b"theirs")
    compares = [Compare(world.key("held"), 0), Compare(world.key("free"), 0)]
    commit = world.store.commit(compares, [Put(world.key("free"), b"mine"), Put(world.key("held"), b"mine")])
    assert not commit.ok
    assert [(kv.key, kv.value, kv.mod_revision) for kv in commit.current] == [
        (world.key("held"), b"theirs", held)
    ]
    assert [kv.key for kv in world.store.read([world.prefix]).items] == [world.key("held")]


def test_comparison_with_present_revision_holds(world: World) -> None:
    revision = world.put("a")
    assert world.store.commit([Compare(world.key("a"), revision)], [Delete(world.key("a"))]).ok
    assert world.store.read([world.prefix]).items == ()


def test_deleting_what_is_not_there_changes_nothing(world: World) -> None:
    revision = world.put("a")
    commit = world.store.commit([], [Delete(world.key("b"))])
    assert commit.ok
    assert world.store.read([world.prefix]).revision == revision


def test_writing_a_key_twice_in_one_transaction_is_refused(world: World) -> None:
    with pytest.raises(StoreRefused):
        world.store.commit([], [Put(world.key("a"), b"1"), Put(world.key("a"), b"2")])
    with pytest.raises(StoreRefused):
        world.store.commit([], [Put(world.key("a"), b"1"), Delete(world.key("a"))])
    assert world.store.read([world.prefix]).items == ()


def test_a_transaction_that_is_too_long_is_refused(world: World) -> None:
    puts = [Put(world.key(str(n)), b"") for n in range(129)]
    assert world.store.commit([], puts[:128]).ok
    with pytest.raises(StoreRefused):
        world.store.commit([], puts)


def test_of_two_clients_claiming_a_key_exactly_one_wins(world: World) -> None:
    clients = [world.another_client() for _ in range(4)]
    won: list[str] = []
    barrier = threading.Barrier(len(clients))

    def claim(name: str, store: Store) -> None:
        barrier.wait()
        keys = [world.key(letter) for letter in "abcdef"]
        won.extend(f"{k} {name}" for k in keys if store.commit([Compare(k, 0)], [Put(k, name.encode())]).ok)

    threads = [threading.Thread(target=claim, args=(f"n{i}", store)) for i, store in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holders = [f"{kv.key} {kv.value.decode()}" for kv in world.store.read([world.prefix]).items]
    assert sorted(won) == holders
    for client in clients:
        client.close()


# --- watch ----------------------------------------------------------------------------------------


def test_watch_tells_puts_and_deletes_with_their_revisions(watched: World) -> None:
    sink = Sink()
    revision = watched.put("a/1", b"old")
    watched.store.watch([watched.key("a/")], revision + 1, sink)
    put = watched.put("a/2", b"new")
    watched.put("b/1")
    gone = watched.store.commit([], [Delete(watched.key("a/1"))]).revision
    notices = sink.wait(2)
    assert told(notices, watched.prefix) == ["+a/2", "-a/1"]
    assert isinstance(notices[0], KeyPut)
    assert (notices[0].item.value, notices[0].item.mod_revision) == (b"new", put)
    assert notices[1] == KeyGone(watched.key("a/1"), gone)


def test_watch_that_has_caught_up_keeps_the_order_across_prefixes(watched: World) -> None:
    sink, prefixes = Sink(), [watched.key(f"{name}/") for name in "abc"]
    start = watched.put("a/start")
    watched.put("b/start")
    watched.put("c/start")
    watched.store.watch(prefixes, start, sink)
    sink.wait(3)
    names = [f"{name}/{number}" for number in range(20) for name in "cab"]
    for name in names:
        watched.put(name)
    assert told(sink.wait(63)[3:], watched.prefix) == [f"+{name}" for name in names]


def test_watch_from_the_past_tells_of_every_prefix(watched: World) -> None:
    sink = Sink()
    revision = watched.put("b/1")
    watched.put("a/1")
    watched.put("b/2")
    watched.store.watch([watched.key("a/"), watched.key("b/")], revision, sink)
    notices = told(sink.wait(3), watched.prefix)
    assert [n for n in notices if "b" in n] == ["+b/1", "+b/2"]
    assert "+a/1" in notices


def test_watch_from_the_past_tells_what_happened_since(watched: World) -> None:
    revision = watched.put("a", b"1")
    watched.put("a", b"2")
    watched.store.commit([], [Delete(watched.key("a"))])
    sink = Sink()
    watched.store.watch([watched.prefix], revision, sink)
    assert told(sink.wait(3), watched.prefix) == ["+a", "+a", "-a"]


def test_watch_of_one_key_ignores_longer_ones(watched: World) -> None:
    sink = Sink()
    revision = watched.put("other")
    watched.store.watch([watched.key("config")], revision + 1, sink)
    watched.put("config-old")
    watched.put("config/x")
    watched.put("config")
    assert told(sink.wait(1), watched.prefix) == ["+config"]


def test_cancelled_watch_is_silent(watched: World) -> None:
    cancelled, kept = Sink(), Sink()
    revision = watched.put("a")
    watch = watched.store.watch([watched.prefix], revision + 1, cancelled)
    watched.store.watch([watched.prefix], revision + 1, kept)
    watched.put("b")
    cancelled.wait(1)
    watch.cancel()
    watch.cancel()
    watched.put("c")
    kept.wait(2)
    assert told(cancelled.notices, watched.prefix) == ["+b"]


def test_watch_of_compacted_history_ends_so(watched: World) -> None:
    sink = Sink()
    revision = watched.put("a", b"1")
    watched.put("a", b"2")
    watched.put("a", b"3")
    watched.compact()
    watched.store.watch([watched.prefix], revision, sink)
    (ended,) = sink.wait(1)
    assert isinstance(ended, WatchEnded)
    assert isinstance(ended.error, Compacted)


def test_watch_after_compaction_goes_on_from_a_new_listing(watched: World) -> None:
    sink = Sink()
    watched.put("a", b"1")
    watched.compact()
    watched.store.watch([watched.prefix], watched.store.read([watched.prefix]).revision + 1, sink)
    watched.put("b")
    assert told(sink.wait(1), watched.prefix) == ["+b"]


def test_a_sink_may_call_the_store(watched: World) -> None:
    answers = Sink()

    def answer(notice: Notice) -> None:
        answers(notice)
        if isinstance(notice, KeyPut) and notice.item.key == watched.key("question"):
            watched.put("answer")

    watched.store.watch([watched.prefix], watched.put("start") + 1, answer)
    watched.put("question")
    assert told(answers.wait(2), watched.prefix) == ["+question", "+answer"]


# --- leases ---------------------------------------------------------------------------------------


def test_lease_keeps_living_when_renewed(world: World) -> None:
    grant = world.store.grant(LASTS_S)
    assert grant.ttl_s == LASTS_S
    assert world.store.keep_alive(grant.lease_id) == LASTS_S
    assert 0 < world.store.time_to_live(grant.lease_id) <= LASTS_S


def test_revoked_lease_takes_its_keys_in_one_revision(watched: World) -> None:
    lease = watched.store.grant(LASTS_S).lease_id
    watched.put("a", lease_id=lease)
    revision = watched.put("b", lease_id=lease)
    watched.put("stays")
    sink = Sink()
    watched.store.watch([watched.prefix], revision + 2, sink)
    watched.store.revoke(lease)
    assert sorted(told(sink.wait(2), watched.prefix)) == ["-a", "-b"]
    assert {n.revision for n in sink.notices if isinstance(n, KeyGone)} == {revision + 2}
    assert [kv.key for kv in watched.store.read([watched.prefix]).items] == [watched.key("stays")]


def test_key_put_without_its_lease_outlives_it(world: World) -> None:
    lease = world.store.grant(LASTS_S).lease_id
    world.put("a", lease_id=lease)
    world.put("a")
    world.store.revoke(lease)
    assert [kv.lease_id for kv in world.store.read([world.prefix]).items] == [0]


def test_lease_that_is_not_renewed_runs_out_and_takes_its_keys_in_one_revision(watched: World) -> None:
    grant = watched.store.grant(4)
    watched.put("a", lease_id=grant.lease_id)
    revision = watched.put("b/1", lease_id=grant.lease_id)
    sink = Sink()
    watched.store.watch([watched.prefix], revision + 1, sink)
    watched.let_expire(grant.ttl_s)
    notices = sink.wait(2)
    assert sorted(told(notices, watched.prefix)) == ["-a", "-b/1"]
    assert {notice.revision for notice in notices} == {revision + 1}
    for call in (watched.store.keep_alive, watched.store.time_to_live):
        with pytest.raises(LeaseNotFound):
            call(grant.lease_id)


def test_unknown_lease_is_named_as_such(world: World) -> None:
    for call in (world.store.keep_alive, world.store.time_to_live):
        with pytest.raises(LeaseNotFound):
            call(0x123456)
    with pytest.raises(LeaseNotFound):
        world.put("a", lease_id=0x123456)
    world.store.revoke(0x123456)
    assert world.store.read([world.prefix]).items == ()


def test_closed_store_is_unavailable_and_its_watches_are_silent(watched: World) -> None:
    sink = Sink()
    watched.store.watch([watched.prefix], watched.put("a") + 1, sink)
    watched.store.close()
    watched.store.close()
    with pytest.raises(StoreUnavailable):
        watched.store.read([watched.prefix])
    with pytest.raises(StoreUnavailable):
        watched.store.keep_alive(1)
    assert sink.notices == []
