"""One trace, from the question to the verdict: look, predict, arm, send, collect, judge.

    look      every place's state is read, and a path predicted from it
    arm       every point of every predicted path, and the guard points beside it, get a socket; each must see
              a frame injected at its own interface before anything is sent (the opening barrier)
    send      one packet, by the sender's own kernel, from inside its namespace
    collect   each socket must see a second injected frame, and tell that it dropped nothing (the closing one)
    judge     what was seen against what was predicted

If that settles it, that is all. If something was not as predicted it is asked again, with more patience: up to
three packets in a second round, the state of all places once more, and, where the packet vanished between two
hosts, test packets that measure the underlay between them. So a busy machine costs time, not a false verdict.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module

from overlaynet.cluster.cluster import Cluster
from overlaynet.errors import OverlayError
from overlaynet.proof.evidence import Gathering, merged, underlay_gap
from overlaynet.proof.question import Asked, destinations, question, refuse_broadcast
from overlaynet.proof.sending import send
from overlaynet.proof.sessions import JOB_TIMEOUT_S, Sessions
from overlaynet.proof.world import Records, Where, look, places_for, read_records
from overlaynet.trace.judge import judge
from overlaynet.trace.model import DELIVERED, LOST, PROVED, Evidence, Prediction, Question, Sent, Trace, World
from overlaynet.trace.predict import predict

PATIENT_TRIES = 3
FIRST_WAIT_S = 1.0
HOPELESS_WAIT_S = 0.4
"""How long an answer is waited for: of the first packet, and of one that is predicted to get none."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Timing:
    """Seconds by part. A part that is come back to adds up."""

    started: float = field(default_factory=time.monotonic)
    parts: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, part: str) -> None:
        """What was done since the last lap belongs to this part."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def as_json(self, import_s: float) -> dict[str, float]:
        total = time.monotonic() - self.started + import_s
        return {"import_s": import_s, **self.parts, "total_s": total}


@dataclass(frozen=True, slots=True)
class Proof:
    """A trace with all that it was judged from."""

    trace: Trace
    world: World
    prediction: Prediction
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Explained:
    """A prediction with the state that it was made from."""

    world: World
    prediction: Prediction


def explain(cluster: Cluster, asked: Asked, timeout_s: float = JOB_TIMEOUT_S) -> Explained:
    """Predict a path from live state; nothing is sent. Raises OverlayErrors."""
    with Sessions(cluster, cluster.hosts(), timeout_s) as sessions:
        scene = _scene(cluster, sessions, asked)
        return Explained(scene.world, predict(scene.world, scene.question))


def trace(
    cluster: Cluster,
    asked: Asked,
    *,
    expect: str = DELIVERED,
    say: Say = lambda text: None,
    import_s: float = 0.0,
    timeout_s: float = JOB_TIMEOUT_S,
) -> Proof:
    """Send a packet and prove where it went. `import_s`: seconds spent before; `timeout_s`: how long a host may
    take for each thing that it is asked. Raises OverlayErrors."""
    timing = Timing()
    with Sessions(cluster, cluster.hosts(), timeout_s) as sessions:
        decoder = sessions.later(lambda: import_module("overlaynet.trace.decode"))
        say("reading the state of every place")
        scene = _scene(cluster, sessions, asked)
        timing.lap("look_s")
        run = _Run(scene, sessions, predict(scene.world, scene.question), expect, timing)
        timing.lap("predict_s")
        decoder.result()
        proof = run.prove(say)
    timing.lap("close_s")
    return replace(proof, trace=replace(proof.trace, timing=timing.as_json(import_s)))


# --- what it is about -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scene:
    """A question and the state it is asked in. `places` are those that were looked at."""

    cluster: Cluster
    records: Records
    places: Sequence[Where]
    question: Question
    world: World


def _scene(cluster: Cluster, sessions: Sessions, asked: Asked) -> _Scene:
    records = read_records(cluster)
    what = question(asked, records.directory)
    ends = [c.name for c in destinations(what, records.directory).values()]
    names = {what.source, *ends}
    hosts = {h.name for h in records.directory.hosts if h.name == what.source or h.underlay_ip == str(what.dst)}
    places = places_for(records.directory, names, hosts)
    world = look(cluster, sessions, records, places)
    refuse_broadcast(what.dst, (a.interface.network for p in world.places.values() for a in p.kernel.addresses))
    return _Scene(cluster, records, places, what, world)


# --- asking ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One trace under way."""

    scene: _Scene
    sessions: Sessions
    prediction: Prediction
    expect: str
    timing: Timing
    id: str = field(default_factory=lambda: f"t-{secrets.token_hex(4)}")
    evidence: Evidence = field(default_factory=lambda: Evidence((), (), ()))

    def prove(self, say: Say) -> Proof:
        say("sending one packet")
        hopeful = any(path.outcome == DELIVERED for path in self.prediction.paths)
        self._round(1, FIRST_WAIT_S if hopeful else HOPELESS_WAIT_S)
        found = self._judge()
        if not self._is_settled(found):
            say("not as predicted: sending more, and looking again")
            self._round(PATIENT_TRIES, FIRST_WAIT_S)
            self.evidence = replace(self.evidence, after=self._look_again())
            found = self._judge()
            if between := underlay_gap(found, self.scene.world):
                reach = self._gathering().reach(*between)
                self.evidence = replace(self.evidence, reach=(reach,))
                self.timing.lap("measure_s")
                found = self._judge()
        return Proof(found, self.scene.world, self.prediction, self.evidence)

    def _is_settled(self, found: Trace) -> bool:
        """Whether what was seen is what was predicted, for good or ill. An unexplained loss is not."""
        ends = [end.outcome for path in self.prediction.paths for end in (path, path.reply) if end is not None]
        explained = found.verdict == LOST and found.cause is not None and found.cause.kind != "unknown"
        return found.verdict == PROVED or (explained and any(end != DELIVERED for end in ends))

    def _judge(self) -> Trace:
        found = judge(
            self.scene.world,
            self.prediction,
            self.evidence,
            trace_id=self.id,
            expect=self.expect,
            predict=predict,
        )
        self.timing.lap("judge_s")
        return found

    def _gathering(self) -> Gathering:
        return Gathering(self.sessions, self.scene.world, self.prediction)

    def _round(self, tries: int, wait_s: float) -> None:
        """Arm, send and collect once; what earlier rounds gathered stays."""
        gathering = self._gathering()
        gathering.arm()
        self.timing.lap("arm_s")
        sent, problems = self._send(tries, wait_s)
        self.timing.lap("send_s")
        self.evidence = merged(self.evidence, replace(gathering.collect(sent), problems=tuple(problems)))
        self.timing.lap("collect_s")

    def _send(self, tries: int, wait_s: float) -> tuple[list[Sent], list[str]]:
        """The packets, and why there are none."""
        source = self.scene.world.places.get(self.scene.question.source)
        if source is None:
            return [], list(self.prediction.unread)
        try:
            what = self.scene.question
            return send(self.sessions, source.host, source.netns, what, tries=tries, wait_s=wait_s), []
        except OverlayError as error:
            return [], [f"nothing could be sent from {source.name}: {error.message}"]

    def _look_again(self) -> World:
        records = read_records(self.scene.cluster)
        return look(self.scene.cluster, self.sessions, records, self.scene.places)
