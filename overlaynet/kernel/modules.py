"""Parts of the kernel that are not there until a module is loaded, and how a refusal for want of one is told.

A kernel loads most of them by itself when it is asked for something that only they can do. It runs modprobe(8)
then, with all rights, and asks for none of the asker's but those the request needs anyway (request_module();
for a kind of device in rtnl_newlink(), net/core/rtnetlink.c). So when it refuses, the module is not installed,
is blacklisted, or loading was switched off (kernel.modules_disabled).

br_netfilter is asked for by none of our requests: its settings are simply absent without it. Only a rule with
the match `physdev` asks for it, once (`Iptables.load_bridge_filter`).
"""

from __future__ import annotations

import errno

from overlaynet.errors import KernelError

_UNKNOWN_DEVICE = "Unknown device type"
_BRIDGE_SETTINGS = "net/bridge/"
_INSTALLED = "ls /lib/modules/$(uname -r)"
"""Empty after an upgrade of the kernel that was not booted into yet, and in many containers."""


def explained(error: KernelError, *, device: str = "") -> KernelError:
    """The error, with the module to load if one is missing. `device`: the kind of device to be made."""
    module = _module(error, device)
    if not module:
        return error
    text = f"the module {module} is not loaded" + (", and did not load by itself" if device else "")
    return KernelError(error.target, error.errno, text, next=(f"modprobe {module}", _INSTALLED))


def _module(error: KernelError, device: str) -> str:
    if device and error.errno == errno.EOPNOTSUPP and error.text in ("", _UNKNOWN_DEVICE):
        return device
    if error.errno == errno.ENOENT and error.target.startswith(f"sysctl {_BRIDGE_SETTINGS}"):
        return "br_netfilter"
    return ""
