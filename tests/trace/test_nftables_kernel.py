"""Whether chains of nftables' own let a packet pass is what the kernel does with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from helpers.filter_net import (
    CLIENT,
    CLIENT_IP,
    CLIENT_MAC,
    ROUTER,
    SERVER_IP,
    SERVER_TOO,
    Arrival,
    FilterNet,
    Probe,
    Refusal,
    filter_net,
)
from helpers.filter_path import R1, R2, Router
from helpers.privilege import requires_netns
from helpers.service_net import forget_flows, run

from overlaynet.trace.netfilter import Passage

pytestmark = [
    pytest.mark.kernel,
    requires_netns,
    pytest.mark.skipif(not shutil.which("nft"), reason="nftables is not installed"),
]

EXPRESSIONS = (
    "ct state new", "ct state established,related", "ct state != new", "ct state { new, untracked }",
    "ct state invalid", "ct status dnat", "ct direction original", "ct direction reply", "meta mark 0",
    "meta mark != 0", "meta mark and 0x1 == 0", "tcp dport 80", "tcp dport != 80", "tcp dport { 22, 70-90 }",
    "tcp sport 20000-20003", "tcp dport > 80", "tcp dport >= 80", "udp dport != 80",
    "meta l4proto { tcp, udp } th dport 80", "tcp dport @ports", "ip saddr 10.9.1.2",
    "ip saddr != 10.9.1.0/24", "ip daddr { 10.9.2.2, 10.9.1.0/24 }", "ip daddr @nets",
    "ip daddr 10.9.2.2-10.9.2.3", "ip daddr != { 10.9.2.2 }", "ip6 daddr ::/0", "ip protocol tcp",
    "ip protocol { tcp, udp }", "meta l4proto { tcp, udp } th dport 80", "tcp flags != syn",
    "tcp flags { syn, ack, fin | syn }", "meta l4proto udp", "meta l4proto != udp",
    "meta l4proto { icmp, udp }", "meta nfproto ipv4", "meta nfproto ipv6", "meta protocol ip",
    "icmp type echo-request", "icmp type != echo-request", "icmp type { echo-reply, time-exceeded }",
    "icmp code 0", "tcp flags syn", "tcp flags & (fin|syn) == syn",
    "tcp flags & (fin | syn | rst | ack) == syn", "tcp flags & (syn|fin) == (syn|fin)", "fib daddr type local",
    "fib daddr type != local", "fib saddr type local", "fib daddr type { local, broadcast }",
    "ip saddr . tcp dport { 10.9.1.2 . 80 }", "ip daddr . meta l4proto . th dport { 10.9.2.2 . udp . 53 }",
    "meta length > 60", "ip length 44", "ip ttl < 64", "ip ttl 64",
    "limit rate 5000/second burst 5000 packets", "limit rate over 5000/second burst 5000 packets",
)  # fmt: skip
DEVICES = (
    'iifname "r1"', 'iifname != "r1"', 'iifname "r*"', 'iifname { "lo", "r1" }', 'oifname "r2"', "iif lo",
    'oifname != "r2"', 'oifname "lo"', 'iifname "r1" oifname "r2"', 'oifname { "eth0", "r2" }',
)  # fmt: skip
"""Of devices that a packet does not have as well: of what comes from here `iifname` is empty."""
UNDECIDED = (
    f"ether saddr {CLIENT_MAC}",
    "meta skuid 0",
    "ct count over 100",
    "@th,0,8 1",
    "th dport 80",
    "numgen random mod 2 == 0",
)
VERDICTS = (
    "{} drop",
    "{} reject",
    "{} reject with icmpx admin-prohibited",
    "{} jump away",
    "{} goto away",
    "{} accept\ndrop",
    "{} return\ndrop",
    "{} goto back\ndrop",
    "{} jump back\ndrop",
    "{} counter\ndrop",
)
MAPS = (
    "ct state vmap {{ new : {}, established : accept }}",
    "tcp dport vmap {{ 80 : {}, 81-90 : accept }}",
    "ip daddr vmap @where",
    "ip daddr . meta l4proto . th dport vmap @services",
    'iifname vmap {{ "r1" : {}, "lo" : goto back }}',
    "meta l4proto vmap {{ tcp : jump away, udp : {} }}",
    "tcp flags vmap {{ syn : {}, fin | syn : drop }}",
)
RULESET = """\
table inet tried
delete table inet tried
table inet tried {{
  set ports {{ type inet_service; flags interval; elements = {{ 80, 8000-9000 }} }}
  set nets {{ type ipv4_addr; flags interval; elements = {{ 10.9.2.0/25, 10.9.1.1-10.9.1.7 }} }}
  map where {{ type ipv4_addr : verdict; elements = {{ 10.9.2.2 : drop, 10.9.2.3 : jump back }} }}
  map services {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ 10.9.2.2 . tcp . 80 : goto away, 10.9.2.3 . udp . 53 : accept }}
  }}
  chain back {{
    return
  }}
  chain away {{
    tcp dport 443 return
    drop
  }}
  chain base {{
    type filter hook {hook} priority {priority}; policy {policy};
    meta l4proto 253 accept
    icmp type {{ echo-reply, destination-unreachable }} accept
    tcp flags & rst == rst accept
    {rules}
  }}
}}
"""
HOOKS = {"prerouting": -150, "input": 0, "forward": 0, "output": 0, "postrouting": 0}
PROBES = [
    Probe(CLIENT, CLIENT_IP, SERVER_IP, "tcp", 20_000, 80),
    Probe(CLIENT, CLIENT_IP, SERVER_IP, "udp", 20_001, 53),
    Probe(CLIENT, CLIENT_IP, SERVER_TOO, "icmp", 20_002, 0, padding=12),
    Probe(CLIENT, CLIENT_IP, SERVER_TOO, "tcp", 20_003, 8080, "SF", ttl=20),
    Probe(CLIENT, CLIENT_IP, R1, "udp", 20_005, 80),
    Probe(ROUTER, R2, SERVER_IP, "tcp", 20_008, 443),
    Probe(ROUTER, R1, R1, "icmp", 20_009, 0),
]
DNAT = """\
*nat
-A PREROUTING -d 10.9.2.2/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.9.2.3
COMMIT
"""


@pytest.fixture(scope="module")
def net() -> Iterator[FilterNet]:
    with filter_net("legacy") as made:
        made.load(DNAT)
        yield made


class Result(NamedTuple):
    """What was seen but not predicted, and what could not be decided."""

    wrong: list[str]
    unread: set[str]


def tried(net: FilterNet, hook: str, rules: str, policy: str = "accept") -> Result:
    text = RULESET.format(hook=hook, priority=HOOKS[hook], policy=policy, rules=rules)
    with net.places[ROUTER].entered():
        run(["nft", "-f", "-"], text)
        document = json.loads(run(["nft", "-j", "list", "table", "inet", "tried"]))
    forget_flows(net.places[ROUTER])
    result, iptables = Result([], set()), net.read()
    for probe, seen in zip(PROBES, net.send(PROBES), strict=True):
        ends = Router(iptables, nft=document).ends(probe)
        if not any(_agrees(end, place, seen) for end, place in ends):
            result.wrong.append(f"{hook}: {rules} ({policy}): {probe}: {seen}, not {ends}")
        result.unread.update(sentence for end, _ in ends for sentence in end.unread)
    return result


def _agrees(end: Passage, place: str, seen: Arrival | Refusal | None) -> bool:
    if isinstance(seen, Arrival):
        return end.verdict == "accept" and (seen.place, seen.dst) == (place, end.packet.dst)
    how = {"icmp-port-unreachable": 3, "icmp-admin-prohibited": 13}.get(end.reject_with)
    return (end.verdict, how) == (("reject", seen.how) if seen else ("drop", None))


@pytest.mark.parametrize("hook", HOOKS)
def test_conditions_hold_where_the_kernel_says_so(net: FilterNet, hook: str):
    for expression in (*EXPRESSIONS, *DEVICES):
        assert tried(net, hook, f"{expression} drop") == ([], set())


def test_conditions_that_accept_hold_where_the_kernel_says_so(net: FilterNet):
    for expression in (*EXPRESSIONS, *DEVICES):
        assert tried(net, "forward", f"{expression} accept", "drop") == ([], set())


@pytest.mark.parametrize("verdict", VERDICTS)
def test_verdicts_lead_where_the_kernel_goes(net: FilterNet, verdict: str):
    for expression in ("tcp dport 80", "udp dport 53", "tcp dport 443", ""):
        for policy in ("accept", "drop"):
            assert tried(net, "forward", verdict.format(expression), policy) == ([], set())
            assert tried(net, "input", verdict.format(expression), policy) == ([], set())


@pytest.mark.parametrize("text", MAPS)
def test_maps_lead_where_the_kernel_goes(net: FilterNet, text: str):
    for verdict in ("drop", "jump away", "goto away", "jump back", "goto back", "accept", "return", "continue"):
        for hook in ("forward", "output"):
            assert tried(net, hook, text.format(verdict)) == ([], set())
            assert tried(net, hook, text.format(verdict), "drop") == ([], set())


@pytest.mark.parametrize("expression", UNDECIDED)
def test_what_cannot_be_decided_is_told_with_table_chain_and_rule(net: FilterNet, expression: str):
    result = tried(net, "forward", f"{expression} drop")
    assert not result.wrong
    assert len(result.unread) == 1
    assert result.unread.pop().startswith("nft inet tried base rule 4: whether ")


def test_what_does_not_matter_is_not_told(net: FilterNet):
    assert tried(net, "forward", f"{UNDECIDED[0]} accept") == ([], set())
    assert tried(net, "forward", f"{UNDECIDED[0]} jump away\ndrop", "accept").wrong == []
