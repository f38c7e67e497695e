"""A long life of one writer of rules: services come, go and change, and others meddle, in a random order that
is the same in every run. After each round that reads, the rules are those that a writer without memory wants,
and what is foreign is as it was left."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from helpers.firewall_cases import MASQUERADE_ALL, OPEN, SERVICES, restore, rules_of, services
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.firewall.chains import is_ours
from overlaynet.firewall.compare import hooks_in
from overlaynet.firewall.iptables import Flavour, Iptables
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.reconcile import sync_firewall
from overlaynet.state import ChainKey, Endpoint, Policy, ServicePortPolicy

pytestmark = [pytest.mark.kernel, requires_netns]

ENDPOINTS = tuple(Endpoint(ip_address(f"10.244.{host}.{n}"), 8080) for host in (1, 2) for n in (2, 3, 4))
STEPS = 12


@pytest.fixture(autouse=True)
def netns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateNetns]:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    with private_netns() as made, made.entered():
        yield made


def random_port(choose: random.Random, number: int) -> ServicePortPolicy:
    """Service `number`, as it may be at some time."""
    cluster = tuple(sorted(choose.sample(ENDPOINTS, choose.randint(0, 4)), key=str))
    return replace(
        OPEN,
        service=f"default/s{number}",
        cluster_ips=(ip_address(f"10.112.0.{number + 10}"),),
        external_ips=choose.choice([(), (ip_address(f"203.0.113.{number + 10}"),)]),
        ingress_ips=(),
        node_port=choose.choice([0, 30000 + number]),
        internal_local=choose.random() < 0.2,
        external_local=choose.random() < 0.3,
        affinity_s=choose.choice([0, 0, 60, 600]),
        cluster=cluster,
        local=tuple(endpoint for endpoint in cluster if str(endpoint).startswith("10.244.1.")),
        usable=bool(cluster),
    )


@dataclass
class Life:
    """`ports` are the services as they are wanted now."""

    choose: random.Random
    flavour: Flavour
    ports: dict[int, ServicePortPolicy] = field(default_factory=dict)

    def policies(self) -> Mapping[str, Policy]:
        shared = MASQUERADE_ALL if self.choose.random() < 0.1 else SERVICES
        return services(*self.ports.values(), shared=shared)

    def change(self) -> None:
        """Some services come, go or change."""
        for _ in range(self.choose.randint(0, 3)):
            number = self.choose.randrange(12)
            if number in self.ports and self.choose.random() < 0.3:
                del self.ports[number]
            else:
                self.ports[number] = random_port(self.choose, number)

    def meddle(self, now: Iptables) -> None:
        """Somebody deletes, doubles or edits a rule of ours, empties a chain, or puts a rule of his own."""
        have = now.observe()
        mine = [
            (key, line.text) for key, lines in have.chains.items() for line in lines if _is_mine(key, line.text)
        ]
        if not mine:
            return
        (table, chain), text = self.choose.choice(mine)
        lines = {
            "delete": [f"-D {chain} {text}"],
            "double": [f"-I {chain} 1 {text}"],
            "edit": [f"-D {chain} {text}", f"-A {chain} {text.rpartition(' -j ')[0]} -j RETURN"],
            "empty": [f"-F {chain}"] if is_ours(chain) else [],
            "foreign first": ["-I FORWARD 1 -s 192.0.2.1/32 -j ACCEPT"] if table == "filter" else [],
            "foreign last": ["-A POSTROUTING -s 192.0.2.2/32 -j RETURN"] if table == "nat" else [],
        }[self.choose.choice(["delete", "double", "edit", "empty", "foreign first", "foreign last"])]
        if lines:
            restore(self.flavour, "\n".join([f"*{table}", *lines, "COMMIT", ""]))


def _is_mine(key: ChainKey, text: str) -> bool:
    return is_ours(key[1]) or "overlaynet: " in text


def foreign(rules: Mapping[ChainKey, tuple[str, ...]]) -> dict[ChainKey, list[str]]:
    others = {key: texts for key, texts in rules.items() if not is_ours(key[1])}
    return {key: [text for text in texts if "overlaynet: " not in text] for key, texts in others.items()}


def live(flavour: Flavour, seed: int, steps: int) -> None:
    life, writer = Life(random.Random(seed), flavour), Iptables(flavour)
    with closing(AffinitySetsAdapter(is_ours)) as sets:
        sets.check()
        for step in range(steps):
            life.change()
            meddled = step > 0 and life.choose.random() < 0.5
            if meddled:
                life.meddle(Iptables(flavour))
            want, before = life.policies(), foreign(rules_of(Iptables(flavour).observe()))
            sync_firewall(writer, want, sets=sets, fresh=meddled or life.choose.random() < 0.3)
            newcomer = Iptables(flavour)
            have = newcomer.observe()
            assert newcomer.pending(want, have) == (), (seed, step)
            after = foreign(rules_of(have))
            assert {k: v for k, v in after.items() if v} == {k: v for k, v in before.items() if v}, (seed, step)
            assert sets.observe() == newcomer.affinity_sets(want), (seed, step)
            for (table, chain), lines in have.chains.items():
                ours = hooks_in(lines)
                assert is_ours(chain) or len(ours) == len(set(ours)), (table, chain)


@pytest.mark.parametrize("flavour", ["legacy", "nft"])
@pytest.mark.parametrize("seed", [1, 2])
def test_rules_are_right_after_any_changes_by_us_and_others(flavour: Flavour, seed: int):
    live(flavour, seed, STEPS)
