"""The machines of a lab and its containers on them, as faults find and change them: jobs of their probes.

Here a fault can do harm that it cannot undo: to the connection by which it is healed. So on a machine only what
is the overlay's or the lab's can be broken: devices that its agent made, and the underlay's interface, unless
the ssh connection comes in by it. What happens between hosts is put into the packet filter of one of the two
sides, and never cuts off an address that ssh comes from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from itertools import product
from typing import Any, Protocol
from urllib.parse import urlsplit

from overlaynet.addr import IPAddress, IPNetwork, Mac
from overlaynet.client import Agent
from overlaynet.config import AgentConfig
from overlaynet.core.jsonstate import kernel_from_json, object_to_json, rules_from_json
from overlaynet.errors import AgentUnreachable, EnvironmentProblem, LabFailed, NotFound, UsageError
from overlaynet.kernel.netns import of_lab
from overlaynet.lab.converge import ETCD, agent_of
from overlaynet.lab.faultrecords import Damage, Edit, Fault, damage_document, rule_change
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import LabState
from overlaynet.lab.topology import Topology
from overlaynet.model import Identity, Workload
from overlaynet.state import Change, KernelState, Object, Route, RuleChange, RuleSet, Sysctl

JOB_S = 30.0
AGENT_START_S = 60.0
POLL_S = 0.2
BARRED: Mapping[str, str] = {
    "server": "what containers on machines run is started by `overlaynet up` alone",
    "node": "a machine that is dead cannot be healed over ssh; switch it off and on: vagrant halt, vagrant up",
    "etcd": "the machines' etcd is not the lab's; `break partition HOST etcd` cuts a host off from it",
}


class Known(Protocol):
    """What machines tell of themselves, and etcd of their cluster; each call raises OverlayErrors."""

    def underlay_ip(self, host: str) -> IPv4Address:
        """The address that its agent published."""

    def config(self, host: str) -> AgentConfig: ...

    def identity(self, host: str) -> Identity | None: ...

    def workloads(self, host: str) -> Sequence[Workload] | None: ...


@dataclass(slots=True)
class MachineSite:
    """`mending.Grip` for a lab on machines."""

    state: LabState
    driver: SshDriver
    known: Known
    _devices: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def topology(self) -> Topology:
        return self.state.topology

    @property
    def places(self) -> Sequence[str]:
        return [host.name for host in self.topology.hosts] + [c.name for c in self.topology.containers]

    @property
    def senders(self) -> Sequence[str]:
        return self.places

    @property
    def barred(self) -> Mapping[str, str]:
        return BARRED

    def home(self, place: str) -> str:
        """The machine that a place is on, or is."""
        return next((c.host for c in self.topology.containers if c.name == place), place)

    def ask(self, place: str, operation: str, **members: Any) -> dict[str, Any]:
        """A job of the probe of the machine where that place is. Raises MachineUnreachable, and its errors."""
        return self.driver.probe(self.home(place), {"op": operation, **members}, JOB_S)

    # --- looking ------------------------------------------------------------------------------

    def exists(self, place: str) -> bool:
        """A machine is always there; of a container its machine's record and namespaces tell."""
        if place == self.home(place):
            return True
        found = self.ask(place, "containers", lab=self.topology.name, names=[])
        return place in found["containers"]

    def look(self, place: str, sysctls: Sequence[str] = ()) -> KernelState:
        answer = self.ask(place, "observe", netns=self.driver.netns(place), sysctls=list(sysctls))
        return kernel_from_json(answer["kernel"])

    def rules(self, place: str) -> RuleSet:
        answer = self.ask(place, "observe", netns=self.driver.netns(place), firewall=True)
        return rules_from_json(answer["rules"])

    def ips(self, container: str) -> Sequence[IPAddress]:
        wired = self.known.workloads(self.home(container)) if container in self.places else None
        return next((w.ips for w in wired or () if w.name == container), ())

    def agent(self, host: str) -> Agent:
        return self.driver.agent(host, JOB_S)

    def address(self, name: str) -> IPAddress | None:
        return self.known.underlay_ip(name) if name in {host.name for host in self.topology.hosts} else None

    def subnet(self, host: str) -> IPNetwork:
        return self._identity(host).subnets[0]

    def vtep_mac(self, host: str) -> Mac:
        return self._identity(host).vtep_mac

    def _identity(self, host: str) -> Identity:
        found = self.known.identity(host)
        if found is None or not found.subnets:
            raise NotFound(f"{host} has no subnet yet", next=["overlaynet status"])
        return found

    def cable(self, place: str) -> tuple[str, str]:
        """A machine's own end: nobody reaches the other."""
        return place, self._underlay(place)[0]

    def _underlay(self, host: str) -> tuple[str, IPv4Interface]:
        ip = self.known.underlay_ip(host)
        for address in self.look(host).addresses:
            if address.interface.ip == ip and isinstance(address.interface, IPv4Interface):
                return address.dev, address.interface
        raise NotFound(
            f"no interface of {host} has its underlay address {ip}", next=[f"overlaynet status {host}"]
        )

    def is_underlay(self, ip: IPAddress) -> bool:
        return ip in self._network

    @property
    def _network(self) -> IPv4Network:
        return self._underlay(self.topology.hosts[0].name)[1].network

    def nobody(self) -> IPAddress:
        """The highest address that no host of the lab has and nobody has answered for. Whether a machine that
        is none of ours has it cannot be known."""
        host = self.topology.hosts[0].name
        taken = {n.ip for n in self.look(host).neighs if n.mac is not None}
        taken |= {self.known.underlay_ip(each.name) for each in self.topology.hosts}
        return next(ip for ip in reversed(list(self._network.hosts())) if ip not in taken)

    # --- between hosts ------------------------------------------------------------------------

    def barrier(self, some: Sequence[str], others: Sequence[str], match: str, comment: str) -> Damage:
        """In the packet filter of one of each two, and in both directions there: a machine's switch is not
        ours. So a trace finds the rule, and says so."""
        texts: dict[tuple[str, str], list[str]] = {}
        for a, b in product(some, others):
            host, peer = (b, a) if a == ETCD else (a, b)
            for there, back in self._meant(host, peer):
                texts.setdefault((host, "OUTPUT"), []).append(f"-d {there} {match}{comment} -j DROP")
                texts.setdefault((host, "INPUT"), []).append(f"-s {back} {match}{comment} -j DROP")
        edits = [Edit(host, rule_change("filter", chain, lines, [])) for (host, chain), lines in texts.items()]
        return Damage(object="", touches=(), edits=tuple(edits))

    def _meant(self, host: str, peer: str) -> Iterator[tuple[str, str]]:
        """By which packets to and from `peer` are known: all of a host's, but of etcd only what goes to its
        port, for it is on a machine that is somebody's node."""
        if peer != ETCD:
            ip = self.known.underlay_ip(peer)
            self._refuse_cutting_ssh(host, ip)
            yield f"{ip}/32", f"{ip}/32"
            return
        for endpoint in self.known.config(host).etcd.endpoints:
            where = urlsplit(endpoint)
            try:
                address = f"{IPv4Address(where.hostname or '')}/32 -p tcp -m tcp"
            except ValueError:
                raise UsageError(
                    f"{host} knows etcd as {endpoint}, which is no address",
                    evidence="[etcd] endpoints in its agent.toml",
                ) from None
            yield f"{address} --dport {where.port}", f"{address} --sport {where.port}"

    def _refuse_cutting_ssh(self, host: str, ip: IPAddress) -> None:
        client = self._caller(host)["client"]
        if client is not None and ip_address(client) == ip:
            raise UsageError(
                f"{ip} is where the ssh connection to {host} comes from, by which it would be healed",
                evidence="SSH_CONNECTION there",
                next=["name the two sides the other way round", "reach the machine by another network"],
            )

    def _caller(self, host: str) -> dict[str, Any]:
        found = self.ask(host, "caller")
        if not found["known"]:
            raise EnvironmentProblem(
                f"it is not known how the ssh connection reaches {host}, so nothing may be cut there",
                evidence="nobody there has SSH_CONNECTION",
            )
        return found

    # --- what may be broken -------------------------------------------------------------------

    def allow(self, damage: Damage) -> None:
        """Raise UsageError for what could cut off the connection by which it is healed."""
        hosts = {host.name for host in self.topology.hosts}
        touched: list[tuple[str, str | None, Object | None]]
        touched = [(link.place, link.device, None) for link in damage.links]
        touched += [(entry.place, _device(entry.object), entry.object) for entry in damage.entries]
        for place, device, obj in touched:
            if place in hosts and device is not None and (reason := self._danger(place, device, obj)):
                raise UsageError(
                    f"{damage.object} of {place} is not broken: {reason}",
                    evidence="it could not be healed",
                    next=["overlaynet break --list"],
                )

    def _danger(self, host: str, device: str, obj: Object | None) -> str | None:
        if device not in self._breakable(host):
            return f"{device} is not the overlay's, and may be what ssh needs"
        if isinstance(obj, Route):
            client = self._caller(host)["client"]
            if client is not None and ip_address(client) in obj.dst:
                return f"ssh comes from {client}, and may need this route to answer"
        return None

    def _breakable(self, host: str) -> frozenset[str]:
        """Devices of the overlay's, and the underlay's unless ssh comes in there."""
        if host not in self._devices:
            kernel, address = self.look(host), self._caller(host)["address"]
            management = {a.dev for a in kernel.addresses if str(a.interface.ip) == address}
            underlay = self._underlay(host)[0]
            ours = {link.name for link in kernel.links.values() if link.tag is not None} - management
            free = {underlay} if not management & {underlay, *_below(kernel, underlay)} else set()
            self._devices[host] = frozenset(ours | free)
        return self._devices[host]

    # --- changing -----------------------------------------------------------------------------

    def write(self, place: str, changes: Sequence[Change]) -> None:
        items = [
            {
                "op": change.op,
                "object": object_to_json(change.obj),
                "have": None if change.have is None else object_to_json(change.have),
            }
            for change in changes
        ]
        self.ask(place, "write", netns=self.driver.netns(place), changes=items)

    def edit(self, place: str, change: RuleChange) -> None:
        rules = {"want": list(change.want or ()), "have": list(change.have or ())}
        self.ask(place, "edit", netns=self.driver.netns(place), table=change.table, chain=change.chain, **rules)

    def forget_learned(self, places: Iterable[str]) -> None:
        by_machine: dict[str, list[str | None]] = {}
        for place in places:
            by_machine.setdefault(self.home(place), []).append(self.driver.netns(place))
        for host, names in by_machine.items():
            self.ask(host, "forget", places=names)

    def kill(self, places: Iterable[str]) -> None:
        for place in places:
            raise LabFailed(f"{place} cannot be killed: it is a machine")

    def end(self, names: Iterable[str]) -> None:
        """Agents, by systemd."""
        for name in names:
            self.ask(name.rpartition("/")[2], "service", do="kill")

    def start(self, names: Sequence[str]) -> None:
        """The same; return when they are at work. Raises LabFailed."""
        hosts = [host.name for host in self.topology.hosts if agent_of(host.name) in names]
        for host in hosts:
            self.ask(host, "service", do="start")
        for host in hosts:
            if not self.await_(lambda host=host: self._is_at_work(host), AGENT_START_S):  # type: ignore[misc]
                raise LabFailed(
                    f"the agent of {host} was started and is not ready", next=[f"overlaynet logs {host}"]
                )

    def _is_at_work(self, host: str) -> bool:
        try:
            status = self.agent(host).get("/v1/status")
        except AgentUnreachable:
            return False
        return status["agent"]["state"] != "starting" and not status["pending"]

    def await_(self, check: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not (found := check()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found


def _device(obj: Object) -> str | None:
    """Whose it is; of a setting the device in its name."""
    if isinstance(obj, Sysctl):
        words = obj.name.split("/")
        return words[3] if words[:3] == ["net", "ipv4", "conf"] and words[3] not in ("all", "default") else None
    return getattr(obj, "dev", None)


def _below(kernel: KernelState, device: str) -> Iterator[str]:
    """The bridge or bond that a device is a port of, whose addresses are reached by it."""
    link = kernel.links.get(device)
    if link is not None and link.master is not None:
        yield link.master
        yield from _below(kernel, link.master)


@dataclass(frozen=True, slots=True)
class MachineTimers:
    """`faults.Timers` on the machines themselves: what they undo needs neither this machine nor its clock."""

    site: MachineSite

    def start(self, fault: Fault) -> None:
        lab = self.site.topology
        for host in self._hosts(fault.damage):
            names = [container.name for container in lab.containers_on(host)]
            document = {
                "host": host,
                "namespaces": {name: of_lab(lab.name, name) for name in names},
                "damage": damage_document(_part(fault.damage, {host, *names})),
            }
            self.site.ask(host, "timer", lab=lab.name, fault=fault.id, after_s=fault.for_s, document=document)

    def end(self, fault: Fault) -> None:
        for host in self._hosts(fault.damage):
            self.site.ask(host, "timer-end", lab=self.site.topology.name, fault=fault.id)

    def has_ended(self, fault: Fault) -> bool:
        """A machine that has undone its part has no record of it any more."""
        lab = self.site.topology.name
        return not any(
            self.site.ask(host, "timer-look", lab=lab, fault=fault.id)["there"]
            for host in self._hosts(fault.damage)
        )

    def _hosts(self, damage: Damage) -> list[str]:
        places = [*damage.places, *(name.rpartition("/")[2] for name in damage.ends)]
        return sorted({self.site.home(place) for place in places})


def _part(damage: Damage, places: Collection[str]) -> Damage:
    """What of it is in these places."""
    return replace(
        damage,
        links=tuple(link for link in damage.links if link.place in places),
        entries=tuple(entry for entry in damage.entries if entry.place in places),
        edits=tuple(edit for edit in damage.edits if edit.place in places),
        ends=tuple(name for name in damage.ends if name.rpartition("/")[2] in places),
        holds=tuple(held for held in damage.holds if held.host in places),
    )
