"""The pages about the course, in English and in Chinese, against the lessons that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from overlaynet.lessons.catalogue import entries

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
LESSONS = [entry for entry in entries() if entry.folder.parent == ROOT / "labs"]
PAGES = {name: (ROOT / "docs" / name).read_text("utf-8") for name in ("course.md", "course.zh.md")}
ENGLISH, CHINESE = PAGES.values()
_LESSON = re.compile(r"^\| \d+ \| \[.*$", re.MULTILINE)
_SESSION = re.compile(r"^\| (?:[123]|第[一二三]次) \| .* \| ([\d, ]+) \| (\d+) \|$", re.MULTILINE)


def rows(page: str) -> list[list[str]]:
    """The table of lessons."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in _LESSON.findall(page)]


def test_table_is_what_lab_list_says():
    assert rows(ENGLISH) == [
        [
            str(entry.number),
            f"[{entry.name}](../labs/{entry.folder.name}/README.md)",
            entry.lesson.question,
            str(entry.lesson.minutes),
            f"{entry.lesson.memory_mb} MB",
            f"{entry.lesson.disk_mb} MB",
        ]
        for entry in LESSONS
    ]


def test_chinese_table_has_the_same_rows_and_numbers_and_questions_of_its_own():
    chinese = rows(CHINESE)
    assert [row[:2] + row[3:] for row in chinese] == [row[:2] + row[3:] for row in rows(ENGLISH)]
    assert [row[2] for row in chinese if not re.search("[一-鿿].*？", row[2])] == []


@pytest.mark.parametrize("name", PAGES)
def test_sessions_take_each_lesson_once_and_as_long_as_they_say(name: str):
    minutes = {entry.number: entry.lesson.minutes for entry in LESSONS}
    sessions = [
        ([int(n) for n in numbers.split(",")], int(sum_)) for numbers, sum_ in _SESSION.findall(PAGES[name])
    ]
    assert [n for numbers, _ in sessions for n in numbers] == list(range(1, 13))
    assert [sum(minutes[n] for n in numbers) for numbers, _ in sessions] == [sum_ for _, sum_ in sessions]
    assert max(sum_ for _, sum_ in sessions) <= 90


@pytest.mark.parametrize("name", PAGES)
def test_server_is_large_enough_for_the_largest_lesson(name: str):
    for largest in (max(e.lesson.memory_mb for e in LESSONS), max(e.lesson.disk_mb for e in LESSONS)):
        assert re.search(rf"^\| \S+ \| {largest} MB", PAGES[name], re.MULTILINE)


def test_both_pages_have_the_same_commands_in_the_same_order():
    typed = {name: re.findall(r"^    (\S.*)$", page, re.MULTILINE) for name, page in PAGES.items()}
    assert typed["course.zh.md"] == typed["course.md"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", PAGES[name])
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
