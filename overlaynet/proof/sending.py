"""One packet, sent by the kernel of whoever asks, from inside its network namespace."""

from __future__ import annotations

import secrets

from overlaynet.proof.sessions import Sessions
from overlaynet.trace.model import Question, Sent

INTERVAL_S = 0.1
"""Between a try that was not answered in time and the next."""


def send(
    sessions: Sessions,
    host: str | None,
    netns: str | None,
    what: Question,
    *,
    tries: int = 1,
    wait_s: float = 1.0,
    cookie: str | None = None,
) -> list[Sent]:
    """Send it and wait for what comes back; again, up to `tries` times, if nothing does. `host` is where the
    sender is, `netns` its namespace. `cookie`: eight bytes of the first try, in hexadecimal; else by chance.
    Raises OverlayErrors."""
    job = {
        "op": "send",
        "netns": netns,
        "protocol": what.protocol,
        "src": str(what.src),
        "dst": str(what.dst),
        "src_port": what.src_port,
        "dst_port": what.dst_port,
        "size": what.size,
        "df": what.df,
        "tries": tries,
        "interval_s": INTERVAL_S,
        "wait_s": wait_s,
        "cookie": cookie or secrets.token_hex(8),
    }
    answer = sessions.ask(sessions.machine(host), job)
    return [Sent(**item) for item in answer["tries"]]
