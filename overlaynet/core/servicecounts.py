"""How much this host serves, in numbers, for its status and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from overlaynet.state import Policy, ServicePortPolicy


class ServiceCounts(NamedTuple):
    """Services and their ports; endpoints that rules lead to, once for each port; and ports that have endpoints
    but, by a traffic policy Local, none for packets from inside or outside of the cluster."""

    services: int = 0
    ports: int = 0
    endpoints: int = 0
    internal_without_local: int = 0
    external_without_local: int = 0


def counts(policies: Mapping[str, Policy]) -> ServiceCounts:
    ports = [policy for policy in policies.values() if isinstance(policy, ServicePortPolicy)]
    far = [port for port in ports if port.usable and not port.local]
    return ServiceCounts(
        len({port.service for port in ports}),
        len(ports),
        sum(len({*port.cluster, *port.local}) for port in ports),
        sum(port.internal_local for port in far),
        sum(port.external_local for port in far),
    )
