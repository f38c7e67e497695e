"""What a rule's target does to a packet that the rule holds for.

A target ends the packet's way, or its way through the table, or changes it and lets it go on, or none of it.
Where the kernel chooses (an address out of a range, a port by chance) there are several packets that may come
of one.

Translation of addresses (net/netfilter/nf_nat_core.c, get_unique_tuple()): a destination port inside the asked
range stays, else the range's first is taken, and only with ``--random`` any of it. A source port stays too
unless another connection has it, or ``--random`` says otherwise; neither is known beforehand, so nothing is
promised: after a translation of the source its port is None. A connection counts as translated (DNAT, SNAT) if
anything about it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from overlaynet.addr import IPAddress
from overlaynet.trace.packet import Packet
from overlaynet.trace.rulematch import Here, is_followed, masked_value
from overlaynet.trace.rulewords import Rule

ACCEPT, DROP, REJECT = "accept", "drop", "reject"
MOST_CHOICES = 64
"""Of addresses or ports in one range that are looked at one by one."""
UNCHANGED = frozenset({
    "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "SET", "TCPMSS", "TCPOPTSTRIP", "CHECKSUM", "CLASSIFY", "SECMARK",
    "CONNSECMARK", "TOS", "DSCP", "ECN", "TEE", "IDLETIMER", "RATEEST", "LED",
})  # fmt: skip
"""Targets after which a packet goes on with all that rules and routes ask for as it was."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What comes of it. `end`: "accept", "drop", "reject", or None: it goes on to the next rule. `packets`:
    what may become of the packet. `unread`: the word that is not understood here."""

    packets: tuple[Packet, ...]
    end: str | None = None
    reject_with: str = ""
    masquerade: bool = False
    unread: str = ""


Do: TypeAlias = Callable[[Rule, Packet, Here], Deed]


def carry_out(rule: Rule, packet: Packet, here: Here) -> Deed:
    """What an extension or a verdict does; RETURN and jumps are the walker's. Raises ValueError for arguments
    that are not spelt as the target has them."""
    do = TARGETS.get(rule.target or "")
    return Deed((packet,), unread=f"-j {rule.target}") if do is None else do(rule, packet, here)


def _reject(rule: Rule, packet: Packet, here: Here) -> Deed:
    return Deed((packet,), REJECT, rule.argument("--reject-with") or "icmp-port-unreachable")


# --- marks and the like ----------------------------------------------------------------------------


def _mark(rule: Rule, packet: Packet, here: Here) -> Deed:
    value, mask = masked_value(_needed(rule, "--set-xmark"))
    return Deed((replace(packet, mark=packet.mark & ~mask ^ value),))


def _connmark(rule: Rule, packet: Packet, here: Here) -> Deed:
    """xt_connmark.c, connmark_tg(): the masks choose what is cleared on one side and copied from the other."""
    mark = packet.known_connmark
    if not is_followed(packet, here):
        return Deed((packet,))
    if mark is None:
        return Deed((packet,), unread="-j CONNMARK")
    if (said := rule.argument("--set-xmark")) is not None:
        value, mask = masked_value(said)
        return Deed((replace(packet, connmark=mark & ~mask ^ value),))
    of_packet, of_connection = (int(_needed(rule, word), 0) for word in ("--nfmask", "--ctmask"))
    if rule.flag("--save-mark"):
        return Deed((replace(packet, connmark=mark & ~of_connection ^ (packet.mark & of_packet)),))
    return Deed((replace(packet, mark=packet.mark & ~of_packet ^ (mark & of_connection)),))


def _ct(rule: Rule, packet: Packet, here: Here) -> Deed:
    """What conntrack saw already, as by loopback, it goes on following (xt_CT.c)."""
    asked = rule.target == "NOTRACK" or rule.flag("--notrack")
    if not asked or is_followed(packet, here):
        return Deed((packet,))
    return Deed((replace(packet, state="UNTRACKED"),))


def _ttl(rule: Rule, packet: Packet, here: Here) -> Deed:
    if packet.ttl is None:
        return Deed((packet,))
    option = rule.arguments[0]
    step = int(option.value)
    changed = {"set": step, "inc": min(packet.ttl + step, 255), "dec": max(packet.ttl - step, 0)}
    return Deed((replace(packet, ttl=changed[option.name.rpartition("-")[2]]),))


def _needed(rule: Rule, name: str) -> str:
    value = rule.argument(name)
    if value is None:
        raise ValueError(f"{rule.target} without {name}")
    return value


# --- translation of addresses ------------------------------------------------------------------------


def _dnat(rule: Rule, packet: Packet, here: Here) -> Deed:
    addresses, ports = _split(_needed(rule, "--to-destination"))
    return _to(rule, packet, _addresses(addresses) or [packet.dst], ports)


def _redirect(rule: Rule, packet: Packet, here: Here) -> Deed:
    """To this place itself: what a process here sends to 127.0.0.1, all else to the first address of the device
    it came by, and nowhere if that has none (nf_nat_redirect.c)."""
    if here.hook == "OUTPUT":
        dst = ip_address("127.0.0.1" if packet.dst.version == 4 else "::1")
    else:
        found = [a.interface.ip for a in here.addresses if a.dev == packet.in_dev]
        found = [ip for ip in found if ip.version == packet.dst.version]
        if not here.addresses:
            return Deed((packet,), unread="-j REDIRECT")
        if not found:
            return Deed((packet,), DROP)
        dst = found[0]
    return _to(rule, packet, [dst], rule.argument("--to-ports") or "")


def _to(rule: Rule, packet: Packet, addresses: Iterable[IPAddress], ports: str) -> Deed:
    by_chance = rule.flag("--random")
    possible = [(dst, port) for dst in addresses for port in _dst_ports(ports, packet.dst_port, by_chance)]
    return _any(rule, [_with_destination(packet, dst, port) for dst, port in possible])


def _with_destination(packet: Packet, dst: IPAddress, port: int | None) -> Packet:
    if (dst, port) == (packet.dst, packet.dst_port):
        return packet
    return replace(packet, dst=dst, dst_port=port, dnat=True, original=packet.first_ends)


def _dst_ports(asked: str, now: int | None, by_chance: bool) -> Iterable[int | None]:
    """``80-90/8000``: 80 for port 8000, 81 for 8001, and so on around."""
    if not asked:
        return [now]
    span, _, base = asked.partition("/")
    low, _, high = span.partition("-")
    ports = range(int(low), int(high or low) + 1)
    if by_chance and len(ports) > 1:
        return ports if len(ports) <= MOST_CHOICES else [None]
    if base:
        return [None if now is None else ports[(now - int(base)) % len(ports)]]
    return [now if now in ports else ports[0]] if now is not None or len(ports) == 1 else [None]


def _snat(rule: Rule, packet: Packet, here: Here) -> Deed:
    """A source that is in the range already stays, unless the port shall be another."""
    addresses, ports = _split(_needed(rule, "--to-source"))
    possible = _addresses(addresses) or [packet.src]
    at_random = rule.flag("--random") or rule.flag("--random-fully")
    if packet.src in possible and not ports and not at_random:
        return Deed((packet,), ACCEPT)
    return _any(rule, [_with_source(packet, src) for src in possible])


def _any(rule: Rule, possible: Sequence[Packet]) -> Deed:
    """One of these, as the kernel chooses."""
    unread = f"-j {rule.target} to so many" if len(possible) > MOST_CHOICES else ""
    return Deed(tuple(possible[:MOST_CHOICES]), ACCEPT, unread=unread)


def _masquerade(rule: Rule, packet: Packet, here: Here) -> Deed:
    """The address is the way out's, which is not chosen here; a packet from none is left alone
    (nf_nat_masquerade.c)."""
    if packet.src.is_unspecified:
        return Deed((packet,), ACCEPT)
    return Deed((_with_source(packet, packet.src),), ACCEPT, masquerade=True)


def _with_source(packet: Packet, src: IPAddress) -> Packet:
    return replace(packet, src=src, src_port=None, snat=True, original=packet.first_ends)


def _split(asked: str) -> tuple[str, str]:
    """``10.0.0.1-10.0.0.3:80-90`` or ``[fd00::1]:80``: addresses and ports; either may be missing."""
    if asked.startswith("["):
        addresses, _, ports = asked[1:].partition("]")
        return addresses, ports.removeprefix(":")
    if asked.count(":") > 1:
        return asked, ""
    addresses, _, ports = asked.partition(":")
    return addresses, ports


def _addresses(asked: str) -> list[IPAddress]:
    """All of a range, one more than is looked at if there are that many."""
    if not asked:
        return []
    first, _, last = asked.partition("-")
    low, high = ip_address(first), ip_address(last or first)
    kind: type[IPv4Address | IPv6Address] = type(low)
    return [kind(n) for n in range(int(low), min(int(high), int(low) + MOST_CHOICES) + 1)]


def _verdict(end: str | None, rule: Rule, packet: Packet, here: Here) -> Deed:
    return Deed((packet,), end)


TARGETS: Mapping[str, Do] = {
    "ACCEPT": partial(_verdict, ACCEPT),
    "DROP": partial(_verdict, DROP),
    "REJECT": _reject,
    "MARK": _mark,
    "CONNMARK": _connmark,
    "CT": _ct,
    "NOTRACK": _ct,
    "TTL": _ttl,
    "HL": _ttl,
    "DNAT": _dnat,
    "REDIRECT": _redirect,
    "SNAT": _snat,
    "MASQUERADE": _masquerade,
}
