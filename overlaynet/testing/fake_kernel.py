"""A kernel in memory that is as particular as the real one.

What it refuses, and with which errno, and what it forgets by itself, was taken from Linux and is held to
it by `tests/contract/test_kernel.py`: entries need their device; a route needs a device that is up and a
gateway that can be reached; taking a link down loses its neighbours, routes and IPv6 addresses but not
its forwarding entries; taking its last IPv4 address loses its IPv4 neighbours and routes; deleting it loses
everything on it, and the VXLAN devices over it.

Connected and local routes come and go with addresses, as the kernel makes them. There is no IPv6
link-local address and no learning, for nothing is ever sent.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_interface, ip_network
from typing import TypeAlias, TypeVar

from overlaynet.addr import IPAddress, IPInterface, Mac, random_mac, vxlan_mtu
from overlaynet.errors import KernelError, OverlayError, WorkloadExists
from overlaynet.ports import Failure, Wiring
from overlaynet.state import (
    MAIN_TABLE,
    Address,
    BridgePort,
    Change,
    Fdb,
    IpRule,
    KernelState,
    Key,
    Link,
    LinkInfo,
    Neigh,
    Object,
    Op,
    Route,
    Sysctl,
    kind_of,
)

_T = TypeVar("_T")
Namespace: TypeAlias = tuple[int, ...]
"""What a descriptor refers to; the descriptor's number is used again as soon as it is closed."""
LOCAL_TABLE = 255
RTPROT_KERNEL = 2
ATTACH, DETACH, OBSERVE = "attach", "detach", "observe"
"""What `fail_next` takes beside a `Kind`."""
FORWARDING = "net/ipv4/ip_forward"
"""Of the namespace; writing it sets every device, and new ones follow it (ip-sysctl.rst)."""
DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


class FakeKernel:
    """`ports.Kernel` without a kernel. `writes` counts, by kind and op, every write that was tried."""

    def __init__(self) -> None:
        self.links: dict[str, LinkInfo] = {}
        self.addresses: dict[Key, Address] = {}
        self.neighs: dict[Key, Neigh] = {}
        self.fdb: dict[Key, Fdb] = {}
        self.routes: dict[Key, Route] = {}
        self.rules: list[IpRule] = []
        self.sysctls = {
            FORWARDING: "0",
            "net/ipv6/conf/all/forwarding": "0",
            "net/bridge/bridge-nf-call-iptables": "1",
        }
        self.containers: dict[Namespace, FakeKernel] = {}
        self.writes: Counter[tuple[str, str]] = Counter()
        self.looks = 0
        self.closed = False
        self._next_index = 1
        self._failures: list[tuple[str, int]] = []
        self._ends: dict[str, tuple[Namespace, str]] = {}
        self.add_device("lo", type="loopback", mtu=65_536, addresses=(ip_interface("127.0.0.1/8"),))

    # --- what a test arranges -----------------------------------------------------------------

    def add_device(
        self,
        name: str,
        *,
        type: str = "ether",
        mtu: int = 1_500,
        mac: Mac | None = None,
        addresses: Iterable[IPInterface] = (),
        up: bool = True,
    ) -> None:
        """A device that somebody else made, such as the underlay's."""
        self._add(LinkInfo(0, name, type, mac, mtu, up, up))
        for address in addresses:
            self._put_address(Address(name, address))

    def fail_next(self, kind: str, number: int, *, times: int = 1) -> None:
        """Refuse the next `times` writes of this kind (or attach, detach, observe) with this errno, or until
        `recover`."""
        self._failures += [(str(kind), number)] * times

    def recover(self) -> None:
        """Refuse nothing any more."""
        self._failures = []

    def tamper(self, *changes: Change) -> None:
        """Change something behind the agent's back: not counted, and not made to fail. Raises KernelError."""
        for change in changes:
            self._carry_out(change)

    def container(self, netns_fd: int) -> FakeKernel:
        """The kernel inside a namespace that something was attached to."""
        return self.containers[_namespace(netns_fd)]

    # --- the port -----------------------------------------------------------------------------

    def observe(self, sysctls: Sequence[str] = ()) -> KernelState:
        self.looks += 1
        self._fail_if_told(OBSERVE, "a look at the kernel")
        return KernelState(
            links=dict(self.links),
            addresses=tuple(self.addresses.values()),
            neighs=tuple(self.neighs.values()),
            fdb=tuple(self.fdb.values()),
            routes=tuple(self.routes.values()),
            rules=tuple(self.rules),
            sysctls={name: self._sysctl(name) for name in sysctls},
        )

    def glance(self) -> KernelState:
        self._fail_if_told(OBSERVE, "a look at the kernel")
        return KernelState(links=dict(self.links), addresses=tuple(self.addresses.values()))

    def read_sysctls(self, names: Sequence[str]) -> Mapping[str, str | None]:
        return {name: self._sysctl(name) for name in names}

    def apply(self, changes: Sequence[Change]) -> list[Failure]:
        failures = []
        for change in changes:
            try:
                self._write(change)
            except OverlayError as error:
                failures.append(Failure(change, error))
        return failures

    def attach(self, wiring: Wiring) -> None:
        self.writes[ATTACH, Op.PUT] += 1
        inside = self.containers.setdefault(_namespace(wiring.netns_fd), FakeKernel())
        if wiring.container_device in inside.links:
            raise WorkloadExists(f"the container has a device {wiring.container_device} already")
        self._fail_if_told(ATTACH, f"veth pair {wiring.host_device}")
        try:
            _refuse_if(wiring.host_device in self.links, errno.EEXIST)
            self._check_altname(wiring.tag, wiring.host_device)
            self._wire(inside, wiring)
        except _Refused as refused:
            raise KernelError(f"veth pair {wiring.host_device}", refused.errno) from None

    def detach(self, host_device: str) -> None:
        self.writes[DETACH, Op.DROP] += 1
        self._fail_if_told(DETACH, f"removal of {host_device}")
        self._delete(host_device)

    def close(self) -> None:
        self.closed = True

    # --- changes ------------------------------------------------------------------------------

    def _write(self, change: Change) -> None:
        kind = kind_of(change.obj.key)
        if isinstance(change.obj, Sysctl) and self._sysctl(change.obj.name) == change.obj.value:
            return
        self.writes[kind, change.op] += 1
        self._fail_if_told(kind, str(change))
        self._carry_out(change)

    def _carry_out(self, change: Change) -> None:
        try:
            if change.op is Op.PUT:
                self._put(change)
            else:
                self._drop(change.obj)
        except _Refused as refused:
            raise KernelError(str(change), refused.errno) from None

    def _put(self, change: Change) -> None:
        match change.obj:
            case Link() as link:
                self._put_link(link, known=change.have is not None)
            case Address() as address:
                self._put_address(address)
            case BridgePort() as port:
                self._put_port(port)
            case Neigh() as neigh:
                self._device(neigh.dev)
                self.neighs[neigh.key] = neigh
            case Fdb() as entry:
                self._put_fdb(entry)
            case Route() as route:
                self._put_route(route)
            case Sysctl(name, value):
                _refuse_if(self._sysctl(name) is None, errno.ENOENT)
                self.sysctls[name] = value
                if name == FORWARDING:
                    self.sysctls = {n: v for n, v in self.sysctls.items() if not _is_devices_forwarding(n)}

    def _drop(self, obj: Object) -> None:
        match obj:
            case Link(name):
                self._delete(name)
            case BridgePort(dev):
                self._release(dev)
            case Address():
                self._drop_address(obj)
            case Neigh():
                self.neighs.pop(obj.key, None)
            case Fdb():
                if obj.dst is None or self.fdb.get(obj.key, obj).dst == obj.dst:
                    self.fdb.pop(obj.key, None)
            case Route():
                if _same_route(obj, self.routes.get(obj.key)):
                    del self.routes[obj.key]
            case Sysctl():
                pass

    # --- links --------------------------------------------------------------------------------

    def _add(self, link: LinkInfo) -> None:
        index = self._next_index
        self._next_index += 1
        mac = link.mac or random_mac(index.to_bytes(6, "big"))
        self.links[link.name] = link._replace(ifindex=index, mac=mac)

    def _put_link(self, link: Link, *, known: bool) -> None:
        present = self.links.get(link.name)
        if present and (present.type, present.vxlan) != (link.type, link.vxlan):
            _refuse_if(not known and link.tag not in present.altnames, errno.EEXIST)
            self._delete(link.name)
            present = None
        self._check_link(link)
        if present is None:
            self._add(LinkInfo(0, link.name, link.type, link.mac, link.mtu, up=False, vxlan=link.vxlan))
        self._adjust(link)

    def _check_link(self, link: Link) -> None:
        self._check_altname(link.tag, link.name)
        if link.vxlan is None:
            return
        underlay = self._device(link.vxlan.underlay)
        _refuse_if(link.mtu > vxlan_mtu(underlay.mtu, link.vxlan.local.version), errno.EINVAL)
        others = [other.vxlan for other in self.links.values() if other.vxlan and other.name != link.name]
        taken = [(other.vni, other.port) for other in others]
        _refuse_if((link.vxlan.vni, link.vxlan.port) in taken, errno.EEXIST)

    def _check_altname(self, tag: str, name: str) -> None:
        _refuse_if(
            any(tag in other.altnames for other in self.links.values() if other.name != name), errno.EEXIST
        )

    def _adjust(self, link: Link) -> None:
        present = self.links[link.name]
        altnames = present.altnames
        if link.tag and link.tag not in altnames:
            altnames = (*altnames, link.tag)
        if not link.tag:
            altnames = tuple(name for name in altnames if name != present.tag)
        self.links[link.name] = present._replace(mtu=link.mtu, mac=link.mac or present.mac, altnames=altnames)
        self._set_up(link.name, link.up)

    def _set_up(self, name: str, up: bool) -> None:
        was = self.links[name].up
        self.links[name] = self.links[name]._replace(up=up, running=up)
        if up and not was:
            for address in [a for a in self.addresses.values() if a.dev == name]:
                self._connect(address)
        elif was and not up:
            self._forget(self.neighs, lambda neigh: neigh.dev == name)
            self._forget(self.addresses, lambda a: a.dev == name and a.interface.version == 6)
            self._forget(
                self.routes, lambda r: r.dev == name and (r.table != LOCAL_TABLE or r.dst.version == 6)
            )

    def _delete(self, name: str) -> None:
        if self.links.pop(name, None) is None:
            return
        self._forget(self.addresses, lambda a: a.dev == name)
        self._forget(self.neighs, lambda neigh: neigh.dev == name)
        self._forget(self.fdb, lambda entry: name in (entry.dev, entry.master))
        self._forget(self.routes, lambda route: route.dev == name)
        self.sysctls = {key: value for key, value in self.sysctls.items() if f"/conf/{name}/" not in key}
        for other in list(self.links.values()):
            if other.master == name:
                self._release(other.name)
            if other.vxlan and other.vxlan.underlay == name:
                self._delete(other.name)
        if name in self._ends:
            namespace, device = self._ends.pop(name)
            self.containers[namespace]._delete(device)

    @staticmethod
    def _forget(table: dict[Key, _T], gone: Callable[[_T], bool]) -> None:
        for key in [key for key, entry in table.items() if gone(entry)]:
            del table[key]

    def _device(self, name: str) -> LinkInfo:
        _refuse_if(name not in self.links, errno.ENODEV)
        return self.links[name]

    # --- bridge ports -------------------------------------------------------------------------

    def _put_port(self, port: BridgePort) -> None:
        present, master = self._device(port.dev), self._device(port.master)
        _refuse_if(master.type != "bridge", errno.EOPNOTSUPP)
        if present.master not in (None, port.master):
            self._release(port.dev)
        mtu = port.mtu or present.mtu
        self.links[port.dev] = present._replace(master=port.master, hairpin=port.hairpin, mtu=mtu)
        self._set_up(port.dev, port.up)

    def _release(self, name: str) -> None:
        if name in self.links:
            self.links[name] = self.links[name]._replace(master=None, hairpin=None)
            self._forget(self.fdb, lambda entry: entry.dev == name and entry.master is not None)

    # --- tables -------------------------------------------------------------------------------

    def _put_fdb(self, entry: Fdb) -> None:
        device = self._device(entry.dev)
        if entry.master is not None:
            _refuse_if(device.master is None and device.type != "bridge", errno.EOPNOTSUPP)
        elif device.vxlan is None:
            entry = entry._replace(dst=None)  # an address the device shall listen to, and no more
        elif entry.dst is not None:
            _refuse_if(device.vxlan.local.version != entry.dst.version, errno.EAFNOSUPPORT)
        self.fdb[entry.key] = entry

    def _put_address(self, address: Address) -> None:
        self._device(address.dev)
        if address.key not in self.addresses:
            self.addresses[address.key] = address
            self._connect(address)

    def _drop_address(self, address: Address) -> None:
        if self.addresses.pop(address.key, None):
            made = set(_implied_routes(address))
            self._forget(self.routes, lambda route: route in made)
            self._stop_ipv4_if_last(address)

    def _stop_ipv4_if_last(self, gone: Address) -> None:
        """Without any IPv4 address a device has no IPv4: its neighbours and routes go (inetdev_destroy)."""
        dev, version = gone.dev, gone.interface.version
        if version == 4 and not any(a.dev == dev and a.interface.version == 4 for a in self.addresses.values()):
            self._forget(self.neighs, lambda neigh: neigh.dev == dev and neigh.ip.version == 4)
            self._forget(self.routes, lambda route: route.dev == dev and route.dst.version == 4)

    def _connect(self, address: Address) -> None:
        """An IPv4 address is this host's even while its link is down."""
        up = self.links[address.dev].up
        for route in _implied_routes(address):
            if up or (route.type == "local" and route.dst.version == 4):
                self.routes.setdefault(route.key, route)

    def _put_route(self, route: Route) -> None:
        if route.type == "unicast":
            route = route._replace(dev=self._output(route))
        own = {address.interface.ip for address in self.addresses.values()}
        _refuse_if(route.prefsrc is not None and route.prefsrc not in own, errno.EINVAL)
        self.routes[route.key] = route

    def _output(self, route: Route) -> str:
        """The device of a route, given or found by its gateway."""
        if route.dev is not None:
            _refuse_if(not self._device(route.dev).up, errno.ENETDOWN)
        if route.dev is None or (route.via is not None and not route.onlink):
            _refuse_if(route.via is None, errno.ENODEV)
            assert route.via
            return self._towards(route.via, route.dev)
        return route.dev

    def _towards(self, gateway: IPAddress, dev: str | None) -> str:
        for route in self.routes.values():
            direct = route.via is None and route.table == MAIN_TABLE and dev in (None, route.dev)
            if direct and route.dev and gateway in route.dst:
                return route.dev
        raise _Refused(errno.ENETUNREACH if gateway.version == 4 else errno.EHOSTUNREACH)

    # --- the rest -----------------------------------------------------------------------------

    def _sysctl(self, name: str) -> str | None:
        parts = name.split("/")
        if parts[:1] == ["net"] and parts[2:3] == ["conf"] and len(parts) == 5:
            exists = parts[3] in self.links or parts[3] in ("all", "default")
            usual = self.sysctls[FORWARDING] if _is_devices_forwarding(name) else "0"
            return self.sysctls.get(name, usual) if exists else None
        return self.sysctls.get(name)

    def _fail_if_told(self, kind: str, what: str) -> None:
        failures = self._failures  # another thread may `recover`
        for told in failures:
            if told[0] == kind:
                failures.remove(told)
                raise KernelError(what, told[1])

    def _wire(self, inside: FakeKernel, wiring: Wiring) -> None:
        self._add(LinkInfo(0, wiring.host_device, "veth", None, wiring.mtu, up=False, altnames=(wiring.tag,)))
        inside._add(LinkInfo(0, wiring.container_device, "veth", wiring.mac, wiring.mtu, up=False))
        self._name_each_other(inside, wiring)
        self._ends[wiring.host_device] = (_namespace(wiring.netns_fd), wiring.container_device)
        try:
            inside._set_up(wiring.container_device, up=True)
            for address in wiring.addresses:
                inside._put_address(Address(wiring.container_device, address))
            for gateway in wiring.gateways:
                inside._put_route(Route(DEFAULT[gateway.version], wiring.container_device, gateway))
        except _Refused:
            self._delete(wiring.host_device)
            raise

    def _name_each_other(self, inside: FakeKernel, wiring: Wiring) -> None:
        """The ends of a veth pair, by the other's ifindex and an id of its namespace."""
        outer, inner = self.links[wiring.host_device], inside.links[wiring.container_device]
        self.links[outer.name] = outer._replace(peer_netns=0, peer=inner.ifindex)
        inside.links[inner.name] = inner._replace(peer_netns=0, peer=outer.ifindex)


class _Refused(Exception):
    """The errno of a refusal, on its way to becoming a KernelError that names the change."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


def _refuse_if(condition: bool, number: int) -> None:
    if condition:
        raise _Refused(number)


def _same_route(asked: Route, present: Route | None) -> bool:
    """Whether a deletion that says `asked` means the route that has its key."""
    if present is None or (asked.type, asked.protocol) != (present.type, present.protocol):
        return False
    return asked.dev in (None, present.dev) and asked.via in (None, present.via)


def _implied_routes(address: Address) -> list[Route]:
    """What the kernel adds for an address: it is local, and its network is on the link."""
    interface = address.interface
    v4 = interface.version == 4
    whole = Route(
        ip_network(interface.ip), address.dev, table=LOCAL_TABLE, protocol=RTPROT_KERNEL,
        scope="host" if v4 else "global", type="local", prefsrc=interface.ip if v4 else None,
    )  # fmt: skip
    if interface.network.prefixlen == interface.max_prefixlen:
        return [whole]
    if interface.ip.is_loopback:
        return [whole, whole._replace(dst=interface.network)]
    connected = Route(
        interface.network, address.dev, metric=0 if v4 else 256, protocol=RTPROT_KERNEL,
        scope="link" if v4 else "global", prefsrc=interface.ip if v4 else None,
    )  # fmt: skip
    return [whole, connected]


def _is_devices_forwarding(name: str) -> bool:
    return name.startswith("net/ipv4/conf/") and name.endswith("/forwarding")


def _namespace(netns_fd: int) -> Namespace:
    """A number that is no open descriptor stands for itself."""
    try:
        there = os.fstat(netns_fd)
    except OSError:
        return (netns_fd,)
    return (there.st_dev, there.st_ino)
