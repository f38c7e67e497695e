"""Packets sent from a namespace, and every kind of answer there is, on the real kernel."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import NotFound, UsageError
from overlaynet.probe import send
from overlaynet.probe.bpf import program
from overlaynet.probe.tap import Taken, Tap, Taps

pytestmark = [pytest.mark.kernel, requires_netns]

COOKIE = "00112233445566ff"
PORT = 7777
BEYOND = "203.0.113.7"
PROTOCOLS = ("tcp", "udp", "icmp")


@dataclass(frozen=True)
class Net:
    """10.9.0.1 and 10.9.0.2, the second of which routes to 203.0.113.0/24, where nobody is."""

    left: PrivateNetns
    right: PrivateNetns

    def send(self, protocol: str, dst: str = "10.9.0.2", **more: Any) -> list[dict[str, Any]]:
        job = {
            "netns": self.left.path,
            "protocol": protocol,
            "src": "10.9.0.1",
            "dst": dst,
            "dst_port": PORT,
            "size": 32,
            "wait_s": 5.0,
            "cookie": COOKIE,
            **more,
        }
        answer = send.run(job)
        assert answer["kind"] == "Sent"
        return list(answer["tries"])

    def one(self, protocol: str, dst: str = "10.9.0.2", **more: Any) -> dict[str, Any]:
        (only,) = self.send(protocol, dst, **more)
        return only


@pytest.fixture
def net() -> Iterator[Net]:
    """Made anew for each test: a router sends an address few errors a second (net/ipv4/route.c, ip_error). With
    a mask of nothing no other limit counts, neither an address's nor that of the whole machine (icmp(7))."""
    with private_netns() as left, private_netns() as right:
        left.run(f"ip link add eth0 type veth peer name eth0 netns {right.path}")
        for netns, address in ((left, "10.9.0.1/24"), (right, "10.9.0.2/24")):
            netns.run(f"ip address add {address} dev eth0")
            netns.run("ip link set eth0 up")
        left.run("ip route add 203.0.113.0/24 via 10.9.0.2")
        right.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratemask=0")
        right.run("ip link add beyond mtu 1300 type veth peer name nobody")
        right.run("ip link set nobody up")
        right.run("ip link set beyond up")
        yield Net(left, right)


@contextmanager
def route(netns: PrivateNetns, words: str) -> Iterator[None]:
    netns.run(f"ip route add {words}")
    try:
        yield
    finally:
        netns.run(f"ip route del {words}")


@contextmanager
def server(netns: PrivateNetns, kind: int) -> Iterator[list[bytes]]:
    """A socket at the port, which answers each datagram; what it received."""
    with netns.entered():
        sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("10.9.0.2", PORT))
    received: list[bytes] = []

    def serve() -> None:
        while True:
            data, address = sock.recvfrom(1 << 16)
            if not data:
                return
            received.append(data)
            sock.sendto(b"yes", address)

    with sock:
        if kind == socket.SOCK_STREAM:
            sock.listen()
            yield received
            return
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield received
        finally:
            with netns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("10.9.0.2", PORT))
            thread.join()


# --- answers --------------------------------------------------------------------------------------


def test_open_port_is_told_from_a_closed_one(net):
    with server(net.right, socket.SOCK_STREAM):
        opened = net.one("tcp")
    closed = net.one("tcp")
    assert (opened["answer"], opened["error"], closed["answer"]) == ("syn-ack", "", "rst")
    assert opened["rtt_us"] > 0
    assert opened["src_port"] > 0
    assert (opened["number"], opened["cookie"]) == (1, COOKIE)


def test_connect_leaves_no_data(net):
    with server(net.right, socket.SOCK_STREAM):
        with net.right.entered():
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with listener:
            listener.bind(("10.9.0.2", PORT + 1))
            listener.listen()
            net.one("tcp", dst_port=PORT + 1)
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1) == b""  # closed in order: no reset


def test_datagram_is_answered_or_refused(net):
    with server(net.right, socket.SOCK_DGRAM) as received:
        assert net.one("udp")["answer"] == "udp"
    assert received == [bytes.fromhex(COOKIE) * 4]
    assert net.one("udp")["answer"] == "icmp port-unreachable"


def test_echo_is_answered(net):
    found = net.one("icmp", src_port=4711)
    assert (found["answer"], found["src_port"], found["error"]) == ("echo-reply", 4711, "")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("kind", "answer"),
    [("unreachable", "icmp host-unreachable"), ("prohibit", "icmp admin-prohibited"), ("throw", None)],
)
def test_refusal_by_a_router_is_named(net, protocol, kind, answer):
    with route(net.right, f"{kind} 203.0.113.0/24"):
        assert net.one(protocol, BEYOND)["answer"] == (answer or "icmp net-unreachable")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_end_of_time_to_live_is_named(net, protocol):
    net.left.run("sysctl -qw net.ipv4.ip_default_ttl=1")
    try:
        with route(net.right, "203.0.113.0/24 dev beyond"):
            assert net.one(protocol, BEYOND)["answer"] == "icmp ttl-exceeded"
    finally:
        net.left.run("sysctl -qw net.ipv4.ip_default_ttl=64")


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_router_with_a_smaller_mtu_is_told_from_our_own(net, protocol):
    net.left.run("ip route flush cache")
    with route(net.right, "203.0.113.0/24 dev beyond"):
        routers = net.one(protocol, BEYOND, size=1400, df=True)
        own = net.one(protocol, BEYOND, size=3000, df=True)
    assert (routers["answer"], routers["error"]) == ("icmp fragmentation-needed", "")
    assert own["answer"] == ""
    assert own["error"] == "larger than the MTU of 1300 bytes, and not to be fragmented (EMSGSIZE)"


def test_rejection_by_a_rule_is_told_from_a_reset(net):
    for how, answer in (
        ("icmp-admin-prohibited", "icmp admin-prohibited"),
        ("icmp-port-unreachable", "icmp port-unreachable"),
        ("tcp-reset", "rst"),
    ):
        rule = f"INPUT -p tcp --dport {PORT} -j REJECT --reject-with {how}"
        net.right.run(f"iptables-nft -A {rule}")
        try:
            assert net.one("tcp")["answer"] == answer
        finally:
            net.right.run(f"iptables-nft -D {rule}")


# --- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_silence_is_tried_again_with_another_cookie_and_port(net, protocol):
    with route(net.right, "blackhole 10.9.0.1/32"):
        tries = net.send(protocol, tries=3, wait_s=0.05)
    assert [(t["number"], t["answer"], t["error"], t["rtt_us"]) for t in tries] == [
        (number, "", "", None) for number in (1, 2, 3)
    ]
    assert [t["cookie"] for t in tries] == [COOKIE, "0011223344556700", "0011223344556701"]
    assert tries[0]["t_ns"] < tries[1]["t_ns"] < tries[2]["t_ns"]


def test_answer_ends_the_tries(net):
    assert len(net.send("icmp", tries=3)) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answer_that_came_in_time_is_read_however_late(net, protocol, monkeypatch):
    """As where the machine was busy with others when it came."""
    await_, answers = send._await, {"tcp": "rst", "udp": "icmp port-unreachable", "icmp": "echo-reply"}

    def late(attempt: send.Try, packet: send.Packet, deadline: float) -> send.Answer:
        poll = select.poll()
        poll.register(attempt.sock, attempt.wait_for)
        assert poll.poll((deadline - time.monotonic()) * 1000)
        return await_(attempt, packet, time.monotonic() - 0.1)

    monkeypatch.setattr(send, "_await", late)
    assert net.one(protocol)["answer"] == answers[protocol]


def test_port_that_was_asked_for_is_used_again(net):
    with route(net.right, "blackhole 10.9.0.1/32"):
        tries = net.send("tcp", tries=2, wait_s=0.05, src_port=40_123)
    assert [t["src_port"] for t in tries] == [40_123, 40_123]


# --- the own kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unreachable", "its own kernel cannot reach 198.51.100.1 (EHOSTUNREACH)"),
        ("prohibit", "a route of its own kernel prohibits packets to 198.51.100.1 (EACCES)"),
        ("throw", "its own kernel has no route to 198.51.100.1 (ENETUNREACH)"),
    ],
)
def test_own_kernel_that_would_not_send_says_why(net, protocol, kind, error):
    with route(net.left, f"{kind} 198.51.100.1"):
        found = net.one(protocol, "198.51.100.1", tries=3)
    assert (found["answer"], found["error"], found["rtt_us"]) == ("", error, None)


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_own_rule_that_drops_is_told(net, protocol):
    net.left.run(f"iptables-nft -A OUTPUT -p {protocol} -j DROP")
    try:
        error = net.one(protocol)["error"]
    finally:
        net.left.run(f"iptables-nft -D OUTPUT -p {protocol} -j DROP")
    assert error == "a rule of its own kernel, for what it sends itself, drops it (EPERM)"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_address_that_is_not_there_cannot_be_sent_from(net, protocol):
    found = net.one(protocol, src="10.9.0.77")
    assert found["error"].startswith("it cannot be sent from 10.9.0.77: ")
    assert found["t_ns"] is None


# --- fragments, and test packets ------------------------------------------------------------------


@contextmanager
def listening(netns: PrivateNetns) -> Iterator[list[Taken]]:
    frames: list[Taken] = []

    def take(frame: Taken) -> bool:
        frames.append(frame)
        return True

    taps = Taps([Tap("here", netns.path, "eth0")], program(None), 2000, take)
    taps.arm()
    assert taps.taps[0].armed, taps.taps[0].error
    yield frames
    taps.close(settle_s=0.05)


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_every_fragment_carries_the_cookie(net, protocol):
    net.left.run("ip route flush cache")
    with listening(net.right) as frames:
        found = net.one(protocol, size=4000, df=False)
    assert found["answer"] in ("icmp port-unreachable", "echo-reply")
    fragments = [f.data for f in frames if f.direction == "in" and f.data[12:14] == b"\x08\x00"]
    assert len(fragments) == 3
    assert all(bytes.fromhex(COOKIE) in data[34:60] for data in fragments)


def test_burst_sends_so_many_of_each_and_waits_for_nothing(net):
    job = {"netns": net.left.path, "dst": "10.9.0.2", "port": 8472, "count": 5, "cookie": COOKIE}
    with listening(net.right) as frames:
        assert send.burst(job) == {"kind": "Burst", "udp": 5, "icmp": 5, "error": ""}
    payloads = [f.data[42:] for f in frames if f.direction == "in" and f.data[12:14] == b"\x08\x00"]
    assert sorted(payloads) == [bytes(8) + bytes.fromhex(COOKIE)] * 5 + [bytes.fromhex(COOKIE)] * 5


def test_burst_that_cannot_be_sent_says_why(net):
    job = {"netns": net.left.path, "dst": "198.51.100.1", "port": 8472, "count": 2, "cookie": COOKIE}
    error = "its own kernel has no route to 198.51.100.1 (ENETUNREACH)"
    assert send.burst(job) == {"kind": "Burst", "udp": 0, "icmp": 0, "error": error}


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"protocol": "sctp"}, {"dst": "fd00::1"}, {"cookie": "12"}, {"cookie": None}, {"df": "yes"}]
)
def test_job_that_makes_no_sense_is_refused(net, wrong):
    with pytest.raises(UsageError):
        net.send(**{"protocol": "udp", **wrong})


def test_namespace_that_is_not_there_is_an_error(net):
    with pytest.raises(NotFound):
        net.send("udp", netns="there-is-no-such-namespace")
