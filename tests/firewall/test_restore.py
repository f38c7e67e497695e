"""What is handed to iptables-restore, on a filter in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.firewall.chains import Rendered, Rules
from overlaynet.firewall.compare import Comparison, pending
from overlaynet.firewall.foresee import written
from overlaynet.firewall.restore import MAX_EDITS, commits, edits, restore_text, union
from overlaynet.state import ChainKey, RuleSet, Source
from overlaynet.testing.fake_firewall import FakeFirewall

pytestmark = pytest.mark.unit

REJECTS, DNATS = ("filter", "OVL-A"), ("nat", "OVL-A")


def rules(*letters: str) -> Rules:
    return tuple(f'-m comment --comment "overlaynet: {letter}" -j RETURN' for letter in letters)


BUILTIN = {"filter": "FORWARD", "nat": "PREROUTING"}


def wanted(chains: Mapping[ChainKey, Rules]) -> Rendered:
    """These chains, called from built-in ones if they are called A."""
    called = [table for table, chain in chains if chain == "OVL-A"]
    hook = ('-m comment --comment "overlaynet: here" -j OVL-A',)
    hooks = {(table, BUILTIN[table]): hook for table in called}
    origins = {key: (Source("test", ""),) * len(texts) for key, texts in chains.items()}
    return Rendered(dict(chains), hooks, origins)


def filled(chains: Mapping[ChainKey, Rules]) -> FakeFirewall:
    firewall = FakeFirewall()
    firewall.restore(restore_text(pending(wanted(chains), firewall.observe(), {})))
    return firewall


def texts(have: RuleSet, key: ChainKey) -> Rules:
    return tuple(line.text for line in have.chains.get(key, ()))


def test_one_rule_more_among_many_is_one_line():
    many = [f"{n:03}" for n in range(500)]
    before, after = rules(*many[:250], *many[251:]), rules(*many)
    change = pending(wanted({DNATS: after}), filled({DNATS: before}).observe(), {})
    assert restore_text(change) == f"*nat\n-I OVL-A 251 {after[250]}\nCOMMIT\n"
    back = pending(wanted({DNATS: before}), filled({DNATS: after}).observe(), {})
    assert restore_text(back) == f"*nat\n-D OVL-A {after[250]}\nCOMMIT\n"


@pytest.mark.parametrize(
    ("have", "want"),
    [
        pytest.param("aab", "ab", id="one-is-doubled"),
        pytest.param("abc", "acb", id="places-changed"),
        pytest.param("ab", "cd", id="nothing-stays"),
        pytest.param("", "ab", id="emptied"),
    ],
)
def test_whole_chain_is_written_where_single_rules_would_not_do(have: str, want: str):
    assert edits(rules(*have), rules(*want)) is None


def test_whole_chain_is_written_where_much_differs():
    few, many = rules(*"ab"), rules(*"ab", *(str(n) for n in range(MAX_EDITS + 1)))
    assert edits(few, many) is edits(many, few) is None


def test_rejects_come_before_nat_and_go_after_it():
    """b loses its endpoints, c gets some."""
    firewall = filled({REJECTS: rules(*"cz"), DNATS: rules(*"ab")})
    want = wanted({REJECTS: rules(*"bz"), DNATS: rules(*"ac")})
    assert restore_text(pending(want, firewall.observe(), {})).splitlines() == [
        "*filter",
        f"-I OVL-A 1 {rules('b')[0]}",
        "COMMIT",
        "*nat",
        f"-D OVL-A {rules('b')[0]}",
        f"-I OVL-A 2 {rules('c')[0]}",
        "COMMIT",
        "*filter",
        f"-D OVL-A {rules('c')[0]}",
        "COMMIT",
    ]


def test_chain_nobody_wants_leaves_filter_after_nat():
    firewall = filled({REJECTS: rules("a"), DNATS: rules("a")})
    text = restore_text(pending(wanted({}), firewall.observe(), {}))
    assert commits(text) == ["nat", "filter"]


def test_without_nat_all_is_one_commit():
    firewall = filled({REJECTS: rules(*"ac")})
    text = restore_text(pending(wanted({REJECTS: rules(*"ab")}), firewall.observe(), {}))
    assert commits(text) == ["filter"]


LETTERS = st.lists(st.sampled_from("abcdefgh"), max_size=8, unique=True).map(lambda some: rules(*some))
ANY_RULES = st.lists(st.sampled_from("abcd"), max_size=6).map(lambda some: rules(*some))
CHAINS = st.dictionaries(
    st.sampled_from([(table, chain) for table in ("filter", "nat") for chain in ("OVL-A", "OVL-B")]), LETTERS
)
DRIFTED = st.dictionaries(
    st.sampled_from([(table, chain) for table in ("filter", "nat") for chain in ("OVL-A", "OVL-B")]), ANY_RULES
)


def commit_by_commit(text: str) -> Sequence[str]:
    return [part + "COMMIT\n" for part in text.split("COMMIT\n")[:-1]]


@given(DRIFTED, CHAINS)
def test_whatever_is_there_becomes_what_is_wanted(
    have: Mapping[ChainKey, Rules], want: Mapping[ChainKey, Rules]
):
    firewall = filled(have)
    before = firewall.observe()
    changes = pending(wanted(want), before, {})
    firewall.restore(restore_text(changes, before.chains))
    after = firewall.observe()
    assert pending(wanted(want), after, {}) == ()
    assert written(before, changes).chains == after.chains


@given(CHAINS, CHAINS)
def test_rules_that_stay_keep_their_counters(have: Mapping[ChainKey, Rules], want: Mapping[ChainKey, Rules]):
    firewall = filled(have)
    for key, present in have.items():
        for position in range(len(present)):
            firewall.hit(*key, position)
    before = firewall.observe()
    firewall.restore(restore_text(pending(wanted(want), before, {}), before.chains))
    after = firewall.observe()
    for key in have.keys() & want.keys():
        assert all(line.packets == (line.text in have[key]) for line in after.chains[key])


@given(CHAINS, CHAINS)
def test_at_no_moment_a_reject_is_missing(have: Mapping[ChainKey, Rules], want: Mapping[ChainKey, Rules]):
    """Before nat changes the filter holds all that is wanted; what is not, it holds until nat has changed."""
    firewall = filled(have)
    before = firewall.observe()
    old, new = texts(before, REJECTS), want.get(REJECTS, ())
    for part in commit_by_commit(restore_text(pending(wanted(want), before, {}), before.chains)):
        if part.startswith("*nat"):
            present = texts(firewall.observe(), REJECTS)
            assert set(present) == {*old, *new}
            assert [text for text in present if text in new] == list(new)
        firewall.restore(part)


@given(LETTERS, LETTERS)
def test_union_holds_all_of_both_once_and_the_wanted_in_order(have: Rules, want: Rules):
    both = union(have, want)
    assert sorted(both) == sorted({*have, *want})
    assert tuple(text for text in both if text in want) == want


@given(
    st.lists(
        st.tuples(CHAINS, DRIFTED, st.sampled_from(["wrote", "wrote in part", "read", "drift"])), max_size=6
    )
)
def test_comparing_again_and_again_finds_what_comparing_anew_finds(
    turns: list[tuple[Mapping[ChainKey, Rules], Mapping[ChainKey, Rules], str]],
):
    comparison, have = Comparison(), FakeFirewall().observe()
    for chains, drifted, then in turns:
        want = wanted(chains)
        found = comparison.pending(want, have, {})
        assert found == pending(want, have, {})
        made = found[: len(found) // 2] if then == "wrote in part" else found
        after = filled(drifted).observe() if then == "drift" else written(have, made)
        if then.startswith("wrote"):
            comparison.written(made, have, after)
        have = after
        assert comparison.pending(want, have, {}) == pending(want, have, {})
