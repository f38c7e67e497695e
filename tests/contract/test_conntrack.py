"""What every `ports.Conntrack` does, the one in memory and the kernel's alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from helpers.flows import flow, kernels_table
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.ports import Conntrack
from overlaynet.state import Flow
from overlaynet.testing.fake_services import FakeConntrack

UDP = flow("udp", "10.244.1.7:4000", "10.112.0.10:53", "10.244.2.2:5353")
UNANSWERED = flow("udp", "10.244.1.8:4000", "10.112.0.10:53", "10.244.2.2:5353", replied=False)
MASQUERADED = UDP._replace(sport=4001, reply_dst=UDP.dst, reply_dport=61_000)
SYN_SENT = flow("tcp", "10.244.1.7:4000", "10.112.0.10:80", "10.244.2.2:80", state="SYN_SENT", replied=False)
ESTABLISHED = flow("tcp", "10.244.1.9:4000", "10.112.0.10:80", "10.244.2.2:80", state="ESTABLISHED")
SCTP = flow("sctp", "10.244.1.7:4000", "10.112.0.10:9", "10.244.2.2:9")
ALL = (UDP, UNANSWERED, MASQUERADED, SYN_SENT, ESTABLISHED, SCTP)


@dataclass(frozen=True)
class Bench:
    """A table under test and a hand on it."""

    conntrack: Conntrack
    insert: Callable[..., None]

    def found(self, *protocols: str) -> set[Flow]:
        return set(self.conntrack.flows(protocols or ("tcp", "udp", "sctp")))


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.fake),
        pytest.param("kernel", marks=[pytest.mark.kernel, requires_netns]),
    ]
)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "fake":
        fake = FakeConntrack()
        yield Bench(fake, lambda *flows: fake.table.extend(flows))
        return
    with (
        private_netns() as netns,
        netns.entered(),
        kernels_table() as table,
        closing(ConntrackAdapter()) as real,
    ):
        yield Bench(real, table.insert)


def test_every_connection_is_read_as_it_is(bench: Bench):
    bench.insert(*ALL)
    assert bench.found() == set(ALL)


def test_only_the_protocols_asked_for_are_read(bench: Bench):
    bench.insert(*ALL)
    assert bench.found("udp") == {UDP, UNANSWERED, MASQUERADED}
    assert bench.found("tcp", "sctp") == {SYN_SENT, ESTABLISHED, SCTP}


def test_only_what_nobody_answered_is_read_if_that_is_asked_for(bench: Bench):
    bench.insert(*ALL)
    assert set(bench.conntrack.flows(["tcp", "udp"], unanswered=True)) == {UNANSWERED, SYN_SENT}


def test_one_connection_is_forgotten_and_no_other(bench: Bench):
    bench.insert(*ALL)
    bench.conntrack.delete(UDP)
    assert bench.found() == set(ALL) - {UDP}


@pytest.mark.parametrize("gone", [MASQUERADED, SYN_SENT, SCTP])
def test_a_connection_of_any_kind_can_be_forgotten(bench: Bench, gone: Flow):
    bench.insert(*ALL)
    bench.conntrack.delete(gone)
    assert gone not in bench.found()


def test_forgetting_what_is_gone_is_no_error(bench: Bench):
    bench.insert(UDP, SYN_SENT)
    for gone in (UDP, UDP, SYN_SENT, SYN_SENT):
        bench.conntrack.delete(gone)
    assert bench.found() == set()


def test_a_handshake_that_was_completed_meanwhile_is_not_torn_down(bench: Bench):
    bench.insert(ESTABLISHED)
    bench.conntrack.delete(ESTABLISHED._replace(state="SYN_SENT", replied=False))
    assert bench.found() == {ESTABLISHED}
