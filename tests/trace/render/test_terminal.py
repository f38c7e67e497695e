"""Traces and predictions on a terminal."""

from __future__ import annotations

from dataclasses import replace

import click
import pytest
from helpers import pictures

from overlaynet.trace.model import (
    DROPPED,
    INCONCLUSIVE,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Prediction,
    Trace,
    Why,
)
from overlaynet.trace.render.story import trace_story
from overlaynet.trace.render.terminal import WIDTH, explain_text, trace_text
from overlaynet.trace.render.text import cells

pytestmark = pytest.mark.unit

WORDS = {"proved": "PROVED", "lost": "LOST", "wrong_path": "WRONG PATH", "inconclusive": "INCONCLUSIVE"}


@pytest.fixture(params=pictures.TRACES)
def trace(request: pytest.FixtureRequest) -> Trace:
    return pictures.TRACES[request.param]()


@pytest.fixture(params=pictures.PREDICTIONS)
def prediction(request: pytest.FixtureRequest) -> Prediction:
    return pictures.PREDICTIONS[request.param]()


def shown(trace: Trace, width: int | None = 100, **more: bool) -> str:
    return click.unstyle(trace_text(trace, width, **more))


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(trace: Trace, width: int, verbose: bool):
    text = shown(trace, width, verbose=verbose)
    assert max(map(cells, text.splitlines())) <= width


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_of_a_prediction_is_wider_than_the_terminal(prediction: Prediction, width: int, verbose: bool):
    text = click.unstyle(explain_text(prediction, width, verbose=verbose))
    assert max(map(cells, text.splitlines())) <= width


def test_the_verdict_is_a_word(trace: Trace):
    assert WORDS[trace.verdict] in shown(trace, 80)


def test_every_hop_is_there(trace: Trace):
    text = shown(trace, 120, verbose=True)
    for hop in (*trace.forward, *trace.reply):
        assert f"{hop.place}:{hop.iface} {hop.direction}" in text
        assert hop.iface in shown(trace, 120)


def test_every_change_is_told(trace: Trace):
    text = shown(trace, 160, verbose=True)
    for hop in trace.forward:
        for change in hop.changes:
            if hop.seen is not False and change.field in ("src", "dst", "ttl"):
                assert change.reason in text


def test_every_entry_is_quoted_in_full_with_its_command(trace: Trace):
    text = shown(trace, 200, verbose=True)
    for hop in (*trace.forward, *trace.reply):
        for why in hop.why:
            assert why.text.removeprefix(f"{why.object} ") in text
            assert why.command in text


def test_every_mark_has_its_entry_with_the_command(trace: Trace):
    text = shown(trace, 100)
    for step in trace_story(trace).marked:
        if step.why is not None:
            assert step.why.command in text


@pytest.mark.parametrize("name", ["wrong-fdb", "lost-answer", "too-big", "rejected", "wrong-path"])
def test_the_cause_is_told_whole(name: str):
    trace = pictures.TRACES[name]()
    assert trace.cause is not None
    flat = " ".join(shown(trace, 80).split())
    for words in (trace.cause.expected, trace.cause.found, trace.cause.object, trace.cause.certainty):
        assert " ".join(words.split()) in flat
    assert all(command in flat for command in trace.cause.next)


@pytest.mark.parametrize(("width", "height"), [(100, 35), (80, 24)])
def test_two_hosts_fit_on_a_screen(width: int, height: int):
    prompts = 2
    assert len(shown(pictures.vxlan(), width).splitlines()) <= height - prompts


def test_the_headline_and_the_verdict():
    first, *_, last = shown(pictures.virtual_ip()).splitlines()
    assert first == "web-1 10.244.1.2 (node-1) → svc/web 10.112.0.10:80 → web-3 10.244.2.2:8080 (node-2)"
    assert last.startswith("PROVED  10/10 hops seen in order, 0 unexpected, reply 10/10")
    assert last.endswith("t-0007.ovltrace")


def test_dnat_and_its_undoing_are_told():
    text = shown(pictures.virtual_ip())
    assert "① DNAT" in text
    assert "⑥ 10.112.0.10:80 → 10.244.1.2:44778  un-DNAT by conntrack" in text
    assert "① rule   -j DNAT --to-destination 10.244.2.2:8080  +1" in shown(pictures.virtual_ip(), 120)


def test_every_rule_that_translated_is_quoted():
    trace = pictures.virtual_ip()
    at = next(n for n, hop in enumerate(trace.forward) if any(c.field == "dst" for c in hop.changes))
    hop = trace.forward[at]
    masquerade = Why("rule", "nat OVL-MASQUERADE 1", "-A OVL-MASQUERADE -j MASQUERADE", None, "iptables", 1)
    both = replace(hop, why=(*hop.why, masquerade))
    text = shown(replace(trace, forward=(*trace.forward[:at], both, *trace.forward[at + 1 :])), 120)
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("① rule   -j DNAT"))
    assert lines[first + 1].startswith("  rule   -A OVL-MASQUERADE -j MASQUERADE  +1")


def test_nothing_is_cut_or_wrapped_where_there_is_no_terminal(trace: Trace):
    piped = click.unstyle(trace_text(trace, verbose=False))
    assert "…" not in piped
    wide = click.unstyle(trace_text(trace, 2_000)).splitlines()
    assert [line.split()[:1] for line in piped.splitlines()] == [line.split()[:1] for line in wide]
    assert max(len(line) for line in piped.splitlines() if "─" in line) <= WIDTH


def test_the_tunnel_is_told():
    text = shown(pictures.vxlan())
    assert "outer 192.168.50.11 → 192.168.50.12  ② +50 B: VXLAN vni 1" in text
    assert "③ −50 B: unwrapped" in text


def test_what_follows_the_first_missing_hop_is_one_line():
    lines = shown(pictures.wrong_fdb()).splitlines()
    broken = next(n for n, line in enumerate(lines) if "lost here" in line)
    assert lines[broken + 1].startswith("node-2")
    assert "eth0 in" in lines[broken + 2]
    assert "not seen" in lines[broken + 2]
    assert "nor at  flannel.1 → cni0 → veth1c5d0a77e02 → web-3 eth0" in lines[broken + 3]
    assert "LOST  between node-1 eth0 (seen) and node-2 eth0 (not seen, capture live, 0 drops)" in " ".join(
        lines
    )


def test_a_deaf_point_is_no_witness():
    trace = pictures.wrong_fdb()
    taps = tuple(tap._replace(closed=tap.point.place != "node-2") for tap in trace.taps)
    assert "its capture is no witness" in " ".join(shown(replace(trace, taps=taps)).split())


def test_a_refusal_that_was_expected_is_proved_and_needs_no_remedy():
    text = shown(pictures.rejected(PROVED, REJECTED))
    assert "PROVED  rejected, as expected" in text
    assert "  try " not in text


def test_a_command_says_in_which_place_it_shows_the_entry():
    text = shown(pictures.vxlan(), 160)
    assert "  node-1$ bridge fdb show dev flannel.1" in text
    assert "  node-2$ ip route show 10.244.2.0/24" in text


def test_a_next_command_that_is_not_ours_is_typed_in_its_place():
    trace = pictures.wrong_fdb()
    assert trace.cause is not None
    cause = replace(trace.cause, next=("bridge fdb show dev flannel.1", "overlaynet heal"))
    text = shown(replace(trace, cause=cause))
    assert "  try       overlaynet exec node-1 -- bridge fdb show dev flannel.1\n" in text
    assert "  then      overlaynet heal\n" in text


def test_a_cause_says_on_which_host_it_is():
    assert "cause     fdb wrong on node-1 (certain" in shown(pictures.wrong_fdb(), 120)


def test_a_cause_without_an_object_ends_there():
    trace = pictures.wrong_fdb()
    assert trace.cause is not None
    cause = replace(trace.cause, kind="unknown", object="", certainty="likely", source=None)
    assert "  cause     unknown (likely)\n" in shown(replace(trace, cause=cause))


def test_every_entry_is_whole_in_the_longest_form():
    trace = pictures.virtual_ip()
    flat = " ".join(shown(trace, 80, verbose=True).split())
    for why in (why for hop in (*trace.forward, *trace.reply) for why in hop.why):
        assert " ".join(why.text.removeprefix(f"{why.object} ").split()) in flat


def test_an_arrival_that_was_not_expected_is_no_loss_and_no_wrong_way():
    note = "it was delivered, and dropped was expected"
    text = shown(replace(pictures.vxlan(), verdict=WRONG_PATH, expect=DROPPED, notes=(note,)))
    assert "lost here" not in text
    assert text.count(note) == 1
    assert f"✗ WRONG PATH  {note}" in text


def test_nobody_answers_what_did_not_arrive():
    trace = pictures.vxlan()
    missing = tuple(replace(hop, seen=False, t_us=None) for hop in trace.forward[5:])
    silent = tuple(replace(hop, seen=False, t_us=None) for hop in trace.reply)
    lost = replace(trace, verdict=LOST, outcome=LOST, answer="", forward=(*trace.forward[:5], *missing))
    assert "\nreply" not in shown(replace(lost, reply=silent))
    assert "\nreply" not in shown(replace(lost, verdict=INCONCLUSIVE, reply=silent))


def test_a_prediction_that_ends_out_of_sight_does_not_say_that_it_arrives():
    (path,) = pictures.explained().paths
    leaving = replace(path, hops=path.hops[:5], reply=None)
    text = click.unstyle(explain_text(replace(pictures.explained(), paths=(leaving,)), 100))
    assert text.splitlines()[-1] == "predicted:  leaves by node-1 eth0, out of sight  5 hops"


def test_what_comes_in_by_the_loopback_has_arrived():
    hop = replace(pictures.vxlan().forward[0], place="node-1", host="node-1", iface="lo")
    text = shown(replace(pictures.vxlan(), forward=(hop, replace(hop, direction="in")), reply=()))
    assert text.splitlines()[5].endswith("arrived")


def test_next_commands_are_about_the_same_lab():
    text = trace_text(pictures.wrong_fdb(), command=lambda words: f"overlaynet {words} -l blue")
    assert "overlaynet diff node-1 -l blue" in text


def test_colour_adds_nothing_to_the_words(trace: Trace):
    styled = trace_text(trace, 100)
    assert "\x1b[" in styled
    assert "\x1b" not in click.unstyle(styled)


def test_a_prediction_says_so():
    text = click.unstyle(explain_text(pictures.explained()))
    assert "predicted:  delivered  10 hops; answer: syn-ack, 10 back" in text
    assert "µs" not in text


def test_what_ways_have_in_common_is_told_once():
    text = click.unstyle(explain_text(pictures.four_ways(), 120))
    assert text.count("web-1 eth0 out") == 1
    for name in ("web-1", "web-2", "web-3", "web-4"):
        assert f"{name} 10.244" in text
    assert "one of 4 ways is taken" in text
    assert "endpoint 3 of 4" in text
    assert "predicted:  delivered  by 4 ways" in text
    assert "nft is not installed on node-2" in text


def test_no_way_at_all():
    text = click.unstyle(explain_text(replace(pictures.explained(), paths=())))
    assert text == "predicted:  nothing; no way could be followed"


def test_hostile_names_stay_in_their_line():
    trace = pictures.vxlan()
    evil = replace(trace.forward[0], iface="eth\x1b]0;x\x07\n0", note="a\r\nb\x9b31m")
    text = trace_text(replace(trace, forward=(evil, *trace.forward[1:])), 100, verbose=True)
    stripped = click.unstyle(text)
    assert not any(c in stripped for c in "\x1b\x07\r\x9b")
    assert len(shown(trace).splitlines()) == len(
        shown(replace(trace, forward=(evil, *trace.forward[1:]))).splitlines()
    )


def test_thirty_two_characters_fit():
    long = "a" * 32
    trace = pictures.vxlan()
    far = tuple(replace(hop, place=long) if hop.place == "web-3" else hop for hop in trace.forward)
    lines = shown(replace(trace, forward=far), 80).splitlines()
    assert any(line.strip().startswith("320  aaa") and "eth0 in" in line for line in lines)


def test_an_entry_that_leaves_no_room_for_its_command_has_a_line_of_its_own():
    trace = pictures.vxlan()
    hop = trace.forward[3]
    long = hop.why[0]._replace(command="ip route get 10.244.2.2 from 10.244.1.2 iif flannel.1 mark 0x4000")
    lines = shown(
        replace(trace, forward=(*trace.forward[:3], replace(hop, why=(long,)), *trace.forward[4:])), 80
    )
    assert "① route  10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 717827\n" in lines
    assert f"\n     node-1$ {long.command}\n" in lines


def test_what_is_lost_on_its_way_back_breaks_there():
    text = shown(pictures.lost_answer())
    assert "lost here" not in text
    assert "reply  syn-ack  web-3 → web-1  4/10 hops by 438 µs  ✗ not seen at node-2 eth0 out" in text


def test_an_answer_that_does_not_come_home_is_lost_after_its_last_hop():
    text = shown(pictures.stray_answer(), 120)
    assert "lost here" not in text
    assert "reply  syn-ack  web-3 → node-2  4/4 hops by 460 µs  ✗ lost after node-2 eth0 out" in text


def test_a_way_that_ends_is_broken_at_its_end():
    lines = shown(pictures.ended_in_container()).splitlines()
    broken = next(n for n, line in enumerate(lines) if "dropped here" in line)
    assert "web-3 eth0 in" in lines[broken - 1]
