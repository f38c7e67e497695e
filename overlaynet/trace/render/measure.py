"""How wide text will be, without any font at hand.

A drawing is laid out before anybody knows which font will show it. So text is measured by the advance widths of
DejaVu Sans, wider than the sans-serif fonts of any system, and of its monospaced sister, whose 0.602 em is the
widest among the usual ones: what fits here fits everywhere. Characters that the table lacks count as wide as
any letter is, and a text that has one is drawn with its measured length as a limit (`is_exact`).

Widths are in thousandths of an em, the em being the font's size in pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace'

_MONO_ADVANCE = 602
_UNKNOWN_ADVANCE = 1100
_FIRST = 32
# The characters from blank to tilde, in their order: regular, then bold.
_ADVANCES = (
    318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337,
    636, 636, 636, 636, 636, 636, 636, 636, 636, 636, 337, 337, 838, 838, 838, 531,
    1000, 684, 686, 698, 770, 632, 575, 775, 752, 295, 295, 656, 557, 863, 748, 787,
    603, 787, 695, 635, 611, 732, 684, 989, 685, 611, 685, 390, 337, 390, 838, 500,
    500, 613, 635, 550, 635, 615, 352, 635, 634, 278, 278, 579, 278, 974, 634, 612,
    635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
)  # fmt: skip
_BOLD_ADVANCES = (
    348, 456, 521, 838, 696, 1002, 872, 306, 457, 457, 523, 838, 380, 415, 380, 365,
    696, 696, 696, 696, 696, 696, 696, 696, 696, 696, 400, 400, 838, 838, 838, 580,
    1000, 774, 762, 734, 830, 683, 683, 821, 837, 372, 372, 775, 637, 995, 837, 850,
    733, 850, 770, 720, 682, 812, 774, 1103, 771, 724, 725, 457, 365, 457, 838, 500,
    500, 675, 716, 593, 716, 678, 435, 716, 712, 343, 343, 665, 343, 1042, 712, 687,
    716, 716, 493, 595, 478, 712, 652, 924, 645, 652, 582, 712, 365, 712, 838,
)  # fmt: skip
_OTHERS = {"µ": 736, "→": 838, "←": 838, "⇒": 838, "…": 1000, "×": 838, "·": 380, "–": 500, "−": 838, "✗": 838}


def width(text: str, size: float, *, mono: bool = False, bold: bool = False) -> float:
    """Pixels that the text takes at most, at `size` pixels an em."""
    if mono:
        return sum(_MONO_ADVANCE if _is_known(c) else _UNKNOWN_ADVANCE for c in text) * size / 1000
    advances = _BOLD_ADVANCES if bold else _ADVANCES
    return sum(_advance(character, advances) for character in text) * size / 1000


def is_exact(text: str) -> bool:
    """Whether every character's width is known."""
    return all(map(_is_known, text))


def fit(text: str, room: float, size: float, *, mono: bool = False, bold: bool = False) -> str:
    """As much of the text as fits into `room` pixels; what was left out, in the middle, is marked."""
    if width(text, size, mono=mono, bold=bold) <= room:
        return text
    kept = bisect_right(
        range(len(text)), room, key=lambda length: width(_without(text, length), size, mono=mono, bold=bold)
    )
    return _without(text, kept - 1) if kept else ""


def _without(text: str, kept: int) -> str:
    """So many of its characters, two thirds of them the first."""
    tail = kept // 3
    return text[: kept - tail] + "…" + (text[-tail:] if tail else "")


def wrapped(
    text: str, room: float, size: float, *, lines: int = 3, mono: bool = False, bold: bool = False
) -> list[str]:
    """The text on at most `lines` lines of `room` pixels, broken at blanks; the last one is shortened."""
    found = list(_broken(text.split(), room, size, mono=mono, bold=bold))
    if len(found) > lines:
        found = [*found[: lines - 1], " ".join(found[lines - 1 :])]
    return [fit(line, room, size, mono=mono, bold=bold) for line in found]


def _broken(words: list[str], room: float, size: float, *, mono: bool, bold: bool) -> Iterator[str]:
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if line and width(longer, size, mono=mono, bold=bold) > room:
            yield line
            longer = word
        line = longer
    if line:
        yield line


def _is_known(character: str) -> bool:
    return _FIRST <= ord(character) < _FIRST + len(_ADVANCES) or character in _OTHERS


def _advance(character: str, advances: Sequence[int]) -> int:
    place = ord(character) - _FIRST
    if 0 <= place < len(advances):
        return advances[place]
    return _OTHERS.get(character, _UNKNOWN_ADVANCE)
