"""Lesson 13, an unknown fault: found by `trace` with every one of twenty seeds, and named by the check."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from helpers.etcd import requires_etcd
from helpers.eventually import eventually
from helpers.lab import requires_lab
from helpers.lessons import ROOT, SOLVED, Learner, learning
from helpers.transcripts import retype, sessions

from overlaynet.cluster.contexts import LabCluster, choose_context
from overlaynet.lab.paths import Paths
from overlaynet.lessons.stage import Stage
from overlaynet.proof.question import Asked
from overlaynet.proof.tracing import trace
from overlaynet.trace.model import CAUSES, LOST, PROVED, WRONG_PATH, Trace

pytestmark = [pytest.mark.lab, requires_lab, requires_etcd, pytest.mark.timeout(300)]

EXAMPLE = "86"
ADDRESSES = {"red": "10.244.1.2", "green": "10.244.2.2", "grey": "10.244.3.2"}
ROUNDS = 3
"""How often everything is asked: of what is lost by chance, some gets through."""


@pytest.fixture(scope="module")
def learner() -> Iterator[Learner]:
    with learning("mystery", "--seed", EXAMPLE) as learner:
        yield learner


@pytest.fixture(scope="module")
def mystery(learner: Learner) -> ModuleType:
    return sys.modules[learner.entry.lesson.check.__module__]


@pytest.fixture
def stage(learner: Learner) -> Iterator[Stage]:
    """The lab without what its seed hid."""
    cluster = choose_context("mystery", Paths.here())
    assert isinstance(cluster, LabCluster)
    with Stage(cluster) as stage:
        stage.heal(hidden=True)
        yield stage


def names(learner: Learner, cause: str, place: str, *, code: int) -> dict[str, Any]:
    """The check's document for this diagnosis."""
    given = [word for pair in (f"cause={cause}", f"place={place}") for word in ("--predict", pair)]
    return learner.asks("lab", "check", *given, code=code)


def evidence(document: dict[str, Any]) -> str:
    """What speaks against the last claim."""
    return str(document["claims"][-1]["evidence"])


# --- as a learner ---------------------------------------------------------------------------------


def test_example_is_found_as_its_page_says(learner: Learner, record_property):
    before, _, after = learner.entry.readme.read_text("utf-8").partition(SOLVED)
    retype(sessions(before), ROOT, learner.environ)
    began = time.monotonic()
    retype(sessions(after), ROOT, learner.environ)
    (item,) = [i for i in learner.asks("lab", "report")["items"] if i["lesson"] == "mystery"]
    (seed,) = item["seeds"]
    assert (item["state"], seed["seed"], seed["verdict"], seed["looks"]) == ("proved", 86, "proved", 3)
    (fault,) = seed["faults"]
    assert (fault["kind"], fault["place"], fault["found"]) == ("fdb_wrong", "node-1", True)
    assert fault["object"].startswith("fdb 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.99")
    assert "bridge fdb replace" in fault["words"]
    record_property("lesson 13, mystery: check, status", f"{time.monotonic() - began:4.1f} s")


def test_nothing_tells_what_is_hidden_and_two_are_named_one_after_the_other(learner: Learner):
    """Seed 3: an entry that node-3 lacks for node-1, and a neighbour that node-2 lacks."""
    learner.types("lab", "reset", "--seed", "3")
    faults = learner.asks("status")["faults"]
    assert [(fault["kind"], fault["target"], fault["hold"]) for fault in faults] == [("hidden", "", [])] * 2
    record = (Paths.here().lab("mystery").run / "faults.json").read_text()
    logs = [learner.types("logs", host) for host in ("node-1", "node-2", "node-3")]
    assert [
        text for text in (record, *logs) if "hold" in text or "node-3 node-1" in text or "fdb" in text
    ] == []
    for words in (("heal",), ("heal", "f1"), ("break", "fdb", "node-3", "node-1")):
        assert "hidden in this lab" in learner.asks(*words, code=2)["error"]["message"]
    wrong = names(learner, "fdb_missing", "node-1", code=1)
    assert (evidence(wrong), wrong["looks"]) == ("it is not; a wrong name counts as a look", 1)
    assert [answer["captured"] for answer in wrong["predictions"]] == [None, None]
    assert [(fault["kind"], fault["found"]) for fault in wrong["faults"]] == [(None, False)] * 2
    assert learner.asks("trace", "grey", "red", code=1)["cause"]["kind"] == "fdb_missing"
    first = names(learner, "fdb_missing", "node-3", code=1)
    assert (first["verdict"], first["looks"]) == ("not_yet", 2)
    assert evidence(first) == "one more fault is; the one that you named is healed"
    assert learner.asks("trace", "grey", "red")["verdict"] == PROVED
    assert "named that already" in evidence(names(learner, "fdb_missing", "node-3", code=1))
    by_hand = "ip neigh add 10.244.1.0 lladdr 02:0a:f4:01:00:00 dev flannel.1 nud permanent"
    learner.types("exec", "node-2", "--", "sh", "-c", by_hand)
    second = names(learner, "neigh_missing", "node-2", code=0)
    assert (second["verdict"], [fault["kind"] for fault in second["faults"]], second["looks"]) == (
        "proved",
        ["fdb_missing", "neigh_missing"],
        3,
    )
    assert "20/20 pairs reachable" in learner.types("verify", "mesh")
    assert names(learner, "neigh_missing", "node-2", code=0)["verdict"] == "proved"


def test_two_that_are_seen_only_together_are_healed_together(learner: Learner):
    """Seed 0: node-3 answers by another interface, and so refuses what comes by flannel.1."""
    learner.types("lab", "reset", "--seed", "0")
    first = names(learner, "route_missing", "node-3", code=1)
    assert "the other is not seen without it" in evidence(first)
    assert len(learner.asks("status")["faults"]) == 2
    assert names(learner, "rp_filter", "node-3", code=0)["verdict"] == "proved"
    assert learner.asks("status")["faults"] == []


def test_lab_that_was_made_whole_has_nothing_to_be_found(learner: Learner):
    learner.types("lab", "reset", "--seed", "5")
    learner.types("up", str(learner.entry.folder / "lab.yaml"))
    found = names(learner, "forwarding_off", "node-1", code=1)
    assert [claim["verdict"] for claim in found["claims"]] == ["fail"]
    assert "overlaynet lab reset mystery --seed 5" in evidence(found)


# --- every seed -----------------------------------------------------------------------------------


def looks_of(mystery: ModuleType) -> list[Asked]:
    """What somebody asks who has no idea: between hosts, within one, the service, something large. Each is
    answered, so both ways are seen."""
    pairs = [("red", "green"), ("green", "grey"), ("grey", "red"), ("blue", "shop")]
    asked = [Asked(source, target, "icmp") for source, target in pairs]
    asked += [Asked(source, mystery.SERVICE) for source in ADDRESSES]
    asked += [Asked(source, target, "udp", 9, size=1400, df=True) for source, target in pairs]
    return asked


def first_lost(stage: Stage, asked: list[Asked]) -> tuple[int, Trace]:
    """How many looks it took until something was lost, and that. Undecided is neither: that is asked again."""
    for number, one in enumerate(asked * ROUNDS, 1):
        found = trace(stage.cluster, one).trace
        if found.verdict in (LOST, WRONG_PATH):
            return number, found
    raise AssertionError("nothing is lost")


def object_of(fault: Any) -> str:
    """A part of what the trace has to name, in the words of the tool that shows it."""
    first, *others = fault.request.words
    peer = others[0][-1] if others else ""
    match fault.cause:
        case "link_down":
            return f"link {first.partition(':')[2] or 'eth0'}"
        case "node_down":
            return f"host {first}"
        case "route_missing" | "route_wrong":
            return "route 10.244." if others == ["default"] else f"route 10.244.{peer}.0/24 "
        case "neigh_missing" | "neigh_wrong":
            return f"neigh 10.244.{peer}.0 dev flannel.1"
        case "fdb_missing" | "fdb_wrong":
            return f"fdb 02:0a:f4:0{peer}:00:00 dev flannel.1"
        case "rule_drop" | "rule_reject":
            source, target = (ADDRESSES[name] for name in others)
            return f"-t filter -A FORWARD -s {source}/32 -d {target}/32 "
        case "rule_missing":
            return "-t nat -A OVL-SERVICES -d 10.112.0.10/32 "
        case "no_endpoints":
            return "default/shop has no endpoints"
        case "mtu":
            return "underlay from node-" if first.startswith("node-") else " mtu 1300"
        case "forwarding_off":
            return "sysctl net.ipv4.ip_forward = 0"
        case "rp_filter":
            return "rp_filter = 1"
    return "underlay "


def test_twenty_seeds_are_each_found_by_trace_and_named_by_it(
    stage: Stage, mystery: ModuleType, record_property
):
    """One after another in one lab: what is found first is healed, until nothing is left of the seed."""
    began, looks, causes, asked = time.monotonic(), [], set(), looks_of(mystery)
    for seed in range(20):
        faults = mystery.hidden_by(seed)
        left = dict(zip(mystery.hide(stage, faults), faults, strict=True))
        taken = 0
        while left:
            number, found = first_lost(stage, asked)
            taken += number
            assert found.cause is not None, (seed, found.verdict, found.inconclusive_because)
            told = [ident for ident, fault in left.items() if fault.is_told_by(found)]
            assert len(told) == 1, (seed, [fault.cause for fault in left.values()], found.cause)
            fault = left.pop(told[0])
            assert object_of(fault) in found.cause.object, (seed, found.cause)
            causes.add(found.cause.kind)
            if mystery.is_together(faults):
                causes |= {one.cause for one in left.values() if one.is_told_by(mystery.meet(stage, one))}
                left.clear()
                told = []
            stage.heal(*told, hidden=True)
        looks.append(taken)
        eventually(lambda: mystery.is_serving(stage), deadline_s=20)
    assert causes == set(CAUSES) - {"unknown"}
    assert json.loads((Paths.here().lab("mystery").state / "lesson.json").read_text())["lesson"] == "mystery"
    took_s = time.monotonic() - began
    record_property(
        "mystery: twenty seeds found by trace", f"{took_s:5.1f} s, {sum(looks) / len(looks):.1f} looks each"
    )
