"""Chains of nftables' own, as firewalld has them, that stop what our rules accept."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from helpers.firewall_cases import BASE
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.firewall.iptables import Flavour, Iptables

NFT = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""
pytestmark = [
    pytest.mark.kernel,
    requires_netns,
    pytest.mark.skipif(not NFT, reason="nftables is not installed"),
]

FIREWALLD = """\
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } reject with icmpv6 addr-unreachable
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    iifname "eth0" goto filter_FWD_public
    goto filter_FWD_public
  }
  chain filter_FWD_public {
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    goto filter_IN_public
  }
  chain filter_IN_public {
    tcp dport 22 accept
  }
}
"""
"""The shape of what firewalld 1.x writes for its default zone."""
POLICY = """\
table ip guard {
  chain through {
    type filter hook forward priority filter; policy drop;
    %s
  }
}
"""
HARMLESS = """\
table ip guard {
  chain through {
    type filter hook forward priority filter; policy accept;
    iifname "eth1" drop
    ip daddr 203.0.113.0/24 drop
    oifname != "cni0" tcp dport 25 reject
  }
  chain out {
    type filter hook output priority filter; policy drop;
  }
}
table ip6 guard {
  chain through {
    type filter hook forward priority filter; policy drop;
  }
}
"""


@pytest.fixture
def netns() -> Iterator[PrivateNetns]:
    with private_netns() as made:
        yield made


@pytest.fixture(params=["legacy", "nft"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


def put(netns: PrivateNetns, text: str) -> None:
    with netns.entered():
        subprocess.run([NFT, "-f", "-"], input=text, text=True, check=True, capture_output=True)


def found(netns: PrivateNetns, flavour: Flavour = "nft") -> tuple[str, ...]:
    with netns.entered():
        told = Iptables(flavour).strangers(BASE)
    assert told is not None
    return told


def test_firewalld_is_named_with_table_chain_and_what_to_type(netns: PrivateNetns, flavour: Flavour):
    put(netns, FIREWALLD)
    forward, received = found(netns, flavour)
    assert "table inet firewalld chain filter_FORWARD (hook forward) stops packets from cni0 to" in forward
    assert "firewall-cmd --permanent --zone=trusted --add-interface=flannel.1 --add-interface=cni0" in forward
    assert "table inet firewalld chain filter_INPUT (hook input) stops UDP to the VXLAN port 8472" in received
    assert "--add-port=8472/udp" in received


def test_firewalld_that_trusts_our_devices_and_opens_the_port_is_not(netns: PrivateNetns):
    put(netns, FIREWALLD)
    put(netns, 'insert rule inet firewalld filter_FORWARD_ZONES iifname { "cni0", "flannel.1" } accept\n')
    put(
        netns,
        "add rule inet firewalld filter_IN_public udp dport 8000-9000 ct state { new, untracked } accept\n",
    )
    assert found(netns) == ()


@pytest.mark.parametrize(
    ("rule", "stops"),
    [
        pytest.param("", True, id="policy"),
        pytest.param("ct state established,related accept", True, id="replies-alone-pass"),
        pytest.param('iifname "cni*" accept', True, id="one-direction-alone-passes"),
        pytest.param("ip saddr 10.244.0.0/16 accept", False, id="accepted-by-address"),
        pytest.param("accept", False, id="all-accepted-before"),
    ],
)
def test_policy_drop_stops_what_no_rule_before_accepts(netns: PrivateNetns, rule: str, stops: bool):
    put(netns, POLICY % rule)
    told = found(netns)
    assert bool(told) == stops
    assert all(
        "table ip guard chain through" in one and "nft list chain ip guard through" in one for one in told
    )


def test_what_concerns_others_is_not_told(netns: PrivateNetns):
    put(netns, HARMLESS)
    assert found(netns) == ()


def test_chains_of_iptables_nft_are_told_only_where_ours_are_legacy(netns: PrivateNetns):
    netns.run("iptables-nft -P FORWARD DROP")
    assert found(netns, "nft") == ()
    (told,) = found(netns, "legacy")
    assert "table ip filter chain FORWARD" in told


def test_host_without_nft_is_not_read(monkeypatch):
    monkeypatch.setattr("overlaynet.firewall.iptables._which", lambda name: None)
    assert Iptables("nft").strangers(BASE) is None
