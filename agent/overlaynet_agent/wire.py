"""The composition root: the only place that names concrete adapters."""

from __future__ import annotations

import os
import queue
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from overlaynet import __version__
from overlaynet.config import AgentConfig
from overlaynet.core.engine import Engine
from overlaynet.core.keys import Keys
from overlaynet.core.underlay import local_host, traces
from overlaynet.errors import ConfigError, NameInvalid, NoConntrack, NoIpset, OverlayError
from overlaynet.firewall.chains import is_ours
from overlaynet.firewall.iptables import Iptables
from overlaynet.firewall.services import Affinity
from overlaynet.kernel import capability
from overlaynet.kernel.apply import KernelAdapter
from overlaynet.kernel.conntrack import ConntrackAdapter
from overlaynet.kernel.handle import Rtnl
from overlaynet.kernel.ipset import AffinitySetsAdapter
from overlaynet.kernel.notices import Notices
from overlaynet.kernel.observe import own_addresses
from overlaynet.model import Identity, LocalHost, check_name
from overlaynet.reconcile import ServiceDoors
from overlaynet.store import disk
from overlaynet.store.etcd import EtcdStore, connect
from overlaynet_agent import files
from overlaynet_agent.firewallworker import NO_DOORS, FirewallWorker
from overlaynet_agent.host import Host
from overlaynet_agent.lookworker import LookWorker
from overlaynet_agent.loop import Item, Loop
from overlaynet_agent.memory import Memory
from overlaynet_agent.notify import Manager
from overlaynet_agent.storeworker import KeepAlive, StoreWorker
from overlaynet_agent.timedstore import TimedStore
from overlaynet_agent.upkeep import Upkeep

CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_RAW")
"""All that the agent needs: the first for links, routes and rules, the second for iptables."""


def require_capabilities() -> None:
    """Raises NotPermitted before anything is touched."""
    capability.require(*CAPABILITIES)


def with_node_name(config: AgentConfig) -> AgentConfig:
    """Settings whose node name is filled in: the host name, if it can be one."""
    if config.node.name:
        return config
    name = socket.gethostname().partition(".")[0].lower()
    try:
        check_name(name, "node")
    except NameInvalid as error:
        raise ConfigError(
            f"the host name {name!r} cannot be a node's name",
            evidence=error.evidence,
            next=["set node.name in agent.toml"],
        ) from None
    return replace(config, node=replace(config.node, name=name))


def keys(config: AgentConfig) -> Keys:
    return Keys(config.etcd.prefix, config.etcd.overlay_prefix)


def store(config: AgentConfig) -> EtcdStore:
    """A client of the configured etcd."""
    return connect(config.etcd)


def identity(config: AgentConfig, *, create: bool) -> Identity:
    """Who this node is; made on the first start."""
    found = disk.read_identity(config.paths.identity)
    if found is None:
        found = files.new_identity()
        if create:
            disk.write_identity(config.paths.identity, found)
    return found


def firewall(config: AgentConfig, doors: ServiceDoors = NO_DOORS) -> Iptables:
    """Where there are no sets of clients, services remember them by the match `recent`."""
    affinity: Affinity = "ipset" if doors.sets else "recent"
    return Iptables(config.firewall.backend, instance=config.node.instance, affinity=affinity)


@contextmanager
def service_doors(config: AgentConfig) -> Iterator[ServiceDoors]:
    """What this kernel has for services beside rules. A host that serves none may have sets to be removed."""
    with ExitStack() as stack:
        sets = AffinitySetsAdapter(partial(is_ours, instance=config.node.instance))
        conntrack, rtnl = ConntrackAdapter(), stack.enter_context(Rtnl.open())
        for each in (sets, conntrack):
            stack.callback(each.close)
        lacks = [error for check in (sets.check, conntrack.check) if (error := _refusal_of(check))]
        kinds = {type(error) for error in lacks}
        serving = config.service.mode != "off"
        yield ServiceDoors(
            None if NoIpset in kinds else sets,
            conntrack if serving and NoConntrack not in kinds else None,
            partial(own_addresses, rtnl),
            tuple(lacks) if serving else (),
        )


def _refusal_of(check: Callable[[], None]) -> OverlayError | None:
    try:
        check()
    except (NoIpset, NoConntrack) as error:
        return error
    return None


def engine(config: AgentConfig, local: LocalHost) -> Engine:
    chance = random.SystemRandom()
    made = Engine(keys(config), local, chance.randrange, chance.random, __version__)
    wired = disk.read_workloads(config.paths.workloads, local.name) or ()
    made.workloads = {workload.id: workload for workload in wired}
    return made


def local(config: AgentConfig, kernel: KernelAdapter, *, create: bool) -> LocalHost:
    seen = kernel.observe()
    left = traces(seen, files.subnets_in(config.paths.subnet_file))
    return local_host(config, identity(config, create=create), seen, left)


def loop(
    config: AgentConfig,
    kernel: KernelAdapter,
    etcd: EtcdStore,
    rules: Iptables,
    reread: Callable[[], AgentConfig] | None = None,
    doors: ServiceDoors = NO_DOORS,
) -> Loop:
    """One agent, wired and not started. `reread` reads its settings again."""
    inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
    mind = engine(config, local(config, kernel, create=True))
    calls, memory = TimedStore(etcd), Memory(config.paths.remembered, keys(config))
    made = Loop(
        config=config,
        engine=mind,
        host=Host(mind, kernel),
        inbox=inbox,
        store=StoreWorker(calls, keys(config), inbox.put, before=memory.before),
        keepalive=KeepAlive(calls, inbox.put, lambda: made.is_alive()),
        firewall=FirewallWorker(rules, inbox.put, doors, config.service.min_sync_s),
        looker=LookWorker(inbox.put),
        memory=memory,
        calls=calls,
        upkeep=Upkeep(config.paths.run, inbox.put, disk.read_kept(config.paths.workloads, mind.local.name)),
        manager=Manager.from_environ(os.environ),
        reread=reread,
    )
    made.host.reconciler.rest = made.looker.rest
    return made


def notices(kernel: KernelAdapter, loop: Loop) -> Notices:
    """The listener that tells the loop what others change in the kernel, not started."""
    made = Notices(kernel.port_id, loop.inbox.put)
    loop.host.drift.watch = made.watch
    return made
