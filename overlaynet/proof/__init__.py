"""Questions to a cluster about its packets. What `trace` decides without I/O is carried out here.

What scripts and tests use is named here, and imported when it is first used:

    from overlaynet.proof import Network, icmp, vxlan

    with Network.open("quickstart") as net, net.capture(["web-1:eth0", "node-1:eth0"]) as packets:
        net.send("web-1", "web-3")
    sent = packets.at("web-1:eth0").expect(icmp("echo-request"))[0]
    packets.at("node-1:eth0").expect(vxlan(vni=1, carrying=sent))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overlaynet.proof.network import Network as Network
    from overlaynet.proof.network import capture as capture
    from overlaynet.proof.packet import Packet as Packet
    from overlaynet.proof.packets import Packets as Packets
    from overlaynet.proof.predicates import Match as Match
    from overlaynet.proof.predicates import arp as arp
    from overlaynet.proof.predicates import icmp as icmp
    from overlaynet.proof.predicates import same as same
    from overlaynet.proof.predicates import tcp as tcp
    from overlaynet.proof.predicates import udp as udp
    from overlaynet.proof.predicates import vxlan as vxlan
    from overlaynet.proof.script import ok as ok
    from overlaynet.proof.script import prove as prove
    from overlaynet.proof.way import Inconclusive as Inconclusive
    from overlaynet.proof.way import Refuted as Refuted
    from overlaynet.proof.way import Way as Way

_WHERE = {
    "Network": "network",
    "capture": "network",
    "Packet": "packet",
    "Packets": "packets",
    "Match": "predicates",
    "arp": "predicates",
    "icmp": "predicates",
    "same": "predicates",
    "tcp": "predicates",
    "udp": "predicates",
    "vxlan": "predicates",
    "ok": "script",
    "prove": "script",
    "Inconclusive": "way",
    "Refuted": "way",
    "Way": "way",
}

__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
