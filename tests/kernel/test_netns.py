"""Named and nameless network namespaces."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.privilege import requires_netns

from overlaynet.errors import KernelError, NotFound
from overlaynet.kernel import capability, netns

pytestmark = [pytest.mark.kernel, requires_netns]


@pytest.fixture
def name() -> Iterator[str]:
    """A name of the test's own, gone afterwards."""
    name = f"ovl-test-{uuid.uuid4().hex[:8]}"
    yield name
    netns.delete(name)


def here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_a_created_namespace_is_one_for_iproute2_too(name: str) -> None:
    netns.create(name)
    assert netns.exists(name)
    assert name in netns.names()
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert name in {line.split()[0] for line in listed.splitlines()}


def test_iproute2s_namespace_is_one_for_us_too(name: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True)
    assert name in netns.names()
    netns.delete(name)
    assert not netns.path(name).exists()


def test_creating_leaves_the_caller_where_it_is(name: str) -> None:
    before = here()
    netns.create(name)
    assert here() == before
    assert netns.path(name).stat().st_ino != before


def test_a_name_is_given_only_once(name: str) -> None:
    netns.create(name)
    with pytest.raises(KernelError) as caught:
        netns.create(name)
    assert caught.value.errno == errno.EEXIST
    assert netns.exists(name)


def test_a_plain_file_left_by_a_crash_is_no_namespace_and_in_nobodys_way(name: str) -> None:
    netns.create(name)  # so that the directory is there
    netns.delete(name)
    netns.path(name).touch()
    assert name not in netns.names()
    netns.create(name)
    assert netns.exists(name)


def test_deleting_what_is_not_there_is_no_error(name: str) -> None:
    netns.create(name)
    netns.delete(name)
    netns.delete(name)
    assert not netns.exists(name)


def test_entering_moves_this_thread_and_its_children_and_brings_them_back(name: str) -> None:
    netns.create(name)
    before = here()
    with netns.entered(name):
        inside = here()
        child = subprocess.run(
            ["readlink", "/proc/self/ns/net"], check=True, capture_output=True, text=True
        ).stdout
    assert inside == netns.path(name).stat().st_ino
    assert str(inside) in child
    assert here() == before


def test_other_threads_stay_where_they_are(name: str) -> None:
    netns.create(name)
    before, seen = here(), []
    entered, looked = threading.Event(), threading.Event()

    def watch() -> None:
        entered.wait(10)
        seen.append(here())
        looked.set()

    thread = threading.Thread(target=watch)
    thread.start()
    with netns.entered(name):
        entered.set()
        assert looked.wait(10)
    thread.join()
    assert seen == [before]


def test_an_error_inside_still_brings_the_thread_back(name: str) -> None:
    netns.create(name)
    before = here()
    with pytest.raises(ZeroDivisionError), netns.entered(name):
        raise ZeroDivisionError
    assert here() == before


def test_a_namespace_may_be_given_by_name_path_or_descriptor(name: str) -> None:
    netns.create(name)
    want = netns.path(name).stat().st_ino
    fd = os.open(netns.path(name), os.O_RDONLY)
    for target in (name, str(netns.path(name)), netns.path(name), fd):
        with netns.entered(target):
            assert here() == want
    os.close(fd)


def test_entering_what_does_not_exist_names_it(name: str) -> None:
    before = here()
    with pytest.raises(NotFound, match=name), netns.entered(name):
        pass
    assert here() == before


def test_entering_what_is_no_namespace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError), netns.entered(tmp_path):
        pass


def test_a_nameless_namespace_lives_as_long_as_its_descriptor() -> None:
    fd = netns.new()
    with netns.entered(fd):
        assert here() == os.fstat(fd).st_ino
    assert os.fstat(fd).st_ino not in named()
    os.close(fd)


def named() -> set[int]:
    """Which namespaces have a name; others come and go on this machine meanwhile."""
    found = set()
    for name in netns.names():
        with suppress(FileNotFoundError):
            found.add(netns.path(name).stat().st_ino)
    return found


def test_a_socket_belongs_to_the_namespace_it_was_opened_in() -> None:
    fd = netns.new()
    with netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert os.fstat(fd).st_ino != here()
        with pytest.raises(OSError) as caught:  # loopback is down there, whatever it is here
            sock.sendto(b"", ("127.0.0.1", 9))
    os.close(fd)
    assert caught.value.errno == errno.ENETUNREACH


def test_no_descriptor_is_left_open(name: str) -> None:
    netns.create(name)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names are enough)
    with netns.entered(name):
        pass
    netns.socket_in(name, socket.AF_INET, socket.SOCK_DGRAM).close()
    os.close(netns.new())
    with pytest.raises(NotFound), netns.entered("no-such-namespace"):
        pass
    assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_many_are_made_and_listed(name: str) -> None:
    many = [f"{name}-{n}" for n in range(20)]
    try:
        for one in many:
            netns.create(one)
        assert set(many) <= set(netns.names())
        assert len({netns.path(one).stat().st_ino for one in many}) == len(many)
    finally:
        for one in many:
            netns.delete(one)
    assert not set(many) & set(netns.names())


def test_trying_tells_whether_namespaces_can_be_made() -> None:
    before = here()
    assert capability.can_create_netns()
    assert here() == before
