"""flannel's flags and environment, translated to the settings of ours that mean the same.

flanneld reads every flag from the environment too: ``--etcd-prefix`` is ``FLANNELD_ETCD_PREFIX``. What
means the same here is taken, so that a unit file and its environment file move over as they are. What we
do otherwise, or not at all, is refused by name with what to do instead: a setting that is silently dropped
is found missing on the worst day. The exceptions are values that ask for what we do anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from overlaynet.errors import ConfigError

Setting: TypeAlias = tuple[str, str]

ENVIRONMENT = "FLANNELD_"

SAME: Mapping[str, Setting] = {
    "etcd-endpoints": ("etcd", "endpoints"),
    "etcd-prefix": ("etcd", "prefix"),
    "etcd-keyfile": ("etcd", "key"),
    "etcd-certfile": ("etcd", "cert"),
    "etcd-cafile": ("etcd", "ca"),
    "etcd-username": ("etcd", "username"),
    "iface": ("node", "interface"),
    "iface-regex": ("node", "interface_regex"),
    "iface-can-reach": ("node", "interface_can_reach"),
    "public-ip": ("node", "public_ip"),
    "ip-masq": ("firewall", "masquerade"),
    "subnet-file": ("paths", "subnet_file"),
    "iptables-resync": ("firewall", "resync_s"),
}
"""Flags with the meaning of one of our settings."""

REPEATABLE = frozenset({"iface", "iface-regex"})

SWITCHES = frozenset({"ip-masq", "ip-masq-fully-random-disable", "iptables-forward-rules"}) | frozenset(
    {"ip-blackhole-route", "kube-subnet-mgr"}
)
"""Flags that may stand without a value, which then is "true"."""

ANYWAY: Mapping[str, str] = {
    "ip-masq-fully-random-disable": "false",
    "iptables-forward-rules": "true",
    "ip-blackhole-route": "false",
    "kube-subnet-mgr": "false",
    "public-ipv6": "",
}
"""Values of refused flags that ask for what we do in any case."""

_NO_KUBERNETES = "the network's state is kept in etcd, never in Kubernetes nodes: remove it"
_LOGGING = "remove it; --log-level and [log] in agent.toml say what is logged"

REFUSED: Mapping[str, str] = {
    "etcd-password": "everybody can read a command line, and an environment is inherited: write the password "
    "to a file of mode 0600 and name it in etcd.password_file (OVERLAYNET_ETCD_PASSWORD_FILE)",
    "public-ipv6": "the underlay is IPv4 only: remove it",
    "subnet-lease-renew-margin": "a lease is kept alive all the time, so it has no margin: remove it",
    "ip-masq-fully-random-disable": "source ports are chosen at random wherever iptables can do it: remove it",
    "iptables-forward-rules": "the forwarding of container traffic is always accepted: remove it",
    "ip-blackhole-route": "there is no blackhole route for the own subnet: remove it",
    "kube-subnet-mgr": _NO_KUBERNETES,
    "kube-api-url": _NO_KUBERNETES,
    "kubeconfig-file": _NO_KUBERNETES,
    "kube-annotation-prefix": _NO_KUBERNETES,
    "net-config-path": _NO_KUBERNETES + "; overlaynet network set FILE puts such a file into etcd",
    "set-node-network-unavailable": _NO_KUBERNETES,
    "v": _LOGGING,
    "vmodule": _LOGGING,
    "log_backtrace_at": _LOGGING,
}
"""All other flags of flanneld, with what to do instead."""

HEALTH = {"healthz-ip": "0.0.0.0", "healthz-port": "0"}  # noqa: S104 (flannel's default, where a port is asked for)
"""Flags that make one setting together, with their defaults; port 0 is none."""

FLAGS = (*SAME, *HEALTH, *REFUSED)


class Given(NamedTuple):
    """A value, and where it was found, for the message that refuses it."""

    value: Any
    where: str


def variable(flag: str) -> str:
    """``FLANNELD_ETCD_PREFIX`` of ``etcd-prefix`` (pkg flagutil of coreos, which flannel uses)."""
    return ENVIRONMENT + flag.upper().replace("-", "_")


def from_environment(environ: Mapping[str, str]) -> dict[Setting, Given]:
    """What flannel's variables say; empty ones say nothing. Raises ConfigError."""
    names = {variable(flag): flag for flag in FLAGS}
    given = {}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT) or not environ[name]:
            continue
        if name not in names:
            raise ConfigError(
                f"environment {name} is no setting of flannel's",
                evidence="known here: " + ", ".join(sorted(map(variable, SAME))),
            )
        given[names[name]] = Given(environ[name], f"environment {name}")
    return _translated(given)


def from_flags(flags: Mapping[str, Any]) -> dict[Setting, Given]:
    """What flannel's flags say, by their names without dashes. Raises ConfigError."""
    return _translated({flag: Given(value, f"flag -{flag}") for flag, value in flags.items()})


def _translated(given: Mapping[str, Given]) -> dict[Setting, Given]:
    found = {SAME[flag]: value for flag, value in given.items() if flag in SAME}
    for flag, (value, where) in given.items():
        if flag in REFUSED and ANYWAY.get(flag) != value:
            shown = "" if flag == "etcd-password" else f"it is {value!r}"
            raise ConfigError(f"{where} is flannel's, and is not taken", evidence=shown, next=[REFUSED[flag]])
    ip, port = (given[flag].value if flag in given else default for flag, default in HEALTH.items())
    if port != HEALTH["healthz-port"]:
        host = f"[{ip}]" if ":" in ip else ip
        found["health", "listen"] = Given(f"{host}:{port}", given["healthz-port"].where)
    return found
