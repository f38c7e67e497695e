"""One rtnetlink socket: requests out, answers back, each refusal to the request that earned it.

The kernel works through every message of one `send` before that call returns, in order, and an error
carries the sequence number of its request whether or not an acknowledgement was asked for. So a batch
asks for one acknowledgement, on its last message: when that has come, every refusal has come before it,
and silence about a request means that it was carried out (netlink(7); net/netlink/af_netlink.c,
netlink_rcv_skb). Answers wait in the socket's receive buffer meanwhile, so a send holds few enough
messages that even all of them failing fits.

Should the buffer overflow all the same, the kernel says ENOBUFS once. What is lost is unknown then;
the caller is told so, and must look again rather than guess. A dump during which the table changed is
marked by the kernel (NLM_F_DUMP_INTR) and read again.

The namespace is the socket's, not the caller's: a socket opened in a container's namespace and passed
over a unix socket configures that container, by a process that could not enter it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from struct import Struct, pack
from typing import NamedTuple, TypeAlias

from overlaynet.errors import KernelError
from overlaynet.kernel import netns, parse, wire

SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER_BYTES = 4 << 20
OUTSTANDING = 192
"""Messages per send. Their answers must fit the receive buffer an unprivileged socket gets (some 250)."""
ANSWER_BYTES = 65_536
"""The kernel makes dump parts of at most 32 KiB (net/netlink/af_netlink.c, netlink_recvmsg)."""
TIMEOUT_S = 10
DUMP_TRIES = 8
NLMSGERR_ATTR_MSG = 1

ENDS = frozenset({wire.NLMSG_DONE, wire.NLMSG_ERROR})
"""What closes a dump."""

_SEQ = Struct("=I")
_ERRNO = Struct("=i")
_FLAGS = Struct("=H")
_SEQ_OFFSET, _FLAGS_OFFSET = 8, 6

Header: TypeAlias = tuple[int, int, int]
"""Type, flags and sequence number of an answer."""


class Refusal(NamedTuple):
    """The kernel's no to one message: a positive errno, and its own words if it had any."""

    errno: int
    text: str


class Rtnl:
    """A NETLINK_ROUTE socket. Not for two threads at once."""

    def __init__(self, sock: socket.socket, *, timeout_s: float = TIMEOUT_S) -> None:
        """Takes over `sock`. `timeout_s`: how long one answer may take before KernelError (ETIMEDOUT)."""
        self._socket = sock
        self._seq = time.monotonic_ns() & 0x3FFFFFFF  # an adopted socket may still hold answers to others
        _configure(sock, timeout_s)

    @classmethod
    def open(cls, *, timeout_s: float = TIMEOUT_S) -> Rtnl:
        """In the calling thread's network namespace."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE), timeout_s=timeout_s)

    @classmethod
    def from_fd(cls, fd: int, *, timeout_s: float = TIMEOUT_S) -> Rtnl:
        """In the namespace where the socket `fd` was opened. `fd` stays the caller's to close."""
        try:
            sock = socket.socket(fileno=os.dup(fd))
        except OSError as error:
            raise KernelError(f"descriptor {fd} as an rtnetlink socket", error.errno or errno.EBADF) from error
        if (sock.family, sock.proto) != (socket.AF_NETLINK, socket.NETLINK_ROUTE):
            sock.close()
            raise KernelError(f"descriptor {fd} as an rtnetlink socket", errno.EPROTOTYPE)
        return cls(sock, timeout_s=timeout_s)

    @classmethod
    def inside(cls, target: netns.Target, *, timeout_s: float = TIMEOUT_S) -> Rtnl:
        """In another namespace, given by name, path or descriptor. Needs CAP_SYS_ADMIN to enter it."""
        sock = netns.socket_in(target, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        return cls(sock, timeout_s=timeout_s)

    @property
    def port_id(self) -> int:
        """This socket's address; the kernel names it as the sender in what it announces to others."""
        if not self._socket.getsockname()[0]:
            self._socket.bind((0, 0))
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- requests -----------------------------------------------------------------------------

    def batch(self, messages: Sequence[bytes]) -> list[Refusal | None]:
        """Send all, in order; None for each that was carried out. One refused does not stop the rest.

        Raises KernelError if answers were lost (ENOBUFS) or did not come (ETIMEDOUT): look again then.
        """
        refusals: list[Refusal | None] = [None] * len(messages)
        for start in range(0, len(messages), OUTSTANDING):
            part = messages[start : start + OUTSTANDING]
            for position, refusal in self._exchange(part):
                refusals[start + position] = refusal
        return refusals

    def get(self, message: bytes) -> parse.Answer | Refusal:
        """Ask for one object."""
        seq = self._send([message])
        for (kind, flags, _), answer in self._answers(seq, 1):
            return _refusal(answer, kind, flags) if kind == wire.NLMSG_ERROR else answer
        raise AssertionError("answers never end by themselves")

    def dump(self, message: bytes) -> list[parse.Answer]:
        """A whole table as it was at one moment. Raises KernelError, EAGAIN if it never held still."""
        for _ in range(DUMP_TRIES):
            answers = self._dump(message)
            if answers is not None:
                return answers
        raise KernelError("a consistent dump", errno.EAGAIN, f"the table changed during each of {DUMP_TRIES}")

    def ifindex(self, device: str) -> int | None:
        """A link's index by its name, None if there is no such link."""
        answer = self.get(wire.get_link(device))
        if not isinstance(answer, Refusal):
            return parse.ifindex(answer)
        if answer.errno in (errno.ENODEV, errno.ERANGE):
            return None
        raise KernelError(f"a look at link {device}", answer.errno, answer.text)

    # --- transport ----------------------------------------------------------------------------

    def _exchange(self, messages: Sequence[bytes]) -> Iterator[tuple[int, Refusal]]:
        first = self._send(messages, acknowledge=True)
        last = len(messages) - 1
        for (kind, flags, seq), answer in self._answers(first, len(messages)):
            refusal = _refusal(answer, kind, flags)
            if refusal.errno:
                yield seq - first, refusal
            if seq - first == last:
                return

    def _dump(self, message: bytes) -> list[parse.Answer] | None:
        """None: the table changed meanwhile. One loop, without a generator: dumps are what gets long."""
        found: list[parse.Answer] = []
        wanted, interrupted = self._send([message]), 0
        append, unpack = found.append, wire.HEADER.unpack_from
        while True:
            buffer = self._receive()
            at, size = 0, len(buffer)
            while at < size:
                length, kind, flags, seq, _ = unpack(buffer, at)
                if seq == wanted:
                    interrupted |= flags & wire.NLM_F_DUMP_INTR
                    if kind in ENDS:
                        _raise_if_refused(_refusal((buffer, at + 16, at + length), kind, flags))
                        return None if interrupted else found
                    append((buffer, at + 16, at + length))
                at += (length + 3) & ~3

    def _send(self, messages: Sequence[bytes], *, acknowledge: bool = False) -> int:
        """Number the messages and send them at once; returns the first one's number."""
        data = bytearray().join(messages)
        first = self._seq = self._seq % 0x7FFFFFFF + 1
        at = last = 0
        for seq, message in enumerate(messages, first):
            _SEQ.pack_into(data, at + _SEQ_OFFSET, seq)
            last, at = at, at + len(message)
        self._seq = first + len(messages)
        if acknowledge:
            (flags,) = _FLAGS.unpack_from(data, last + _FLAGS_OFFSET)
            _FLAGS.pack_into(data, last + _FLAGS_OFFSET, flags | wire.NLM_F_ACK)
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError("a netlink send", error.errno or errno.EIO) from error
        return first

    def _answers(self, first: int, count: int) -> Iterator[tuple[Header, parse.Answer]]:
        """Answers to `count` requests from `first` on, without end; what answers others is skipped."""
        unpack = wire.HEADER.unpack_from
        while True:
            buffer = self._receive()
            at, size = 0, len(buffer)
            while at < size:
                length, kind, flags, seq, _ = unpack(buffer, at)
                if first <= seq < first + count:
                    yield (kind, flags, seq), (buffer, at + 16, at + length)
                at += (length + 3) & ~3

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(ANSWER_BYTES)
        except BlockingIOError as error:
            raise KernelError("an answer in time", errno.ETIMEDOUT) from error
        except OSError as error:
            lost = error.errno == errno.ENOBUFS
            if lost:
                self._drain()
            text = "answers were lost; look again" if lost else ""
            raise KernelError("a netlink receive", error.errno or errno.EIO, text) from error

    def _drain(self) -> None:
        """Throw away what is left: until its buffer is empty the kernel gives an overrun socket nothing."""
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(ANSWER_BYTES, socket.MSG_DONTWAIT)


def _configure(sock: socket.socket, timeout_s: float) -> None:
    sock.setblocking(True)
    timeout = pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)  # up to rmem_max
    with suppress(OSError):  # beyond rmem_max needs CAP_NET_ADMIN in the initial user namespace
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
        with suppress(OSError):  # kernels before 4.20 know fewer of these; all are refinements
            sock.setsockopt(SOL_NETLINK, option, 1)


def _raise_if_refused(refusal: Refusal) -> None:
    if refusal.errno:
        raise KernelError("a dump", refusal.errno, refusal.text)


def _refusal(answer: parse.Answer, kind: int, flags: int) -> Refusal:
    """Of an NLMSG_ERROR or NLMSG_DONE; errno 0 is an acknowledgement. An error repeats its request."""
    buffer, start, end = answer
    if end - start < 4:
        return Refusal(0, "")
    number = -_ERRNO.unpack_from(buffer, start)[0]
    if not number or not flags & wire.NLM_F_ACK_TLVS:
        return Refusal(number, "")
    echoed = 0
    if kind == wire.NLMSG_ERROR:
        echoed = 16 if flags & wire.NLM_F_CAPPED else (_SEQ.unpack_from(buffer, start + 4)[0] + 3) & ~3
    said = parse.attributes(buffer, start + 4 + echoed, end).get(NLMSGERR_ATTR_MSG, b"")
    return Refusal(number, said.rstrip(b"\0").decode(errors="replace"))
