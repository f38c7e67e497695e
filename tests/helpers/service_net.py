"""Two hosts with two containers each, and a client outside, for trying rules of services with real sockets.

    a1 10.244.1.2 ─┐                                             ┌─ 10.244.2.2 b1
                   ├ cni0 [A] eth0 192.168.50.11 ─┐ ┌─ .12 eth0 [B] cni0 ┤
    a2 10.244.1.3 ─┘                              lan            └─ 10.244.2.3 b2
                                              [X] .50

Routes take the place of the overlay, as with host-gw. X is also the cable: its bridge `lan` joins A and B, and
whatever is routed to nowhere ends there, unanswered. X reaches virtual IPs and the like by way of A. Every
container answers on TCP and UDP ports 8080 and 8081, and so do A and B, on their underlay addresses.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network

from helpers.answering import PATIENCE_S, SILENCE_S, Answer, Servers, ask, servers
from helpers.eventually import eventually
from helpers.private_netns import PrivateNetns, private_netns

from overlaynet.errors import FirewallBusy
from overlaynet.firewall.chains import is_ours
from overlaynet.firewall.iptables import Flavour, Iptables
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.reconcile import sync_firewall
from overlaynet.state import (
    Endpoint,
    ForwardAccept,
    Masquerade,
    Policy,
    RuleSet,
    ServicePortPolicy,
    ServicesPolicy,
)

VIP, VIP2 = "10.112.0.10", "10.112.0.11"
EXTERNAL = "198.51.100.10"
INGRESS = "203.0.113.10"
ROUTED_TO_A = ("10.112.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "10.244.1.0/24")
ANSWERED_BY_B = "203.0.113.0/24"
"""Where no rule stands in between, B refuses what A sends there, so that silence is a rule's doing."""
CROWD = ip_network("10.77.0.0/16")
"""X answers to every address in it: clients of any number without as many interfaces."""
NODE_PORT = 30_080
PORTS = (8080, 8081)

ADDRESS: Mapping[str, str] = {
    "a1": "10.244.1.2",
    "a2": "10.244.1.3",
    "b1": "10.244.2.2",
    "b2": "10.244.2.3",
    "A": "192.168.50.11",
    "B": "192.168.50.12",
    "X": "192.168.50.50",
}
BRIDGE: Mapping[str, str] = {"A": "10.244.1.1", "B": "10.244.2.1"}
MAC: Mapping[str, str] = {"A": "02:00:00:00:00:0a", "B": "02:00:00:00:00:0b"}
HOSTS = ("A", "B")
OVERLAY = (ip_network("10.244.0.0/16"),)
OWN = {"A": (ip_network("10.244.1.0/24"),), "B": (ip_network("10.244.2.0/24"),)}


def endpoints(*names: str, port: int = 8080) -> tuple[Endpoint, ...]:
    """Of containers or hosts by name, in the order that the planner gives; ``b1:8081`` names another port."""
    split = [(name.partition(":")[0], int(name.partition(":")[2] or port)) for name in names]
    return tuple(sorted((Endpoint(ip_address(ADDRESS[name]), number) for name, number in split), key=str))


def service(*cluster: str, local: tuple[str, ...] = (), **fields: object) -> ServicePortPolicy:
    """A policy by the names of endpoints; what is not said is a ClusterIP, TCP port 80, called http."""
    made = ServicePortPolicy(
        service="default/web",
        port_name="http",
        protocol="tcp",
        port=80,
        cluster_ips=(ip_address(VIP),),
        cluster=endpoints(*cluster),
        local=endpoints(*local),
        usable=bool(cluster or local),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def udp(*cluster: str, local: tuple[str, ...] = (), **fields: object) -> ServicePortPolicy:
    """The same with UDP."""
    return service(*cluster, local=local, protocol="udp", **fields)


def node_port(*cluster: str, local: tuple[str, ...] = (), **fields: object) -> ServicePortPolicy:
    """The same, also at `NODE_PORT`."""
    return service(*cluster, local=local, node_port=NODE_PORT, **fields)


COMMON = ServicesPolicy(
    networks=(ip_network("10.112.0.0/16"),),
    node_ips=(ip_address(ADDRESS["A"]),),
    local_sources=OVERLAY,
)


def base(host: str) -> dict[str, Policy]:
    """What a host has without any service."""
    return {"forward": ForwardAccept(OVERLAY), "masquerade": Masquerade(OVERLAY, OWN[host])}


def named(*ports: ServicePortPolicy) -> dict[str, Policy]:
    """Policies under the names that the planner gives them."""
    return {f"service {port.name}/{port.protocol}": port for port in ports}


@dataclass
class ServiceNet:
    """The net of one iptables variant. `places` are the namespaces by name; `firewalls` and
    `sets` what the agent writes with, by host; `touched` are the hosts that have to be emptied."""

    places: Mapping[str, PrivateNetns]
    flavour: Flavour
    servers: Servers
    firewalls: dict[str, Iptables]
    sets: Mapping[str, AffinitySetsAdapter]
    touched: set[str] = field(default_factory=lambda: {"A"})

    def serve(self, *ports: ServicePortPolicy, common: ServicesPolicy = COMMON, on: str = "A") -> None:
        """Make these the services of a host, in place of what it had."""
        self.apply({**base(on), **named(*ports), "services": common}, on)

    def apply(self, want: Mapping[str, Policy], on: str = "A") -> None:
        """Write what differs, as the agent does it, until nothing does."""
        self.touched.add(on)
        firewall, sets = self.firewalls[on], self.sets[on]
        with self.places[on].entered():
            eventually(lambda: sync_firewall(firewall, want, sets=sets).settled)

    def rules(self, on: str = "A") -> RuleSet:
        with self.places[on].entered():
            return self.firewalls[on].observe()

    def iptables(self, *lines: str, on: str = "A") -> None:
        """Another program's hand on the same variant's rules."""
        self.touched.add(on)
        for line in lines:
            self.places[on].run(f"iptables-{self.flavour} {line}")

    def restore(self, text: str, on: str = "A") -> None:
        """The same with a whole input of iptables-restore."""
        self.touched.add(on)
        with self.places[on].entered():
            run([f"iptables-{self.flavour}-restore", "--noflush"], text)

    def ask(
        self,
        client: str,
        address: str,
        port: int,
        protocol: str = "tcp",
        *,
        source: str = "",
        silent: bool = False,
    ) -> Answer | str:
        """From one place; `silent`: no answer is expected, so do not wait long for it."""
        with self.places[client].entered():
            patience = SILENCE_S if silent else PATIENCE_S
            return ask(protocol, address, port, source=source, patience_s=patience)

    def asker(self, client: str, address: str, port: int, protocol: str = "tcp") -> Callable[[], Answer | str]:
        return partial(self.ask, client, address, port, protocol)

    def ended(self) -> None:
        """Bring the hosts back to having no rules, no sets of addresses, and following no connection."""
        for host in self.touched:
            with self.places[host].entered():
                run([f"iptables-{self.flavour}-restore"], NO_RULES)
                eventually(lambda host=host: not _destroyed(self.sets[host]))
            forget_flows(self.places[host])
        self.touched = {"A"}


def _destroyed(sets: AffinitySetsAdapter) -> list[str]:
    """Destroy them; answer those that the kernel has not let go of yet."""
    left = []
    for name in sets.observe():
        try:
            sets.destroy(name)
        except FirewallBusy:
            left.append(name)
    return left


NO_RULES = """\
*mangle
COMMIT
*nat
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
"""


def run(argv: list[str], text: str = "") -> str:
    """What a program answers, given `text` as input. Raises CalledProcessError."""
    return subprocess.run(argv, input=text, check=True, capture_output=True, text=True).stdout


def forget_flows(netns: PrivateNetns) -> None:
    """Empty the table of connections: ctnetlink's delete without any attribute (nfnetlink_conntrack.h)."""
    with netns.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as conntrack:
        conntrack.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, socket.AF_INET, 0, 0))
        errno = struct.unpack_from("=i", conntrack.recv(4096), 16)[0]
    assert errno == 0, errno


# --- making it ------------------------------------------------------------------------------------

HOST = """\
link set eth0 up
address add {address}/24 dev eth0
link add cni0 type bridge
address add {bridge}/24 dev cni0
link set cni0 up
route add default via 192.168.50.50
"""
WIRE = """\
link add {name} type veth peer name eth0 netns {path}
link set {name} master cni0 up
link set {name} type bridge_slave hairpin on
"""
CONTAINER = """\
link set eth0 up
address add {address}/24 dev eth0
route add default via {gateway}
"""
OUTSIDE = """\
link add lan type bridge
address add 192.168.50.50/24 dev lan
link set lan up
link add to-a type veth peer name eth0 address {mac_a} netns {a}
link add to-b type veth peer name eth0 address {mac_b} netns {b}
link set to-a master lan up
link set to-b master lan up
"""
OF_HOST = "ipv4.ip_forward=1 ipv4.conf.all.rp_filter=2 bridge.bridge-nf-call-iptables=1 ipv4.icmp_ratemask=0"
"""The kernel tells a client of refused packets at most once a second after the first six (icmp(7)); here many
tests in a row want to hear it. With a mask of nothing neither that counts nor the whole machine's limit."""
OF_CABLE = "ipv4.ip_forward=0 ipv4.conf.all.rp_filter=2 bridge.bridge-nf-call-iptables=0"
SETTINGS = {"A": OF_HOST, "B": OF_HOST, "X": OF_CABLE}


@contextmanager
def service_net(flavour: Flavour) -> Iterator[ServiceNet]:
    with ExitStack() as stack:
        places = {name: stack.enter_context(private_netns()) for name in ADDRESS}
        _connect(places)
        listening = stack.enter_context(servers())
        for name, netns in places.items():
            for port in PORTS if name != "X" else ():
                for protocol in ("tcp", "udp"):
                    listening.listen(netns, name, protocol, port, ADDRESS[name])
        sets = {host: stack.enter_context(_sets(places[host])) for host in HOSTS}
        yield ServiceNet(places, flavour, listening, {host: Iptables(flavour) for host in HOSTS}, sets)


@contextmanager
def _sets(host: PrivateNetns) -> Iterator[AffinitySetsAdapter]:
    with closing(AffinitySetsAdapter(is_ours)) as sets:
        with host.entered():
            sets.check()  # this opens its socket
        yield sets


def _connect(places: Mapping[str, PrivateNetns]) -> None:
    paths = {"a": places["A"].path, "b": places["B"].path, "mac_a": MAC["A"], "mac_b": MAC["B"]}
    _batch(places["X"], OUTSIDE.format(**paths))
    for host, other in ("A", "B"), ("B", "A"):
        text = HOST.format(address=ADDRESS[host], bridge=BRIDGE[host])
        text += f"route add {OWN[other][0]} via {ADDRESS[other]}\n"
        names = [name for name in ADDRESS if re.fullmatch(f"{host.lower()}[12]", name)]
        _batch(places[host], text + "".join(WIRE.format(name=n, path=places[n].path) for n in names))
        for name in names:
            _batch(places[name], CONTAINER.format(address=ADDRESS[name], gateway=BRIDGE[host]))
    for network in ROUTED_TO_A:
        places["X"].run(f"ip route add {network} via {ADDRESS['A']}")
    places["A"].run(f"ip route add {ANSWERED_BY_B} via {ADDRESS['B']}")
    places["B"].run(f"ip route add local {ANSWERED_BY_B} dev lo")
    places["X"].run(f"ip route add local {CROWD} dev lo")
    places["X"].run(f"ip route add {OWN['B'][0]} via {ADDRESS['B']}")
    for place, settings in SETTINGS.items():
        places[place].run("sysctl -q -w " + " ".join(f"net.{setting}" for setting in settings.split()))


def _batch(netns: PrivateNetns, commands: str) -> None:
    with netns.entered():
        run(["ip", "-batch", "-"], commands)
