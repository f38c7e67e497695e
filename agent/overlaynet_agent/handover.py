"""``overlaynet-agent hand-over``: leaves a host to flanneld.

It is made to be run twice. The first time, with our agent stopped and flanneld not yet started: it rewrites
our routes as flannel's, takes our marks off the devices, and leaves our lease as flannel would have written
it, so that flanneld finds its own work and goes on. Our iptables chains stay, unless an earlier flanneld left
its own: no moment may be without either. The second time, with flanneld running and its chains in place, ours
go. Each step looks at what is there, so any number of runs, at any time, does what is still to be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from overlaynet.config import AgentConfig
from overlaynet.core import handing, leasing
from overlaynet.core.keys import Keys
from overlaynet.core.overlay import container_mtu
from overlaynet.errors import Conflict, NotReady
from overlaynet.model import Lease, NodeRecord, Stored, Workload
from overlaynet.ports import Compare, Delete, Firewall, Put
from overlaynet.reconcile import Outcome
from overlaynet.store import codec, disk
from overlaynet.store.etcd import EtcdStore
from overlaynet_agent import files, flanneld, wire
from overlaynet_agent.commands import Survey, document_of, failures_of, opened, remove_rules, survey_host
from overlaynet_agent.storeworker import MAX_WRITES

FORWARD = ("filter", "FORWARD")
FLANNEL_FORWARD = "-j FLANNEL-FWD"
"""flanneld's jump to the chain that lets container traffic through, as OVL-FORWARD does."""

START = "systemctl start flanneld"
AGAIN = "overlaynet-agent hand-over, once flanneld runs: our iptables chains go when its own are there"


def hand_over(config: AgentConfig) -> dict[str, Any]:
    """Do what can be done now. Raises NotReady if this host has no lease to hand over."""
    wire.require_capabilities()
    with files.only_one(config.paths.pid_file), opened(config) as (kernel, etcd, rules, doors):
        survey = survey_host(config, kernel, etcd, create=False)
        network = survey.view.network
        assert network is not None
        lease = _lease(survey)
        pending = handing.changes(kernel.observe(), network.networks)
        outcome = Outcome(pending, tuple(kernel.apply(pending)))
        if not outcome.failures:
            _leave_store(survey, lease, etcd, wire.keys(config))
        served = _flannel_serves(rules)
        chains, left = remove_rules(rules, doors) if served else ((), [])
    _leave_files(config, survey, lease.value)
    return {
        **document_of("HandOver", outcome.changes, chains, None),
        "failures": failures_of(outcome) + left,
        "flanneld": (pids := flanneld.running()),
        "next": [*([] if pids else [START]), *([] if served else [AGAIN])],
    }


def _lease(survey: Survey) -> Stored[Lease]:
    found = leasing.own_lease(survey.view, survey.local)
    if found is None:
        raise NotReady(
            "this host has no lease, so there is nothing for flanneld to go on with",
            evidence=f"node id {survey.local.identity.node_id}",
            next=["overlaynet get leases", "overlaynet-agent clean"],
        )
    return found


def _leave_store(survey: Survey, lease: Stored[Lease], etcd: EtcdStore, keys: Keys) -> None:
    """The lease as flannel writes it; our node's records and claims go. Raises StoreError or Conflict."""
    plain = replace(lease.value, node_id=None, node_name=None)
    if plain != lease.value:
        put = Put(lease.key, codec.encode_lease(plain), lease.lease_id)
        commit = etcd.commit([Compare(lease.key, lease.mod_revision)], [put])
        if not commit.ok:
            raise Conflict(
                "the lease changed while it was handed over", evidence=lease.key,
                next=["overlaynet-agent hand-over"],
            )  # fmt: skip
    ours = list(_records(survey, keys))
    for start in range(0, len(ours), MAX_WRITES):
        some = ours[start : start + MAX_WRITES]
        # A record that changed meanwhile is somebody else's now; the rest run out with their etcd lease.
        etcd.commit(
            [Compare(item.key, item.mod_revision) for item in some], [Delete(item.key) for item in some]
        )


def _records(survey: Survey, keys: Keys) -> Iterator[Stored[Any]]:
    view, me = survey.view, survey.local
    node = view.nodes.get(keys.node(me.name))
    if not _names(node, me.identity.node_id):
        return
    assert node is not None
    yield node
    yield from (claim for claim in view.claims.values() if claim.value.node_id == me.identity.node_id)
    yield from (item for item in view.workloads.values() if _is_on(item, me.name))


def _names(node: Stored[NodeRecord] | None, node_id: str) -> bool:
    return node is not None and node.value.node_id == node_id


def _is_on(item: Stored[Workload], node: str) -> bool:
    return item.value.node == node


def _flannel_serves(rules: Firewall) -> bool:
    """Whether flanneld's rules do the work of ours, which may go then."""
    return any(rule.text.endswith(FLANNEL_FORWARD) for rule in rules.observe().chains.get(FORWARD, ()))


def _leave_files(config: AgentConfig, survey: Survey, lease: Lease) -> None:
    """flanneld reads from subnet.env which subnet it had; what etcd once said must not outlive us here."""
    network, local = survey.view.network, survey.local
    assert network is not None
    mtu = container_mtu(network.backend, local)
    text = files.subnet_env(network, lease.subnets, mtu, masquerade=local.masquerade)
    if not config.paths.subnet_file.exists():
        disk.write_if_different(config.paths.subnet_file, text, 0o644)
    config.paths.remembered.unlink(missing_ok=True)
