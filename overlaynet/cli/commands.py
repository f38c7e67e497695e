"""`--explain-commands`: what a verb does or looks at, as the command lines that one could type for the same.

They go to standard error, in blocks: a comment says where they are to be typed and by which command one gets
there, plain lines follow. What no command does is a comment as well.

    # in node-1 (overlaynet shell node-1):
    ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink metric 717827 proto 111

The lines are made of what the verb itself has written or read: objects of the plan, the labs' own lines of
`ip`, entries of a fault, keys of etcd. A test runs them in namespaces of its own and compares what comes of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from overlaynet.addr import gateway_address
from overlaynet.cli.app import App
from overlaynet.lab.converge import UNDERLAY_PLACE, cables, places
from overlaynet.lab.faultrecords import Words, entry_words, rule_words
from overlaynet.ports import Commit, Compare, Delete, Grant, Listing, Notice, Put, Store, Watch
from overlaynet.state import Address, BridgePort, Link, Object, Op

if TYPE_CHECKING:
    from overlaynet.cluster.cluster import Host
    from overlaynet.config import EtcdConfig
    from overlaynet.firewall.chains import Rendered
    from overlaynet.lab.lab import Lab
    from overlaynet.model import Workload
    from overlaynet.probe.survey import Survey
    from overlaynet.proof.points import Spot
    from overlaynet.trace.model import Hop, Trace

_TABLES = ("ip", "bridge", "sysctl", "iptables", "iptables-save", "ipset", "conntrack", "nft")
TYPED = frozenset({*_TABLES, "etcdctl", "tcpdump", "ping", "bash"})
"""Programs. What begins with the name of none is words for a reader."""


class Block(NamedTuple):
    """Command lines for one place; of this machine itself where that is None. `as_given`: each is one, whatever
    it begins with."""

    place: str | None
    lines: tuple[str, ...]
    as_given: bool = False


def tell(app: App, blocks: Iterable[Block]) -> None:
    """Print them."""
    for block in joined(blocks):
        lines = block.lines if block.as_given else map(typed, block.lines)
        for line in [heading(app, block.place), *lines]:
            click.echo(line, err=True)


def joined(blocks: Iterable[Block]) -> list[Block]:
    """Neighbours of one place are one block; there is none without a line."""
    found: list[Block] = []
    for block in blocks:
        if found and found[-1].place == block.place:
            found[-1] = Block(block.place, (*found[-1].lines, *block.lines))
        elif block.lines:
            found.append(block)
    return found


def heading(app: App, place: str | None) -> str:
    """The comment that says where the lines below are to be typed."""
    if place is not None:
        return f"# in {place} ({app.command(f'shell {place}')}):"
    if in_sandbox():
        return f"# among the lab's namespaces ({app.command(f'shell {UNDERLAY_PLACE}')}):"
    return "# on this machine, as root:"


def in_sandbox() -> bool:
    """Whether this process has joined a user's lab: then its namespaces have names in there alone."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(0xFFFF_FFFF)]


def typed(line: str) -> str:
    """A line as it is; one that no program is behind, as a comment."""
    return line if line.partition(" ")[0] in TYPED else f"# {line}"


# --- kernel objects and rules ---------------------------------------------------------------------


def making(obj: Object) -> list[str]:
    """What makes an object of an agent's plan where nothing of it is."""
    match obj:
        case Link(name=name, vxlan=vxlan, mac=mac):
            address = f" address {mac}" if mac else ""
            if vxlan is None:
                lines = [
                    f"ip link add {name}{address} type {obj.type}",
                    f"ip link set dev {name} mtu {obj.mtu}",
                ]
            else:
                about = f"id {vxlan.vni} dev {vxlan.underlay} local {vxlan.local} dstport {vxlan.port}"
                learning = "learning" if vxlan.learning else "nolearning"
                lines = [f"ip link add {name}{address} mtu {obj.mtu} type vxlan {about} {learning}"]
            marked = [f"ip link property add dev {name} altname {obj.tag}"] if obj.tag else []
            return [*lines, *marked, f"ip link set dev {name} {'up' if obj.up else 'down'}"]
        case Address():
            return [f"ip addr add {obj.interface} dev {obj.dev}"]
        case BridgePort():
            mtu = f" mtu {obj.mtu}" if obj.mtu else ""
            return [
                f"ip link set dev {obj.dev} master {obj.master}{mtu} {'up' if obj.up else 'down'}",
                f"bridge link set dev {obj.dev} hairpin {'on' if obj.hairpin else 'off'}",
            ]
        case _:
            return [entry_words(None, obj)]


def removing(obj: Object) -> list[str]:
    """What takes one away."""
    match obj:
        case Link():
            return [f"ip link del dev {obj.name}"]
        case Address():
            return [f"ip addr del {obj.interface} dev {obj.dev}"]
        case BridgePort():
            return [f"ip link set dev {obj.dev} nomaster"]
        case _:
            return [entry_words(obj, None)]


def writing(rendered: Rendered) -> Iterator[str]:
    """All rules of ours: sets, chains, their rules, and the jumps to them."""
    for name, timeout_s in rendered.sets.items():
        yield f"ipset create {name} hash:ip timeout {timeout_s}"
    for table, chain in rendered.chains:
        yield f"iptables -t {table} -N {chain}"
    for (table, chain), rules in rendered.chains.items():
        yield from (f"iptables -t {table} -A {chain} {text}" for text in rules)
    for (table, chain), rules in rendered.hooks.items():
        yield from (f"iptables -t {table} -I {chain} {n} {text}" for n, text in enumerate(rules, 1))


# --- a lab ----------------------------------------------------------------------------------------


def of_lab(lab: Lab) -> Iterator[Block]:
    """Its namespaces and the cables between them, from nothing."""
    from overlaynet.kernel.quiet import QUIET
    from overlaynet.lab.build import ROUTER, UNFILTERED_BRIDGE, bridge_lines, end_lines, port_lines

    names = {place: lab.driver.netns(place) or place for place in places(lab.topology)}
    yield Block(None, tuple(f"ip netns add {netns}" for netns in names.values()))
    for place in names:
        settings = {**QUIET, **UNFILTERED_BRIDGE, **ROUTER} if place == UNDERLAY_PLACE else QUIET
        quiet = [f"sysctl -qw {name}={value}" for name, value in settings.items()]
        yield Block(place, (*quiet, "ip link set dev lo up"))
    made = list(cables(lab.topology))
    ports = [line for cable in made for line in port_lines(cable, names[cable.place])]
    yield Block(UNDERLAY_PLACE, tuple(f"ip {line}" for line in (*bridge_lines(), *ports)))
    for cable in made:
        yield Block(cable.place, tuple(f"ip {line}" for line in end_lines(cable)))


def of_host(survey: Survey, workloads: Sequence[Workload], netns: Mapping[str, str]) -> Iterator[Block]:
    """What an agent writes on its host: pairs to its containers, its plan, its rules. `netns` of containers."""
    assert survey.plan is not None
    gateways = {
        obj.dev: obj.interface for obj in survey.plan.desired.objects.values() if isinstance(obj, Address)
    }
    for workload in workloads:
        if workload.name in netns and workload.device in survey.kernel.links:
            yield from _pair(survey, workload, netns[workload.name], gateways)
    for obj in survey.plan.desired.objects.values():
        yield Block(survey.host, tuple(making(obj)))
    yield Block(survey.host, tuple(writing(survey.plan.rendered)))


def _pair(survey: Survey, workload: Workload, netns: str, gateways: Mapping[str, Any]) -> Iterator[Block]:
    from overlaynet.core.workload import CONTAINER_DEVICE, veth_tag

    device, link = workload.device, survey.kernel.links[workload.device]
    yield Block(
        survey.host,
        (
            f"ip link add {device} mtu {link.mtu} type veth"
            f" peer name {CONTAINER_DEVICE} address {workload.mac} mtu {link.mtu} netns {netns}",
            f"ip link property add dev {device} altname {veth_tag(workload.id)}",
        ),
    )
    network = next((i.network for i in gateways.values() if workload.ips[0] in i.network), None)
    if network is None:  # the bridge is somebody else's, and so is what a container needs of it
        return
    yield Block(
        workload.name,
        (
            f"ip addr add {workload.ips[0]}/{network.prefixlen} dev {CONTAINER_DEVICE}",
            f"ip link set dev {CONTAINER_DEVICE} up",
            f"ip route add default via {gateway_address(network)} dev {CONTAINER_DEVICE}",
        ),
    )


def of_cluster(app: App, lab: Lab) -> Iterator[Block]:
    """A lab from nothing: namespaces and cables, if it is of these, and what its agents write."""
    from overlaynet.cli.surveys import survey_hosts

    if app.cluster.one_machine:
        yield from of_lab(lab)
    netns = {c.name: lab.driver.netns(c.name) or c.name for c in lab.containers}
    for survey in survey_hosts(app, app.cluster.hosts(), need_plan=True).surveys:
        yield from of_host(survey, app.cluster.workloads(survey.host) or (), netns)


# --- looking --------------------------------------------------------------------------------------


_SHOWING = {
    "neigh": ("ip neigh show",),
    "fdb": ("bridge fdb show",),
    "rule": ("iptables-save -c",),
}


def showing(kind: str, items: Iterable[Mapping[str, Any]], hosts: Iterable[Host]) -> Iterator[Block]:
    """What shows a kind's entries on each host: of routes, those of every table that one is in, and of main."""
    found = list(items)
    for host in hosts:
        lines = list(_SHOWING.get(kind, ()))
        if kind == "route":
            own = [item for item in found if item["host"] == host.name]
            tables = dict.fromkeys([("main", False), *((item["table"], ":" in item["dst"]) for item in own)])
            lines = [f"ip {'-6 ' * six}route show table {table}" for table, six in tables]
        yield Block(host.name, tuple(lines))


def looking(hosts: Iterable[Host]) -> Iterator[Block]:
    """What shows all that is compared."""
    for host in hosts:
        lines = ("ip -d link show", "ip addr show", "ip route show", "ip neigh show", "bridge fdb show")
        yield Block(host.name, (*lines, "iptables-save -c"))


def repairing(surveys: Iterable[Survey]) -> Iterator[Block]:
    """What makes hosts what they should be."""
    for survey in surveys:
        assert survey.plan is not None
        for change in survey.plan.changes:
            yield Block(survey.host, tuple((removing if change.op is Op.DROP else making)(change.obj)))
        for rules in survey.plan.rule_changes:
            yield Block(survey.host, tuple(rule_words(rules)))


def of_words(words: Iterable[Words]) -> Iterator[Block]:
    """What `break` and `heal` do."""
    return (Block(place, (command,)) for place, command in words)


# --- packets --------------------------------------------------------------------------------------


def capturing(found: Iterable[Spot], text: str) -> Iterator[Block]:
    """tcpdump at each point. It does not look into a tunnel, and knows no names of ours."""
    if text:
        yield Block(None, (f"the filter, as pcap-filter(7) has it where it is about one packet: {text}",))
    for spot in found:
        yield Block(spot.point.place, (f"tcpdump -n -i {spot.point.iface}",))


def deciding(hops: Sequence[Hop]) -> Iterator[Block]:
    """What shows the entries that decide about a packet, place by place."""
    for place in dict.fromkeys(hop.place for hop in hops):
        decided = (why.command for hop in hops if hop.place == place for why in hop.why)
        yield Block(place, tuple(dict.fromkeys(decided)))


def of_trace(found: Trace) -> Iterator[Block]:
    """The entries that decided, a capture at each point, and the packet."""
    hops = [*found.forward, *found.reply]
    yield from deciding(hops)
    for point in dict.fromkeys((hop.place, hop.iface) for hop in hops):
        yield Block(point[0], (f"tcpdump -n -i {point[1]}",))
    yield Block(found.question.source, (_sending(found),))


def _sending(found: Trace) -> str:
    asked = found.question
    match asked.protocol:
        case "icmp":
            size = f" -s {asked.size}" if asked.size else ""
            df = "" if asked.df is None else f" -M {'do' if asked.df else 'dont'}"
            return f"ping -n -c 1{size}{df} {asked.dst}"
        case protocol:
            to = f"/dev/{protocol}/{asked.dst}/{asked.dst_port}"
            return f"bash -c {shlex.quote(f'echo >{to}' if protocol == 'udp' else f': <>{to}')}"


def running(app: App, target: str, argv: Sequence[str]) -> Iterator[Block]:
    """A command in a place; of a lab of namespaces, from outside of it."""
    lab = getattr(app.cluster, "lab", None)
    netns = lab.driver.netns(target) if lab is not None and app.cluster.one_machine else None
    if netns is None:
        yield Block(target, (shlex.join(argv),), as_given=True)
    else:
        yield Block(None, (f"ip netns exec {netns} {shlex.join(argv)}",))


# --- etcd -----------------------------------------------------------------------------------------


def etcdctl(config: EtcdConfig) -> str:
    """etcdctl's own words for where etcd is and who asks."""
    words = ["etcdctl", f"--endpoints={','.join(config.endpoints)}"]
    files = (("cacert", config.ca), ("cert", config.cert), ("key", config.key))
    words += [f"--{name}={file}" for name, file in files if file is not None]
    return shlex.join([*words, *([f"--user={config.username}"] if config.username else [])])


class TellingStore:
    """A store that tells what is asked of it, as etcdctl would be asked."""

    def __init__(self, store: Store, tell: Callable[[Iterable[str]], None], words: str) -> None:
        self._store = store
        self._tell = tell
        self._words = words

    def read(self, prefixes: Sequence[str]) -> Listing:
        self._tell(self._get(prefix) for prefix in prefixes)
        return self._store.read(prefixes)

    def _get(self, prefix: str) -> str:
        return f"{self._words} get {'--prefix ' * prefix.endswith('/')}{prefix}"

    def commit(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> Commit:
        keys = ", ".join(compare.key for compare in compares)
        once = [f"all at once, and only if nobody writes {keys} meanwhile"] if compares else []
        self._tell([*map(self._write, writes), *once])
        return self._store.commit(compares, writes)

    def _write(self, write: Put | Delete) -> str:
        if isinstance(write, Delete):
            return f"{self._words} del {write.key}"
        return f"{self._words} put {write.key} {shlex.quote(write.value.decode(errors='replace'))}"

    def watch(self, prefixes: Sequence[str], revision: int, sink: Callable[[Notice], None]) -> Watch:
        return self._store.watch(prefixes, revision, sink)

    def grant(self, ttl_s: int) -> Grant:
        return self._store.grant(ttl_s)

    def keep_alive(self, lease_id: int) -> int:
        return self._store.keep_alive(lease_id)

    def time_to_live(self, lease_id: int) -> int:
        return self._store.time_to_live(lease_id)

    def revoke(self, lease_id: int) -> None:
        self._store.revoke(lease_id)

    def close(self) -> None:
        self._store.close()


def follow_store(app: App) -> None:
    """From now on, whoever takes this cluster's store is told of: what is asked of it, each line once."""
    cluster = app.cluster
    host, take = cluster.hosts()[0].name, cluster.store
    words = etcdctl(cluster.config(host).etcd)
    told: set[str] = set()

    def tell_new(lines: Iterable[str]) -> None:
        new = tuple(dict.fromkeys(line for line in lines if line not in told))
        told.update(new)
        tell(app, [Block(host, new)])

    vars(cluster)["store"] = lambda: TellingStore(take(), tell_new, words)
