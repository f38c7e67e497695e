"""Where the files that are not Python lie: lab topologies, files of the agent's service.

A clone keeps them where people look for them, in `labs/` and `agent/systemd/`; a wheel has only
site-packages to put them in, so the build copies them below this package. `path` hides the difference.
"""

from __future__ import annotations

from pathlib import Path

from overlaynet.errors import EnvironmentProblem

_PACKAGED = Path(__file__).parent
_CLONE = _PACKAGED.parent.parent
_IN_CLONE = {"labs": _CLONE / "labs", "systemd": _CLONE / "agent" / "systemd"}


def path(kind: str, *parts: str) -> Path:
    """The existing file or folder `parts` of one kind: `path("labs", "quickstart.yaml")`.

    `kind` is `labs` or `systemd`. Raises EnvironmentProblem if this installation does not have it.
    """
    looked_at = [base.joinpath(*parts) for base in (_PACKAGED / kind, _IN_CLONE[kind])]
    for candidate in looked_at:
        if candidate.exists():
            return candidate
    raise EnvironmentProblem(
        f"this installation has no {'/'.join((kind, *parts))}",
        evidence="looked at " + ", ".join(map(str, looked_at)),
        next=("install overlaynet again",),
    )
