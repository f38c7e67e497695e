"""What every `ports.AffinitySets` does, the one in memory and the kernel's alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.eventually import eventually
from helpers.firewall_cases import restore
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import FirewallBusy, FirewallError
from overlaynet.firewall.chains import is_ours
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.ports import AffinitySets
from overlaynet.testing.fake_services import FakeSets

NAME = "OVL-ABCDEFGHIJKLMNOPQRSTUVWXYZ2"
"""As long as a name can be."""


@dataclass(frozen=True)
class Bench:
    """Sets under test; `use` puts a rule on one, and takes it away again."""

    sets: AffinitySets
    use: Callable[[str, bool], None]
    foreign: AffinitySets


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.fake),
        pytest.param("legacy", marks=[pytest.mark.kernel, requires_netns]),
        pytest.param("nft", marks=[pytest.mark.kernel, requires_netns]),
    ]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    if request.param == "fake":
        fake, others = FakeSets(), FakeSets(prefix="")
        others.sets = fake.sets
        yield Bench(fake, lambda name, on: (fake.used.add if on else fake.used.discard)(name), others)
        return
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))

    def use(name: str, on: bool) -> None:
        rule = f"-{'A' if on else 'D'} FORWARD -m set --match-set {name} src -j ACCEPT"
        restore(request.param, f"*filter\n{rule}\nCOMMIT\n")

    with private_netns() as netns, netns.entered():
        real, everybody = AffinitySetsAdapter(is_ours), AffinitySetsAdapter(lambda _: True)
        yield Bench(real, use, everybody)
        real.close()
        everybody.close()


def test_a_set_is_there_with_its_timeout(bench: Bench):
    bench.sets.create(NAME, 10_800)
    bench.sets.create("OVL-B", 1)
    assert bench.sets.observe() == {NAME: 10_800, "OVL-B": 1}


def test_making_a_set_again_is_no_error(bench: Bench):
    for _ in range(2):
        bench.sets.create(NAME, 86_400)
    assert bench.sets.observe() == {NAME: 86_400}


def test_a_set_with_another_timeout_in_the_way_is_an_error(bench: Bench):
    bench.sets.create(NAME, 10)
    with pytest.raises(FirewallError, match=NAME):
        bench.sets.create(NAME, 20)
    assert bench.sets.observe() == {NAME: 10}


def test_a_set_is_destroyed_and_once_more_is_no_error(bench: Bench):
    bench.sets.create(NAME, 10)
    for _ in range(2):
        bench.sets.destroy(NAME)
    assert bench.sets.observe() == {}


def test_a_set_that_a_rule_uses_stays_until_the_rule_is_gone(bench: Bench):
    bench.sets.create(NAME, 10)
    bench.use(NAME, True)
    with pytest.raises(FirewallBusy):
        bench.sets.destroy(NAME)
    bench.use(NAME, False)

    def destroyed() -> bool:
        try:
            bench.sets.destroy(NAME)
        except FirewallBusy as error:
            raise AssertionError from error
        return NAME not in bench.sets.observe()

    eventually(destroyed)


def test_sets_of_others_are_not_seen(bench: Bench):
    bench.foreign.create("KUBE-CLUSTER-IP", 10)
    bench.sets.create(NAME, 10)
    assert bench.sets.observe() == {NAME: 10}
    assert set(bench.foreign.observe()) == {"KUBE-CLUSTER-IP", NAME}
