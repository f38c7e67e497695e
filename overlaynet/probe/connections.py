"""How many connections each endpoint of a service has, by the table of one network namespace.

A connection of a service is one whose first packet went to a frontend of it and whose replies come from
somewhere else: there, at the endpoint, it was led to. TCP that has ended stays in the table for minutes and is
not counted; that UDP has ended only the entry's going says. Only the host that translated the address has such
an entry, so the counts of several hosts add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.kernel.netns import entered
from overlaynet.probe.job import member, netns, objects
from overlaynet.state import Flow

ENDED = frozenset({"TIME_WAIT", "CLOSE"})


class Frontend(NamedTuple):
    """Where a client sends to; `ip` None: this port of any address of the host."""

    protocol: str
    ip: str | None
    port: int


class At(NamedTuple):
    """An endpoint."""

    protocol: str
    ip: str
    port: int


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "frontends": [{"protocol", "ip", "port"}]}``: endpoints that have connections, with
    their number. Raises KernelError, NoConntrack or NotPermitted."""
    frontends = {
        Frontend(member(one, "protocol", str), one.get("ip"), member(one, "port", int))
        for one in objects(job, "frontends")
    }
    name = netns(job)
    with nullcontext() if name is None else entered(name):
        adapter = ConntrackAdapter()
        try:
            found = count(adapter.flows({front.protocol for front in frontends}), frontends)
        finally:
            adapter.close()
    items = [{**at._asdict(), "connections": number} for at, number in sorted(found.items())]
    return {"kind": "Connections", "endpoints": items}


def count(flows: Iterable[Flow], frontends: set[Frontend]) -> Counter[At]:
    """Connections that have not ended, by where they lead to."""
    return Counter(
        At(flow.protocol, str(flow.reply_src), flow.reply_sport)
        for flow in flows
        if flow.state not in ENDED
        and (flow.reply_src, flow.reply_sport) != (flow.dst, flow.dport)
        and {
            Frontend(flow.protocol, str(flow.dst), flow.dport),
            Frontend(flow.protocol, None, flow.dport),
        }
        & frontends
    )
