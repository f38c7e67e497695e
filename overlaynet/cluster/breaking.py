"""The faults of any lab, for one who changes them: of namespaces here, of machines where they are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from ipaddress import IPv4Address

from overlaynet.cluster.contexts import LabCluster
from overlaynet.cluster.machines import MachineCluster
from overlaynet.config import AgentConfig
from overlaynet.errors import NotFound
from overlaynet.lab import faults
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.faults import Faults
from overlaynet.lab.machinesite import MachineSite, MachineTimers
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import changing
from overlaynet.model import Identity, Workload


@contextmanager
def changing_faults(cluster: LabCluster) -> Iterator[Faults]:
    """A lab's faults, with the lab's lock held. Raises LabFailed if another command holds it, NotPermitted."""
    lab = cluster.lab
    if not isinstance(cluster, MachineCluster):
        with faults.changing_faults(lab.name, lab.root) as found:
            yield found
        return
    with changing(lab.root, lab.name):
        yield of_machines(cluster)


def of_machines(cluster: MachineCluster) -> Faults:
    """For one who holds the lock."""
    lab = cluster.lab
    assert isinstance(lab.driver, SshDriver)
    site = MachineSite(lab.state, lab.driver, _Known(cluster))
    return Faults(lab.paths, site, MachineTimers(site))


def heal_all(cluster: MachineCluster) -> tuple[Fault, ...]:
    """For `up` and `down`, who hold the lock and begin with a lab in which nothing is broken. Raises LabFailed,
    MachineUnreachable."""
    return of_machines(cluster).heal((), time.time(), hidden=True) if cluster.has_faults() else ()


class _Known:
    """A cluster as `machinesite` asks it."""

    def __init__(self, cluster: MachineCluster) -> None:
        self._cluster = cluster

    @cached_property
    def _ips(self) -> dict[str, str | None]:
        return {host.name: host.underlay_ip for host in self._cluster.hosts()}

    def underlay_ip(self, host: str) -> IPv4Address:
        if (ip := self._ips.get(host)) is None:
            raise NotFound(f"the underlay address of {host} is not known", next=["overlaynet status"])
        return IPv4Address(ip)

    def config(self, host: str) -> AgentConfig:
        return self._cluster.config(host)

    def identity(self, host: str) -> Identity | None:
        return self._cluster.identity(host)

    def workloads(self, host: str) -> Sequence[Workload] | None:
        return self._cluster.workloads(host)
