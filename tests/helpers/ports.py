"""Ports on loopback for servers of the tests."""

from __future__ import annotations

import contextlib
import os
import random
import socket

_CHANCE = random.SystemRandom()
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_FIRST, _COUNT = 20_000 + 1_000 * _WORKER, 1_000
"""Each worker of pytest-xdist has its own: a server that is to come back has left its port open to others."""
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody has, below those that the kernel gives to clients (ip(7), ip_local_port_range).

    A client that calls a server which is down could be given the server's own port: then it is connected to
    itself, and the server cannot come back."""
    while True:
        port = _CHANCE.randrange(_FIRST, _FIRST + _COUNT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
