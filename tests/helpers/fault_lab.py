"""A lab in memory that can be broken: kernels, packet filters, agents and processes of two hosts.

`die_after` lets it die like a command that is killed: from that many changes on, nothing can be done any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from overlaynet.addr import IPAddress, Mac
from overlaynet.core.overlay import metric_of
from overlaynet.errors import AgentUnreachable, NotFound
from overlaynet.kernel.process import Process
from overlaynet.lab.faultground import NamespaceGround
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.faults import Faults, ProcessTimers
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.topology import Topology
from overlaynet.state import (
    Change,
    Fdb,
    KernelState,
    Link,
    Neigh,
    Object,
    Op,
    Route,
    RuleChange,
    RuleSet,
    Sysctl,
    Vxlan,
)
from overlaynet.testing.fake_firewall import FakeFirewall
from overlaynet.testing.fake_kernel import FakeKernel

SERVICE_RULES = tuple(
    f'-d {ip}/32 -p tcp -m tcp --dport 80 -m comment --comment "overlaynet: {name} cluster IP" -j OVL-SVC'
    for ip, name in (("10.112.0.10", "default/web"), ("10.112.0.11", "default/api:http"))
)
HOOKS = ('-m comment --comment "overlaynet: services" -j OVL-SERVICES',)


class Crash(BaseException):
    """The command was killed; no handler of errors may see it."""


class FakeAgent:
    """An agent that takes holds of what it `owns`, and repairs nothing."""

    def __init__(self, owns: Callable[[str, str], bool]) -> None:
        self.owns = owns
        self.alive = True
        self.held: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.repair: Callable[[], None] = lambda: None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if not self.alive:
            raise AgentUnreachable("no agent answers")
        if path == "/v1/repair":
            self.repair()
            return {"changes": 0, "failures": []}
        key = (body["kind"], body["key"])
        if not self.owns(*key) or (path == "/v1/release" and key not in self.held):
            raise NotFound(f"{key} is not there")
        if path == "/v1/hold":
            self.held[key] = body
        else:
            del self.held[key]
        return dict(body)


@dataclass
class FakeGrip(NamespaceGround):
    """`overlaynet.lab.faults.Grip`."""

    built: Topology = field(default_factory=lambda: _topology())
    kernels: dict[str, FakeKernel] = field(default_factory=dict)
    filters: dict[str, FakeFirewall] = field(default_factory=dict)
    agents: dict[str, FakeAgent] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    forgot: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    die_after: int | None = None
    changes: int = 0
    before_change: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        for number in (1, 2):
            self.kernels[f"node-{number}"] = _host_kernel(number)
            self.kernels[f"web-{number}"] = _container_kernel(number)
            self.agents[f"node-{number}"] = FakeAgent(_owns)
        self.kernels["underlay"] = _underlay_kernel()
        self.filters = {place: _filter() for place in ("node-1", "node-2")}
        self.filters["underlay"] = FakeFirewall()

    # --- looking ------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        return self.built

    def exists(self, place: str) -> bool:
        return place in self.kernels

    def look(self, place: str, sysctls: Sequence[str] = ()) -> KernelState:
        self._live()
        return self.kernels[place].observe(sysctls)

    def rules(self, place: str) -> RuleSet:
        self._live()
        return self.filters[place].observe()

    def ips(self, container: str) -> Sequence[IPAddress]:
        known = {"web-1": "10.244.1.2", "web-2": "10.244.2.2"}
        return (ip_address(known[container]),) if container in known else ()

    def agent(self, host: str) -> Any:
        self._live()
        return self.agents[host]

    def everything(self) -> list[object]:
        """All of it, to be compared."""
        kernels = {place: _seen(kernel) for place, kernel in self.kernels.items()}
        filters = {
            place: {key: [rule.text for rule in rules] for key, rules in there.observe().chains.items()}
            for place, there in self.filters.items()
        }
        return [kernels, filters, {host: list(agent.held) for host, agent in self.agents.items()}]

    # --- changing -----------------------------------------------------------------------------

    def _live(self) -> None:
        if self.die_after is not None and self.changes >= self.die_after:
            raise Crash

    def _change(self) -> None:
        self._live()
        self.before_change()
        self.changes += 1

    def write(self, place: str, changes: Sequence[Change]) -> None:
        for change in changes:
            self._change()
            for failure in self.kernels[place].apply([change]):
                raise failure.error

    def edit(self, place: str, change: RuleChange) -> None:
        self._change()
        self.filters[place].apply([change], self.filters[place].observe())

    def forget_learned(self, places: Iterable[str]) -> None:
        self._live()
        self.forgot += places

    def kill(self, places: Iterable[str]) -> None:
        for place in places:
            self._change()
            self.killed.append(place)

    def end(self, names: Iterable[str]) -> None:
        for name in names:
            self._change()
            self.ended.append(name)

    def start(self, names: Sequence[str]) -> None:
        for name in names:
            self._change()
            self.started.append(name)

    def await_(self, check: Callable[[], bool], within_s: float) -> bool:
        return check()


class FakeTimers(ProcessTimers):
    """Whose processes are nobody's."""

    def start(self, fault: Fault) -> Process:
        return Process(2**22 - 2, 1)


def fake_faults(tmp_path: Path, grip: FakeGrip) -> Faults:
    """Faults of a lab in memory, whose timers are nobody's processes."""
    paths = LabPaths(tmp_path / "run" / "fake", tmp_path / "state" / "fake")
    paths.run.mkdir(parents=True, exist_ok=True)
    return Faults(paths, grip, FakeTimers("fake", Paths()))


def _topology() -> Topology:
    """Two hosts with a container each, of which web-1 serves."""
    plain = Topology.simple("fake", hosts=2, containers=1)
    first, *others = plain.containers
    return replace(plain, containers=(replace(first, command=("serve",)), *others))


def _seen(kernel: FakeKernel) -> object:
    """A kernel, but for neighbours that it would find again by itself."""
    return (
        set(kernel.routes.values()),
        {entry for entry in kernel.neighs.values() if entry.state == "permanent"},
        set(kernel.fdb.values()),
        {name: (link.up, link.mtu) for name, link in kernel.links.items()},
        dict(kernel.sysctls),
    )


def _owns(kind: str, key: str) -> bool:
    return kind in ("rule", "route") or "flannel.1" in key or key == "net/ipv4/ip_forward"


def _host_kernel(number: int) -> FakeKernel:
    peer = 3 - number
    subnet = ip_network(f"10.244.{peer}.0/24")
    kernel = FakeKernel()
    kernel.add_device("eth0", addresses=(ip_interface(f"192.168.50.1{number}/24"),))
    vxlan = Vxlan(1, 8472, ip_address(f"192.168.50.1{number}"), "eth0")
    mac = Mac.parse(f"02:0a:f4:0{peer}:00:00")
    hop = ip_address(f"10.244.{peer}.0")
    objects: list[Object] = [
        Link("flannel.1", "vxlan", "overlaynet-vxlan-1", 1450, Mac.parse(f"02:0a:f4:0{number}:00:00"), vxlan),
        Sysctl("net/ipv4/ip_forward", "1"),
        Sysctl("net/ipv4/conf/flannel.1/rp_filter", "2"),
        Neigh("flannel.1", hop, mac),
        Fdb("flannel.1", mac, ip_address(f"192.168.50.1{peer}")),
        Route(subnet, "flannel.1", hop, metric_of(subnet), onlink=True),
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("192.168.50.1"), protocol=3),
        Neigh("eth0", ip_address(f"192.168.50.1{peer}"), Mac.parse("02:00:c0:a8:32:0c"), "reachable"),
    ]
    kernel.tamper(*(Change(Op.PUT, obj) for obj in objects))
    return kernel


def _container_kernel(number: int) -> FakeKernel:
    kernel = FakeKernel()
    kernel.add_device("eth0", mtu=1450, addresses=(ip_interface(f"10.244.{number}.2/24"),))
    gateway = ip_address(f"10.244.{number}.1")
    kernel.tamper(Change(Op.PUT, Route(ip_network("0.0.0.0/0"), "eth0", gateway)))
    return kernel


def _underlay_kernel() -> FakeKernel:
    kernel = FakeKernel()
    for port in ("node-1", "node-2", "etcd", "outside"):
        kernel.add_device(port)
    kernel.sysctls["net/bridge/bridge-nf-call-iptables"] = "0"
    return kernel


def _filter() -> FakeFirewall:
    rules = FakeFirewall()
    rules.restore(
        "\n".join(
            [
                "*nat",
                ":OVL-SERVICES - [0:0]",
                ":OVL-SVC - [0:0]",
                *(f"-A OVL-SERVICES {text}" for text in SERVICE_RULES),
                *(f"-A PREROUTING {text}" for text in HOOKS),
                "-A PREROUTING -j ACCEPT",
                "COMMIT",
            ]
        )
    )
    return rules
