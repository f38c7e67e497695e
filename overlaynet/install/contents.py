"""The files that make the agent a service, and the mark that tells ours from an administrator's.

The first line of each file says who wrote it and holds a checksum of all the others. So a file proves by
itself that nobody has touched it since, whichever version wrote it; no list of what was ever installed has to
be kept. One whose checksum is wrong, or which has no such line, is an administrator's by now, and is neither
replaced nor removed.

What belongs to an installation is below /usr/local/lib, which systemd reads as it does /usr/lib and /etc (the
search paths of systemd.unit(5), tmpfiles.d(5), systemd.network(5) and so on). /etc stays the
administrator's: a drop-in or a file of the same name there wins, and `systemctl mask` works.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from overlaynet import data
from overlaynet.config import DEFAULT_CONFIG_PATH
from overlaynet.install.plan import File, Link, Wanted

UNIT = "overlaynet-agent.service"
PROGRAMS = ("overlaynet", "overlaynet-agent", "overlaynet-probe")
PAGES = ("overlaynet.1", "overlaynet-agent.1")
BIN = PurePosixPath("/usr/local/bin")
MAN = PurePosixPath("/usr/local/share/man/man1")
LIB = PurePosixPath("/usr/local/lib")
SETTINGS = PurePosixPath(DEFAULT_CONFIG_PATH)
EXAMPLE = SETTINGS.with_name("agent.example.toml")
UNIT_FILE = LIB / "systemd/system" / UNIT
TMPFILES = LIB / "tmpfiles.d/overlaynet.conf"
MODULES = LIB / "modules-load.d/overlaynet.conf"
ENABLED = PurePosixPath("/etc/systemd/system/multi-user.target.wants") / UNIT
LINK_FILE = LIB / "systemd/network/10-overlaynet.link"
NETWORK_FILE = LIB / "systemd/network/10-overlaynet.network"
NETWORKD_SETTINGS = LIB / "systemd/networkd.conf.d/overlaynet.conf"
NETWORK_MANAGER = PurePosixPath("/etc/NetworkManager/conf.d/overlaynet.conf")

SOURCES = {
    UNIT_FILE: UNIT,
    TMPFILES: "tmpfiles.conf",
    MODULES: "modules-load.conf",
    LIB / "sysctl.d/90-overlaynet.conf": "sysctl.conf",
    LINK_FILE: "overlaynet.link",
    NETWORK_FILE: "overlaynet.network",
    NETWORKD_SETTINGS: "networkd.conf",
    NETWORK_MANAGER: "NetworkManager.conf",
    EXAMPLE: EXAMPLE.name,
}
"""Where each file of `agent/systemd/` goes."""

_MARK = re.compile(r"# Installed by overlaynet, checksum ([0-9a-f]{16})\..*\n")


def marked(text: str) -> str:
    """`text` with our mark in front."""
    return f"# Installed by overlaynet, checksum {_checksum(text)}. Once changed, it is left alone.\n{text}"


def is_ours(text: str) -> bool:
    """Whether some version of ours wrote exactly this."""
    mark = _MARK.match(text)
    return mark is not None and mark[1] == _checksum(text[mark.end() :])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files() -> Iterator[File]:
    """All but the settings. Raises EnvironmentProblem if this installation lacks one."""
    for path, name in SOURCES.items():
        yield File(path, marked(data.path("systemd", name).read_text("utf-8")))


def settings() -> File:
    """The short agent.toml that a machine without one is given."""
    return File(SETTINGS, data.path("systemd", SETTINGS.name).read_text("utf-8"))


def programs(folder: PurePosixPath) -> Iterator[Link]:
    """The commands, by the version whose programs are in `folder`."""
    return (Link(BIN / name, folder / name) for name in PROGRAMS if folder != BIN)


def pages(folder: PurePosixPath) -> Iterator[Link]:
    """The manual pages of the version whose programs are in `folder`, where man(1) finds them."""
    return (Link(MAN / name, folder.parent / "share/man/man1" / name) for name in PAGES if folder != BIN)


def enabled() -> Link:
    """What `systemctl enable` makes."""
    return Link(ENABLED, UNIT_FILE)


def wanted(folder: PurePosixPath, *, enable: bool) -> list[Wanted]:
    """Everything of ours on a machine whose version has its programs in `folder`; not the settings."""
    return [*files(), *programs(folder), *pages(folder), *([enabled()] if enable else [])]


def modules() -> list[str]:
    """The modules that are loaded at each boot."""
    lines = data.path("systemd", SOURCES[MODULES]).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
