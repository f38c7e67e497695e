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

import base64
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from overlaynet.addr import IPAddress
from overlaynet.cluster.cluster import Cluster
from overlaynet.core.jsonstate import rules_from_json
from overlaynet.errors import OverlayError
from overlaynet.proof.question import Asked, destinations, question
from overlaynet.proof.sessions import Sessions
from overlaynet.proof.world import Records, Where, look, places_for, read_records
from overlaynet.state import RuleSet
from overlaynet.trace.judge import judge
from overlaynet.trace.model import (
    DELIVERED,
    LOST,
    PROVED,
    Captured,
    Connection,
    Count,
    Evidence,
    Headers,
    Path,
    Point,
    Prediction,
    Question,
    Reach,
    Sent,
    Tap,
    Trace,
    World,
)
from overlaynet.trace.predict import predict

SNAP_BYTES = 256
"""Kept of each frame: all headers of a tunnelled packet, and enough of its payload for the cookie."""
PATIENT_TRIES = 3
FIRST_WAIT_S = 1.0
HOPELESS_WAIT_S = 0.4
"""How long an answer is waited for: of the first packet, and of one that is predicted to get none."""
SETTLE_S = 0.03
TEST_PACKETS = 20
"""Of each kind, that measure the underlay."""

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


def explain(cluster: Cluster, asked: Asked) -> Explained:
    """Predict a path from live state; nothing is sent. Raises OverlayErrors."""
    with Sessions(cluster, cluster.hosts()) as sessions:
        scene = _scene(cluster, sessions, asked)
        return Explained(scene.world, predict(scene.world, scene.question))


def trace(
    cluster: Cluster,
    asked: Asked,
    *,
    expect: str = DELIVERED,
    say: Say = lambda text: None,
    import_s: float = 0.0,
) -> Proof:
    """Send a packet and prove where it went. `import_s`: seconds spent before. Raises OverlayErrors."""
    timing = Timing()
    with Sessions(cluster, cluster.hosts()) as sessions:
        decoder = sessions.later(lambda: import_module("overlaynet.trace.decode"))
        say("reading the state of every place")
        scene = _scene(cluster, sessions, asked)
        timing.lap("look_s")
        run = _Run(scene, sessions, predict(scene.world, scene.question), expect, timing)
        timing.lap("predict_s")
        decoder.result()
        proof = run.prove(say)
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
    return _Scene(cluster, records, places, what, look(cluster, sessions, records, places))


# --- sending and capturing ------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One trace under way. Evidence of several rounds adds up."""

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
            if between := _underlay_gap(found, self.scene.world):
                self.evidence = replace(self.evidence, reach=(self._measure(*between),))
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

    def _round(self, tries: int, wait_s: float) -> None:
        """Arm, send and collect once."""
        points = [p for p in _points(self.prediction) if p.place in self.scene.world.places]
        taps = _Taps(self.sessions, self.scene.world, points)
        taps.arm(_keep(self.prediction, self.scene.world))
        self.timing.lap("arm_s")
        sent, problems = self._send(tries, wait_s)
        self.timing.lap("send_s")
        closed, frames = taps.collect()
        before = self.evidence
        self.evidence = replace(
            before,
            taps=_both(before.taps, closed),
            frames=(*before.frames, *frames),
            sent=(*before.sent, *(one._replace(number=one.number + len(before.sent)) for one in sent)),
            counts=tuple(self._counts()),
            connections=tuple(dict.fromkeys((*before.connections, *self._connections(sent)))),
            problems=tuple(dict.fromkeys((*before.problems, *problems, *taps.problems))),
        )
        self.timing.lap("collect_s")

    def _send(self, tries: int, wait_s: float) -> tuple[list[Sent], list[str]]:
        what = self.scene.question
        place = self.scene.world.places.get(what.source)
        if place is None:
            return [], list(self.prediction.unread)
        job = {
            "op": "send",
            "netns": place.netns,
            "protocol": what.protocol,
            "src": str(what.src),
            "dst": str(what.dst),
            "src_port": what.src_port,
            "dst_port": what.dst_port,
            "size": what.size,
            "df": what.df,
            "tries": tries,
            "interval_s": 0.1,
            "wait_s": wait_s,
            "cookie": secrets.token_hex(8),
        }
        try:
            answer = self.sessions.ask(self.sessions.machine(place.host), job)
        except OverlayError as error:
            return [], [f"nothing could be sent from {what.source}: {error.message}"]
        return [Sent(**item) for item in answer["tries"]], []

    def _look_again(self) -> World:
        records = read_records(self.scene.cluster)
        return look(self.scene.cluster, self.sessions, records, self.scene.places)

    def _counts(self) -> Iterator[Count]:
        """By how much the counters of rules on the predicted paths grew."""
        quoted: dict[str, set[str]] = {}
        for hop in _hops(self.prediction):
            quoted.setdefault(hop.place, set()).update(why.key for why in hop.why if why.object == "rule")
        for name in sorted(name for name, keys in quoted.items() if keys):
            place = self.scene.world.places.get(name)
            if place is None or place.rules is None or not place.rules.chains:
                continue
            try:
                job = {"op": "counters", "netns": place.netns}
                answer = self.sessions.ask(self.sessions.machine(place.host), job)
            except OverlayError:
                continue  # evidence that is missing, and nothing else
            yield from _grown(name, place.rules, rules_from_json(answer["rules"]), quoted[name])

    def _connections(self, sent: Iterable[Sent]) -> Iterator[Connection]:
        """What conntrack keeps of the packets, where they were translated."""
        if self.scene.question.protocol == "icmp":
            return
        asked = {nat._replace(src_port=s.src_port) for s in sent for nat in self._translations() if s.src_port}
        for nat in sorted(asked, key=str):
            place = self.scene.world.places[nat.place]
            job = {
                "op": "connection",
                "netns": place.netns,
                "protocol": nat.protocol,
                "src": str(nat.src),
                "src_port": nat.src_port,
                "dst": str(nat.dst),
                "dst_port": nat.dst_port,
            }
            try:
                found = self.sessions.ask(self.sessions.machine(place.host), job)
            except OverlayError:
                continue
            if found.get("text"):
                yield Connection(nat.place, found["text"])

    def _translations(self) -> Iterator[Any]:
        """NAT that meets the packet as it was sent."""
        source = self.scene.question.src
        for path in self.prediction.paths:
            yield from (nat for nat in path.nat if nat.src == source and nat.place in self.scene.world.places)

    def _measure(self, sender: Point, receiver: Point) -> Reach:
        """How many test packets the underlay carries from one host to the other."""
        world = self.scene.world
        nodes = world.nodes
        there = nodes[receiver.place].underlay_ips[0]
        taps = _Taps(self.sessions, world, [receiver])
        ips = [str(there), *(str(ip) for ip in nodes[sender.place].underlay_ips)]
        taps.arm({"ips": ips, "protocol": "udp", "ports": [world.vxlan_port], "vxlan_port": None})
        cookie = secrets.token_hex(8)
        job = {
            "op": "burst",
            "netns": world.places[sender.place].netns,
            "dst": str(there),
            "port": world.vxlan_port,
            "count": TEST_PACKETS,
            "cookie": cookie,
        }
        self.sessions.ask(self.sessions.machine(sender.place), job)
        time.sleep(SETTLE_S * 2)
        _, frames = taps.collect()
        from overlaynet.trace.decode import decode

        arrived = [
            decode(frame.data, world.vxlan_port).outer.protocol
            for frame in frames
            if bytes.fromhex(cookie) in frame.data and frame.direction == "in"
        ]
        self.timing.lap("measure_s")
        return Reach(sender.place, receiver.place, TEST_PACKETS, arrived.count("udp"), arrived.count("icmp"))


@dataclass(slots=True)
class _Taps:
    """Listening at points, on every machine that has one."""

    sessions: Sessions
    world: World
    points: Sequence[Point]
    problems: list[str] = field(default_factory=list)
    _errors: dict[Point, str] = field(default_factory=dict)

    def arm(self, keep: Mapping[str, Any]) -> None:
        jobs: dict[str, dict[str, Any]] = {}
        for point in self.points:
            place = self.world.places[point.place]
            job = jobs.setdefault(
                self.sessions.machine(place.host), {"op": "arm", "points": [], "keep": keep, "snap": SNAP_BYTES}
            )
            job["points"].append({"place": point.place, "netns": place.netns, "iface": point.iface})
        for machine, answer in self.sessions.ask_each(jobs).items():
            if isinstance(answer, OverlayError):
                self._failed(machine, answer)

    def collect(self) -> tuple[tuple[Tap, ...], tuple[Captured, ...]]:
        """What every tap saw. A machine whose probe failed has taps that are no witnesses."""
        machines = {self.sessions.machine(self.world.places[p.place].host) for p in self.points}
        taps: dict[Point, Tap] = {}
        frames: list[Captured] = []
        answers = self.sessions.ask_each({m: {"op": "collect", "settle_s": SETTLE_S} for m in sorted(machines)})
        for machine, answer in answers.items():
            if isinstance(answer, OverlayError):
                self._failed(machine, answer)
                continue
            here = [_tap(item) for item in answer["points"]]
            taps |= {tap.point: tap for tap in here}
            frames += (_captured(here, item) for item in answer["frames"])
        lost = {p: Tap(p, self._errors.get(p, "its probe did not report")) for p in self.points}
        return tuple((lost | taps).values()), tuple(frames)

    def _failed(self, machine: str, error: OverlayError) -> None:
        self.problems.append(f"the probe on {machine} failed: {error.message}")
        for point in self.points:
            if self.sessions.machine(self.world.places[point.place].host) == machine:
                self._errors[point] = error.message


def _tap(item: Mapping[str, Any]) -> Tap:
    point = Point(item["place"], item["iface"])
    return Tap(point, item["error"] or "", item["armed"], item["closed"], item["dropped"])


def _captured(taps: Sequence[Tap], item: Mapping[str, Any]) -> Captured:
    return Captured(
        taps[item["point"]].point,
        item["t_ns"],
        item["direction"],
        base64.b64decode(item["data"]),
        item["length"],
    )


def _both(before: Sequence[Tap], now: Sequence[Tap]) -> tuple[Tap, ...]:
    """A tap of two rounds is a witness if it was one in both."""
    earlier = {tap.point: tap for tap in before}
    return tuple(_merged(earlier[tap.point], tap) if tap.point in earlier else tap for tap in now)


def _merged(one: Tap, other: Tap) -> Tap:
    dropped = None if None in (one.dropped, other.dropped) else (one.dropped or 0) + (other.dropped or 0)
    return Tap(
        one.point,
        one.error or other.error,
        one.armed and other.armed,
        one.closed and other.closed,
        dropped,
    )


# --- what to listen for ---------------------------------------------------------------------------


def _walks(prediction: Prediction) -> Iterator[Path]:
    for path in prediction.paths:
        yield path
        if path.reply is not None:
            yield path.reply


def _hops(prediction: Prediction) -> Iterator[Any]:
    for path in _walks(prediction):
        yield from path.hops


def _points(prediction: Prediction) -> list[Point]:
    """Where to listen: on every possible way, and beside."""
    return list(dict.fromkeys([*(hop.point for hop in _hops(prediction)), *prediction.guards]))


def _keep(prediction: Prediction, world: World) -> dict[str, Any]:
    """Which frames may be this packet's or its answer's, for the kernel to sift by."""
    asked = prediction.question
    heads: list[Headers] = [hop.inner for hop in _hops(prediction)]
    ips: set[IPAddress] = {asked.src, asked.dst}
    ports: set[int] = set()
    for head in heads:
        ips |= {ip for ip in (head.src, head.dst) if ip is not None}
        ports |= {port for port in (head.src_port, head.dst_port) if port is not None}
    ports |= {port for port in (asked.src_port, asked.dst_port) if port is not None}
    return {
        "ips": sorted(map(str, ips), key=ip_address),
        "protocol": asked.protocol,
        "ports": sorted(ports),
        "vxlan_port": world.vxlan_port,
    }


def _grown(place: str, before: RuleSet, after: RuleSet, quoted: set[str]) -> Iterator[Count]:
    """Rules among the quoted (``nat OVL-SERVICES 3``) whose counters grew; a chain that was rewritten meanwhile
    tells nothing."""
    for (table, chain), lines in after.chains.items():
        old = before.chains.get((table, chain), ())
        if tuple(line.text for line in old) != tuple(line.text for line in lines):
            continue
        for position, (was, now) in enumerate(zip(old, lines, strict=True), start=1):
            if f"{table} {chain} {position}" in quoted and now.packets > was.packets:
                text = f"-A {chain} {now.text}"
                yield Count(place, table, chain, position, text, now.packets - was.packets)


def _underlay_gap(found: Trace, world: World) -> tuple[Point, Point] | None:
    """The two hosts' points between which the packet, or its answer, vanished; None where it did not, or where
    one of them cannot be asked. One that waits for ARP is lost there too, though it was not seen to leave."""
    if found.verdict == PROVED:
        return None
    way = found.reply if all(hop.seen or hop.optional for hop in found.forward) else found.forward
    for here, there in pairwise(way):
        hosts = {here.place, there.place}
        if len(hosts) == 2 and not there.seen and hosts <= world.nodes.keys() & world.places.keys():
            known = all(world.nodes[host].underlay_ips for host in hosts)
            return (here.point, there.point) if known else None
    return None
