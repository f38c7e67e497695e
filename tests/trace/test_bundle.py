"""A trace in one file, and files that are none."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from io import BytesIO
from ipaddress import ip_address

import pytest
from helpers.frames import echo, ethernet, pieces, vxlan
from hypothesis import given, settings
from hypothesis import strategies as st

import overlaynet
from overlaynet.errors import BundleInvalid
from overlaynet.state import KernelState, RuleLine, RuleSet
from overlaynet.trace import bundle as bundles
from overlaynet.trace import pcapng
from overlaynet.trace.bundle import Bundle, comments, read, write
from overlaynet.trace.decode import decode
from overlaynet.trace.join import join
from overlaynet.trace.model import (
    Captured,
    Change,
    Evidence,
    Hop,
    Path,
    Place,
    Point,
    Prediction,
    Question,
    Sent,
    Tap,
    Trace,
    World,
)

pytestmark = pytest.mark.unit

COOKIE = bytes.fromhex("00112233445566ff")
CLIENT, WEB = "10.244.1.2", "10.244.2.2"
INSIDE, WIRE = Point("client-1", "eth0"), Point("node-1", "eth0")
QUESTION = Question("client-1", "web-1", ip_address(CLIENT), ip_address(WEB), "icmp")
RULES = RuleSet(
    "nft", {("nat", "PREROUTING"): (RuleLine('-m comment --comment "größer" -j OVL-SERVICES', 3, 180),)}
)
WORLD = World(
    {
        "client-1": Place("client-1", "container", "node-1", "ovl-x-client-1", KernelState()),
        "node-1": Place("node-1", "host", "node-1", "ovl-x-node-1", KernelState(), RULES),
    }
)
PING = echo(CLIENT, WEB, 7, COOKIE)


def captured(point: Point, t_ns: int | None, packet, direction="out") -> Captured:
    octets = ethernet(packet)
    return Captured(point, t_ns, direction, octets[:256], len(octets))


TUNNELLED = vxlan("192.168.50.11", "192.168.50.12", PING)
FRAMES = (captured(INSIDE, 1_000, PING), captured(WIRE, 3_000, TUNNELLED))
EVIDENCE = Evidence(
    (Tap(INSIDE, "", True, True, 0), Tap(WIRE, "", True, True, 2)),
    FRAMES,
    (Sent(1, COOKIE.hex(), 7, 500),),
    after=WORLD,
)
VERDICT = {"id": "t-0001", "verdict": "proved", "forward": [{"point": "client-1:eth0"}]}
BUNDLE = Bundle(QUESTION, WORLD, EVIDENCE, VERDICT, {1: "hop 2 forward: +50 B: VXLAN vni 1"})


def packed(bundle: Bundle = BUNDLE) -> bytes:
    file = BytesIO()
    write(file, bundle)
    return file.getvalue()


PACKED = packed()


def test_what_is_written_is_read() -> None:
    assert read(BytesIO(PACKED)) == BUNDLE


def test_equal_content_gives_equal_bytes() -> None:
    assert packed(read(BytesIO(PACKED))) == PACKED
    assert packed() == PACKED


def test_frames_are_in_order_of_time_and_keep_their_comments() -> None:
    mixed = replace(BUNDLE, evidence=replace(EVIDENCE, frames=FRAMES[::-1]), comments={0: "wire", 1: "inside"})
    found = read(BytesIO(packed(mixed)))
    assert found.evidence.frames == FRAMES
    assert found.comments == {0: "inside", 1: "wire"}


def test_frames_are_joined_from_a_file_as_from_the_wire() -> None:
    prediction = Prediction(QUESTION, (Path("delivered", ()),))
    back = read(BytesIO(PACKED))
    assert join(back.question, prediction, back.evidence) == join(QUESTION, prediction, EVIDENCE)


def test_both_files_are_there_for_other_programs() -> None:
    with zipfile.ZipFile(BytesIO(PACKED)) as archive:
        assert archive.namelist() == ["trace.json", "capture.pcapng"]
        assert archive.testzip() is None
        document = json.loads(archive.read("trace.json"))
        capture = pcapng.read(archive.read("capture.pcapng"))
    assert (document["schema"], document["kind"]) == ("overlaynet/v1", "TraceBundle")
    assert document["overlaynet"] == overlaynet.__version__
    assert document["verdict"] == VERDICT
    assert document["evidence"]["frames"] is None
    assert capture.application == f"overlaynet {overlaynet.__version__}"
    assert capture.interfaces == (
        pcapng.Interface(INSIDE, "container on node-1, namespace ovl-x-client-1", None, 0),
        pcapng.Interface(WIRE, "host, namespace ovl-x-node-1", None, 2),
    )
    assert [packet.comments for packet in capture.packets] == [(), ("hop 2 forward: +50 B: VXLAN vni 1",)]
    assert decode(capture.packets[1].captured.data).payload == COOKIE


def test_frame_of_a_point_without_tap_or_place_is_kept() -> None:
    stray = captured(Point("gone", "eth0"), None, PING)
    bundle = replace(BUNDLE, evidence=replace(EVIDENCE, frames=(stray, *FRAMES)), comments={})
    assert read(BytesIO(packed(bundle))) == bundle


# --- comments -------------------------------------------------------------------------------------


def hop(point: Point, *changes: Change) -> Hop:
    return Hop(*point, "out", decode(FRAMES[0].data).packet, changes=changes)


def test_frames_are_told_which_hop_they_are() -> None:
    frames = (
        captured(INSIDE, 1, PING),
        *(captured(WIRE, 2, piece) for piece in pieces(BIG)),
        captured(INSIDE, 9, PING),
    )
    evidence = replace(EVIDENCE, frames=frames)
    prediction = Prediction(QUESTION, (Path("delivered", ()),))
    hops = (hop(INSIDE), hop(WIRE, Change("ttl", "64", "63", "routed")))
    trace = Trace("t-1", "proved", QUESTION, "delivered", forward=hops)
    assert comments(trace, join(QUESTION, prediction, evidence)) == {
        0: "hop 1 forward",
        1: "hop 2 forward: ttl 63: routed",
        2: "hop 2 forward: ttl 63: routed",
    }


BIG = echo(CLIENT, WEB, 7, COOKIE * 200, df=False)


def test_frames_of_several_tries_and_of_no_hop_are_told_apart() -> None:
    other = bytes(8)
    sent = (*EVIDENCE.sent, Sent(2, other.hex(), 8, 600))
    frames = (*FRAMES, captured(INSIDE, 4_000, echo(CLIENT, WEB, 8, other)))
    prediction = Prediction(QUESTION, (Path("delivered", ()),))
    trace = Trace("t-1", "lost", QUESTION, "delivered", forward=(hop(INSIDE),))
    assert comments(trace, join(QUESTION, prediction, replace(EVIDENCE, frames=frames, sent=sent))) == {
        0: "try 1, hop 1 forward",
        1: "try 1, forward, at no hop of its path",
        2: "try 2, hop 1 forward",
    }


# --- files that are none --------------------------------------------------------------------------


def archive(compression: int = zipfile.ZIP_DEFLATED, **contents) -> bytes:
    """A zip with these files: ``trace_json=…``; what is not given is as it should be."""
    with zipfile.ZipFile(BytesIO(PACKED)) as whole:
        right = {name: whole.read(name) for name in whole.namelist()}
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, octets in (right | {name.replace("_", "."): c for name, c in contents.items()}).items():
            if octets is not None:
                made.writestr(name, octets)
    return file.getvalue()


def state(**changes) -> bytes:
    with zipfile.ZipFile(BytesIO(PACKED)) as whole:
        document = json.loads(whole.read("trace.json"))
    return json.dumps({**document, **changes}).encode()


def test_archive_that_another_program_packed_again_is_read() -> None:
    assert read(BytesIO(archive())) == BUNDLE
    assert read(BytesIO(archive(zipfile.ZIP_STORED))) == BUNDLE


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        pytest.param(b"", "no trace bundle", id="empty"),
        pytest.param(b"\x7fELF" + bytes(100), "no trace bundle", id="program"),
        pytest.param(PACKED[: len(PACKED) // 2], "no trace bundle", id="half"),
        pytest.param(archive(capture_pcapng=None), "no trace bundle", id="without-capture"),
        pytest.param(archive(trace_json=None), "no trace bundle", id="without-state"),
        pytest.param(archive(zipfile.ZIP_LZMA), "no trace bundle", id="lzma"),
        pytest.param(archive(trace_json=b"[]"), "no trace bundle", id="list"),
        pytest.param(archive(trace_json=b"[" * 100_000), "no trace bundle", id="nested"),
        pytest.param(archive(trace_json=b"\xff"), "no trace bundle", id="no-text"),
        pytest.param(archive(trace_json=state(kind="Trace")), "no trace bundle", id="another-kind"),
        pytest.param(archive(trace_json=state(schema="overlaynet/v2")), "another version", id="newer"),
        pytest.param(archive(trace_json=state(question={})), "damaged", id="question-damaged"),
        pytest.param(archive(trace_json=state(world={"places": 1})), "damaged", id="world-damaged"),
        pytest.param(archive(trace_json=state(evidence=None)), "damaged", id="no-evidence"),
        pytest.param(archive(capture_pcapng=b"GIF89a" + bytes(90)), "no trace bundle", id="no-pcapng"),
    ],
)
def test_what_is_no_bundle_is_refused_with_evidence(octets, words) -> None:
    with pytest.raises(BundleInvalid, match=words) as caught:
        read(BytesIO(octets))
    assert caught.value.evidence
    assert caught.value.next
    assert (caught.value.code, caught.value.exit_code) == ("OVL-109", 2)


@pytest.mark.parametrize("name", ["trace_json", "capture_pcapng"])
def test_what_unpacks_to_more_than_any_trace_is_refused(name, monkeypatch) -> None:
    monkeypatch.setattr(bundles, "LARGEST_BYTES", 1 << 20)
    assert read(BytesIO(PACKED)) == BUNDLE
    with pytest.raises(BundleInvalid, match="too large") as caught:
        read(BytesIO(archive(**{name: bytes(1 << 21)})))
    assert "more than 1 MiB" in caught.value.evidence


places = st.integers(0, len(PACKED) - 1)


@settings(max_examples=400)
@given(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 20))
def test_damaged_bytes_are_refused_or_change_nothing(errors, cut) -> None:
    damaged = bytearray(PACKED)
    for place, value in errors:
        damaged[place] = value
    try:
        found = read(BytesIO(bytes(damaged[: len(damaged) - cut])))
    except BundleInvalid:
        return
    assert found == BUNDLE


@given(st.binary(max_size=200))
def test_any_other_file_is_refused(octets) -> None:
    with pytest.raises(BundleInvalid):
        read(BytesIO(octets))
