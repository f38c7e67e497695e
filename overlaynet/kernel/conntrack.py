"""The table of connections, by netlink (ctnetlink).

An entry holds two tuples of addresses and ports: the first packet's, and that of the replies it expects. NAT
shows as a reply tuple that is not the first one turned round. The attributes are those of
include/uapi/linux/netfilter/nfnetlink_conntrack.h, the answers those of
net/netfilter/nf_conntrack_netlink.c (ctnetlink_fill_info).

A busy host has hundreds of thousands of entries and we want few of them, so the kernel is asked to leave out
other protocols (Linux 5.8) and, if wanted, what was answered (5.15); older ones send all, and what is not
wanted is passed over here. What is left is taken apart by one prepared struct, since the kernel writes the two
tuples of an IPv4 entry first and always in the same shape; anything else goes the plain way.

A deletion without a tuple would mean all entries; every one here names its tuple. Between the reading and
the deletion a handshake may have been completed, so a TCP entry is looked at once more.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Collection, Iterator
from struct import Struct

from overlaynet.addr import IPAddress, address
from overlaynet.errors import KernelError, NoConntrack
from overlaynet.kernel import nfnl, parse, wire
from overlaynet.kernel.handle import Refusal
from overlaynet.kernel.nfnl import CONNTRACK, NESTED, Nfnl, nested
from overlaynet.kernel.parse import Answer, Attributes, attributes
from overlaynet.kernel.wire import ATTR
from overlaynet.state import Flow

ICMP = "icmp"
PROTOCOL_NUMBER = {ICMP: 1, "tcp": 6, "udp": 17, "sctp": 132}
TCP = PROTOCOL_NUMBER["tcp"]
PROTOCOL = {number: word for word, number in PROTOCOL_NUMBER.items()}
TCP_STATE = {
    0: "NONE",
    1: "SYN_SENT",
    2: "SYN_RECV",
    3: "ESTABLISHED",
    4: "FIN_WAIT",
    5: "CLOSE_WAIT",
    6: "LAST_ACK",
    7: "TIME_WAIT",
    8: "CLOSE",
    9: "SYN_SENT2",
}
"""In the words of /proc/net/nf_conntrack (enum tcp_conntrack)."""

GET, DELETE = 1, 2
IPS_SEEN_REPLY = 1 << 1
TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, FILTER, STATUS_MASK = 1, 2, 3, 4, 25, 26
ZONE = 18
TUPLE_IP, TUPLE_PROTO, TUPLE_ZONE = 1, 2, 3
IP_SRC, IP_DST = {4: 1, 6: 3}, {4: 2, 6: 4}
PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 3
PROTO_ICMP_ID, PROTO_ICMP_TYPE, PROTO_ICMP_CODE = 4, 5, 6
ECHO_REQUEST = 8
PROTOINFO_TCP, PROTOINFO_TCP_STATE = 1, 1
FILTER_ORIG_FLAGS, FILTER_REPLY_FLAGS = 1, 2
BY_PROTOCOL = 1 << 3
"""A filter looks at nothing of the tuple but the protocol (net/netfilter/nf_internals.h)."""


def _heads(kind: int) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """What stands between the values of an IPv4 tuple with ports: lengths and types of its attributes."""
    outer = ATTR.pack(52, kind | NESTED) + ATTR.pack(20, TUPLE_IP | NESTED) + ATTR.pack(8, IP_SRC[4])
    proto = ATTR.pack(28, TUPLE_PROTO | NESTED) + ATTR.pack(5, PROTO_NUM)
    return outer, ATTR.pack(8, IP_DST[4]), proto, ATTR.pack(6, PROTO_SRC_PORT), ATTR.pack(6, PROTO_DST_PORT)


_TUPLE = "12s4s 4s4s 8sB3x 4sH2x 4sH2x "
_COMMON = Struct(f">{_TUPLE}{_TUPLE}4sI")
"""Both tuples and the status, as they nearly always come."""
_HEADS = (*_heads(TUPLE_ORIG), *_heads(TUPLE_REPLY), ATTR.pack(8, STATUS))
_U16 = Struct(">H")
_U32 = Struct(">I")


class ConntrackAdapter:
    """`ports.Conntrack`, for one address family (4 or 6). Needs CAP_NET_ADMIN. The socket is opened at the
    first need, in the calling thread's namespace; not for two threads at once."""

    def __init__(self, family: int = 4) -> None:
        self._version = family
        self._family = wire.FAMILY[family]
        self._nfnl: Nfnl | None = None

    def flows(self, protocols: Collection[str], *, unanswered: bool = False) -> Iterator[Flow]:
        """Entries of another zone than the common one are somebody's private table, and left out."""
        for word in protocols:
            for answer in self._dump(_dump(self._family, PROTOCOL_NUMBER[word], unanswered=unanswered)):
                flow = _flow(answer)
                if flow and flow.protocol == word and not (unanswered and flow.replied):
                    yield flow

    def find(self, protocol: str, src: IPAddress, sport: int, dst: IPAddress, dport: int) -> Flow | None:
        """The entry whose first packet was this; None if there is none. Of ICMP, an echo request's: `sport` is
        its identifier and `dport` 0. Raises NoConntrack or KernelError."""
        sought = Flow(protocol, src, sport, dst, dport, dst, dport, src, sport)
        try:
            answer = self._get(sought)
        except KernelError as error:
            raise _lacking(error) from error
        if not isinstance(answer, Refusal):
            return _flow(answer)
        if answer.errno == errno.ENOENT:
            return None
        raise _lacking(KernelError(f"a look at the connection {_words(sought)}", answer.errno, answer.text))

    def delete(self, flow: Flow) -> None:
        if flow.protocol == "tcp" and not self._still(flow):
            return
        (refusal,) = self._open().batch([nfnl.message(CONNTRACK, DELETE, 0, self._family, _original(flow))])
        if refusal and refusal.errno != errno.ENOENT:
            raise KernelError(f"deletion of the connection {_words(flow)}", refusal.errno, refusal.text)

    def check(self) -> None:
        """Raises NoConntrack where there is nothing to ask, KernelError where it is not answered."""
        ip = address(bytes(wire.WIDTH[self._version]))
        nobody = Flow("udp", ip, 0, ip, 0, ip, 0, ip, 0)
        try:
            answer = self._get(nobody)
        except KernelError as error:
            raise _lacking(error) from error
        if isinstance(answer, Refusal) and answer.errno in nfnl.LACKING:
            raise NoConntrack(answer.errno)

    def close(self) -> None:
        if self._nfnl:
            self._nfnl.close()
            self._nfnl = None

    def _open(self) -> Nfnl:
        self._nfnl = self._nfnl or Nfnl.open()
        return self._nfnl

    def _dump(self, message: bytes) -> list[Answer]:
        try:
            return self._open().dump(message)
        except KernelError as error:
            raise _lacking(error) from error

    def _get(self, flow: Flow) -> Answer | Refusal:
        return self._open().get(nfnl.message(CONNTRACK, GET, 0, self._family, _original(flow)))

    def _still(self, flow: Flow) -> bool:
        """Whether an entry is as it was read."""
        answer = self._get(flow)
        return not isinstance(answer, Refusal) and _flow(answer) == flow


# --- requests -------------------------------------------------------------------------------------


def _dump(family: int, number: int, *, unanswered: bool) -> bytes:
    """For the entries of one protocol."""
    looked_at = wire.attribute(FILTER_ORIG_FLAGS, BY_PROTOCOL.to_bytes(4, sys.byteorder))
    nothing = wire.attribute(FILTER_REPLY_FLAGS, bytes(4))
    protocol = nested(TUPLE_PROTO, wire.attribute(PROTO_NUM, bytes([number])))
    attributes = nested(FILTER, looked_at, nothing) + nested(TUPLE_ORIG, protocol)
    if unanswered:
        attributes += nfnl.u32(STATUS, 0) + nfnl.u32(STATUS_MASK, IPS_SEEN_REPLY)
    return nfnl.message(CONNTRACK, GET, wire.NLM_F_DUMP, family, attributes)


def _original(flow: Flow) -> bytes:
    """The tuple by which the kernel finds an entry."""
    version = flow.src.version
    ips = nested(
        TUPLE_IP,
        wire.attribute(IP_SRC[version], flow.src.packed),
        wire.attribute(IP_DST[version], flow.dst.packed),
    )
    number = wire.attribute(PROTO_NUM, bytes([PROTOCOL_NUMBER[flow.protocol]]))
    return nested(TUPLE_ORIG, ips, nested(TUPLE_PROTO, number, _ports(flow)))


def _ports(flow: Flow) -> bytes:
    if flow.protocol == ICMP:
        return (
            wire.attribute(PROTO_ICMP_ID, _U16.pack(flow.sport))
            + wire.attribute(PROTO_ICMP_TYPE, bytes([ECHO_REQUEST]))
            + wire.attribute(PROTO_ICMP_CODE, bytes([0]))
        )
    return wire.attribute(PROTO_SRC_PORT, _U16.pack(flow.sport)) + wire.attribute(
        PROTO_DST_PORT, _U16.pack(flow.dport)
    )


def _lacking(error: KernelError) -> KernelError:
    """What a failure means if it is the plainest request that failed."""
    return NoConntrack(error.errno) if error.errno in nfnl.LACKING else error


def _words(flow: Flow) -> str:
    return f"{flow.protocol} {flow.src}:{flow.sport} -> {flow.dst}:{flow.dport}"


# --- answers --------------------------------------------------------------------------------------


def _flow(answer: Answer) -> Flow | None:
    """None for a protocol that we do not know, or another zone."""
    buffer, start, end = answer
    at = start + nfnl.GENERIC_BYTES
    if at + _COMMON.size > end:
        return _uncommon(attributes(buffer, at, end))
    (
        h0, src, h1, dst, h2, number, h3, sport, h4, dport,
        h5, reply_src, h6, reply_dst, h7, _, h8, reply_sport, h9, reply_dport, h10, status,
    ) = _COMMON.unpack_from(buffer, at)  # fmt: skip
    if (h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10) != _HEADS or number not in PROTOCOL:
        return _uncommon(attributes(buffer, at, end))
    return Flow(
        PROTOCOL[number], address(src), sport, address(dst), dport,
        address(reply_src), reply_sport, address(reply_dst), reply_dport,
        _state(attributes(buffer, at + _COMMON.size, end)) if number == TCP else "",
        bool(status & IPS_SEEN_REPLY),
    )  # fmt: skip


def _uncommon(found: Attributes) -> Flow | None:
    original, reply = _tuple(found.get(TUPLE_ORIG, b"")), _tuple(found.get(TUPLE_REPLY, b""))
    if original is None or reply is None or ZONE in found:
        return None
    protocol, src, sport, dst, dport = original
    _, reply_src, reply_sport, reply_dst, reply_dport = reply
    replied = bool(_U32.unpack(found[STATUS])[0] & IPS_SEEN_REPLY)
    state = _state(found) if protocol == "tcp" else ""
    return Flow(
        protocol, src, sport, dst, dport, reply_src, reply_sport, reply_dst, reply_dport, state, replied
    )


def _tuple(octets: bytes) -> tuple[str, IPAddress, int, IPAddress, int] | None:
    found = attributes(octets, 0, len(octets))
    ips, proto = parse.nested(found, TUPLE_IP), parse.nested(found, TUPLE_PROTO)
    protocol = PROTOCOL.get(proto.get(PROTO_NUM, b"\0")[0])
    version = 4 if IP_SRC[4] in ips else 6
    if protocol is None or TUPLE_ZONE in found:
        return None
    source, target = _port_pair(protocol, proto)
    return protocol, address(ips[IP_SRC[version]]), source, address(ips[IP_DST[version]]), target


def _port_pair(protocol: str, proto: Attributes) -> tuple[int, int]:
    """Of ICMP the identifier, where the echo request's source port would be."""
    if protocol != ICMP:
        return _U16.unpack(proto[PROTO_SRC_PORT])[0], _U16.unpack(proto[PROTO_DST_PORT])[0]
    ident = _U16.unpack(proto[PROTO_ICMP_ID])[0]
    return (ident, 0) if proto[PROTO_ICMP_TYPE][0] == ECHO_REQUEST else (0, ident)


def _state(found: Attributes) -> str:
    tcp = parse.nested(parse.nested(found, PROTOINFO), PROTOINFO_TCP)
    return TCP_STATE.get(tcp.get(PROTOINFO_TCP_STATE, b"\0")[0], "")
