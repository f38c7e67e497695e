"""What this process may do, by capability and never by user id.

Root without a capability cannot use it, and anybody is root with all of them inside `unshare -Ur`; so
asking for uid 0 would refuse those who can and pass some who cannot (capabilities(7), user_namespaces(7)).
"""

from __future__ import annotations

from pathlib import Path

from overlaynet.errors import NotPermitted
from overlaynet.kernel import netns

STATUS = Path("/proc/thread-self/status")

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


def can_create_netns() -> bool:
    """Whether making and entering a network namespace works here: capabilities alone do not tell, for a
    seccomp filter or a limit (user.max_net_namespaces) may be in the way."""
    return netns.can_make_and_enter()


def _effective_mask() -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
