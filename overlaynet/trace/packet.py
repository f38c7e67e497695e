"""A packet as the packet filter sees it: its headers, and what the kernel remembers of it meanwhile.

Between two hooks a packet is more than its bytes: it came by a device, carries a mark, and belongs to a
connection that conntrack follows and NAT may have changed. Rules ask for all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from overlaynet.addr import IPAddress, Mac


class Ends(NamedTuple):
    """Who speaks to whom. Ports None: not known, or a protocol without."""

    src: IPAddress
    src_port: int | None
    dst: IPAddress
    dst_port: int | None


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet at one hook. What is None is not known, unless said otherwise; a rule that asks for it
    cannot be decided.

    `protocol`: "tcp", "udp", "icmp", or any name of protocols(5), or a number as text.
    `in_dev`, `out_dev`: None: there is none. In PREROUTING and INPUT nothing goes out; what a process here
    sends came in by none, and a forwarded packet still has its `in_dev` in POSTROUTING.
    `physin`, `physout`: the bridge's ports, of a frame that visits iptables while it is bridged (br_netfilter).
    `state`: as conntrack finds it: NEW ESTABLISHED RELATED INVALID UNTRACKED.
    `connmark`: of the connection; None is 0 for a new one.
    `dnat`, `snat`: the connection was translated here. `reply`: it goes the other way than the first packet.
    `original`: the connection's first packet, as it came, once it was translated.
    `length`: bytes of the IP packet. `ttl`: what it has at this hook; FORWARD comes after the decrement.
    `tcp_flags`: scapy's letters, "SA". `fragment`: it is one, and not the first.
    `src_mac`: of the frame it came in. `reverse`: by which device the kernel would send to the source: the
    "same" that it came by, an "other", or "none"."""

    src: IPAddress
    dst: IPAddress
    protocol: str
    src_port: int | None = None
    dst_port: int | None = None
    in_dev: str | None = None
    out_dev: str | None = None
    physin: str | None = None
    physout: str | None = None
    mark: int = 0
    state: str = "NEW"
    connmark: int | None = None
    dnat: bool = False
    snat: bool = False
    reply: bool = False
    original: Ends | None = None
    length: int | None = None
    ttl: int | None = None
    tcp_flags: str | None = "S"
    icmp_type: int | None = None
    icmp_code: int | None = None
    fragment: bool = False
    src_mac: Mac | None = None
    reverse: str | None = None

    @property
    def ends(self) -> Ends:
        return Ends(self.src, self.src_port, self.dst, self.dst_port)

    @property
    def first_ends(self) -> Ends | None:
        """Those of the connection's first packet before any translation; None if that is not known."""
        if self.original is not None:
            return self.original
        return None if self.reply or self.dnat or self.snat else self.ends

    @property
    def known_connmark(self) -> int | None:
        return 0 if self.connmark is None and self.state == "NEW" else self.connmark
