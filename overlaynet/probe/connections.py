"""Connections in the table of one network namespace: how many each endpoint of a service has, or a single one.

A connection of a service is one whose first packet went to a frontend of it and whose replies come from
somewhere else: there, at the endpoint, it was led to. TCP that has ended stays in the table for minutes and is
not counted; that UDP has ended only the entry's going says. Only the host that translated the address has such
an entry, so the counts of several hosts add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from ipaddress import ip_address
from typing import Any, NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.errors import NoConntrack
from overlaynet.kernel.conntrack import ICMP, ConntrackAdapter
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


def find(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "protocol", "src", "src_port", "dst", "dst_port"}``: the connection whose first
    packet this was, or null; `note` says if there is no table to look in. Raises KernelError, NotPermitted."""
    src, dst = (ip_address(member(job, name, str)) for name in ("src", "dst"))
    ports = member(job, "src_port", int), member(job, "dst_port", int, 0)
    name, flow, note = netns(job), None, ""
    with nullcontext() if name is None else entered(name):
        adapter = ConntrackAdapter(src.version)
        try:
            flow = adapter.find(member(job, "protocol", str), src, ports[0], dst, ports[1])
        except NoConntrack as error:
            note = error.message
        finally:
            adapter.close()
    document = None if flow is None else flow_to_json(flow)
    return {"kind": "Connection", "flow": document, "text": None if flow is None else words(flow), "note": note}


def flow_to_json(flow: Flow) -> dict[str, Any]:
    ips = {name: str(getattr(flow, name)) for name in ("src", "dst", "reply_src", "reply_dst")}
    return {**flow._asdict(), **ips}


def words(flow: Flow) -> str:
    """A line as `conntrack -L` has it (conntrack(8)), but for what we do not know: timeout, mark, use."""
    state = [flow.state] if flow.state else []
    first = _tuple_words(flow, flow.src, flow.sport, flow.dst, flow.dport, "type=8 code=0")
    reply = _tuple_words(
        flow, flow.reply_src, flow.reply_sport, flow.reply_dst, flow.reply_dport, "type=0 code=0"
    )
    return " ".join([flow.protocol, *state, first, *([] if flow.replied else ["[UNREPLIED]"]), reply])


def _tuple_words(flow: Flow, src: IPAddress, sport: int, dst: IPAddress, dport: int, kind: str) -> str:
    """The identifier of an ICMP echo stands for the one port that the message has."""
    ports = f"{kind} id={sport or dport}" if flow.protocol == ICMP else f"sport={sport} dport={dport}"
    return f"src={src} dst={dst} {ports}"


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
