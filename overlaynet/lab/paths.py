"""Where a lab keeps its files.

Network namespaces share the machine's file system, so every host of a lab has directories of its own: one
for what lives as long as the lab runs (`/run`, gone after a reboot) and one for what must survive it.

    /run/overlaynet/labs/LAB/lab.json                   what the lab is
    /run/overlaynet/labs/LAB/faults.json                what is broken in it on purpose
    /run/overlaynet/labs/LAB/etcd.sock                  etcd, for those who are not on the underlay
    /run/overlaynet/labs/LAB/{etcd,CONTAINER}.log       what processes said
    /run/overlaynet/labs/LAB/hosts/HOST/                agent.{toml,sock,pid,log} subnet.env xtables.lock
    /var/lib/overlaynet/labs/LAB/lab.json               the same, to be known after a reboot
    /var/lib/overlaynet/labs/LAB/etcd/                  etcd's data
    /var/lib/overlaynet/labs/LAB/hosts/HOST/            {identity,workloads,etcd}.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from overlaynet.config import PathConfig

_MACHINE = PathConfig()


@dataclass(frozen=True, slots=True)
class HostPaths(PathConfig):
    """The directories of one host of a lab: what its agent's `[paths]` say, and what the lab puts beside."""

    @property
    def config(self) -> Path:
        return self.run / "agent.toml"

    @property
    def log(self) -> Path:
        return self.run / "agent.log"

    def probe_socket(self, container: str) -> Path:
        """Where the helper listens that runs a container's probe command."""
        return self.run / f"probe-{container}.sock"

    @property
    def xtables_lock(self) -> Path:
        return self.run / "xtables.lock"


@dataclass(frozen=True, slots=True)
class LabPaths:
    """The directories of one lab."""

    run: Path
    state: Path

    @property
    def lab_json(self) -> Path:
        return self.run / "lab.json"

    @property
    def faults_json(self) -> Path:
        return self.run / "faults.json"

    @property
    def durable_json(self) -> Path:
        return self.state / "lab.json"

    @property
    def inventory(self) -> Path:
        """A lab of machines: how ssh reaches them (ssh_config(5))."""
        return self.state / "ssh_config"

    @property
    def etcd_data(self) -> Path:
        return self.state / "etcd"

    @property
    def etcd_socket(self) -> Path:
        return self.run / "etcd.sock"

    def log(self, name: str) -> Path:
        """The log of etcd or of a container's command."""
        return self.run / f"{name}.log"

    def host(self, name: str) -> HostPaths:
        run = self.run / "hosts" / name
        return HostPaths(run, self.state / "hosts" / name, run / "subnet.env")


@dataclass(frozen=True, slots=True)
class Paths:
    """The two roots under which all labs are."""

    run_root: Path = _MACHINE.run
    state_root: Path = _MACHINE.state

    @property
    def agent(self) -> PathConfig:
        """Those of this machine's own agent, which has the roots to itself."""
        return PathConfig(self.run_root, self.state_root)

    @property
    def labs(self) -> Path:
        return self.run_root / "labs"

    def lab(self, name: str) -> LabPaths:
        return LabPaths(self.labs / name, self.state_root / "labs" / name)

    def lock(self, name: str) -> Path:
        """Held by whoever changes the lab; outside of its directory, which comes and goes."""
        return self.labs / f".{name}.lock"

    def names(self) -> tuple[str, ...]:
        """Labs that have a state file: running, or left behind by a reboot or a crash."""
        roots = (self.labs, self.state_root / "labs")
        return tuple(sorted({file.parent.name for root in roots for file in root.glob("*/lab.json")}))
