"""Starting, checking and resetting, over labs that are no more than their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.classroom import FakeLabs, write_lesson

from overlaynet.errors import LabChoice, LabFailed, LessonFailed, LessonUnavailable, NotPermitted, UsageError
from overlaynet.lab.paths import Paths
from overlaynet.lessons import classroom, needs
from overlaynet.lessons.board import Board
from overlaynet.lessons.catalogue import Entry, find
from overlaynet.lessons.stage import Stage

pytestmark = pytest.mark.unit

RIGHT = {"ttl": "62", "last": "red:eth0"}


@pytest.fixture
def vxlan(lessons: Path, labs: FakeLabs) -> Entry:
    return find("vxlan")


def test_started_lesson_is_broken_and_noted(vxlan: Entry, paths: Paths, labs: FakeLabs):
    started = classroom.start(vxlan, paths, seed=7)
    assert (started.hosts, started.containers, started.ready_s) == (2, 1, 0.4)
    assert classroom.note_of("vxlan", paths) == classroom.Note("vxlan", 7, {"seed": 7})
    checked = classroom.check(vxlan, RIGHT, paths)
    assert checked.verdict == "not_yet"
    assert [(c.text, c.verdict) for c in checked.claims] == [("it is there", "pass"), ("it is mended", "fail")]
    assert checked.claims[1].evidence == "nobody mended it\nnot even the agent"


def test_mended_lesson_is_proved_with_right_and_wrong_predictions(vxlan: Entry, paths: Paths, labs: FakeLabs):
    classroom.start(vxlan, paths)
    labs.mended = True
    document = classroom.check(vxlan, RIGHT | {"ttl": "64"}, paths).as_json()
    assert document["verdict"] == "proved"
    assert [(p["name"], p["right"]) for p in document["predictions"]] == [("ttl", False), ("last", True)]


def test_lesson_cannot_be_started_twice(vxlan: Entry, paths: Paths, labs: FakeLabs):
    classroom.start(vxlan, paths)
    with pytest.raises(UsageError, match="lesson vxlan is started") as caught:
        classroom.start(vxlan, paths)
    assert "overlaynet lab reset vxlan" in caught.value.next
    assert labs.done == ["up vxlan"]


def test_lab_of_ones_own_is_left_alone(vxlan: Entry, paths: Paths, labs: FakeLabs):
    mine = paths.lab("vxlan")
    mine.run.mkdir(parents=True)
    mine.lab_json.write_text("mine")
    with pytest.raises(LabChoice, match="of your own"):
        classroom.start(vxlan, paths)
    for refused in (lambda: classroom.reset(vxlan, paths), lambda: classroom.check(vxlan, RIGHT, paths)):
        with pytest.raises(LabChoice, match="is not started"):
            refused()
    assert (labs.done, mine.lab_json.read_text()) == ([], "mine")


@pytest.mark.parametrize("note", ["", "[]", '{"seed": 1}', '{"lesson": "vxlan", "mood": 1}'])
def test_lab_with_a_note_that_is_none_is_ones_own(vxlan: Entry, paths: Paths, labs: FakeLabs, note: str):
    classroom.start(vxlan, paths)
    (paths.lab("vxlan").state / "lesson.json").write_text(note)
    with pytest.raises(LabChoice, match="is not started"):
        classroom.reset(vxlan, paths)
    assert labs.done == ["up vxlan"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LabFailed("ip link failed"), LabFailed),
        (AssertionError("blue was never seen"), LessonFailed),
        (KeyError("red"), LessonFailed),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_start_that_fails_takes_the_lab_away(
    vxlan, paths, labs, error: BaseException, told: type[BaseException]
):
    labs.start_error = error
    with pytest.raises(told):
        classroom.start(vxlan, paths)
    assert labs.done == ["up vxlan", "down vxlan"]
    assert classroom.running(paths) == []


def test_lab_that_does_not_settle_is_taken_away(vxlan: Entry, paths: Paths, labs: FakeLabs):
    labs.converged = False
    with pytest.raises(LabFailed, match="did not settle") as caught:
        classroom.start(vxlan, paths)
    assert (caught.value.evidence, labs.done) == ("node-2: no lease", ["up vxlan", "down vxlan"])


def test_lab_that_cannot_be_built_is_not_taken_away_by_us(vxlan: Entry, paths: Paths, labs: FakeLabs):
    labs.up_error = NotPermitted("no")
    with pytest.raises(NotPermitted):
        classroom.start(vxlan, paths)
    assert labs.done == []


def test_lesson_that_needs_what_is_not_here_is_not_begun(
    lessons: Path, labs: FakeLabs, paths: Paths, monkeypatch
):
    write_lesson(lessons, 12, "encryption", needs=("moon",))
    monkeypatch.setattr(needs, "NEEDS", {"moon": lambda: "it is not up"})
    with pytest.raises(LessonUnavailable) as caught:
        classroom.start(find("encryption"), paths)
    assert (caught.value.code, caught.value.evidence, labs.done) == ("OVL-209", "it is not up", [])


def test_error_of_a_checks_own_is_no_verdict(vxlan: Entry, paths: Paths, labs: FakeLabs):
    classroom.start(vxlan, paths)
    labs.check_error = ZeroDivisionError("division by zero")
    with pytest.raises(LessonFailed, match="the check of lesson vxlan is broken") as caught:
        classroom.check(vxlan, RIGHT, paths)
    line = (vxlan.folder / "lesson.py").read_text().splitlines().index("        stage.cluster.checked()") + 1
    assert caught.value.evidence == f"{vxlan.folder / 'lesson.py'}:{line}: ZeroDivisionError: division by zero"


def test_what_a_lab_cannot_tell_is_the_labs_error(vxlan: Entry, paths: Paths, labs: FakeLabs):
    classroom.start(vxlan, paths)
    labs.check_error = NotPermitted("captures need CAP_NET_RAW")
    with pytest.raises(NotPermitted):
        classroom.check(vxlan, RIGHT, paths)


def test_reset_builds_it_again_with_the_same_seed(vxlan: Entry, paths: Paths, labs: FakeLabs):
    classroom.start(vxlan, paths, seed=7)
    file = paths.lab("vxlan").state / "lesson.json"
    file.write_text(json.dumps({"lesson": "vxlan", "seed": 7, "remembered": {"seed": "changed"}}))
    classroom.reset(vxlan, paths)
    assert labs.done == ["up vxlan", "down vxlan", "up vxlan"]
    assert classroom.note_of("vxlan", paths) == classroom.Note("vxlan", 7, {"seed": 7})


def test_reset_takes_another_seed(vxlan: Entry, paths: Paths, labs: FakeLabs):
    classroom.start(vxlan, paths, seed=7)
    classroom.reset(vxlan, paths, seed=0)
    assert classroom.note_of("vxlan", paths) == classroom.Note("vxlan", 0, {"seed": 0})


DIARY = """
from overlaynet.lessons import Lesson, Prediction

def check(stage, board):
    stage.remembered.setdefault("told", []).append(board.predicted["who"])
    board.more["told"] = len(stage.remembered["told"])
    board.next = "overlaynet lab list"
    with board.claim("it was told twice"):
        assert board.more["told"] == 2
    board.measured("who", theory="agent", captured="agent", because="it is")

LESSON = Lesson("Who?", (Prediction("who", "Who?", "word", ("agent", "kernel")),), ("a", "b", "c"), check,
                asks_each_time=True)
"""


def test_check_finds_what_the_last_one_remembered_and_tells_more(lessons: Path, labs: FakeLabs, paths: Paths):
    write_lesson(lessons, 5, "diary", DIARY)
    diary = find("diary")
    classroom.start(diary, paths)
    first = classroom.check(diary, {"who": "kernel"}, paths)
    second = classroom.check(diary, {"who": "agent"}, paths)
    assert (first.verdict, first.as_json()["told"]) == ("not_yet", 1)
    assert (second.verdict, second.as_json()["told"], second.next) == ("proved", 2, "overlaynet lab list")
    note = classroom.note_of("diary", paths)
    assert note is not None
    assert note.remembered == {"told": ["kernel", "agent"]}


@pytest.mark.parametrize("meanwhile", [classroom.reset, lambda diary, paths: classroom.down("diary", paths)])
def test_what_became_of_a_lesson_during_a_check_is_not_undone_by_it(
    lessons: Path, labs: FakeLabs, paths: Paths, meanwhile: Callable[[Entry, Paths], object]
):
    write_lesson(lessons, 5, "diary", DIARY)
    diary = find("diary")
    classroom.start(diary, paths)
    check = diary.lesson.check

    def slow(stage: Stage, board: Board) -> None:
        meanwhile(diary, paths)
        check(stage, board)

    object.__setattr__(diary.lesson, "check", slow)
    assert classroom.check(diary, {"who": "kernel"}, paths).more == {"told": 1}
    note = classroom.note_of("diary", paths)
    assert note is None or note.remembered == {}
    assert labs.done[1] == "down diary"


def test_one_started_lesson_is_the_one_that_is_meant(vxlan: Entry, paths: Paths, labs: FakeLabs):
    with pytest.raises(LabChoice, match="no lesson is started"):
        classroom.current(paths)
    classroom.start(vxlan, paths)
    assert classroom.current(paths).name == "vxlan"
    classroom.start(find("mtu"), paths)
    with pytest.raises(LabChoice, match="which lesson") as caught:
        classroom.current(paths)
    assert caught.value.evidence == "started: vxlan, mtu"
