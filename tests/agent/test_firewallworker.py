"""The thread that writes rules: when it does, with which sets and connections, and what it makes up for."""

from __future__ import annotations

import errno
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from helpers.eventually import eventually
from helpers.flows import flow

from overlaynet.core.backoff import delay
from overlaynet.core.flows import Cleanup
from overlaynet.errors import FirewallBusy, FirewallError, KernelError
from overlaynet.reconcile import ServiceDoors, forget_flows, sync_firewall
from overlaynet.state import Endpoint, Policy, ServicePortPolicy, ServicesPolicy
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_services import FakeConntrack, FakeSets
from overlaynet_agent.firewallworker import FirewallDone, FirewallWorker, Task

pytestmark = pytest.mark.fake

NETWORK = ip_network("10.112.0.0/16")
DEAD = flow("udp", "10.244.1.7:4000", "10.112.0.10:53", "10.244.9.9:53")
TO_FIRST = flow("udp", "10.244.1.7:4001", "10.112.0.10:53", "10.244.1.2:53")
"""To the endpoint of number 1."""
NEVER = 1_000.0
"""Seconds of rest that no test sees the end of."""


def wanted(*hosts: int, affinity_s: int = 0) -> dict[str, Policy]:
    """One UDP service with endpoints of these numbers."""
    chosen = tuple(Endpoint(ip_address(f"10.244.{host}.2"), 53) for host in hosts)
    port = ServicePortPolicy(
        "default/dns", "", "udp", 53, cluster_ips=(ip_address("10.112.0.10"),), affinity_s=affinity_s,
        cluster=chosen, usable=bool(chosen), serving=frozenset(chosen),
    )  # fmt: skip
    return {"service default/dns/udp": port, "services": ServicesPolicy((NETWORK,))}


class Bench:
    """A worker on fakes."""

    def __init__(self, min_sync_s: float = 0.0) -> None:
        self.rules, self.sets, self.flows = FakeFirewall(), FakeSets(), FakeConntrack()
        self.posted: queue.SimpleQueue[FirewallDone] = queue.SimpleQueue()
        doors = ServiceDoors(self.sets, self.flows)
        self.worker = FirewallWorker(self.rules, self.posted.put, doors, min_sync_s)

    def ask(self, want: Mapping[str, Policy], why: str = "event", *, additions_only: bool = False) -> None:
        self.worker.want(Task(want, additions_only, why=why, networks=(NETWORK,)))

    def done(self) -> FirewallDone:
        return self.posted.get(timeout=20)

    def round(self, want: Mapping[str, Policy], why: str = "event") -> FirewallDone:
        self.ask(want, why)
        return self.done()

    def leads_to(self, host: int) -> bool:
        lines = [line.text for rules in self.rules.observe().chains.values() for line in rules]
        return any(f"10.244.{host}.2:53" in text for text in lines)


@contextmanager
def working(min_sync_s: float = 0.0) -> Iterator[Bench]:
    bench = Bench(min_sync_s)
    bench.worker.start()
    try:
        yield bench
    finally:
        bench.worker.stop()


# --- when -----------------------------------------------------------------------------------------


def test_a_change_after_a_quiet_time_is_written_at_once_and_the_next_one_waits():
    with working(NEVER) as bench:
        assert bench.round(wanted(1)).outcome.changes
        bench.ask(wanted(2))
        bench.ask(wanted(3))
        assert not bench.leads_to(2)
        assert not bench.leads_to(3)


def test_a_further_attempt_and_a_repair_do_not_wait():
    with working(NEVER) as bench:
        bench.round(wanted(1))
        assert bench.round(wanted(2), "retry").outcome.changes
        assert bench.round(wanted(3), "release").outcome.changes


def test_a_hundred_changes_in_a_row_are_few_rounds():
    changes = [wanted(number) for number in range(100)]
    with working(0.2) as bench:
        for want in changes:
            bench.ask(want)
        eventually(lambda: bench.leads_to(99))
        assert bench.rules.restores["nat"] <= 10


def test_a_shorter_rest_holds_from_the_next_change_on():
    with working(NEVER) as bench:
        bench.round(wanted(1))
        bench.worker.min_sync_s = 0.0
        assert bench.round(wanted(2)).outcome.changes


def test_stopping_does_not_wait_for_a_rest():
    with working(NEVER) as bench:
        bench.round(wanted(1))
        bench.ask(wanted(2))


def test_refused_rules_are_tried_again_from_tens_of_milliseconds_on():
    waits = [delay(attempt, 0.0, 0.02) for attempt in range(1, 6)]
    assert waits == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32])
    assert delay(40, 0.0, 0.02) == 30


# --- connections ----------------------------------------------------------------------------------


def test_connections_are_forgotten_after_the_rules_are_written():
    with working() as bench:
        bench.flows.table = [DEAD]
        assert bench.round(wanted(1)).forgotten.deleted == 1
        assert bench.flows.table == []


def test_the_table_is_read_only_if_something_matters_to_it():
    with working() as bench:
        bench.round(wanted(1))
        bench.flows.dumps.clear()
        bench.round(wanted(1, affinity_s=10))
        assert bench.flows.dumps == []
        bench.round(wanted(2))
        assert bench.flows.dumps == [frozenset({"udp"})]


def test_a_deletion_that_failed_is_made_up_for_by_the_next_round_whatever_that_is_for():
    with working() as bench:
        bench.round(wanted(1))
        bench.flows.table = [TO_FIRST, DEAD]
        bench.flows.fail(KernelError("it", errno.EBUSY))
        failed = bench.round(wanted(2))
        assert (failed.error, failed.forgotten.deleted) == (None, 1)
        assert isinstance(failed.forgotten.error, KernelError)
        again = bench.round(wanted(2), "retry").forgotten
        assert (again.deleted, again.error) == (1, None)
        assert bench.flows.table == []


def test_connections_are_owed_while_rules_are_refused():
    with working() as bench:
        bench.round(wanted(1))
        bench.flows.table = [TO_FIRST]
        bench.rules.fail(FirewallBusy("somebody holds the lock"))
        assert bench.round(wanted(2)).error
        assert bench.flows.table
        assert bench.round(wanted(2), "retry").forgotten.deleted == 1


def test_nothing_is_forgotten_before_the_store_was_read():
    with working() as bench:
        bench.flows.table = [DEAD]
        bench.ask(wanted(1), additions_only=True)
        assert not bench.done().forgotten.looked
        assert bench.round(wanted(1)).forgotten.deleted == 1


def test_connections_that_began_while_rules_were_wrong_are_judged_after_the_repair():
    with working() as bench:
        bench.round(wanted(1))
        bench.flows.table = [flow("udp", "10.244.1.7:4000", "10.112.0.10:53")]
        bench.rules.restore(
            "*nat\n-F OVL-SERVICES\nCOMMIT\n".replace("-F OVL-SERVICES", ":OVL-SERVICES - [0:0]")
        )
        repair = bench.done()
        assert (repair.why, bool(repair.outcome.changes), repair.forgotten.deleted) == ("poll", True, 1)


def test_a_kernel_without_conntrack_serves_all_the_same():
    rules = FakeFirewall()
    doors = ServiceDoors(FakeSets())
    assert sync_firewall(rules, wanted(1), sets=doors.sets).changes
    assert forget_flows(doors, Cleanup(), wanted(1)) == (0, None, False)


def test_own_addresses_that_cannot_be_read_are_a_failure_to_try_again():
    def unreadable() -> tuple[()]:
        raise KernelError("a dump", errno.ENOBUFS)

    cleanup, flows = Cleanup(), FakeConntrack([DEAD])
    assert forget_flows(ServiceDoors(None, flows, unreadable), cleanup, wanted(1), (NETWORK,)).error
    assert forget_flows(ServiceDoors(None, flows), cleanup, wanted(1), (NETWORK,)).deleted == 1


# --- sets -----------------------------------------------------------------------------------------


class WatchedFirewall(FakeFirewall):
    """Says at each commit which sets there are, and keeps those that its rules use in use."""

    def __init__(self, sets: FakeSets) -> None:
        super().__init__()
        self.watched = sets
        self.there: list[set[str]] = []
        self.keep: set[str] = set()

    def restore(self, text: str) -> None:
        self.there.append(set(self.watched.sets))
        super().restore(text)
        texts = [line.text for rules in self.observe().chains.values() for line in rules]
        self.watched.used = self.keep | {name for name in self.watched.sets if any(name in t for t in texts)}


@pytest.fixture
def watched() -> WatchedFirewall:
    return WatchedFirewall(FakeSets())


def test_sets_are_there_before_the_rules_and_go_after_them(watched: WatchedFirewall):
    sets = watched.watched
    sync_firewall(watched, wanted(1, affinity_s=10), sets=sets)
    (first,) = sets.sets
    assert all(first in there for there in watched.there)
    watched.there.clear()
    assert sync_firewall(watched, wanted(2, affinity_s=10), sets=sets).settled
    (second,) = sets.sets
    assert second != first
    assert all({first, second} <= there for there in watched.there)
    assert sync_firewall(watched, {}, sets=sets).settled
    assert sets.sets == {}


def test_another_timeout_is_another_set(watched: WatchedFirewall):
    sync_firewall(watched, wanted(1, affinity_s=10), sets=watched.watched)
    before = dict(watched.watched.sets)
    sync_firewall(watched, wanted(1, affinity_s=20), sets=watched.watched)
    assert list(watched.watched.sets.values()) == [20]
    assert not before.keys() & watched.watched.sets.keys()


def test_sets_of_a_past_life_are_destroyed_and_those_of_others_kept(watched: WatchedFirewall):
    watched.watched.sets = {"OVL-SEP-OLD": 10, "KUBE-X": 10}
    sync_firewall(watched, wanted(1), sets=watched.watched)
    assert watched.watched.sets == {"KUBE-X": 10}


def test_a_second_round_makes_and_destroys_nothing(watched: WatchedFirewall):
    sync_firewall(watched, wanted(1, affinity_s=10), sets=watched.watched)
    watched.watched.log.clear()
    sync_firewall(watched, wanted(1, affinity_s=10), sets=watched.watched)
    assert watched.watched.log == []


def test_a_set_that_is_still_used_is_left_for_the_next_round(watched: WatchedFirewall):
    sets = watched.watched
    sync_firewall(watched, wanted(1, affinity_s=10), sets=sets)
    watched.keep = set(sets.sets)
    assert not sync_firewall(watched, wanted(1), sets=sets).settled
    assert sets.sets
    sets.used.clear()
    assert sync_firewall(watched, wanted(1), sets=sets).settled
    assert sets.sets == {}


def test_nothing_is_destroyed_while_only_additions_are_allowed(watched: WatchedFirewall):
    watched.watched.sets = {"OVL-SEP-OLD": 10}
    assert sync_firewall(watched, wanted(1), sets=watched.watched, additions_only=True).settled
    assert watched.watched.sets == {"OVL-SEP-OLD": 10}


def test_rules_are_not_written_without_the_sets_they_need(watched: WatchedFirewall):
    watched.watched.fail(FirewallError("no room"))
    with pytest.raises(FirewallError):
        sync_firewall(watched, wanted(1, affinity_s=10), sets=watched.watched)
    assert watched.there == []


def test_unused_sets_are_polled_for_until_they_are_gone():
    with working() as bench:
        bench.round(wanted(1, affinity_s=10))
        bench.sets.used = set(bench.sets.sets)
        bench.round(wanted(1))
        assert bench.sets.sets
        bench.sets.used.clear()
        eventually(lambda: not bench.sets.sets)
