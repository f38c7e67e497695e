"""Making the agent a service of this machine, and undoing it.

Every step looks first and does only what is missing, so a second run changes nothing, and one that was
interrupted goes on. Files come first, each replaced whole; systemd reads them when all are there; the service
is restarted only if its program, its unit or its settings are new. The dataplane is not touched by any of
this: the agent leaves it when it stops, and compares when it starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from overlaynet import config as settings
from overlaynet.errors import InstallFailed, NotPermitted
from overlaynet.install import contents, disk, machine
from overlaynet.install.contents import LINK_FILE, NETWORK_FILE, NETWORK_MANAGER, NETWORKD_SETTINGS, UNIT_FILE
from overlaynet.install.machine import Service
from overlaynet.install.plan import READABLE, Change, File, Op, Wanted, to_install, to_uninstall
from overlaynet.kernel.process import tool

HERE = Path("/")
LOCK = Path("/run/xtables.lock")
VERSIONS = Path("/opt/overlaynet")
_PATHS = settings.PathConfig()
_DECIDED = tuple(map(PurePosixPath, (contents.SETTINGS, _PATHS.identity, _PATHS.workloads, _PATHS.remembered)))
"""Settings and state. They have no mark; where a plan wants them, whoever made it has decided about them."""


@dataclass(slots=True)
class Done:
    """What was done. `service` is None where systemd was not spoken to; `notes` are for a person to read."""

    changes: list[Change]
    modules: list[str] = field(default_factory=list)
    service: Service | None = None
    started: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Of real changes: files, modules, and a start."""
        return sum(change.real for change in self.changes) + len(self.modules) + self.started

    def as_json(self) -> dict[str, Any]:
        return {
            "changes": self.count,
            "files": [{"path": str(c.path), "op": c.op.value, "reason": c.why or None} for c in self.changes],
            "modules_loaded": self.modules,
            "service": self.service and {
                "state": self.service.state,
                "pid": self.service.pid or None,
                "status": self.service.status or None,
                "started": self.started,
            },
            "notes": self.notes,
        }  # fmt: skip


def programs() -> PurePosixPath:
    """Where the programs of the version that runs this lie. Raises InstallFailed if they do not."""
    folder = Path(sys.prefix, "bin")
    missing = [name for name in contents.PROGRAMS if not (folder / name).exists()]
    if missing:
        raise InstallFailed(
            f"this installation has no {' and no '.join(missing)}",
            evidence=f"looked in {folder}",
            next=["agent/wheels OUT in a clone, then OUT/install on the machine"],
        )
    return PurePosixPath(folder)


def require_root(what: str) -> None:
    """Files of /etc are root's, whatever else this process may do. Raises NotPermitted."""
    if os.geteuid():
        raise NotPermitted(
            f"{what} needs root",
            evidence=f"this process has uid {os.geteuid()}",
            next=[f"sudo overlaynet agent {what}"],
        )


def install(
    *, root: Path = HERE, start: bool = True, config: Path | None = None, timeout_s: float = 60.0
) -> Done:
    """Raises NotPermitted, InstallFailed, ToolMissing or ConfigError; before anything was touched, unless a
    write fails.

    `root`: an image, whose files alone are written. `start`: enable and (re)start. `config`: becomes
    agent.toml, in place of one that is there. `timeout_s`: how long READY is waited for.
    """
    here = root == HERE
    if here:
        require_root("install")
        _require(start)
    wanted = [*_settings(root, config), *contents.wanted(programs(), enable=start)]
    there = disk.look(root, [want.path for want in wanted])
    changes = to_install(wanted, there, _is_ours)
    disk.carry_out(root, changes, wanted)
    done = Done(changes)
    if here:
        _prepare_kernel(done)
        if machine.booted():
            _tell_systemd(done, start=start, timeout_s=timeout_s)
    done.notes += _kept(changes)
    return done


def _settings(root: Path, given: Path | None) -> list[Wanted]:
    """agent.toml, if one is given or there is none. Either, and one that is there, must be good, or the agent
    would start only to fail. Raises ConfigError."""
    there = disk.below(root, contents.SETTINGS)
    if given is None and there.exists():
        settings.load(there, environ={})
        return []
    if given is None:
        return [contents.settings()]
    settings.load(given, environ={})
    mode = there.stat().st_mode & 0o7777 if there.exists() else READABLE
    return [File(contents.SETTINGS, given.read_text("utf-8"), mode)]


def _is_ours(file: File) -> bool:
    return file.path in _DECIDED or contents.is_ours(file.text)


def _kept(changes: Iterable[Change]) -> list[str]:
    return [f"{change.path} stays as it is: {change.why}" for change in changes if change.op is Op.KEPT]


def _require(start: bool) -> None:
    """What a service cannot do without. Raises InstallFailed or ToolMissing."""
    if start:
        tool("iptables")
    if start and not machine.booted():
        raise InstallFailed(
            "systemd is not running here, so there is nobody to start a service",
            evidence=f"there is no {machine.BOOTED}",
            next=[
                "the same with --no-start writes the files alone",
                "overlaynet-agent run   (under a supervisor of your own)",
            ],
        )


def _prepare_kernel(done: Done) -> None:
    """What the boot would have done, had our files been there."""
    absent = machine.absent_modules(contents.modules())
    done.notes += machine.load(absent)
    done.modules = [name for name in absent if name not in machine.absent_modules(absent)]
    if not LOCK.exists():
        LOCK.touch(0o600)


def _tell_systemd(done: Done, *, start: bool, timeout_s: float) -> None:
    new = {change.path for change in done.changes if change.real}
    renewed = UNIT_FILE in new or machine.unit_is_stale()
    if renewed or contents.ENABLED in new:
        machine.run("systemctl", "daemon-reload")
    done.notes += _tell_others(new)
    before = machine.service()
    fresh = machine.runs_from(before.pid, Path(sys.prefix))
    if start and (renewed or contents.SETTINGS in new or not fresh):
        machine.run("systemctl", "--no-block", "restart", contents.UNIT)
        done.service, done.started = machine.settled(before, timeout_s), True
    else:
        done.service = before


def _tell_others(new: Iterable[PurePosixPath]) -> list[str]:
    """Whoever reads our other files only when told to. What could not be told is for a person to read."""
    asked = {
        LINK_FILE: ("systemd-udevd.service", ("udevadm", "control", "--reload")),
        NETWORK_FILE: ("systemd-networkd.service", ("networkctl", "reload")),
        NETWORK_MANAGER: ("NetworkManager.service", ("nmcli", "general", "reload", "conf")),
    }
    running = [command for path, (unit, command) in asked.items() if path in new and machine.is_active(unit)]
    notes = [trouble for command in running if (trouble := machine.tried(*command))]
    if NETWORKD_SETTINGS in new and machine.is_active("systemd-networkd.service"):
        notes.append("systemd-networkd leaves other programs' routes alone from its next start on")
    return notes


# --- uninstall ------------------------------------------------------------------------------------


def stop() -> None:
    """Stop the service, if there is one. The dataplane stays. Raises NotPermitted or InstallFailed."""
    require_root("uninstall")
    if machine.booted() and machine.service().active != "inactive":
        machine.run("systemctl", "stop", contents.UNIT)


def uninstall(*, root: Path = HERE, purge: bool = False) -> Done:
    """Take away every file of ours, of a service that was stopped. `purge`: settings and state too, so that
    this host is a new node should it come back. Raises InstallFailed."""
    wanted: list[Wanted] = contents.wanted(PurePosixPath(sys.prefix, "bin"), enable=True)
    wanted += _purged() if purge else []
    there = disk.look(root, [want.path for want in wanted])
    changes = to_uninstall(wanted, there, _is_ours)
    disk.carry_out(root, changes, wanted)
    _remove_run_folders(root)
    if root == HERE and machine.booted():
        machine.run("systemctl", "daemon-reload")
    return Done(changes, notes=_kept(changes))


def _remove_run_folders(root: Path) -> None:
    """The unit keeps them from one run to the next. What labs and others have in them stays."""
    pid_file, *folders = (_PATHS.pid_file, _PATHS.run, _PATHS.subnet_file.parent)
    disk.below(root, PurePosixPath(pid_file)).unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):  # it is not empty, or not there
            disk.below(root, PurePosixPath(folder)).rmdir()


def _purged() -> list[Wanted]:
    """By name: certificates of an administrator's lie beside the settings, and labs have state of their own."""
    return [File(path, "") for path in _DECIDED]


def versions() -> list[str]:
    """The folders below /opt/overlaynet, if this program is in one of them."""
    if not Path(sys.prefix).is_relative_to(VERSIONS):
        return []
    return sorted(map(str, VERSIONS.iterdir()))


def remove_versions() -> None:
    """Take `versions` away. The last thing to do: nothing can be imported after this. Raises InstallFailed."""
    if not versions():
        return
    try:
        shutil.rmtree(VERSIONS)
    except OSError as error:
        raise InstallFailed(
            f"{VERSIONS} could not be removed", evidence=str(error), next=[f"sudo rm -r {VERSIONS}"]
        ) from error
