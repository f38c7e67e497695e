"""Network namespaces as a packet meets them: tables, the settings that decide, rules, and who listens.

Rules are what costs: each look is a program. A namespace without rules, as most containers are, is told by two
questions to the kernel: which tables the legacy variant has (/proc/net/ip_tables_names), and which chains
nftables has. iptables-nft keeps its rules in chains of nftables too, in tables of well-known names and with
base chains in capitals; every other table with a base chain is nftables' own.

The variants do not see each other's rules, and packets pass both. One is read; that another holds rules as well
is a sentence in `unread`, as is everything else that could not be read: who explains a path by this must know
what may be missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from overlaynet.core.jsonstate import kernel_to_json, rules_to_json
from overlaynet.errors import KernelError, OverlayError
from overlaynet.firewall.iptables import Flavour, Iptables
from overlaynet.firewall.nftables import is_iptables
from overlaynet.firewall.poll import TABLES
from overlaynet.kernel import nftables, sockdiag, sysctl
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.netns import entered
from overlaynet.kernel.nftables import Chain
from overlaynet.kernel.observe import learned, observe
from overlaynet.kernel.sockdiag import Local
from overlaynet.probe.job import member, netns, objects
from overlaynet.state import KernelState, RuleSet

SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/accept_local",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/ip_default_ttl",
    "net/ipv4/icmp_echo_ignore_all",
)
"""Settings of a namespace that decide on a packet's path (Documentation/networking/ip-sysctl.rst)."""
DEVICE_SYSCTLS = ("rp_filter", "forwarding", "route_localnet", "accept_local")
"""The same of each device."""
WALKED = frozenset({"ip", "inet", "bridge", "netdev"})
"""nftables families whose chains an IPv4 packet passes."""

_NET = Path("/proc/thread-self/net")
_STATES = {"tcp": "0A", "udp": "07", "raw": "07"}
"""TCP_LISTEN and TCP_CLOSE, as files of /proc/net have them (include/net/tcp_states.h)."""


class Rules(NamedTuple):
    """What a namespace does with packets by rules. `rules` None: they could not be read."""

    rules: RuleSet | None
    nft: Mapping[str, Any] | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Holders:
    """Who has rules here. `legacy` None: the kernel does not say."""

    legacy: bool | None
    nft: bool
    native: tuple[tuple[str, str], ...]


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"places": [{"name", "netns"}], "firewall": bool, "instance"}``.

    A place that cannot be entered or read has an `error`; raises UsageError alone."""
    firewall, instance = member(job, "firewall", bool, False), member(job, "instance", str, "")
    return {
        "kind": "Places",
        "places": [_place(item, firewall=firewall, instance=instance) for item in objects(job, "places")],
    }


def counters(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out ``{"netns", "instance"}``: the rules once more, with what their counters say now.

    Raises NotFound, NotPermitted or KernelError; null for rules that could not be read."""
    with _inside(netns(job)):
        found = read_rules(member(job, "instance", str, ""))
    return {"kind": "Counters", "rules": _json(found.rules), "unread": list(found.unread)}


def read_rules(instance: str) -> Rules:
    """Those of the calling thread's network namespace. Raises KernelError."""
    holders = _holders()
    if holders.legacy is False and not holders.nft:
        found = Rules(RuleSet("nft"))
    else:
        found = _iptables(holders, instance)
    return _with_native(found, holders.native) if holders.native else found


# --- a place --------------------------------------------------------------------------------------


def _place(item: Mapping[str, Any], *, firewall: bool, instance: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"kernel": None, "rules": None, "nft": None, "listening": [], "unread": []}
    try:
        with _inside(netns(item)):
            found = _look(firewall=firewall, instance=instance)
    except OverlayError as error:
        return {"name": member(item, "name", str), **nothing, "error": error.as_json()}
    return {"name": member(item, "name", str), **found, "error": None}


def _inside(name: str | None) -> Any:
    return nullcontext() if name is None else entered(name)


def _look(*, firewall: bool, instance: str) -> dict[str, Any]:
    with Rtnl.open() as rtnl:
        kernel = observe(rtnl, instance=instance)
        kernel = replace(kernel, learned=learned(rtnl, kernel.links))
    kernel = replace(kernel, sysctls={name: sysctl.read(name) for name in sysctls(kernel)})
    rules = read_rules(instance) if firewall else Rules(None)
    return {
        "kernel": kernel_to_json(kernel),
        "rules": _json(rules.rules),
        "nft": rules.nft,
        "listening": list(listening()),
        "unread": list(rules.unread),
    }


def _json(rules: RuleSet | None) -> dict[str, Any] | None:
    return None if rules is None else rules_to_json(rules)


def sysctls(kernel: KernelState) -> Iterator[str]:
    """The settings that are read of a namespace with these links."""
    yield from SYSCTLS
    for device in kernel.links:
        for name in DEVICE_SYSCTLS:
            yield f"net/ipv4/conf/{device}/{name}"


# --- rules ----------------------------------------------------------------------------------------


def _holders() -> _Holders:
    chains = nftables.chains()
    bases: dict[tuple[str, str], list[Chain]] = {}
    for chain in chains:
        if chain.is_base and chain.family in WALKED:
            bases.setdefault((chain.family, chain.table), []).append(chain)
    native = {table for table, found in bases.items() if not all(is_iptables(chain[:3]) for chain in found)}
    return _Holders(_has_legacy(), bool(bases.keys() - native), tuple(sorted(native)))


def _has_legacy() -> bool | None:
    try:
        return bool(TABLES[0].read_text().split())
    except PermissionError:  # in a user namespace, whose root is not the machine's
        return None
    except OSError:
        return False


def _iptables(holders: _Holders, instance: str) -> Rules:
    """The variant that has rules; of several, the one that an agent would choose."""
    flavour: Flavour | None = (
        None
        if holders.legacy is None or (holders.legacy and holders.nft)
        else ("legacy" if holders.legacy else "nft")
    )
    chosen = Iptables(flavour or "auto", instance=instance)
    try:
        rules = chosen.observe()
    except OverlayError as error:
        return Rules(None, unread=(f"iptables' rules could not be read: {error.message}",))
    return Rules(rules, unread=() if flavour else tuple(_others(rules.flavour, instance)))


def _others(read: str, instance: str) -> Iterator[str]:
    """What the variant that was not chosen holds."""
    other: Flavour = "nft" if read == "legacy" else "legacy"
    try:
        rules = Iptables(other, instance=instance).observe()
    except OverlayError:
        return
    count = sum(map(len, rules.chains.values()))
    closed = [key for key, policy in rules.policies.items() if policy not in ("ACCEPT", "-")]
    if count or closed:
        yield f"iptables-{other} holds {count} rules too, which are not followed: iptables-{other}-save"


def _with_native(found: Rules, tables: Iterable[tuple[str, str]]) -> Rules:
    try:
        return found._replace(nft=Iptables().nftables(tables))
    except OverlayError as error:
        names = ", ".join(f"{family} {table}" for family, table in tables)
        sentence = f"nftables' own tables ({names}) could not be read: {error.message}"
        return found._replace(unread=(*found.unread, sentence))


# --- sockets --------------------------------------------------------------------------------------


def listening() -> Iterator[dict[str, Any]]:
    """Sockets that take packets from anybody: TCP's that listen, UDP's and raw ones without a peer. `ip` null:
    any address. Of a raw socket, the port is the IP protocol."""
    found = dict.fromkeys((protocol, *local) for protocol in _STATES for local in _listening(protocol))
    for protocol, ip, port in found:
        yield {"protocol": protocol, "ip": None if ip is None else str(ip), "port": port}


def _listening(protocol: str) -> list[Local]:
    if protocol in sockdiag.PROTOCOLS:
        with suppress(KernelError):
            return list(sockdiag.listening(protocol))
    return [local for file in (protocol, f"{protocol}6") for local in _listed(file, _STATES[protocol])]


def _listed(file: str, state: str) -> Iterator[Local]:
    """The same from a file below /proc/net; none where there is no such file (no IPv6)."""
    try:
        lines = (_NET / file).read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        _, bound, _, found, *_ = line.split(None, 4)
        if found == state:
            octets, port = bound.split(":")
            yield sockdiag.local(_network_order(octets)), int(port, 16)


def _network_order(digits: str) -> bytes:
    """An address, from 32-bit words in the machine's own order."""
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)
