"""What tells a process that it is inside a user's sandbox, and of which lab.

Inside, everybody's uid is 0, as it is for the machine's root and for root in a container; the environment may
be cleaned on the way (sudo, env -i, a login shell). What cannot be lost is the mount namespace. So the
sandbox has a file in its private /run. Elsewhere /run is root's, and no such file is in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = Path("/run/overlaynet-sandbox.json")


@dataclass(frozen=True, slots=True)
class Marker:
    """A sandbox, by an id that none had before, with the lab it is for and the roots of its user's files."""

    id: str
    lab: str
    run_root: str
    state_root: str

    def as_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Marker | None:
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


def here() -> Marker | None:
    """The sandbox that this process is in."""
    return _read(FILE)


def of_process(pid: int) -> Marker | None:
    """The sandbox that a process is in; None as well for one that we may not look at."""
    return _read(Path(f"/proc/{pid}/root") / FILE.relative_to("/"))


def _read(file: Path) -> Marker | None:
    try:
        return Marker.of_text(file.read_text("utf-8"))
    except OSError:
        return None
