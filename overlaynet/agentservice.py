"""The agent as a service of systemd, killed on purpose and started again.

Killed means without a chance to tidy up, and not started again by itself: by a drop-in that a reboot takes away
(systemd.unit(5)).
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from overlaynet.errors import EnvironmentProblem
from overlaynet.store.disk import write_atomically

UNIT = "overlaynet-agent"
BOOTED_BY_SYSTEMD = Path("/run/systemd/system")
"""There is such a directory exactly where systemd is the init system (sd_booted(3))."""
STAY_DEAD = "[Service]\nRestart=no\n"
SYSTEMCTL_S = 60.0


def kill() -> None:
    """End the agent as a crash does, and keep systemd from starting it again. Raises EnvironmentProblem."""
    if not BOOTED_BY_SYSTEMD.exists():
        raise EnvironmentProblem(
            "the agent here is no service of systemd, so nobody could start it again",
            evidence=f"no {BOOTED_BY_SYSTEMD}",
            next=["overlaynet break --list"],
        )
    write_atomically(_drop_in(), STAY_DEAD, 0o644)
    _systemctl("daemon-reload")
    _systemctl("kill", "--signal=SIGKILL", UNIT)


def start() -> None:
    """Undo `kill`; harmless if it runs. Raises EnvironmentProblem."""
    if not BOOTED_BY_SYSTEMD.exists():
        return  # then it was not killed by us either
    _drop_in().unlink(missing_ok=True)
    with suppress(OSError):
        _drop_in().parent.rmdir()
    _systemctl("daemon-reload")
    _systemctl("reset-failed", UNIT)
    _systemctl("start", UNIT)


def _drop_in() -> Path:
    return BOOTED_BY_SYSTEMD / f"{UNIT}.service.d" / "overlaynet-fault.conf"


def _systemctl(*words: str) -> None:
    done = subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
    )
    if done.returncode:
        raise EnvironmentProblem(f"systemctl {' '.join(words)} failed", evidence=done.stderr.strip()[-400:])
