"""The agent's settings: file, environment and flags, folded into one frozen, checked value.

Precedence, lowest first: built-in default, `agent.toml`, flannel's environment (`core/flannelflags.py`),
environment (`OVERLAYNET_SECTION_KEY`), flag.
Every key is described once, in `FIELDS`; the file's reader, the environment and the example file all go
by that table. An unknown key is an error, with the place it was found: a misspelt setting that is
silently ignored is worse than one that stops the agent before it touched anything.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from overlaynet.addr import IPAddress
from overlaynet.errors import ConfigError, NameInvalid
from overlaynet.model import NO_LABELS, check_name

DEFAULT_CONFIG_PATH = Path("/etc/overlaynet/agent.toml")
CREDENTIALS = Path("/run/credentials/overlaynet-agent.service")
"""Where systemd puts the credentials of the agent's unit (systemd.exec(5), CREDENTIALS). The unit itself is
told by $CREDENTIALS_DIRECTORY; root finds them here to ask etcd as the agent would."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`[node]`. Empty name: the host name. `interface`: names or addresses, of which the first that is there
    counts; then patterns; then an address to be reached. With none of these the default route decides.
    `adopt_lease`: take flannel's lease with our public address without further proof. `instance`: which of
    several networks on one host this agent is for; it goes into the names of all that they must not share."""

    name: str = ""
    instance: str = ""
    interface: tuple[str, ...] = ()
    interface_regex: tuple[str, ...] = ()
    interface_can_reach: IPAddress | None = None
    adopt_lease: bool = False
    public_ip: IPAddress | None = None
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """`[etcd]`. The password is in a file, never in this value. Where the settings name a credential of
    systemd, this holds its path."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: str = "/coreos.com/network"
    overlay_prefix: str = "/overlaynet"
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """`[bridge]`. "managed": made and kept by us; "external": somebody else's, used; "none"."""

    mode: str = "managed"
    name: str = "cni0"


@dataclass(frozen=True, slots=True)
class FirewallConfig:
    """`[firewall]`. `resync_s`: seconds between full looks at the host."""

    backend: Literal["auto", "legacy", "nft"] = "auto"
    resync_s: float = 60.0
    masquerade: bool = True
    vxlan_peers_only: bool = False


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """`[service]`. `mode` "off" leaves services to another program. `node_port_addresses`: "primary", "all", or
    networks; nodePorts are open on this host's addresses in them. `local_detect`: how a packet of a container
    of this cluster is told. Rules of services are written at most every `min_sync_s` seconds, and read back
    at least every `max_sync_s`."""

    mode: Literal["off", "iptables"] = "iptables"
    node_port_addresses: tuple[str, ...] = ("primary",)
    localhost_node_ports: bool = False
    masquerade_all: bool = False
    local_detect: Literal["cluster-cidr", "node-cidr", "bridge", "none"] = "cluster-cidr"
    min_sync_s: float = 0.2
    max_sync_s: float = 60.0


@dataclass(frozen=True, slots=True)
class PathConfig:
    """`[paths]`. Where the agent keeps its socket, its run-time files and what must survive a reboot."""

    run: Path = Path("/run/overlaynet")
    state: Path = Path("/var/lib/overlaynet")
    subnet_file: Path = Path("/run/flannel/subnet.env")

    @property
    def socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def pid_file(self) -> Path:
        return self.run / "agent.pid"

    @property
    def identity(self) -> Path:
        return self.state / "identity.json"

    @property
    def workloads(self) -> Path:
        return self.state / "workloads.json"

    @property
    def remembered(self) -> Path:
        return self.state / "etcd.json"


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """`[health]`. `listen`: an address and port for health and metrics over TCP; none unless asked for."""

    listen: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`[log]`. Level and form of the lines on standard error."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All of agent.toml."""

    node: NodeConfig = field(default_factory=NodeConfig)
    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    firewall: FirewallConfig = field(default_factory=FirewallConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    paths: PathConfig = field(default_factory=PathConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    log: LogConfig = field(default_factory=LogConfig)


# --- one reader per kind of value -----------------------------------------------------------------

_Reader = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("wants a non-empty text")
    return value


def _one_of(*words: str) -> _Reader:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return str(value)

    return read


def _underlay_address(value: Any) -> IPAddress:
    address = ip_address(_text(value))
    if address.version != 4 or address.is_loopback or address.is_link_local or address.is_multicast:
        raise ValueError("wants an IPv4 address that other hosts can send to")
    return address


def _path(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError("wants an absolute path")
    return path


class _Credential(str):
    """The name of a systemd credential."""


def _file(value: Any) -> Path | _Credential:
    """An absolute path, or ``credential:NAME`` for what the unit is given by LoadCredential= or the like."""
    scheme, _, name = _text(value).partition(":")
    if scheme != "credential":
        return _path(value)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}", name):
        raise ValueError("wants credential:NAME, with a name of letters, digits, '.', '_' and '-'")
    return _Credential(name)


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError("wants true or false")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("wants a number of seconds")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("wants a number of seconds") from None
    if not 0.1 <= number <= 86_400:
        raise ValueError("wants a number of seconds between 0.1 and 86400")
    return number


def _node_name(value: Any) -> str:
    try:
        return check_name(_text(value), "node")
    except NameInvalid as error:
        raise ValueError(error.evidence) from None


def _device(value: Any) -> str:
    name = _text(value)
    if len(name.encode()) > 15 or name in {".", ".."} or any(c in "/: \t\n" for c in name):
        raise ValueError("is no interface name (at most 15 bytes, no '/', ':' or blank)")
    return name


def _instance(value: Any) -> str:
    """Short, since it becomes part of a chain's name (28 characters) and of a bridge's (15)."""
    text = _text(value)
    if not re.fullmatch("[a-z][a-z0-9]{0,7}", text):
        raise ValueError("must be a lower-case letter and at most 7 more letters or digits")
    return text


def _several(value: Any) -> list[str]:
    items = [item for item in value.split(",") if item] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError("wants a text, or a list of texts")
    return [_text(item) for item in items]


def _interfaces(value: Any) -> tuple[str, ...]:
    """Each an interface's name, or an address on it."""
    return tuple(_address_or_device(item.strip()) for item in _several(value))


def _address_or_device(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return _device(text)


def _patterns(value: Any) -> tuple[str, ...]:
    """A text is one pattern, since a pattern may hold a comma."""
    items = _several([value] if isinstance(value, str) else value)
    for item in items:
        try:
            re.compile(item)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
    return tuple(items)


def _prefix(value: Any) -> str:
    text = _text(value).rstrip("/")
    if not text.startswith("/") or "//" in text:
        raise ValueError("wants a key prefix such as /overlaynet")
    return text


def _endpoints(value: Any) -> tuple[str, ...]:
    items: Sequence[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError("wants a list of endpoints")
    return tuple(_endpoint(str(item).strip()) for item in items)


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return text
    try:
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is no endpoint: write http://HOST:2379, https://HOST:2379 or unix:///PATH")
    if parts.username or parts.password:
        raise ValueError("must not hold credentials: use etcd.username and etcd.password_file")
    return text


def _listen(value: Any) -> tuple[str, int]:
    """``ADDRESS:PORT``; a name would make the agent's start depend on DNS."""
    text = _text(value)
    parts = urlsplit(f"//{text}")
    try:
        address, port = ip_address(parts.hostname or ""), parts.port
    except ValueError:
        port = None
    if not port or parts.netloc != text or "@" in text:
        raise ValueError("wants an address and a port such as 127.0.0.1:9473 or [::1]:9473")
    return str(address), port


def _labels(value: Any) -> Mapping[str, str]:
    if isinstance(value, str):
        value = dict(item.partition("=")[::2] for item in value.split(",") if item)
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError("wants a table of text")
    return MappingProxyType(dict(value))


def _node_port_addresses(value: Any) -> tuple[str, ...]:
    items = _several(value)
    if items in (["primary"], ["all"]):
        return tuple(items)
    return tuple(str(ip_network(item)) for item in items)


FIELDS: Mapping[tuple[str, str], _Reader] = {
    ("node", "name"): _node_name,
    ("node", "instance"): _instance,
    ("node", "interface"): _interfaces,
    ("node", "interface_regex"): _patterns,
    ("node", "interface_can_reach"): _underlay_address,
    ("node", "adopt_lease"): _boolean,
    ("node", "public_ip"): _underlay_address,
    ("node", "zone"): _text,
    ("node", "labels"): _labels,
    ("etcd", "endpoints"): _endpoints,
    ("etcd", "prefix"): _prefix,
    ("etcd", "overlay_prefix"): _prefix,
    ("etcd", "ca"): _file,
    ("etcd", "cert"): _file,
    ("etcd", "key"): _file,
    ("etcd", "username"): _text,
    ("etcd", "password_file"): _file,
    ("bridge", "mode"): _one_of("managed", "external", "none"),
    ("bridge", "name"): _device,
    ("firewall", "backend"): _one_of("auto", "legacy", "nft"),
    ("firewall", "resync_s"): _seconds,
    ("firewall", "masquerade"): _boolean,
    ("firewall", "vxlan_peers_only"): _boolean,
    ("service", "mode"): _one_of("iptables", "off"),
    ("service", "node_port_addresses"): _node_port_addresses,
    ("service", "localhost_node_ports"): _boolean,
    ("service", "masquerade_all"): _boolean,
    ("service", "local_detect"): _one_of("cluster-cidr", "node-cidr", "bridge", "none"),
    ("service", "min_sync_s"): _seconds,
    ("service", "max_sync_s"): _seconds,
    ("paths", "run"): _path,
    ("paths", "state"): _path,
    ("paths", "subnet_file"): _path,
    ("health", "listen"): _listen,
    ("log", "level"): _one_of("debug", "info", "warning", "error"),
    ("log", "format"): _one_of("text", "json"),
}
SECTIONS = {item.name: item.default_factory for item in fields(AgentConfig)}


def load(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[tuple[str, str], Any] = MappingProxyType({}),
    beneath: Mapping[tuple[str, str], tuple[Any, str]] = MappingProxyType({}),
) -> AgentConfig:
    """Read the settings. A `path` of None means the default file, which need not exist. `beneath` are
    values and where they were found, that count for more than the file and less than the environment.

    Raises ConfigError naming the file, variable or flag and the key.
    """
    values: dict[tuple[str, str], Any] = {}
    values.update(_from_file(path))
    values.update((key, _read(key, value, where)) for key, (value, where) in beneath.items())
    values.update(_from_environ(environ))
    for key, value in flags.items():
        values[key] = _read(key, value, "flag --" + "-".join(key).replace("_", "-"))
    return build(values, Path(environ.get("CREDENTIALS_DIRECTORY") or CREDENTIALS))


def from_environ(environ: Mapping[str, str]) -> AgentConfig:
    """What the environment alone says. Raises ConfigError."""
    return build(_from_environ(environ), Path(environ.get("CREDENTIALS_DIRECTORY") or CREDENTIALS))


def parse(document: Mapping[str, Any], where: str) -> AgentConfig:
    """Settings from an already decoded document (a topology's `agent` member)."""
    return build(_from_document(document, where))


def build(values: Mapping[tuple[str, str], Any], credentials: Path = CREDENTIALS) -> AgentConfig:
    """Assemble checked values; check what only the whole can tell. `credentials` is where systemd's are."""
    values = {
        key: credentials / value if isinstance(value, _Credential) else value
        for key, value in _of_instance(values).items()
    }
    sections = {
        name: type(make())(**{k: v for (s, k), v in values.items() if s == name})
        for name, make in SECTIONS.items()
        if callable(make)
    }
    config = AgentConfig(**sections)
    if bool(config.etcd.cert) != bool(config.etcd.key):
        raise ConfigError("etcd.cert and etcd.key belong together", evidence="one of them is not set")
    if bool(config.etcd.username) != bool(config.etcd.password_file):
        raise ConfigError("etcd.username and etcd.password_file belong together", evidence="one is not set")
    return config


def _of_instance(values: Mapping[tuple[str, str], Any]) -> Mapping[tuple[str, str], Any]:
    """With names of its own for everything that two agents on one host must not share. Raises ConfigError."""
    name = values.get(("node", "instance"))
    if not name:
        return values
    if ("etcd", "prefix") not in values:
        raise ConfigError(
            f"node.instance is {name}, but which network is that?", evidence="etcd.prefix is not set",
            next=["set etcd.prefix to where that network's config is; another instance has another"],
        )  # fmt: skip
    own = {
        ("etcd", "overlay_prefix"): f"/overlaynet-{name}",
        ("bridge", "name"): f"cni-{name}",
        ("paths", "run"): Path(f"/run/overlaynet-{name}"),
        ("paths", "state"): Path(f"/var/lib/overlaynet-{name}"),
        ("paths", "subnet_file"): Path(f"/run/flannel/{name}.env"),
    }
    return {**own, **values}


def _from_file(path: Path | None) -> dict[tuple[str, str], Any]:
    wanted = path or DEFAULT_CONFIG_PATH
    try:
        text = wanted.read_text("utf-8")
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigError(f"there is no config file {path}", next=["ls -l " + str(path.parent)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {wanted} cannot be read", evidence=str(error)) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {wanted} is not TOML", evidence=str(error)) from None
    return _from_document(document, str(wanted))


def _from_document(document: Mapping[str, Any], where: str) -> dict[tuple[str, str], Any]:
    values = {}
    for section, table in document.items():
        if section not in SECTIONS:
            raise _unknown(where, section, SECTIONS)
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: [{section}] must be a table", evidence=f"it is {table!r}")
        for name, value in table.items():
            values[section, name] = _read((section, name), value, where)
    return values


def _from_environ(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    """A variable that begins like one of ours and names no key of its section is a misspelt one."""
    values = {}
    for variable, value in environ.items():
        prefix, _, rest = variable.partition("_")
        section, _, name = rest.lower().partition("_")
        if prefix == "OVERLAYNET" and section in SECTIONS and value:
            values[section, name] = _read((section, name), value, f"environment {variable}")
    return values


def _read(key: tuple[str, str], value: Any, where: str) -> Any:
    reader = FIELDS.get(key)
    if reader is None:
        raise _unknown(where, ".".join(key), [".".join(k) for k in FIELDS if k[0] == key[0]])
    try:
        return reader(value)
    except ValueError as error:
        evidence = "" if key == ("etcd", "password_file") else f"it is {_shown(value)}"  # may be the password
        raise ConfigError(f"{where}: {'.'.join(key)} {error}", evidence=evidence) from None


def _shown(value: Any) -> str:
    """A refused value as evidence, without what stands before an `@`: that may be a password."""
    return re.sub(r"//[^/@]*@", "//…@", repr(value))


def _unknown(where: str, name: str, known: Any) -> ConfigError:
    return ConfigError(f"{where}: unknown key {name!r}", evidence="known here: " + ", ".join(sorted(known)))
