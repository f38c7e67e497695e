"""`overlaynet service create|delete`: a service without writing a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

import click

from overlaynet.addr import IPAddress, IPNetwork
from overlaynet.cli import names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.apply import namespace_option, show, write
from overlaynet.errors import NotFound, UsageError
from overlaynet.model import CLUSTER, LOCAL, Service, ServicePort
from overlaynet.store import kubernetes, services
from overlaynet.store.kubernetes import DEFAULT_NAMESPACE, HEADLESS, MAX_AFFINITY_S

F = TypeVar("F", bound=Callable[..., Any])
HELP = "overlaynet service create --help"
_PORT = re.compile(r"(?:(?P<name>[^=:/]+)=)?(?P<port>\d+)(?::(?P<target>[^:/]+))?(?:/(?P<protocol>[A-Za-z]+))?")
_TYPES = [kind for kind in kubernetes.TYPES if kind != "ExternalName"]
_policy = click.Choice([CLUSTER, LOCAL], case_sensitive=False)


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """An option's value, or each of its values, as `parse` understands it; its ValueError is told by click."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return tuple(map(parse, value)) if isinstance(value, tuple) else value and parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def _port(text: str) -> ServicePort:
    """``[NAME=]PORT[:TARGET][/PROTOCOL]``; the target is a number or the name of a container's port."""
    found = _PORT.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not like 80, 80:8080, http=80:web or 53/udp")
    number, target = int(found["port"]), found["target"] or found["port"]
    protocol = (found["protocol"] or "TCP").upper()
    return ServicePort(number, protocol, found["name"] or "", int(target) if target.isdigit() else target)


def _labels(text: str) -> list[tuple[str, str]]:
    """``app=web,tier=front``"""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and sign for name, sign, _ in pairs):
        raise ValueError(f"{text!r} is not like app=web or app=web,tier=front")
    return [(name, value) for name, _, value in pairs]


def _vip(text: str) -> IPAddress | str:
    return HEADLESS if text.lower() == "none" else ip_address(text)


def _option(name: str, parse: Callable[[str], Any], metavar: str, **settings: Any) -> Callable[[F], F]:
    return click.option(name, callback=_parsed(parse), metavar=metavar, **settings)


@click.group()
def service() -> None:
    """Create and delete services. For all that a Service can say: `overlaynet apply`."""


@service.command()
@click.argument("name")
@_option("--port", _port, "[NAME=]PORT[:TARGET][/udp]", multiple=True, required=True)
@_option("--selector", _labels, "app=web", multiple=True, help="The labels of its containers.")
@click.option("--type", "kind", type=click.Choice(_TYPES, case_sensitive=False), help="Usually ClusterIP.")
@_option("--cluster-ip", _vip, "IP", help="This VIP, or None for a headless service.")
@click.option("--node-port", type=int, multiple=True, metavar="N", help="Of each port, in their order.")
@_option("--external-ip", ip_address, "IP", multiple=True, help="Also an address of it; others route it here.")
@_option("--ingress-ip", ip_address, "IP", multiple=True, help="The address of a load balancer in front.")
@_option("--source-range", ip_network, "CIDR", multiple=True, help="Who may call the ingress IPs.")
@click.option(
    "--affinity",
    type=click.IntRange(1, MAX_AFFINITY_S),
    metavar="SECONDS",
    help="Keep a client on one endpoint.",
)
@click.option("--internal-policy", type=_policy, default=CLUSTER, help="Which endpoints answer for its VIP.")
@click.option("--external-policy", type=_policy, default=CLUSTER, help="Which ones callers from outside.")
@namespace_option
@shared
@pass_app
def create(
    app: App,
    name: str,
    port: tuple[ServicePort, ...],
    selector: tuple[Sequence[tuple[str, str]], ...],
    kind: str | None,
    cluster_ip: IPAddress | str | None,
    node_port: tuple[int, ...],
    external_ip: tuple[IPAddress, ...],
    ingress_ip: tuple[IPAddress, ...],
    source_range: tuple[IPNetwork, ...],
    affinity: int | None,
    internal_policy: str,
    external_policy: str,
    namespace: str | None,
) -> None:
    """Create the service NAME; its VIP and nodePorts are chosen unless they are given."""
    app.explain_store()
    made = Service(
        name=name,
        namespace=namespace or DEFAULT_NAMESPACE,
        type=kind or ("NodePort" if node_port else "ClusterIP"),
        cluster_ips=() if cluster_ip is None or isinstance(cluster_ip, str) else (cluster_ip,),
        ports=_complete(port, node_port),
        selector={key: value for pairs in selector for key, value in pairs},
        external_ips=external_ip,
        ingress_ips=ingress_ip,
        source_ranges=source_range,
        internal_policy=internal_policy,
        external_policy=external_policy,
        affinity_s=affinity or 0,
    )
    value = kubernetes.service_object(made)
    if cluster_ip == HEADLESS:
        value["spec"]["clusterIP"] = HEADLESS
    kubernetes.read_service(value)
    _refuse_present(app, made.id)
    show(app, "Service", write(app, [value]))


def _complete(ports: Sequence[ServicePort], node_ports: Sequence[int]) -> tuple[ServicePort, ...]:
    """The ports with their nodePorts; where there are several, with names: ``tcp-80`` if none was given."""
    if len(node_ports) > len(ports):
        raise UsageError("there are more --node-port than --port", next=[HELP])
    numbers = (*node_ports, *[0] * (len(ports) - len(node_ports)))
    return tuple(
        replace(port, node_port=number, name=port.name or _port_name(port, several=len(ports) > 1))
        for port, number in zip(ports, numbers, strict=True)
    )


def _port_name(port: ServicePort, *, several: bool) -> str:
    return f"{port.protocol.lower()}-{port.port}" if several else ""


def _refuse_present(app: App, service_id: str) -> None:
    """`create` replaces nothing."""
    store = app.cluster.store()
    try:
        present = store.read([app.cluster.keys().service(service_id)]).items
    finally:
        store.close()
    if present:
        raise UsageError(
            f"service {service_id} is there already",
            evidence="create replaces nothing",
            next=[app.command("get services"), "overlaynet apply -f FILE"],
        )


@service.command()
@click.argument("name", shell_complete=names.services)
@namespace_option
@shared
@pass_app
def delete(app: App, name: str, namespace: str | None) -> None:
    """Delete the service NAME (or NAMESPACE/NAME) with all it holds: its VIP, its nodePorts, and the
    EndpointSlices that name it."""
    app.explain_store()
    service_id = name if "/" in name else f"{namespace or DEFAULT_NAMESPACE}/{name}"
    keys, store = app.cluster.keys(), app.cluster.store()
    try:
        known = [item.key.removeprefix(keys.services) for item in store.read([keys.services]).items]
        if service_id not in known:
            raise NotFound(
                f"there is no service {service_id}",
                evidence="services: " + (", ".join(known) or "none"),
                next=[app.command("get services")],
            )
        gone = services.delete(store, keys, [service_id])
    finally:
        store.close()
    show(app, "Service", gone)
