"""Something is wrong. What, and where?

The seed alone chooses what is broken: twenty seeds in a row break in twenty ways, at places that they choose as
well. What is chosen is hidden as `overlaynet.lab.faults` hides faults; the learner names cause and place, and
the check believes neither the learner nor its own record: it sends a packet that meets the fault, and the trace
of that packet has to name it as well.

A fault that was named is healed, and where two were hidden the other one is left. Two that are only seen
together are healed together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import permutations
from typing import Any

from overlaynet.cluster.breaking import changing_faults
from overlaynet.lab import faultrecords, looks
from overlaynet.lab.faultkinds import Request
from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof.question import Asked
from overlaynet.proof.tracing import trace
from overlaynet.trace.model import CAUSES, LOST, WRONG_PATH, Trace

FIRST = {"node-1": "red", "node-2": "green", "node-3": "grey"}
HOST_OF = {"red": "node-1", "blue": "node-1", "green": "node-2", "shop": "node-2", "grey": "node-3"}
PAIRS = list(permutations(FIRST, 2))
UNDERLAY = "underlay"
SERVICE = "svc/shop"
TRIES, BUSY_TRIES = 20, 3
"""Traces until one meets what is lost by chance; until one is decided."""
LARGE_BYTES = 1400
"""Of UDP: with its headers it fits the containers' 1450 bytes; VXLAN makes it 1478."""
HOST_MTU, CONTAINER_MTU = "1400", "1300"


# --- what may be hidden ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Hidden:
    """One fault: the cause and the place that are to be named, how it is made, and a packet that meets it. A
    trace may find it at its place, at that place's host, or `at` these. `alike`: as right as its place."""

    cause: str
    place: str
    kind: str
    request: Request
    asked: Asked
    at: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()

    def is_named(self, cause: str, place: str) -> bool:
        """Whether that is what it is."""
        return cause == self.cause and place in (self.place, *self.alike)

    def is_told_by(self, found: Trace) -> bool:
        """Whether a trace says the same."""
        if found.verdict not in (LOST, WRONG_PATH) or found.cause is None or found.cause.kind != self.cause:
            return False
        point = found.cause.point
        return point is None or point.place in (self.place, HOST_OF.get(self.place), *self.at)

    @property
    def host(self) -> str:
        return HOST_OF.get(self.place, self.place)


def _hidden(
    cause: str, place: str, kind: str, *words: str, asked: Asked, at: Iterable[str] = (), **how: Any
) -> Hidden:
    return Hidden(cause, place, kind, Request(words, **how), asked, tuple(at))


def _ping(source: str, target: str) -> Asked:
    return Asked(FIRST.get(source, source), FIRST.get(target, target), "icmp")


def _large(source: str, target: str) -> Asked:
    return _ping(source, target)._replace(protocol="udp", dst_port=9, size=LARGE_BYTES, df=True)


def _neighbour(container: str) -> str:
    """A container on another host."""
    return next(name for host, name in FIRST.items() if host != HOST_OF[container])


def _between(cause: str, kind: str, **how: Any) -> list[Hidden]:
    """An entry of one host for another."""
    return [_hidden(cause, a, kind, a, b, asked=_ping(a, b), **how) for a, b in PAIRS]


def _ruled(cause: str, target: str) -> list[Hidden]:
    """A foreign rule, at the sender's host or at the receiver's."""
    return [
        _hidden(cause, host, "rule", host, FIRST[a], FIRST[b], asked=_ping(a, b), target=target)
        for a, b in PAIRS
        for host in (a, b)
    ]


def _mtu() -> list[Hidden]:
    """A host's cable, and a container's with both ends, of which one is its host's."""
    hosts = [_hidden("mtu", b, "mtu", b, HOST_MTU, asked=_large(a, b), at=FIRST) for a, b in PAIRS]
    own = [_hidden("mtu", c, "mtu", c, CONTAINER_MTU, asked=_large(_neighbour(c), c)) for c in HOST_OF]
    return hosts + [replace(one, alike=(one.host,)) for one in own]


WAYS: dict[str, list[Hidden]] = {
    "cable": [_hidden("link_down", b, "link", b, asked=_ping(a, b)) for a, b in PAIRS],
    "tunnel": [_hidden("link_down", a, "link", f"{a}:flannel.1", asked=_ping(a, b)) for a, b in PAIRS],
    "container": [_hidden("link_down", c, "link", c, asked=_ping(_neighbour(c), c)) for c in HOST_OF],
    "host": [_hidden("node_down", b, "node", b, asked=_ping(a, b)) for a, b in PAIRS],
    "route": _between("route_missing", "route"),
    "route-out": [
        _hidden("route_missing", c, "route", c, "default", asked=_ping(c, _neighbour(c))) for c in HOST_OF
    ],
    "route-astray": _between("route_wrong", "route", wrong=True),
    "neigh": _between("neigh_missing", "neigh"),
    "neigh-astray": _between("neigh_wrong", "neigh", wrong=True),
    "fdb": _between("fdb_missing", "fdb"),
    "fdb-astray": _between("fdb_wrong", "fdb", wrong=True),
    "drop": _ruled("rule_drop", "DROP"),
    "reject": _ruled("rule_reject", "REJECT"),
    "service": [
        _hidden("rule_missing", host, "rule", host, SERVICE, asked=Asked(name, SERVICE))
        for host, name in FIRST.items()
    ],
    "server": [
        _hidden("no_endpoints", "shop", "server", "shop", asked=Asked(name, SERVICE), at=FIRST)
        for name in HOST_OF
        if name != "shop"
    ],
    "mtu": _mtu(),
    "forwarding": [_hidden("forwarding_off", a, "forwarding", a, asked=_ping(a, b)) for a, b in PAIRS],
    "strict": [_hidden("rp_filter", a, "rp_filter", a, "flannel.1", asked=_ping(b, a)) for a, b in PAIRS],
    "loss": [
        _hidden("underlay_loss", UNDERLAY, "loss", a, b, "80", asked=_ping(a, b), at=(a, b)) for a, b in PAIRS
    ],
    "partition": [
        _hidden("partition", UNDERLAY, "partition", a, b, asked=_ping(a, b), at=(a, b)) for a, b in PAIRS
    ],
}
"""Each way in which it may be broken, at each place."""
BESIDE = ("container", "route-out", "neigh", "fdb", "drop", "forwarding", "service")
"""Ways for a second one: as they are about one host alone, the first is seen beside them."""


# --- what the seed chooses ------------------------------------------------------------------------


def chance(seed: int, word: str) -> int:
    """A large number: the same on every machine, with any Python."""
    return int.from_bytes(sha256(f"overlaynet mystery {seed} {word}".encode()).digest()[:8])


def hidden_by(seed: int) -> list[Hidden]:
    """What is broken: one fault or two. Twenty seeds from a multiple of twenty have all ways."""
    block, number = divmod(seed, len(WAYS))
    way = sorted(WAYS, key=lambda name: chance(block, name))[number]
    first = WAYS[way][chance(seed, "place") % len(WAYS[way])]
    if way == "strict":
        return [
            _hidden("route_missing", first.place, "route", *_ends(first), asked=_ping(*_ends(first))),
            first,
        ]
    beside = [fault for other in BESIDE for fault in WAYS[other] if _is_apart(fault, first)]
    if chance(seed, "second") % 4 or way in ("host", "cable") or not beside:
        return [first]
    return [first, beside[chance(seed, "beside") % len(beside)]]


def _ends(strict: Hidden) -> tuple[str, str]:
    """The host that is strict, and the one whose packets it refuses."""
    return strict.place, HOST_OF[strict.asked.source]


def _is_apart(fault: Hidden, first: Hidden) -> bool:
    """Another cause on another host, and no packet of the one goes by there."""
    ends = {HOST_OF.get(first.asked.source), HOST_OF.get(first.asked.target), first.host}
    return (
        fault.cause != first.cause and fault.host not in ends and HOST_OF.get(fault.asked.target) != first.host
    )


def is_together(faults: Sequence[Hidden]) -> bool:
    """A strict reverse path refuses nothing unless the route back leads elsewhere."""
    return any(fault.cause == "rp_filter" for fault in faults)


# --- the lesson -----------------------------------------------------------------------------------


def start(stage: Stage) -> None:
    stage.remembered["ids"] = hide(stage, hidden_by(stage.seed))
    stage.remembered["named"] = {}
    looks.begin(stage.lab.paths)


def hide(stage: Stage, faults: Sequence[Hidden]) -> list[str]:
    """Make them; answers the ids of their records."""
    with changing_faults(stage.cluster) as all_:
        ids = [all_.make(one.kind, one.request, time.time(), hidden=True).fault.id for one in faults]
    if any(one.cause == "no_endpoints" for one in faults):
        stage.until(lambda: not is_serving(stage), "the probe of shop fails")
    return ids


def is_serving(stage: Stage) -> bool:
    """Whether the probe of the container behind the service succeeds."""
    containers = stage.agent(HOST_OF["shop"], "/v1/status")["containers"]
    assert isinstance(containers, list)
    return any(one["name"] == "shop" and one["ready"] for one in containers)


def meet(stage: Stage, fault: Hidden) -> Trace:
    """The trace of a packet that meets the fault: the first that is not proved, and not undecided on a machine
    that was busy. Of what is lost by chance some gets through; of a dead server others hear a moment later."""
    chancy = fault.cause in ("underlay_loss", "no_endpoints")
    for _ in range(TRIES if chancy else BUSY_TRIES):
        found = trace(stage.cluster, fault.asked).trace
        if found.verdict in (LOST, WRONG_PATH):
            break
    return found


def check(stage: Stage, board: Board) -> None:
    faults, named = hidden_by(stage.seed), stage.remembered["named"]
    try:
        with board.claim(f"what was hidden by seed {stage.seed} is still in the lab"):
            _refuse_other_lab(stage, faults)
        if len(named) < len(faults):
            _diagnose(stage, board, faults)
        for value in named.values():
            _measure(board, value)
        with board.claim(f"nothing else is hidden; looks: {len(looks.counted(stage.lab.paths))}"):
            assert len(named) == len(faults), f"one more fault is; {_fate(faults)}"
    finally:
        _tell(stage, board, faults)


def _refuse_other_lab(stage: Stage, faults: Sequence[Hidden]) -> None:
    """AssertionError if nothing is broken any more: `overlaynet up` heals a lab, and so does a reboot."""
    left = {fault.id for fault in stage.lab.faults()}
    gone = [
        ident
        for n, ident in enumerate(stage.remembered["ids"])
        if ident not in left and (str(n) not in stage.remembered["named"])
    ]
    assert not gone, (
        f"the lab was made whole since; overlaynet lab reset mystery --seed {stage.seed} breaks it again"
    )


def _diagnose(stage: Stage, board: Board, faults: Sequence[Hidden]) -> None:
    cause, place, named = board.predicted["cause"], board.predicted["place"], stage.remembered["named"]
    number = next((n for n, one in enumerate(faults) if one.is_named(cause, place)), None)
    if number is None:
        looks.count(stage.lab.paths, "check")
    with board.claim(f"it is {cause} at {place}"):
        assert number is not None, "it is not; a wrong name counts as a look"
        assert str(number) not in named, "it is, and you have named that already; another one is hidden"
        named[str(number)] = {**_prove(stage, faults, number), "place": place}


def _prove(stage: Stage, faults: Sequence[Hidden], number: int) -> dict[str, str]:
    """A packet is sent that meets the fault, and its trace has to say the same. Then it is healed, as soon as
    nothing else is only seen beside it."""
    ids, one = stage.remembered["ids"], faults[number]
    all_named = len(stage.remembered["named"]) + 1 == len(faults)
    with changing_faults(stage.cluster) as kept:
        kept.break_again(ids if is_together(faults) else [ids[number]])
        damage = next(fault.damage for fault in kept.all if fault.id == ids[number])
    found = meet(stage, one)
    assert one.is_told_by(found), (
        f"it is, but a packet from {one.asked.source} to {one.asked.target} does not show it: {found.verdict}"
        + (f", {found.cause.kind}: {found.cause.found}" if found.cause else "")
        + f"; overlaynet lab reset mystery --seed {stage.seed} begins again"
    )
    assert found.cause is not None
    if not is_together(faults):
        stage.heal(ids[number], hidden=True)
    elif all_named:
        stage.heal(*ids, hidden=True)
    return {
        "kind": found.cause.kind,
        "object": found.cause.object,
        "words": "; ".join(map(str, faultrecords.making(damage))),
        "seen": f"from {one.asked.source} to {one.asked.target}: {found.cause.found}",
    }


def _measure(board: Board, value: dict[str, str]) -> None:
    board.measured("cause", theory=value["kind"], captured=value["kind"], because=value["words"])
    board.measured("place", theory=value["place"], captured=value["place"], because=value["seen"])


def _tell(stage: Stage, board: Board, faults: Sequence[Hidden]) -> None:
    """The score and what was found, for whoever reports it."""
    named, counted = stage.remembered["named"], looks.counted(stage.lab.paths)
    found = [{**value, "found": True} for value in named.values()]
    nothing = dict.fromkeys(("kind", "place", "object", "words"))
    board.more |= {
        "seed": stage.seed,
        "looks": len(counted),
        "faults": found + [{**nothing, "found": False}] * (len(faults) - len(found)),
    }
    if len(named) == len(faults):
        board.next = f"overlaynet lab reset mystery --seed {stage.seed + 1}"


def _fate(faults: Sequence[Hidden]) -> str:
    if is_together(faults):
        return "the one that you named stays until then, for the other is not seen without it"
    return "the one that you named is healed"


LESSON = Lesson(
    question="Something is wrong. What, and where?",
    predictions=(
        Prediction("cause", "What is it?", "word", tuple(cause for cause in CAUSES if cause != "unknown")),
        Prediction("place", "Where is what has to be mended?", "word", (*FIRST, *HOST_OF, UNDERLAY)),
    ),
    hints=(
        "Ask in an order that leaves nothing out: a container on the same host, one on each other host, "
        "svc/shop from each host, and last all of it with something large. What is answered tells as much "
        "as what is not. `overlaynet verify mesh` asks all pairs at once, and is one look.",
        "Trace the shortest question that fails, such as `overlaynet trace red green`: where is the packet "
        "seen last, and what does the line `cause` say? If every ping is answered, try `overlaynet trace "
        "red svc/shop`, and something large, `overlaynet trace red green --udp 9 --size 1400 --df`. If only "
        "some are answered, ask again: a trace begins with one packet.",
        "The cause is the word in the trace's line `cause`, with _ between. The place is whose table, link, "
        "setting or server has to be mended. If it is one thing, what fails from everywhere to node-2 is at "
        "node-2, and what fails from node-1 alone at node-1; two at node-1 and node-3 can look like the first. "
        "What is lost between two hosts that are well is in the underlay.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=160,
    disk_mb=130,
    asks_each_time=True,
)
