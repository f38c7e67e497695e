"""A cluster of `worlds` for real: namespaces, written by the agent's own planner and adapters, without agents.

The cable between hosts is a bridge in a namespace `lan`, which also routes to `outside`, as a lab's underlay
does. Nothing else speaks there: IPv6 is off, so every IPv4 packet that is captured belongs to the one question
that was asked. `Taps` listens at every interface of every place at once.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from helpers import worlds
from helpers.eventually import eventually
from helpers.private_netns import PrivateNetns, private_netns
from helpers.service_net import run
from helpers.worlds import Shape

from overlaynet.addr import container_mac, gateway_address
from overlaynet.core.overlay import container_mtu
from overlaynet.firewall.chains import is_ours
from overlaynet.firewall.iptables import Flavour, Iptables
from overlaynet.kernel import sysctl
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.kernel.observe import observe
from overlaynet.model import Backend
from overlaynet.reconcile import sync_firewall
from overlaynet.state import Change, Op
from overlaynet.trace import model
from overlaynet.trace.routing import settings

ETH_P_ALL = 0x0003
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
OUTGOING = 4
OTHERHOST = 3
"""sll_pkttype of what an interface sends, and of what it receives for somebody else (packet(7))."""

QUIET = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


@dataclass
class PacketNet:
    """`namespaces` by the places' names, and `lan`."""

    shape: Shape
    namespaces: Mapping[str, PrivateNetns]
    flavour: Flavour
    world: model.World
    datagrams: list[socket.socket] = field(default_factory=list)

    def run(self, place: str, *commands: str) -> None:
        for command in commands:
            self.namespaces[place].run(command)

    def answer(self) -> None:
        """Answer every UDP question that has come in."""
        for listener in self.datagrams:
            with suppress(OSError):
                _, sender = listener.recvfrom(65_536)
                listener.sendto(b"A" * 8, sender)

    def observed(self) -> model.World:
        """What its places hold now, once each device has, or has not, the carrier that it was given or lost."""
        for netns in self.namespaces.values():
            eventually(lambda netns=netns: all(map(_is_settled, netns.run("ip -o link").splitlines())))
        places = {}
        for name, place in self.world.places.items():
            with self.namespaces[name].entered():
                with Rtnl.open() as rtnl:
                    state = observe(rtnl)
                names = settings(state.links)
                state = replace(state, sysctls={each: sysctl.read(each) for each in names})
                rules = Iptables(self.flavour).observe()
            places[name] = replace(place, kernel=state, rules=rules)
        return replace(self.world, places=places)


def _is_settled(line: str) -> bool:
    """Whether the kernel has come round to a change of a device's carrier (net/core/link_watch.c): until then
    it sends by it as before, and says NO-CARRIER as before."""
    flags = line.partition("<")[2].partition(">")[0].split(",")
    return "UP" not in flags or ("LOWER_UP" in flags) != ("NO-CARRIER" in flags)


@contextmanager
def packet_net(shape: Shape, flavour: Flavour = "nft") -> Iterator[PacketNet]:
    with ExitStack() as stack:
        # The kernel begins to stamp frames some time after the first socket asked for it, for all sockets.
        stack.enter_context(closing(_stamped()))
        world = worlds.world(shape)
        namespaces = {name: stack.enter_context(private_netns()) for name in (*world.places, "lan")}
        _lay_underlay(shape, namespaces)
        plans = worlds.planned(shape)
        datagrams: list[socket.socket] = []
        for host, names in shape.hosts.items():
            _wire_containers(shape, host, namespaces)
            with namespaces[host].entered():
                _write(plans[host], shape, flavour, stack)
            for name in names:
                datagrams += _open_ports(namespaces[name], shape, stack)
        yield PacketNet(shape, namespaces, flavour, world, datagrams)


def _lay_underlay(shape: Shape, namespaces: Mapping[str, PrivateNetns]) -> None:
    for name, netns in namespaces.items():
        with netns.entered():
            for setting, value in QUIET.items():
                sysctl.write(setting, value)
            if name == "lan":
                sysctl.write("net/ipv4/ip_forward", "1")
                sysctl.write(worlds.BRIDGE_NF, "0")
            elif name in shape.hosts:
                sysctl.write(worlds.BRIDGE_NF, "1")
    cables = ["link add br0 type bridge", f"address add {worlds.ROUTER}/24 dev br0", "link set br0 up"]
    for host in shape.hosts:
        mac, path = worlds.underlay_mac(host), namespaces[host].path
        cables.append(f"link add {host} type veth peer name eth0 address {mac} netns {path}")
        cables.append(f"link set {host} master br0 up")
    if shape.outside:
        path = namespaces["outside"].path
        mac = "02:00:cb:00:71:0a"
        cables.append(f"link add outside type veth peer name eth0 address {mac} netns {path}")
        cables += [f"address add {worlds.OUTSIDE_ROUTER}/24 dev outside", "link set outside up"]
    _batch(namespaces["lan"], cables)
    for host in shape.hosts:
        _batch(
            namespaces[host],
            [
                f"address add {worlds.underlay_ip(host)}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {worlds.ROUTER}",
            ],
        )
    if shape.outside:
        text = [
            f"address add {worlds.OUTSIDE} dev eth0",
            "link set eth0 up",
            f"route add default via {worlds.OUTSIDE_ROUTER}",
        ]
        _batch(namespaces["outside"], text)


def _wire_containers(shape: Shape, host: str, namespaces: Mapping[str, PrivateNetns]) -> None:
    mtu = container_mtu(Backend(shape.backend), worlds.local_host(shape, host))
    for name in shape.hosts[host]:
        ip = worlds.container_ip(shape, name)
        peer = f"peer name eth0 address {container_mac(ip)} mtu {mtu} netns {namespaces[name].path}"
        _batch(namespaces[host], [f"link add {worlds.veth(name)} mtu {mtu} type veth {peer}"])
        text = [f"address add {ip}/24 dev eth0", "link set eth0 up"]
        # The other end is down still; the kernel takes a route over it all the same.
        _batch(namespaces[name], [*text, f"route add default via {gateway_address(worlds.subnet(host))}"])


def _write(desired: worlds.plan.Desired, shape: Shape, flavour: Flavour, stack: ExitStack) -> None:
    """As the agent does it, in the namespace that the thread is in."""
    with closing(KernelAdapter.open()) as kernel:
        failures = kernel.apply([Change(Op.PUT, obj) for obj in worlds.ordered(desired)])
    assert not failures, failures
    firewall, sets = Iptables(flavour), AffinitySetsAdapter(is_ours)
    sets.check()
    stack.callback(sets.close)
    eventually(lambda: sync_firewall(firewall, desired.policies, sets=sets).settled)
    sysctl.write(worlds.BRIDGE_NF, str(int(shape.bridge_nf)))


def _open_ports(netns: PrivateNetns, shape: Shape, stack: ExitStack) -> list[socket.socket]:
    """TCP is answered by the kernel as soon as somebody listens; UDP by whoever holds the sockets, these."""
    datagrams = []
    for port in shape.ports:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with netns.entered():
                listener = stack.enter_context(closing(socket.socket(socket.AF_INET, kind)))
            listener.bind(("", port))
            listener.setblocking(False)
            if kind == socket.SOCK_STREAM:
                listener.listen(16)
            else:
                datagrams.append(listener)
    return datagrams


def _batch(netns: PrivateNetns, commands: list[str]) -> None:
    with netns.entered():
        run(["ip", "-batch", "-"], "\n".join(commands) + "\n")


# --- listening ------------------------------------------------------------------------------------


class Tap(NamedTuple):
    point: model.Point
    socket: socket.socket


class Seen(NamedTuple):
    """A frame as a point saw it. `foreign`: the interface received it for somebody else's MAC."""

    t_ns: int
    point: model.Point
    direction: str
    foreign: bool
    data: bytes


@contextmanager
def taps(net: PacketNet) -> Iterator[list[Tap]]:
    """Listening at every interface of every place, from here on."""
    with ExitStack() as stack:
        found = []
        for name in net.world.places:
            with net.namespaces[name].entered():
                for _, iface in socket.if_nameindex():
                    tap = stack.enter_context(closing(_tap(iface)))
                    found.append(Tap(model.Point(name, iface), tap))
        yield found


def _stamped() -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return tap


def _tap(iface: str) -> socket.socket:
    tap = _stamped()
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
    tap.setblocking(False)
    tap.bind((iface, ETH_P_ALL))
    return tap


def heard(listening: list[Tap]) -> list[Seen]:
    """What has passed so far, in the order of time."""
    found = [seen for tap in listening for seen in _drained(tap)]
    return sorted(found, key=lambda seen: seen.t_ns)


def _drained(tap: Tap) -> Iterator[Seen]:
    while True:
        try:
            data, ancillary, _, sender = tap.socket.recvmsg(65_600, 256)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENETDOWN:  # which is said once, of an interface that is down
                raise
            continue
        seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
        kind = sender[2]
        direction = "out" if kind == OUTGOING else "in"
        yield Seen(seconds * 10**9 + nanoseconds, tap.point, direction, kind == OTHERHOST, data)
