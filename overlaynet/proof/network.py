"""A cluster as scripts and tests ask it about its packets: listen here, send from there.

    with Network.open("quickstart") as net:
        with net.capture(["web-1:eth0", "node-1:eth0"]) as packets:
            net.send("web-1", "web-3")
        packets.at("node-1:eth0").expect(vxlan(vni=1))

Needs no agent and no etcd: everything is seen and sent by probes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address

from overlaynet.addr import IPAddress, Mac, gateway_address, vtep_address
from overlaynet.cluster import known
from overlaynet.cluster.cluster import Cluster, Container, read_view
from overlaynet.core.view import View
from overlaynet.errors import EnvironmentProblem, NotFound, OverlayError, StoreError
from overlaynet.lab.state import LOCAL
from overlaynet.model import DEFAULT_VXLAN_PORT
from overlaynet.probe.tap import DOWN, UNPLUGGED
from overlaynet.proof.packet import Packet, Scene
from overlaynet.proof.packets import Packets
from overlaynet.proof.points import look_at, spots, where_is
from overlaynet.proof.question import Asked, Directory, question
from overlaynet.proof.sending import send
from overlaynet.proof.sessions import Sessions
from overlaynet.proof.taps import Taps
from overlaynet.state import KernelState
from overlaynet.trace import filter as filters
from overlaynet.trace.model import OUTSIDE, Point, Sent, Trace

PAYLOAD_BYTES = 32
"""Of datagrams and echo requests: enough to tell one from another."""


class Network:
    """One cluster, with a probe on each of its machines."""

    def __init__(self, cluster: Cluster, sessions: Sessions, directory: Directory) -> None:
        self.cluster = cluster
        self.sessions = sessions
        self.directory = directory
        self.names = _names(cluster, directory)

    @classmethod
    @contextmanager
    def open(cls, lab: str | None = None) -> Iterator[Network]:
        """The lab of that name, or the only one that runs. Raises LabChoice and other OverlayErrors."""
        from overlaynet.cluster.contexts import choose_context

        with cls.of(choose_context(lab)) as network:
            yield network

    @classmethod
    @contextmanager
    def of(cls, cluster: Cluster) -> Iterator[Network]:
        """The same of a cluster that was chosen already."""
        with Sessions(cluster, cluster.hosts()) as sessions:
            yield cls(cluster, sessions, directory_of(cluster))

    # --- who there is ---

    @property
    def hosts(self) -> list[str]:
        return [host.name for host in self.directory.hosts]

    @property
    def containers(self) -> list[str]:
        """Those that have an address, on hosts that can be asked."""
        return [c.name for c in self.directory.containers if c.ips and c.host in self.hosts]

    def host_of(self, container: str) -> str:
        """Raises NotFound."""
        return self._container(container).host

    def address_of(self, place: str) -> IPAddress:
        """Of a container, host or ``outside``. Raises NotFound."""
        ip = self.directory.address_of(self.directory.place(place))
        if ip is None:
            raise NotFound(f"{place} has no address", evidence="it is not wired", next=["overlaynet status"])
        return ip

    def pair(self) -> tuple[str, str]:
        """Two containers on two hosts. Raises NotFound if there are none."""
        first = {self.host_of(name): name for name in reversed(self.containers)}
        if len(first) < 2:
            raise NotFound(
                f"there are no containers on two hosts of {self.cluster.name}", next=["overlaynet status"]
            )
        one, other = (first[host] for host in sorted(first)[:2])
        return one, other

    def _container(self, name: str) -> Container:
        for container in self.directory.containers:
            if name in (container.name, container.id):
                return container
        raise NotFound(
            f"there is no container {name!r}",
            evidence="containers: " + (", ".join(self.containers) or "none"),
            next=["overlaynet get containers"],
        )

    # --- where what is ---

    def kernel(self, place: str) -> KernelState:
        """Interfaces, addresses, routes and neighbours of a place, as they are now. Raises NotFound."""
        where = where_is(self.directory, place)
        return look_at(self.sessions, [where])[where.name]

    def underlay(self, host: str) -> str:
        """The point at which a host meets the others: "node-1:eth0". Raises NotFound."""
        ip = self.address_of(host)
        for address in self.kernel(host).addresses:
            if address.interface.ip == ip:
                return f"{host}:{address.dev}"
        raise NotFound(f"no interface of {host} has its address {ip}", next=["overlaynet status"])

    def tunnel(self, host: str) -> str:
        """The point at which a host's packets enter the tunnel: "node-1:flannel.1". Raises NotFound."""
        for link in self.kernel(host).links.values():
            if link.vxlan is not None:
                return f"{host}:{link.name}"
        raise NotFound(f"{host} has no VXLAN device", next=[f"overlaynet diff {host}"])

    def mac(self, point: str) -> Mac | None:
        """The Ethernet address of an interface. Raises NotFound."""
        place, _, iface = point.partition(":")
        links = self.kernel(place).links
        if iface not in links:
            raise NotFound(
                f"there is no interface {iface!r} on {place}", evidence="interfaces: " + ", ".join(links)
            )
        return links[iface].mac

    # --- listening and sending ---

    @contextmanager
    def capture(self, points: str | Iterable[str], words: str = "", *, dead: bool = False) -> Iterator[Packets]:
        """Listen at points for the length of the block, which begins once every one of them is armed. `words`
        is a filter, as `overlaynet capture` takes it. `dead`: points may be down or without carrier, and then
        are no witnesses.

        Raises NotFound for a point that is not there, UsageError for a filter that makes no sense,
        NotPermitted, and EnvironmentProblem where a point cannot be listened at."""
        wanted = filters.read(words, self.names)
        places = [points] if isinstance(points, str) else list(points)
        found, kernels = spots(places, self.directory, self.sessions)
        scene = Scene(self.names, vxlan_port(kernels.values()), self.cluster.one_machine)
        packets = Packets(None, (), scene)
        taps = Taps(self.sessions, found)
        try:
            troubles = taps.arm(wanted.keep(scene.vxlan_port))
            refuse({at: why for at, why in troubles.items() if not (dead and why in (DOWN, UNPLUGGED))})
            yield packets
        finally:
            ended, frames = taps.collect()
            packets.end((Packet(frame, scene) for frame in frames), ended, wanted)

    def send(
        self,
        source: str,
        target: str,
        protocol: str | None = None,
        port: int | None = None,
        *,
        size: int | None = None,
        df: bool | None = None,
        tries: int = 1,
        wait_s: float = 1.0,
        cookie: str | None = None,
    ) -> Sent:
        """Send one packet by the source's own kernel and wait for what comes back; again, up to `tries` times,
        if nothing does. The last try is answered.

        `target` is a container, a host, ``outside``, ``svc/NAME`` or an address; what is sent follows from it
        (a service is called at its first port, all else is pinged) unless `protocol` says "tcp", "udp" or
        "icmp". `cookie`: the payload's first eight bytes, again and again, in hexadecimal; else by chance.
        Raises NotFound, UsageError, NotPermitted, KernelError, and StoreError for a service."""
        directory = self._directory_with_services() if "/" in target else self.directory
        plain = question(Asked(source, target, protocol, port, df=df), directory)
        payload = 0 if plain.protocol == "tcp" else PAYLOAD_BYTES if size is None else size
        where = where_is(directory, source)
        what = replace(plain, size=payload)
        sent = send(self.sessions, where.host, where.netns, what, tries=tries, wait_s=wait_s, cookie=cookie)
        return sent[-1]

    def trace(self, source: str, target: str, protocol: str | None = None, port: int | None = None) -> Trace:
        """The proof of where a packet goes, as `overlaynet trace` gives it. Raises OverlayErrors."""
        from overlaynet.proof.tracing import trace  # here: most scripts need none of it

        return trace(self.cluster, Asked(source, target, protocol, port)).trace

    def services(self) -> list[str]:
        """Their names, as targets: "svc/default/web". Raises NotFound if there is none, and StoreError."""
        found = [f"svc/{item.value.id}" for item in self._directory_with_services().services]
        if not found:
            raise NotFound(
                f"{self.cluster.name} has no service",
                next=["overlaynet service create web --port 80 --selector app=web"],
            )
        return found

    def service(self, word: str) -> tuple[IPAddress, int, list[str]]:
        """A service's virtual IP, first port, and the containers behind that. Raises NotFound, StoreError."""
        directory = self._directory_with_services()
        front = directory.front(word)
        port = front.ports[0]
        behind = directory.endpoints(front.ip, port.protocol.lower(), port.port)
        names = [c.name for c in directory.containers if behind & set(map(ip_address, c.ips))]
        return front.ip, port.port, names

    def _directory_with_services(self) -> Directory:
        if self.directory.view is None:
            self.directory = replace(self.directory, view=read_view(self.cluster))
        return self.directory


@contextmanager
def capture(points: str | Iterable[str], words: str = "", *, lab: str | None = None) -> Iterator[Packets]:
    """`Network.capture` alone, for whoever sends by other means. `lab` None: the only one that runs.

    Raises as `Network.open` and `Network.capture`."""
    with Network.open(lab) as network, network.capture(points, words) as packets:
        yield packets


def directory_of(cluster: Cluster) -> Directory:
    """Who there is. A lab's names are known on this machine; those of a real cluster's other nodes to etcd."""
    view: View | None = None
    if cluster.name == LOCAL:
        with suppress(StoreError):
            view = read_view(cluster)
    return Directory(cluster.hosts(), known.containers(cluster, view), cluster.outside(), view)


def _names(cluster: Cluster, directory: Directory) -> dict[str, list[IPAddress]]:
    """All addresses of each container and host: a host has its VTEP's and its bridge's as well, under which it
    speaks to containers."""
    found = {c.name: [ip_address(ip) for ip in c.ips] for c in directory.containers}
    for host in directory.hosts:
        with suppress(OverlayError):
            identity = cluster.identity(host.name)
            subnets = identity.subnets if identity else ()
            found[host.name] = [ip for net in subnets for ip in (vtep_address(net), gateway_address(net))]
        found.setdefault(host.name, [])
        if host.underlay_ip:
            found[host.name].insert(0, ip_address(host.underlay_ip))
    if directory.outside:
        found[OUTSIDE] = [ip_address(directory.outside.ip)]
    return found


def vxlan_port(kernels: Iterable[KernelState]) -> int:
    """Whereto tunnels go, by the first VXLAN device among their interfaces."""
    devices = (link.vxlan for kernel in kernels for link in kernel.links.values())
    return next((vxlan.port for vxlan in devices if vxlan is not None), DEFAULT_VXLAN_PORT)


def refuse(troubles: Mapping[Point, str]) -> None:
    """Raises EnvironmentProblem if there is a point that cannot be listened at."""
    if troubles:
        first = next(iter(troubles))
        raise EnvironmentProblem(
            f"nobody can listen at {first}: {troubles[first]}",
            evidence="; ".join(f"{point}: {why}" for point, why in list(troubles.items())[1:]),
            next=[f"overlaynet exec {first.place} -- ip -br link"],
        )
