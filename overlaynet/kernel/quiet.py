"""Network namespaces in which nothing happens by itself.

A lab's packets are to be the only ones: IPv6 is off, so no router solicitation disturbs a capture; reverse-path
filtering and forwarding begin as off whatever the machine's own settings are, for a new namespace copies them.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType

from overlaynet.kernel import netns, sysctl

QUIET: Mapping[str, str] = MappingProxyType(
    {
        "net/ipv6/conf/all/disable_ipv6": "1",
        "net/ipv6/conf/default/disable_ipv6": "1",
        "net/ipv4/ip_forward": "0",
        "net/ipv4/conf/all/rp_filter": "0",
        "net/ipv4/conf/default/rp_filter": "0",
    }
)
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("16sh22x")


def create(name: str, settings: Mapping[str, str] = NO_SETTINGS) -> None:
    """A namespace of that name with loopback up, quiet but for what `settings` say otherwise.

    Raises KernelError (EEXIST if there is one), NotPermitted."""
    netns.create(name)
    with netns.entered(name):
        for key, value in {**QUIET, **settings}.items():
            if sysctl.read(key) not in (None, value):  # None: this kernel has no such setting
                sysctl.write(key, value)
        bring_up_loopback()


def bring_up_loopback() -> None:
    """As `ip link set lo up` does it, in the calling thread's namespace, without a process (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        flags = _IFREQ.unpack(answer)[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
