"""The entries that decide where a packet goes, quoted: as `ip`, `bridge`, `sysctl` and iptables print them,
with the command that shows them on the host where they are, and with who asked for them.

Each function makes a `Why`. Its `key` is unique among entries of its kind in one place::

    route    10.244.2.0/24 metric 717827 table main        neigh    10.244.2.0 dev flannel.1
    fdb      02:0a:f4:02:00:00 dev flannel.1               sysctl   net.ipv4.ip_forward
    rule     nat OVL-SVC-QSE5E5TQ23ZQ 3                    iprule   100
    link     flannel.1                                     conntrack  10.244.1.2:… → 10.112.0.10:80
"""

from __future__ import annotations

from overlaynet.state import (
    MAIN_TABLE,
    Fdb,
    IpRule,
    Key,
    LinkInfo,
    Neigh,
    Object,
    Route,
    Source,
)
from overlaynet.trace.model import Place, Why, World
from overlaynet.trace.routing import DEFAULT_TABLE, LOCAL_TABLE, LOOPBACK, Query

PROTOCOLS = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 16: "dhcp"}
"""iproute2's names for the makers of routes (rt_protos)."""
TABLE_NAMES = {LOCAL_TABLE: "local", MAIN_TABLE: "main", DEFAULT_TABLE: "default"}


def host_of(place: Place) -> str:
    """The host that a place is on, or itself."""
    return place.host or place.name


def source_of(world: World, place: Place, key: Key) -> Source | None:
    """Who wants the object of this key here. What a container holds is wanted by nobody in etcd."""
    wanted = world.wanted.get(place.name)
    return wanted.sources.get(key) if wanted else None


# --- routes ---------------------------------------------------------------------------------------


def route(world: World, place: Place, found: Route, query: Query) -> Why:
    return Why("route", route_key(found), route_text(found), source_of(world, place, found.key), asking(query))


def route_key(route: Route) -> str:
    return f"{_prefix(route)} metric {route.metric} table {table_name(route.table)}"


def route_text(route: Route) -> str:
    """As `ip route show` prints it."""
    kind = "" if route.type == "unicast" else f"{route.type} "
    words = [kind + _prefix(route)]
    words += [f"via {route.via}"] if route.via else []
    words += [f"dev {route.dev}"] if route.dev else []
    words += [f"table {table_name(route.table)}"] if route.table != MAIN_TABLE else []
    words += [f"proto {PROTOCOLS.get(route.protocol, route.protocol)}"] if route.protocol != 3 else []
    words += [f"scope {route.scope}"] if route.scope != "global" else []
    words += [f"src {route.prefsrc}"] if route.prefsrc else []
    words += [f"metric {route.metric}"] if route.metric else []
    words += ["onlink"] if route.onlink else []
    return " ".join(words)


def _prefix(route: Route) -> str:
    if route.dst.prefixlen == 0:
        return "default"
    return str(route.dst.network_address) if route.dst.prefixlen == 32 else str(route.dst)


def table_name(table: int) -> str:
    return TABLE_NAMES.get(table, str(table))


def asking(query: Query) -> str:
    """The command that asks the kernel the same."""
    words = ["ip route get", str(query.dst)]
    words += [f"from {query.src}"] if query.src else []
    words += [f"iif {query.iif}"] if query.iif != LOOPBACK else []
    words += [f"oif {query.oif}"] if query.oif else []
    words += [f"mark {query.mark:#x}"] if query.mark else []
    return " ".join(words)


def iprule(found: IpRule) -> Why:
    return Why("iprule", str(found.priority), f"{found.priority}: {found.text}", None, "ip rule show")


# --- neighbours and forwarding entries ------------------------------------------------------------


def neigh(world: World, place: Place, found: Neigh) -> Why:
    key = f"{found.ip} dev {found.dev}"
    command = f"ip neigh show {found.ip} dev {found.dev}"
    return Why("neigh", key, neigh_text(found), source_of(world, place, found.key), command)


def neigh_text(found: Neigh) -> str:
    mac = f" lladdr {found.mac}" if found.mac else ""
    return f"{found.ip} dev {found.dev}{mac} {found.state.upper()}"


def fdb(world: World, place: Place, found: Fdb) -> Why:
    key = f"{found.mac} dev {found.dev}"
    shown = f"br {found.master}" if found.master else f"dev {found.dev}"
    return Why("fdb", key, fdb_text(found), source_of(world, place, found.key), f"bridge fdb show {shown}")


def fdb_text(found: Fdb) -> str:
    if found.dst is not None:
        return f"{found.mac} dev {found.dev} dst {found.dst} self {found.state}"
    state = "" if found.state == "dynamic" else f" {found.state}"
    master = f" master {found.master}" if found.master else " self"
    return f"{found.mac} dev {found.dev}{master}{state}"


# --- the rest -------------------------------------------------------------------------------------


def sysctl(world: World, place: Place, name: str, value: str | int) -> Why:
    """`name` with ``/`` between its parts."""
    dotted = sysctl_name(name)
    source = source_of(world, place, ("sysctl", name))
    return Why("sysctl", dotted, f"{dotted} = {value}", source, f"sysctl {dotted}")


def sysctl_name(name: str) -> str:
    """As sysctl(8) takes it: dots for slashes, and a slash for the dot in a device's name."""
    return name.translate(_SWAPPED)


_SWAPPED = str.maketrans("/.", "./")


def link(world: World, place: Place, found: LinkInfo) -> Why:
    state = "UP" if found.up else "DOWN"
    master = f" master {found.master}" if found.master else ""
    text = f"{found.name}: mtu {found.mtu}{master} state {state}"
    source = source_of(world, place, ("link", found.name))
    return Why("link", found.name, text, source, f"ip -d link show dev {found.name}")


def rule(world: World, place: Place, table: str, chain: str, position: int, text: str) -> Why:
    """`position` counts from 1, as iptables does. `table` of a rule of nftables' own: "nft inet firewalld"."""
    command = f"iptables -t {table} -L {chain} -nv --line-numbers"
    if table.startswith("nft "):
        command = f"nft -a list chain {table.removeprefix('nft ')} {chain}"
    source = rule_source(world, place, table, chain, text)
    return Why("rule", f"{table} {chain} {position}", f"-A {chain} {text}", source, command)


def rule_source(world: World, place: Place, table: str, chain: str, text: str) -> Source | None:
    wanted = world.wanted.get(place.name)
    if wanted is None:
        return None
    texts, origins = wanted.chains.get((table, chain), ()), wanted.origins.get((table, chain), ())
    return next((source for have, source in zip(texts, origins, strict=False) if have == text), None)


def objects_text(obj: Object) -> str:
    """A wanted object in the words of the tool that shows it."""
    match obj:
        case Route():
            return f"route {route_text(obj)}"
        case Neigh():
            return f"neigh {neigh_text(obj)}"
        case Fdb():
            return f"fdb {fdb_text(obj)}"
        case _:
            return ""
