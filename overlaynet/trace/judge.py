"""The verdict: what was predicted, beside what was seen.

Sightings prove. Silence proves only where somebody listened (`silence`). What neither settles is inconclusive,
and never a guess.

Each packet sent (a try) is laid beside the predicted path with which it agrees best (`case`). Then the first
line that fits decides::

    refused at home   its own kernel refused it, and it was seen nowhere
                        predicted, or by the state after              LOST, or PROVED if so expected
                        else                                          inconclusive
    astray            seen at a guard, or off the path                WRONG PATH
    went on           seen, or answered, beyond the place where it
                      ends by the state: state and kernel disagree    inconclusive
    ended             seen to the end of a path that does not arrive,
                      and its end is shown                            LOST, or PROVED if so expected
    arrived           seen at the last hop of a path that does
                        with other headers than predicted             WRONG PATH
                        a hop missed on the way, or out of order      inconclusive
                        where it went is out of sight, and somebody
                        there says no                                 LOST, or PROVED if so expected
                        or nobody answers                             inconclusive
                        no answer predicted, or seen to its end too   PROVED
                        the answer vanished between witnesses         LOST
                        no answer where it need not come (UDP, ICMP
                        errors, which are rate limited)               PROVED, and a note
                        another answer than predicted                 inconclusive
    stopped           seen up to a hop; all hops that follow are
                      silent witnesses, on every path that it may be
                      on; or an ICMP error or RST on the way said no  LOST
    else                                                              inconclusive, with every reason

Of several tries one that is astray or proved decides; the packet is lost only if every try is. Copies (`case`),
repetitions, MACs and TTLs are notes.

What a prediction is unsure of (`Path.certain`, `Prediction.unread`) does not hinder a proof. But it makes no
packet's way wrong: then the verdict is inconclusive.

Of a loss that the state predicts, the cause is the prediction's. Of another it is what the state read
afterwards predicts for a packet that was seen so far, else what the captures tell (`causes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

from overlaynet.state import Route
from overlaynet.trace import causes
from overlaynet.trace.align import Course, Step, remarks
from overlaynet.trace.case import POSITIVE, Case, Finding, View, astray, chosen, is_copy
from overlaynet.trace.causes import Gap
from overlaynet.trace.join import Followed, Sighting, join
from overlaynet.trace.model import (
    DELIVERED,
    INCONCLUSIVE,
    LIKELY,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Cause,
    Evidence,
    Path,
    Point,
    Prediction,
    Question,
    Trace,
    World,
)
from overlaynet.trace.retell import Clock, retold, retold_guards
from overlaynet.trace.silence import (
    doubts,
    end_doubts,
    end_gap,
    is_silent,
    needed,
    reply_end_doubts,
    reply_end_gap,
    unread_places,
)

Predict: TypeAlias = Callable[[World, Question], Prediction]

CLOCK_TOLERANCE_NS = 1_000_000
"""By how much a hop's stamp may lie before that of the hop it follows. Frames that one kernel hands from device
to device keep their stamp, and two processors' clocks differ by far less than this."""


def judge(
    world: World,
    prediction: Prediction,
    evidence: Evidence,
    *,
    trace_id: str,
    expect: str = DELIVERED,
    predict: Predict | None = None,
) -> Trace:
    """Say what the evidence proves. `expect`: the outcome that counts as proved. `predict`: asked about the
    state after, if that was read. Raises nothing."""
    joined = join(prediction.question, prediction, evidence, world.vxlan_port)
    after = predict(evidence.after, prediction.question) if predict and evidence.after else None
    return judged(Case(world, prediction, evidence, expect, after), joined.tries, trace_id)


def judged(case: Case, tries: Sequence[Followed], trace_id: str) -> Trace:
    """The trace that these tries make."""
    if not tries or not case.prediction.paths:
        return _nothing(case, trace_id, len(tries))
    findings = [_finding(case, one) for one in tries]
    return _trace(case, _summed_up(case, findings), trace_id, len(tries))


def _nothing(case: Case, trace_id: str, tries: int) -> Trace:
    """Nothing sent, or nothing predicted."""
    why = "no path could be predicted" if tries else "nothing was sent"
    return Trace(
        id=trace_id,
        verdict=INCONCLUSIVE,
        question=case.question,
        outcome=case.prediction.outcome if case.prediction.paths else LOST,
        expect=case.expect,
        inconclusive_because=(f"{why}; next: overlaynet status", *case.evidence.problems),
        taps=case.evidence.taps,
        tries=tries,
    )


# --- several tries --------------------------------------------------------------------------------


def _summed_up(case: Case, findings: Sequence[Finding]) -> Finding:
    """The finding that stands for all of them, with what the others add."""
    finding = _decisive(findings)
    problems = case.evidence.problems
    notes = [*finding.notes, *_lost_ones(case, finding, findings)]
    if finding.verdict == INCONCLUSIVE:
        return replace(finding, notes=_once(notes), reasons=_once([*finding.reasons, *problems]))
    return replace(finding, notes=_once([*notes, *problems]))


def _once(sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentences))


def _decisive(findings: Sequence[Finding]) -> Finding:
    for verdict in (WRONG_PATH, PROVED):
        if decided := next((f for f in findings if f.verdict == verdict), None):
            return decided
    if all(f.verdict == LOST for f in findings):
        return max(findings, key=lambda f: f.view.forward.last + f.view.reply.last)
    return next(f for f in findings if f.verdict == INCONCLUSIVE)


def _lost_ones(case: Case, finding: Finding, findings: Sequence[Finding]) -> Iterator[str]:
    """How many of the others were lost where, if not all were lost alike."""
    gaps = Counter(f.lost_between for f in findings if f.verdict == LOST and f.lost_between)
    if finding.verdict == LOST and len(gaps) < 2:
        return
    for (before, missing), count in gaps.items():
        reach = causes.measured(case.evidence, case.machine(before.place), case.machine(missing.place))
        test = f"; {causes.figures(reach, case.world.vxlan_port)}" if reach else ""
        yield f"{count} of {len(findings)} packets lost between {before} and {missing}{test}"


# --- one try --------------------------------------------------------------------------------------


def _finding(case: Case, followed: Followed) -> Finding:
    view, rivals = chosen(case, followed)
    found = next(filter(None, (rule(case, view, rivals) for rule in _RULES)), None)
    found = found or _unsettled(case, view, rivals)
    return replace(found, notes=(*found.notes, *_notes(case, view)))


def _refused_at_home(case: Case, view: View, rivals: Sequence[View]) -> Finding | None:
    followed, source = view.followed, case.question.source
    if not followed.sent.error or followed.forward or followed.reply:
        return None
    for one in filter(None, (view, _by_state_after(case, view))):
        if one.path.outcome != DELIVERED and all(hop.place == source for hop in one.path.hops):
            return _as_predicted(case, one, None)
    reason = f"{source} could not send it: {followed.sent.error}; no state explains that"
    return _inconclusive(view, [f"{reason}; next: overlaynet explain {source} {case.question.target}"])


def _went_astray(case: Case, view: View, rivals: Sequence[View]) -> Finding | None:
    strays = [s for s in astray(case.world, view.forward) if not _is_onward(case, view, s)]
    back = view.path.reply
    if back and back.outcome == DELIVERED and causes.refusal(case.world, view.followed) is None:
        strays += astray(case.world, view.reply)
    if not strays:
        return None
    guarded = [s for s in strays if s.point in case.prediction.guards]
    stray = (guarded or strays)[0]
    unsure = () if guarded else _unsure(case, view.path)
    if unsure:
        return _inconclusive(view, [f"it was seen at {stray.point}, off the predicted path", *unsure])
    arrived = view.path.outcome == DELIVERED and not view.forward.rest
    return Finding(WRONG_PATH, DELIVERED if arrived else LOST, view, cause=causes.of_stray(case.scene, stray))


def _is_onward(case: Case, view: View, stray: Sighting) -> bool:
    """Whether a packet that by the state ends early was seen where it would be if it did not."""
    toward = case.destinations(view.path)
    hosts = {case.machine(name) for name in toward}
    return view.path.outcome != DELIVERED and stray.point.place in toward | hosts


def _went_on(case: Case, view: View, rivals: Sequence[View]) -> Finding | None:
    path = view.path
    onward = [s for s in astray(case.world, view.forward) if _is_onward(case, view, s)]
    if path.outcome == DELIVERED or not (onward or view.answer in POSITIVE):
        return None
    seen = f"it was seen at {onward[-1].point}" if onward else f"{view.answer} came back"
    entry = f" by {path.cause.object or path.cause.kind} at {path.cause.point}" if path.cause else ""
    reason = (
        f"{seen}, though by the state it is {path.outcome}{entry}: state and kernel disagree, as the state "
        f"changed meanwhile or holds what was not read; next: {_shows(case, path)}"
    )
    arrived = view.answer in POSITIVE or any(s.point.place in case.destinations(path) for s in onward)
    return _inconclusive(view, [reason, *_unsure(case, path)], DELIVERED if arrived else path.outcome)


def _ended(case: Case, view: View, rivals: Sequence[View]) -> Finding | None:
    if view.path.outcome == DELIVERED or view.forward.rest:
        return None
    if open_questions := end_doubts(case, view):
        return _inconclusive(view, [*open_questions, *_unsure(case, view.path)])
    return _as_predicted(case, view, end_gap(case, view))


def _arrived(case: Case, view: View, rivals: Sequence[View]) -> Finding | None:
    course = view.forward
    if view.path.outcome != DELIVERED or course.rest or course.last < 0:
        return None
    if altered := _altered(case, view, course):
        return altered
    if gaps := [*_missed(case, course), *_disorder(case, course)]:
        return _inconclusive(view, gaps)
    if view.path.arrived_at is None and view.answer not in (*POSITIVE, "rst"):
        return _beyond(case, view, course.steps[course.last].hop.point)
    if case.expect != DELIVERED:
        note = f"it was delivered, and {case.expect} was expected"
        return Finding(WRONG_PATH, DELIVERED, view, notes=(note,))
    return _answered(case, view)


def _beyond(case: Case, view: View, last: Point) -> Finding:
    """It left for where nobody can look, and its destination did not answer."""
    if causes.refusal(case.world, view.followed) is None:
        gone = f"it left {last} for {case.question.dst}, which is out of sight"
        return _inconclusive(view, [f"{gone}, and nobody answered{_nobodys(case, last)}"])
    cause = _cause_after(case, view) or causes.of_loss(case.scene, Gap(last, last), view.followed)
    return Finding(PROVED if case.expect == REJECTED else LOST, REJECTED, view, cause=cause)


def _nobodys(case: Case, last: Point) -> str:
    """What can be said of an address out of sight, and what shows more: whether any lease covers it."""
    dst, wanted = case.question.dst, case.world.wanted.values()
    routes = [obj for one in wanted for obj in one.objects.values() if isinstance(obj, Route)]
    if routes and dst.is_private and not any(dst in route.dst for route in routes):
        return f"; no lease covers {dst}; next: overlaynet get leases"
    return f"; next: overlaynet exec {last.place} -- ip route get {dst}"


def _stopped(case: Case, view: View, rivals: Sequence[View]) -> Finding | None:
    course = view.forward
    if course.last < 0 or not course.rest:
        return None
    said = causes.refusal(case.world, view.followed)
    is_refused = said is not None and said.place not in case.destinations(view.path)
    if not is_refused and (view.answer in POSITIVE or doubts(case, needed(case, (view, *rivals)))):
        return None
    gap = _gap(course.steps[course.last], course.rest)
    return _lost(case, view, gap, REJECTED if is_refused else LOST)


_RULES: tuple[Callable[[Case, View, Sequence[View]], Finding | None], ...] = (
    _refused_at_home,
    _went_astray,
    _went_on,
    _ended,
    _arrived,
    _stopped,
)


def _unsettled(case: Case, view: View, rivals: Sequence[View]) -> Finding:
    reasons: list[str] = []
    if not view.followed.forward:
        reasons.append(f"it was not even seen at its sender {case.question.source}; next: {case.again}")
    if view.answer in POSITIVE:
        reasons += (f"{view.answer} came back, but it was not seen at {s.hop.point}" for s in view.forward.rest)
    reasons += doubts(case, needed(case, (view, *rivals)))
    reasons += unread_places(case, view.forward)
    reasons += _unsure(case, view.path)
    outcome = DELIVERED if view.answer in POSITIVE else view.path.outcome
    return _inconclusive(view, reasons or [f"what was seen settles nothing; next: {case.again}"], outcome)


# --- the answer -----------------------------------------------------------------------------------

_ANSWER_LOST = "the packet arrived, its answer did not"


def _answered(case: Case, view: View) -> Finding:
    """It arrived as predicted. Its answer?"""
    back, said = view.path.reply, view.answer
    if said and view.path.answer and said != view.path.answer:
        return _other_answer(case, view)
    if back is None:
        return Finding(PROVED, DELIVERED, view)
    if not said and (view.path.answer == "udp" or view.path.answer.startswith("icmp ")):
        return Finding(PROVED, DELIVERED, view, notes=("no answer came; none has to",))
    if altered := _altered(case, view, view.reply):
        return altered
    if view.reply.rest:
        return _answer_stopped(case, view)
    if back.outcome != DELIVERED:
        return _answer_ended(case, view, back)
    if gaps := [*_missed(case, view.reply), *_disorder(case, view.reply)]:
        return _inconclusive(view, [f"of the answer: {gap}" for gap in gaps])
    return Finding(PROVED, DELIVERED, view)


def _other_answer(case: Case, view: View) -> Finding:
    after = _by_state_after(case, view)
    if after and after.path.outcome != DELIVERED and after.path.answer == view.answer:
        return Finding(LOST, after.path.outcome, view, cause=after.path.cause, notes=(_CHANGED,))
    place = view.path.arrived_at or case.question.target
    reason = f"{place} answered {view.answer}, and by the state {view.path.answer}: they disagree"
    return _inconclusive(view, [f"{reason}; next: overlaynet exec {place} -- ss -lntu"])


def _answer_ended(case: Case, view: View, back: Path) -> Finding:
    """The answer is lost by the state, and was seen up to there."""
    if view.followed.sent.answer:
        reason = f"{view.answer} came back, though by the state the answer is {back.outcome}"
        return _inconclusive(view, [f"{reason}: they disagree; next: {_shows(case, back)}"])
    if open_questions := reply_end_doubts(case, view, back):
        return _inconclusive(view, [f"of the answer: {one}" for one in open_questions])
    between = reply_end_gap(case, view, back)
    return Finding(LOST, DELIVERED, view, between, _sure(case, back), notes=(_ANSWER_LOST,))


def _answer_stopped(case: Case, view: View) -> Finding:
    """The answer was not seen up to its predicted end."""
    rest = view.reply.rest
    open_questions = doubts(case, [step.hop.point for step in rest])
    if view.followed.sent.answer:
        unseen = open_questions or [f"it came past {step.hop.point} unseen" for step in rest]
        return _inconclusive(view, [f"{view.answer} came back, but of its way: {one}" for one in unseen])
    if open_questions:
        return _inconclusive(view, [f"of the answer: {one}" for one in open_questions])
    last = view.reply.steps[view.reply.last] if view.reply.last >= 0 else view.forward.steps[view.forward.last]
    found = _lost(case, view, _gap(last, rest), DELIVERED, refused=False)
    return replace(found, notes=(*found.notes, _ANSWER_LOST))


# --- lost, altered, undecided ---------------------------------------------------------------------

_CHANGED = "the state changed after the path was predicted"


def _gap(seen: Step, rest: Sequence[Step]) -> Gap:
    """Between a step and those that should have followed."""
    frame = seen.sighting.frame if seen.sighting else None
    missing, *following = (step.hop.point for step in rest[:2])
    return Gap(seen.hop.point, missing, frame, *following)


def _as_predicted(case: Case, view: View, between: tuple[Point, Point] | None) -> Finding:
    """It did not arrive, and the state says why. A rejection has to be heard by the sender to be one."""
    path = view.path
    is_heard = path.outcome != REJECTED or bool(view.answer or view.followed.sent.error)
    is_expected = path.outcome == case.expect != DELIVERED
    verdict = PROVED if is_expected and is_heard and view.forward.is_whole else LOST
    return Finding(verdict, path.outcome, view, between, _sure(case, path))


def _sure(case: Case, path: Path) -> Cause | None:
    """A predicted cause, as sure as the prediction."""
    return replace(path.cause, certainty=LIKELY) if path.cause and _unsure(case, path) else path.cause


def _lost(case: Case, view: View, gap: Gap, outcome: str, *, refused: bool = True) -> Finding:
    """Without `refused`, an ICMP error or RST that was seen is the answer of whoever has the packet, and what
    is lost is that."""
    if cause := _cause_after(case, view):
        return Finding(LOST, outcome, view, gap[:2], cause, notes=(_CHANGED,))
    cause = causes.of_loss(case.scene, gap, view.followed if refused else replace(view.followed, reply=()))
    if cause.kind == "unknown" and view.forward.different:
        cause = causes.of_difference(case.scene, view.forward.different[0])
    return Finding(LOST, outcome, view, gap[:2], cause)


def _cause_after(case: Case, view: View) -> Cause | None:
    """Why the packet ends where it was seen last, by the state after."""
    after = _by_state_after(case, view)
    if after is None:
        return None
    back = after.path.reply
    if after.path.outcome != DELIVERED:
        fits = not after.forward.rest and not astray(case.world, after.forward)
        return after.path.cause if fits else None
    return back.cause if back and back.outcome != DELIVERED and not after.reply.rest else None


def _by_state_after(case: Case, view: View) -> View | None:
    """The same try beside what the state after predicts; None if it was not read."""
    if case.evidence.after is None or case.after is None or not case.after.paths:
        return None
    return chosen(replace(case, world=case.evidence.after, prediction=case.after), view.followed)[0]


def _altered(case: Case, view: View, course: Course) -> Finding | None:
    """Headers that are not as predicted, of a packet that arrived."""
    if not course.different:
        return None
    step, after = course.different[0], _by_state_after(case, view)
    unsure = list(_unsure(case, view.path))
    if after and after.path.outcome == DELIVERED and not (after.forward.different or after.reply.different):
        unsure = [f"{_CHANGED}; next: {case.again}"]
    if unsure:
        one = step.differences[0]
        reason = f"at {step.hop.point} its {one.field} was {one.seen}, and {one.predicted} was predicted"
        return _inconclusive(view, [reason, *unsure], DELIVERED)
    return Finding(WRONG_PATH, DELIVERED, view, cause=causes.of_difference(case.scene, step))


def _inconclusive(view: View, reasons: Iterable[str], outcome: str | None = None) -> Finding:
    return Finding(INCONCLUSIVE, outcome or view.path.outcome, view, reasons=tuple(reasons))


def _unsure(case: Case, path: Path) -> tuple[str, ...]:
    """Why the prediction may be wrong."""
    unread = tuple(f"the prediction is unsure: {what}" for what in case.prediction.unread)
    if path.certain:
        return unread
    return unread or (
        f"the prediction is unsure: not all on the path could be read; next: {_shows(case, path)}",
    )


def _shows(case: Case, path: Path) -> str:
    """The command that shows the entry that decides."""
    return path.cause.next[0] if path.cause and path.cause.next else case.again


# --- gaps and order -------------------------------------------------------------------------------


def _missed(case: Case, course: Course) -> Iterator[str]:
    """Hops that were not seen although a later one was."""
    for step in course.missed:
        point = step.hop.point
        if step.sighting is not None:
            yield f"only some of its fragments were seen at {point}; next: {case.again}"
        else:
            passed = f"it came past {point} unseen, though the capture there ran"
            yield from doubts(case, [point]) or [f"{passed}; next: overlaynet capture {point}"]


def _disorder(case: Case, course: Course) -> Iterator[str]:
    """Hops that were seen before the one they follow."""
    stamped = [(s.hop, s.sighting.t_ns) for s in course.steps if s.sighting and s.sighting.t_ns is not None]
    for (before, earlier), (after, later) in pairwise(stamped):
        comparable = case.world.one_clock or case.machine(before.place) == case.machine(after.place)
        if comparable and later + CLOCK_TOLERANCE_NS < earlier:
            ahead = f"{(earlier - later) / 1e6:.1f} ms before {before.point}"
            yield f"it was seen at {after.point} {ahead}, from where it should come; next: {case.again}"


# --- the trace ------------------------------------------------------------------------------------


def _notes(case: Case, view: View) -> Iterator[str]:
    """What was seen and decides nothing, and how the way that it took differs from what is wanted."""
    for way in (view.path, view.path.reply):
        if way is not None:
            yield from way.detours
    for course in (view.forward, view.reply):
        for stray in course.strays:
            if stray.point in course.points:
                yield f"it was seen once more at {stray.point} ({stray.direction})"
            elif is_copy(case.world, course, stray):
                yield f"a copy was seen at {stray.point}, addressed to another MAC: flooded or overheard"
        yield from remarks(course)
    for point in case.prediction.guards:
        if not is_silent(case.taps.get(point)):
            yield f"the guard at {point} is no witness"


def _trace(case: Case, finding: Finding, trace_id: str, tries: int) -> Trace:
    view, evidence, followed = finding.view, case.evidence, finding.view.followed
    clock = Clock.of(case.world, followed.forward or followed.reply, one=case.world.one_clock)
    return Trace(
        id=trace_id,
        verdict=finding.verdict,
        question=case.question,
        outcome=finding.outcome,
        expect=case.expect,
        forward=retold(case.world, view.forward, evidence, clock),
        reply=retold(case.world, view.reply, evidence, clock),
        guards=retold_guards(case.world, case.prediction, evidence, followed, clock),
        lost_between=finding.lost_between,
        cause=finding.cause.advised(case.world) if finding.cause else None,
        answer=view.answer,
        inconclusive_because=finding.reasons,
        tag={
            "ip_id": followed.ip_id,
            "tcp_isn": followed.isn,
            "cookie": None if case.question.protocol == "tcp" else followed.sent.cookie,
        },
        taps=evidence.taps,
        counts=evidence.counts,
        connections=evidence.connections,
        notes=finding.notes,
        tries=tries,
    )
