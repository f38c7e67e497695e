"""What every `ports.Kernel` does, the one in memory and the real one alike."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from helpers.kernel_hosts import CONTAINER_MAC, GATEWAY, PUBLIC, UNDERLAY, FakeHost, Host, real_host
from helpers.privilege import requires_netns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlaynet.addr import Mac
from overlaynet.errors import KernelError, WorkloadExists
from overlaynet.ports import Failure
from overlaynet.state import (
    ROUTE_PROTOCOL,
    Address,
    BridgePort,
    Change,
    Fdb,
    KernelState,
    Kind,
    Link,
    LinkInfo,
    Neigh,
    Object,
    Op,
    Route,
    Sysctl,
    Vxlan,
    kind_of,
)

VTEP = Mac("02:42:0a:f4:01:00")
PEER = Mac("02:42:0a:f4:02:00")
OTHER = Mac("02:42:0a:f4:03:00")
QUIET = Mac("0a:58:0a:f4:01:99")
"""Of nobody who speaks: the bridge learns the container's own again as soon as it is dropped."""
VXLAN = Link("flannel.1", "vxlan", "overlaynet-vxlan", 1_450, VTEP, Vxlan(1, 8472, PUBLIC.ip, UNDERLAY))
BRIDGE = Link("cni0", "bridge", "overlaynet-bridge", 1_450, Mac("0a:58:0a:f4:01:01"))
PORT = BridgePort("veth1", "cni0", hairpin=True, up=True, mtu=1_450)
FORWARDING = "net/ipv4/ip_forward"

NEIGH = Neigh("flannel.1", ip_address("10.244.2.0"), PEER)
FDB = Fdb("flannel.1", PEER, ip_address("192.168.50.12"))
ROUTE = Route(ip_network("10.244.2.0/24"), "flannel.1", ip_address("10.244.2.0"), metric=7, onlink=True)

OBJECTS = [
    pytest.param(VXLAN, id="vxlan"),
    pytest.param(BRIDGE, id="bridge"),
    pytest.param(Address("flannel.1", ip_interface("10.244.1.0/32")), id="address4"),
    pytest.param(Address("flannel.1", ip_interface("fd00:1::1/64")), id="address6"),
    pytest.param(Address("cni0", ip_interface("10.244.1.1/24")), id="address-with-network"),
    pytest.param(NEIGH, id="neigh4"),
    pytest.param(Neigh("flannel.1", ip_address("fd00:2::"), PEER), id="neigh6"),
    pytest.param(FDB, id="fdb-peer"),
    pytest.param(Fdb("veth1", QUIET, None, "cni0", "static"), id="fdb-pin"),
    pytest.param(PORT, id="port"),
    pytest.param(ROUTE, id="route4"),
    pytest.param(
        Route(ip_network("fd00:2::/64"), "flannel.1", ip_address("fd00:2::"), 7, onlink=True), id="route6"
    ),
    pytest.param(
        Route(ip_network("10.9.0.0/16"), UNDERLAY, ip_address("192.168.50.12"), 9), id="route-host-gw"
    ),
    pytest.param(Route(ip_network("10.8.0.0/16"), UNDERLAY, table=1_000, scope="link"), id="route-other-table"),
    pytest.param(Route(ip_network("10.7.0.0/16"), None, metric=3, type="blackhole"), id="route-blackhole"),
    pytest.param(Route(ip_network("fd00:7::/64"), None, metric=3, type="blackhole"), id="route6-blackhole"),
    pytest.param(Route(ip_network("10.6.0.0/16"), UNDERLAY, metric=4, prefsrc=PUBLIC.ip), id="route-source"),
    pytest.param(Sysctl(FORWARDING, "1"), id="sysctl"),
]


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.fake),
        pytest.param("real", marks=[pytest.mark.kernel, requires_netns]),
    ]
)
def bare(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host with nothing but its underlay."""
    if request.param == "fake":
        yield FakeHost()
    else:
        with real_host() as host:
            yield host


@pytest.fixture
def host(bare: Host) -> Host:
    """A host with a VXLAN device, a bridge and a container on it."""
    ok(bare, put(VXLAN, BRIDGE))
    bare.kernel.attach(bare.container())
    ok(bare, put(PORT))
    return bare


def put(*objects: Object) -> list[Change]:
    return [Change(Op.PUT, obj) for obj in objects]


def drop(*objects: Object) -> list[Change]:
    return [Change(Op.DROP, obj) for obj in objects]


def ok(host: Host, changes: Iterable[Change]) -> KernelState:
    """Apply, expect no failure, and look."""
    assert host.kernel.apply(list(changes)) == []
    return host.kernel.observe([FORWARDING])


def refusals(failures: Iterable[Failure]) -> list[tuple[Object, int]]:
    return [(f.change.obj, f.error.errno) for f in failures if isinstance(f.error, KernelError)]


def held(state: KernelState, obj: Object) -> Object | None:
    """The object in `state` that has `obj`'s key, in the terms of a wanted one."""
    match obj:
        case Link():
            link = state.links.get(obj.name)
            return link and Link(link.name, link.type, link.tag or "", link.mtu, link.mac, link.vxlan, link.up)
        case BridgePort():
            return port(state.links.get(obj.dev))
        case Sysctl():
            value = state.sysctls.get(obj.name)
            return Sysctl(obj.name, value) if value else None
    tables: list[Object] = [*state.addresses, *state.neighs, *state.fdb, *state.routes]
    return next((entry for entry in tables if entry.key == obj.key), None)


def configured(state: KernelState) -> list[LinkInfo]:
    """Links without their carrier, which the kernel finds out about in its own time."""
    return [link._replace(running=False) for link in state.links.values()]


def unmarked(state: KernelState) -> list[LinkInfo]:
    """The same without their marks."""
    return [link._replace(altnames=()) for link in configured(state)]


def made_routes(state: KernelState) -> list[Route]:
    """Routes of our protocol; those for IPv6 link-local addresses come in the kernel's own time."""
    return [route for route in state.routes if route.protocol == ROUTE_PROTOCOL]


def port(link: LinkInfo | None) -> BridgePort | None:
    if link is None or link.master is None:
        return None
    return BridgePort(link.name, link.master, bool(link.hairpin), link.up, link.mtu)


# --- every kind of object ---------------------------------------------------------------------------


@pytest.mark.parametrize("obj", OBJECTS)
def test_what_is_put_is_seen_as_it_was_put(host: Host, obj: Object) -> None:
    assert held(ok(host, put(obj)), obj) == obj


@pytest.mark.parametrize("obj", OBJECTS)
def test_putting_it_again_changes_nothing(host: Host, obj: Object) -> None:
    once = ok(host, put(obj))
    again = ok(host, put(obj))
    assert held(again, obj) == obj
    assert made_routes(again) == made_routes(once)
    assert configured(again) == configured(once)


@pytest.mark.parametrize("link", [VXLAN, BRIDGE], ids=["vxlan", "bridge"])
def test_mark_of_a_link_can_be_taken_off_and_put_back(host: Host, link: Link) -> None:
    before = ok(host, put(link))
    without = ok(host, put(link._replace(tag="")))
    assert held(without, link) == link._replace(tag="")
    assert unmarked(without) == unmarked(before)
    assert held(ok(host, put(link)), link) == link


@pytest.mark.parametrize("obj", [p for p in OBJECTS if p.id != "sysctl"])
def test_what_is_dropped_is_gone_and_dropping_it_again_is_no_error(host: Host, obj: Object) -> None:
    ok(host, put(obj))
    assert held(ok(host, drop(obj)), obj) is None
    assert held(ok(host, drop(obj)), obj) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(NEIGH, NEIGH._replace(mac=OTHER), id="neigh-mac"),
        pytest.param(FDB, FDB._replace(dst=ip_address("192.168.50.13")), id="fdb-dst"),
        pytest.param(ROUTE, ROUTE._replace(via=ip_address("10.244.3.0")), id="route-gateway"),
        pytest.param(
            ROUTE, ROUTE._replace(dev="eth0", via=None, onlink=False, scope="link"), id="route-device"
        ),
        pytest.param(PORT, PORT._replace(hairpin=False), id="port-hairpin"),
        pytest.param(PORT, PORT._replace(mtu=1_400), id="port-mtu"),
        pytest.param(BRIDGE, BRIDGE._replace(mtu=1_400), id="bridge-mtu"),
    ],
)
def test_a_changed_object_takes_the_place_of_the_old_one(host: Host, before: Object, after: Object) -> None:
    ok(host, put(before))
    state = ok(host, [Change(Op.PUT, after, before)])
    assert held(state, after) == after
    assert before not in state.routes + state.neighs + state.fdb


def test_the_same_route_with_another_metric_is_another_route(host: Host) -> None:
    state = ok(host, put(ROUTE, ROUTE._replace(metric=8)))
    assert {ROUTE, ROUTE._replace(metric=8)} <= set(state.routes)
    state = ok(host, drop(ROUTE))
    assert ROUTE not in state.routes
    assert ROUTE._replace(metric=8) in state.routes


def test_dropping_a_sysctl_leaves_its_value(host: Host) -> None:
    ok(host, put(Sysctl(FORWARDING, "1")))
    assert ok(host, drop(Sysctl(FORWARDING, "1"))).sysctls == {FORWARDING: "1"}


def test_devices_forward_as_their_namespace_does(host: Host) -> None:
    mine, other = "net/ipv4/conf/cni0/forwarding", f"net/ipv4/conf/{UNDERLAY}/forwarding"
    ok(host, put(Sysctl(FORWARDING, "1"), Sysctl(mine, "0")))
    assert host.kernel.observe([mine, other]).sysctls == {mine: "0", other: "1"}
    ok(host, put(Sysctl(FORWARDING, "0")))
    assert host.kernel.observe([mine, other]).sysctls == {mine: "0", other: "0"}
    ok(host, put(Sysctl(FORWARDING, "1")))
    assert host.kernel.observe([mine, other]).sysctls == {mine: "1", other: "1"}


def test_an_unknown_sysctl_reads_as_none_and_cannot_be_written(host: Host) -> None:
    unknown = Sysctl("net/ipv4/no_such_thing", "1")
    assert refusals(host.kernel.apply(put(unknown))) == [(unknown, errno.ENOENT)]
    assert host.kernel.observe([unknown.name]).sysctls == {unknown.name: None}


# --- links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [pytest.param(VXLAN._replace(mtu=1_400), id="mtu"), pytest.param(VXLAN._replace(mac=OTHER), id="mac")],
)
def test_a_new_mtu_or_mac_is_set_in_place_and_entries_stay(host: Host, changed: Link) -> None:
    before = ok(host, put(NEIGH, FDB, ROUTE))
    after = ok(host, [Change(Op.PUT, changed, VXLAN)])
    assert held(after, VXLAN) == changed
    assert after.links["flannel.1"].ifindex == before.links["flannel.1"].ifindex
    assert [held(after, obj) for obj in (NEIGH, FDB, ROUTE)] == [NEIGH, FDB, ROUTE]


def test_another_vni_makes_the_device_anew(host: Host) -> None:
    assert VXLAN.vxlan
    changed = VXLAN._replace(vxlan=VXLAN.vxlan._replace(vni=2))
    before = ok(host, put(NEIGH, FDB, ROUTE))
    after = ok(host, [Change(Op.PUT, changed, VXLAN)])
    assert held(after, VXLAN) == changed
    assert after.links["flannel.1"].ifindex != before.links["flannel.1"].ifindex
    assert [held(after, obj) for obj in (NEIGH, FDB, ROUTE)] == [None, None, None]


def test_entries_follow_a_device_made_anew_in_the_same_round(host: Host) -> None:
    assert VXLAN.vxlan
    changed = VXLAN._replace(vxlan=VXLAN.vxlan._replace(port=4789))
    ok(host, put(NEIGH))
    state = ok(host, [*put(NEIGH), Change(Op.PUT, changed, VXLAN), *put(NEIGH, FDB, ROUTE)])
    assert [held(state, obj) for obj in (changed, NEIGH, FDB, ROUTE)] == [changed, NEIGH, FDB, ROUTE]


def test_a_link_taken_down_loses_routes_and_neighbours_but_not_forwarding_entries(host: Host) -> None:
    address = Address("flannel.1", ip_interface("10.244.1.0/32"))
    ok(host, put(address, NEIGH, FDB, ROUTE))
    state = ok(host, [Change(Op.PUT, VXLAN._replace(up=False), VXLAN)])
    assert [held(state, obj) for obj in (NEIGH, ROUTE)] == [None, None]
    assert [held(state, obj) for obj in (address, FDB)] == [address, FDB]


def test_a_link_that_loses_its_last_ipv4_address_loses_ipv4_routes_and_neighbours(host: Host) -> None:
    first, second = (Address("flannel.1", ip_interface(f"10.244.{n}.0/32")) for n in (1, 9))
    six = Neigh("flannel.1", ip_address("fd00:2::"), PEER)
    ok(host, put(first, second, NEIGH, six, FDB, ROUTE))
    state = ok(host, drop(first))
    assert [held(state, obj) for obj in (NEIGH, FDB, ROUTE)] == [NEIGH, FDB, ROUTE]
    state = ok(host, drop(second))
    assert [held(state, obj) for obj in (NEIGH, ROUTE)] == [None, None]
    assert [held(state, obj) for obj in (six, FDB)] == [six, FDB]


def test_a_deleted_link_takes_everything_on_it_along(host: Host) -> None:
    ok(host, put(Address("flannel.1", ip_interface("10.244.1.0/32")), NEIGH, FDB, ROUTE))
    state = ok(host, drop(VXLAN))
    assert "flannel.1" not in state.links
    entries: list[Object] = [*state.addresses, *state.neighs, *state.fdb, *state.routes]
    assert [entry for entry in entries if getattr(entry, "dev", None) == "flannel.1"] == []


def test_a_deleted_bridge_frees_its_ports(host: Host) -> None:
    ok(host, put(Fdb("veth1", CONTAINER_MAC, None, "cni0", "static")))
    state = ok(host, drop(BRIDGE))
    assert state.links["veth1"].master is None
    assert state.links["veth1"].hairpin is None
    assert [entry for entry in state.fdb if entry.master] == []


@pytest.mark.parametrize(
    ("link", "number"),
    [
        pytest.param(VXLAN._replace(name=UNDERLAY), errno.EEXIST, id="name-of-a-foreign-device"),
        pytest.param(VXLAN._replace(mtu=1_460), errno.EINVAL, id="mtu-above-what-the-underlay-leaves"),
        pytest.param(VXLAN._replace(name="flannel.2", tag="overlaynet-2"), errno.EEXIST, id="vni-taken"),
        pytest.param(BRIDGE._replace(name="cni1"), errno.EEXIST, id="tag-taken"),
        pytest.param(
            Link("flannel.3", "vxlan", "overlaynet-3", 1_450, None, Vxlan(3, 8472, PUBLIC.ip, "nope")),
            errno.ENODEV,
            id="no-underlay",
        ),
    ],
)
def test_a_link_that_cannot_be_is_refused_and_leaves_nothing(host: Host, link: Link, number: int) -> None:
    before = configured(host.kernel.observe())
    assert refusals(host.kernel.apply(put(link))) == [(link, number)]
    assert configured(host.kernel.observe()) == before


# --- failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "number"),
    [
        pytest.param(NEIGH._replace(dev="nope"), errno.ENODEV, id="neigh"),
        pytest.param(FDB._replace(dev="nope"), errno.ENODEV, id="fdb"),
        pytest.param(ROUTE._replace(dev="nope"), errno.ENODEV, id="route"),
        pytest.param(Address("nope", ip_interface("10.0.0.1/32")), errno.ENODEV, id="address"),
        pytest.param(PORT._replace(dev="nope"), errno.ENODEV, id="port"),
        pytest.param(PORT._replace(master="nope"), errno.ENODEV, id="port-of-no-bridge"),
        pytest.param(PORT._replace(master=UNDERLAY), errno.EOPNOTSUPP, id="port-of-what-is-no-bridge"),
        pytest.param(
            Fdb(UNDERLAY, PEER, None, "cni0", "static"), errno.EOPNOTSUPP, id="pin-on-what-is-no-port"
        ),
        pytest.param(
            FDB._replace(dst=ip_address("fd00::1")), errno.EAFNOSUPPORT, id="peer-of-the-other-family"
        ),
        pytest.param(ROUTE._replace(onlink=False), errno.ENETUNREACH, id="gateway-out-of-reach"),
        pytest.param(
            Route(ip_network("fd00:2::/64"), "flannel.1", ip_address("fd00:9::1"), 7),
            errno.EHOSTUNREACH,
            id="gateway6-out-of-reach",
        ),
        pytest.param(ROUTE._replace(prefsrc=ip_address("10.1.1.1")), errno.EINVAL, id="source-not-ours"),
    ],
)
def test_what_cannot_be_put_is_refused_by_name_and_with_its_errno(host: Host, obj: Object, number: int) -> None:
    failures = host.kernel.apply(put(obj))
    assert refusals(failures) == [(obj, number)]
    assert str(failures[0].change) in failures[0].error.message


def test_a_peer_on_a_device_that_is_no_vxlan_is_only_an_address_to_listen_to(host: Host) -> None:
    state = ok(host, put(Fdb(UNDERLAY, PEER, ip_address("192.168.50.12"))))
    assert Fdb(UNDERLAY, PEER) in state.fdb


def test_a_route_over_a_device_that_is_down_is_refused(host: Host) -> None:
    ok(host, [Change(Op.PUT, VXLAN._replace(up=False), VXLAN)])
    assert refusals(host.kernel.apply(put(ROUTE))) == [(ROUTE, errno.ENETDOWN)]


def test_dropping_entries_of_a_device_that_is_gone_is_no_error(host: Host) -> None:
    entries = (NEIGH, FDB, ROUTE, Address("flannel.1", ip_interface("10.244.1.0/32")))
    state = ok(host, [*put(*entries), *drop(VXLAN), *drop(*entries), *drop(VXLAN)])
    assert [held(state, obj) for obj in entries] == [None] * 4


def test_of_many_changes_only_the_bad_ones_fail(host: Host) -> None:
    peers: list[Object] = [peer for n in range(100) for peer in peer_entries(n)]
    bad: list[Object] = [NEIGH._replace(dev="nope"), ROUTE._replace(via=ip_address("10.250.0.1"), onlink=False)]
    peers[7:7] = bad
    peers[251:251] = [FDB._replace(dst=ip_address("fd00::1"))]
    failures = host.kernel.apply(put(*peers))
    numbers = [errno.ENODEV, errno.ENETUNREACH, errno.EAFNOSUPPORT]
    assert refusals(failures) == list(zip([*bad, peers[251]], numbers, strict=True))
    state = host.kernel.observe()
    good = {*peers} - {*bad, peers[251]}
    assert good <= {*state.neighs, *state.fdb, *state.routes}


def peer_entries(n: int) -> tuple[Neigh, Fdb, Route]:
    base = IPv4Address("10.250.0.0") + 256 * n
    mac = Mac.from_bytes(b"\x02\x42" + base.packed)
    return (
        Neigh("flannel.1", base, mac),
        Fdb("flannel.1", mac, IPv4Address("192.168.60.0") + n),
        Route(ip_network((base, 24)), "flannel.1", base, n + 1, onlink=True),
    )


# --- containers -------------------------------------------------------------------------------------


def test_attach_wires_a_container(bare: Host) -> None:
    container = bare.container()
    bare.kernel.attach(container)
    outer, inner = bare.kernel.observe(), bare.inside(container)
    assert (outer.links["veth1"].type, outer.links["veth1"].tag) == ("veth", container.tag)
    assert (outer.links["veth1"].mtu, outer.links["veth1"].up, outer.links["veth1"].master) == (
        1_450,
        False,
        None,
    )
    device = inner.links["eth0"]
    assert (device.type, device.mac, device.mtu, device.up) == ("veth", CONTAINER_MAC, 1_450, True)
    assert inner.links["lo"].up
    assert Address("eth0", container.addresses[0]) in inner.addresses
    assert Route(ip_network("0.0.0.0/0"), "eth0", GATEWAY) in inner.routes


def test_the_ends_of_a_cable_name_each_other(bare: Host) -> None:
    container = bare.container()
    bare.kernel.attach(container)
    outer, inner = bare.kernel.observe().links["veth1"], bare.inside(container).links["eth0"]
    assert (outer.peer, inner.peer) == (inner.ifindex, outer.ifindex)
    assert None not in (outer.peer_netns, inner.peer_netns)


def test_attach_wires_both_families(bare: Host) -> None:
    both = (ip_interface("10.244.1.2/24"), ip_interface("fd00:1::2/64"))
    container = replace(bare.container(), addresses=both, gateways=(GATEWAY, ip_address("fd00:1::1")))
    bare.kernel.attach(container)
    inner = bare.inside(container)
    assert {Address("eth0", address) for address in both} <= set(inner.addresses)
    found = {(r.dst.version, r.via) for r in inner.routes if r.dst.prefixlen == 0}
    assert found == {(4, GATEWAY), (6, ip_address("fd00:1::1"))}


@pytest.mark.parametrize(
    ("mistake", "number"),
    [
        pytest.param({"gateways": (ip_address("172.16.0.1"),)}, errno.ENETUNREACH, id="gateway-out-of-reach"),
        pytest.param({"tag": "overlaynet-bridge"}, errno.EEXIST, id="tag-taken"),
        pytest.param({"host_device": "cni0"}, errno.EEXIST, id="name-taken"),
    ],
)
def test_attach_that_fails_leaves_no_device(bare: Host, mistake: dict[str, Any], number: int) -> None:
    before = configured(ok(bare, put(BRIDGE)))
    good = bare.container()
    with pytest.raises(KernelError) as caught:
        bare.kernel.attach(replace(good, **mistake))
    assert caught.value.errno == number
    assert configured(bare.kernel.observe()) == before
    assert set(bare.inside(good).links) == {"lo"}
    bare.kernel.attach(good)
    assert set(bare.inside(good).links) == {"lo", "eth0"}


def test_a_container_is_wired_only_once(bare: Host) -> None:
    container = bare.container()
    bare.kernel.attach(container)
    with pytest.raises(WorkloadExists):
        bare.kernel.attach(replace(container, host_device="veth2", tag="overlaynet-default/web-2"))
    assert "veth2" not in bare.kernel.observe().links


def test_detach_removes_both_ends_and_is_harmless_when_repeated(bare: Host) -> None:
    container = bare.container()
    bare.kernel.attach(container)
    bare.kernel.detach("veth1")
    bare.kernel.detach("veth1")
    assert "veth1" not in bare.kernel.observe().links
    assert set(bare.inside(container).links) == {"lo"}


# --- any sequence -----------------------------------------------------------------------------------

STEPS: list[Object] = [
    *peer_entries(0),
    *peer_entries(1),
    NEIGH,
    NEIGH._replace(mac=OTHER),
    FDB,
    FDB._replace(dst=ip_address("192.168.50.13")),
    ROUTE,
    ROUTE._replace(metric=8),
    ROUTE._replace(via=ip_address("10.244.3.0")),
    ROUTE._replace(protocol=4),
    Address("flannel.1", ip_interface("10.244.1.0/32")),
    VXLAN,
    VXLAN._replace(mtu=1_400),
    VXLAN._replace(up=False),
]


@pytest.mark.kernel
@requires_netns
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Change, st.sampled_from(Op), st.sampled_from(STEPS)), max_size=12))
def test_fake_and_kernel_agree_on_any_sequence_of_changes(changes: list[Change]) -> None:
    with real_host() as real:
        fake = FakeHost()
        assert refusals(fake.kernel.apply(changes)) == refusals(real.kernel.apply(changes))
        assert ours(fake.kernel.observe()) == ours(real.kernel.observe())


def ours(state: KernelState) -> set[Object]:
    """What the steps above may have made; the kernel adds link-local and multicast entries of its own."""
    link = held(state, VXLAN)
    tables: list[Object] = [*state.addresses, *state.neighs, *state.fdb, *state.routes]
    found = {obj for obj in tables if kind_of(obj.key) in Kind and getattr(obj, "dev", None) == "flannel.1"}
    kept = {obj for obj in found if not _made_by_the_kernel(obj)}
    return kept | {link} if link else kept


def _made_by_the_kernel(obj: Object) -> bool:
    match obj:
        case Address(_, interface):
            return interface.version == 6
        case Route(dst):
            return dst.version == 6
        case Neigh(_, ip):
            return ip.is_multicast
        case Fdb(_, mac):
            return not mac.unicast
    return False
