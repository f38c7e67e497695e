"""What must be made or taken away so that a lab is as its topology says. Pure.

A lab is a set of parts. Each has a key, by which it is found again, and a spec, which says what it should
be; want and have are both mappings from key to spec, so that making a lab, changing it, mending it and
doing nothing to it are one and the same comparison.

    NETNS      a network namespace             spec: the host that a container belongs to, else nothing
    CABLE      a veth pair from a namespace's `eth0` to the underlay, with addresses and routes
    PROCESS    etcd, an agent, a container's command or helper; spec: what it was started from

Parts stand on others: whatever stands on a part that is made anew is made anew as well. Parts are made in
the order of their kinds and taken away in the opposite one.

The containers that an agent has wired are compared in the same manner, host by host, once the agents are up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, NamedTuple, TypeAlias

from overlaynet.addr import Mac
from overlaynet.core.probes import probe_document
from overlaynet.lab.topology import (
    ETCD_ADDRESS,
    OUTSIDE,
    OUTSIDE_ADDRESS,
    OUTSIDE_ROUTER,
    UNDERLAY,
    UNDERLAY_ROUTER,
    Container,
    Host,
    Topology,
    address_mac,
)
from overlaynet.model import Port

ETCD = "etcd"
UNDERLAY_PLACE = "underlay"
OUTSIDE_PLACE = "outside"
BRIDGE = "br0"
COMMAND, HELPER = "command", "helper"


class Kind(IntEnum):
    """In the order of making."""

    NETNS = 1
    CABLE = 2
    PROCESS = 3


class Key(NamedTuple):
    """A part's kind and its name; a process is called etcd, agent/HOST, command/CONTAINER or
    helper/CONTAINER."""

    kind: Kind
    name: str


class Cable(NamedTuple):
    """`eth0` of a namespace and the port it is plugged into. A port on the bridge has no address; the one
    of `outside` is routed, so that what comes from there has crossed a router."""

    place: str
    port: str
    mac: Mac
    port_mac: Mac
    address: IPv4Interface
    gateway: IPv4Address
    port_address: IPv4Interface | None = None


Spec: TypeAlias = object
Parts: TypeAlias = Mapping[Key, Spec]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to take away, and then what to make, in order. A part in both is made anew."""

    remove: tuple[Key, ...]
    make: tuple[Key, ...]

    @property
    def changes(self) -> int:
        return len({*self.remove, *self.make})

    def makes(self, kind: Kind) -> tuple[str, ...]:
        """The names of the parts of one kind to make."""
        return tuple(key.name for key in self.make if key.kind is kind)

    def makes_processes(self, role: str) -> tuple[str, ...]:
        """The containers whose process of that role is to be started."""
        return tuple(
            name.removeprefix(f"{role}/") for name in self.makes(Kind.PROCESS) if name.startswith(f"{role}/")
        )

    def removes(self, kind: Kind) -> tuple[str, ...]:
        return tuple(key.name for key in self.remove if key.kind is kind)


def plan(want: Parts, have: Parts) -> Plan:
    """The steps from `have` to `want`; none if they are equal."""
    fresh: set[Key] = set()
    for key in sorted(want):
        if key not in have or have[key] != want[key] or fresh.intersection(stands_on(key)):
            fresh.add(key)
    return Plan(
        remove=tuple(sorted((key for key in have if key not in want or key in fresh), reverse=True)),
        make=tuple(sorted(fresh)),
    )


def stands_on(key: Key) -> tuple[Key, ...]:
    """The parts that must be there, and stay the same ones, for this part."""
    match key.kind:
        case Kind.NETNS:
            return ()
        case Kind.CABLE:
            return Key(Kind.NETNS, key.name), Key(Kind.NETNS, UNDERLAY_PLACE)
        case Kind.PROCESS:
            role, _, place = key.name.rpartition("/")
            return (Key(Kind.NETNS if role in (COMMAND, HELPER) else Kind.CABLE, place),)


def agent_of(host: str) -> str:
    return f"agent/{host}"


def command_of(container: str) -> str:
    return f"{COMMAND}/{container}"


def helper_of(container: str) -> str:
    """Who runs the command of the container's probe."""
    return f"{HELPER}/{container}"


# --- want -----------------------------------------------------------------------------------------


def wanted(topology: Topology, process_specs: Mapping[str, str]) -> dict[Key, Spec]:
    """Every part of the lab. `process_specs`: what each process is started from, by its name."""
    parts: dict[Key, Spec] = {Key(Kind.NETNS, place): "" for place in _places(topology)}
    parts |= {Key(Kind.NETNS, container.name): container.host for container in topology.containers}
    parts |= {Key(Kind.CABLE, cable.place): cable for cable in cables(topology)}
    parts |= {Key(Kind.PROCESS, name): spec for name, spec in process_specs.items()}
    return parts


def _places(topology: Topology) -> list[str]:
    hosts = [host.name for host in topology.hosts]
    return [UNDERLAY_PLACE, ETCD, *([OUTSIDE_PLACE] if topology.outside else []), *hosts]


def places(topology: Topology) -> list[str]:
    """Everything of the lab that has a namespace."""
    return [*_places(topology), *(container.name for container in topology.containers)]


def cables(topology: Topology) -> list[Cable]:
    """etcd's, the hosts' and, last, the outside's."""
    made = [_bridged(ETCD, ETCD, ETCD_ADDRESS)]
    made += [_bridged(host.name, port_name(host), host.underlay_ip) for host in topology.hosts]
    return [*made, _outside()] if topology.outside else made


def port_name(host: Host) -> str:
    """The host's port on the underlay: its own name, or a short form (a device's has at most 15 bytes) that,
    with its ``~``, can be no other host's name."""
    taken = host.name in {BRIDGE, "lo", "all", "default"} or len(host.name) > 15
    return f"{host.name[:8]}~{host.number}" if taken else host.name


def _bridged(place: str, port: str, address: IPv4Address) -> Cable:
    return Cable(
        place=place,
        port=port,
        mac=address_mac(address),
        port_mac=address_mac(address, kind=1),
        address=IPv4Interface((address, UNDERLAY.prefixlen)),
        gateway=UNDERLAY_ROUTER,
    )


def _outside() -> Cable:
    return Cable(
        place=OUTSIDE_PLACE,
        port=OUTSIDE_PLACE,
        mac=address_mac(OUTSIDE_ADDRESS),
        port_mac=address_mac(OUTSIDE_ROUTER),
        address=IPv4Interface((OUTSIDE_ADDRESS, OUTSIDE.prefixlen)),
        gateway=OUTSIDE_ROUTER,
        port_address=IPv4Interface((OUTSIDE_ROUTER, OUTSIDE.prefixlen)),
    )


# --- containers -----------------------------------------------------------------------------------


class Wiring(NamedTuple):
    """What to do on one host: containers to unwire, by namespace and name, and then those to wire."""

    detach: tuple[tuple[str, str], ...]
    attach: tuple[Container, ...]

    @property
    def changes(self) -> int:
        return len({*self.detach, *((c.namespace, c.name) for c in self.attach)})


def plan_containers(
    want: Sequence[Container], have: Iterable[Mapping[str, Any]], remade: Collection[str] = ()
) -> Wiring:
    """`have`: the agent's own list. `remade`: containers whose namespace is a new one, so that whatever the
    agent says of them is about the old."""
    present = {(str(c["namespace"]), str(c["name"])): c for c in have}
    right = {
        (c.namespace, c.name)
        for c in want
        if c.name not in remade and _same(c, present.get((c.namespace, c.name)))
    }
    return Wiring(
        detach=tuple(sorted(set(present) - right)),
        attach=tuple(c for c in want if (c.namespace, c.name) not in right),
    )


def _same(want: Container, have: Mapping[str, Any] | None) -> bool:
    return (
        have is not None
        and not have["terminating"]
        and have["probe"] == (None if want.probe is None else probe_document(want.probe))
        and dict(have["labels"]) == dict(want.labels)
        and {_port(port) for port in have["ports"]} == set(want.ports)
    )


def _port(document: Mapping[str, Any]) -> Port:
    return Port(int(document["port"]), str(document["protocol"]), document.get("name"))


def not_ready(names: Collection[str], status: Mapping[str, Any]) -> str | None:
    """Which of these containers are not ready, by their agent's status, and why; None if all are."""
    found = [c for c in status["containers"] if c["name"] in names and not c["ready"]]
    return "; ".join(f"{c['name']} is not ready: {c['probe_detail'] or 'no answer yet'}" for c in found) or None


def unsettled(
    host: str, others: frozenset[str], status: Mapping[str, Any], *, alone: bool = True
) -> str | None:
    """Why a host is not as it should be yet, by its agent's status; None if it is. Unless the lab is `alone`,
    there may be more hosts than its own."""
    peers = frozenset(peer["node"] for peer in status["peers"])
    if (state := status["agent"]["state"]) != "ready":
        return f"{host} is {state}{problems(status)}"
    if missing := sorted(others - peers):
        return f"{host} does not know {', '.join(missing)} yet"
    if alone and (extra := sorted(str(peer) for peer in peers - others)):
        return f"{host} still knows {', '.join(extra)}"
    return f"{host} has {status['pending']} changes to make" if status["pending"] else None


def problems(status: Mapping[str, Any]) -> str:
    """What the agent says is wrong, to be put behind a sentence; nothing if it says nothing."""
    said = "; ".join(problem["message"] for problem in status["problems"])
    return f": {said}" if said else ""
