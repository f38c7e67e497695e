"""Why this machine gives an ordinary user no lab, and what to type.

The kernel answers with little more than EPERM. Which step it refused, and what the machine is set to, tell the
rest:

    kernel.unprivileged_userns_clone=0              Debian's older switch: only root makes user namespaces
    user.max_{user,mnt,net}_namespaces=0            nobody makes that kind
    kernel.apparmor_restrict_unprivileged_userns=1  Ubuntu since 23.10: they are made, without rights
    Seccomp: 2                                      a filter, in most cases that of a container
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from overlaynet.errors import SandboxRefused
from overlaynet.kernel.userns import MAP, MOUNTS, NETWORK, USER
from overlaynet.lab.topology import DEFAULT_NAME

ADVICE = "docs/rootless.md"
_UNFILTERED = " ".join(f"--security-opt {what}=unconfined" for what in ("seccomp", "apparmor", "systempaths"))
_LIMITS = {USER: "user", MOUNTS: "mnt", NETWORK: "net"}
_PERMISSION = (errno.EPERM, errno.EACCES)
_FILTER = 2
"""SECCOMP_MODE_FILTER in /proc/PID/status (seccomp(2))."""


@dataclass(frozen=True, slots=True)
class Facts:
    """How a machine is set, as far as it tells; None where it has no such setting. `most`: how many namespaces
    a user may have, by kind."""

    clone: int | None = None
    apparmor: int | None = None
    most: tuple[tuple[str, int], ...] = ()
    filtered: bool = False
    known: bool = True
    """Whether the kernel knows user namespaces at all."""

    def limit(self, kind: str) -> int | None:
        return dict(self.most).get(kind)


def facts() -> Facts:
    """Those of this machine."""
    limits = {kind: _number(f"user/max_{kind}_namespaces") for kind in _LIMITS.values()}
    status = Path("/proc/self/status").read_text()
    return Facts(
        clone=_number("kernel/unprivileged_userns_clone"),
        apparmor=_number("kernel/apparmor_restrict_unprivileged_userns"),
        most=tuple((kind, most) for kind, most in limits.items() if most is not None),
        filtered=f"Seccomp:\t{_FILTER}\n" in status,
        known=Path("/proc/self/ns/user").exists(),
    )


def _number(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None


def refusal(step: str, number: int, found: Facts, lab: str = "") -> SandboxRefused:
    """The error for a step that was refused with this errno. `lab`: which one was to be made."""
    reason, steps = _reason(step, number, found)
    chosen = f" -l {lab}" if lab not in ("", DEFAULT_NAME) else ""
    return SandboxRefused(
        f"this machine gives you no lab without root: {reason}",
        evidence=f"{step}: {os.strerror(number)}{_told(found)}",
        next=[*steps, f"sudo overlaynet up{chosen}"],
    )


def foreseen(found: Facts) -> SandboxRefused | None:
    """The error that an ordinary user will meet, as far as settings tell."""
    if not found.known:
        return refusal(USER, errno.EINVAL, found)
    if found.clone == 0:
        return refusal(USER, errno.EPERM, found)
    if found.apparmor:
        return refusal(MAP, errno.EPERM, found)
    empty = [step for step, kind in _LIMITS.items() if found.limit(kind) == 0]
    return refusal(empty[0], errno.ENOSPC, found) if empty else None


def _reason(step: str, number: int, found: Facts) -> tuple[str, list[str]]:
    kind = _LIMITS.get(step, "user")
    if not found.known:
        return "its kernel has no user namespaces", []
    if found.clone == 0 and step == USER:
        setting = "kernel.unprivileged_userns_clone"
        return "only root may make user namespaces", [f"sudo sysctl -w {setting}=1"]
    if number == errno.ENOSPC:
        return _too_many(kind, found.limit(kind))
    if found.apparmor and number in _PERMISSION:
        setting = "kernel.apparmor_restrict_unprivileged_userns"
        steps = [f"add an AppArmor profile for overlaynet as in {ADVICE}", f"sudo sysctl -w {setting}=0"]
        return "AppArmor takes all rights from user namespaces that programs without a profile make", steps
    if found.filtered and number in (*_PERMISSION, errno.ENOSYS):
        return "a seccomp filter, as containers have, forbids namespaces", [f"docker run {_UNFILTERED} ..."]
    return "the kernel refused a step", [f"see the distributions in {ADVICE}"]


def _too_many(kind: str, most: int | None) -> tuple[str, list[str]]:
    setting = f"user.max_{kind}_namespaces"
    if most == 0:
        return f"it allows no {kind} namespaces", [f"sudo sysctl -w {setting}=15000"]
    return f"you have as many {kind} namespaces as it allows", ["overlaynet get labs", "lsns"]


def _told(found: Facts) -> str:
    """The settings, for whoever looks after the machine."""
    settings = {
        "kernel.unprivileged_userns_clone": found.clone,
        "kernel.apparmor_restrict_unprivileged_userns": found.apparmor,
        **{f"user.max_{kind}_namespaces": most for kind, most in found.most},
    }
    words = [f"{name} = {value}" for name, value in settings.items() if value is not None]
    return "".join(f"; {word}" for word in [*words, *(["a seccomp filter is set"] if found.filtered else [])])
