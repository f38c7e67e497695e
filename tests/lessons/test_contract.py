"""What holds for every lesson that comes with overlaynet."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from helpers.lessons import SOLUTIONS, SOLVED
from helpers.transcripts import sessions

from overlaynet.lessons.catalogue import Entry, entries
from overlaynet.model import RESERVED_NAMES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["Start", "Predict", "Do", "What you have proved", "Read on"]
SVG = "{http://www.w3.org/2000/svg}"
FOLDERS = sorted(folder for folder in (ROOT / "labs").iterdir() if re.match(r"\d\d-", folder.name))
LESSONS = [entry for entry in entries() if entry.folder.parent == ROOT / "labs"]

each = pytest.mark.parametrize("entry", LESSONS, ids=lambda entry: entry.folder.name)


def page(entry: Entry) -> str:
    return entry.readme.read_text("utf-8")


def section(entry: Entry, heading: str) -> str:
    _, _, after = page(entry).partition(f"\n## {heading}\n")
    return after.partition("\n## ")[0]


def solution(entry: Entry) -> str:
    return (SOLUTIONS / f"{entry.name}.sh").read_text("utf-8")


def test_every_folder_is_a_lesson_and_their_numbers_leave_no_gap():
    assert [entry.folder for entry in LESSONS] == FOLDERS
    assert [entry.number for entry in LESSONS] == list(range(1, len(LESSONS) + 1))


@each
def test_folder_has_all_parts(entry: Entry):
    names = {file.name for file in entry.folder.iterdir()} - {"__pycache__"}
    assert names >= {"README.md", "lab.yaml", "lesson.py", "picture.svg"}
    assert list((ROOT / "tests" / "lessons").glob(f"test_{entry.number:02}_*.py"))


@each
def test_page_asks_the_lessons_question_and_has_its_sections(entry: Entry):
    text = page(entry)
    assert text.splitlines()[0] == f"# {entry.number}. {entry.lesson.question}"
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert f"\n    overlaynet lab start {entry.name}" in section(entry, "Start")
    assert text.count(SOLVED) == 1


@each
def test_page_says_what_the_lesson_costs(entry: Entry):
    lesson = entry.lesson
    assert f"| time | {lesson.minutes} minutes |" in page(entry)
    assert f"| memory, disk | {lesson.memory_mb} MB, {lesson.disk_mb} MB while it runs |" in page(entry)


@each
def test_page_asks_for_as_many_predictions_as_the_check(entry: Entry):
    asked = re.findall(r"^\* ", section(entry, "Predict"), re.MULTILINE)
    assert len(asked) == len(entry.lesson.predictions)
    assert 2 <= len(asked) <= 4


@each
def test_hints_are_three_and_none_is_said_twice(entry: Entry):
    assert len({hint.strip() for hint in entry.lesson.hints} - {""}) == 3


@each
def test_transcripts_are_typed_before_and_after_the_solution(entry: Entry):
    before, _, after = page(entry).partition(SOLVED)
    assert sessions(before)
    assert any(typed.command.startswith("overlaynet lab check") for typed in sessions(after))


@each
def test_nothing_that_a_learner_types_needs_root(entry: Entry):
    for text in (page(entry), *entry.lesson.hints, solution(entry)):
        assert re.findall(r"\bsudo \w|\bip netns exec\b", text) == []


@each
def test_links_of_the_page_lead_somewhere(entry: Entry):
    links = re.findall(r"\]\(([^)\s]+)\)", page(entry))
    files = [link.partition("#")[0] for link in links if not urlsplit(link).scheme]
    assert [file for file in files if not (entry.folder / file).exists()] == []
    assert "picture.svg" in files
    assert any("/docs/" in file for file in files)


@each
def test_picture_is_whole_and_can_be_read_aloud(entry: Entry):
    root = ElementTree.parse(entry.folder / "picture.svg").getroot()
    assert (root.tag, bool(root.get("viewBox"))) == (f"{SVG}svg", True)
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text
    assert {element.tag for element in root.iter()} & {
        f"{SVG}script",
        f"{SVG}image",
        f"{SVG}foreignObject",
    } == set()
    assert re.search(r"!\[[^\]]{20,}\]\(picture\.svg\)", page(entry)), "a text in place of the picture"


@each
def test_lab_is_valid_and_has_the_lessons_name(entry: Entry):
    assert entry.topology().name == entry.name
    assert f"\nname: {entry.name}\n" in (entry.folder / "lab.yaml").read_text()
    assert entry.name not in RESERVED_NAMES


@each
def test_reference_solution_predicts_every_value(entry: Entry):
    line = next(line for line in solution(entry).splitlines() if line.startswith("# predict:"))
    read = entry.lesson.read(line.split()[2:])
    assert read.keys() == {prediction.name for prediction in entry.lesson.predictions}


@each
def test_solution_stands_nowhere_but_in_the_tests(entry: Entry):
    """No line of it that changes something is in the page."""
    typed = [
        line.strip() for line in solution(entry).splitlines() if line.startswith(("on ", "overlaynet exec"))
    ]
    assert [line for line in typed if line.partition(" ")[2] in page(entry)] == []
