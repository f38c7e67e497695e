"""A steady stream of pings beside whatever a test does, and how many of them were lost."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
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
    """Filled in when the stream has ended. `cut_off`: whether it ended while the answer to its last request was
    under way, which is then nobody's loss."""

    sent: int = 0
    received: int = 0
    cut_off: bool = False
    said: str = ""

    @property
    def lost(self) -> int:
        return self.sent - self.received - self.cut_off


@contextmanager
def pinging(namespace: str, address: str, *, least_s: float = 0.0) -> Iterator[Pinging]:
    """At least a hundred echo requests a second from a namespace, by name or path, for the length of the block,
    and for so many seconds at least: what goes wrong behind a short one is to be seen too.

    ping(8) ends its work on SIGINT, with a summary, and waits for nothing any more. It tells of each answer, so
    that it can be said whether the last is missing; a file takes that, since nobody reads a pipe meanwhile."""
    inside = ["nsenter", f"--net={netns.path(namespace)}", "--"]
    argv = [*inside, "ping", "-n", "-i", str(INTERVAL_S), address]
    found, end = Pinging(), time.monotonic() + least_s
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield found
            eventually(lambda: time.monotonic() >= end, deadline_s=2 * least_s + 1)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=10)
        said.seek(0)
        _fill(found, said.read())


def _fill(found: Pinging, said: str) -> None:
    """ICMP numbers requests with 16 bits (RFC 792)."""
    found.said = said[-2000:]
    numbers = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert numbers, found.said
    found.sent, found.received = int(numbers[1]), int(numbers[2])
    found.cut_off = re.search(rf"icmp_seq={found.sent % 2**16} ", said) is None
