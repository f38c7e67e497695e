"""The hand-packed messages: laid out as the kernel's headers say, and read back as they were meant."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlaynet.addr import IPAddress, IPNetwork, Mac
from overlaynet.kernel import parse, wire
from overlaynet.kernel.parse import Answer
from overlaynet.state import Address, Fdb, IpRule, Neigh, Route

pytestmark = pytest.mark.unit

NAMES = {5: "flannel.1", 6: "veth1", 7: "cni0"}
MAC = Mac("02:42:0a:f4:02:00")

macs = st.binary(min_size=6, max_size=6).map(Mac.from_bytes)
addresses = st.ip_addresses()
networks: st.SearchStrategy[IPNetwork] = st.one_of(
    st.builds(lambda ip, n: ip_network((ip, n), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda ip, n: ip_network((ip, n), strict=False), st.ip_addresses(v=6), st.integers(0, 128)),
)


def same_family(network: IPNetwork) -> st.SearchStrategy[IPAddress]:
    return st.ip_addresses(v=4 if network.version == 4 else 6)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    dst = draw(networks)
    kind = draw(st.sampled_from(list(wire.ROUTE_TYPE_NUMBER)))
    return Route(
        dst,
        draw(st.sampled_from(["flannel.1", None]))
        if wire.ROUTE_TYPE_NUMBER[kind] not in parse.NOWHERE
        else None,
        draw(st.none() | same_family(dst)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.booleans()),
        draw(st.integers(1, 2**32 - 1).filter(lambda table: table != wire.RT_TABLE_LOCAL)),
        draw(st.integers(0, 255)),
        draw(st.sampled_from(list(wire.SCOPE_NUMBER))),
        kind,
        draw(st.none() | same_family(dst)),
    )


def answer(message: bytes) -> Answer:
    """A request, as if the kernel had sent it: both directions have one layout."""
    length = unpack_from("=I", message)[0]
    assert length == len(message), "the length in the header is the message's"
    assert length % 4 == 0, "messages can be laid end to end"
    return message, 16, length


@given(addresses, macs, st.sampled_from(list(wire.NUD_NUMBER)))
def test_a_neighbour_survives_the_wire(ip: IPAddress, mac: Mac, state: str) -> None:
    entry = Neigh("flannel.1", ip, mac, state)
    assert parse.neighs([answer(wire.put_neigh(entry, 5))], NAMES) == [entry]


@given(st.none() | addresses, macs, st.sampled_from(list(wire.FDB_STATE_NUMBER)))
def test_a_forwarding_entry_survives_the_wire(dst: IPAddress | None, mac: Mac, state: str) -> None:
    entry = Fdb("flannel.1", mac, dst, None, state)
    assert parse.fdb([answer(wire.put_fdb(entry, 5))], NAMES) == [entry]


@given(routes())
def test_a_route_survives_the_wire(route: Route) -> None:
    index = 5 if route.dev else 0
    assert parse.routes([answer(wire.put_route(route, index))], NAMES) == [route]


@given(addresses, st.integers(0, 32))
def test_an_address_survives_the_wire(ip: IPAddress, prefixlen: int) -> None:
    address = Address("flannel.1", ip_interface((ip, prefixlen)))
    assert list(parse.addresses([answer(wire.put_address(address, 5))], NAMES)) == [address]


def test_a_peer_is_three_messages_of_known_bytes() -> None:
    """Against include/uapi/linux/{netlink,neighbour,rtnetlink}.h, field by field."""
    base, peer = IPv4Address("10.244.2.0"), IPv4Address("192.168.50.12")
    replace = 0x1 | 0x100 | 0x400
    assert wire.put_neigh(Neigh("flannel.1", base, MAC), 5) == (
        pack("=IHHII", 48, 28, replace, 0, 0)
        + pack("=BxxxiHBB", 2, 5, 0x80, 0, 0)
        + pack("=HH4s", 8, 1, base.packed)
        + pack("=HH6sxx", 10, 2, MAC.packed)
    )
    assert wire.put_fdb(Fdb("flannel.1", MAC, peer), 5) == (
        pack("=IHHII", 48, 28, replace, 0, 0)
        + pack("=BxxxiHBB", 7, 5, 0x80, 0x02, 0)
        + pack("=HH6sxx", 10, 2, MAC.packed)
        + pack("=HH4s", 8, 1, peer.packed)
    )
    route = Route(ip_network("10.244.2.0/24"), "flannel.1", base, metric=7, onlink=True)
    assert wire.put_route(route, 5) == (
        pack("=IHHII", 68, 24, replace, 0, 0)
        + pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 111, 0, 1, 0x4)
        + pack("=HHI", 8, 15, 254)
        + pack("=HHI", 8, 6, 7)
        + pack("=HH4s", 8, 1, base.packed)
        + pack("=HHI", 8, 4, 5)
        + pack("=HH4s", 8, 5, base.packed)
    )


def test_a_pin_goes_to_the_bridge_and_not_to_the_device() -> None:
    message = wire.put_fdb(Fdb("veth1", MAC, None, "cni0", "static"), 6)
    assert wire.NDMSG.unpack_from(message, 16) == (wire.AF_BRIDGE, 6, 0x40, wire.NTF_MASTER, 0)


def test_entries_of_unknown_devices_are_left_out() -> None:
    route = Route(ip_network("10.0.0.0/8"), "gone")
    assert parse.neighs([answer(wire.put_neigh(Neigh("gone", ip_address("10.0.0.1"), MAC), 99))], NAMES) == []
    assert parse.fdb([answer(wire.put_fdb(Fdb("gone", MAC), 99))], NAMES) == []
    assert parse.routes([answer(wire.put_route(route, 99))], NAMES) == []


def test_a_gateway_of_the_other_family_is_read() -> None:
    route = Route(ip_network("10.244.2.0/24"), "flannel.1", IPv6Address("fe80::1"), metric=7)
    assert parse.routes([answer(wire.put_route(route, 5))], NAMES) == [route]


@pytest.mark.parametrize("kind", [3, 4, 5], ids=["broadcast", "anycast", "multicast"])
def test_of_the_local_table_only_own_addresses_are_kept(kind: int) -> None:
    def message(kind: int) -> Answer:
        fixed = wire.RTMSG.pack(2, 32, 0, 0, 255, 2, 254, kind, 0)
        found = wire.attribute(wire.RTA_DST, bytes([10, 0, 0, 1])) + wire.attribute(wire.RTA_OIF, pack("=I", 5))
        return answer(wire.message(wire.RTM_NEWROUTE, 0, fixed, found))

    (route,) = parse.routes([message(kind), message(2)], NAMES)
    assert (route.type, route.table, route.dst) == ("local", 255, ip_network("10.0.0.1/32"))


def rule(family: int, priority: int, table: int, *more: bytes, action: int = 1, flags: int = 0) -> Answer:
    fixed = wire.RTMSG.pack(family, 0, 16 if more else 0, 0, table if table < 256 else 0, 0, 0, action, flags)
    number = wire.attribute(parse.FRA_PRIORITY, pack("=I", priority))
    return answer(
        wire.message(32, 0, fixed, number + wire.attribute(parse.FRA_TABLE, pack("=I", table)) + b"".join(more))
    )


@pytest.mark.parametrize(
    ("made", "want"),
    [
        pytest.param(rule(2, 0, 255), [], id="kernels-first"),
        pytest.param(rule(10, 32766, 254), [], id="kernels-ipv6"),
        pytest.param(rule(2, 0, 254), [IpRule(0, "from all lookup main")], id="kernels-first-altered"),
        pytest.param(rule(10, 5, 100), [IpRule(5, "inet6 from all lookup 100")], id="ipv6"),
        pytest.param(
            rule(2, 5, 1000, wire.attribute(parse.FRA_SRC, bytes([10, 1, 0, 0])), flags=2),
            [IpRule(5, "not from 10.1.0.0/16 lookup 1000")],
            id="not-from",
        ),
        pytest.param(rule(2, 9, 0, action=7), [IpRule(9, "from all unreachable")], id="unreachable"),
        pytest.param(
            rule(2, 9, 0, wire.attribute(parse.FRA_GOTO, pack("=I", 77)), action=2),
            [IpRule(9, "from all goto 77")],
            id="goto",
        ),
    ],
)
def test_rules_are_told_in_the_words_of_ip_rule(made: Answer, want: list[IpRule]) -> None:
    assert parse.rules([made]) == want


def test_an_attribute_of_zero_length_does_not_hold_the_reader_up() -> None:
    assert parse.attributes(bytes(8), 0, 8) == {0: b""}
