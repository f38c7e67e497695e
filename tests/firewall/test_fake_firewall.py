from __future__ import annotations

import pytest
from helpers.firewall_cases import BASE, FORWARD_ONLY, PEERS_ONLY

from overlaynet.errors import FirewallBusy, FirewallError
from overlaynet.state import RuleLine
from overlaynet.testing.fake_firewall import FakeFirewall

pytestmark = pytest.mark.fake


def reach(fake: FakeFirewall, want=BASE) -> int:
    have = fake.observe()
    changes = fake.pending(want, have)
    fake.apply(changes, have)
    return len(changes)


def test_injected_failure_writes_nothing_and_the_next_round_converges():
    fake = FakeFirewall()
    before = fake.observe()
    fake.fail(FirewallBusy("held"))
    with pytest.raises(FirewallBusy):
        reach(fake)
    assert fake.observe() == before
    assert reach(fake)
    assert reach(fake) == 0


def test_a_filter_that_spells_rules_otherwise_is_written_once():
    fake = FakeFirewall(spell=lambda text: text.replace("0x4000/0x4000", "16384/16384"))
    assert reach(fake)
    assert reach(fake) == 0


def test_edit_is_seen_where_rules_are_spelt_otherwise():
    fake = FakeFirewall(spell=lambda text: text.replace("--random-fully", "--random --fully"))
    reach(fake)
    fake.restore("*nat\n-A OVL-POSTROUTING -j ACCEPT\nCOMMIT\n")
    assert reach(fake) == 1


def test_counters_of_chains_that_do_not_differ_survive():
    fake = FakeFirewall()
    reach(fake)
    fake.hit("filter", "OVL-FORWARD", 0, packets=3, octets=300)
    reach(fake, PEERS_ONLY)
    assert fake.observe().chains[("filter", "OVL-FORWARD")][0][1:] == (3, 300)


def test_commits_are_counted_by_table():
    fake = FakeFirewall()
    reach(fake)
    reach(fake)
    reach(fake, PEERS_ONLY)
    assert fake.restores == {"filter": 2, "nat": 1}
    assert fake.bytes_written > 0


def test_foreign_rules_in_front_are_told():
    fake = FakeFirewall()
    fake.restore("*filter\n-A FORWARD -j DROP\nCOMMIT\n")
    assert fake.blockers(FORWARD_ONLY, fake.observe()) == (
        "a foreign rule stands before ours in table filter chain FORWARD: -j DROP",
    )


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["-A OVL-A -j DROP"], "-A OVL-A -j DROP"),
        ([":OVL-A - [0:0]", "-A OVL-A -g OVL-B"], "-A OVL-A -g OVL-B"),
        ([":OVL-A - [0:0]", "-A INPUT -j OVL-A", "-X OVL-A"], "-A INPUT -j OVL-A"),
        ([":OVL-A - [0:0]", "-A OVL-A -j DROP", "-X OVL-A"], "-X OVL-A"),
        (["-X INPUT"], "-X INPUT"),
        (["-D INPUT -j DROP"], "-D INPUT -j DROP"),
        ([f":OVL-{'A' * 25} - [0:0]"], f":OVL-{'A' * 25} - [0:0]"),
        (["-Z INPUT"], "-Z INPUT"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused(lines: list[str], named: str):
    fake = FakeFirewall()
    before = fake.observe()
    with pytest.raises(FirewallError) as caught:
        fake.restore("\n".join(["*filter", *lines, "COMMIT", ""]))
    assert caught.value.line == named
    assert fake.observe() == before


def test_a_table_refused_leaves_the_one_before_it_committed():
    fake = FakeFirewall()
    with pytest.raises(FirewallError):
        fake.restore("*filter\n-A INPUT -j DROP\nCOMMIT\n*nat\n-A NOWHERE -j DROP\nCOMMIT\n")
    assert fake.observe().chains[("filter", "INPUT")] == (RuleLine("-j DROP"),)
