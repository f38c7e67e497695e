"""The machines of a lab: the names in an OpenSSH client configuration file. Pure.

An inventory is what ssh(1) reads with -F (ssh_config(5)), and what `vagrant ssh-config` prints. How a machine
is reached, by which user and key, is for ssh alone to understand; only names are read here. Each name behind
`Host` that is no pattern is a host of the lab, by its node name.

    Host node-1 node-2        two hosts
    Host *                    a pattern, as is !name: settings, which ssh applies, and no host
    Match ...                 the same
    Include other             ssh follows it; hosts named there are not hosts of the lab
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from overlaynet.errors import NameInvalid, UsageError
from overlaynet.model import check_name

_LINE = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*)")
"""A keyword and its arguments, between them blanks or one sign of equality."""
_PATTERN = frozenset("*?!")


def host_names(text: str, file: str) -> tuple[str, ...]:
    """The hosts, each once, in the order of the file. Raises NameInvalid for one that can be no host of a lab,
    UsageError where none is named or the file cannot be understood."""
    found: dict[str, None] = {}
    includes = False
    for number, line in enumerate(text.splitlines(), 1):
        keyword, arguments = _parsed(line, f"{file}:{number}")
        includes = includes or keyword == "include"
        if keyword == "host":
            found |= dict.fromkeys(_hosts(arguments, f"{file}:{number}"))
    if not found:
        raise UsageError(
            f"{file} names no host",
            evidence="it includes other files, whose hosts are not counted"
            if includes
            else "each `Host NAME` without * or ? is a host of the lab",
            next=["man ssh_config", "vagrant ssh-config"],
        )
    return tuple(found)


def _parsed(line: str, where: str) -> tuple[str, list[str]]:
    """A line's keyword in lower case and its arguments; an empty keyword for a comment and an empty line."""
    found = _LINE.match(line)
    if found is None or line.lstrip().startswith("#"):
        return "", []
    keyword = found[1].lower()
    if keyword != "host":
        return keyword, []
    try:
        return keyword, shlex.split(found[2], comments=True)
    except ValueError as error:
        raise UsageError(
            f"{where}: this line cannot be understood", evidence=f"{line.strip()}: {error}"
        ) from None


def _hosts(arguments: list[str], where: str) -> Iterator[str]:
    for name in arguments:
        if _PATTERN & set(name):
            continue
        try:
            yield check_name(name, "host")
        except NameInvalid as error:
            raise NameInvalid(
                f"{where}: {error.message}",
                evidence=error.evidence,
                next=["name each machine in the inventory as its agent is named: `overlaynet status` shows it"],
            ) from None
