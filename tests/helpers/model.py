"""Builders of the model's values, with names and addresses that encode the host they belong to.

Host number N has 192.168.50.N, 10.244.N.0/24, VTEP MAC 02:00:00:00:00:NN and node id "id-N".
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network
from typing import Any

from overlaynet.addr import Mac, container_mac
from overlaynet.core.engine import Engine
from overlaynet.core.keys import Keys
from overlaynet.core.workload import host_device
from overlaynet.model import (
    VXLAN,
    Backend,
    EndpointSlice,
    Identity,
    Lease,
    LocalHost,
    NetworkConfig,
    NodeRecord,
    Pool,
    Port,
    Service,
    ServicePort,
    SliceEndpoint,
    Stored,
    Vtep,
    Workload,
)
from overlaynet.testing.fake_kernel import FakeKernel

KEYS = Keys()


def subnet(number: int) -> IPv4Network:
    return IPv4Network(f"10.244.{number}.0/24")


def vtep_mac(number: int) -> Mac:
    return Mac.parse(f"02:00:00:00:{number // 256:02x}:{number % 256:02x}")


def network(
    cidr: str = "10.244.0.0/16", subnet_len: int = 24, backend: str = VXLAN, *, count: int = 255, **more: Any
) -> NetworkConfig:
    """A network whose `count` subnets start at the second of the range, as flannel has it.

    A test whose agent chooses by chance keeps some out of `count` for the peers that it makes up itself.
    """
    whole = ip_network(cidr)
    step = 1 << (whole.max_prefixlen - subnet_len)
    first = whole.network_address + step
    pool = Pool(whole, subnet_len, first, first + step * (count - 1))
    return NetworkConfig((pool,), Backend(backend, **more))


def local(number: int = 1, **changes: Any) -> LocalHost:
    values: dict[str, Any] = {
        "name": f"node-{number}",
        "identity": Identity(f"id-{number}", vtep_mac(number)),
        "public_ips": (ip_address(f"192.168.50.{number}"),),
        "interface": "eth0",
        "underlay_mtu": 1_500,
    }
    return LocalHost(**{**values, **changes})


def lease(number: int, *, vni: int = 1, backend: str | None = VXLAN, **changes: Any) -> Lease:
    """The lease that host `number` writes."""
    values: dict[str, Any] = {
        "subnets": (subnet(number),),
        "public_ips": (ip_address(f"192.168.50.{number}"),),
        "backend_type": backend,
        "vteps": (Vtep(4, vni, vtep_mac(number)),) if backend == VXLAN else (),
        "node_id": f"id-{number}",
        "node_name": f"node-{number}",
    }
    return Lease(**{**values, **changes})


def flannel_lease(number: int, **changes: Any) -> Lease:
    """The lease that flannel writes on host `number`: without node id and name."""
    return lease(number, **{"node_id": None, "node_name": None, **changes})


def stored(value: Any, revision: int = 5, *, key: str | None = None, lease_id: int = 77) -> Stored[Any]:
    return Stored(key or key_of(value), value, revision, revision, lease_id)


def key_of(value: Any) -> str:
    match value:
        case Lease():
            return KEYS.lease(value.subnets)
        case NetworkConfig():
            return KEYS.network_config
        case NodeRecord():
            return KEYS.node(value.name)
        case Workload():
            return KEYS.workload(value.node, value.id)
        case Service():
            return KEYS.service(value.id)
        case EndpointSlice():
            return KEYS.slice(value.id)
    raise TypeError(value)


def workload(number: int = 1, container: int = 2, **changes: Any) -> Workload:
    """Container 10.244.`number`.`container` on host `number`."""
    ip = ip_address(f"10.244.{number}.{container}")
    name = f"web-{container}"
    values: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "node": f"node-{number}",
        "ips": (ip,),
        "mac": container_mac(ip),
        "device": host_device(f"default/{name}"),
    }
    return Workload(**{**values, **changes})


def node(number: int = 1, **changes: Any) -> NodeRecord:
    """The record of host `number`."""
    values: dict[str, Any] = {
        "name": f"node-{number}",
        "node_id": f"id-{number}",
        "public_ips": (ip_address(f"192.168.50.{number}"),),
        "interface": "eth0",
    }
    return NodeRecord(**{**values, **changes})


def service(name: str = "web", **changes: Any) -> Service:
    """Service 10.112.0.10:80 over the workloads labelled app=`name`, on their port 8080."""
    values: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "cluster_ips": (ip_address("10.112.0.10"),),
        "ports": (ServicePort(80, target=8080),),
        "selector": {"app": name},
    }
    return Service(**{**values, **changes})


def pod(number: int = 1, container: int = 2, app: str = "web", **changes: Any) -> Workload:
    """A workload that `service` chooses."""
    return workload(number, container, **{"labels": {"app": app}, **changes})


def endpoint_slice(
    name: str = "web-1", of: str = "web", *ips: str, port: int = 8080, **changes: Any
) -> EndpointSlice:
    """A slice of service `of` with endpoints at `ips`; `changes` are those of each."""
    endpoints = tuple(SliceEndpoint(ip_address(ip), **changes) for ip in ips)
    return EndpointSlice(name, "default", of, (Port(port, name=""),), endpoints)


def engine(number: int = 1, **changes: Any) -> Engine:
    """An engine with its own, reproducible chance."""
    chance = random.Random(number)
    return Engine(KEYS, local(number, **changes), chance.randrange, lambda: 0.0, "test")


def kernel(number: int = 1, workloads: Iterable[Workload] = ()) -> FakeKernel:
    """Host `number` with its underlay interface, and the veths of containers that were wired before."""
    fake = FakeKernel()
    fake.add_device("eth0", addresses=[ip_interface(f"192.168.50.{number}/24")])
    for one in workloads:
        add_veth(fake, one)
    return fake


def add_veth(fake: FakeKernel, one: Workload) -> None:
    tag = f"overlaynet-veth-{one.id.replace('/', '.')}"
    fake.add_device(one.device, type="veth")
    fake.links[one.device] = fake.links[one.device]._replace(altnames=(tag,))
