"""Labs on machines, up and down: the lock, the record and the connections around `lab.machines`.

The inventory is kept with the lab, as it was read: later commands reach the same machines, wherever they are
typed. A first `up` that fails takes back what it made; an existing lab is left as far as it got.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from overlaynet.cluster.breaking import heal_all
from overlaynet.cluster.machines import MachineCluster
from overlaynet.errors import EnvironmentProblem, LabChoice, OverlayError, TopologyError, UsageError
from overlaynet.kernel import process
from overlaynet.lab.faultrecords import Fault
from overlaynet.lab.inventory import host_names
from overlaynet.lab.lab import Lab
from overlaynet.lab.lifecycle import remove_tree
from overlaynet.lab.machineplan import check_inventory
from overlaynet.lab.machines import DownResult, Raising, Taking
from overlaynet.lab.paths import LabPaths, Paths
from overlaynet.lab.settling import Progress, UpResult, silent
from overlaynet.lab.ssh_driver import SshDriver
from overlaynet.lab.state import LabState, boot_id, changing, load, save
from overlaynet.lab.topology import Topology
from overlaynet.store.disk import write_if_different

SSH, VAGRANT = "ssh", "vagrant"
VAGRANT_S = 120.0


@dataclass(frozen=True, slots=True)
class Inventory:
    """An ssh_config(5): its text, what it is called in messages, and the hosts in it."""

    driver: str
    file: str
    text: str
    hosts: tuple[str, ...]

    @classmethod
    def read(cls, file: Path, driver: str = SSH) -> Inventory:
        """Raises UsageError, NameInvalid."""
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the inventory {file} cannot be read", evidence=str(error), next=[f"ls -l {file}"]
            ) from None
        return cls(driver, str(file), text, host_names(text, str(file)))

    @classmethod
    def of_vagrant(cls) -> Inventory:
        """What `vagrant ssh-config` says in the current directory. Raises ToolMissing, EnvironmentProblem."""
        argv = [process.tool(VAGRANT), "ssh-config"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=VAGRANT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentProblem("`vagrant ssh-config` did not answer", evidence=str(error)) from error
        if done.returncode or not done.stdout.strip():
            raise EnvironmentProblem(
                "Vagrant has no running machines here, or not all of its machines run",
                evidence=(done.stderr or done.stdout).strip()[-400:] or f"exit {done.returncode}",
                next=["cd vagrant", "vagrant status", "vagrant up"],
            )
        return cls(VAGRANT, "vagrant ssh-config", done.stdout, host_names(done.stdout, "vagrant ssh-config"))


def up(
    topology: Topology,
    inventory: Inventory,
    paths: Paths,
    *,
    timeout_s: float,
    any_network: bool = False,
    progress: Progress = silent,
) -> UpResult:
    """Make the lab on its machines as the topology says. `any_network`: whatever network they have is meant.

    Raises OverlayErrors; a lab that only takes too long is no error."""
    deadline = time.monotonic() + timeout_s
    topology = replace(topology, outside=False)
    check_inventory(topology, inventory.hosts, inventory.file)
    with changing(paths, topology.name):
        lab, old = paths.lab(topology.name), load(paths.lab(topology.name))
        if old is not None:
            _check_same_machines(old, inventory)
        write_if_different(lab.inventory, inventory.text, 0o600)
        healed = _heal(old, paths) if old is not None else ()
        wanted = LabState(topology, boot_id(), driver=inventory.driver)
        driver, reached = _reach(wanted, paths)
        if old is None and inventory.driver == SSH:  # the lab's own copy goes again if this fails
            driver.ssh.called = inventory.file
        try:
            raising = Raising(topology, driver, reached, lab, old, deadline, any_network, progress)
            try:
                result = raising.run()
                return replace(result, changes=result.changes + len(healed), healed=healed)
            except BaseException:
                if old is None:
                    _take_back(raising, lab)
                raise
        finally:
            driver.close()


def _check_same_machines(old: LabState, inventory: Inventory) -> None:
    """Raise TopologyError where the lab that is there could not be reached any more."""
    name = old.topology.name
    if not old.on_machines:
        raise TopologyError(
            f"lab {name!r} is one of namespaces on this machine",
            next=[f"overlaynet down -l {name}", "overlaynet up -l ANOTHER_NAME"],
        )
    if lost := [host for host in old.machines if host not in inventory.hosts]:
        raise TopologyError(
            f"lab {name!r} is on machines that the inventory does not have: {', '.join(lost)}",
            evidence=f"{inventory.file} has: {', '.join(inventory.hosts)}",
            next=[f"overlaynet down -l {name}", f"overlaynet down -l {name} --force if they are gone"],
        )


def _reach(state: LabState, paths: Paths) -> tuple[SshDriver, MachineCluster]:
    lab = Lab(state.topology.name, paths, state)
    driver = lab.driver
    assert isinstance(driver, SshDriver)
    return driver, MachineCluster(lab, driver)


def _heal(old: LabState, paths: Paths) -> tuple[Fault, ...]:
    """What is broken is where the lab was, not where it is going to be."""
    driver, reached = _reach(old, paths)
    try:
        return heal_all(reached)
    finally:
        driver.close()


def _take_back(raising: Raising, lab: LabPaths) -> None:
    """What a first `up` made before it failed. What cannot be reached stays recorded, for `down`."""
    state = load(lab) if raising.touched else None
    if state is not None:
        with suppress(OverlayError):
            result = Taking(state, raising.driver, raising.reached).run()
            if result.left:
                save(lab, result.rest)
                return
    _remove(lab, keep_logs=False)


def down(
    name: str, paths: Paths, *, keep_logs: bool = False, force: bool = False, progress: Progress = silent
) -> DownResult:
    """Take a lab away from its machines, as far as they can be reached. What cannot stays recorded, unless
    `force` has it forgotten. Raises LabFailed, LabChoice."""
    with changing(paths, name):
        lab = paths.lab(name)
        state = load(lab)
        if state is None:
            raise LabChoice(f"no lab {name!r} is running", next=["overlaynet get labs"])
        driver, reached = _reach(state, paths)
        try:
            broken = _still_broken(reached)
            result = Taking(state, driver, reached, progress).run()
            result = replace(result, left=(*broken, *result.left))
        finally:
            driver.close()
        if result.left and not force:
            save(lab, result.rest)
        else:
            _remove(lab, keep_logs=keep_logs)
        return result


def _still_broken(reached: MachineCluster) -> list[str]:
    """Heal what can be healed, and tell what could not."""
    try:
        heal_all(reached)
    except OverlayError as error:
        return [f"broken on purpose: {error.message}: {error.evidence}"]
    return []


def _remove(lab: LabPaths, *, keep_logs: bool) -> None:
    for directory in (lab.run, lab.state):
        remove_tree(directory, keep_logs=keep_logs)
