"""Why a machine cannot be asked, from what ssh, sudo or a shell on it said; and what to type then. Pure.

ssh(1) exits with 255 for whatever is its own failure, and otherwise with the exit code of the remote command.
What was said is the evidence, in its own words; a few of them tell cases apart that need different commands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from overlaynet.errors import MachineUnreachable

PROBE = "overlaynet-probe"
SUDOERS = "/etc/sudoers.d/overlaynet"
INSTALL = "in the clone: agent/wheels OUT && scp -r OUT {host}: && ssh {host} sudo OUT/install"


class Reach(NamedTuple):
    """A machine as commands name it. `vagrant`: the directory is one of Vagrant's, so that `vagrant` starts
    it."""

    host: str
    inventory: str
    vagrant: bool = False

    def by_hand(self, words: str) -> str:
        """The command line that runs words there, and that may ask for what a program cannot answer."""
        return shlex.join(["ssh", "-F", self.inventory, self.host, *filter(None, [words])])


class _Case(NamedTuple):
    """What is heard, what it means, and what to type."""

    heard: re.Pattern[str]
    message: str
    next: Callable[[Reach, str], Sequence[str]]


def _start(reach: Reach, _: str) -> Sequence[str]:
    return ["vagrant status", f"vagrant up {reach.host}"] if reach.vagrant else [reach.by_hand("true")]


def _log_in(reach: Reach, _: str) -> Sequence[str]:
    return [reach.by_hand("true")]


def _forget_key(reach: Reach, said: str) -> Sequence[str]:
    """Debian's ssh says itself how: behind "remove with:". Somebody else may have said something like it."""
    return [
        found[1] if (found := _SAID_HOW.search(said)) else f"ssh-keygen -R {reach.host}",
        reach.by_hand("true"),
    ]


_SAID_HOW = re.compile(r'^\s*(ssh-keygen -f "[\w./ +@-]+" -R "[\w.:\[\]-]+")\s*$', re.MULTILINE)


def _resolve(reach: Reach, _: str) -> Sequence[str]:
    return [shlex.join(["ssh", "-F", reach.inventory, "-G", reach.host]) + " | grep -i hostname"]


def _try_probe(reach: Reach, _: str) -> Sequence[str]:
    return [reach.by_hand(f"sudo -n {PROBE} </dev/null")]


def _allow(reach: Reach, _: str) -> Sequence[str]:
    line = f"USER ALL=(root) NOPASSWD: /usr/local/bin/{PROBE}"
    return [f"on {reach.host}: echo '{line}' | sudo tee {SUDOERS}"]


def _install(reach: Reach, _: str) -> Sequence[str]:
    return [reach.by_hand(f"command -v {PROBE}"), INSTALL.format(host=reach.host)]


_CASES = tuple(
    _Case(re.compile(heard, re.IGNORECASE), message, next)
    for heard, message, next in (
        ("identification has changed", "{host} answers with another host key than before", _forget_key),
        ("host key verification failed", "{host}'s host key is not known yet", _log_in),
        ("permission denied|too many authentication", "{host} does not let us in", _log_in),
        ("could not resolve hostname", "{host} has no address that can be found", _resolve),
        (
            r"password is required|terminal is required|not in the sudoers|not allowed to execute",
            f"{{host}} does not let us run {PROBE} as root",
            _allow,
        ),
        (rf"sudo: .*not found|{PROBE}: .*not found|sudo: not found", f"{{host}} has no {PROBE}", _install),
        (
            "connection refused|no route|timed out|unreachable|connection closed|connection reset|"
            "closed by remote|not responding|broken pipe",
            "{host} cannot be reached",
            _start,
        ),
    )
)
_UNHEARD = _Case(re.compile(""), "{host} cannot be reached", _start)
_BROKEN = _Case(re.compile(""), f"{PROBE} on {{host}} failed", _try_probe)
SSH_FAILED = 255
SHOWN_LINES = 6


def unreachable(reach: Reach, code: int | None, said: str, reason: str = "") -> MachineUnreachable:
    """The error for a command on a machine that ended with `code` before it did its work, having said `said`.
    `reason`: what this side noticed, which counts where nothing was said."""
    case = next((one for one in _CASES if one.heard.search(said)), _UNHEARD if code == SSH_FAILED else _BROKEN)
    words = list(_lines(said))[-SHOWN_LINES:] or [", ".join(filter(None, [reason, f"exit {code}"]))]
    return MachineUnreachable(
        case.message.format(host=reach.host), evidence="\n".join(words), next=case.next(reach, said)
    )


def _lines(said: str) -> Iterator[str]:
    """Without ssh's frames of @, what it says of keys that are not checked, and what a terminal would obey."""
    for line in said.splitlines():
        text = "".join(c if c.isprintable() else " " for c in line).strip()
        if text and set(text) != {"@"} and "Permanently added" not in text:
            yield text.strip("@ ").strip() if text.startswith("@") else text
