"""Rules in the spellings of iptables-save, taken apart."""

from __future__ import annotations

import pytest
from helpers.firewall_cases import CASES
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.firewall.chains import quoted
from overlaynet.trace.rulewords import Match, Option, parse, words

pytestmark = pytest.mark.unit


def test_options_belong_to_the_match_before_and_arguments_to_the_target():
    rule = parse(
        "! -s 10.0.0.0/8 -d 10.96.0.10/32 -p tcp -m comment --comment dns -m tcp ! --dport 80:90"
        " -m conntrack --ctstate NEW,DNAT ! --ctstatus SEEN_REPLY -j DNAT --to-destination 10.0.0.1:53 --random"
    )
    assert rule.matches == (
        Match(
            "",
            (
                Option("-s", ("10.0.0.0/8",), negated=True),
                Option("-d", ("10.96.0.10/32",)),
                Option("-p", ("tcp",)),
            ),
        ),
        Match("comment", (Option("--comment", ("dns",)),)),
        Match("tcp", (Option("--dport", ("80:90",), negated=True),)),
        Match(
            "conntrack",
            (Option("--ctstate", ("NEW,DNAT",)), Option("--ctstatus", ("SEEN_REPLY",), negated=True)),
        ),
    )
    assert (rule.target, rule.goes) == ("DNAT", False)
    assert rule.argument("--to-destination") == "10.0.0.1:53"
    assert rule.flag("--random")
    assert not rule.flag("--persistent")
    assert rule.argument("--persistent") is None


@pytest.mark.parametrize(
    ("text", "target", "goes"),
    [
        ("-j ACCEPT", "ACCEPT", False),
        ("-i cni0 -g KUBE-X", "KUBE-X", True),
        ("-m comment --comment only", None, False),
        ("", None, False),
    ],
)
def test_targets(text: str, target: str | None, goes: bool):
    rule = parse(text)
    assert (rule.target, rule.goes) == (target, goes)


def test_modules_that_ask_nothing_and_twice_the_same_are_kept_apart():
    rule = parse("-p tcp -m tcp -m recent --set --name a -m recent --rcheck --name b -j ACCEPT")
    assert [(match.module, len(match.options)) for match in rule.matches] == [
        ("", 1),
        ("tcp", 0),
        ("recent", 2),
        ("recent", 2),
    ]


def test_options_with_two_values_and_with_none():
    rule = parse(
        "-p tcp -m tcp --tcp-flags FIN,SYN SYN -m set --match-set hosts src,dst -m physdev --physdev-is-in"
    )
    flags, asked, physdev = (match.options[0] for match in rule.matches[1:])
    assert flags.values == ("FIN,SYN", "SYN")
    assert asked.values == ("hosts", "src,dst")
    assert physdev.values == ()
    with pytest.raises(ValueError):
        _ = flags.value


@pytest.mark.parametrize(
    ("text", "comment"),
    [
        ("-m comment --comment -j -j DROP", "-j"),
        ('-m comment --comment "! -s x -j ACCEPT" -j DROP', "! -s x -j ACCEPT"),
        (r'-m comment --comment "a \"b\" \\ \'c" -j DROP', 'a "b" \\ \'c'),
        ('-m comment --comment "" -j DROP', ""),
    ],
)
def test_comments_may_look_like_anything(text: str, comment: str):
    rule = parse(text)
    assert rule.matches == (Match("comment", (Option("--comment", (comment,)),)),)
    assert rule.target == "DROP"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n")))
def test_quoted_text_comes_back(text: str):
    assert words(f"-m comment --comment {quoted(text)} -j DROP") == [
        "-m",
        "comment",
        "--comment",
        text,
        "-j",
        "DROP",
    ]


@pytest.mark.parametrize(
    "text", ['--comment "no end', "-j ACCEPT !", "what is this", '-s 10.0.0.0/8 "x"y -j DROP', "-j", "-m"]
)
def test_what_iptables_would_not_write_is_refused(text: str):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_of_our_rules_are_read(case):
    rendered = case.rendered()
    for texts in (*rendered.chains.values(), *rendered.hooks.values()):
        for text in texts:
            rule = parse(text)
            assert rule.target is not None
            assert rule.argument("--to-destination") == (
                text.split("--to-destination ")[1].split()[0] if "-j DNAT" in text else None
            )
