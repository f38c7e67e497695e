"""etcd's bytes into the model's values, and back.

Reading is tolerant, because keys are also written by flannel and by hand, and total: whatever a key holds,
`decode` answers, and what it cannot understand becomes `Unreadable` with a reason. One bad key must never
cost a host its other peers.

Writing is strict. A lease is byte for byte what flannel writes, then our two members, which flannel ignores.
Its key is its subnet: ``10.244.1.0-24``, or ``10.244.1.0-24&fd00:0:0:1::-64`` with an IPv6 one.

    {"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan",
     "BackendData":{"VNI":1,"VtepMAC":"02:..."},"NodeID":"...","NodeName":"node-1"}

Services and slices are Kubernetes objects (`kubernetes.py`), and keep every member that they came with.
The other records under our own prefix are JSON objects with snake_case members; the settings, which people
write, follow the network config's spelling: ``{"LeaseTTL":"24h","NodeTTL":"15s"}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, ip_address, ip_network
from socket import AF_INET, inet_pton
from types import MappingProxyType
from typing import TypeVar

from overlaynet.addr import IPAddress, IPNetwork, Mac, network
from overlaynet.core.keys import Keys
from overlaynet.errors import OverlayError, ValueInvalid
from overlaynet.model import (
    DEFAULT_VNI,
    NO_LABELS,
    VXLAN,
    Allocation,
    Claim,
    EndpointSlice,
    Lease,
    NodeRecord,
    Port,
    Record,
    Service,
    Settings,
    Stored,
    Unreadable,
    Vtep,
    Workload,
)
from overlaynet.ports import KeyValue
from overlaynet.store import kubernetes
from overlaynet.store.fields import Fields, dump, invalid, load, parse_address, understand
from overlaynet.store.network_config import encode_network_config, parse_network_config

__all__ = [
    "ADDRESS",
    "VTEP",
    "decode",
    "encode_allocation",
    "encode_claim",
    "encode_lease",
    "encode_network_config",
    "encode_node",
    "encode_object",
    "encode_settings",
    "encode_workload",
    "parse_network_config",
    "parse_settings",
]

ADDRESS = "address"
VTEP = "vtep"
"""The two kinds of claim."""

MIN_NODE_TTL_S = 2
"""etcd grants nothing shorter with its usual election timeout (etcd's lease/lessor.go, minimum TTL)."""

MAX_TTL_S = 9_000_000_000
"""The longest lease etcd grants (etcd's lease/lessor.go, MaxLeaseTTL)."""

_NO_ADDRESS = IPv4Address(0)
_LEASE_TAIL = re.compile(r"([0-9.]+)-([0-9]{1,2})(?:&([0-9a-f:.]+)-([0-9]{1,3}))?")
_LONGEST_LEN = {4: 31, 6: 127}


# --- decode ---------------------------------------------------------------------------------------


def decode(kv: KeyValue, keys: Keys) -> Stored[Record]:
    """The record that a key holds, whatever it holds; never raises."""
    try:
        value = _record(kv, keys)
    except OverlayError as error:
        value = Unreadable(f"{error.message} ({error.evidence})" if error.evidence else error.message)
    except (ValueError, RecursionError) as error:
        value = Unreadable(str(error))
    return Stored(kv.key, value, kv.create_revision, kv.mod_revision, kv.lease_id)


def _record(kv: KeyValue, keys: Keys) -> Record:
    if kv.key == keys.network_config:
        return parse_network_config(kv.value)
    if kv.key == keys.settings:
        return parse_settings(kv.value)
    for prefix, read in _readers(keys):
        if kv.key.startswith(prefix):
            return read(kv.key.removeprefix(prefix), kv.value)
    return Unreadable("not a key that overlaynet knows")


@lru_cache(maxsize=8)
def _readers(keys: Keys) -> Sequence[tuple[str, Callable[[str, bytes], Record]]]:
    return (
        (keys.subnets, _lease),
        (keys.nodes, _node),
        (keys.addresses, _address_claim),
        (keys.vteps, _vtep_claim),
        (keys.workloads, _workload),
        (keys.services, _service),
        (keys.slices, _slice),
        (keys.vips, _vip),
        (keys.node_ports, _node_port),
    )


# --- leases ---------------------------------------------------------------------------------------


def encode_lease(lease: Lease) -> bytes:
    """The lease's value as flannel writes it, then NodeID and NodeName; what is not set is left out."""
    members: dict[str, object] = {
        "PublicIP": str(lease.public_ip(4) or _NO_ADDRESS),
        "PublicIPv6": _text(lease.public_ip(6)),
    }
    optional = {
        "BackendType": lease.backend_type,
        "BackendData": _vtep_members(lease.vtep(4)),
        "BackendV6Data": _vtep_members(lease.vtep(6)),
        "NodeID": lease.node_id,
        "NodeName": lease.node_name,
    }
    return dump(members | {name: value for name, value in optional.items() if value})


def _vtep_members(vtep: Vtep | None) -> Mapping[str, object] | None:
    return {"VNI": vtep.vni, "VtepMAC": str(vtep.mac)} if vtep else None


def _lease(tail: str, value: bytes) -> Lease:
    fields = load(value, fold=True)
    backend_type = fields.get("BackendType", str, "") or None
    return Lease(
        subnets=_subnets(tail),
        public_ips=_public_ips(fields),
        backend_type=backend_type,
        vteps=_vteps(fields) if backend_type == VXLAN else (),
        node_id=fields.get("NodeID", str, "") or None,
        node_name=fields.get("NodeName", str, "") or None,
    )


def _subnets(tail: str) -> tuple[IPNetwork, ...]:
    """The subnets in the last part of a lease's key; raises ValueInvalid."""
    found = _LEASE_TAIL.fullmatch(tail)
    if not found:
        raise ValueInvalid("the key does not end in a subnet", evidence=tail)
    v4, v4_len, v6, v6_len = found.groups()
    first = _subnet(f"{v4}/{v4_len}", 4)
    return (first, _subnet(f"{v6}/{v6_len}", 6)) if v6 else (first,)


def _subnet(text: str, version: int) -> IPNetwork:
    found = understand("the key's subnet", _network, text)
    if found.version != version or found.prefixlen > _LONGEST_LEN[version]:
        raise ValueInvalid(f"the key does not name an IPv{version} subnet", evidence=text)
    return found


def _public_ips(fields: Fields) -> tuple[IPAddress, ...]:
    """Those that are given. flannel writes 0.0.0.0 for none; a reservation made by hand may lack both."""
    given = (_public_ip(fields, "PublicIP", 4), _public_ip(fields, "PublicIPv6", 6))
    return tuple(address for address in given if address)


def _public_ip(fields: Fields, name: str, version: int) -> IPAddress | None:
    found = fields.parsed(name, parse_address) if fields.raw(name) else None
    if found and found.version != version:
        raise invalid(name, f"is not an IPv{version} address", str(found))
    return found if found and int(found) else None


def _vteps(fields: Fields) -> tuple[Vtep, ...]:
    given = (_vtep(fields, "BackendData", 4), _vtep(fields, "BackendV6Data", 6))
    return tuple(vtep for vtep in given if vtep)


def _vtep(fields: Fields, name: str, version: int) -> Vtep | None:
    data = fields.within(name)
    if data is None:
        return None
    mac = understand(data.where("VtepMAC"), Mac.parse, data.require("VtepMAC", str))
    if not mac.unicast:
        raise invalid(data.where("VtepMAC"), "belongs to no single device", str(mac))
    return Vtep(version, data.get("VNI", int, DEFAULT_VNI), mac)


# --- settings -------------------------------------------------------------------------------------

_UNIT_S = {"h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:([0-9]{1,10})h)?(?:([0-9]{1,10})m)?(?:([0-9]{1,10})s)?")


def parse_settings(data: bytes) -> Settings:
    """Our cluster-wide settings; what is not given has its default. Raises ValueInvalid."""
    fields, usual = load(data, fold=True), Settings()
    return Settings(
        lease_ttl_s=_ttl(fields, "LeaseTTL", usual.lease_ttl_s, least=MIN_NODE_TTL_S),
        node_ttl_s=_ttl(fields, "NodeTTL", usual.node_ttl_s, least=MIN_NODE_TTL_S),
        stop_grace_s=_ttl(fields, "StopGrace", usual.stop_grace_s, least=0),
        service_network=fields.parsed("ServiceNetwork", ip_network) or usual.service_network,
    )


def encode_settings(settings: Settings) -> bytes:
    """All settings, spelled out."""
    return dump(
        {
            "LeaseTTL": _duration(settings.lease_ttl_s),
            "NodeTTL": _duration(settings.node_ttl_s),
            "StopGrace": _duration(settings.stop_grace_s),
            "ServiceNetwork": _text(settings.service_network),
        }
    )


def _ttl(fields: Fields, name: str, usual: int, least: int) -> int:
    seconds = fields.parsed(name, _seconds)
    if seconds is None:
        return usual
    if not least <= seconds <= MAX_TTL_S:
        raise invalid(name, f"must be from {least} to {MAX_TTL_S} seconds", seconds)
    return seconds


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if not found or not text:
        raise ValueError("a duration is written like 24h, 15s or 1h30m")
    return sum(int(number or 0) * unit for number, unit in zip(found.groups(), _UNIT_S.values(), strict=True))


def _duration(seconds: int) -> str:
    words = []
    for word, unit in _UNIT_S.items():
        count, seconds = divmod(seconds, unit)
        if count:
            words.append(f"{count}{word}")
    return "".join(words) or "0s"


# --- nodes and claims -----------------------------------------------------------------------------


def encode_node(record: NodeRecord) -> bytes:
    return dump(
        {
            "name": record.name,
            "node_id": record.node_id,
            "public_ips": [str(ip) for ip in record.public_ips],
            "interface": record.interface,
            "zone": record.zone,
            "labels": dict(record.labels),
            "version": record.version,
            "bridge": record.bridge,
            "bridge_mode": record.bridge_mode,
        }
    )


def _node(tail: str, value: bytes) -> NodeRecord:
    fields = load(value)
    return NodeRecord(
        name=_same(fields, "name", tail),
        node_id=fields.require("node_id", str),
        public_ips=_addresses(fields, "public_ips"),
        interface=fields.get("interface", str, ""),
        zone=fields.optional("zone", str),
        labels=_labels(fields),
        version=fields.get("version", str, ""),
        bridge=fields.get("bridge", str, "cni0"),
        bridge_mode=fields.get("bridge_mode", str, "managed"),
    )


def encode_claim(claim: Claim) -> bytes:
    """Who claims. What is claimed is in the key alone."""
    return dump({"node_id": claim.node_id, "node_name": claim.node_name})


def _address_claim(tail: str, value: bytes) -> Claim:
    return _claim(ADDRESS, str(understand("the key's address", ip_address, tail)), value)


def _vtep_claim(tail: str, value: bytes) -> Claim:
    return _claim(VTEP, str(understand("the key's MAC", Mac.parse, tail)), value)


def _claim(kind: str, what: str, value: bytes) -> Claim:
    fields = load(value)
    return Claim(kind, what, fields.require("node_id", str), fields.require("node_name", str))


# --- workloads ------------------------------------------------------------------------------------


def encode_workload(workload: Workload) -> bytes:
    return dump(
        {
            "name": workload.name,
            "namespace": workload.namespace,
            "node": workload.node,
            "ips": [str(ip) for ip in workload.ips],
            "mac": str(workload.mac),
            "device": workload.device,
            "netns": workload.netns,
            "labels": dict(workload.labels),
            "ports": [{"port": p.port, "protocol": p.protocol, "name": p.name} for p in workload.ports],
            "ready": workload.ready,
            "serving": workload.serving,
            "terminating": workload.terminating,
        }
    )


def _workload(tail: str, value: bytes) -> Workload:
    node, namespace, name = _three(tail)
    fields = load(value)
    return Workload(
        name=_same(fields, "name", name),
        namespace=_same(fields, "namespace", namespace),
        node=_same(fields, "node", node),
        ips=_addresses(fields, "ips"),
        mac=understand("mac", Mac.parse, fields.require("mac", str)),
        device=fields.get("device", str, ""),
        netns=fields.optional("netns", str),
        labels=_labels(fields),
        ports=tuple(_port(fields, index, port) for index, port in enumerate(fields.get("ports", list, []))),
        ready=fields.get("ready", bool, True),
        serving=fields.get("serving", bool, fields.get("ready", bool, True)),
        terminating=fields.get("terminating", bool, False),
    )


def _three(tail: str) -> tuple[str, str, str]:
    match tail.split("/"):
        case [node, namespace, name]:
            return node, namespace, name
    raise ValueInvalid("the key does not end in NODE/NAMESPACE/NAME", evidence=tail)


def _port(fields: Fields, index: int, port: object) -> Port:
    where = fields.where(f"ports[{index}]")
    if not isinstance(port, dict):
        raise invalid(where, "is not an object", port)
    members = Fields(port, where)
    number = members.require("port", int)
    if not 0 < number < 2**16:
        raise invalid(members.where("port"), "must be from 1 to 65535", number)
    return Port(number, members.get("protocol", str, "TCP"), members.optional("name", str))


# --- services -------------------------------------------------------------------------------------


def encode_object(value: kubernetes.Object) -> bytes:
    """A Service or EndpointSlice as it is kept: the whole Kubernetes object, its members in their order."""
    return dump(value)


def _service(tail: str, value: bytes) -> Service:
    service = kubernetes.read_service(load(value).members)
    return _under_its_key(service, tail)


def _slice(tail: str, value: bytes) -> EndpointSlice:
    found = kubernetes.read_slice(load(value).members)
    return _under_its_key(found, tail)


Named = TypeVar("Named", Service, EndpointSlice)


def _under_its_key(value: Named, tail: str) -> Named:
    if value.id != tail:
        raise invalid("metadata", f"is not what the key says, {tail!r}", value.id)
    return value


def encode_allocation(allocation: Allocation) -> bytes:
    """Who has it. What it is, is in the key alone."""
    return dump({"service": allocation.service})


def _vip(tail: str, value: bytes) -> Allocation:
    understand("the key's address", parse_address, tail)
    return Allocation(load(value).require("service", str))


_NODE_PORT_TAIL = re.compile(r"(tcp|udp|sctp)-[1-9][0-9]{0,4}")


def _node_port(tail: str, value: bytes) -> Allocation:
    if not _NODE_PORT_TAIL.fullmatch(tail):
        raise ValueInvalid("the key does not end in PROTOCOL-PORT", evidence=tail)
    return Allocation(load(value).require("service", str))


# --- shared ---------------------------------------------------------------------------------------


def _network(text: str) -> IPNetwork:
    """A network whose host bits are clear, the same object for equal text. Raises ValueError."""
    first, _, length = text.partition("/")
    try:
        return network(inet_pton(AF_INET, first), int(length))
    except (OSError, ValueError):
        found = ip_network(text)
        return network(found.network_address.packed, found.prefixlen)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _same(fields: Fields, name: str, wanted: str) -> str:
    """A member that the key repeats; a record under another's key is nobody's."""
    text = fields.require(name, str)
    if text != wanted:
        raise invalid(name, f"is not what the key says, {wanted!r}", text)
    return text


def _addresses(fields: Fields, name: str) -> tuple[IPAddress, ...]:
    return tuple(understand(fields.where(name), ip_address, str(text)) for text in fields.require(name, list))


def _labels(fields: Fields) -> Mapping[str, str]:
    labels = fields.optional("labels", dict)
    if not labels:
        return NO_LABELS
    if not all(isinstance(text, str) for text in labels.values()):
        raise invalid(fields.where("labels"), "has a value that is not text", labels)
    return MappingProxyType(labels)
