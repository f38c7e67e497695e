"""Listening such that silence proves something, at every kind of interface there is."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from helpers.eventually import eventually
from helpers.listening import raw_sender, witnesses
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import UsageError
from overlaynet.probe.bpf import Keep, program
from overlaynet.probe.tap import BARRIER_BYTES, MAGIC, Taken, Tap, Taps, from_job

pytestmark = [pytest.mark.kernel, requires_netns]

SNAP = 256
BROADCAST = b"\xff" * 6


@dataclass
class Net:
    """A host with a bridge of two containers, a VXLAN device, and a cable to a bridge that is the underlay."""

    host: PrivateNetns
    one: PrivateNetns
    two: PrivateNetns
    wire: PrivateNetns

    @property
    def interfaces(self) -> dict[str, tuple[PrivateNetns, tuple[str, ...]]]:
        return {
            "host": (self.host, ("lo", "eth0", "port1", "port2", "br0", "vx0")),
            "one": (self.one, ("lo", "eth0")),
            "two": (self.two, ("lo", "eth0")),
            "wire": (self.wire, ("port", "other", "end", "br0")),
        }


@pytest.fixture
def net() -> Iterator[Net]:
    with private_netns() as host, private_netns() as one, private_netns() as two, private_netns() as wire:
        host.run(f"ip link add eth0 type veth peer name port netns {wire.path}")
        host.run("ip link add br0 address 02:00:00:00:00:01 type bridge")
        for number, container in enumerate((one, two), 1):
            host.run(f"ip link add port{number} type veth peer name eth0 netns {container.path}")
            host.run(f"ip link set port{number} master br0")
            container.run("ip link set eth0 up")
        host.run("ip link add vx0 type vxlan id 1 dstport 8472 local 192.168.50.11 dev eth0 nolearning")
        for name in ("eth0", "br0", "port1", "port2"):
            host.run(f"ip link set {name} up")
        host.run("ip address add 192.168.50.11/24 dev eth0")
        host.run("ip link set vx0 up")
        host.run("bridge link set dev port2 hairpin on")
        wire.run("ip link add br0 type bridge")
        wire.run("ip link add other type veth peer name end")
        for number, name in enumerate(("port", "other"), 1):  # the bridge takes the lower address
            wire.run(f"ip link set {name} address 02:00:00:00:01:0{number}")
            wire.run(f"ip link set {name} master br0")
        for name in ("port", "other", "end", "br0"):
            wire.run(f"ip link set {name} up")
        eventually(lambda: "state forwarding" in host.run("bridge link show dev port2"))
        eventually(lambda: wire.run("bridge link show").count("state forwarding") == 2)
        yield Net(host, one, two, wire)


@dataclass
class Listening:
    """Taps with what they took."""

    taps: Taps
    frames: list[Taken] = field(default_factory=list)


def listening(
    *points: tuple[PrivateNetns, str], keep: Keep | None = None, snap: int = SNAP, **more: int
) -> Listening:
    frames: list[Taken] = []

    def take(frame: Taken) -> bool:
        frames.append(frame)
        return True

    taps = [Tap("here", netns.path, iface) for netns, iface in points]
    return Listening(Taps(taps, program(keep, snap), snap, take, **more), frames)


def frame(dst: bytes, size: int, kind: bytes = b"\x88\xb6") -> bytes:
    return (dst + b"\x02\0\0\0\0\x77" + kind).ljust(size, b"x")


# --- barriers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "iface", "elsewhere"),
    [
        pytest.param("host", "lo", {("host", "lo", "in")}, id="loopback"),
        pytest.param("host", "eth0", {("wire", "port", "in")}, id="underlay"),
        pytest.param("host", "vx0", set(), id="VXLAN"),
        pytest.param("host", "br0", set(), id="bridge"),
        pytest.param(
            "wire", "br0", {("wire", "port", "out"), ("host", "eth0", "in")}, id="bridge with a port's address"
        ),
        pytest.param("host", "port1", {("one", "eth0", "in")}, id="bridge port"),
        pytest.param("one", "eth0", {("host", "port1", "in")}, id="container"),
        pytest.param(
            "two",
            "eth0",
            {("host", "port2", "in"), ("host", "port2", "out"), ("two", "eth0", "in")},
            id="container behind a hairpin",
        ),
    ],
)
def test_barrier_is_seen_and_goes_no_further_than_the_cable(net, place, iface, elsewhere):
    netns, _ = net.interfaces[place]
    with witnesses(net.interfaces) as others:
        listener = listening((netns, iface))
        listener.taps.arm()
        listener.taps.close(settle_s=0.02)
        (tap,) = listener.taps.taps
        assert (tap.error, tap.armed, tap.closed, tap.dropped) == (None, True, True, 0)
        assert others.seen(MAGIC) == {(place, iface, "out")} | elsewhere
    assert not any(MAGIC in taken.data for taken in listener.frames)


def test_barriers_of_others_are_passed_over(net):
    first, second = listening((net.host, "port1")), listening((net.host, "port1"), (net.one, "eth0"))
    first.taps.arm()
    second.taps.arm()
    second.taps.close()
    first.taps.close(settle_s=0.02)
    assert all(tap.armed and tap.closed for tap in (*first.taps.taps, *second.taps.taps))
    assert not any(MAGIC in taken.data for taken in first.frames + second.frames)


def test_interface_that_passes_nothing_says_why(net):
    net.host.run("ip link set port1 down")  # and so the container's end has no carrier
    net.host.run("ip tuntap add dev tun0 mode tun")
    listener = listening(
        (net.host, "port1"), (net.one, "eth0"), (net.host, "eth7"), (net.host, "tun0"), (net.host, "eth0")
    )
    listener.taps.arm()
    listener.taps.close()
    found = [(tap.error, tap.armed, tap.closed, tap.dropped) for tap in listener.taps.taps]
    assert found == [
        ("is down", False, False, 0),
        ("has no carrier", False, False, 0),
        ("does not exist", False, False, None),
        ("carries no Ethernet frames", False, False, None),
        (None, True, True, 0),
    ]


def test_interface_that_did_not_stay_down_is_no_witness(net):
    for port in ("port1", "port2"):
        net.host.run(f"ip link set {port} down")
    listener = listening((net.host, "port1"), (net.one, "eth0"), (net.host, "port2"))
    listener.taps.arm()
    for state in ("port1 up", "port2 up", "port2 down"):
        net.host.run(f"ip link set {state}")
    came, plugged, flapped = listener.taps.taps
    eventually(lambda: flapped.error == "went down")
    listener.taps.close()
    assert [came.error, plugged.error, flapped.error] == ["came up meanwhile", "came up meanwhile", "went down"]


def test_namespace_that_is_not_there_is_the_taps_error():
    taps = Taps([Tap("gone", "there-is-no-such-namespace", "eth0")], program(None), SNAP, lambda frame: True)
    taps.arm()
    taps.close()
    (tap,) = taps.taps
    assert (tap.error, tap.armed) == ("there is no network namespace there-is-no-such-namespace", False)


def test_interface_that_goes_down_meanwhile_is_no_witness(net):
    listener = listening((net.host, "port1"), (net.host, "port2"))
    listener.taps.arm()
    net.host.run("ip link set port1 down")
    went, stayed = listener.taps.taps
    eventually(lambda: went.error == "went down")
    net.host.run("ip link set port1 up")
    listener.taps.close()
    assert (went.armed, went.closed, stayed.error, stayed.closed) == (True, False, None, True)


def test_interface_that_is_deleted_meanwhile_is_no_witness(net):
    listener = listening((net.host, "port1"))
    listener.taps.arm()
    net.host.run("ip link delete port1")
    listener.taps.close()
    (tap,) = listener.taps.taps
    assert tap.error in ("went down", "does not exist")
    assert not tap.closed


# --- frames ---------------------------------------------------------------------------------------


def test_frames_have_direction_time_length_and_as_many_bytes_as_asked_for(net):
    listener = listening((net.host, "port1"), (net.one, "eth0"), snap=100)
    listener.taps.arm()
    before = time.time_ns()
    with raw_sender(net.host) as sender:
        sender.sendto(frame(BROADCAST, 1000), ("port1", 0))
    after = time.time_ns()
    listener.taps.close(settle_s=0.05)
    wanted = frame(BROADCAST, 1000)[:100]
    sent, received = sorted(
        (taken for taken in listener.frames if taken.data == wanted), key=lambda taken: taken.point
    )
    assert [(t.point, t.direction, t.length) for t in (sent, received)] == [(0, "out", 1000), (1, "in", 1000)]
    assert before <= sent.t_ns <= received.t_ns
    assert sent.t_ns <= after  # stamped when it passed, not when it was read


def test_only_what_is_to_be_kept_reaches_us(net):
    keep = Keep(("192.168.50.11",))
    listener = listening((net.host, "port1"), keep=keep)
    listener.taps.arm()
    with raw_sender(net.host) as sender:
        sender.sendto(frame(BROADCAST, 100), ("port1", 0))
        sender.sendto(frame(BROADCAST, 100, b"\x08\x06"), ("port1", 0))
    listener.taps.close(settle_s=0.05)
    assert {taken.data[12:14] for taken in listener.frames} == {b"\x08\x06"}


def test_what_comes_while_it_settles_is_taken(net):
    listener = listening((net.host, "port1"))
    listener.taps.arm()
    net.one.run("ip address add 10.9.0.1/24 dev eth0")
    with net.one.entered():
        late = subprocess.Popen(["sh", "-c", "sleep 0.1; ping -c1 -W1 10.9.0.2"], stdout=subprocess.DEVNULL)
    listener.taps.close(settle_s=1)
    late.wait()
    assert any(taken.data[12:14] == b"\x08\x06" for taken in listener.frames)


# --- losses ---------------------------------------------------------------------------------------


def test_frames_that_the_kernel_had_no_room_for_are_counted(net):
    listener = listening((net.host, "port1"), buffer_bytes=1)  # the kernel makes it the least there is
    listener.taps.arm()
    with raw_sender(net.host) as sender:
        for _ in range(2000):
            sender.sendto(frame(BROADCAST, 1400), ("port1", 0))
    listener.taps.close(settle_s=0.1)
    (tap,) = listener.taps.taps
    taken = sum(one.data[12:14] == b"\x88\xb6" for one in listener.frames)
    assert tap.dropped > 0
    assert taken + tap.dropped >= 2000


def test_frames_that_we_have_no_room_for_count_as_dropped(net):
    taps = Taps([Tap("here", net.host.path, "port1")], program(None, SNAP), SNAP, lambda frame: False)
    taps.arm()
    with raw_sender(net.host) as sender:
        for _ in range(3):
            sender.sendto(frame(BROADCAST, 100), ("port1", 0))
    taps.close(settle_s=0.05)
    (tap,) = taps.taps
    assert (tap.armed, tap.closed) == (True, True)
    assert tap.dropped >= 3


# --- jobs -----------------------------------------------------------------------------------------


def test_frames_are_never_cut_so_short_that_a_barrier_is_not_known(net):
    job = {"points": [{"place": "host", "netns": net.host.path, "iface": "port1"}], "snap": 1}
    taps = from_job(job, lambda frame: True)
    assert taps.snap == BARRIER_BYTES
    taps.arm()
    taps.close()
    assert [(tap.place, tap.armed, tap.closed) for tap in taps.taps] == [("host", True, True)]


@pytest.mark.parametrize("job", [{}, {"points": [{"iface": "lo"}]}, {"points": [{"place": "x", "netns": 7}]}])
def test_job_that_makes_no_sense_is_refused(job):
    with pytest.raises(UsageError):
        from_job(job, lambda frame: True)


def test_program_that_the_kernel_does_not_take_is_an_error(net):
    taps = Taps([Tap("here", net.host.path, "port1")], b"\xff" * 8, SNAP, lambda frame: True)
    with pytest.raises(OSError, match=str(errno.EINVAL)):
        taps.arm()
    taps.abandon()
