"""What every `ports.Firewall` does, in memory and on both variants of iptables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.firewall_cases import BASE, FORWARD_ONLY, PEERS_ONLY, TWO_NETWORKS, restore, rules_of
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import FirewallError
from overlaynet.firewall.iptables import Iptables
from overlaynet.ports import Firewall
from overlaynet.state import ChainKey, Policy, RuleChange, RuleSet, Source
from overlaynet.testing.fake_firewall import FakeFirewall

FOREIGN = """\
*filter
:DOCKER - [0:0]
-A FORWARD -i docker0 -m comment --comment "before ours, once" -j DOCKER
-A FORWARD -m comment --comment "not overlaynet: at all" -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A DOCKER -j RETURN
COMMIT
*nat
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
"""
HOOK = '-m comment --comment "overlaynet: let container traffic through" -j OVL-FORWARD'
FROM_CONTAINERS = '-s 10.244.0.0/16 -m comment --comment "overlaynet: from containers" -j ACCEPT'
FORWARD = ("filter", "FORWARD")
OVL_FORWARD = ("filter", "OVL-FORWARD")


@dataclass(frozen=True)
class Bench:
    """A filter under test and another program's hand on the same rules."""

    firewall: Firewall
    clean: Callable[[], None]
    hand: Callable[[str], None]

    def reach(self, want: Mapping[str, Policy]) -> tuple[RuleChange, ...]:
        """One round: look, compare, write. Answers what was written."""
        have = self.firewall.observe()
        changes = self.firewall.pending(want, have)
        self.firewall.apply(changes, have)
        return changes

    def rules(self) -> dict[ChainKey, tuple[str, ...]]:
        return rules_of(self.firewall.observe())

    def edit(self, table: str, *lines: str) -> None:
        self.hand("\n".join([f"*{table}", *lines, "COMMIT", ""]))


KERNEL = [pytest.mark.kernel, requires_netns]


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.fake),
        pytest.param("legacy", marks=KERNEL),
        pytest.param("nft", marks=KERNEL),
    ]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    if request.param == "fake":
        fake = FakeFirewall()
        yield Bench(fake, fake.clean, fake.restore)
        return
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    with private_netns() as netns, netns.entered():
        real = Iptables(request.param)
        yield Bench(real, real.clean, lambda text: restore(request.param, text))


@pytest.mark.parametrize("want", [BASE, PEERS_ONLY, TWO_NETWORKS, FORWARD_ONLY])
def test_second_round_writes_nothing(bench: Bench, want: Mapping[str, Policy]):
    assert bench.reach(want)
    assert bench.reach(want) == ()


def test_an_empty_filter_needs_nothing_for_no_policies(bench: Bench):
    assert bench.reach({}) == ()


@pytest.mark.parametrize(
    ("table", "edit"),
    [
        pytest.param("filter", [f"-D OVL-FORWARD {FROM_CONTAINERS}"], id="rule-deleted"),
        pytest.param("filter", [f"-A OVL-FORWARD {FROM_CONTAINERS}"], id="rule-doubled"),
        pytest.param(
            "filter",
            [
                f"-D OVL-FORWARD {FROM_CONTAINERS}",
                f"-I OVL-FORWARD 4 {FROM_CONTAINERS.replace('10.244.0.0/16', '10.244.1.0/24')}",
            ],
            id="rule-edited-under-its-comment",
        ),
        pytest.param(
            "filter",
            [f"-D OVL-FORWARD {FROM_CONTAINERS}", f"-A OVL-FORWARD {FROM_CONTAINERS}"],
            id="rules-out-of-order",
        ),
        pytest.param("filter", ["-I OVL-FORWARD 1 -j DROP"], id="foreign-rule-in-our-chain"),
        pytest.param("filter", [":OVL-FORWARD - [0:0]"], id="chain-emptied"),
        pytest.param("filter", [f"-D FORWARD {HOOK}"], id="hook-deleted"),
        pytest.param("filter", [f"-A FORWARD {HOOK}"], id="hook-doubled"),
        pytest.param("filter", [f"-A FORWARD {HOOK}"] * 3, id="hook-four-times"),
        pytest.param(
            "filter",
            [f"-D FORWARD {HOOK}", f"-I FORWARD 1 -i eth0 {HOOK}"],
            id="hook-narrowed-under-its-comment",
        ),
        pytest.param(
            "filter",
            [f"-D FORWARD {HOOK}", ":OVL-FORWARD - [0:0]", "-X OVL-FORWARD"],
            id="chain-and-hook-deleted",
        ),
        pytest.param(
            "filter",
            [":OVL-STRAY - [0:0]", ":OVL-TWO - [0:0]", "-A OVL-STRAY -j OVL-TWO", "-A INPUT -j OVL-STRAY"],
            id="stray-chains-of-ours-with-a-hook",
        ),
        pytest.param(
            "mangle", [":OVL-STRAY - [0:0]", "-A OVL-STRAY -j ACCEPT"], id="stray-chain-in-another-table"
        ),
    ],
)
def test_drift_is_seen_and_repaired_in_one_round(bench: Bench, table: str, edit: list[str]):
    bench.hand(FOREIGN)
    bench.reach(BASE)
    right = bench.rules()
    bench.edit(table, *edit)
    assert bench.reach(BASE)
    assert bench.rules() == right
    assert bench.reach(BASE) == ()


def test_hook_goes_in_front_and_foreign_rules_stay_as_they_were(bench: Bench):
    bench.hand(FOREIGN)
    before = bench.rules()
    bench.reach(BASE)
    after = bench.rules()
    assert after[FORWARD] == (HOOK, *before[FORWARD])
    assert after[("filter", "DOCKER")] == before[("filter", "DOCKER")]
    assert after[("nat", "POSTROUTING")][1:] == before[("nat", "POSTROUTING")]


def test_a_foreign_rule_that_went_in_front_later_is_not_fought(bench: Bench):
    bench.reach(BASE)
    bench.edit("filter", "-I FORWARD 1 -i docker0 -j DROP")
    assert bench.reach(BASE) == ()


def test_clean_leaves_foreign_rules_exactly_as_they_were(bench: Bench):
    bench.hand(FOREIGN)
    before = bench.rules()
    bench.reach(PEERS_ONLY)
    bench.clean()
    assert bench.rules() == before


def test_clean_where_nothing_is_ours_changes_nothing(bench: Bench):
    bench.hand(FOREIGN)
    before = bench.rules()
    bench.clean()
    assert bench.rules() == before


def test_a_chain_of_ours_goes_with_foreign_jumps_to_it(bench: Bench):
    bench.reach(FORWARD_ONLY)
    bench.edit("filter", ":DOCKER-USER - [0:0]", "-A DOCKER-USER -j OVL-FORWARD", "-A DOCKER-USER -j RETURN")
    bench.clean()
    assert bench.rules().get(("filter", "DOCKER-USER")) == ("-j RETURN",)
    assert OVL_FORWARD not in bench.rules()


def test_policy_that_went_takes_its_chains_and_hooks_along(bench: Bench):
    bench.reach(PEERS_ONLY)
    bench.reach(FORWARD_ONLY)
    ours = {key for key in bench.rules() if key[1].startswith("OVL-")}
    assert ours == {OVL_FORWARD}
    assert set(bench.rules()) == {OVL_FORWARD, FORWARD}


def test_only_chains_that_differ_are_named(bench: Bench):
    bench.reach(BASE)
    changes = bench.reach(PEERS_ONLY)
    assert {(c.op, c.chain) for c in changes} == {("changed", "OVL-INPUT"), ("missing", "OVL-VXLAN-8472")}


def test_a_change_tells_both_sides_and_who_asked(bench: Bench):
    bench.reach(FORWARD_ONLY)
    bench.edit("filter", f"-D OVL-FORWARD {FROM_CONTAINERS}")
    have = bench.firewall.observe()
    (change,) = bench.firewall.pending(FORWARD_ONLY, have)
    to_containers = '-d 10.244.0.0/16 -m comment --comment "overlaynet: to containers" -j ACCEPT'
    assert change == RuleChange(
        "changed",
        *OVL_FORWARD,
        (FROM_CONTAINERS, to_containers),
        (to_containers,),
        Source("policy", "forward"),
    )


def test_a_jump_to_nowhere_is_refused_with_its_line_and_nothing_is_written(bench: Bench):
    bench.reach(BASE)
    before = bench.rules()
    bad = RuleChange("missing", "nat", "OVL-X", ("-s 10.0.0.0/8 -j OVL-NOWHERE",), None, Source("test", ""))
    with pytest.raises(FirewallError) as caught:
        bench.firewall.apply([bad], bench.firewall.observe())
    assert "OVL-NOWHERE" in caught.value.line
    assert bench.rules() == before


def test_a_change_computed_from_rules_that_are_gone_fails_and_the_next_round_succeeds(bench: Bench):
    bench.reach(BASE)
    bench.edit("filter", f"-A FORWARD {HOOK}")
    stale = bench.firewall.observe()
    changes = bench.firewall.pending(BASE, stale)
    bench.edit("filter", f"-D FORWARD {HOOK}", f"-D FORWARD {HOOK}")
    with pytest.raises(FirewallError):
        bench.firewall.apply(changes, stale)
    bench.reach(BASE)
    assert bench.reach(BASE) == ()


def test_observation_carries_the_policy_of_built_in_chains_alone(bench: Bench):
    bench.reach(BASE)
    have: RuleSet = bench.firewall.observe()
    assert have.policies[FORWARD] == "ACCEPT"
    assert have.policies[OVL_FORWARD] == "-"


def test_rules_are_known_until_somebody_changes_them(bench: Bench):
    assert bench.firewall.recall() is None
    bench.reach(BASE)
    have = bench.firewall.recall()
    assert have is not None
    assert bench.firewall.pending(BASE, have) == ()
    bench.edit("filter", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT")
    assert bench.firewall.recall() is None
    assert bench.firewall.observe() == bench.firewall.recall()


def test_rules_known_after_a_write_are_those_that_are_there(bench: Bench):
    """Chains and hooks that come, change and go; with other programs' rules between."""
    bench.hand(FOREIGN)
    for want in (BASE, PEERS_ONLY, BASE, FORWARD_ONLY, TWO_NETWORKS, PEERS_ONLY):
        bench.reach(want)
        known = bench.firewall.recall()
        assert known is None or rules_of(known) == rules_of(bench.firewall.observe())
        assert bench.firewall.recall() is not None
