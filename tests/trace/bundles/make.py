"""Makes the bundles beside this file anew: two labs, faults on purpose, and packets that are really sent.

    sudo .venv/bin/python tests/trace/bundles/make.py [NAME…]

Each has to be judged as `helpers.bundles` says, or it is not written, and the exit code is 1. Needs what a lab
needs, and tc(8) with u32 and mirred for two faults that no state tells of.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.bundles import BUNDLES, DIRECTORY, file_of, told
from helpers.eventually import eventually

from overlaynet.cluster.contexts import LabCluster
from overlaynet.core.workload import host_device
from overlaynet.lab.faultkinds import Request
from overlaynet.lab.faults import changing_faults
from overlaynet.lab.lab import Lab
from overlaynet.lab.netns_driver import namespace
from overlaynet.lab.topology import Topology, parse
from overlaynet.proof.question import Asked
from overlaynet.proof.saved import bundled
from overlaynet.proof.tracing import Proof, trace
from overlaynet.trace.model import DELIVERED, DROPPED, PROVED, REJECTED

PORT, NODE_PORT = 8080, 30_080
WEB_3, NODE_2, NODE_3_MAC = "10.244.2.2", "192.168.50.12", "02:00:c0:a8:32:0d"
TRIES = 20
"""Of what chance decides: which packets a bad network loses."""

Damage = Callable[[Lab], AbstractContextManager[None]]


class Recipe(NamedTuple):
    """What is asked, and what is broken meanwhile."""

    asked: Asked
    damage: Damage = lambda lab: nullcontext()
    expect: str = DELIVERED
    backend: str = "vxlan"


# --- damage ---------------------------------------------------------------------------------------


def fault(kind: str, *words: str, **more: object) -> tuple[str, Request]:
    return kind, Request(words, **more)  # type: ignore[arg-type]


def broken(*faults: tuple[str, Request]) -> Damage:
    @contextmanager
    def damage(lab: Lab) -> Iterator[None]:
        with changing_faults(lab.name, lab.root) as mine:
            for kind, request in faults:
                mine.make(kind, request, time.time())
        try:
            yield
        finally:
            with changing_faults(lab.name, lab.root) as mine:
                mine.heal((), time.time())

    return damage


@contextmanager
def unseen(lab: Lab) -> Iterator[None]:
    """node-2's namespace lives, held by its agent, but has no name by which it could be entered."""
    name, agent = namespace(lab.name, "node-2"), Lab.open(lab.name).pid("agent/node-2")
    subprocess.run(["ip", "netns", "delete", name], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "attach", name, str(agent)], check=True)


@contextmanager
def swallowed(lab: Lab) -> Iterator[None]:
    """What node-2 would send to web-3 goes to a link that is down, by a filter that is part of no state."""
    port = host_device("default/web-3")
    run(lab, "node-2", "ip link add sink type veth peer name drain")
    run(lab, "node-2", f"tc qdisc add dev {port} clsact")
    match, action = f"u32 match ip dst {WEB_3}/32", "action mirred egress redirect dev sink"
    run(lab, "node-2", f"tc filter add dev {port} egress protocol ip {match} {action}")
    yield
    run(lab, "node-2", f"tc qdisc delete dev {port} clsact")
    run(lab, "node-2", "ip link delete sink")


@contextmanager
def detour(lab: Lab) -> Iterator[None]:
    """The underlay gives node-3 what node-1 sends to node-2; node-3 routes it there."""
    run(lab, "underlay", "nft add table bridge detour")
    run(
        lab,
        "underlay",
        "nft add chain bridge detour in { type filter hook prerouting priority -300 ; policy accept ; }",
    )
    match = f"iifname node-1 ip daddr {NODE_2}"
    run(lab, "underlay", f"nft add rule bridge detour in {match} ether daddr set {NODE_3_MAC}")
    yield
    run(lab, "underlay", "nft delete table bridge detour")


def run(lab: Lab, place: str, words: str) -> None:
    done = lab.driver.run(place, words.split())
    assert done.returncode == 0, done.stderr


# --- recipes --------------------------------------------------------------------------------------

PING = Asked("web-1", "web-3", "icmp")
CALL = Asked("web-1", "web-3", "tcp", PORT)
DATAGRAM = Asked("web-1", "web-3", "udp", PORT)
LARGE = DATAGRAM._replace(size=1450, df=True)
FITTING = DATAGRAM._replace(size=1400, df=True)
BACK = Asked("web-3", "web-1", "icmp")

RECIPES: Mapping[str, Recipe] = {
    "same-host": Recipe(Asked("web-1", "web-2", "tcp", PORT)),
    "vxlan": Recipe(CALL),
    "host-gw": Recipe(CALL, backend="host-gw"),
    "ping": Recipe(PING),
    "udp": Recipe(DATAGRAM),
    "udp-4000-bytes": Recipe(DATAGRAM._replace(size=4000)),
    "closed-tcp-port": Recipe(Asked("web-1", "web-3", "tcp", 81)),
    "closed-udp-port": Recipe(Asked("web-1", "web-3", "udp", 81)),
    "vip": Recipe(Asked("web-1", "svc/far")),
    "vip-of-many": Recipe(Asked("web-2", "svc/web")),
    "hairpin": Recipe(Asked("web-1", "svc/near")),
    "nodeport": Recipe(Asked("outside", "node-1", "tcp", NODE_PORT)),
    "masquerade": Recipe(Asked("web-1", "outside", "icmp")),
    "host-to-container": Recipe(Asked("node-1", "web-3", "tcp", PORT)),
    "oneself": Recipe(Asked("web-1", "web-1", "icmp")),
    "rejected-as-expected": Recipe(
        CALL, broken(fault("rule", "node-1", "web-1", "web-3", target="REJECT")), REJECTED
    ),
    "dropped-as-expected": Recipe(
        PING, broken(fault("rule", "node-2", "web-1", "any", target="DROP")), DROPPED
    ),
    "link-down-cable": Recipe(PING, broken(fault("link", "node-2"))),
    "link-down-vxlan": Recipe(PING, broken(fault("link", "node-1:flannel.1"))),
    "link-down-container": Recipe(PING, broken(fault("link", "web-3"))),
    "node-down": Recipe(PING, broken(fault("node", "node-2"))),
    "route-missing": Recipe(PING, broken(fault("route", "node-1", "node-2"))),
    "route-missing-container": Recipe(PING, broken(fault("route", "web-1", "default"))),
    "route-missing-host-gw": Recipe(PING, broken(fault("route", "node-1", "node-2")), backend="host-gw"),
    "route-wrong": Recipe(PING, broken(fault("route", "node-1", "node-2", wrong=True))),
    "neigh-missing": Recipe(PING, broken(fault("neigh", "node-1", "node-2"))),
    "neigh-wrong": Recipe(PING, broken(fault("neigh", "node-1", "node-2", wrong=True))),
    "fdb-missing": Recipe(PING, broken(fault("fdb", "node-1", "node-2"))),
    "fdb-missing-on-the-way-back": Recipe(CALL, broken(fault("fdb", "node-2", "node-1"))),
    "fdb-wrong": Recipe(PING, broken(fault("fdb", "node-1", "node-2", wrong=True))),
    "rule-drop": Recipe(PING, broken(fault("rule", "node-2", "web-1", "any", target="DROP"))),
    "rule-reject": Recipe(CALL, broken(fault("rule", "node-1", "web-1", "web-3", target="REJECT"))),
    "rule-missing": Recipe(Asked("web-1", "svc/far"), broken(fault("rule", "node-1", "svc/far"))),
    "no-endpoints": Recipe(Asked("web-1", "svc/empty")),
    "mtu-of-container": Recipe(LARGE, broken(fault("mtu", "web-1", "1500"))),
    "mtu-of-cable": Recipe(FITTING, broken(fault("mtu", "node-2", "1400"))),
    "forwarding-off": Recipe(PING, broken(fault("forwarding", "node-1"))),
    "rp-filter": Recipe(
        BACK, broken(fault("route", "node-1", "node-2"), fault("rp_filter", "node-1", "flannel.1"))
    ),
    "underlay-loss": Recipe(PING, broken(fault("loss", "node-1", "node-2", "70"))),
    "partition": Recipe(PING, broken(fault("partition", "node-1", "node-2"))),
    "unknown": Recipe(PING, swallowed),
    "wrong-path": Recipe(PING, detour),
    "unseen-host": Recipe(PING, unseen),
}


# --- making ---------------------------------------------------------------------------------------


def main(names: list[str]) -> int:
    assert RECIPES.keys() == BUNDLES.keys(), RECIPES.keys() ^ BUNDLES.keys()
    wrong = 0
    with ExitStack() as stack:
        labs: dict[str, Lab] = {}
        for name in names or RECIPES:
            recipe = RECIPES[name]
            if recipe.backend not in labs:
                labs[recipe.backend] = stack.enter_context(Lab.running(topology(recipe.backend)))
            wrong += not made(name, recipe, labs[recipe.backend])
    return 1 if wrong else 0


def topology(backend: str) -> Topology:
    file = DIRECTORY / "lab.yaml"
    name = "bundles" if backend == "vxlan" else f"bundles-{backend}"
    found = parse(file.read_text(), str(file), name)
    return replace(found, network=replace(found.network, backend={"type": backend}))


def made(name: str, recipe: Recipe, lab: Lab) -> bool:
    """Whether it was judged as it has to be, and written."""
    eventually(lambda: is_well(lab), deadline_s=60)
    with recipe.damage(lab):
        for _ in range(TRIES):
            proof = trace(LabCluster(lab), recipe.asked, expect=recipe.expect)
            found = told(proof.trace)
            if found == BUNDLES[name] or found.verdict != PROVED:
                break
    is_right = found == BUNDLES[name]
    sys.stdout.write(f"{name:<28} {'made' if is_right else f'WRONG: {found}'}\n")
    if is_right:
        write(name, proof)
    return is_right


def is_well(lab: Lab) -> bool:
    """Both ways between the hosts, and the containers' servers, work."""
    asked = (CALL, CALL._replace(source="web-3", target="web-1"), Asked("web-1", "svc/far"))
    return all(trace(LabCluster(lab), one).trace.verdict == PROVED for one in asked)


def write(name: str, proof: Proof) -> None:
    """Owned by whoever called sudo."""
    file = file_of(name)
    file.write_bytes(bundled(proof))
    owner = int(os.environ.get("SUDO_UID", "-1")), int(os.environ.get("SUDO_GID", "-1"))
    os.chown(file, *owner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
