"""The topology as text and as a flow chart for Markdown.

    node-1  192.168.50.11  agent ready
    ├─ cni0 10.244.1.1/24  bridge, mtu 1450
    │  ├─ web-1 10.244.1.2/24  by veth96603d4dfdd
    ├─ flannel.1 10.244.1.0/32  VXLAN vni 1, mtu 1450
    │  ├─ 10.244.2.0/24 → node-2 192.168.50.12
    └─ eth0 192.168.50.11/24  underlay, mtu 1500

Whatever is not as it should be has a sign and a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import click

from overlaynet.trace.render.mermaid import said
from overlaynet.trace.render.text import count_of, cut, plain
from overlaynet.trace.topology import OK, Attached, Backend, Device, HostView, Peer, ServiceView, Topology

ROLE_WORDS = {"bridge": "bridge", "vxlan": "VXLAN", "underlay": "underlay"}
WIDTH = 120


def graph_text(found: Topology, width: int | None = None) -> str:
    """A tree for each host, then the services."""
    room = WIDTH if width is None else width
    lines = [headline(found)]
    for host in found.hosts:
        lines += ["", *_host(host)]
    if found.outside is not None:
        lines += ["", outside_words(found.outside)]
    if found.services:
        lines += ["", "services", *_tree(_service_branch(service) for service in found.services)]
    lines += [f"? {plain(name)} could not be looked at: {plain(why)}" for name, why in found.unseen.items()]
    return "\n".join(_coloured(cut(line, room)) for line in lines)


def outside_words(addresses: Sequence[str]) -> str:
    return plain(f"outside  {' '.join(addresses)}  a client that is no host")


def headline(found: Topology) -> str:
    """How much there is, and how much of it differs."""
    containers = sum(len(host.containers) for host in found.hosts)
    counts = (
        (len(found.hosts), "host"), (containers, "container"), (len(found.services), "service"),
        (found.differences, "difference"),
    )  # fmt: skip
    return ", ".join(count_of(number, thing) for number, thing in counts)


def _coloured(line: str) -> str:
    """A sign's colour for the whole line."""
    if "✗" in line:
        return click.style(line, fg="red")
    return click.style(line, fg="yellow") if "? " in line else line


Branch = tuple[str, Sequence[str]]
"""A line, and those below it."""


def _tree(branches: Iterable[Branch]) -> Iterator[str]:
    known = list(branches)
    for number, (line, below) in enumerate(known):
        last = number == len(known) - 1
        yield f"{'└─' if last else '├─'} {line}"
        yield from (f"{'   ' if last else '│  '}{one}" for one in below)


# --- hosts ----------------------------------------------------------------------------------------


def _host(host: HostView) -> Iterator[str]:
    yield plain("  ".join([host.name, *host.underlay, agent_words(host)]))
    if host.error:
        yield f"└─ ? could not be looked at: {plain(host.error)}"
        return
    yield from _tree(_branches(host))


def agent_words(host: HostView) -> str:
    """``agent ready``, and whether its node record is gone."""
    agent = f"agent {host.agent}" if host.agent else "agent not asked"
    return agent if host.live is not False else f"{agent}, ✗ no node record"


def _branches(host: HostView) -> Iterator[Branch]:
    bridges = {device.name for device in host.devices if device.role == "bridge"}
    for device in host.devices:
        below = [container_words(one) for one in host.containers if one.bridge == device.name]
        below += [peer_words(peer) for peer in host.peers if peer.device == device.name]
        yield device_words(device), [*_tree((line, ()) for line in below)]
    loose = [one for one in host.containers if one.bridge not in bridges]
    yield from ((f"✗ {container_words(one)}, on no bridge", ()) for one in loose)
    known = {device.name for device in host.devices}
    yield from ((f"✗ {peer_words(peer)}, by {plain(peer.device)}", ()) for peer in host.peers
                if peer.device not in known)  # fmt: skip
    yield from ((f"✗ {plain(words)}", ()) for words in host.differences or ())


def device_words(device: Device) -> str:
    sign = "" if device.state in (OK, None) else f"✗ {device.state}: "
    down = "" if device.up else ", ✗ down"
    vni = f" vni {device.vni}" if device.vni is not None else ""
    addresses = " ".join(device.addresses)
    about = f"{ROLE_WORDS[device.role]}{vni}, mtu {device.mtu}{down}"
    return plain(f"{sign}{device.name} {addresses}".rstrip() + f"  {about}")


def container_words(one: Attached) -> str:
    addresses = " ".join(one.addresses) or "without address"
    cable = f"by {one.port}" if one.port else "✗ on no cable that is known"
    down = [name for name, up in ((one.iface, one.up), (one.port, one.port_up)) if name and not up]
    ends = f", ✗ {' and '.join(down)} down" if down else ""
    return plain(f"{one.name} {addresses}  {cable}{ends}")


def peer_words(peer: Peer) -> str:
    sign = "" if peer.state in (OK, None) else "✗ "
    where = "nowhere" if peer.to is None else f"{peer.host or '✗ no known host'} {peer.to}"
    problems = f"  {', '.join(peer.problems)}" if peer.problems else ""
    return plain(f"{sign}{peer.subnet} → {where}{problems}")


# --- services -------------------------------------------------------------------------------------


def _service_branch(service: ServiceView) -> Branch:
    below = [backend_words(one) for one in service.backends] or ["✗ no endpoints"]
    return service_words(service), [*_tree((line, ()) for line in below)]


def service_words(service: ServiceView) -> str:
    """``default/web 10.112.0.10  80/tcp, nodePort 30080``."""
    ports = [f"{port}/{kind}{f', nodePort {node}' if node else ''}" for kind, port, node in service.ports]
    return plain(f"{service.id} {' '.join(map(str, service.addresses))}  {'; '.join(ports)}")


def backend_words(one: Backend) -> str:
    address = f"[{one.address}]" if one.address.version == 6 else str(one.address)
    name = f"{one.container} " if one.container else ""
    host = f"  on {one.host}" if one.host else ""
    return plain(f"{name}{address}:{one.port}{host}{'' if one.ready else '  ✗ not ready'}")


# --- for Markdown ---------------------------------------------------------------------------------


def graph_mermaid(found: Topology) -> str:
    """A flow chart (https://mermaid.js.org/syntax/flowchart.html) in Markdown."""
    return "\n".join([f"### {headline(found)}", "", "```mermaid", *_chart(found), "```", ""])


def _chart(found: Topology) -> Iterator[str]:
    yield "flowchart TB"
    for number, host in enumerate(found.hosts):
        title = said(" ".join([host.name, *host.underlay]))
        yield f'  subgraph h{number}["{title}"]'
        yield from _host_chart(f"h{number}", host)
        yield "  end"
        yield f"  h{number} --- u"
    yield '  u(["underlay"])'
    if found.outside is not None:
        yield f'  o("{said(outside_words(found.outside))}")'
        yield "  o --- u"
    yield from _tunnels(found)
    for number, service in enumerate(found.services):
        yield from _service_chart(f"s{number}", service, found)


def _host_chart(name: str, host: HostView) -> Iterator[str]:
    if host.error:
        yield f'    {name}x["{said(f"? {host.error}")}"]'
        return
    for number, device in enumerate(host.devices):
        yield f'    {name}d{number}["{said(device_words(device))}"]'
    bridges = {device.name: f"{name}d{n}" for n, device in enumerate(host.devices)}
    for number, one in enumerate(host.containers):
        yield f'    {name}c{number}("{said(container_words(one))}")'
        if one.bridge in bridges:
            yield f"    {name}c{number} --- {bridges[one.bridge]}"
    for number, words in enumerate(host.differences or ()):
        yield f'    {name}x{number}["{said(f"✗ {words}")}"]'


def _tunnels(found: Topology) -> Iterator[str]:
    """An arrow to each host that a host can send to."""
    numbers = {host.name: number for number, host in enumerate(found.hosts)}
    for host in found.hosts:
        for peer in host.peers:
            if peer.host in numbers:
                arrow = "-.->" if peer.tunnelled else "-->"
                yield f'  h{numbers[host.name]} {arrow}|"{said(peer_words(peer))}"| h{numbers[peer.host]}'


def _service_chart(name: str, service: ServiceView, found: Topology) -> Iterator[str]:
    yield f'  {name}{{{{"{said(service_words(service))}"}}}}'
    nodes = {
        (host.name, one.name): f"h{h}c{c}"
        for h, host in enumerate(found.hosts)
        for c, one in enumerate(host.containers)
    }
    for one in service.backends:
        node = nodes.get((one.host or "", one.container or ""))
        if node is not None:
            yield f"  {name} {'-->' if one.ready else '-.-x'} {node}"
