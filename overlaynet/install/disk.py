"""Reading what is there, and carrying a plan out, below a root: `/`, or an image that is being made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from overlaynet.errors import InstallFailed
from overlaynet.install.plan import Change, File, Link, Op, Other, There, Wanted
from overlaynet.store.disk import write_atomically

_LIB = PurePosixPath("/usr/local/lib")
OURS_IF_EMPTY = (
    *(_LIB / name for name in ("systemd", "tmpfiles.d", "sysctl.d", "modules-load.d")),
    PurePosixPath("/usr/local/share/man/man1"),
    PurePosixPath("/etc/NetworkManager"),
    PurePosixPath("/etc/overlaynet"),
    PurePosixPath("/var/lib/overlaynet"),
)
"""Folders that may have been made for our files; they and those below go when the last file has gone."""


def below(root: Path, path: PurePosixPath) -> Path:
    """`path` as the image at `root` has it."""
    return root / path.relative_to("/")


def look(root: Path, paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, There]:
    """Whatever there is at these paths. A link is not followed."""
    found = {path: _there(path, below(root, path)) for path in paths}
    return {path: there for path, there in found.items() if there is not None}


def _there(path: PurePosixPath, real: Path) -> There | None:
    try:
        mode = real.lstat().st_mode
        if stat.S_ISLNK(mode):
            return Link(path, PurePosixPath(real.readlink()))
        if stat.S_ISREG(mode):
            return File(path, real.read_text("utf-8"), stat.S_IMODE(mode))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        return Other(path, f"not to be read ({error})")
    return Other(path, "a folder" if stat.S_ISDIR(mode) else "no regular file")


def carry_out(root: Path, changes: Iterable[Change], wanted: Iterable[Wanted]) -> None:
    """Make every change that is one. Each file is whole at every moment. Raises InstallFailed."""
    content: Mapping[PurePosixPath, Wanted] = {want.path: want for want in wanted}
    for change in changes:
        try:
            _carry_out(root, change, content[change.path])
        except OSError as error:
            raise InstallFailed(
                f"{change.path} could not be written",
                evidence=str(error),
                next=["sudo overlaynet agent install", f"ls -ld {change.path.parent}"],
            ) from error


def _carry_out(root: Path, change: Change, want: Wanted) -> None:
    real = below(root, change.path)
    if change.op is Op.REMOVED:
        real.unlink()
        _remove_empty(root, change.path)
    elif change.real:
        _make_folders(real.parent)
        if isinstance(want, File):
            write_atomically(real, want.text, want.mode)
        else:
            _link_atomically(real, want.target)


def _make_folders(folder: Path) -> None:
    """For everybody to read, whatever umask root has."""
    for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
        missing.mkdir()
        missing.chmod(0o755)


def _link_atomically(path: Path, target: PurePosixPath) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(path)


def _remove_empty(root: Path, path: PurePosixPath) -> None:
    with suppress(OSError):  # the first that is not empty, or is somebody's mount
        for folder in _may_go(path):
            below(root, folder).rmdir()


def _may_go(path: PurePosixPath) -> Iterator[PurePosixPath]:
    for folder in path.parents:
        if any(folder.is_relative_to(top) for top in OURS_IF_EMPTY):
            yield folder
