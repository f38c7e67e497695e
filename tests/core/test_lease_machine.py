"""Leases under everything that can happen to hosts and to the store, in any order.

A state machine starts, kills and restarts agents, cuts them off, lets time pass, loses leases and empties the
store, and lets each agent take single steps in between, so that races are real. After every move no two
agents may both believe in one subnet; at the end, when all is calm, every living agent has one, as far as
there are enough.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from helpers.cluster import Member, put_network
from helpers.model import KEYS, engine, network
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from overlaynet.errors import LeaseNotFound, StoreUnavailable
from overlaynet.events import LeaseExpired, Relist, Renewed
from overlaynet.model import Identity, Lease
from overlaynet.ports import Commit, Compare, Delete, Grant, Listing, Notice, Put, Watch
from overlaynet.store import codec
from overlaynet.store.memory import MemoryStore

pytestmark = pytest.mark.fake

HOSTS = range(1, 5)
SUBNETS = 3
LEASE_TTL_S = 86_400
RENEW_EVERY_S = 5


class Link:
    """One agent's way to the store, which can be cut: calls fail, notices wait."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.cut = False
        self.held: list[Notice] = []
        self.sink: Callable[[Notice], None] | None = None

    def _through(self) -> MemoryStore:
        if self.cut:
            raise StoreUnavailable("cut off")
        return self.store

    def read(self, prefixes: Sequence[str]) -> Listing:
        return self._through().read(prefixes)

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        return self._through().commit(compares, writes)

    def grant(self, ttl_s: int) -> Grant:
        return self._through().grant(ttl_s)

    def keep_alive(self, lease_id: int) -> int:
        return self._through().keep_alive(lease_id)

    def time_to_live(self, lease_id: int) -> int:
        return self._through().time_to_live(lease_id)

    def revoke(self, lease_id: int) -> None:
        self._through().revoke(lease_id)

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> Watch:
        self.sink = sink
        return self._through().watch(prefixes, revision, self._hear)

    def _hear(self, notice: Notice) -> None:
        if self.cut:
            self.held.append(notice)
        elif self.sink:
            self.sink(notice)

    def mend(self) -> None:
        self.cut, held, self.held = False, self.held, []
        for notice in held:
            self._hear(notice)

    def close(self) -> None:
        """Nothing to close."""


class Host:
    """One machine: what its disk remembers, and its agent while one runs."""

    def __init__(self, number: int, store: MemoryStore) -> None:
        self.number, self.store = number, store
        self.link = Link(store)
        self.identity: Identity | None = None
        self.agent: Member | None = None
        self.displaced: set[str] = set()

    def start(self, now: float) -> None:
        self.link = Link(self.store)
        remembered = {"identity": self.identity} if self.identity else {}
        self.agent = Member(self.link, engine(self.number, **remembered), now)  # type: ignore[arg-type]
        self.agent.worker.submit = lambda *intents: self.agent and self.agent.todo.extend(intents)  # type: ignore[method-assign]

    def kill(self) -> None:
        """What the agent wrote to its disk is all that is left. Its watch goes with it."""
        assert self.agent
        self.remember()
        if self.agent.worker._watch:
            self.agent.worker._watch.cancel()
        self.agent = None

    def remember(self) -> None:
        """As the loop does after each turn."""
        if self.agent and self.agent.engine.lease:
            self.identity = self.agent.engine.local.identity

    def renew(self, now: float) -> None:
        """As the keep-alive's thread does."""
        if self.agent is None:
            return
        mind = self.agent.engine
        for lease_id in {mind.node_lease, mind.lease.lease_id if mind.lease else 0} - {0}:
            try:
                ttl_s = self.link.keep_alive(lease_id)
                self.agent.hear(Renewed(lease_id, ttl_s, now + ttl_s))
            except LeaseNotFound:
                self.agent.hear(LeaseExpired(lease_id))
            except StoreUnavailable:
                pass

    def step(self) -> bool:
        """One step; a listing that fails is tried again later."""
        if self.agent is None:
            return False
        waiting = self.agent.todo[0] if self.agent.todo and not self.agent.events else None
        if isinstance(waiting, Relist) and self.link.cut:
            return False
        moved = self.agent.step()
        self.remember()
        return moved


class Leases(RuleBasedStateMachine):
    """Four hosts and three subnets: somebody always wants what another has."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.cluster_id = 1
        self.store = MemoryStore()
        put_network(self.store, network(count=SUBNETS))
        self.hosts = {number: Host(number, self.store) for number in HOSTS}
        for host in list(self.hosts.values())[: SUBNETS - 1]:
            host.start(self.now)
        self._calm(RENEW_EVERY_S)

    @property
    def living(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.agent]

    # --- what happens ------------------------------------------------------------------------------

    @rule(number=st.sampled_from(HOSTS))
    def start(self, number: int) -> None:
        if not self.hosts[number].agent:
            self.hosts[number].start(self.now)

    @rule(number=st.sampled_from(HOSTS))
    def kill(self, number: int) -> None:
        if self.hosts[number].agent:
            self.hosts[number].kill()

    @rule(seed=st.integers(0, 999), steps=st.sampled_from([5, 20, 80, 80]))
    def take_steps_in_turn(self, seed: int, steps: int) -> None:
        chance = random.Random(seed)
        for _ in range(steps):
            self.hosts[chance.choice(HOSTS)].step()

    @rule(number=st.sampled_from(HOSTS), steps=st.sampled_from([3, 10, 40]))
    def take_steps_alone(self, number: int, steps: int) -> None:
        for _ in range(steps):
            self.hosts[number].step()

    @rule(number=st.sampled_from(HOSTS))
    def cut_or_mend(self, number: int) -> None:
        link = self.hosts[number].link
        if link.cut:
            link.mend()
        else:
            link.cut = True

    @rule(seconds=st.sampled_from([1, RENEW_EVERY_S, 30]))
    def pass_time(self, seconds: int) -> None:
        for _ in range(0, seconds, RENEW_EVERY_S):
            self._advance(min(seconds, RENEW_EVERY_S))

    @rule(number=st.sampled_from(HOSTS), other=st.sampled_from(HOSTS))
    def a_day_cut_off_while_another_starts(self, number: int, other: int) -> None:
        """The one that is cut off must not believe in its subnet when the other takes it."""
        if number == other:
            return
        self.hosts[number].link.cut = True
        self.pass_a_day()
        self.start(other)
        self.take_steps_alone(other, 60)

    @rule()
    def pass_a_day(self) -> None:
        """Longer than a subnet's lease lives: those who cannot renew lose theirs."""
        for _ in range(4):
            self._advance(LEASE_TTL_S / 3)

    def _advance(self, seconds: float) -> None:
        """All hear the clock before anybody acts: a renewal counts from when it was asked for."""
        self.now += seconds
        for host in self.living:
            assert host.agent
            host.agent.wait(self.now - host.agent.now)
        self.store.advance(seconds)
        for host in self.living:
            host.renew(self.now)

    @precondition(lambda self: any(host.agent for host in self.hosts.values()))
    @rule(number=st.sampled_from(HOSTS))
    def operator_deletes_a_lease(self, number: int) -> None:
        """Of a host that hears of it: of one that is cut off, two may believe in a subnet for a while. What a
        host takes for its lease may be another's by now, who would not hear of it."""
        host = self.hosts[number]
        if not host.agent or not host.agent.engine.lease or host.link.cut:
            return
        key, node_id = host.agent.engine.lease.key, host.agent.engine.local.identity.node_id
        if (key, node_id) in self._owners():
            self.store.commit([], [Delete(key)])
            self._hear_all(host)

    def _hear_all(self, host: Host) -> None:
        assert host.agent
        while host.agent.events:
            host.agent.step()

    @precondition(lambda self: not any(host.link.cut for host in self.hosts.values()))
    @rule()
    def store_is_emptied(self) -> None:
        """Everybody notices before anybody writes: of two hosts, one that knows and one that does not yet, both
        may believe in a subnet for as long as a watch takes to break."""
        self.cluster_id += 1
        self.store.replace(self.cluster_id)
        put_network(self.store, network(count=SUBNETS))
        for host in self.living:
            assert host.agent
            if Relist() in host.agent.todo:
                host.agent.todo.remove(Relist())
            self._hear_all(host)
            host.agent.todo.appendleft(Relist())
            host.step()
            self._hear_all(host)

    # --- what must hold ----------------------------------------------------------------------------

    @invariant()
    def follow_displacements(self) -> None:
        """Note what others have had since a host had it: old news of that may make it choose again later."""
        for key, owner in self._owners():
            for host in self.hosts.values():
                if host.identity and owner == host.identity.node_id:
                    host.displaced.discard(key)
                else:
                    host.displaced.add(key)

    @invariant()
    def nobody_shares_a_subnet(self) -> None:
        held = [
            subnet
            for host in self.living
            if host.agent and host.agent.engine.confirmed and host.agent.engine.lease
            for subnet in host.agent.engine.lease.value.subnets
        ]
        assert len(held) == len(set(held)), held

    def teardown(self) -> None:
        """When all is calm, each living host has a subnet, and the one it had last unless somebody took it."""
        for host in self.hosts.values():
            host.link.mend()
        before = {host.number: host.identity.subnets for host in self.living if host.identity}
        for seconds in [RENEW_EVERY_S] * 100 + [LEASE_TTL_S / 3] * 4 + [RENEW_EVERY_S] * 20:
            self._calm(seconds)
            self.follow_displacements()
        minds = [host.agent.engine for host in self.living if host.agent]
        whole = [mind for mind in minds if mind.confirmed]
        troubles = [problem.message for mind in minds for problem in mind.problems()]
        assert len(whole) == min(len(minds), SUBNETS), troubles
        for host in self.living:
            assert host.agent
            mind = host.agent.engine
            if mind not in whole:
                continue
            assert mind.lease
            mine = (mind.lease.key, mind.local.identity.node_id)
            assert mine in self._owners()
            if host.number in before and mind.lease.value.subnets != before[host.number]:
                key = KEYS.lease(before[host.number])
                assert key in host.displaced, f"{key} given up for nothing"
        self.nobody_shares_a_subnet()

    def _owners(self) -> set[tuple[str, str | None]]:
        """Keys of leases in the store, each with its owner's node id."""
        items = [codec.decode(item, KEYS) for item in self.store.read([KEYS.subnets]).items]
        return {(item.key, item.value.node_id) for item in items if isinstance(item.value, Lease)}

    def _calm(self, seconds: float) -> None:
        for _ in range(500):
            moved = [host.step() for host in self.living]
            if not any(moved):
                break
        else:
            raise AssertionError("somebody is busy for ever")
        self._advance(seconds)


TestLeases = pytest.mark.fake(Leases.TestCase)
TestLeases.settings = settings(max_examples=30, stateful_step_count=40)
