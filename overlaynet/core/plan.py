"""What this host should hold: a sum of slices, one per cause.

Each slice is planned alone, from its own cause: the host itself, one peer's lease, one container. Their
union is what the kernel should hold. So an event costs only its own slice (`Desired.replace` answers which
keys it touched), and planning everything anew gives the same result: that is a property test.

Services add no kernel objects of their own but policies; what they have in common is one slice more.

Two slices may want one key (two leases that name one VTEP MAC, say). Then the slice with the smaller
source wins, whatever came first, and the other is remembered for the day the winner goes. A policy's name
belongs to one slice alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from overlaynet.addr import IPNetwork
from overlaynet.core import masq
from overlaynet.core.overlay import host_objects, peer_objects
from overlaynet.core.services import COMMON, Services, service_source
from overlaynet.core.view import View
from overlaynet.core.workload import workload_objects
from overlaynet.model import Lease, LocalHost, NetworkConfig, Stored, Workload
from overlaynet.state import HostState, Key, Object, Policy, Source

HOST = Source("host", "base")
NOTHING = HostState()
SERVICE_KINDS = frozenset({COMMON.kind, service_source("").kind})


def lease_source(key: str) -> Source:
    """Named by the key's last part, as it is written there: two spellings are two leases."""
    return Source("lease", key.rpartition("/")[2])


def workload_source(workload_id: str) -> Source:
    return Source("workload", workload_id)


@dataclass(slots=True)
class Desired:
    """The union of all slices, kept up to date slice by slice. `services` plans those of services; None where
    this host serves none."""

    objects: dict[Key, Object] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    sources: dict[Key, Source] = field(default_factory=dict)
    slices: dict[Source, HostState] = field(default_factory=dict)
    contended: dict[Key, set[Source]] = field(default_factory=dict)
    services: Services | None = None

    def replace(self, source: Source, part: HostState) -> set[Key]:
        """Put a slice in place of the one this source had; answer the keys that may differ now."""
        old = self.slices.get(source, NOTHING)
        if old == part:
            return set()
        self._set(source, part)
        if old is NOTHING and self._is_news(part):
            return self._add(source, part)
        # In order, not as a set: what is wanted then reads, and is written, the same in every process.
        touched = dict.fromkeys([*old.objects, *part.objects])
        for key in touched:
            self._settle(key, source, part.objects.get(key))
        self._set_policies(old.policies, part.policies)
        return set(touched)

    def remove(self, source: Source) -> set[Key]:
        return self.replace(source, NOTHING)

    def _is_news(self, part: HostState) -> bool:
        """Whether nobody has wanted any of it so far; nearly always so, and the cost of planning thousands."""
        return self.objects.keys().isdisjoint(part.objects)

    def _add(self, source: Source, part: HostState) -> set[Key]:
        """Dictionaries and sets take over the hashes of one another's keys: nothing is hashed anew."""
        self.objects.update(part.objects)
        self.sources.update(dict.fromkeys(part.objects, source))
        self.policies.update(part.policies)
        return set(part.objects)

    def replace_services(self, keys: Iterable[str]) -> set[Key]:
        """Plan these services anew, by their keys; answer as `replace` does."""
        touched: set[Key] = set()
        for source, part in self.services.plan(keys) if self.services else ():
            touched |= self.replace(source, part)
        return touched

    def _set_policies(self, old: Mapping[str, Policy], new: Mapping[str, Policy]) -> None:
        """A policy that stays as it is stays the same object: comparing it again costs nothing."""
        for name in old.keys() - new.keys():
            del self.policies[name]
        for name, policy in new.items():
            if old.get(name) != policy:
                self.policies[name] = policy

    def _set(self, source: Source, part: HostState) -> None:
        if part == NOTHING:
            self.slices.pop(source, None)
        else:
            self.slices[source] = part

    def _settle(self, key: Key, source: Source, obj: Object | None) -> None:
        """Decide who has `key`, now that `source` wants `obj` there (or, with None, nothing)."""
        claimants = self.contended.pop(key, None) or ({self.sources[key]} if key in self.sources else set())
        claimants = (claimants | {source}) if obj is not None else (claimants - {source})
        if not claimants:
            self.objects.pop(key, None)
            self.sources.pop(key, None)
            return
        if len(claimants) > 1:
            self.contended[key] = claimants
        winner = min(claimants)
        self.sources[key] = winner
        self.objects[key] = self.slices[winner].objects[key]


def host_slice(
    network: NetworkConfig,
    lease: Lease,
    local: LocalHost,
    *,
    peers: Iterable[Lease],
    has_workloads: bool,
) -> HostState:
    objects = host_objects(network, lease, local, wants_bridge=has_workloads)
    return HostState.of(objects, **masq.policies(network, lease, local, peers))


def lease_slice(network: NetworkConfig, own: Lease, peer: Lease, local: LocalHost) -> HostState:
    """Nothing for our own lease, and nothing for one that overlaps ours: that would cut our containers off.
    Nor for one that leads back here, such as an old lease of ours: its packets would go round in circles."""
    if _overlaps(peer.subnets, own.subnets) or any(ip in local.public_ips for ip in peer.public_ips):
        return NOTHING
    return HostState.of(peer_objects(network, peer, local))


def workload_slice(workload: Workload, local: LocalHost) -> HostState:
    return HostState.of(workload_objects(workload, local))


def _overlaps(some: tuple[IPNetwork, ...], others: tuple[IPNetwork, ...]) -> bool:
    for a in some:
        for b in others:  # loops, and equality where that says it: each lease of a cluster comes by here
            if a.version == b.version and (a == b if a.prefixlen == b.prefixlen else a.overlaps(b)):
                return True
    return False


def peers_of(leases: Iterable[Stored[Lease]], own: Lease) -> list[Stored[Lease]]:
    """Every lease but those that overlap ours, in the order of their keys."""
    items = sorted(leases, key=lambda item: item.key)
    return [item for item in items if not _overlaps(item.value.subnets, own.subnets)]


def desired(
    view: View,
    local: LocalHost,
    own: Lease | None,
    workloads: Iterable[Workload],
    before: Desired | None = None,
) -> Desired:
    """Plan everything anew, but for services that `before` has and that are wanted the same. Without a network
    or a lease nothing is wanted."""
    whole = Desired()
    if view.network is None or own is None:
        return whole
    mine = list(workloads)
    peers = peers_of(view.leases_in_use(), own)
    everyone = [item.value for item in peers]
    host = host_slice(view.network, own, local, peers=everyone, has_workloads=bool(mine))
    whole.replace(HOST, host)
    for item in peers:
        whole.replace(lease_source(item.key), lease_slice(view.network, own, item.value, local))
    for workload in mine:
        whole.replace(workload_source(workload.id), workload_slice(workload, local))
    if local.services is not None:
        _plan_services(whole, Services(view, local, view.network, own), mine, before)
    return whole


def _plan_services(whole: Desired, services: Services, own: Iterable[Workload], before: Desired | None) -> None:
    """Thousands of services take a second to plan. So what was planned before is taken over where it holds."""
    keys: Iterable[str] = services.view.index.services
    old = before.services if before else None
    if before and old and old.serves(services.view, services.local, services.network, services.lease):
        for source, part in before.slices.items():
            if source.kind in SERVICE_KINDS:
                whole.replace(source, part)
        services, keys = old, ()
    whole.services = services
    services.put_all_own(own)
    whole.replace_services({*keys, *services.view.index.take_touched()})
