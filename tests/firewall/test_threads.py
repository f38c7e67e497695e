"""Rules are compared by the thread that writes them, and by those that answer what differs."""

from __future__ import annotations

import threading
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from overlaynet.firewall.compare import Comparison
from overlaynet.firewall.iptables import Iptables
from overlaynet.state import Endpoint, Policy, ServicePortPolicy, ServicesPolicy
from overlaynet.testing.fake_firewall import FakeFirewall

pytestmark = pytest.mark.unit


def wanted(*hosts: int) -> dict[str, Policy]:
    """A service for each, with one endpoint."""
    found: dict[str, Policy] = {"services": ServicesPolicy((ip_network("10.112.0.0/16"),))}
    for number, host in enumerate(hosts):
        chosen = (Endpoint(ip_address(f"10.244.{host}.2"), 53),)
        found[f"service {number}"] = ServicePortPolicy(
            f"default/dns-{number}", "", "udp", 53, cluster_ips=(ip_address(f"10.112.0.{10 + number}"),),
            cluster=chosen, usable=True, serving=frozenset(chosen),
        )  # fmt: skip
    return found


def test_comparison_is_not_misled_by_one_that_another_thread_makes_of_other_rules(monkeypatch):
    """The other has read the rules when all was well, and ends in the midst of ours."""
    fake = FakeFirewall()
    right = fake.apply(fake.pending(wanted(2, 3), fake.observe()), fake.observe())
    broken = next(key for key, lines in right.chains.items() if any(".2.2:53" in line.text for line in lines))
    wrong = replace(right, chains={**right.chains, broken: ()})
    rules, unsure = Iptables(), Comparison._unsure
    assert [(c.table, c.chain) for c in rules.pending(wanted(2, 3), wrong)] == [broken]

    def interrupted(self: Comparison, *arguments: object, **more: object) -> object:
        monkeypatch.undo()
        other = threading.Thread(target=rules.pending, args=(after, right))
        others.append(other)
        other.start()
        other.join(0.5)
        return unsure(self, *arguments, **more)

    after, others = wanted(2, 4), list[threading.Thread]()
    monkeypatch.setattr(Comparison, "_unsure", interrupted)
    found = rules.pending(after, wrong)
    others[0].join(20)
    assert broken in {(change.table, change.chain) for change in found}
