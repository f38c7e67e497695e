"""A learner's document: made of a record, read from a file of somebody else's, merged into a class's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.classroom import handed_in, item, prediction

from overlaynet.errors import ReportInvalid
from overlaynet.lessons import report
from overlaynet.lessons.catalogue import entries
from overlaynet.lessons.record import Progress, Record

pytestmark = pytest.mark.unit


def seed(number: int, looks: int, verdict: str = "proved") -> dict[str, Any]:
    """Two faults, of which the second is found only where it is proved."""
    first = {"kind": "fdb_wrong", "place": "node-1", "object": "fdb", "words": "it was", "found": True}
    second = first if verdict == "proved" else {**dict.fromkeys(first), "found": False}
    return {"seed": number, "verdict": verdict, "looks": looks, "faults": [first, second]}


@pytest.fixture
def done() -> Record:
    """vxlan proved after one wrong prediction, mtu untouched, and a lesson that is not there any more."""
    found = {"name": "ttl", "theory": "62", "captured": "62", "because": "two hosts route it"}
    claim = {"text": "it is there", "verdict": "pass", "evidence": ""}
    vxlan = Progress(
        started_at="2026-01-05T08:00:00+00:00",
        proved_at="2026-01-05T08:20:00+00:00",
        starts=2,
        checks=3,
        hints=1,
        predictions={"ttl": ["64", "62"]},
        captured={"ttl": found},
        seeds={"10": seed(10, 4), "9": seed(9, 5, "not_yet")},
        last={"verdict": "proved", "claims": [claim]},
    )
    return Record("alice", {"vxlan": vxlan, "gone": Progress(started_at="2026-01-05T08:00:00+00:00", starts=1)})


def test_document_has_each_lesson_and_what_was_done_in_it(lessons: Path, done: Record):
    made = report.report(done, entries())
    assert (made["learner"], made["proved"]) == ("alice", 1)
    vxlan, mtu, gone = made["items"]
    assert (vxlan["number"], vxlan["state"], vxlan["starts"], vxlan["checks"], vxlan["hints"]) == (
        3,
        "proved",
        2,
        3,
        1,
    )
    assert vxlan["predictions"] == [
        prediction(
            first="64", last="62", theory="62", captured="62", right_first=False, because="two hosts route it"
        ),
        prediction(name="last", question="Where is it seen last?"),
    ]
    assert (vxlan["verdict"], vxlan["claims"][0]["text"]) == ("proved", "it is there")
    assert vxlan["seeds"] == [seed(9, 5, "not_yet"), seed(10, 4)]
    assert [report.found(one) for one in vxlan["seeds"]] == [
        "1 of 2: fdb_wrong at node-1",
        "2 of 2: fdb_wrong at node-1, fdb_wrong at node-1",
    ]
    assert (mtu["number"], mtu["state"], mtu["starts"], mtu["verdict"], mtu["claims"]) == (4, None, 0, None, [])
    assert (gone["number"], gone["lesson"], gone["state"], gone["question"]) == (None, "gone", "started", None)


def test_document_is_read_again_as_it_was_written(lessons: Path, done: Record, tmp_path: Path):
    document = handed_in("x") | report.report(done, entries())
    file = tmp_path / "alice.json"
    file.write_text(json.dumps(document))
    assert report.read(file) == document


@pytest.mark.parametrize("levels", [19, 20, 600, 100_000])
def test_a_report_that_is_nested_as_none_is_gets_refused(levels: int, tmp_path: Path):
    file = tmp_path / "deep.json"
    file.write_text(json.dumps(handed_in("x"))[:-1] + f', "more": {"[" * levels}{"]" * levels}}}')
    if levels < report.DEEPEST:
        assert report.read(file)["learner"] == "x"
    else:
        with pytest.raises(ReportInvalid, match="is no report"):
            report.read(file)


def spoilt(path: str, value: object) -> dict[str, Any]:
    """A good document with one member changed; `path` as in ``items.0.hints``."""
    document = handed_in(
        "alice", item(predictions=[prediction()], claims=[dict.fromkeys(("text", "evidence"), "")])
    )
    document["items"][0]["claims"][0]["verdict"] = "pass"
    *way, last = path.split(".")
    place: Any = document
    for part in way:
        place = place[int(part) if part.isdecimal() else part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "member"),
    [
        ("schema", "overlaynet/v2", "schema"),
        ("kind", "LessonCheck", "kind"),
        ("learner", None, "learner"),
        ("learner", "x" * 301, "learner"),
        ("made_at", "yesterday", "made_at"),
        ("made_at", "<b>2026-01-05T08:00:00+00:00", "made_at"),
        ("items", {}, "items"),
        ("items", [{}] * 201, "items"),
        ("items.0.lesson", "<script>", "items[0].lesson"),
        ("items.0.state", "perfect", "items[0].state"),
        ("items.0.hints", 4, "items[0].hints"),
        ("items.0.hints", "3", "items[0].hints"),
        ("items.0.checks", -1, "items[0].checks"),
        ("items.0.checks", True, "items[0].checks"),
        ("items.0.number", 100, "items[0].number"),
        ("items.0.proved_at", "soon", "items[0].proved_at"),
        ("items.0.question", 5, "items[0].question"),
        ("items.0.predictions.0.first", 62, "items[0].predictions[0].first"),
        ("items.0.predictions.0.right_first", "yes", "items[0].predictions[0].right_first"),
        ("items.0.seeds", [seed(1, 2) | {"looks": -1}], "items[0].seeds[0].looks"),
        ("items.0.seeds", [seed(1, 2) | {"faults": [{}]}], "items[0].seeds[0].faults[0]"),
        ("items.0.claims.0.verdict", "proved", "items[0].claims[0].verdict"),
        ("items.0.claims.0.evidence", "x" * 20_001, "items[0].claims[0].evidence"),
    ],
)
def test_bad_member_is_refused_with_file_and_member(tmp_path: Path, path: str, value: object, member: str):
    file = tmp_path / "bob.json"
    file.write_text(json.dumps(spoilt(path, value)))
    with pytest.raises(ReportInvalid) as caught:
        report.read(file)
    assert caught.value.message.startswith(f"{file}: {member}: ")
    assert len(caught.value.message) < len(str(file)) + 300
    assert caught.value.exit_code == 2


def test_the_same_without_a_fault_is_read(tmp_path: Path):
    file = tmp_path / "bob.json"
    file.write_text(json.dumps(spoilt("learner", "bob")))
    assert report.read(file)["learner"] == "bob"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"starts": NaN}', "NaN is no JSON"),
        (b" " * ((4 << 20) + 1), "more than 4194304 bytes"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, content: bytes, words: str):
    file = tmp_path / "bob.json"
    file.write_bytes(content)
    with pytest.raises(ReportInvalid, match=r"bob\.json is no report") as caught:
        report.read(file)
    assert words in caught.value.evidence


@pytest.mark.parametrize("content", ["null", "3", '"text"', "[]", "{}"])
def test_json_of_another_kind_is_refused(tmp_path: Path, content: str):
    file = tmp_path / "bob.json"
    file.write_text(content)
    with pytest.raises(ReportInvalid, match=r"bob\.json: "):
        report.read(file)


@pytest.mark.parametrize("where", ["nowhere.json", "."])
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, where: str):
    with pytest.raises(ReportInvalid, match="cannot be read"):
        report.read(tmp_path / where)


def test_text_of_others_cannot_command_a_terminal(tmp_path: Path):
    file = tmp_path / "bob.json"
    claim = {"text": "it is\u202e there", "verdict": "fail", "evidence": "one\n\x1b[2Jtwo"}
    file.write_text(json.dumps(handed_in("\x1b]0;bob\x07", item(claims=[claim]))))
    read = report.read(file)
    assert read["learner"] == "\ufffd]0;bob\ufffd"
    assert read["items"][0]["claims"][0] | {"verdict": ""} == {
        "text": "it is\ufffd there",
        "verdict": "",
        "evidence": "one\n\ufffd[2Jtwo",
    }


def right(value: str, **members: Any) -> dict[str, Any]:
    return prediction(first=value, captured="62", theory="62", right_first=value == "62", **members)


CLASS = [
    handed_in("alice", item(state="proved", hints=2, predictions=[right("62")]), item("zebra", number=None)),
    handed_in("bob", item("mtu", number=4), item(predictions=[right("64")])),
    handed_in("chen", item(predictions=[prediction(first="62")])),
    handed_in("dora"),
]


def test_class_has_the_lessons_of_all_by_number():
    assert [column.lesson for column in report.columns(CLASS)] == ["vxlan", "mtu", "zebra"]


def test_headline_counts_over_all():
    assert report.headline(CLASS) == "1 of 5 lessons proved, 1 of 2 values predicted right at first"
    assert report.headline([handed_in("dora")]) == "0 of 0 lessons proved"


def test_class_believed_what_it_said_first():
    """chen never came so far as to capture it, but the others did."""
    (ttl,) = report.believed(CLASS, "vxlan")
    assert ttl == report.Believed("With which TTL?", ("62",), (("62", 2), ("64", 1)), right=2, judged=3)
    assert report.believed(CLASS, "mtu") == []


def test_where_captures_differ_nobody_else_is_judged_by_them():
    other = handed_in("eve", item(predictions=[prediction(first="1", captured="1", right_first=True)]))
    (ttl,) = report.believed([*CLASS, other], "vxlan")
    assert (ttl.captured, ttl.right, ttl.judged) == (("62", "1"), 2, 3)
