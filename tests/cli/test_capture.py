"""`overlaynet capture`: its words, its lines on so many columns, its exit codes; then all of it in a lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from helpers import frames
from helpers.captures import NODE_1, NODE_2, SCENE, VIP, WEB_1, WEB_3, ping, point, seen
from helpers.eventually import eventually
from helpers.lab import ping as ping_from
from helpers.lab import requires_lab, topology

from overlaynet.cli import capture as verb
from overlaynet.cli.app import App
from overlaynet.kernel import process
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.proof.points import Spot
from overlaynet.proof.world import Where
from overlaynet.trace import filter as filters
from overlaynet.trace import pcapng
from overlaynet.trace.model import Captured, Tap

PING = seen("web-1:eth0", ping())
TUNNELLED = seen("node-1:flannel.1", frames.vxlan(NODE_1, NODE_2, ping(63)), 123)
SPOTS = [
    Spot(point("web-1:eth0"), Where("web-1", "container", "node-1", None)),
    Spot(point("node-1:flannel.1"), Where("node-1", "host", "node-1", None)),
]


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "points", "text"),
    [
        (["web-1"], ["web-1"], ""),
        (["web-1:eth0", "node-1:*", "icmp"], ["web-1:eth0", "node-1:*"], "icmp"),
        (["web-1", "tcp", "port", "80"], ["web-1"], "tcp port 80"),
        (["web-1", "(tcp or udp) and port 80"], ["web-1"], "(tcp or udp) and port 80"),
        (["web-1", "not", "arp", "web-2"], ["web-1"], "not arp web-2"),
    ],
)
def test_filter_begins_at_its_first_word(words: list[str], points: list[str], text: str) -> None:
    assert verb._split(words) == (points, text)


@pytest.mark.fake
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-w", "-", "--live"], "-w - and --live both want standard output"),
        (["--live", "-o", "json"], "-o json is one document at the end; it goes with neither --live nor -w -"),
        (["-w", "-", "-o", "yaml"], "-o yaml is one document at the end; it goes with neither --live nor -w -"),
        (["-c", "0"], "0 is not in the range x>=1"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    run: Callable[..., tuple[int, str, str]], options: list[str], told: str
) -> None:
    code, out, err = run("capture", "web-1", *options)
    assert code == 2
    assert told in out + err


# --- lines ----------------------------------------------------------------------------------------


def lines(columns: int | None, *packets) -> list[str]:
    layout = verb.Layout.of(SPOTS, columns, {})
    return [line for packet in packets for line in layout.lines(packet)]


@pytest.mark.unit
def test_wide_terminal_has_a_line_for_each_packet() -> None:
    assert lines(None, PING, TUNNELLED) == [
        "  0.000000  web-1:eth0        out  10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 64 74 B",
        "  0.000123  node-1:flannel.1  out  192.168.50.11 > 192.168.50.12 vxlan 1"
        " [10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63] 124 B",
    ]
    assert lines(200, PING, TUNNELLED) == lines(None, PING, TUNNELLED)


@pytest.mark.unit
def test_times_are_since_the_first_packet_by_the_same_clock() -> None:
    layout = verb.Layout.of(SPOTS, None, {"web-1": "node-1", "node-1": "another"})
    assert [layout.lines(packet)[0].split()[0] for packet in (PING, TUNNELLED)] == ["0.000000", "0.000000"]


@pytest.mark.unit
def test_narrow_terminal_has_what_is_in_the_tunnel_below() -> None:
    assert lines(100, TUNNELLED) == [
        "  0.000000  node-1:flannel.1  out  192.168.50.11 > 192.168.50.12 vxlan 1 124 B",
        "                                   [10.244.1.2 > 10.244.2.2 icmp echo request 7/1 ttl 63]",
    ]


@pytest.mark.unit
@pytest.mark.parametrize("columns", [80, 100, 120])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    about = frames.syn(WEB_1, 40_000, VIP, 80)
    error = seen("node-1:flannel.1", frames.error("10.244.1.1", WEB_1, about, 3, 4, mtu=1450))
    arp = seen("node-1:flannel.1", frames.arp(WEB_1, WEB_3), kind=0x0806)
    told = lines(columns, PING, TUNNELLED, error, arp)
    assert max(map(len, told)) <= columns
    assert " ".join(" ".join(told).split()).count("ttl 63") == 1


@pytest.mark.unit
def test_every_word_of_a_packet_survives_a_narrow_terminal() -> None:
    wide, narrow = (" ".join(lines(columns, TUNNELLED)).split() for columns in (None, 60))
    assert sorted(narrow) == sorted(wide)


# --- one capture, from a source that is none ------------------------------------------------------


class Source:
    """Frames as `Live` gives them: one after the other, then nothing comes any more."""

    def __init__(self, packets: Sequence, taps: Sequence[Tap], rest: Sequence = ()) -> None:
        self._packets, self._taps, self._rest = packets, taps, rest

    def frames(self) -> Iterator[Captured | None]:
        for packet in self._packets:
            yield packet.captured
        while True:
            yield None

    def stop(self) -> tuple[list[Captured], list[Tap]]:
        return [packet.captured for packet in self._rest], list(self._taps)


def witness(name: str = "web-1:eth0", **facts: object) -> Tap:
    return Tap(point(name), **{"armed": True, "closed": True, "dropped": 0, **facts})


def captured(source: Source, text: str = "", most: int | None = None, *, app: App | None = None):
    """A capture that somebody ends as soon as nothing comes; what became of it, and its exit code."""
    sink = verb.Kept()
    job = verb.Job(filters.read(text, SCENE.names), SCENE, [sink], most, None, {})
    asked = iter([False] * len(source._packets))
    job.run(source, lambda: next(asked, True), lambda told: None)
    return job, sink, verb._report(app or App(), job, None, live=False)


@pytest.mark.unit
def test_packets_that_were_on_their_way_at_the_end_are_taken() -> None:
    job, sink, code = captured(Source([PING], [witness()], rest=[TUNNELLED]))
    assert ([p.t_ns for p in sink.packets], job.total, code) == ([0, 123_000], 2, 0)


@pytest.mark.unit
def test_filter_and_count_choose() -> None:
    many = [PING, TUNNELLED, PING, TUNNELLED]
    job, _, code = captured(Source(many, [witness()], rest=many), "tunnelled", most=3)
    assert (job.counts, code) == ({"node-1:flannel.1": 3}, 0)


@pytest.mark.unit
def test_fewer_packets_than_counted_on_is_a_no() -> None:
    assert captured(Source([PING], [witness()]), most=2)[2] == 1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("tap", "told"),
    [
        (witness(dropped=7), "web-1:eth0: 7 frames were lost; a filter, or fewer points, makes less of them"),
        (witness(error="went down"), "web-1:eth0: not listened at to the end: went down"),
        (witness(closed=False), "web-1:eth0: not listened at to the end"),
    ],
)
def test_loss_is_told_and_inconclusive(tap: Tap, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert captured(Source([PING], [tap]), most=1)[2] == 4
    assert captured(Source([PING], [tap]), most=2)[2] == 4
    assert told in capsys.readouterr().err


@pytest.mark.unit
def test_table_ends_with_the_points(capsys: pytest.CaptureFixture[str]) -> None:
    captured(Source([PING], [witness(), witness("node-1:eth0", dropped=2)]))
    assert click.unstyle(capsys.readouterr().out).splitlines()[1:] == [
        "",
        "POINT        PACKETS  DROPPED  WITNESS  TROUBLE",
        "web-1:eth0         1        0  yes      -",
        "node-1:eth0        0        2  no       -",
    ]


@pytest.mark.unit
def test_document_has_every_packet(capsys: pytest.CaptureFixture[str]) -> None:
    captured(Source([TUNNELLED], [witness()]), "vxlan", app=App(format="json", lab="l"))
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["lab"], document["filter"], document["total"]) == (
        "Capture",
        "l",
        "vxlan",
        1,
    )
    (packet,) = document["packets"]
    assert (packet["point"], packet["direction"], packet["length"], packet["vni"]) == (
        "node-1:flannel.1", "out", 124, 1,
    )  # fmt: skip
    assert (packet["outer"]["dst"], packet["inner"]["dst"], packet["inner"]["ttl"]) == (NODE_2, WEB_3, 63)
    assert document["points"] == [
        {"point": "web-1:eth0", "packets": 0, "dropped": 0, "witness": True, "error": None}
    ]


def direct(*arguments: str, lab: str) -> tuple[int, str, str]:
    """The command as a process of its own."""
    done = subprocess.run(argv(*arguments, lab=lab), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def argv(*arguments: str, lab: str) -> list[str]:
    return [sys.executable, "-m", "overlaynet.cli.main", *arguments, "-l", lab]


# --- in a lab -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.running(topology("capture", hosts=2, containers=1)) as running:
        yield running


@contextmanager
def capturing(lab: Lab, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command while it runs, from when it listens."""
    process = subprocess.Popen(
        argv("capture", *arguments, lab=lab.name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        heard = process.stderr.readline()
        assert heard.startswith(b"listening at"), heard
        yield process
    finally:
        process.kill()
        process.communicate()


def pings(lab: Lab, count: int = 1) -> None:
    for _ in range(count):
        assert ping_from(namespace(lab.name, "web-1"), "10.244.2.2")


@pytest.mark.lab
@requires_lab
def test_many_points_become_one_file_at_ctrl_c(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "ping.pcapng"
    with capturing(lab, "web-1", "node-1:eth0", "node-2", "-w", str(file), "icmp") as process:
        pings(lab)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all that was started
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    read = pcapng.read(file.read_bytes())
    points = {str(interface.point): interface for interface in read.interfaces}
    assert {"web-1:eth0", "node-1:eth0", "node-2:cni0", "node-2:eth0", "node-2:flannel.1"} < points.keys()
    assert "node-2:lo" not in points
    assert points["web-1:eth0"].description == "container web-1:eth0 on node-1"
    assert {i.dropped for i in read.interfaces} == {0}
    seen_at = [str(p.captured.point) for p in read.packets]
    assert [seen_at.count(name) for name in ("web-1:eth0", "node-1:eth0", "node-2:flannel.1")] == [2, 2, 2]
    assert points["node-1:eth0"].received == 2
    assert f"{len(read.packets)} packets in {file}" in out.decode()


@pytest.mark.lab
@requires_lab
def test_packets_are_told_as_they_pass_in_their_order(lab: Lab) -> None:
    arguments = ["web-1", "node-1:cni0", "node-1:flannel.1", "node-1:eth0", "node-2:eth0", "web-2"]
    with capturing(lab, *arguments, "--live", "-c", "6", "icmp and src web-1") as process:
        pings(lab)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    told = [line.split() for line in out.decode().splitlines()]
    assert [words[1] for words in told] == [
        "web-1:eth0", "node-1:cni0", "node-1:flannel.1", "node-1:eth0", "node-2:eth0", "web-2:eth0",
    ]  # fmt: skip
    assert float(told[0][0]) == 0
    assert "vxlan" in told[3]
    assert "POINT" in err.decode()


@pytest.mark.lab
@requires_lab
def test_file_on_a_pipe_is_whole_while_it_is_written(lab: Lab) -> None:
    with capturing(lab, "web-1", "-w", "-", "icmp") as process:
        assert process.stdout is not None
        pings(lab)
        octets = b""

        def both_are_there() -> bool:
            nonlocal octets
            octets += os.read(process.stdout.fileno(), 65_536)
            return len(pcapng.read(octets).packets) == 2

        eventually(both_are_there)
        process.stdout.close()
        process.wait(20)
    assert process.returncode == 0


@pytest.mark.lab
@requires_lab
def test_document_of_what_passes_for_a_while(lab: Lab) -> None:
    with capturing(lab, "web-1", "web-2", "--for", "6", "-o", "json", "icmp and host web-2") as process:
        pings(lab, 2)
        out, _ = process.communicate(timeout=20)
    document = json.loads(out)
    assert process.returncode == 0
    assert [p["packets"] for p in document["points"]] == [4, 4]
    assert document["packets"][0]["summary"].startswith("10.244.1.2 > 10.244.2.2 icmp echo request")
    assert document["total"] == len(document["packets"]) == 8


@pytest.mark.lab
@requires_lab
def test_silence_is_told_by_a_witness(lab: Lab) -> None:
    code, out, _ = direct("capture", "web-1", "--for", "0.5", "udp port 9", lab=lab.name)
    assert code == 0
    assert out.splitlines()[1].split() == ["web-1:eth0", "0", "0", "yes", "-"]
    code, _, _ = direct("capture", "web-1", "--for", "0.5", "-c", "1", "udp port 9", lab=lab.name)
    assert code == 1


@pytest.mark.lab
@requires_lab
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["web-9"], "there is no container or host 'web-9'"),
        (["web-1:eth9"], "there is no interface 'eth9' on web-1"),
        (["node-1:nothing*"], "there is no interface 'nothing*' on node-1"),
        ([], "no point to capture at"),
        (
            ["web-1", "greater", "100"],
            "'greater' is neither a point nor a word of a filter\n  words of a filter: tcp",
        ),
        (["web-1", "host", "web-9"], "the filter is wrong at character 6: 'web-9' is no address"),
        (["icmp", "web-1"], "the filter is wrong at character 6"),
    ],
)
def test_point_or_filter_that_makes_no_sense_is_refused(lab: Lab, words: list[str], told: str) -> None:
    code, out, err = direct("capture", *words, lab=lab.name)
    assert (code, out) == (2, "")
    assert told in err
    assert "  try  overlaynet" in err


@pytest.mark.lab
@requires_lab
def test_file_that_cannot_be_made_is_refused(lab: Lab, tmp_path: Path) -> None:
    code, _, err = direct("capture", "web-1", "-w", str(tmp_path / "no" / "such.pcapng"), lab=lab.name)
    assert code == 3
    assert "such.pcapng could not be written" in err


@pytest.mark.lab
@requires_lab
def test_interface_that_is_down_is_refused(lab: Lab) -> None:
    with down(lab, "web-2"):
        code, _, err = direct("capture", "web-2", "--for", "0.2", lab=lab.name)
    assert code == 3
    assert "nobody can listen at web-2:eth0: is down" in err


@pytest.mark.lab
@requires_lab
def test_interface_that_goes_down_meanwhile_makes_it_inconclusive(lab: Lab) -> None:
    with capturing(lab, "web-1", "web-2", "icmp") as process, down(lab, "web-2"):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 4
    assert "web-2:eth0: not listened at to the end: went down" in err.decode()
    assert [line.split()[3:] for line in out.decode().splitlines()[1:]] == [
        ["yes", "-"],
        ["no", "went", "down"],
    ]


@contextmanager
def down(lab: Lab, container: str) -> Iterator[None]:
    lab.driver.run(container, ["ip", "link", "set", "eth0", "down"])
    try:
        yield
    finally:
        lab.driver.run(container, ["ip", "link", "set", "eth0", "up"])
        lab.driver.run(container, ["ip", "route", "add", "default", "via", gateway(container)])


def gateway(container: str) -> str:
    return f"10.244.{container[-1]}.1"


@pytest.mark.lab
@requires_lab
def test_capturing_needs_no_agent(lab: Lab) -> None:
    for host in lab.hosts:
        pid = lab.pid(f"agent/{host.name}")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: process.start_time(pid) is None)
    with capturing(lab, "node-1:flannel.1", "-c", "2", "icmp") as running:
        pings(lab)
        out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert out.decode().count("10.244.1.2 > 10.244.2.2 icmp echo request") == 1
