"""Ports on loopback for servers of the tests."""

from __future__ import annotations

import contextlib
import random
import socket

_CHANCE = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody has, below those that the kernel gives to clients (ip(7), ip_local_port_range).

    A client that calls a server which is down could be given the server's own port: then it is connected to
    itself, and the server cannot come back."""
    while True:
        port = _CHANCE.randrange(20_000, 28_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
