"""What the iptables programs say when they refuse, as errors that name the line and the way out.

The same refusal reads differently by variant and by who noticed it, the program or the kernel:

    iptables-restore: line 3 failed                                  legacy, kernel
    iptables-nft-restore: line 2 failed: No chain/target/match …     nft, program
    line 3: CHAIN_DEL failed (Device or resource busy): chain …      nft, kernel
    Error occurred at line: 3                                        both, parser

The nft variant looks up jump targets only at COMMIT and then blames that line; the chain it names in quotes
leads to the rule. Exit status 4 (RESOURCE_PROBLEM in xtables.h) also stands for missing permission.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from overlaynet.errors import FirewallBusy, FirewallError, NotPermitted, OverlayError

_LINE = re.compile(r"(?:line (\d+) failed|^line (\d+):|Error occurred at line: (\d+))", re.MULTILINE)
_NAMED = re.compile(r"Chain '([^']+)' does not exist")
_NOT_PERMITTED = re.compile(r"must be root|Operation not permitted|ip6?_tables_names: Permission denied")
_BUSY = re.compile(r"xtables lock|Resource temporarily unavailable|generation id: Interrupted")
_GONE = re.compile(r"line \d+ failed: Bad rule|DEL failed \((No such file|Device or resource busy)")
_NO_TABLE = re.compile(r"unable to initialize table|can't initialize ip6?tables table|do you need to insmod")
_LOCKFILE = re.compile(r"can't open lock file")
_NO_NFT = re.compile(r"Failed to initialize nft")
_NO_EXTENSION = re.compile(r"Extension (\S+) revision \d+ not supported, missing kernel module\?")

CAPABILITIES_NEXT = ("run as root, or in a user namespace: unshare -Urn",)


def refusal(program: str, sent: str, stderr: str, *, privileged: bool) -> OverlayError:
    """The error for a program that failed on the input `sent`.

    `privileged` says whether we hold CAP_NET_ADMIN and CAP_NET_RAW: without them the legacy variant only
    reports that a table cannot be initialized."""
    said = _clean(stderr)
    no_table = _NO_TABLE.search(said)
    if _NOT_PERMITTED.search(said) or (no_table and not privileged):
        return not_permitted(program, said)
    if no_table:
        return FirewallError(f"the kernel has no such table for {program}", evidence=said, next=_modules(sent))
    if _LOCKFILE.search(said):
        lock = ("XTABLES_LOCKFILE=/path/that/is/writable",)
        return FirewallError(f"{program} cannot open its lock file", evidence=said, next=lock)
    line = refused_line(sent, said)
    if module := _module(said):
        return FirewallError(
            f"{program} needs the module {module}", line=line, evidence=said, next=[f"modprobe {module}"]
        )
    if _BUSY.search(said) or _GONE.search(said) or line.startswith("-D "):
        return FirewallBusy(
            f"another program is changing the rules: {program} gave up", line=line, evidence=said
        )
    where = f" at: {line}" if line else ""
    return FirewallError(f"{program} refused the rules{where}", line=line, evidence=said)


def not_permitted(program: str, said: str) -> NotPermitted:
    message = f"{program} needs CAP_NET_ADMIN and CAP_NET_RAW"
    return NotPermitted(message, evidence=said, next=CAPABILITIES_NEXT)


def refused_line(sent: str, stderr: str) -> str:
    """The line of the input that was refused, or "" where the program did not say."""
    lines = sent.splitlines()
    if named := _NAMED.search(stderr):
        return _jump_to(named[1], lines)
    found = _LINE.search(stderr)
    number = int(next(n for n in found.groups() if n)) if found else 0
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _jump_to(chain: str, lines: Sequence[str]) -> str:
    ends = (f"-j {chain}", f"-g {chain}")
    return next((line for line in lines if line.endswith(ends)), "")


def _modules(sent: str) -> tuple[str, ...]:
    tables = [line[1:] for line in sent.splitlines() if line.startswith("*")]
    return tuple(f"modprobe iptable_{table}" for table in tables)


def _module(said: str) -> str:
    """Of a match or target that the kernel does not have: all of them are found by such a name too."""
    if _NO_NFT.search(said):
        return "nf_tables"
    extension = _NO_EXTENSION.search(said)
    return f"ipt_{extension[1]}" if extension else ""


def _clean(stderr: str) -> str:
    """Without the advice to read the help and the warnings about the other variant."""
    lines = (line.strip() for line in stderr.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("Try `", "# Warning")))
