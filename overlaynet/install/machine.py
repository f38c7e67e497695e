"""What systemd and others on this machine are told, and asked.

The agent's unit is `Type=notify`: its start job is done when the agent has said READY=1, which may be never
while etcd is away. So the job is only queued here, and the unit watched for a while (systemctl(1),
`--no-block`). The states come from the unit's ActiveState and SubState (systemd's D-Bus interface,
org.freedesktop.systemd1(5)).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlaynet.errors import InstallFailed, ToolMissing
from overlaynet.install.contents import UNIT
from overlaynet.kernel.process import tool

BOOTED = Path("/run/systemd/system")
"""There if systemd is the init of this boot (sd_booted(3))."""
SYS_MODULE = Path("/sys/module")
JOURNAL = f"journalctl -u {UNIT.removesuffix('.service')} -n 20"
COMMAND_TIMEOUT_S = 60.0
POLL_S = 1.0
"""Between two looks at a service that starts; on a slow machine each look takes its share from the start."""
_PROPERTIES = ("ActiveState", "SubState", "StatusText", "MainPID", "NRestarts", "InvocationID")


@dataclass(frozen=True, slots=True)
class Service:
    """The unit as systemd has it. `status` is what the agent last said of itself; `invocation` is another one
    each time that the service is started."""

    active: str
    sub: str
    status: str
    pid: int
    restarts: int
    invocation: str = ""

    @property
    def state(self) -> str:
        """``ready``, ``starting`` (it waits for something, and says for what), ``failing`` or ``stopped``."""
        if self.active == "failed" or self.sub == "auto-restart" or (self.restarts and self.active != "active"):
            return "failing"
        return {"active": "ready", "reloading": "ready", "inactive": "stopped"}.get(self.active, "starting")


def booted() -> bool:
    return BOOTED.is_dir()


def run(*argv: str) -> str:
    """A command's standard output. Raises InstallFailed with its own words, or ToolMissing."""
    program = tool(argv[0])
    try:
        done = subprocess.run(
            [program, *argv[1:]], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InstallFailed(
            f"{argv[0]} did not end within {error.timeout:g} s", evidence=" ".join(argv), next=[" ".join(argv)]
        ) from error
    if done.returncode:
        raise InstallFailed(
            f"{' '.join(argv)} failed", evidence=(done.stderr or done.stdout).strip(), next=[" ".join(argv)]
        )
    return done.stdout


def tried(*argv: str) -> str | None:
    """Run a command that the agent can do without; what went wrong, if anything did."""
    try:
        run(*argv)
    except (InstallFailed, ToolMissing) as error:
        return f"{error.message}: {error.evidence}"
    return None


def is_active(unit: str) -> bool:
    return tried("systemctl", "--quiet", "is-active", unit) is None


def service() -> Service:
    """Raises InstallFailed if systemd cannot be asked."""
    return parsed(run("systemctl", "show", "--property", ",".join(_PROPERTIES), UNIT))


def unit_is_stale() -> bool:
    """Whether systemd goes by a unit file that has changed since, as after an interrupted installation."""
    return run("systemctl", "show", "--property=NeedDaemonReload", "--value", UNIT).strip() == "yes"


def parsed(shown: str) -> Service:
    """What `systemctl show` printed: a `KEY=VALUE` a line."""
    said = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    active, sub, status, pid, restarts, invocation = (said.get(name, "") for name in _PROPERTIES)
    return Service(active, sub, status, int(pid or 0), int(restarts or 0), invocation)


def runs_from(pid: int, folder: Path) -> bool:
    """Whether a process was started with the interpreter of a version's own `folder`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].decode("utf-8", "replace").startswith(f"{folder}/")


def settled(before: Service, timeout_s: float) -> Service:
    """The unit once it was started after `before`, and is ready or fails again and again; or as it is after
    `timeout_s`. Until systemd has come to the restart, it is still as it was before."""
    ends = time.monotonic() + timeout_s
    while True:
        now = service()
        started = now.invocation != before.invocation
        if (started and now.state in ("ready", "failing")) or time.monotonic() > ends:
            return now
        time.sleep(POLL_S)


def absent_modules(names: Iterable[str]) -> list[str]:
    """Those that are neither loaded nor built in with something to show."""
    return [name for name in names if not (SYS_MODULE / name).exists()]


def load(names: Sequence[str]) -> list[str]:
    """Load modules, each by itself; what went wrong. One that is built in counts as loaded (modprobe(8))."""
    return [trouble for name in names if (trouble := tried("modprobe", name))]
