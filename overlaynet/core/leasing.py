"""Which subnet is ours, and how to come by one.

The rules, in order:

1. A lease that carries our node id is ours: same subnet again, after a restart or a reboot.
2. A lease that flannel wrote (no node id) with our public address is ours only with proof on this very
   machine: the VTEP MAC in it is ours or that of flannel's device here, or our identity file or flannel's
   subnet.env names its subnet; or the operator says so. An equal address alone is no proof: every Vagrant
   VM's first interface has the same one. While such a lease stands unproven no other is claimed: flannel
   knows its own by the address alone, and would take whichever of the two it finds first.
3. The subnet our identity file remembers, if nobody holds it.
4. Any free one. The caller's `pick` chooses, so that fifty hosts starting together do not all try the
   same; whoever loses the race for a key simply chooses again from what it has learned.

A claim is a transaction on the key's absence, so two hosts can never both win. Everything here is a pure
function of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_network

from overlaynet.addr import IPNetwork
from overlaynet.core.view import View
from overlaynet.errors import Conflict, PoolExhausted
from overlaynet.model import VXLAN, Lease, LocalHost, NetworkConfig, Pool, Stored, Vtep

Pick = Callable[[int], int]
"""Given n, a number in range(n)."""


def own_lease(view: View, local: LocalHost) -> Stored[Lease] | None:
    """The lease in the store that is ours by rule 1 or 2, if it also fits the network."""
    mine = [*view.leases_of(local.identity.node_id), *_proven(view, local)]
    network = view.network
    return next((item for item in mine if network and fits(item.value.subnets, network)), None)


def _proven(view: View, local: LocalHost) -> list[Stored[Lease]]:
    mine = [item for item in view.leases.values() if item.value.node_id is None and is_ours(item.value, local)]
    return sorted(mine, key=lambda item: item.key)


def is_ours(lease: Lease, local: LocalHost) -> bool:
    """Whether a lease is this node's by rule 1 or 2."""
    if lease.node_id is not None:
        return lease.node_id == local.identity.node_id
    if not set(lease.public_ips) & set(local.public_ips):
        return False
    macs = {local.identity.vtep_mac, *local.traces.vtep_macs}
    same_mac = any(v.mac in macs for v in lease.vteps)
    named = bool(lease.subnets) and lease.subnets in (local.identity.subnets, local.traces.subnets)
    return same_mac or named or local.adopt_lease


def adopt(view: View, local: LocalHost) -> LocalHost:
    """This host, going on with the VTEP MAC and subnets of the lease that flannel left it, if it did.

    The lease is the authority: its MAC is in every peer's tables, so it is the one that loses no packet."""
    found = own_lease(view, local)
    if found is None or found.value.node_id is not None:
        return local
    mac = next((v.mac for v in found.value.vteps), local.identity.vtep_mac)
    return replace(local, identity=replace(local.identity, vtep_mac=mac, subnets=found.value.subnets))


def _check_unproven(view: View, local: LocalHost) -> None:
    for item in view.leases.values():
        lease = item.value
        shared = set(lease.public_ips) & set(local.public_ips)
        if lease.node_id is None and shared and not is_ours(lease, local):
            raise Conflict(
                f"a lease of flannel's has the public address of this host, {lease.public_ips[0]}, "
                "and nothing here proves that it is this host's",
                evidence=f"key {item.key}: no device here has its VTEP MAC, no subnet.env names its subnet",
                next=["set node.interface or node.public_ip, if that address is another host's too",
                      "overlaynet-agent run --adopt-lease, if flannel ran on this very host",
                      f"overlaynet lease delete {item.key.rpartition('/')[2]}, if its host is gone"],
            )  # fmt: skip


def fits(subnets: tuple[IPNetwork, ...], network: NetworkConfig) -> bool:
    """Whether these subnets are ones that `network` could have given out."""
    return len(subnets) == len(network.pools) and all(
        any(_in_pool(subnet, pool) for pool in network.pools) for subnet in subnets
    )


def _in_pool(subnet: IPNetwork, pool: Pool) -> bool:
    return (
        subnet.version == pool.network.version
        and subnet.prefixlen == pool.subnet_len
        and int(pool.first) <= int(subnet.network_address) <= int(pool.last)
    )


def choose(
    view: View, network: NetworkConfig, local: LocalHost, pick: Pick, avoid: Iterable[str] = ()
) -> tuple[IPNetwork, ...]:
    """Subnets to try for, one per family. `avoid` are keys that were just lost to somebody faster.

    Raises PoolExhausted, or Conflict while a lease that may be ours stands unproven.
    """
    _check_unproven(view, local)
    taken = [s for item in view.leases.values() for s in item.value.subnets]
    unreadable = [key for key in view.unreadable if key.startswith(view.keys.subnets)]
    taken += [s for key in (*avoid, *unreadable, *view.stale) for s in _subnets_of_key(key)]
    remembered = local.identity.subnets
    if fits(remembered, network) and not any(s.overlaps(t) for s in remembered for t in _same(taken, s)):
        return remembered
    return tuple(_choose_one(pool, taken, pick) for pool in network.pools)


def _choose_one(pool: Pool, taken: list[IPNetwork], pick: Pick) -> IPNetwork:
    used = set(_blocks(pool, taken))
    first, count = int(pool.first) >> _shift(pool), _count(pool)
    free = [block for block in range(first, first + count) if block not in used]
    if not free:
        raise PoolExhausted(
            f"no subnet is free in {pool.network}",
            evidence=f"all {count} subnets of length /{pool.subnet_len} are leased or reserved",
            next=["overlaynet get leases", "overlaynet lease delete KEY"],
        )
    return _network(pool, free[pick(len(free))])


def _shift(pool: Pool) -> int:
    return pool.network.max_prefixlen - pool.subnet_len


def _count(pool: Pool) -> int:
    return ((int(pool.last) - int(pool.first)) >> _shift(pool)) + 1


def _network(pool: Pool, block: int) -> IPNetwork:
    address = type(pool.network.network_address)(block << _shift(pool))
    return ip_network((address, pool.subnet_len))


def _blocks(pool: Pool, taken: list[IPNetwork]) -> Iterator[int]:
    """The pool's blocks that any of `taken` overlaps, whatever its length."""
    for subnet in _same(taken, pool.network):
        if subnet.overlaps(pool.network):
            first = max(int(subnet.network_address), int(pool.first))
            last = min(int(subnet.broadcast_address), int(pool.last) | ((1 << _shift(pool)) - 1))
            yield from range(first >> _shift(pool), (last >> _shift(pool)) + 1)


def _same(subnets: Iterable[IPNetwork], like: IPNetwork) -> list[IPNetwork]:
    return [s for s in subnets if s.version == like.version]


def _subnets_of_key(key: str) -> tuple[IPNetwork, ...]:
    """The subnets in a lease key's last part; none where somebody's hand wrote something else."""
    tail = key.rpartition("/")[2]
    try:
        return tuple(ip_network(part.replace("-", "/")) for part in tail.split("&"))
    except ValueError:
        return ()


def lease_value(subnets: tuple[IPNetwork, ...], network: NetworkConfig, local: LocalHost) -> Lease:
    """The lease we write: flannel's members, and our node id and name."""
    backend = network.backend
    vteps: tuple[Vtep, ...] = ()
    if backend.type == VXLAN:
        vteps = tuple(Vtep(s.version, backend.vni, local.identity.vtep_mac) for s in subnets)
    return Lease(
        subnets=subnets,
        public_ips=local.public_ips,
        backend_type=backend.type,
        vteps=vteps,
        node_id=local.identity.node_id,
        node_name=local.name,
    )
