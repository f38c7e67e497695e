"""Ordinary users of this machine, for a test that runs as root: no rights, no sudo, a home of their own.

They need no entry in /etc/passwd. What a user leaves behind can be told: it is theirs by uid.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from overlaynet.kernel import process
from overlaynet.kernel.process import Process
from overlaynet.lab import sandbox
from overlaynet.lab.paths import Paths


def _refused() -> str | None:
    """Why users of this machine get no user namespace; in a chroot, say, the kernel makes none for anybody."""
    ids = ["--reuid=64000", "--regid=64000", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    try:
        done = subprocess.run(
            ["setpriv", *ids, "--", "unshare", "--user", "--map-root-user", "--net", "--", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return str(error)
    return done.stderr.strip() or f"exit {done.returncode}" if done.returncode else None


_REFUSAL = _refused()
requires_user_namespaces = pytest.mark.skipif(
    _REFUSAL is not None, reason=f"no user namespaces here: {_REFUSAL}"
)

CLONE = Path(__file__).parent.parent.parent
NEEDED = (CLONE, Path(sys.prefix), Path(sys.base_prefix))
"""Where the program and its Python are."""
_AT_FIRST = ("run", ".local", ".local/state")
OVERLAYNET = (sys.executable, "-P", "-m", "overlaynet.cli.main")


@dataclass(frozen=True)
class Learner:
    """A user with a home; `door` is the command line that leads to where the clone can be read."""

    uid: int
    home: Path
    door: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> Paths:
        return Paths(self.home / "run" / "overlaynet", self.home / ".local" / "state" / "overlaynet")

    def argv(self, *words: str | Path) -> list[str]:
        ids = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        rights = ["--bounding-set=-all", "--inh-caps=-all"]
        return [*self.door, "env", f"--chdir={self.home}", "setpriv", *ids, *rights, "--", *map(str, words)]

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """A command as this user, in the user's home and with nothing of our environment."""
        environ = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            **self.environ,
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv(*words), env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return ended(self.start(*words))

    def overlaynet(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(*OVERLAYNET, *words)

    def json(self, *words: str) -> Any:
        done = self.overlaynet(*words, "-o", "json")
        return json.loads(done.stdout)

    # --- what there is of the user ---

    def processes(self) -> list[str]:
        """Command lines of all processes of this uid that have not ended."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and process.start_time(int(entry.name)) is not None:
                try:
                    if entry.stat().st_uid == self.uid:
                        found.append((entry / "cmdline").read_text().replace("\0", " "))
                except FileNotFoundError:
                    continue
        return found

    def files(self) -> list[str]:
        """All that is below the home directory but for what was there at first, and caches of libraries."""
        found = (str(file.relative_to(self.home)) for file in self.home.rglob("*"))
        return sorted(f for f in found if f not in _AT_FIRST and not f.startswith((".cache", ".config")))

    def inside(self, lab: str) -> list[Process]:
        """The processes in the sandbox of one of the user's labs."""
        return sandbox.processes(lab, self.paths)

    def keeper(self, lab: str) -> Process:
        found = sandbox.recorded(self.paths.lab(lab))
        assert found is not None
        return found.keeper


def ended(command: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = command.communicate("", timeout=120)
    return subprocess.CompletedProcess(command.args, command.returncode, out, err)


@contextmanager
def learners(count: int) -> Iterator[list[Learner]]:
    """So many users; their labs and homes are gone afterwards."""
    first = 100_000 + os.getpid() % 30_000 * 8
    homes = [_home(first + n) for n in range(count)]
    with _door() as door:
        found = [Learner(first + n, home, door) for n, home in enumerate(homes)]
        try:
            yield found
        finally:
            for learner in found:
                for lab in learner.paths.names():
                    learner.overlaynet("down", "-l", lab)
                shutil.rmtree(learner.home)


def _home(uid: int) -> Path:
    """Short, for paths of unix sockets are."""
    home = Path(tempfile.mkdtemp(prefix="ovl", dir="/tmp"))
    (home / "run").mkdir(mode=0o700)
    for directory in (home, home / "run"):
        os.chown(directory, uid, uid)
    return home


# --- a clone where an ordinary user may not look ---------------------------------------------------

_OPEN = """\
hidden=$1 closed=$2
shift 2
for path; do mkdir -p "$hidden$path"; mount --rbind "$path" "$hidden$path"; done
mount -t tmpfs -o mode=0755 tmpfs "$closed"
for path; do mkdir -p "$path"; mount --rbind "$hidden$path" "$path"; done
echo open
exec cat
"""


@contextmanager
def _door() -> Iterator[tuple[str, ...]]:
    """Nothing, where users can read the clone; else the way into a mount namespace in which they can: there the
    first directory that is closed to them holds nothing but what is needed."""
    closed = next((found for path in NEEDED if (found := _closed(path)) is not None), None)
    if closed is None:
        yield ()
        return
    needed = [str(path) for path in NEEDED if path.is_relative_to(closed)]
    hidden = tempfile.mkdtemp(prefix="ovl", dir="/tmp")
    words = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _OPEN, "sh", hidden, str(closed)]
    keep = subprocess.Popen([*words, *needed], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert keep.stdout is not None
        assert keep.stdout.readline() == b"open\n"
        yield ("nsenter", f"--mount=/proc/{keep.pid}/ns/mnt", "--")
    finally:
        keep.communicate(timeout=10)
        shutil.rmtree(hidden)


def _closed(path: Path) -> Path | None:
    """The topmost directory on the way there that is not for everybody to pass."""
    return next((p for p in reversed([path, *path.parents]) if not p.stat().st_mode & 0o001), None)
