"""Connections and ipsets where the kernel has neither, and as many as there can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from helpers.flows import flow, kernels_table
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.errors import NoConntrack, NoIpset
from overlaynet.kernel import conntrack, ipset
from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.kernel.observe import own_addresses

pytestmark = [pytest.mark.kernel, requires_netns]

NO_SUBSYSTEM = 200
"""The kernel answers for a number that nobody has registered as for a module that it lacks."""


@pytest.fixture
def inside() -> Iterator[PrivateNetns]:
    with private_netns() as netns, netns.entered():
        yield netns


@pytest.mark.parametrize("family", [4, 6])
def test_this_kernel_has_both(inside: PrivateNetns, family: int):
    with closing(ConntrackAdapter(family)) as table, closing(AffinitySetsAdapter(bool, family)) as sets:
        table.check()
        sets.check()


def test_a_kernel_without_ctnetlink_is_told(inside: PrivateNetns, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conntrack, "CONNTRACK", NO_SUBSYSTEM)
    with closing(ConntrackAdapter()) as table:
        for ask in (table.check, lambda: list(table.flows(["udp"]))):
            with pytest.raises(NoConntrack, match="nf_conntrack_netlink"):
                ask()


def test_a_kernel_without_ipsets_is_told(inside: PrivateNetns, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ipset, "IPSET", NO_SUBSYSTEM)
    with closing(AffinitySetsAdapter(bool)) as sets:
        for ask in (sets.check, sets.observe):
            with pytest.raises(NoIpset):
                ask()


def test_a_kernel_without_the_type_of_set_is_told(inside: PrivateNetns, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ipset, "HASH_IP", "hash:nothing")
    with closing(AffinitySetsAdapter(bool)) as sets:
        with pytest.raises(NoIpset):
            sets.check()
        with pytest.raises(NoIpset):
            sets.create("OVL-A", 10)


def test_connections_of_ipv6_are_read_and_forgotten(inside: PrivateNetns):
    there = flow("udp", "[fd00::1]:4000", "[fd00:112::10]:53", "[fd00:244::2]:5353")
    with kernels_table() as table, closing(ConntrackAdapter(6)) as found:
        table.insert(there)
        assert list(found.flows(["udp"])) == [there]
        found.delete(there)
        assert list(found.flows(["udp"])) == []


def test_connections_without_ports_and_of_another_zone_are_passed_over(
    inside: PrivateNetns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    inside.run("iptables-legacy -t raw -A OUTPUT -p udp -j CT --zone 7")
    inside.run("iptables-legacy -t nat -A OUTPUT -j ACCEPT")
    inside.run("ping -c 1 127.0.0.1")
    inside.run("python3 -c __import__('socket').socket(2,2).sendto(b'x',('127.0.0.1',9))")
    listed = inside.run("cat /proc/net/nf_conntrack")
    assert "icmp" in listed
    assert "zone=7" in listed
    with closing(ConntrackAdapter()) as table:
        assert list(table.flows(["udp", "tcp", "sctp"])) == []


def test_a_table_of_many_connections_is_read_whole(inside: PrivateNetns):
    many = [
        flow("udp", f"10.1.{i >> 8}.{i & 255}:4000", "10.112.0.10:53", "10.244.2.2:53") for i in range(5_000)
    ]
    with kernels_table() as table, closing(ConntrackAdapter()) as found:
        table.insert(*many)
        assert set(found.flows(["udp"])) == set(many)


def test_many_sets_are_listed_without_their_members(inside: PrivateNetns):
    names = {f"OVL-SEP-{number:04}": 10_800 for number in range(300)}
    with closing(AffinitySetsAdapter(lambda name: True)) as sets:
        for name, timeout_s in names.items():
            sets.create(name, timeout_s)
        inside.run("ipset add OVL-SEP-0007 10.0.0.1")
        assert sets.observe() == names


def test_own_addresses_are_of_every_device_and_one_family(inside: PrivateNetns):
    inside.run("ip link add br0 type bridge")
    inside.run("ip address add 192.0.2.7/24 dev br0")
    inside.run("ip address add 2001:db8::7/64 dev br0")
    with Rtnl.open() as rtnl:
        assert own_addresses(rtnl) == {ip_address("127.0.0.1"), ip_address("192.0.2.7")}
        assert ip_address("2001:db8::7") in own_addresses(rtnl, 6)
