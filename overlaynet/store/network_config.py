"""flannel's network config: the JSON under ``<prefix>/config``, its defaults and its rules.

The operator writes it, flannel hosts and ours read it, nobody else touches it. Where flannel accepts a
config that cannot work (a smallest subnet above the largest one, a VNI that does not fit into 24 bits, no
backend type at all, which silently means a user-space tunnel) this module refuses it and names the member.

The rules of flannel's pkg/subnet/config.go: `Network` is masked; without `SubnetLen` hosts get a /24 (IPv6:
/64) or, in a small network, a quarter of it; the first subnet is not used unless `SubnetMin` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from overlaynet.addr import MIN_MTU_BYTES, VXLAN_OVERHEAD_BYTES, IPAddress, IPNetwork
from overlaynet.errors import NetworkConfigInvalid, ValueInvalid
from overlaynet.model import (
    BACKENDS,
    DEFAULT_VNI,
    DEFAULT_VXLAN_PORT,
    HOST_GW,
    VXLAN,
    Backend,
    NetworkConfig,
    Pool,
)
from overlaynet.store.fields import Fields, dump, invalid, load, understand

MAX_VNI = 2**24 - 1
"""A VNI has 24 bits (RFC 7348 section 5); 0 looks like one that was never set."""

MAX_PORT = 65_535
MAX_MTU_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class _Family:
    """What differs between the families: names of members, and flannel's limits on lengths."""

    version: int
    prefix: str
    usual_len: int
    max_len: int


_V4 = _Family(version=4, prefix="", usual_len=24, max_len=30)
_V6 = _Family(version=6, prefix="IPv6", usual_len=64, max_len=126)


def parse_network_config(data: bytes) -> NetworkConfig:
    """The config in `data`. Raises NetworkConfigInvalid, which names the member and shows its value."""
    try:
        fields = load(data, fold=True)
        return NetworkConfig(pools=_pools(fields), backend=_backend(fields))
    except ValueInvalid as error:
        raise NetworkConfigInvalid(
            f"the network config cannot be used: {error.message}",
            evidence=error.evidence,
            next=["overlaynet network show", "overlaynet network set FILE"],
        ) from error


def encode_network_config(config: NetworkConfig) -> bytes:
    """The config as flannel's JSON with every limit spelled out."""
    members: dict[str, object] = {}
    for pool in config.pools:
        members |= _pool_members(pool)
    return dump(members | {"Backend": _backend_members(config.backend)})


# --- address ranges -------------------------------------------------------------------------------


def _pools(fields: Fields) -> tuple[Pool, ...]:
    if not fields.get("EnableIPv4", bool, True):
        raise invalid("EnableIPv4", "may not be false: every lease's key starts with an IPv4 subnet", False)
    families = [_V4, _V6] if fields.get("EnableIPv6", bool, False) else [_V4]
    return tuple(_pool(fields, family) for family in families)


def _pool(fields: Fields, family: _Family) -> Pool:
    name = f"{family.prefix}Network"
    network = understand(fields.where(name), _masked, fields.require(name, str))
    if network.version != family.version:
        raise invalid(fields.where(name), f"is not an IPv{family.version} network", str(network))
    subnet_len = _subnet_len(fields, family, network)
    first = _limit(fields, f"{family.prefix}SubnetMin", network, subnet_len, index=1)
    last = _limit(fields, f"{family.prefix}SubnetMax", network, subnet_len, index=-1)
    if int(first) > int(last):
        raise invalid(f"{family.prefix}SubnetMin", f"is above {family.prefix}SubnetMax, {last}", str(first))
    return Pool(network, subnet_len, first, last)


def _masked(text: str) -> IPNetwork:
    if "/" not in text:
        raise ValueError("a network is written ADDRESS/LENGTH")
    return ip_network(text, strict=False)


def _subnet_len(fields: Fields, family: _Family, network: IPNetwork) -> int:
    name = f"{family.prefix}SubnetLen"
    least = network.prefixlen + 2
    given = fields.get(name, int, 0)
    length = given or max(family.usual_len, least)
    if given and given < least:
        raise invalid(name, f"must be at least {least}: {network} is shared by four subnets or more", given)
    if length > family.max_len:
        where = name if given else f"{family.prefix}Network"
        raise invalid(where, f"makes subnets smaller than a /{family.max_len}", given or str(network))
    return length


def _limit(fields: Fields, name: str, network: IPNetwork, subnet_len: int, index: int) -> IPAddress:
    """The base address of the first (`index` 1) or last (`index` -1) subnet that may be given out."""
    given = fields.parsed(name, ip_address)
    step = 1 << (network.max_prefixlen - subnet_len)
    if given is None:
        past_last = int(network.broadcast_address) + 1
        start = int(network.network_address) if index > 0 else past_last
        return type(network.network_address)(start + index * step)
    if given not in network:
        raise invalid(name, f"is outside of {network}", str(given))
    if int(given) % step:
        raise invalid(name, f"is not the base address of a /{subnet_len}", str(given))
    return given


def _pool_members(pool: Pool) -> Mapping[str, object]:
    family = _V4 if pool.network.version == 4 else _V6
    return {
        **({"EnableIPv6": True} if family is _V6 else {}),
        f"{family.prefix}Network": str(pool.network),
        f"{family.prefix}SubnetLen": pool.subnet_len,
        f"{family.prefix}SubnetMin": str(pool.first),
        f"{family.prefix}SubnetMax": str(pool.last),
    }


# --- the backend ----------------------------------------------------------------------------------


def _backend(fields: Fields) -> Backend:
    backend = fields.within("Backend")
    name = backend.get("Type", str, "").lower() if backend else ""
    if backend is None or not name:
        raise ValueInvalid(
            "Backend.Type is missing",
            evidence="flannel takes a config without a backend for its user-space tunnel, which nobody "
            f"means; write one of: {', '.join(BACKENDS)}",
        )
    if name not in BACKENDS:
        raise invalid("Backend.Type", f"is none of: {', '.join(BACKENDS)}", name)
    return _vxlan(backend) if name == VXLAN else Backend(HOST_GW)


def _vxlan(backend: Fields) -> Backend:
    """Port and MTU 0 mean "the default", as they do for flannel."""
    if backend.get("GBP", bool, False):
        raise invalid("Backend.GBP", "is not supported: frames with a group policy would be dropped", True)
    mtu_range = (VXLAN_OVERHEAD_BYTES[4] + MIN_MTU_BYTES[4], MAX_MTU_BYTES)
    return Backend(
        VXLAN,
        vni=_number(backend, "VNI", DEFAULT_VNI, 1, MAX_VNI),
        port=_number(backend, "Port", 0, 0, MAX_PORT) or DEFAULT_VXLAN_PORT,
        mtu=_number(backend, "MTU", 0, *mtu_range) if backend.get("MTU", int, 0) else None,
        direct_routing=backend.get("DirectRouting", bool, False),
        learning=backend.get("Learning", bool, False),
    )


def _number(fields: Fields, name: str, default: int, least: int, most: int) -> int:
    number = fields.get(name, int, default)
    if not least <= number <= most:
        raise invalid(fields.where(name), f"must be from {least} to {most}", number)
    return number


def _backend_members(backend: Backend) -> Mapping[str, object]:
    if backend.type != VXLAN:
        return {"Type": backend.type}
    members: dict[str, object] = {"Type": backend.type, "VNI": backend.vni, "Port": backend.port}
    if backend.mtu is not None:
        members["MTU"] = backend.mtu
    return members | {"DirectRouting": backend.direct_routing, "Learning": backend.learning}
