"""Many callers at once, each calling one address again and again: what became of the calls, and who got them.

A call is what `send` sends. Behind a virtual IP there are several that may get it; which one did is known to
the connection table of the host that translated the call, so it is asked about each one that was answered.

A call is tried up to `TRIES` times: a server whose queue of new connections is full for a moment drops one,
and that says nothing. A caller whose calls are not answered stops after `SILENCES` of them: more would take
time and tell nothing. Few call at once, so that it is not the calling that fills the queues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from overlaynet.errors import OverlayError
from overlaynet.probe import connections, send
from overlaynet.probe.job import member, objects

TRIES = 3
SILENCES = 2
CALLERS_AT_ONCE = 4
SPOKEN = frozenset({"syn-ack", "udp", "echo-reply"})
"""Answers of who was called, as against refusals."""
SILENT, NOT_SENT = "silent", "not sent"


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"calls": [{"id", "count", "send": {a job `send`}, "translator"}]}``.

    `translator`: the network namespace whose connection table says where a call went; absent: nobody is asked.
    Each result counts `answers` by word and `endpoints` by ``address:port``, and has the best time. Raises
    UsageError; a caller that cannot call has an `error`."""
    calls = objects(job, "calls")
    with ThreadPoolExecutor(CALLERS_AT_ONCE, "caller") as pool:
        return {"kind": "Calls", "results": list(pool.map(_calls, calls))}


def _calls(call: Mapping[str, Any]) -> dict[str, Any]:
    answers: Counter[str] = Counter()
    endpoints: Counter[str] = Counter()
    error, best_us = "", None
    wanted = {**member(call, "send", dict), "tries": TRIES}
    for _ in range(member(call, "count", int, 1)):
        try:
            one = send.run(wanted)["tries"][-1]
        except OverlayError as refusal:
            error = " ".join(filter(None, [refusal.message, refusal.evidence]))
            break
        answer = one["answer"] or (NOT_SENT if one["error"] else SILENT)
        answers[answer] += 1
        error = error or one["error"]
        if answer in SPOKEN:
            best_us = min(one["rtt_us"], best_us or one["rtt_us"])
            endpoints.update(_endpoint(call, wanted, one))
        elif answers.total() - sum(answers[word] for word in SPOKEN) >= SILENCES:
            break
    return {
        "id": call.get("id"),
        "answers": dict(answers),
        "endpoints": dict(endpoints),
        "error": error or None,
        "rtt_ms": None if best_us is None else round(best_us / 1000, 3),
    }


def _endpoint(call: Mapping[str, Any], wanted: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    """Where a call was led to; nothing if there is no table to say so."""
    if call.get("translator") is None:
        return []
    asked = {
        "netns": call["translator"],
        "protocol": wanted["protocol"],
        "src": wanted["src"],
        "src_port": one["src_port"],
        "dst": wanted["dst"],
        "dst_port": wanted["dst_port"],
    }
    with suppress(OverlayError):
        flow = connections.find(asked)["flow"]
        if flow is not None:
            return [f"{flow['reply_src']}:{flow['reply_sport']}"]
    return []
