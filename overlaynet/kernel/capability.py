"""What this process may do, by capability and never by user id.

Root without a capability cannot use it, and anybody is root with all of them inside `unshare -Ur`; so
asking for uid 0 would refuse those who can and pass some who cannot (capabilities(7), user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from overlaynet.errors import NotPermitted
from overlaynet.kernel import netns

STATUS = Path("/proc/thread-self/status")
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38

NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""By bit number (include/uapi/linux/capability.h)."""


def effective() -> frozenset[str]:
    """The capabilities the calling thread has now. A bit newer than our list is left out."""
    mask = _effective_mask()
    return frozenset(name for bit, name in enumerate(NAMES) if mask >> bit & 1)


def require(*names: str, purpose: str = "this") -> None:
    """Raise NotPermitted, naming what is missing, unless the calling thread has all of them."""
    missing = sorted(set(names) - effective())
    if missing:
        raise NotPermitted(
            f"{purpose} needs {' and '.join(missing)}",
            evidence=f"CapEff of this process is {_effective_mask():016x}",
            next=["run it again with sudo, or as root inside: unshare -Urnm"],
        )


def limit(bounds: int, *, no_new_privileges: bool) -> None:
    """Take from this process, and all that it starts, what is not in `bounds`: bits by capability, as CapBnd in
    /proc/PID/status has them. What it holds now it keeps until it executes a program. Raises NotPermitted.

    The kernel is asked and not /proc, which may by now be that of another PID namespace."""
    for bit in range(64):
        surplus = not bounds >> bit & 1 and _prctl(_PR_CAPBSET_READ, bit) == 1
        if surplus and _prctl(_PR_CAPBSET_DROP, bit):
            raise NotPermitted(f"no permission to do without capability {bit}", evidence="it takes CAP_SETPCAP")
    if no_new_privileges:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(what: int, value: int) -> int:
    """prctl(2), which Python does not have; -1 if it was refused."""
    return int(ctypes.CDLL(None, use_errno=True).prctl(what, value, 0, 0, 0))


def can_create_netns() -> bool:
    """Whether making and entering a network namespace works here: capabilities alone do not tell, for a
    seccomp filter or a limit (user.max_net_namespaces) may be in the way."""
    return netns.can_make_and_enter()


def _effective_mask() -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
