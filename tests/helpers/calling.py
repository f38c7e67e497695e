"""A steady stream of calls to a virtual IP beside whatever a test does, and what became of each.

One thread makes TCP connections, one after the other; another sends datagrams on a single socket, each after
the answer to the one before, so that they are one flow to conntrack.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from helpers.answering import REFUSED, SILENT, Answer, answer, ask, connected
from helpers.private_netns import PrivateNetns

from overlaynet.kernel import netns

INTERVAL_S = 0.004


@dataclass
class Calls:
    """What became of each call, in order: when it began, and who answered or in a word why nobody did."""

    made: list[tuple[float, Answer | str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.made)

    @property
    def failures(self) -> Counter[str]:
        return Counter(said for _, said in self.made if isinstance(said, str))

    @property
    def names(self) -> Counter[str]:
        """How many calls each endpoint answered."""
        return Counter(said.name for _, said in self.made if isinstance(said, Answer))

    def failed_until(self, since: float) -> float:
        """Seconds from a moment on the monotonic clock until the last call that failed began; 0 for none."""
        return max((at - since for at, said in self.made if isinstance(said, str)), default=0.0)

    def since(self, moment: float) -> list[Answer | str]:
        """What the calls said that began later."""
        return [said for at, said in self.made if at > moment]


@dataclass
class Calling:
    tcp: Calls = field(default_factory=Calls)
    udp: Calls = field(default_factory=Calls)


@contextmanager
def named_netns(name: str) -> Iterator[PrivateNetns]:
    """A namespace that has a name, for the length of the block."""
    fd = os.open(netns.path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield PrivateNetns(fd)
    finally:
        os.close(fd)


@contextmanager
def calling(place: PrivateNetns, address: str, port: int, *, patience_s: float = 1.0) -> Iterator[Calling]:
    """Call TCP and UDP `port` of an address from a namespace for the length of the block."""
    found, over = Calling(), threading.Event()

    def run(work: Callable[[], None]) -> None:
        with place.entered():
            work()

    def connect() -> None:
        while not over.wait(INTERVAL_S):
            _note(found.tcp, lambda: ask("tcp", address, port, patience_s=patience_s))

    def send() -> None:
        with connected(address, port, "udp") as client:
            client.settimeout(patience_s)
            while not over.wait(INTERVAL_S):
                _note(found.udp, lambda: _exchange(client))

    threads = [threading.Thread(target=run, args=(work,), name=work.__name__) for work in (connect, send)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def _note(calls: Calls, call: Callable[[], Answer | str]) -> None:
    began = time.monotonic()
    calls.made.append((began, call()))


def _exchange(client: socket.socket) -> Answer | str:
    """One datagram and the answer to it. A late answer to an earlier one counts as this one's."""
    try:
        client.send(b"who are you?")
        return answer(client.recv(256))
    except TimeoutError:
        return SILENT
    except ConnectionRefusedError:
        return REFUSED
    except OSError as error:
        return str(error)
