"""The agent's counters as Prometheus text. The library is imported when somebody asks: it costs 0.2 s.

Nothing is counted twice: each family is read from where the thing happens, at the moment of asking.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from overlaynet.core.servicecounts import counts
from overlaynet.firewall.iptables import Iptables
from overlaynet_agent.durations import Durations
from overlaynet_agent.loop import Loop

STATES = ("starting", "ready", "degraded")


def exposition(loop: Loop, rules: Iptables) -> bytes:
    """Every family of docs/agent.md, in the text format."""
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
        yield from _duration_families(self._loop)


def _families(loop: Loop) -> list[Any]:
    """What only the loop's thread may read."""
    host, engine = loop.host, loop.engine
    left_s = loop.keepalive.expires_in_s(engine.lease.lease_id) if engine.lease else None
    return [
        _counter("overlaynet_kernel_writes", "Objects written to the kernel.", ("object", "op"), host.writes),
        _counter(
            "overlaynet_drift_repaired",
            "Objects that had gone wrong by themselves and were put right.",
            ("object",),
            {(kind,): count for kind, count in host.repaired.items()},
        ),
        _counter("overlaynet_full_looks", "Readings of the whole kernel.", (), {(): host.looks}),
        _gauge("overlaynet_holds", "Objects left alone on request.", (), {(): len(host.drift.holds.by_name)}),
        _gauge("overlaynet_ready", "1 once the first full apply was tried.", (), {(): loop.ready}),
        _gauge(
            "overlaynet_state",
            "1 for the agent's present state.",
            ("state",),
            {(s,): s == loop.state_word for s in STATES},
        ),
        _gauge("overlaynet_problems", "What is wrong now.", (), {(): len(loop.problems())}),
        _gauge(
            "overlaynet_pending",
            "Changes that are due.",
            (),
            {(): len(host.failures) + len(host.refused) + loop.rules.is_pending},
        ),
        _gauge("overlaynet_peers", "Leases of other hosts.", (), {(): max(0, len(engine.view.leases) - 1)}),
        _gauge("overlaynet_containers", "Containers wired here.", (), {(): len(engine.workloads)}),
        *_service_families(loop),
        _gauge(
            "overlaynet_store_connected",
            "1 while etcd answers.",
            (),
            {(): engine.synced and engine.store_error is None},
        ),
        _gauge(
            "overlaynet_store_revision",
            "The etcd revision last heard of.",
            (),
            {(): engine.view.revision},
        ),
        _gauge(
            "overlaynet_lease_expires_seconds",
            "Time left for this host's subnet if it were not renewed any more.",
            (),
            {} if left_s is None else {(): left_s},
        ),
    ]


def _service_families(loop: Loop) -> list[Any]:
    rules, found = loop.rules, counts(loop.engine.desired.policies)
    far = {("internal",): found.internal_without_local, ("external",): found.external_without_local}
    synced = {} if rules.synced_at is None else {(): time.time() - loop.clock() + rules.synced_at}
    return [
        _counter(
            "overlaynet_conntrack_deleted",
            "Connections forgotten because nobody serves where they led.",
            (),
            {(): rules.deleted},
        ),
        _counter("overlaynet_firewall_failures", "Rounds that failed.", (), {(): rules.failures}),
        _gauge("overlaynet_firewall_synced_timestamp_seconds", "End of the last round.", (), synced),
        _gauge("overlaynet_services", "Services served here.", (), {(): found.services}),
        _gauge("overlaynet_service_ports", "Their ports.", (), {(): found.ports}),
        _gauge("overlaynet_service_endpoints", "Endpoints that rules lead to.", (), {(): found.endpoints}),
        _gauge(
            "overlaynet_service_ports_without_local_endpoints",
            "Ports with endpoints, but none that their traffic policy Local allows here.",
            ("traffic_policy",),
            far,
        ),
    ]


def _rule_families(rules: Iptables) -> list[Any]:
    return [
        _counter(
            "overlaynet_firewall_restores",
            "Commits by iptables-restore.",
            ("table",),
            {(table,): count for table, count in dict(rules.restores).items()},
        ),
        _counter(
            "overlaynet_firewall_bytes", "Bytes given to iptables-restore.", (), {(): rules.bytes_written}
        ),
        _gauge(
            "overlaynet_firewall_rules",
            "Rules of ours.",
            ("table",),
            {(table,): count for table, count in rules.held().items()},
        ),
    ]


def _duration_families(loop: Loop) -> list[Any]:
    calls = loop.calls
    return [
        _histogram(
            "overlaynet_apply_seconds",
            "Rounds of comparing the kernel with what is wanted, and writing.",
            (),
            {(): loop.host.durations},
        ),
        _histogram(
            "overlaynet_firewall_sync_seconds",
            "Rounds of reading the rules and writing what differs.",
            (),
            {(): loop.firewall.durations},
        ),
        _histogram(
            "overlaynet_conntrack_seconds",
            "Rounds of judging connections, reading them if need be.",
            (),
            {(): loop.firewall.cleanups},
        ),
        _histogram(
            "overlaynet_store_call_seconds",
            "Calls of etcd, failed ones too.",
            ("call",),
            {(call,): taken for call, taken in dict(calls.durations).items()},
        ),
        _counter("overlaynet_store_failures", "Failed calls of etcd.", ("call", "code"), dict(calls.failures)),
    ]


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _filled(family: Any, values: Mapping[Any, float]) -> Any:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, Durations]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=labels)
    for words, durations in values.items():
        buckets, sum_s = durations.read()
        family.add_metric(words, buckets, sum_value=sum_s)
    return family
