"""How does a service choose, and can it remember?

Two addresses lead to the same three servers. The rules of one are written by hand, and wrong: each of three
takes a third. The other is a service that the learner makes remember its callers. Then the check has the server
that was chosen leave the service while a connection to it is open.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from math import comb

from overlaynet.lessons import Board, Lesson, Prediction, Stage
from overlaynet.proof import Match, Packets, tcp

BY_HAND, SHOP = "10.112.0.20", "10.112.0.30"
CHAIN = "BY-HAND"
SERVERS = ("web-1", "web-2", "web-3")
PORT = 80
FEW, MANY = 60, 1500
"""Of a chain that loses 8 calls of 27, a few calls are all answered once in a billion times. A share of 2/9 is
taken for one of 1/3 once in 300 000 times, of many calls; of 200 calls, nearly always."""
ODDS = 10**6
"""A fair chain is called unfair once in so many checks."""

CALLS = """
import socket, sys
for n in range(int(sys.argv[2])):
    try:
        socket.create_connection((sys.argv[1], 80), timeout=0.8).close()
    except OSError as error:
        print(f"call {n + 1}: {error}")
        break
"""
LEAVES = """
import http.client, json, sys, time

def get(connection, path="/"):
    connection.request("GET", path)
    return connection.getresponse().read().decode().strip()

def new(address, path="/"):
    return get(http.client.HTTPConnection(address, timeout=2), path)

service, servers = sys.argv[1], json.loads(sys.argv[2])
old = http.client.HTTPConnection(service, timeout=2)
first = get(old)
new(servers[first], "/leave")
try:
    deadline = time.monotonic() + 10
    while (other := new(service)) == first and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        again = get(old)
    except OSError:
        again = "nobody"
finally:
    new(servers[first], "/join")
print(json.dumps([first, other, again, old.sock.getsockname()[1]]))
"""
_DNAT = re.compile(r"^\[(\d+):\d+\] -A .* -j DNAT --to-destination ([\d.]+)", re.MULTILINE)
_CHOSEN = re.compile(r"^-A OVL-SEP-.* -j DNAT ", re.MULTILINE)
_SECOND = re.compile(r"--probability ([\d.]+)")


def start(stage: Stage) -> None:
    def iptables(*words: str) -> None:
        stage.run("node-1", "iptables", "-w", "-t", "nat", *words)

    stage.until_served("node-1", *SERVERS)
    iptables("-N", CHAIN)
    for server in SERVERS:
        third = ["-m", "statistic", "--mode", "random", "--probability", "0.33333"]
        to = f"{stage.net.address_of(server)}:{PORT}"
        iptables("-A", CHAIN, "-p", "tcp", *third, "-j", "DNAT", "--to-destination", to)
    iptables("-A", "PREROUTING", "-d", BY_HAND, "-p", "tcp", "--dport", str(PORT), "-j", CHAIN)


def check(stage: Stage, board: Board) -> None:
    with board.claim(f"all of {FEW} calls to {BY_HAND} are answered"):
        with stage.net.capture(["red", "node-1:cni0", *SERVERS], f"tcp port {PORT} and src red") as packets:
            failed = _call(stage, BY_HAND, FEW)
        last = packets.at("red:eth0").expect(tcp(flags="S"))[-1]
        packets.follow(last).require(failed or "each comes to a server", not failed)
    low, high = fair(MANY, len(SERVERS), ODDS)
    with board.claim(f"of {MANY} calls each server gets {low} to {high}"):
        taken = _taken(stage, BY_HAND, MANY)
        told = ", ".join(f"{server} {taken[server]}" for server in SERVERS)
        assert all(low <= taken[server] <= high for server in SERVERS), (
            f"{told}; a fair choice is outside of these bounds once in {ODDS} checks"
        )
    with board.claim("the chain's second rule has a probability"):
        rules = stage.run("node-1", "iptables", "-w", "-t", "nat", "-S", CHAIN).splitlines()[1:]
        second = _SECOND.search(rules[1] if len(rules) > 1 else "")
        assert second, "\n".join(rules)
    board.measured(
        "second",
        theory=100 // (len(SERVERS) - 1),
        captured=round(100 * float(second[1])),
        because="it is asked only about the calls that the first rule left over, and two servers share these",
    )
    with board.claim("shop remembers: 20 calls of red's come to one server"):
        with stage.net.capture(["red", *SERVERS], f"tcp dst port {PORT} and src red") as packets:
            failed = _call(stage, SHOP, 20)
        assert not failed, failed
        met = _met(packets, tcp(dst=SHOP, flags="S"))
        assert len(met) == 1, ", ".join(f"{server} {met[server]}" for server in SERVERS)
    board.measured(
        "answering",
        theory=1,
        captured=len(met),
        because="the first choice is kept, by the caller's address, and looked up before chance decides",
    )
    _leave(stage, board)


def _leave(stage: Stage, board: Board) -> None:
    """What becomes of an open connection, and of a new one, when the chosen server leaves the service."""
    addresses = {server: str(stage.net.address_of(server)) for server in SERVERS}
    with board.claim("a server leaves shop while red's connection to it is open"):
        with stage.net.capture(["red", *SERVERS], f"tcp port {PORT}") as packets:
            said = stage.run("red", sys.executable, "-c", LEAVES, SHOP, json.dumps(addresses))
        stage.until(lambda: _served(stage) == len(SERVERS), "shop leads to each of its servers again")
        first, other, again, port = json.loads(said)
        assert other != first, f"{first} is not ready, and still gets new connections after 10 s"
        met = _met(packets, tcp(dst=SHOP, sport=port))
        assert first in met, f"{first} has answered, and the connection led to {', '.join(met)}"
    board.measured(
        "open",
        theory="same",
        captured=_who(again if met.keys() == {first} else other, first),
        because="its entry in conntrack says where it leads; no rule is asked about it any more",
    )
    board.measured(
        "new",
        theory="another",
        captured=_who(other, first),
        because="who is remembered must be there: the rules of a server that left went with it",
    )


def _met(packets: Packets, wanted: Match) -> Counter[str]:
    """How many of the packets that red sent so each server got. It need not see red's port: conntrack gives a
    connection another one where an earlier one to the same server, by the other address, had the same."""
    ways = map(packets.follow, packets.at("red:eth0").outgoing.expect(wanted))
    return Counter(place for way in ways for place in {packet.point.place for packet in way} - {"red"})


def _served(stage: Stage) -> int:
    """How many servers the rules of shop lead to."""
    return len(_CHOSEN.findall(stage.run("node-1", "iptables-save", "-t", "nat")))


def fair(calls: int, servers: int, odds: int) -> tuple[int, int]:
    """The least and the most calls that one of several servers gets, if each call's choice is fair: any of them
    is outside of it at most once in so many times (the tails of the binomial distribution, summed exactly)."""
    weights = [comb(calls, k) * (servers - 1) ** (calls - k) for k in range(calls + 1)]
    allowed = servers**calls // (2 * servers * odds)
    return _tail(weights, allowed), calls - _tail(weights[::-1], allowed)


def _tail(weights: list[int], allowed: int) -> int:
    """How many of the first weights together are no more than is allowed."""
    total = 0
    for k, weight in enumerate(weights):
        total += weight
        if total > allowed:
            return k
    raise AssertionError("all of it is allowed")


def _call(stage: Stage, address: str, count: int) -> str:
    """Connections from red, one after another, to the first that fails; what was said of it, or nothing."""
    return stage.run("red", sys.executable, "-c", CALLS, address, str(count)).strip()


def _taken(stage: Stage, address: str, count: int) -> Counter[str]:
    """How many calls each server gets, by the counters of the rules that lead there: these grow by one with
    each connection, as lesson 6 shows. AssertionError for a call that is not answered."""
    names = {str(stage.net.address_of(server)): server for server in SERVERS}
    before = _DNAT.findall(stage.run("node-1", "iptables-save", "-c", "-t", "nat"))
    failed = _call(stage, address, count)
    assert not failed, failed
    after = _DNAT.findall(stage.run("node-1", "iptables-save", "-c", "-t", "nat"))
    taken: Counter[str] = Counter()
    for sign, counters in ((1, after), (-1, before)):
        for packets, server in counters:
            taken[names.get(server, server)] += sign * int(packets)
    return taken


def _who(name: str, first: str) -> str:
    return {first: "same", "nobody": "nobody"}.get(name, "another")


WHO = ("same", "another", "nobody")
LESSON = Lesson(
    question="How does a service choose, and can it remember?",
    predictions=(
        Prediction("second", "Three servers, equal shares: how many percent is the second rule's probability?"),
        Prediction("answering", "shop remembers red, who calls it 20 times. How many servers answer?"),
        Prediction(
            "open", "That server leaves shop. Who answers red on a connection that is open?", "word", WHO
        ),
        Prediction("new", "And who answers red's next new connection?", "word", WHO),
    ),
    hints=(
        "A rule of the chain is asked only about calls that all rules before it left over. Of 27 calls, how "
        "many does the first take, how many of the rest the second, and then the third? And what "
        "`overlaynet describe svc/shop` calls affinity is a field of the Service.",
        "shop has three servers, too: compare `overlaynet exec node-1 -- iptables -t nat -S BY-HAND` with the "
        "rules in `overlaynet describe svc/shop --host node-1`. The field is sessionAffinity; docs/services.md "
        "has a Service with it. `overlaynet apply` writes a Service as a whole.",
        "iptables -t nat -R BY-HAND 2 (and 3) with the same words, but a probability of 0.5, and none at all "
        "in the last. Then `overlaynet apply -f FILE` with shop as it is in labs/07-balancing/lab.yaml, and "
        "`sessionAffinity: ClientIP` in its spec.",
    ),
    start=start,
    check=check,
    minutes=20,
    memory_mb=90,
    disk_mb=130,
)
