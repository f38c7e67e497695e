"""What is known of a cluster's things from several places at once: the lab, etcd, agents and their files."""

from __future__ import annotations

import json
from contextlib import suppress

from overlaynet.cluster.cluster import AGENT_TIMEOUT_S, Cluster, Container, Host, read_view
from overlaynet.core.view import View
from overlaynet.errors import OverlayError, StoreError
from overlaynet.lab.converge import OUTSIDE_PLACE
from overlaynet.lab.state import LOCAL
from overlaynet.model import Lease, Stored
from overlaynet.ports import KeyValue


def containers(cluster: Cluster, view: View | None) -> list[Container]:
    """What was started, with the addresses etcd has; and what only etcd knows of."""
    wired = {} if view is None else {item.value.id: item.value for item in view.workloads.values()}
    found = []
    for container in cluster.containers():
        record = wired.pop(container.id, None)
        found.append(container.with_record(record) if record else container)
    return found + [Container(w.name, w.node, w.namespace, w.netns).with_record(w) for w in wired.values()]


def addresses(cluster: Cluster) -> dict[str, str]:
    """Name to address, of containers, hosts and the outside; what cannot be found out is left out.

    A lab's are known on this machine; a real cluster's other nodes only to etcd."""
    view = None
    if cluster.name == LOCAL:
        with suppress(StoreError):
            view = read_view(cluster)
    found = {c.name: c.ips[0] for c in containers(cluster, view) if c.ips}
    found |= {h.name: h.underlay_ip for h in cluster.hosts() if h.underlay_ip}
    outside = cluster.outside()
    return found if outside is None else {**found, OUTSIDE_PLACE: outside.ip}


def kept_leases(cluster: Cluster, host: Host, view: View) -> dict[str, Stored[Lease]]:
    """Leases that etcd does not have and the host's agent keeps in use on purpose. Only it knows; where none
    answers, nobody keeps anything, and what was kept is extra."""
    from overlaynet.store import codec

    try:
        told = cluster.agent(host.name, AGENT_TIMEOUT_S).get("/v1/stale")["leases"]
    except OverlayError:
        return {}
    kept: dict[str, Stored[Lease]] = {}
    for item in told:
        lease = codec.decode(KeyValue(item["key"], json.dumps(item["value"]).encode()), cluster.keys()).value
        if isinstance(lease, Lease) and item["key"] not in view.leases:
            kept[item["key"]] = Stored(item["key"], lease)
    return kept
