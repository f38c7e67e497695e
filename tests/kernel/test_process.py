"""Starting processes that outlive us, and stopping exactly those."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.eventually import eventually

from overlaynet.errors import LabFailed, ToolMissing
from overlaynet.kernel import process
from overlaynet.kernel.process import Process

pytestmark = pytest.mark.fake

STUBBORN = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "process.log"


@pytest.fixture
def sleeper(log: Path) -> Iterator[Process]:
    started = process.spawn(["sleep", "60"], log, os.environ)
    yield started
    process.stop([started], 1.0)


def test_process_has_a_session_of_its_own_and_its_output_in_the_log(log: Path) -> None:
    started = process.spawn(["sh", "-c", "echo out; echo err >&2; read x || echo no input"], log, os.environ)
    eventually(lambda: not started.alive)
    assert log.read_text() == "out\nerr\nno input\n"


def test_process_keeps_nothing_open_that_our_caller_left_open(log: Path, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(lock, True)
    try:
        started = process.spawn(["ls", "-l", "/proc/self/fd"], log, os.environ)
        eventually(lambda: not started.alive)
    finally:
        os.close(lock)
    assert str(log) in log.read_text()
    assert str(tmp_path / "lock") not in log.read_text()


def test_session_is_not_ours(sleeper: Process) -> None:
    assert os.getsid(sleeper.pid) == sleeper.pid


def test_process_is_alive_until_it_is_stopped(sleeper: Process) -> None:
    assert sleeper.alive
    process.stop([sleeper], 5.0)
    assert not sleeper.alive


def test_stopping_twice_is_no_error(sleeper: Process) -> None:
    process.stop([sleeper], 5.0)
    process.stop([sleeper], 5.0)
    assert not sleeper.alive


def test_one_that_ignores_the_polite_signal_is_killed(log: Path) -> None:
    deaf = process.spawn(["sh", "-c", STUBBORN], log, os.environ)
    eventually(lambda: log.read_text() == "deaf\n")
    process.stop([deaf], 0.05)
    assert not deaf.alive


def test_another_process_with_the_same_pid_is_left_alone(sleeper: Process) -> None:
    earlier = replace(sleeper, start=sleeper.start - 1)
    assert not earlier.alive
    process.stop([earlier], 0.1)
    assert sleeper.alive


def test_zombie_counts_as_gone(log: Path) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    eventually(lambda: process.start_time(pid) is None)
    os.waitpid(pid, 0)


def test_process_killed_by_others_is_seen_as_gone(sleeper: Process) -> None:
    os.kill(sleeper.pid, signal.SIGKILL)
    eventually(lambda: not sleeper.alive)


def test_missing_program_comes_with_the_way_to_install_it(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(ToolMissing) as caught:
        process.spawn(["etcd"], log, os.environ)
    assert caught.value.next == ("apt-get install etcd-server",)


def test_program_that_cannot_be_started_is_an_error(log: Path, tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/nonexistent/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(LabFailed, match="could not be started"):
        process.spawn([str(program)], log, os.environ)


def test_processes_in_a_namespace_are_found_by_it(sleeper: Process) -> None:
    own = Path("/proc/self/ns/net")
    found = process.inside([own])
    assert sleeper in found
    assert os.getpid() not in {item.pid for item in found}
    assert process.inside([Path("/nonexistent")]) == []


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("a\nb\nc\n", "b\nc", id="the-last"),
        pytest.param("", "is empty", id="empty"),
        pytest.param(None, "cannot be read", id="missing"),
    ],
)
def test_last_lines(tmp_path: Path, text: str | None, want: str) -> None:
    file = tmp_path / "x.log"
    if text is not None:
        file.write_text(text)
    assert process.last_lines(file, 2).endswith(want)
