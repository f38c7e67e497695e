"""Is a flanneld at work on this host?

Two agents on one dataplane undo each other's work, so ours does not start beside flannel's. The process is
looked for, not the devices and rules it made: those stay when it ends, and are what we take over.

"On this host" means in our network namespace; several namespaces share a process table. What names another
process's namespace, ``/proc/PID/ns/net``, is shown only to who could trace it (proc(5)), which an agent with
two capabilities cannot. But every network namespace has a ``/proc/PID/net`` of its own, and the inode of a
file in it is readable by anybody and the same for all processes of that namespace (fs/proc/proc_net.c).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from overlaynet.errors import FlannelRunning

COMMAND = "flanneld"
PROC = Path("/proc")


def running(proc: Path = PROC) -> list[int]:
    """Process ids of every flanneld in our network namespace."""
    ours = _netns(proc / "self")
    found = [entry for entry in proc.iterdir() if entry.name.isdigit() and _is_flanneld(entry)]
    return sorted(int(entry.name) for entry in found if _netns(entry) == ours)


def refuse_beside(what: str) -> None:
    """Raises FlannelRunning, naming the process."""
    if pids := running():
        raise FlannelRunning(
            f"flanneld is running on this host; {what} beside it would undo its work, and it ours",
            evidence="process " + ", ".join(map(str, pids)),
            next=["overlaynet-agent plan", "systemctl disable --now flanneld"],
        )


def _is_flanneld(process: Path) -> bool:
    """By the name of the program, which may go on: ``flanneld-amd64``. A process may end meanwhile."""
    with contextlib.suppress(OSError):
        return (process / "comm").read_text("utf-8", "replace").startswith(COMMAND)
    return False


def _netns(process: Path) -> int | None:
    with contextlib.suppress(OSError):
        return (process / "net" / "dev").stat().st_ino
    return None
