"""Where everything is in etcd.

Two prefixes: flannel's own, under which we write nothing but what flannel itself would (a stray key
there makes every flannel node drop all its peers), and ours. Every prefix that is listed or watched ends
in ``/``, so that a neighbour called ``subnets-old`` is not taken for ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from overlaynet.addr import IPAddress, IPNetwork, Mac, subnet_key

FLANNEL_PREFIX = "/coreos.com/network"
OVERLAY_PREFIX = "/overlaynet"


@dataclass(frozen=True, slots=True)
class Keys:
    """Builds keys; `flannel` and `overlay` are prefixes without a trailing slash."""

    flannel: str = FLANNEL_PREFIX
    overlay: str = OVERLAY_PREFIX

    @property
    def network_config(self) -> str:
        return f"{self.flannel}/config"

    @property
    def subnets(self) -> str:
        return f"{self.flannel}/subnets/"

    def lease(self, subnets: tuple[IPNetwork, ...]) -> str:
        """``…/subnets/10.244.1.0-24``, or with ``&fd00::-64`` behind it for dual stack."""
        v4first = sorted(subnets, key=lambda s: s.version)
        return self.subnets + "&".join(subnet_key(s) for s in v4first)

    @property
    def settings(self) -> str:
        return f"{self.overlay}/config"

    @property
    def nodes(self) -> str:
        return f"{self.overlay}/nodes/"

    def node(self, name: str) -> str:
        return self.nodes + name

    @property
    def addresses(self) -> str:
        return f"{self.overlay}/addresses/"

    def address(self, ip: IPAddress | str) -> str:
        return f"{self.addresses}{ip}"

    @property
    def vteps(self) -> str:
        return f"{self.overlay}/vteps/"

    def vtep(self, mac: Mac | str) -> str:
        return f"{self.vteps}{mac}"

    @property
    def workloads(self) -> str:
        return f"{self.overlay}/workloads/"

    def workload(self, node: str, workload_id: str) -> str:
        """`workload_id` is ``namespace/name``."""
        return f"{self.workloads}{node}/{workload_id}"

    @property
    def services(self) -> str:
        return f"{self.overlay}/services/"

    def service(self, service_id: str) -> str:
        """`service_id` is ``namespace/name``."""
        return self.services + service_id

    @property
    def slices(self) -> str:
        return f"{self.overlay}/endpointslices/"

    def slice(self, slice_id: str) -> str:
        """`slice_id` is ``namespace/name``."""
        return self.slices + slice_id

    @property
    def vips(self) -> str:
        return f"{self.overlay}/vips/"

    def vip(self, ip: IPAddress) -> str:
        return f"{self.vips}{ip}"

    @property
    def node_ports(self) -> str:
        return f"{self.overlay}/nodeports/"

    def node_port(self, protocol: str, port: int) -> str:
        """``…/nodeports/tcp-30080``."""
        return f"{self.node_ports}{protocol.lower()}-{port}"

    @property
    def watched(self) -> tuple[str, ...]:
        """Every prefix (or, for the two configs, key) that an agent lists and watches. Allocations are not
        among them: they keep writers apart, and readers go by the services themselves."""
        return (
            self.network_config,
            self.subnets,
            self.settings,
            self.nodes,
            self.addresses,
            self.vteps,
            self.workloads,
            self.services,
            self.slices,
        )
