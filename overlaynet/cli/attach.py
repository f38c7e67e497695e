"""`overlaynet attach` and `overlaynet detach`: a container's way into the overlay and out of it.

Where there is no container engine that calls us, a person does. The container is anything with a network
namespace: one that has a name, or that of a process.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import click

from overlaynet.cli import inventory, names
from overlaynet.cli.app import App, pass_app, shared
from overlaynet.cli.apply import namespace_option
from overlaynet.cli.output import seconds
from overlaynet.cli.values import duration, parsed
from overlaynet.cluster.cluster import Cluster, Host, pick_hosts
from overlaynet.core.probes import parse_probe
from overlaynet.errors import NotFound, OverlayError, UsageError
from overlaynet.lab import attach as wiring
from overlaynet.lab.topology import Container
from overlaynet.model import Port, Probe

DEFAULT_NAMESPACE = "default"
AGENT_TIMEOUT_S = 10.0
_PORT = re.compile(r"(\d+)(?:/(tcp|udp|sctp))?(?::([-a-z0-9]+))?", re.IGNORECASE)
_HTTP = re.compile(r"(\d+)(/.*)?")


def _label(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ValueError(f"{text!r} is not like app=web")
    return name, value


def _port(text: str) -> Port:
    found = _PORT.fullmatch(text)
    if not found or not 1 <= int(found[1]) <= 65_535:
        raise ValueError(f"{text!r} is not like 80, 53/udp or 80/tcp:http")
    return Port(int(found[1]), (found[2] or "tcp").upper(), found[3])


def _http(text: str) -> Probe:
    found = _HTTP.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not like 80/healthy")
    return parse_probe({"http": {"port": int(found[1]), "path": found[2] or "/"}})


def _tcp(text: str) -> Probe:
    return parse_probe({"tcp": {"port": int(text)}})


def _exec(text: str) -> Probe:
    return parse_probe({"exec": {"command": shlex.split(text)}})


_probe_tcp = click.option("--probe-tcp", callback=parsed(_tcp), metavar="PORT", help="Ready if it accepts.")
_probe_http = click.option(
    "--probe-http", callback=parsed(_http), metavar="PORT/PATH", help="Ready if a GET is answered well."
)
_probe_exec = click.option(
    "--probe-exec", callback=parsed(_exec), metavar="'CMD ARGS'", help="Ready if it ends with 0 in there."
)


@click.command()
@click.argument("name", shell_complete=names.containers)
@click.option("--netns", "path", metavar="NAME|PATH", help="Its network namespace.")
@click.option("--pid", type=click.IntRange(1), help="A process in it.")
@click.option("--label", callback=parsed(_label), multiple=True, metavar="K=V")
@click.option("--port", callback=parsed(_port), multiple=True, metavar="80[/tcp][:NAME]")
@click.option("--ip", multiple=True, metavar="ADDR", help="This address, if it is free.")
@click.option("--host", metavar="HOST", shell_complete=names.hosts, help="Where it runs; only in a lab.")
@_probe_tcp
@_probe_http
@_probe_exec
@namespace_option
@shared
@pass_app
def attach(
    app: App,
    name: str,
    path: str | None,
    pid: int | None,
    label: Sequence[tuple[str, str]],
    port: Sequence[Port],
    ip: Sequence[str],
    host: str | None,
    probe_tcp: Probe | None,
    probe_http: Probe | None,
    probe_exec: Probe | None,
    namespace: str | None,
) -> None:
    """Wire a container to the overlay, by its network namespace or by a process in it.

    A container of the lab that was detached needs neither: it gets back what the topology says of it. Probes
    ask the container's own address; the command of --probe-exec runs in the namespaces of --pid as its user.
    """
    probes = [probe for probe in (probe_tcp, probe_http, probe_exec) if probe is not None]
    if len(probes) > 1 or (path is not None and pid is not None):
        raise UsageError(
            "one namespace and one probe at most",
            evidence="--netns and --pid, or several of --probe-tcp, --probe-http and --probe-exec",
            next=["overlaynet attach --help"],
        )
    known, where = _known(app.cluster, name) if path is None and pid is None else (None, None)
    place = path or where or ""
    target = _target(app.cluster, host or (known.host if known else None))
    wanted = known or Container(name, target.name)
    wanted = replace(
        wanted,
        namespace=namespace or wanted.namespace,
        labels=MappingProxyType(dict(label)) if label else wanted.labels,
        ports=tuple(port) or wanted.ports,
        probe=probes[0] if probes else wanted.probe,
    )
    document = app.cluster.wire(target.name, wiring.body(wanted, place, ips=ip), place, pid)
    state = "ready" if document["ready"] else "ready when its probe passes"
    app.result(
        "Attached",
        {"host": target.name, **document},
        f"{wanted.namespace}/{name}  {'  '.join(document['ips'])}  on {target.name}, {state}",
        [name],
    )


def _known(cluster: Cluster, name: str) -> tuple[Container, str]:
    """A container that the lab has, and its namespace. Raises UsageError: of any other nothing is known."""
    found = next((c for c in cluster.containers() if c.name == name and c.netns and c.started), None)
    if found is None or found.netns is None:
        raise UsageError(
            f"which network namespace is {name}'s?",
            evidence="neither --netns nor --pid was given",
            next=["ip netns list", "overlaynet attach --help"],
        )
    labels = found.labels or MappingProxyType({})
    container = Container(name, found.host, found.namespace, labels, found.ports, probe=found.probe)
    return container, found.netns


def _target(cluster: Cluster, host: str | None) -> Host:
    """The host that is meant: the named one, or the only one there is. Raises NotFound or UsageError."""
    hosts = pick_hosts(cluster, host)
    if len(hosts) != 1:
        raise UsageError(
            "on which host is it?",
            evidence="hosts: " + ", ".join(one.name for one in hosts),
            next=[f"add: --host {hosts[0].name}" if hosts else "overlaynet get hosts"],
        )
    return hosts[0]


# --- detach ---------------------------------------------------------------------------------------


@click.command()
@click.argument("name", shell_complete=names.containers)
@click.option(
    "--grace", callback=parsed(duration), metavar="30s", help="Let it end its work: it takes nothing new."
)
@click.option("--host", metavar="HOST", shell_complete=names.hosts, help="Where it is; else it is looked for.")
@namespace_option
@shared
@pass_app
def detach(app: App, name: str, grace: float | None, host: str | None, namespace: str | None) -> None:
    """Unwire a container, at once or in a while.

    With --grace it stays wired and answers, its services send it nothing new, and it is unwired when the time
    is over; a second `detach` without it ends the wait.
    """
    namespace = namespace or DEFAULT_NAMESPACE
    found = _find(app.cluster, namespace, name, host)
    agent = app.cluster.agent(found.name, AGENT_TIMEOUT_S)
    query = f"?grace_s={grace:g}" if grace else ""
    document = agent.delete(f"/v1/containers/{namespace}/{name}{query}")
    left = document["ends_in_s"]
    text = "detached from" if left is None else f"terminates, and is detached in {seconds(left)} from"
    app.result("Detached", {"host": found.name, **document}, f"{namespace}/{name} {text} {found.name}", [name])


def _find(cluster: Cluster, namespace: str, name: str, host: str | None) -> Host:
    """Who has it wired. Raises NotFound; agents that do not answer are named."""
    hosts = pick_hosts(cluster, host)
    told = inventory.statuses(cluster, hosts)
    for one in hosts:
        status = told[one.name]
        if not isinstance(status, OverlayError) and _has(status, namespace, name):
            return one
    silent = [one.name for one in hosts if isinstance(told[one.name], OverlayError)]
    raise NotFound(
        f"no container {namespace}/{name} is attached",
        evidence=f"hosts that did not answer: {', '.join(silent) or 'none'}",
        next=["overlaynet get containers"],
    )


def _has(status: Mapping[str, Any], namespace: str, name: str) -> bool:
    wired = any((c["namespace"], c["name"]) == (namespace, name) for c in status["containers"])
    return wired or f"{namespace}.{name}" in status["stray_containers"]
