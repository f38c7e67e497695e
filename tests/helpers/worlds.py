"""Clusters as worlds, without any kernel: planned by the planner, held by kernels in memory.

    outside 203.0.113.10 ─ router 192.168.50.1 ─┬─ .11 node-1 ─ cni0 ─ web-1 10.244.1.2, …
                                                └─ .12 node-2 ─ cni0 ─ web-… 10.244.2.2, …

Names, addresses and MACs are those of a lab with the same numbers. A test takes the world and alters what it is
about: `altered` for one place, `without` for one of a host's objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Literal

from overlaynet.addr import IPAddress, IPNetwork, Mac, container_mac, gateway_address
from overlaynet.core import plan
from overlaynet.core.keys import Keys
from overlaynet.core.overlay import container_mtu
from overlaynet.core.view import View
from overlaynet.core.workload import host_device
from overlaynet.firewall.chains import Rendered
from overlaynet.firewall.render import render
from overlaynet.model import (
    Backend,
    Identity,
    Lease,
    LocalHost,
    NetworkConfig,
    NodeRecord,
    Pool,
    Port,
    Record,
    Service,
    ServiceOptions,
    Stored,
    Vtep,
    Workload,
)
from overlaynet.state import (
    Change,
    KernelState,
    Kind,
    Object,
    Op,
    Policy,
    Route,
    RuleLine,
    RuleSet,
)
from overlaynet.testing.fake_kernel import FakeKernel
from overlaynet.trace import model

OVERLAY = ip_network("10.244.0.0/16")
UNDERLAY = ip_network("192.168.50.0/24")
ROUTER = ip_address("192.168.50.1")
OUTSIDE = ip_interface("203.0.113.10/24")
OUTSIDE_ROUTER = ip_address("203.0.113.1")
BRIDGE_NF = "net/bridge/bridge-nf-call-iptables"
BUILTIN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
KEYS = Keys()


@dataclass(frozen=True)
class Shape:
    """What a cluster looks like. `containers`: how many each host has; they are called web-1, web-2, …
    across hosts. Every container listens on `ports`, TCP and UDP."""

    containers: tuple[int, ...] = (1, 1)
    backend: Literal["vxlan", "host-gw"] = "vxlan"
    services: tuple[Service, ...] = ()
    bridge_nf: bool = True
    ports: tuple[int, ...] = (80,)
    peers_only: bool = False
    outside: bool = True

    @property
    def hosts(self) -> dict[str, tuple[str, ...]]:
        """Each host's containers, by name."""
        found, number = {}, 0
        for index, count in enumerate(self.containers, 1):
            found[f"node-{index}"] = tuple(f"web-{number + i}" for i in range(1, count + 1))
            number += count
        return found


def number(host: str) -> int:
    return int(host.rpartition("-")[2])


def subnet(host: str) -> IPNetwork:
    return ip_network(f"10.244.{number(host)}.0/24")


def underlay_ip(host: str) -> IPAddress:
    return ip_address(f"192.168.50.{10 + number(host)}")


def underlay_mac(host: str) -> Mac:
    return Mac(f"02:00:c0:a8:32:{10 + number(host):02x}")


def vtep_mac(host: str) -> Mac:
    return Mac(f"02:0a:f4:{number(host):02x}:00:00")


def container_ip(shape: Shape, container: str) -> IPAddress:
    host, names = next((h, names) for h, names in shape.hosts.items() if container in names)
    return gateway_address(subnet(host)) + 1 + names.index(container)


def veth(container: str) -> str:
    """The host end of its cable."""
    return host_device(f"default/{container}")


# --- planned --------------------------------------------------------------------------------------


def lease(shape: Shape, host: str) -> Lease:
    vteps = (Vtep(4, 1, vtep_mac(host)),) if shape.backend == "vxlan" else ()
    return Lease((subnet(host),), (underlay_ip(host),), shape.backend, vteps, node_name=host)


def workloads(shape: Shape, host: str) -> list[Workload]:
    ports = tuple(Port(number, protocol) for number in shape.ports for protocol in ("TCP", "UDP"))
    found = []
    for name in shape.hosts[host]:
        ip = container_ip(shape, name)
        found.append(
            Workload(
                name, "default", host, (ip,), container_mac(ip), veth(name), labels={"app": "web"}, ports=ports
            )
        )
    return found


def local_host(shape: Shape, host: str) -> LocalHost:
    options = ServiceOptions(node_ips=(underlay_ip(host),)) if shape.services else None
    return LocalHost(
        host,
        Identity(host, vtep_mac(host)),
        (underlay_ip(host),),
        "eth0",
        1_500,
        vxlan_peers_only=shape.peers_only,
        on_link=(UNDERLAY,),
        services=options,
    )


def view(shape: Shape) -> View:
    """What etcd says."""
    pool = Pool(OVERLAY, 24, ip_address("10.244.1.0"), ip_address("10.244.255.0"))
    items: list[tuple[str, Record]] = [(KEYS.network_config, NetworkConfig((pool,), Backend(shape.backend)))]
    for host in shape.hosts:
        own = lease(shape, host)
        items.append((KEYS.lease(own.subnets), own))
        items.append((KEYS.node(host), NodeRecord(host, host, own.public_ips, "eth0")))
        items += [(KEYS.workload(host, w.id), w) for w in workloads(shape, host)]
    items += [(KEYS.service(s.id), s) for s in shape.services]
    return View.of([Stored(key, value, i + 1, i + 1, 1) for i, (key, value) in enumerate(items)], KEYS)


def planned(shape: Shape) -> dict[str, plan.Desired]:
    """What each host should hold."""
    said = view(shape)
    return {
        host: plan.desired(said, local_host(shape, host), lease(shape, host), workloads(shape, host))
        for host in shape.hosts
    }


def rendered(desired: plan.Desired) -> Rendered:
    return render(desired.policies, random_fully=True)


def wanted(desired: plan.Desired) -> model.Wanted:
    rules = rendered(desired)
    return model.Wanted(desired.objects, desired.sources, rules.chains, rules.hooks, rules.origins)


# --- in memory ------------------------------------------------------------------------------------


def rule_set(policies: Mapping[str, Policy]) -> RuleSet:
    """The rules of these policies, as they are read where nobody else has any."""
    return rules_of(render(policies, random_fully=True))


def rules_of(rules: Rendered) -> RuleSet:
    builtin = {
        (table, chain): rules.hooks.get((table, chain), ()) for table in BUILTIN for chain in BUILTIN[table]
    }
    chains = {**builtin, **rules.chains}
    policies = {key: "ACCEPT" if key in builtin else "-" for key in chains}
    return RuleSet("nft", {key: tuple(map(RuleLine, texts)) for key, texts in chains.items()}, policies)


def world(shape: Shape = Shape()) -> model.World:
    """Everything as it should be."""
    plans = planned(shape)
    places: dict[str, model.Place] = {}
    cables: dict[model.Point, model.Point] = {}
    for host, desired in plans.items():
        places |= _host(shape, host, desired)
        for name in shape.hosts[host]:
            ends = model.Point(name, "eth0"), model.Point(host, veth(name))
            cables |= {ends[0]: ends[1], ends[1]: ends[0]}
    if shape.outside:
        places["outside"] = _outside()
    return model.World(
        places,
        cables,
        {host: wanted(desired) for host, desired in plans.items()},
        {host: model.Node(host, (underlay_ip(host),), "running", True) for host in plans},
        tuple(_named(service) for service in shape.services),
    )


def _named(service: Service) -> model.Service:
    ports = tuple((port.protocol.lower(), port.port, port.node_port) for port in service.ports)
    return model.Service(service.id, service.cluster_ips, ports)


def _host(shape: Shape, host: str, desired: plan.Desired) -> dict[str, model.Place]:
    kernel = FakeKernel()
    kernel.sysctls[BRIDGE_NF] = str(int(shape.bridge_nf))
    kernel.add_device("eth0", mac=underlay_mac(host), addresses=[ip_interface(f"{underlay_ip(host)}/24")])
    kernel.apply([Change(Op.PUT, Route(ip_network("0.0.0.0/0"), "eth0", ROUTER))])
    for name in shape.hosts[host]:
        kernel.add_device(veth(name), type="veth", mtu=1_450, up=False)
    failures = kernel.apply([Change(Op.PUT, obj) for obj in ordered(desired)])
    assert not failures, failures
    if not shape.bridge_nf:
        kernel.sysctls[BRIDGE_NF] = "0"
    found = {host: _place(host, model.HOST, host, kernel, rules_of(rendered(desired)))}
    mtu = container_mtu(Backend(shape.backend), local_host(shape, host))
    for name in shape.hosts[host]:
        found[name] = _container(shape, host, name, mtu)
    return found


def ordered(desired: plan.Desired) -> list[Object]:
    """In the order in which they can be written."""
    kinds = list(Kind)
    return sorted(desired.objects.values(), key=lambda obj: kinds.index(obj.key[0]))  # type: ignore[arg-type]


def _container(shape: Shape, host: str, name: str, mtu: int) -> model.Place:
    kernel, ip = FakeKernel(), container_ip(shape, name)
    kernel.add_device("eth0", type="veth", mtu=mtu, mac=container_mac(ip), addresses=[ip_interface(f"{ip}/24")])
    kernel.apply([Change(Op.PUT, Route(ip_network("0.0.0.0/0"), "eth0", gateway_address(subnet(host))))])
    listening = {model.Listener(protocol, None, port) for port in shape.ports for protocol in ("tcp", "udp")}
    return replace(_place(name, model.CONTAINER, host, kernel, NO_RULES), listening=frozenset(listening))


def _outside() -> model.Place:
    kernel = FakeKernel()
    kernel.add_device("eth0", mac=Mac("02:00:cb:00:71:0a"), addresses=[OUTSIDE])
    kernel.apply([Change(Op.PUT, Route(ip_network("0.0.0.0/0"), "eth0", OUTSIDE_ROUTER))])
    return _place("outside", model.OUTSIDE, None, kernel, NO_RULES)


def _place(name: str, kind: str, host: str | None, kernel: FakeKernel, rules: RuleSet) -> model.Place:
    sysctls = {**SETTINGS, **kernel.sysctls}
    if sysctls["net/ipv4/ip_forward"] == "1":
        sysctls |= {f"net/ipv4/conf/{dev}/forwarding": "1" for dev in (*kernel.links, "all")}
    state = replace(kernel.observe(), sysctls=sysctls)
    return model.Place(name, kind, host, f"ovl-test-{name}", state, rules)


NO_RULES = RuleSet("nft")
SETTINGS: Mapping[str, str | None] = {"net/ipv4/ip_default_ttl": "64"}


# --- altered --------------------------------------------------------------------------------------


def altered(world: model.World, place: str, **fields: object) -> model.World:
    """With other fields of one place; those of `KernelState` and those of `Place` are told by their name."""
    old = world.places[place]
    of_kernel = {name: value for name, value in fields.items() if name in KernelState.__dataclass_fields__}
    rest = {name: value for name, value in fields.items() if name not in of_kernel and name != "rules"}
    if "rules" in fields:
        rest["rules"] = fields["rules"]
        of_kernel.pop("rules", None)
    kernel = replace(old.kernel, **of_kernel)  # type: ignore[arg-type]
    new = replace(old, kernel=kernel, **rest)  # type: ignore[arg-type]
    return replace(world, places={**world.places, place: new})


def without(world: model.World, place: str, gone: Callable[[Object], bool]) -> model.World:
    """Lacking the routes, neighbours and FDB entries of a place that `gone` says yes to."""
    kernel = world.places[place].kernel
    return altered(
        world,
        place,
        routes=tuple(r for r in kernel.routes if not gone(r)),
        neighs=tuple(n for n in kernel.neighs if not gone(n)),
        fdb=tuple(f for f in kernel.fdb if not gone(f)),
    )


def changed(world: model.World, place: str, old: Object, new: Object) -> model.World:
    """With one route, neighbour or FDB entry of a place in place of another."""
    kernel = world.places[place].kernel
    return altered(
        world,
        place,
        routes=tuple(new if r == old else r for r in kernel.routes),
        neighs=tuple(new if n == old else n for n in kernel.neighs),
        fdb=tuple(new if f == old else f for f in kernel.fdb),
    )


def with_sysctl(world: model.World, place: str, name: str, value: str) -> model.World:
    return altered(world, place, sysctls={**world.places[place].kernel.sysctls, name: value})


def with_link(world: model.World, place: str, name: str, **fields: object) -> model.World:
    links = world.places[place].kernel.links
    return altered(world, place, links={**links, name: links[name]._replace(**fields)})  # type: ignore[arg-type]
