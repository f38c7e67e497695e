"""A host's state as plain JSON, and back, without loss.

The probe looks at a host in one process and the planner, the command line and a saved trace read what it
saw in another. Between them travels JSON: every value below is made of dict, list, str, int, bool and
None, with the field names of `state.py` in snake case, and an unknown value as null, never absent.

Each type of object is described once, as a row of `_SHAPES` (`shapes.py` says how); 20 000 routes, neighbours
and FDB entries take a fraction of a second each way.

Reading raises ValueInvalid for a document that was not written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from overlaynet.addr import Mac
from overlaynet.core.diff import word
from overlaynet.core.shapes import (
    INTERFACE,
    IP,
    IPS,
    MAC,
    NETWORK,
    NETWORKS,
    TEXTS,
    Codec,
    Json,
    Shape,
    shape,
    tuple_of,
)
from overlaynet.errors import UsageError, ValueInvalid
from overlaynet.state import (
    Address,
    BridgePort,
    Change,
    Endpoint,
    Fdb,
    ForwardAccept,
    IpRule,
    KernelState,
    Key,
    Kind,
    LearnedMtu,
    Link,
    LinkInfo,
    Masquerade,
    Neigh,
    Object,
    Op,
    Policy,
    Route,
    RuleChange,
    RuleLine,
    RuleSet,
    ServicePortPolicy,
    ServicesPolicy,
    Source,
    Sysctl,
    Vxlan,
    VxlanGuard,
    describe,
)


def _endpoint(text: str) -> Endpoint:
    """The opposite of an endpoint's text: ``10.244.1.2:80``, ``[fd00::2]:80``."""
    host, _, port = text.rpartition(":")
    return Endpoint(ip_address(host.strip("[]")), int(port))


_ENDPOINTS = tuple_of(Codec(str, _endpoint))
_VXLAN = shape(Vxlan, local=IP)
_LINK_INFO = shape(LinkInfo, mac=MAC, altnames=TEXTS, vxlan=_VXLAN.codec)
_RULE_LINE = shape(RuleLine)
_IP_RULE = shape(IpRule)
_LEARNED = shape(LearnedMtu, dst=IP)

_SHAPES: Mapping[str, Shape] = {
    "link": shape(Link, mac=MAC, vxlan=_VXLAN.codec),
    "address": shape(Address, interface=INTERFACE),
    "port": shape(BridgePort),
    "neigh": shape(Neigh, ip=IP, mac=MAC),
    "fdb": shape(Fdb, mac=MAC, dst=IP),
    "route": shape(Route, dst=NETWORK, via=IP, prefsrc=IP),
    "sysctl": shape(Sysctl),
}
_POLICIES: Mapping[str, Shape] = {
    "masquerade": shape(Masquerade, overlay=NETWORKS, own=NETWORKS),
    "forward_accept": shape(ForwardAccept, overlay=NETWORKS),
    "vxlan_guard": shape(VxlanGuard, overlay=NETWORKS, peers=IPS, devices=TEXTS),
    "service_port": shape(
        ServicePortPolicy,
        cluster_ips=IPS,
        external_ips=IPS,
        ingress_ips=IPS,
        source_ranges=NETWORKS,
        cluster=_ENDPOINTS,
        local=_ENDPOINTS,
        serving=Codec(lambda some: sorted(map(str, some)), lambda some: frozenset(map(_endpoint, some))),
    ),
    "services": shape(
        ServicesPolicy,
        networks=NETWORKS,
        strays=IPS,
        node_ips=IPS,
        local_sources=NETWORKS,
        overlay=NETWORKS,
    ),
}
_KINDS = {shape.cls: kind for table in (_SHAPES, _POLICIES) for kind, shape in table.items()}


# --- objects and policies -------------------------------------------------------------------------


def object_to_json(obj: Object) -> Json:
    """``{"kind": "route", "dst": …}``."""
    kind = _KINDS[type(obj)]
    return {"kind": kind, **_SHAPES[kind].write(obj)}


def object_from_json(document: Mapping[str, Any]) -> Object:
    """The opposite of `object_to_json`."""
    return _checked(_tagged, _SHAPES, document)  # type: ignore[no-any-return]


def policy_to_json(policy: Policy) -> Json:
    """``{"kind": "masquerade", "overlay": […], …}``."""
    kind = _KINDS[type(policy)]
    return {"kind": kind, **_POLICIES[kind].write(policy)}


def policy_from_json(document: Mapping[str, Any]) -> Policy:
    """The opposite of `policy_to_json`."""
    return _checked(_tagged, _POLICIES, document)  # type: ignore[no-any-return]


def _tagged(shapes: Mapping[str, Shape], document: Mapping[str, Any]) -> Any:
    return shapes[document["kind"]].read(document)


# --- a whole host ---------------------------------------------------------------------------------


def kernel_to_json(state: KernelState) -> Json:
    """Everything that was observed in one network namespace."""
    return {
        "links": [_LINK_INFO.write(link) for link in state.links.values()],
        "addresses": _write_all("address", state.addresses),
        "neighs": _write_all("neigh", state.neighs),
        "fdb": _write_all("fdb", state.fdb),
        "routes": _write_all("route", state.routes),
        "rules": [_IP_RULE.write(rule) for rule in state.rules],
        "sysctls": dict(state.sysctls),
        "learned": [_LEARNED.write(entry) for entry in state.learned],
    }


def kernel_from_json(document: Mapping[str, Any]) -> KernelState:
    """The opposite of `kernel_to_json`."""
    return _checked(_read_kernel, document)  # type: ignore[no-any-return]


def _read_kernel(document: Mapping[str, Any]) -> KernelState:
    return KernelState(
        links={link.name: link for link in map(_LINK_INFO.read, document["links"])},
        addresses=_read_all("address", document["addresses"]),
        neighs=_read_all("neigh", document["neighs"]),
        fdb=_read_all("fdb", document["fdb"]),
        routes=_read_all("route", document["routes"]),
        rules=tuple(map(_IP_RULE.read, document["rules"])),
        sysctls=dict(document["sysctls"]),
        learned=tuple(map(_LEARNED.read, document.get("learned", ()))),
    )


def _write_all(kind: str, objects: Iterable[Object]) -> list[Json]:
    write = _SHAPES[kind].write
    return [write(obj) for obj in objects]


def _read_all(kind: str, documents: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(map(_SHAPES[kind].read, documents))


def rules_to_json(rules: RuleSet) -> Json:
    """Every chain in order. A chain whose policy or rules are not known has null there."""
    names = dict.fromkeys([*rules.chains, *rules.policies])
    return {"flavour": rules.flavour, "chains": [_chain(rules, table, name) for table, name in names]}


def _chain(rules: RuleSet, table: str, name: str) -> Json:
    lines = rules.chains.get((table, name))
    return {
        "table": table,
        "chain": name,
        "policy": rules.policies.get((table, name)),
        "rules": None if lines is None else [_RULE_LINE.write(line) for line in lines],
    }


def rules_from_json(document: Mapping[str, Any]) -> RuleSet:
    """The opposite of `rules_to_json`."""
    return _checked(_read_rules, document)  # type: ignore[no-any-return]


def _read_rules(document: Mapping[str, Any]) -> RuleSet:
    chains, policies = {}, {}
    for chain in document["chains"]:
        key = (chain["table"], chain["chain"])
        if chain["rules"] is not None:
            chains[key] = tuple(map(_RULE_LINE.read, chain["rules"]))
        if chain["policy"] is not None:
            policies[key] = chain["policy"]
    return RuleSet(document["flavour"], chains, policies)


def _checked(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueInvalid(
            "this is no host state as the probe writes it",
            evidence=f"{type(error).__name__}: {error}",
        ) from None


# --- differences ----------------------------------------------------------------------------------


def change_to_json(change: Change, source: Source) -> Json:
    """One difference of the kernel: ``{"op","object","key","want","have","source"}``, for people and
    programs; `want` and `have` are one line of text each, in the words of `ip` and `bridge`."""
    dropped = change.op is Op.DROP
    present = change.obj if dropped else change.have
    return {
        "op": word(change),
        "object": _KINDS[type(change.obj)],
        "key": key_text(change.obj.key),
        "want": None if dropped else describe(change.obj),
        "have": None if present is None else describe(present),
        "source": source_to_json(source),
    }


def rule_change_to_json(change: RuleChange) -> Json:
    """One difference of the firewall, in the same form; rules are lines of text."""
    return {
        "op": change.op,
        "object": "rule",
        "key": f"{change.table} {change.chain}",
        "want": None if change.want is None else "\n".join(change.want),
        "have": None if change.have is None else "\n".join(change.have),
        "source": source_to_json(change.source),
    }


def key_text(key: Key) -> str:
    """A key without its kind: ``254 10.244.2.0/24 11`` for a route."""
    return " ".join(str(part) for part in key[1:] if part is not None)


def key_from_text(kind: str, text: str) -> Key:
    """The opposite of `key_text`, for any kind of kernel object. Raises UsageError."""
    parts = text.split(" ")
    try:
        readers = _KEYS[Kind(kind)]
        if not len(readers) >= len(parts) >= len(readers) - (kind == Kind.FDB):
            raise ValueError(f"{len(parts)} words, not {len(readers)}")
        words = [read(part) for read, part in zip(readers, parts, strict=False)]
        return (Kind(kind), *words, *[None] * (len(readers) - len(parts)))
    except (ValueError, ValueInvalid) as error:
        known = ", ".join(_KEYS)
        raise UsageError(
            f"{kind!r} {text!r} is no kernel object's kind and key",
            evidence=f"{error}; kinds are {known}",
            next=["overlaynet get routes -o json"],
        ) from None


def _word(text: str) -> str:
    if not text:
        raise ValueError("a name is missing")
    return text


_KEYS: Mapping[Kind, tuple[Callable[[str], object], ...]] = {
    Kind.LINK: (_word,),
    Kind.SYSCTL: (_word,),
    Kind.ADDRESS: (_word, ip_interface),
    Kind.PORT: (_word,),
    Kind.NEIGH: (_word, ip_address),
    Kind.FDB: (_word, Mac.parse, _word),
    Kind.ROUTE: (int, ip_network, int),
}
"""What follows the kind in a key; the bridge at the end of an FDB entry's may be missing."""


def source_to_json(source: Source) -> Json:
    """``{"kind": "lease", "name": "10.244.2.0-24"}``."""
    return {"kind": source.kind, "name": source.name}
