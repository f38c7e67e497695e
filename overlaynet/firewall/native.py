"""nftables chains that iptables does not show, and whether one stops what our rules accept.

Where firewalld, or a hand-written ruleset, ends its forward chain in a reject, our accept in another table does
not help (see `nftables`).

`stops` walks such chains for the packets that matter: between bridge and VXLAN device, and VXLAN's own from the
underlay. Devices, the UDP port and the state of a new connection are known of them. A chain stops a packet
if it cannot end in an accept: an administrator who let the overlay pass by its addresses, which are not known
here, must not be told of it for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from overlaynet.firewall.nftables import SOME_DEVICE, ChainName, Subject, fate, is_iptables, parse
from overlaynet.state import Policy, VxlanGuard


class Packet(NamedTuple):
    """What should pass, and in words."""

    subject: Subject
    what: str


class Stop(NamedTuple):
    """A chain that ends the walk of a packet which our rules accept."""

    chain: ChainName
    hook: str
    what: str


def stops(text: str, want: Mapping[str, Policy], *, with_iptables: bool) -> tuple[Stop, ...]:
    """The base chains that stop the overlay. With `with_iptables` those of iptables-nft count too, since ours
    are in the legacy variant. Raises ValueError, KeyError or TypeError for what is no ruleset."""
    ruleset = parse(json.loads(text))
    found = []
    for base in ruleset.bases:
        if not with_iptables and is_iptables(base.name):
            continue
        for packet in packets(want):
            if packet.subject.hook == base.hook and not fate(ruleset, base, packet.subject).may_pass:
                found.append(Stop(base.name, base.hook, packet.what))
                break
    return tuple(found)


def sentence(stop: Stop) -> str:
    """The finding, and what to type."""
    family, table, chain = stop.chain
    where = f"table {family} {table} chain {chain} (hook {stop.hook})"
    return f"{where} stops {stop.what}, and our accept does not overrule it; try: {remedy(stop)}"


def remedy(stop: Stop) -> str:
    """A command: for firewalld's own table what mends it, else one that shows the chain."""
    family, table, chain = stop.chain
    if table != "firewalld":
        return f"nft list chain {family} {table} {chain}"
    if stop.hook == "input":
        return "firewall-cmd --permanent --add-port=8472/udp && firewall-cmd --reload"
    zone = "firewall-cmd --permanent --zone=trusted --add-interface=flannel.1 --add-interface=cni0"
    return f"{zone} && firewall-cmd --reload"


def packets(want: Mapping[str, Policy]) -> Iterator[Packet]:
    """What must pass: by each pair of our devices, and VXLAN from the underlay."""
    for policy in want.values():
        if not isinstance(policy, VxlanGuard):
            continue
        vxlan = Subject("input", SOME_DEVICE, "", protocol="udp", dst_port=policy.port, state="new")
        yield Packet(vxlan, f"UDP to the VXLAN port {policy.port}")
        for one in policy.devices:
            for other in policy.devices:
                if one != other:
                    between = Subject("forward", one, other, state="new")
                    yield Packet(between, f"packets from {one} to {other}")
