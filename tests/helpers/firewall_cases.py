"""Policies that the firewall tests share, and a filter of the real kernel to try them on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from overlaynet.state import ForwardAccept, Masquerade, Policy, RuleSet, VxlanGuard

OVERLAY = (ip_network("10.244.0.0/16"),)
OWN = (ip_network("10.244.1.0/24"),)
DUAL_OVERLAY = (*OVERLAY, ip_network("fd00:244::/48"))
DUAL_OWN = (*OWN, ip_network("fd00:244:0:1::/64"))
PEERS = (ip_address("192.168.50.12"), ip_address("192.168.50.13"), ip_address("2001:db8::12"))
DEVICES = ("cni0", "flannel.1")

BASE: Mapping[str, Policy] = {
    "forward": ForwardAccept(OVERLAY),
    "masquerade": Masquerade(OVERLAY, OWN),
    "vxlan": VxlanGuard(8472, OVERLAY, devices=DEVICES),
}
PEERS_ONLY: Mapping[str, Policy] = {**BASE, "vxlan": VxlanGuard(8472, OVERLAY, PEERS, DEVICES)}
NO_PEERS: Mapping[str, Policy] = {**BASE, "vxlan": VxlanGuard(4789, OVERLAY, (), DEVICES)}
HOST_GW: Mapping[str, Policy] = {k: v for k, v in BASE.items() if k != "vxlan"}
FORWARD_ONLY: Mapping[str, Policy] = {"forward": ForwardAccept(OVERLAY)}
TWO_NETWORKS: Mapping[str, Policy] = {
    "forward": ForwardAccept((*OVERLAY, ip_network("10.5.0.0/16"))),
    "masquerade": Masquerade((*OVERLAY, ip_network("10.5.0.0/16")), OWN),
}
DUAL_STACK: Mapping[str, Policy] = {
    "forward": ForwardAccept(DUAL_OVERLAY),
    "masquerade": Masquerade(DUAL_OVERLAY, DUAL_OWN),
    "vxlan": VxlanGuard(8472, DUAL_OVERLAY, PEERS, DEVICES),
}


@dataclass(frozen=True)
class Case:
    """One golden file: `name`.rules holds what iptables-restore is given on an empty host."""

    name: str
    policies: Mapping[str, Policy]
    random_fully: bool = True
    family: int = 4


CASES = (
    Case("base", BASE),
    Case("base-ports-in-order", BASE, random_fully=False),
    Case("peers-only", PEERS_ONLY),
    Case("no-peers-yet", NO_PEERS),
    Case("host-gw", HOST_GW),
    Case("forward-only", FORWARD_ONLY),
    Case("two-networks", TWO_NETWORKS),
    Case("dual-stack-4", DUAL_STACK),
    Case("dual-stack-6", DUAL_STACK, family=6),
)


def rules_of(rules: RuleSet) -> dict[tuple[str, str], tuple[str, ...]]:
    """Without counters and empty chains that are not ours: what a person would call the rules."""
    texts = {key: tuple(line.text for line in lines) for key, lines in rules.chains.items()}
    return {key: lines for key, lines in texts.items() if lines or key[1].startswith("OVL-")}


def restore(flavour: str, text: str, *options: str, family: int = 4) -> None:
    """Another program's hand on the rules of the current namespace. Raises CalledProcessError."""
    name = "iptables" if family == 4 else "ip6tables"
    command = [f"{name}-{flavour}-restore", "--noflush", *options]
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(command, input=text, text=True, check=True, capture_output=True, env=env)
