"""The plan: from any lab to any other in steps that respect what stands on what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.core.probes import probe_document
from overlaynet.lab.converge import (
    Key,
    Kind,
    Parts,
    Plan,
    Spec,
    cables,
    not_ready,
    plan,
    plan_containers,
    port_name,
    stands_on,
    unsettled,
    wanted,
)
from overlaynet.lab.topology import Container, Host, Topology
from overlaynet.model import Port, Probe, TcpCheck

pytestmark = pytest.mark.unit

TOPOLOGY = Topology.simple("default", hosts=2, containers=1)
SPECS = {"etcd": "e", "agent/node-1": "a1", "agent/node-2": "a2", "command/web-1": "c1"}
LAB = wanted(TOPOLOGY, SPECS)
PROCESS = Kind.PROCESS


def carry_out(steps: Plan, want: Parts, have: Parts) -> dict[Key, Spec]:
    """The lab after the steps; a step that could not be done fails."""
    parts = dict(have)
    for key in steps.remove:
        assert not [k for k in parts if key in stands_on(k) and k in want and k not in steps.make], key
        del parts[key]
    for key in steps.make:
        assert key not in parts
        assert set(stands_on(key)) & set(want) <= set(parts), f"{key} is made on nothing"
        parts[key] = want[key]
    return parts


def damaged() -> st.SearchStrategy[dict[Key, Spec]]:
    """The lab with parts missing, parts wrong, and parts that nobody wants."""
    extra = {Key(Kind.NETNS, "node-9"): "", Key(Kind.CABLE, "node-9"): "x", Key(PROCESS, "agent/node-9"): "y"}
    keys = st.sets(st.sampled_from(sorted({**LAB, **extra})))
    return st.builds(
        lambda there, wrong: {key: "wrong" if key in wrong else {**LAB, **extra}[key] for key in there},
        keys,
        keys,
    )


@given(damaged())
def test_plan_leads_to_what_is_wanted_and_then_there_is_nothing_to_do(have: dict[Key, Spec]) -> None:
    after = carry_out(plan(LAB, have), LAB, have)
    assert after == LAB
    assert plan(LAB, after) == Plan((), ())


@given(damaged())
def test_taking_down_removes_everything(have: dict[Key, Spec]) -> None:
    assert carry_out(plan({}, have), {}, have) == {}


def test_first_up_makes_all_parts_in_order_of_kind() -> None:
    steps = plan(LAB, {})
    assert set(steps.make) == set(LAB)
    assert [key.kind for key in steps.make] == sorted(key.kind for key in steps.make)
    assert steps.changes == len(LAB)


def without(*keys: Key) -> dict[Key, Spec]:
    return {key: spec for key, spec in LAB.items() if key not in keys}


@pytest.mark.parametrize(
    ("have", "make", "remove"),
    [
        pytest.param(
            without(Key(PROCESS, "agent/node-1")), [Key(PROCESS, "agent/node-1")], [], id="dead-agent"
        ),
        pytest.param(without(Key(PROCESS, "etcd")), [Key(PROCESS, "etcd")], [], id="dead-etcd"),
        pytest.param(
            LAB | {Key(PROCESS, "agent/node-2"): "other"},
            [Key(PROCESS, "agent/node-2")],
            [Key(PROCESS, "agent/node-2")],
            id="agent-with-other-settings",
        ),
        pytest.param(
            without(Key(Kind.NETNS, "web-1")),
            [Key(Kind.NETNS, "web-1"), Key(PROCESS, "command/web-1")],
            [Key(PROCESS, "command/web-1")],
            id="container-lost-its-namespace",
        ),
        pytest.param(
            without(Key(Kind.CABLE, "node-2")),
            [Key(Kind.CABLE, "node-2"), Key(PROCESS, "agent/node-2")],
            [Key(PROCESS, "agent/node-2")],
            id="cable-cut",
        ),
        pytest.param(
            LAB | {Key(Kind.NETNS, "web-1"): "node-2"},
            [Key(Kind.NETNS, "web-1"), Key(PROCESS, "command/web-1")],
            [Key(PROCESS, "command/web-1"), Key(Kind.NETNS, "web-1")],
            id="container-moves-to-another-host",
        ),
    ],
)
def test_only_what_is_wrong_and_what_stands_on_it_is_made(
    have: dict[Key, Spec], make: list[Key], remove: list[Key]
) -> None:
    steps = plan(LAB, have)
    assert (list(steps.make), list(steps.remove)) == (make, remove)


def test_host_that_joins_touches_no_other() -> None:
    larger = wanted(Topology.simple("default", hosts=3, containers=1), SPECS | {"agent/node-3": "a3"})
    steps = plan(larger, LAB)
    assert steps.remove == ()
    assert {key.name.rpartition("/")[2] for key in steps.make} == {"node-3", "web-3"}


@pytest.mark.parametrize(
    ("host", "want"),
    [
        pytest.param(Host("node-1", 1), "node-1", id="its-own-name"),
        pytest.param(Host("a-very-long-name-12", 12), "a-very-l~12", id="too-long-for-a-device"),
        pytest.param(Host("br0", 3), "br0~3", id="taken-by-the-bridge"),
        pytest.param(Host("all", 4), "all~4", id="no-device-may-be-called-all"),
    ],
)
def test_port_name(host: Host, want: str) -> None:
    assert port_name(host) == want
    assert len(want) <= 15


def test_addresses_and_macs_of_cables_are_distinct() -> None:
    made = cables(Topology.simple("default", hosts=200, containers=0))
    macs = [cable.mac for cable in made] + [cable.port_mac for cable in made]
    assert len(set(macs)) == len(macs)
    assert len({cable.address for cable in made}) == len(made)
    assert len({cable.port for cable in made}) == len(made)


# --- containers -----------------------------------------------------------------------------------

WEB = Container("web-1", "node-1", labels={"app": "web"}, ports=(Port(80),))
WIRED = {
    "name": "web-1",
    "namespace": "default",
    "labels": {"app": "web"},
    "ports": [{"port": 80, "protocol": "TCP", "name": None}],
    "probe": None,
    "terminating": False,
}
LEAVING = WIRED | {"terminating": True}
PROBED = replace(WEB, probe=Probe(TcpCheck(80)))
PROBE = probe_document(Probe(TcpCheck(80)))


@pytest.mark.parametrize(
    ("want", "have", "remade", "detach", "attach"),
    [
        pytest.param([WEB], [], [], [], ["web-1"], id="missing"),
        pytest.param([WEB], [WIRED], [], [], [], id="right"),
        pytest.param([], [WIRED], [], [("default", "web-1")], [], id="extra"),
        pytest.param([WEB], [WIRED | {"labels": {}}], [], [("default", "web-1")], ["web-1"], id="other-labels"),
        pytest.param([WEB], [WIRED | {"ports": []}], [], [("default", "web-1")], ["web-1"], id="other-ports"),
        pytest.param(
            [WEB], [WIRED | {"terminating": True}], [], [("default", "web-1")], ["web-1"], id="leaving"
        ),
        pytest.param([PROBED], [WIRED], [], [("default", "web-1")], ["web-1"], id="other-probe"),
        pytest.param([PROBED], [WIRED | {"probe": PROBE}], [], [], [], id="same-probe"),
        pytest.param([WEB], [WIRED], ["web-1"], [("default", "web-1")], ["web-1"], id="new-namespace"),
        pytest.param([WEB], [], ["web-1"], [], ["web-1"], id="new-namespace-and-agent-knows"),
    ],
)
def test_wiring(
    want: list[Container],
    have: list[dict[str, Any]],
    remade: list[str],
    detach: list[tuple[str, str]],
    attach: list[str],
) -> None:
    wiring = plan_containers(want, have, frozenset(remade))
    assert list(wiring.detach) == detach
    assert [container.name for container in wiring.attach] == attach
    assert wiring.changes == len({*detach, *(("default", name) for name in attach)})


STATUS: dict[str, Any] = {
    "agent": {"state": "ready"},
    "peers": [{"node": "node-2"}],
    "pending": 0,
    "problems": [],
}


@pytest.mark.parametrize(
    ("change", "want"),
    [
        pytest.param({}, None, id="settled"),
        pytest.param({"agent": {"state": "starting"}}, "node-1 is starting", id="starting"),
        pytest.param(
            {"agent": {"state": "degraded"}, "problems": [{"message": "no etcd"}]},
            "node-1 is degraded: no etcd",
            id="degraded",
        ),
        pytest.param({"peers": []}, "node-1 does not know node-2 yet", id="peer-missing"),
        pytest.param(
            {"peers": [{"node": "node-2"}, {"node": "node-9"}]}, "node-1 still knows node-9", id="peer-gone"
        ),
        pytest.param({"pending": 2}, "node-1 has 2 changes to make", id="pending"),
    ],
)
def test_reason_for_not_being_settled(change: dict[str, Any], want: str | None) -> None:
    assert unsettled("node-1", frozenset({"node-2"}), STATUS | change) == want


def test_container_that_is_not_ready_is_named_with_its_probes_reason() -> None:
    told = {
        "containers": [WIRED | {"ready": False, "probe_detail": why} for why in (None, "Connection refused")]
    }
    assert not_ready({"web-1"}, {"containers": [WIRED | {"ready": True}]}) is None
    assert not_ready({"web-2"}, told) is None
    assert not_ready({"web-1"}, told) == (
        "web-1 is not ready: no answer yet; web-1 is not ready: Connection refused"
    )
