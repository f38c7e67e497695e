"""The API's JSON documents, made from the loop's state. Pure reading; always on the loop's thread."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from overlaynet import __version__
from overlaynet.addr import IPAddress
from overlaynet.core.jsonstate import object_to_json, policy_to_json, source_to_json
from overlaynet.core.overlay import container_mtu
from overlaynet.core.ownership import stray_veths
from overlaynet.core.plan import peers_of
from overlaynet.core.servicecounts import counts
from overlaynet.errors import OverlayError
from overlaynet.model import VXLAN, Lease, Stored, Workload
from overlaynet.state import describe, kind_of
from overlaynet.store import codec
from overlaynet_agent.holds import Hold
from overlaynet_agent.loop import Loop

Document = dict[str, Any]


def ready(loop: Loop) -> Document:
    problems = [problem.as_json() for problem in loop.problems()]
    return {"ready": loop.ready, "state": loop.state_word, "problems": problems}


def status(loop: Loop) -> Document:
    engine, host = loop.engine, loop.host
    local = engine.local
    return {
        "node": {
            "name": local.name,
            "node_id": local.identity.node_id,
            "public_ips": [str(ip) for ip in local.public_ips],
            "interface": local.interface,
            "underlay_mtu": local.underlay_mtu,
            "zone": local.zone,
        },
        "agent": {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(time.monotonic() - loop.started, 3),
            "state": loop.state_word,
        },
        "store": {
            "endpoints": list(loop.config.etcd.endpoints),
            "connected": engine.synced and engine.store_error is None,
            "revision": engine.view.revision,
            "error": engine.store_error.as_json() if engine.store_error else None,
        },
        "network": network(loop),
        "lease": _lease(loop),
        "peers": [_peer(loop, item) for item in _peers(loop)],
        "containers": [{**container(w), **loop.upkeep.document(w.id)} for w in engine.workloads.values()],
        "stray_containers": stray_veths(engine.desired.objects, host.reconciler.seen),
        "pending": len(host.failures) + len(host.due) + len(host.refused) + loop.rules.is_pending,
        "failures": [
            {"change": describe(failure.change.obj), "error": failure.error.as_json()}
            for failure in host.failures.values()
        ],
        "problems": [problem.as_json() for problem in loop.problems()],
        "holds": [hold(item, loop.clock()) for item in host.drift.holds.by_name.values()],
        "services": _services(loop),
        "firewall": {"flavour": loop.firewall.flavour, "foreign_rules_in_front": list(loop.rules.blockers)},
        "writes": {"kernel": sum(host.writes.values()), "firewall": loop.rules.restores},
        "looks": host.looks,
        "firewall_reads": loop.rules.reads,
        "drift_repaired": dict(host.repaired),
    }


def _services(loop: Loop) -> Document | None:
    """None where they are left to another program."""
    if loop.engine.local.services is None:
        return None
    rules, found = loop.rules, counts(loop.engine.desired.policies)
    return {
        "served": found.services,
        "ports": found.ports,
        "endpoints": found.endpoints,
        "outside_service_network": [str(ip) for ip in _strays(loop)],
        "without_local_endpoints": {
            "internal": found.internal_without_local,
            "external": found.external_without_local,
        },
        "synced_s_ago": None if rules.synced_at is None else round(loop.clock() - rules.synced_at, 3),
        "sync_failures": rules.failures,
        "connections_forgotten": rules.deleted,
        "fallbacks": [error.as_json() for error in loop.firewall.doors.lacks],
    }


def _strays(loop: Loop) -> tuple[IPAddress, ...]:
    """Virtual IPs that no ServiceNetwork speaks for: served all the same."""
    planned = loop.engine.desired.services
    return planned.strays() if planned else ()


def network(loop: Loop) -> Document | None:
    """The network config in force here; `pending`: etcd has another one."""
    config = loop.engine.view.network
    if config is None:
        return None
    vxlan = config.backend.type == VXLAN
    return {
        "networks": [str(n) for n in config.networks],
        "subnet_len": config.pools[0].subnet_len,
        "backend_type": config.backend.type,
        "vni": config.backend.vni if vxlan else None,
        "port": config.backend.port if vxlan else None,
        "mtu": container_mtu(config.backend, loop.engine.local),
        "pending": loop.engine.view.offered != config,
    }


def _lease(loop: Loop) -> Document | None:
    lease = loop.engine.lease
    if lease is None:
        return None
    return {
        "key": lease.key,
        "subnets": [str(s) for s in lease.value.subnets],
        "confirmed": loop.engine.confirmed,
        "expires_in_s": loop.keepalive.expires_in_s(lease.lease_id),
    }


def _peers(loop: Loop) -> list[Stored[Lease]]:
    own = loop.engine.lease
    return [] if own is None else peers_of(loop.engine.view.leases_in_use(), own.value)


def _peer(loop: Loop, item: Stored[Lease]) -> Document:
    lease = item.value
    return {
        "key": item.key,
        "subnets": [str(s) for s in lease.subnets],
        "public_ips": [str(ip) for ip in lease.public_ips],
        "node": lease.node_name,
        "backend_type": lease.backend_type,
        "stale": item.key in loop.engine.view.stale,
    }


def stale(loop: Loop) -> Document:
    """What etcd no longer has and this host keeps on purpose; values as flannel writes them."""
    kept, until, now = loop.engine.view.stale, loop.engine.departures.until, loop.clock()
    return {
        "leases": [
            {
                "key": item.key,
                "value": json.loads(codec.encode_lease(item.value)),
                "expires_in_s": round(max(0.0, until[item.key] - now), 3),
            }
            for item in kept.values()
        ]
    }


def container(workload: Workload) -> Document:
    return {
        "name": workload.name,
        "namespace": workload.namespace,
        "ips": [str(ip) for ip in workload.ips],
        "mac": str(workload.mac),
        "device": workload.device,
        "netns": workload.netns,
        "labels": dict(workload.labels),
        "ports": [{"port": p.port, "protocol": p.protocol, "name": p.name} for p in workload.ports],
        "ready": workload.ready,
        "serving": workload.serving,
        "terminating": workload.terminating,
    }


def hold(item: Hold, now: float) -> Document:
    """`expires_in_s` null: for as long as this agent runs."""
    left = None if item.until is None else round(max(0.0, item.until - now), 3)
    return {"kind": item.kind, "key": item.text, "reason": item.reason, "expires_in_s": left}


def state(loop: Loop) -> Document:
    desired = loop.engine.desired
    return {
        "objects": [
            {
                "kind": kind_of(key),
                "object": object_to_json(obj),
                "source": source_to_json(desired.sources[key]),
            }
            for key, obj in desired.objects.items()
        ],
        "policies": [{"name": n, "policy": policy_to_json(p)} for n, p in desired.policies.items()],
    }


def error(problem: OverlayError) -> Document:
    return {"schema": "overlaynet/v1", "kind": "Error", "error": problem.as_json()}
