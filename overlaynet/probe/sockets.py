"""Opening a socket in a namespace, with every refusal as an error of ours."""

from __future__ import annotations

import socket

from overlaynet.errors import EnvironmentProblem, NotPermitted
from overlaynet.kernel.netns import socket_in


def open_socket(netns: str | None, family: int, kind: int, protocol: int) -> socket.socket:
    """A non-blocking socket in that namespace (None: our own). Raises NotFound, NotPermitted, KernelError
    or EnvironmentProblem."""
    try:
        if netns is None:
            sock = socket.socket(family, kind, protocol)
        else:
            sock = socket_in(netns, family, kind, protocol)
    except PermissionError as error:
        raise NotPermitted(
            "no permission to open a raw socket",
            evidence=f"{error.strerror}; it takes CAP_NET_RAW",
            next=["run as root, or inside: unshare -Urnm"],
        ) from error
    except OSError as error:
        raise EnvironmentProblem("a socket could not be opened", evidence=str(error)) from error
    sock.setblocking(False)
    return sock
