"""The rtnetlink socket: whose answer is whose, and what happens when answers fail to come."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from helpers.private_netns import private_netns
from helpers.privilege import requires_netns

from overlaynet.addr import Mac
from overlaynet.errors import KernelError
from overlaynet.kernel import wire
from overlaynet.kernel.handle import DUMP_TRIES, Rtnl
from overlaynet.state import Neigh, Route

NOWHERE = wire.put_neigh(Neigh("gone", ip_address("10.0.0.1"), Mac("02:00:00:00:00:01")), 4_000)
"""A request that any kernel refuses with ENODEV."""
LOOPBACK = wire.put_neigh(Neigh("lo", ip_address("10.0.0.1"), Mac("02:00:00:00:00:01")), 1)

Reply = Callable[[int], list[bytes]]
"""Given a request's sequence number, the datagrams to answer with."""


@contextmanager
def scripted(*replies: Reply, timeout_s: float = 20) -> Iterator[Rtnl]:
    """A socket whose far end answers the first request with the first of these, and so on."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        for reply in replies:
            request = far.recv(65_536)
            for datagram in reply(wire.HEADER.unpack_from(request)[3]):
                far.send(datagram)

    server = threading.Thread(target=serve)
    server.start()
    with far, Rtnl(near, timeout_s=timeout_s) as rtnl:
        yield rtnl
        server.join()


def part(seq: int, kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return wire.HEADER.pack(16 + len(payload), kind, flags, seq, 0) + payload


def done(seq: int, flags: int = 0) -> bytes:
    return part(seq, wire.NLMSG_DONE, flags, bytes(4))


def entry(seq: int, flags: int = 0) -> bytes:
    return part(seq, wire.RTM_NEWNEIGH, flags, bytes(12))


def error(seq: int, number: int) -> bytes:
    return part(seq, wire.NLMSG_ERROR, 0x100, (-number).to_bytes(4, "little", signed=True) + bytes(16))


@pytest.mark.unit
def test_a_dump_that_the_kernel_calls_interrupted_is_read_again() -> None:
    interrupted = wire.NLM_F_DUMP_INTR
    first: Reply = lambda seq: [entry(seq) + entry(seq, interrupted), done(seq)]  # noqa: E731
    second: Reply = lambda seq: [entry(seq), done(seq)]  # noqa: E731
    with scripted(first, second) as rtnl:
        assert len(rtnl.dump(wire.dump_neighs())) == 1


@pytest.mark.unit
def test_a_table_that_never_holds_still_is_an_error_not_a_loop() -> None:
    moving: Reply = lambda seq: [entry(seq), done(seq, wire.NLM_F_DUMP_INTR)]  # noqa: E731
    with scripted(*[moving] * DUMP_TRIES) as rtnl, pytest.raises(KernelError) as caught:
        rtnl.dump(wire.dump_neighs())
    assert caught.value.errno == errno.EAGAIN


@pytest.mark.unit
def test_answers_to_earlier_requests_are_skipped() -> None:
    late: Reply = lambda seq: [error(seq - 1, errno.EPERM), entry(seq - 1), entry(seq), done(seq)]  # noqa: E731
    with scripted(late) as rtnl:
        assert len(rtnl.dump(wire.dump_neighs())) == 1


@pytest.mark.unit
def test_a_kernel_that_does_not_answer_is_an_error_in_time() -> None:
    with scripted(lambda seq: [], timeout_s=0.2) as rtnl, pytest.raises(KernelError) as caught:
        rtnl.batch([NOWHERE])
    assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.unit
def test_a_refused_dump_says_why() -> None:
    with scripted(lambda seq: [error(seq, errno.EPERM)]) as rtnl, pytest.raises(KernelError) as caught:
        rtnl.dump(wire.dump_neighs())
    assert caught.value.errno == errno.EPERM


@pytest.mark.unit
def test_an_empty_batch_asks_nothing() -> None:
    with scripted() as rtnl:
        assert rtnl.batch([]) == []


@pytest.mark.unit
def test_a_descriptor_of_another_kind_is_refused_and_left_open() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        with pytest.raises(KernelError) as caught:
            Rtnl.from_fd(other.fileno())
        assert caught.value.errno == errno.EPROTOTYPE
        assert os.fstat(other.fileno())


@pytest.mark.unit
def test_a_closed_descriptor_is_refused() -> None:
    with pytest.raises(KernelError) as caught:
        Rtnl.from_fd(10_000)
    assert caught.value.errno == errno.EBADF


@pytest.fixture
def rtnl() -> Iterator[Rtnl]:
    with private_netns() as netns, Rtnl.inside(netns.fd) as rtnl:
        yield rtnl


@pytest.mark.kernel
@requires_netns
def test_each_refusal_goes_to_the_request_that_earned_it(rtnl: Rtnl) -> None:
    bad = {0, 190, 191, 192, 193, 400, 599}
    refusals = rtnl.batch([NOWHERE if n in bad else LOOPBACK for n in range(600)])
    assert {n for n, refusal in enumerate(refusals) if refusal} == bad
    assert {refusal.errno for refusal in refusals if refusal} == {errno.ENODEV}


@pytest.mark.kernel
@requires_netns
def test_a_batch_of_nothing_but_failures_fits_even_an_unprivileged_buffer(rtnl: Rtnl) -> None:
    assert [r and r.errno for r in rtnl.batch([NOWHERE] * 1_000)] == [errno.ENODEV] * 1_000


@pytest.mark.kernel
@requires_netns
def test_the_kernels_own_words_come_along(rtnl: Rtnl) -> None:
    route = Route(ip_network("10.0.0.0/24"), "lo", ip_address("10.99.0.1"))
    (refusal,) = rtnl.batch([wire.put_route(route, 1)])
    assert refusal
    assert refusal.errno == errno.ENETUNREACH
    assert "gateway" in refusal.text


@pytest.mark.kernel
@requires_netns
def test_lost_answers_are_an_error_and_the_socket_goes_on() -> None:
    with private_netns() as netns, netns.entered():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        with Rtnl(sock) as rtnl:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            with pytest.raises(KernelError) as caught:
                rtnl.batch([NOWHERE] * 150)
            assert caught.value.errno == errno.ENOBUFS
            assert rtnl.batch([LOOPBACK]) == [None]


@pytest.mark.kernel
@requires_netns
def test_a_socket_works_in_the_namespace_where_it_was_opened() -> None:
    with private_netns() as here, private_netns() as there:
        there.run("ip link add only-there type bridge")
        with Rtnl.inside(there.fd) as inside, here.entered(), Rtnl.open() as outside:
            assert inside.ifindex("only-there")
            assert outside.ifindex("only-there") is None
