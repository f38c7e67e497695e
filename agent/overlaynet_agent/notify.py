"""What the service manager is told: sd_notify(3), spoken here rather than linked.

The protocol is one datagram of ``KEY=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names; an ``@`` in
front stands for the zero byte of an abstract socket (unix(7)). A manager that does not listen is no reason to
fail, so nothing here raises.

    starting   EXTEND_TIMEOUT_USEC again and again: etcd may be away for longer than any fixed timeout, and
               being killed for it would turn an outage of etcd into one of this host
    ready      READY=1 once the first full apply was tried, whatever came of it; STATUS= says what
    reloading  RELOADING=1, then READY=1
    stopping   STOPPING=1

The watchdog is fed from the loop's own turn and from nowhere else: a loop that hangs is what it is for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

STATUS_EVERY_S = 1.0
EXTEND_EVERY_S = 10.0
EXTEND_BY_S = 60
"""Well beyond the next extension, even on a machine that is starved."""


class Notifier:
    """One way to the service manager; without an address every message goes nowhere."""

    def __init__(self, address: str | None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address

    def send(self, **fields: object) -> None:
        """One message. A value must hold no line break: the next line would be another field."""
        if not self._address:
            return
        text = "\n".join(f"{key}={value}" for key, value in fields.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)


@dataclass(slots=True)
class Manager:
    """What the service manager knows of us. `watchdog_s`: it kills us if not fed within this time, in
    seconds; None: it does not. All times are the loop's monotonic seconds."""

    notifier: Notifier
    watchdog_s: float | None = None
    ready: bool = False
    _status: str = ""
    _next_status: float = 0.0
    _next_extension: float = 0.0
    _next_feeding: float = 0.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Manager:
        """By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID (sd_watchdog_enabled(3))."""
        return cls(Notifier(environ.get("NOTIFY_SOCKET")), _watchdog_s(environ))

    def wants_status(self, now: float, ready: bool) -> bool:
        """Whether it is time to say how we are: at once when we become ready, else now and then."""
        return ready != self.ready or now >= self._next_status

    def tell(self, now: float, ready: bool, status: str) -> None:
        """How we are; only what is news is sent."""
        self._next_status = now + STATUS_EVERY_S
        line = " ".join(status.split())
        if ready and not self.ready:
            self.ready = True
            self.notifier.send(READY=1, STATUS=line)
        elif line != self._status:
            self.notifier.send(STATUS=line)
        self._status = line

    def turn(self, now: float) -> None:
        """Once in each turn of the loop."""
        if not self.ready and now >= self._next_extension:
            self._next_extension = now + EXTEND_EVERY_S
            self.notifier.send(EXTEND_TIMEOUT_USEC=EXTEND_BY_S * 1_000_000)
        if self.watchdog_s is not None and now >= self._next_feeding:
            self._next_feeding = now + self.watchdog_s / 2
            self.notifier.send(WATCHDOG=1)

    def reloading(self) -> None:
        """Before settings are read again. While we start there is nothing to reload, as far as it knows."""
        if self.ready:
            monotonic_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
            self.notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec)

    def reloaded(self) -> None:
        if self.ready:
            self.notifier.send(READY=1)

    def stopping(self) -> None:
        self.notifier.send(STOPPING=1, STATUS="stopping; the dataplane stays")


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Meant for another process if it names another."""
    period = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / 1e6 if period.isdecimal() and int(period) else None
