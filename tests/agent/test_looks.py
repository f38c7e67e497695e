"""A full look that is read on another thread: what happens meanwhile is newer than it."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field

import pytest
from helpers.agent import agent
from helpers.eventually import eventually
from helpers.model import engine, kernel, key_of, lease, network, stored, vtep_mac
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.engine import Engine
from overlaynet.errors import KernelError
from overlaynet.events import Changed, Claimed, Gone, Synced
from overlaynet.model import Vtep
from overlaynet.ports import Noticed, Sighting
from overlaynet.reconcile import Reading, Reconciler
from overlaynet.state import ROUTE_PROTOCOL, Change, Fdb, Kind, Neigh, Object, Op, Route
from overlaynet.testing.fake_kernel import FakeKernel
from overlaynet_agent import host as host_module
from overlaynet_agent.host import Host
from overlaynet_agent.lookworker import Look, Looked, LookWorker

pytestmark = pytest.mark.fake

PEERS = (2, 3, 4)


def minded() -> Engine:
    """An engine with its own lease, and peers."""
    made = engine(1)
    made.handle(Synced(9, (stored(network()), *(stored(lease(n)) for n in PEERS))), 0.0)
    made.handle(Claimed(stored(lease(1))), 0.0)
    return made


@dataclass
class Bench:
    """A host after its first look. `unheard` are announcements that have not arrived yet, in order."""

    kernel: FakeKernel = field(default_factory=lambda: kernel(1))
    host: Host = field(init=False)
    unheard: deque[Noticed] = field(default_factory=deque)
    revision: int = 100
    now: float = 0.0

    def __post_init__(self) -> None:
        self.host = Host(minded(), self.kernel)
        self.host.look("start", self.now)

    def begin(self) -> Look:
        return self.host.begin_look("timer", self.now)

    def peer(self, number: int, version: int | None) -> None:
        """Etcd says that a peer has another MAC, or is gone. What was announced is heard first: an old "gone"
        about what nobody wants any more would be believed until the next look."""
        while self.unheard:
            self.hear()
        self.turn()
        self.revision += 1
        one = lease(number, vteps=(Vtep(4, 1, vtep_mac(90 + (version or 0))),))
        event = Gone(key_of(one), self.revision) if version is None else Changed(stored(one, self.revision))
        self.host.engine.handle(event, self.now)
        self.turn()

    def entries(self) -> list[Object]:
        seen = self.kernel.observe()
        routes = [route for route in seen.routes if route.protocol == ROUTE_PROTOCOL]
        return [obj for obj in (*seen.neighs, *seen.fdb, *routes) if obj.dev == "flannel.1"]

    def tamper(self, number: int, how: str) -> None:
        """Somebody else drops, alters or adds an entry; the kernel announces it, some time."""
        there = self.entries()
        if not there:
            return
        obj = there[number % len(there)]
        altered = obj if how == "drop" else _altered(obj)
        self.kernel.tamper(Change(Op.DROP if how == "drop" else Op.PUT, altered))
        found = None if how == "drop" else altered
        index = 0 if isinstance(obj, Route) else self.kernel.links["flannel.1"].ifindex
        self.unheard.append(Noticed({obj.key: Sighting(found, index)}))

    def lose(self, number: int) -> None:
        """An entry goes that the kernel does not tell of; nothing older is announced after it."""
        while self.unheard:
            self.hear()
        if there := self.entries():
            self.kernel.tamper(Change(Op.DROP, there[number % len(there)]))

    def refuse(self, kind: Kind) -> None:
        """The kernel does not do the next write of this kind."""
        self.kernel.fail_next(kind, errno.ENODEV)

    def hear(self) -> None:
        if self.unheard:
            self.host.hear(self.unheard.popleft(), self.now)

    def turn(self) -> None:
        """One turn of the loop, long after the one before: nobody has to wait for having fought too often."""
        self.now += 1_000
        self.host.follow(self.now)
        self.host.write_due(self.now)

    def come_to_rest(self) -> None:
        """A look lands whenever it does: what was repaired a moment ago and is suspected then has to wait."""
        self.turn()
        while self.unheard or self.host.due or self.host.drift.suspects or self.host.failures:
            self.hear()
            self.turn()

    def truth(self) -> Reading:
        return Reconciler(self.kernel).read(self.host.engine.desired.objects, self.host.networks)


def _altered(obj: Object) -> Object:
    match obj:
        case Neigh():
            return obj._replace(mac=vtep_mac(200))
        case Fdb():
            return obj._replace(dst=lease(99).public_ips[0])
        case Route():
            return obj._replace(via=None, onlink=False)
    raise TypeError(obj)


STEP = st.one_of(
    st.tuples(st.just("peer"), st.sampled_from(PEERS), st.sampled_from([None, 0, 1])),
    st.tuples(st.just("tamper"), st.integers(0, 20), st.sampled_from(["drop", "alter"])),
    st.tuples(st.just("refuse"), st.sampled_from([Kind.NEIGH, Kind.FDB, Kind.ROUTE])),
    st.tuples(st.just("hear")),
    st.tuples(st.just("turn")),
)
STEPS = st.lists(STEP, max_size=6)
LOSSES = st.lists(st.one_of(STEP, st.tuples(st.just("lose"), st.integers(0, 20))), max_size=6)


def carry_out(bench: Bench, steps: list[tuple]) -> None:
    for name, *arguments in steps:
        getattr(bench, name)(*arguments)


@given(LOSSES, STEPS, STEPS, STEPS)
def test_whatever_happens_during_a_look_ends_as_if_it_had_been_made_at_once(before, during, after, behind):
    """What happens from its beginning on is announced, so in the end nothing is wrong, and what is believed is
    what is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_module, "PART", 2)
        bench = Bench()
        carry_out(bench, before)
        look = bench.begin()
        carry_out(bench, during)
        reading = look.read()
        carry_out(bench, after)
        assert bench.host.land(Looked(look, reading), bench.now)
        carry_out(bench, behind)
        bench.come_to_rest()
        truth = bench.truth()
        assert truth.pending == ()
        assert bench.host.reconciler.cache == truth.cache


def test_reading_does_not_overwrite_what_was_announced_and_repaired_since():
    bench = Bench()
    look = bench.begin()
    bench.tamper(0, "drop")
    reading = look.read()
    bench.hear()
    bench.turn()
    written = bench.kernel.writes.total()
    bench.host.land(Looked(look, reading), bench.now)
    assert bench.kernel.writes.total() == written


def test_repair_that_was_refused_during_a_look_is_tried_again_after_it():
    """The look leaves it alone, as newer than itself, so it must not take it for settled either."""
    bench = Bench()
    look = bench.begin()
    bench.refuse(Kind.NEIGH)
    bench.tamper(0, "drop")
    bench.hear()
    bench.turn()
    assert len(bench.host.failures) == 1
    bench.host.land(Looked(look, look.read()), bench.now)
    assert len(bench.host.failures) == 1
    bench.turn()
    assert (bench.host.failures, bench.truth().pending) == ({}, ())


def test_what_is_wanted_anew_during_a_look_is_still_missed_by_it():
    """The peer's route stays as it was, and is gone without a word: that the peer has another MAC by now tells
    nothing of it."""
    bench = Bench()
    (route,) = [obj for obj in bench.entries() if str(getattr(obj, "dst", "")) == "10.244.2.0/24"]
    bench.kernel.tamper(Change(Op.DROP, route))
    look = bench.begin()
    reading = look.read()
    bench.peer(2, 1)
    bench.host.land(Looked(look, reading), bench.now)
    bench.come_to_rest()
    assert route in bench.entries()
    assert bench.truth().pending == ()


def test_what_is_not_wanted_any_more_is_not_written_from_an_old_reading():
    bench = Bench()
    bench.kernel.tamper(Change(Op.DROP, bench.entries()[0]))
    look = bench.begin()
    reading = look.read()
    assert reading.pending
    for number in PEERS:
        bench.peer(number, None)
    bench.host.land(Looked(look, reading), bench.now)
    bench.come_to_rest()
    assert bench.entries() == []


def test_look_is_written_in_parts_and_others_have_a_turn_between(monkeypatch):
    monkeypatch.setattr(host_module, "PART", 2)
    bench = Bench()
    for obj in bench.entries():
        bench.kernel.tamper(Change(Op.DROP, obj))
    look = bench.begin()
    bench.host.land(Looked(look, look.read()), bench.now)
    assert len(bench.entries()) == 2
    bench.come_to_rest()
    assert bench.truth().pending == ()
    assert bench.host.repaired.total() == 3 * len(PEERS)


def test_look_that_was_overtaken_is_made_again():
    bench = Bench()
    look = bench.begin()
    reading = look.read()
    bench.host.reconciler.observe(bench.host.engine.desired.objects, bench.host.networks)
    assert not bench.host.land(Looked(look, reading), bench.now)
    assert bench.host.drift.look == "timer"


def test_look_at_once_ends_the_one_under_way():
    bench = Bench()
    look = bench.begin()
    reading = look.read()
    bench.tamper(0, "drop")
    bench.host.look("repair", bench.now)
    assert not bench.host.land(Looked(look, reading), bench.now)
    assert (bench.host.drift.look, bench.host.looking, bench.truth().pending) == (None, None, ())


def test_kernel_that_cannot_be_read_is_told_and_looked_at_again(tmp_path):
    one = agent(tmp_path).start().until_ready()
    try:
        one.kernel.fail_next("observe", 5, times=2)
        looks = one.loop.host.looks
        one.loop.call(lambda loop: setattr(loop.host.drift, "look", "overrun"))
        eventually(lambda: one.loop.host.looks > looks and one.loop.host.blind is None)
    finally:
        one.stop()


def test_bug_in_a_reading_is_an_error_and_the_thread_lives_on():
    found: list[Looked] = []
    worker = LookWorker(found.append)
    worker.start()
    bench = Bench()
    good = bench.begin()
    worker.begin(Look(lambda: [][0], "timer", 0.0))
    worker.begin(good)
    eventually(lambda: len(found) == 2)
    worker.rest()
    worker.stop()
    assert isinstance(found[0].found, KernelError)
    assert isinstance(found[1].found, Reading)
