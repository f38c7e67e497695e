"""What is connected to what, read from a world."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest
from helpers import worlds
from helpers.worlds import Shape, veth

from overlaynet.state import Fdb, Link, Neigh, Route
from overlaynet.trace import topology as topo
from overlaynet.trace.model import World
from overlaynet.trace.topology import Backend, HostView, Peer, topology, topology_json

pytestmark = pytest.mark.unit

SHAPE = Shape(containers=(2, 1))


@pytest.fixture
def world() -> World:
    return worlds.world(SHAPE)


def host(world: World, name: str = "node-1") -> HostView:
    return next(one for one in topology(world).hosts if one.name == name)


def peer(world: World) -> Peer:
    (one,) = host(world).peers
    return one


def is_fdb_of_node_2(obj: object) -> bool:
    return isinstance(obj, Fdb) and obj.dst == ip_address("192.168.50.12")


def test_devices_in_the_order_of_a_packet_that_leaves(world: World):
    devices = host(world).devices
    assert [(d.name, d.role) for d in devices] == [
        ("cni0", "bridge"), ("flannel.1", "vxlan"), ("eth0", "underlay"),
    ]  # fmt: skip
    assert [d.state for d in devices] == ["ok", "ok", None]
    assert devices[1].vni == 1
    assert devices[1].mtu == 1450
    assert devices[2].addresses == ("192.168.50.11/24",)


def test_containers_on_their_cables(world: World):
    one, other = host(world).containers
    assert (one.name, one.addresses, one.port, one.bridge) == (
        "web-1",
        ("10.244.1.2/24",),
        veth("web-1"),
        "cni0",
    )
    assert other.name == "web-2"
    assert one.up
    assert one.port_up


def test_a_container_whose_cable_is_unknown(world: World):
    (one, _) = host(replace(world, cables={})).containers
    assert one.port is None
    assert one.bridge is None
    assert not one.port_up


def test_the_way_to_the_other_host(world: World):
    found = peer(world)
    assert found.subnet == "10.244.2.0/24"
    assert (found.device, found.tunnelled, found.host) == ("flannel.1", True, "node-2")
    assert found.to == ip_address("192.168.50.12")
    assert (found.state, found.problems) == ("ok", ())


def test_without_a_tunnel_the_next_hop_is_the_host():
    found = peer(worlds.world(Shape(backend="host-gw")))
    assert (found.device, found.tunnelled, found.host, found.state) == ("eth0", False, "node-2", "ok")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(Fdb, "fdb missing"), (Neigh, "neigh missing"), (Route, "route missing")],
)
def test_an_entry_that_is_missing(world: World, kind: type, problem: str):
    def gone(obj: object) -> bool:
        if isinstance(obj, Fdb):
            return kind is Fdb and is_fdb_of_node_2(obj)
        return isinstance(obj, kind) and obj.dev == "flannel.1"

    found = peer(worlds.without(world, "node-1", gone))
    assert found.state == "missing"
    assert problem in found.problems
    assert found.to is None
    assert any(words.startswith(f"missing {problem.split()[0]} ") for words in
               host(worlds.without(world, "node-1", gone)).differences or ())  # fmt: skip


def test_an_entry_that_leads_elsewhere(world: World):
    old = next(f for f in world.places["node-1"].kernel.fdb if is_fdb_of_node_2(f))
    astray = worlds.changed(world, "node-1", old, old._replace(dst=ip_address("192.168.50.99")))
    found = peer(astray)
    assert (found.state, found.problems) == ("changed", ("fdb changed",))
    assert found.to == ip_address("192.168.50.99")
    assert found.host is None


def test_a_device_that_is_missing(world: World):
    links = {n: link for n, link in world.places["node-1"].kernel.links.items() if n != "flannel.1"}
    bare = worlds.altered(world, "node-1", links=links, routes=(), neighs=(), fdb=())
    tunnel = next(d for d in host(bare).devices if d.name == "flannel.1")
    assert (tunnel.role, tunnel.up, tunnel.state) == ("vxlan", False, "missing")
    assert peer(bare).tunnelled
    assert peer(bare).to is None


def test_a_link_that_is_down(world: World):
    down = worlds.with_link(world, "node-1", "flannel.1", up=False)
    tunnel = next(d for d in host(down).devices if d.name == "flannel.1")
    assert (tunnel.up, tunnel.state) == (False, "changed")


def test_rules_that_differ_are_named(world: World):
    rules = world.places["node-1"].rules
    assert rules is not None
    key = next(key for key in rules.chains if key[1].startswith("OVL-"))
    flushed = replace(rules, chains={**rules.chains, key: ()})
    differences = host(worlds.altered(world, "node-1", rules=flushed)).differences or ()
    assert f"changed rules of {key[0]} {key[1]}" in differences


def test_where_nobody_says_what_should_be_nothing_is_judged(world: World):
    unjudged = replace(world, wanted={})
    assert host(unjudged).differences is None
    assert {device.state for device in host(unjudged).devices} == {None}
    assert (peer(unjudged).state, peer(unjudged).host) == (None, "node-2")


def test_a_host_that_could_not_be_looked_at(world: World):
    places = {name: place for name, place in world.places.items() if name != "node-1"}
    nodes = {**world.nodes, "node-1": replace(world.nodes["node-1"], error="connection refused")}
    found = topology(replace(world, places=places, nodes=nodes))
    dark = found.hosts[0]
    assert (dark.name, dark.error, dark.devices) == ("node-1", "connection refused", ())
    assert topology_json(found)["hosts"][0]["error"] == "connection refused"


def test_as_a_document(world: World):
    behind = {"default/web": [Backend(ip_address("10.244.1.2"), 80, "web-1", "node-1")]}
    found = topology(world, behind)
    document = json.loads(json.dumps(topology_json(found)))
    assert set(document) == {"differences", "vxlan_port", "outside", "hosts", "services", "unseen"}
    first = document["hosts"][0]
    assert set(first) == set(HostView._fields)
    assert first["peers"][0]["to"] == "192.168.50.12"
    assert first["devices"][0]["mac"] == str(found.hosts[0].devices[0].mac)
    assert document["outside"] == ["203.0.113.10/24"]
    assert all(value is None or value != "" for value in first.values())


def test_every_role_is_one_that_a_wanted_link_may_have(world: World):
    kinds = {obj.type for obj in world.wanted["node-1"].objects.values() if isinstance(obj, Link)}
    assert kinds <= set(topo.ROLES)
