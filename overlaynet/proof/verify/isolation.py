"""Does what belongs into the tunnel stay there, and is the tunnel closed to containers?

While containers of all hosts ping each other, every host's underlay and tunnel are watched:

* On the underlay no packet between containers is to be seen outside of the tunnel.
* Nobody has to ask by ARP who has an address of the overlay: the agent wrote it down. A question would be a
  broadcast, and in a tunnel that has no multicast group it is lost, or flooded to all.
* A container sends to the VXLAN port of another host, a packet that holds no frame. It must not leave: else a
  container could forge packets of any other (RFC 7348 section 7).

With host-gw there is no tunnel, and with DirectRouting not between all hosts: containers' addresses on the
underlay are how they work. Then nothing is checked here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from overlaynet.cluster.cluster import read_view
from overlaynet.errors import StoreError
from overlaynet.model import DEFAULT_VXLAN_PORT, VXLAN, Backend
from overlaynet.probe.mesh import FAIL, INCONCLUSIVE, PASS
from overlaynet.proof.network import Network
from overlaynet.proof.packets import Packets
from overlaynet.proof.points import CONTAINER_DEVICE
from overlaynet.proof.predicates import arp, icmp, same, udp
from overlaynet.proof.verify.report import Check, Suite
from overlaynet.proof.way import Inconclusive, Refuted

NAME = "isolation"
MOST_HOSTS = 8
PING_S = 0.3
FORGED_S = 0.05
"""How long answers are waited for: to a ping, and to a packet that gets none."""
NO_FRAME = "0000"
"""The first bytes of a VXLAN header that says that it has no VNI: whoever gets it drops it."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """Hosts with a container each, and the points of their underlay and tunnel."""

    containers: Mapping[str, str]
    underlays: Mapping[str, str]
    tunnels: Mapping[str, str]
    port: int

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every two hosts, both ways round."""
        return ((a, b) for a in self.containers for b in self.containers if a != b)


def run(net: Network, say: Say) -> Suite:
    """Watch while containers talk. Raises what a probe says that cannot listen."""
    backend = _backend(net)
    if backend is not None and (backend.type != VXLAN or backend.direct_routing):
        kind = "DirectRouting" if backend.type == VXLAN else backend.type
        return Suite(
            NAME, (), skipped=f"nothing to check: with {kind} containers' addresses are on the underlay"
        )
    first = {net.host_of(name): name for name in reversed(net.containers)}
    if len(first) < 2:
        return Suite(NAME, (), skipped="no two hosts with a container each")
    hosts = sorted(first)[:MOST_HOSTS]
    scene = Scene(
        {host: first[host] for host in hosts},
        {host: net.underlay(host) for host in hosts},
        {host: net.tunnel(host) for host in hosts},
        backend.port if backend else DEFAULT_VXLAN_PORT,
    )
    say(f"isolation: watching {len(hosts)} hosts while their containers talk")
    points = [*scene.containers.values(), *scene.underlays.values(), *scene.tunnels.values()]
    with net.capture(points, dead=True) as packets:
        refused = _talk(net, scene)
    return Suite(NAME, tuple(_checks(net, scene, packets, refused)))


def _backend(net: Network) -> Backend | None:
    with suppress(StoreError):
        network = read_view(net.cluster).network
        return network.backend if network else None
    return None


def _talk(net: Network, scene: Scene) -> dict[tuple[str, str], str]:
    """Pings and forgeries between every two hosts. Answers why a forgery was not even sent."""
    refused = {}
    for here, there in scene.pairs:
        net.send(scene.containers[here], scene.containers[there], tries=2, wait_s=PING_S)
        cookie = NO_FRAME + secrets.token_hex(6)
        sent = net.send(scene.containers[here], there, "udp", scene.port, wait_s=FORGED_S, cookie=cookie)
        if sent.error:
            refused[here, there] = sent.error
    return refused


# --- judging it -----------------------------------------------------------------------------------


def _checks(
    net: Network, scene: Scene, packets: Packets, refused: Mapping[tuple[str, str], str]
) -> Iterator[Check]:
    for host in scene.containers:
        claim = partial(_stays_inside, scene, packets, host)
        yield _claimed(f"tunnelled:{host}", host, "underlay", claim)
    for host in scene.containers:
        claim = partial(_asks_nobody, scene, packets, host)
        yield _claimed(f"no-arp:{host}", host, "underlay", claim)
    for here, there in scene.pairs:
        claim = partial(_kept_out, net, scene, packets, (here, there), refused.get((here, there)))
        target = f"{there}:{scene.port}/udp"
        yield _claimed(f"closed:{here}:{there}", scene.containers[here], target, claim)


def _claimed(check_id: str, sender: str, target: str, claim: Callable[[], str]) -> Check:
    """A check that passes with the claim's note, unless packets refute it or nobody watched."""
    told: AssertionError
    try:
        return Check(check_id, sender, target, PASS, note=claim())
    except Refuted as error:
        verdict, reason, told = FAIL, check_id.partition(":")[0], error
    except Inconclusive as error:
        verdict, reason, told = INCONCLUSIVE, "not_watched", error
    words = str(told).partition("\n")[0]
    return Check(check_id, sender, target, verdict, reason, str(told), note=words, next="diff")


def _stays_inside(scene: Scene, packets: Packets, host: str) -> str:
    here = packets.at(scene.underlays[host])
    for one in scene.containers.values():
        for other in scene.containers.values():
            here.never(f"src {one} and dst {other} and not tunnelled")
    inside = here.where("tunnelled and icmp")
    if not inside:
        raise Inconclusive(f"no ping passed at {scene.underlays[host]}, so nothing could have leaked")
    return f"{len(inside)} packets of containers, all of them in the tunnel"


def _asks_nobody(scene: Scene, packets: Packets, host: str) -> str:
    packets.at(scene.tunnels[host]).never(arp())
    for one in scene.containers.values():
        packets.at(scene.underlays[host]).never(f"arp and host {one}")
    packets.at(scene.underlays[host]).never("arp and tunnelled")
    passed = packets.at(scene.tunnels[host]).where(icmp())
    if not passed:
        raise Inconclusive(f"no ping passed at {scene.tunnels[host]}, so nobody had to ask")
    return f"no ARP in the tunnel, while {len(passed)} packets passed it"


def _kept_out(net: Network, scene: Scene, packets: Packets, pair: tuple[str, str], refused: str | None) -> str:
    here, there = pair
    one = scene.containers[here]
    if refused:
        raise Inconclusive(f"{one} could not send it: {refused}")
    forged = udp(dport=scene.port, src=one, dst=str(net.address_of(there)))
    sent = packets.at(f"{one}:{CONTAINER_DEVICE}").outgoing.expect(forged)[0]
    packets.at(scene.underlays[here], scene.underlays[there]).never(same(sent))
    return f"sent by {one}, and never seen on the underlay"
