"""Traces and predictions as documents: what `-o json` prints and a bundle keeps as its verdict.

A document is for programs, so every member is always there, null where nothing is known. Addresses and MACs
are text, times microseconds (`t_us`) or seconds (`_s`), points ``PLACE:IFACE``. Headers and hops have the
member names of `model.Headers` and `model.Hop`; only a change says ``from`` and ``to``, which Python reserves.

A document is not read back: what a trace says follows from world, question and evidence, and whoever has
those judges again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from overlaynet.core.jsonstate import source_to_json
from overlaynet.state import Source
from overlaynet.trace.model import (
    Cause,
    Change,
    Headers,
    Hop,
    Icmp,
    Nat,
    Path,
    Prediction,
    Question,
    Tap,
    Trace,
    Why,
)

Json: TypeAlias = dict[str, Any]

TAG_MEMBERS = ("ip_id", "tcp_isn", "cookie")
TIMING_MEMBERS = ("import_s", "predict_s", "arm_s", "send_s", "judge_s", "total_s")


def trace_json(trace: Trace) -> Json:
    """What was proved, with every hop of the way there and back.

    ``capture.points`` counts the points that were listened at to the end, ``capture.drops`` the frames that
    the kernel dropped there, null if one of them did not say."""
    question = trace.question
    return {
        "id": trace.id,
        "verdict": trace.verdict,
        "outcome": trace.outcome,
        "expect": trace.expect,
        "from": question.source,
        "to": question.target,
        "protocol": question.protocol,
        "question": question_json(question),
        "tag": _members(trace.tag, TAG_MEMBERS),
        "forward": hops_json(trace.forward),
        "reply": hops_json(trace.reply),
        "guards": hops_json(trace.guards),
        "answer": trace.answer or None,
        "lost_between": None if trace.lost_between is None else [str(point) for point in trace.lost_between],
        "cause": cause_json(trace.cause),
        "inconclusive_because": list(trace.inconclusive_because),
        "notes": list(trace.notes),
        "tries": trace.tries,
        "capture": _capture(trace.taps),
        "counts": [count._asdict() for count in trace.counts],
        "connections": [connection._asdict() for connection in trace.connections],
        "timing": _members(trace.timing, TIMING_MEMBERS),
        "bundle": trace.bundle,
    }


def explain_json(prediction: Prediction) -> Json:
    """What is foretold. `hops` are those of the first path, for who expects only one."""
    paths = [path_json(path) for path in prediction.paths]
    question = prediction.question
    return {
        "from": question.source,
        "to": question.target,
        "protocol": question.protocol,
        "question": question_json(question),
        "outcome": prediction.outcome,
        "hops": paths[0]["hops"] if paths else [],
        "paths": paths,
        "guards": [str(point) for point in prediction.guards],
        "unread": list(prediction.unread),
    }


def path_json(path: Path) -> Json:
    """One way, and the way back of what arrives."""
    return {
        "outcome": path.outcome,
        "answer": path.answer or None,
        "arrived_at": path.arrived_at,
        "out_of_sight": path.out_of_sight,
        "hops": hops_json(path.hops),
        "reply": None if path.reply is None else path_json(path.reply),
        "cause": cause_json(path.cause),
        "nat": [_nat(entry) for entry in path.nat],
        "choices": list(path.choices),
        "notes": [*path.detours, *path.notes],
        "certain": path.certain,
    }


def question_json(question: Question) -> Json:
    return {
        "source": question.source,
        "target": question.target,
        "src": str(question.src),
        "dst": str(question.dst),
        "protocol": question.protocol,
        "src_port": question.src_port,
        "dst_port": question.dst_port,
        "size": question.size,
        "df": question.df,
    }


# --- hops -----------------------------------------------------------------------------------------


def hops_json(hops: Iterable[Hop]) -> list[Json]:
    """In their order, numbered from 1."""
    return [_hop(seq, hop) for seq, hop in enumerate(hops, 1)]


def _hop(seq: int, hop: Hop) -> Json:
    return {
        "seq": seq,
        "point": str(hop.point),
        "place": hop.place,
        "host": hop.host,
        "netns": hop.netns,
        "iface": hop.iface,
        "direction": hop.direction,
        "predicted": hop.predicted,
        "seen": hop.seen,
        "t_us": hop.t_us,
        "outer": headers_json(hop.outer),
        "vni": hop.vni,
        "inner": headers_json(hop.inner),
        "changes": [_change(change) for change in hop.changes],
        "why": [_why(why) for why in hop.why],
        "note": hop.note or None,
        "optional": hop.optional,
        "mtu": hop.mtu,
    }


def headers_json(headers: Headers | None) -> Json | None:
    if headers is None:
        return None
    return {
        "src_mac": _text(headers.src_mac),
        "dst_mac": _text(headers.dst_mac),
        "src": _text(headers.src),
        "dst": _text(headers.dst),
        "protocol": headers.protocol,
        "src_port": headers.src_port,
        "dst_port": headers.dst_port,
        "ttl": headers.ttl,
        "ip_id": headers.ip_id,
        "length": headers.length,
        "df": headers.df,
        "more_fragments": headers.more_fragments,
        "offset": headers.offset,
        "tcp": None if headers.tcp is None else headers.tcp._asdict(),
        "icmp": _icmp(headers.icmp),
    }


def _icmp(icmp: Icmp | None) -> Json | None:
    if icmp is None:
        return None
    quoted = icmp.quoted
    about = None if quoted is None else {**quoted._asdict(), "src": str(quoted.src), "dst": str(quoted.dst)}
    return {**icmp._asdict(), "quoted": about}


def _change(change: Change) -> Json:
    return {"field": change.field, "from": change.before, "to": change.after, "reason": change.reason}


def _why(why: Why) -> Json:
    return {**why._asdict(), "source": _source(why.source)}


def cause_json(cause: Cause | None) -> Json | None:
    if cause is None:
        return None
    return {
        "kind": cause.kind,
        "point": _text(cause.point),
        "object": cause.object,
        "expected": cause.expected,
        "found": cause.found,
        "source": _source(cause.source),
        "certainty": cause.certainty,
        "next": list(cause.next),
    }


def _nat(entry: Nat) -> Json:
    addresses = ("src", "dst", "new_src", "new_dst")
    return {**entry._asdict(), **{name: str(getattr(entry, name)) for name in addresses}}


# --- small things ---------------------------------------------------------------------------------


def _capture(taps: Iterable[Tap]) -> Json:
    known = list(taps)
    dropped = [tap.dropped for tap in known if not tap.error]
    return {
        "points": sum(tap.armed and tap.closed for tap in known),
        "drops": None if None in dropped else sum(number for number in dropped if number is not None),
        "taps": [{**tap._asdict(), "point": str(tap.point), "error": tap.error or None} for tap in known],
    }


def _members(values: Mapping[str, Any], names: Iterable[str]) -> Json:
    """The pinned members, null where there is none, and whatever else there is."""
    return {**dict.fromkeys(names), **values}


def _source(source: Source | None) -> Json | None:
    return None if source is None else source_to_json(source)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
