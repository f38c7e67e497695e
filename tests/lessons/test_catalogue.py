"""Which lessons there are, and what becomes of one whose file is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.classroom import entry, write_lesson

from overlaynet.cli.app import App
from overlaynet.cli.completion import Completer
from overlaynet.errors import ConfigError, LessonFailed, NotFound, TopologyError
from overlaynet.lessons import needs
from overlaynet.lessons.catalogue import OWN, entries, find

pytestmark = pytest.mark.unit


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv(OWN, str(folder))
    return folder


def test_folders_are_lessons_in_order_of_their_numbers(lessons: Path):
    write_lesson(lessons, 1, "namespaces")
    (lessons / "9-short").mkdir()
    (lessons / "05-without-code").mkdir()
    (lessons / "06-Loud").mkdir()
    (lessons / "06-Loud" / "lesson.py").touch()
    assert [(e.number, e.name) for e in entries()] == [(1, "namespaces"), (3, "vxlan"), (4, "mtu")]


@pytest.mark.parametrize("word", ["vxlan", "3", "03", "03-vxlan"])
def test_lesson_is_found_by_name_number_and_folder(lessons: Path, word: str):
    assert find(word).folder == lessons / "03-vxlan"


@pytest.mark.parametrize("word", ["5", "vx", "", "³", "-3", "../03-vxlan"])
def test_word_that_is_no_lesson_is_refused_with_those_that_there_are(lessons: Path, word: str):
    with pytest.raises(NotFound) as caught:
        find(word)
    assert caught.value.evidence == "there are 3 vxlan, 4 mtu"


def test_lesson_is_loaded_when_it_is_needed_and_leaves_nothing_beside_it(lessons: Path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    found = find("vxlan")
    assert found.lesson.question == "What is lesson 3?"
    assert {file.name for file in found.folder.iterdir()} == {"lab.yaml", "lesson.py", "README.md"}


def test_lesson_may_have_dataclasses(tmp_path: Path):
    code = """
from __future__ import annotations
from dataclasses import dataclass
from overlaynet.lessons import Lesson

@dataclass
class Fault:
    name: str

LESSON = Lesson(Fault("what?").name, (), ("a", "b", "c"), lambda stage, board: None)
"""
    assert entry(tmp_path, code=code).lesson.question == "what?"


@pytest.mark.parametrize(
    ("code", "evidence"),
    [
        ("x = 1\ny = (\n", "lesson.py:2: SyntaxError: '(' was never closed"),
        (
            "import overlaynet\n\nimport nowhere\n",
            "lesson.py:3: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("pass\n", "TypeError: LESSON is no Lesson: None"),
        ("LESSON = 3\n", "TypeError: LESSON is no Lesson: 3"),
        (
            "from overlaynet.lessons import Lesson\n\nLESSON = Lesson('?', (), ('a',), print)\n",
            "lesson.py:3: ValueError: a lesson has 3 hints, this one 1",
        ),
    ],
)
def test_broken_file_is_named_with_its_line(tmp_path: Path, code: str, evidence: str):
    broken = entry(tmp_path, code=code)
    with pytest.raises(LessonFailed, match="the file of lesson small is broken") as caught:
        _ = broken.lesson
    assert caught.value.evidence.endswith(evidence)
    assert str(broken.folder) in caught.value.evidence


def test_lab_of_a_lesson_has_the_lessons_name(tmp_path: Path):
    made = entry(tmp_path)
    (made.folder / "lab.yaml").write_text("apiVersion: overlaynet/v1\nkind: Lab\nhosts: [{name: node-1}]\n")
    assert made.topology().name == "small"
    (made.folder / "lab.yaml").write_text("kind: Lab\n")
    with pytest.raises(TopologyError, match=r"lab\.yaml"):
        made.topology()


def test_lesson_that_needs_what_is_not_here_says_so(lessons: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(needs, "NEEDS", {"moon": lambda: "it is not up", "sun": lambda: None})
    write_lesson(lessons, 5, "dark", needs=("sun", "moon"))
    write_lesson(lessons, 6, "light", needs=("sun",))
    assert (find("dark").unavailable, find("light").unavailable) == ("it is not up", None)


def test_need_that_nobody_knows_is_a_mistake_of_the_lessons_author(lessons: Path):
    write_lesson(lessons, 5, "dark", needs=("moon",))
    with pytest.raises(LessonFailed) as caught:
        _ = find("dark").unavailable
    assert "nobody knows how to look for moon; there are wireguard" in caught.value.evidence


def test_lessons_of_ones_own_stand_among_the_others(lessons: Path, own: Path):
    write_lesson(lessons, 30, "last")
    write_lesson(own, 21, "mine")
    assert [e.name for e in entries()] == ["vxlan", "mtu", "mine", "last"]
    assert find("21").folder == own / "21-mine"


def test_folder_of_ones_own_may_be_named_from_here(lessons: Path, own: Path, monkeypatch: pytest.MonkeyPatch):
    write_lesson(own, 21, "mine")
    monkeypatch.chdir(own.parent)
    monkeypatch.setenv(OWN, "own")
    assert find("mine").folder == own / "21-mine"


@pytest.mark.parametrize(
    "folders", [[(21, "vxlan")], [(3, "mine")], [(21, "mine"), (22, "mine")], [(21, "mine"), (21, "other")]]
)
def test_two_lessons_of_one_number_or_name_are_refused(
    lessons: Path, own: Path, folders: list[tuple[int, str]]
):
    for number, name in folders:
        write_lesson(own, number, name)
    with pytest.raises(ConfigError, match="two lessons are called") as caught:
        entries()
    assert len(set(caught.value.evidence.splitlines())) == 2


@pytest.mark.parametrize("where", ["own", "nowhere"])
def test_folder_without_a_lesson_is_refused(
    lessons: Path, own: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    monkeypatch.setenv(OWN, str(own.parent / where))
    with pytest.raises(ConfigError, match="there is no lesson in it"):
        entries()


def test_no_folder_is_looked_at_where_none_is_named(lessons: Path, own: Path, monkeypatch: pytest.MonkeyPatch):
    write_lesson(own, 21, "mine")
    monkeypatch.chdir(own)
    monkeypatch.setenv(OWN, "")
    assert [e.name for e in entries()] == ["vxlan", "mtu"]


def test_tab_completes_lessons_of_ones_own_as_well(lessons: Path, own: Path):
    write_lesson(own, 2, "mine")
    words = [item.value for item in Completer(App()).words("overlaynet lab start ")]
    assert words == ["mine", "vxlan", "mtu"]
