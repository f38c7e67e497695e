"""The agent's counters as Prometheus text. The library is imported when somebody asks: it costs 0.2 s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from overlaynet.firewall.iptables import Iptables
from overlaynet_agent.loop import Loop


def exposition(loop: Loop, rules: Iptables) -> bytes:
    """Everything of contract name `overlaynet_…`, as the text format has it."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(loop, rules))
    return generate_latest(registry)


class _Collector:
    """Reads the loop's counters on the loop's thread."""

    def __init__(self, loop: Loop, rules: Iptables) -> None:
        self._loop = loop
        self._rules = rules

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        yield from self._loop.call(_families)
        yield from _rule_families(self._rules)


def _families(loop: Loop) -> list[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    host = loop.host
    writes = CounterMetricFamily(
        "overlaynet_kernel_writes", "Objects written to the kernel.", labels=["object", "op"]
    )
    for (kind, op), count in host.writes.items():
        writes.add_metric([kind, op], count)
    repaired = CounterMetricFamily(
        "overlaynet_drift_repaired", "Objects that had gone wrong by themselves.", labels=["object"]
    )
    for kind, count in host.repaired.items():
        repaired.add_metric([kind], count)
    return [
        writes,
        repaired,
        CounterMetricFamily("overlaynet_full_looks", "Readings of the whole kernel.", value=host.looks),
        GaugeMetricFamily("overlaynet_ready", "1 once the first full apply was tried.", value=loop.ready),
        GaugeMetricFamily("overlaynet_peers", "Leases of other hosts.", value=len(loop.engine.view.leases) - 1),
        GaugeMetricFamily("overlaynet_containers", "Containers wired here.", value=len(loop.engine.workloads)),
    ]


def _rule_families(rules: Iptables) -> list[Any]:
    from prometheus_client.core import CounterMetricFamily

    restores = CounterMetricFamily(
        "overlaynet_firewall_restores", "Commits by iptables-restore.", labels=["table"]
    )
    for table, count in rules.restores.items():
        restores.add_metric([table], count)
    octets = CounterMetricFamily(
        "overlaynet_firewall_bytes", "Bytes given to iptables-restore.", value=rules.bytes_written
    )
    return [restores, octets]
