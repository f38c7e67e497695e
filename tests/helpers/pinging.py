"""A steady stream of pings beside whatever a test does, and how many of them were lost."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from helpers.eventually import eventually

from overlaynet.kernel import netns

INTERVAL_S = 0.008
"""ping rounds up at 0.01 and above, and then sends some sixty a second."""


@dataclass
class Pinging:
    """Filled in when the stream has ended."""

    sent: int = 0
    received: int = 0
    said: str = ""

    @property
    def lost(self) -> int:
        return self.sent - self.received


@contextmanager
def pinging(namespace: str, address: str, *, least_s: float = 0.0) -> Iterator[Pinging]:
    """At least a hundred echo requests a second from a namespace, by name or path, for the length of the block,
    and for so many seconds at least: what goes wrong behind a short one is to be seen too.

    ping(8) ends its work on SIGINT, with a summary; the answer to its last request may then still be under
    way, so it is told to wait for that (-W)."""
    inside = ["nsenter", f"--net={netns.path(namespace)}", "--"]
    argv = [*inside, "ping", "-n", "-q", "-i", str(INTERVAL_S), "-W", "1", address]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found, end = Pinging(), time.monotonic() + least_s
    try:
        yield found
        eventually(lambda: time.monotonic() >= end, deadline_s=2 * least_s + 1)
    finally:
        process.send_signal(signal.SIGINT)
        found.said, _ = process.communicate(timeout=10)
    numbers = re.search(r"(\d+) packets transmitted, (\d+) received", found.said)
    assert numbers, found.said
    found.sent, found.received = int(numbers[1]), int(numbers[2])
