"""Captures as lists of frames: one ping from web-1 on node-1 to web-3 on node-2, and a call to a service."""

from __future__ import annotations

from ipaddress import ip_address

from helpers import frames

from overlaynet.proof.packet import Packet, Scene
from overlaynet.proof.packets import Packets
from overlaynet.trace.model import Captured, Point, Tap

WEB_1, WEB_3 = "10.244.1.2", "10.244.2.2"
NODE_1, NODE_2 = "192.168.50.11", "192.168.50.12"
VIP = "10.112.0.10"
SCENE = Scene(
    {
        "web-1": [ip_address(WEB_1)],
        "web-3": [ip_address(WEB_3)],
        "node-1": [ip_address(NODE_1)],
        "node-2": [ip_address(NODE_2)],
    }
)
PAYLOAD = b"sixteen octets.." * 2


def point(text: str) -> Point:
    return Point(*text.split(":"))


def seen(where: str, packet, t_us: int = 0, direction: str = "out", *, kind: int = 0x0800) -> Packet:
    """One frame at a point."""
    data = frames.ethernet(packet, kind)
    return Packet(Captured(point(where), t_us * 1000, direction, data, len(data)), SCENE)


def captured(*packets: Packet, points: str = "", **tap: object) -> Packets:
    """A capture at the packets' points and the named ones, witnesses unless `tap` says otherwise."""
    where = dict.fromkeys([*(p.point for p in packets), *map(point, points.split())])
    facts = {"armed": True, "closed": True, "dropped": 0, **tap}
    return Packets(packets, [Tap(one, **facts) for one in where], SCENE)


def ping(ttl: int = 64, **more):
    return frames.echo(WEB_1, WEB_3, 7, PAYLOAD, ttl=ttl, **more)


def ping_on_its_way(**tunnel) -> Packets:
    """Six sightings, as an overlay over VXLAN makes them."""
    inside = frames.vxlan(NODE_1, NODE_2, ping(63), **tunnel)
    return captured(
        seen("web-1:eth0", ping(), 0),
        seen("node-1:cni0", ping(), 10, "in"),
        seen("node-1:flannel.1", ping(63), 20),
        seen("node-1:eth0", inside, 30),
        seen("node-2:flannel.1", ping(63), 40, "in"),
        seen("web-3:eth0", ping(62), 50, "in"),
    )


def call_to_a_service() -> Packets:
    """A SYN that is translated between the container and its bridge."""
    return captured(
        seen("web-1:eth0", frames.syn(WEB_1, 40_000, VIP, 80), 0),
        seen("node-1:cni0", frames.syn(WEB_1, 40_000, WEB_3, 8080), 10, "in"),
        seen("web-3:eth0", frames.syn(WEB_1, 40_000, WEB_3, 8080, ttl=62), 50, "in"),
    )
