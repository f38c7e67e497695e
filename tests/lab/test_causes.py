"""Every cause of a lost packet, brought about on purpose and found: what is wrong, and at which point.

The lab is broken by `overlaynet.lab.faults`, a packet is sent and captured, and the verdict has to name the
fault. Once it is healed the same packet is proved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from helpers.eventually import eventually
from helpers.lab import lab_name, requires_lab

from overlaynet import data
from overlaynet.cluster.contexts import LabCluster
from overlaynet.lab.faultkinds import Request
from overlaynet.lab.faults import changing_faults
from overlaynet.lab.lab import Lab
from overlaynet.lab.topology import parse
from overlaynet.proof.question import Asked
from overlaynet.proof.tracing import trace
from overlaynet.trace.model import CAUSES, LOST, PROVED, Trace

pytestmark = [pytest.mark.lab, requires_lab, pytest.mark.timeout(240)]

NOBODY_BEHIND = """\
  - apiVersion: v1
    kind: Service
    metadata: {name: empty}
    spec: {clusterIP: 10.112.0.20, selector: {app: nobody}, ports: [{port: 80}]}
"""
PING = Asked("web-1", "web-3", "icmp")
BACK = Asked("web-3", "web-1", "icmp")
LARGE = Asked("web-1", "web-3", "udp", 9, size=1450, df=True)
FITTING = LARGE._replace(size=1400)
CALL = Asked("client-1", "svc/web")


class Case(NamedTuple):
    """What is broken, what is asked, and what must be said: a cause at a point (None: at any)."""

    cause: str
    point: str | None
    asked: Asked
    faults: tuple[tuple[str, Request], ...]


def broken(kind: str, *words: str, **more) -> tuple[str, Request]:
    return kind, Request(words, **more)


CASES = {
    "cable": Case("link_down", "node-2:eth0", PING, (broken("link", "node-2"),)),
    "vxlan-down": Case("link_down", "node-1:flannel.1", PING, (broken("link", "node-1:flannel.1"),)),
    "container-down": Case("link_down", "web-3:eth0", PING, (broken("link", "web-3"),)),
    "host": Case("node_down", "node-2:eth0", PING, (broken("node", "node-2"),)),
    "container-on-dead-host": Case("node_down", None, BACK, (broken("node", "node-2"),)),
    "own-link": Case("link_down", "web-1:eth0", PING, (broken("link", "web-1"),)),
    "route": Case("route_missing", None, PING, (broken("route", "node-1", "node-2"),)),
    "route-of-container": Case("route_missing", None, PING, (broken("route", "web-1", "default"),)),
    "route-astray": Case(
        "route_wrong", "node-1:flannel.1", PING, (broken("route", "node-1", "node-2", wrong=True),)
    ),
    "neigh": Case("neigh_missing", "node-1:flannel.1", PING, (broken("neigh", "node-1", "node-2"),)),
    "neigh-astray": Case(
        "neigh_wrong", "node-1:flannel.1", PING, (broken("neigh", "node-1", "node-2", wrong=True),)
    ),
    "fdb": Case("fdb_missing", "node-1:flannel.1", PING, (broken("fdb", "node-1", "node-2"),)),
    "fdb-astray": Case("fdb_wrong", "node-1:flannel.1", PING, (broken("fdb", "node-1", "node-2", wrong=True),)),
    "fdb-on-the-way-back": Case("fdb_missing", "node-2:flannel.1", PING, (broken("fdb", "node-2", "node-1"),)),
    "drop": Case("rule_drop", None, PING, (broken("rule", "node-1", "web-1", "web-3", target="DROP"),)),
    "drop-far": Case("rule_drop", None, PING, (broken("rule", "node-2", "web-1", "any", target="DROP"),)),
    "reject": Case("rule_reject", None, PING, (broken("rule", "node-1", "web-1", "web-3", target="REJECT"),)),
    "service-rule": Case("rule_missing", None, CALL, (broken("rule", "node-3", "svc/web"),)),
    "mtu-of-container": Case("mtu", "node-1:flannel.1", LARGE, (broken("mtu", "web-1", "1500"),)),
    "mtu-of-cable": Case("mtu", "node-2:eth0", FITTING, (broken("mtu", "node-2", "1400"),)),
    "forwarding": Case("forwarding_off", None, PING, (broken("forwarding", "node-1"),)),
    "forwarding-far": Case("forwarding_off", None, PING, (broken("forwarding", "node-2"),)),
    "strict": Case(
        "rp_filter", "node-1:flannel.1", BACK,
        (broken("route", "node-1", "node-2"), broken("rp_filter", "node-1", "flannel.1")),
    ),
    "loss": Case("underlay_loss", None, PING, (broken("loss", "node-1", "node-2", "70"),)),
    "partition": Case("partition", None, PING, (broken("partition", "node-1", "node-2"),)),
}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    text = data.path("labs", "quickstart.yaml").read_text() + NOBODY_BEHIND
    with Lab.running(parse(text, "quickstart.yaml", lab_name("causes"))) as running:
        yield running


@pytest.fixture
def healed(lab: Lab) -> Iterator[Lab]:
    yield lab
    with changing_faults(lab.name, lab.root) as mine:
        mine.heal((), time.time())


def ask(lab: Lab, asked: Asked) -> Trace:
    return trace(LabCluster(lab), asked).trace


def told(found: Trace) -> tuple[str, str | None, str | None]:
    cause = found.cause
    point = None if cause is None or cause.point is None else str(cause.point)
    return found.verdict, cause and cause.kind, point


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cause_is_found_at_its_point(healed: Lab, case: Case) -> None:
    with changing_faults(healed.name, healed.root) as mine:
        for kind, request in case.faults:
            mine.make(kind, request, time.time())
    verdict, cause, point = told(found := ask_until_lost(healed, case.asked))
    assert (verdict, cause) == (LOST, case.cause), (found.cause, found.lost_between, found.inconclusive_because)
    assert point == (case.point or point)
    with changing_faults(healed.name, healed.root) as mine:
        mine.heal((), time.time())
    if case.cause != "mtu" or case.asked is not LARGE:
        eventually(lambda: ask(healed, case.asked).verdict == PROVED, deadline_s=30)


def test_wrong_neighbour_of_a_container_is_found_on_its_host(healed: Lab) -> None:
    """Its host has an entry only once it has sent to it."""
    assert ask(healed, PING).verdict == PROVED
    kind, request = broken("neigh", "node-2", "web-3", wrong=True)
    with changing_faults(healed.name, healed.root) as mine:
        mine.make(kind, request, time.time())
    found = ask(healed, PING)
    assert told(found) == (LOST, "neigh_wrong", "node-2:cni0"), found.inconclusive_because


def test_detour_that_arrives_is_proved_with_a_note(healed: Lab) -> None:
    kind, request = broken("route", "node-1", "node-2", to="node-3")
    with changing_faults(healed.name, healed.root) as mine:
        mine.make(kind, request, time.time())
    found = ask(healed, PING)
    assert found.verdict == PROVED
    assert any(note.endswith("next: overlaynet diff node-1") for note in found.notes)


def ask_until_lost(lab: Lab, asked: Asked) -> Trace:
    """A network that loses some of its packets lets others through."""
    for _ in range(20):
        if (found := ask(lab, asked)).verdict != PROVED:
            break
    return found


def test_service_without_endpoints(lab: Lab) -> None:
    assert told(ask(lab, Asked("client-1", "svc/empty")))[:2] == (LOST, "no_endpoints")


def test_every_cause_is_brought_about_here() -> None:
    """But `unknown`: nothing that can be broken here leaves no trace at all."""
    assert {case.cause for case in CASES.values()} | {"no_endpoints", "unknown"} == set(CAUSES)
