"""Terminal sessions in pages (fences of the language `console`), typed again and compared.

    $ overlaynet get hosts node-1 -o name
    node-1

A line that begins with `$ ` is typed; what follows is what came back. `…` stands for anything within a line,
a line of nothing else for any lines at all, also none. Spans of time may be others, and so may the number of
blanks between columns.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ANYTHING = "…"
_FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"\d+(\.\d+)? (s|ms|µs)\b")


class Typed(NamedTuple):
    """One command, and what the page says came back."""

    command: str
    said: tuple[str, ...]


def sessions(text: str) -> list[Typed]:
    """All that is typed in a page or a part of it, in order."""
    found: list[tuple[str, list[str]]] = []
    for fence in _FENCE.findall(text):
        for line in fence.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                assert found, f"a session begins with a command, not with {line!r}"
                found[-1][1].append(line)
    return [Typed(command, tuple("\n".join(said).rstrip().splitlines())) for command, said in found]


def retype(sessions: Sequence[Typed], directory: Path, environ: Mapping[str, str]) -> None:
    """Type it all in a directory; AssertionError at the first that answers otherwise. Both streams count, as
    they do on a terminal."""
    for typed in sessions:
        done = subprocess.run(
            ["sh", "-c", typed.command],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        compare(typed, done.stdout)


def compare(typed: Typed, came: str) -> None:
    """AssertionError unless what came back is what the page says."""
    expected = re.compile(_pattern(typed.said))
    said = "".join(f"{_plain(line)}\n" for line in came.rstrip().splitlines())
    shown = f"$ {typed.command}\n{came}"
    assert expected.fullmatch(said), f"{shown}\nthe page has\n" + "\n".join(typed.said)


def _pattern(said: Sequence[str]) -> str:
    return "".join(
        "(?:.*\n)*"
        if line.strip() == ANYTHING
        else ".*".join(map(re.escape, _plain(line).split(ANYTHING))) + "\n"
        for line in said
    )


def _plain(line: str) -> str:
    """Blanks at the end do not count, nor how many there are, nor how long something took."""
    return re.sub(r" +", " ", _SPAN.sub(r"0 \2", line.rstrip()))
