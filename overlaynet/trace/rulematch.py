"""Whether a rule holds for a packet: yes, no, or why that cannot be told.

A rule holds if all its conditions do. One that certainly does not decides it, whatever the others are; else one
of which we know too little makes the rule doubtful. Doubts are of three kinds:

    unread   nobody here can tell: `-m u32`, a set of addresses, a range for a port that is not known beforehand
    chance   the kernel throws dice, counts, or remembers earlier packets: statistic, recent, our own sets
    rate     it depends on how much comes: limit, hashlimit. A few packets are within any limit

What each option asks: iptables-extensions(8), and, where that says too little, the module's source in the
kernel, net/netfilter/xt_*.c. An option is negated after it was asked, except where noted: conntrack's
conditions are all void for a packet without connection, and headers' are for fragments that do not have these
headers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import ip_address, ip_network
from typing import Literal, NamedTuple, TypeAlias

from overlaynet.addr import IPAddress, Mac
from overlaynet.firewall.chains import is_any_instances
from overlaynet.state import Address
from overlaynet.trace.packet import Ends, Packet
from overlaynet.trace.rulewords import Match, Option, Rule

Kind: TypeAlias = Literal["unread", "chance", "rate"]


class Doubt(NamedTuple):
    """Why it cannot be told whether a condition holds. `word` is the condition; `usual`: whether it holds as
    long as nothing out of the ordinary happens, which is of interest for a rate alone."""

    kind: Kind
    word: str
    usual: bool = True


Holds: TypeAlias = bool | Doubt


@dataclass(frozen=True, slots=True)
class Here:
    """Where rules ask. `own`: addresses of this place beside those of loopback. `addresses`: with their
    devices and networks, in the kernel's order; without them nothing is known of broadcast addresses and of
    whose device is which. `followed`: conntrack has seen the packet already, which it has not in the table
    raw."""

    hook: str
    own: Collection[IPAddress] = ()
    addresses: Sequence[Address] = ()
    followed: bool = True

    def is_own(self, ip: IPAddress) -> bool:
        return ip.is_loopback or ip in self.own


Ask: TypeAlias = Callable[[Option, Packet, Here], Holds]
AskAll: TypeAlias = Callable[[Match, Packet, Here], Holds]


def holds(rule: Rule, packet: Packet, here: Here) -> Holds:
    """Whether all of a rule's conditions hold. Raises ValueError for one that is not spelt as its module has
    it."""
    return _all(_match_holds(match, packet, here) for match in rule.matches)


def _match_holds(match: Match, packet: Packet, here: Here) -> Holds:
    if (whole := WHOLES.get(match.module)) is not None:
        return whole(match, packet, here)
    asks = OPTIONS.get(match.module)
    if asks is None:
        return Doubt("unread", f"-m {match.module}")
    if match.module in OF_HEADERS and packet.fragment:
        return False
    return _all(_option_holds(asks, option, packet, here) for option in match.options)


def _option_holds(asks: Mapping[str, Ask], option: Option, packet: Packet, here: Here) -> Holds:
    ask = asks.get(option.name)
    if ask is None:
        return Doubt("unread", option.name)
    return _negated(ask(option, packet, here)) if option.negated else ask(option, packet, here)


def _negated(answer: Holds) -> Holds:
    return answer._replace(usual=not answer.usual) if isinstance(answer, Doubt) else not answer


def _all(answers: Iterable[Holds]) -> Holds:
    """The first that is False ends it. Of several doubts the one that is hardest to live with is told."""
    doubt: Doubt | None = None
    for answer in answers:
        if answer is False:
            return False
        if isinstance(answer, Doubt) and (doubt is None or _gravity(answer) > _gravity(doubt)):
            doubt = answer
    return True if doubt is None else doubt


def _gravity(doubt: Doubt) -> int:
    """A rate that is usually not reached decides more than chance does: it is likely to be the end of it."""
    return {"rate": 0, "chance": 1, "unread": 2}[doubt.kind]


def _unread(option: Option) -> Doubt:
    return Doubt("unread", " ".join([option.name, *option.values]))


def _equal(known: object, wanted: object, option: Option) -> Holds:
    return _unread(option) if known is None else known == wanted


# --- addresses, devices, protocols ----------------------------------------------------------------


@lru_cache(maxsize=8192)
def _masked(text: str) -> tuple[int, int, int]:
    """(IP version, address, mask); masks with gaps are allowed, and no mask is that of one address."""
    address, _, mask = text.partition("/")
    ip = ip_address(address)
    if not mask:
        return ip.version, int(ip), (1 << ip.max_prefixlen) - 1
    bits = int(ip_network(f"{ip}/{mask}", strict=False).netmask) if mask.isdigit() else int(ip_address(mask))
    return ip.version, int(ip) & bits, bits


def is_within(ip: IPAddress, text: str) -> bool:
    """Whether an address is in a network as iptables writes it. Raises ValueError."""
    version, address, mask = _masked(text)
    return ip.version == version and int(ip) & mask == address


def is_device(name: str | None, pattern: str) -> bool:
    """A pattern that ends in ``+`` stands for all that begin so; no device has the empty name."""
    known = name or ""
    return known.startswith(pattern[:-1]) if pattern.endswith("+") else known == pattern


NUMBERS = {
    "icmp": 1, "igmp": 2, "ipencap": 4, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47,
    "esp": 50, "ah": 51, "ipv6-icmp": 58, "icmpv6": 58, "ospf": 89, "vrrp": 112, "sctp": 132, "udplite": 136,
}  # fmt: skip
"""Of protocols(5). One that is not here is at least none of these."""


def is_protocol(name: str, other: str) -> bool:
    """Whether two words, names or numbers, are the same IP protocol's."""
    return _number(name) == _number(other)


def _number(protocol: str) -> int | str:
    return int(protocol) if protocol.isdigit() else NUMBERS.get(protocol, protocol)


OWN_MATCH: Mapping[str, Ask] = {
    "-s": lambda option, packet, _: is_within(packet.src, option.value),
    "-d": lambda option, packet, _: is_within(packet.dst, option.value),
    "-i": lambda option, packet, _: is_device(packet.in_dev, option.value),
    "-o": lambda option, packet, _: is_device(packet.out_dev, option.value),
    "-p": lambda option, packet, _: is_protocol(packet.protocol, option.value),
    "-f": lambda _, packet, __: packet.fragment,
}
PHYSDEV: Mapping[str, Ask] = {
    "--physdev-in": lambda option, packet, _: is_device(packet.physin, option.value),
    "--physdev-out": lambda option, packet, _: is_device(packet.physout, option.value),
    "--physdev-is-in": lambda _, packet, __: packet.physin is not None,
    "--physdev-is-out": lambda _, packet, __: packet.physout is not None,
    "--physdev-is-bridged": lambda _, packet, __: packet.physout is not None,
}


def _physdev(match: Match, packet: Packet, here: Here) -> Holds:
    """What came in by a port of a bridge and does not leave by one leaves by no port, not even by another than
    a certain one (xt_physdev.c, physdev_mt())."""
    asks_out = any(option.name == "--physdev-out" for option in match.options)
    if asks_out and packet.physin is not None and packet.physout is None:
        return False
    return _all(_option_holds(PHYSDEV, option, packet, here) for option in match.options)


def _ip_in_range(side: str, option: Option, packet: Packet, here: Here) -> Holds:
    first, _, last = option.value.partition("-")
    ip: IPAddress = getattr(packet, side)
    low, high = ip_address(first), ip_address(last or first)
    return ip.version == low.version and int(low) <= int(ip) <= int(high)


def _is_mac(option: Option, packet: Packet, here: Here) -> Holds:
    return _equal(packet.src_mac, Mac.parse(option.value), option)


def _addrtype(match: Match, packet: Packet, here: Here) -> Holds:
    """``--limit-iface-in``: of the device it came by; without that, of any device."""
    names = {option.name for option in match.options}
    of_in, of_out = "--limit-iface-in" in names, "--limit-iface-out" in names
    device = packet.in_dev if of_in else packet.out_dev if of_out else None
    asks: Mapping[str, Ask] = {
        "--src-type": lambda option, *_: _has_type(packet.src, option, here, device),
        "--dst-type": lambda option, *_: _has_type(packet.dst, option, here, device),
        "--limit-iface-in": lambda *_: True,
        "--limit-iface-out": lambda *_: True,
    }
    return _all(_option_holds(asks, option, packet, here) for option in match.options)


def _has_type(ip: IPAddress, option: Option, here: Here, device: str | None) -> Holds:
    kind = address_type(ip, here, device)
    return _unread(option) if kind is None else kind in option.value.split(",")


def address_type(ip: IPAddress, here: Here, device: str | None = None) -> str | None:
    """What the kernel's table `local` says of an address (inet_dev_addr_type() in net/ipv4/fib_frontend.c)."""
    if ip.is_multicast:
        return "MULTICAST"
    if ip.version == 4 and (int(ip) >> 24 == 0 or int(ip) == 0xFFFFFFFF):
        return "BROADCAST"
    if here.is_own(ip):
        return "LOCAL" if device is None else _if_on(device, _devices_of(ip, here), "LOCAL")
    of_broadcast = [a.dev for a in here.addresses if _is_broadcast(ip, a)]
    return _if_on(device, of_broadcast, "BROADCAST") if of_broadcast else "UNICAST"


def _devices_of(ip: IPAddress, here: Here) -> Collection[str]:
    return ["lo"] if ip.is_loopback else [a.dev for a in here.addresses if a.interface.ip == ip]


def _if_on(device: str | None, devices: Collection[str], kind: str) -> str | None:
    if not devices:
        return None
    return kind if device is None or device in devices else "UNICAST"


def _is_broadcast(ip: IPAddress, address: Address) -> bool:
    network = address.interface.network
    return network.version == 4 and network.prefixlen < 31 and ip == network.broadcast_address


def _pkttype(option: Option, packet: Packet, here: Here) -> Holds:
    """Only told of packets to one receiver: others' frames come in more ways than one."""
    if address_type(packet.dst, here) in ("MULTICAST", "BROADCAST"):
        return _unread(option)
    return option.value in ("unicast", "host")


# --- headers of TCP, UDP and ICMP ------------------------------------------------------------------

OF_HEADERS = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "multiport", "icmp", "icmp6"})
"""Modules that say no to a fragment without these headers, whatever is asked and negated or not."""
FLAGS = {"FIN": "F", "SYN": "S", "RST": "R", "PSH": "P", "ACK": "A", "URG": "U"}


CHOSEN_PORTS = range(1024, 65536)
"""From which the kernel takes a port that nobody asked for: for a socket, or for a masquerade, which leaves a
port in its class (net/netfilter/nf_nat_core.c)."""
FEW_PORTS = 64
"""A port that is not known yet is held to be none of so few: one packet in a thousand proves it wrong."""


def covers(ranges: str, number: int | None) -> bool | None:
    """Whether a number is in ``80``, ``80:90``, ``1000:`` or a list of them; None if it is not known."""
    if number is None:
        return True if ranges in ("0:65535", ":65535", "0:") else None
    return any(number in _bounds(part) for part in ranges.split(","))


def covers_port(ranges: str, port: int | None) -> bool | None:
    """The same; of a port that is not known yet, None only where the ranges are neither all that the kernel may
    choose nor next to nothing of it."""
    if port is not None:
        return covers(ranges, port)
    shares = (_bounds(part) for part in ranges.split(","))
    chosen = sum(max(0, one.stop - max(one.start, CHOSEN_PORTS.start)) for one in shares)
    if chosen <= FEW_PORTS:
        return False
    return True if chosen >= len(CHOSEN_PORTS) else None


def _bounds(text: str) -> range:
    low, colon, high = text.partition(":")
    return range(int(low or 0), (int(high or 65535) if colon else int(low)) + 1)


def _ports(sides: Sequence[str], option: Option, packet: Packet, here: Here) -> Holds:
    answers = [covers_port(option.value, getattr(packet, side)) for side in sides]
    if True in answers:
        return True
    return _unread(option) if None in answers else False


SPORT, DPORT = partial(_ports, ["src_port"]), partial(_ports, ["dst_port"])
PORTS: Mapping[str, Ask] = {"--sport": SPORT, "--dport": DPORT}
MULTIPORT: Mapping[str, Ask] = {
    "--sports": SPORT,
    "--dports": DPORT,
    "--ports": partial(_ports, ["src_port", "dst_port"]),
}


def _flags(option: Option, packet: Packet, here: Here) -> Holds:
    if packet.tcp_flags is None:
        return _unread(option)
    mask, wanted = (_letters(word) for word in option.values)
    return set(packet.tcp_flags) & mask == wanted


def _letters(words: str) -> set[str]:
    if words in ("ALL", "NONE"):
        return set(FLAGS.values()) if words == "ALL" else set()
    if unknown := set(words.split(",")) - FLAGS.keys():
        raise ValueError(f"no flags of TCP: {unknown}")
    return {FLAGS[word] for word in words.split(",")}


def _icmp_type(option: Option, packet: Packet, here: Here) -> Holds:
    """``8``, ``3/4``; ``any`` is type 255."""
    if option.value in ("any", "255"):
        return True
    number, slash, code = option.value.partition("/")
    same_type = _equal(packet.icmp_type, int(number), option)
    return _all([same_type, _equal(packet.icmp_code, int(code), option)]) if slash else same_type


def _between(known: int | None, option: Option) -> Holds:
    covered = covers(option.value, known)
    return _unread(option) if covered is None else covered


def _ttl(test: Callable[[int, int], bool], option: Option, packet: Packet, here: Here) -> Holds:
    return _unread(option) if packet.ttl is None else test(packet.ttl, int(option.value))


TTL = {
    "eq": partial(_ttl, int.__eq__),
    "lt": partial(_ttl, int.__lt__),
    "gt": partial(_ttl, int.__gt__),
}

# --- marks and connections -------------------------------------------------------------------------


def masked_value(text: str) -> tuple[int, int]:
    """``0x1/0xff``: value and mask; all bits where none is given. Raises ValueError."""
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def _has_mark(mark: int, option: Option) -> bool:
    value, mask = masked_value(option.value)
    return mark & mask == value


def _mark(option: Option, packet: Packet, here: Here) -> Holds:
    return _has_mark(packet.mark, option)


def _connmark(match: Match, packet: Packet, here: Here) -> Holds:
    """A packet without connection has no such mark, and not another one either."""
    if not is_followed(packet, here):
        return False
    mark = packet.known_connmark
    asks: Mapping[str, Ask] = {
        "--mark": lambda option, *_: _unread(option) if mark is None else _has_mark(mark, option)
    }
    return _all(_option_holds(asks, option, packet, here) for option in match.options)


def is_followed(packet: Packet, here: Here) -> bool:
    """Whether the packet belongs to a connection that conntrack follows."""
    return here.followed and packet.state not in ("INVALID", "UNTRACKED")


def _conntrack(match: Match, packet: Packet, here: Here) -> Holds:
    """Without a connection its state is all that can be asked; if that holds, nothing else is asked
    (xt_conntrack.c, conntrack_mt())."""
    if is_followed(packet, here):
        return _all(_option_holds(CONNTRACK, option, packet, here) for option in match.options)
    states = [option for option in match.options if option.name in ("--ctstate", "--state")]
    return bool(states) and _all(_option_holds(CONNTRACK, option, packet, here) for option in states)


def _state(option: Option, packet: Packet, here: Here) -> Holds:
    wanted = option.value.split(",")
    if not is_followed(packet, here):
        return ("UNTRACKED" if packet.state == "UNTRACKED" else "INVALID") in wanted
    return packet.state in wanted or ("DNAT" in wanted and packet.dnat) or ("SNAT" in wanted and packet.snat)


def _status(option: Option, packet: Packet, here: Here) -> Holds:
    """A connection whose first packet is on its way was not answered, and is confirmed by the last hook only:
    of what comes back by loopback that is over. ASSURED is known of a new one alone, EXPECTED, as by FTP, of
    none."""
    is_new = packet.state == "NEW"
    known: Mapping[str, bool | None] = {
        "NONE": False,
        "SEEN_REPLY": {"NEW": False, "ESTABLISHED": True}.get(packet.state),
        "ASSURED": False if is_new else None,
        "CONFIRMED": not is_new or packet.in_dev == "lo",
        "EXPECTED": False if is_new else None,
    }
    answers = [known[word] for word in option.value.split(",") if word in known]
    if True in answers:
        return True
    return _unread(option) if None in answers or not answers else False


def _direction(option: Option, packet: Packet, here: Here) -> Holds:
    return option.value == ("REPLY" if packet.reply else "ORIGINAL")


def _of_first(side: str, option: Option, packet: Packet, here: Here) -> Holds:
    return _of_ends(packet.first_ends, side, option)


def _of_reply(side: str, option: Option, packet: Packet, here: Here) -> Holds:
    """Replies are to come from where this packet goes now."""
    swapped = Ends(packet.dst, packet.dst_port, packet.src, packet.src_port)
    return _of_ends(None if packet.reply or packet.snat else swapped, side, option)


def _of_ends(ends: Ends | None, side: str, option: Option) -> Holds:
    if ends is None:
        return _unread(option)
    if side in ("src", "dst"):
        return is_within(getattr(ends, side), option.value)
    return _between(getattr(ends, side), option)


CONNTRACK: Mapping[str, Ask] = {
    "--ctstate": _state,
    "--state": _state,
    "--ctstatus": _status,
    "--ctdir": _direction,
    "--ctproto": OWN_MATCH["-p"],
    **{
        f"--ct{way}{name}": partial(ask, side)
        for way, ask in (("orig", _of_first), ("repl", _of_reply))
        for name, side in (("src", "src"), ("dst", "dst"), ("srcport", "src_port"), ("dstport", "dst_port"))
    },
}


# --- chance, memory, rates ---------------------------------------------------------------------------


def _statistic(match: Match, packet: Packet, here: Here) -> Holds:
    """A probability of 0 or 1 and every first packet are no chance."""
    values = {option.name: option for option in match.options}
    if (share := values.get("--probability")) is not None:
        certain = float(share.value) in (0, 1)
        answer: Holds = bool(float(share.value)) if certain else Doubt("chance", "statistic")
        return _negated(answer) if share.negated else answer
    every = values.get("--every")
    if every is None:
        raise ValueError("neither --probability nor --every")
    answer = True if int(every.value) == 1 else Doubt("chance", "statistic")
    return _negated(answer) if every.negated else answer


def _recent(match: Match, packet: Packet, here: Here) -> Holds:
    """``--set`` always holds; the others ask whether the address is remembered."""
    setting = next((option for option in match.options if option.name == "--set"), None)
    return Doubt("chance", "recent") if setting is None else not setting.negated


def _set(match: Match, packet: Packet, here: Here) -> Holds:
    """Our own sets remember clients for session affinity; what is in those of others is not known here."""
    asked = next((option for option in match.options if option.name == "--match-set"), None)
    if asked is None or not asked.values:
        raise ValueError("which set?")
    if is_any_instances(asked.values[0]):
        return Doubt("chance", "affinity")
    return Doubt("unread", f"--match-set {' '.join(asked.values)}")


def _limit(match: Match, packet: Packet, here: Here) -> Holds:
    return Doubt("rate", "-m limit")


def _hashlimit(match: Match, packet: Packet, here: Here) -> Holds:
    """``--hashlimit-above`` holds for what is too much, the others for what is not."""
    above = next((option for option in match.options if option.name == "--hashlimit-above"), None)
    upto = next(
        (option for option in match.options if option.name in ("--hashlimit-upto", "--hashlimit")), None
    )
    limit = above or upto
    if limit is None:
        raise ValueError("no rate")
    return Doubt("rate", "-m hashlimit", usual=(limit is upto) != limit.negated)


# --- what only the routing table or a process could tell ----------------------------------------------


def _rpfilter(match: Match, packet: Packet, here: Here) -> Holds:
    """Whether the way back to the source is the way it came (xt_rpfilter.c)."""
    flags = {option.name for option in match.options}
    passes: Holds
    if packet.in_dev == "lo":
        passes = True
    elif here.is_own(packet.src):
        passes = "--accept-local" in flags
    elif packet.reverse is None:
        return Doubt("unread", "-m rpfilter")
    else:
        passes = packet.reverse == "same" or (packet.reverse == "other" and "--loose" in flags)
    return _negated(passes) if "--invert" in flags else passes


def _owner(match: Match, packet: Packet, here: Here) -> Holds:
    """Who sent a packet is known of none; what is forwarded has no sender, so it is not anybody's
    (xt_owner.c)."""
    if packet.in_dev is None:
        return Doubt("unread", "-m owner")
    return all(option.negated for option in match.options)


def _says_nothing(match: Match, packet: Packet, here: Here) -> Holds:
    return True


OPTIONS: Mapping[str, Mapping[str, Ask]] = {
    "": OWN_MATCH,
    "tcp": {**PORTS, "--tcp-flags": _flags},
    "udp": PORTS,
    "udplite": PORTS,
    "sctp": PORTS,
    "dccp": PORTS,
    "multiport": MULTIPORT,
    "icmp": {"--icmp-type": _icmp_type},
    "icmp6": {"--icmpv6-type": _icmp_type},
    "mark": {"--mark": _mark},
    "iprange": {"--src-range": partial(_ip_in_range, "src"), "--dst-range": partial(_ip_in_range, "dst")},
    "mac": {"--mac-source": _is_mac},
    "pkttype": {"--pkt-type": _pkttype},
    "length": {"--length": lambda option, packet, _: _between(packet.length, option)},
    "ttl": {f"--ttl-{word}": ask for word, ask in TTL.items()},
    "hl": {f"--hl-{word}": ask for word, ask in TTL.items()},
}
"""Modules all of whose options must hold, each for itself."""
WHOLES: Mapping[str, AskAll] = {
    "comment": _says_nothing,
    "conntrack": _conntrack,
    "state": _conntrack,
    "connmark": _connmark,
    "addrtype": _addrtype,
    "physdev": _physdev,
    "statistic": _statistic,
    "recent": _recent,
    "set": _set,
    "limit": _limit,
    "hashlimit": _hashlimit,
    "rpfilter": _rpfilter,
    "owner": _owner,
}
"""Modules whose options belong together."""
