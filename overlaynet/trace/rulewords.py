"""One rule as iptables-save prints it, taken apart into matches and a target.

    -d 10.96.0.10/32 ! -i cni0 -p udp -m udp --dport 53 -m comment --comment "dns" -j KUBE-SVC-TCOU7JCQXEZGVUNU
    └──────── iptables' own match ────────┘ └─ a module's match ─┘ └ says nothing ┘ └─ target, its arguments ─┘

`-m` opens a module's match, which goes on to the next `-m`, `-j` or `-g`; a `!` negates the option after it;
what is behind the target are its arguments. Strings that hold anything but letters, digits, ``_`` and ``-`` are
in double quotes, with ``\\``, ``"`` and ``'`` escaped by a backslash (xtables_save_string() of iptables). So a
comment may be ``-j`` without quotes, and options that take free text are known here by name: whatever comes
next is theirs. All other values never begin with a dash.

What the words mean is no matter here; see `rulematch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

FREE_TEXT = frozenset({
    "--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string", "--name",
    "--hashlimit-name", "--nfacct-name", "--label", "--u32", "--bytecode", "--object-pinned", "--helper",
    "--path", "--led-trigger-id", "--timer",
})  # fmt: skip
"""Options whose one value may look like anything."""
CACHED = 65_536
"""Rules kept taken apart: as many as a host with some thousand services has."""

_WORD = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^\s"]\S*))(?=\s|$)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Option(NamedTuple):
    """``! --dport 80:90``."""

    name: str
    values: tuple[str, ...] = ()
    negated: bool = False

    @property
    def value(self) -> str:
        """The only value. Raises ValueError where there is none, or more than one."""
        (value,) = self.values
        return value


class Match(NamedTuple):
    """Options of one `-m`. `module` is empty for iptables' own, such as ``-s``, and there is at most one of
    these. Modules without any option, such as the ``-m tcp`` that asks nothing, are there too."""

    module: str
    options: tuple[Option, ...]


class Rule(NamedTuple):
    """One rule. `target` None: it only counts. `goes` means ``-g``: who comes to the end of the target's chain
    does not come back here."""

    matches: tuple[Match, ...]
    target: str | None
    goes: bool
    arguments: tuple[Option, ...]

    def argument(self, name: str) -> str | None:
        """The value of one of the target's options, None if it is not given. Raises ValueError if it has
        none."""
        return next((option.value for option in self.arguments if option.name == name), None)

    def flag(self, name: str) -> bool:
        """Whether one of the target's options is given."""
        return any(option.name == name for option in self.arguments)


@lru_cache(maxsize=CACHED)
def parse(text: str) -> Rule:
    """The rule without its ``-A CHAIN``. Raises ValueError for what iptables-save would not write."""
    matches: list[Match] = []
    target, goes, arguments = None, False, []
    for module, option in _options(words(text)):
        if target is not None:
            arguments.append(option)
        elif option.name in ("-j", "-g"):
            target, goes = option.value, option.name == "-g"
        elif option.name == "-m":
            matches.append(Match(option.value, ()))
        elif matches and matches[-1].module == module:
            matches[-1] = Match(module, (*matches[-1].options, option))
        else:
            matches.append(Match(module, (option,)))
    return Rule(tuple(matches), target, goes, tuple(arguments))


def words(text: str) -> list[str]:
    """Words, quoted ones without quotes. Raises ValueError where a quote does not end."""
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        word = _WORD.match(text, at)
        if word is None:
            raise ValueError(f"cannot be split into words: {text[at:].strip()}")
        quoted, plain = word.groups()
        found.append(plain if quoted is None else _ESCAPED.sub(r"\1", quoted))
        at = word.end()
    return found


def _options(said: Sequence[str]) -> Iterator[tuple[str, Option]]:
    """Every option, with the module that it belongs to."""
    module, negated, at = "", False, 0
    while at < len(said):
        word = said[at]
        at += 1
        if word == "!":
            negated = True
            continue
        if not word.startswith("-"):
            raise ValueError(f"{word!r} belongs to no option")
        end = min(at + 1, len(said)) if word in FREE_TEXT else _end_of_values(said, at)
        option, at, negated = Option(word, tuple(said[at:end]), negated), end, False
        if word == "-m":
            module = option.value
        yield module, option
    if negated:
        raise ValueError("nothing comes after the last '!'")


def _end_of_values(said: Sequence[str], at: int) -> int:
    while at < len(said) and said[at] != "!" and not said[at].startswith("-"):
        at += 1
    return at
