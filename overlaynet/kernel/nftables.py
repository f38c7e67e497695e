"""Which chains nftables has, by netlink: the names alone, without the rules in them.

Everything that nftables does begins at a *base chain*, one with a hook. iptables-nft keeps its rules in tables
of the same kind, so the names say whether there is anything to read, and by which program, before one is
started.
The attributes are those of include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from typing import NamedTuple

from overlaynet.errors import KernelError
from overlaynet.kernel import nfnl, parse, wire
from overlaynet.kernel.nfnl import Nfnl

NFTABLES, GET_CHAIN = 10, 4
"""Subsystem, and message (NFT_MSG_GETCHAIN)."""
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK = 1, 3, 4
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
"""NFPROTO_…, in nft's words."""


class Chain(NamedTuple):
    """`is_base`: the kernel enters the table here."""

    family: str
    table: str
    name: str
    is_base: bool


def chains() -> tuple[Chain, ...]:
    """All of them, in the calling thread's network namespace; none where the kernel has no nftables. Raises
    KernelError."""
    request = nfnl.message(NFTABLES, GET_CHAIN, wire.NLM_F_DUMP, 0)
    with Nfnl.open() as socket:
        try:
            answers = socket.dump(request)
        except KernelError as error:
            if error.errno in nfnl.LACKING:
                return ()
            raise
    return tuple(map(_chain, answers))


def _chain(answer: parse.Answer) -> Chain:
    buffer, start, end = answer
    found = parse.attributes(buffer, start + nfnl.GENERIC_BYTES, end)
    family = FAMILIES.get(buffer[start], str(buffer[start]))
    table, name = (parse.text(found[kind]) for kind in (CHAIN_TABLE, CHAIN_NAME))
    return Chain(family, table, name, CHAIN_HOOK in found)
