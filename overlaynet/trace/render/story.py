"""What a picture tells, before it is drawn: steps with their marks, the verdict in words, what to type next.

Every form (terminal, drawing, page, sequence diagram) tells the same story, so the words are chosen once, here.
A **step** is a hop with what is said beside it. A step where something changes has a **mark**: a number, under
which the entry that decided is quoted. On the way back only what NAT changes has one; the rest is as on the way
there.

Names, rules and answers come from outside; every text of a story has gone through `text.plain`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

from overlaynet.core.underlay import FLANNEL_DEVICE
from overlaynet.trace.model import (
    DELIVERED,
    DROPPED,
    INCONCLUSIVE,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Cause,
    Hop,
    Path,
    Point,
    Prediction,
    Question,
    Tap,
    Trace,
    Why,
)
from overlaynet.trace.render.text import count_of, plain
from overlaynet.trace.render.words import (
    TRANSLATED,
    Role,
    change_words,
    flow,
    flow_parts,
    in_container,
    lane,
    role_words,
    roles,
    translations,
)

WORDS = {PROVED: "PROVED", LOST: "LOST", WRONG_PATH: "WRONG PATH", INCONCLUSIVE: "INCONCLUSIVE"}
PREDICTED = "PREDICTED"
PROGRAM = "overlaynet "
_MTU = re.compile(r"\bmtu (\d+)")
_NAT = re.compile(r"(?:^| )-j (?:DNAT|SNAT|MASQUERADE|REDIRECT)\b")

Tone = Literal["good", "bad", "unsure", "foretold"]
_TONES: dict[str, Tone] = {PROVED: "good", LOST: "bad", WRONG_PATH: "bad", INCONCLUSIVE: "unsure"}

State = Literal["seen", "missing", "unexpected", "unlooked", "spared", "predicted"]
STATE_WORDS: dict[State, str] = {
    "seen": "",
    "missing": "✗ not seen",
    "unexpected": "! unexpected",
    "unlooked": "? not looked at",
    "spared": "not seen here",
    "predicted": "",
}
"""What stands beside a step that was not seen as foretold. Spared: it need not be seen there."""


@dataclass(frozen=True, slots=True)
class Step:
    """A hop with what is said beside it.

    `role`: what kind of interface it is. `who`: the addresses of what is on the wire here, of the outermost
    packet; `same`: they are those of the step before. `told`: what changed, or what the interface is, in few
    words. `mark` None: nothing to explain."""

    hop: Hop
    role: Role
    state: State
    who: str
    same: bool
    told: str
    mark: int | None = None

    @property
    def lane(self) -> str:
        return lane(self.hop)

    @property
    def label(self) -> str:
        """The interface, with its place where that is not the lane itself: ``web-1 eth0 out``."""
        hop = self.hop
        name = f"{hop.place} {hop.iface}" if in_container(hop) else hop.iface
        return plain(f"{name} {hop.direction}")

    @property
    def why(self) -> Why | None:
        """The entry that decided, of a step with a mark."""
        return None if self.mark is None else deciding(self.hop)

    @property
    def more_whys(self) -> tuple[Why, ...]:
        """The other rules that translated there: of a packet to a service that is masqueraded as well."""
        return tuple(why for why in _translating(self.hop) if why != self.why) if self.mark is not None else ()


def deciding(hop: Hop) -> Why | None:
    """The entry that made the change at a hop: the rule that translates, the FDB entry of a tunnel, the route;
    else the first there is. What conntrack translates by itself no rule decides any more."""
    fields = {change.field for change in hop.changes}
    if fields & TRANSLATED:
        rules = _translating(hop)
        return next(rules, next((why for why in hop.why if why.object == "conntrack"), None))
    wanted = "fdb" if "encapsulation" in fields else "route"
    found = [why for why in hop.why if why.object == wanted]
    return next(iter(found or hop.why), None)


def _translating(hop: Hop) -> Iterator[Why]:
    return (why for why in hop.why if why.object == "rule" and _NAT.search(why.text))


class Line(NamedTuple):
    """A labelled line of the verdict: ``cause   fdb … (certain)``."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    """A trace, or one path of a prediction.

    `title`: who asks whom, and who answers. `tag`: how the packet was known again, and how it was listened
    for. `word`: the verdict; `summary`: the rest of its line. `lines`: what to know about a bad end.
    `notes`: what else was said. `break_after`: after how many steps of `forward` the packet was lost; None if
    it was not; `break_words` say what befell it there; `reply_break` is the answer's. `limit`: bytes that the
    tunnel's device takes, where that was too little."""

    title: tuple[str, ...]
    tag: str
    word: str
    tone: Tone
    summary: str
    forward: tuple[Step, ...]
    reply: tuple[Step, ...] = ()
    answer: str = ""
    lines: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()
    break_after: int | None = None
    break_words: str = ""
    reply_break: int | None = None
    limit: int | None = None
    bundle: str | None = None
    foretold: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.forward + self.reply

    @property
    def marked(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.mark is not None)


Command: TypeAlias = Callable[[str], str]


def plain_command(words: str) -> str:
    """A command line of ours for whoever has but one lab."""
    return f"{PROGRAM}{words}"


def trace_story(trace: Trace, command: Command = plain_command) -> Story:
    """What a trace tells. `command` makes of a verb and its words the line to type."""
    arrival = _arrival(trace.forward, trace.outcome)
    forward = _steps(trace.forward, trace.reply, foretold=False, arrival=arrival)
    reply = _back(trace.reply, trace.forward, forward, foretold=False)
    there, back = _breaks(trace, forward, reply)
    arrived = bool(forward) and forward[-1].hop.seen
    if not arrived and not any(step.hop.seen for step in reply):
        reply, back = (), None  # to what did not arrive nobody answers
    summary = _summary(trace, forward, reply)
    return Story(
        title=_title(trace.question, trace.forward, arrival),
        tag=_tag(trace),
        word=WORDS[trace.verdict],
        tone=_TONES[trace.verdict],
        summary=summary,
        forward=forward,
        reply=reply,
        answer=plain(trace.answer),
        lines=_lines(trace, command),
        notes=tuple(note for note in map(plain, [*trace.notes, *_tries(trace)]) if note != summary),
        connections=_connections(trace),
        break_after=there,
        reply_break=back,
        limit=_limit(trace.cause),
        break_words=f"{trace.outcome if trace.outcome in (REJECTED, DROPPED) else LOST} here",
        bundle=None if trace.bundle is None else plain(trace.bundle),
    )


def path_stories(prediction: Prediction, command: Command = plain_command) -> tuple[Story, ...]:
    """What a prediction tells, a story for each path."""
    return tuple(_path_story(prediction, path, command) for path in prediction.paths)


def _path_story(prediction: Prediction, path: Path, command: Command) -> Story:
    back = path.reply.hops if path.reply else ()
    arrival = _arrival(path.hops, path.outcome)
    forward = _steps(path.hops, back, foretold=True, arrival=arrival)
    failing = next((way for way in (path, path.reply) if way and way.outcome != DELIVERED), None)
    unread = [f"could not be read: {what}" for what in prediction.unread]
    doubt = [] if path.certain else ["one possibility of several: not everything on this way could be read"]
    return Story(
        title=_title(prediction.question, path.hops, arrival),
        tag=f"from the state of the hosts; no packet was sent; {_probe(prediction.question)}",
        word=PREDICTED,
        tone="foretold",
        summary=plain(f"{_end_words(path)}  {_way_words(path)}"),
        forward=forward,
        reply=_back(back, path.hops, forward, foretold=True),
        answer=plain(path.answer),
        lines=tuple(_cause_lines(failing.cause, command)) if failing else (),
        notes=tuple(map(plain, [*path.choices, *path.detours, *path.notes, *doubt, *unread])),
        break_after=None if path.outcome == DELIVERED else len(forward),
        break_words=plain(f"{path.outcome} here"),
        reply_break=len(back) if failing is not None and failing is path.reply else None,
        foretold=True,
    )


def _way_words(path: Path) -> str:
    """``10 hops; answer: syn-ack, lost after 4 back``"""
    hops = count_of(len(path.hops), "hop")
    if path.reply is None or not path.reply.hops:
        return hops
    lost = "" if path.reply.outcome == DELIVERED else f"{path.reply.outcome} after "
    return f"{hops}; answer: {path.answer}, {lost}{len(path.reply.hops)} back"


def _end_words(path: Path) -> str:
    """The outcome; of a way that ends by leaving for where nobody can look, that and no more."""
    return f"leaves by {_spoken(path.hops[-1].point)}, out of sight" if path.out_of_sight else path.outcome


# --- steps ----------------------------------------------------------------------------------------


def _steps(
    hops: Sequence[Hop], other_way: Sequence[Hop], *, foretold: bool, arrival: Hop | None = None
) -> tuple[Step, ...]:
    known, mark = roles(hops, other_way), 0
    steps = []
    for number, hop in enumerate(hops):
        before = hops[number - 1] if number else None
        state = _state(hop, foretold=foretold)
        marked = bool(hop.changes) and state != "missing"
        mark += marked
        steps.append(
            Step(
                hop=hop,
                role=known[hop.point],
                state=state,
                who=plain(_who(hop)),
                same=before is not None and _who(before) == _who(hop),
                told=plain(_told(hop, before, known[hop.point], arrived=hop is arrival)),
                mark=mark if marked else None,
            )
        )
    return tuple(steps)


def _back(
    hops: Sequence[Hop], other_way: Sequence[Hop], forward: Sequence[Step], *, foretold: bool
) -> tuple[Step, ...]:
    """The way back: the numbers go on, and only for what NAT changes."""
    mark = sum(step.mark is not None for step in forward)
    steps = []
    for step in _steps(hops, other_way, foretold=foretold):
        marked = step.mark is not None and bool(translations(step.hop))
        mark += marked
        steps.append(replace(step, mark=mark if marked else None))
    return tuple(steps)


def _state(hop: Hop, *, foretold: bool) -> State:
    if foretold:
        return "predicted"
    if hop.seen is None:
        return "unlooked"
    if not hop.seen:
        return "spared" if hop.optional else "missing"
    return "seen" if hop.predicted else "unexpected"


def _who(hop: Hop) -> str:
    return f"outer {flow(hop.outer, ports=False)}" if hop.outer else flow(hop.inner)


def _told(hop: Hop, before: Hop | None, role: Role, *, arrived: bool) -> str:
    words = change_words(hop, before) if hop.changes else ""
    plainly = "arrived" if arrived else role_words(hop, before, role)
    return ", ".join(part for part in (words, hop.note) if part) or plainly


# --- head -----------------------------------------------------------------------------------------


def _arrival(hops: Sequence[Hop], outcome: str) -> Hop | None:
    """Where it was taken in. What was delivered out of sight was not seen to be."""
    return hops[-1] if hops and outcome == DELIVERED and hops[-1].direction == "in" else None


def _title(question: Question, hops: Sequence[Hop], arrived: Hop | None) -> tuple[str, ...]:
    """Who asks, whom, and, where that is somebody else, who gets it."""
    first = hops[0] if hops and hops[0].place == question.source else None
    source = f"{question.source} {question.src}{_on_host(first)}"
    dst, port = flow_parts(question.dst, question.dst_port), question.target
    wanted = dst if question.target in (dst, str(question.dst)) else f"{port} {dst}"
    if arrived is None:
        return plain(source), plain(wanted)
    got = flow_parts(arrived.inner.dst, arrived.inner.dst_port)
    if got == dst and arrived.place == question.target:
        return plain(source), plain(f"{wanted}{_on_host(arrived)}")
    return plain(source), plain(wanted), plain(f"{arrived.place} {got}{_on_host(arrived)}")


def _on_host(hop: Hop | None) -> str:
    return f" ({hop.host})" if hop is not None and in_container(hop) else ""


def _probe(question: Question) -> str:
    size = f", {question.size} bytes of payload" if question.size else ""
    return f"{question.protocol}{size}"


def _tag(trace: Trace) -> str:
    names = (("tcp_isn", "tcp isn"), ("ip_id", "ip id"), ("cookie", "cookie"))
    known = [f"{words} {trace.tag[name]}" for name, words in names if trace.tag.get(name) is not None]
    armed = count_of(sum(tap.armed for tap in trace.taps), "point") + " armed"
    lost = sum(tap.dropped or 0 for tap in trace.taps)
    tag = ", ".join(known) or f"{_probe(trace.question)}, never seen"
    return plain(f"{tag}; {armed}, {count_of(lost, 'capture drop')}")


def _connections(trace: Trace) -> tuple[str, ...]:
    """What conntrack remembers, where it had to: of a packet that was translated."""
    if not any(translations(hop) for hop in (*trace.forward, *trace.reply)):
        return ()
    return tuple(plain(f"{c.place}: {c.text}") for c in trace.connections)


# --- verdict --------------------------------------------------------------------------------------


def _summary(trace: Trace, forward: Sequence[Step], reply: Sequence[Step]) -> str:
    match trace.verdict:
        case "proved":
            words = _proved_words(trace, forward, reply)
        case "lost":
            words = _lost_words(trace)
        case "wrong_path":
            words = _astray_words(trace)
        case _:
            words = next(iter(trace.inconclusive_because), "nothing was proved and nothing refuted")
    return plain(words)


def _proved_words(trace: Trace, forward: Sequence[Step], reply: Sequence[Step]) -> str:
    end = "" if trace.outcome == DELIVERED else f"{trace.outcome}, as expected; "
    seen = f"{_tally(forward)} hops seen in order, {_unexpected(trace, forward)} unexpected"
    return end + seen + (f", reply {_tally(reply)}" if reply else "")


def _tally(steps: Sequence[Step]) -> str:
    expected = [step for step in steps if step.hop.predicted and step.state != "spared"]
    return f"{sum(step.state == 'seen' for step in expected)}/{len(expected)}"


def _unexpected(trace: Trace, steps: Sequence[Step]) -> int:
    astray = {step.hop.point for step in steps if step.state == "unexpected"}
    return len(astray | {hop.point for hop in trace.guards if hop.seen})


def _lost_words(trace: Trace) -> str:
    if trace.outcome == REJECTED:
        return _rejected_words(trace)
    if trace.outcome == DROPPED:
        return f"dropped on purpose{_where(trace.cause)}"
    if trace.lost_between is None:
        return f"lost{_where(trace.cause)}"
    seen, missing = trace.lost_between
    return f"between {_spoken(seen)} (seen) and {_spoken(missing)} ({_witness(trace.taps, missing)})"


def _rejected_words(trace: Trace) -> str:
    """By whom: its own kernel, if it was sent nowhere; else who answered, as far as it was seen."""
    if not trace.answer and not any(hop.seen for hop in trace.forward):
        return f"refused by {trace.question.source}'s own kernel, which sent nothing"
    first = next(iter(trace.reply), None)
    if first is not None and first.seen and first.direction == "in":
        return f"rejected by {first.inner.src}, beyond {_spoken(first.point)}: {trace.answer} came back"
    return f"rejected{_where(trace.cause)}: {trace.answer or 'no answer'} came back"


def _witness(taps: Iterable[Tap], point: Point) -> str:
    tap = next((tap for tap in taps if tap.point == point), None)
    if tap is None:
        return "not seen"
    return "not seen, capture live, 0 drops" if tap.is_witness else "not seen, but its capture is no witness"


def _where(cause: Cause | None) -> str:
    return f" at {_spoken(cause.point)}" if cause is not None and cause.point is not None else ""


def _spoken(point: Point) -> str:
    return f"{point.place} {point.iface}"


def _astray_words(trace: Trace) -> str:
    strays = [hop for hop in (*trace.forward, *trace.guards) if hop.seen and not hop.predicted]
    places = ", ".join(dict.fromkeys(_spoken(hop.point) for hop in strays))
    if places:
        return f"seen at {places}, where it must not be"
    if trace.outcome == DELIVERED != trace.expect:
        return f"it was delivered, and {trace.expect} was expected"
    return "seen, but not on the way foretold"


def _lines(trace: Trace, command: Command) -> tuple[Line, ...]:
    reasons = [Line("because", plain(reason)) for reason in trace.inconclusive_because[1:]]
    return (*reasons, *(_cause_lines(trace.cause, command) if trace.verdict != PROVED else ()))


def _cause_lines(cause: Cause | None, command: Command) -> list[Line]:
    if cause is None:
        return []
    steps = [_typed(line, cause.point, command) for line in cause.next]
    lines = [
        Line("expected", cause.expected + ("" if _is_of_rule(cause) else _wanted_by(cause))),
        Line("seen", cause.found),
        Line("cause", _cause_words(cause)),
        *(Line("then" if number else "try", step) for number, step in enumerate(steps)),
    ]
    return [Line(line.label, plain(line.text)) for line in lines if line.text]


_BETWEEN_HOSTS = frozenset({"partition", "underlay_loss", "node_down"})
"""Causes whose object says where they are."""


def _cause_words(cause: Cause) -> str:
    """``fdb wrong on node-1 (certain): fdb …``"""
    apart = cause.kind in _BETWEEN_HOSTS or cause.object.startswith("underlay ")
    where = f" on {cause.point.place}" if cause.point is not None and not apart and cause.object else ""
    wanted = _wanted_by(cause) if _is_of_rule(cause) else ""
    what = f": {cause.object}" if cause.object else ""
    return f"{cause.kind.replace('_', ' ')}{where} ({cause.certainty}{wanted}){what}"


def _is_of_rule(cause: Cause) -> bool:
    """Whether who asked for it asked for what stops the packet, and not for what is missing."""
    return cause.kind in ("rule_reject", "rule_drop", "no_endpoints")


def _wanted_by(cause: Cause) -> str:
    return f", wanted by {cause.source.kind} {cause.source.name}" if cause.source else ""


def _typed(line: str, point: Point | None, command: Command) -> str:
    """A next command as it is typed: about the same lab if it is one of ours, else in the place it is about."""
    if line.startswith(PROGRAM):
        return command(line.removeprefix(PROGRAM))
    return line if point is None else command(f"exec {point.place} -- {line}")


def _tries(trace: Trace) -> list[str]:
    return [f"sent {trace.tries} times"] if trace.tries > 1 else []


def _breaks(trace: Trace, forward: Sequence[Step], reply: Sequence[Step]) -> tuple[int | None, int | None]:
    """After how many steps of either way the break is: before the first that is missing, or where a way ends
    though it should go on. An answer that does not come home was lost on its way, and not what it answers."""
    if trace.verdict not in (LOST, WRONG_PATH):
        return None, None
    back = first_missing(reply)
    if back is None and reply and reply[-1].hop.place != trace.question.source:
        back = len(reply)
    there = first_missing(forward)
    if there is None and trace.outcome != DELIVERED and (back is None or trace.outcome in (REJECTED, DROPPED)):
        there = len(forward)
    return there, back


def first_missing(steps: Sequence[Step]) -> int | None:
    """Which step is the first that should have been seen and was not."""
    return next((number for number, step in enumerate(steps) if step.state == "missing"), None)


def _limit(cause: Cause | None) -> int | None:
    """The MTU of the tunnel's device, where a packet was too big for it."""
    if cause is None or cause.kind != "mtu" or cause.point is None:
        return None
    found = _MTU.search(cause.object) if FLANNEL_DEVICE.fullmatch(cause.point.iface) else None
    return int(found[1]) if found else None
