from __future__ import annotations

from collections.abc import Mapping

import pytest
from helpers.firewall_cases import BASE, CASES, Case
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.firewall.chains import Rendered, Rules
from overlaynet.firewall.compare import NOBODY, blockers, hooks_in, learn, pending
from overlaynet.firewall.render import FORWARD, POSTROUTING, render
from overlaynet.firewall.restore import restore_text
from overlaynet.state import ChainKey, RuleChange, RuleLine, RuleSet, Source
from overlaynet.testing.fake_firewall import FakeFirewall

pytestmark = pytest.mark.unit

BUILTIN_FORWARD = ("filter", "FORWARD")
WANT = render(BASE, random_fully=True)
HOOK = WANT.hooks[BUILTIN_FORWARD][0]
FOREIGN = "-i docker0 -j DOCKER"


def have(chains: Mapping[ChainKey, Rules]) -> RuleSet:
    return RuleSet("test", {key: tuple(RuleLine(text) for text in rules) for key, rules in chains.items()})


def as_read(want: Rendered) -> dict[ChainKey, Rules]:
    return {**want.chains, **want.hooks}


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_what_we_want_does_not_differ_from_itself(case: Case):
    want = case.rendered()
    assert want.chains
    assert pending(want, have(as_read(want)), {}) == ()


def only(want: Rendered, chains: Mapping[ChainKey, Rules]):
    (change,) = pending(want, have({**as_read(want), **chains}), {})
    return change


@pytest.mark.parametrize(
    ("rules", "op"),
    [
        pytest.param((), "missing", id="deleted"),
        pytest.param((FOREIGN,), "missing", id="deleted-beside-a-foreign-rule"),
        pytest.param((HOOK, HOOK), "changed", id="doubled"),
        pytest.param((HOOK, FOREIGN, HOOK), "changed", id="doubled-with-a-foreign-rule-between"),
        pytest.param((f"-s 10.0.0.0/8 {HOOK}",), "changed", id="narrowed-under-the-same-comment"),
        pytest.param(
            (HOOK.replace("OVL-FORWARD", "ACCEPT"),), "changed", id="other-target-under-the-same-comment"
        ),
        pytest.param(("-j OVL-FORWARD",), "changed", id="comment-lost"),
        pytest.param((HOOK.replace("-j", "-g"),), "changed", id="goto-instead-of-jump"),
    ],
)
def test_a_hook_that_is_not_as_wanted_shows(rules: Rules, op: str):
    change = only(WANT, {BUILTIN_FORWARD: rules})
    assert (change.op, change.chain) == (op, "FORWARD")
    assert change.want == (HOOK,)
    assert change.have == (tuple(r for r in rules if r != FOREIGN) or None)


def test_hooks_out_of_order_show_and_foreign_rules_between_them_do_not():
    two = Rendered(hooks={BUILTIN_FORWARD: (HOOK, "-j OVL-LATER")})
    assert pending(two, have({BUILTIN_FORWARD: (FOREIGN, HOOK, FOREIGN, "-j OVL-LATER")}), {}) == ()
    (change,) = pending(two, have({BUILTIN_FORWARD: ("-j OVL-LATER", HOOK)}), {})
    assert change.have == ("-j OVL-LATER", HOOK)


@pytest.mark.parametrize(
    "foreign",
    [
        FOREIGN,
        '-m comment --comment "see -j OVL-FORWARD" -j ACCEPT',
        '-m comment --comment "we like overlaynet: much" -j ACCEPT',
        r'-m comment --comment "a \"--comment \"overlaynet: b" -j ACCEPT',
        "-j OVLX",
        '-j LOG --log-prefix "to -j OVL-FORWARD"',
        "",
    ],
)
def test_a_rule_that_only_speaks_of_us_is_foreign(foreign: str):
    assert hooks_in([RuleLine(foreign)]) == ()


def test_edited_rule_under_its_unchanged_comment_shows_with_who_asked_for_it():
    edited = list(WANT.chains[FORWARD])
    edited[-1] = edited[-1].replace("10.244.0.0/16", "10.0.0.0/8")
    change = only(WANT, {FORWARD: tuple(edited)})
    assert change.op == "changed"
    assert change.source == Source("policy", "forward")


def test_rules_swapped_within_a_chain_show():
    change = only(WANT, {POSTROUTING: tuple(reversed(WANT.chains[POSTROUTING]))})
    assert change.op == "changed"


def test_emptied_chain_is_changed_and_absent_one_is_missing():
    assert only(WANT, {POSTROUTING: ()}).op == "changed"
    gone = {key: rules for key, rules in as_read(WANT).items() if key != POSTROUTING}
    (change,) = pending(WANT, have(gone), {})
    assert (change.op, change.have) == ("missing", None)


def test_a_chain_with_our_prefix_that_nobody_wants_is_extra():
    change = only(WANT, {("mangle", "OVL-OLD"): ("-j DROP",)})
    assert (change.op, change.table, change.want, change.source) == ("extra", "mangle", None, NOBODY)


def test_changes_come_with_filter_before_nat():
    changes = pending(WANT, RuleSet("empty"), {})
    assert [c.table for c in changes] == ["filter"] * 4 + ["nat"] * 2


def test_remembered_spelling_is_right_and_any_other_is_not():
    wanted = WANT.chains[POSTROUTING]
    printed = tuple(text.replace("0x4000/0x4000", "16384/16384") for text in wanted)
    chains = have({**as_read(WANT), POSTROUTING: printed})
    assert pending(WANT, chains, learn(wanted, printed)) == ()
    assert pending(WANT, chains, {})
    tampered = have({**as_read(WANT), POSTROUTING: (printed[0].replace("RETURN", "ACCEPT"), *printed[1:])})
    assert pending(WANT, tampered, learn(wanted, printed))


@pytest.mark.parametrize(
    "printed",
    [
        pytest.param(("-j ACCEPT",), id="other-length"),
        pytest.param(('-m comment --comment "overlaynet: a" -j DROP', "-j DROP"), id="other-target"),
        pytest.param(('-m comment --comment "overlaynet: b" -j ACCEPT', "-j DROP"), id="other-comment"),
    ],
)
def test_a_chain_that_somebody_changed_meanwhile_teaches_nothing(printed: Rules):
    assert learn(('-m comment --comment "overlaynet: a" -j ACCEPT', "-j DROP"), printed) == {}


REPLIES = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        pytest.param((HOOK, "-j DROP"), [], id="behind-ours"),
        pytest.param(("-j DROP", HOOK), ["-j DROP"], id="drop"),
        pytest.param(
            ("-j REJECT --reject-with icmp-host-prohibited", HOOK),
            ["-j REJECT --reject-with icmp-host-prohibited"],
            id="reject",
        ),
        pytest.param((FOREIGN, HOOK), [], id="jump-elsewhere"),
        pytest.param((REPLIES, HOOK), [], id="replies"),
        pytest.param(("-j MARK --set-xmark 0x1/0x1", HOOK), [], id="not-final"),
        pytest.param(("-j DROP",), ["-j DROP"], id="ours-not-there-yet"),
    ],
)
def test_foreign_rules_that_decide_before_ours_are_told(rules: Rules, told: list[str]):
    found = blockers(WANT, have({BUILTIN_FORWARD: rules}))
    assert [sentence.rsplit(": ", 1)[1] for sentence in found] == told
    assert all("table filter chain FORWARD" in sentence for sentence in found)


DOCKER = {
    BUILTIN_FORWARD: ("-j DOCKER-USER", "-j DOCKER-FORWARD", HOOK),
    ("filter", "DOCKER-FORWARD"): ("-j DOCKER-CT", "-j DOCKER-BRIDGE", "-i docker0 -j ACCEPT"),
    ("filter", "DOCKER-CT"): ("-o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",),
    ("filter", "DOCKER-BRIDGE"): ("-o docker0 -j DOCKER",),
    ("filter", "DOCKER"): ("! -i docker0 -o docker0 -j DROP",),
    ("filter", "DOCKER-USER"): ("-j RETURN",),
}
"""As Docker leaves them when it starts after us (moby, libnetwork/drivers/bridge); its own containers only."""


@pytest.mark.parametrize(
    ("user", "told"),
    [
        pytest.param(("-j RETURN",), [], id="as-docker-leaves-it"),
        pytest.param(("-j RETURN", "-j DROP"), [], id="behind-a-return"),
        pytest.param(("-i eth9 -j DROP",), [], id="another-device"),
        pytest.param(("-m conntrack --ctstate RELATED,ESTABLISHED -j DROP",), [], id="replies"),
        pytest.param(("-s 10.0.0.0/8 -j DROP",), ["-s 10.0.0.0/8 -j DROP"], id="drop"),
        pytest.param(("-i cni0 -j REJECT --reject-with icmp-port-unreachable",), None, id="our-bridge"),
        pytest.param(("-o flannel+ -j DROP",), None, id="our-device-by-a-pattern"),
        pytest.param(("-j ELSEWHERE",), ["-p udp -j DROP"], id="further-down"),
        pytest.param(("-j DOCKER-USER", "-j DROP"), ["-j DROP"], id="a-loop-ends"),
    ],
)
def test_stops_in_chains_called_before_ours_are_told(user: Rules, told: list[str] | None):
    chains = {**DOCKER, ("filter", "DOCKER-USER"): user, ("filter", "ELSEWHERE"): ("-p udp -j DROP",)}
    found = blockers(WANT, have(chains))
    assert [sentence.rsplit(": ", 1)[1] for sentence in found] == (list(user) if told is None else told)


RULES = st.lists(st.sampled_from([HOOK, FOREIGN, "-j OVL-OLD", *WANT.chains[FORWARD]]), max_size=5)
CHAINS = st.dictionaries(
    st.sampled_from(["FORWARD", "INPUT", "OVL-FORWARD", "OVL-OLD", "OVL-X", "DOCKER"]), RULES
)


@given(CHAINS)
def test_from_any_state_one_apply_reaches_what_we_want_and_keeps_foreign_rules(chains: dict[str, list[str]]):
    fake = FakeFirewall()
    names = [f":{c} - [0:0]" for c in {*chains, "DOCKER", "OVL-OLD", "OVL-FORWARD"} - {"FORWARD", "INPUT"}]
    rules = [f"-A {chain} {text}" for chain, texts in chains.items() for text in texts]
    fake.restore("\n".join(["*filter", *names, *rules, "COMMIT", ""]))
    before = fake.observe()
    fake.apply(fake.pending(BASE, before), before)
    after = fake.observe()
    assert fake.pending(BASE, after) == ()
    for key in (("filter", "DOCKER"), BUILTIN_FORWARD, ("filter", "INPUT")):
        assert foreign(after.chains[key]) == foreign(before.chains[key])


def foreign(rules: tuple[RuleLine, ...]) -> list[str]:
    ours = hooks_in(rules)
    return [line.text for line in rules if line.text not in ours]


def test_restore_text_of_no_changes_is_empty():
    assert restore_text(()) == ""


def test_two_hooks_of_one_chain_are_put_in_their_order_in_front():
    fake = FakeFirewall()
    fake.restore("*filter\n:OVL-FORWARD - [0:0]\n:OVL-LATER - [0:0]\n-A FORWARD -i eth7 -j DROP\nCOMMIT\n")
    foreign_rules = fake.observe().chains[BUILTIN_FORWARD]
    two = RuleChange("missing", *BUILTIN_FORWARD, (HOOK, "-j OVL-LATER"), None, NOBODY)
    fake.apply([two], fake.observe())
    assert [line.text for line in fake.observe().chains[BUILTIN_FORWARD][:2]] == [HOOK, "-j OVL-LATER"]
    assert fake.observe().chains[BUILTIN_FORWARD][2:] == foreign_rules
