"""A probe that stays: jobs in, answers out, and what is kept between them, on the real kernel."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.listening import raw_sender
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.core.jsonstate import kernel_from_json, rules_from_json
from overlaynet.errors import KernelError
from overlaynet.kernel import sockdiag
from overlaynet.kernel.netns import entered
from overlaynet.lab.session import ProbeSession, start
from overlaynet.probe import place, session

pytestmark = [pytest.mark.kernel, requires_netns]

PROBE = [sys.executable, "-P", "-m", "overlaynet.probe"]
TIMEOUT_S = 30.0
COOKIE = "8899aabbccddeeff"
LISTENING = (
    "import socket; s = socket.create_server(('', 8080)); print(flush=True); [s.accept() for _ in 'x' * 9]"
)


@dataclass(frozen=True)
class Pair:
    """Two namespaces with a cable between them, 10.9.0.1 and 10.9.0.2, and a session of a probe."""

    left: PrivateNetns
    right: PrivateNetns
    session: ProbeSession

    def ask(self, op: str, **job: Any) -> dict[str, Any]:
        return self.session.ask({"op": op, **job}, TIMEOUT_S)

    def places(self, **more: Any) -> dict[str, dict[str, Any]]:
        places = [{"name": "left", "netns": self.left.path}, {"name": "right", "netns": self.right.path}]
        answer = self.ask("places", places=places, firewall=True, **more)
        return {found["name"]: found for found in answer["places"]}

    def arm(self, **more: Any) -> list[dict[str, Any]]:
        points = [
            {"place": name, "netns": netns.path, "iface": "eth0"}
            for name, netns in (("left", self.left), ("right", self.right))
        ]
        return list(self.ask("arm", points=points, **more)["points"])

    def send(self, protocol: str, **more: Any) -> dict[str, Any]:
        job = {
            "netns": self.left.path,
            "protocol": protocol,
            "src": "10.9.0.1",
            "dst": "10.9.0.2",
            "dst_port": 8080,
            "cookie": COOKIE,
            **more,
        }
        return dict(self.ask("send", **job)["tries"][0])


@pytest.fixture
def pair() -> Iterator[Pair]:
    with private_netns() as left, private_netns() as right, ProbeSession("here", PROBE) as session:
        left.run(f"ip link add eth0 type veth peer name eth0 netns {right.path}")
        for netns, address in ((left, "10.9.0.1/24"), (right, "10.9.0.2/24")):
            netns.run(f"ip address add {address} dev eth0")
            netns.run("ip link set eth0 up")
        yield Pair(left, right, session)


@contextmanager
def listener(netns: PrivateNetns) -> Iterator[None]:
    """A process that listens at TCP port 8080."""
    with netns.entered():
        process = subprocess.Popen([sys.executable, "-c", LISTENING], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


# --- from end to end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "answer"), [("tcp", "syn-ack"), ("udp", "icmp port-unreachable"), ("icmp", "echo-reply")]
)
def test_packet_is_seen_at_both_ends_and_so_is_its_answer(pair, protocol, answer):
    keep = {"ips": ["10.9.0.1", "10.9.0.2"], "protocol": protocol, "ports": [8080], "vxlan_port": 8472}
    with listener(pair.right):
        assert all(point["armed"] for point in pair.arm(keep=keep, snap=200))
        assert pair.send(protocol)["answer"] == answer
        collected = pair.ask("collect", settle_s=0.1)
    assert [(p["place"], p["error"], p["armed"], p["closed"], p["dropped"]) for p in collected["points"]] == [
        ("left", None, True, True, 0),
        ("right", None, True, True, 0),
    ]
    packets = [f for f in collected["frames"] if base64.b64decode(f["data"])[12:14] == b"\x08\x00"]
    assert [(f["point"], f["direction"]) for f in packets[:4]] == [(0, "out"), (1, "in"), (1, "out"), (0, "in")]
    assert [f["t_ns"] for f in packets] == sorted(f["t_ns"] for f in packets)
    if protocol != "tcp":
        assert all(bytes.fromhex(COOKIE) in base64.b64decode(f["data"]) for f in packets)


def test_several_captures_follow_one_another(pair):
    for _ in range(2):
        pair.arm()
        pair.send("icmp")
        frames = [base64.b64decode(f["data"]) for f in pair.ask("collect")["frames"]]
        assert sum(bytes.fromhex(COOKIE) in frame for frame in frames) == 4


def test_what_one_interface_saw_before_all_were_listened_at_is_forgotten(monkeypatch):
    """An answer would be seen of whose question nothing is known."""
    early, late = session.Taken(0, 1, "in", b"early", 5), session.Taken(0, 2, "in", b"late", 4)
    monkeypatch.setattr(session.Taps, "arm", lambda taps: taps.take(early))
    one = session.Session()
    one.answer(b'{"op": "arm", "points": []}')
    one._taps.take(late)
    frames = one.answer(b'{"op": "collect", "settle_s": 0.0}')["frames"]
    assert [base64.b64decode(frame["data"]) for frame in frames] == [b"late"]


def test_frames_that_found_no_room_are_told_of(pair):
    pair.arm()
    pair.session._process.send_signal(signal.SIGSTOP)
    try:
        with raw_sender(pair.left) as sender:
            for _ in range(16_000):  # each takes more than a KiB of the 16 MiB
                sender.sendto(b"\xff" * 6 + bytes(6) + b"\x88\xb6" + bytes(1400), ("eth0", 0))
    finally:
        pair.session._process.send_signal(signal.SIGCONT)
    collected = pair.ask("collect")
    assert all(point["dropped"] > 0 for point in collected["points"])
    assert len(collected["frames"]) + sum(point["dropped"] for point in collected["points"]) >= 32_000


def test_frames_beyond_the_room_we_have_count_as_dropped(monkeypatch):
    monkeypatch.setattr(session, "MOST_FRAMES", 1)
    store = session.Store()
    assert [store.take(session.Taken(0, 1, "in", b"frame", 5)) for _ in range(2)] == [True, False]
    assert len(store.frames) == 1


def test_bytes_beyond_the_room_we_have_count_as_dropped(monkeypatch):
    monkeypatch.setattr(session, "MOST_BYTES", 7)
    store = session.Store()
    assert [store.take(session.Taken(0, 1, "in", b"frame", 5)) for _ in range(2)] == [True, False]


# --- one job after another ------------------------------------------------------------------------


def test_job_that_fails_does_not_end_the_session(pair):
    lines = [
        b"not json",
        b"[]",
        b'{"op":"dance"}',
        b'{"op":"arm"}',
        b'{"op":"collect"}',
        b'{"op":"ping","pings":[]}',
    ]
    done = subprocess.run(
        PROBE, input=b'{"op":"session"}\n' + b"\n".join(lines) + b"\n", capture_output=True, check=False
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["kind"] for answer in answers] == ["Error"] * 5 + ["Pings"]
    assert {answer["error"]["code"] for answer in answers[:5]} == {"OVL-100"}
    assert (done.returncode, done.stderr) == (0, b"")


def test_operations_of_a_single_probe_can_be_asked_in_a_session(pair):
    observed = pair.ask("observe", netns=pair.left.path, sysctls=["net/ipv4/ip_forward"])
    assert observed["kernel"]["sysctls"] == {"net/ipv4/ip_forward": "0"}
    pinged = pair.ask("ping", pings=[{"id": 1, "netns": pair.left.path, "target": "10.9.0.2", "timeout_s": 5}])
    assert pinged["results"][0]["received"] == 1


def test_second_capture_waits_for_the_end_of_the_first(pair):
    pair.arm()
    with pytest.raises(Exception, match="listening already"):
        pair.arm()
    assert len(pair.ask("collect")["points"]) == 2
    with pytest.raises(Exception, match="not listening"):
        pair.ask("collect")


# --- places ---------------------------------------------------------------------------------------


def test_places_are_seen_with_the_settings_that_decide(pair):
    pair.right.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.eth0.rp_filter=2")
    with listener(pair.right):
        found = pair.places()
    assert {name: (item["error"], item["unread"]) for name, item in found.items()} == {
        "left": (None, []),
        "right": (None, []),
    }
    kernel = kernel_from_json(found["right"]["kernel"])
    assert {link.name for link in kernel.links.values()} >= {"lo", "eth0"}
    assert kernel.sysctls["net/ipv4/ip_forward"] == "1"
    assert kernel.sysctls["net/ipv4/conf/eth0/rp_filter"] == "2"
    assert kernel.sysctls["net/ipv4/conf/lo/forwarding"] == "1"
    assert kernel.sysctls["net/ipv4/ip_default_ttl"] == "64"
    assert found["right"]["listening"] == [{"protocol": "tcp", "ip": None, "port": 8080}]
    assert found["left"]["listening"] == []


def test_place_that_cannot_be_entered_does_not_hide_the_others(pair):
    places = [{"name": "gone", "netns": "there-is-no-such-namespace"}, {"name": "own", "netns": None}]
    gone, own = pair.ask("places", places=places)["places"]
    assert (gone["error"]["code"], gone["kernel"]) == ("OVL-105", None)
    assert (own["error"], own["rules"]) == (None, None)
    assert "lo" in {link["name"] for link in own["kernel"]["links"]}


def test_namespace_without_rules_needs_no_program_to_tell(pair, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr(subprocess, "run", fail)
    with entered(pair.left.path):
        found = place.read_rules("")
    assert (found.rules.chains, found.nft, found.unread) == ({}, None, ())


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_rules_of_either_variant_are_read_with_their_counters(pair, flavour, monkeypatch, tmp_path):
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    pair.right.run(f"iptables-{flavour} -A INPUT -p icmp -j ACCEPT")
    before = rules_from_json(pair.places()["right"]["rules"])
    pair.send("icmp")
    after = rules_from_json(pair.ask("counters", netns=pair.right.path)["rules"])
    chain = ("filter", "INPUT")
    assert (before.flavour, [line.text for line in before.chains[chain]]) == (flavour, ["-p icmp -j ACCEPT"])
    assert [rules.chains[chain][0].packets for rules in (before, after)] == [0, 1]


def test_rules_of_the_other_variant_are_named_as_unread(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    pair.right.run("iptables-nft -A INPUT -p icmp -j ACCEPT")
    pair.right.run("iptables-legacy -P FORWARD DROP")
    (sentence,) = pair.places()["right"]["unread"]
    assert sentence.startswith(("iptables-legacy holds 0 rules too", "iptables-nft holds 1 rules too"))


def test_tables_of_the_other_variant_that_hold_nothing_are_not_worth_a_word(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    pair.right.run("iptables-nft -A INPUT -p icmp -j ACCEPT")
    pair.right.run("iptables-legacy -L -n")  # sets the table up, empty
    found = pair.places()["right"]
    assert (found["rules"]["flavour"], found["unread"]) == ("nft", [])


def test_tables_of_nftables_own_are_read_by_nft(pair):
    pair.right.run("nft add table inet mine")
    pair.right.run("nft add chain inet mine input { type filter hook input priority 0 ; policy drop ; }")
    pair.right.run("iptables-nft -A INPUT -p icmp -j ACCEPT")
    found = pair.places()["right"]
    names = {(i["chain"]["table"], i["chain"]["policy"]) for i in found["nft"]["nftables"] if "chain" in i}
    assert (names, found["unread"]) == ({("mine", "drop")}, [])
    assert rules_from_json(found["rules"]).chains["filter", "INPUT"]
    assert pair.places()["left"]["nft"] is None


def test_tables_of_nftables_own_are_unread_without_nft(pair, monkeypatch):
    pair.right.run("nft add table inet mine")
    pair.right.run("nft add chain inet mine input { type filter hook input priority 0 ; }")
    monkeypatch.setattr("overlaynet.firewall.iptables._which", lambda name: None)
    with entered(pair.right.path):
        found = place.read_rules("")
    wanted = "nftables' own tables (inet mine) could not be read: the program 'nft' is not installed"
    assert (found.nft, found.unread) == (None, (wanted,))


# --- who listens ----------------------------------------------------------------------------------


@contextmanager
def sockets(netns: PrivateNetns) -> Iterator[None]:
    """One of each kind that takes packets, and some that do not."""
    with netns.entered():
        made = {
            name: socket.socket(family, kind)
            for name, family, kind in (
                ("tcp", socket.AF_INET, socket.SOCK_STREAM),
                ("tcp of both", socket.AF_INET6, socket.SOCK_STREAM),
                ("tcp of one", socket.AF_INET6, socket.SOCK_STREAM),
                ("bound", socket.AF_INET, socket.SOCK_STREAM),
                ("udp", socket.AF_INET, socket.SOCK_DGRAM),
                ("connected", socket.AF_INET, socket.SOCK_DGRAM),
                ("mapped", socket.AF_INET6, socket.SOCK_DGRAM),
            )
        }
        made["raw"] = socket.socket(socket.AF_INET, socket.SOCK_RAW, 89)
        made["tcp of one"].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made["tcp"].bind(("10.9.0.2", 81))
        made["tcp of both"].bind(("::", 82))
        made["tcp of one"].bind(("::", 83))
        made["bound"].bind(("10.9.0.2", 84))
        made["udp"].bind(("", 85))
        made["connected"].bind(("10.9.0.2", 86))
        made["connected"].connect(("10.9.0.1", 1))
        made["mapped"].bind(("::ffff:10.9.0.2", 87))
        for name in ("tcp", "tcp of both", "tcp of one"):
            made[name].listen()
    try:
        yield
    finally:
        for sock in made.values():
            sock.close()


WAITING = {
    ("tcp", "10.9.0.2", 81),
    ("tcp", None, 82),
    ("udp", None, 85),
    ("udp", "10.9.0.2", 87),
    ("raw", None, 89),
}


def test_sockets_that_take_packets_from_anybody_are_listed(pair):
    with sockets(pair.right):
        found = pair.places()["right"]["listening"]
    assert {tuple(item.values()) for item in found} == WAITING | {("tcp", "::", 83)}


def test_they_are_listed_without_sock_diag_too(pair, monkeypatch):
    def refuse(protocol: str) -> list[sockdiag.Local]:
        raise KernelError("a look at its sockets", 2)

    monkeypatch.setattr(sockdiag, "listening", refuse)
    with sockets(pair.right), entered(pair.right.path):
        found = {tuple(item.values()) for item in place.listening()}
    assert found == WAITING | {("tcp", None, 83)}  # files do not tell that one from one of both families


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_connection_of_a_packet_is_found_with_what_nat_made_of_it(pair, protocol):
    pair.left.run("ip route add 10.112.0.10 via 10.9.0.2")
    pair.right.run("iptables-nft -t nat -A PREROUTING -d 10.112.0.10 -j DNAT --to-destination 10.9.0.2")
    with listener(pair.right):  # a connect that is refused leaves no entry (nf_conntrack_proto_tcp.c)
        sent = pair.send(protocol, dst="10.112.0.10")
    assert sent["answer"]
    job = {"netns": pair.right.path, "protocol": protocol, "src": "10.9.0.1", "src_port": sent["src_port"]}
    port = 0 if protocol == "icmp" else 8080
    found = pair.ask("connection", **job, dst="10.112.0.10", dst_port=port)
    flow = found["flow"]
    assert (flow["src"], flow["sport"], flow["dst"], flow["reply_src"], flow["reply_dst"]) == (
        "10.9.0.1",
        sent["src_port"],
        "10.112.0.10",
        "10.9.0.2",
        "10.9.0.1",
    )
    assert f"src=10.9.0.1 dst=10.112.0.10 {'type=8 code=0 id' if port == 0 else 'sport'}=" in found["text"]
    assert found["note"] == ""
    other = pair.ask("connection", **job, dst="10.112.0.11", dst_port=port)
    assert (other["flow"], other["text"], other["note"]) == (None, None, "")


# --- streams --------------------------------------------------------------------------------------


def test_stream_tells_of_frames_as_they_pass(pair):
    points = [
        {"place": "left", "netns": pair.left.path, "iface": "eth0"},
        {"place": "right", "netns": pair.right.path, "iface": "eth7"},
    ]
    keep = {"ips": ["10.9.0.2"], "protocol": "icmp"}
    process = start("here", PROBE, {"op": "stream", "points": points, "keep": keep})
    assert process.stdin is not None
    assert process.stdout is not None
    armed = json.loads(process.stdout.readline())
    pair.send("icmp")
    packets: list[dict[str, Any]] = []
    while len(packets) < 2:  # while the probe still listens
        frame = json.loads(process.stdout.readline())
        assert frame["kind"] == "Frame"
        if base64.b64decode(frame["data"])[12:14] == b"\x08\x00":
            packets.append(frame)
    process.stdin.close()
    *_, last = process.stdout.read().splitlines()
    process.stdout.close()
    assert process.wait() == 0
    assert (armed["kind"], [p["error"] for p in armed["points"]]) == ("Armed", [None, "does not exist"])
    assert [(f["point"], f["direction"]) for f in packets] == [(0, "out"), (0, "in")]
    ended = json.loads(last)
    assert ended["kind"] == "Streamed"
    assert [(p["armed"], p["closed"], p["dropped"]) for p in ended["points"]] == [
        (True, True, 0),
        (False, False, None),
    ]
