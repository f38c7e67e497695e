"""Rules and chains as text, spelt exactly as ``iptables-save`` prints them.

The kernel stores rules in binary and iptables-save prints them in one fixed spelling: addresses with a
prefix length, ``-s -d -i -o -p`` first and in this order, then the matches, then the target; the protocol's
own match written out (``-p udp -m udp``); marks as ``--set-xmark``; strings quoted only where they must be.
If we write in that spelling to begin with, what we want and what we read back can be compared as text, and
any edit of a rule, even one that keeps its comment, shows. The tests send every rule through the real
programs and back.

A chain's name has at most 28 characters, a comment at most 255 bytes (xt_comment.h, x_tables.h in Linux).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from overlaynet.addr import IPNetwork
from overlaynet.state import ChainKey, Source

CHAIN_PREFIX = "OVL-"
COMMENT_PREFIX = "overlaynet: "
CHAIN_NAME_MAX = 28
COMMENT_MAX_BYTES = 255

MASQUERADE_MARK = 0x4000
"""The bit that says "masquerade me"; the same as kube-proxy's and flannel's, so that they understand ours."""

TABLE_ORDER = ("raw", "mangle", "filter", "nat", "security")
"""Tables in the order of commit: what rejects and guards comes before what lets addresses change."""

Rules: TypeAlias = tuple[str, ...]
"""Rules in order, each without its ``-A CHAIN``."""


class Dispatch(NamedTuple):
    """A rule that a policy contributes to a chain shared with other policies.

    Rules of one chain are sorted by `order`, then by the policy's name; those of one policy with equal
    `order` keep their sequence."""

    order: int
    chain: ChainKey
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one policy renders to: chains of its own, rules in shared chains, and the ipsets these refer to.
    `source`: who asked for them, if that is not the policy by its own name."""

    chains: Mapping[ChainKey, Rules] = field(default_factory=dict)
    dispatch: tuple[Dispatch, ...] = ()
    sets: Mapping[str, int] = field(default_factory=dict)
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """Everything of ours in one family's packet filter.

    `chains` are ours whole; `hooks` are our jumps in built-in chains, in order; `origins` says for every
    rule of every chain, position by position, which policy asked for it. `instance` says who of several
    networks' agents we are. `sets` are the ipsets that rules refer to, with their timeout in seconds."""

    chains: Mapping[ChainKey, Rules] = field(default_factory=dict)
    hooks: Mapping[ChainKey, Rules] = field(default_factory=dict)
    origins: Mapping[ChainKey, tuple[Source, ...]] = field(default_factory=dict)
    instance: str = ""
    sets: Mapping[str, int] = field(default_factory=dict)


def is_ours(chain: str, instance: str = "") -> bool:
    """Whether a chain of this name belongs to this instance: ``OVL-INPUT``, or ``OVL-blue-INPUT``. Instances
    have names in lower case, and our chains' own part is in upper case."""
    if instance:
        return chain.startswith(f"{CHAIN_PREFIX}{instance}-")
    return is_any_instances(chain) and not chain[len(CHAIN_PREFIX) :][:1].islower()


def is_any_instances(chain: str) -> bool:
    """Whether a chain of this name belongs to an agent of ours, of whichever network."""
    return chain.startswith(CHAIN_PREFIX)


def comment_prefix(instance: str) -> str:
    """What the comment of each of our rules begins with."""
    return f"overlaynet {instance}: " if instance else COMMENT_PREFIX


def chain_key(table: str, chain: str) -> ChainKey:
    """A chain of ours. Raises ValueError if the kernel would refuse the name or we would not know it."""
    if not is_ours(chain) or len(chain) > CHAIN_NAME_MAX:
        raise ValueError(f"a chain's name begins with {CHAIN_PREFIX} and has at most 28 characters: {chain}")
    return (table, chain)


def quoted(text: str) -> str:
    """`text` in double quotes with ``\\``, ``"`` and ``'`` escaped, as xtables_save_string() does."""
    for special in "\\\"'":
        text = text.replace(special, "\\" + special)
    return f'"{text}"'


def comment(why: str) -> str:
    """The comment match. Raises ValueError where the kernel would cut it or a line break end the rule."""
    whole = COMMENT_PREFIX + why
    if len(whole.encode()) > COMMENT_MAX_BYTES or not whole.isprintable():
        raise ValueError(f"not usable as a comment: {why!r}")
    return f"-m comment --comment {quoted(whole)}"


def probability(share: float) -> str:
    """A statistic match that holds with this probability (0 to 1).

    The kernel keeps it as a whole number of 2**-31 and iptables-save prints eleven decimals of that, so
    1/3 reads 0.33333333349 (libxt_statistic.c)."""
    steps = round(share * 2**31)
    return f"-m statistic --mode random --probability {steps / 2**31:.11f}"


def rule(
    why: str,
    target: str,
    *,
    src: IPNetwork | None = None,
    dst: IPNetwork | None = None,
    not_dst: IPNetwork | None = None,
    device: str | None = None,
    udp_port: int | None = None,
    matches: Sequence[str] = (),
) -> str:
    """One rule in canonical spelling. `why` tells a person why it is there; `target` follows ``-j``.

    `device` is the one a packet came in by, `udp_port` the one it goes to; `matches` are whole canonical
    matches such as `probability` makes."""
    words = [f"-s {src}"] if src else []
    words += [f"-d {dst}"] if dst else []
    words += [f"! -d {not_dst}"] if not_dst else []
    words += [f"-i {device}"] if device else []
    words += [f"-p udp -m udp --dport {udp_port}"] if udp_port else []
    return " ".join([*words, *matches, comment(why), f"-j {target}"])
