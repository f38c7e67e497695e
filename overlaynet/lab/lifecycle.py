"""Bringing a lab up and taking it down.

`up` converges: it looks at what is there, plans, and does only what the plan says, so that the second time
there is nothing to do, a process that died is started again, and hosts and containers come and go as the
topology does. A first `up` that fails is taken back whole; an existing lab is left as far as it got, and the
next `up` goes on from there.

    etcd           started first; it becomes ready while hosts are being wired
    agents         all at once; what they need from etcd arrives while Python is still being loaded
    containers     on each host as soon as its agent has a subnet
    settled        every agent ready, nothing pending, everyone knows everyone
    commands       once the network is there; what has a probe is waited for

What was broken on purpose is healed first: a lab is to be as its topology says.

A user who is not root has the lab in a sandbox (`lab.sandbox`), which `up` makes and joins before anything
else and `down` ends from outside, with all that is in it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from overlaynet.client import AgentClient
from overlaynet.core.keys import Keys
from overlaynet.errors import AgentUnreachable, LabFailed, OverlayError, ToolMissing, TopologyError
from overlaynet.firewall.iptables import Iptables
from overlaynet.kernel import capability, netns, process, sysctl
from overlaynet.lab import attach, cluster_store, faults, sandbox
from overlaynet.lab.build import UNFINISHED, Builder
from overlaynet.lab.converge import (
    COMMAND,
    ETCD,
    HELPER,
    UNDERLAY_PLACE,
    Key,
    Kind,
    Parts,
    Plan,
    agent_of,
    cables,
    command_of,
    helper_of,
    plan,
    wanted,
)
from overlaynet.lab.launch import identity, launches
from overlaynet.lab.netns_driver import PREFIX, NetnsDriver, namespace
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.sandbox import STOP_GRACE_S
from overlaynet.lab.settling import Progress, Settling, UpResult, silent
from overlaynet.lab.state import LabState, Running, boot_id, changing, load, save
from overlaynet.lab.topology import Container, Host, Topology
from overlaynet.store.disk import write_identity

LONGEST_SOCKET = 107
BRIDGE_FILTER = "net/bridge/bridge-nf-call-iptables"
TOOLS = ("ip", "nsenter", "setpriv", "etcd", "iptables")


# --- up -------------------------------------------------------------------------------------------


def up(topology: Topology, paths: Paths, *, timeout_s: float, progress: Progress = silent) -> UpResult:
    """Make the lab as the topology says. Raises OverlayErrors; a lab that only takes too long is no error."""
    paths = paths.mine
    with changing(paths, topology.name):
        old = load(paths.lab(topology.name))
        _refuse_machines(topology.name, old)
        check_before(topology, paths.lab(topology.name))
        fresh = sandbox.prepare(topology.name, paths)
        try:
            require_privilege("making a lab")
            if fresh:
                # They went with the sandbox before.
                paths.lab(topology.name).faults_json.unlink(missing_ok=True)
                _load_bridge_filter()
            healed = faults.heal_before(topology.name, paths)
            result = _Up(topology, paths, old, timeout_s, progress).run()
            return replace(result, changes=result.changes + len(healed), healed=healed)
        except BaseException:
            if old is None and (fresh or paths.lab(topology.name).lab_json.exists()):
                with suppress(OverlayError):
                    _take_down(topology.name, paths, keep_logs=False)
            raise


def _load_bridge_filter() -> None:
    """Services need br_netfilter on their hosts, and who is in a sandbox cannot load it but by asking for it.
    If that fails, agents tell what is missing, as they do where root has not loaded it."""
    if sysctl.read(BRIDGE_FILTER) is not None:
        return
    spare = netns.new()
    try:
        with netns.entered(spare), suppress(OverlayError):
            Iptables().load_bridge_filter()
    finally:
        os.close(spare)


def check_before(topology: Topology, lab: LabPaths) -> None:
    """What can be told before anything is touched. Raises ToolMissing, TopologyError."""
    _check_sockets([lab.host(host.name).socket for host in topology.hosts])
    _check_sockets([lab.host(c.host).probe_socket(c.name) for c in topology.containers if c.needs_helper])
    for name in TOOLS:
        process.tool(name)
    for container in topology.containers:
        _check_command(container)


def _refuse_machines(name: str, state: LabState | None) -> None:
    """A lab on machines is built and taken away over ssh (`lab.machines`)."""
    if state is not None and state.on_machines:
        raise TopologyError(
            f"lab {name!r} is on machines, reached by {state.driver}",
            next=[f"overlaynet down -l {name}", "overlaynet up -l ANOTHER_NAME"],
        )


def _check_sockets(sockets: Iterable[Path]) -> None:
    longest = max(sockets, key=lambda path: len(os.fsencode(path)), default=Path())
    length = len(os.fsencode(longest))
    if length > LONGEST_SOCKET:
        raise TopologyError(
            "the path of a socket would be too long for the kernel",
            evidence=f"{longest} has {length} bytes; unix(7) allows {LONGEST_SOCKET}",
            next=["shorter names, or a shorter directory: XDG_RUNTIME_DIR=/run/user/$(id -u) overlaynet up"],
        )


def _check_command(container: Container) -> None:
    """Before anything is touched: a program that is not there would be noticed last."""
    try:
        for program in container.command[:1]:
            process.tool(program)
    except ToolMissing as error:
        raise TopologyError(
            f"container {container.name!r} is to run {program!r}, which is no program of this machine",
            evidence=error.evidence,
            next=["install it, or correct the container's `command` in the topology"],
        ) from None


def require_privilege(purpose: str) -> None:
    capability.require(*sandbox.CAPABILITIES, purpose=purpose)


class _Up:
    """One `up`: the wanted topology, what was recorded before, and what has been done so far."""

    def __init__(
        self, topology: Topology, paths: Paths, old: LabState | None, timeout_s: float, progress: Progress
    ) -> None:
        known = {host.name: host.number for host in old.topology.hosts} if old else {}
        self.topology = topology.keeping(known)
        self.paths: LabPaths = paths.lab(topology.name)
        self.old = old
        self.progress = progress
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        self.builder = Builder(topology.name, self.paths)
        self.driver = NetnsDriver(topology.name, self.paths)
        self.launches = launches(self.topology, self.paths, os.uname().machine)
        self.processes: dict[str, Running] = {}
        self.namespaces: dict[str, str] = {}
        self.starting = threading.Lock()
        if old and old.topology.network != self.topology.network:
            raise TopologyError(
                f"the network of lab {topology.name!r} cannot be changed while it is up",
                evidence=f"it is {old.topology.network}",
                next=[f"overlaynet down -l {topology.name}"],
            )

    def run(self) -> UpResult:
        recorded = self.old or LabState(self.topology, boot_id())
        have = self.builder.observe(recorded, self.topology)
        want = wanted(self.topology, {name: launch.spec for name, launch in self.launches.items()})
        steps = plan(want, have)
        self.builder.refuse_strangers(set(steps.makes(Kind.NETNS)) - set(recorded.namespaces))
        self.processes = {
            name: running for name, running in recorded.processes.items() if Key(Kind.PROCESS, name) in have
        }
        self.namespaces = {**_specs(have), **_specs(want), **dict.fromkeys(_touched(steps), UNFINISHED)}
        if steps.changes or recorded.topology != self.topology:
            self._save()
        self._remove(steps, recorded.topology)
        self._make(steps, _specs(want))
        changes = steps.changes + self._settle_store()
        settling = Settling(self.topology, self, self.deadline, self.progress)
        settled = settling.settle(steps.makes(Kind.NETNS), steps.makes_processes(HELPER))
        commands = steps.makes_processes(COMMAND)
        self._start([command_of(name) for name in commands])
        fresh = {*commands, *(name for one in settled for name in one.wired)}
        waiting = tuple(s.waiting for s in settled if s.waiting) or settling.await_ready(fresh)
        return UpResult(
            lab=self.topology.name,
            changes=changes + sum(s.changes for s in settled),
            hosts=tuple(host.name for host in self.topology.hosts),
            ready_s=round(time.monotonic() - self.started, 3),
            converged=not waiting,
            waiting=waiting,
        )

    def _save(self) -> None:
        save(self.paths, LabState(self.topology, boot_id(), dict(self.namespaces), dict(self.processes)))

    # --- parts --------------------------------------------------------------------------------

    def _remove(self, steps: Plan, before: Topology) -> None:
        names = steps.removes(Kind.PROCESS)
        for batch in ([n for n in names if n != ETCD], [n for n in names if n == ETCD]):
            process.stop((self.processes.pop(name).process for name in batch), STOP_GRACE_S)
        known = {cable.place: cable for cable in (*cables(before), *cables(self.topology))}
        new = set(steps.makes(Kind.NETNS)) - set(steps.removes(Kind.NETNS))
        touched = {*steps.removes(Kind.CABLE), *steps.makes(Kind.CABLE)} - new
        self.builder.remove_cables(known[place] for place in sorted(touched) if place in known)
        self.builder.remove_namespaces(steps.removes(Kind.NETNS))
        for host in {h.name for h in before.hosts} - {h.name for h in self.topology.hosts}:
            _remove_host_files(self.paths, host)

    def _make(self, steps: Plan, finished: dict[str, str]) -> None:
        """Namespaces, which are `finished` then, cables, etcd and agents."""
        self.progress("network", 0, len(steps.make))
        self.builder.make_namespaces(sorted(steps.makes(Kind.NETNS), key=lambda place: place != UNDERLAY_PLACE))
        fresh = set(steps.makes(Kind.CABLE))
        self.builder.make_cables([cable for cable in cables(self.topology) if cable.place in fresh])
        self.progress("network", len(steps.make), len(steps.make))
        for host in self.topology.hosts:
            self._prepare(host)
        if steps.changes:
            self.namespaces = finished
            self._save()
        later = (f"{COMMAND}/", f"{HELPER}/")
        daemons = [name for name in steps.makes(Kind.PROCESS) if not name.startswith(later)]
        self._start(sorted(daemons, key=lambda name: name != ETCD))

    def _prepare(self, host: Host) -> None:
        """The host's directories, and the identity it begins with: only if it has none."""
        paths = self.paths.host(host.name)
        paths.run.mkdir(parents=True, exist_ok=True)
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not paths.identity.exists():
            write_identity(paths.identity, identity(self.topology, host, os.urandom(16).hex()))

    def _start(self, names: Sequence[str]) -> None:
        """Start processes, and record them at once: one that nobody knows of would be in the next one's way."""
        with self.starting:
            for name in names:
                self.processes[name] = self.builder.start(self.launches[name])
            if names:
                self._save()

    # --- etcd ---------------------------------------------------------------------------------

    def _settle_store(self) -> int:
        from overlaynet.store.etcd import EtcdStore  # here: it costs 0.2 s, which agents need as well

        self.progress("etcd", 0, 1)
        store = EtcdStore([f"unix://{self.paths.etcd_socket}"])
        try:
            self.builder.await_etcd(self.processes[ETCD])
            previous = self.old.topology if self.old else None
            changes = cluster_store.tend(store, Keys(), self.topology, previous.settings if previous else None)
            return changes + cluster_store.serve(store, Keys(), self.topology, previous)
        finally:
            store.close()
            self.progress("etcd", 1, 1)

    # --- the crew that settles hosts ----------------------------------------------------------

    @property
    def alone(self) -> bool:
        return True

    def status(self, host: str, timeout_s: float) -> Mapping[str, Any]:
        return AgentClient(self.paths.host(host).socket, timeout_s).get("/v1/status")

    def is_ours(self, container: Mapping[str, Any]) -> bool:
        return True

    def wire(self, container: Container) -> None:
        helper = self._probe_socket(container) if container.needs_helper else None
        agent = self.driver.agent(container.host)
        attach.attach(agent, container, self.builder.name(container.name), helper=helper)

    def unwire(self, host: str, namespace: str, name: str) -> None:
        attach.detach(self.driver.agent(host), namespace, name)

    def _probe_socket(self, container: Container) -> Path:
        return self.paths.host(container.host).probe_socket(container.name)

    def start_helpers(self, containers: Sequence[Container]) -> None:
        """One that is there already ends by itself, for another takes its socket's place."""
        for container in containers:
            self._probe_socket(container).unlink(missing_ok=True)
        self._start([helper_of(container.name) for container in containers])
        for container in containers:
            name = helper_of(container.name)
            self.builder.await_file(self._probe_socket(container), self.processes[name], name)

    def check_alive(self, host: Host, error: AgentUnreachable) -> None:
        if not self.processes[agent_of(host.name)].process.alive:
            log = self.paths.host(host.name).log
            raise LabFailed(
                f"the agent of {host.name} ended",
                evidence=process.last_lines(log),
                next=[f"tail {log}", f"overlaynet up -l {self.topology.name}"],
            ) from error


def _specs(parts: Parts) -> dict[str, str]:
    return {key.name: str(spec) for key, spec in parts.items() if key.kind is Kind.NETNS}


def _touched(steps: Plan) -> set[str]:
    return {*steps.makes(Kind.NETNS), *steps.removes(Kind.NETNS)}


def _remove_host_files(paths: LabPaths, host: str) -> None:
    for directory in (paths.host(host).run, paths.host(host).state):
        shutil.rmtree(directory, ignore_errors=True)


# --- down -----------------------------------------------------------------------------------------


def down(name: str, paths: Paths, *, keep_logs: bool = False) -> int:
    """Take a lab away, whole or half-built; answer how many namespaces and processes there were.

    `keep_logs` leaves its log files. Raises LabFailed, NotPermitted, KernelError."""
    paths = paths.home_of(name)
    if not sandbox.holds(name, paths):
        require_privilege("taking a lab down")
    with changing(paths, name):
        with suppress(LabFailed):  # damaged: names and directories have to do
            _refuse_machines(name, load(paths.lab(name)))
        return _take_down(name, paths, keep_logs=keep_logs)


def _take_down(name: str, paths: Paths, *, keep_logs: bool) -> int:
    lab = paths.lab(name)
    faults.end_timers(lab)
    try:
        state = load(lab)
    except LabFailed:
        state = None  # damaged: names and directories have to do
    in_sandbox = sandbox.holds(name, paths)
    removed = _end_sandbox(name, paths) if in_sandbox else _end_parts(name, paths, state)
    for directory in (lab.run, lab.state):
        remove_tree(directory, keep_logs=keep_logs)
    return removed


def _end_sandbox(name: str, paths: Paths) -> int:
    """All its processes, and with them its namespaces. For whoever is in there as well, their names go too."""
    removed = sandbox.end(name, paths)
    here = sandbox.is_here(name, paths)
    names = [item for item in netns.names() if item.startswith(f"{PREFIX}-{name}-")] if here else []
    for item in names:
        netns.delete(item)
    return removed + len(names)


def _end_parts(name: str, paths: Paths, state: LabState | None) -> int:
    """Its processes, etcd last, and its namespaces."""
    if state is not None:
        names = [namespace(name, place) for place in state.namespaces]
        recorded = [] if state.rebooted else [running.process for running in state.processes.values()]
    else:
        names, recorded = orphans(name, netns.names(), _claimed(name, paths)), []
    names = [item for item in names if netns.exists(item)]
    etcd = namespace(name, ETCD)
    first = process.inside(netns.path(item) for item in names if item != etcd)
    process.stop(first, STOP_GRACE_S)
    last = {*process.inside([netns.path(etcd)] if etcd in names else []), *recorded}
    process.stop(last, STOP_GRACE_S)
    for item in names:
        netns.delete(item)
    return len(names) + len(first) + len(last - set(first))


def _claimed(name: str, paths: Paths) -> set[str]:
    """Namespaces that other labs have recorded as theirs."""
    claimed: set[str] = set()
    for other in paths.names():
        if other != name:
            with suppress(LabFailed):
                state = load(paths.lab(other))
                claimed |= {namespace(other, place) for place in state.namespaces} if state else set()
    return claimed


def orphans(name: str, present: Iterable[str], claimed: Iterable[str]) -> list[str]:
    """Which of the machine's namespaces are this lab's, judged by their names alone.

    `ovl-a-b-c` may be `c` of lab `a-b` or `b-c` of lab `a`: it is left alone if another lab has recorded it,
    or if an underlay tells that there is a lab with the longer name."""
    present = list(present)
    prefix = f"{PREFIX}-{name}-"
    ending = f"-{UNDERLAY_PLACE}"
    longer = [n.removesuffix(UNDERLAY_PLACE) for n in present if n.startswith(prefix) and n.endswith(ending)]
    theirs = tuple(other for other in longer if other != prefix)
    return [n for n in present if n.startswith(prefix) and n not in set(claimed) and not n.startswith(theirs)]


def remove_tree(directory: Path, *, keep_logs: bool) -> None:
    """The directory with everything in it, but for logs if they are to be kept."""
    if not keep_logs:
        shutil.rmtree(directory, ignore_errors=True)
    for file in sorted(directory.rglob("*"), reverse=True):
        if file.is_dir() and not file.is_symlink():
            with suppress(OSError):  # logs are left in it
                file.rmdir()
        elif file.suffix != ".log":
            file.unlink()
    for empty in (directory, *directory.parents[:2]):
        with suppress(OSError):
            empty.rmdir()
