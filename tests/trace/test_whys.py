"""Entries quoted as the tools print them: held to the tools."""

from __future__ import annotations

import subprocess

import pytest
from helpers import worlds
from helpers.private_netns import PrivateNetns, private_netns

from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.observe import observe
from overlaynet.state import KernelState
from overlaynet.trace import whys
from overlaynet.trace.whys import fdb_text, neigh_text, route_text, sysctl_name

COMMANDS = """\
link add eth0 type veth peer name wire
link set wire up
link set eth0 up
address add 192.168.50.11/24 dev eth0
link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.50.11 dev eth0 nolearning
link set flannel.1 up
address add 10.244.1.0/32 dev flannel.1
link add cni0 type bridge
address add 10.244.1.1/24 dev cni0
link set cni0 up
link add veth1 type veth peer name veth2
link set veth1 master cni0
route add default via 192.168.50.1
route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 111 metric 717827
route add 10.9.9.9/32 dev eth0 proto static scope link
route add blackhole 10.8.0.0/16 metric 7
route add unreachable 10.7.0.0/16
neigh add 10.244.2.0 lladdr 02:0a:f4:02:00:00 dev flannel.1 nud permanent
neigh add 192.168.50.12 lladdr 02:00:c0:a8:32:0c dev eth0 nud stale
"""
BRIDGE = """\
fdb add 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12 self permanent
fdb add 0a:58:0a:f4:01:02 dev veth1 master static
"""


@pytest.fixture
def netns():
    with private_netns() as made, made.entered():
        for program, text in (("ip", COMMANDS), ("bridge", BRIDGE)):
            subprocess.run([program, "-batch", "-"], input=text, text=True, check=True, capture_output=True)
        yield made


def observed() -> KernelState:
    with Rtnl.open() as rtnl:
        return observe(rtnl)


def lines(netns: PrivateNetns, command: str) -> set[str]:
    return {" ".join(line.split()) for line in netns.run(command).splitlines()}


@pytest.mark.kernel
def test_routes_as_ip_prints_them(netns: PrivateNetns) -> None:
    own = {route_text(r) for r in observed().routes if r.table == 254 and r.dst.version == 4}
    # What has no carrier says so at the end of the line; that is the link's to tell, not the route's.
    printed = {line.removesuffix(" linkdown") for line in lines(netns, "ip -4 route show")}
    assert own == printed
    assert len(own) == 7


@pytest.mark.kernel
def test_neighbours_as_ip_prints_them(netns: PrivateNetns) -> None:
    own = {neigh_text(n) for n in observed().neighs if n.ip.version == 4 and not n.ip.is_multicast}
    assert own == lines(netns, "ip -4 neigh show")
    assert len(own) == 2


@pytest.mark.kernel
def test_forwarding_entries_as_bridge_prints_them(netns: PrivateNetns) -> None:
    own = {fdb_text(f) for f in observed().fdb}
    printed = {line for line in lines(netns, "bridge fdb show") if "vlan" not in line}
    assert own == printed
    assert "0a:58:0a:f4:01:02 dev veth1 master cni0 static" in own
    assert "02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12 self permanent" in own


@pytest.mark.kernel
def test_settings_as_sysctl_takes_them(netns: PrivateNetns) -> None:
    name = sysctl_name("net/ipv4/conf/flannel.1/rp_filter")
    assert name == "net.ipv4.conf.flannel/1.rp_filter"
    assert netns.run(f"sysctl {name}").startswith(f"{name} = ")


@pytest.mark.unit
def test_a_rule_of_nftables_own_is_shown_by_nft() -> None:
    world = worlds.world(worlds.Shape((1,)))
    place = world.places["node-1"]
    native = whys.rule(world, place, "nft inet firewalld", "filter_FORWARD", 3, "ct state invalid drop")
    assert native.command == "nft -a list chain inet firewalld filter_FORWARD"
    ours = whys.rule(world, place, "filter", "FORWARD", 1, "-j OVL-FORWARD")
    assert ours.command == "iptables -t filter -L FORWARD -nv --line-numbers"
