"""The real programs, both variants, in network namespaces of the tests' own."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from helpers.firewall_cases import (
    BASE,
    CASES,
    DUAL_STACK,
    FORWARD_ONLY,
    OPEN,
    PEERS_ONLY,
    WEB,
    Case,
    make_sets,
    restore,
    rules_of,
    services,
)
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import FirewallBusy, FirewallError, ToolMissing
from overlaynet.firewall import iptables
from overlaynet.firewall.chains import Rendered, probability, rule
from overlaynet.firewall.compare import pending
from overlaynet.firewall.iptables import Flavour, Iptables
from overlaynet.firewall.restore import MAX_EDITS
from overlaynet.state import RuleChange, Source

pytestmark = [pytest.mark.kernel, requires_netns]

GOLDEN = Path(__file__).parent / "golden"
VIP = ip_address("10.112.1.0")
FOREIGN = "*filter\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"

both = pytest.mark.parametrize("flavour", ["legacy", "nft"])
every_case = pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])


@pytest.fixture(autouse=True)
def netns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateNetns]:
    """Every test here runs inside an empty namespace, with a lock file of its own."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    with private_netns() as made, made.entered():
        yield made


def reach(firewall: Iptables, want=BASE) -> tuple[RuleChange, ...]:
    have = firewall.observe()
    changes = firewall.pending(want, have)
    firewall.apply(changes, have)
    return changes


@both
@every_case
def test_golden_file_is_accepted(flavour: Flavour, case: Case):
    text = (GOLDEN / f"{case.name}.rules").read_text()
    make_sets(case.rendered().sets, case.family)
    restore(flavour, text, "--test", family=case.family)
    assert rules_of(case.filter(flavour).observe()) == {}


@both
@every_case
def test_what_is_written_reads_back_as_the_same_text(flavour: Flavour, case: Case):
    firewall, want = case.filter(flavour), case.rendered()
    make_sets(want.sets, case.family)
    reach(firewall, case.policies)
    assert rules_of(firewall.observe()) == {**want.chains, **want.hooks}
    assert pending(want, firewall.observe(), {}) == ()


@both
def test_spelling_of_what_service_rules_are_made_of_reads_back_as_the_same_text(flavour: Flavour):
    vip = ip_network("10.112.0.1/32")
    texts = (
        rule('it\'s "ns/web:http" \\ cluster IP', "OVL-SEP-X", dst=vip, matches=["-p tcp -m tcp --dport 80"]),
        *(rule("ns/web -> ep", "OVL-SEP-X", matches=[probability(1 / n)]) for n in range(2, 20)),
        rule("mark", "MARK --set-xmark 0x4000/0x4000"),
        rule("unmark", "MARK --set-xmark 0x4000/0x0"),
        rule("unmarked", "RETURN", matches=["-m mark ! --mark 0x4000/0x4000"]),
        rule("node port", "OVL-SEP-X", matches=["-m addrtype --dst-type LOCAL"]),
        rule("dnat", "DNAT --to-destination 10.244.1.2:8080", matches=["-p tcp -m tcp"]),
        rule(
            "affinity",
            "OVL-SEP-X",
            matches=[
                "-m recent --rcheck --seconds 10800 --reap --name OVL-SEP-X --mask 255.255.255.255 --rsource"
            ],
        ),
    )
    source = Source("test", "")
    firewall = Iptables(flavour)
    firewall.apply(
        [
            RuleChange("missing", "nat", "OVL-SEP-X", (), None, source),
            RuleChange("missing", "nat", "OVL-SVC-X", texts, None, source),
        ],
        firewall.observe(),
    )
    assert rules_of(firewall.observe())[("nat", "OVL-SVC-X")] == texts


@both
def test_counters_of_chains_that_do_not_differ_survive(flavour: Flavour, netns: PrivateNetns):
    firewall = Iptables(flavour)
    reach(firewall)
    netns.run("ip address add 10.244.1.1/24 dev lo")
    netns.run("ping -c 3 -i 0.01 -q 10.244.1.1")

    def postrouted() -> int:
        return firewall.observe().chains[("nat", "POSTROUTING")][0].packets

    before = postrouted()
    assert before
    reach(firewall, PEERS_ONLY)
    assert postrouted() == before


def saves(firewall: Iptables, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The readings from now on."""
    seen: list[str] = []
    run = firewall._run

    def counted(command, text):
        seen.extend(command[:1] if "save" in command[0] else ())
        return run(command, text)

    monkeypatch.setattr(firewall, "_run", counted)
    return seen


@both
def test_one_service_more_is_a_few_lines_and_needs_no_reading(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
):
    firewall = Iptables(flavour)
    ports = [replace(WEB, service=f"default/web-{n}", cluster_ips=(VIP + n,)) for n in range(9)]
    reach(firewall, services(*ports[:5], *ports[6:8]))
    readings, bytes_before = saves(firewall, monkeypatch), firewall.bytes_written
    for want in (services(*ports[:8]), services(*ports), services(*ports[1:])):
        have = firewall.recall()
        assert have is not None
        after = firewall.apply(firewall.pending(want, have), have)
        assert firewall.pending(want, after) == ()
    assert readings == []
    assert firewall.bytes_written - bytes_before < 9000
    assert rules_of(firewall.observe()) == rules_of(after)


@both
def test_somebody_elses_hand_between_reading_and_writing_is_noticed(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
):
    firewall = Iptables(flavour)
    reach(firewall, services(WEB))
    reach(firewall, services(OPEN))
    reach(firewall, services(WEB))
    readings, have = saves(firewall, monkeypatch), firewall.recall()
    assert have is not None
    restore(flavour, FOREIGN)
    after = firewall.apply(firewall.pending(services(OPEN), have), have)
    assert readings
    assert len(after.chains[("filter", "INPUT")]) > len(have.chains[("filter", "INPUT")])


@both
def test_counters_of_rules_that_stay_survive_in_a_chain_that_changes(flavour: Flavour):
    firewall = Iptables(flavour)
    reach(firewall, services(WEB))
    key = ("nat", "OVL-SERVICES")

    def counted() -> dict[str, int]:
        return {line.text: line.packets for line in firewall.observe().chains[key]}

    text = next(iter(counted()))
    hit = f"*nat\n:OVL-SERVICES - [0:0]\n[7:420] -A OVL-SERVICES {text}\nCOMMIT\n"
    restore(flavour, hit, "--counters")
    assert counted() == {text: 7}
    reach(firewall, services(WEB, replace(WEB, service="default/a", cluster_ips=(VIP,))))
    assert counted()[text] == 7
    ports = (replace(WEB, service=f"default/b{n}", cluster_ips=(VIP + n,)) for n in range(MAX_EDITS + 1))
    reach(firewall, services(WEB, *ports))
    assert counted()[text] == 7


@both
def test_commits_and_bytes_are_counted(flavour: Flavour):
    firewall = Iptables(flavour)
    reach(firewall)
    written = firewall.bytes_written
    reach(firewall)
    assert firewall.bytes_written == written > 0
    reach(firewall, PEERS_ONLY)
    assert firewall.restores == {"filter": 2, "nat": 1}


@both
def test_a_rule_that_is_printed_in_other_words_is_written_once(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
):
    """As with a version of iptables whose spelling is not ours."""
    text = '-s 10.244.0.5 -m comment --comment "overlaynet: a" -j MARK --or-mark 0x4000'
    odd = Rendered(chains={("nat", "OVL-X"): (text,)}, origins={("nat", "OVL-X"): (Source("test", ""),)})
    monkeypatch.setattr(iptables, "Renderer", lambda **_: lambda _: odd)
    firewall = Iptables(flavour)
    assert reach(firewall)
    assert rules_of(firewall.observe())[("nat", "OVL-X")] != (text,)
    assert reach(firewall) == ()
    edited = text.replace("10.244.0.5", "10.244.0.6")
    restore(flavour, f"*nat\n-F OVL-X\n-A OVL-X {edited}\nCOMMIT\n")
    assert reach(firewall)


def test_each_family_has_rules_of_its_own():
    four, six = Iptables("nft"), Iptables("nft", family=6)
    reach(four, DUAL_STACK)
    assert rules_of(six.observe()) == {}
    reach(six, DUAL_STACK)
    assert reach(four, DUAL_STACK) == reach(six, DUAL_STACK) == ()
    six.clean()
    assert rules_of(six.observe()) == {}
    assert reach(four, DUAL_STACK) == ()


# --- which variant --------------------------------------------------------------------------------


@both
def test_variant_that_holds_foreign_rules_is_chosen(flavour: Flavour):
    restore(flavour, FOREIGN)
    assert Iptables().flavour == flavour


@both
def test_restart_stays_with_the_variant_that_holds_ours(flavour: Flavour):
    reach(Iptables(flavour))
    assert Iptables().flavour == flavour
    assert reach(Iptables()) == ()


@both
def test_ours_do_not_count_against_foreign_rules_of_the_other_variant(flavour: Flavour):
    other: Flavour = "nft" if flavour == "legacy" else "legacy"
    reach(Iptables(flavour))
    restore(other, FOREIGN)
    assert Iptables().flavour == other


@both
def test_plain_iptables_decides_where_there_are_no_rules(
    flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "iptables").symlink_to(Path("/usr/sbin") / f"iptables-{flavour}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Iptables().flavour == flavour


@both
def test_only_variant_installed_is_used(flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("iptables", "iptables-save", "iptables-restore"):
        program = name.replace("iptables", f"iptables-{flavour}")
        (tmp_path / name).symlink_to(Path("/usr/sbin") / program)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(iptables, "_SYSTEM_PATH", "")
    firewall = Iptables()
    assert firewall.flavour == flavour
    assert reach(firewall)
    assert reach(firewall) == ()


@both
def test_ours_leave_the_variant_that_is_no_longer_meant(flavour: Flavour):
    other: Flavour = "nft" if flavour == "legacy" else "legacy"
    restore(flavour, FOREIGN)
    before = rules_of(Iptables(flavour).observe())
    reach(Iptables(flavour))
    firewall = Iptables(other)
    reach(firewall)
    assert rules_of(Iptables(flavour).observe()) == before
    assert reach(firewall) == ()


@pytest.fixture
def tables_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a user namespace: the legacy variant reads a table only by its name."""
    for name in ("iptables-legacy-restore", "iptables-nft-save", "iptables-nft-restore", "iptables"):
        (tmp_path / name).symlink_to(Path("/usr/sbin") / name)
    save = tmp_path / "iptables-legacy-save"
    refusal = "Failed to list table names in /proc/net/ip_tables_names: Permission denied"
    by_name = 'case "$*" in *-t*) exec /usr/sbin/iptables-legacy-save "$@" ;; esac'
    save.write_text(f'#!/bin/sh\n{by_name}\necho "{refusal}" >&2\nexit 1\n')
    save.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.usefixtures("tables_cannot_be_listed")
def test_legacy_works_where_its_tables_cannot_be_listed():
    firewall = Iptables("legacy")
    assert reach(firewall)
    assert reach(firewall) == ()
    firewall.clean()
    assert rules_of(firewall.observe()) == {}


@pytest.mark.usefixtures("tables_cannot_be_listed")
def test_legacy_is_not_set_up_only_to_find_out_which_variant_to_use(netns: PrivateNetns):
    reach(Iptables("nft"))
    assert Iptables().flavour == "nft"
    assert netns.run("cat /proc/thread-self/net/ip_tables_names") == ""


def test_clean_takes_ours_out_of_both_variants():
    for flavour in ("legacy", "nft"):
        restore(flavour, (GOLDEN / "base.rules").read_text())
    Iptables().clean()
    assert rules_of(Iptables("legacy").observe()) == rules_of(Iptables("nft").observe()) == {}


# --- refusals -------------------------------------------------------------------------------------


def test_no_iptables_at_all_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(iptables, "_SYSTEM_PATH", "")
    with pytest.raises(ToolMissing) as caught:
        Iptables().observe()
    assert caught.value.next == ("apt-get install iptables",)


def test_a_lock_that_is_held_is_worth_another_try(tmp_path: Path):
    firewall = Iptables("legacy", deadline_s=0.3)
    have = firewall.observe()
    changes = firewall.pending(FORWARD_ONLY, have)
    with (tmp_path / "xtables.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FirewallBusy):
            firewall.apply(changes, have)
    patient = Iptables("legacy")
    patient.apply(changes, have)
    assert patient.pending(FORWARD_ONLY, patient.observe()) == ()


@both
def test_a_rule_the_kernel_has_no_match_for_is_named(flavour: Flavour):
    firewall = Iptables(flavour)
    bad = RuleChange("missing", "filter", "OVL-X", ("-m nonsense -j DROP",), None, Source("test", ""))
    with pytest.raises(FirewallError) as caught:
        firewall.apply([bad], firewall.observe())
    assert caught.value.line == "-A OVL-X -m nonsense -j DROP"
    assert rules_of(firewall.observe()) == {}
