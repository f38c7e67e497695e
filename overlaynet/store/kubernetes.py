"""Kubernetes objects into the model's values, and back: v1 Service, discovery.k8s.io/v1 EndpointSlice.

An object is read as the API server reads it: what is not given has Kubernetes' default, what contradicts
itself is refused, and each refusal names the field. What we have no use for (annotations, managedFields, most
of the status) is not looked at, so that an object of a newer Kubernetes can be read as well. The bytes in etcd
are the object as a whole; the model's value is what is understood of it.

Two rules of the API server do not hold here. A VIP may be outside of the service network, since objects also
come from other clusters. A service's VIP may change; Kubernetes wants the service to be made anew.

Sources: k8s.io/api/core/v1 and discovery/v1 types.go; kubernetes/pkg/apis/core/validation, ValidateService,
and pkg/apis/discovery/validation, ValidateEndpointSlice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, TypeAlias

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.core.allocation import NODE_PORTS
from overlaynet.errors import ObjectInvalid
from overlaynet.model import (
    CLUSTER,
    LOCAL,
    NO_LABELS,
    EndpointSlice,
    Port,
    Service,
    ServicePort,
    SliceEndpoint,
)
from overlaynet.store.fields import parse_address
from overlaynet.store.place import Mistake, Place, dotted, shown

Object: TypeAlias = Mapping[str, Any]
"""A Kubernetes object as JSON has it."""

SERVICE, ENDPOINT_SLICE = "Service", "EndpointSlice"
API_VERSIONS: Mapping[str, str] = MappingProxyType({SERVICE: "v1", ENDPOINT_SLICE: "discovery.k8s.io/v1"})
DEFAULT_NAMESPACE = "default"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""The label of a slice that names its service."""

HEADLESS = "None"
TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
PROTOCOLS = ("TCP", "UDP", "SCTP")
POLICIES = (CLUSTER, LOCAL)
DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
DEFAULT_AFFINITY_S, MAX_AFFINITY_S = 10_800, 86_400
"""Three hours, and a day (k8s.io/api/core/v1, DefaultClientIPServiceAffinitySeconds)."""

MAX_PORT = 65_535
MAX_PORTS = 100
"""Ports of one service: their nodePorts are written in one transaction, and etcd takes 128 operations."""

_OPEN_TYPES = ("NodePort", "LoadBalancer")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_WORD = r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = re.compile(f"({_WORD})?")
_LABEL_KEY = re.compile(rf"([a-z0-9][-.a-z0-9]{{0,252}}/)?{_WORD}")


# --- reading --------------------------------------------------------------------------------------


def read(value: Object) -> Service | EndpointSlice:
    """The object as a value of the model. Raises ObjectInvalid with all its mistakes."""
    match value.get("kind"):
        case "Service":
            return read_service(value)
        case "EndpointSlice":
            return read_slice(value)
    kinds = " and ".join(API_VERSIONS)
    problem = f"must be one of {kinds}, not {shown(value.get('kind'))}"
    raise invalid([Mistake(("kind",), problem)], title(value))


def read_service(value: Object) -> Service:
    """A v1 Service. One without a VIP that should have one gets it when it is written. Raises ObjectInvalid."""
    top = Place(value)
    service = _service(top)
    if top.mistakes:
        raise invalid(top.mistakes, title(value))
    return service


def read_slice(value: Object) -> EndpointSlice:
    """A discovery.k8s.io/v1 EndpointSlice. Raises ObjectInvalid."""
    top = Place(value)
    found = _slice(top)
    if top.mistakes:
        raise invalid(top.mistakes, title(value))
    return found


def invalid(mistakes: Sequence[Mistake], subject: str) -> ObjectInvalid:
    """The error for an object, `subject` being its kind, namespace and name."""
    return ObjectInvalid("; ".join(map(str, mistakes)), mistakes=mistakes, subject=subject)


def title(value: Object) -> str:
    """``Service default/web``, as far as the object says."""
    return f"{value.get('kind')} {'/'.join(identity(value))}"


def identity(value: Object) -> tuple[str, str]:
    """Namespace and name of an object that may be wrong otherwise; what is not there is empty or default."""
    metadata = value.get("metadata")
    found = metadata if isinstance(metadata, dict) else {}
    return str(found.get("namespace") or DEFAULT_NAMESPACE), str(found.get("name") or "")


def is_headless(value: Object) -> bool:
    """Whether the Service asks for no VIP at all."""
    return bool((value.get("spec") or {}).get("clusterIP") == HEADLESS)


# --- metadata -------------------------------------------------------------------------------------


def _metadata(top: Place, kind: str, name_pattern: re.Pattern[str]) -> tuple[str, str, Mapping[str, str]]:
    """Name, namespace and labels; `kind` and `apiVersion` are checked on the way."""
    for name, wanted in (("apiVersion", API_VERSIONS[kind]), ("kind", kind)):
        if top.members.get(name) != wanted:
            top.wrong(f"must be {wanted}, not {shown(top.members.get(name))}", name)
    metadata = top.within("metadata")
    name = _name(metadata, "name", name_pattern)
    namespace = _name(metadata, "namespace", _LABEL) if metadata.given("namespace") else DEFAULT_NAMESPACE
    return name, namespace, _labels(metadata, "labels")


def _name(place: Place, name: str, pattern: re.Pattern[str]) -> str:
    text = place.text(name)
    if not place.given(name):
        place.wrong("is missing", name)
    elif isinstance(place.members[name], str) and not pattern.fullmatch(text):
        place.wrong(f"{shown(text)} is no name: small letters, digits and hyphens, at most 63", name)
    return text


def _labels(place: Place, name: str) -> Mapping[str, str]:
    pairs = place.pairs(name)
    for key, text in pairs.items():
        if not _LABEL_KEY.fullmatch(key):
            place.wrong("is no label's name: at most 63 letters, digits, - _ .", name, key)
        if not _LABEL_VALUE.fullmatch(text):
            place.wrong(f"{shown(text)} is no label's value: at most 63 letters, digits, - _ .", name, key)
    return MappingProxyType(pairs) if pairs else NO_LABELS


# --- services -------------------------------------------------------------------------------------


def _service(top: Place) -> Service:
    name, namespace, labels = _metadata(top, SERVICE, _LABEL)
    spec = top.within("spec")
    if not top.given("spec"):
        top.wrong("is missing", "spec")
    kind = spec.choice("type", TYPES, "ClusterIP")
    external_ips = _addresses(spec, "externalIPs")
    external_policy = spec.choice("externalTrafficPolicy", POLICIES, CLUSTER)
    if spec.given("externalTrafficPolicy") and kind not in _OPEN_TYPES and not external_ips:
        spec.wrong("is for services that are reached from outside", "externalTrafficPolicy")
    return Service(
        name=name,
        namespace=namespace,
        type=kind,
        cluster_ips=_cluster_ips(spec, kind),
        ports=_ports(spec, kind),
        selector=_labels(spec, "selector"),
        labels=labels,
        external_ips=external_ips,
        ingress_ips=_ingress(top),
        source_ranges=_source_ranges(spec, kind),
        internal_policy=spec.choice("internalTrafficPolicy", POLICIES, CLUSTER),
        external_policy=external_policy,
        affinity_s=_affinity(spec),
        health_check_node_port=_health_check(spec, kind, external_policy),
        publish_not_ready=spec.flag("publishNotReadyAddresses"),
        distribution=spec.choice("trafficDistribution", DISTRIBUTIONS, ""),
    )


def _cluster_ips(spec: Place, kind: str) -> tuple[IPAddress, ...]:
    """The VIPs that are given; none for a headless service and for ExternalName."""
    first, listed = spec.text("clusterIP"), spec.texts("clusterIPs")
    if kind == "ExternalName":
        return _external_name(spec, bool(first or listed))
    if listed and listed.get(0) != first:
        spec.wrong(f"the first must be clusterIP, {shown(first)}, not {shown(listed.get(0))}", "clusterIPs")
    if first == HEADLESS:
        return _headless(spec, kind, listed)
    ips = [ip for n, text in listed.items() if (ip := spec.understood(_ip, text, "clusterIPs", n))]
    if not listed and first and (ip := spec.understood(_ip, first, "clusterIP")):
        ips = [ip]
    if len({ip.version for ip in ips}) < len(ips):
        spec.wrong("may hold one address of each family", "clusterIPs")
    return tuple(ips)


def _external_name(spec: Place, has_vip: bool) -> tuple[IPAddress, ...]:
    if has_vip:
        spec.wrong("a service of type ExternalName has none", "clusterIP")
    name = spec.text("externalName").removesuffix(".")
    if not _SUBDOMAIN.fullmatch(name):
        spec.wrong(f"type ExternalName needs a DNS name here, not {shown(name)}", "externalName")
    return ()


def _headless(spec: Place, kind: str, listed: Mapping[int, str]) -> tuple[IPAddress, ...]:
    if len(listed) > 1:
        spec.wrong("may hold nothing beside None", "clusterIPs")
    if kind in _OPEN_TYPES:
        spec.wrong(f"may not be None for type {kind}", "clusterIP")
    return ()


def _ip(text: str) -> IPAddress:
    """An address that packets can be sent to on a network. Raises ValueError with a sentence."""
    try:
        ip = parse_address(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is no IP address") from None
    if ip.is_unspecified or ip.is_loopback or ip.is_link_local or ip.is_multicast:
        raise ValueError(f"{text} is loopback, link-local, multicast or unspecified, which cannot be served")
    return ip


def _addresses(spec: Place, name: str) -> tuple[IPAddress, ...]:
    found = (spec.understood(_ip, text, name, n) for n, text in spec.texts(name).items())
    return tuple(ip for ip in found if ip)


def _ports(spec: Place, kind: str) -> tuple[ServicePort, ...]:
    places = spec.each("ports")
    if not spec.members.get("ports") and kind != "ExternalName" and spec.text("clusterIP") != HEADLESS:
        spec.wrong("a service with a VIP needs at least one", "ports")
    if len(places) > MAX_PORTS:
        spec.wrong(f"more than {MAX_PORTS} are too many for one transaction", "ports")
    ports = tuple(_port(place, kind, several=len(places) > 1) for place in places)
    _unique(places, [(p.name,) if p.name else () for p in ports], "name", "this name")
    _unique(places, [(p.protocol, p.port) if p.port else () for p in ports], "port", "this port and protocol")
    node_ports = [(p.protocol, p.node_port) if p.node_port else () for p in ports]
    _unique(places, node_ports, "nodePort", "this nodePort and protocol")
    return ports


def _port(place: Place, kind: str, *, several: bool) -> ServicePort:
    name = place.text("name")
    if name and not _LABEL.fullmatch(name):
        place.wrong(f"{shown(name)} is no name: small letters, digits and hyphens, at most 63", "name")
    if several and not name:
        place.wrong("is missing; where there are several ports each has a name", "name")
    if not place.given("port"):
        place.wrong("is missing", "port")
    number = place.number("port", 1, MAX_PORT)
    protocol = place.choice("protocol", PROTOCOLS, "TCP")
    return ServicePort(number, protocol, name, _target(place, number), _node_port(place, kind))


def _target(place: Place, number: int) -> int | str:
    """targetPort: a number, the name of a container's port, or what the service's own port is."""
    value = place.members.get("targetPort")
    if isinstance(value, str) and value:
        if not _PORT_NAME.fullmatch(value):
            place.wrong(f"{shown(value)} is no port's name: 15 small letters, digits, - at most", "targetPort")
        return value
    return place.number("targetPort", 1, MAX_PORT, number) if value not in ("", 0) else number


def _node_port(place: Place, kind: str) -> int:
    if place.members.get("nodePort") in (None, 0):
        return 0
    if kind not in _OPEN_TYPES:
        place.wrong(f"is not for type {kind}, but for NodePort and LoadBalancer", "nodePort")
    return place.number("nodePort", NODE_PORTS[0], NODE_PORTS[-1])


def _unique(places: Sequence[Place], keys: Sequence[tuple[object, ...]], name: str, what: str) -> None:
    """Note each place whose key another before it has; an empty key is like no other."""
    seen: dict[tuple[object, ...], Place] = {}
    for place, key in zip(places, keys, strict=True):
        if key and key in seen:
            place.wrong(f"{dotted(seen[key].path)} has {what} already", name)
        seen.setdefault(key, place)


def _affinity(spec: Place) -> int:
    """Seconds of session affinity; 0 for none."""
    if spec.choice("sessionAffinity", ("None", "ClientIP"), "None") == "None":
        if spec.given("sessionAffinityConfig"):
            spec.wrong("needs sessionAffinity ClientIP", "sessionAffinityConfig")
        return 0
    client = spec.within("sessionAffinityConfig").within("clientIP")
    return client.number("timeoutSeconds", 1, MAX_AFFINITY_S, DEFAULT_AFFINITY_S)


def _source_ranges(spec: Place, kind: str) -> tuple[IPNetwork, ...]:
    texts = spec.texts("loadBalancerSourceRanges")
    if texts and kind != "LoadBalancer":
        spec.wrong(f"is for type LoadBalancer, not {kind}", "loadBalancerSourceRanges")
    found = (spec.understood(_range, text, "loadBalancerSourceRanges", n) for n, text in texts.items())
    return tuple(network for network in found if network)


def _range(text: str) -> IPNetwork:
    try:
        if "/" not in text:
            raise ValueError(text)
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{shown(text)} is no range such as 192.0.2.0/24") from None


def _health_check(spec: Place, kind: str, policy: str) -> int:
    if spec.members.get("healthCheckNodePort") in (None, 0):
        return 0
    if kind != "LoadBalancer" or policy != LOCAL:
        spec.wrong("needs type LoadBalancer and externalTrafficPolicy Local", "healthCheckNodePort")
    return spec.number("healthCheckNodePort", NODE_PORTS[0], NODE_PORTS[-1])


def _ingress(top: Place) -> tuple[IPAddress, ...]:
    """The load balancer's addresses whose packets come here with their destination unchanged (KEP-1860)."""
    if not top.given("status"):
        return ()
    found = []
    for place in top.within("status").within("loadBalancer").each("ingress"):
        ip = place.parsed("ip", _ip)
        if place.choice("ipMode", ("VIP", "Proxy"), "VIP") == "VIP" and ip:
            found.append(ip)
    return tuple(found)


# --- slices ---------------------------------------------------------------------------------------


def _slice(top: Place) -> EndpointSlice:
    name, namespace, labels = _metadata(top, ENDPOINT_SLICE, _SUBDOMAIN)
    family = top.choice("addressType", ("IPv4", "IPv6", "FQDN"), "")
    if not top.given("addressType"):
        top.wrong("is missing: IPv4, IPv6 or FQDN", "addressType")
    read_address = _of_family(family)
    endpoints = [_endpoint(place, read_address) for place in top.each("endpoints")]
    places = top.each("ports")
    ports = [_slice_port(place) for place in places]
    _unique(places, [(port.name,) for port in ports], "name", "this name")
    return EndpointSlice(
        name=name,
        namespace=namespace,
        service=labels.get(SERVICE_NAME_LABEL, ""),
        ports=tuple(port for port in ports if port.port),
        endpoints=tuple(endpoint for endpoint in endpoints if endpoint),
    )


def _of_family(family: str) -> Callable[[str], IPAddress | None]:
    """How to read a slice's addresses: names (FQDN) are none, an address of the other family is a mistake."""

    def read_address(text: str) -> IPAddress | None:
        if family == "FQDN":
            return None
        ip = _ip(text)
        if family and family != f"IPv{ip.version}":
            raise ValueError(f"{text} is no {family} address, as addressType says")
        return ip

    return read_address


def _endpoint(place: Place, read_address: Callable[[str], IPAddress | None]) -> SliceEndpoint | None:
    texts = place.texts("addresses")
    if not place.members.get("addresses"):
        place.wrong("needs at least one", "addresses")
    found = [place.understood(read_address, text, "addresses", n) for n, text in texts.items()]
    conditions, hints = place.within("conditions"), place.within("hints")
    fields: dict[str, Any] = {
        "node": place.text("nodeName") or None,
        "ready": conditions.flag("ready", True),
        "serving": conditions.flag("serving", True),
        "terminating": conditions.flag("terminating"),
        "for_zones": tuple(hint.text("name") for hint in hints.each("forZones")),
        "for_nodes": tuple(hint.text("name") for hint in hints.each("forNodes")),
    }
    return SliceEndpoint(ip=found[0], **fields) if found and found[0] else None


def _slice_port(place: Place) -> Port:
    """A port without number means all of them, which no rule can serve: it is left out."""
    name = place.text("name")
    if name and not _LABEL.fullmatch(name):
        place.wrong(f"{shown(name)} is no name: small letters, digits and hyphens, at most 63", "name")
    return Port(place.number("port", 1, MAX_PORT), place.choice("protocol", PROTOCOLS, "TCP"), name)


# --- writing --------------------------------------------------------------------------------------


def service_object(service: Service) -> dict[str, Any]:
    """A v1 Service that reads as this value; what has Kubernetes' default is left out."""
    spec: dict[str, Any] = {
        "type": service.type,
        "clusterIP": next(map(str, service.cluster_ips), None),
        "clusterIPs": [str(ip) for ip in service.cluster_ips],
        "selector": dict(service.selector),
        "ports": [_port_object(port) for port in service.ports],
        "externalIPs": [str(ip) for ip in service.external_ips],
        "loadBalancerSourceRanges": [str(network) for network in service.source_ranges],
        "internalTrafficPolicy": _unless(service.internal_policy, CLUSTER),
        "externalTrafficPolicy": _unless(service.external_policy, CLUSTER),
        "healthCheckNodePort": service.health_check_node_port,
        "publishNotReadyAddresses": service.publish_not_ready,
        "trafficDistribution": service.distribution,
    }
    if service.affinity_s:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": service.affinity_s}}
    ingress = [{"ip": str(ip)} for ip in service.ingress_ips]
    return {
        "apiVersion": API_VERSIONS[SERVICE],
        "kind": SERVICE,
        "metadata": _metadata_object(service.name, service.namespace, service.labels),
        "spec": _given(spec),
        **({"status": {"loadBalancer": {"ingress": ingress}}} if ingress else {}),
    }


def _port_object(port: ServicePort) -> dict[str, Any]:
    members: dict[str, Any] = {"name": port.name, "protocol": port.protocol, "port": port.port}
    return _given(members | {"targetPort": port.target, "nodePort": port.node_port})


def slice_object(value: EndpointSlice) -> dict[str, Any]:
    """A discovery.k8s.io/v1 EndpointSlice that reads as this value. Without addresses it is of IPv4."""
    labels = {SERVICE_NAME_LABEL: value.service} if value.service else {}
    return {
        "apiVersion": API_VERSIONS[ENDPOINT_SLICE],
        "kind": ENDPOINT_SLICE,
        "metadata": _metadata_object(value.name, value.namespace, labels),
        "addressType": f"IPv{next((e.ip.version for e in value.endpoints), 4)}",
        "endpoints": [_endpoint_object(endpoint) for endpoint in value.endpoints],
        "ports": [{"name": p.name or "", "protocol": p.protocol, "port": p.port} for p in value.ports],
    }


def _endpoint_object(endpoint: SliceEndpoint) -> dict[str, Any]:
    hints = {
        "forZones": [{"name": zone} for zone in endpoint.for_zones],
        "forNodes": [{"name": node} for node in endpoint.for_nodes],
    }
    conditions = {"ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating}
    members = {"addresses": [str(endpoint.ip)], "conditions": conditions, "nodeName": endpoint.node}
    return _given(members | {"hints": _given(hints)})


def _metadata_object(name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return _given({"name": name, "namespace": namespace, "labels": dict(labels)})


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value}


def _unless(value: str, usual: str) -> str | None:
    return None if value == usual else value
