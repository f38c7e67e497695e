"""What each of the agent's commands does, but for `handover`.

``run`` is the service. ``once``, ``plan`` and ``clean`` are for a host without a running agent, or for a
look before one is let loose: they read etcd and the kernel, and ``plan`` writes to neither.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

from overlaynet import __version__
from overlaynet.addr import IPNetwork
from overlaynet.config import AgentConfig
from overlaynet.core import leasing, plan
from overlaynet.core.backoff import delay
from overlaynet.core.diff import changes
from overlaynet.core.flows import Cleanup
from overlaynet.core.jsonstate import change_to_json, rule_change_to_json
from overlaynet.core.ownership import owned
from overlaynet.core.view import View
from overlaynet.errors import Conflict, FirewallBusy, NetworkNotConfigured, OverlayError
from overlaynet.events import Changed, Claimed, ClaimSubnet, Event, Raced
from overlaynet.firewall.iptables import Iptables
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.model import Lease, LocalHost, Workload
from overlaynet.ports import Compare, Put
from overlaynet.reconcile import Outcome, Reconciler, ServiceDoors, forget_flows, sync_firewall
from overlaynet.state import Change, Link, RuleChange, Source, Sysctl
from overlaynet.store import codec, disk
from overlaynet.store.etcd import EtcdStore
from overlaynet_agent import files, flanneld, metrics, wire
from overlaynet_agent.api import PROBE_SOCKET, Server
from overlaynet_agent.health import HealthServer
from overlaynet_agent.loop import Loop, Request, Stop
from overlaynet_agent.storeworker import StoreWorker

log = logging.getLogger("overlaynet.agent")

CLAIM_ATTEMPTS = 10
SETS_TRIES, SETS_AGAIN_S = 7, 0.02
"""For sets to be let go of by rules that are deleted already; 1.3 seconds in all."""
GARBAGE_OBJECTS = 50_000
"""New objects between searches for cycles among them. We make hardly any, and a lease alone is some twenty
objects: at Python's own 700, the searches took a quarter of the time in which thousands of peers are planned.
"""

TURN_S = 0.001
"""How long a thread of ours computes while another waits. The loop makes many short calls of the kernel, and
after each it waits so long for a thread that reads twenty thousand peers; at Python's own 5 ms that adds up."""


class Worker(Protocol):
    """Something with a thread of its own beside the loop's."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


def run(config: AgentConfig, reread: Callable[[], AgentConfig]) -> int:
    """Run until SIGTERM or SIGINT; the dataplane stays as it is. SIGHUP has the settings read again."""
    wire.require_capabilities()
    flanneld.refuse_beside("an agent")
    alone = files.only_one_in_netns(config.node.instance)
    with files.only_one(config.paths.pid_file), alone, opened(config) as (kernel, etcd, rules, doors):
        loop = wire.loop(config, kernel, etcd, rules, reread, doors)
        log.info(
            "start version=%s node=%s node_id=%s public_ip=%s interface=%s mtu=%d endpoints=%s rules=%s",
            __version__, loop.engine.local.name, loop.engine.local.identity.node_id,
            loop.engine.local.public_ips[0], loop.engine.local.interface, loop.engine.local.underlay_mtu,
            ",".join(config.etcd.endpoints), rules.flavour,
        )  # fmt: skip
        server = Server(config.paths.socket, loop, rules, lambda: metrics.exposition(loop, rules))
        asked = [HealthServer(config.health.listen, server)] if config.health.listen else []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.inbox.put(Stop()))
        signal.signal(signal.SIGHUP, lambda *_: loop.inbox.put(Request(Loop.reload, Future())))
        threads: list[Worker] = [wire.notices(kernel, loop), *loop.threads, server, *asked]
        for thread in threads:
            thread.start()
        gc.freeze()  # what was imported is not garbage either
        gc.set_threshold(GARBAGE_OBJECTS)
        sys.setswitchinterval(TURN_S)
        try:
            loop.run()
        finally:
            for thread in reversed(threads):
                thread.stop()
        _linger(loop)
        log.info("stopped; the dataplane stays")
    return 0


def _linger(loop: Loop) -> None:
    """Leave our records in place for StopGrace; a store that is away now cannot keep us from stopping."""
    engine = loop.engine
    record = engine.view.nodes.get(engine.keys.node(engine.local.name))
    if record is None or record.value.node_id != engine.local.identity.node_id:
        return
    try:
        workloads = list(engine.workloads.values())
        loop.store.linger(record.value, workloads, engine.view.settings.stop_grace_s)
    except OverlayError as error:
        log.warning("records were not extended for the stop error=%s", error)


@contextlib.contextmanager
def opened(config: AgentConfig) -> Iterator[tuple[KernelAdapter, EtcdStore, Iptables, ServiceDoors]]:
    kernel, etcd = KernelAdapter.open(config.node.instance), wire.store(config)
    try:
        with wire.service_doors(config) as doors:
            yield kernel, etcd, wire.firewall(config, doors), doors
    finally:
        etcd.close()
        kernel.close()


@dataclass(frozen=True, slots=True)
class Survey:
    """One reading of etcd and of this host, and what follows from the two."""

    view: View
    local: LocalHost
    workloads: tuple[Workload, ...]
    own: Lease | None

    @property
    def desired(self) -> plan.Desired:
        return plan.desired(self.view, self.local, self.own, self.workloads)


def survey_host(config: AgentConfig, kernel: KernelAdapter, etcd: EtcdStore, *, create: bool) -> Survey:
    """Read both. Raises NetworkNotConfigured: without a network config nothing is ours to plan."""
    keys = wire.keys(config)
    listing = etcd.read(keys.watched)
    view = View.of((codec.decode(item, keys) for item in listing.items), keys, listing.revision)
    if view.network is None:
        raise NetworkNotConfigured(
            "there is no usable network config in etcd",
            evidence=view.problems.get(keys.network_config, f"key {keys.network_config} is absent"),
            next=["overlaynet network set FILE"],
        )
    local = leasing.adopt(view, wire.local(config, kernel, create=create))
    workloads = disk.read_workloads(config.paths.workloads, local.name) or ()
    found = leasing.own_lease(view, local)
    return Survey(view, local, tuple(workloads), found.value if found else None)


def show_plan(config: AgentConfig) -> dict[str, Any]:
    """What this host's agent would change now. Writes to neither kernel nor etcd."""
    wire.require_capabilities()
    with opened(config) as (kernel, etcd, rules, _):
        survey = survey_host(config, kernel, etcd, create=False)
        desired = survey.desired
        assert survey.view.network is not None
        pending: tuple[Change, ...] = ()
        chains: tuple[RuleChange, ...] = ()
        if survey.own is not None:  # an agent without a lease leaves everything as it is
            pending = Reconciler(kernel).observe(desired.objects, survey.view.network.networks)
            chains = rules.pending(desired.policies, rules.observe())
    marks, pending, chains = _marks(pending, chains)
    return {
        **document_of("Plan", pending, chains, desired),
        "lease": list(map(str, survey.own.subnets)) if survey.own else None,
        "taking_over_adds": marks,
        "flanneld": flanneld.running(),
    }


def _marks(
    pending: tuple[Change, ...], chains: tuple[RuleChange, ...]
) -> tuple[list[dict[str, Any]], tuple[Change, ...], tuple[RuleChange, ...]]:
    """Beside flannel's device: what taking it over adds to the dataplane without changing any of it (our mark
    on the device, our chains beside flannel's, sysctls), apart from what would really be changed."""
    if not any(_is_untagged(change) for change in pending):
        return [], pending, chains
    added = [c for c in pending if isinstance(c.obj, Sysctl) or (_is_untagged(c) and _differs_by_tag(c))]
    listed = [change_to_json(c, plan.HOST) for c in added] + [rule_change_to_json(c) for c in chains]
    return listed, tuple(c for c in pending if c not in added), ()


def _is_untagged(change: Change) -> bool:
    return isinstance(change.have, Link) and not change.have.tag


def _differs_by_tag(change: Change) -> bool:
    return isinstance(change.obj, Link) and change.obj._replace(tag="") == change.have


def once(config: AgentConfig) -> dict[str, Any]:
    """Claim a subnet if this host has none, then make the host right, once."""
    wire.require_capabilities()
    flanneld.refuse_beside("making this host right")
    with files.only_one(config.paths.pid_file), opened(config) as (kernel, etcd, rules, doors):
        survey = survey_host(config, kernel, etcd, create=True)
        survey = _claim(config, survey, etcd) if survey.own is None else _sign(config, survey, etcd)
        desired = survey.desired
        assert survey.view.network is not None
        outcome = Reconciler(kernel).look(desired.objects, survey.view.network.networks)
        chains = sync_firewall(rules, desired.policies, sets=doors.sets).changes
        networks = (survey.view.settings.service_network,)
        forgotten = forget_flows(doors, Cleanup(), desired.policies, networks)
    failures = failures_of(outcome) + not_done("connections to forget", forgotten.error)
    return {**document_of("Once", outcome.changes, chains, desired), "failures": failures}


def _sign(config: AgentConfig, survey: Survey, etcd: EtcdStore) -> Survey:
    """Put our node id into a lease that flannel wrote, and remember its MAC. Raises StoreError or Conflict."""
    found, network = leasing.own_lease(survey.view, survey.local), survey.view.network
    assert found is not None
    assert network is not None
    if found.value.node_id is not None:
        return survey
    disk.write_identity(config.paths.identity, survey.local.identity)
    lease = leasing.lease_value(found.value.subnets, network, survey.local)
    put = Put(found.key, codec.encode_lease(lease), found.lease_id)
    if not etcd.commit([Compare(found.key, found.mod_revision)], [put]).ok:
        raise Conflict(
            "the lease changed while it was taken over", evidence=found.key, next=["overlaynet-agent once"]
        )
    return replace(survey, own=lease)


def _claim(config: AgentConfig, survey: Survey, etcd: EtcdStore) -> Survey:
    """Claim a subnet as the running agent would. Raises PoolExhausted, StoreError or Conflict."""
    answers: list[Event] = []
    worker = StoreWorker(etcd, wire.keys(config), answers.append)
    mind = wire.engine(config, survey.local)
    lost: set[str] = set()
    for _ in range(CLAIM_ATTEMPTS):
        network = survey.view.network
        assert network is not None
        subnets = leasing.choose(survey.view, network, survey.local, mind.pick, lost)
        lease = leasing.lease_value(subnets, network, survey.local)
        worker.carry_out(ClaimSubnet(lease, 0, 0, survey.view.settings.lease_ttl_s))
        for answer in answers:
            match answer:
                case Claimed():
                    remembered = replace(survey.local.identity, subnets=subnets)
                    disk.write_identity(config.paths.identity, remembered)
                    return replace(survey, own=lease)
                case Changed():
                    survey.view.fold(answer)
                case Raced(key):
                    lost.add(key)
        answers.clear()
    raise Conflict("every subnet tried was claimed by somebody faster", evidence=", ".join(sorted(lost)))


def clean(config: AgentConfig) -> dict[str, Any]:
    """Remove everything of ours from this host's kernel and nothing else; etcd and the identity stay."""
    wire.require_capabilities()
    with files.only_one(config.paths.pid_file):
        kernel = KernelAdapter.open(config.node.instance)
        try:
            with wire.service_doors(config) as doors:
                chains, left = remove_rules(wire.firewall(config, doors), doors)
            outcome = _clean_kernel(kernel, files.networks_in(config.paths.subnet_file))
        finally:
            kernel.close()
        helpers = config.paths.run.glob(f"{PROBE_SOCKET}*.sock")
        for path in (config.paths.subnet_file, config.paths.workloads, *helpers):
            path.unlink(missing_ok=True)
    return {**document_of("Clean", outcome.changes, chains, None), "failures": failures_of(outcome) + left}


def remove_rules(rules: Iptables, doors: ServiceDoors) -> tuple[tuple[RuleChange, ...], list[dict[str, Any]]]:
    """All rules of ours, and the sets of clients they used, which the kernel may hold on to for a moment more;
    and what is left all the same. Raises FirewallError or ToolMissing."""
    outcome = sync_firewall(rules, {}, sets=doors.sets)
    for attempt in range(1, SETS_TRIES):
        if outcome.settled:
            return outcome.changes, []
        time.sleep(delay(attempt, 0.0, SETS_AGAIN_S))
        again = sync_firewall(rules, {}, sets=doors.sets)
        outcome = again._replace(changes=(*outcome.changes, *again.changes))
    used = FirewallBusy(
        "a set of clients is still used by a rule of somebody's",
        next=["ipset list -terse", "iptables-save", "overlaynet-agent clean"],
    )
    return outcome.changes, [] if outcome.settled else not_done("ipsets to remove", used)


def _clean_kernel(kernel: KernelAdapter, networks: tuple[IPNetwork, ...]) -> Outcome:
    """Containers' veths first, then routes, then links; what hangs on a link goes with it."""
    for link in kernel.observe().links.values():
        if link.tag and link.type == "veth":
            kernel.detach(link.name)
    present = {obj.key: obj for obj in owned(kernel.observe(), networks)}
    pending = changes({}, present)
    return Outcome(pending, tuple(kernel.apply(pending)))


def document_of(
    kind: str,
    pending: tuple[Change, ...],
    chains: tuple[RuleChange, ...],
    desired: plan.Desired | None,
) -> dict[str, Any]:
    sources = desired.sources if desired else {}
    nowhere = Source("none", "")
    listed = [change_to_json(c, sources.get(c.obj.key, nowhere)) for c in pending]
    listed += [rule_change_to_json(change) for change in chains]
    return {"schema": "overlaynet/v1", "kind": kind, "lab": None, "count": len(listed), "changes": listed}


def not_done(what: str, error: OverlayError | None) -> list[dict[str, Any]]:
    """As `failures_of`, of something else."""
    return [{"change": what, "error": error.as_json()}] if error else []


def failures_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [{"change": str(f.change), "error": f.error.as_json()} for f in outcome.failures]
