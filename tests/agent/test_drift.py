"""Whatever of ours is removed or altered comes back, and nothing of others is touched."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from helpers.drift_cases import KERNEL, MAC_2, METRIC_2, RULES, Case
from helpers.eventually import eventually
from helpers.model import subnet
from helpers.privilege import requires_netns
from helpers.real_agent import RealAgent, real_agent

from overlaynet.errors import Contested
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.ports import Failure, Noticed
from overlaynet.state import BridgePort, Change, KernelState, Op, Route
from overlaynet_agent.drift import POLL_S
from overlaynet_agent.holds import Hold

pytestmark = [pytest.mark.kernel, requires_netns]

NEVER_S = 3_600
"""Between looks that nothing has asked for: such a one would be counted among those that something has."""
PATIENCE_S = 30
"""A state is a dump of the kernel and all rules saved; what was broken often, or fails, is paced besides."""
ROUTE = Route(subnet(2), "flannel.1", ip_address("10.244.2.0"), METRIC_2, onlink=True)


def case_named(name: str) -> Case:
    return next(case for case in (*KERNEL, *RULES) if case.name == name)


@pytest.fixture(scope="module", params=["legacy", "nft"])
def agent(request, tmp_path_factory) -> Iterator[RealAgent]:
    """One for all tests of this module: each leaves it as it was."""
    with real_agent(tmp_path_factory.mktemp("agent"), request.param, resync_s=NEVER_S) as running:
        yield running


def broken_and_repaired(agent: RealAgent, case: Case) -> None:
    before, repaired = agent.state(), sum(agent.loop.host.repaired.values())
    agent.break_by(case)
    if case.same_size and agent.flavour == "legacy":
        agent.loop.call(lambda loop: loop.ask_firewall_again("timer"))

    def as_before() -> bool:
        assert agent.state() == before
        return True

    eventually(as_before, deadline_s=PATIENCE_S)
    eventually(lambda: sum(agent.loop.host.repaired.values()) > repaired)
    eventually(agent.quiet)


def at_rest(agent: RealAgent) -> dict[str, int]:
    """The counters, once they stand still: what the kernel tells of a test before may come late."""

    def still() -> bool:
        counters, heard = agent.counters(), agent.loop.host.drift._next_poll
        eventually(lambda: agent.loop.host.drift._next_poll > heard + POLL_S)
        return agent.quiet() and agent.counters() == counters

    eventually(still, deadline_s=PATIENCE_S)
    return agent.counters()


@pytest.fixture(scope="module")
def legacy(tmp_path_factory) -> Iterator[RealAgent]:
    """The kernel's objects do not depend on the packet filter."""
    with real_agent(tmp_path_factory.mktemp("legacy"), "legacy", resync_s=NEVER_S) as running:
        yield running


@pytest.mark.parametrize("case", KERNEL, ids=lambda case: case.name)
def test_object_of_the_kernel_comes_back(legacy: RealAgent, case: Case):
    broken_and_repaired(legacy, case)


def test_containers_come_back_onto_a_bridge_that_went_where_reading_the_kernel_takes_long(
    legacy: RealAgent, monkeypatch: pytest.MonkeyPatch
):
    """Among many peers, or on a slow machine, the port is refused once more while the look is under way that is
    to bring the bridge back."""
    kernel, refused = legacy.loop.host.kernel, threading.Event()
    read = kernel.observe

    def slowly(sysctls: Sequence[str] = ()) -> KernelState:
        seen = read(sysctls)
        refused.wait(10)
        return seen

    def put(changes: Sequence[Change]) -> list[Failure]:
        failures = write(changes)
        if legacy.loop.host.looking and any(isinstance(f.change.obj, BridgePort) for f in failures):
            refused.set()
        return failures

    write = kernel.apply
    monkeypatch.setattr(kernel, "observe", slowly)
    monkeypatch.setattr(kernel, "apply", put)
    broken_and_repaired(legacy, case_named("bridge-removed"))
    assert refused.is_set()


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_rule_comes_back(agent: RealAgent, case: Case):
    broken_and_repaired(agent, case)


def test_idle_agent_looks_at_nothing_and_writes_nothing(agent: RealAgent):
    """Over more than one turn of every poll."""
    before, turns = at_rest(agent), agent.loop.host.drift._next_poll
    eventually(lambda: agent.loop.host.drift._next_poll > turns + 2 * POLL_S)
    assert agent.counters() == before


def test_new_peers_cause_no_look_beyond_their_own_writes(legacy: RealAgent):
    """The kernel announces forwarding entries without a sender: they must not be taken for news."""
    before, repaired = at_rest(legacy), legacy.loop.host.repaired.copy()
    legacy.add_peers(100, 50)
    eventually(lambda: legacy.counters()["writes"] >= before["writes"] + 150)
    heard = legacy.loop.host.drift._next_poll
    eventually(lambda: legacy.loop.host.drift._next_poll > heard + POLL_S)
    assert legacy.counters() == {**before, "writes": before["writes"] + 150}
    assert legacy.loop.host.repaired == repaired


def test_one_entry_is_repaired_without_a_full_look(legacy: RealAgent):
    before = at_rest(legacy)
    broken_and_repaired(legacy, case_named("route-removed"))
    after = legacy.counters()
    assert (after["looks"], after["writes"]) == (before["looks"], before["writes"] + 1)


def test_repaired_rule_costs_one_reading_and_one_restore(agent: RealAgent):
    """And our own restore does not lead to another."""
    before = at_rest(agent)
    broken_and_repaired(agent, case_named("jump-removed"))
    heard = agent.loop.host.drift._next_poll
    eventually(lambda: agent.loop.host.drift._next_poll > heard + 2 * POLL_S)
    after = agent.counters()
    assert (after["reads"], after["restores"]) == (before["reads"] + 1, before["restores"] + 1)
    assert after["writes"] == before["writes"]


def test_containers_of_others_and_their_rules_are_left_alone(agent: RealAgent):
    """Changes next to ours are no business of ours, even where they are seen."""
    foreign = """
        ip route replace 10.77.0.0/16 via 10.9.0.8 dev foreign
        ip neigh replace 10.9.0.7 lladdr 02:00:00:00:09:09 dev foreign nud permanent
        ip address add 10.98.0.1/32 dev eth0
        iptables -A FOREIGN -s 10.78.0.0/16 -j RETURN
    """
    before = at_rest(agent)
    agent.sh(foreign)
    changed = agent.state()
    heard = agent.loop.host.drift._next_poll
    eventually(lambda: agent.loop.host.drift._next_poll > heard + 2 * POLL_S)
    assert agent.state() == changed
    after = agent.counters()
    assert (after["writes"], after["restores"]) == (before["writes"], before["restores"])


# --- fights ---------------------------------------------------------------------------------------


def test_fight_is_paced_told_of_and_starves_nobody(legacy: RealAgent):
    """Another program deletes a route of ours as fast as it can."""
    before, stop = legacy.counters(), threading.Event()

    def fight() -> None:
        with legacy.host.netns.entered():
            kernel = KernelAdapter.open()
        while not stop.wait(0.002):
            kernel.apply([Change(Op.DROP, ROUTE)])
        kernel.close()

    other = threading.Thread(target=fight)
    other.start()
    try:
        told = eventually(lambda: contested(legacy), deadline_s=30)
        legacy.add_peers(200, 1)
        eventually(lambda: any(route.dst == subnet(200) for route in legacy.state()["routes"]))
    finally:
        stop.set()
        other.join()
    assert "10.244.2.0/24" in told[0].evidence
    assert legacy.counters()["writes"] - before["writes"] < 40
    eventually(lambda: ROUTE in legacy.state()["routes"])
    eventually(legacy.quiet)


def contested(agent: RealAgent) -> list[Contested]:
    return [problem for problem in agent.problems() if isinstance(problem, Contested)]


def test_lost_announcements_mean_one_full_look(legacy: RealAgent):
    before = at_rest(legacy)
    legacy.loop.inbox.put(Noticed(overrun=True))
    eventually(lambda: legacy.counters()["looks"] == before["looks"] + 1)
    eventually(legacy.quiet)
    assert legacy.counters() == {**before, "looks": before["looks"] + 1}


# --- holds ----------------------------------------------------------------------------------------


@contextmanager
def held(agent: RealAgent, kind: str, key: str) -> Iterator[None]:
    """For the length of the block, however it ends: the agent is others' too."""
    agent.loop.call(lambda loop: loop.host.drift.hold(Hold(kind, key, "test", None)))
    try:
        yield
    finally:
        agent.loop.call(lambda loop: loop.host.drift.release(kind, key))


@pytest.mark.parametrize(
    ("kind", "key", "case"),
    [
        pytest.param("route", "254 10.244.2.0/24 717827", "route-removed", id="route"),
        pytest.param("neigh", "flannel.1 10.244.2.0", "neighbour-altered", id="neighbour"),
        pytest.param("fdb", f"flannel.1 {MAC_2}", "fdb-removed", id="fdb"),
        pytest.param("sysctl", "net/ipv4/ip_forward", "sysctl-altered", id="sysctl"),
        pytest.param("link", "flannel.1", "vxlan-device-removed", id="link-and-all-on-it"),
        pytest.param("link", "flannel.1", "vxlan-device-down", id="link-down"),
        pytest.param("address", "cni0 10.244.1.1/24", "gateway-removed", id="address"),
    ],
)
def test_held_object_is_left_alone_until_released(legacy: RealAgent, kind: str, key: str, case: str):
    counters, before = at_rest(legacy), legacy.state()
    with held(legacy, kind, key):
        legacy.break_by(case_named(case))
        broken = legacy.state()
        assert broken != before
        legacy.loop.call(lambda loop: loop.full_look("timer"))
        heard = legacy.loop.host.drift._next_poll
        eventually(lambda: legacy.loop.host.drift._next_poll > heard + POLL_S)
        assert legacy.state() == broken
        assert legacy.counters()["writes"] == counters["writes"]

    def as_before() -> bool:
        assert legacy.state() == before
        return True

    eventually(as_before, deadline_s=PATIENCE_S)


def test_held_chain_is_left_alone_until_its_time_is_up(agent: RealAgent):
    before, until, reads = agent.state(), agent.loop.clock() + 3_600, agent.counters()["reads"]
    hold = Hold("rule", "filter OVL-FORWARD", "test", until)
    agent.loop.call(lambda loop: (loop.host.drift.hold(hold), loop.ask_firewall_again("event")))
    eventually(lambda: agent.counters()["reads"] > reads)
    agent.break_by(case_named("chain-emptied"))
    broken, reads = agent.state(), agent.counters()["reads"]
    agent.loop.call(lambda loop: loop.ask_firewall_again("timer"))
    eventually(lambda: agent.counters()["reads"] > reads)
    assert agent.state() == broken != before
    agent.loop.call(lambda loop: loop.expire_holds(until))

    def as_before() -> bool:
        assert agent.state() == before
        return True

    eventually(as_before, deadline_s=PATIENCE_S)
