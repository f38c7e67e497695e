"""What a learner did, on disk."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from overlaynet.errors import EnvironmentProblem
from overlaynet.lab.paths import Paths
from overlaynet.lessons import record
from overlaynet.lessons.record import Progress, Record

pytestmark = pytest.mark.unit

CHECKED = {
    "verdict": "not_yet",
    "predictions": [
        {"name": "ttl", "theory": "62", "captured": "62", "because": "two hosts"},
        {"name": "last", "theory": None, "captured": None, "because": ""},
    ],
    "claims": [],
}


@pytest.fixture
def alice(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SUDO_USER", "alice")
    return "alice"


def test_record_comes_back_as_it_was_kept(paths: Paths, alice: str):
    with record.changing(paths) as done:
        progress = done.of("vxlan")
        progress.begin()
        progress.predict({"ttl": "64"})
        progress.predict({"ttl": "62"})
        progress.hint()
        progress.note(CHECKED)
    again = record.load(paths)
    assert again == done
    assert (again.learner, again.of("vxlan").predictions) == ("alice", {"ttl": ["64", "62"]})
    assert (progress.starts, progress.checks, progress.hints, progress.last) == (1, 1, 1, CHECKED)


def test_nobody_elses_eyes_and_no_file_beside_it(paths: Paths, alice: str):
    with record.changing(paths) as done:
        done.of("vxlan").begin()
    (file,) = record.file_of(alice, paths).parent.iterdir()
    assert (file.name, file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (
        "alice.json",
        0o600,
        0o700,
    )


def test_nothing_done_yet_is_an_empty_record_and_no_file(paths: Paths, alice: str):
    assert record.load(paths) == Record("alice")
    assert not record.file_of(alice, paths).parent.exists()


def test_first_prediction_stays_the_first_and_the_same_again_is_none():
    progress = Progress()
    for value in ("64", "64", "63", "64"):
        progress.predict({"ttl": value})
    assert progress.predictions == {"ttl": ["64", "63", "64"]}
    assert progress.predicted(["ttl", "last"]) == {"ttl": "64"}


def test_first_capture_stays_as_the_first_prediction_does():
    """With another seed another value may be right, and the first one was not about that."""
    progress = Progress()
    progress.note(CHECKED)
    progress.note(CHECKED | {"predictions": [{"name": "ttl", "captured": "7"}]})
    assert progress.captured["ttl"]["captured"] == "62"


def test_capture_is_kept_when_a_later_check_does_not_come_so_far():
    progress = Progress()
    progress.note(CHECKED)
    progress.note({"verdict": "not_yet", "predictions": [{"name": "ttl", "captured": None}], "claims": []})
    assert progress.captured == {"ttl": CHECKED["predictions"][0]}


def test_score_of_each_seed_is_kept_as_it_was_when_it_was_proved():
    progress = Progress()
    for seed, verdict, looks in ((7, "not_yet", 3), (7, "proved", 5), (7, "not_yet", 9), (8, "not_yet", 1)):
        progress.note(CHECKED | {"verdict": verdict, "seed": seed, "looks": looks, "faults": []})
    assert {seed: (told["verdict"], told["looks"]) for seed, told in progress.seeds.items()} == {
        "7": ("proved", 5),
        "8": ("not_yet", 1),
    }


def test_proof_stays_when_the_lesson_is_broken_again(monkeypatch: pytest.MonkeyPatch):
    times = iter(["first", "second", "third", "fourth"])
    monkeypatch.setattr(record, "now", lambda: next(times))
    progress = Progress()
    progress.begin()
    progress.note(CHECKED | {"verdict": "proved"})
    progress.begin()
    progress.note(CHECKED)
    progress.note(CHECKED | {"verdict": "proved"})
    assert (progress.started_at, progress.proved_at, progress.starts, progress.checks) == (
        "first",
        "second",
        2,
        3,
    )


def test_hints_stop_at_the_third():
    progress = Progress()
    assert [progress.hint() for _ in range(5)] == [1, 2, 3, 3, 3]


def test_learners_do_not_meet(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    for name in ("alice", "bob"):
        monkeypatch.setenv("SUDO_USER", name)
        with record.changing(paths) as done:
            done.of("vxlan").predict({"ttl": name})
    assert record.load(paths, "alice").of("vxlan").predictions == {"ttl": ["alice"]}
    assert record.load(paths, "bob").of("vxlan").predictions == {"ttl": ["bob"]}


ODD = ["a/b", "a_b", "a%2Fb", "..", "../../etc/passwd", ".", "王小明", "DOM\\ann", "x y", "-rf", "a\nb"]


def test_no_name_leads_elsewhere_and_no_two_share_a_file(paths: Paths, tmp_path: Path):
    files = [record.file_of(name, paths) for name in ODD]
    assert len(set(files)) == len(ODD)
    assert {file.parent.resolve() for file in files} == {tmp_path / "state" / "lessons"}
    assert all(file.name.endswith(".json") and file.name.isprintable() for file in files)


@pytest.mark.parametrize("name", ODD)
def test_odd_name_is_kept(paths: Paths, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("SUDO_USER", name)
    with record.changing(paths) as done:
        done.of("vxlan").begin()
    assert (record.load(paths).learner, record.load(paths).of("vxlan").starts) == (name, 1)


def test_name_that_is_no_text_becomes_some(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUDO_USER", "ann\udcff")
    with record.changing(paths) as done:
        done.of("vxlan").begin()
    assert record.load(paths).learner == "ann\N{REPLACEMENT CHARACTER}"


def test_learner_is_who_typed_sudo_else_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUDO_USER", "")
    monkeypatch.setenv("USER", "ann")
    assert record.learner() == "ann"
    monkeypatch.setenv("SUDO_USER", "bob")
    assert record.learner() == "bob"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"learner": "alice"}',
        '{"lessons": []}',
        '{"lessons": {"vxlan": []}}',
        '{"lessons": {"vxlan": {"starts": "3"}}}',
        '{"lessons": {"vxlan": {"predictions": {"ttl": "62"}}}}',
        '{"lessons": {"vxlan": {"predictions": {"ttl": [62]}}}}',
        '{"lessons": {"vxlan": {"last": "proved"}}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_damaged_record_is_an_error_that_keeps_the_file(paths: Paths, alice: str, text: str):
    file = record.file_of(alice, paths)
    file.parent.mkdir(parents=True)
    file.write_text(text, "latin-1")
    with pytest.raises(EnvironmentProblem, match="what alice did so far") as caught:
        record.load(paths)
    assert caught.value.next == (f"mv {file} {file}.damaged",)
    with pytest.raises(EnvironmentProblem), record.changing(paths):
        pytest.fail("nothing is changed in a record that cannot be read")
    assert file.read_text("latin-1") == text


def test_member_of_a_newer_version_is_no_damage(paths: Paths, alice: str):
    file = record.file_of(alice, paths)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"learner": "alice", "lessons": {"vxlan": {"starts": 2, "mood": "good"}}}))
    assert record.load(paths).of("vxlan").starts == 2


def test_what_cannot_be_written_is_an_error(paths: Paths, alice: str):
    paths.state_root.mkdir()
    (paths.state_root / "lessons").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot be kept"), record.changing(paths):
        pytest.fail("there is nothing to change")


def test_two_commands_at_once_lose_nothing(paths: Paths, alice: str):
    def work() -> None:
        for _ in range(10):
            with record.changing(paths) as done:
                done.of("vxlan").starts += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.load(paths).of("vxlan").starts == 40
