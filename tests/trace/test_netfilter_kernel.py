"""What is predicted of packets is what the kernel does with them, whatever the rules.

Rules are made at random, given to the kernel, and read back as any host's rules are. Then packets are sent, and
for each the kernel may only do what one of the predicted passages says, down to addresses, ports and TTL; where
there is one passage, also exactly the rules count the packet that are said to be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from helpers.filter_net import (
    CLIENT,
    CLIENT_IP,
    CLIENT_MAC,
    GUARDS,
    ROUTER,
    SERVER,
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlaynet.state import RuleSet
from overlaynet.trace.netfilter import Passage
from overlaynet.trace.rulewords import parse

pytestmark = [pytest.mark.kernel, requires_netns]

TARGET_IPS = (SERVER_IP, SERVER_TOO, R1, R2)
PORTS = (80, 443, 8080)

# --- rules ----------------------------------------------------------------------------------------

NETWORKS = ("10.9.1.2/32", "10.9.2.2/32", "10.9.2.0/24", "10.9.0.0/16", "10.9.1.1/32", "10.0.0.2/255.0.0.255")
DEVICES = ("r1", "r2", "lo", "r+", "eth0")
"""Without ``+`` alone: iptables-legacy-save shows ``! -i +``, which never holds, as a rule without ``-i``."""
STATES = (
    "NEW",
    "ESTABLISHED",
    "INVALID",
    "UNTRACKED",
    "RELATED",
    "DNAT",
    "SNAT",
    "NEW,DNAT",
    "INVALID,UNTRACKED",
)


def maybe_not(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(["", "", "! "]), text).map("".join)


def one_of(option: str, values: Sequence[object]) -> st.SearchStrategy[str]:
    return maybe_not(st.sampled_from(values).map(lambda value: f"{option} {value}"))


def match(module: str, *options: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.just(f"-m {module}"), *options).map(" ".join)


PORT_RANGES = ("80", "443", "80:443", "20000:20007", "0:1023", "8080:65535")
LISTS = ("80,8080", "443,1000:9000", "20000:20003,80")
HEADERS = st.one_of(
    one_of("-p", ["tcp", "udp", "icmp", "gre"]),
    st.tuples(
        st.sampled_from(["-p tcp -m tcp", "-p udp -m udp"]),
        st.one_of(one_of("--dport", PORT_RANGES), one_of("--sport", PORT_RANGES)),
    ).map(" ".join),
    st.tuples(
        st.sampled_from(["-p tcp", "-p udp"]),
        match(
            "multiport", st.one_of(*(one_of(option, LISTS) for option in ("--sports", "--dports", "--ports")))
        ),
    ).map(" ".join),
    match("icmp", one_of("--icmp-type", ["8", "0", "8/0", "8/1", "any"])).map("-p icmp {}".format),
    match("tcp", one_of("--tcp-flags", ["SYN,RST,ACK,FIN SYN", "ALL NONE", "SYN,FIN FIN"])).map(
        "-p tcp {}".format
    ),
    match("tcp", st.just("--syn")).map("-p tcp {}".format),
)
CONNTRACK = st.lists(
    st.one_of(
        one_of("--ctstate", STATES),
        one_of("--ctstatus", ["SEEN_REPLY", "ASSURED", "NONE", "CONFIRMED"]),
        st.sampled_from(["--ctdir ORIGINAL", "--ctdir REPLY"]),
        one_of("--ctproto", ["tcp", "udp"]),
        one_of("--ctorigdst", NETWORKS[:4]),
        one_of("--ctorigsrc", NETWORKS[:4]),
        one_of("--ctorigdstport", ["80", "443", "80:443"]),
        one_of("--ctreplsrc", NETWORKS[:4]),
        one_of("--ctrepldst", NETWORKS[:4]),
        one_of("--ctreplsrcport", ["80", "80:443"]),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda option: option.removeprefix("! ").split()[0],
).map(lambda options: "-m conntrack " + " ".join(options))
TYPES = ("LOCAL", "UNICAST", "BROADCAST", "MULTICAST", "LOCAL,BROADCAST")
OTHERS = st.one_of(
    match("mark", one_of("--mark", ["0x0", "0x1", "0x1/0x1", "0x4/0xc"])),
    match("connmark", one_of("--mark", ["0x0", "0x1", "0x2/0x3"])),
    CONNTRACK,
    CONNTRACK,
    CONNTRACK,
    match("state", one_of("--state", ["NEW", "INVALID", "ESTABLISHED,RELATED", "UNTRACKED"])),
    match("addrtype", st.one_of(one_of("--src-type", TYPES), one_of("--dst-type", TYPES))),
    match("statistic", st.just("--mode random"), one_of("--probability", ["0", "0.5", "1"])),
    match("statistic", st.just("--mode nth"), one_of("--every", ["1", "2"]), st.just("--packet 0")),
    match("length", one_of("--length", ["0:60", "33", "100:65535"])),
    match("ttl", st.one_of(one_of("--ttl-eq", ["64", "63"]), st.sampled_from(["--ttl-lt 64", "--ttl-gt 63"]))),
    match(
        "iprange", one_of("--src-range", ["10.9.1.2-10.9.1.9"]), one_of("--dst-range", ["10.9.2.2-10.9.2.3"])
    ),
    match("recent", st.sampled_from(["--name x --set", "--name x --rcheck"])),
    match("limit", st.just("--limit 5000/second --limit-burst 5000")),
    match(
        "hashlimit",
        st.just("--hashlimit-above 5000/second --hashlimit-burst 5000 --hashlimit-name"),
        st.uuids().map(lambda u: u.hex[:12]),
    ),
    match("physdev", st.sampled_from(["--physdev-is-in", "! --physdev-is-bridged", "! --physdev-in r1"])),
    match("pkttype", one_of("--pkt-type", ["unicast", "broadcast"])),
    match("u32", st.sampled_from(['--u32 "0x6&0xff=0x6"', '--u32 "0x6&0xff=0x11"'])),
    match("comment", st.sampled_from(["--comment -j", '--comment "! -s \\"x\\" -j DROP"'])),
)
ADDRESSED = st.lists(
    st.one_of(one_of("-s", NETWORKS), one_of("-d", NETWORKS)),
    max_size=1,
)
OURS = {"raw": ("RA", "RB"), "mangle": ("MA", "MB"), "nat": ("NA", "NB"), "filter": ("FA", "FB")}
"""Chains that rules lead into: of the first also to the second."""
EVERYWHERE = ("-j ACCEPT", "-j RETURN", "-j NFLOG", "")
MARKS = tuple(f"-j MARK --set-xmark {mark}" for mark in ("0x1/0xffffffff", "0x1/0x1", "0x4/0xc", "0x3/0x0"))
CONNMARKS = ("-j CONNMARK --save-mark", "-j CONNMARK --restore-mark", "-j CONNMARK --set-xmark 0x2/0x3")
REJECTS = (
    "-j REJECT --reject-with icmp-admin-prohibited",
    "-j REJECT",
    "-p tcp -j REJECT --reject-with tcp-reset",
)
TARGETS = {
    "raw": (*EVERYWHERE, "-j DROP", "-j CT --notrack", "-j NOTRACK", *MARKS),
    "mangle": (*EVERYWHERE, "-j DROP", *MARKS, *CONNMARKS, "-j TTL --ttl-set 40", "-j TTL --ttl-dec 2"),
    "filter": (*EVERYWHERE, "-j DROP", *REJECTS, *MARKS),
}
DNATS = (
    "-p tcp -j DNAT --to-destination 10.9.2.2:8080",
    "-p udp -j DNAT --to-destination 10.9.2.3:400-450",
    "-p udp -j DNAT --to-destination :443",
    "-p tcp -j DNAT --to-destination 10.9.2.2-10.9.2.3:70-90",
    "-p tcp -j DNAT --to-destination 10.9.2.2:8000-8002 --random",
    "-p tcp -m tcp --dport 80:443 -j DNAT --to-destination 10.9.2.2:1000-1010/80",
    "-j DNAT --to-destination 10.9.2.2",
    "-j DNAT --to-destination 10.9.1.1",
    "-j REDIRECT",
    "-p tcp -j REDIRECT --to-ports 8080",
    *EVERYWHERE,
    *MARKS,
)
SNATS = (
    "-j SNAT --to-source 10.9.2.1",
    "-j SNAT --to-source 10.9.1.5-10.9.1.6",
    "-p tcp -j SNAT --to-source :1000-2000",
    *EVERYWHERE,
)
MASQUERADES = (*SNATS, "-j MASQUERADE", "-j MASQUERADE --random-fully")
NAT = {
    "PREROUTING": (*DNATS, "-j NA", "-g NA"),
    "OUTPUT": (*DNATS, "-j NA"),
    "NA": DNATS,
    "INPUT": SNATS,
    "POSTROUTING": (*MASQUERADES, "-j NB", "-g NB"),
    "NB": MASQUERADES,
}
HOOKS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
FOLLOWS = "-m conntrack --ctstate NEW"
"""The kernel follows connections, and asks nat, as soon as one rule asks for them."""


def _devices(chain: str) -> st.SearchStrategy[str]:
    """iptables refuses to ask for what a hook does not have, in the hook's own chain."""
    by_in, by_out = one_of("-i", DEVICES), one_of("-o", DEVICES)
    if chain in ("PREROUTING", "INPUT"):
        return by_in
    return by_out if chain in ("OUTPUT", "POSTROUTING") else st.one_of(by_in, by_out)


def _specials(table: str, chain: str) -> st.SearchStrategy[str]:
    """What is allowed at certain hooks only."""
    found = []
    if chain in ("PREROUTING", "INPUT", "FORWARD"):
        found += [match("mac", one_of("--mac-source", [CLIENT_MAC, "02:00:00:00:00:01"]))]
    if chain in ("PREROUTING", "INPUT"):
        found += [match("addrtype", one_of("--dst-type", ["LOCAL", "UNICAST"]), st.just("--limit-iface-in"))]
    if chain in ("OUTPUT", "POSTROUTING"):
        found += [match("addrtype", one_of("--src-type", ["LOCAL", "UNICAST"]), st.just("--limit-iface-out"))]
        found += [match("owner", one_of("--uid-owner", ["0", "77"]))]
    if table in ("raw", "mangle") and chain == "PREROUTING":
        found += [match("rpfilter", st.sampled_from(["", "--loose", "--invert", "--accept-local --invert"]))]
    return st.one_of(*found) if found else st.just("")


@st.composite
def rules(draw: st.DrawFn, table: str, chain: str) -> str:
    kinds = st.sampled_from(["headers", "device", "other", "other", "special"])
    chosen = draw(st.lists(kinds, max_size=2, unique=True))
    words = draw(ADDRESSED)
    words += [draw(_devices(chain))] if "device" in chosen else []
    target = draw(st.sampled_from(_targets(table, chain)))
    if "headers" in chosen and not target.startswith("-p"):
        words.append(draw(HEADERS))
    words += [draw(OTHERS)] if "other" in chosen else []
    words += [draw(_specials(table, chain))] if "special" in chosen else []
    return " ".join([*words, target])


def _targets(table: str, chain: str) -> tuple[str, ...]:
    if table == "nat":
        return NAT[chain]
    first, second = OURS[table]
    more = {first: (f"-j {second}", f"-g {second}"), second: ()}.get(chain)
    return TARGETS[table] + ((f"-j {first}", f"-g {first}", f"-j {second}") if more is None else more)


@st.composite
def rulesets(draw: st.DrawFn) -> str:
    """Input of iptables-restore: each table with a few rules, most of which let the packet go on."""
    return "".join(draw(_table(table)) for table in HOOKS)


@st.composite
def _table(draw: st.DrawFn, table: str) -> str:
    policies = ["ACCEPT"] if table == "nat" else ["ACCEPT"] * 14 + ["DROP"]
    chains = [f":{chain} {draw(st.sampled_from(policies))} [0:0]" for chain in HOOKS[table]]
    texts = [
        f"-A {chain} {text}"
        for chain in (*HOOKS[table], *OURS[table])
        for text in draw(st.lists(rules(table, chain), max_size=3))
    ]
    return table_of(table, chains, texts)


def table_of(table: str, chains: Sequence[str], texts: Sequence[str]) -> str:
    lines = [f"*{table}", *chains, *(f":{chain} - [0:0]" for chain in OURS[table])]
    lines += [f"-A {hook} {guard}" for hook in HOOKS[table] for guard in GUARDS]
    lines += [f"-A FORWARD {FOLLOWS}"] if table == "filter" else []
    return "\n".join([*lines, *texts, "COMMIT", ""])


# --- packets --------------------------------------------------------------------------------------


@st.composite
def probes(draw: st.DrawFn) -> list[Probe]:
    return [draw(_probe(20_000 + number)) for number in range(8)]


def _probe(port: int) -> st.SearchStrategy[Probe]:
    from_client = st.tuples(st.just(CLIENT), st.just(CLIENT_IP), st.sampled_from(TARGET_IPS))
    to_server = st.tuples(st.just(ROUTER), st.just(R2), st.sampled_from([SERVER_IP, SERVER_TOO]))
    to_itself = st.sampled_from([(ROUTER, R1, R1), (ROUTER, R2, R2)])
    return st.builds(
        lambda ends, *more: Probe(*ends, *more),
        st.one_of(from_client, from_client, to_server, to_itself),
        st.sampled_from(["tcp", "udp", "icmp"]),
        st.just(port),
        st.sampled_from(PORTS),
        st.sampled_from(["S", "S", "S", "A", "SF", ""]),
        st.sampled_from([64, 64, 20]),
        st.sampled_from([0, 1, 80]),
    )


# --- the comparison -------------------------------------------------------------------------------

CODES = {"icmp-port-unreachable": 3, "icmp-admin-prohibited": 13, "tcp-reset": "reset"}


def agrees(passage: Passage, place: str, probe: Probe, seen: Arrival | Refusal | None) -> bool:
    """Whether the kernel did what a passage says."""
    if passage.verdict == "drop":
        return seen is None
    if passage.verdict == "reject":
        return seen == Refusal(probe.sender, CODES[passage.reject_with])
    packet = passage.packet
    return (
        isinstance(seen, Arrival)
        and (seen.place, seen.src, seen.dst, seen.dst_port) == (place, packet.src, packet.dst, packet.dst_port)
        and packet.src_port in (None, seen.src_port)
        and seen.ttl == packet.ttl
    )


def answer(end: Passage, seen: Arrival | Refusal | None) -> Probe | None:
    """The server's to what it got over TCP or UDP, as a connection that is followed."""
    if not isinstance(seen, Arrival) or seen.place != SERVER or end.packet.state != "NEW":
        return None
    if seen.src_port is None or seen.dst_port is None or end.packet.tcp_flags == "A":
        return None
    flags = "SA" if end.packet.protocol == "tcp" else ""
    return Probe(SERVER, seen.dst, seen.src, end.packet.protocol, seen.dst_port, seen.src_port, flags)


@pytest.fixture(scope="module", params=["legacy", "nft"])
def net(request: pytest.FixtureRequest) -> Iterator[FilterNet]:
    with filter_net(request.param) as made:
        yield made


SCENARIOS = {
    "goto": """
        filter FORWARD -j FA
        filter FORWARD -j REJECT
        filter FA -p tcp -g FB
        filter FA -j DROP
        filter FB -p tcp -m tcp --dport 443 -j ACCEPT
    """,
    "goto-from-a-hook": "filter FORWARD -g FA\nfilter FORWARD -j DROP\nfilter FA -p udp -j REJECT",
    "return": """
        filter FORWARD -j FA
        filter FORWARD -p tcp -j RETURN
        filter FORWARD -j DROP
        filter FA -p udp -m udp --dport 80 -j RETURN
        filter FA -p udp -j REJECT
    """,
    "marks": """
        mangle PREROUTING -j MARK --set-xmark 0x5/0xffffffff
        mangle PREROUTING -j MARK --set-xmark 0x6/0x3
        mangle PREROUTING -j MARK --set-xmark 0x9/0x0
        filter FORWARD -m mark ! --mark 0xb -j DROP
        filter INPUT -m mark --mark 0xb -j REJECT
    """,
    "order-of-tables-where-packets-leave": """
        nat OUTPUT -j DNAT --to-destination 10.9.2.3
        raw OUTPUT -d 10.9.2.3/32 -p tcp -j DROP
        mangle OUTPUT -d 10.9.2.3/32 -p udp -j DROP
        mangle OUTPUT -d 10.9.2.2/32 -p udp -j MARK --set-xmark 0x1/0x1
        filter OUTPUT -d 10.9.2.2/32 -j DROP
        filter OUTPUT -m mark --mark 0x1 -j REJECT
    """,
    "order-of-tables-where-packets-come-in": """
        nat PREROUTING -j DNAT --to-destination 10.9.2.3
        mangle PREROUTING -d 10.9.2.3/32 -j DROP
        mangle FORWARD -d 10.9.2.2/32 -j DROP
        filter FORWARD -d 10.9.2.3/32 -p udp -j REJECT
    """,
    "source-is-translated-last": """
        nat POSTROUTING -j MASQUERADE
        mangle POSTROUTING -s 10.9.2.1/32 -p tcp -m tcp --dport 443 -j DROP
        mangle POSTROUTING -s 10.9.1.2/32 -p udp -j DROP
    """,
    "notrack": """
        raw PREROUTING -i lo -j CT --notrack
        raw PREROUTING -p udp -j NOTRACK
        nat PREROUTING -j DNAT --to-destination 10.9.2.3
        filter INPUT -i lo -m conntrack --ctstate UNTRACKED -j DROP
    """,
    "sources-in-a-range": """
        nat POSTROUTING -p udp -j SNAT --to-source 10.9.1.1-10.9.1.3
        nat POSTROUTING -p tcp -j SNAT --to-source 10.9.1.2-10.9.1.2:1000-1999
        nat POSTROUTING -j SNAT --to-source 10.9.2.5
    """,
    "ports-in-a-range": """
        nat PREROUTING -p tcp -j DNAT --to-destination 10.9.2.3:80-443
        nat PREROUTING -p udp -j DNAT --to-destination :400-450
        nat OUTPUT -p udp -j DNAT --to-destination 10.9.2.3:1000-2000
        nat OUTPUT -p tcp -m tcp --dport 80:443 -j DNAT --to-destination 10.9.2.3:1000-1010/80
    """,
    "redirect": """
        nat PREROUTING -p tcp -j REDIRECT --to-ports 8080
        nat PREROUTING -j REDIRECT
        nat OUTPUT -j REDIRECT
    """,
    "source-of-what-arrives": "nat INPUT -j SNAT --to-source 10.9.1.77\nfilter INPUT -s 10.9.1.77/32 -j DROP",
    "translated-to-the-same": """
        nat PREROUTING -p tcp -j DNAT --to-destination 10.9.2.2:80
        filter FORWARD -m conntrack ! --ctstate DNAT -j REJECT
    """,
}  # fmt: skip
EVERY = [
    Probe(sender, src, dst, protocol, 20_000 + number, port)
    for number, (sender, src, dst, protocol, port) in enumerate(
        (sender, src, dst, protocol, port)
        for sender, src, dst in (
            (CLIENT, CLIENT_IP, SERVER_IP),
            (CLIENT, CLIENT_IP, R1),
            (ROUTER, R2, SERVER_IP),
            (ROUTER, R1, R1),
        )
        for protocol, port in (("tcp", 80), ("tcp", 443), ("udp", 80), ("udp", 443), ("icmp", 0))
    )
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_kernel_does_what_is_meant(net: FilterNet, scenario: str):
    rules: dict[str, list[str]] = {table: [] for table in HOOKS}
    for line in filter(None, map(str.strip, SCENARIOS[scenario].splitlines())):
        table, _, rule = line.partition(" ")
        rules[table].append(f"-A {rule}")
    compare(net, "".join(table_of(table, [], texts) for table, texts in rules.items()), EVERY)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    report_multiple_bugs=False,
)
@given(text=rulesets(), sent=probes())
def test_kernel_does_what_is_predicted(net: FilterNet, text: str, sent: list[Probe]):
    compare(net, text, sent)


def compare(net: FilterNet, text: str, sent: list[Probe]) -> None:
    net.load(text)
    before = net.read()
    ways = [Router(before).ends(probe) for probe in sent]
    seen = net.send(sent)
    _assert_all_agree(before, sent, ways, seen)
    certain = [ends[0][0] for ends in ways if len(ends) == 1]
    if len(certain) == len(ways):
        _assert_counted(before, net.read(), certain)
    alone = [(ends[0][0], what) for ends, what in zip(ways, seen, strict=True) if len(ends) == 1]
    answered = [(end, probe) for end, what in alone if (probe := answer(end, what)) is not None]
    back = [Router(before).ends_of_answer(probe, end) for end, probe in answered]
    answers = [probe for _, probe in answered]
    _assert_all_agree(before, answers, back, net.send(answers))


def _assert_all_agree(
    rules: RuleSet,
    sent: Sequence[Probe],
    ways: Sequence[Sequence[tuple[Passage, str]]],
    seen: Sequence[Arrival | Refusal | None],
) -> None:
    for probe, ends, what in zip(sent, ways, seen, strict=True):
        agree = any(agrees(passage, place, probe, what) for passage, place in ends)
        assert agree, "\n".join([f"{probe}: {what}, not", *map(str, ends), *_interesting(rules)])


def _interesting(rules: RuleSet) -> Iterator[str]:
    for (table, chain), lines in rules.chains.items():
        for position, line in enumerate(lines, 1):
            if line.text not in GUARDS:
                yield f"{table} {chain} {position} {line.text}"


DOUBTFUL = ("owner", "u32", "statistic", "recent")
ENDS = ("DROP", "REJECT", "DNAT", "REDIRECT", "SNAT", "MASQUERADE")


def _assert_counted(before: RuleSet, after: RuleSet, passed: Sequence[Passage]) -> None:
    """Jumps count those too that came back from where they led without anything happening to them, and a rule
    of which it cannot be told is not said to be used where it does not matter."""
    said = Counter((used.table, used.chain, used.position) for passage in passed for used in passage.used)
    for (table, chain), lines in before.chains.items():
        for position, (old, new) in enumerate(zip(lines, after.chains[table, chain], strict=True), 1):
            grew, expected = new.packets - old.packets, said[table, chain, position]
            rule = parse(old.text)
            exactly = rule.target in ENDS and not any(match.module in DOUBTFUL for match in rule.matches)
            agree = grew == expected if exactly else grew >= expected
            assert agree, f"{table} {chain} {position}: {grew} of {expected} by {old.text}"
