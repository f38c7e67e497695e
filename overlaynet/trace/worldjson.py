"""What a trace was judged from as plain JSON, and back, without loss: the question, the world, the evidence.

Captured frames are not in it: they go into a capture file beside, where other programs can read them too. All
else is judged again, years later and on another machine, to the same verdict.

Each type is described once, as in `core/jsonstate.py`, which describes what these are made of: a namespace's
kernel state, its rules, and single kernel objects. A point is text, ``node-1:eth0``: the kernel allows no colon
in an interface's name (net/core/dev.c, dev_valid_name).

Reading raises ValueInvalid for a document that was not written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from overlaynet.core.jsonstate import (
    kernel_from_json,
    kernel_to_json,
    key_from_text,
    key_text,
    object_from_json,
    object_to_json,
    rules_from_json,
    rules_to_json,
)
from overlaynet.core.shapes import IP, IPS, TEXTS, Codec, Json, Shape, shape, tuple_of
from overlaynet.errors import UsageError, ValueInvalid
from overlaynet.state import Key, Object, Source, kind_of
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


def _point(text: str) -> Point:
    place, _, iface = text.partition(":")
    return Point(place, iface)


def _mapping(codec: Codec) -> Codec:
    """A mapping from names."""
    return Codec(
        lambda items: {name: codec.write(item) for name, item in items.items()},
        lambda items: {name: codec.read(item) for name, item in items.items()},
    )


def _by_chain(codec: Codec) -> Codec:
    """A mapping from (table, chain)."""
    return Codec(
        lambda items: [[*key, codec.write(item)] for key, item in items.items()],
        lambda items: {(table, chain): codec.read(item) for table, chain, item in items},
    )


def _objects_to_json(objects: Mapping[Key, Object]) -> list[Json]:
    return [object_to_json(obj) for obj in objects.values()]


def _objects_from_json(documents: Sequence[Json]) -> dict[Key, Object]:
    return {obj.key: obj for obj in map(object_from_json, documents)}


def _sources_to_json(sources: Mapping[Key, Source]) -> list[list[str]]:
    return [[kind_of(key), key_text(key), *source] for key, source in sources.items()]


def _sources_from_json(rows: Sequence[Sequence[str]]) -> dict[Key, Source]:
    return {key_from_text(kind, key): Source(*source) for kind, key, *source in rows}


def _cables_from_json(rows: Mapping[str, str]) -> dict[Point, Point]:
    return {_point(one): _point(other) for one, other in rows.items()}


_POINT = Codec(str, _point)
_KERNEL = Codec(kernel_to_json, kernel_from_json)
_RULES = Codec(rules_to_json, rules_from_json)
_LISTENER = shape(Listener, ip=IP)
_LISTENING = Codec(
    lambda some: sorted((_LISTENER.write(one) for one in some), key=str),
    lambda some: frozenset(map(_LISTENER.read, some)),
)
_CABLES = Codec(lambda cables: {str(one): str(other) for one, other in cables.items()}, _cables_from_json)
_SOURCES = tuple_of(Codec(list, lambda pair: Source(*pair)))
_SERVICE = shape(Service, ips=IPS, ports=tuple_of(TEXTS))
_PLACE = shape(Place, kernel=_KERNEL, rules=_RULES, listening=_LISTENING, unread=TEXTS)
_NODE = shape(Node, underlay_ips=IPS)
_WANTED = shape(
    Wanted,
    objects=Codec(_objects_to_json, _objects_from_json),
    sources=Codec(_sources_to_json, _sources_from_json),
    chains=_by_chain(TEXTS),
    hooks=_by_chain(TEXTS),
    origins=_by_chain(_SOURCES),
)
_WORLD = shape(
    World,
    places=_mapping(_PLACE.codec),
    cables=_CABLES,
    wanted=_mapping(_WANTED.codec),
    nodes=_mapping(_NODE.codec),
    services=tuple_of(_SERVICE.codec),
)
_QUESTION = shape(Question, src=IP, dst=IP)
_EVIDENCE = shape(
    Evidence,
    taps=tuple_of(shape(Tap, point=_POINT).codec),
    frames=Codec(lambda frames: None, tuple),
    sent=tuple_of(shape(Sent).codec),
    counts=tuple_of(shape(Count).codec),
    connections=tuple_of(shape(Connection).codec),
    reach=tuple_of(shape(Reach).codec),
    after=_WORLD.codec,
    problems=TEXTS,
)


def question_to_json(question: Question) -> Json:
    """Who sends what to whom."""
    return _QUESTION.write(question)


def question_from_json(document: Mapping[str, Any]) -> Question:
    """The opposite of `question_to_json`."""
    return _checked(_QUESTION, document)  # type: ignore[no-any-return]


def world_to_json(world: World) -> Json:
    """Everything that the path was predicted from."""
    return _WORLD.write(world)


def world_from_json(document: Mapping[str, Any]) -> World:
    """The opposite of `world_to_json`."""
    return _checked(_WORLD, document)  # type: ignore[no-any-return]


def evidence_to_json(evidence: Evidence) -> Json:
    """Everything that was observed, but for the frames: their member is null."""
    return _EVIDENCE.write(evidence)


def evidence_from_json(document: Mapping[str, Any], frames: Sequence[Captured]) -> Evidence:
    """The opposite of `evidence_to_json`, with the frames that were kept elsewhere."""
    return _checked(_EVIDENCE, {**document, "frames": frames})  # type: ignore[no-any-return]


def _checked(described: Shape, document: Mapping[str, Any]) -> Any:
    try:
        return described.read(document)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise ValueInvalid(
            "this was not written as part of a trace", evidence=f"{type(error).__name__}: {error}"
        ) from None
