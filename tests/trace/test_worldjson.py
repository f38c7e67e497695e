"""World, question and evidence survive the trip through JSON.

The values are made from the types themselves, every field of them, so that a field that is added to
`trace/model.py` and not described in `worldjson.py` fails here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from helpers.states import chain_keys, kernels, objects, rulesets
from hypothesis import given, settings
from hypothesis import strategies as st

from overlaynet.errors import ValueInvalid
from overlaynet.state import Route, Source
from overlaynet.trace import worldjson
from overlaynet.trace.model import (
    Captured,
    Connection,
    Count,
    Evidence,
    Listener,
    Node,
    Place,
    Point,
    Question,
    Reach,
    Sent,
    Service,
    Tap,
    Wanted,
    World,
)

pytestmark = pytest.mark.unit

names = st.text(alphabet="abz019-._", min_size=1, max_size=6)
texts = st.text(max_size=6)
ips = st.ip_addresses()
sources = st.builds(Source, texts, texts)
points = st.builds(Point, names, names)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=2)
)


def maybe(strategy):
    return st.none() | strategy


def tuples(strategy):
    return st.lists(strategy, max_size=3).map(tuple)


def by_chain(strategy):
    return st.dictionaries(chain_keys, strategy, max_size=2)


def named(strategy):
    return st.dictionaries(names, strategy, max_size=2)


def whole(cls, **fields):
    """A value with every field given: those named here, the rest by their types."""
    every = getattr(cls, "_fields", None) or cls.__dataclass_fields__
    return st.builds(cls, **{name: fields.get(name, ...) for name in every})


speakable = objects.filter(lambda obj: all(str(part) and " " not in str(part) for part in obj.key))
listeners = whole(Listener, ip=maybe(ips))
places = whole(
    Place,
    kernel=kernels,
    rules=maybe(rulesets),
    nft=maybe(named(plain)),
    listening=st.frozensets(listeners, max_size=2),
)
nodes = whole(Node, underlay_ips=tuples(ips))
wanted = whole(
    Wanted,
    objects=st.lists(speakable, max_size=3).map(lambda some: {obj.key: obj for obj in some}),
    sources=st.dictionaries(speakable.map(lambda obj: obj.key), sources, max_size=3),
    chains=by_chain(tuples(texts)),
    hooks=by_chain(tuples(texts)),
    origins=by_chain(tuples(sources)),
)
worlds = whole(
    World,
    places=named(places),
    cables=st.dictionaries(points, points, max_size=2),
    wanted=named(wanted),
    nodes=named(nodes),
    services=tuples(whole(Service, ips=tuples(ips))),
    unseen=named(texts),
)
questions = whole(Question, src=ips, dst=ips)
frames = whole(Captured, point=points)
evidences = whole(
    Evidence,
    taps=tuples(whole(Tap, point=points)),
    frames=tuples(frames),
    sent=tuples(whole(Sent, rtt_us=maybe(st.floats(allow_nan=False)))),
    counts=tuples(whole(Count)),
    connections=tuples(whole(Connection)),
    reach=tuples(whole(Reach)),
    after=maybe(worlds),
    problems=tuples(texts),
)


def through_json(document: Mapping) -> dict:
    return json.loads(json.dumps(document))


@given(questions)
def test_question_round_trip_is_exact(question) -> None:
    assert worldjson.question_from_json(through_json(worldjson.question_to_json(question))) == question


@settings(max_examples=50)
@given(worlds)
def test_world_round_trip_is_exact(world) -> None:
    assert worldjson.world_from_json(through_json(worldjson.world_to_json(world))) == world


@settings(max_examples=50)
@given(evidences)
def test_evidence_round_trip_is_exact(evidence) -> None:
    document = through_json(worldjson.evidence_to_json(evidence))
    assert document["frames"] is None
    assert worldjson.evidence_from_json(document, evidence.frames) == evidence


def test_documents_name_things_as_people_do() -> None:
    one, other = Point("node-1", "veth1"), Point("web-1", "eth0")
    route = Route(ip_network("10.244.2.0/24"), "flannel.1", metric=2)
    world = World(
        places={},
        cables={one: other},
        wanted={"node-1": Wanted({route.key: route}, {route.key: Source("lease", "10.244.2.0-24")})},
    )
    document = worldjson.world_to_json(world)
    assert document["cables"] == {"node-1:veth1": "web-1:eth0"}
    assert document["wanted"]["node-1"]["sources"] == [
        ["route", "254 10.244.2.0/24 2", "lease", "10.244.2.0-24"]
    ]
    assert set(document) == set(World.__dataclass_fields__)


QUESTION = Question("web-1", "svc/web", ip_address("10.244.1.2"), ip_address("10.112.0.10"), "tcp", dst_port=80)


@pytest.mark.parametrize(
    "damage",
    [{"src": "nowhere"}, {"dst": 5.5}, {"source": ...}],
    ids=["no-address", "no-text", "absent"],
)
def test_foreign_document_is_refused(damage) -> None:
    document = {k: v for k, v in {**worldjson.question_to_json(QUESTION), **damage}.items() if v is not ...}
    with pytest.raises(ValueInvalid) as caught:
        worldjson.question_from_json(document)
    assert caught.value.evidence


WORLD = worldjson.world_to_json(World({}, wanted={"node-1": Wanted()}))
ODD_KEY = {**WORLD["wanted"]["node-1"], "sources": [["route", "no destination", "lease", "a"]]}


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("places", {"node-1": {}}),
        ("places", []),
        ("cables", ["node-1:eth0"]),
        ("wanted", {"node-1": ODD_KEY}),
        ("services", [{"id": "default/web"}]),
    ],
)
def test_damaged_world_is_refused(member, value) -> None:
    with pytest.raises(ValueInvalid):
        worldjson.world_from_json({**WORLD, member: value})


def test_frames_are_the_callers() -> None:
    frame = Captured(Point("web-1", "eth0"), 1, "in", b"x", 1)
    evidence = Evidence((), (frame,), ())
    assert worldjson.evidence_from_json(worldjson.evidence_to_json(evidence), ()) == replace(
        evidence, frames=()
    )
