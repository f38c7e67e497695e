"""Writing services and slices, each in one transaction with the VIPs and nodePorts that it takes and frees.

A `Catalogue` is what etcd holds of them at one revision. It turns an object into a `Step`, a transaction that
holds only if nothing it looked at has changed; so all steps can be made, and every mistake found, before the
first is taken. When one no longer holds, somebody was quicker: the catalogue is read anew and the steps that
are left are made again.

Who has a VIP or a nodePort is said by its own key, whose value names the service. Such a key of a service
that is gone is anybody's. A service that was written by hand holds what it says, without a key of that name.
An update keeps what the service has, where it asks for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.core.allocation import allocations, choose_node_port, choose_vip
from overlaynet.core.keys import Keys
from overlaynet.errors import AllocationTaken, ServicesFull, StoreError
from overlaynet.model import LOCAL, Allocation, EndpointSlice, NetworkConfig, Service, Settings
from overlaynet.ports import Compare, Delete, KeyValue, Listing, Put, Store
from overlaynet.store import codec, kubernetes
from overlaynet.store.fields import load
from overlaynet.store.kubernetes import ENDPOINT_SLICE, SERVICE, Object
from overlaynet.store.place import Mistake, Path

CREATED, CONFIGURED, UNCHANGED, DELETED = "created", "configured", "unchanged", "deleted"
TRIES = 10
"""How often others may be quicker before we give up."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one object, as it is in etcd now or, if it was deleted, was before. `notes` are what is
    worth knowing of it though nothing is wrong."""

    kind: str
    namespace: str
    name: str
    action: str
    object: Object
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction, which does nothing if it writes nothing."""

    written: Written
    compares: tuple[Compare, ...] = ()
    writes: tuple[Put | Delete, ...] = ()


Tell = Callable[[Written], None]


def apply(store: Store, keys: Keys, values: Sequence[Object], tell: Tell = lambda _: None) -> list[Written]:
    """Write objects, in their order, and call `tell` after each. Nothing is written unless all can be.

    Raises ObjectInvalid, AllocationTaken, ServicesFull, StoreErrors."""
    waiting = list(values)
    return _carry_out(store, keys, lambda catalogue, done: catalogue.puts(waiting[done:]), tell)


def delete(
    store: Store, keys: Keys, services: Sequence[str], slices: Sequence[str] = (), tell: Tell = lambda _: None
) -> list[Written]:
    """Delete services (each ``namespace/name``) with what they hold and the slices that name them, and other
    slices. What is not there is no error. Raises StoreErrors."""
    return _carry_out(store, keys, lambda catalogue, _: catalogue.deletes(services, slices), tell)


def _carry_out(
    store: Store, keys: Keys, plan: Callable[[Catalogue, int], Sequence[Step]], tell: Tell
) -> list[Written]:
    """Take the steps that `plan` makes, knowing how many are done; and makes again when one does not hold."""
    done: list[Written] = []
    for _ in range(TRIES):
        steps = plan(Catalogue.read(store, keys), len(done))
        for step in steps:
            if step.writes and not store.commit(step.compares, step.writes).ok:
                break
            done.append(step.written)
            tell(step.written)
        else:
            return done
    raise StoreError("others change the same services without pause", evidence=f"tried {TRIES} times")


class Catalogue:
    """The services, slices and allocations of one moment, and of what was planned since."""

    def __init__(self, listing: Listing, keys: Keys) -> None:
        self.keys = keys
        self.items = {item.key: item for item in listing.items}
        self.network = self._settings().service_network
        self.overlay = self._overlay()
        self.services: dict[str, Service] = {}
        self._holders: dict[str, str] = {}
        self._recorded: dict[str, set[str]] = {}
        for item in listing.items:
            if item.key.startswith((keys.vips, keys.node_ports)):
                self._take_record(item)
        for item in sorted(listing.items, key=lambda item: item.create_revision):
            if item.key.startswith(keys.services):
                self._take_service(item)

    @classmethod
    def read(cls, store: Store, keys: Keys) -> Catalogue:
        """What etcd holds now. Raises StoreErrors."""
        configs = (keys.settings, keys.network_config)
        return cls(store.read((*configs, keys.services, keys.slices, keys.vips, keys.node_ports)), keys)

    def _settings(self) -> Settings:
        item = self.items.get(self.keys.settings)
        value = codec.decode(item, self.keys).value if item else None
        return value if isinstance(value, Settings) else Settings()

    def _overlay(self) -> tuple[IPNetwork, ...]:
        item = self.items.get(self.keys.network_config)
        value = codec.decode(item, self.keys).value if item else None
        return value.networks if isinstance(value, NetworkConfig) else ()

    def _take_record(self, item: KeyValue) -> None:
        value = codec.decode(item, self.keys).value
        if isinstance(value, Allocation):
            self._recorded.setdefault(value.service, set()).add(item.key)
            if self.keys.service(value.service) in self.items:
                self._holders[item.key] = value.service

    def _take_service(self, item: KeyValue) -> None:
        value = codec.decode(item, self.keys).value
        if isinstance(value, Service):
            self.services[value.id] = value
            for key in allocations(value, self.keys):
                self._holders.setdefault(key, value.id)

    # --- putting ------------------------------------------------------------------------------

    def puts(self, values: Sequence[Object]) -> list[Step]:
        """The steps that write these objects; what any of them asks for is given to no other. Raises
        ObjectInvalid, AllocationTaken, ServicesFull."""
        read = [kubernetes.read(value) for value in values]
        asked = {
            key: found.id
            for found in read
            if isinstance(found, Service)
            for key in allocations(found, self.keys)
        }
        return [
            self._put_service(value, found, asked)
            if isinstance(found, Service)
            else self._put_slice(value, found)
            for value, found in zip(values, read, strict=True)
        ]

    def _put_slice(self, value: Object, found: EndpointSlice) -> Step:
        value = {**value, "metadata": {**value["metadata"], "namespace": found.namespace}}
        return self._step(self.keys.slice(found.id), value, [], [], ())

    def _put_service(self, value: Object, asked_as: Service, asked: Mapping[str, str]) -> Step:
        service_id = asked_as.id

        def is_free(key: str) -> bool:
            return self._holders.get(key, service_id) == service_id == asked.get(key, service_id)

        before = self.services.get(service_id)
        value = _Completion(value, asked_as, before, self.keys, self.network, is_free).done()
        service = kubernetes.read_service(value)
        self._refuse_taken(service)
        compares, writes = self._records(before, service)
        notes = stray_notes(service, self.network, self.overlay)
        return self._step(self.keys.service(service_id), value, compares, writes, notes)

    def _refuse_taken(self, service: Service) -> None:
        taken = [
            Mistake(
                _asked_at(service, key, self.keys), f"{_spoken(key, self.keys)} belongs to service {holder}"
            )
            for key in sorted(allocations(service, self.keys))
            if (holder := self._holders.get(key, service.id)) != service.id
        ]
        if taken:
            raise AllocationTaken(
                f"Service {service.id}: " + "; ".join(map(str, taken)),
                mistakes=taken,
                subject=f"{SERVICE} {service.id}",
                next=["overlaynet get services -o wide"],
            )

    def _records(self, before: Service | None, service: Service) -> tuple[list[Compare], list[Put | Delete]]:
        """Take what has no record of the service's yet; free what it does not hold any more."""
        held, recorded = allocations(service, self.keys), self._recorded.get(service.id, set())
        value = codec.encode_allocation(Allocation(service.id))
        taken, freed = sorted(held - recorded), sorted(recorded - held)
        for key in (*freed, *(allocations(before, self.keys) - held if before else ())):
            self._holders.pop(key, None)
        self.services[service.id], self._recorded[service.id] = service, set(held)
        self._holders.update(dict.fromkeys(held, service.id))
        compares = [Compare(key, self._revision(key)) for key in (*taken, *freed)]
        return compares, [*(Put(key, value) for key in taken), *map(Delete, freed)]

    def _revision(self, key: str) -> int:
        return self.items[key].mod_revision if key in self.items else 0

    def _step(
        self,
        key: str,
        value: Object,
        compares: Sequence[Compare],
        writes: Sequence[Put | Delete],
        notes: tuple[str, ...],
    ) -> Step:
        before = self._object(key)
        action = CREATED if key not in self.items else CONFIGURED
        if before == value:
            action = CONFIGURED if writes else UNCHANGED
        else:
            writes = [Put(key, codec.encode_object(value)), *writes]
        namespace, name = kubernetes.identity(value)
        written = Written(str(value["kind"]), namespace, name, action, value, notes)
        return Step(written, (Compare(key, self._revision(key)), *compares), tuple(writes))

    def _object(self, key: str) -> Object | None:
        """The object under a key; None if there is none, or nothing that is one."""
        try:
            return load(self.items[key].value).members if key in self.items else None
        except StoreError:
            return None

    # --- deleting -----------------------------------------------------------------------------

    def deletes(self, services: Sequence[str], slices: Sequence[str] = ()) -> list[Step]:
        """The steps that delete these slices, and these services with theirs and all they hold."""
        gone = set(map(self.keys.slice, slices)).union(*map(self._slices_of, services))
        steps = [self._delete_slice(key) for key in sorted(gone & self.items.keys())]
        present = [service for service in services if self.keys.service(service) in self.items]
        return [*steps, *map(self._delete_service, present)]

    def _delete_service(self, service_id: str) -> Step:
        return self._delete(SERVICE, self.keys.service(service_id), sorted(self._recorded.get(service_id, ())))

    def _delete_slice(self, key: str) -> Step:
        return self._delete(ENDPOINT_SLICE, key, [])

    def _delete(self, kind: str, key: str, records: Sequence[str]) -> Step:
        namespace, name = key.split("/")[-2:]
        written = Written(kind, namespace, name, DELETED, self._object(key) or {})
        gone = [key, *records]
        return Step(written, tuple(Compare(k, self._revision(k)) for k in gone), tuple(map(Delete, gone)))

    def _slices_of(self, service_id: str) -> list[str]:
        found = []
        for key in self.items:
            if not key.startswith(self.keys.slices):
                continue
            value = codec.decode(self.items[key], self.keys).value
            if isinstance(value, EndpointSlice) and f"{value.namespace}/{value.service}" == service_id:
                found.append(key)
        return found


@dataclass(slots=True)
class _Completion:
    """A service as it was asked for, and how it becomes one that has all it needs."""

    value: Object
    asked: Service
    before: Service | None
    keys: Keys
    network: IPNetwork
    is_free: Callable[[str], bool]

    def done(self) -> Object:
        metadata = {**self.value["metadata"], "namespace": self.asked.namespace}
        spec = {**self.value["spec"], **self._vips()}
        if self._wants_node_ports():
            spec["ports"] = self._ports(spec["ports"])
        if self._wants_health_check():
            spec["healthCheckNodePort"] = self._health_check(spec)
        return {**self.value, "metadata": metadata, "spec": spec}

    def _vips(self) -> Mapping[str, Any]:
        """clusterIP and clusterIPs: those asked for, else those it has, else a new one."""
        if kubernetes.is_headless(self.value) or self.asked.type == "ExternalName":
            return {}
        ips = self.asked.cluster_ips or self._kept_vips() or (self._new_vip(),)
        return {"clusterIP": str(ips[0]), "clusterIPs": [str(ip) for ip in ips]}

    def _kept_vips(self) -> tuple[IPAddress, ...]:
        return tuple(ip for ip in (self.before.cluster_ips if self.before else ()) if self._is_free_vip(ip))

    def _is_free_vip(self, ip: IPAddress) -> bool:
        return self.is_free(self.keys.vip(ip))

    def _new_vip(self) -> IPAddress:
        families = self.value["spec"].get("ipFamilies") or []
        if families and f"IPv{self.network.version}" not in families:
            path = ("spec", "ipFamilies", 0)
            problem = f"the service network {self.network} has no such addresses"
            raise kubernetes.invalid([Mistake(path, problem)], f"{SERVICE} {self.asked.id}")
        ip = choose_vip(self.network, self.asked.id, self._is_free_vip)
        if ip is None:
            raise ServicesFull(
                f"no address of the service network is left for service {self.asked.id}",
                evidence=f"{self.network} is in use",
                next=["overlaynet get services"],
            )
        return ip

    def _wants_node_ports(self) -> bool:
        kind, spec = self.asked.type, self.value["spec"]
        return kind == "NodePort" or (
            kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False
        )

    def _ports(self, places: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The ports, each with a nodePort: asked for, kept, or chosen. Ports of one number and several
        protocols get the same nodePort where it is free, as in Kubernetes."""
        had = {(p.protocol, p.port): p.node_port for p in (self.before.ports if self.before else ())}
        taken = {(p.protocol, p.node_port) for p in self.asked.ports}
        made: list[Mapping[str, Any]] = []
        for place, port in zip(places, self.asked.ports, strict=True):
            number = port.node_port or self._node_port(port.protocol, port.port, had, taken)
            taken.add((port.protocol, number))
            made.append({**place, "nodePort": number})
        return made

    def _node_port(
        self, protocol: str, port: int, had: Mapping[tuple[str, int], int], taken: set[tuple[str, int]]
    ) -> int:
        def is_free(number: int) -> bool:
            return (protocol, number) not in taken and self.is_free(self.keys.node_port(protocol, number))

        kept = had.get((protocol, port), 0)
        return kept if kept and is_free(kept) else self._new_node_port(f"{self.asked.id}:{port}", is_free)

    def _new_node_port(self, seed: str, is_free: Callable[[int], bool]) -> int:
        number = choose_node_port(seed, is_free)
        if number is None:
            raise ServicesFull(
                f"no nodePort is left for service {self.asked.id}",
                evidence="30000 to 32767 are in use",
                next=["overlaynet get services -o wide"],
            )
        return number

    def _wants_health_check(self) -> bool:
        return self.asked.type == "LoadBalancer" and self.asked.external_policy == LOCAL

    def _health_check(self, spec: Mapping[str, Any]) -> int:
        taken = {("TCP", port.get("nodePort", 0)) for port in spec["ports"]}
        had = {("TCP", 0): self.before.health_check_node_port if self.before else 0}
        return self.asked.health_check_node_port or self._node_port("TCP", 0, had, taken)


def _spoken(key: str, keys: Keys) -> str:
    """``VIP 10.112.0.10`` or ``nodePort tcp-30080``."""
    if key.startswith(keys.vips):
        return f"VIP {key.removeprefix(keys.vips)}"
    return f"nodePort {key.removeprefix(keys.node_ports)}"


def _asked_at(service: Service, key: str, keys: Keys) -> Path:
    """The field that asks for what this key stands for."""
    if key.startswith(keys.vips):
        return ("spec", "clusterIP")
    for n, port in enumerate(service.ports):
        if key == keys.node_port(port.protocol, port.node_port):
            return ("spec", "ports", n, "nodePort")
    return ("spec", "healthCheckNodePort")


def stray_notes(service: Service, network: IPNetwork, overlay: Sequence[IPNetwork]) -> tuple[str, ...]:
    """What is to be said of VIPs outside of the service network; those of the overlay belong to containers."""
    strays = [ip for ip in service.cluster_ips if ip not in network]
    return tuple(
        f"{ip} is an address of the overlay: a container that has it cannot be reached by it any more"
        if any(ip in one for one in overlay)
        else f"{ip} is outside of the service network {network}; it is served all the same"
        for ip in strays
    )
