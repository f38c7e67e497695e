"""A trace between two hosts: milliseconds from the command to the verdict, part by part; and what a busy
machine does to verdicts.

The command is started as a person starts it, interpreter and imports included. Under load, four streams of TCP
keep both cores and the very path that is traced busy, and healthy paths are traced over and over: one that is
called lost is a fault of ours, one that is inconclusive an honest answer that should be rare.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.measure import Row
from helpers.lab import lab_name
from helpers.served_lab import PORT, ServedLab, served_lab

from overlaynet.cluster.contexts import LabCluster
from overlaynet.lab.netns_driver import entering, namespace
from overlaynet.proof.question import Asked
from overlaynet.proof.tracing import trace
from overlaynet.trace.model import INCONCLUSIVE, LOST, PROVED, WRONG_PATH

ABOUT = "two hosts, VXLAN, TCP: command to verdict; other: the goal in all"
ROUNDS = 15
GOAL_MS = 1500.0
WHOLE = "whole command"
UNDER_LOAD = 200
STREAMS = 4
STREAM_PORT = 9900
ASKED = (
    Asked("web-1", "web-3"),
    Asked("web-1", "web-3", "tcp", PORT),
    Asked("web-1", "web-3", "udp", PORT),
    Asked("web-1", "svc/web", "tcp", 80),
)

_SINK = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
connection, _ = server.accept()
while connection.recv(1 << 20): pass
"""
_SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    while True: connection.sendall(bytes(1 << 20))
"""


def rows(sizes: Sequence[int]) -> Iterator[Row]:
    """`sizes` says nothing here."""
    with served_lab(lab_name("bench-trace"), containers=2) as lab:
        yield from _by_part(lab)
        yield from _under_load(lab)


def _by_part(lab: ServedLab) -> Iterator[Row]:
    runs = [_command(lab) for _ in range(ROUNDS)]
    for part in runs[0]:
        ours = 1e3 * statistics.median(run[part] for run in runs)
        if part == WHOLE:
            yield Row(part, 2, ours, "ms", GOAL_MS, ours / GOAL_MS, 1.0)
        else:
            yield Row(part, 2, ours, "ms")
    yield Row(f"{WHOLE}, slowest of {ROUNDS}", 2, 1e3 * max(run[WHOLE] for run in runs), "ms")


def _command(lab: ServedLab) -> dict[str, float]:
    argv = [sys.executable, "-P", "-m", "overlaynet.cli.main", "trace", "web-1", "web-3", "--tcp", str(PORT)]
    begun = time.perf_counter()
    done = subprocess.run([*argv, "-l", lab.lab.name, "-o", "json"], capture_output=True, check=True)
    taken = time.perf_counter() - begun
    document = json.loads(done.stdout)
    assert document["verdict"] == PROVED
    parts = {name.removesuffix("_s"): value for name, value in document["timing"].items()}
    return {**parts, WHOLE: taken}


def _under_load(lab: ServedLab) -> Iterator[Row]:
    cluster, verdicts, took = LabCluster(lab.lab), Counter[str](), []
    with load(lab):
        for number in range(UNDER_LOAD):
            begun = time.perf_counter()
            verdicts[trace(cluster, ASKED[number % len(ASKED)]).trace.verdict] += 1
            took.append(time.perf_counter() - begun)
    for verdict in (PROVED, INCONCLUSIVE, LOST, WRONG_PATH):
        yield Row(f"of {UNDER_LOAD} healthy paths under load: {verdict}", 3, verdicts[verdict], "")
    yield Row("a trace under load, median", 3, 1e3 * statistics.median(took), "ms")


@contextmanager
def load(lab: ServedLab) -> Iterator[None]:
    """Streams of TCP from web-1 to web-3 and back, by the overlay, for as long as the block."""
    with ExitStack() as stack:
        for number in range(STREAMS):
            source, sink = ("web-1", "web-3") if number % 2 else ("web-3", "web-1")
            port = STREAM_PORT + number
            address = {c.name: c.ips[0] for c in LabCluster(lab.lab).containers()}[sink]
            for place, code, words in ((sink, _SINK, [str(port)]), (source, _SOURCE, [address, str(port)])):
                argv = [sys.executable, "-c", code, *words]
                child = subprocess.Popen(
                    entering(namespace(lab.lab.name, place), argv), stderr=subprocess.DEVNULL
                )
                stack.callback(child.wait)
                stack.callback(child.kill)
                time.sleep(0.3)
        yield
