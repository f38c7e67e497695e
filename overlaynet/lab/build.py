"""Making and taking away a lab's parts as namespaces of this machine, and looking at what is there.

                       underlay                         192.168.50.0/24
          ┌───────────────────────────────┐
    etcd ─┤ br0 192.168.50.1    outside   ├─ outside    203.0.113.0/24
    .2    │  (bridge)           (routed)  │  .10
  node-1 ─┤                               │
    .11   └───────────────────────────────┘

The machine's own network namespace is not touched: every veth pair is made inside the underlay's namespace
with its other end placed straight into where it belongs (IFLA_NET_NS_FD within the peer's attributes), and
no device ever passes through here. The underlay routes between its two networks and has no route to the
overlay: what reaches `outside` under a container's own address gets no answer.

Quiet on purpose (`kernel.quiet`): what a host's settings are from there its agent decides. Bridged frames of
the underlay never go through iptables.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from ipaddress import IPv4Interface
from pathlib import Path

from overlaynet.client import UnixConnection
from overlaynet.errors import LabFailed
from overlaynet.kernel import netns, parse, process, quiet, wire
from overlaynet.kernel.handle import Rtnl
from overlaynet.lab.converge import BRIDGE, ETCD, UNDERLAY_PLACE, Cable, Key, Kind, Spec, cables
from overlaynet.lab.launch import ETCD_SOCKET_FILE, Launch
from overlaynet.lab.netns_driver import clean_environ, entering, namespace
from overlaynet.lab.paths import LabPaths
from overlaynet.lab.sandbox import STOP_GRACE_S
from overlaynet.lab.state import LabState, Running
from overlaynet.lab.topology import UNDERLAY, UNDERLAY_ROUTER, Topology, address_mac
from overlaynet.state import LinkInfo, Route
from overlaynet.store.disk import write_atomically

UNFILTERED_BRIDGE = {
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
    "net/bridge/bridge-nf-call-arptables": "0",
}
ROUTER = {"net/ipv4/ip_forward": "1"}
UNFINISHED = "unfinished"
"""The spec, on disk, of a part that is just being made or taken away: it equals nothing that is wanted."""

_ETCD_START_S = 20.0
_HELPER_START_S = 20.0
_POLL_S = 0.01


class Builder:
    """The parts of one lab. Every method raises LabFailed, ToolMissing, NotPermitted or KernelError."""

    def __init__(self, lab: str, paths: LabPaths) -> None:
        self.lab = lab
        self.paths = paths

    def name(self, place: str) -> str:
        return namespace(self.lab, place)

    # --- looking ------------------------------------------------------------------------------

    def observe(self, state: LabState, topology: Topology) -> dict[Key, Spec]:
        """What is there of the lab as it was recorded and as it is wanted."""
        known = set(netns.names())
        parts: dict[Key, Spec] = {
            Key(Kind.NETNS, place): spec
            for place, spec in state.namespaces.items()
            if self.name(place) in known
        }
        if Key(Kind.NETNS, UNDERLAY_PLACE) in parts:
            parts |= self._observe_underlay(
                parts, {c.place: c for c in (*cables(state.topology), *cables(topology))}
            )
        if not state.ended:
            parts |= {Key(Kind.PROCESS, name): self._spec(name, r) for name, r in _alive(state.processes)}
        return parts

    def _observe_underlay(self, parts: Mapping[Key, Spec], known: Mapping[str, Cable]) -> dict[Key, Spec]:
        underlay = View(self.name(UNDERLAY_PLACE))
        found: dict[Key, Spec] = {}
        if not underlay.is_router():
            found[Key(Kind.NETNS, UNDERLAY_PLACE)] = UNFINISHED
        for place, cable in known.items():
            if cable.port in underlay.links:
                there = Key(Kind.NETNS, place) in parts
                found[Key(Kind.CABLE, place)] = self._cable(cable, underlay) if there else UNFINISHED
        return found

    def _cable(self, wanted: Cable, underlay: View) -> Spec:
        """The cable itself if all of it is right and up; else something that equals none."""
        inner = View(self.name(wanted.place))
        port, eth0 = underlay.links[wanted.port], inner.links.get("eth0")
        right = (
            eth0 is not None
            and (eth0.up, eth0.mac, port.up, port.mac) == (True, wanted.mac, True, wanted.port_mac)
            and inner.has("eth0", wanted.address)
            and inner.has_default(wanted)
            and self._plugged(wanted, underlay)
        )
        return wanted if right else UNFINISHED

    def _plugged(self, wanted: Cable, underlay: View) -> bool:
        if wanted.port_address is None:
            return underlay.links[wanted.port].master == BRIDGE
        return underlay.has(wanted.port, wanted.port_address)

    def _spec(self, name: str, running: Running) -> str:
        """What the process was started from, if it lives where it should."""
        place = name.rpartition("/")[2]
        own = process.namespace_id(netns.path(self.name(place)))
        there = process.namespace_id(process.own_namespace(running.process.pid))
        return running.spec if own is not None and own == there else UNFINISHED

    # --- namespaces ---------------------------------------------------------------------------

    def refuse_strangers(self, places: Iterable[str]) -> None:
        """Raise LabFailed if one of these names is taken by a namespace that this lab did not make."""
        for name in map(self.name, places):
            if netns.exists(name):
                raise LabFailed(
                    f"there is a network namespace {name} that this lab did not make",
                    evidence=str(netns.path(name)),
                    next=["overlaynet get labs", f"ip netns delete {name}"],
                )

    def make_namespaces(self, places: Iterable[str]) -> None:
        for place in places:
            if place == UNDERLAY_PLACE:
                quiet.create(self.name(place), {**UNFILTERED_BRIDGE, **ROUTER})
                _ip(self.name(UNDERLAY_PLACE), bridge_lines())
            else:
                quiet.create(self.name(place))

    def remove_namespaces(self, places: Iterable[str]) -> None:
        """End whatever still lives in them, then take their names away."""
        names = [self.name(place) for place in places]
        process.stop(process.inside(netns.path(name) for name in names), STOP_GRACE_S)
        for name in names:
            netns.delete(name)

    # --- cables -------------------------------------------------------------------------------

    def make_cables(self, wanted: Sequence[Cable]) -> None:
        """All ports in one call, then each far end."""
        if wanted:
            ports = [line for cable in wanted for line in port_lines(cable, self.name(cable.place))]
            _ip(self.name(UNDERLAY_PLACE), ports)
        for cable in wanted:
            _ip(self.name(cable.place), end_lines(cable))

    def remove_cables(self, unwanted: Iterable[Cable]) -> None:
        """By either end, for the other may be in a namespace that lost its name."""
        ends = [
            (end, self.name(place))
            for c in unwanted
            for end, place in ((c.port, UNDERLAY_PLACE), ("eth0", c.place))
        ]
        for name in dict.fromkeys(name for _, name in ends):
            if netns.exists(name):
                _delete(name, {end for end, place in ends if place == name})

    # --- processes ----------------------------------------------------------------------------

    def start(self, launch: Launch) -> Running:
        """Write its files and start it, detached, in its namespace."""
        for file, text in launch.files.items():
            write_atomically(file, text, 0o640)
        if launch.place == ETCD and launch.argv[0] == ETCD:
            self._make_room_for_etcd()
        argv = entering(
            self.name(launch.place), [process.tool(launch.argv[0]), *launch.argv[1:]], str(launch.directory)
        )
        started = process.spawn(argv, launch.log, {**clean_environ(), **launch.environ})
        return Running(started, launch.spec)

    def _make_room_for_etcd(self) -> None:
        """The socket of an etcd that was killed is still there, and would be in the way of the next."""
        self.paths.etcd_data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.paths.run / ETCD_SOCKET_FILE).unlink(missing_ok=True)
        self.paths.etcd_socket.unlink(missing_ok=True)
        self.paths.etcd_socket.symlink_to(ETCD_SOCKET_FILE)

    def await_etcd(self, etcd: Running) -> None:
        """Return when etcd answers. Raises LabFailed with the end of its log if it ends or takes too long."""
        deadline = time.monotonic() + _ETCD_START_S
        while not _etcd_is_healthy(self.paths):
            if not etcd.process.alive or time.monotonic() > deadline:
                raise LabFailed(
                    "etcd did not start",
                    evidence=_why_ended(self.paths.log(ETCD)),
                    next=["overlaynet doctor", f"df -h {self.paths.etcd_data.parents[2]}", "overlaynet up"],
                )
            time.sleep(_POLL_S)

    def await_file(self, file: Path, process_: Running, name: str) -> None:
        """Return when a process has made this file. Raises LabFailed if it ends or takes too long."""
        deadline = time.monotonic() + _HELPER_START_S
        while not file.exists():
            if not process_.process.alive or time.monotonic() > deadline:
                log = self.paths.log(f"{name.rpartition('/')[2]}-helper")
                raise LabFailed(
                    f"{name} did not start", evidence=process.last_lines(log), next=["overlaynet up"]
                )
            time.sleep(_POLL_S)


def _why_ended(log: Path) -> str:
    """etcd's own last word: behind a panic comes a stack, which tells a reader nothing."""
    try:
        lines = log.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("panic:")), "") or process.last_lines(log)


class View:
    """Links, addresses and default routes of one namespace, at one moment."""

    def __init__(self, name: str) -> None:
        with Rtnl.inside(name) as rtnl:
            self.links: Mapping[str, LinkInfo] = parse.links(rtnl.dump(wire.dump_links()))
            names = {link.ifindex: link.name for link in self.links.values()}
            self._addresses = {
                (a.dev, a.interface) for a in parse.addresses(rtnl.dump(wire.dump_addresses()), names)
            }
            self._routes: list[Route] = list(parse.routes(rtnl.dump(wire.dump_routes()), names))

    def has(self, device: str, address: IPv4Interface) -> bool:
        return (device, address) in self._addresses

    def has_default(self, cable: Cable) -> bool:
        return any(r.dst.prefixlen == 0 and r.via == cable.gateway and r.dev == "eth0" for r in self._routes)

    def is_router(self) -> bool:
        """Whether this is an underlay with its bridge up."""
        bridge = self.links.get(BRIDGE)
        address = IPv4Interface((UNDERLAY_ROUTER, UNDERLAY.prefixlen))
        return bridge is not None and bridge.up and self.has(BRIDGE, address)


# --- lines of `ip` --------------------------------------------------------------------------------


def bridge_lines() -> list[str]:
    """The underlay's bridge, in its namespace."""
    return [
        f"link add name {BRIDGE} address {address_mac(UNDERLAY_ROUTER)} type bridge"
        " stp_state 0 forward_delay 0 mcast_snooping 0",
        f"addr add {UNDERLAY_ROUTER}/{UNDERLAY.prefixlen} brd + dev {BRIDGE}",
        f"link set dev {BRIDGE} up",
    ]


def port_lines(cable: Cable, netns: str) -> list[str]:
    """A cable's port in the underlay, with its far end in the namespace `netns`."""
    lines = [
        f"link add name {cable.port} address {cable.port_mac} type veth"
        f" peer name eth0 address {cable.mac} netns {netns}"
    ]
    if cable.port_address is None:
        lines.append(f"link set dev {cable.port} master {BRIDGE}")
    else:
        lines.append(f"addr add {cable.port_address} brd + dev {cable.port}")
    return [*lines, f"link set dev {cable.port} up"]


def end_lines(cable: Cable) -> list[str]:
    """A cable's far end, in its place."""
    return [
        f"addr add {cable.address} brd + dev eth0",
        "link set dev eth0 up",
        f"route add default via {cable.gateway} dev eth0",
    ]


# --- steps ----------------------------------------------------------------------------------------


def _alive(processes: Mapping[str, Running]) -> list[tuple[str, Running]]:
    return [(name, running) for name, running in processes.items() if running.process.alive]


def _ip(name: str, lines: Sequence[str]) -> None:
    """Run `ip` commands in a namespace, all in one process; raise LabFailed with the one that failed.

    Not by `ip -n`, which makes / a slave mount first and so fails in a chroot that is no mount point."""
    argv = [process.tool("ip"), "-batch", "-"]
    with netns.entered(name):
        done = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabFailed(
            f"wiring in {name} failed",
            evidence=f"{done.stderr.strip()}\n"
            + "\n".join(f"{n}: ip {line}" for n, line in enumerate(lines, 1)),
        )


def _delete(name: str, devices: Set[str]) -> None:
    """Those of these devices that are there. The kernel deletes some as well: a while after a namespace is gone
    it takes the other ends of its cables away."""
    there = devices & View(name).links.keys()
    while there:
        try:
            return _ip(name, [f"link delete dev {device}" for device in sorted(there)])
        except LabFailed:
            before, there = there, devices & View(name).links.keys()
            if there == before:
                raise


def _etcd_is_healthy(paths: LabPaths) -> bool:
    """Whether it answers and has a leader: `/health` is a read that needs one."""
    connection = UnixConnection(paths.run / ETCD_SOCKET_FILE, 1.0)
    try:
        connection.request("GET", "/health")
        return b"true" in connection.getresponse().read()
    except (OSError, ValueError):
        return False
    finally:
        connection.close()
