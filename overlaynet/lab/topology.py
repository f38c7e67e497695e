"""What a lab is to be: hosts, containers and their addresses, as one frozen value.

It comes from a YAML file or, without one, from two numbers. Everything that can be wrong with it is said
before anything is touched, with file, line and path.

Every host has a *number*, and all its addresses follow from it, so that a capture can be read without a
table beside it. Host number N of a lab has:

    underlay address   192.168.50.(10+N)       192.168.50.11
    underlay MAC       02:00 + that address    02:00:c0:a8:32:0b
    subnet             the N-th of the overlay 10.244.1.0/24
    VTEP MAC           02 + subnet base + 00   02:0a:f4:01:00:00

The number is the one at the end of the host's name (`node-3` has 3), where that is free and small enough,
else the lowest that is free; a host that is in a running lab keeps the number it has. 02 in front marks a
locally administered address (IEEE 802-2014 section 8.4).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overlaynet import config
from overlaynet.addr import Mac
from overlaynet.core.keys import Keys
from overlaynet.core.probes import parse_probe, probe_document
from overlaynet.errors import ConfigError, NameInvalid, ObjectInvalid, OverlayError, ProbeInvalid, TopologyError
from overlaynet.lab.document import Document, check_schema, read_yaml
from overlaynet.model import NO_LABELS, ExecCheck, NetworkConfig, Port, Probe, Settings, check_name
from overlaynet.ports import Listing
from overlaynet.store import kubernetes
from overlaynet.store.codec import encode_network_config, encode_settings, parse_network_config, parse_settings
from overlaynet.store.place import Path as Place
from overlaynet.store.place import dotted
from overlaynet.store.services import Catalogue

API_VERSION = "overlaynet/v1"
DEFAULT_NAME = "default"
DEFAULT_CIDR = IPv4Network("10.244.0.0/16")
DEFAULT_SUBNET_LEN = 24
MAX_HOSTS = 200
"""Host numbers go up to this: the underlay is a /24 with its first ten addresses kept for the lab."""

UNDERLAY = IPv4Network("192.168.50.0/24")
UNDERLAY_ROUTER = UNDERLAY[1]
ETCD_ADDRESS = UNDERLAY[2]
OUTSIDE = IPv4Network("203.0.113.0/24")
"""Documentation addresses (RFC 5737): an outside that cannot be anybody's real one."""
OUTSIDE_ROUTER = OUTSIDE[1]
OUTSIDE_ADDRESS = OUTSIDE[10]
FIRST_HOST = 10

_LABS_OWN_KEYS = frozenset({("node", "name"), ("node", "zone"), ("node", "labels")})
_LABS_OWN_SECTIONS = frozenset({"etcd", "paths"})


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """The overlay. `backend` holds the topology's own words: type, vni, port, mtu, …"""

    cidr: IPv4Network = DEFAULT_CIDR
    subnet_len: int = DEFAULT_SUBNET_LEN
    backend: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"type": "vxlan"}))

    def subnet(self, number: int) -> IPv4Network:
        """The subnet of host `number`: 1 is the second of the overlay, since flannel never uses the first."""
        base = int(self.cidr.network_address) + (number << (32 - self.subnet_len))
        return IPv4Network((base, self.subnet_len))

    @property
    def last_number(self) -> int:
        """The largest host number that the overlay has a subnet for."""
        return min(MAX_HOSTS, (1 << (self.subnet_len - self.cidr.prefixlen)) - 1)

    @property
    def addresses(self) -> int:
        """How many containers a subnet holds: all but its base, the gateway's and the broadcast address."""
        return (1 << (32 - self.subnet_len)) - 3

    def __str__(self) -> str:
        return f"{self.cidr} with subnets /{self.subnet_len}, backend " + ", ".join(
            f"{key} {value}" for key, value in self.backend.items()
        )

    @classmethod
    def of(cls, config: NetworkConfig) -> LabNetwork:
        """A network's config in a topology's words, all of them, as far as a topology has words for it."""
        pool, members = config.pools[0], json.loads(encode_network_config(config))
        words = {
            ours: members["Backend"][theirs]
            for ours, theirs in _FLANNEL_WORDS.items()
            if theirs in members["Backend"]
        }
        return cls(IPv4Network(pool.network), pool.subnet_len, MappingProxyType(words))

    @property
    def config(self) -> NetworkConfig:
        """The same as flannel's config. Raises NetworkConfigInvalid."""
        members = {
            "Network": str(self.cidr),
            "SubnetLen": self.subnet_len,
            "Backend": {_FLANNEL_WORDS[key]: value for key, value in self.backend.items()},
        }
        return parse_network_config(json.dumps(members).encode())


_FLANNEL_WORDS = {
    "type": "Type",
    "vni": "VNI",
    "port": "Port",
    "mtu": "MTU",
    "direct_routing": "DirectRouting",
    "learning": "Learning",
}


@dataclass(frozen=True, slots=True)
class Host:
    """One host. `agent` holds agent.toml's keys, section by section, as the topology has them."""

    name: str
    number: int
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    agent: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def underlay_ip(self) -> IPv4Address:
        return UNDERLAY[FIRST_HOST + self.number]

    @property
    def underlay_mac(self) -> Mac:
        return address_mac(self.underlay_ip)


@dataclass(frozen=True, slots=True)
class Container:
    """One container."""

    name: str
    host: str
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    ports: tuple[Port, ...] = ()
    command: tuple[str, ...] = ()
    probe: Probe | None = None

    @property
    def needs_helper(self) -> bool:
        """Whether somebody must run its probe's command inside it."""
        return self.probe is not None and isinstance(self.probe.check, ExecCheck)


@dataclass(frozen=True, slots=True)
class Topology:
    """A lab as it should be. `services` are Kubernetes objects, kept as they were written."""

    name: str
    hosts: tuple[Host, ...]
    containers: tuple[Container, ...] = ()
    network: LabNetwork = field(default_factory=LabNetwork)
    settings: Settings = field(default_factory=Settings)
    services: tuple[Mapping[str, Any], ...] = ()
    outside: bool = True

    @classmethod
    def simple(cls, name: str = DEFAULT_NAME, hosts: int = 3, containers: int = 2) -> Topology:
        """`hosts` hosts `node-1`…, each with `containers` containers, numbered `web-1`… across hosts.

        Raises TopologyError or NameInvalid."""
        if not 1 <= hosts <= MAX_HOSTS:
            raise TopologyError(f"{hosts} hosts are not possible", evidence=f"1 to {MAX_HOSTS} are")
        return cls.of_hosts([f"node-{number}" for number in range(1, hosts + 1)], name, containers)

    @classmethod
    def of_hosts(cls, hosts: Sequence[str], name: str = DEFAULT_NAME, containers: int = 2) -> Topology:
        """The same with hosts of these names. Raises TopologyError or NameInvalid."""
        if containers < 0:
            raise TopologyError(f"{containers} containers are not possible")
        placed = [host for host in hosts for _ in range(containers)]
        document = {
            "hosts": [{"name": host} for host in hosts],
            "containers": [
                {"name": f"web-{k}", "host": host, "labels": {"app": "web"}}
                for k, host in enumerate(placed, start=1)
            ],
        }
        return from_document(Document(f"lab {name}", document), name=check_name(name, "lab"))

    @classmethod
    def load(cls, file: Path, name: str | None = None) -> Topology:
        """Read a topology file. `name` goes before the file's own. Raises TopologyError or NameInvalid."""
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TopologyError(
                f"topology {file} cannot be read", evidence=str(error), next=[f"ls -l {file}"]
            ) from None
        return parse(text, str(file), name=name)

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def containers_on(self, host: str) -> tuple[Container, ...]:
        return tuple(c for c in self.containers if c.host == host)

    def subnet(self, host: Host) -> IPv4Network:
        return self.network.subnet(host.number)

    def vtep_mac(self, host: Host) -> Mac:
        return Mac.from_bytes(b"\x02" + self.subnet(host).network_address.packed + b"\x00")

    def keeping(self, numbers: Mapping[str, int]) -> Topology:
        """The same, with hosts that are in `numbers` keeping theirs. Raises TopologyError for lack of room."""
        chosen = number_hosts([host.name for host in self.hosts], numbers)
        hosts = tuple(replace(host, number=chosen[host.name]) for host in self.hosts)
        _check_room(Document(f"lab {self.name}", {}), self.network, hosts)
        return replace(self, hosts=hosts)

    def as_document(self) -> dict[str, Any]:
        """The topology as a topology file has it; `from_document` is its inverse but for numbers."""
        return {
            "apiVersion": API_VERSION,
            "kind": "Lab",
            "name": self.name,
            "network": {
                "cidr": str(self.network.cidr),
                "subnet_len": self.network.subnet_len,
                "backend": dict(self.network.backend),
            },
            "lease": {
                "ttl_s": self.settings.lease_ttl_s,
                "node_ttl_s": self.settings.node_ttl_s,
                "stop_grace_s": self.settings.stop_grace_s,
            },
            "hosts": [_host_document(host) for host in self.hosts],
            "containers": [_container_document(container) for container in self.containers],
            "services": [dict(service) for service in self.services],
            "outside": self.outside,
        }


def address_mac(ip: IPv4Address, kind: int = 0) -> Mac:
    """The MAC of the lab device that holds `ip`; `kind` 1 is the other end of its cable."""
    return Mac.from_bytes(bytes([2, kind]) + ip.packed)


# --- reading --------------------------------------------------------------------------------------


def parse(text: str, file: str, name: str | None = None) -> Topology:
    """A topology from YAML text; `file` is what messages call it. Raises TopologyError or NameInvalid."""
    document = read_yaml(text, file)
    check_schema(document)
    if name is not None:
        check_name(name, "lab")
    return from_document(document, name=name)


def from_document(document: Document, name: str | None = None) -> Topology:
    """A topology from a document that fits the schema: what a schema cannot say is checked here."""
    value = document.value
    lab = name or _name(document, ("name",), value.get("name", DEFAULT_NAME), "lab")
    network = _network(document, value.get("network", {}))
    hosts = _hosts(document, value["hosts"])
    _check_room(document, network, hosts)
    containers = _containers(document, value.get("containers", []), {host.name for host in hosts})
    _check_addresses(document, network, containers)
    return Topology(
        name=lab,
        hosts=hosts,
        containers=containers,
        network=network,
        settings=_settings(document, value.get("lease", {})),
        services=_services(document, value.get("services", [])),
        outside=value.get("outside", True),
    )


def _name(document: Document, path: Place, name: str, what: str) -> str:
    try:
        return check_name(name, what)
    except NameInvalid as error:
        raise document.error(path, error.message, error.evidence) from None


def _network(document: Document, value: Mapping[str, Any]) -> LabNetwork:
    cidr = _cidr(document, value.get("cidr", str(DEFAULT_CIDR)))
    network = LabNetwork(
        cidr=cidr,
        subnet_len=value.get("subnet_len", DEFAULT_SUBNET_LEN),
        backend=MappingProxyType(dict(value.get("backend", {"type": "vxlan"}))),
    )
    for ours, what in ((UNDERLAY, "underlay"), (OUTSIDE, "outside")):
        if cidr.overlaps(ours):
            raise document.error(("network", "cidr"), f"overlaps the lab's {what}", f"the {what} is {ours}")
    try:
        _ = network.config
    except OverlayError as error:
        raise document.error(("network",), error.message, error.evidence) from None
    return network


def _cidr(document: Document, text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise document.error(
            ("network", "cidr"), "wants an IPv4 network such as 10.244.0.0/16", str(error)
        ) from None


def _settings(document: Document, value: Mapping[str, int]) -> Settings:
    usual = Settings()
    settings = Settings(
        lease_ttl_s=value.get("ttl_s", usual.lease_ttl_s),
        node_ttl_s=value.get("node_ttl_s", usual.node_ttl_s),
        stop_grace_s=value.get("stop_grace_s", usual.stop_grace_s),
    )
    try:
        return parse_settings(encode_settings(settings))
    except OverlayError as error:
        raise document.error(("lease",), error.message, error.evidence) from None


def _hosts(document: Document, items: Sequence[Mapping[str, Any]]) -> tuple[Host, ...]:
    seen: set[str] = set()
    for index, item in enumerate(items):
        _unique(document, ("hosts", index, "name"), item["name"], "host", seen)
    numbers = number_hosts([item["name"] for item in items], {})
    return tuple(
        Host(
            name=item["name"],
            number=numbers[item["name"]],
            zone=item.get("zone"),
            labels=MappingProxyType(dict(item.get("labels", {}))),
            agent=_agent(document, ("hosts", index, "agent"), item.get("agent", {})),
        )
        for index, item in enumerate(items)
    )


def _unique(document: Document, path: Place, name: str, what: str, seen: set[str]) -> None:
    _name(document, path, name, what)
    if name in seen:
        raise document.error(path, f"{name!r} is there twice", "names are unique over hosts and containers")
    seen.add(name)


def _agent(document: Document, path: Place, value: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    for section, table in value.items():
        for key in table:
            if section in _LABS_OWN_SECTIONS or (section, key) in _LABS_OWN_KEYS:
                raise document.error((*path, section, key), "is set by the lab itself")
    try:
        config.parse(value, "agent")
    except ConfigError as error:
        raise document.error(_agent_place(document, path, error), error.message, error.evidence) from None
    return MappingProxyType({section: MappingProxyType(dict(table)) for section, table in value.items()})


def _agent_place(document: Document, path: Place, error: ConfigError) -> Place:
    """Where below `agent` the refused key stands: the deepest place whose name the message has."""
    named = [
        place
        for place in document.lines
        if len(place) > len(path) and place[: len(path)] == path and str(place[-1]) in error.message
    ]
    return max(named, key=len, default=path)


def _services(document: Document, items: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The Kubernetes objects: each is correct and there once, and no two ask for the same VIP or nodePort."""
    places: dict[str, int] = {}
    for index, item in enumerate(items):
        title = kubernetes.title(item)
        if title in places:
            raise document.error(("services", index, "metadata", "name"), f"{title} is there twice")
        places[title] = index
        _check_object(document, places, [item])
    _check_object(document, places, items)
    return tuple(MappingProxyType(dict(item)) for item in items)


def _check_object(document: Document, places: Mapping[str, int], items: Sequence[Mapping[str, Any]]) -> None:
    """Whether these objects can be written side by side into an etcd that has none."""
    try:
        json.dumps(items, allow_nan=False)
        Catalogue(Listing(0, 0, ()), Keys()).puts(items)
    except ObjectInvalid as error:
        (path, problem), *others = error.mistakes
        evidence = "; ".join(f"{dotted(place)}: {words}" for place, words in others)
        raise document.error(("services", places[error.subject], *path), problem, evidence) from None
    except (TypeError, ValueError) as error:
        raise document.error(("services", len(places) - 1), f"cannot be written as JSON: {error}") from None


def _containers(
    document: Document, items: Sequence[Mapping[str, Any]], hosts: Iterable[str]
) -> tuple[Container, ...]:
    known = set(hosts)
    seen = set(hosts)
    for index, item in enumerate(items):
        path = ("containers", index)
        _unique(document, (*path, "name"), item["name"], "container", seen)
        _name(document, (*path, "namespace"), item.get("namespace", "default"), "namespace")
        if item["host"] not in known:
            raise document.error(
                (*path, "host"), f"there is no host {item['host']!r}", "hosts: " + ", ".join(sorted(known))
            )
    return tuple(_container(document, ("containers", n), item) for n, item in enumerate(items))


def _container(document: Document, path: Place, item: Mapping[str, Any]) -> Container:
    return Container(
        name=item["name"],
        host=item["host"],
        namespace=item.get("namespace", "default"),
        labels=MappingProxyType(dict(item.get("labels", {}))),
        ports=tuple(_port(port) for port in item.get("ports", [])),
        command=tuple(item.get("command", [])),
        probe=_probe(document, (*path, "probe"), item.get("probe")),
    )


def _probe(document: Document, path: Place, value: Any) -> Probe | None:
    try:
        return None if value is None else parse_probe(value)
    except ProbeInvalid as error:
        raise document.error((*path, *error.place), error.problem, error.evidence) from None


def _port(value: int | Mapping[str, Any]) -> Port:
    return Port(value) if isinstance(value, int) else Port(**value)


# --- numbers --------------------------------------------------------------------------------------

_TRAILING_NUMBER = re.compile(r"-([1-9][0-9]{0,2})$")


def number_hosts(names: Sequence[str], taken: Mapping[str, int]) -> dict[str, int]:
    """Each host's number: the one it has, else the one in its name, else the lowest that is free."""
    chosen = {name: taken[name] for name in names if name in taken}
    used = set(chosen.values())
    for name in names:
        wish = _TRAILING_NUMBER.search(name)
        if name not in chosen and wish and int(wish[1]) <= MAX_HOSTS and int(wish[1]) not in used:
            chosen[name] = int(wish[1])
            used.add(chosen[name])
    free = (number for number in range(1, len(names) + len(used) + 1) if number not in used)
    return {name: chosen[name] if name in chosen else next(free) for name in names}


def _check_room(document: Document, network: LabNetwork, hosts: Sequence[Host]) -> None:
    for index, host in enumerate(hosts):
        if host.number > network.last_number:
            raise document.error(
                ("hosts", index, "name"),
                f"there is no subnet number {host.number} for {host.name!r} in {network.cidr}",
                f"it has numbers 1 to {network.last_number} of length /{network.subnet_len}",
            )


def _check_addresses(document: Document, network: LabNetwork, containers: Sequence[Container]) -> None:
    counts: Counter[str] = Counter()
    for index, container in enumerate(containers):
        counts[container.host] += 1
        if counts[container.host] > network.addresses:
            raise document.error(
                ("containers", index, "host"),
                f"there is no address left for {container.name!r} on {container.host!r}",
                f"a /{network.subnet_len} holds {network.addresses} containers",
            )


# --- writing --------------------------------------------------------------------------------------


def _host_document(host: Host) -> dict[str, Any]:
    document: dict[str, Any] = {"name": host.name}
    if host.zone is not None:
        document["zone"] = host.zone
    document["labels"] = dict(host.labels)
    document["agent"] = {section: dict(table) for section, table in host.agent.items()}
    return document


def _container_document(container: Container) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": container.name,
        "host": container.host,
        "namespace": container.namespace,
        "labels": dict(container.labels),
        "ports": [_port_document(port) for port in container.ports],
    }
    if container.command:
        document["command"] = list(container.command)
    if container.probe is not None:
        document["probe"] = probe_document(container.probe)
    return document


def _port_document(port: Port) -> dict[str, Any]:
    document: dict[str, Any] = {"port": port.port, "protocol": port.protocol}
    if port.name is not None:
        document["name"] = port.name
    return document
