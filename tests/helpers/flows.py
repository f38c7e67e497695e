"""Connections to try things on, and a hand on the kernel's table that makes them without a packet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from struct import Struct

from overlaynet.addr import IPAddress
from overlaynet.kernel import conntrack, nfnl, wire
from overlaynet.kernel.nfnl import Nfnl, nested
from overlaynet.state import Flow

NEW = 0
TIMEOUT = 7
CONFIRMED = 1 << 3
STATE_NUMBER = {word: number for number, word in conntrack.TCP_STATE.items()}
_U16 = Struct(">H")


def flow(
    protocol: str,
    source: str,
    target: str,
    replier: str = "",
    *,
    state: str = "",
    replied: bool = True,
) -> Flow:
    """``flow("udp", "10.0.0.1:5000", "10.112.0.10:53", "10.244.1.2:5353")``: DNATed to the last, if given."""
    (src, sport), (dst, dport) = _end(source), _end(target)
    reply_src, reply_sport = _end(replier or target)
    return Flow(protocol, src, sport, dst, dport, reply_src, reply_sport, src, sport, state, replied)


@lru_cache
def _end(text: str) -> tuple[IPAddress, int]:
    ip, _, port = text.rpartition(":")
    return ip_address(ip.strip("[]")), int(port)


@contextmanager
def kernels_table() -> Iterator[Table]:
    """In the calling thread's namespace."""
    with closing(Nfnl.open()) as nfnl:
        yield Table(nfnl)


@dataclass(frozen=True)
class Table:
    """A hand on the kernel's table."""

    socket: Nfnl

    def insert(self, *flows: Flow) -> None:
        requests = [_insertion(flow) for flow in flows]
        refused = [refusal for refusal in self.socket.batch(requests) if refusal]
        assert not refused, refused[:3]


def _insertion(flow: Flow) -> bytes:
    family = wire.FAMILY[flow.src.version]
    status = CONFIRMED | (conntrack.IPS_SEEN_REPLY if flow.replied else 0)
    parts = [
        _tuple(conntrack.TUPLE_ORIG, flow.protocol, flow.src, flow.sport, flow.dst, flow.dport),
        _tuple(
            conntrack.TUPLE_REPLY, flow.protocol,
            flow.reply_src, flow.reply_sport, flow.reply_dst, flow.reply_dport,
        ),
        nfnl.u32(TIMEOUT, 600),
        nfnl.u32(conntrack.STATUS, status),
    ]  # fmt: skip
    if flow.state:
        state = wire.attribute(conntrack.PROTOINFO_TCP_STATE, bytes([STATE_NUMBER[flow.state]]))
        parts.append(nested(conntrack.PROTOINFO, nested(conntrack.PROTOINFO_TCP, state)))
    flags = wire.NLM_F_CREATE | wire.NLM_F_EXCL
    return nfnl.message(nfnl.CONNTRACK, NEW, flags, family, b"".join(parts))


def _tuple(kind: int, protocol: str, src: IPAddress, sport: int, dst: IPAddress, dport: int) -> bytes:
    version = src.version
    return nested(
        kind,
        nested(
            conntrack.TUPLE_IP,
            wire.attribute(conntrack.IP_SRC[version], src.packed),
            wire.attribute(conntrack.IP_DST[version], dst.packed),
        ),
        nested(
            conntrack.TUPLE_PROTO,
            wire.attribute(conntrack.PROTO_NUM, bytes([conntrack.PROTOCOL_NUMBER[protocol]])),
            wire.attribute(conntrack.PROTO_SRC_PORT, _U16.pack(sport)),
            wire.attribute(conntrack.PROTO_DST_PORT, _U16.pack(dport)),
        ),
    )
