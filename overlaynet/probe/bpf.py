"""Which frames the kernel puts into a socket's queue: a `keep` as a program of classic BPF. Pure.

A filter costs nothing where it runs, in the kernel, before a frame is queued; a socket without one on a busy
host drops, and a drop makes "not seen" mean nothing. So the filter is there for the sake of proof, and it may
err to one side only: a frame too many is noise, a frame too few is a false verdict.

The machine (Documentation/networking/filter.rst; linux/bpf_common.h) has an accumulator A, an index X and
conditional jumps of at most 255 instructions. It reads the frame in network order; a read behind the frame's
end rejects it. Its answer is how many bytes of the frame to keep, 0 for none.

Here every condition is followed by an unconditional jump, which reaches any distance, and all reads are
relative to X. So the same instructions serve the frame (X = 0) and the one inside it, if it is VXLAN
(RFC 7348).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from overlaynet.errors import UsageError
from overlaynet.probe.job import member

ETHERTYPE_BARRIER = 0x88B5
"""Local Experimental EtherType 1 (IEEE 802): no protocol stack takes it."""
ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
WHOLE = 65_535 + 14
"""Bytes to keep of a frame that shall not be cut: the longest IPv4 packet behind its Ethernet header."""
MAX_VALUES = 200
"""Addresses, or ports, that are told apart; a `keep` with more of them keeps every one. 255 is what a jump
reaches."""

_LD_WORD, _LD_HALF, _LD_BYTE = 0x40, 0x48, 0x50  # BPF_LD | size | BPF_IND
_LDX_CONST = 0x01  # BPF_LDX | BPF_IMM
_JUMP, _IF_EQUAL, _IF_ANY_BIT = 0x05, 0x15, 0x45  # BPF_JMP | BPF_JA, BPF_JEQ, BPF_JSET
_AND, _SHIFT_LEFT, _ADD_CONST, _ADD_X = 0x54, 0x64, 0x04, 0x0C
_TO_X, _FROM_X, _RETURN = 0x07, 0x87, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter."""

_ETHER, _UDP, _VXLAN = 14, 8, 8
"""Bytes of these headers."""
_TYPE, _IP, _FRAGMENT, _PROTOCOL, _SRC, _DST = 12, 14, 20, 23, 26, 30
"""Offsets in an Ethernet frame with an IPv4 packet."""
_SRC_PORT, _DST_PORT = _ETHER, _ETHER + 2
"""Offsets from X, once the length of the IP header was added to it."""
_OFFSET_BITS = 0x1FFF


class Keep(NamedTuple):
    """ARP, barriers, and IPv4 packets from or to any of `ips`: of `protocol`, and ICMP, since that is how
    errors come back. TCP and UDP only from or to one of `ports`; a fragment that shows no ports counts. Empty
    or None: whatever it is. Frames inside VXLAN to `vxlan_port` are judged alike; None: not looked into."""

    ips: tuple[str, ...] = ()
    protocol: str | None = None
    ports: tuple[int, ...] = ()
    vxlan_port: int | None = None


def read_keep(job: Mapping[str, Any]) -> Keep | None:
    """``{"ips", "protocol", "ports", "vxlan_port"}``, each of which may be missing. None: keep everything.
    Raises UsageError."""
    if job.get("keep") is None:
        return None
    said = member(job, "keep", dict)
    protocol = said.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(f"packets cannot be kept by the protocol {protocol!r}", evidence=", ".join(PROTOCOLS))
    port = None if said.get("vxlan_port") is None else member(said, "vxlan_port", int)
    return Keep(tuple(member(said, "ips", list, [])), protocol, tuple(member(said, "ports", list, [])), port)


def program(keep: Keep | None, snap: int = WHOLE) -> bytes:
    """The instructions, as SO_ATTACH_FILTER wants them: an array of struct sock_filter. Frames are cut to their
    first `snap` bytes. Raises UsageError for what is no address or port."""
    code = _Assembler()
    if keep is not None:
        addresses, ports = _addresses(keep.ips), _ports(keep.ports)
        code.add(_LDX_CONST, 0)
        _judge(code, keep, addresses, ports, otherwise="tunnel")
        code.label("tunnel")
        if keep.vxlan_port is not None:
            _enter_vxlan(code, keep.vxlan_port)
            _judge(code, keep, addresses, ports, otherwise="reject")
        code.label("reject")
        code.add(_RETURN, 0)
        code.label("accept")
    code.add(_RETURN, snap)
    return code.assembled()


def _judge(
    code: _Assembler, keep: Keep, addresses: Sequence[int], ports: Sequence[int], otherwise: str
) -> None:
    """Jump to "accept" or `otherwise` for the frame that begins at X."""
    code.add(_LD_HALF, _TYPE)
    code.jump_if(_IF_EQUAL, [ETHERTYPE_ARP, ETHERTYPE_BARRIER], "accept")
    code.jump_unless_equal(ETHERTYPE_IPV4, otherwise)
    if addresses:
        named = code.new_label()
        for offset in (_SRC, _DST):
            code.add(_LD_WORD, offset)
            code.jump_if(_IF_EQUAL, addresses, named)
        code.jump(otherwise)
        code.label(named)
    code.add(_LD_BYTE, _PROTOCOL)
    code.jump_if(_IF_EQUAL, [PROTOCOLS["icmp"]], "accept")
    if keep.protocol is not None:
        code.jump_unless_equal(PROTOCOLS[keep.protocol], otherwise)
    if ports:
        _judge_ports(code, ports, otherwise)
    code.jump("accept")


def _judge_ports(code: _Assembler, ports: Sequence[int], otherwise: str) -> None:
    """Falls through for what has no ports: another protocol, a fragment that is not the first."""
    ported, portless = code.new_label(), code.new_label()
    code.jump_if(_IF_EQUAL, [PROTOCOLS["tcp"], PROTOCOLS["udp"]], ported)
    code.jump(portless)
    code.label(ported)
    code.add(_LD_HALF, _FRAGMENT)
    code.jump_if(_IF_ANY_BIT, [_OFFSET_BITS], portless)
    code.skip_ip_header()
    for offset in (_SRC_PORT, _DST_PORT):
        code.add(_LD_HALF, offset)
        code.jump_if(_IF_EQUAL, ports, "accept")
    code.jump(otherwise)
    code.label(portless)


def _enter_vxlan(code: _Assembler, port: int) -> None:
    """Move X to the frame inside; "reject" if there is none. Of an outer packet in fragments the first will
    do: it holds the inner headers."""
    code.add(_LDX_CONST, 0)
    code.add(_LD_HALF, _TYPE)
    code.jump_unless_equal(ETHERTYPE_IPV4, "reject")
    code.add(_LD_BYTE, _PROTOCOL)
    code.jump_unless_equal(PROTOCOLS["udp"], "reject")
    code.add(_LD_HALF, _FRAGMENT)
    code.jump_if(_IF_ANY_BIT, [_OFFSET_BITS], "reject")
    code.skip_ip_header()
    code.add(_LD_HALF, _DST_PORT)
    code.jump_unless_equal(port, "reject")
    code.add(_FROM_X, 0)
    code.add(_ADD_CONST, _ETHER + _UDP + _VXLAN)
    code.add(_TO_X, 0)


def _addresses(texts: Iterable[str]) -> list[int]:
    try:
        found = [int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big") for text in texts]
    except (OSError, TypeError) as error:
        raise UsageError("packets can be kept by IPv4 addresses only", evidence=str(error)) from None
    return found if len(found) <= MAX_VALUES else []


def _ports(numbers: Sequence[int]) -> Sequence[int]:
    if not all(isinstance(number, int) and 0 <= number < 1 << 16 for number in numbers):
        raise UsageError("a port is a number below 65536", evidence=f"ports: {list(numbers)!r}"[:200])
    return numbers if len(numbers) <= MAX_VALUES else []


class _Assembler:
    """Instructions with labels. A label may be used before it is set."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str]] = []
        self._labels: dict[str, int] = {}
        self._made = 0

    def add(self, operation: int, value: int) -> None:
        self._code.append((operation, 0, 0, value))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def new_label(self) -> str:
        self._made += 1
        return f"label {self._made}"

    def jump(self, target: str) -> None:
        self._code.append((_JUMP, 0, 0, target))

    def jump_if(self, test: int, values: Sequence[int], target: str) -> None:
        """If A passes the test with any of the values (at most MAX_VALUES)."""
        after = len(values)
        for left, value in zip(range(after, 0, -1), values, strict=True):
            self._code.append((test, left, 0, value))
        self._code.append((_JUMP, 0, 0, 1))
        self.jump(target)

    def jump_unless_equal(self, value: int, target: str) -> None:
        self._code.append((_IF_EQUAL, 1, 0, value))
        self.jump(target)

    def skip_ip_header(self) -> None:
        """Add the length of the IP header to X."""
        self.add(_LD_BYTE, _IP)
        self.add(_AND, 0x0F)
        self.add(_SHIFT_LEFT, 2)
        self.add(_ADD_X, 0)
        self.add(_TO_X, 0)

    def assembled(self) -> bytes:
        return b"".join(
            _INSTRUCTION.pack(operation, yes, no, self._distance(at, value))
            for at, (operation, yes, no, value) in enumerate(self._code)
        )

    def _distance(self, at: int, value: int | str) -> int:
        return value if isinstance(value, int) else self._labels[value] - at - 1
