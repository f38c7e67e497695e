"""What the service manager hears, on a socket of the test's own."""

from __future__ import annotations

import os
import socket

import pytest

from overlaynet_agent.notify import Manager, Notifier

pytestmark = pytest.mark.fake


@pytest.fixture(params=["path", "abstract"])
def heard(request, tmp_path):
    """The environment that names a listening socket, and a way to read what came."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@overlaynet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.setblocking(False)

        def read() -> list[str]:
            found = []
            while True:
                try:
                    found.append(listener.recv(4_096).decode())
                except BlockingIOError:
                    return found

        read.environ = {"NOTIFY_SOCKET": name}  # type: ignore[attr-defined]
        yield read


def test_ready_is_said_once_with_the_status(heard):
    manager = Manager.from_environ(heard.environ)
    manager.tell(0.0, False, "starting")
    manager.tell(1.0, True, "degraded; OVL-301 etcd\nis away")
    manager.tell(2.0, True, "ready")
    manager.tell(3.0, True, "ready")
    assert heard() == ["STATUS=starting", "READY=1\nSTATUS=degraded; OVL-301 etcd is away", "STATUS=ready"]


def test_start_is_given_more_time_until_ready(heard):
    manager = Manager.from_environ(heard.environ)
    for second in range(25):
        manager.turn(float(second))
    assert heard() == ["EXTEND_TIMEOUT_USEC=60000000"] * 3
    manager.tell(30.0, True, "ready")
    heard()
    manager.turn(100.0)
    assert heard() == []


def test_watchdog_is_fed_at_half_its_time(heard):
    manager = Manager.from_environ(
        {**heard.environ, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    )
    manager.tell(0.0, True, "ready")
    heard()
    for second in range(11):
        manager.turn(float(second))
    assert heard() == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)
def test_watchdog_of_nobody_or_of_another_process_is_not_fed(heard, environ):
    manager = Manager.from_environ({**heard.environ, **environ})
    manager.tell(0.0, True, "ready")
    heard()
    manager.turn(1_000.0)
    assert heard() == []


def test_reload_is_told_around_but_not_before_the_first_ready(heard):
    manager = Manager.from_environ(heard.environ)
    manager.reloading()
    manager.reloaded()
    assert heard() == []
    manager.tell(0.0, True, "ready")
    heard()
    manager.reloading()
    manager.reloaded()
    first, second = heard()
    assert first.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert second == "READY=1"


def test_stop_is_told(heard):
    Manager.from_environ(heard.environ).stopping()
    assert heard() == ["STOPPING=1\nSTATUS=stopping; the dataplane stays"]


@pytest.mark.parametrize("address", [None, "", "/nobody/listens", "@nobody-listens", "x" * 200])
def test_nobody_who_listens_is_no_failure(address):
    Notifier(address).send(READY=1)
