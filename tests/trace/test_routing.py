"""Lookups in one namespace: rules, tables, sources, sources that are believed, forwarding entries."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from overlaynet.addr import Mac
from overlaynet.state import Address, Fdb, IpRule, KernelState, LinkInfo, Neigh, Route
from overlaynet.trace.routing import (
    Query,
    address_on,
    bridge_entry,
    forwards,
    is_bridges_own,
    is_usable,
    lookup,
    neighbour,
    output,
    settings,
    source_for,
    source_refused,
    tunnels,
)

pytestmark = pytest.mark.unit

MACS = [Mac(f"02:00:00:00:00:{n:02x}") for n in range(10)]
LINKS = {
    name: LinkInfo(n, name, kind, MACS[n], 1500, True, True, master)
    for n, (name, kind, master) in enumerate(
        [
            ("lo", "loopback", None),
            ("eth0", "ether", None),
            ("eth1", "ether", None),
            ("cni0", "bridge", None),
            ("veth1", "veth", "cni0"),
            ("flannel.1", "vxlan", None),
        ]
    )
}
ADDRESSES = (
    Address("lo", ip_interface("127.0.0.1/8")),
    Address("eth0", ip_interface("192.168.50.11/24")),
    Address("eth1", ip_interface("172.16.0.1/24")),
    Address("eth1", ip_interface("172.16.1.1/24")),
)


def route(dst: str, dev: str | None = "eth0", via: str | None = None, **fields: object) -> Route:
    return Route(ip_network(dst), dev, ip_address(via) if via else None, **fields)  # type: ignore[arg-type]


LOCAL = route("192.168.50.11/32", "eth0", table=255, type="local", scope="host")
CONNECTED = route("192.168.50.0/24", "eth0", prefsrc=ip_address("192.168.50.11"), scope="link")
DEFAULT = route("0.0.0.0/0", "eth0", "192.168.50.1")


def kernel(*routes: Route, rules: tuple[IpRule, ...] = (), **sysctls: str) -> KernelState:
    named = {name.replace("__", "/"): value for name, value in sysctls.items()}
    return KernelState(LINKS, ADDRESSES, routes=(LOCAL, CONNECTED, *routes), rules=rules, sysctls=named)


def ask(dst: str, **fields: object) -> Query:
    return Query(ip_address(dst), **fields)  # type: ignore[arg-type]


def test_the_longest_prefix_decides_then_the_smallest_metric() -> None:
    state = kernel(
        DEFAULT, route("10.0.0.0/8", metric=5), route("10.0.0.0/8", "eth1", metric=4), route("10.9.0.0/16")
    )
    assert lookup(state, ask("10.1.1.1")).dev == "eth1"
    assert lookup(state, ask("10.9.1.1")).route == route("10.9.0.0/16")
    assert lookup(state, ask("8.8.8.8")).route == DEFAULT
    assert lookup(state, ask("192.168.50.11")).kind == "local"


def test_a_device_that_does_not_fit_is_passed_over_for_a_shorter_prefix() -> None:
    state = kernel(DEFAULT, route("10.0.0.0/8", "eth1"))
    assert lookup(state, ask("10.1.1.1", oif="eth0")).route == DEFAULT


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_routes_that_say_no(kind: str) -> None:
    state = kernel(DEFAULT, route("10.0.0.0/8", None, type=kind))
    assert lookup(state, ask("10.1.1.1")).kind == kind


def test_throw_leaves_it_to_the_next_table() -> None:
    throw, there = route("10.0.0.0/8", None, type="throw", table=100), route("10.0.0.0/8", "eth1")
    state = kernel(throw, there, rules=(IpRule(100, "from all lookup 100"),))
    found = lookup(state, ask("10.1.1.1"))
    assert (found.route, found.rule) == (there, None)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("from 10.244.1.0/24 lookup 100", True),
        ("not from 10.244.1.0/24 lookup 100", False),
        ("from all to 10.1.0.0/16 lookup 100", True),
        ("from all to 10.2.0.0/16 lookup 100", False),
        ("from all iif cni0 lookup 100", True),
        ("from all iif eth0 lookup 100", False),
        ("from all fwmark 0x4000/0x4000 lookup 100", True),
        ("from all fwmark 0x1 lookup 100", False),
        ("from all ipproto 6 dport 80-90 lookup 100", True),
        ("from all ipproto 17 lookup 100", False),
        ("from all nop", False),
        ("from all goto 200", False),
    ],
)
def test_policy_rules(text: str, taken: bool) -> None:
    by_rule = route("10.0.0.0/8", "eth1", table=100)
    state = kernel(DEFAULT, by_rule, rules=(IpRule(100, text), IpRule(150, "inet6 from all unreachable")))
    query = ask(
        "10.1.1.1",
        src=ip_address("10.244.1.2"),
        iif="cni0",
        mark=0x4001,
        protocol="tcp",
        dst_port=80,
    )
    found = lookup(state, query)
    assert found.unread == ()
    assert found.route == (by_rule if taken else DEFAULT)


@pytest.mark.parametrize("words", ["suppress_prefixlength 0", "uidrange 0-1000", "l3mdev 1", "tun_id 7"])
def test_a_rule_that_asks_for_more_leaves_it_open(words: str) -> None:
    state = kernel(
        DEFAULT, route("10.0.0.0/8", "eth1", table=100), rules=(IpRule(100, f"from all {words} lookup 100"),)
    )
    assert any(words in word for word in lookup(state, ask("10.1.1.1")).unread)


def test_a_rule_may_refuse() -> None:
    state = kernel(DEFAULT, rules=(IpRule(100, "from all to 10.0.0.0/8 prohibit"), IpRule(90, "from all nop")))
    found = lookup(state, ask("10.1.1.1"))
    assert (found.kind, found.rule) == ("prohibit", IpRule(100, "from all to 10.0.0.0/8 prohibit"))


def test_what_cannot_be_decided_is_said() -> None:
    strange = kernel(DEFAULT, rules=(IpRule(100, "from all tos 0x10 lookup 100"),))
    assert lookup(strange, ask("10.1.1.1")).unread == (
        "ip rule 100: from all tos 0x10 lookup 100: cannot be decided",
    )
    unknown_port = kernel(DEFAULT, rules=(IpRule(100, "from all sport 53 lookup 100"),))
    assert lookup(unknown_port, ask("10.1.1.1")).unread
    several = kernel(route("10.0.0.0/8", None))
    assert lookup(several, ask("10.1.1.1")).unread == ("route 10.0.0.0/8 has several next hops",)


def test_output() -> None:
    state = kernel(DEFAULT)
    assert output(state, ask("192.168.50.11")).dev == "lo"
    assert output(kernel(), ask("8.8.8.8")).kind == "none"
    on_link = output(kernel(), ask("8.8.8.8", oif="eth0"))
    assert (on_link.kind, on_link.dev, on_link.next_hop(ip_address("8.8.8.8"))) == (
        "unicast",
        "eth0",
        ip_address("8.8.8.8"),
    )


def test_sources() -> None:
    state = kernel(DEFAULT, route("10.0.0.0/8", "eth1", "172.16.1.9"), route("11.0.0.0/8", "cni0"))
    for dst, source in [
        ("192.168.50.12", "192.168.50.11"),
        ("8.8.8.8", "192.168.50.11"),
        ("10.1.1.1", "172.16.1.1"),
        ("11.1.1.1", "192.168.50.11"),
        ("192.168.50.11", "192.168.50.11"),
    ]:
        found = output(state, ask(dst))
        assert source_for(state, found, ip_address(dst)) == ip_address(source), dst
    assert address_on(state, "eth1", ip_address("9.9.9.9")) == ip_address("172.16.0.1")


@pytest.mark.parametrize(
    ("src", "dev", "rp_filter", "word"),
    [
        ("8.8.8.8", "eth0", "1", None),
        ("8.8.8.8", "eth1", "1", "rp_filter"),
        ("8.8.8.8", "eth1", "2", None),
        ("8.8.8.8", "eth1", "0", None),
        ("192.168.50.11", "eth1", "0", "martian"),
        ("192.168.50.11", "eth1", "2", "martian"),
        ("127.0.0.1", "eth0", "0", "martian"),
        ("224.0.0.1", "eth0", "0", "martian"),
    ],
)
def test_sources_that_are_not_believed(src: str, dev: str, rp_filter: str, word: str | None) -> None:
    state = kernel(DEFAULT, net__ipv4__conf__all__rp_filter=rp_filter)
    refused = source_refused(state, ask("10.1.1.1", src=ip_address(src), iif=dev))
    assert (refused.word if refused else None) == word


def test_without_any_way_back_loose_filtering_refuses() -> None:
    state = kernel(net__ipv4__conf__eth1__rp_filter="2")
    refused = source_refused(state, ask("10.1.1.1", src=ip_address("8.8.8.8"), iif="eth1"))
    assert refused is not None
    assert refused.why == "there is no way back to 8.8.8.8"


def test_forwarding_is_the_devices_or_the_namespaces() -> None:
    assert not forwards(kernel(), "cni0")
    assert forwards(kernel(net__ipv4__ip_forward="1"), "cni0")
    assert not forwards(kernel(net__ipv4__ip_forward="1", net__ipv4__conf__cni0__forwarding="0"), "cni0")
    assert "net/ipv4/conf/cni0/forwarding" in settings(["cni0"])


def test_neighbours_and_forwarding_entries() -> None:
    known = Neigh("eth0", ip_address("192.168.50.12"), MACS[7], "stale")
    entry = Fdb("flannel.1", MACS[8], ip_address("192.168.50.12"))
    flood = Fdb("flannel.1", Mac("00:00:00:00:00:00"), ip_address("192.168.50.13"))
    pinned = Fdb("veth1", MACS[9], master="cni0", state="static")
    state = KernelState(LINKS, ADDRESSES, (known,), (entry, flood, pinned))
    assert neighbour(state, "eth0", known.ip) == known
    assert is_usable(known)
    assert not is_usable(known._replace(state="failed"))
    assert not is_usable(None)
    assert tunnels(state, "flannel.1", MACS[8]) == (entry,)
    assert tunnels(state, "flannel.1", MACS[9]) == (flood,)
    assert bridge_entry(state, "cni0", MACS[9]) == pinned
    assert is_bridges_own(state, "cni0", LINKS["cni0"].mac)
    assert is_bridges_own(state, "cni0", LINKS["veth1"].mac)
    assert not is_bridges_own(state, "cni0", MACS[9])
