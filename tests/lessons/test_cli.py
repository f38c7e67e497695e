"""`overlaynet lab` as it is typed, over labs that are no more than their files."""

from __future__ import annotations

import io
import json
import os
import pty
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from helpers.classroom import RIGHT, FakeLabs, handed_in, item, write_lesson

from overlaynet.cli import main as program
from overlaynet.cli.app import App
from overlaynet.cli.lab import folded, hint_text
from overlaynet.lab.paths import Paths
from overlaynet.lessons import needs, record
from overlaynet.lessons.catalogue import OWN

pytestmark = pytest.mark.fake

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(lessons, labs, paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Types `overlaynet lab WORD…` as alice, with no terminal; exit code, standard output and error."""
    monkeypatch.setattr(Paths, "here", lambda: paths)
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.delenv("OVERLAYNET_LAB", raising=False)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        code = program.run(["lab", *words], App())
        out, err = capfd.readouterr()
        return code, click.unstyle(out), click.unstyle(err)

    return command


def asked(run: Run, *words: str, code: int = 0) -> dict:
    """The document of a command that ends with this code."""
    found, out, err = run(*words, "-o", "json")
    assert found == code, out + err
    return json.loads(out)


# --- list -----------------------------------------------------------------------------------------


def test_list_tells_each_lesson_and_what_to_type(run: Run):
    code, out, _ = run("list")
    assert code == 0
    assert out.splitlines() == [
        "   LESSON  STATE  LAB  MINUTES  MEMORY  DISK  QUESTION",
        "3  vxlan   -      -          5      40    70  What is lesson 3?",
        "4  mtu     -      -          5      40    70  What is lesson 4?",
        "next: overlaynet lab start vxlan",
    ]


def test_list_is_a_document(run: Run, lessons: Path):
    run("start", "vxlan")
    document = asked(run, "list")
    assert (document["schema"], document["kind"], document["learner"]) == ("overlaynet/v1", "Lessons", "alice")
    assert document["items"][0] == {
        "number": 3,
        "lesson": "vxlan",
        "question": "What is lesson 3?",
        "state": "started",
        "lab": "up",
        "unavailable": None,
        "minutes": 5,
        "memory_mb": 40,
        "disk_mb": 70,
        "readme": str(lessons / "03-vxlan" / "README.md"),
    }
    assert [i["state"] for i in document["items"]] == ["started", None]
    assert run("list", "-o", "name")[1] == "vxlan\nmtu\n"


def test_list_says_why_a_lesson_is_not_here(run: Run, lessons: Path, monkeypatch: pytest.MonkeyPatch):
    write_lesson(lessons, 12, "dark", needs=("moon",))
    monkeypatch.setattr(needs, "NEEDS", {"moon": lambda: "it is not up"})
    assert "not here: dark, for it is not up\n" in run("list")[1]
    code, _, err = run("start", "dark")
    assert (code, "OVL-209" in err, "it is not up" in err) == (3, True, True)


def test_list_has_lessons_of_ones_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(OWN, str(tmp_path / "own"))
    code, _, err = run("list")
    assert (code, "OVL-101" in err) == (2, True)
    write_lesson(tmp_path / "own", 21, "mine")
    assert run("list", "-o", "name")[1] == "vxlan\nmtu\nmine\n"


# --- start, reset ---------------------------------------------------------------------------------


def test_start_tells_the_question_where_to_read_and_what_to_predict(run: Run, lessons: Path):
    code, out, _ = run("start", "3")
    assert code == 0
    assert out.splitlines() == [
        "lesson 3, vxlan: What is lesson 3?",
        "  lab      2 hosts, 1 container, ready in 0.4 s",
        f"  read     {lessons / '03-vxlan' / 'README.md'}",
        "  predict  ttl   With which TTL? (a whole number)",
        "           last  Where is it seen last? (PLACE:IFACE, such as node-1:eth0)",
        "next: overlaynet lab check vxlan",
    ]


def test_start_twice_is_refused_and_counted_once(run: Run):
    run("start", "vxlan")
    code, _, err = run("start", "vxlan")
    assert (code, "lesson vxlan is started" in err) == (2, True)
    assert asked(run, "report")["items"][0]["starts"] == 1


def test_start_that_fails_leaves_no_lab_and_no_trace_of_a_start(run: Run, labs: FakeLabs, paths: Paths):
    labs.start_error = KeyError("red")
    code, _, err = run("start", "vxlan")
    assert (code, "OVL-210" in err, "KeyError: 'red'" in err) == (3, True, True)
    assert (paths.names(), asked(run, "report")["items"][0]["starts"]) == ((), 0)


def test_lab_of_ones_own_is_refused_and_left_alone(run: Run, paths: Paths, labs: FakeLabs):
    mine = paths.lab("vxlan")
    mine.run.mkdir(parents=True)
    mine.lab_json.write_text("mine")
    for words in (("start", "vxlan"), ("reset", "vxlan"), ("check", "vxlan", *RIGHT)):
        code, _, err = run(*words)
        assert (code, "OVL-104" in err) == (2, True)
    assert (labs.done, mine.lab_json.read_text()) == ([], "mine")


def test_unknown_lesson_is_refused_with_those_that_there_are(run: Run):
    code, _, err = run("start", "vxlam")
    assert (code, "there are 3 vxlan, 4 mtu" in err) == (2, True)


def test_reset_keeps_what_was_predicted_and_proved(run: Run, labs: FakeLabs):
    run("start", "vxlan")
    labs.mended = True
    assert asked(run, "check", *RIGHT)["verdict"] == "proved"
    labs.mended = False
    assert run("reset")[0] == 0
    assert asked(run, "check", code=1)["verdict"] == "not_yet"
    first = asked(run, "report")["items"][0]
    assert (first["state"], first["starts"], first["checks"]) == ("proved", 1, 2)
    assert [p["right_first"] for p in first["predictions"]] == [True, True]


def test_lesson_is_left_out_where_one_is_started_and_named_where_there_are_two(run: Run):
    assert run("reset")[0] == 2
    run("start", "vxlan")
    assert run("hint")[0] == 0
    run("start", "mtu")
    code, _, err = run("hint")
    assert (code, "started: vxlan, mtu" in err) == (2, True)
    assert asked(run, "hint", "-l", "mtu")["lesson"] == "mtu"


# --- check ----------------------------------------------------------------------------------------


def test_check_shows_predictions_claims_and_where_the_learner_is(run: Run):
    run("start", "vxlan")
    code, out, _ = run("check", "--predict", "ttl=64", "--predict", "last=red:eth0")
    assert code == 1
    assert out.splitlines() == [
        "lesson 3, vxlan: What is lesson 3?",
        "",
        "PREDICTION  YOU       THEORY  CAPTURED",
        "ttl         64        62      62        wrong",
        "last        red:eth0  -       -         not captured yet",
        "  ttl is 62: two hosts route it",
        "",
        "ok    it is there",
        "FAIL  it is mended",
        "      nobody mended it",
        "      not even the agent",
        "NOT YET  claims that hold: 1; what comes after the last one rests on it",
        "next: overlaynet lab hint vxlan",
    ]


def test_check_of_a_mended_lab_is_proved(run: Run, labs: FakeLabs):
    run("start", "vxlan")
    labs.mended = True
    code, out, _ = run("check", *RIGHT)
    assert (code, "PROVED  2 of 2 claims" in out, "next: overlaynet down -l vxlan" in out) == (0, True, True)


def test_check_wants_predictions_first_and_keeps_those_that_it_got(run: Run):
    """The command that it names can be typed, and is enough."""
    run("start", "vxlan")
    code, _, err = run("check", "--predict", "ttl=64")
    assert (code, "OVL-110" in err, "try  overlaynet lab check vxlan --predict last=POINT" in err) == (
        2,
        True,
        True,
    )
    document = asked(run, "check", "vxlan", "--predict", "last=red:eth0", code=1)
    assert [p["predicted"] for p in document["predictions"]] == ["64", "red:eth0"]


def test_lesson_that_asks_each_time_wants_it_said_again(run: Run, lessons: Path, labs: FakeLabs):
    code = (
        (lessons / "03-vxlan" / "lesson.py").read_text().replace("minutes=5", "minutes=5, asks_each_time=True")
    )
    write_lesson(lessons, 5, "guess", code)
    run("start", "guess")
    assert run("check", *RIGHT)[0] == 1
    found, _, err = run("check")
    assert (found, "OVL-110" in err) == (2, True)
    labs.mended = True
    assert run("check", *RIGHT)[0] == 0


def test_lesson_that_is_not_started_is_not_asked_about(run: Run):
    code, _, err = run("check", "vxlan", *RIGHT)
    assert (code, "lesson vxlan is not started" in err) == (2, True)
    assert asked(run, "report")["items"][0]["predictions"][0]["first"] is None


@pytest.mark.parametrize("given", ["ttl=much", "mtu=1450", "ttl", "last=nowhere"])
def test_bad_prediction_is_refused_and_not_kept(run: Run, given: str):
    run("start", "vxlan")
    assert run("check", *RIGHT, "--predict", given)[0] == 2
    assert asked(run, "report")["items"][0]["predictions"][0]["first"] is None


def test_check_whose_own_code_fails_is_no_verdict(run: Run, labs: FakeLabs):
    run("start", "vxlan")
    labs.check_error = ZeroDivisionError("by zero")
    code, out, _ = run("check", *RIGHT, "-o", "json")
    assert (code, json.loads(out)["error"]["code"]) == (3, "OVL-210")
    assert asked(run, "report")["items"][0]["checks"] == 0


def test_terminal_is_asked_until_it_says_what_can_be_one(
    run: Run, paths: Paths, monkeypatch: pytest.MonkeyPatch
):
    """On a pseudo-terminal: a word where a number is wanted is asked for again, and each answer is kept."""
    run("start", "vxlan")
    ours, theirs = pty.openpty()
    os.write(ours, b"many\n64\nred:eth0\n")
    with os.fdopen(theirs, "r+b", buffering=0) as terminal:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(terminal))
        monkeypatch.setattr("sys.stderr", io.TextIOWrapper(terminal, write_through=True))
        assert program.run(["-q", "lab", "check"], App()) == 1
        said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert said.count("With which TTL? (a whole number)") == 2
    assert "wanted: a whole number" in said
    assert record.load(paths).of("vxlan").predictions == {"ttl": ["64"], "last": ["red:eth0"]}


def test_answers_before_an_interruption_are_kept(run: Run, paths: Paths, monkeypatch: pytest.MonkeyPatch):
    run("start", "vxlan")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("64\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    assert program.run(["lab", "check"], App()) == program.INTERRUPTED
    assert record.load(paths).of("vxlan").predictions == {"ttl": ["64"]}


# --- hint -----------------------------------------------------------------------------------------


def test_hints_stop_at_the_third(run: Run):
    run("start", "vxlan")
    said = [run("hint")[1] for _ in range(4)]
    assert said == ["hint 1 of 3: look\n", "hint 2 of 3: look there\n", *["hint 3 of 3: type that\n"] * 2]
    assert asked(run, "report")["items"][0]["hints"] == 3


def test_hint_breaks_no_word_on_a_terminal():
    assert hint_text(1, "type ip -br link in node-1", 20) == "hint 1 of 3: type ip\n-br link in node-1"
    assert hint_text(1, "type ip -br link in node-1", None) == "hint 1 of 3: type ip -br link in node-1"


def test_what_continues_a_question_is_below_its_first_word():
    said = "  predict  ttl  With which TTL does it come back?"
    assert folded(said, 36, 16) == "  predict  ttl  With which TTL does\n                it come back?"
    assert folded(said, None, 16) == said


# --- report ---------------------------------------------------------------------------------------


@pytest.fixture
def handed(tmp_path: Path) -> list[str]:
    files = []
    for name in ("bob", "chen"):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(handed_in(name, item(hints=1))))
        files.append(str(file))
    return files


def test_report_is_ones_own_by_default(run: Run):
    run("start", "mtu")
    code, out, _ = run("report")
    assert (code, out.splitlines()[0]) == (0, "alice: 0 of 2 lessons proved")
    assert out.splitlines()[1].split() == [
        "LESSON",
        "STATE",
        "STARTS",
        "CHECKS",
        "HINTS",
        "RIGHT",
        "AT",
        "FIRST",
        "PROVED",
    ]
    document = asked(run, "report")
    assert (document["kind"], document["learner"], document["lab"]) == ("LessonReport", "alice", None)


def test_report_is_written_handed_in_and_read(run: Run, tmp_path: Path):
    run("start", "mtu")
    file, sheet = tmp_path / "alice.json", tmp_path / "alice.html"
    assert run("report", "-w", str(file), "-w", str(sheet), "-q")[0] == 0
    assert sheet.read_text().startswith("<!DOCTYPE html>")
    assert "<h1>alice</h1>" in sheet.read_text()
    assert asked(run, "report", str(file)) == json.loads(file.read_text())


def test_reports_of_a_class_make_one_table_and_one_page(run: Run, handed: list[str], tmp_path: Path):
    sheet = tmp_path / "class.html"
    code, out, err = run("report", *handed, "-w", str(sheet))
    assert (code, err) == (0, f"written to {sheet}\n")
    assert [line.split()[0] for line in out.splitlines()] == ["2", "LEARNER", "bob", "chen"]
    assert "bob.json" in sheet.read_text()
    document = asked(run, "report", *handed)
    assert (document["kind"], [i["learner"] for i in document["items"]]) == ("LessonReports", ["bob", "chen"])


def test_bad_file_of_a_class_is_named_and_nothing_is_written(run: Run, handed: list[str], tmp_path: Path):
    bad, sheet = tmp_path / "dora.json", tmp_path / "class.html"
    bad.write_text(json.dumps(handed_in("dora", item(hints=9))))
    code, out, err = run("report", *handed, str(bad), "-w", str(sheet))
    assert (code, out, sheet.exists()) == (2, "", False)
    assert f"OVL-111: {bad}: items[0].hints: 9 is greater than the maximum of 3" in err


@pytest.mark.parametrize(
    ("files", "name", "code"),
    [(0, "report.txt", 2), (0, "report", 2), (2, "class.json", 2), (0, "nowhere/report.html", 3)],
)
def test_name_that_cannot_be_written_is_refused(
    run: Run, handed: list[str], tmp_path: Path, files: int, name: str, code: int
):
    found, out, _ = run("report", *handed[:files], "-w", str(tmp_path / name))
    assert (found, out) == (code, "")
