"""Where the files that ship beside the code are: the topology schema and the labs.

In an installed package they are under `overlaynet/data/labs`; in a clone they are the clone's `labs`.
"""

from __future__ import annotations

from pathlib import Path

import overlaynet


def labs_dir() -> Path:
    """The directory of topologies and their schema."""
    package = Path(overlaynet.__file__).resolve().parent
    installed = package / "data" / "labs"
    return installed if installed.is_dir() else package.parent / "labs"


def topology_schema() -> Path:
    return labs_dir() / "topology.schema.json"
