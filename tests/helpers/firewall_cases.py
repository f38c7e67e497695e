"""Policies that the firewall tests share, and a filter of the real kernel to try them on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Literal

from overlaynet.firewall.chains import Rendered
from overlaynet.firewall.iptables import Iptables
from overlaynet.firewall.render import render
from overlaynet.firewall.services import Affinity
from overlaynet.state import (
    Endpoint,
    ForwardAccept,
    Masquerade,
    Policy,
    RuleSet,
    ServicePortPolicy,
    ServicesPolicy,
    VxlanGuard,
)

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

# --- services -------------------------------------------------------------------------------------

SERVICE_NETWORK = ip_network("10.112.0.0/16")
HOST_IP = ip_address("192.168.50.11")
HERE, HERE_TOO = (Endpoint(ip_address(f"10.244.1.{n}"), 8080) for n in (2, 3))
ELSEWHERE = Endpoint(ip_address("10.244.2.2"), 8080)
SERVICES = ServicesPolicy((SERVICE_NETWORK,), node_ips=(HOST_IP,), local_sources=OVERLAY)
WEB = ServicePortPolicy(
    "default/web",
    "http",
    "tcp",
    80,
    cluster_ips=(ip_address("10.112.0.10"),),
    cluster=(HERE, HERE_TOO, ELSEWHERE),
    local=(HERE, HERE_TOO),
    usable=True,
)
OPEN = replace(
    WEB,
    external_ips=(ip_address("203.0.113.7"),),
    ingress_ips=(ip_address("203.0.113.8"),),
    node_port=30080,
)
"""Reached in every way there is."""


def services(*ports: ServicePortPolicy, shared: ServicesPolicy = SERVICES) -> Mapping[str, Policy]:
    """A host's policies with these service ports."""
    return {**BASE, "services": shared, **{f"service {p.name}/{p.protocol}": p for p in ports}}


def _several() -> Mapping[str, Policy]:
    """Services without endpoints, without any here, and of all protocols."""
    dns = replace(WEB, service="kube-system/dns", port_name="dns", protocol="udp", port=53)
    bare = replace(WEB, service="default/bare", port_name="", protocol="sctp", port=9, cluster=(HERE,))
    none = replace(OPEN, service="default/none", cluster=(), local=(), usable=False)
    away = replace(OPEN, service="default/away", local=(), internal_local=True, external_local=True)
    kept = replace(OPEN, service="default/kept", external_local=True, health_check_node_port=30999)
    ports = [dns, bare, none, away, kept]
    return services(
        *(
            replace(
                port,
                cluster_ips=(ip_address(f"10.112.0.{n}"),),
                external_ips=(ip_address(f"203.0.113.{n}"),) if port.external_ips else (),
                ingress_ips=(ip_address(f"198.51.100.{n}"),) if port.ingress_ips else (),
                node_port=30000 + n if port.node_port else 0,
            )
            for n, port in enumerate(ports, 20)
        )
    )


LIMITED = replace(OPEN, source_ranges=(ip_network("198.51.100.0/24"), ip_network("192.168.50.0/24")))
STICKY = replace(OPEN, affinity_s=10800)
ANYWHERE = ServicesPolicy(
    (SERVICE_NETWORK,),
    strays=(ip_address("172.20.0.9"),),
    node_ips=None,
    local_device="cni0",
    localhost_node_ports=True,
)
MASQUERADE_ALL = replace(SERVICES, masquerade_all=True, localhost_node_ports=True, drop_invalid=False)
DUAL_SERVICES = ServicesPolicy(
    (SERVICE_NETWORK, ip_network("fd00:112::/108")),
    node_ips=None,
    local_sources=(*DUAL_OVERLAY, ip_network("10.5.0.0/16")),
)
DUAL_WEB = replace(
    STICKY,
    cluster_ips=(*WEB.cluster_ips, ip_address("fd00:112::10")),
    cluster=(*WEB.cluster, Endpoint(ip_address("fd00:244:0:1::2"), 8080)),
)


@dataclass(frozen=True)
class Case:
    """One golden file: `name`.rules holds what iptables-restore is given on an empty host."""

    name: str
    policies: Mapping[str, Policy]
    random_fully: bool = True
    family: int = 4
    affinity: Affinity = "ipset"
    instance: str = ""

    def filter(self, flavour: Literal["legacy", "nft"]) -> Iptables:
        """The real one that this case is for."""
        return Iptables(
            flavour,
            random_fully=self.random_fully,
            family=self.family,
            affinity=self.affinity,
            instance=self.instance,
        )

    def rendered(self) -> Rendered:
        return render(
            self.policies,
            random_fully=self.random_fully,
            family=self.family,
            affinity=self.affinity,
            instance=self.instance,
        )


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
    Case("services-none-yet", services()),
    Case("services-open", services(OPEN)),
    Case("services-several", _several()),
    Case("services-source-ranges", services(LIMITED)),
    Case("services-affinity", services(STICKY)),
    Case("services-affinity-recent", services(STICKY), affinity="recent"),
    Case("services-every-address", services(replace(OPEN, external_local=True), shared=ANYWHERE)),
    Case("services-masquerade-all", services(OPEN, shared=MASQUERADE_ALL)),
    Case("services-instance", services(STICKY), instance="blueish"),
    Case("services-dual-4", services(DUAL_WEB, shared=DUAL_SERVICES)),
    Case("services-dual-6", services(DUAL_WEB, shared=DUAL_SERVICES), family=6),
)


def rules_of(rules: RuleSet) -> dict[tuple[str, str], tuple[str, ...]]:
    """Without counters and empty chains that are not ours: what a person would call the rules."""
    texts = {key: tuple(line.text for line in lines) for key, lines in rules.chains.items()}
    return {key: lines for key, lines in texts.items() if lines or key[1].startswith("OVL-")}


def make_sets(sets: Mapping[str, int], family: int = 4) -> None:
    """Timed sets in the current namespace. Raises CalledProcessError."""
    kind = "inet" if family == 4 else "inet6"
    lines = [f"create {name} hash:ip family {kind} timeout {seconds}" for name, seconds in sets.items()]
    subprocess.run(["ipset", "restore"], input="\n".join([*lines, ""]), text=True, check=True, env=_env())


def _env() -> Mapping[str, str]:
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def restore(flavour: str, text: str, *options: str, family: int = 4) -> None:
    """Another program's hand on the rules of the current namespace. Raises CalledProcessError."""
    name = "iptables" if family == 4 else "ip6tables"
    command = [f"{name}-{flavour}-restore", "--noflush", *options]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True, env=_env())
