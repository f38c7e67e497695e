"""The topology as a drawing and as a page.

Hosts stand side by side on the underlay, three in a row. In each, from top to bottom as a packet leaves it: the
containers, the bridge that they are plugged into, the tunnel's device with the hosts that it leads to, and the
wire. Devices of one kind are level, and a pipe joins the tunnels' devices of neighbours. What is not as it
should be has a sign, a word and a frame of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from overlaynet.trace.render.drawing import Box, Group, Line, Rectangle, Shape, Sheet, Text, shifted, write
from overlaynet.trace.render.graph import (
    agent_words,
    backend_words,
    container_words,
    device_words,
    headline,
    outside_words,
    peer_words,
    service_words,
)
from overlaynet.trace.render.html import page, table, text
from overlaynet.trace.render.measure import fit, width, wrapped
from overlaynet.trace.render.text import count_of, plain
from overlaynet.trace.topology import MISSING, OK, ROLES, Attached, Device, HostView, Peer, Topology

MARGIN, GAP = 24.0, 64.0
HOST_WIDTH, INSET = 330.0, 12.0
HEAD, ROW, STEP = 34.0, 40.0, 10.0
LINE = 16.0
IN_A_ROW = 3
MOST = 12
"""Containers, and peers, that a host shows; of more there is a count."""


def graph_svg(found: Topology) -> str:
    """The drawing, in one self-contained file."""
    return write(sheet(found), "graph")


def sheet(found: Topology, *, alone: bool = True) -> Sheet:
    """The drawing, laid out but not written. Not `alone`: on a page that says the rest in words."""
    columns = min(IN_A_ROW, max(1, len(found.hosts)))
    room = max(620.0, columns * (HOST_WIDTH + GAP) - GAP)
    drawing = Sheet(headline(found), summary(found), room + 2 * MARGIN)
    y = MARGIN
    if alone:
        drawing.add(Text(MARGIN, y + 18, fit(headline(found), room, 18, bold=True), 18, bold=True))
        y += 40
    for start in range(0, len(found.hosts), IN_A_ROW):
        hosts = found.hosts[start : start + IN_A_ROW]
        shapes, y = _row(hosts, y, room)
        drawing.add(*shapes)
        y += 24
    for section in (_outside, _services, *([_differences] if alone else [])):
        shapes, y = section(found, y, room)
        drawing.add(*shapes)
    drawing.height = y + MARGIN - 10
    return drawing


def summary(found: Topology) -> str:
    """The whole drawing in words."""
    parts = [headline(found)]
    for host in found.hosts:
        parts += [f"{host.name}: {agent_words(host)}"]
        parts += [device_words(device) for device in host.devices]
        parts += [container_words(one) for one in host.containers]
        parts += [peer_words(peer) for peer in host.peers]
    parts += [] if found.outside is None else [outside_words(found.outside)]
    parts += [service_words(service) for service in found.services]
    return plain(". ".join(parts))


# --- hosts ----------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Shapes at the origin, and how high they are."""

    shapes: tuple[Shape, ...]
    height: float


def _row(hosts: Sequence[HostView], y: float, room: float) -> tuple[list[Shape], float]:
    """Hosts side by side, devices of one kind level, all on the underlay."""
    blocks = [_blocks(host) for host in hosts]
    heights = [max(block.height for block in level) for level in zip(*blocks, strict=True)]
    total = HEAD + sum(height + STEP for height in heights if height) + 4
    shapes: list[Shape] = []
    for number, (host, levels) in enumerate(zip(hosts, blocks, strict=True)):
        x = MARGIN + number * (HOST_WIDTH + GAP)
        shapes += _host(host, levels, heights, Box(x, y, HOST_WIDTH, total))
    bottom = y + total + 26
    for number in range(len(hosts)):
        x = MARGIN + number * (HOST_WIDTH + GAP) + HOST_WIDTH / 2
        shapes.append(Line(((x, y + total), (x, bottom)), "rail"))
    shapes += _pipes(hosts, y + HEAD + sum(height + STEP for height in heights[:2] if height) + 20)
    shapes.append(Rectangle(Box(MARGIN, bottom, room, 26), "container", 6))
    shapes.append(Text(MARGIN + room / 2, bottom + 17, "underlay", 12, "quiet", anchor="middle"))
    return shapes, bottom + 26


def _pipes(hosts: Sequence[HostView], y: float) -> Iterator[Shape]:
    """Between neighbours that both have a tunnel's device."""
    tunnels = [next((d for d in host.devices if d.role == "vxlan"), None) for host in hosts]
    for number, (one, other) in enumerate(pairwise(tunnels)):
        if one is None or other is None:
            continue
        x = MARGIN + number * (HOST_WIDTH + GAP) + HOST_WIDTH
        words = fit("tunnel", GAP - 14, 10)
        pipe = Rectangle(Box(x - INSET, y - 11, GAP + 2 * INSET, 22), "pipe", 4)
        label = Text(x + GAP / 2, y + 4, words, 10, anchor="middle")
        yield Group("a VXLAN tunnel", (pipe, label))


def _host(host: HostView, levels: Sequence[Block], heights: Sequence[float], box: Box) -> Iterator[Shape]:
    yield Rectangle(box, "host", 8)
    words, colour = _host_state(host)
    right = Text(box.right - INSET, box.y + 21, fit(words, 190, 11), 11, colour, anchor="end", whole=words)
    name = plain(host.name)
    short = fit(name, box.width - 3 * INSET - right.width, 14, bold=True)
    yield Text(box.x + INSET, box.y + 21, short, 14, bold=True, whole=name)
    yield right
    if host.error:
        lines = wrapped(plain(f"could not be looked at: {host.error}"), box.width - 2 * INSET, 12, lines=3)
        yield from (Text(box.x + INSET, box.y + 46 + LINE * n, line, 12, "bad") for n, line in enumerate(lines))
        return
    y = box.y + HEAD
    bridge_y = y + (heights[0] + STEP if heights[0] else 0.0)
    for level, (block, height) in enumerate(zip(levels, heights, strict=True)):
        # Containers stand on their bridge; what is below hangs from the top of its level.
        top = y + height - block.height if level == 0 else y
        yield from (shifted(shape, box.x + INSET, top) for shape in block.shapes)
        if level == 0 and block.shapes:
            x = box.x + INSET + 8
            yield Line(((x, top + 20), (x, bridge_y)), "rail")
        y += height + STEP if height else 0.0


def _host_state(host: HostView) -> tuple[str, str]:
    if host.error:
        return "? not looked at", "unsure"
    differing = len(host.differences or ())
    if differing:
        return f"✗ {count_of(differing, 'difference')}", "bad"
    return plain(agent_words(host)), "bad" if host.live is False else "quiet"


def _blocks(host: HostView) -> list[Block]:
    """Containers, then devices by role."""
    by_role: Mapping[str, list[Device]] = {
        role: [device for device in host.devices if device.role == role] for role in ROLES
    }
    return [_containers(host), *(_devices(host, by_role[role]) for role in ROLES)] if not host.error else [
        Block((), 40.0), *(Block((), 0.0) for _ in ROLES)
    ]  # fmt: skip


def _containers(host: HostView) -> Block:
    shapes: list[Shape] = []
    y = 0.0
    for one in host.containers[:MOST]:
        plugged = one.bridge is not None and one.up and one.port_up
        look = "rail" if plugged else "rail-missing"
        shapes += [Line(((8, y + 20), (22, y + 20)), look), _container(one, y)]
        y += ROW + 6
    if len(host.containers) > MOST:
        more = f"and {count_of(len(host.containers) - MOST, 'container')} more"
        shapes.append(Text(30, y + 14, more, 12, "quiet"))
        y += 24
    return Block(tuple(shapes), max(0.0, y - 6))


def _container(one: Attached, y: float) -> Shape:
    room = HOST_WIDTH - 2 * INSET - 22
    healthy = one.up and one.port_up and one.bridge is not None
    address = fit(plain(" ".join(one.addresses) or "no address"), room * 0.55, 10.5, mono=True)
    right = Text(22 + room - 8, y + 16, address, 10.5, mono=True, anchor="end", whole=" ".join(one.addresses))
    name = plain(one.name)
    left = Text(30, y + 16, fit(name, room - 30 - right.width, 12, bold=True), 12, bold=True, whole=name)
    words, colour = _cable_words(one)
    below = Text(30, y + 32, fit(words, room - 16, 11), 11, colour, whole=words)
    box = Rectangle(Box(22, y, room, ROW), "container" if healthy else "card-missing", 6)
    return Group(container_words(one), (box, left, right, below))


def _cable_words(one: Attached) -> tuple[str, str]:
    if one.port is None:
        return f"✗ {one.iface}: on no cable that is known", "bad"
    down = [name for name, up in ((one.iface, one.up), (one.port, one.port_up)) if not up]
    if down:
        return plain(f"✗ {' and '.join(down)} down"), "bad"
    if one.bridge is None:
        return plain(f"✗ {one.port} is on no bridge"), "bad"
    return plain(f"{one.iface} — {one.port}, mtu {one.mtu}"), "quiet"


def _devices(host: HostView, devices: Sequence[Device]) -> Block:
    shapes: list[Shape] = []
    y = 0.0
    for device in devices:
        block = _device(device, [peer for peer in host.peers if peer.device == device.name])
        shapes += [shifted(shape, 0, y) for shape in block.shapes]
        y += block.height + STEP
    return Block(tuple(shapes), max(0.0, y - STEP))


def _device(device: Device, peers: Sequence[Peer]) -> Block:
    room = HOST_WIDTH - 2 * INSET
    healthy = device.up and device.state in (OK, None)
    words = fit(_device_state(device), room / 2, 11)
    right = Text(room - 8, 17, words, 11, "quiet" if healthy else "bad", anchor="end")
    name = plain(device.name)
    left = Text(10, 17, fit(name, room - 30 - right.width, 13, bold=True), 13, bold=True, whole=name)
    about = plain("  ".join([*device.addresses, f"mtu {device.mtu}"]))
    shapes: list[Shape] = [left, right, Text(10, 34, fit(about, room - 18, 10.5, mono=True), 10.5, mono=True)]
    y = 44.0
    for peer in sorted(peers, key=lambda peer: peer.state in (OK, None))[:MOST]:
        shape, height = _peer(peer, y, room)
        shapes.append(shape)
        y += height
    if len(peers) > MOST:
        shapes.append(Text(10, y + 12, f"and {len(peers) - MOST} more", 11, "quiet"))
        y += 20
    frame = Rectangle(Box(0, 0, room, y), "card" if healthy else "card-missing", 5)
    return Block((Group(device_words(device), (frame, *shapes)),), y)


def _device_state(device: Device) -> str:
    """What is wrong with it, else what it is."""
    if not device.up:
        return "✗ missing" if device.state == MISSING else "✗ down"
    if device.state not in (OK, None):
        return f"✗ {device.state}"
    return {"vxlan": f"VXLAN, vni {device.vni}", "underlay": "wire to the underlay"}.get(
        device.role, device.role
    )


def _peer(peer: Peer, y: float, room: float) -> tuple[Shape, float]:
    """On several lines where one is too short for what is wrong; with how high it is."""
    words = peer_words(peer)
    healthy = peer.state in (OK, None)
    look = "pipe" if peer.tunnelled else "layer"
    glyph = Rectangle(Box(10, y + 2, 16, 10), look, 3, fill="" if peer.tunnelled else "data")
    colour = "ink" if healthy else "bad"
    fitting = [fit(words, room - 42, 10.5, mono=True)]
    parts = fitting if healthy else wrapped(words, room - 42, 10.5, mono=True)
    heights = (y + 11 + 14 * number for number in range(len(parts)))
    lines = [
        Text(32, at, part, 10.5, colour, mono=True, whole=words)
        for at, part in zip(heights, parts, strict=True)
    ]
    return Group(words, (glyph, *lines)), 20.0 + 14 * (len(parts) - 1)


# --- around the hosts -----------------------------------------------------------------------------


def _outside(found: Topology, y: float, room: float) -> tuple[list[Shape], float]:
    if found.outside is None:
        return [], y
    words = outside_words(found.outside)
    short = fit(words, room - 24, 12)
    chip = width(short, 12) + 24
    return [
        Line(((MARGIN + 20, y - 24), (MARGIN + 20, y)), "rail"),
        Rectangle(Box(MARGIN, y, chip, 28), "container", 6),
        Text(MARGIN + 12, y + 18, short, 12, whole=words),
    ], y + 50


def _services(found: Topology, y: float, room: float) -> tuple[list[Shape], float]:
    if not found.services:
        return [], y
    shapes: list[Shape] = [Text(MARGIN, y + 14, "Services", 14, bold=True)]
    y += 28
    for service in found.services:
        words = service_words(service)
        shapes.append(Text(MARGIN, y + 12, fit(words, room, 12, bold=True), 12, bold=True, whole=words))
        y += 22
        x = MARGIN
        for backend in [backend_words(one) for one in service.backends] or ["✗ no endpoints"]:
            short = fit(backend, room - 40, 11)
            chip = width(short, 11) + 20
            if x > MARGIN and x + chip > MARGIN + room:
                x, y = MARGIN, y + 30
            bad = "✗" in backend
            shapes.append(Rectangle(Box(x, y, chip, 24), "card-missing" if bad else "container", 12))
            shapes.append(Text(x + 10, y + 16, short, 11, "bad" if bad else "ink", whole=backend))
            x += chip + 8
        y += 38
    return shapes, y


def _differences(found: Topology, y: float, room: float) -> tuple[list[Shape], float]:
    lines = [f"{host.name}: {words}" for host in found.hosts for words in host.differences or ()]
    lines += [f"{name} could not be looked at: {why}" for name, why in found.unseen.items()]
    if not lines:
        return [], y
    shapes: list[Shape] = [Text(MARGIN, y + 14, "What differs from what should be", 14, "bad", bold=True)]
    y += 26
    for words in map(plain, lines):
        short = fit(f"✗ {words}", room, 11, mono=True)
        shapes.append(Text(MARGIN, y + 12, short, 11, mono=True, whole=words))
        y += 18
    return shapes, y + 8


# --- as a page ------------------------------------------------------------------------------------


def graph_html(found: Topology) -> str:
    """The drawing, and tables of everything in it."""
    body = [f"<h1>{text(headline(found))}</h1>"]
    body.append('<div class="picture" role="region" aria-label="The topology, drawn" tabindex="0">')
    body += [write(sheet(found, alone=False), "graph"), "</div>"]
    differences = [
        (text(host.name), f"<code>{text(words)}</code>")
        for host in found.hosts
        for words in host.differences or ()
    ]
    body += table("What differs from what should be", ("host", "difference"), differences)
    body += table("Devices", ("host", "device", "MAC", "state"), list(_device_rows(found)))
    body += table("Containers", ("host", "container", "MAC"), list(_container_rows(found)))
    body += table("Ways to other hosts", ("host", "by", "way", "state"), list(_peer_rows(found)))
    services = [
        (text(service_words(service)), "<br>".join(text(backend_words(one)) for one in service.backends))
        for service in found.services
    ]
    body += table("Services", ("service", "endpoints"), services)
    return page(headline(found), body)


def _device_rows(found: Topology) -> Iterator[Sequence[str]]:
    for host in found.hosts:
        for device in host.devices:
            mac = "" if device.mac is None else f"<code>{text(device.mac)}</code>"
            yield text(host.name), text(device_words(device)), mac, text(device.state or "-")


def _container_rows(found: Topology) -> Iterator[Sequence[str]]:
    for host in found.hosts:
        for one in host.containers:
            mac = "" if one.mac is None else f"<code>{text(one.mac)}</code>"
            yield text(host.name), text(container_words(one)), mac


def _peer_rows(found: Topology) -> Iterator[Sequence[str]]:
    for host in found.hosts:
        for peer in host.peers:
            yield text(host.name), text(peer.device), text(peer_words(peer)), text(peer.state or "-")
