"""A trace in one file, `.ovltrace`: all that it was judged from, and the verdict as it was then.

It is a zip archive of two files, for people and for other programs:

    trace.json      question, world (the state of every place), evidence without frames, verdict document
    capture.pcapng  every captured frame, in order of time, with the point that saw it and what it was there;
                    for Wireshark (``-d udp.port==8472,vxlan``: it knows VXLAN by the port 4789)

Whoever has a bundle can judge again, without privilege and without the network it tells of. Nothing in it is a
program or a pickle. Equal content gives equal bytes: the archive has no times of its own.

A bundle **reveals** names and addresses of hosts, containers and services, the routes and firewall rules of the
places on the path, and the first bytes of frames that passed there between the same addresses. It holds no
secrets of ours: neither etcd's credentials nor keys are part of any state that is read.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import overlaynet
from overlaynet.errors import BundleInvalid, ValueInvalid
from overlaynet.trace import pcapng
from overlaynet.trace.model import Captured, Evidence, Hop, Point, Question, Trace, World
from overlaynet.trace.render.words import change_words
from overlaynet.trace.worldjson import (
    evidence_from_json,
    evidence_to_json,
    question_from_json,
    question_to_json,
    world_from_json,
    world_to_json,
)

if TYPE_CHECKING:  # who reads a bundle need not wait for scapy
    from overlaynet.trace.join import Joined, Sighting

SUFFIX = ".ovltrace"
SCHEMA, KIND = "overlaynet/v1", "TraceBundle"
LARGEST_BYTES = 256 << 20
"""Of either file: the state of a few hosts with tens of thousands of rules is a tenth of it."""

_STATE, _FRAMES = "trace.json", "capture.pcapng"
_BEGINNING_OF_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_READABLE_BY_ALL = 0o100644 << 16
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a file holds. `verdict`: the document of the trace as it was judged by overlaynet `version`;
    `comments`: what frames are, by their number in the evidence."""

    question: Question
    world: World
    evidence: Evidence
    verdict: Mapping[str, Any]
    comments: Mapping[int, str] = field(default_factory=dict)
    version: str = overlaynet.__version__


def comments(trace: Trace, joined: Joined) -> dict[int, str]:
    """What each frame of the packet and its answer is: ``hop 5 forward: +50 B: VXLAN vni 1``."""
    found: dict[int, str] = {}
    for followed in joined.tries:
        which = f"try {followed.sent.number}, " if len(joined.tries) > 1 else ""
        for way, hops, sightings in (
            ("forward", trace.forward, followed.forward),
            ("reply", trace.reply, followed.reply),
        ):
            for number, said in _said(way, hops, sightings):
                found[number] = which + said
    return found


def _said(way: str, hops: tuple[Hop, ...], sightings: tuple[Sighting, ...]) -> Iterator[tuple[int, str]]:
    """A point that is passed twice has its hops in order."""
    left = list(enumerate(hops, start=1))
    for seen in sightings:
        here = next(
            (hop for hop in left if (hop[1].point, hop[1].direction) == (seen.point, seen.direction)), None
        )
        if here is None:
            yield from ((number, f"{way}, at no hop of its path") for number in seen.numbers)
            continue
        left.remove(here)
        words = f"hop {here[0]} {way}"
        changed = change_words(here[1])
        yield from ((number, f"{words}: {changed}" if changed else words) for number in seen.numbers)


# --- writing --------------------------------------------------------------------------------------


def write(file: BinaryIO, bundle: Bundle) -> None:
    """Write a bundle."""
    bundle = _in_order(bundle)
    document = {
        "schema": SCHEMA,
        "kind": KIND,
        "overlaynet": bundle.version,
        "question": question_to_json(bundle.question),
        "world": world_to_json(bundle.world),
        "evidence": evidence_to_json(bundle.evidence),
        "verdict": bundle.verdict,
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, octets in (
            (_STATE, json.dumps(document, indent=1, sort_keys=True).encode()),
            (_FRAMES, _capture(bundle)),
        ):
            entry = zipfile.ZipInfo(name, _BEGINNING_OF_ZIP_TIME)
            entry.external_attr, entry.compress_type = _READABLE_BY_ALL, zipfile.ZIP_DEFLATED
            archive.writestr(entry, octets)


def _in_order(bundle: Bundle) -> Bundle:
    """The same with its frames in order of time."""
    frames = bundle.evidence.frames
    order = sorted(range(len(frames)), key=lambda number: frames[number].t_ns or 0)
    return replace(
        bundle,
        evidence=replace(bundle.evidence, frames=tuple(frames[number] for number in order)),
        comments={new: bundle.comments[old] for new, old in enumerate(order) if old in bundle.comments},
    )


def _capture(bundle: Bundle) -> bytes:
    file = BytesIO()
    frames, taps = bundle.evidence.frames, bundle.evidence.taps
    points = dict.fromkeys([*(tap.point for tap in taps), *(frame.point for frame in frames)])
    described = {point: _description(bundle.world, point) for point in points}
    writer = pcapng.Writer(file, described, application=f"overlaynet {bundle.version}")
    for number, frame in enumerate(frames):
        said = bundle.comments.get(number)
        writer.frame(frame, *([said] if said else []))
    last = frames[-1].t_ns if frames else None
    for tap in taps:
        writer.statistics(tap.point, None, tap.dropped, last)
    return file.getvalue()


def _description(world: World, point: Point) -> str:
    """What Wireshark shows beside a point's name."""
    place = world.places.get(point.place)
    if place is None:
        return ""
    words = [place.kind, *([f"on {place.host}"] if place.host not in (None, place.name) else [])]
    return ", ".join([" ".join(words), *([f"namespace {place.netns}"] if place.netns else [])])


# --- reading --------------------------------------------------------------------------------------


def read(file: BinaryIO) -> Bundle:
    """Read a bundle. Its frames are in order of time. Raises BundleInvalid for a file that is none, is damaged,
    holds more than `LARGEST_BYTES`, or was written by a newer overlaynet in another way."""
    try:
        return _read(file)
    except ValueInvalid as error:
        raise _invalid("this trace bundle is damaged", error.evidence or error.message) from None
    except (
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, LookupError, TypeError, ValueError,
        AttributeError, ArithmeticError, struct.error,
    ) as error:  # fmt: skip
        raise _invalid(
            "this is no trace bundle, or a damaged one", f"{type(error).__name__}: {error}"
        ) from None


def _read(file: BinaryIO) -> Bundle:
    with zipfile.ZipFile(file) as archive:
        names = sorted({_STATE, _FRAMES} - set(archive.namelist()))
        if names:
            raise _invalid("this is no trace bundle", f"it is a zip archive without {' and '.join(names)}")
        document = _document(_content(archive, _STATE))
        capture = pcapng.read(_content(archive, _FRAMES))
    frames: list[Captured] = [packet.captured for packet in capture.packets]
    return Bundle(
        question=question_from_json(document["question"]),
        world=world_from_json(document["world"]),
        evidence=evidence_from_json(document["evidence"], frames),
        verdict=document["verdict"],
        comments={n: packet.comments[0] for n, packet in enumerate(capture.packets) if packet.comments},
        version=document["overlaynet"],
    )


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type not in _COMPRESSIONS or entry.flag_bits & _ENCRYPTED:
        raise _invalid(
            "this is no trace bundle", f"{name} in it is encrypted or compressed in a way that bundles are not"
        )
    with archive.open(entry) as opened:
        octets = opened.read(LARGEST_BYTES + 1)
    if len(octets) > LARGEST_BYTES:
        raise _invalid(
            "this trace bundle is too large", f"{name} in it has more than {LARGEST_BYTES >> 20} MiB"
        )
    return octets


def _document(octets: bytes) -> Mapping[str, Any]:
    document = json.loads(octets)
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise _invalid("this is no trace bundle", f"{_STATE} in it is no document of kind {KIND}")
    if document.get("schema") != SCHEMA:
        said = f"its schema is {document.get('schema')!r}, this is overlaynet {overlaynet.__version__}"
        raise _invalid(
            "another version of overlaynet wrote this trace bundle", f"{said}, which reads {SCHEMA!r}"
        )
    return document


def _invalid(message: str, evidence: str) -> BundleInvalid:
    again = f"overlaynet trace FROM TO -w FILE{SUFFIX}"
    return BundleInvalid(message, evidence=evidence, next=[again])
