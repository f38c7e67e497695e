"""What each bundle in `tests/trace/bundles` has to be judged as, whoever judges it and whenever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from overlaynet.core.workload import host_device
from overlaynet.trace.bundle import SUFFIX
from overlaynet.trace.model import (
    DELIVERED,
    DROPPED,
    INCONCLUSIVE,
    LOST,
    PROVED,
    REJECTED,
    WRONG_PATH,
    Trace,
)

DIRECTORY = Path(__file__).parent.parent / "trace" / "bundles"


class Judged(NamedTuple):
    """The parts of a trace that decide. `point` is the cause's, `between` the last point that saw the packet
    and the first that missed it."""

    verdict: str
    outcome: str = DELIVERED
    answer: str = ""
    cause: str | None = None
    point: str | None = None
    between: tuple[str, str] | None = None


def told(trace: Trace) -> Judged:
    cause = trace.cause
    return Judged(
        trace.verdict,
        trace.outcome,
        trace.answer,
        cause.kind if cause else None,
        str(cause.point) if cause and cause.point else None,
        (str(trace.lost_between[0]), str(trace.lost_between[1])) if trace.lost_between else None,
    )


def file_of(name: str) -> Path:
    return DIRECTORY / f"{name}{SUFFIX}"


_UNDERLAY = ("node-1:eth0", "node-2:eth0")
_BEFORE_TUNNEL = ("node-1:cni0", "node-1:flannel.1")
_IN_TUNNEL = ("node-1:flannel.1", "node-2:eth0")
_WEB_1, _WEB_3 = (f"node-{number}:{host_device(f'default/web-{web}')}" for number, web in ((1, 1), (2, 3)))

BUNDLES: Mapping[str, Judged] = {
    "same-host": Judged(PROVED, answer="syn-ack"),
    "vxlan": Judged(PROVED, answer="syn-ack"),
    "host-gw": Judged(PROVED, answer="syn-ack"),
    "ping": Judged(PROVED, answer="echo-reply"),
    "udp": Judged(PROVED, answer="udp"),
    "udp-4000-bytes": Judged(PROVED, answer="udp"),
    "closed-tcp-port": Judged(PROVED, answer="rst"),
    "closed-udp-port": Judged(PROVED, answer="icmp port-unreachable"),
    "vip": Judged(PROVED, answer="syn-ack"),
    "vip-of-many": Judged(PROVED, answer="syn-ack"),
    "hairpin": Judged(PROVED, answer="syn-ack"),
    "nodeport": Judged(PROVED, answer="syn-ack"),
    "masquerade": Judged(PROVED, answer="echo-reply"),
    "host-to-container": Judged(PROVED, answer="syn-ack"),
    "oneself": Judged(PROVED, answer="echo-reply"),
    "rejected-as-expected": Judged(
        PROVED, REJECTED, "icmp port-unreachable", "rule_reject", "node-1:cni0", ("node-1:cni0", "node-2:eth0")
    ),
    "dropped-as-expected": Judged(
        PROVED, DROPPED, "", "rule_drop", "node-2:flannel.1", ("node-2:flannel.1", _WEB_3)
    ),
    "link-down-cable": Judged(LOST, LOST, "", "link_down", "node-2:eth0", _UNDERLAY),
    "link-down-vxlan": Judged(
        LOST, LOST, "", "link_down", "node-1:flannel.1", ("node-1:eth0", "node-1:flannel.1")
    ),
    "link-down-container": Judged(LOST, LOST, "", "link_down", "web-3:eth0", ("node-2:cni0", "web-3:eth0")),
    "node-down": Judged(LOST, LOST, "", "node_down", "node-2:eth0", _UNDERLAY),
    "route-missing": Judged(LOST, LOST, "", "route_missing", "node-1:eth0", _UNDERLAY),
    "route-missing-container": Judged(LOST, REJECTED, "", "route_missing", "web-1:lo"),
    "route-missing-host-gw": Judged(LOST, LOST, "", "route_missing", "node-1:eth0", _UNDERLAY),
    "route-wrong": Judged(LOST, LOST, "", "route_wrong", "node-1:flannel.1", _BEFORE_TUNNEL),
    "neigh-missing": Judged(LOST, LOST, "", "neigh_missing", "node-1:flannel.1", _BEFORE_TUNNEL),
    "neigh-wrong": Judged(LOST, LOST, "", "neigh_wrong", "node-1:flannel.1", _IN_TUNNEL),
    "fdb-missing": Judged(LOST, LOST, "", "fdb_missing", "node-1:flannel.1", _IN_TUNNEL),
    "fdb-missing-on-the-way-back": Judged(
        LOST, DELIVERED, "syn-ack", "fdb_missing", "node-2:flannel.1", ("node-2:flannel.1", "node-1:eth0")
    ),
    "fdb-wrong": Judged(LOST, LOST, "", "fdb_wrong", "node-1:flannel.1", _IN_TUNNEL),
    "rule-drop": Judged(LOST, DROPPED, "", "rule_drop", "node-2:flannel.1", ("node-2:flannel.1", _WEB_3)),
    "rule-reject": Judged(
        LOST, REJECTED, "icmp port-unreachable", "rule_reject", "node-1:cni0", ("node-1:cni0", "node-2:eth0")
    ),
    "rule-missing": Judged(LOST, REJECTED, "icmp port-unreachable", "rule_missing", _WEB_1),
    "no-endpoints": Judged(LOST, REJECTED, "icmp port-unreachable", "no_endpoints", "node-1:cni0"),
    "mtu-of-container": Judged(
        LOST, REJECTED, "icmp fragmentation-needed", "mtu", "node-1:flannel.1", _BEFORE_TUNNEL
    ),
    "mtu-of-cable": Judged(LOST, LOST, "", "mtu", "node-2:eth0", _UNDERLAY),
    "forwarding-off": Judged(LOST, LOST, "", "forwarding_off", "node-1:cni0", ("node-1:cni0", "node-2:eth0")),
    "rp-filter": Judged(LOST, LOST, "", "rp_filter", "node-1:flannel.1", ("node-1:flannel.1", _WEB_1)),
    "underlay-loss": Judged(LOST, LOST, "", "underlay_loss", "node-2:eth0", _UNDERLAY),
    "partition": Judged(LOST, LOST, "", "partition", "node-2:eth0", _UNDERLAY),
    "unknown": Judged(LOST, LOST, "", "unknown", _WEB_3, ("node-2:cni0", _WEB_3)),
    "wrong-path": Judged(WRONG_PATH, DELIVERED, "echo-reply", "fdb_wrong", "node-3:eth0"),
    "unseen-host": Judged(INCONCLUSIVE, DELIVERED, "echo-reply"),
}
