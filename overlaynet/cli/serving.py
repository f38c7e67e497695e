"""Services and endpoints as the items of `get` and `describe`.

What stands behind a service is derived here as every agent derives it, from the records in etcd, so a command
needs no agent to say it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from overlaynet.addr import IPAddress
from overlaynet.cli.inventory import Items
from overlaynet.cli.output import Column, members, seconds
from overlaynet.cluster.cluster import Cluster, view_of
from overlaynet.core.endpoints import ServiceEndpoint, port_endpoints
from overlaynet.core.services import Fronts, Grants, members_of
from overlaynet.core.view import View
from overlaynet.errors import ValueInvalid
from overlaynet.model import Service, ServicePort, Stored, Workload
from overlaynet.ports import Listing
from overlaynet.store.kubernetes import is_headless
from overlaynet.store.services import stray_notes


def _address(item: Mapping[str, Any]) -> str:
    host = f"[{item['address']}]" if ":" in item["address"] else item["address"]
    return f"{host}:{item['port']}/{item['protocol']}"


def _ports(item: Mapping[str, Any]) -> list[str]:
    """As `kubectl` shows them: ``80:30080/TCP``."""
    return [
        f"{port['port']}{':' + str(port['node_port']) if port['node_port'] else ''}/{port['protocol']}"
        for port in item["ports"]
    ]


def _affinity(item: Mapping[str, Any]) -> str | None:
    return seconds(item["affinity_s"]) if item["affinity_s"] else None


SERVICE_COLUMNS = (
    *members("NAMESPACE", "NAME", "TYPE"),
    Column("CLUSTER-IP", lambda item: item["cluster_ips"] or ("None" if is_headless(item["object"]) else None)),
    Column("READY", lambda item: f"{item['endpoints']['ready']}/{item['endpoints']['total']}"),
    Column("PORTS", _ports),
    *members("EXTERNAL-IP=external_ips", "SELECTOR", "INTERNAL=internal_policy", wide=True),
    *members("EXTERNAL=external_policy", wide=True),
    Column("AFFINITY", _affinity, wide=True),
)
ENDPOINT_COLUMNS = (
    *members("NAMESPACE", spare=True),
    *members("SERVICE"),
    Column("ADDRESS", _address),
    *members("CONTAINER", "HOST", "READY", "SERVING", "TERMINATING"),
    *members("PORT-NAME", "ZONES=for_zones", "NODES=for_nodes", wide=True),
)


class Catalogue(NamedTuple):
    """What etcd says: understood, and the services' own bytes by their keys."""

    view: View
    raw: Mapping[str, bytes]

    @property
    def services(self) -> list[Stored[Service]]:
        """By namespace and name."""
        return [self.view.services[key] for key in sorted(self.view.services)]

    def problems(self) -> list[ValueInvalid]:
        """Services and slices that could not be understood."""
        keys = self.view.keys
        return [
            ValueInvalid(f"{key} is not served: it cannot be understood", evidence=reason)
            for key, reason in sorted(self.view.problems.items())
            if key.startswith((keys.services, keys.slices))
        ]


class Behind(NamedTuple):
    """One endpoint of one port of a service; `workload` is the container that it is, if it is one."""

    service: Service
    port: ServicePort
    endpoint: ServiceEndpoint
    workload: Workload | None


def read_catalogue(cluster: Cluster) -> Catalogue:
    """Raises StoreErrors."""
    keys, store = cluster.keys(), cluster.store()
    try:
        listing: Listing = store.read(keys.watched)
    finally:
        store.close()
    raw = {item.key: item.value for item in listing.items if item.key.startswith(keys.services)}
    return Catalogue(view_of(listing, keys), raw)


def behind(view: View, item: Stored[Service]) -> Iterator[Behind]:
    """Every endpoint of every port, in their order."""
    service = item.value
    chosen = members_of(view, item.key, service, (), "")
    workloads = {ip: workload for workload in chosen.workloads for ip in workload.ips}
    for port in service.ports:
        for endpoint in port_endpoints(service, port, chosen, view.index.zones.get):
            yield Behind(service, port, endpoint, workloads.get(endpoint.at.ip))


# --- services -------------------------------------------------------------------------------------


def service_items(catalogue: Catalogue) -> Items:
    return [service_item(catalogue, item) for item in catalogue.services]


def service_item(catalogue: Catalogue, item: Stored[Service]) -> dict[str, Any]:
    service = item.value
    grants = Grants(item, catalogue.view.index)
    for number in range(len(service.ports)):
        grants.of_port(number)
    value = json.loads(catalogue.raw[item.key])
    return {
        "name": service.name,
        "namespace": service.namespace,
        "id": service.id,
        "type": service.type,
        "cluster_ips": _texts(service.cluster_ips),
        "external_ips": _texts((*service.external_ips, *service.ingress_ips)),
        "ports": [_port(port) for port in service.ports],
        "endpoints": _count(list(behind(catalogue.view, item))),
        "selector": dict(service.selector),
        "affinity_s": service.affinity_s,
        "internal_policy": service.internal_policy,
        "external_policy": service.external_policy,
        "health_check_node_port": service.health_check_node_port or None,
        "served": service.served,
        "notes": [*_lacking(service, value), *_notes(service, catalogue.view, grants)],
        "object": value,
    }


def _texts(ips: Sequence[IPAddress]) -> list[str]:
    return [str(ip) for ip in ips]


def _port(port: ServicePort) -> dict[str, Any]:
    return {
        "name": port.name or None,
        "port": port.port,
        "protocol": port.protocol,
        "target_port": port.target or port.port,
        "node_port": port.node_port or None,
    }


def _count(found: Sequence[Behind]) -> dict[str, int]:
    """Addresses, and those of them that are ready on every port where they stand."""
    unready = {one.endpoint.at.ip for one in found if not one.endpoint.ready}
    addresses = {one.endpoint.at.ip for one in found}
    return {"ready": len(addresses - unready), "total": len(addresses)}


def _lacking(service: Service, value: Mapping[str, Any]) -> list[str]:
    """One that was written past `apply` may have no VIP though it wants one."""
    if service.cluster_ips or service.type == "ExternalName" or is_headless(value):
        return []
    return ["it has no VIP, so it is not served; `overlaynet apply` gives it one"]


def _notes(service: Service, view: View, grants: Grants) -> list[str]:
    """What is worth knowing: why it is not served as it asks, and addresses from elsewhere."""
    network = view.settings.service_network
    overlay = view.network.networks if view.network else ()
    return [*(p.message for p in grants.problems()), *stray_notes(service, network, overlay)]


# --- frontends and endpoints ----------------------------------------------------------------------


def frontend_items(catalogue: Catalogue, item: Stored[Service]) -> Items:
    """Where packets for a service are taken in, port by port, as far as no older service has it."""
    grants = Grants(item, catalogue.view.index)
    numbers = range(len(item.value.ports)) if item.value.served else ()
    return [row for number in numbers for row in _fronts(item.value.ports[number], grants.of_port(number))]


def _fronts(port: ServicePort, fronts: Fronts) -> Iterator[dict[str, Any]]:
    about = {"protocol": port.protocol, "port_name": port.name or None}
    kinds = (
        ("clusterIP", fronts.cluster_ips),
        ("externalIP", fronts.external_ips),
        ("ingress", fronts.ingress_ips),
    )
    for kind, ips in kinds:
        for ip in ips:
            yield {"kind": kind, "address": str(ip), "port": port.port, **about}
    if fronts.node_port:
        yield {"kind": "nodePort", "address": None, "port": fronts.node_port, **about}


def endpoint_items(view: View, items: Sequence[Stored[Service]]) -> Items:
    return [_endpoint(one) for item in items for one in behind(view, item)]


def _endpoint(one: Behind) -> dict[str, Any]:
    endpoint = one.endpoint
    return {
        "service": one.service.name,
        "namespace": one.service.namespace,
        "port_name": one.port.name or None,
        "address": str(endpoint.at.ip),
        "port": endpoint.at.port,
        "protocol": one.port.protocol,
        "host": endpoint.host,
        "container": one.workload.name if one.workload else None,
        "ready": endpoint.ready,
        "serving": endpoint.serving,
        "terminating": endpoint.terminating,
        "for_zones": list(endpoint.for_zones),
        "for_nodes": list(endpoint.for_nodes),
    }
