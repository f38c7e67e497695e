"""What is heard of others' changes, and what is not heard of our own."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from helpers.eventually import eventually
from helpers.kernel_hosts import PUBLIC, UNDERLAY, RealHost, real_host
from helpers.privilege import requires_netns

from overlaynet.addr import Mac
from overlaynet.kernel import notices
from overlaynet.kernel.notices import Notices
from overlaynet.ports import Noticed, Watched
from overlaynet.state import Address, Change, Fdb, Key, Link, Neigh, Op, Route, Vxlan

pytestmark = [pytest.mark.kernel, requires_netns]

VXLAN = Link("flannel.1", "vxlan", "overlaynet-vxlan", 1_450, None, Vxlan(1, 8472, PUBLIC.ip, UNDERLAY))
MAC = Mac("02:00:00:00:00:02")
NEIGH = Neigh("flannel.1", ip_address("10.244.2.0"), MAC)
FDB = Fdb("flannel.1", MAC, ip_address("192.168.50.12"))
ROUTE = Route(ip_network("10.244.2.0/24"), "flannel.1", ip_address("10.244.2.0"), 7, onlink=True)
ADDRESS = Address("flannel.1", ip_interface("10.244.1.0/32"))
NOBODYS_PORT = 1
"""A port id that no socket has here, so that our own writes are heard like others'."""
MARK = "ip route add 10.200.0.0/24 dev eth0 proto 111"
"""The last thing done in each test: once it is heard, so is all before it."""
MARKED: Key = ("route", 254, ip_network("10.200.0.0/24"), 0)


@dataclass
class Heard:
    """A host with our device and entries, and what was heard since."""

    host: RealHost
    inbox: queue.SimpleQueue[Noticed]
    listener: Notices
    watched: Watched
    on_wire: bool = False

    def after(self, *commands: str) -> tuple[dict[Key, object], frozenset[str]]:
        """Entries and devices announced by these commands."""
        entries: dict[Key, object] = {}
        devices: set[str] = set()
        for command in (*commands, MARK):
            self.host.netns.run(command)
        while MARKED not in entries:
            noticed = self.inbox.get(timeout=20)
            assert not noticed.overrun
            entries.update({key: sighting.obj for key, sighting in noticed.entries.items()})
            devices |= noticed.devices
            self.on_wire |= noticed.on_wire
        del entries[MARKED]
        return entries, frozenset(devices)


def put(host: RealHost, *objects) -> None:
    assert not host.kernel.apply([Change(Op.PUT, obj) for obj in objects])


@pytest.fixture
def heard() -> Iterator[Heard]:
    with real_host() as host:
        put(host, VXLAN, ADDRESS, NEIGH, FDB, ROUTE)
        inbox: queue.SimpleQueue[Noticed] = queue.SimpleQueue()
        listener = Notices(host.kernel.port_id, inbox.put)
        watched = Watched(frozenset({"flannel.1"}), frozenset({"flannel.1", UNDERLAY}))
        listener.watch(watched)
        listener.start()
        yield Heard(host, inbox, listener, watched)
        listener.stop()


@pytest.mark.parametrize(
    ("command", "key", "obj"),
    [
        pytest.param("ip route del 10.244.2.0/24 metric 7", ROUTE.key, None, id="route-gone"),
        pytest.param(
            "ip route replace 10.244.2.0/24 dev flannel.1 metric 7 proto 111",
            ROUTE.key,
            ROUTE._replace(via=None, onlink=False, scope="link"),
            id="route-altered",
        ),
        pytest.param("ip route replace blackhole 10.244.2.0/24 metric 7", ROUTE.key, None, id="route-taken"),
        pytest.param("ip neigh del 10.244.2.0 dev flannel.1", NEIGH.key, None, id="neighbour-gone"),
        pytest.param(
            "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:0f:0f dev flannel.1 nud permanent",
            NEIGH.key,
            NEIGH._replace(mac=Mac("02:00:00:00:0f:0f")),
            id="neighbour-altered",
        ),
        pytest.param(f"bridge fdb del {MAC} dev flannel.1", FDB.key, None, id="fdb-gone"),
        pytest.param(
            f"bridge fdb replace {MAC} dev flannel.1 dst 192.168.50.9",
            FDB.key,
            FDB._replace(dst=ip_address("192.168.50.9")),
            id="fdb-altered",
        ),
    ],
)
def test_entry_that_another_program_changes_is_heard_as_it_is_now(heard: Heard, command, key, obj):
    entries, _ = heard.after(command)
    assert entries[key] == obj


@pytest.mark.parametrize(
    "command",
    [
        "ip link set flannel.1 down",
        "ip link set flannel.1 mtu 1400",
        "ip link del flannel.1",
        "ip address del 10.244.1.0/32 dev flannel.1",
        "ip address add 10.244.1.9/32 dev flannel.1",
        "ip link property add dev flannel.1 altname other",
    ],
)
def test_device_that_another_program_changes_is_to_be_looked_at(heard: Heard, command: str):
    _, devices = heard.after(command)
    assert "flannel.1" in devices  # its underlay is told of, too, when it goes


def test_new_device_of_a_watched_name_is_heard_with_its_entries(heard: Heard):
    entries, devices = heard.after(
        "ip link del flannel.1",
        f"ip link add flannel.1 type vxlan id 1 local {PUBLIC.ip} dev {UNDERLAY} dstport 8472",
        "ip link set flannel.1 up",
        f"ip neigh add 10.244.2.0 lladdr {MAC} dev flannel.1 nud permanent",
    )
    assert "flannel.1" in devices
    assert entries[NEIGH.key] == NEIGH


def test_what_is_not_ours_is_not_heard(heard: Heard):
    heard_of = heard.after(
        "ip link add other type veth peer name far",
        "ip link set other up",
        "ip address add 10.9.0.1/24 dev other",
        "ip neigh add 10.9.0.7 lladdr 02:00:00:00:00:07 dev other nud permanent",
        "ip neigh add 192.168.50.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
        "ip route add 10.77.0.0/16 via 10.9.0.7",
        "ip route add 10.78.0.0/16 dev other table 100 proto 111",
        "ip route del 10.77.0.0/16",
    )
    assert heard_of == ({}, frozenset())


@pytest.mark.parametrize(
    ("command", "on_wire"),
    [
        pytest.param("ip route add 192.168.60.0/24 dev eth0", True, id="another-network"),
        pytest.param("ip route del 192.168.50.0/24 dev eth0", True, id="that-network"),
        pytest.param("ip route add 192.168.50.7/32 via 192.168.50.9", True, id="detour"),
        pytest.param("ip route add blackhole 192.168.50.128/25", True, id="hole"),
        pytest.param("ip route add 192.168.60.0/24 via 192.168.50.9", False, id="beyond-a-gateway"),
        pytest.param("ip route add default via 192.168.50.9", False, id="default-route"),
        pytest.param("ip route add 192.168.50.7/32 via 192.168.50.9 proto 111", False, id="ours"),
        pytest.param("ip route add 192.168.50.7/32 via 192.168.50.9 table 100", False, id="another-table"),
    ],
)
def test_route_of_others_by_which_somebody_is_on_the_wire_is_told(heard: Heard, command: str, on_wire: bool):
    heard.listener.watch(heard.watched._replace(wire=UNDERLAY, direct=(PUBLIC.network,)))
    heard.host.netns.run(command)
    _, devices = heard.after()
    assert (heard.on_wire, devices) == (on_wire, frozenset())


def test_routes_of_others_are_not_told_of_where_nobody_is_reached_by_the_wire(heard: Heard):
    heard.after("ip route add 192.168.60.0/24 dev eth0")
    assert not heard.on_wire


def test_own_writes_are_not_heard_but_for_what_carries_no_sender(heard: Heard):
    """The kernel announces forwarding entries in nobody's name: they come, and come as they are."""
    other = Neigh("flannel.1", ip_address("10.244.3.0"), MAC)
    put(heard.host, NEIGH._replace(mac=Mac("02:00:00:00:00:03")), other, FDB, ROUTE._replace(metric=9), ADDRESS)
    entries, devices = heard.after()
    assert (entries, devices) in (({}, frozenset()), ({FDB.key: FDB}, frozenset()))


def test_entry_of_a_tunnel_that_is_announced_without_where_it_leads_is_no_news(heard: Heard):
    """As older kernels do it after each announcement that is whole; taking it for a change, the agent would
    write the entry again, and hear of that in the same way, for ever. Here it is one that leads to a group."""
    entries, _ = heard.after(
        "ip nexthop add id 1 via 192.168.50.9 fdb",
        "ip nexthop add id 2 group 1 fdb",
        f"bridge fdb del {MAC} dev flannel.1",
        f"bridge fdb add {MAC} dev flannel.1 nhid 2 self permanent",
    )
    assert entries == {FDB.key: None}


def test_lost_announcements_are_told_of_once_and_listening_goes_on(monkeypatch):
    with real_host() as host:
        put(host, VXLAN)
        inbox: queue.SimpleQueue[Noticed] = queue.SimpleQueue()
        monkeypatch.setattr(notices, "BUFFER_BYTES", 4_096)
        listener = Notices(0, inbox.put)
        listener.watch(Watched(frozenset({"flannel.1"}), frozenset({"flannel.1"})))
        base = int(ip_address("10.0.0.0"))
        entries = [Neigh("flannel.1", ip_address(base + n), MAC) for n in range(500)]
        put(host, *entries)
        listener.start()
        assert inbox.get(timeout=20).overrun
        put(host, NEIGH)
        eventually(lambda: NEIGH.key in inbox.get(timeout=20).entries)
        listener.stop()
        assert inbox.empty()


def test_announcement_that_trips_the_listener_is_one_that_is_lost_and_listening_goes_on(heard, monkeypatch):
    def trip(*_: object) -> list[Route]:
        monkeypatch.undo()
        raise ValueError("never heard of")

    monkeypatch.setattr(notices.parse, "routes", trip)
    heard.host.netns.run("ip route del 10.244.2.0/24 metric 7")
    assert heard.inbox.get(timeout=20).overrun
    assert heard.after("ip neigh del 10.244.2.0 dev flannel.1") == ({NEIGH.key: None}, frozenset())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood is over when nothing has come for a second: until then another program has done its work."""
    monkeypatch.setattr(notices, "GATHER_S", 1.0)
    monkeypatch.setattr(notices, "FLOOD_S", 20.0)


@pytest.fixture
def flooded() -> Iterator[tuple[Heard, list[Neigh]]]:
    """A listener to which our own writes are others', and more entries than it takes apart as they come."""
    with real_host() as host:
        put(host, VXLAN)
        inbox: queue.SimpleQueue[Noticed] = queue.SimpleQueue()
        listener = Notices(NOBODYS_PORT, inbox.put)
        watched = Watched(frozenset({"flannel.1"}), frozenset({"flannel.1"}))
        listener.watch(watched)
        base = int(ip_address("10.0.0.0"))
        entries = [Neigh("flannel.1", ip_address(base + n), MAC) for n in range(2 * notices.MANY)]
        put(host, *entries)
        listener.start()
        yield Heard(host, inbox, listener, watched), entries
        listener.stop()


def test_flood_of_entries_is_heard_whole_and_as_it_is_in_the_end(flooded):
    heard, entries = flooded
    altered = entries[-1]._replace(mac=Mac("02:00:00:00:0f:0f"))
    put(heard.host, altered)
    found, _ = heard.after()
    assert found == {entry.key: entry for entry in (*entries[:-1], altered)}


def test_of_a_flood_before_the_end_of_a_device_most_is_dropped(patient, flooded):
    heard, entries = flooded
    heard.host.netns.run("ip link del flannel.1")
    found, devices = heard.after()
    assert devices == {"flannel.1"}
    assert len(found) < len(entries)


def test_sender_is_named(heard: Heard):
    heard.host.netns.run("ip route del 10.244.2.0/24 metric 7")
    while ROUTE.key not in (entries := heard.inbox.get(timeout=20).entries):
        pass
    sighting = entries[ROUTE.key]
    assert sighting.by.startswith(("ip (process ", "port id "))


def test_listener_that_was_stopped_is_silent(heard: Heard):
    with real_host() as host:
        inbox: queue.SimpleQueue[Noticed] = queue.SimpleQueue()
        listener = Notices(host.kernel.port_id, inbox.put)
        listener.start()
        listener.stop()
        host.netns.run(MARK)
        assert inbox.empty()
