"""A user's lab is in a sandbox: one user, one mount and one network namespace, of which the lab's are made.

    the user's own namespaces     overlaynet up ──┬─ makes ──> keeper (overlaynet.lab.keeper)
                                                  └─ joins ─┐    │ isolates itself, keeps
    the sandbox                                             v    v
      user   uid 0 is the user, with every capability over what is in here, and none outside
      mnt    /run is its own, with /run/netns in it; all else is the machine's
      net    nothing but lo; here commands are, and from here they enter the lab's namespaces

Every command about the lab joins it by itself, in its own process: so files are opened and written as the user
that typed, in the directory where that was. A process enters a user namespace only with one thread. Whoever has
threads that can stop for a moment says so (`register_at_join`), as with os.register_at_fork.

The namespaces live as long as a process is in them. The keeper is one that does nothing else; its process is
recorded beside lab.json, and while it lives the sandbox is there to be joined. If it is killed, or ended with
the user's session, the rest of the lab may live on but nobody finds the way in any more: then the lab has
ended, and `up` builds another. What is left is found by the marker in its mount namespace and not by numbers,
which the kernel gives out again: neither process ids nor those of namespaces say whose they are.

A process that is inside when its lab is taken down may build it again (`lab reset` does): it is still in there,
and has a new keeper started.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from overlaynet.errors import LabFailed
from overlaynet.kernel import capability, process, userns
from overlaynet.kernel.process import Process
from overlaynet.lab import marker, unprivileged
from overlaynet.lab.keeper import INSIDE, NEW
from overlaynet.lab.marker import Marker
from overlaynet.lab.netns_driver import clean_environ
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.store.disk import write_atomically

CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SETPCAP")
"""What it takes to make, change or take away any part of a lab."""
STOP_GRACE_S = 5.0

_KEEPER = (sys.executable, "-P", "-m", "overlaynet.lab.keeper")
_PRIVATE = 0o700


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as it is recorded: its marker's id, and the process that keeps it, since which boot."""

    id: str
    keeper: Process
    boot_id: str

    @property
    def alive(self) -> bool:
        return self.boot_id == process.boot_id() and self.keeper.alive

    def as_text(self) -> str:
        keeper = {"pid": self.keeper.pid, "start": self.keeper.start}
        return json.dumps({"id": self.id, "keeper": keeper, "boot_id": self.boot_id}) + "\n"

    @classmethod
    def of_text(cls, text: str) -> Sandbox:
        """Raises ValueError, KeyError or TypeError for what `as_text` did not write."""
        document = json.loads(text)
        return cls(str(document["id"]), Process(**document["keeper"]), document["boot_id"])


# --- the record -----------------------------------------------------------------------------------


def recorded(lab: LabPaths) -> Sandbox | None:
    """The lab's sandbox; None for a lab that has none. One whose record cannot be read counts as ended."""
    if not lab.sandbox.exists() and not lab.durable_sandbox.exists():
        return None
    try:
        return Sandbox.of_text(lab.sandbox.read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return Sandbox("", Process(0, 0), "")


def holds(name: str, paths: Paths) -> bool:
    """Whether whatever there is of the lab besides files is in a sandbox: it has one, or its user can have a
    lab in no other way. `paths`: those that it is under."""
    return recorded(paths.lab(name)) is not None or (is_wanted() and paths == Paths.here().own)


def has_ended(lab: LabPaths) -> bool:
    """Whether the lab had a sandbox which nobody can join any more.

    Its files of this session may be gone, at a logout, while it still lives: without them it is of no use."""
    found = recorded(lab)
    return found is not None and not found.alive


def is_wanted() -> bool:
    """Whether this process can have a lab in no other way: it is no root's, and has no rights."""
    return os.geteuid() != 0 and not set(CAPABILITIES) <= capability.effective()


def is_here(name: str, paths: Paths) -> bool:
    """Whether this process is in a sandbox of that lab."""
    here = _here()
    return here is not None and _is_of(here, name, paths)


def _here() -> Marker | None:
    """The sandbox that this process is in. Whoever is in one has uid 0."""
    return marker.here() if os.geteuid() == 0 else None


def _is_of(found: Marker, name: str, paths: Paths) -> bool:
    return (found.lab, found.state_root) == (name, str(paths.state_root))


# --- joining --------------------------------------------------------------------------------------

_at_join: list[tuple[Callable[[], None], Callable[[], None]]] = []


@contextmanager
def register_at_join(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Within the block `before` is called ahead of joining a sandbox, to end threads, and `after` behind it."""
    pair = (before, after)
    _at_join.append(pair)
    try:
        yield
    finally:
        _at_join.remove(pair)


def join(name: str, lab: LabPaths) -> None:
    """Be in the lab's sandbox from now on, if it has one that lives. Harmless the second time.

    Raises LabFailed in another lab's sandbox, and in a process with several threads."""
    found = recorded(lab)
    here = _here()
    if found is None or not found.alive or (here is not None and here.id == found.id):
        return
    if here is not None:
        raise _elsewhere(name, here)
    _join(name, found)


def _join(name: str, sandbox: Sandbox) -> None:
    for before, _ in _at_join:
        before()
    try:
        _enter(name, sandbox)
    finally:
        for _, after in _at_join:
            after()


def _enter(name: str, sandbox: Sandbox) -> None:
    if not userns.is_alone():
        raise LabFailed(
            f"a process with several threads cannot join the sandbox of lab {name!r}",
            evidence="setns(2): a user namespace is entered only by a process of one thread",
            next=["choose the lab before the first thread is started, or in a process of its own"],
        )
    os.environ.setdefault("USER", _user())  # inside, the name of the uid is root's
    try:
        userns.join(sandbox.keeper.pid)
    except OSError as error:
        raise LabFailed(
            f"the sandbox of lab {name!r} cannot be joined",
            evidence=f"{error.strerror}; it is kept by process {sandbox.keeper.pid}",
            next=[f"overlaynet status -l {name}", f"overlaynet up -l {name}"],
        ) from error
    here = marker.here()
    if here is None or here.id != sandbox.id:  # its keeper ended just now, and another has its process id
        raise LabFailed(f"the sandbox of lab {name!r} has just ended", next=[f"overlaynet up -l {name}"])
    os.environ["PATH"] = process.search_path()  # inside one is root, and types what root types


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _elsewhere(name: str, here: Marker) -> LabFailed:
    return LabFailed(
        f"this is inside of lab {here.lab!r}, from where there is no way to lab {name!r}",
        evidence=str(marker.FILE),
        next=["exit", f"overlaynet status -l {here.lab}"],
    )


# --- making and ending ----------------------------------------------------------------------------


def prepare(name: str, paths: Paths) -> bool:
    """Be in the lab's sandbox, made if there is none, for one who holds the lab's lock. Whether it was made.

    Nothing is done where there is no need of one. Raises SandboxRefused, LabFailed."""
    lab = paths.lab(name)
    here = _here()
    if here is None and not is_wanted():
        return False
    if here is not None and here.lab != name:
        raise _elsewhere(name, here)
    found = recorded(lab)
    if found is not None and found.alive:
        join(name, lab)
        return False
    end(name, paths)
    sandbox = _made(name, paths, here)
    try:
        write_atomically(lab.durable_sandbox, sandbox.as_text(), 0o600)
        write_atomically(lab.sandbox, sandbox.as_text(), 0o600)
        if here is None:
            _join(name, sandbox)
    except BaseException:
        process.kill([sandbox.keeper])
        forget(lab)
        raise
    return True


def _made(name: str, paths: Paths, here: Marker | None) -> Sandbox:
    """A new sandbox; or, for a process that is in one, a new keeper for that. Raises SandboxRefused."""
    for root in (paths.run_root, paths.state_root):
        root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        root.chmod(_PRIVATE)
    mine = here or Marker(secrets.token_hex(16), name, str(paths.run_root), str(paths.state_root))
    keeper = _started([*astuple(mine), INSIDE if here else NEW], name)
    return Sandbox(mine.id, keeper, process.boot_id())


def _started(words: list[str], name: str) -> Process:
    """A keeper that has said that it is ready."""
    reading, writing = os.pipe()
    try:
        keeper = process.spawn_into([*_KEEPER, *words], writing, clean_environ())
    finally:
        os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as stream:
        said = stream.readline()
        try:
            document = json.loads(said)
        except ValueError:
            raise LabFailed(
                f"the sandbox of lab {name!r} could not be made",
                evidence=(said + stream.read()).strip() or "its keeper said nothing",
                next=["overlaynet doctor"],
            ) from None
    if document["step"] is not None:
        raise unprivileged.refusal(document["step"], document["errno"], unprivileged.facts(), name)
    return keeper


def visit(paths: Paths) -> None:
    """Be in a sandbox of no lab until this process ends, to try what works there. Raises SandboxRefused."""
    mine = Marker(secrets.token_hex(16), "", str(paths.run_root), str(paths.state_root))
    keeper = _started([*astuple(mine), NEW], "")
    try:
        _join("", Sandbox(mine.id, keeper, process.boot_id()))
    finally:
        process.kill([keeper])


def end(name: str, paths: Paths) -> int:
    """End all that is in the sandboxes of this lab but ourselves and who started us; answer how many that were.

    From inside or from outside, whether or not a keeper lives. The keeper is the last, since without it nobody
    would find the way to what is left. Raises LabFailed."""
    lab = paths.lab(name)
    found = recorded(lab)
    inside = processes(name, paths)
    last = [found.keeper] if found is not None and found.alive else []
    process.stop((p for p in inside if p not in last), STOP_GRACE_S)
    process.stop(last, STOP_GRACE_S)
    forget(lab)
    return len(set(inside) | set(last))


def forget(lab: LabPaths) -> None:
    """Remove the record, and the directories if there is nothing else in them."""
    for file in (lab.sandbox, lab.durable_sandbox):
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()


def processes(name: str, paths: Paths) -> list[Process]:
    """Every process in a sandbox of that lab, but ourselves and our ancestors."""
    spared = _ancestors()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (pid := int(entry.name)) not in spared:
            start = process.start_time(pid)
            there = marker.of_process(pid)
            if start is not None and there is not None and _is_of(there, name, paths):
                found.append(Process(pid, start))
    return found


def _ancestors() -> set[int]:
    """This process and those that started it, as far as they can be told."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        pid = process.parent(pid)
    return found
