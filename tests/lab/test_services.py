"""Services with real agents and etcd: what callers of a virtual IP notice of changes, stops and mistakes.

One lab for all, so the host that dies dies last.
"""

from __future__ import annotations

import fcntl
import json
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from helpers.answering import REFUSED, SILENT, Answer
from helpers.calling import Calls
from helpers.eventually import eventually
from helpers.lab import lab_name, requires_lab
from helpers.served_lab import (
    CLIENT,
    FIRST_ENDPOINT,
    KEYS,
    NODE_PORT,
    NODE_TTL_S,
    PORT,
    SLICED_VIP,
    VIP,
    ServedLab,
    served_lab,
    slice_of,
    web,
)

pytestmark = [pytest.mark.lab, requires_lab, pytest.mark.timeout(240)]

STICKY_VIP = "10.112.0.13"
ADDRESS = {"web-1": "10.244.1.2", "web-2": "10.244.2.2", "web-3": "10.244.3.2"}
HOSTS = ("node-1", "node-2", "node-3")
MANY = 1_000
HELD_S = 2.0


@pytest.fixture(scope="module")
def lab() -> Iterator[ServedLab]:
    with served_lab(lab_name("services")) as made:
        yield made


@pytest.fixture
def sliced(lab: ServedLab) -> Iterator[ServedLab]:
    """With another service, `api`, whose only endpoint web-1 is named by a slice."""
    lab.apply(web("api", SLICED_VIP), slice_of("api", ADDRESS["web-1"]))
    eventually(lambda: answers(lab, SLICED_VIP) == {"web-1"}, deadline_s=20)
    yield lab
    lab.delete(KEYS.service("default/api"), KEYS.slice("default/api-1"))
    eventually(lambda: lab.ask(CLIENT, SLICED_VIP) == REFUSED, deadline_s=20)


def answers(lab: ServedLab, address: str, place: str = CLIENT) -> set[str]:
    """Who answers, or what else becomes of it, of some calls."""
    said = [lab.ask(place, address) for _ in range(8)]
    return {one.name if isinstance(one, Answer) else one for one in said}


def well_after(calls: Calls, *, count: int = 60) -> bool:
    """Whether the last so many calls were all answered. Of three endpoints one dead would have failed some."""
    return len(calls) >= count and not any(isinstance(said, str) for _, said in calls.made[-count:])


def test_everybody_reaches_the_virtual_ip(lab: ServedLab) -> None:
    for place in (*ADDRESS, *HOSTS):
        said = [lab.ask(place, VIP) for _ in range(60)]
        assert {one.name if isinstance(one, Answer) else one for one in said} == set(ADDRESS), place
        assert isinstance(lab.ask(place, VIP, 80, "udp"), Answer), place


def test_outside_reaches_the_node_port_of_every_host(lab: ServedLab) -> None:
    for host in lab.lab.hosts:
        assert isinstance(lab.ask("outside", str(host.underlay_ip), NODE_PORT), Answer), host.name


def test_datagrams_of_one_socket_follow_the_endpoints(sliced: ServedLab) -> None:
    with sliced.calling(SLICED_VIP) as calls:
        eventually(lambda: set(calls.udp.names) == {"web-1"})
        sliced.apply(slice_of("api", ADDRESS["web-2"]))
        eventually(lambda: "web-2" in calls.udp.names)
        sliced.apply(slice_of("api"))
        eventually(lambda: REFUSED in calls.udp.failures)
        sliced.apply(slice_of("api", ADDRESS["web-3"]))
        eventually(lambda: "web-3" in calls.udp.names)
    assert calls.udp.failures[SILENT] <= 3, "an answer under way at each of three changes may be lost, no more"


def test_hundred_changes_at_once_cost_few_restores_and_end_right(sliced: ServedLab) -> None:
    """Ten revisions of ten endpoints each, as fast as etcd takes them."""
    before = {host: sliced.metric(host, "overlaynet_firewall_restores_total") for host in HOSTS}
    expected = sliced.targets("node-3")
    for first in range(9_000, 9_100, 10):
        expected |= sliced.change(range(first, first + 10))
    for host in HOSTS:
        eventually(lambda host=host: sliced.targets(host) == expected, deadline_s=20)
        assert sliced.metric(host, "overlaynet_firewall_restores_total") - before[host] <= 12
    sliced.delete(*(KEYS.slice(f"default/api-{port}") for port in range(9_000, 9_100)))
    eventually(lambda: sliced.targets("node-3") == {f"{FIRST_ENDPOINT}:{PORT}"}, deadline_s=20)


@pytest.mark.parametrize("host", ["node-3", "node-2"], ids=["legacy", "nft"])
def test_rules_that_somebody_removes_come_back(sliced: ServedLab, host: str) -> None:
    """One rule on the way of a service; then the whole table."""
    for words in (["-D", "OVL-SERVICES", "1"], ["-F"]):
        sliced.iptables(host, "-t", "nat", *words)
        eventually(lambda: answers(sliced, SLICED_VIP, host) == {"web-1"} and sliced.well(host), deadline_s=20)
        eventually(lambda: isinstance(sliced.ask(host, VIP), Answer))


def test_lock_that_somebody_holds_delays_the_change_and_nothing_else(sliced: ServedLab) -> None:
    with sliced.lab.paths.host("node-3").xtables_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sliced.apply(slice_of("api", ADDRESS["web-2"]))
        released = time.monotonic() + HELD_S
        while time.monotonic() < released:
            assert sliced.status("node-3")["agent"]["state"]
            assert answers(sliced, SLICED_VIP) == {"web-1"}
    eventually(lambda: answers(sliced, SLICED_VIP) == {"web-2"}, deadline_s=20)


def test_bad_objects_are_named_by_their_field_and_good_ones_are_served(sliced: ServedLab) -> None:
    wrong = web("wrong", "10.112.0.12")
    wrong["spec"]["ports"][0]["port"] = 99_999
    crooked = slice_of("api", "10.244.1.999")
    bad = {
        KEYS.service("default/wrong"): json.dumps(wrong).encode(),
        KEYS.service("default/garbage"): b"{",
        KEYS.slice("default/api-2"): json.dumps(crooked).encode(),
    }
    for key, value in bad.items():
        sliced.put(key, value)
    try:
        sliced.apply(slice_of("api", ADDRESS["web-3"]))
        eventually(lambda: answers(sliced, SLICED_VIP) == {"web-3"}, deadline_s=20)
        said = json.dumps(sliced.status("node-3")["problems"])
        for word in (*bad, "spec.ports[0].port", "addresses"):
            assert word in said
    finally:
        sliced.delete(*bad)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_agent_that_starts_again_costs_no_call_and_writes_nothing(
    lab: ServedLab, number: signal.Signals
) -> None:
    """That of the caller's own host, whose rules lead the calls."""
    host = "node-3"
    lab.apply(web("sticky", STICKY_VIP, selector={"app": "web"}, sessionAffinity="ClientIP"))
    eventually(lambda: isinstance(lab.ask(CLIENT, STICKY_VIP), Answer), deadline_s=20)
    before, remembered = lab.forgotten(host), lab.remembered(host)
    with lab.calling(VIP) as calls:
        lab.kill(host, number)
        lab.up()
        eventually(lambda: lab.well(host), deadline_s=30)
        eventually(lambda: len(calls.tcp) >= MANY, deadline_s=120)
    assert not calls.tcp.failures
    assert not calls.udp.failures
    assert len(calls.udp.names) == 1
    assert lab.status(host)["writes"] == {"kernel": 0, "firewall": 0}
    assert lab.forgotten(host) == before
    assert remembered
    assert lab.remembered(host) == remembered


def test_agent_that_is_stopped_for_longer_than_a_node_may_be_silent_keeps_its_endpoints(lab: ServedLab) -> None:
    """As the upgrade of a package does it."""
    with lab.calling(VIP) as calls:
        lab.kill("node-1", signal.SIGTERM)
        threading.Event().wait(NODE_TTL_S + 2)
        seen = len(calls.tcp)
        eventually(lambda: "web-1" in Calls(calls.tcp.made[seen:]).names)
        lab.up()
        eventually(lambda: lab.well("node-1"), deadline_s=30)
    assert not calls.tcp.failures
    assert not calls.udp.failures
    assert lab.status("node-1")["writes"] == {"kernel": 0, "firewall": 0}


def test_host_that_dies_is_called_no_more(lab: ServedLab) -> None:
    with lab.calling(VIP, patience_s=0.3) as calls:
        eventually(lambda: len(calls.tcp) > 20)
        lab.cut_off("node-1")
        lab.kill("node-1")
        eventually(lambda: calls.tcp.failures)
        eventually(
            lambda: well_after(calls.tcp) and well_after(calls.udp, count=10), deadline_s=NODE_TTL_S + 30
        )
    assert set(Calls(calls.tcp.made[-60:]).names) == {"web-2", "web-3"}
