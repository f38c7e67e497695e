"""What we read is what `ip` and `bridge` read, object by object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from subprocess import CalledProcessError
from typing import Any

import pytest
from helpers.eventually import eventually
from helpers.kernel_hosts import PUBLIC, UNDERLAY, RealHost, real_host
from helpers.private_netns import PrivateNetns, private_netns
from helpers.privilege import requires_netns

from overlaynet.addr import Mac
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.observe import learned, links, observe
from overlaynet.state import Change, KernelState, LearnedMtu, Link, Op, Vxlan

pytestmark = [pytest.mark.kernel, requires_netns]

SETUP = f"""\
link set lo up
link add flannel.1 type vxlan id 1 local {PUBLIC.ip} dev {UNDERLAY} dstport 8472 nolearning
link property add dev flannel.1 altname overlaynet-vxlan
link property add dev flannel.1 altname another-name
link set flannel.1 mtu 1450 up
link add vx6 type vxlan id 6 local fd00::1 dev {UNDERLAY} dstport 4789
link add cni0 type bridge
link set cni0 up
link add veth1 type veth peer name far
link set veth1 master cni0 up
link set veth1 type bridge_slave hairpin on
link add veth2 type veth peer name far2
link set far2 up
link set veth2 master cni0 up
address add 10.244.1.0/32 dev flannel.1
address add 10.244.1.1/24 dev cni0
address add 10.0.0.1 peer 10.0.0.2/32 dev cni0
address add fd00:1::1/64 dev cni0 nodad
neigh add 10.244.2.0 lladdr 02:42:0a:f4:02:00 dev flannel.1 nud permanent
neigh add 10.244.3.0 lladdr 02:42:0a:f4:03:00 dev flannel.1 nud stale
neigh add fd00:2:: lladdr 02:42:0a:f4:02:00 dev flannel.1 nud permanent
neigh add 192.168.50.77 lladdr 02:42:0a:f4:03:00 dev {UNDERLAY} nud noarp
route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 7 proto 111
route add 10.244.2.0/24 via 192.168.50.12 metric 9
route add 10.50.0.0/16 dev {UNDERLAY} src {PUBLIC.ip}
route add default via 192.168.50.1
route add unreachable 10.51.0.0/16
route add 10.52.0.0/16 dev {UNDERLAY} table 1000
route add 10.53.0.0/16 nexthop via 192.168.50.3 nexthop via 192.168.50.4
route add 10.54.0.0/16 via inet6 fe80::1 dev {UNDERLAY}
-6 route add fd00:2::/64 via fd00:1::2 metric 70
-6 route add blackhole fd00:9::/64
rule add from 10.1.0.0/16 to 10.2.0.0/24 fwmark 0x1/0xff iif {UNDERLAY} lookup 1000 pref 500
"""
BRIDGE_SETUP = """\
fdb add 02:42:0a:f4:02:00 dev flannel.1 dst 192.168.50.12
fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.50.13
fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.50.14
fdb add 0a:58:0a:f4:01:02 dev veth1 master static
fdb add 0a:58:0a:f4:01:03 dev veth2 master dynamic
"""


@pytest.fixture(scope="module")
def host() -> Iterator[RealHost]:
    with real_host() as host:
        for line in SETUP.splitlines():
            host.netns.run(f"ip {line}")
        for line in BRIDGE_SETUP.splitlines():
            host.netns.run(f"bridge {line}")
        yield host


@pytest.fixture(scope="module")
def seen(host: RealHost) -> KernelState:
    return host.kernel.observe(["net/ipv4/ip_forward"])


def read(host: RealHost, command: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.netns.run(command))
    return [entry for entry in found if entry]


Rows = set[tuple[Any, ...]]


def agree(host: RealHost, ours: Callable[[KernelState], Rows], theirs: Callable[[], Rows]) -> None:
    """Both readings are the same at some moment: IPv6 and ARP add and age entries on their own meanwhile."""

    def check() -> bool:
        want = theirs()
        assert ours(host.kernel.observe()) == want
        return True

    assert eventually(check)


def test_links(host: RealHost) -> None:
    agree(
        host,
        lambda seen: {
            (link.name, link.ifindex, link.mtu, str(link.mac), link.up, link.master, link.altnames)
            for link in seen.links.values()
        },
        lambda: {
            (
                entry["ifname"],
                entry["ifindex"],
                entry["mtu"],
                entry["address"],
                "UP" in entry["flags"],
                entry.get("master"),
                tuple(entry.get("altnames", ())),
            )
            for entry in read(host, "ip -j -d link show")
        },
    )


def test_what_kind_of_link_each_is(seen: KernelState) -> None:
    kinds = {name: link.type for name, link in seen.links.items()}
    assert kinds | {"flannel.1": "vxlan", "cni0": "bridge", "veth1": "veth", "lo": "loopback"} == kinds
    assert seen.links["flannel.1"].vxlan == Vxlan(1, 8472, PUBLIC.ip, UNDERLAY, learning=False)
    assert seen.links["vx6"].vxlan == Vxlan(6, 4789, ip_address("fd00::1"), UNDERLAY, learning=True)
    assert [seen.links[name].hairpin for name in ("veth1", "veth2", "cni0")] == [True, False, None]
    assert seen.links["flannel.1"].tag == "overlaynet-vxlan"


def test_addresses(host: RealHost) -> None:
    agree(
        host,
        lambda seen: {(a.dev, str(a.interface)) for a in seen.addresses},
        lambda: {
            (entry["ifname"], f"{a['local']}/{a['prefixlen']}")
            for entry in read(host, "ip -j address show")
            for a in entry["addr_info"]
        },
    )


def test_neighbours(host: RealHost) -> None:
    agree(
        host,
        lambda seen: {(n.dev, str(n.ip), n.mac and str(n.mac), n.state) for n in seen.neighs},
        lambda: {
            (entry["dev"], entry["dst"], entry.get("lladdr"), entry["state"][0].lower())
            for entry in read(host, "ip -j neigh show nud all")
        },
    )


def test_forwarding_entries(host: RealHost) -> None:
    agree(
        host,
        lambda seen: {(f.dev, str(f.mac), f.dst and str(f.dst), f.master, f.state) for f in seen.fdb},
        lambda: {
            (entry["ifname"], entry["mac"], entry.get("dst"), entry.get("master"), entry["state"] or "dynamic")
            for entry in read(host, "bridge -j fdb show")
        },
    )


def test_no_forwarding_entry_is_listed_twice(seen: KernelState) -> None:
    assert len(set(seen.fdb)) == len(seen.fdb) > 5


def test_routes(host: RealHost) -> None:
    agree(
        host,
        lambda seen: {
            (r.dst, r.table, r.dev, r.via and str(r.via), r.metric, r.protocol, r.type, r.onlink, r.prefsrc)
            for r in seen.routes
        },
        lambda: {
            route_of(entry, version)
            for version in (4, 6)
            for entry in read(host, f"ip -j -N -d -{version} route show table all")
            if TYPES.get(entry.get("type", "1")) not in ("broadcast", "anycast", "multicast")
        },
    )


TYPES = {
    "1": "unicast",
    "2": "local",
    "3": "broadcast",
    "4": "anycast",
    "5": "multicast",
    "6": "blackhole",
    "7": "unreachable",
}


def route_of(entry: dict[str, Any], version: int) -> tuple[Any, ...]:
    everywhere = {4: "0.0.0.0/0", 6: "::/0"}[version]
    dst = ip_network(everywhere if entry["dst"] == "default" else entry["dst"])
    kind = TYPES.get(entry.get("type", "1"), entry.get("type"))
    gateway = entry.get("gateway") or entry.get("via", {}).get("host")
    source = entry.get("prefsrc")
    return (
        dst,
        int(entry.get("table", 254)),
        None if kind in ("blackhole", "unreachable") else entry.get("dev"),
        gateway,
        entry.get("metric", 0),
        int(entry["protocol"]),
        kind,
        "onlink" in entry["flags"],
        source and ip_address(source),
    )


def test_path_mtu_that_an_icmp_error_taught() -> None:
    with private_netns() as sender, private_netns() as router:
        sender.run(f"ip link add eth0 type veth peer name cable netns {router.path}")
        for line in ("address add 10.0.0.1/24 dev eth0", "link set eth0 up"):
            sender.run(f"ip {line}")
        for line in (
            "link add narrow type veth peer name end",
            "link set end up",
            "link set narrow mtu 1300 up",
            "address add 10.1.0.254/24 dev narrow",
            "address add 10.0.0.254/24 dev cable",
            "link set cable up",
        ):
            router.run(f"ip {line}")
        router.run("sysctl -q net.ipv4.ip_forward=1")
        sender.run("ip route add default via 10.0.0.254")
        assert learned_in(sender) == ()
        (entry,) = eventually(lambda: taught(sender))
        assert entry[:3] == (ip_address("10.1.0.1"), "eth0", 1300)
        assert 0 < entry.expires_s <= 600
        assert learned_in(router) == ()
        sender.run("ip route flush cache")
        assert learned_in(sender) == ()


def taught(sender: PrivateNetns) -> tuple[LearnedMtu, ...]:
    """After a packet that is too large, which needs a carrier."""
    with suppress(CalledProcessError):
        sender.run("ping -n -c1 -W1 -M do -s 1400 10.1.0.1")
    return learned_in(sender)


def learned_in(place: PrivateNetns) -> tuple[LearnedMtu, ...]:
    with place.entered(), Rtnl.open() as rtnl:
        return learned(rtnl, links(rtnl))


def test_rules_that_somebody_made(seen: KernelState) -> None:
    (rule,) = seen.rules
    assert rule.priority == 500
    assert rule.text == f"from 10.1.0.0/16 to 10.2.0.0/24 fwmark 0x1/0xff iif {UNDERLAY} lookup 1000"


@pytest.mark.parametrize("words", ["suppress_prefixlength 0", "uidrange 0-1000", "tun_id 7"])
def test_rare_conditions_of_a_rule_are_not_left_out(words: str) -> None:
    with private_netns() as place:
        place.run(f"ip rule add priority 600 lookup 1000 {words}")
        with place.entered(), Rtnl.open() as rtnl:
            (rule,) = observe(rtnl).rules
    assert words in rule.text


def test_sysctls(seen: KernelState) -> None:
    assert seen.sysctls["net/ipv4/ip_forward"] in ("0", "1")


def test_a_link_of_ours_is_read_as_it_was_wanted() -> None:
    want = Link(
        "flannel.9",
        "vxlan",
        "overlaynet-9",
        1_430,
        Mac("02:00:00:00:00:09"),
        Vxlan(9, 8472, ip_address("fd00::1"), UNDERLAY),
    )
    with real_host() as host:
        assert host.kernel.apply([Change(Op.PUT, want)]) == []
        found = host.kernel.observe().links["flannel.9"]
    assert (found.vxlan, found.mac, found.mtu, found.tag, found.up) == (
        want.vxlan,
        want.mac,
        1_430,
        want.tag,
        True,
    )
