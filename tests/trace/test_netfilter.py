"""A packet through one hook: verdicts, changes, the rules that are used, and what is open or not understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from helpers.firewall_cases import CASES, HOST_IP
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.state import Address, RuleLine, RuleSet
from overlaynet.trace.netfilter import MOST_WAYS, Packet, Passage, Used, traverse
from overlaynet.trace.packet import Ends

pytestmark = pytest.mark.unit

A, B, HOST = (ip_address(text) for text in ("10.244.1.2", "10.244.2.2", "192.168.50.11"))
SYN = Packet(A, B, "tcp", 40_000, 80, in_dev="cni0", out_dev="flannel.1", length=60, ttl=63)
ADDRESSES = (
    Address("lo", ip_interface("127.0.0.1/8")),
    Address("cni0", ip_interface("10.244.1.1/24")),
    Address("eth0", ip_interface("192.168.50.11/24")),
)
OWN = tuple(address.interface.ip for address in ADDRESSES)


PASSED = Passage("accept", SYN, policy="filter FORWARD ACCEPT")


def ruleset(text: str, flavour: str = "nft", **policies: str) -> RuleSet:
    """Lines of ``TABLE CHAIN RULE``; a policy as ``filter_FORWARD="DROP"``."""
    chains: dict[tuple[str, str], list[RuleLine]] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        table, chain, rule = (*line.split(" ", 2), "")[:3]
        chains.setdefault((table, chain), []).append(RuleLine(rule, number))
    named = {(key.split("_")[0], key.split("_")[1]): policy for key, policy in policies.items()}
    for key in named:
        chains.setdefault(key, [])
    return RuleSet(flavour, {key: tuple(lines) for key, lines in chains.items()}, named)


def through(text: str, hook: str = "FORWARD", packet: Packet = SYN, **policies: str) -> tuple[Passage, ...]:
    return traverse(ruleset(text, **policies), hook, packet, OWN, addresses=ADDRESSES)


def only(text: str, hook: str = "FORWARD", packet: Packet = SYN, **policies: str) -> Passage:
    (passage,) = through(text, hook, packet, **policies)
    return passage


# --- verdicts, chains, and what was used --------------------------------------------------------------


def test_no_rules_let_everything_through():
    assert only("") == Passage("accept", SYN)


def test_policy_decides_where_no_rule_does():
    assert only("", filter_FORWARD="DROP") == Passage("drop", SYN, policy="filter FORWARD DROP")
    assert only("", filter_FORWARD="ACCEPT") == Passage("accept", SYN, policy="filter FORWARD ACCEPT")
    assert only("", mangle_FORWARD="DROP").policy == "mangle FORWARD DROP"


def test_accept_ends_one_table_and_drop_all():
    passage = only(
        """
        mangle FORWARD -j ACCEPT
        mangle FORWARD -j DROP
        filter FORWARD -i cni0 -j DROP
        security FORWARD -j ACCEPT
        """
    )
    assert passage.verdict == "drop"
    assert passage.used == (
        Used("mangle", "FORWARD", 1, "-j ACCEPT", 0),
        Used("filter", "FORWARD", 1, "-i cni0 -j DROP", 2),
    )
    assert passage.policy is None


def test_reject_tells_how():
    passage = only("filter FORWARD -p tcp -j REJECT --reject-with tcp-reset")
    assert (passage.verdict, passage.reject_with) == ("reject", "tcp-reset")
    assert only("filter FORWARD -j REJECT").reject_with == "icmp-port-unreachable"


def test_jumps_on_the_way_are_used_and_those_that_came_back_are_not():
    passage = only(
        """
        filter FORWARD -j EMPTY
        filter FORWARD -j ONE
        filter EMPTY -d 10.0.0.1/32 -j DROP
        filter EMPTY -j RETURN
        filter EMPTY -j DROP
        filter ONE -j TWO
        filter TWO -j LOG --log-prefix "x "
        filter TWO -j ACCEPT
        """,
        filter_FORWARD="DROP",
    )
    assert [(rule.chain, rule.position) for rule in passage.used] == [("FORWARD", 2), ("ONE", 1), ("TWO", 2)]
    assert passage.verdict == "accept"


def test_goto_returns_to_where_its_chain_was_entered_from():
    text = """
        filter FORWARD -j ONE
        filter FORWARD -j REJECT
        filter ONE -g TWO
        filter ONE -j DROP
        filter TWO -d 10.0.0.1/32 -j DROP
    """
    assert only(text).verdict == "reject"
    assert only("filter FORWARD -g TWO\nfilter FORWARD -j DROP\nfilter TWO -j RETURN").verdict == "accept"


def test_return_in_a_hooks_own_chain_is_its_policy():
    passage = only("filter FORWARD -j RETURN\nfilter FORWARD -j ACCEPT", filter_FORWARD="DROP")
    assert passage.policy == "filter FORWARD DROP"


def test_tables_may_be_chosen():
    rules = ruleset("raw PREROUTING -j DROP\nmangle PREROUTING -j MARK --set-xmark 0x1/0x1")
    (passage,) = traverse(rules, "PREROUTING", SYN, OWN, tables=["mangle", "nat"])
    assert (passage.verdict, passage.packet.mark) == ("accept", 1)


# --- what is changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (0x00, "0x4000/0x4000", 0x4000),
        (0x4001, "0x4000/0x0", 0x1),
        (0xFF, "0x1/0xffffffff", 0x1),
        (0xFF, "0x0/0xf0", 0x0F),
    ],
)
def test_marks(before: int, value: str, after: int):
    passage = only(f"mangle FORWARD -j MARK --set-xmark {value}", packet=replace(SYN, mark=before))
    assert passage.packet.mark == after
    assert [rule.text for rule in passage.used] == [f"-j MARK --set-xmark {value}"]


def test_marks_of_connections_are_saved_and_restored_by_their_masks():
    saved = only(
        "mangle FORWARD -j CONNMARK --save-mark --nfmask 0xf0 --ctmask 0xff", packet=replace(SYN, mark=0xAB)
    )
    assert saved.packet.connmark == 0xA0
    restored = only(
        "mangle FORWARD -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xf0", packet=saved.packet
    )
    assert restored.packet.mark == 0xA0


def test_unknown_mark_of_a_connection_is_told():
    answer = replace(SYN, state="ESTABLISHED", reply=True)
    passage = only("mangle FORWARD -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", packet=answer)
    assert passage.unread == ("mangle FORWARD rule 1: what -j CONNMARK does is not known",)


def test_dnat_leads_elsewhere_and_is_remembered():
    passage = only(
        """
        nat PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j SVC
        nat PREROUTING -j DROP
        nat SVC -p tcp -j DNAT --to-destination 10.244.2.2:8080
        """,
        "PREROUTING",
        replace(SYN, dst=ip_address("10.96.0.1")),
    )
    after = passage.packet
    assert (after.dst, after.dst_port, after.dnat) == (B, 8080, True)
    assert after.original == Ends(A, 40_000, ip_address("10.96.0.1"), 80)
    assert [rule.chain for rule in passage.used] == ["PREROUTING", "SVC"]


def test_dnat_to_where_it_goes_anyway_is_none():
    passage = only("nat PREROUTING -p tcp -j DNAT --to-destination 10.244.2.2:80", "PREROUTING")
    assert passage.packet == SYN
    assert len(passage.used) == 1


@pytest.mark.parametrize(
    ("to", "port", "expected"),
    [
        ("10.0.0.1", 80, ["10.0.0.1:80"]),
        (":8080", 80, ["10.244.2.2:8080"]),
        ("10.0.0.1:70-90", 80, ["10.0.0.1:80"]),
        ("10.0.0.1:100-200", 80, ["10.0.0.1:100"]),
        ("10.0.0.1:1000-1010/80", 83, ["10.0.0.1:1003"]),
        ("10.0.0.1-10.0.0.2:8080", 80, ["10.0.0.1:8080", "10.0.0.2:8080"]),
        ("10.0.0.1:90-92 --random", 80, ["10.0.0.1:90", "10.0.0.1:91", "10.0.0.1:92"]),
        ("10.0.0.1:1000-60000 --random", 80, ["10.0.0.1:None"]),
    ],
)
def test_ranges_of_dnat(to: str, port: int, expected: list[str]):
    packet = replace(SYN, dst_port=port)
    passages = through(f"nat PREROUTING -p tcp -j DNAT --to-destination {to}", "PREROUTING", packet)
    assert [f"{one.packet.dst}:{one.packet.dst_port}" for one in passages] == expected
    assert not any(one.unread for one in passages)
    assert all(len(one.choices) == (len(expected) > 1) for one in passages)


def test_more_destinations_than_are_looked_at_are_told():
    passages = through("nat PREROUTING -p tcp -j DNAT --to-destination 10.0.0.0-10.0.255.255", "PREROUTING")
    assert len(passages) == 64
    assert all("-j DNAT to so many" in one.unread[0] for one in passages)


def test_redirect_leads_to_the_device_it_came_by_and_processes_to_loopback():
    by_device = only("nat PREROUTING -p tcp -j REDIRECT --to-ports 8080", "PREROUTING").packet
    assert (str(by_device.dst), by_device.dst_port) == ("10.244.1.1", 8080)
    by_process = only("nat OUTPUT -p tcp -j REDIRECT", "OUTPUT", replace(SYN, in_dev=None)).packet
    assert (str(by_process.dst), by_process.dst_port) == ("127.0.0.1", 80)
    assert only("nat PREROUTING -j REDIRECT", "PREROUTING", replace(SYN, in_dev="eth9")).verdict == "drop"


def test_no_port_is_promised_after_a_translation_of_the_source():
    passage = only("nat POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE", "POSTROUTING")
    assert passage.masquerade
    assert (passage.packet.src, passage.packet.src_port, passage.packet.snat) == (A, None, True)
    snat = only("nat POSTROUTING -j SNAT --to-source 192.168.50.11", "POSTROUTING")
    assert (snat.packet.src, snat.packet.src_port, snat.masquerade) == (HOST, None, False)
    assert snat.packet.original == SYN.ends


def test_source_that_is_in_the_range_stays():
    text = "nat POSTROUTING -j SNAT --to-source 10.244.1.1-10.244.1.9"
    assert only(text, "POSTROUTING").packet == SYN
    assert len(through(text + " --random", "POSTROUTING")) == 9


@pytest.mark.parametrize(
    ("hook", "tables"),
    [
        ("PREROUTING", "raw mangle nat"),
        ("INPUT", "mangle filter security nat"),
        ("FORWARD", "mangle filter security"),
        ("OUTPUT", "raw mangle nat filter security"),
        ("POSTROUTING", "mangle nat"),
    ],
)
def test_tables_are_asked_in_the_kernels_order(hook: str, tables: str):
    every = ("security", "nat", "filter", "mangle", "raw")
    passage = only("\n".join(f"{table} {hook} -j ACCEPT" for table in every), hook)
    assert [rule.table for rule in passage.used] == tables.split()


def test_nat_is_for_new_connections_alone():
    rule = "nat PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1"
    for state in ("ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"):
        packet = replace(SYN, state=state)
        assert only(rule, "PREROUTING", packet).packet == packet
    by_loopback = replace(SYN, in_dev="lo")
    assert only(rule, "PREROUTING", by_loopback).packet == by_loopback


def test_not_followed_by_conntrack():
    text = """
        raw PREROUTING -m conntrack --ctstate NEW -j DROP
        raw PREROUTING -m conntrack ! --ctstate INVALID -j DROP
        raw PREROUTING -p tcp -j CT --notrack
        mangle PREROUTING -m conntrack --ctstate NEW -j DROP
        nat PREROUTING -j DNAT --to-destination 10.0.0.1
    """
    passage = only(text, "PREROUTING")
    assert passage.packet == replace(SYN, state="UNTRACKED")
    assert [rule.table for rule in passage.used] == ["raw"]
    assert (
        only(text.replace("raw PREROUTING -m", "raw OTHER -m"), "PREROUTING", replace(SYN, in_dev="lo")).verdict
        == "drop"
    )


def test_ttl():
    assert only("mangle FORWARD -j TTL --ttl-inc 3").packet.ttl == 66
    assert only("mangle FORWARD -j TTL --ttl-set 3").packet.ttl == 3
    assert only("mangle FORWARD -j TTL --ttl-set 3", packet=replace(SYN, ttl=None)).packet.ttl is None


# --- conditions ------------------------------------------------------------------------------------------

FRAGMENT = replace(SYN, src_port=None, dst_port=None, fragment=True)
PING = replace(SYN, protocol="icmp", src_port=None, dst_port=None, icmp_type=8, icmp_code=0, tcp_flags=None)
NO_CONNECTION = replace(SYN, state="INVALID")
ANSWER = replace(SYN, state="ESTABLISHED", reply=True, dnat=True, original=Ends(B, 1, HOST, 443))


@pytest.mark.parametrize(
    ("conditions", "packet"),
    [
        ("-s 10.244.1.2/32", SYN),
        ("-s 10.0.1.2/255.0.255.255", SYN),
        ("-o flannel.1 -i cni+", SYN),
        ("-i +", replace(SYN, in_dev=None)),
        ("! -i eth0", replace(SYN, in_dev=None)),
        ("-p 6", SYN),
        ("-p sctp", replace(SYN, protocol="132")),
        ("! -p unheard-of", SYN),
        ("-f", FRAGMENT),
        ("-p udplite -m multiport --ports 80", replace(SYN, protocol="udplite")),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", replace(SYN, tcp_flags="SA")),
        ("-p icmp -m icmp --icmp-type any", PING),
        ("-m conntrack --ctstate INVALID --ctproto 17", NO_CONNECTION),
        ("-m conntrack --ctstate DNAT --ctdir REPLY --ctorigdst 192.168.50.0/24 --ctorigdstport 443", ANSWER),
        ("-m conntrack ! --ctstatus NONE", SYN),
        ("-m connmark --mark 0x0", SYN),
        ("-m connmark --mark 0x5/0xff", replace(ANSWER, connmark=0x105)),
        ("-m addrtype --dst-type BROADCAST", replace(SYN, dst=ip_address("192.168.50.255"))),
        ("-m addrtype --dst-type BROADCAST", replace(SYN, dst=ip_address("255.255.255.255"))),
        ("-m addrtype --dst-type MULTICAST,LOCAL", replace(SYN, dst=ip_address("224.0.0.1"))),
        ("-m addrtype ! --dst-type LOCAL --limit-iface-in", replace(SYN, dst=HOST)),
        ("-m physdev --physdev-in veth+ --physdev-is-bridged", replace(SYN, physin="veth1", physout="veth2")),
        ("-m physdev ! --physdev-out veth2", SYN),
        ("-m length --length 60:70 -m ttl --ttl-lt 64", SYN),
        ("-m rpfilter --loose", replace(SYN, reverse="other")),
        ("-m rpfilter --invert", replace(SYN, reverse="none")),
        ("-m owner ! --uid-owner 0", SYN),
    ],
)
def test_condition_holds(conditions: str, packet: Packet):
    """The kernel's tests show the rest; these need packets that are hard to come by."""
    assert only(f"filter FORWARD {conditions} -j DROP", packet=packet).verdict == "drop"


@pytest.mark.parametrize(
    ("conditions", "packet"),
    [
        ("-p tcp -m tcp ! --dport 81", FRAGMENT),
        ("-p tcp -m multiport ! --dports 81", FRAGMENT),
        ("-p icmp -m icmp ! --icmp-type 0", replace(PING, fragment=True)),
        ("-m conntrack ! --ctproto 17", NO_CONNECTION),
        ("-m connmark ! --mark 0x1", NO_CONNECTION),
        ("-m owner --uid-owner 0", SYN),
        ("-s fd00::/8", SYN),
        ("-m recent ! --set --name x", SYN),
        ("-p tcp -m tcp --sport 80", replace(SYN, src_port=None)),
    ],
)
def test_condition_holds_not_even_if_negated(conditions: str, packet: Packet):
    assert only(f"filter FORWARD {conditions} -j DROP", packet=packet) == replace(PASSED, packet=packet)


@pytest.mark.parametrize(
    ("conditions", "packet", "word"),
    [
        ("-m u32 --u32 0x0=0x0", SYN, "-m u32"),
        ('-m bpf --bytecode "1,6 0 0 1"', SYN, "-m bpf"),
        ("-p tcp -m tcp --tcp-option 5", SYN, "--tcp-option"),
        ("-p tcp -m tcp --dport 1024:9999", replace(SYN, dst_port=None), "--dport 1024:9999"),
        ("-p tcp -m multiport --ports 81,9000:9999", replace(SYN, src_port=None), "--ports 81,9000:9999"),
        ("-p tcp -m tcp --syn --tcp-flags SYN SYN", replace(SYN, tcp_flags=None), "--syn"),
        ("-p icmp -m icmp --icmp-type 3/4", replace(PING, icmp_type=3, icmp_code=None), "--icmp-type 3/4"),
        ("-m length --length 60", replace(SYN, length=None), "--length 60"),
        ("-m mac --mac-source 02:00:00:00:00:01", SYN, "--mac-source 02:00:00:00:00:01"),
        ("-m rpfilter", SYN, "-m rpfilter"),
        ("-m owner --uid-owner 0", replace(SYN, in_dev=None), "-m owner"),
        ("-m set --match-set cali40s src", SYN, "--match-set cali40s src"),
        ("-m conntrack --ctstatus ASSURED", ANSWER, "--ctstatus ASSURED"),
        ("-m conntrack --ctorigdst 10.0.0.1", replace(ANSWER, original=None), "--ctorigdst 10.0.0.1"),
        ("-m conntrack --ctreplsrc 10.0.0.1", ANSWER, "--ctreplsrc 10.0.0.1"),
        ("-m conntrack --ctexpire 1:2", SYN, "--ctexpire"),
    ],
)
def test_what_cannot_be_decided_leaves_both_ways_open_and_says_why(conditions: str, packet: Packet, word: str):
    dropped, passed = through(f"filter FORWARD -j LOG\nfilter FORWARD {conditions} -j DROP", packet=packet)
    assert (dropped.verdict, passed.verdict) == ("drop", "accept")
    sentence = f"filter FORWARD rule 2: whether {word} holds is not known"
    assert dropped.unread == passed.unread == (sentence,)


def test_condition_that_fails_decides_whatever_the_others_are():
    assert only("filter FORWARD -m u32 --u32 0x0=0x0 -m mark --mark 0x1 -j DROP") == PASSED
    assert only("filter FORWARD -s 10.0.0.1/32 -m u32 --u32 0x0=0x0 -j DROP") == PASSED


# --- several ways -------------------------------------------------------------------------------------------

SERVICE = """
    nat PREROUTING -j SVC
    nat SVC -m statistic --mode random --probability 0.33333333349 -j SEP-1
    nat SVC -m statistic --mode random --probability 0.50000000000 -j SEP-2
    nat SVC -j SEP-3
    nat SEP-1 -p tcp -j DNAT --to-destination 10.244.2.1:80
    nat SEP-2 -p tcp -j DNAT --to-destination 10.244.2.2:80
    nat SEP-3 -p tcp -j DNAT --to-destination 10.244.2.3:80
"""


def test_chance_has_a_passage_for_each_choice_and_says_what_it_chose():
    packet = replace(SYN, dst=ip_address("10.96.0.1"))
    passages = through(SERVICE, "PREROUTING", packet)
    assert [passage.choices for passage in passages] == [
        (f"statistic chose 10.244.2.{n}:80, one of 3 (nat SVC)",) for n in (1, 2, 3)
    ]
    assert [[rule.chain for rule in passage.used] for passage in passages] == [
        ["PREROUTING", "SVC", f"SEP-{n}"] for n in (1, 2, 3)
    ]
    assert not any(passage.unread for passage in passages)


def test_memory_and_chance_that_come_to_the_same_are_one_passage():
    sticky = SERVICE.replace(
        "nat SVC -m statistic --mode random --probability 0.33",
        "nat SVC -m recent --rcheck --name one -j SEP-1\nnat SVC -m statistic --mode random --probability 0.33",
    )
    packet = replace(SYN, dst=ip_address("10.96.0.1"))
    first, *others = through(sticky, "PREROUTING", packet)
    assert len(others) == 2
    assert first.choices == ("recent or statistic chose 10.244.2.1:80, one of 3 (nat SVC)",)
    assert [rule.chain for rule in first.used] == ["PREROUTING", "SEP-1"], (
        "of SVC's two rules neither is certain"
    )


def test_open_rules_that_come_to_the_same_are_not_told():
    assert only("filter FORWARD -m u32 --u32 0x0=0x0 -j ACCEPT") == Passage("accept", SYN)
    assert only("filter FORWARD -m u32 --u32 0x0=0x0 -j NOTHING\nfilter NOTHING -j RETURN") == PASSED
    assert only("filter FORWARD -m u32 --u32 0x0=0x0 -j LOG") == PASSED
    by_chance = "-m statistic --mode random --probability 0.5"
    assert only(f"mangle FORWARD {by_chance} -j MARK --set-xmark 0x0/0x1").choices == ()


def test_certain_chance_is_none():
    assert only("filter FORWARD -m statistic --mode random --probability 1 -j DROP").verdict == "drop"
    assert only("filter FORWARD -m statistic --mode random --probability 0 -j DROP").verdict == "accept"
    assert only("filter FORWARD -m statistic --mode nth ! --every 1 --packet 0 -j DROP").verdict == "accept"


def test_mark_by_an_open_rule_matters_where_it_is_asked_for():
    text = """
        mangle FORWARD -m u32 --u32 0x0=0x0 -j MARK --set-xmark 0x1/0x1
        filter FORWARD -m mark --mark 0x1/0x1 -j DROP
    """
    verdicts = {passage.verdict: passage for passage in through(text)}
    assert verdicts.keys() == {"accept", "drop"}
    for passage in verdicts.values():
        assert passage.unread == ("mangle FORWARD rule 1: whether -m u32 holds is not known",)


def test_limits_are_taken_as_not_reached_and_it_is_said():
    accepted = only("filter FORWARD -m limit --limit 3/min -j ACCEPT", filter_FORWARD="DROP")
    assert accepted.verdict == "accept"
    assert accepted.choices == ("filter FORWARD rule 1: -m limit is taken as not reached",)
    above = only("filter FORWARD -m hashlimit --hashlimit-above 3/min --hashlimit-name x -j DROP")
    assert above.verdict == "accept"
    upto = only("filter FORWARD -m hashlimit ! --hashlimit-upto 3/min --hashlimit-name x -j DROP")
    assert upto.verdict == "accept"
    assert only('filter FORWARD -m limit --limit 3/min -j LOG --log-prefix "x"').choices == ()


def test_many_open_rules_that_come_back_do_not_multiply():
    text = "\n".join(f"filter FORWARD -m u32 --u32 {n} -j EMPTY" for n in range(200))
    assert only(text + "\nfilter EMPTY -p udp -j DROP") == PASSED


def test_more_ways_than_are_followed_are_told():
    marks = "\n".join(
        f"mangle FORWARD -m u32 --u32 {n} -j MARK --set-xmark {1 << n:#x}/{1 << n:#x}" for n in range(12)
    )
    passages = through(marks)
    assert len(passages) <= MOST_WAYS + 1
    assert any("ways open" in sentence for passage in passages for sentence in passage.unread)


# --- what is not understood -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        '-m comment --comment "no end -j DROP',
        "-s nonsense -j DROP",
        "-p tcp -m tcp --dport http -j DROP",
        "-m mark --mark x -j DROP",
        "-m statistic --mode random -j DROP",
        "-j DNAT",
        "-j MARK --set-xmark",
        "-j",
        "!",
    ],
)
def test_rule_that_cannot_be_read_is_told_and_passed_over(rule: str):
    passage = only(f"filter FORWARD {rule}\nfilter FORWARD -j REJECT")
    assert passage.verdict == "reject"
    assert passage.unread[0].startswith("filter FORWARD rule 1 cannot be read: ")


@pytest.mark.parametrize(
    "target", ["NFQUEUE --queue-num 3", "TPROXY --on-port 80", "NETMAP --to 10.0.0.0/24", "NOWHERE"]
)
def test_unknown_target_is_told_and_passed_over(target: str):
    passage = only(f"mangle FORWARD -j {target}\nfilter FORWARD -j DROP")
    assert passage.verdict == "drop"
    word = target.split()[0]
    assert passage.unread == (f"mangle FORWARD rule 1: what -j {word} does is not known",)


def test_rules_in_a_circle_end():
    passage = only("filter FORWARD -j ONE\nfilter ONE -j TWO\nfilter TWO -j ONE\nfilter TWO -j DROP")
    assert passage.verdict == "drop"
    assert "leads deeper than rules may" in passage.unread[0]


@given(st.text(), st.text("-!\"\\'jgmspdio0123456789./,:=ABC tcpud", max_size=60))
def test_no_text_raises(anything: str, alike: str):
    rules = RuleSet("nft", {("filter", "FORWARD"): (RuleLine(anything), RuleLine(alike), RuleLine("-j DROP"))})
    assert {passage.verdict for passage in traverse(rules, "FORWARD", SYN, OWN)} <= {"accept", "drop", "reject"}


@pytest.mark.parametrize(
    "rule",
    [
        "-d 10.96.0.9/32 -j DROP",
        "-s 10.96.0.9/32 -j DROP",
        "-p tcp -m tcp --dport 9 -j DROP",
        '-p tcp -m comment --comment "--dport 80" -m tcp --dport 9 -j DROP',
    ],
)
def test_rules_for_others_are_passed_over_by_their_first_words(rule: str):
    (passage,) = through(f"filter FORWARD {rule}\nfilter FORWARD -j REJECT")
    assert passage.used[0].position == 2
    hit = replace(SYN, src=ip_address("10.96.0.9"), dst=ip_address("10.96.0.9"), dst_port=9)
    assert only(f"filter FORWARD {rule}\nfilter FORWARD -j REJECT", packet=hit).verdict == "drop"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_of_our_rules_are_understood(case):
    rendered = case.rendered()
    chains = {**rendered.chains, **rendered.hooks}
    rules = RuleSet("nft", {key: tuple(map(RuleLine, texts)) for key, texts in chains.items()})
    known = replace(SYN, dst=HOST_IP, dst_port=30080, length=60)
    for hook in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"):
        for passage in traverse(rules, hook, known, [HOST_IP]):
            assert passage.unread == ()


# --- nftables' own --------------------------------------------------------------------------------------------


def nft(*rules: list[dict[str, Any]], **base: object) -> Mapping[str, Any]:
    """A base chain on the hook forward, with these rules, unless said otherwise."""
    told = {"family": "inet", "table": "firewalld", "name": "filter", "hook": "forward", "prio": 10, **base}
    named = {"family": told["family"], "table": told["table"], "chain": told["name"]}
    return {"nftables": [{"chain": told}, *({"rule": {**named, "expr": rule}} for rule in rules)]}


def equal(protocol: str, field: str, value: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": value}}


def beside(
    document: Mapping[str, Any], text: str = "filter FORWARD -j ACCEPT", packet: Packet = SYN
) -> tuple[Passage, ...]:
    return traverse(ruleset(text), "FORWARD", packet, OWN, nft=document)


def test_chain_of_nftables_stops_what_iptables_accepts():
    document = nft(
        [equal("tcp", "dport", 22), {"accept": None}],
        [
            equal("tcp", "dport", 80),
            {"counter": {"packets": 7, "bytes": 9}},
            {"reject": {"type": "icmpx", "expr": "admin-prohibited"}},
        ],
    )
    (passage,) = beside(document)
    assert (passage.verdict, passage.reject_with) == ("reject", "icmp-admin-prohibited")
    rule = Used("nft inet firewalld", "filter", 2, "tcp dport 80 reject with icmpx admin-prohibited", 7)
    assert passage.used == (Used("filter", "FORWARD", 1, "-j ACCEPT", 0), rule)


def test_policy_of_nftables():
    (passage,) = beside(nft(policy="drop"))
    assert (passage.verdict, passage.policy) == ("drop", "nft inet firewalld filter DROP")


def test_priority_says_which_comes_first():
    (after,) = beside(nft([{"drop": None}], prio=10), "filter FORWARD -j REJECT")
    (before,) = beside(nft([{"drop": None}], prio=-10), "filter FORWARD -j REJECT")
    assert (after.verdict, before.verdict) == ("reject", "drop")


def test_chain_that_cannot_be_decided_leaves_both_open():
    stopped, passed = beside(
        nft([{"match": {"op": "==", "left": {"socket": {"key": "mark"}}, "right": 1}}, {"drop": None}])
    )
    assert (stopped.verdict, passed.verdict) == ("drop", "accept")
    assert stopped.unread == passed.unread
    assert stopped.unread[0].startswith("nft inet firewalld filter rule 1: whether ")


def test_what_nftables_rewrites_is_told():
    (passage,) = beside(nft([{"dnat": {"addr": "10.0.0.1"}}], type="nat"))
    assert passage.unread == ("nft inet firewalld filter rule 1: dnat is not followed",)
    (later,) = beside(nft([{"dnat": {"addr": "10.0.0.1"}}], type="nat"), packet=ANSWER)
    assert later.unread == ()


def test_other_hooks_families_and_iptables_own_chains_are_not_asked():
    drop = [{"drop": None}]
    assert beside(nft(drop, hook="input"))[0].verdict == "accept"
    assert beside(nft(drop, family="ip6"))[0].verdict == "accept"
    of_iptables = nft(drop, family="ip", table="filter", name="FORWARD")
    assert beside(of_iptables)[0].verdict == "accept"
    legacy = ruleset("filter FORWARD -j ACCEPT", "legacy")
    assert traverse(legacy, "FORWARD", SYN, OWN, nft=of_iptables)[0].verdict == "drop"


def test_rule_of_nftables_that_cannot_be_read_is_told():
    (passage,) = beside(nft([{"jump": None}], [{"drop": None}]))
    assert passage.verdict == "accept"
    assert passage.unread[0].startswith("nft inet firewalld filter cannot be read: ")


@pytest.mark.parametrize(
    "document", [{"nftables": [{"chain": {"family": "inet"}}]}, {"nftables": 5}, {"nftables": ["x"]}]
)
def test_ruleset_that_cannot_be_read_is_told(document: Mapping[str, Any]):
    (passage,) = beside(document)
    assert passage.verdict == "accept"
    assert passage.unread[0].startswith("nftables' ruleset cannot be read")
