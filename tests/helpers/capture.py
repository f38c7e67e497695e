"""Capturing in a lab: the probe listens on named points while a block runs; scapy decodes what it took."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from overlaynet.trace.decode import decode
from overlaynet.trace.model import Frame


@dataclass
class Captured:
    """What passed, point by point, once the block is over. `drops` counts frames the kernel had no room for."""

    frames: dict[tuple[str, str], list[Frame]] = field(default_factory=dict)
    drops: int = 0


@contextmanager
def capture(*points: tuple[str, str]) -> Iterator[Captured]:
    """Listen at (network namespace, interface) points; the block starts when all of them are armed."""
    captured = Captured({point: [] for point in points})
    job = {
        "op": "capture",
        "points": [{"netns": space, "iface": iface} for space, iface in points],
        "seconds": 30.0,
    }
    probe = subprocess.Popen(
        [sys.executable, "-m", "overlaynet.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert probe.stdin is not None
    assert probe.stdout is not None
    probe.stdin.write(json.dumps(job) + "\n")
    probe.stdin.flush()
    armed = json.loads(probe.stdout.readline())
    assert armed["armed"], armed
    try:
        yield captured
    finally:
        answer, _ = probe.communicate(timeout=30)
    _fill(captured, json.loads(answer))


def _fill(captured: Captured, document: dict) -> None:
    points = list(captured.frames)
    captured.drops = sum(point["dropped"] for point in document["points"])
    for item in document["frames"]:
        captured.frames[points[item["point"]]].append(decode(base64.b64decode(item["data"])))
