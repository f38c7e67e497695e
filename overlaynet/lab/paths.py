"""Where a lab keeps its files.

Network namespaces share the machine's file system, so every host of a lab has directories of its own: one
for what lives as long as the lab runs (`/run`, gone after a reboot) and one for what must survive it.

    /run/overlaynet/labs/LAB/lab.json                   what the lab is
    /run/overlaynet/labs/LAB/faults.json                what is broken in it on purpose
    /run/overlaynet/labs/LAB/looks                      how often it was looked into, if that counts
    /run/overlaynet/labs/LAB/etcd.sock                  etcd, for those who are not on the underlay
    /run/overlaynet/labs/LAB/{etcd,CONTAINER}.log       what processes said
    /run/overlaynet/labs/LAB/hosts/HOST/                agent.{toml,sock,pid,log} subnet.env xtables.lock
    /var/lib/overlaynet/labs/LAB/lab.json               the same, to be known after a reboot
    /var/lib/overlaynet/labs/LAB/etcd/                  etcd's data
    /var/lib/overlaynet/labs/LAB/hosts/HOST/            {identity,workloads,etcd}.json

A user who is not root keeps labs where the user's files belong (XDG Base Directory Specification):
$XDG_RUNTIME_DIR/overlaynet and $XDG_STATE_HOME/overlaynet, the latter ~/.local/state by default. Beside both
lab.json there is then sandbox.json (see `lab.sandbox`), unless the lab is one of machines. Such a lab has few
of these files (lab.json, faults.json, traces, and ssh_config beside the second lab.json).

A user's labs and root's do not meet: where none is named the user's own are meant, root's only by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from overlaynet.config import PathConfig
from overlaynet.errors import EnvironmentProblem
from overlaynet.lab import marker

_MACHINE = PathConfig()
_RECORDS = ("lab.json", "sandbox.json")


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
    def looks(self) -> Path:
        return self.run / "looks"

    @property
    def sandbox(self) -> Path:
        return self.run / "sandbox.json"

    @property
    def durable_sandbox(self) -> Path:
        return self.state / "sandbox.json"

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
    """The two roots under which labs are. `own`: those of a user who is not root, for whom these are root's."""

    run_root: Path = _MACHINE.run
    state_root: Path = _MACHINE.state
    own: Paths | None = field(default=None, kw_only=True)

    @classmethod
    def here(cls) -> Paths:
        """All that this user has or sees. In a sandbox that is what its user has. Raises EnvironmentProblem."""
        if os.geteuid() != 0:
            return cls(own=of_user(os.environ))
        sandbox = marker.here()
        return cls(Path(sandbox.run_root), Path(sandbox.state_root)) if sandbox else cls()

    @property
    def mine(self) -> Paths:
        """Where this user's labs are kept."""
        return self.own or self

    def home_of(self, name: str) -> Paths:
        """The roots that the lab is under: root's only if this user has none of that name."""
        return self if name not in self.mine.names() and name in self.roots() else self.mine

    @property
    def agent(self) -> PathConfig:
        """Those of this machine's own agent, which has the roots to itself."""
        return PathConfig(self.run_root, self.state_root)

    @property
    def labs(self) -> Path:
        return self.run_root / "labs"

    def lab(self, name: str) -> LabPaths:
        home = self.home_of(name)
        return LabPaths(home.labs / name, home.state_root / "labs" / name)

    def lock(self, name: str) -> Path:
        """Held by whoever changes the lab; outside of its directory, which comes and goes."""
        return self.home_of(name).labs / f".{name}.lock"

    def names(self) -> tuple[str, ...]:
        """This user's labs that have a state file: running, or left behind by a reboot or a crash."""
        return self.own.names() if self.own else self._names()

    def roots(self) -> tuple[str, ...]:
        """Root's labs on this machine, to a user who is not root."""
        return self._names() if self.own else ()

    def _names(self) -> tuple[str, ...]:
        found: set[str] = set()
        for root in (self.labs, self.state_root / "labs"):
            # Nothing in there is ours, and whoever wants to write there is told; or the last lab has just gone.
            with suppress(PermissionError, FileNotFoundError):
                found |= {file.parent.name for kind in _RECORDS for file in root.glob(f"*/{kind}")}
        return tuple(sorted(found))


def of_user(environ: Mapping[str, str], home: Path | None = None) -> Paths:
    """Relative paths in these variables are invalid, and count for nothing. Without a directory for what ends
    with the session, all of it is with the durable files. Raises EnvironmentProblem if there is no home."""
    state = _absolute(environ.get("XDG_STATE_HOME")) or (home or _home()) / ".local" / "state"
    run = _absolute(environ.get("XDG_RUNTIME_DIR"))
    run = run if run and os.access(run, os.W_OK) else None  # after su(1) it is another's, after a logout gone
    return Paths(run / "overlaynet" if run else state / "overlaynet" / "run", state / "overlaynet")


def _home() -> Path:
    """This user's. Raises EnvironmentProblem: a service or a container may have none."""
    try:
        found = Path.home()
    except RuntimeError:
        found = None
    if found is None or not found.is_absolute():
        raise EnvironmentProblem(
            "it is not known where your files are",
            evidence="HOME is not set" if found is None else f"HOME is {str(found)!r}, which is relative",
            next=["HOME=/a/directory/of/yours overlaynet ..."],
        )
    return found


def _absolute(text: str | None) -> Path | None:
    return Path(text) if text and Path(text).is_absolute() else None
