"""What labs that do not run have left on this machine.

A lab leaves three things: namespaces called ``ovl-LAB-…``, a directory under /run and one on the durable
disk. One whose state file is there and whose processes live is running, and is never listed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlaynet.errors import LabFailed, NameInvalid
from overlaynet.kernel import netns
from overlaynet.lab import sandbox
from overlaynet.lab.converge import UNDERLAY_PLACE
from overlaynet.lab.lifecycle import orphans
from overlaynet.lab.netns_driver import PREFIX, namespace
from overlaynet.lab.paths import Paths
from overlaynet.lab.state import LabState, changing, load
from overlaynet.model import check_name


@dataclass(frozen=True, slots=True)
class Leftover:
    """What there is of one lab, and why it counts as not running."""

    lab: str
    why: str
    namespaces: tuple[str, ...]
    directories: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "lab": self.lab,
            "reason": self.why,
            "namespaces": list(self.namespaces),
            "directories": list(self.directories),
        }


def leftovers(paths: Paths) -> list[Leftover]:
    """Every lab that does not run and has left something, by name."""
    present = [] if paths.own else netns.names()  # to a user who is not root they are somebody else's
    paths = paths.mine
    found = []
    for lab in sorted(_names(paths, present)):
        why = None if _is_being_changed(paths, lab) else _why(paths, lab)
        if why is not None and not _is_being_changed(paths, lab):  # else that is why
            claimed, now = _claimed(paths, lab), netns.names() if present else []
            one = Leftover(lab, why, tuple(orphans(lab, now, claimed)), tuple(_directories(paths, lab)))
            found += [one] if one.namespaces or one.directories else []  # it may just have been taken down
    return found


def _names(paths: Paths, present: Iterable[str]) -> set[str]:
    """Labs that a directory or an underlay's namespace tells of."""
    ending = f"-{UNDERLAY_PLACE}"
    named = {
        n[len(PREFIX) + 1 : -len(ending)] for n in present if n.startswith(f"{PREFIX}-") and n.endswith(ending)
    }
    for root in (paths.run_root / "labs", paths.state_root / "labs"):
        with suppress(OSError):
            named |= {entry.name for entry in root.iterdir() if entry.is_dir()}
    return {name for name in named if _is_name(name)}


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name, "lab"))
    except NameInvalid:
        return False


def _why(paths: Paths, lab: str) -> str | None:
    """Why a lab that nobody is changing counts as not running; None if it runs."""
    try:
        state = load(paths.lab(lab))
    except LabFailed:
        return "its state cannot be read"
    if state is None:
        return "it has no state file"
    if state.on_machines:
        return None  # whether anything of it is left only its machines know; `down` asks them
    if state.rebooted:
        return "the machine was restarted since it was up"
    if state.ended:
        return "its sandbox has ended"
    if sandbox.recorded(paths.lab(lab)) is not None:
        return None
    return None if _lives(state, lab) else "nothing of it runs"


def _is_being_changed(paths: Paths, lab: str) -> bool:
    """Whether another command is just making it or taking it down."""
    if not paths.lock(lab).exists():
        return False
    try:
        with changing(paths, lab):
            return False
    except LabFailed:
        return True


def _lives(state: LabState, lab: str) -> bool:
    if any(running.process.alive for running in state.processes.values()):
        return True
    return any(netns.exists(namespace(lab, place)) for place in state.namespaces)


def _claimed(paths: Paths, lab: str) -> set[str]:
    claimed: set[str] = set()
    for other in paths.names():
        with suppress(LabFailed):
            state = load(paths.lab(other)) if other != lab else None
            claimed |= {namespace(other, place) for place in state.namespaces} if state else set()
    return claimed


def _directories(paths: Paths, lab: str) -> list[str]:
    there: tuple[Path, ...] = (paths.lab(lab).run, paths.lab(lab).state)
    return [str(directory) for directory in there if directory.exists()]
