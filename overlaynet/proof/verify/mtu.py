"""Do packets of full size pass between all hosts, and is the sender told of those that are too large?

The MTU of a container leaves room for what VXLAN adds. Three echo requests tell whether that is so from one
host to another: one that fills the container's MTU, and may not be fragmented, arrives. One that is a byte
larger is refused, by the sender's own kernel or by a router's "fragmentation needed" (RFC 1191). The same, if
it may be fragmented, arrives in pieces. What must never happen is silence: the large packets of a connection
vanish, the small ones pass, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from overlaynet.errors import NotFound, OverlayError
from overlaynet.probe.calls import NOT_SENT, SILENT
from overlaynet.probe.mesh import FAIL, INCONCLUSIVE, PASS
from overlaynet.proof.network import Network
from overlaynet.proof.points import CONTAINER_DEVICE, look_at, where_is
from overlaynet.proof.verify.report import Check, Suite
from overlaynet.proof.world import Where
from overlaynet.state import KernelState

NAME = "mtu"
HEADERS_BYTES = 20 + 8
"""IP and ICMP, of an echo request."""
WAIT_S = 0.5
COOKIE = "5a" * 8
SENT = ("full", "over", "pieces")
ARRIVES, TOO_LARGE = "echo-reply", "icmp fragmentation-needed"

Say = Callable[[str], None]


class Pair(NamedTuple):
    """Two containers on two hosts. `mtu` is of the sender's interface, in bytes."""

    sender: str
    target: str
    sender_host: str
    target_host: str
    sender_ip: str
    target_ip: str
    where: Where
    mtu: int

    @property
    def id(self) -> str:
        return f"{self.sender_host}:{self.target_host}"


def run(net: Network, say: Say) -> Suite:
    """Send between every two hosts. Raises what a probe says that can look at no container."""
    pairs = list(_pairs(net))
    if not pairs:
        return Suite(NAME, (), skipped="no two hosts with a container each")
    say(f"mtu: {len(pairs)} pairs of hosts")
    jobs: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        machine = net.sessions.machine(pair.where.host)
        jobs.setdefault(machine, {"op": "calls", "calls": []})["calls"] += _calls(pair)
    answers = net.sessions.ask_each(jobs).values()
    results = {one["id"]: one for a in answers if not isinstance(a, OverlayError) for one in a["results"]}
    return Suite(NAME, tuple(judge(pair, [results.get(_id(pair, what)) for what in SENT]) for pair in pairs))


def _pairs(net: Network) -> Iterator[Pair]:
    """Every ordered pair of hosts, by a container of each."""
    first = {net.host_of(name): name for name in reversed(net.containers)}
    places = {name: where_is(net.directory, name) for name in first.values()}
    kernels = look_at(net.sessions, places.values()) if places else {}
    for sender_host, sender in sorted(first.items()):
        for target_host, target in sorted(first.items()):
            if sender != target:
                yield Pair(
                    sender,
                    target,
                    sender_host,
                    target_host,
                    str(net.address_of(sender)),
                    str(net.address_of(target)),
                    places[sender],
                    _mtu(kernels[sender]),
                )


def _mtu(kernel: KernelState) -> int:
    """Raises NotFound."""
    if CONTAINER_DEVICE not in kernel.links:
        raise NotFound(f"a container has no {CONTAINER_DEVICE}", evidence="it has " + ", ".join(kernel.links))
    return kernel.links[CONTAINER_DEVICE].mtu


def _id(pair: Pair, what: str) -> str:
    return f"{pair.id}:{what}"


def _calls(pair: Pair) -> Iterator[dict[str, Any]]:
    for what, extra, df in zip(SENT, (0, 1, 1), (True, True, False), strict=True):
        send = {
            "netns": pair.where.netns,
            "protocol": "icmp",
            "src": pair.sender_ip,
            "dst": pair.target_ip,
            "size": pair.mtu - HEADERS_BYTES + extra,
            "df": df,
            "wait_s": WAIT_S,
            "cookie": COOKIE,
        }
        yield {"id": _id(pair, what), "count": 1, "send": send}


# --- judging it -----------------------------------------------------------------------------------


class Fate(NamedTuple):
    """What became of one packet: the answer, and an error in words."""

    answer: str
    error: str
    rtt_ms: float | None = None

    @property
    def told(self) -> str:
        known = {SILENT: "nobody says anything", ARRIVES: "they arrive"}
        return known.get(self.answer, self.error or self.answer)


def judge(pair: Pair, results: Sequence[Mapping[str, Any] | None]) -> Check:
    """What became of the three packets, in the order of `SENT`, and what that proves."""
    fates = [_fate(result) for result in results]
    for fate in fates:
        if not fate.answer:
            return _check(pair, fate, INCONCLUSIVE, "probe_failed", fate.error, "")
    full, over, pieces = fates
    note = (
        f"{pair.mtu} {_word(full.answer)}; "
        f"{pair.mtu + 1} {_word(over.answer)}, in pieces {_word(pieces.answer)}"
    )
    verdict, reason, evidence = PASS, None, ""
    if full.answer != ARRIVES:
        verdict, reason = FAIL, "full_size_lost" if full.answer == SILENT else "full_size_refused"
        evidence = f"{pair.mtu} bytes, which {pair.sender}'s interface allows, do not pass: {full.told}"
    elif over.answer not in (NOT_SENT, TOO_LARGE):
        verdict, reason = FAIL, "silent_loss" if over.answer == SILENT else "not_refused"
        evidence = f"{pair.mtu + 1} bytes that may not be fragmented: {over.told}"
    elif pieces.answer != ARRIVES:
        verdict, reason = FAIL, "fragments_lost"
        evidence = f"{pair.mtu + 1} bytes that may be fragmented: {pieces.told}"
    return _check(pair, full, verdict, reason, evidence, note)


def _fate(result: Mapping[str, Any] | None) -> Fate:
    if result is None:
        return Fate("", "its probe did not report")
    return Fate(next(iter(result["answers"]), ""), result["error"] or "", result["rtt_ms"])


def _word(answer: str) -> str:
    return {ARRIVES: "arrive", NOT_SENT: "refused at once", TOO_LARGE: "refused on the way"}.get(answer, answer)


def _check(pair: Pair, full: Fate, verdict: str, reason: str | None, evidence: str, note: str) -> Check:
    return Check(
        id=pair.id,
        sender=pair.sender,
        target=pair.target,
        verdict=verdict,
        reason=reason,
        evidence=evidence,
        target_ip=pair.target_ip,
        rtt_ms=full.rtt_ms,
        note=note,
        next=f"trace {pair.sender} {pair.target} --icmp --size {pair.mtu - HEADERS_BYTES} --df",
    )
