"""`overlaynet capture`: what passes at points of several places, in one file, on the screen, or in a table."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from overlaynet.cli import names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.output import Column, member, members, table
from overlaynet.errors import EnvironmentProblem, NotFound, UsageError
from overlaynet.proof.live import Live
from overlaynet.proof.network import Network, refuse, vxlan_port
from overlaynet.proof.packet import Packet, Scene
from overlaynet.proof.points import Spot, spots
from overlaynet.proof.question import Directory
from overlaynet.trace import filter as filters
from overlaynet.trace.document import headers_json
from overlaynet.trace.filter import WORDS, Filter, begins_filter
from overlaynet.trace.model import Captured, Tap
from overlaynet.trace.summary import parts, summary

STDOUT = "-"
MOST_KEPT = 50_000
"""Packets kept for a table or document; a file has no such limit."""
TOLD_EACH_S = 1.0
PROVED_NO, INCONCLUSIVE = 1, 4
LEAST_TEXT = 40
"""Columns that a packet has at least, however narrow the terminal is."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, metavar="POINT... [FILTER]", shell_complete=names.points_and_filter)
@click.option("-w", "--write", "target", metavar="FILE", help="Write a pcapng file; - is standard output.")
@click.option("--live", is_flag=True, help="Print each packet as it comes.")
@click.option("--for", "for_s", type=click.FloatRange(min=0.1), metavar="S", help="End after S seconds.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after N packets.")
@shared
@pass_app
def capture(
    app: App, words: Sequence[str], target: str | None, live: bool, for_s: float | None, count: int | None
) -> int:
    """Capture at points of hosts and containers, all of them at once: capture web-1 node-2:flannel.1 icmp

    A POINT is web-1:eth0, a container alone (its eth0), a host alone (all its interfaces but lo) or a pattern,
    node-1:veth*. FILTER: tcp udp icmp arp vxlan tunnelled, host A, src A, dst A, port N, sport N, dport N,
    net CIDR, vni N, and, or, not, ( ); names of containers and hosts stand for their addresses; a tunnel is
    looked into.

    Ends at Ctrl-C. Needs no agent and no etcd. Exit code 4 if frames were lost or a point went away: then
    what is missing proves nothing. With -c, 1 if fewer packets came.

    \b
      overlaynet capture web-1 node-1:eth0 node-2:eth0 -w ping.pcapng
      overlaynet capture node-1 --live not port 2379
      overlaynet capture node-1:eth0 -w - | wireshark -k -i -
    """
    _check(app, target, live)
    points, text = _split(words)
    with ExitStack() as stack:
        net = stack.enter_context(Network.of(app.cluster))
        wanted = filters.read(text, net.names)
        _check_words(points, net.directory)
        found, kernels = spots(points, net.directory, net.sessions)
        scene = Scene(net.names, vxlan_port(kernels.values()), app.cluster.one_machine)
        clocks = {} if scene.one_clock else {spot.point.place: spot.where.host or "" for spot in found}
        sinks = _sinks(app, found, target, stack, Layout.of(found, _columns(app), clocks) if live else None)
        job = Job(wanted, scene, sinks, count, for_s, clocks)
        with _interrupts() as interrupted:
            with _ignoring_interrupts():
                probes = Live(app.cluster, net.sessions, found, wanted.keep(scene.vxlan_port))
            source = stack.enter_context(probes)
            refuse(source.arm())
            _announce(app, found, job)
            app.explain(lambda commands: commands.capturing(found, text))
            job.run(source, interrupted, _telling(app, live, stack))
    return _report(app, job, target, live)


def _check(app: App, target: str | None, live: bool) -> None:
    structured = app.format not in ("table", "wide")
    if target == STDOUT and live:
        raise UsageError("-w - and --live both want standard output", next=["overlaynet capture POINT --live"])
    if structured and (live or target == STDOUT):
        raise UsageError(f"-o {app.format} is one document at the end; it goes with neither --live nor -w -")
    if target == STDOUT and sys.stdout.isatty():
        raise UsageError(
            "a pcapng file is nothing for a terminal",
            next=[
                "overlaynet capture POINT -w - | wireshark -k -i -",
                "overlaynet capture POINT -w FILE.pcapng",
            ],
        )


def _split(words: Sequence[str]) -> tuple[list[str], str]:
    """Points, and the filter behind them."""
    at = next((n for n, word in enumerate(words) if begins_filter(word)), len(words))
    return list(words[:at]), " ".join(words[at:])


def _check_words(points: Sequence[str], directory: Directory) -> None:
    """Behind a point stands another, or the filter. Raises UsageError for what is neither."""
    for word in points[1:]:
        try:
            directory.place(word.partition(":")[0])
        except NotFound as error:
            raise UsageError(
                f"{word!r} is neither a point nor a word of a filter",
                evidence=f"words of a filter: {' '.join(WORDS)}\npoints are at: {', '.join(directory.names())}",
                next=["overlaynet capture --help"],
            ) from error


# --- capturing ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Job:
    """One capture, from its first frame to the last. `packets` are counted by point; `clocks` as in
    `Layout`."""

    wanted: Filter
    scene: Scene
    sinks: Sequence[Sink]
    most: int | None
    for_s: float | None
    clocks: Mapping[str, str]
    counts: dict[str, int] = field(default_factory=dict)
    taps: list[Tap] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def is_full(self) -> bool:
        return self.most is not None and self.total >= self.most

    def run(self, source: Live, interrupted: Callable[[], bool], tell: Callable[[str], None]) -> None:
        """Until it is interrupted, or full, or the time is up."""
        began, told = time.monotonic(), 0.0
        for frame in source.frames():
            self.duration_s = time.monotonic() - began
            if frame is not None:
                self._take(frame)
            over = self.for_s is not None and self.duration_s >= self.for_s
            if over or self.is_full or interrupted() or any(sink.is_full() for sink in self.sinks):
                break
            if self.duration_s - told > TOLD_EACH_S:
                told = self.duration_s
                tell(f"{self.total} packets in {told:.0f} s; Ctrl-C ends it")
        rest, self.taps = source.stop()
        for frame in rest:
            self._take(frame)
        for sink in self.sinks:
            sink.end(self.taps, self.counts)

    def _take(self, frame: Captured) -> None:
        if self.is_full:
            return
        packet = Packet(frame, self.scene)
        if self.wanted.text and not self.wanted(packet.frame):
            return
        point = str(frame.point)
        self.counts[point] = self.counts.get(point, 0) + 1
        for sink in self.sinks:
            sink.take(packet)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the capture in good order, within the block; a second one ends it at once."""
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """What is started within the block does not end at Ctrl-C, which the terminal sends to it as well: a probe
    has to tell at the end what was lost. It ends when its input does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _announce(app: App, found: Sequence[Spot], job: Job) -> None:
    points = f"at {found[0].point}" if len(found) == 1 else f"at {len(found)} points"
    until = f"for {job.for_s:g} s" if job.for_s is not None else "until Ctrl-C"
    app.note(f"listening {points} {until}" + (f": {job.wanted.text}" if job.wanted.text else ""))


def _telling(app: App, live: bool, stack: ExitStack) -> Callable[[str], None]:
    """How progress is told: not between packets on the same terminal, and not line after line into a log."""
    if live or not sys.stderr.isatty():
        return lambda text: None
    return stack.enter_context(app.progress("listening"))


# --- where packets go -----------------------------------------------------------------------------


class Sink:
    """Somebody who wants every packet."""

    def take(self, packet: Packet) -> None:
        raise NotImplementedError

    def is_full(self) -> bool:
        """Whether it can take no more."""
        return False

    def end(self, taps: Sequence[Tap], counts: Mapping[str, int]) -> None:
        """There are no more packets."""


def _sinks(
    app: App, found: Sequence[Spot], target: str | None, stack: ExitStack, screen: Layout | None
) -> Sequence[Sink]:
    sinks: list[Sink] = []
    if target is not None:
        sinks.append(_File(_opened(target, stack), found))
    if screen is not None:
        sinks.append(_Screen(app, screen))
    return sinks or [Kept()]


def _opened(target: str, stack: ExitStack) -> BinaryIO:
    if target == STDOUT:
        return sys.stdout.buffer
    try:
        return stack.enter_context(Path(target).open("wb"))
    except OSError as error:
        raise EnvironmentProblem(f"{target} could not be written", evidence=str(error)) from error


class _File(Sink):
    """A pcapng file, complete after each packet, so that a pipe's reader sees it at once."""

    def __init__(self, file: BinaryIO, found: Sequence[Spot]) -> None:
        from overlaynet import __version__
        from overlaynet.trace.pcapng import Writer

        self._file = file
        self._points = {spot.point: _described(spot) for spot in found}
        with self._trouble():
            self._writer = Writer(file, self._points, application=f"overlaynet {__version__}")
            file.flush()

    def take(self, packet: Packet) -> None:
        with self._trouble():
            self._writer.frame(packet.captured, f"{packet.direction} at {self._points[packet.point]}")
            self._file.flush()

    def is_full(self) -> bool:
        """Whether a pipe's reader has gone, which otherwise the next packet would tell."""
        poll = select.poll()
        poll.register(self._file.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))

    def end(self, taps: Sequence[Tap], counts: Mapping[str, int]) -> None:
        with self._trouble(), contextlib.suppress(BrokenPipeError):
            for tap in taps:
                self._writer.statistics(tap.point, counts.get(str(tap.point), 0), tap.dropped, time.time_ns())
            self._file.flush()

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise EnvironmentProblem("the capture cannot be written", evidence=str(error)) from error


def _described(spot: Spot) -> str:
    where = spot.where
    on = f" on {where.host}" if where.host not in (None, where.name) else ""
    return f"{where.kind if where.kind != where.name else ''} {spot.point}{on}".strip()


class _Screen(Sink):
    """A line or two for each packet, as it comes."""

    def __init__(self, app: App, layout: Layout) -> None:
        self._app = app
        self._layout = layout

    def take(self, packet: Packet) -> None:
        for line in self._layout.lines(packet):
            self._app.echo(line)


@dataclass(slots=True)
class Kept(Sink):
    """Packets for the end."""

    packets: list[Packet] = field(default_factory=list)

    def take(self, packet: Packet) -> None:
        self.packets.append(packet)

    def is_full(self) -> bool:
        return len(self.packets) >= MOST_KEPT


# --- text -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Layout:
    """How packets are told on so many columns (None: any number). Times are seconds since the first packet by
    the same clock. `clocks`: whose clock is meant at each place, where there are several; `starts_ns` by the
    clock."""

    point_width: int
    columns: int | None
    clocks: Mapping[str, str]
    starts_ns: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Sequence[Spot], columns: int | None, clocks: Mapping[str, str]) -> Layout:
        return cls(max(len(str(spot.point)) for spot in found), columns, clocks)

    def lines(self, packet: Packet) -> list[str]:
        """One line; where that is too long, more, which begin below the first one's text."""
        outer, inner = parts(packet.frame)
        head = f"{self._time(packet):>10}  {packet.point!s:<{self.point_width}}  {packet.direction:<3}  "
        length = f"{packet.length} B"
        text = f"{outer} {inner} {length}" if inner else f"{outer} {length}"
        if self.columns is None or len(head) + len(text) <= self.columns:
            return [head + text]
        wrapped = [*self._wrapped(f"{outer} {length}", len(head)), *self._wrapped(inner, len(head))]
        indent = " " * min(len(head), self.columns - max(map(len, wrapped)))
        return [head + wrapped[0], *(indent + part for part in wrapped[1:])]

    def _wrapped(self, text: str, indent: int) -> list[str]:
        assert self.columns is not None
        return textwrap.wrap(text, max(LEAST_TEXT, self.columns - indent), break_on_hyphens=False)

    def _time(self, packet: Packet) -> str:
        if packet.t_ns is None:
            return "-"
        start_ns = self.starts_ns.setdefault(self.clocks.get(packet.point.place, ""), packet.t_ns)
        return f"{(packet.t_ns - start_ns) / 1e9:.6f}"


def _columns(app: App) -> int | None:
    return None if app.wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns


# --- the end --------------------------------------------------------------------------------------


_POINTS: tuple[Column, ...] = (
    *members("POINT", "PACKETS", "DROPPED", "WITNESS"),
    member("TROUBLE", "error"),
)


def _report(app: App, job: Job, target: str | None, live: bool) -> int:
    lost = [tap for tap in job.taps if not tap.is_witness]
    items = [_point_item(job, tap) for tap in job.taps]
    if target == STDOUT or live:
        app.note("\n" + table(_POINTS, items))
    else:
        app.result("Capture", _document(job, items, target), lambda: _text(app, job, items, target))
    for tap in lost:
        app.note(_loss(tap))
    if lost:
        return INCONCLUSIVE
    return PROVED_NO if job.most is not None and job.total < job.most else 0


def _loss(tap: Tap) -> str:
    if tap.dropped:
        return f"{tap.point}: {tap.dropped} frames were lost; a filter, or fewer points, makes less of them"
    return f"{tap.point}: not listened at to the end" + (f": {tap.error}" if tap.error else "")


def _point_item(job: Job, tap: Tap) -> dict[str, Any]:
    return {
        "point": str(tap.point),
        "packets": job.counts.get(str(tap.point), 0),
        "dropped": tap.dropped,
        "witness": tap.is_witness,
        "error": tap.error or None,
    }


def _text(app: App, job: Job, items: Sequence[Mapping[str, Any]], target: str | None) -> str:
    end = table(_POINTS, items)
    if target is not None:
        return f"{end}\n\n{job.total} packets in {target}"
    (kept,) = (sink for sink in job.sinks if isinstance(sink, Kept))
    width = max((len(item["point"]) for item in items), default=0)
    layout = Layout(width, _columns(app), job.clocks)
    lines = [line for packet in kept.packets for line in layout.lines(packet)]
    return "\n".join([*lines, "", end] if lines else [end])


def _document(job: Job, items: Sequence[Mapping[str, Any]], target: str | None) -> dict[str, Any]:
    kept = [sink for sink in job.sinks if isinstance(sink, Kept)]
    return {
        "filter": job.wanted.text,
        "duration_s": round(job.duration_s, 3),
        "file": target,
        "total": job.total,
        "points": list(items),
        "packets": [packet_json(packet) for sink in kept for packet in sink.packets] if kept else None,
    }


def packet_json(packet: Packet) -> dict[str, Any]:
    """A packet as a program reads it."""
    return {
        "point": str(packet.point),
        "t_ns": packet.t_ns,
        "direction": packet.direction,
        "length": packet.length,
        "summary": summary(packet.frame),
        "vni": packet.frame.vni,
        "outer": headers_json(packet.outer),
        "inner": headers_json(packet.inner),
    }
