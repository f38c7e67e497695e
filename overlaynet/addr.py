"""Addresses: the few facts about MAC and IP addresses that the whole project shares.

Inside the project an address is an `ipaddress` object or a `Mac`; text appears only where it comes in
or goes out. The functions that make addresses out of octets give equal ones out as one object: making one
costs a microsecond and 500 bytes (a network), the same few thousand come from etcd and from the kernel over
and over, and Python compares an object with itself without calling the slow `__eq__` of `ipaddress`.
VXLAN adds a fixed number of bytes to every frame, so the largest packet a container may
send follows from the underlay's MTU by a subtraction that is written down here once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import NamedTuple, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network
IPInterface: TypeAlias = IPv4Interface | IPv6Interface

VXLAN_OVERHEAD_BYTES = {4: 50, 6: 70}
"""Outer IP + UDP (8) + VXLAN (8) + inner Ethernet (14), by family of the outer header (RFC 7348 section 5)."""

MIN_MTU_BYTES = {4: 68, 6: 1280}
"""Smallest MTU a link may have (RFC 791 section 3.2, RFC 8200 section 5)."""

CACHED = 131_072
"""Addresses and networks kept, of each kind: several times what the largest overlay we plan for has."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Mac(NamedTuple):
    """An Ethernet address as lower-case text, e.g. ``02:42:0a:f4:01:00``."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Mac:
        """Accept any case and ``-`` or ``:`` between octets; raise ValueError for anything else."""
        lowered = text.strip().lower().replace("-", ":")
        if not _MAC.fullmatch(lowered):
            raise ValueError(f"not an Ethernet address: {text!r}")
        return mac_of(bytes.fromhex(lowered.replace(":", "")))

    @classmethod
    def from_bytes(cls, octets: bytes) -> Mac:
        """Six octets, as on the wire."""
        if len(octets) != 6:
            raise ValueError(f"an Ethernet address has 6 octets, not {len(octets)}")
        return mac_of(bytes(octets))

    @property
    def packed(self) -> bytes:
        return bytes.fromhex(self.text.replace(":", ""))

    @property
    def unicast(self) -> bool:
        """False for multicast, broadcast and the all-zero address: none of these can belong to a device."""
        return not self.packed[0] & 1 and self.text != "00:00:00:00:00:00"

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=CACHED)
def mac_of(octets: bytes) -> Mac:
    """A MAC from its six octets, unchecked."""
    return Mac(octets.hex(":"))


@lru_cache(maxsize=CACHED)
def address(octets: bytes) -> IPAddress:
    """An address from its 4 or 16 octets."""
    return IPv4Address(octets) if len(octets) == 4 else IPv6Address(octets)


@lru_cache(maxsize=CACHED)
def network(octets: bytes, prefixlen: int) -> IPNetwork:
    """A network from the octets of its first address. Raises ValueError if host bits are set."""
    return IPv4Network((octets, prefixlen)) if len(octets) == 4 else IPv6Network((octets, prefixlen))


@lru_cache(maxsize=4_096)
def interface(octets: bytes, prefixlen: int) -> IPInterface:
    """An address with the length of its network's prefix."""
    return IPv4Interface((octets, prefixlen)) if len(octets) == 4 else IPv6Interface((octets, prefixlen))


def random_mac(octets: bytes) -> Mac:
    """A locally administered unicast address from six random octets (IEEE 802-2014 section 8.4)."""
    return Mac.from_bytes(bytes([(octets[0] & 0xFC) | 0x02]) + octets[1:6])


def container_mac(ip: IPAddress) -> Mac:
    """The MAC of the container that holds `ip`: ``0a:58`` and the last four octets of the address.

    Deriving it makes a capture readable (the MAC names the container) and a re-attach keep its MAC.
    """
    return Mac.from_bytes(b"\x0a\x58" + ip.packed[-4:])


def vtep_address(subnet: IPNetwork) -> IPAddress:
    """The address of a host's VXLAN device: the subnet's base address, as flannel has it."""
    return address(subnet.network_address.packed)


def gateway_address(subnet: IPNetwork) -> IPAddress:
    """The address of a host's bridge, its containers' gateway: the base address plus one."""
    return subnet.network_address + 1


def is_within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether all of one network is in the other."""
    same = inner.version == outer.version and inner.prefixlen >= outer.prefixlen
    return same and inner.network_address in outer


def vxlan_mtu(underlay_mtu: int, outer_version: int) -> int:
    """Bytes left for an inner IP packet when the outer one fits `underlay_mtu` bytes."""
    return underlay_mtu - VXLAN_OVERHEAD_BYTES[outer_version]


def subnet_key(subnet: IPNetwork) -> str:
    """``10.244.1.0-24``: a subnet as the last part of an etcd key."""
    return f"{subnet.network_address}-{subnet.prefixlen}"
