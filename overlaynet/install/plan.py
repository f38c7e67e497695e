"""What there should be against what there is: pure, so that every case can be tried without a machine.

A change of ours never destroys what somebody else wrote. Where a file has no mark of ours, or was changed
since, and differs from what is wanted, the plan says so and leaves it (`kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import NamedTuple, TypeAlias

READABLE = 0o644


class File(NamedTuple):
    """A regular file, its whole content and its permissions."""

    path: PurePosixPath
    text: str
    mode: int = READABLE


class Link(NamedTuple):
    """A symbolic link."""

    path: PurePosixPath
    target: PurePosixPath


class Other(NamedTuple):
    """Something that is neither, or cannot be read; `what` says it in a word or two."""

    path: PurePosixPath
    what: str


Wanted: TypeAlias = File | Link
There: TypeAlias = File | Link | Other


class Op(StrEnum):
    CREATED = "created"
    REPLACED = "replaced"
    REMOVED = "removed"
    KEPT = "kept"


class Change(NamedTuple):
    """One path. `why` is about what is kept. `KEPT` changes nothing; it is something to tell."""

    op: Op
    path: PurePosixPath
    why: str = ""

    @property
    def real(self) -> bool:
        return self.op is not Op.KEPT


def to_install(
    wanted: Iterable[Wanted], there: Mapping[PurePosixPath, There], is_ours: Callable[[File], bool]
) -> list[Change]:
    """What makes the files `there` the `wanted` ones, and what stays as somebody else made it."""
    return [change for want in wanted if (change := _placing(want, there.get(want.path), is_ours))]


def _placing(want: Wanted, have: There | None, is_ours: Callable[[File], bool]) -> Change | None:
    if have is None:
        return Change(Op.CREATED, want.path)
    if have == want:
        return None
    why = _reason_to_keep(want, have, is_ours)
    return Change(Op.KEPT, want.path, why) if why else Change(Op.REPLACED, want.path)


def to_uninstall(
    wanted: Iterable[Wanted], there: Mapping[PurePosixPath, There], is_ours: Callable[[File], bool]
) -> list[Change]:
    """Takes away what is there of the `wanted`, whichever version it is from."""
    return [change for want in wanted if (change := _removal(want, there.get(want.path), is_ours))]


def _removal(want: Wanted, have: There | None, is_ours: Callable[[File], bool]) -> Change | None:
    if have is None:
        return None
    why = _reason_to_keep(want, have, is_ours)
    return Change(Op.KEPT, want.path, why) if why else Change(Op.REMOVED, want.path)


def _reason_to_keep(want: Wanted, have: There, is_ours: Callable[[File], bool]) -> str:
    """Why what is there must not be touched; "" if it is ours. A link is, if it leads to a file of that name:
    so does another version's."""
    match want, have:
        case File(), File():
            return "" if is_ours(have) else "somebody has written or changed it"
        case Link(), Link():
            return "" if have.target.name == want.target.name else f"it leads to {have.target}"
        case _, Other():
            return f"it is {have.what}"
        case _:
            return "it is a link" if isinstance(have, Link) else "it is a file of somebody's"
